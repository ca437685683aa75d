"""Asking a person: a deployed run is suspended until somebody answers; any other leaves its proposal."""

from __future__ import annotations

import logging
from typing import Any, Literal

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from pydantic import Field, create_model

from prefect_augment.params import Answer, Approval, ClassAmount
from prefect_augment.publish.proposal import (
    Proposal,
    added_records,
    decide,
    lowered,
    read_decision,
    request_markdown,
)
from prefect_augment.report.run_summary import summarise
from prefect_augment.schema.base import ApprovalDecision, Commit, ReportRef, RunResult
from prefect_augment.schema.report import Release
from prefect_augment.storage.manifests import find_commit
from prefect_augment.storage.store import Store
from prefect_augment.tasks._runtime import conclude, link, open_root, run
from prefect_augment.tasks.approve import propose_dataset
from prefect_augment.tasks.publish import publish_dataset, write_report

__all__ = [
    "announce",
    "answer_form",
    "ask",
    "not_published",
    "publish_or_ask",
    "publish_proposal",
    "why_not_suspended",
]

logger = logging.getLogger(__name__)

MAX_AMOUNTS = 40  # number fields of a form; beyond that the command lowers the rest
MAX_ASKED = 100


def why_not_suspended() -> str:
    """Return why this run cannot be suspended until somebody answers; empty where it can."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return "it runs outside Prefect"
    if context.flow_run.parent_task_run_id is not None:
        return "it is a subflow"
    if context.flow_run.deployment_id is None:
        return "it was not started from a deployment"
    return ""


def announce(approval: Approval) -> None:
    """Say in the run's first second how somebody will be asked."""
    why = why_not_suspended()
    if why:
        logger.info(
            "Approval is required. This run cannot be suspended because %s: it will end with a proposal, and "
            "`prefect-augment approve` publishes it.",
            why,
        )
    else:
        logger.info(
            "Approval is required: after the report this run is suspended for at most %g hours, and its page asks.",
            approval.timeout_hours,
        )


def ask(proposal: Proposal, approval: Approval, store: Store) -> ApprovalDecision | None:
    """Return what was decided on a proposal, asking where that is possible; None while it is open.

    A suspended run ends here, and its process with it; resumed, it comes from the top through its
    receipts to this place again and finds the answer.
    """
    run_id = _run_id()
    there = read_decision(store, proposal.id)
    if there is not None:
        mine = bool(run_id) and there.run == run_id
        if mine or there.decision == "approve" or not approval.ask_again:
            logger.info("This very version was decided on. %s", there.sentence)
            return there
    if why_not_suspended():
        again = " --again" if there is not None else ""
        logger.info(
            "The version waits for approval: prefect-augment approve %s %s%s",
            store.uri,
            proposal.id,
            again,
        )
        return None
    answer = _ask(proposal, store, timeout_seconds=approval.timeout_hours * 3600)
    decision = decide(
        store,
        proposal,
        answer.model_copy(update={"again": there is not None}),
        run=run_id,
    )
    logger.info("%s", decision.sentence)
    return decision


def publish_or_ask(
    release: Release, page: ReportRef, approval: Approval, *, started: float
) -> RunResult:
    """Publish a version, or propose it and ask; return what became of the run."""
    dataset = release.dataset
    store = open_root(dataset)
    if not approval.ask:
        commit = run(publish_dataset, release, page)
        return _concluded(release, page, commit, started=started)
    proposal = run(propose_dataset, release, page)
    decision = None
    if find_commit(store, proposal.id) is None:
        decision = ask(proposal, approval, store)
        if decision is None or decision.decision == "reject":
            return not_published(proposal, decision, started=started)
    return publish_proposal(proposal, decision, started=started)


def publish_proposal(
    proposal: Proposal, decision: ApprovalDecision | None, *, started: float
) -> RunResult:
    """Publish what was approved, with a report that says by whom and how much.

    ``decision`` is None where the same version was published before without anybody being asked.
    """
    release = proposal.release
    if decision is not None:
        copies = release.experiment.params.publish.materialise == "copies"
        recipe = lowered(proposal.recipe, proposal.plan, decision.amounts, copies=copies)
        release = release.model_copy(update={"recipe": recipe})
    page = run(write_report, release, approval=decision)
    commit = run(publish_dataset, release, page, approval=decision)
    return _concluded(
        release, page, commit, started=started, proposal=proposal.id, approval=decision
    )


