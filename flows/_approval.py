"""Approval by a person: a deployed run is suspended until somebody answers, any other leaves a proposal."""

import logging
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import delete_flow_run_input, read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.runtime import flow_run
from pydantic import Field, create_model

from prefect_augment.errors import ParameterError
from prefect_augment.params import Answer, Approval, ClassAmount
from prefect_augment.publish.proposal import (
    SUGGESTED,
    Proposal,
    added_records,
    decide,
    lowered,
    read_decision,
    read_labels,
    request_markdown,
)
from prefect_augment.report.run_summary import summarise, where
from prefect_augment.schema import ApprovalDecision, Release, ReportRef, RunResult
from prefect_augment.storage import Store, find_commit
from prefect_augment.tasks._runtime import call, conclude, open_root, run, share
from prefect_augment.tasks.approve import propose_dataset
from prefect_augment.tasks.publish import publish_dataset, publish_part, write_report
from prefect_augment.text import markdown_text

logger = logging.getLogger(__name__)

MAX_AMOUNTS = 40  # number fields of a form; the command line lowers further classes
MAX_QUESTIONS = 100


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
    """Log in the run's first second how approval will be requested."""
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
    """Return the decision on a proposal, asking for one where the run can be suspended; None while it is open.

    A suspended run ends here together with its process. Resumed, it starts over, skips what has
    receipts and finds the answer here.
    """
    run_id = flow_run.id or ""  # empty outside Prefect
    previous_decision = read_decision(store, proposal.id)
    if previous_decision is not None:
        decided_here = bool(run_id) and previous_decision.run == run_id
        if decided_here or previous_decision.decision == "approve" or not approval.ask_again:
            logger.info("This version was decided on before. %s", previous_decision.sentence)
            return previous_decision
    if why_not_suspended():
        again = " --again" if previous_decision is not None else ""
        command = f"prefect-augment approve {store.uri} {proposal.id}{again}"
        logger.info("The version waits for approval: %s", command)
        return None
    answer = _answer(proposal, store, timeout_seconds=approval.timeout_hours * 3600)
    answer = answer.model_copy(update={"again": previous_decision is not None})
    decision = decide(store, proposal, answer, run=run_id)
    logger.info("%s", decision.sentence)
    return decision


def publish_or_ask(
    release: Release, page: ReportRef, approval: Approval, *, started: float
) -> RunResult:
    """Publish a version, or propose it and ask for approval; return the run's result."""
    store = open_root(release.dataset)
    if not approval.ask:
        return _publish(release, page, started=started)
    proposal = run(propose_dataset, release, page)
    decision = None
    if find_commit(store, proposal.id) is None:
        decision = ask(proposal, approval, store)
        if decision is None or decision.decision == "reject":
            return not_published(proposal, decision, started=started)
    return publish_proposal(proposal, decision, started=started)


def _publish(
    release: Release,
    page: ReportRef,
    proposal: str = "",
    decision: ApprovalDecision | None = None,
    *,
    started: float,
) -> RunResult:
    """Publish a version; an engine's workers share the writing of its shards."""
    share(lambda i, n: call(publish_part, release, part=i, n_parts=n), step="publish")
    commit = run(publish_dataset, release, page, approval=decision)
    result = summarise(
        release,
        status="published" if commit.created else "unchanged",
        started=started,
        store=open_root(release.dataset),
        commit=commit,
        report=page,
        proposal=proposal,
        approval=decision,
    )
    return conclude(result, release.dataset)


def publish_proposal(
    proposal: Proposal, decision: ApprovalDecision | None, *, started: float
) -> RunResult:
    """Publish an approved version, with a report that says who approved it and how many records.

    ``decision`` is None where the same version had been published before without approval.
    """
    release = proposal.release
    if decision is not None:
        copies = release.experiment.params.publish.materialise == "copies"
        recipe = lowered(proposal.recipe, proposal.plan, decision.amounts, copies=copies)
        release = release.model_copy(update={"recipe": recipe})
    page = run(write_report, release, approval=decision)
    return _publish(release, page, proposal.id, decision, started=started)


def not_published(
    proposal: Proposal, decision: ApprovalDecision | None, *, started: float
) -> RunResult:
    """Return the result of a run whose version waits for approval, or was rejected."""
    result = summarise(
        proposal.release,
        status="rejected" if decision else "awaiting_approval",
        started=started,
        store=open_root(proposal.release.dataset),
        report=proposal.report,
        proposal=proposal.id,
        approval=decision,
    )
    return conclude(result, proposal.release.dataset)


