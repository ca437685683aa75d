"""What the report shows before its layout: rows per class and strategy, the verdict as text, no hidden values.

The page and the markdown summary both use these, so that they agree. Reasons and notes quote values of real records: a
cell that is no number, an unknown class. Sheets and shapes are made without real records where those may not be shown.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from prefect_augment.report.json import ReportData
from prefect_augment.schema import (
    BalancePlan,
    ClassFilter,
    ColumnInfo,
    EstimatorScore,
    Interval,
    MeasureInfo,
    Origin,
    StrategyScore,
)
from prefect_augment.text import count, natural_order

HIDDEN = "'…'"
# As repr writes text: in single quotes, or in double ones where it contains a single one. No letter
# comes before the first, or the apostrophes of "others' records and others'" would be a pair.
_QUOTED = re.compile(r"""(?<!\w)'((?:[^'\\]|\\.)*)'|(?<!\w)"((?:[^"\\]|\\.)*)\"""")


def redact(data: ReportData) -> ReportData:
    """The data that the report may show; everything where ``pictures`` is ``real``.

    Otherwise doubted labels, neighbours and values that reasons and notes quote are hidden, with ``none``
    also those of synthetic records. Names of columns, classes and strata stay.
    """
    if data.pictures == "real":
        return data
    hide = redactor({*quotable(data.label, data.columns, data.plan), *data.counts_before})
    quarantine: Counter[str] = Counter()
    for reason, n in data.quarantine.items():
        quarantine[hide(reason)] += n
    candidates = data.candidates
    method_notes = tuple(map(hide, data.method_notes))
    if candidates is not None and data.pictures == "none":
        candidates = candidates.model_copy(update={"notes": tuple(map(hide, candidates.notes))})
    elif candidates is not None:
        shown = set(candidates.notes)
        method_notes = tuple(n if n in shown else hide(n) for n in data.method_notes)
    sheets = data.sheets if data.pictures == "synthetic" else {}
    return data.model_copy(
        update={
            "quarantine": dict(quarantine),
            "notes": tuple(map(hide, data.notes)),
            "method_notes": method_notes,
            "columns": tuple(c.model_copy(update={"note": hide(c.note)}) for c in data.columns),
            "candidates": candidates,
            "neighbours": (),
            "doubted": (),
            "shapes": data.shapes if data.pictures == "synthetic" else (),
            "sheets": sheets,
            "images": {file: data.images[file] for file in sheets.values()},
        }
    )


def quotable(label: str, columns: Iterable[ColumnInfo], plan: BalancePlan | None) -> set[str]:
    """Texts that may be quoted, since they are no record's values."""
    strata = plan.classes if plan else ()
    names = {name for c in strata for name in (c.name, c.label, *c.by)}
    return {label, *(column.name for column in columns)} | names


def redactor(names: Collection[str]) -> Callable[[str], str]:
    """A function that hides what a text quotes, except these names."""

    def replace(match: re.Match[str]) -> str:
        quoted = match[1] if match[1] is not None else match[2]
        return match[0] if quoted in names else HIDDEN

    return lambda text: _QUOTED.sub(replace, text)


ORIGINS: tuple[Origin, ...] = ("real", "copy", "classic", "synthetic")


@dataclass(frozen=True)
class Headline:
    """The verdict on top of the page: a word, a sentence and the reasons."""

    decision: str  # accept | reject | inconclusive | none, for the page's colours
    word: str
    sentence: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ClassRow:
    """One class over the whole run; None where a step was not run for it."""

    number: int  # row of the table, for pictures that cannot draw the name
    name: str
    before: int
    after: Mapping[str, int]  # by origin
    weighted: float | None = None
    n_holdout: int | None = None
    recall_as_is: Interval | None = None
    recall_shown: Interval | None = None
    decision: str = ""
    why_not_compared: str = ""
    n_candidates: int | None = None
    n_passed: int | None = None
    n_kept: int | None = None
    reasons: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        """Published training records."""
        return sum(self.after.values())

    @property
    def pass_rate(self) -> float | None:
        """Share of the candidates that passed the filter."""
        return self.n_passed / self.n_candidates if self.n_passed and self.n_candidates else None


@dataclass(frozen=True)
class StrategyRow:
    """One strategy on validation records: means over its seeds and estimators."""

    name: str
    family: str
    mark: str  # chosen | baseline | as is | ""
    amounts: tuple[float, ...]  # towards full balance, which is 1
    measure: MeasureInfo
    scores: tuple[float, ...]  # its value per seed
    macro_f1: float
    auprc: float
    worst_recall: float
    brier: float
    n_train: int
    estimators: tuple[tuple[str, EstimatorScore], ...]  # of the first seed

    @property
    def score(self) -> float:
        """The measure that decides, mean over the seeds."""
        return fmean(self.scores)

    @property
    def spread(self) -> Interval:
        """The mean with the lowest and highest seed: a spread, not a confidence interval."""
        return Interval(estimate=self.score, low=min(self.scores), high=max(self.scores))


