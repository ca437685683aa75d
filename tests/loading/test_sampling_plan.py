"""Passes over groups of records, cut among readers: nothing twice, nothing lost, weights met."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from prefect_augment.loading.sampling_plan import (
    MAX_ROUNDS,
    Pass,
    Reader,
    draw_rows,
    one_pass,
    real_only_weights,
    weighted_passes,
)

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def rng(*words: int) -> np.random.Generator:
    return np.random.default_rng((7, *words))


def everybody(n_ranks: int, n_workers: int) -> list[Reader]:
    return [Reader(r, n_ranks, w, n_workers) for r in range(n_ranks) for w in range(n_workers)]


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(1, 5), st.integers(1, 4))
def test_readers_share_every_pass_without_gap_or_overlap(
    first: list[int], second: list[int], n_ranks: int, n_workers: int
) -> None:
    passes = [one_pass(np.array(first), rng()), one_pass(np.array(second), None)]
    n = sum(first) + sum(second)
    seen: list[tuple[int, int, int]] = []
    of_rank = [0] * n_ranks
    for reader in everybody(n_ranks, n_workers):
        before = len(seen)
        for k, (one, parts) in enumerate(reader.parts(passes)):
            seen += [
                (k, int(one.order[p.place]), row) for p in parts for row in range(p.start, p.stop)
            ]
        assert len(seen) - before == reader.share(n)
        of_rank[reader.rank] += len(seen) - before
    expected = [
        (k, g, row)
        for k, sizes in enumerate((first, second))
        for g, m in enumerate(sizes)
        for row in range(m)
    ]
    assert sorted(seen) == expected
    assert of_rank == [Reader(r, n_ranks).share(n) for r in range(n_ranks)]
    assert max(of_rank) - min(of_rank) <= 1


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.lists(st.lists(st.floats(0.0, 6.0), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(0, 40),
    st.integers(0, 100),
)
def test_in_a_pass_a_record_comes_as_often_as_expected_give_or_take_one(
    weights: list[list[float]], n: int, seed: int
) -> None:
    rows = [np.array(w) for w in weights]
    sums = np.array([w.sum() for w in rows])
    largest = max(w.max() for w in rows)
    passes = weighted_passes(n, sums, largest, rng(seed))
    assert sum(one.n_records for one in passes) == (n if sums.sum() > 0 else 0)
    assert len(passes) <= MAX_ROUNDS
    for one in passes:
        for place, group in enumerate(one.order):
            drawn = draw_rows(one, place, rows[group], rng(seed, int(group)))
            begin = one.ends[place - 1] if place else 0
            assert len(drawn) == one.ends[place] - begin
            found = np.bincount(drawn, minlength=len(rows[group]))
            expected = rows[group] * one.scale
            assert (np.abs(found - expected) < 1 + 1e-6).all()
            assert not found[rows[group] == 0].any()


def test_equal_weights_draw_every_record_once() -> None:
    (one,) = weighted_passes(12, np.array([5.0, 7.0]), 1.0, rng())
    for place, group in enumerate(one.order):
        drawn = draw_rows(one, place, np.ones((5, 7)[group]), rng(1))
        assert sorted(drawn) == list(range((5, 7)[group]))


def test_passes_are_as_many_as_the_rarest_record_is_drawn() -> None:
    weights = np.array([90.0, 10.0])
    assert len(weighted_passes(100, weights, 1.0, rng())) == 1
    assert len(weighted_passes(100, weights, 2.5, rng())) == 3
    assert len(weighted_passes(100, weights, 50.0, rng())) == MAX_ROUNDS


def test_plain_passes_keep_the_order_unless_shuffled() -> None:
    sizes = np.array([3, 1, 2])
    plain: Pass = one_pass(sizes, None)
    assert plain.order.tolist() == [0, 1, 2]
    assert plain.ends.tolist() == [3, 4, 6]
    assert draw_rows(plain, 2, np.zeros(2), rng()).tolist() == [0, 1]


def test_without_synthetic_records_classes_keep_their_share() -> None:
    weights = np.array([[4.0, 1.0, 0.0], [0.0, 3.0, 2.0]])  # a real group, a synthetic one
    kept, factor = real_only_weights(weights, np.array([False, True]))
    assert kept.sum(axis=0).tolist() == weights.sum(axis=0).tolist()
    assert kept.tolist() == [[4.0, 4.0, 0.0], [0.0, 0.0, 2.0]]
    assert factor.tolist() == [1.0, 4.0, 0.0]