def answer_form(proposal: Proposal) -> type[RunInput]:
    """Return the form of a suspended run: a decision, a number per class, labels, who decides and why.

    The numbers are bounded by what was evaluated, so form and server refuse more. The decision has no
    default: an empty answer never publishes.
    """
    text = "approve publishes the version; reject publishes nothing."
    decision = Field(title="Decision", description=text)
    fields: dict[str, Any] = {"decision": (Literal["approve", "reject"], decision)}
    for i, (name, n) in enumerate(_shown(proposal), start=1):
        text = f"Records to add to this class: at most {n:,}; 0 adds none."
        amount = Field(default=n, ge=0, le=n, title=f"Add to {name}", description=text)
        fields[f"amount_{i}"] = (int, amount)
    for name, title, text in (
        (
            "labels",
            "Labels to correct",
            f"A line each: aug_id = label; {SUGGESTED} takes the audit's for all that it doubts. Read by the next run.",
        ),
        ("comment", "Comment", "Why; kept in the manifest."),
        ("approved_by", "Your name", "Who decides; kept in the manifest."),
    ):
        fields[name] = (str, Field(default="", title=title, description=text))
    return create_model("ApprovalInput", __base__=RunInput, **fields)


def _shown(proposal: Proposal) -> list[tuple[str, int]]:
    """The classes with a field of their own, in the plan's order."""
    added = added_records(proposal.recipe)
    names = [c.name for c in proposal.plan.classes if c.name in added]
    return [(name, added[name]) for name in names[:MAX_AMOUNTS]]


def _answer(proposal: Proposal, store: Store, *, timeout_seconds: float) -> Answer:
    """Return an answer whose labels can be corrected; one with a wrong line is asked for again."""
    problem = ""
    while True:
        key = _pause_key(proposal.id)
        answer = _ask(proposal, store, key, problem, timeout_seconds=timeout_seconds)
        try:
            read_labels(store, proposal, answer.labels)
        except ParameterError as exc:
            problem = str(exc)
            logger.warning("The answer is not taken, and asked for again: %s", problem)
            delete_flow_run_input(_response(key))
        else:
            return answer


def _ask(
    proposal: Proposal, store: Store, key: str, problem: str, *, timeout_seconds: float
) -> Answer:
    """Suspend the run until it is answered, or return the answer that it was resumed with."""
    page = f"{store.uri}/{proposal.report.prefix}/report.html"
    text = request_markdown(proposal, report_link=f"Report: {where('report.html', page)}.")
    n_shown, n_added = len(_shown(proposal)), len(added_records(proposal.recipe))
    if n_added > n_shown:
        text += (
            f"\n\nThe form has the first {n_shown} of {n_added} classes; to lower others, reject here "
            f"and use `prefect-augment approve --again`."
        )
    if problem:
        text = f"**The last answer was not taken:** {markdown_text(problem)}\n\n{text}"
    form = answer_form(proposal).with_initial_data(description=text)
    response: Any = suspend_flow_run(wait_for_input=form, timeout=round(timeout_seconds), key=key)
    amounts = [
        ClassAmount(name=name, records=getattr(response, f"amount_{i}"))
        for i, (name, _) in enumerate(_shown(proposal), start=1)
    ]
    rejected = response.decision == "reject"
    return Answer(
        decision=response.decision,
        amounts=[] if rejected else amounts,
        labels=response.labels,
        comment=response.comment,
        by=response.approved_by,
    )


def _pause_key(proposal_id: str) -> str:
    """Return the key of the question that is open or answered; a new one if there is none.

    Prefect takes a key that it has seen for a resumed run and goes on, answered or not. A run that is
    retried after a timeout asks anew.
    """
    with get_client(sync_client=True) as client:
        policy = client.read_flow_run(UUID(flow_run.id)).empirical_policy
    for number in range(1, MAX_QUESTIONS):
        key = f"{proposal_id}-{number}"
        is_new = key not in (policy.pause_keys or ())
        if is_new or read_flow_run_input(_response(key)) is not None:
            return key
    raise RuntimeError(
        f"this run has asked {MAX_QUESTIONS} times without an answer; start a new one."
    )


def _response(key: str) -> str:
    """Return the name under which Prefect keeps the answer to a question."""
    return keyset_from_base_key(f"suspended-{key}")["response"]
