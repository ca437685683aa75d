"""``GenerativeSampler``: rows come back as they were held, classes as asked, and pipelines take it."""

import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from imblearn.pipeline import make_pipeline
from scipy import sparse
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from prefect_augment.errors import AugmentError, EmptyClassError, ParameterError, SchemaError
from prefect_augment.estimators.sampler import GenerativeSampler
from prefect_augment.params import Inequality, Unique

N = 160
SITES = ["south", "north", "never"]


def mixed(n: int = N) -> tuple[pd.DataFrame, pd.Series]:
    """Every common dtype of pandas, with nulls; a fifth of the rows are of the rare class."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 5 == 0
    start = pd.to_datetime("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, n), "D")
    some = rng.random(n) < 0.2
    X = pd.DataFrame(
        {
            "ident": [f"id-{i:05d}" for i in range(n)],
            "load": np.where(some, np.nan, rng.normal(3.0 * y)),
            "small": rng.normal(size=n).astype(np.float32),
            "count": rng.integers(0, 9, n),
            "maybe": pd.array(np.where(some, None, rng.integers(0, 9, n)), dtype="Int64"),
            "site": pd.Categorical(rng.choice(["south", "north"], n), SITES, ordered=True),
            "word": pd.Series(np.where(some, None, rng.choice(["a", "b", "c"], n)), dtype=object),
            "flag": rng.random(n) < 0.3,
            "start": start,
            "seen": pd.Series(start).dt.tz_localize("Europe/Berlin"),
            "fixed": "same",
            "empty": np.full(n, np.nan),
        }
    ).set_index(np.arange(n) + 1000)
    return X, pd.Series(np.where(y, "ill", "well"), name="state", index=X.index)


@pytest.fixture(scope="module")
def resampled() -> tuple[pd.DataFrame, pd.Series, pd.DataFrame, pd.Series, GenerativeSampler]:
    X, y = mixed()
    sampler = GenerativeSampler(purpose="faithful", random_state=0)
    return X, y, *sampler.fit_resample(X, y), sampler


def test_a_frame_comes_back_with_its_dtypes_names_and_real_rows_first(resampled: Any) -> None:
    X, _, X_new, y_new, sampler = resampled
    assert X_new.dtypes.equals(X.dtypes)
    assert X_new.columns.equals(X.columns)
    pd.testing.assert_frame_equal(X_new.iloc[:N], X.reset_index(drop=True))
    assert isinstance(y_new, pd.Series)
    assert y_new.name == "state"
    assert Counter(y_new) == {"well": 128, "ill": 128}
    assert (y_new.iloc[N:] == "ill").all()
    assert sampler.sample_indices_.tolist() == list(range(N))
    assert sampler.feature_names_in_.tolist() == list(X.columns)
    assert sampler.n_features_in_ == 12


def test_new_rows_hold_values_of_their_columns_domains(resampled: Any) -> None:
    X, _, X_new, _, _ = resampled
    new = X_new.iloc[N:]
    assert new["ident"].isna().all(), "an identifier is not learnt"
    assert set(new["count"]) <= set(X["count"])
    assert set(new["site"]) <= {"south", "north"}
    assert set(new["word"].dropna()) <= {"a", "b", "c"}
    assert all(v is None for v in new["word"][new["word"].isna()]), "missing as it was written"
    assert new["start"].between(X["start"].min(), X["start"].max()).all()
    assert (new["start"] == new["start"].dt.normalize()).all(), "days stay days"
    assert (new["fixed"] == "same").all()
    assert new["empty"].isna().all()
    assert new["load"].isna().any()
    assert new["load"].mean() > 1.5, "the rare class lies at 3"


def test_polars_and_arrow_come_back_as_they_were() -> None:
    X, y = mixed()
    frame = pl.DataFrame(
        {
            "load": X["load"].to_numpy(),
            "maybe": [None if pd.isna(v) else int(v) for v in X["maybe"]],
            "site": pl.Series(X["site"].astype(str).tolist(), dtype=pl.Enum(["south", "north"])),
            "word": [None if pd.isna(v) else v for v in X["word"]],
            "start": pl.Series(X["start"].dt.to_pydatetime().tolist(), dtype=pl.Datetime("ms")),
            "day": pl.Series([v.date() for v in X["start"]]),
        }
    ).with_columns(pl.col("maybe").cast(pl.Int16))
    labels = pl.Series("state", y.tolist())
    X_new, y_new = GenerativeSampler(random_state=0).fit_resample(frame, labels)
    assert X_new.schema == frame.schema
    assert X_new.head(N).equals(frame)
    assert isinstance(y_new, pl.Series)
    assert Counter(y_new) == {"well": 128, "ill": 128}
    table, codes = frame.to_arrow(), labels.to_arrow()
    X_arrow, y_arrow = GenerativeSampler(random_state=0).fit_resample(table, codes)
    assert X_arrow.schema.equals(table.schema)
    assert y_arrow.type == codes.type
    assert pl.from_arrow(X_arrow).equals(X_new)  # type: ignore[union-attr]


def test_an_array_of_objects_keeps_numbers_text_and_missing_apart() -> None:
    rng = np.random.default_rng(1)
    X = np.empty((60, 3), dtype=object)
    X[:, 0] = rng.choice(["a", "b"], 60)
    X[:, 1] = rng.normal(size=60)
    X[:, 2] = np.where(rng.random(60) < 0.3, None, 7)
    X[::9, 2] = 8
    X_new, y_new = GenerativeSampler(random_state=0).fit_resample(X, [0] * 45 + [1] * 15)
    assert isinstance(y_new, list)
    assert X_new.shape == (90, 3)
    assert {type(v) for v in X_new[60:, 0]} == {str}
    assert {type(v) for v in X_new[60:, 1]} == {float}
    assert set(X_new[60:, 2]) <= {7, 8, None}


def test_sparse_matrices_and_lazy_frames_are_refused_by_name() -> None:
    X, y = np.eye(30), np.arange(30) % 3 == 0
    with pytest.raises(TypeError, match=r"(?i)sparse"):
        GenerativeSampler().fit_resample(sparse.csr_matrix(X), y)
    with pytest.raises(SchemaError, match="collect"):
        GenerativeSampler().fit_resample(pl.DataFrame(X).lazy(), y)
    with pytest.raises(SchemaError, match="more than once"):
        GenerativeSampler().fit_resample(pd.DataFrame(X[:, :2], columns=["a", "a"]), y)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        GenerativeSampler().fit_resample(pl.DataFrame(X), y[:-1])


def blobs(counts: tuple[int, ...] = (150, 40)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    y = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(loc=y[:, None], size=(len(y), 3)), y


@pytest.mark.slow
def test_pipelines_and_grid_searches_take_it() -> None:
    X, y = blobs()
    pipeline = make_pipeline(
        StandardScaler(), GenerativeSampler(random_state=0), LogisticRegression()
    )
    grid = {
        "generativesampler__purpose": ["utility", "faithful"],
        "generativesampler__model_params": [None, {"min_leaf": 5}],
    }
    search = GridSearchCV(pipeline, grid, scoring="balanced_accuracy", cv=2).fit(X, y)
    assert search.best_score_ > 0.7
    # scikit-learn's own pipeline has no step that adds rows; ours is a step of it with its classifier.
    outer = Pipeline([("scale", StandardScaler()), ("rest", pipeline)])
    assert cross_val_score(outer, X, y, cv=2).min() > 0.6


def test_mixed_columns_go_through_a_pipeline_with_boosting() -> None:
    X, y = mixed()
    X = X[["load", "count", "site", "small"]].assign(site=X["site"].cat.codes.astype(int))
    model = make_pipeline(GenerativeSampler(random_state=0), HistGradientBoostingClassifier())
    assert model.fit(X, y).score(X, y) > 0.8


def test_clone_and_pickle_keep_everything() -> None:
    X, y = blobs()
    given = {"purpose": "faithful", "random_state": 3, "model_params": {"min_leaf": 9}}
    sampler = GenerativeSampler("trees", **given)
    copy = clone(sampler)
    assert copy.get_params() == sampler.get_params()
    X_new, _ = sampler.fit_resample(X, y)
    again = pickle.loads(pickle.dumps(sampler))
    assert np.array_equal(again.sample({1: 5})[0], sampler.sample({1: 5})[0])
    assert np.array_equal(copy.fit_resample(X, y)[0], X_new)
    other = copy.set_params(random_state=4).fit_resample(X, y)[0]
    assert not np.array_equal(other, X_new)


def test_the_strategy_is_imbalanced_learns() -> None:
    X, y = blobs((60, 30, 20))
    sampler = GenerativeSampler(sampling_strategy={1: 45, 2: 33}, random_state=0)
    assert Counter(sampler.fit_resample(X, y)[1]) == {0: 60, 1: 45, 2: 33}
    assert sampler.sampling_strategy_ == {1: 15, 2: 13}
    minority = GenerativeSampler(sampling_strategy="minority").fit_resample(X, y)[1]
    assert Counter(minority) == {0: 60, 1: 30, 2: 60}


def test_classes_too_small_to_learn_are_copied_with_a_warning() -> None:
    X, y = blobs((50, 20, 3, 1))
    sampler = GenerativeSampler(random_state=0)
    with pytest.warns(UserWarning, match="fewer than 8 rows"):
        X_new, y_new = sampler.fit_resample(X, y)
    assert Counter(y_new) == dict.fromkeys(range(4), 50)
    n_real = len(sampler.sample_indices_)
    assert np.array_equal(X_new[:n_real], X[sampler.sample_indices_])
    assert np.array_equal(y_new[:n_real], y[sampler.sample_indices_])
    assert (y_new[n_real:] == 1).all()
    assert sampler.summary_["copied"] == {2: 47, 3: 49}
    assert sampler.summary_["kept"] == {1: 30}
    with pytest.raises(EmptyClassError, match="3 rows"):
        sampler.sample({2: 1})


def test_utility_rows_are_surer_of_their_class_than_faithful_ones() -> None:
    """What the filter is for; the summary names the purpose, since one cannot serve for the other."""
    X, y = blobs((300, 60))
    classifier = LogisticRegression().fit(X, y)
    sure = {}
    for purpose in ("utility", "faithful"):
        sampler = GenerativeSampler(purpose=purpose, random_state=0)
        new = sampler.fit_resample(X, y)[0][len(X) :]
        sure[purpose] = classifier.predict_proba(new)[:, 1].mean()
        assert sampler.summary_["purpose"] == purpose
        assert sampler.summary_["drawn"] == {1: 720 if purpose == "utility" else 240}
    assert sure["utility"] > sure["faithful"] + 0.1


def test_constraints_hold_in_every_new_row_and_the_share_is_told() -> None:
    rng = np.random.default_rng(5)
    start = rng.integers(0, 50, 200)
    X = pd.DataFrame(
        {"start": start, "end": start + rng.integers(0, 10, 200), "key": np.arange(200) * 3}
    )
    y = np.arange(200) % 4 == 0
    rules = [Inequality(left="start", right="end"), {"kind": "unique", "columns": ["start", "end"]}]
    sampler = GenerativeSampler(constraints=rules, random_state=0)
    new = sampler.fit_resample(X, y)[0].iloc[200:]
    assert len(new) == 100
    assert (new["start"] <= new["end"]).all()
    assert not new[["start", "end"]].duplicated().any()
    assert not pd.merge(new, X, on=["start", "end"]).shape[0]
    assert 0 < sampler.summary_["accepted"][True] < 1


def test_rows_with_given_values_have_them_all() -> None:
    X, y = mixed()
    sampler = GenerativeSampler(random_state=0).fit(X, y)
    given = {"site": "north", "start": X["start"].iloc[0], "maybe": None}
    rows, classes = sampler.sample({"ill": 30, "well": 10}, given=given)
    assert (rows["site"] == "north").all()
    assert (rows["start"] == given["start"]).all()
    assert rows["maybe"].isna().all()
    assert rows.dtypes.equals(X.dtypes)
    assert Counter(classes) == {"ill": 30, "well": 10}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "nothing"}, "no model 'nothing'"),
        ({"kind": "diffusion"}, "makes image data"),
        ({"columns": [{"name": "x0", "kind": "drop"}]}, "leave the column out"),
        ({"constraints": [Unique(columns=["x9"])]}, "'x9', which is not a column"),
    ],
)
def test_impossible_values_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(AugmentError, match=message):
        GenerativeSampler(**params).fit(*blobs())


def test_a_class_that_is_not_there_is_named() -> None:
    sampler = GenerativeSampler(random_state=0).fit(*blobs())
    with pytest.raises(EmptyClassError, match="no class 'sick'"):
        sampler.sample({"sick": 3})
    with pytest.raises(ParameterError, match="'x7', which is not a column"):
        sampler.sample({1: 3}, given={"x7": 1})


@pytest.mark.slow
def test_the_page_in_the_docs_runs(
    make_table: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(make_table(), "parts.parquet")
    page = (repository / "docs" / "sampler.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, "sampler.md", "exec", dont_inherit=True), names)
    assert names["rows"]["loud"].all()
    assert (names["rows"]["cycles"] == 31).all()
    assert Counter(names["classes"]) == {"worn": 50, "cracked": 20}
    assert set(Counter(names["y_new"]).values()) == {260}


@pytest.mark.slow
def test_the_public_name_is_loaded_on_first_use() -> None:
    code = "import sys, prefect_augment as p; assert 'imblearn' not in sys.modules; p.GenerativeSampler()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_weighted_rows_are_the_real_ones_and_drawn_ones_of_every_class() -> None:
    X, y = mixed()
    sampler = GenerativeSampler(random_state=0)
    X_new, y_new, weight = sampler.fit_weighted(X, y, times=1.5)
    pd.testing.assert_frame_equal(X_new.iloc[:N], X.reset_index(drop=True))
    assert X_new.dtypes.equals(X.dtypes)
    assert y_new.iloc[:N].tolist() == y.tolist()
    assert len(X_new) == len(y_new) == len(weight)
    assert sampler.summary_["drawn"] == {"well": 192, "ill": 48}
    assert sampler.summary_["purpose"] == "utility"
    assert sum(sampler.summary_["teacher"].values()) == pytest.approx(1, abs=0.01)
    assert weight.mean() == pytest.approx(1)
    # Every drawn row weighs what a real one of its class does, split between the classes.
    ill, well = (weight[:N][(y == name).to_numpy()] for name in ("ill", "well"))
    assert np.ptp(ill) == np.ptp(well) == 0
    share = weight[N:] / np.where(y_new.iloc[N:] == "ill", ill[0], well[0])
    assert share.sum() == pytest.approx(240, rel=1e-3)
    sums = pd.Series(weight).groupby(y_new.to_numpy()).sum()
    assert 0.4 < sums["ill"] / sums["well"] < 0.6, "half of the way from 1:4 to 1:1"


@pytest.mark.slow
def test_weighted_rows_are_the_same_again_and_keep_constraints() -> None:
    X, y = mixed()
    X = X[["load", "small", "count", "maybe"]]
    rule = [{"kind": "positive", "columns": ["small"]}]
    first, again = (
        GenerativeSampler(random_state=3, constraints=rule).fit_weighted(X, y) for _ in range(2)
    )
    pd.testing.assert_frame_equal(first[0], again[0])
    assert (first[1] == again[1]).all()
    assert (first[2] == again[2]).all()
    assert (first[0]["small"].iloc[N:] > 0).all()


@pytest.mark.slow
def test_classes_too_small_to_learn_keep_their_rows_alone() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([7, 8, 9], [60, 20, 3])
    X = rng.normal(size=(83, 2)) + y[:, None]
    sampler = GenerativeSampler(random_state=0)
    X_new, y_new, weight = sampler.fit_weighted(X, y, amount=0.0)
    assert sampler.summary_["drawn"] == {7: 120, 8: 40}
    assert weight[y_new == 9].sum() >= weight[:83][y == 9].sum() > 0
    assert set(y_new) == {7, 8, 9}
    assert np.array_equal(X_new[:83], X)


@pytest.mark.parametrize("params", [{"times": 0.0}, {"amount": 1.5}, {"times": float("nan")}])
def test_impossible_weights_are_refused(params: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(params))):
        GenerativeSampler().fit_weighted(*mixed(), **params)
