"""What is taken of several draws, where it is known which ones stray."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.genmodels.base import FitContext, TableData, TableSpec  # noqa: E402
from prefect_augment.genmodels.counter_rng import record_keys  # noqa: E402
from prefect_augment.genmodels.tables.autoencoder import TableAutoencoder  # noqa: E402
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace  # noqa: E402
from prefect_augment.genmodels.tables.reranking import Reranker, features_of  # noqa: E402
from prefect_augment.params import AutoencoderModel  # noqa: E402

N = 1500
Y = (np.arange(N) % 5 == 0).astype(np.int64)
SPEC = TableSpec(("x", "level"), (False, True), (0, 3), ("head", "tail"), (1200, 300))


def records(seed: int = 0, *, strays: float = 0.0) -> np.ndarray:
    """Classes at 0 and 6; a share of the tail's records lies where the head is."""
    rng = np.random.default_rng(seed)
    place = np.where((Y == 1) & (rng.random(N) >= strays), 6.0, 0.0)
    x = place + rng.normal(size=N)
    level = np.where(rng.random(N) < 0.1, np.nan, np.floor(np.clip(x, 0, 5.9) / 2))
    return np.column_stack([x, level])


def strayed(X: np.ndarray) -> float:
    return float((X[Y == 1, 0] < 3).mean())


@pytest.fixture(scope="module")
def chooser() -> tuple[Reranker, MixedSpace]:
    real = records()
    space = MixedSpace.fit(TableData(real, Y), SPEC)
    return Reranker.fit(real, records(1, strays=0.5), Y, space=space, seed=3), space


def test_draws_that_stray_into_another_class_are_seldom_taken(
    chooser: tuple[Reranker, MixedSpace],
) -> None:
    draws = [records(10 + i, strays=0.5) for i in range(4)]
    chosen = chooser[0].choose(draws, Y, record_keys(np.arange(N)), chooser[1])
    assert strayed(draws[0]) == pytest.approx(0.5, abs=0.08)
    assert strayed(chosen) < 0.25, "one in 16 has no other choice"
    of_a_draw = [(chosen[:, 0] == X[:, 0]) for X in draws]
    assert (np.sum(of_a_draw, axis=0) == 1).all(), "whole records, none mended"


def test_draws_that_are_as_good_as_the_records_are_taken_as_they_come() -> None:
    real = records()
    space = MixedSpace.fit(TableData(real, Y), SPEC)
    chooser = Reranker.fit(real, records(1), Y, space=space, seed=3)
    draws = [records(10 + i) for i in range(4)]
    chosen = chooser.choose(draws, Y, record_keys(np.arange(N)), space)
    assert np.quantile(chosen[Y == 0, 0], [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(records(20)[Y == 0, 0], [0.1, 0.5, 0.9]), abs=0.2
    )


def test_the_ratio_of_a_record_is_its_own_and_comes_back_from_arrays(
    chooser: tuple[Reranker, MixedSpace],
) -> None:
    found, space = chooser
    X = records(7)
    ratios = found.log_ratios(X, Y, space)
    alone = np.concatenate([found.log_ratios(X[i : i + 1], Y[i : i + 1], space) for i in range(9)])
    assert alone.tobytes() == ratios[:9].tobytes()
    again = Reranker.from_arrays(found.arrays())
    assert again.log_ratios(X, Y, space).tobytes() == ratios.tobytes()


def test_nulls_and_values_beyond_float32_have_features(
    chooser: tuple[Reranker, MixedSpace],
) -> None:
    X = np.array([[1e300, np.nan], [-1e300, 2.0]])
    assert np.isfinite(features_of(X, chooser[1])).all()


def fitted(n: int = N, **params: object) -> TableAutoencoder:
    requested = AutoencoderModel(width=32, depth=1, learning_rate=0.01, **params)  # type: ignore[arg-type]
    model = TableAutoencoder.build(requested, SPEC)
    model.fit(TableData(records()[:n], Y[:n]), FitContext(seed=1, steps=30, threads=1))
    return model


@pytest.mark.slow
def test_few_records_and_one_draw_need_no_choice() -> None:
    def chooses(model: TableAutoencoder) -> bool:
        return any("chooser" in name for name in model.state()[1])

    assert chooses(fitted())
    assert not chooses(fitted(n_draws=1))
    assert not chooses(fitted(n=900))
