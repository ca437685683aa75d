"""Soft labels of staged records: which rows a drawn record becomes, and what they are called."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.steps import candidates_with, experiment_of

from prefect_augment.encoding.arrays import Matrix, training_matrix
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.subsample import Sample
from prefect_augment.experiment.evaluator import Synthetic
from prefect_augment.experiment.training_set import build_training_set
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Balance, Classic, RunParams, Source, TreesModel
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import make_recipe, wanted_records
from prefect_augment.publish.proposal import lowered
from prefect_augment.schema import BalancePlan, DatasetRef, Strategy
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store
from prefect_augment.synthesis.soft_labels import (
    drawn_for,
    expand,
    expanded_rows,
    learn,
    share_sums,
)

N = 600


@pytest.fixture(scope="module")
def store(memory_store: Store) -> Store:
    return memory_store


@pytest.fixture(scope="module")
def dataset(store: Store, tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    """Two classes that lie on either side of x = 0, with some room for doubt, at two sites; one class is tiny."""
    rng = np.random.default_rng(0)
    kind = np.where(np.arange(N) % 4 == 0, "rare", "common").astype(object)
    kind[:6] = "tiny"
    x = np.where(kind == "rare", 1.0, -1.0) + rng.normal(scale=0.7, size=N)
    site = np.where(rng.random(N) < 0.5, "north", "south")
    table = pa.table({"x": x, "z": rng.normal(size=N), "site": site, "kind": kind.tolist()})
    path: Path = tmp_path_factory.mktemp("source") / "table.parquet"
    pq.write_table(table, path)
    return ingest(Source(uri=str(path), label="kind"), store=store, seed=0)


@pytest.fixture(scope="module")
def known(store: Store, dataset: DatasetRef) -> tuple[Matrix, BalancePlan]:
    balance = Balance(target="majority", by=["site"])
    found = plan(dataset, RunParams(balance=balance, model=TreesModel()), store, compares=False)
    return training_matrix(store, load_info(dataset, store), found, Sample(0, 0)), found


def asked(data: Matrix, x: list[float], stratum: str) -> tuple[np.ndarray, np.ndarray]:
    X = np.zeros((len(x), data.X.shape[1]))
    X[:, data.encoder.names.index("x")] = x
    return X, np.full(len(x), data.strata_names.index(stratum))


@pytest.mark.slow
def test_a_record_stands_for_what_is_likely_in_its_own_cell(
    known: tuple[Matrix, BalancePlan],
) -> None:
    data, found = known
    X, strata = asked(data, [2.5, 0.1, -2.5], "rare | site=north")
    training = np.flatnonzero(~data.is_validation)
    said = expand(data, found, training, X, strata, learn(data, training, seed=0))
    shares = {
        (int(row), data.strata_names[k]): share
        for row, k, share in zip(said.rows, said.strata, said.shares, strict=True)
    }
    assert {name for _, name in shares} == {"rare | site=north", "common | site=north"}
    assert shares[0, "rare | site=north"] > 0.95
    assert 0.1 < shares[1, "rare | site=north"] < 0.9
    assert shares[2, "rare | site=north"] < 0.05, "it is there, and hardly counts"
    assert np.bincount(said.rows, said.shares) == pytest.approx(np.ones(3), abs=0.01)


@pytest.mark.slow
def test_rows_have_the_label_that_they_stand_for_and_an_id_that_says_what_they_were_drawn_for(
    known: tuple[Matrix, BalancePlan],
) -> None:
    data, found = known
    drawn = "rare | site=south"
    X, strata = asked(data, [0.0, 0.2], drawn)
    training = np.flatnonzero(~data.is_validation)
    said = expand(data, found, training, X, strata, learn(data, training, seed=0))
    ids = derived_ids("synthetic", "model", drawn, [11, 12])
    table = data.encoder.decode(X, strata=[drawn] * 2)
    table = table.append_column("aug_id", ids).append_column("aug_stratum", pa.array([drawn] * 2))
    rows = expanded_rows(table, data, said)
    assert rows.num_rows == 4
    assert rows["kind"].to_pylist() == ["common", "common", "rare", "rare"]
    assert rows["site"].to_pylist() == ["south"] * 4
    assert rows["x"].to_pylist() == table["x"].to_pylist() * 2
    assert rows["aug_id"].to_pylist()[2:] == ids.to_pylist()
    assert len(set(rows["aug_id"].to_pylist())) == 4
    for row, seed in zip(rows.to_pylist(), [11, 12] * 2, strict=True):
        by_id = drawn_for(
            row["aug_id"], digest="model", aug_seed=seed, stratum=row["aug_stratum"],
            strata=data.encoder.strata,
        )  # fmt: skip
        assert by_id == drawn


@pytest.mark.slow
def test_strategies_reach_the_same_effective_counts_with_shares_as_with_records(
    known: tuple[Matrix, BalancePlan],
) -> None:
    data, found = known
    training = np.flatnonzero(~data.is_validation)
    X, strata = asked(data, list(np.linspace(-1, 1, 40)), "rare | site=north")
    said = expand(data, found, training, X, strata, learn(data, training, seed=0))
    synthetic = Synthetic(X[said.rows], said.strata, said.shares)
    sums = []
    for strategy in (
        Strategy(name="trees", family="model"),
        Strategy(name="class weights", family="weights"),
    ):
        made = build_training_set(
            strategy,
            data,
            training,
            plan=found,
            synthetic=synthetic if strategy.has_model else None,
            classic=Classic(),
            seed=0,
        )
        assert made.weights.mean() == pytest.approx(1)
        of_stratum = np.bincount(made.strata, made.weights)
        sums.append(of_stratum / of_stratum.sum())
        if strategy.has_model:
            order = np.argsort(said.strata, kind="stable")  # stratum by stratum
            assert made.strata[len(training) :].tolist() == said.strata[order].tolist()
            real = dict(zip(data.strata[training].tolist(), made.weights.tolist(), strict=False))
            per_share = made.weights[len(training) :] / said.shares[order]
            assert per_share == pytest.approx([real[k] for k in said.strata[order].tolist()])
    assert sums[0] == pytest.approx(sums[1])


@pytest.mark.slow
def test_fewer_rows_than_were_compared_keep_the_classes_effective_count(
    known: tuple[Matrix, BalancePlan], dataset: DatasetRef
) -> None:
    data, found = known
    X, strata = asked(data, list(np.linspace(-1, 1, 40)), "rare | site=north")
    training = np.flatnonzero(~data.is_validation)
    said = expand(data, found, training, X, strata, learn(data, training, seed=0))
    names = data.strata_names
    kept = {name: int(n) for name, n in zip(names, np.bincount(said.strata), strict=False) if n}
    shares = share_sums(said.strata, said.shares, names)
    strategy = Strategy(name="trees", family="model")
    candidates = candidates_with(kept, shares)
    recipe = make_recipe(experiment_of(dataset, found, candidates=candidates), strategy, [])
    assert (recipe.synthetic, recipe.shares) == (kept, shares)
    fewer = lowered(recipe, found, {"rare | site=north": 10})
    assert fewer.shares["rare | site=north"] == pytest.approx(shares["rare | site=north"] / 4)
    effective = [
        np.array([made.class_weight[c.name] * (c.n_real + made.counted(c.name)) for c in found.classes])
        for made in (recipe, fewer)
    ]  # fmt: skip
    assert effective[0] / effective[0].sum() == pytest.approx(effective[1] / effective[1].sum())


def test_a_strategy_takes_all_rows_whatever_its_amount(known: tuple[Matrix, BalancePlan]) -> None:
    _, found = known
    counts = {c.name: c.n_real for c in found.classes}
    available, shares = dict.fromkeys(counts, 30), dict.fromkeys(counts, 12.5)
    for amount in (0.5, 1.0):
        wanted = wanted_records(
            Strategy(name="trees", family="model", amount=amount),
            counts,
            found,
            available=available,
            shares=shares,
        )
        assert {w.synthetic for w in wanted.values()} == {30}
        assert all(w.counted == w.n_real + 12.5 for w in wanted.values())
