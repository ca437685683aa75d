"""The split is sticky, free of order, and fills the shares."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from prefect_augment.errors import InputError
from prefect_augment.split.assignment import MIN_COMPARED, RecordSplit, Shares, assign, make_salt
from prefect_augment.split.ledger import (
    HOLDOUT,
    PARTS,
    TRAINING,
    VALIDATION,
    Assignment,
    Ledger,
    LedgerSpill,
)
from prefect_augment.storage.external_sort import bin_of
from prefect_augment.storage.keys import KEY, Coded, shared_names
from prefect_augment.storage.spill import Workspace

SALT = make_salt(0)
Record = tuple[str, str]

# Few keys, so that twins and twins with different labels are frequent.
records = st.lists(
    st.tuples(
        st.integers(0, 60).map("k{}".format), st.sampled_from(["head"] * 6 + ["mid", "mid", "tail"])
    ),
    min_size=1,
    max_size=150,
)


def split(rows: list[Record], ledger: Ledger | None = None, **kwargs: object) -> Assignment:
    """Split records; ``holdout_fraction`` and ``validation_fraction`` are 0.2 by default."""
    holdout = kwargs.pop("holdout_fraction", 0.2)
    validation = kwargs.pop("validation_fraction", 0.2)
    is_fixed = kwargs.get("marked") is not None or holdout == 0
    shares = Shares(holdout, validation, is_fixed)  # type: ignore[arg-type]
    keys, labels = [r[0] for r in rows], [r[1] for r in rows]
    return assign(keys, labels, ledger=ledger or Ledger(SALT), shares=shares, **kwargs)  # type: ignore[arg-type]


def sides(rows: list[Record], result: Assignment) -> Counter[tuple[Record, int]]:
    """Multiset of records with their parts: equal records are interchangeable."""
    return Counter(zip(rows, result.parts.tolist(), strict=True))


def distinct(n: int, label: str, start: int = 0) -> list[Record]:
    return [(f"{label}{i}", label) for i in range(start, start + n)]


@pytest.mark.slow
@given(rows=records, seed=st.integers(0, 1000))
def test_split_does_not_depend_on_row_order(rows: list[Record], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    one, other = split(rows), split(shuffled)
    assert sides(rows, one) == sides(shuffled, other)
    assert one.ledger.digest == other.ledger.digest


@pytest.mark.slow
@given(rows=records, more=records)
def test_records_keep_their_part_when_the_source_grows(
    rows: list[Record], more: list[Record]
) -> None:
    first = split(rows)
    second = split([*rows, *more], first.ledger)
    before, after = sides(rows, first), sides([*rows, *more], second)
    assert all(after[record] >= n for record, n in before.items())
    assert second.n_new == len(more)


@pytest.mark.slow
@given(rows=records, more=records)
def test_a_ledger_only_grows(rows: list[Record], more: list[Record]) -> None:
    first = split(rows).ledger
    second = split([*rows, *more], first).ledger
    old = set(zip(first.keys, first.occurrences, first.parts, strict=True))
    new = list(zip(second.keys, second.occurrences, second.parts, strict=True))
    assert old <= set(new)
    assert [n[:2] for n in new] == sorted({n[:2] for n in new})


@pytest.mark.slow
@given(rows=records)
def test_every_record_is_in_exactly_one_part(rows: list[Record]) -> None:
    result = split(rows)
    assert set(result.parts.tolist()) <= set(range(len(PARTS)))
    names = list(zip((r[0] for r in rows), result.occurrences.tolist(), strict=True))
    assert len(set(names)) == len(rows)
    assert sorted(names) == list(zip(result.ledger.keys, result.ledger.occurrences, strict=True))


@given(rows=records)
def test_an_unchanged_source_leaves_the_ledger_as_it_is(rows: list[Record]) -> None:
    first = split(rows)
    again = split(rows, first.ledger)
    assert again.ledger is first.ledger
    assert again.n_new == 0
    assert sides(rows, again) == sides(rows, first)


@given(
    n=st.integers(MIN_COMPARED, 400), holdout=st.floats(0.05, 0.5), validation=st.floats(0.05, 0.5)
)
def test_shares_are_met_within_a_record(n: int, holdout: float, validation: float) -> None:
    counts = np.bincount(
        split(distinct(n, "a"), holdout_fraction=holdout, validation_fraction=validation).parts,
        minlength=3,
    )
    assert counts[HOLDOUT] == max(1, round(holdout * n))
    assert counts[VALIDATION] == max(1, round(validation * (n - counts[HOLDOUT])))


def test_shares_are_approached_again_as_a_class_grows() -> None:
    ledger = split(distinct(50, "a")).ledger
    for n in (80, 81, 200):
        result = split(distinct(n, "a"), ledger)
        ledger = result.ledger
        assert np.count_nonzero(result.parts == HOLDOUT) == round(0.2 * n)


def test_a_small_class_stays_in_training_until_it_grows() -> None:
    few = distinct(MIN_COMPARED - 1, "tail")
    first = split(few)
    assert set(first.parts.tolist()) == {TRAINING}
    second = split([*few, *distinct(20, "tail", start=100)], first.ledger)
    assert set(second.parts[: len(few)].tolist()) == {TRAINING}
    assert set(second.parts.tolist()) == {TRAINING, VALIDATION, HOLDOUT}


def test_a_corrected_label_does_not_move_a_record() -> None:
    rows = distinct(100, "a")
    first = split(rows)
    corrected = [(key, "b" if i < 30 else label) for i, (key, label) in enumerate(rows)]
    second = split(corrected, first.ledger)
    assert second.parts.tolist() == first.parts.tolist()
    assert second.n_new == 0
    assert Counter(second.ledger.labels) == {"a": 70, "b": 30}


def test_a_record_that_was_gone_comes_back_to_its_part() -> None:
    rows = distinct(60, "a")
    first = split(rows)
    without = split(rows[:30], first.ledger)
    back = split(rows, without.ledger)
    assert back.parts.tolist() == first.parts.tolist()


def test_twins_may_stand_on_both_sides() -> None:
    assert set(split([("same", "a")] * 50).parts.tolist()) == {TRAINING, VALIDATION, HOLDOUT}


def test_another_salt_gives_another_split() -> None:
    rows = distinct(100, "a")
    other = split(rows, Ledger(make_salt(1)))
    assert other.parts.tolist() != split(rows).parts.tolist()


def test_marked_records_are_the_holdout_whatever_the_size_of_their_class() -> None:
    rows = [*distinct(40, "a"), *distinct(4, "tail")]
    marked = np.arange(len(rows)) % 4 == 0
    result = split(rows, marked=marked)
    assert ((result.parts == HOLDOUT) == marked).all()
    assert np.count_nonzero(result.parts[:40] == VALIDATION) == round(0.2 * 30)


@given(rows=records, seed=st.integers(0, 1000))
def test_marks_are_respected_for_twins_and_in_any_order(rows: list[Record], seed: int) -> None:
    marked = [random.Random(f"{seed}{i}").random() < 0.3 for i in range(len(rows))]
    result = split(rows, marked=np.array(marked))
    assert ((result.parts == HOLDOUT) == np.array(marked)).all()
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    shuffled = [rows[i] for i in order]
    other = split(shuffled, marked=np.array([marked[i] for i in order]))
    assert sides(rows, result) == sides(shuffled, other)
    assert result.ledger.digest == other.ledger.digest


def test_the_ledger_goes_before_a_moved_mark() -> None:
    rows = distinct(20, "a")
    first = split(rows, marked=np.arange(20) < 5)
    second = split(rows, first.ledger, marked=np.arange(20) < 4)
    assert second.parts.tolist() == first.parts.tolist()
    assert second.n_kept_against_mark == 1


def test_a_holdout_elsewhere_leaves_only_training_and_validation() -> None:
    result = split(distinct(100, "a"), holdout_fraction=0.0)
    assert np.bincount(result.parts).tolist() == [80, 20]


def grouped(n_groups: int, size: int = 5) -> tuple[list[Record], list[str]]:
    rows = [(f"k{i}", "tail" if i % size == 0 else "head") for i in range(n_groups * size)]
    return rows, [f"g{i // size}" for i in range(n_groups * size)]


@pytest.mark.parametrize("n_groups", [3, 12, 100])
def test_groups_stay_together_and_fill_the_shares(n_groups: int) -> None:
    rows, groups = grouped(n_groups)
    result = split(rows, groups=groups)
    part_of = dict(zip(groups, result.parts.tolist(), strict=True))
    assert [part_of[g] for g in groups] == result.parts.tolist()
    if n_groups == 100:
        counts = np.bincount(result.parts, minlength=3) / len(rows)
        assert counts == pytest.approx([0.64, 0.16, 0.2], abs=0.03)


@pytest.mark.parametrize("n_groups", [3, 4, 5])
def test_few_groups_leave_no_part_of_a_compared_class_empty(n_groups: int) -> None:
    for seed in range(10):
        names = [f"{seed}-{g}" for g in range(n_groups)]
        sizes = np.random.default_rng(seed).lognormal(3, 0.8, n_groups).astype(int) + 10
        groups = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
        result = split(distinct(len(groups), "a"), groups=groups)
        assert np.bincount(result.parts, minlength=3).min() > 0, sizes
        grown = split(distinct(len(groups), "a"), result.ledger, groups=groups)
        assert grown.parts.tolist() == result.parts.tolist()


def test_few_groups_of_two_classes_move_one_group_to_validation_for_both() -> None:
    rows = [(f"{g}-{i}", "ab"[i % 2]) for g in range(3) for i in range(100)]
    groups = [f"g{g}" for g in range(3) for _ in range(100)]
    result = split(rows, groups=groups)
    assert np.bincount(result.parts, minlength=3).tolist() == [100, 100, 100]


def test_groups_do_not_depend_on_row_order_and_stick() -> None:
    rows, groups = grouped(40)
    first = split(rows, groups=groups)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    other = split([rows[i] for i in order], groups=[groups[i] for i in order])
    assert other.ledger.digest == first.ledger.digest
    more, more_groups = grouped(60)
    grown = split(more, first.ledger, groups=more_groups)
    assert grown.parts[: len(rows)].tolist() == first.parts.tolist()


def test_a_group_with_a_record_of_a_small_class_stays_in_training() -> None:
    rows = [*distinct(100, "head"), ("x", "tiny")]
    groups = [f"g{i // 5}" for i in range(100)] + ["g0"]
    result = split(rows, groups=groups)
    assert set(result.parts[[0, 1, 2, 3, 4, 100]].tolist()) == {TRAINING}
    assert HOLDOUT in result.parts


def test_a_class_in_two_groups_cannot_stand_in_three_parts() -> None:
    rows = distinct(40, "a")
    assert set(split(rows, groups=["g", "h"] * 20).parts.tolist()) == {TRAINING}


def test_marks_that_cut_through_a_group_are_refused() -> None:
    rows, groups = grouped(4)
    marked = np.zeros(len(rows), dtype=bool)
    marked[0] = True
    with pytest.raises(
        InputError, match=r"1 groups have records both inside and outside the hold-out, e.g. 'g0'"
    ):
        split(rows, groups=groups, marked=marked)


def test_equal_ledgers_have_equal_digests_and_others_do_not() -> None:
    rows = distinct(30, "a")
    assert split(rows).ledger.digest == split(rows).ledger.digest
    assert split(rows).ledger.digest != split(rows[1:]).ledger.digest


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_split_in_bins_is_the_split_of_all_at_once(is_marked: bool) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (300, 16), dtype=np.uint8).view(KEY)[:, 0][
        rng.integers(0, 300, 900)
    ]
    labels = Coded.of(rng.choice(["head", "mid", "tail"], 900, p=[0.8, 0.19, 0.01]).tolist())
    marks = rng.random(900) < 0.3 if is_marked else None
    ledger = Ledger(SALT)
    shares = Shares(0.2, 0.2, is_marked)
    for n in (500, 900):  # the second time on the first one's ledger
        mark = None if marks is None else marks[:n]
        whole = assign(keys[:n], labels.take(slice(n)), ledger=ledger, shares=shares, marked=mark)
        shared, theirs = shared_names(labels.take(slice(n)), ledger.labels)
        with Workspace(0) as workspace:
            split = RecordSplit(
                replace(ledger, labels=theirs),
                shares,
                workspace=workspace,
                n_bins=6,
            )
            bins = [np.flatnonzero(bin_of(keys[:n], 6) == number) for number in range(6)]
            some = [(r, keys[r], shared.take(r), None if mark is None else mark[r]) for r in bins]
            for number, (_, k, names, m) in enumerate(some):
                split.note(split.look_up(k, names, m, number), number)
            aside = LedgerSpill(ledger, shared.names, workspace)
            for number, (r, k, names, m) in enumerate(some):
                entries = split.look_up(k, names, m, number)
                parts, grown = split.assign(entries)
                aside.append(grown)
                assert parts.tolist() == whole.parts[r].tolist()
                assert entries.occurrences.tolist() == whole.occurrences[r].tolist()
            assert aside.digest == whole.ledger.digest
            assert (split.n_new, split.n_kept_against_mark) == (
                whole.n_new,
                whole.n_kept_against_mark,
            )
        ledger = whole.ledger
