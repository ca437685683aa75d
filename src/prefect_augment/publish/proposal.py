"""Approval: a version that is ready waits for a person's decision.

A run that may not publish by itself leaves a *proposal*: everything that publishing needs, under
``_proposals/<id>.json``. The decision is a second object beside it, written once. The approver may
lower the number of added records per class, never raise it: fewer records are a prefix of those that
were evaluated, more would not have been evaluated.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import pyarrow.parquet as pq

from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.ingest.outcome import staged_labels
from prefect_augment.params import Answer
from prefect_augment.plan.recipe_text import recipe_sentence
from prefect_augment.plan.weights import with_priors
from prefect_augment.schema import (
    ApprovalDecision,
    BalancePlan,
    Correction,
    DecisionRecord,
    Recipe,
    Release,
    ReportRef,
    Result,
    Verdict,
)
from prefect_augment.shards.staged import load_info
from prefect_augment.split.corrections import FOLDER as FOLDER
from prefect_augment.storage import Store, find_commit, read_result
from prefect_augment.text import markdown_text, suggestion

SUGGESTED = "suggested"  # as labels: those that the audit suggests for all that it doubts
MAX_ROWS = 100  # of the approver's table


class Proposal(Result):
    """A version that is ready to be published, and the report that the approver reads."""

    id: str  # the version's key: the same inputs are proposed once
    created_at: str  # UTC, ISO 8601
    release: Release
    report: ReportRef

    def moved(self, root: str, block: str) -> "Proposal":
        """Return the proposal for another path or name of the same folder."""
        experiment = self.release.experiment
        dataset = experiment.dataset.model_copy(update={"root": root, "block": block})
        experiment = experiment.model_copy(update={"dataset": dataset})
        release = self.release.model_copy(update={"experiment": experiment})
        return self.model_copy(update={"release": release})

    @property
    def recipe(self) -> Recipe:
        """The recipe that would be published."""
        assert self.release.recipe is not None
        return self.release.recipe

    @property
    def plan(self) -> BalancePlan:
        """The amounts per class."""
        return self.release.experiment.plan

    @property
    def verdict(self) -> Verdict:
        """The result on the hold-out."""
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
    """Leave a proposal, or return the existing one of the same inputs.

    ``report`` is what the approver reads; it is rewritten later with the decision.
    """
    proposal = Proposal(id=release.key, created_at=_now(), release=release, report=report)
    path = f"{FOLDER}/{proposal.id}.json"
    # A published version needs no approval.
    if find_commit(store, proposal.id) or store.put_if_absent(path, proposal.to_json()):
        return proposal
    return _read(store, path)


def list_proposals(store: Store) -> tuple[ProposalState, ...]:
    """Return all proposals, oldest first."""
    ids = (re.fullmatch(rf"{FOLDER}/([0-9a-f]+)\.json", path) for path in store.list(FOLDER))
    states = [_state(store, _read(store, match[0])) for match in ids if match]
    return tuple(sorted(states, key=lambda state: (state.created_at, state.id)))


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
        report=store.place(f"{proposal.report.prefix}/report.html"),
        decision=decision,
    )


def read_proposal(store: Store, proposal_id: str = "") -> Proposal:
    """Return a proposal by its id or the start of it, or the only open one; ParameterError if ambiguous."""
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
    proposal = read_result(store, path, Proposal)
    if proposal is None:
        raise IntegrityError(f"{store.uri}/{path} is missing; run again to propose it anew.")
    return proposal


# --- deciding ---------------------------------------------------------------------------------


def read_decision(store: Store, proposal_id: str) -> ApprovalDecision | None:
    """Return the last decision on a proposal, or None while it is open."""
    last = None
    for number in itertools.count(1):
        recorded = read_result(store, _decision_path(proposal_id, number), DecisionRecord)
        if recorded is None:
            break
        last = recorded.decided
    return last


def decide(store: Store, proposal: Proposal, answer: Answer, *, run: str = "") -> ApprovalDecision:
    """Record a decision; return it, or the existing equal one. ``run`` is the id of the flow run that asked.

    Corrected labels are recorded with it. They change nothing of the proposal, whose evidence belongs to its labels:
    the next ingest takes them. The same decision with further labels is recorded as well. Raises ParameterError if
    an amount is raised or names no class of the proposal, labels name no record or class of it, or another
    decision was recorded before (``answer.again`` takes back a rejection).
    """
    requested = {amount.name: amount.records for amount in answer.amounts}
    amounts = lowered_amounts(proposal.recipe, requested)
    corrections = read_labels(store, proposal, answer.labels)
    decision = DecisionRecord(
        decision=answer.decision,
        by=answer.by.strip(),
        comment=answer.comment.strip(),
        amounts=amounts,
        decided_at=_now(),
        run=run,
        n_corrected=len(corrections),
        corrections=corrections,
    )
    for number in itertools.count(1):
        path = _decision_path(proposal.id, number)
        if store.put_if_absent(path, decision.to_json()):
            break
        recorded = read_result(store, path, DecisionRecord)
        assert recorded is not None
        is_same = (recorded.decision, recorded.amounts) == (decision.decision, decision.amounts)
        is_new = not set(corrections) <= set(recorded.corrections)
        if is_same and not is_new and not answer.again:
            return recorded.decided
        if is_same and is_new:
            continue
        if recorded.decision == "approve" or not answer.again:
            advice = (
                "A decision stays; run again with other parameters for another proposal."
                if recorded.decision == "approve"
                else "Decide with `again` to take the rejection back."
            )
            raise ParameterError(
                f"proposal {proposal.id} was decided before: {recorded.sentence} {advice}"
            )
    return decision.decided


def read_labels(store: Store, proposal: Proposal, text: str) -> tuple[Correction, ...]:
    """Return the corrections in an answer, by ``aug_id``: lines ``aug_id = label``, or ``suggested``.

    A label that the record has already is no correction. Raises ParameterError for a line of another form, a record
    that the proposal does not have or has twice, and a class that it does not have.
    """
    named: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        aug_id, equals, label = (part.strip() for part in line.partition("="))
        if aug_id == SUGGESTED and not equals:
            named.update({i: (number, label) for i, label in _suggested(store, proposal)})
        elif aug_id and label:
            if aug_id in named and named[aug_id][1] != label:
                raise ParameterError(
                    f"labels, line {number}: {aug_id} is {label!r}, and {named[aug_id][1]!r} in line "
                    f"{named[aug_id][0]}; keep one of them."
                )
            named[aug_id] = number, label
        elif line.strip():
            raise ParameterError(
                f"labels, line {number}: expected `aug_id = label` or `{SUGGESTED}`, found {line.strip()[:80]!r}."
            )
    if not named:
        return ()
    info = load_info(proposal.release.dataset, store)
    classes = sorted({name for counts in info.part_counts.values() for name in counts})
    staged = staged_labels(info, store, "aug_id", named)
    records = {aug_id: (key, old) for aug_id, key, old in staged}
    corrections = []
    for aug_id, (number, label) in named.items():
        if aug_id not in records:
            raise ParameterError(
                f"labels, line {number}: {aug_id[:80]!r}, to be {label!r}, is the aug_id of no source record of "
                f"proposal {proposal.id}; take it from audit.parquet beside its report."
            )
        if label not in classes:
            raise ParameterError(
                f"labels, line {number}: {aug_id} has the label {records[aug_id][1]!r}, and {label!r} is no class of "
                f"the dataset; {suggestion(label, classes)}."
            )
        key, old = records[aug_id]
        if label != old:
            corrections.append(Correction(aug_id=aug_id, key=key, old=old, label=label))
    return tuple(sorted(corrections, key=lambda c: c.aug_id))


def _suggested(store: Store, proposal: Proposal) -> list[tuple[str, str]]:
    """Return record and label of all that the report's audit doubts."""
    path = f"{proposal.report.prefix}/audit.parquet"
    if not store.exists(path):
        raise ParameterError(
            f"the report of proposal {proposal.id} has no audit, so no label is suggested; name records and labels."
        )
    audit = pq.read_table(io.BytesIO(store.read(path)))
    doubted = audit.filter(audit["doubted"])
    return list(zip(doubted["aug_id"].to_pylist(), doubted["suggested"].to_pylist(), strict=True))


