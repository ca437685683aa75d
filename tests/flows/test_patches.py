"""A run in which patch features win: published, and applied by the recipe to the score that the report claims."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'torch'")
pytest.importorskip("albumentations", reason="the extra 'images'")

from support.shapes import pictures
from support.tables import source_of

from prefect_augment import PatchClassifier, RecipeClassifier, open_dataset
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Budget, Classic, Destination, Evaluation, NoModel
from prefect_augment.schema import RunResult

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs", "few_steps")]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("patches")
    named = pictures().rename_columns(["photo", "kind"])
    result = rebalance.fn(
        source=source_of(named, folder / "shapes.parquet", "kind"),
        destination=Destination(uri=str(folder / "out")),
        model=NoModel(),
        classic=Classic(image="none"),
        budget=Budget(steps=40, device="cpu"),
        evaluation=Evaluation(n_seeds=1, n_settings=2, n_bootstrap=200),
    )
    return result, folder


def test_the_recipe_reaches_the_reports_score_from_files(published: tuple[RunResult, Path]) -> None:
    result, folder = published
    verdict, dataset = result.verdict, open_dataset(folder / "out")
    assert verdict is not None
    assert verdict.published == dataset.recipe.strategy.name == "patch features"
    train, holdout = dataset.to_table(), dataset.to_table("holdout")
    model = RecipeClassifier(PatchClassifier.of(dataset.recipe), dataset.recipe, random_state=0)
    model.fit(train["photo"], train["kind"], sample_weight=dataset.sample_weight())
    right = model.predict(holdout["photo"]) == np.array(holdout["kind"].to_pylist())
    of_class = [right[np.array(holdout["kind"]) == name].mean() for name in dataset.classes]
    claimed = verdict.balanced_accuracy["patch features"]
    assert claimed.low <= np.mean(of_class) <= claimed.high
    assert claimed.low > verdict.balanced_accuracy["as is"].estimate


def test_the_report_shows_how_to_train_it(published: tuple[RunResult, Path]) -> None:
    result, _ = published
    page = Path(result.report).read_text()
    assert "PatchClassifier.of(data.recipe)" in page
    assert 'model.fit(train["photo"], train["kind"]' in page