def headline(data: ReportData) -> Headline:
    """The verdict in plain words, also for runs without one."""
    verdict = data.verdict
    if verdict is None:
        if data.status == "refused":
            return Headline(
                "none", "Refused", "The run was refused; nothing was published.", data.notes
            )
        return Headline(
            "none",
            "Not compared",
            "No comparison on held-out real records was run, so nothing here shows whether the data helps.",
            (),
        )
    sentence = verdict.headline
    if data.status == "refused":
        sentence += " The run was set to fail in this case, so nothing was published."
    return Headline(verdict.decision, verdict.word.capitalize(), sentence, verdict.details)


def as_is_strategy(data: ReportData) -> str | None:
    """Name of the strategy that trains on the source as it is."""
    for score in data.strategy_scores:
        if score.strategy.family == "as_is":
            return score.strategy.name
    if data.verdict is None:
        return None
    others = set(data.verdict.class_recall) - {data.verdict.chosen, data.verdict.baseline}
    return min(others) if others else data.verdict.baseline


def published_counts(data: ReportData) -> str:
    """``1,234 training records: 1,000 real, 234 synthetic``; empty where nothing is known."""
    totals = {o: sum(c.get(o, 0) for c in data.counts_after.values()) for o in ORIGINS}
    if not any(totals.values()):
        return ""
    parts = ", ".join(f"{count(n)} {origin}" for origin, n in totals.items() if n)
    return f"{count(sum(totals.values()))} training records: {parts}"


def class_rows(data: ReportData) -> tuple[ClassRow, ...]:
    """One row per class, the largest first, ties by name."""
    names = {*data.counts_before, *data.not_compared}.union(*data.part_counts.values())
    before = {name: data.counts_before.get(name, {}).get("real", 0) for name in names}
    order = sorted(before, key=lambda name: (-before[name], natural_order(name)))
    label_of = {c.name: c.label for c in data.plan.classes} if data.plan else {}
    filters: dict[str, list[ClassFilter]] = defaultdict(list)
    for stratum in data.candidates.classes if data.candidates else ():
        filters[label_of.get(stratum.name, stratum.name)].append(stratum)
    return tuple(
        _class_row(data, i, name, before[name], filters[name])
        for i, name in enumerate(order, start=1)
    )


def _class_row(
    data: ReportData, number: int, name: str, before: int, filters: Sequence[ClassFilter]
) -> ClassRow:
    verdict = data.verdict
    recall = verdict.class_recall if verdict else {}
    chosen = recall.get(verdict.shown, {}) if verdict else {}
    not_compared = {**data.not_compared, **(verdict.not_compared if verdict else {})}
    decision = verdict.class_decisions.get(name, "") if verdict else ""
    holdout = data.part_counts.get("holdout")
    reasons = Counter[str]()
    for of_stratum in filters:
        reasons.update(of_stratum.reasons)
    return ClassRow(
        number=number,
        name=name,
        before=before,
        after=data.counts_after.get(name, {}),
        weighted=data.weighted_counts.get(name),
        n_holdout=None if holdout is None else holdout.get(name, 0),
        recall_as_is=recall.get(as_is_strategy(data) or "", {}).get(name),
        recall_shown=chosen.get(name),
        decision="not compared" if name in not_compared and not decision else decision,
        why_not_compared=not_compared.get(name, ""),
        n_candidates=sum(f.n_candidates for f in filters) if filters else None,
        n_passed=sum(f.n_passed for f in filters) if filters else None,
        n_kept=sum(f.n_kept for f in filters) if filters else None,
        reasons=tuple(sorted(reasons.items(), key=lambda kv: (-kv[1], kv[0]))),
    )


def strategy_rows(data: ReportData) -> tuple[StrategyRow, ...]:
    """One row per strategy on validation records, the best first; its seeds may differ in amount."""
    groups: defaultdict[str, list[StrategyScore]] = defaultdict(list)
    for score in data.strategy_scores:
        groups[score.strategy.name].append(score)
    rows = [
        _strategy_row(data, name, sorted(g, key=lambda s: s.seed)) for name, g in groups.items()
    ]
    return tuple(sorted(rows, key=lambda r: (-r.measure.shown(r.score), r.name)))


def _strategy_row(data: ReportData, name: str, scores: Sequence[StrategyScore]) -> StrategyRow:
    estimators = [estimator for score in scores for estimator in score.estimators.values()]
    return StrategyRow(
        name=name,
        family=scores[0].strategy.family,
        mark=_mark(data, name, scores[0].strategy.family),
        amounts=tuple(sorted({s.strategy.amount for s in scores})),
        measure=scores[0].measure,
        scores=tuple(s.measure.shown(s.score) for s in scores),
        macro_f1=fmean(s.macro_f1 for s in estimators),
        auprc=fmean(s.auprc for s in estimators),
        worst_recall=fmean(s.worst_recall for s in estimators),
        brier=fmean(s.brier for s in estimators),
        n_train=scores[0].n_train,
        estimators=tuple(sorted(scores[0].estimators.items())),
    )


def _mark(data: ReportData, name: str, family: str) -> str:
    verdict, recipe = data.verdict, data.recipe
    if family == "ensemble":
        return "control"
    if name == (verdict.chosen if verdict else recipe.strategy.name if recipe else None):
        return "chosen"
    if verdict is not None and name == verdict.baseline:
        return "baseline"
    return "as is" if family == "as_is" and name not in ("as is", "as_is") else ""
