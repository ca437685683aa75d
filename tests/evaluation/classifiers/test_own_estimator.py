"""A classifier of the user's: found, refused where it cannot be compared, and given frames as the source has them."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from support import own_models

from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.evaluation.classifiers.own_estimator import (
    check_estimators,
    check_modality,
    estimator_infos,
    fit_own,
    make_classifier,
)
from prefect_augment.params import Evaluation, OwnEstimator, RunParams
from prefect_augment.params.keys import step_key
from prefect_augment.registry import ALLOW_IMPORT_PATHS

CLASSES = ("dot", "ring")


@pytest.fixture(autouse=True)
def _worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_IMPORT_PATHS, "1")


class Recorder(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Keeps what it was given."""

    seen: Any = None

    def __init__(self, n_jobs: int | None = None, random_state: int | None = None) -> None:
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Recorder":
        type(self).seen = (X, y, sample_weight, self.n_jobs, self.random_state)
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: Any) -> Any:
        type(self).seen = (X, *(type(self).seen or ())[1:])
        return np.tile([0.25, 0.75], (len(X), 1))


class Wrong(Recorder):
    """Its probabilities are none."""

    def predict_proba(self, X: Any) -> Any:
        return np.full((len(X), 2), np.nan)


def table(n: int = 80, *, nulls: bool = True) -> pa.Table:
    rng = np.random.default_rng(0)
    label = np.array(["ring"] * (n - 20) + ["dot"] * 20)
    width = rng.normal(size=n) + 2 * (label == "dot")
    return pa.table(
        {
            "width": pa.array([None if nulls and i % 9 == 0 else x for i, x in enumerate(width)]),
            "cycles": pa.array(rng.integers(0, 50, n)),
            "site": pa.array(rng.choice(["north", "south"], n)).dictionary_encode(),
            "maker": pa.array(rng.choice(["a", "b", "c"], n)),
            "loud": pa.array(rng.random(n) < 0.3),
            "label": label,
        }
    )


def fitted(estimator: Any, *, weights: Any = None, seed: int = 3) -> tuple[Any, Any, Any]:
    own = Evaluation(estimators=[estimator]).own_estimators[0]
    records = table()
    encoder = TableEncoder.fit(
        records, columns=describe_columns(records, label="label", overrides=[]), label="label"
    )
    X = encoder.encode(records)
    y = np.array([CLASSES.index(name) for name in records["label"].to_pylist()])
    made = fit_own(
        own, X, y, weights=weights, decode=encoder.decode_learnt,
        labels=encoder.labels(CLASSES), seed=seed,
    )  # fmt: skip
    return made, X, y


def test_it_gets_the_sources_columns_types_and_classes() -> None:
    made, X, _ = fitted(Recorder(n_jobs=4), weights=np.arange(80.0))
    frame, labels, weights, n_jobs, random_state = Recorder.seen
    expected = table().slice(1).to_pandas().drop(columns="label")
    assert frame.dtypes.to_dict() == expected.dtypes.to_dict()
    assert frame.equals(expected), "a record of weight 0 is left out, and nulls stay nulls"
    assert labels.tolist() == table()["label"].to_pylist()[1:]
    assert weights.mean() == pytest.approx(1)
    assert (n_jobs, random_state) == (1, 3)
    proba = made.predict_proba(X[:5])
    assert proba.tolist() == [[0.25, 0.75]] * 5
    assert Recorder.seen[0].dtypes.equals(frame.dtypes)
    assert made.predict_proba(X[:0]).shape == (0, 2)


def test_a_value_that_was_never_missing_in_training_is_the_usual_one() -> None:
    """Of the corrupted copies and of new levels: most pipelines fail on what they have not seen."""
    made, X, _ = fitted(Recorder())
    made.predict_proba(np.full((2, X.shape[1]), np.nan))
    frame = Recorder.seen[0]
    assert frame["width"].isna().all()
    assert frame["cycles"].tolist() == [round(float(np.median(table()["cycles"])))] * 2
    usual = table()["site"].to_pandas().mode()[0]
    assert frame["site"].tolist() == [usual] * 2
    assert frame["loud"].dtype == bool


@pytest.mark.parametrize("make", [own_models.pipeline, own_models.neighbours])
def test_weights_bring_a_class_up_with_and_without_sample_weight(make: Callable[[], Any]) -> None:
    plain, X, y = fitted(make())
    heavy, _, _ = fitted(make(), weights=np.where(y == 0, 30.0, 1.0))
    again, _, _ = fitted(make(), weights=np.where(y == 0, 30.0, 1.0))
    assert (heavy.predict_proba(X)[:, 0] > 0.5).sum() > (plain.predict_proba(X)[:, 0] > 0.5).sum()
    assert np.array_equal(heavy.predict_proba(X), again.predict_proba(X))