def _decision_path(proposal_id: str, number: int) -> str:
    return f"{FOLDER}/{proposal_id}.decision{'' if number == 1 else f'-{number}'}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- what somebody reads before deciding -------------------------------------------------------


def request_markdown(proposal: Proposal, *, report_link: str) -> str:
    """Return what an approver reads: the verdict, the compared classes, the amounts; all escaped.

    ``report_link`` is a markdown link.
    """
    verdict, recipe = proposal.verdict, proposal.recipe
    compared = sorted({c.label for c in proposal.plan.classes if c.compared})
    names = markdown_text(", ".join(compared[:20]) or "none") + (" …" if len(compared) > 20 else "")
    added = added_records(recipe)
    lines = [
        f"**Verdict: {verdict.word}.** {markdown_text(verdict.headline)}",
        "",
        *(f"- {markdown_text(s)}" for s in verdict.details),
        "",
        f"Recipe: {markdown_text(recipe.strategy.name)}. {markdown_text(recipe.sentence)}",
        "",
        f"Compared on {verdict.n_holdout:,} hold-out records, {len(compared):,} classes: {names}. {report_link}",
        "",
        "| class | now | to be added | after |",
        "| --- | ---: | ---: | ---: |",
    ]
    for entry in proposal.plan.classes[:MAX_ROWS]:
        n = added.get(entry.name, 0)
        note = "" if entry.compared else " (not compared)"
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
    """Return the records that the recipe adds per stratum: synthetic, classic and copies together."""
    added = Counter(recipe.synthetic)
    added.update(recipe.classic)
    added.update(recipe.copies)
    return {name: n for name, n in added.items() if n}


