"""MIG and DCI against sums written out, and where the answer is known."""

import math
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Grid = np.ndarray[Any, Any]


@pytest.fixture
def factors() -> Grid:
    """Two factors of 3 and 4 values, every combination 50 times."""
    return np.array([(a, b) for a in range(3) for b in range(4)] * 50)


def noise(n: int) -> Grid:
    return np.random.default_rng(0).normal(size=n)


def written_out(column: list[int], factor: list[int]) -> float:
    """Mutual information as the sum over all pairs of values, in nats."""
    n, total = len(column), 0.0
    pairs, left, right = Counter(zip(column, factor, strict=True)), Counter(column), Counter(factor)
    for (a, b), count in pairs.items():
        total += count / n * math.log(count * n / (left[a] * right[b]))
    return total


# --- MIG ---


def test_mutual_information_is_the_sum_over_all_pairs(
    disentanglement: ModuleType, factors: Grid
) -> None:
    Z = np.column_stack([factors @ [1.0, 0.3] + noise(600), noise(600)])
    found, entropy = disentanglement.mutual_information(Z, factors, n_bins=6)
    for j in range(2):
        low, high = Z[:, j].min(), Z[:, j].max()
        bins = [min(5, math.floor(6 * (z - low) / (high - low))) for z in Z[:, j]]
        for k in range(2):
            assert found[j, k] == pytest.approx(written_out(bins, factors[:, k].tolist()))
    assert entropy == pytest.approx([math.log(3), math.log(4)])


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        pytest.param(lambda a, b: [a, b, 0 * a], [1.0, 1.0], id="each number is one factor"),
        pytest.param(lambda a, b: [a, -a, b], [0.0, 1.0], id="two numbers say the same"),
        # Of a factor of four values, its first bit: log 2 of log 4 nats.
        pytest.param(lambda a, b: [a, b, b // 2], [1.0, 0.5], id="one knows half of a factor"),
    ],
)
def test_gap_is_the_share_that_one_number_alone_knows(
    disentanglement: ModuleType, factors: Grid, numbers: Any, gaps: list[float]
) -> None:
    Z = np.column_stack(numbers(*factors.T)).astype(float)
    found = disentanglement.gaps(*disentanglement.mutual_information(Z, factors))
    assert found == pytest.approx(gaps)


def test_a_number_that_never_changes_says_nothing(
    disentanglement: ModuleType, factors: Grid
) -> None:
    found, _ = disentanglement.mutual_information(np.full((600, 2), 7.0), factors)
    assert found == pytest.approx(np.zeros((2, 2)), abs=1e-12)


# --- DCI ---


def test_dci_is_what_its_formulas_say(disentanglement: ModuleType) -> None:
    """Eastwood & Williams 2018, section 2, with logarithms to the base of the number of entries."""
    R = np.array([[0.7, 0.1], [0.2, 0.3], [0.1, 0.6]])
    total = 0.0
    for row in R.tolist():
        p = [value / sum(row) for value in row]
        total += sum(row) / 2.0 * (1.0 + sum(x * math.log2(x) for x in p))
    complete = [1.0 + sum(x * math.log(x, 3) for x in column) for column in R.T.tolist()]
    assert disentanglement.dci_of(R) == pytest.approx((total, sum(complete) / 2))


def test_one_number_for_two_factors_is_complete_and_not_disentangled(
    disentanglement: ModuleType,
) -> None:
    R = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert disentanglement.dci_of(R) == pytest.approx((0.0, 1.0))


def test_two_numbers_for_one_factor_are_disentangled_and_not_complete(
    disentanglement: ModuleType,
) -> None:
    """Half of the factors complete, half spread over two of three numbers: 1 - log 2 / log 3."""
    R = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    expected = (1.0, (1.0 + 1.0 - math.log(2) / math.log(3)) / 2)
    assert disentanglement.dci_of(R) == pytest.approx(expected)


def test_forests_find_which_number_is_which_factor(
    disentanglement: ModuleType, factors: Grid
) -> None:
    """And a turn of the plane, which keeps all that is known, is seen."""
    Z = factors + 0.05 * np.column_stack([noise(600), noise(600)[::-1]])
    angle = math.radians(40)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    straight, turned = (
        disentanglement.dci(z[:400], factors[:400], z[400:], factors[400:], seed=0)
        for z in (Z, (Z - Z.mean(axis=0)) @ turn)
    )
    assert straight.informativeness == 1.0
    assert turned.informativeness > 0.9
    assert min(straight.disentanglement, straight.completeness) > 0.95
    assert max(turned.disentanglement, turned.completeness) < 0.8