def test_a_class_alone_is_predicted_and_a_failure_names_estimator_and_columns() -> None:
    made, X, _ = fitted(own_models.pipeline(), weights=(np.arange(80) < 60).astype(float))
    assert (made.predict_proba(X)[:, 1] == 1).all()
    with pytest.raises(
        ParameterError, match=r"'LogisticRegression' failed in fit .*width \(float64\)"
    ):
        fitted(make_pipeline(StandardScaler(), LogisticRegression()))
    wrong, X, _ = fitted(Wrong())
    with pytest.raises(ParameterError, match="'Wrong' gives no probabilities"):
        wrong.predict_proba(X)


def factory(name: str, **options: Any) -> Evaluation:
    return Evaluation(estimators=[{"factory": f"support.own_models:{name}", "options": options}])


def test_an_object_travels_in_pickles_and_json_has_its_digest() -> None:
    asked = Evaluation(estimators=[own_models.pipeline(C=0.5)])
    own = asked.own_estimators[0]
    assert own.title == "LogisticRegression"
    same = Evaluation(estimators=[own_models.pipeline(C=0.5)]).own_estimators[0]
    other = Evaluation(estimators=[own_models.pipeline(C=0.6)]).own_estimators[0]
    assert same.digest == own.digest != other.digest
    travelled = pickle.loads(pickle.dumps(asked)).own_estimators[0]
    assert (
        estimator_infos(Evaluation(estimators=[travelled]))["LogisticRegression"].digest
        == own.digest
    )
    read = Evaluation.model_validate_json(asked.model_dump_json())
    assert read.own_estimators[0].digest == own.digest
    with pytest.raises(ParameterError, match="was an object in another process"):
        check_estimators(read)


def test_a_factorys_options_are_in_the_runs_key() -> None:
    def key(evaluation: Evaluation) -> str:
        return step_key("score", RunParams(evaluation=evaluation), seed=0)

    asked = [factory("pipeline", C=c) for c in (0.5, 0.6)]
    assert key(asked[0]) != key(asked[1])
    checked = [check_estimators(one).own_estimators[0] for one in asked]
    assert checked[0].digest != checked[1].digest
    assert checked[0].title == "pipeline"
    direct = Evaluation(estimators=[own_models.pipeline(C=0.5)]).own_estimators[0]
    assert checked[0].digest == direct.digest, "however it is given, it is the same classifier"
    info = estimator_infos(asked[0])["pipeline"]
    assert (info.package, info.digest) == ("scikit-learn", direct.digest)
    assert info.version


def test_each_fit_has_steps_of_its_own() -> None:
    """Strategies train side by side, and a factory's module may make a step once for all."""
    asked = OwnEstimator.of(own_models.shared)
    first, second = make_classifier(asked), make_classifier(asked)
    assert first.named_steps["standardscaler"] is not second.named_steps["standardscaler"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("margins", {}, "LinearSVC has no predict_proba"),
        ("nothing", {}, "dict is no scikit-learn classifier"),
        ("linear", {}, "is LogisticRegression and no function"),
        ("absent", {}, "cannot be imported"),
        ("neighbours", {"k": 3}, "could not be made with k=3: TypeError"),
        ("flat_net", {"width": 3}, "could not be made with n_classes=2, size=32"),
    ],
)
def test_an_unusable_factory_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        check_estimators(factory(name, **options))


def test_what_a_worker_does_not_follow_or_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_IMPORT_PATHS)
    with pytest.raises(ParameterError, match=f"set {ALLOW_IMPORT_PATHS}=1"):
        check_estimators(factory("pipeline"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install lightgbm"):
        check_estimators(Evaluation(estimators=["boosting", "lightgbm"]))


@pytest.mark.parametrize(
    ("estimators", "words"),
    [
        ([LinearSVC()], "has no predict_proba"),
        ([3], "holds int 3"),
        (["boosting", DummyClassifier()], "which decides alone"),
        ([DummyClassifier(), DummyClassifier()], "twice"),
        ([{"options": {"C": 1}}], "factory is empty"),
        ([make_pipeline(FunctionTransformer(lambda X: X), DummyClassifier())], "cannot be hashed"),
    ],
)
def test_params_refuse_what_cannot_decide(estimators: list[Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Evaluation(estimators=estimators)


def test_modules_are_for_images_and_classifiers_for_tables() -> None:
    pytest.importorskip("torch")
    check_modality(Evaluation(), "image")
    check_modality(factory("flat_net"), "image")
    with pytest.raises(ParameterError, match="makes torch modules for images"):
        check_modality(factory("flat_net"), "table")
    with pytest.raises(ParameterError, match="returns a torch module"):
        check_modality(Evaluation(estimators=[RandomForestClassifier()]), "image")
    given = Evaluation(estimators=[own_models.flat_net])
    assert check_estimators(given).own_estimators[0].title == "flat_net"
    named = OwnEstimator.of(own_models.flat_net, name="mine")
    assert Evaluation(estimators=[named]).own_estimators[0].title == "mine"
