"""The measures that docs/verdict.md shows decide whole runs, from YAML and from Python."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from prefect.utilities.schema_tools import validate

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.chosen_measure import measure_of
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Destination, Evaluation, Metric, NoModel, Source
from prefect_augment.schema import RunResult

PAGE = Path(__file__).parents[2] / "docs" / "verdict.md"
SECTION = PAGE.read_text("utf-8").partition("## The measure\n")[2].partition("\n## ")[0]
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)]
QUICK = {"n_seeds": 1, "n_settings": 1, "n_bootstrap": 200, "estimators": ["logistic"]}

pytestmark = pytest.mark.usefixtures("quick_runs")


def run(source: Source, evaluation: Any) -> RunResult:
    given = {"evaluation": evaluation, "model": NoModel(), "source": source}
    given["destination"] = Destination(uri=str(Path(source.uri).parent / "out"))
    return rebalance.fn(**rebalance.validate_parameters(given))


def share_right(y_true: NDArray[Any], proba: NDArray[np.float64], classes: list[str]) -> float:
    return float(np.mean(np.asarray(classes)[np.argmax(proba, axis=1)] == y_true))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: str(e["evaluation"]["metric"])[:30])
def test_an_example_of_the_page_decides_a_run(source: Source, example: dict[str, Any]) -> None:
    result = run(source, example["evaluation"] | QUICK)
    metric = Evaluation(metric=example["evaluation"]["metric"]).metric
    for score in result.strategies:
        (estimator,) = score.estimators.values()
        assert score.score == pytest.approx(
            estimator.macro_f1
            if metric.name == "macro_f1"
            else (-1 if metric.name == "cost" else 1) * (estimator.metric or 0)
        )
        assert (score.measure.unit == "plain") == (metric.name == "cost")
    by_family = {s.strategy.family: s for s in result.strategies}
    if metric.name == "cost":
        best = max(result.strategies, key=lambda s: s.score)
        assert best.score > by_family["as_is"].score, "rare classes are dear"


@pytest.mark.slow
def test_a_function_given_in_python_decides_a_run(source: Source) -> None:
    result = run(source, {"metric": share_right, **QUICK})
    scores = {s.strategy.name: s.score for s in result.strategies}
    assert result.verdict is not None
    assert scores["as is"] > max(scores.values()) - 0.02, "rebalancing costs accuracy"


@pytest.mark.slow
def test_the_form_takes_a_metric_by_its_fields() -> None:
    schema = rebalance.parameters.model_dump()
    for example in EXAMPLES:
        metric = Evaluation(metric=example["evaluation"]["metric"]).metric
        rows = {"evaluation": {"metric": metric.model_dump(mode="json")}}
        validate(rows, schema, raise_on_error=True, ignore_required=True)
        assert rebalance.validate_parameters(rows)["evaluation"].metric == metric


def test_the_function_of_the_page_is_a_metric() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    example: dict[str, Any] = {"__name__": "example"}
    exec(block, example)
    measure = measure_of(
        example["evaluation"].metric,
        classes=("ok", "cracked"),
        compared=np.ones(2, dtype=bool),
        counts=np.array([9, 1]),
    )
    y, proba = np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.5, 0.5], [0.4, 0.6]])
    assert measure.value(y, proba, y) == 0.5


def test_a_misspelt_metric_is_refused_before_the_source_is_opened() -> None:
    nowhere = Source(uri="nowhere.parquet", label="state")
    with pytest.raises(ParameterError, match="did you mean 'macro_f1'"):
        rebalance.fn(source=nowhere, evaluation=Evaluation(metric=Metric(name="macro_f")))


@pytest.mark.slow
def test_a_class_that_the_data_do_not_have_is_refused_before_work(source: Source) -> None:
    with pytest.raises(ParameterError, match="did you mean 'cracked'"):
        run(source, {"metric": {"name": "f_beta", "label": "craked"}, **QUICK})
    with pytest.raises(ParameterError, match="too few records to be compared"):
        run(source, {"metric": {"name": "f_beta", "label": "lost"}, **QUICK})
