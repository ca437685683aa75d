"""Approval: a version that is ready waits for a person's yes.

A run that may not publish by itself leaves a *proposal*: everything that publishing needs, under
``_proposals/<id>.json``. The decision is a second object beside it, put once. Whoever decides may
lower the number of added records, class by class, never raise it: what is published is a prefix of
the records that were judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from prefect_augment.datatypes import (
    ApprovalDecision,
    ArmScore,
    BalancePlan,
    DatasetRef,
    Fact,
    GateReport,
    ModelRef,
    Recipe,
    ReportRef,
    Verdict,
)
from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.evaluation.words import markdown_text
from prefect_augment.facts_search import SearchFacts
from prefect_augment.manifest import find_commit
from prefect_augment.params import Answer, Classic, Publish, Report
from prefect_augment.stages.amounts import added_records, lowered_amounts
from prefect_augment.stages.publish import dataset_key
from prefect_augment.staging import read_fact
from prefect_augment.storage import Store

__all__ = [
    "Proposal",
    "decide",
    "list_proposals",
    "propose",
    "read_decision",
    "read_proposal",
    "request_markdown",
]

FOLDER = "_proposals"
MAX_ROWS = 100  # of a table that a person is to read


class Proposal(Fact):
    """A version that is ready to be published, and what it would be published with."""

    id: str  # the version's dataset key: the same inputs are proposed once
    created_at: str  # UTC, ISO 8601
    dataset: DatasetRef
    plan: BalancePlan
    recipe: Recipe
    verdict: Verdict
    gate: GateReport | None
    classic: DatasetRef | None
    models: tuple[ModelRef, ...]
    scores: tuple[ArmScore, ...]
    search: SearchFacts | None = None
    report: ReportRef
    settings: Publish
    pictures: Report
    policy: Classic  # that picture sheets show
    params: dict[str, Any]
    seed: int


class ProposalState(Fact):
    """One line of the list of proposals."""

    id: str
    status: Literal["open", "approved", "rejected"]
    created_at: str
    verdict: str
    recipe: str
    added: dict[str, int]  # stratum -> records that would be added
    report: str
    decision: ApprovalDecision | None


def propose(
    store: Store,
    *,
    dataset: DatasetRef,
    plan: BalancePlan,
    recipe: Recipe,
    verdict: Verdict,
    gate: GateReport | None,
    classic: DatasetRef | None,
    models: Sequence[ModelRef],
    scores: Sequence[ArmScore],
    report: ReportRef,
    settings: Publish,
    pictures: Report,
    policy: Classic,
    params: dict[str, Any],
    seed: int,
    search: SearchFacts | None = None,
) -> Proposal:
    """Leave a proposal, or return the one of the same inputs that is there.

    Parameters
    ----------
    store : Store
        The destination.
    dataset, plan, recipe, verdict, gate, classic, models, settings, params
        As for :func:`.publish`, which takes them once somebody approves.
    scores, report, pictures, policy, seed, search
        For the report, which is written anew with the decision and the amounts in it.
    """
    key = dataset_key(dataset, recipe, verdict, gate, classic, models, settings)
    made = Proposal(
        id=key,
        created_at=_now(),
        dataset=dataset,
        plan=plan,
        recipe=recipe,
        verdict=verdict,
        gate=gate,
        classic=classic,
        models=tuple(models),
        scores=tuple(scores),
        search=search,
        report=report,
        settings=settings,
        pictures=pictures,
        policy=policy,
        params=params,
        seed=seed,
    )
    path = f"{FOLDER}/{key}.json"
    # What is published already needs nobody's yes.
    if find_commit(store, key) is not None or store.put_if_absent(path, made.to_json()):
        return made
    return _read(store, path)


def list_proposals(store: Store) -> tuple[ProposalState, ...]:
    """Return all proposals, oldest first."""
    ids = (re.fullmatch(rf"{FOLDER}/([0-9a-f]+)\.json", path) for path in store.list(FOLDER))
    found = [_state(store, _read(store, match[0])) for match in ids if match]
    return tuple(sorted(found, key=lambda state: (state.created_at, state.id)))


def _state(store: Store, proposal: Proposal) -> ProposalState:
    decision = read_decision(store, proposal.id)
    status: Literal["open", "approved", "rejected"] = "open"
    if decision is not None:
        status = "approved" if decision.decision == "approve" else "rejected"
    return ProposalState(
        id=proposal.id,
        status=status,
        created_at=proposal.created_at,
        verdict=proposal.verdict.decision,
        recipe=proposal.recipe.arm.name,
        added=added_records(proposal.recipe),
        report=f"{store.uri}/{proposal.report.prefix}/report.html",
        decision=decision,
    )


def read_proposal(store: Store, proposal_id: str = "") -> Proposal:
    """Return a proposal by its id or the start of it; the only open one where none is given.

    Raises
    ------
    ParameterError
        If there is no such proposal, or more than one.
    """
    states = list_proposals(store)
    chosen = [
        s for s in states if (s.id.startswith(proposal_id) if proposal_id else s.status == "open")
    ]
    if len(chosen) == 1:
        return _read(store, f"{FOLDER}/{chosen[0].id}.json")
    which = f"that starts with {proposal_id!r}" if proposal_id else "open"
    listed = ", ".join(f"{s.id} ({s.status}, {s.created_at[:10]})" for s in states[-10:])
    if chosen:
        raise ParameterError(
            f"{len(chosen)} proposals of {store.uri} are {which}; name one of them: {listed}."
        )
    raise ParameterError(
        f"{store.uri} has no proposal {which}; there are: {listed or 'none'}. "
        "A run leaves one where approval.ask is set."
    )


def _read(store: Store, path: str) -> Proposal:
    found = read_fact(store, path, Proposal)
    if found is None:
        raise IntegrityError(f"{store.uri}/{path} is gone; run again, it is proposed anew.")
    return found


# --- deciding ---------------------------------------------------------------------------------


def read_decision(store: Store, proposal_id: str) -> ApprovalDecision | None:
    """Return what was decided last on a proposal, or None while it is open."""
    last = None
    for number in range(1, 1000):
        found = read_fact(store, _decision_path(proposal_id, number), ApprovalDecision)
        if found is None:
            return last
        last = found
    return last


def decide(store: Store, proposal: Proposal, answer: Answer, *, run: str = "") -> ApprovalDecision:
    """Record a decision for good.

    Parameters
    ----------
    store : Store
        The destination.
    proposal : Proposal
        What is decided.
    answer : Answer
        The decision; its amounts may only be lower than the proposal's.
    run : str
        Id of the flow run that asked.

    Returns
    -------
    ApprovalDecision
        This one, or the same one that was there.

    Raises
    ------
    ParameterError
        If an amount is raised or names no class of the proposal, or something else was decided
        before (a rejection is taken back only with ``answer.again``).
    """
    amounts = lowered_amounts(
        proposal.recipe, {amount.name: amount.records for amount in answer.amounts}
    )
    made = ApprovalDecision(
        decision=answer.decision,
        by=answer.by.strip(),
        comment=answer.comment.strip(),
        amounts=amounts,
        decided_at=_now(),
        run=run,
    )
    number = 1
    while not store.put_if_absent(_decision_path(proposal.id, number), made.to_json()):
        there = read_fact(store, _decision_path(proposal.id, number), ApprovalDecision)
        assert there is not None
        if (there.decision, there.amounts) == (made.decision, made.amounts) and not answer.again:
            return there
        if there.decision == "approve" or not answer.again:
            raise ParameterError(
                f"proposal {proposal.id} was decided before: {there.sentence} "
                + (
                    "A decision stays; run again with other parameters for another proposal."
                    if there.decision == "approve"
                    else "Decide with `again` to take the rejection back."
                )
            )
        number += 1
    return made


def _decision_path(proposal_id: str, number: int) -> str:
    return f"{FOLDER}/{proposal_id}.decision{'' if number == 1 else f'-{number}'}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- what somebody reads before deciding -------------------------------------------------------


def request_markdown(proposal: Proposal, *, report_link: str) -> str:
    """Return what an approver is shown: the verdict, what was judged, the amounts; all escaped.

    Parameters
    ----------
    report_link : str
        Markdown that leads to the report.
    """
    verdict, recipe = proposal.verdict, proposal.recipe
    judged = sorted({c.label for c in proposal.plan.classes if c.judged})
    names = markdown_text(", ".join(judged[:20]) or "none") + (" …" if len(judged) > 20 else "")
    added = added_records(recipe)
    lines = [
        f"**Verdict: {verdict.decision}.** {markdown_text(' '.join(verdict.reasons))}",
        "",
        f"Recipe: {markdown_text(recipe.arm.name)}. {markdown_text(recipe.sentence)}",
        "",
        f"Judged on {verdict.n_holdout:,} hold-out records, {len(judged):,} classes: {names}. {report_link}",
        "",
        "| class | now | to be added | after |",
        "| --- | ---: | ---: | ---: |",
    ]
    for entry in proposal.plan.classes[:MAX_ROWS]:
        n = added.get(entry.name, 0)
        note = "" if entry.judged else " (not judged)"
        lines.append(
            f"| {markdown_text(entry.name)}{note} | {entry.n_real:,} | {n:,} | {entry.n_real + n:,} |"
        )
    if len(proposal.plan.classes) > MAX_ROWS:
        lines.append(f"| … and {len(proposal.plan.classes) - MAX_ROWS} more | | | |")
    lines += [
        "",
        "Amounts may be lowered; 0 adds nothing to a class. Rejecting publishes nothing."
        if added
        else "No records are to be added, so there are no amounts to lower. Rejecting publishes nothing.",
    ]
    return "\n".join(lines)
