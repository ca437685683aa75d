"""An encoder in the comparison of images: features of records from their files, each computed once."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch", reason="the extra 'torch'")
pytest.importorskip("onnxruntime", reason="the extra 'encoder'")

from support.encoders import encoder_bytes, encoder_params
from support.shapes import image_table
from support.staging import ingested
from support.steps import planned_experiment

from prefect_augment.encoding.arrays import Labelled, training_table
from prefect_augment.experiment import image_evaluator as module
from prefect_augment.experiment.audit import audit_list
from prefect_augment.experiment.evaluator import FilterQuery
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.image_evaluator import ImageEvaluator
from prefect_augment.experiment.score import score
from prefect_augment.loading.encoder import FeatureEncoder
from prefect_augment.params import Budget, Encoder, NoModel
from prefect_augment.plan.strategies import PROBE
from prefect_augment.report.build import report
from prefect_augment.schema import Experiment, Release
from prefect_augment.shards.staged import read_part
from prefect_augment.storage import Store, open_store

SIDE = 80  # more than the comparison's 64
DATA = encoder_bytes(shape=("n", 1, SIDE, SIDE))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One that has no features yet."""
    return open_store(str(tmp_path / "out"))


def columns_of_noise(n_moved: int = 0) -> pa.Table:
    """Bright and dark noise: 40 and 20 pictures; the first of the bright ones again as dark ones, far moved."""
    rng = np.random.default_rng(0)
    labels = ["bright"] * 40 + ["dark"] * 20
    kinds = [((120, 256) if label == "bright" else (0, 140)) for label in labels]
    pixels = [rng.integers(*kind, (SIDE, SIDE)).astype(np.uint8) for kind in kinds]
    pixels += [np.roll(image, SIDE // 2, axis=0) for image in pixels[:n_moved]]
    return image_table(pixels, labels + ["dark"] * n_moved)


def asked(store: Store, folder: Path, encoder: Encoder, n_moved: int = 0) -> Experiment:
    dataset = ingested(columns_of_noise(n_moved), folder, store, "label")
    params = {"model": NoModel(), "encoder": encoder, "budget": Budget(steps=1)}
    changes = {"classifier_steps": 2, "n_folds": 1}
    return planned_experiment(dataset, store, changes=changes, **params)


def opened(store: Store, folder: Path, encoder: Encoder) -> ImageEvaluator:
    evaluator = open_evaluator(store, asked(store, folder, encoder))
    assert isinstance(evaluator, ImageEvaluator)
    return evaluator


@pytest.fixture
def n_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call to the encoder had."""
    counts: list[int] = []
    original = FeatureEncoder.features

    def counted(self: FeatureEncoder, images: Any) -> Any:
        counts.append(len(images))
        return original(self, images)

    monkeypatch.setattr(FeatureEncoder, "features", counted)
    return counts


def test_features_are_those_of_the_files_and_are_computed_once(
    store: Store, tmp_path: Path, n_encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = opened(store, tmp_path, encoder_params(tmp_path, DATA))
    X, encoder = evaluator.records.X, evaluator.encoder
    assert X.shape[1] == 64
    table, _ = training_table(store, evaluator.info)
    of_files = encoder.features(table["image"])
    n_encoded.clear()
    assert np.array_equal(evaluator.features(X), of_files)
    assert np.array_equal(evaluator.features(X[5:8]), of_files[5:8])
    assert sum(n_encoded) == len(X)
    changed = 255 - X[:3]  # pixels that no record has
    assert np.array_equal(evaluator.features(changed), encoder.features(changed))
    monkeypatch.setattr(module, "_features", type(module._features)())  # another worker
    n_encoded.clear()
    assert np.array_equal(evaluator.features(X), of_files)
    assert sum(n_encoded) == 0, "the features are staged"
    held_out = read_part(store, evaluator.info, ["holdout"])
    known = evaluator.read(held_out).X
    assert np.array_equal(evaluator.features(known), encoder.features(held_out["image"]))


def test_a_probe_is_fixed_and_weighted_by_its_amount(store: Store, tmp_path: Path) -> None:
    evaluator = opened(store, tmp_path, encoder_params(tmp_path, DATA))
    assert evaluator.is_fixed(PROBE)
    rows, X = np.arange(len(evaluator.records.y)), evaluator.records.X
    shares = {}
    for amount in (0.25, 1.0):
        one = PROBE.model_copy(update={"amount": amount, "C": 0.0001})
        ((name, proba),) = evaluator.predictions(one, rows, X, synthetic=None, seed=amount == 1.0)
        assert name == "convolutional"
        shares[amount] = proba[:, evaluator.records.classes.index("dark")].mean()
    assert shares[1.0] > shares[0.25] + 0.05
    assert shares[1.0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_the_audit_lists_what_is_alike_in_features_alone(store: Store, tmp_path: Path) -> None:
    data = encoder_bytes(shape=("n", 1, SIDE, SIDE), n_features=64)
    experiment = asked(store, tmp_path, encoder_params(tmp_path, data), n_moved=6)
    scores = (score(experiment, PROBE, 0, store),)
    page, _ = report(Release(experiment=experiment, scores=scores), store, status="evaluated")
    listed = pq.read_table(io.BytesIO(store.read(f"{page.prefix}/audit.parquet")))
    pairs = listed.filter(pc.match_substring(listed["reason"], "alike in your encoder's features"))
    assert 4 <= pairs.num_rows <= 12, "of those that are not in the hold-out"
    assert set(pairs["label"].to_pylist()) == {"bright", "dark"}
    assert all("to a record with another label" in reason for reason in pairs["reason"].to_pylist())
    notes = json.loads(store.read(f"{page.prefix}/report.json"))["method_notes"]
    said = f"by the features of your encoder encoder.onnx {pairs.num_rows} more are so alike."
    assert any(said in note for note in notes)
    plain = experiment.params.model_copy(update={"encoder": Encoder()})
    alone = audit_list(experiment.model_copy(update={"params": plain}), store)
    assert not pc.any(pc.match_substring(alone["reason"], "alike")).as_py()


@pytest.mark.slow
def test_the_filter_encodes_images_once(store: Store, tmp_path: Path, n_encoded: list[int]) -> None:
    evaluator = opened(store, tmp_path, encoder_params(tmp_path, DATA))
    data = evaluator.records
    n_encoded.clear()
    query = FilterQuery(
        training=np.flatnonzero(~data.is_validation),
        validation=np.flatnonzero(data.is_validation),
        candidates=Labelled(255 - data.X[:30], data.strata[:30]),
        ordinals=np.arange(30),
        seed=0,
        metrics=True,
    )
    outcome = evaluator.filter(query)
    assert sum(n_encoded) == len(data.X) + 30
    assert "features of your encoder encoder.onnx (sha256 " in outcome.feature_space
