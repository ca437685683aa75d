"""Approval: a version that is ready waits for a person's yes.

A run that may not publish by itself leaves a *proposal*: everything that publishing needs, under
``_proposals/<id>.json``. The decision is a second object beside it, put once. Whoever decides may
lower the number of added records, class by class, never raise it: what is published is a prefix of
the records that were judged.

How many records a recipe adds, and the same recipe with fewer of them.

Fewer is always a prefix of what was judged; more would be records that nothing was judged on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.params import Answer
from prefect_augment.plan.priors import with_priors
from prefect_augment.plan.recipe_text import recipe_sentence
from prefect_augment.schema.base import (
    ApprovalDecision,
    BalancePlan,
    Recipe,
    ReportRef,
    Result,
    Verdict,
)
from prefect_augment.schema.report import Release
from prefect_augment.storage.manifests import find_commit
from prefect_augment.storage.staging import read_result
from prefect_augment.storage.store import Store
from prefect_augment.text import markdown_text, suggestion

__all__ = [
    "Proposal",
    "added_records",
    "decide",
    "list_proposals",
    "lowered",
    "lowered_amounts",
    "propose",
    "read_decision",
    "read_proposal",
    "request_markdown",
]

FOLDER = "_proposals"
MAX_ROWS = 100  # of a table that a person is to read


class Proposal(Result):
    """A version that is ready to be published, and the report that the approver reads."""

    id: str  # the version's key: the same inputs are proposed once
    created_at: str  # UTC, ISO 8601
    release: Release
    report: ReportRef

    def moved(self, root: str, block: str) -> Proposal:
        """Return the proposal with its records where they are now, under another name of the same folder."""
        experiment = self.release.experiment
        dataset = experiment.dataset.model_copy(update={"root": root, "block": block})
        experiment = experiment.model_copy(update={"dataset": dataset})
        release = self.release.model_copy(update={"experiment": experiment})
        return self.model_copy(update={"release": release})

    @property
    def recipe(self) -> Recipe:
        """What would be published."""
        assert self.release.recipe is not None
        return self.release.recipe

    @property
    def plan(self) -> BalancePlan:
        """Amounts per class."""
        return self.release.experiment.plan

    @property
    def verdict(self) -> Verdict:
        """What the hold-out says."""
        assert self.release.verdict is not None
        return self.release.verdict


class ProposalState(Result):
    """One line of the list of proposals."""

    id: str
    status: Literal["open", "approved", "rejected"]
    created_at: str
    verdict: str
    recipe: str
    added: dict[str, int]  # stratum -> records that would be added
    report: str
    decision: ApprovalDecision | None


def propose(release: Release, report: ReportRef, store: Store) -> Proposal:
    """Leave a proposal, or return the one of the same inputs that is there.

    Parameters
    ----------
    release : Release
        As for :func:`~prefect_augment.publish.publish.publish`, which takes it once somebody approves.
    report : ReportRef
        What the approver reads; it is written anew with the decision and the amounts in it.
    store : Store
        The destination.
    """
    proposal = Proposal(id=release.key, created_at=_now(), release=release, report=report)
    path = f"{FOLDER}/{proposal.id}.json"
    # What is published already needs nobody's yes.
    if find_commit(store, proposal.id) or store.put_if_absent(path, proposal.to_json()):
        return proposal
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
        recipe=proposal.recipe.strategy.name,
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
    found = read_result(store, path, Proposal)
    if found is None:
        raise IntegrityError(f"{store.uri}/{path} is gone; run again, it is proposed anew.")
    return found


# --- deciding ---------------------------------------------------------------------------------


def read_decision(store: Store, proposal_id: str) -> ApprovalDecision | None:
    """Return what was decided last on a proposal, or None while it is open."""
    last = None
    for number in range(1, 1000):
        found = read_result(store, _decision_path(proposal_id, number), ApprovalDecision)
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
        there = read_result(store, _decision_path(proposal.id, number), ApprovalDecision)
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
    compared = sorted({c.label for c in proposal.plan.classes if c.compared})
    names = markdown_text(", ".join(compared[:20]) or "none") + (" …" if len(compared) > 20 else "")
    added = added_records(recipe)
    lines = [
        f"**Verdict: {verdict.decision}.** {markdown_text(' '.join(verdict.reasons))}",
        "",
        f"Recipe: {markdown_text(recipe.strategy.name)}. {markdown_text(recipe.sentence)}",
        "",
        f"Judged on {verdict.n_holdout:,} hold-out records, {len(compared):,} classes: {names}. {report_link}",
        "",
        "| class | now | to be added | after |",
        "| --- | ---: | ---: | ---: |",
    ]
    for entry in proposal.plan.classes[:MAX_ROWS]:
        n = added.get(entry.name, 0)
        note = "" if entry.compared else " (not judged)"
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


def added_records(recipe: Recipe) -> dict[str, int]:
    """Return stratum -> records that the recipe adds: synthetic, classic and copies together."""
    added: dict[str, int] = {}
    for part in (recipe.synthetic, recipe.classic, recipe.copies):
        for name, n in part.items():
            added[name] = added.get(name, 0) + n
    return {name: n for name, n in added.items() if n}


def lowered_amounts(recipe: Recipe, amounts: Mapping[str, int]) -> dict[str, int]:
    """Return the amounts that are lower than the recipe's; refuse what cannot be granted.

    Raises
    ------
    ParameterError
        If a class gets no records in the recipe, or an amount is negative or raised.
    """
    allowed = added_records(recipe)
    for name, asked in amounts.items():
        if name not in allowed:
            raise ParameterError(
                f"no records are to be added to class {name!r}, so its amount cannot be changed; "
                + (
                    f"{suggestion(name, tuple(allowed))}."
                    if allowed
                    else "this proposal adds no records at all."
                ),
                class_name=name,
            )
        if not 0 <= asked <= allowed[name]:
            raise ParameterError(
                f"class {name!r}: {asked:,} records were asked for and 0 to {allowed[name]:,} are allowed; an "
                "approval may lower an amount, not raise it. For more, run again with other balance parameters.",
                class_name=name,
                asked=asked,
                allowed=allowed[name],
            )
    return {name: n for name, n in amounts.items() if n < allowed[name]}


def lowered(
    recipe: Recipe, plan: BalancePlan, amounts: Mapping[str, int], *, copies: bool = False
) -> Recipe:
    """Return the recipe with fewer added records.

    A class keeps its effective count, records times weight, so what it loses in records it gains in
    weight; with duplicates instead of weights there is nothing to make up for it.

    Parameters
    ----------
    recipe : Recipe
        As it was judged.
    plan : BalancePlan
        Gives the real records per stratum.
    amounts : mapping of str to int
        Stratum -> records to add; where it is not named it keeps what the recipe has.
    copies : bool
        Duplicates are published instead of weights.
    """
    amounts = lowered_amounts(recipe, amounts)
    if not amounts:
        return recipe
    parts = {"synthetic": recipe.synthetic, "classic": recipe.classic, "copies": recipe.copies}
    new = {kind: dict(counts) for kind, counts in parts.items()}
    for name, n in amounts.items():
        share = _split(n, {kind: counts.get(name, 0) for kind, counts in parts.items()})
        for kind, k in share.items():
            new[kind][name] = k
    new = {kind: {name: n for name, n in counts.items() if n} for kind, counts in new.items()}
    weight = dict(recipe.class_weight)
    # What is left of soft labels counts in proportion; publishing scales all weights by what it is.
    shares = {
        name: share * new["synthetic"][name] / recipe.synthetic[name]
        for name, share in recipe.shares.items()
        if name in new["synthetic"]
    }
    fewer = recipe.model_copy(update={**new, "shares": shares, "weights_from": None})
    if not copies:
        real = {c.name: c.n_real for c in plan.classes if c.name in weight}
        n_rows = sum(real.values()) + sum(added_records(fewer).get(name, 0) for name in real)
        effective = {name: weight[name] * (n + recipe.counted(name)) for name, n in real.items()}
        mean = sum(effective.values()) / max(1, n_rows)
        weight = {
            name: effective[name] / max(1, n + fewer.counted(name)) / mean
            for name, n in real.items()
        }
    sentence = recipe_sentence(
        recipe.strategy,
        n_synthetic=sum(new["synthetic"].values()),
        n_classic=sum(new["classic"].values()),
        copies=copies,
        policy=recipe.classic_policy,
        soft_labels=bool(recipe.shares),
    )
    lower = fewer.model_copy(
        update={
            "class_weight": weight,
            "sentence": f"{sentence} Fewer records were added than judged, as the approval has it.",
        }
    )
    return with_priors(lower, plan)


def _split(n: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Divide ``n`` in proportion to ``counts``; what rounding leaves goes to the first that have room."""
    total = sum(counts.values())
    share = {kind: n * k // total for kind, k in counts.items()}
    for kind, k in counts.items():
        share[kind] += min(n - sum(share.values()), k - share[kind])
    return share
