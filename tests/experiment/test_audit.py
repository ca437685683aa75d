"""Cleaning is tried where the data as they are doubt their labels."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shapes import image_table
from support.staging import ingested
from support.steps import experiment_of, planned_experiment, strategies_of

from prefect_augment.experiment.audit import audit_list, has_doubted_labels, why_not_audited
from prefect_augment.experiment.score import score
from prefect_augment.params import Budget, Evaluation, NoModel, Publish, Report
from prefect_augment.report.build import report
from prefect_augment.schema import Experiment, Release, Strategy, StrategyScore
from prefect_augment.storage import Store

EVALUATION = Evaluation(estimators=["logistic"], n_seeds=1, n_bootstrap=100)
PARAMS = {"model": NoModel(), "evaluation": EVALUATION}
(AS_IS,) = strategies_of("as_is")
CLEAN = Strategy(name="clean labels", family="clean", doubted_weight=0.25)


def planted(flipped: float, store: Store, folder: Path) -> Experiment:
    """Two classes that one column tells apart, a share of whose labels are wrong."""
    rng = np.random.default_rng(0)
    rare = np.arange(500) % 5 == 0
    x, y = rng.normal(size=500) + 8 * rare, rare ^ (rng.random(500) < flipped)
    table = pa.table({"x": x, "state": np.where(y, "rare", "common")})
    return planned_experiment(ingested(table, folder, store), store, **PARAMS)


@pytest.mark.parametrize("flipped", [0.0, 0.05])
def test_planted_label_errors_are_doubted(flipped: float, store: Store, tmp_path: Path) -> None:
    asked = planted(flipped, store, tmp_path)
    first = [score(asked, AS_IS, 0, store)]
    assert has_doubted_labels(asked, first, store) == (flipped > 0)
    assert not has_doubted_labels(asked, [], store), "nothing was compared yet"
    for publish in (Publish(materialise="copies"), Publish(origins=["synthetic"])):
        other = experiment_of(asked.dataset, asked.plan, **PARAMS, publish=publish)
        assert not has_doubted_labels(other, first, store), "no real record could count less"


@pytest.mark.slow
def test_the_report_shows_the_likeliest_label_errors(store: Store, tmp_path: Path) -> None:
    asked = planted(0.05, store, tmp_path)
    scores = tuple(score(asked, strategy, 0, store) for strategy in (AS_IS, CLEAN))
    page, _ = report(Release(experiment=asked, scores=scores), store, status="evaluated")
    info = json.loads(store.read(f"{page.prefix}/report.json"))
    audit = pq.read_table(io.BytesIO(store.read(f"{page.prefix}/audit.parquet")))
    n_doubted = audit.filter(audit["doubted"]).num_rows
    assert n_doubted >= 10
    assert len(info["doubted"]) == min(n_doubted, 20)
    for row in info["doubted"]:  # 4 lies halfway between the classes
        assert row["suggested"] == ("rare" if float(row["record"]["x"]) > 4 else "common")
        assert row["label"] != row["suggested"]
        assert "state" not in row["record"]
    assert "Labels to look at" in store.read(f"{page.prefix}/report.html").decode()


@pytest.mark.slow
def test_a_report_on_sound_labels_has_none_to_look_at(store: Store, tmp_path: Path) -> None:
    asked = planted(0.0, store, tmp_path)
    scores = (score(asked, CLEAN, 0, store),)
    page, _ = report(Release(experiment=asked, scores=scores), store, status="evaluated")
    assert json.loads(store.read(f"{page.prefix}/report.json"))["doubted"] == []
    assert "audit.parquet" in page.files
    assert "Labels to look at" not in store.read(f"{page.prefix}/report.html").decode()


N_OF = {"bright": 120, "striped": 60, "dark": 40}
N_FLIPPED = 10
BY_STEPS = Budget(steps=1, device="cpu")


@pytest.fixture(scope="module")
def flipped(memory_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Three kinds of noise, ten of whose labels are wrong; two pictures twice with two labels, one a bit brighter."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    true = np.repeat(list(N_OF), list(N_OF.values()))
    given = true.copy()
    wrong = rng.choice(len(true), N_FLIPPED, replace=False)
    given[wrong] = np.roll(list(N_OF), 1)[[list(N_OF).index(name) for name in true[wrong]]]
    images, paths = [], []
    for i, kind in enumerate(true):
        pixels = rng.integers(0, 140, (12, 12)) + 110 * (kind == "bright")
        pixels[:, :: 2 if kind == "striped" else 99] += 100
        images.append(pixels.astype(np.uint8))
        paths.append(f"{'wrong' if i in wrong else 'right'}/{kind}/{i}.png")
    right = np.setdiff1d(np.flatnonzero(true == "bright"), wrong)[0]
    table = image_table(
        [*images, images[right], images[-1] + 1],  # the last one is a dark one
        [*given, "dark", "striped"],
        [*paths, "wrong/twice.png", "wrong/nearly.png"],
    )
    dataset = ingested(table, tmp_path_factory.mktemp("flipped"), memory_store, "label")
    changes = {"classifier_steps": 90, "n_folds": 1}
    return planned_experiment(dataset, memory_store, changes=changes, **PARAMS, budget=BY_STEPS)


@pytest.mark.slow
def test_flipped_labels_of_images_are_at_the_top_of_the_list_and_their_pictures_in_the_report(
    flipped: Experiment, memory_store: Store
) -> None:
    scores = (score(flipped, AS_IS, 0, memory_store),)
    page, _ = report(Release(experiment=flipped, scores=scores), memory_store, status="evaluated")
    info = json.loads(memory_store.read(f"{page.prefix}/report.json"))
    listed = pq.read_table(io.BytesIO(memory_store.read(f"{page.prefix}/audit.parquet")))
    assert listed == audit_list(flipped, memory_store), "the same again"
    assert listed["score"].to_pylist() == sorted(listed["score"].to_pylist(), reverse=True)
    of = dict(zip(listed["aug_id"].to_pylist(), listed["reason"].to_pylist(), strict=True))
    shown = info["doubted"]
    assert len(shown) >= 5, "of those that are not in the hold-out"
    assert all(row["record"]["file"].startswith("wrong") for row in shown)
    for row in shown:
        assert "the label is doubted" in of[row["aug_id"]]
        assert memory_store.read(f"{page.prefix}/{row['picture']}").startswith(b"\x89PNG")
    for kind in ("equal to", "a near-duplicate of"):
        assert sum(f"{kind} a record with another label" in why for why in of.values()) == 2
    html = memory_store.read(f"{page.prefix}/report.html").decode()
    assert html.count('alt="An image with the label') == len(shown)
    params = flipped.params.model_copy(update={"report": Report(pictures="synthetic")})
    hidden = flipped.model_copy(update={"params": params})
    page, _ = report(Release(experiment=hidden, scores=scores), memory_store, status="evaluated")
    assert not [name for name in page.files if name.startswith("doubted")]
    assert json.loads(memory_store.read(f"{page.prefix}/report.json"))["doubted"] == []


def test_images_are_audited_where_a_tenth_of_the_minutes_is_enough(flipped: Experiment) -> None:
    taken = StrategyScore(
        strategy=AS_IS, seed=0, score=0.5, seconds=20.0, n_train=1, n_validation=1, estimators={}
    )
    hurried = experiment_of(flipped.dataset, flipped.plan, budget=Budget(minutes=2))
    assert "more than a tenth of the 2 minutes" in (why_not_audited(hurried, [taken]) or "")
    patient = experiment_of(flipped.dataset, flipped.plan, budget=Budget(minutes=4))
    assert why_not_audited(patient, [taken]) is None
    assert why_not_audited(flipped, [taken]) is None, "with budget.steps time plays no part"
    assert why_not_audited(patient, []) == "", "nothing was compared"
