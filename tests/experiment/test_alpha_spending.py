"""Over all looks at a hold-out, the chance of any false `proven` is at most 5 %."""

import numpy as np
import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.experiment.looks import FIRST, spent_alpha


def spent(sizes: list[int], proven: set[int] = frozenset()) -> list[float]:  # type: ignore[assignment]
    """What each look spends; ``proven`` are the numbers of those that end so."""
    alphas: list[float] = []
    for number, n_now in enumerate(sizes, start=1):
        alphas.append(
            spent_alpha(
                number,
                n_first=sizes[0],
                n_before=sizes[max(0, number - 2)],
                n_now=n_now,
                returned=alphas[-1] if number - 1 in proven else 0.0,
            )
        )
    return alphas


@pytest.mark.parametrize("growth", [0.0, 0.01, 0.5, 10.0])
def test_thousands_of_looks_spend_no_more_than_five_percent(growth: float) -> None:
    alphas = spent([int(1000 * (1 + growth * i)) for i in range(3000)])
    assert FIRST + 0.014 < sum(alphas) <= 0.05
    assert min(alphas) > 0


def test_the_first_look_pays_nothing() -> None:
    assert 1 - 2 * spent([17])[0] == pytest.approx(0.95)


def test_records_that_arrived_count_for_themselves() -> None:
    """The twentieth look after a doubling spends ten times as much as the same without."""
    stale, fresh = spent([1000] * 20)[-1], spent([1000] * 19 + [2000])[-1]
    assert fresh > 10 * stale


def test_a_proven_look_returns_what_it_spent_to_the_next_one() -> None:
    alphas = spent([1000] * 20, proven=set(range(1, 20)))
    assert alphas == [FIRST] * 20
    assert spent([1000] * 3, proven={1})[2] == spent([1000] * 3)[2], "to the next one alone"


def test_looks_without_effect_share_five_percent_however_many_others_are_proven() -> None:
    """Up to the first false `proven`, only looks with an effect return what they spent."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        has_effect = set((1 + np.flatnonzero(rng.random(200) < rng.random())).tolist())
        sizes = np.cumsum(rng.integers(0, 100, size=200)).tolist()
        alphas = spent(sizes, proven=has_effect)
        null = [a for number, a in enumerate(alphas, start=1) if number not in has_effect]
        assert sum(null) <= 0.05


@pytest.mark.parametrize("given", [(0, 1, 1), (2, 5, 4), (1, -1, 4)])
def test_counts_that_cannot_be_are_refused(given: tuple[int, int, int]) -> None:
    number, n_before, n_now = given
    with pytest.raises(ParameterError, match="looks count from 1"):
        spent_alpha(number, n_first=1, n_before=n_before, n_now=n_now)