def lowered_amounts(recipe: Recipe, amounts: Mapping[str, int]) -> dict[str, int]:
    """Return the amounts that are lower than the recipe's.

    Raises ParameterError if a class gets no records in the recipe, or an amount is negative or raised.
    """
    allowed = added_records(recipe)
    for name, requested in amounts.items():
        if name not in allowed:
            advice = suggestion(name, tuple(allowed)) if allowed else "it adds no records at all"
            raise ParameterError(
                f"the proposal adds no records to class {name!r}, so its amount cannot be changed; {advice}.",
                class_name=name,
            )
        if not 0 <= requested <= allowed[name]:
            raise ParameterError(
                f"class {name!r}: {requested:,} records were requested and 0 to {allowed[name]:,} are allowed; an "
                "approval may lower an amount, not raise it. For more, run again with other balance parameters.",
                class_name=name,
                requested=requested,
                allowed=allowed[name],
            )
    return {name: n for name, n in amounts.items() if n < allowed[name]}


def lowered(
    recipe: Recipe, plan: BalancePlan, amounts: Mapping[str, int], *, copies: bool = False
) -> Recipe:
    """Return the recipe with fewer added records, by ``amounts`` per stratum.

    A class keeps its effective count, records times weight: fewer records get a larger weight. With
    ``copies`` instead of weights nothing compensates for them.
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
    # Shares of soft labels shrink in proportion; publishing normalises all weights.
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
            "sentence": f"{sentence} Fewer records were added than evaluated, by the approval.",
        }
    )
    return with_priors(lower, plan)


def _split(n: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Divide ``n`` in proportion to ``counts``; the remainder goes to the first that have room."""
    total = sum(counts.values())
    share = {kind: n * k // total for kind, k in counts.items()}
    for kind, k in counts.items():
        share[kind] += min(n - sum(share.values()), k - share[kind])
    return share
