"""The overlap of the largest class is learnt apart, and not sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefect_augment.estimators.sampler import GenerativeSampler
from prefect_augment.genmodels.base import TableData, TableSpec
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.params import Budget, FlowModel, TreesModel
from prefect_augment.synthesis.overlap_class import OVERLAP_CLASS, with_overlap_class
from prefect_augment.synthesis.train import fit_model


def blobs(counts: tuple[int, ...] = (600, 80), shift: float = 2.0) -> tuple[TableData, TableSpec]:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(counts)), counts)
    X = rng.normal(size=(len(y), 2))
    X[:, 0] += shift * y
    spec = TableSpec(("x", "noise"), (False, False), (0, 0), tuple("abcdef"[: len(counts)]), counts)
    return TableData(X, y.astype(np.int64)), spec


def test_records_of_the_largest_class_among_the_others_become_a_class() -> None:
    data, spec = blobs()
    learnt, found = with_overlap_class(data, spec, seed=1)
    assert found.classes == ("a", "b", OVERLAP_CLASS)
    assert sum(found.class_counts) == 680
    assert found.class_counts[1] == 80, "other classes stay whole"
    taken = learnt.y == 2
    assert 20 < taken.sum() < 200
    assert (data.y[taken] == 0).all()
    assert data.X[taken, 0].mean() > 1.0 > data.X[learnt.y == 0, 0].mean()
    again = with_overlap_class(data, spec, seed=1)
    assert np.array_equal(again[0].y, learnt.y)


@pytest.mark.parametrize(
    ("counts", "shift"),
    [((600, 80), 50.0), ((600,), 0.0), ((600, 3), 2.0)],
)
def test_without_an_overlap_worth_a_class_nothing_changes(
    counts: tuple[int, ...], shift: float
) -> None:
    data, spec = blobs(counts, shift)
    assert with_overlap_class(data, spec, seed=1) == (data, spec)


@pytest.mark.parametrize("kind", ["trees", "flow"])
def test_every_model_of_tables_takes_it(kind: str) -> None:
    data, spec = blobs()
    params: Any = TreesModel(overlap=True)
    if kind == "flow":
        pytest.importorskip("torch")
        params = FlowModel(width=16, depth=1, overlap=True)
    budget = Budget(steps=50, batch_size=64, device="cpu")
    model: Any = fit_model(data, spec, params, 1, budget=budget)
    assert model.spec.classes[-1] == OVERLAP_CLASS
    assert model.sample(np.array([0, 1, 1]), seeds=seeds_from(1, 0, 3)).shape == (3, 2)


def test_the_sampler_keeps_its_classes() -> None:
    data, _ = blobs((300, 60))
    sampler = GenerativeSampler(model_params={"overlap": True}, purpose="faithful", random_state=0)
    X, y = sampler.fit_resample(data.X, data.y)
    assert np.bincount(y).tolist() == [300, 300]
    plain, _ = GenerativeSampler(purpose="faithful", random_state=0).fit_resample(data.X, data.y)
    assert not np.array_equal(X, plain)
