"""The privacy loss is what was asked for, noise and sensitivities fit it, and the bounds are public."""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.optimize import minimize_scalar

from prefect_augment import GenerativeSampler
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import FitContext, TableData, TableSpec
from prefect_augment.params import ColumnBounds, MstModel

pytest.importorskip("opendp", reason="the extra 'dp'")
mst = importlib.import_module("prefect_augment.genmodels.tables.mst")

SPEC = TableSpec(("x", "z", "c"), (False, False, True), (0, 0, 3), ("a", "b"), (300, 60))
BOUNDS = [ColumnBounds(column="x", low=-4, high=4), ColumnBounds(column="z", low=0, high=50)]


def records(n: int = 360, seed: int = 0) -> TableData:
    rng = np.random.default_rng(seed)
    y = (np.arange(n) >= 5 * n // 6).astype(np.int64)
    x = rng.normal(size=n) + 2 * y
    z = np.where(rng.random(n) < 0.6, 0.0, 10 * np.abs(x))
    return TableData(np.column_stack([x, z, np.clip(np.round(x), 0, 2)]), y)


def fitted(epsilon: float, data: TableData | None = None, **params: Any) -> Any:
    model = mst.TableMst.build(MstModel(epsilon=epsilon, bounds=BOUNDS, **params), SPEC)
    model.fit(records() if data is None else data, FitContext(seed=0))
    return model


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (1.0, 1e-6), (8.0, 1e-5)])
def test_rho_is_epsilon_and_delta_by_the_formula(epsilon: float, delta: float) -> None:
    """Canonne, Kamath and Steinke 2020, proposition 12: the delta of rho at this epsilon."""
    rho = mst.loss_of(epsilon, delta)

    def log_delta(alpha: float) -> float:
        gap = (alpha - 1) * (alpha * rho - epsilon)
        return gap + alpha * math.log1p(-1 / alpha) - math.log(alpha - 1)

    best = minimize_scalar(log_delta, bounds=(1.0001, 1e4), method="bounded")
    assert best.fun == pytest.approx(math.log(delta), abs=0.01)


def test_all_steps_together_spend_rho(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    noise, tree = mst._with_noise, mst._spanning_tree

    def noted_noise(counts: Any, rho: float) -> Any:
        spent.append(rho)
        return noise(counts, rho)

    def noted_tree(pair: Any, shares: Any, total: float, rho: float) -> Any:
        spent.append(rho)
        return tree(pair, shares, total, rho)

    monkeypatch.setattr(mst, "_with_noise", noted_noise)
    monkeypatch.setattr(mst, "_spanning_tree", noted_tree)
    model = fitted(1.0)
    assert len(spent) == 3
    assert sum(spent) == pytest.approx(model.guarantee.rho)
    assert model.guarantee.rho == pytest.approx(mst.loss_of(1.0, 1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("n_tables", [1, 4])
def test_noise_is_as_wide_as_the_loss_asks(n_tables: int) -> None:
    """One record changes one cell of each table: sigma squared is their number over twice rho."""
    tables = [np.zeros(4000, dtype=np.int64)] * n_tables
    noisy = np.concatenate(mst._with_noise(tables, 0.02))
    assert noisy.std() == pytest.approx(math.sqrt(n_tables / 0.04), rel=0.06)
    assert abs(noisy.mean()) < 1
    again = np.concatenate(mst._with_noise(tables, 0.02))
    assert (noisy != again).any(), "noise with a seed could be taken away"


def test_one_record_more_changes_each_table_and_score_by_one_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the mechanisms are told of sensitivity, of neighbours; the noise is left out to see it."""
    monkeypatch.setattr(mst, "SPLIT", (0.3, 0.1, 0.6))
    seen: list[list[np.ndarray]] = []
    pairs: list[Any] = []

    def exact(counts: list[np.ndarray], rho: float) -> list[np.ndarray]:
        seen.append(counts)
        # The same released counts for both neighbours, as the sensitivity of what follows supposes.
        return [np.full(c.shape, 7.0) for c in counts]

    def tree(pair: Any, shares: Any, total: float, rho: float) -> list[tuple[int, int]]:
        pairs.append({(a, b): np.abs(pair(a, b) - total * np.outer(shares[a], shares[b])).sum()
                      for a in range(1, 4) for b in range(a + 1, 4)})  # fmt: skip
        return [(1, 2), (2, 3)]

    monkeypatch.setattr(mst, "_with_noise", exact)
    monkeypatch.setattr(mst, "_spanning_tree", tree)
    data = records()
    more = TableData(np.vstack([data.X, [99.0, -3.0, 1.0]]), np.append(data.y, 1))
    for neighbour in (data, more):
        fitted(1.0, neighbour)
    for before, after in ((seen[0], seen[2]), (seen[1], seen[3])):
        changes = [np.abs(a - b).sum() for a, b in zip(before, after, strict=True)]
        assert changes == [1.0] * len(before)
    assert max(abs(pairs[0][edge] - pairs[1][edge]) for edge in pairs[0]) <= 1.0


def test_a_range_has_to_be_given_and_is_kept() -> None:
    with pytest.raises(ParameterError, match=r"model\.bounds lacks 'z'"):
        mst.TableMst.build(MstModel(bounds=BOUNDS[:1]), SPEC)
    with pytest.raises(ValidationError, match="low has to be smaller"):
        ColumnBounds(column="x", low=1, high=1)
    X = fitted(1.0).sample(np.repeat([0, 1], 500), seeds=np.arange(1000))
    assert X[:, 0].min() >= -4
    assert X[:, 1].max() <= 50
    public = fitted(1.0).guarantee.sentences[1]
    assert "range" not in public
    assert "ranges" in fitted(1.0, bounds_from="data").guarantee.sentences[1]


def test_with_little_noise_classes_columns_and_pairs_come_back() -> None:
    data = records(3000)
    model = fitted(100.0, data)
    X = model.sample(data.y, seeds=np.arange(len(data.y)))
    for k in (0, 1):
        mine, real = X[data.y == k], data.X[data.y == k]
        assert mine[:, 0].mean() == pytest.approx(real[:, 0].mean(), abs=0.2)
        assert (mine[:, 1] == 0).mean() == pytest.approx((real[:, 1] == 0).mean(), abs=0.1)
    assert np.corrcoef(X[:, 0], X[:, 2])[0, 1] > 0.7


def test_the_stored_model_has_no_exact_count() -> None:
    config, _ = fitted(1.0).state()
    assert config["spec"]["class_counts"] == [0, 0]


def test_it_is_drawn_from_as_any_model(tmp_path: Path) -> None:
    data = records()
    frame = pd.DataFrame({"x": data.X[:, 0], "z": data.X[:, 1], "c": data.X[:, 2].astype(int)})
    bounds = [*BOUNDS, ColumnBounds(column="c", low=0, high=2)]
    params = {"epsilon": 5.0, "bounds": [b.model_dump() for b in bounds]}
    sampler = GenerativeSampler("mst", model_params=params, random_state=0)
    new, y = sampler.fit(frame, np.array(["a", "b"])[data.y]).sample({"b": 40})
    assert len(new) == 40
    assert set(y) == {"b"}
