"""Installs what keeps deployed runs going: lost runs are found, crashed ones started again, refusals told.

    python deployments/automations.py                                   # the first two
    python deployments/automations.py --notify slack-webhook/data-team  # and the third: a saved block
    python deployments/automations.py --on-published my-flow/my-deployment --parameter uri='{{ event.payload.uri }}'
    python deployments/automations.py --list | --dry-run | --remove

Run it against a server (PREFECT_API_URL). An automation of the same name is replaced, so running it
again changes nothing. It concerns the runs of deployments that carry the tag `augment` (--tag).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from prefect_augment.tasks._events import PUBLISHED, REFUSED

TAG = "augment"
PREFIX = "prefect-augment: "
# Three heartbeats may be late on a busy machine; workers are told to send one every 30 seconds.
SILENCE_SECONDS = 120

ENDED = [
    f"prefect.flow-run.{name}"
    for name in ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "Scheduled")
]


def zombies(tag: str = TAG, *, silence_seconds: float = SILENCE_SECONDS) -> AutomationCore:
    """Runs whose process is gone, without anybody to say so: no heartbeat is a crash.

    A worker that lives says itself that a run of its crashed. This is for a machine that was switched
    off, and for a worker that was killed together with its runs.
    """
    return AutomationCore(
        name=f"{PREFIX}mark lost runs as crashed",
        description=f"A run tagged {tag!r} that sent no heartbeat for {silence_seconds:.0f} s is lost.",
        trigger=EventTrigger(
            # From one heartbeat on, either the next comes or the run ends in some way.
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ENDED},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=_tagged(tag),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {silence_seconds:.0f} seconds: its worker or machine is gone.",
            )
        ],
    )


def reschedule(tag: str = TAG) -> AutomationCore:
    """Crashed runs go back to their queue; they go on from what is staged.

    The flow itself counts the crashes and fails after three in a row, so this needs no bound.
    """
    return AutomationCore(
        name=f"{PREFIX}run crashed runs again",
        description=f"A run tagged {tag!r} that crashed is scheduled again and goes on from what is staged.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=_tagged(tag),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                message="Scheduled again after a crash; it goes on from what is staged.",
                # Crashed is a final state, which is left by force only.
                force=True,
            )
        ],
    )


def tell_refusals(block: str) -> AutomationCore:
    """A run that was refused is told to people.

    Parameters
    ----------
    block : str
        A saved notification block, `type-slug/name`: slack-webhook, custom-webhook, email …
    """
    try:
        found = Block.load(block)
    except ValueError as exc:
        raise SystemExit(
            f"there is no block {block!r}; save one in the UI, or name it as `prefect block ls` does."
        ) from exc
    if "notify" not in found.get_block_capabilities():
        raise SystemExit(f"block {block!r} is a {type(found).__name__}, which notifies nobody.")
    return AutomationCore(
        name=f"{PREFIX}tell of refused versions",
        description=f"Sends verdict, reasons and report of a refused run to {block}.",
        trigger=EventTrigger(expect={REFUSED}, posture=Posture.Reactive, threshold=1),
        actions=[
            SendNotification(
                block_document_id=found._block_document_id,
                subject="prefect-augment: nothing was published to {{ event.resource['prefect.resource.name'] }}",
                body=(
                    "The verdict is {{ event.payload.verdict }}. {{ event.payload.reasons | join(' ') }}\n"
                    "Destination: {{ event.payload.uri }}\nReport: {{ event.payload.report }}"
                ),
            )
        ],
    )


def on_published(
    deployment: str, parameters: dict[str, Any], *, client: SyncPrefectClient, dataset: str = "*"
) -> AutomationCore:
    """Another deployment runs whenever a version is published.

    Parameters
    ----------
    deployment : str
        `flow/deployment`.
    parameters : dict
        Its parameters; text may hold `{{ event.payload.uri }}`, `.version`, `.manifest`, `.verdict`.
    dataset : str
        Which dataset: its slug (the last two parts of its location, as in the event), or a pattern.
    """
    found = client.read_deployment_by_name(deployment)
    return AutomationCore(
        name=f"{PREFIX}run {deployment} on a new version",
        description=f"Runs {deployment} with every version that is published.",
        trigger=EventTrigger(
            expect={PUBLISHED},
            match=ResourceSpecification(
                {"prefect.resource.id": [f"prefect-augment.dataset.{dataset}"]}
            ),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[RunDeployment(deployment_id=found.id, parameters=_templated(parameters))],
    )


def install(automations: Sequence[AutomationCore], client: SyncPrefectClient) -> dict[str, str]:
    """Create each automation, or replace the one of the same name; return what was done, by name."""
    done = {}
    for wanted in automations:
        there = client.read_automations_by_name(wanted.name)
        if there:
            client.update_automation(there[0].id, wanted)
            for surplus in there[1:]:
                client.delete_automation(surplus.id)
        else:
            client.create_automation(wanted)
        done[wanted.name] = "replaced" if there else "created"
    return done


def installed(client: SyncPrefectClient) -> list[Any]:
    """The automations of ours that the server has."""
    return [a for a in client.read_automations() if a.name.startswith(PREFIX)]


def _templated(value: Any) -> Any:
    """Mark text with a template as one, in the form that Prefect keeps parameters in."""
    if isinstance(value, dict):
        return {name: _templated(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_templated(item) for item in value]
    if isinstance(value, str) and "{{" in value:
        return {"__prefect_kind": "jinja", "template": value}
    return value


def _tagged(tag: str) -> ResourceSpecification:
    return ResourceSpecification(
        {"prefect.resource.id": [f"prefect.tag.{tag}"], "prefect.resource.role": ["tag"]}
    )


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, list or remove the automations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", default=TAG, help="tag of the deployments (augment)")
    parser.add_argument(
        "--silence-seconds",
        type=float,
        default=SILENCE_SECONDS,
        help="without a heartbeat for so long a run is lost; at least 3 heartbeats (120)",
    )
    parser.add_argument("--notify", metavar="BLOCK", help="saved block that hears of refusals")
    parser.add_argument("--on-published", metavar="FLOW/DEPLOYMENT", help="run it on new versions")
    parser.add_argument("--dataset", default="*", help="of which dataset: its slug or a pattern")
    parser.add_argument(
        "--parameter", action="append", default=[], type=_parameter, metavar="NAME=VALUE"
    )
    act = parser.add_mutually_exclusive_group()
    act.add_argument("--dry-run", action="store_true", help="print them as JSON; install nothing")
    act.add_argument("--list", action="store_true", help="list those of ours that are installed")
    act.add_argument("--remove", action="store_true", help="remove all of ours")
    given = parser.parse_args(arguments)

    if not PREFECT_API_URL.value():
        sys.exit("PREFECT_API_URL is not set: say at which server, e.g. http://127.0.0.1:4200/api")
    with get_client(sync_client=True) as client:
        if given.list or given.remove:
            for automation in installed(client):
                if given.remove:
                    client.delete_automation(automation.id)
                state = "removed" if given.remove else "on" if automation.enabled else "off"
                print(f"{automation.name}: {state}")
            return
        wanted = [zombies(given.tag, silence_seconds=given.silence_seconds), reschedule(given.tag)]
        if given.notify:
            wanted.append(tell_refusals(given.notify))
        if given.on_published:
            parameters = dict(given.parameter)
            wanted.append(
                on_published(given.on_published, parameters, client=client, dataset=given.dataset)
            )
        if given.dry_run:
            print(json.dumps([a.model_dump(mode="json") for a in wanted], indent=2))
            return
        for name, what in install(wanted, client).items():
            print(f"{name}: {what}")
    here = PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()
    if not here or 3 * here > given.silence_seconds:
        print(
            f"Workers have to send heartbeats at least every {given.silence_seconds / 3:.0f} s, or live runs are taken "
            "for lost: set PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 where they run (here it is "
            f"{here or 'off'})."
        )


if __name__ == "__main__":
    main()