def not_published(
    proposal: Proposal, decision: ApprovalDecision | None, *, started: float
) -> RunResult:
    """Return the result of a run whose version waits, or was rejected."""
    result = summarise(
        proposal.release,
        status="rejected" if decision else "awaiting_approval",
        started=started,
        report=proposal.report,
        proposal=proposal.id,
        approval=decision,
    )
    return conclude(result, proposal.release.dataset)


def _concluded(
    release: Release,
    page: ReportRef,
    commit: Commit,
    *,
    started: float,
    proposal: str = "",
    approval: ApprovalDecision | None = None,
) -> RunResult:
    result = summarise(
        release,
        status="published" if commit.created else "unchanged",
        started=started,
        store=open_root(release.dataset),
        commit=commit,
        report=page,
        proposal=proposal,
        approval=approval,
    )
    return conclude(result, release.dataset)


# --- the form ---------------------------------------------------------------------------------


def answer_form(proposal: Proposal) -> type[RunInput]:
    """Return the form that a suspended run shows: a decision, a number per class, who and why.

    The numbers are bounded by what was judged, so that the form and the server refuse more. The
    decision has no default: an answer that says nothing never publishes.
    """
    fields: dict[str, Any] = {
        "decision": (
            Literal["approve", "reject"],
            Field(
                title="Decision",
                description="approve publishes the version; reject publishes nothing.",
            ),
        )
    }
    for i, (name, n) in enumerate(_shown(proposal), start=1):
        fields[f"amount_{i}"] = (
            int,
            Field(
                default=n,
                ge=0,
                le=n,
                title=f"Add to {name}",
                description=f"Records to add to this class: at most {n:,}; 0 adds none.",
            ),
        )
    for name, title, text in (
        ("comment", "Comment", "Why; kept in the manifest."),
        ("approved_by", "Your name", "Who decides; kept in the manifest."),
    ):
        fields[name] = (str, Field(default="", title=title, description=text))
    form: type[RunInput] = create_model("ApprovalInput", __base__=RunInput, **fields)
    return form


def _shown(proposal: Proposal) -> list[tuple[str, int]]:
    """The classes with a field of their own, in the plan's order."""
    added = added_records(proposal.recipe)
    names = [c.name for c in proposal.plan.classes if c.name in added]
    return [(name, added[name]) for name in names[:MAX_AMOUNTS]]


def _ask(proposal: Proposal, store: Store, *, timeout_seconds: float) -> Answer:
    """Suspend the run until it is answered, or return the answer that it was resumed with."""
    page = f"{store.uri}/{proposal.report.prefix}/report.html"
    text = request_markdown(proposal, report_link=f"Report: {link('report.html', page)}.")
    n_shown, n_added = len(_shown(proposal)), len(added_records(proposal.recipe))
    if n_added > n_shown:
        text += (
            f"\n\nThe form has the first {n_shown} of {n_added} classes; to lower others, reject here "
            f"and use `prefect-augment approve --again`."
        )
    form = answer_form(proposal).with_initial_data(description=text)
    given: Any = suspend_flow_run(
        wait_for_input=form, timeout=round(timeout_seconds), key=_pause_key(proposal.id)
    )
    amounts = [
        ClassAmount(name=name, records=getattr(given, f"amount_{i}"))
        for i, (name, _) in enumerate(_shown(proposal), start=1)
    ]
    rejected = given.decision == "reject"
    return Answer(
        decision=given.decision,
        amounts=[] if rejected else amounts,
        comment=given.comment,
        by=given.approved_by,
    )


def _pause_key(proposal_id: str) -> str:
    """Return the key of the question that is open or answered; a new one where none is.

    Prefect takes a key that it has seen for a resumed run and goes on, answer or not. A run that
    was retried after nobody had answered in time asks anew.
    """
    with get_client(sync_client=True) as client:
        policy = client.read_flow_run(_current_run()).empirical_policy
    for number in range(1, MAX_ASKED):
        key = f"{proposal_id}-{number}"
        response = keyset_from_base_key(f"suspended-{key}")["response"]
        if key not in (policy.pause_keys or ()) or read_flow_run_input(response) is not None:
            return key
    raise RuntimeError(f"this run has asked {MAX_ASKED} times without an answer; start a new one.")


def _current_run() -> Any:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


def _run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run else ""
