"""A linear classifier on patches of the images: what it sees, and how it is weighted."""

import numpy as np
import pytest

pytest.importorskip("torch")

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.estimators.recipe_classifier import RecipeClassifier
from prefect_augment.evaluation.classifiers import patch_features
from prefect_augment.evaluation.classifiers.patch_features import (
    PatchClassifier,
    _draw_in_proportion,
    fit_patches,
)
from prefect_augment.schema import Recipe, Strategy

RNG = np.random.default_rng(0)


def spotted(n: int, *, share: float = 0.5, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noise; class 1 has a bright line of four pixels somewhere."""
    images = RNG.integers(100, 140, (n, side, side, 1)).astype(np.uint8)
    y = (RNG.random(n) < share).astype(np.int64)
    for i in np.flatnonzero(y):
        row, column = RNG.integers(2, side - 6, 2)
        images[i, row, column : column + 4] = 250
    return images, y


TRAINING, TEST = spotted(150), spotted(100)
FEW = {"n_classes": 2, "seed": 0, "n_filters": 30}


def test_a_small_mark_anywhere_is_found() -> None:
    fitted = fit_patches(*TRAINING, **FEW)
    proba = fitted.predict_proba(TEST[0])
    assert proba.shape == (100, 2)
    assert np.allclose(proba.sum(axis=1), 1)
    assert (proba.argmax(axis=1) == TEST[1]).mean() > 0.95


def test_the_seed_decides_and_the_batch_does_not() -> None:
    first, again = (fit_patches(*TRAINING, **FEW).predict_proba(TEST[0]) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.allclose(
        first, fit_patches(*TRAINING, **FEW | {"seed": 1}).predict_proba(TEST[0])
    )


@pytest.mark.parametrize("mirroring", ["horizontal", "both"])
def test_mirrored_images_have_the_same_probabilities(mirroring: str) -> None:
    fitted = fit_patches(*TRAINING, **FEW, mirroring=mirroring)  # type: ignore[arg-type]
    images = TEST[0][:10]
    axes = 2 if mirroring == "horizontal" else (1, 2)
    # Parts of the image change places with its sides, but its features are those of both.
    features = [fitted.filters.features(x) for x in (images, np.flip(images, axes))]
    np.testing.assert_allclose(*[f.numpy() for f in features], atol=2e-2)


def test_weights_are_numbers_of_records_and_images_may_be_shared() -> None:
    images, y = TRAINING
    weights = np.where(y == 1, 3.0, 1.0)
    rows = np.arange(len(y))
    n_known = fit_patches(images, y, **FEW, weights=weights).predict_proba(TEST[0])
    shared = fit_patches(images, y, **FEW, weights=weights, rows=rows).predict_proba(TEST[0])
    assert np.array_equal(n_known, shared)
    rare = fit_patches(images, y, **FEW, weights=np.where(y == 1, 0.05, 1.0)).predict_proba(TEST[0])
    assert rare[:, 1].mean() < n_known[:, 1].mean()


def test_of_many_records_the_heavy_ones_are_drawn_and_the_weights_keep_their_sums() -> None:
    share = np.repeat([0.5 / 2000, 0.5 / 40], [2000, 40])
    rows, weights = _draw_in_proportion(share, 300, seed=3)
    assert len(rows) == len(set(rows.tolist())) == 300
    assert (rows >= 2000).sum() == 40
    assert weights[rows < 2000].sum() == pytest.approx(0.5)
    assert weights[rows >= 2000].sum() == pytest.approx(0.5)


def test_patches_of_many_records_learn_from_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_features, "MOST_RECORDS", 100)
    fitted = fit_patches(*TRAINING, **FEW)
    assert (fitted.predict_proba(TEST[0]).argmax(axis=1) == TEST[1]).mean() > 0.9


def test_a_class_without_records_has_probability_zero() -> None:
    proba = fit_patches(*TRAINING, **FEW | {"n_classes": 3}).predict_proba(TEST[0])
    assert not proba[:, 2].any()
    with pytest.raises(EmptyClassError):
        fit_patches(*TRAINING, **FEW, weights=np.zeros(len(TRAINING[1])))


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(ParameterError, match="5 by 8 pixels"):
        fit_patches(TRAINING[0][:, :5, :8], TRAINING[1], **FEW)


def test_equal_images_are_no_error() -> None:
    images = np.full((20, 8, 8, 3), 7, dtype=np.uint8)
    proba = fit_patches(images, np.arange(20) % 2, **FEW).predict_proba(images)
    assert np.allclose(proba, 0.5)


def test_the_classifier_of_a_recipe_keeps_names_and_settings() -> None:
    strategy = Strategy(
        name="patch features", family="weights", patches=20, C=0.5, mirroring="horizontal"
    )
    recipe = Recipe(
        strategy=strategy, class_weight={}, synthetic={}, classic={}, copies={}, sentence=""
    )
    model = PatchClassifier.of(recipe).set_params(random_state=0)
    assert (model.n_filters, model.C, model.mirroring) == (20, 0.5, "horizontal")
    names = np.array(["good", "bad"])[TRAINING[1]]
    model.fit(TRAINING[0], names, sample_weight=np.ones(len(names)))
    assert list(model.classes_) == ["bad", "good"]
    assert (model.predict(TEST[0]) == np.array(["good", "bad"])[TEST[1]]).mean() > 0.9
    by_recipe = recipe.model_copy(
        update={"thresholds": {"patch features": {"good": 1.0, "bad": 1e6}}}
    )
    wrapped = RecipeClassifier(model, by_recipe).fit(TRAINING[0], names, np.ones(len(names)))
    assert set(wrapped.predict(TEST[0])) == {"bad"}, "by the recipe's own thresholds"
    plain = recipe.model_copy(update={"strategy": Strategy(name="as is", family="as_is")})
    with pytest.raises(ParameterError, match="no patch features"):
        PatchClassifier.of(plain)


def test_files_without_the_comparisons_size_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"use PatchClassifier\.of\(recipe\), or give squares"):
        PatchClassifier().fit([{"bytes": b"", "path": None}], ["good"])
