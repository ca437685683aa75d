"""Whether a recipe helps one group and hurts another: recall per class and group, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.evaluation.metrics.bootstrap import (
    Bootstrap,
    paired_bootstrap,
    percentiles,
    simultaneous,
)
from prefect_augment.schema import Gap, GroupRow, Interval, Shown, SliceResult, SliceRow

# With this many records a recall of 80 % has an interval of about 18 points to each side; with fewer
# it says more about chance than about the group.
MIN_SLICE = 20
MAX_DRAW_BYTES = 128 << 20
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class _Cut:
    """Records divided by the values of some columns: each record's cell, and each cell's values."""

    columns: tuple[str, ...]
    cell: Int
    values: tuple[tuple[str, ...], ...]

    def group(self, cell: int) -> dict[str, str]:
        return dict(zip(self.columns, self.values[cell], strict=True))


def slices(
    y: Int,
    hits: Mapping[str, Float],
    by: Mapping[str, Sequence[str]],
    *,
    classes: Sequence[str],
    compared: Bool,
    before: str,
    after: str,
    groups: Any = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> SliceResult:
    """Compare two strategies within each group of records, and within combinations of all ``by`` columns.

    Differences of slices hold together at 95 %, and so do those of groups: max-T within each table,
    Bonferroni over the tables. ``hits`` are shares of right estimators per strategy, (n_seeds,
    n_records); for the other parameters see :func:`.paired_bootstrap`.
    """
    cuts = [_cut((name,), by) for name in by]
    if len(by) > 1:
        cuts.append(_cut(tuple(by), by))
    tables = [
        _compare(
            cut, y, {BEFORE: hits[before], AFTER: hits[after]},
            classes=classes, compared=compared, groups=groups, n_bootstrap=n_bootstrap, seed=seed,
            level=1.0 - 0.05 / len(cuts),
        )
        for cut in cuts
    ]  # fmt: skip
    every = tuple(s for t in tables for s in t.slices)
    over_groups = tuple(g for t in tables for g in t.groups)
    return SliceResult(
        by=tuple(by),
        before=before,
        after=after,
        min_records=MIN_SLICE,
        n_too_few=sum(s.decision == "too few" for s in every),
        groups=over_groups,
        slices=every,
        gaps=tuple(g for t in tables for g in t.gaps),
        flags=(
            *_flags(over_groups),
            *_flags(every),
            *(w for t in tables for w in _widened(t.gaps)),
        ),
    )


def _cut(columns: tuple[str, ...], by: Mapping[str, Sequence[str]]) -> _Cut:
    rows = list(zip(*(by[name] for name in columns), strict=True))
    values = tuple(sorted(set(rows)))
    place = {value: i for i, value in enumerate(values)}
    return _Cut(columns, np.array([place[row] for row in rows], dtype=np.int64), values)


@dataclass(frozen=True)
class _Table:
    groups: tuple[GroupRow, ...]
    slices: tuple[SliceRow, ...]
    gaps: tuple[Gap, ...]


def _compare(
    cut: _Cut,
    y: Int,
    hits: Mapping[str, Float],
    *,
    classes: Sequence[str],
    compared: Bool,
    groups: Any,
    n_bootstrap: int,
    seed: int,
    level: float,
) -> _Table:
    n_cells = len(cut.values)
    code = y * n_cells + cut.cell
    counts = np.bincount(code, minlength=len(classes) * n_cells)
    enough = (counts >= MIN_SLICE) & np.repeat(compared, n_cells)
    occurring = np.flatnonzero((counts > 0) & np.repeat(compared, n_cells))
    in_cell = np.bincount(cut.cell[compared[y]], minlength=n_cells)
    if not enough.any():
        few = [_few(cut, classes, int(k), int(counts[k])) for k in occurring]
        none = [_no_group(cut, c, int(in_cell[c])) for c in np.flatnonzero(in_cell).tolist()]
        return _Table(tuple(none), tuple(few), ())
    n_draws = min(n_bootstrap, max(200, MAX_DRAW_BYTES // (16 * int(enough.sum()))))
    boot = paired_bootstrap(
        code, hits, compared=enough, groups=groups, n_bootstrap=n_draws, seed=seed
    )
    differences = simultaneous(
        boot.recall[1] - boot.recall[0],
        boot.draws[:, 1] - boot.draws[:, 0],
        boot.n_units,
        level=level,
    )
    by_slice = dict(zip(boot.classes.tolist(), differences, strict=True))
    recalls = [boot.class_recall(strategy) for strategy in (BEFORE, AFTER)]
    rows = tuple(
        SliceRow(
            label=classes[int(k) // n_cells],
            group=cut.group(int(k) % n_cells),
            n_holdout=int(counts[k]),
            before=recalls[0][int(k)],
            after=recalls[1][int(k)],
            difference=by_slice[int(k)],
            decision=_shown(by_slice[int(k)]),
        )
        if int(k) in by_slice
        else _few(cut, classes, int(k), int(counts[k]))
        for k in occurring
    )
    return _Table(_groups(cut, boot, in_cell, level), rows, _gaps(cut, boot, classes))


def _few(cut: _Cut, classes: Sequence[str], code: int, n: int) -> SliceRow:
    label, cell = divmod(code, len(cut.values))
    return SliceRow(label=classes[label], group=cut.group(cell), n_holdout=n, decision="too few")


def _no_group(cut: _Cut, cell: int, n: int) -> GroupRow:
    return GroupRow(group=cut.group(cell), n_holdout=n, n_classes=0, decision="too few")


def _groups(cut: _Cut, boot: Bootstrap, in_cell: Int, level: float) -> tuple[GroupRow, ...]:
    """Mean recall of each group over its classes."""
    cells = boot.classes % len(cut.values)
    known = np.unique(cells)
    mean = np.stack([boot.recall[:, cells == c].mean(axis=1) for c in known], axis=1)
    draws = np.stack([boot.draws[:, :, cells == c].mean(axis=2) for c in known], axis=2)
    fewest = np.array([boot.n_units[cells == c].min() for c in known])
    differences = simultaneous(mean[1] - mean[0], draws[:, 1] - draws[:, 0], fewest, level=level)
    column = {int(c): j for j, c in enumerate(known)}
    return tuple(
        GroupRow(
            group=cut.group(c),
            n_holdout=int(in_cell[c]),
            n_classes=int((cells == c).sum()),
            before=percentiles(mean[0, column[c]], draws[:, 0, column[c]]),
            after=percentiles(mean[1, column[c]], draws[:, 1, column[c]]),
            difference=differences[column[c]],
            decision=_shown(differences[column[c]]),
        )
        if c in column
        else _no_group(cut, c, int(in_cell[c]))
        for c in map(int, np.flatnonzero(in_cell))
    )


def _gaps(cut: _Cut, boot: Bootstrap, classes: Sequence[str]) -> tuple[Gap, ...]:
    """Highest minus lowest recall over the groups, per class and over classes."""
    n_cells = len(cut.values)
    cells, labels = boot.classes % n_cells, boot.classes // n_cells
    gaps = []
    for k in np.unique(labels):
        of_class = labels == k
        if of_class.sum() > 1:
            gap = _gap(classes[int(k)], cut.columns, boot.recall[:, of_class],
                       boot.draws[:, :, of_class])  # fmt: skip
            gaps.append(gap)
    # Only over the classes that all groups have, or a group with easy classes would win.
    common = [k for k in np.unique(labels) if (labels == k).sum() == len(np.unique(cells))]
    if common and len(np.unique(cells)) > 1:
        shared = np.isin(labels, common)
        columns = [shared & (cells == c) for c in np.unique(cells)]
        recall = np.stack([boot.recall[:, c].mean(axis=1) for c in columns], axis=1)
        draws = np.stack([boot.draws[:, :, c].mean(axis=2) for c in columns], axis=2)
        gaps.insert(0, _gap("", cut.columns, recall, draws))
    return tuple(gaps)


def _gap(label: str, columns: tuple[str, ...], recall: Float, draws: Float) -> Gap:
    estimate, drawn = np.ptp(recall, axis=1), np.ptp(draws, axis=2)
    return Gap(
        label=label,
        columns=columns,
        before=percentiles(estimate[0], drawn[:, 0]),
        after=percentiles(estimate[1], drawn[:, 1]),
        change=percentiles(estimate[1] - estimate[0], drawn[:, 1] - drawn[:, 0]),
    )


def _shown(difference: Interval) -> Shown:
    if difference.low > 0:
        return "gains"
    return "loses" if difference.high < 0 else "not shown"


def _widened(gaps: Sequence[Gap]) -> list[str]:
    """Sentences on gaps over the classes that widen significantly; one test per table."""
    return [
        f"The gap between groups of {' × '.join(gap.columns)} widens by "
        f"{100 * gap.change.estimate:.1f} points (95 % interval {100 * gap.change.low:.1f} to "
        f"{100 * gap.change.high:.1f})."
        for gap in gaps
        if not gap.label and gap.change.low > 0
    ]


def _flags(rows: Sequence[SliceRow] | Sequence[GroupRow]) -> list[str]:
    """Sentences on classes, or all classes together, in which one group gains and another loses."""
    flags = []
    sides: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
    for row in rows:
        label = row.label if isinstance(row, SliceRow) else ""
        by_decision = sides.setdefault((label, tuple(row.group)), {})
        group = ", ".join(f"{name}={value}" for name, value in row.group.items())
        by_decision.setdefault(row.decision, []).append(group)
    for (label, _), side in sides.items():
        if side.get("gains") and side.get("loses"):
            of = f"Class {label}" if label else "Over the classes"
            flags.append(
                f"{of}: {' and '.join(side['gains'])} gains and {' and '.join(side['loses'])} loses."
            )
    return flags
