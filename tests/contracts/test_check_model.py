"""`check_model` passes every model of ours and the template of the docs, and names what others break."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from prefect_augment import check_model
from prefect_augment.genmodels.trees.model import TableTrees
from prefect_augment.params import ModelParams, TreesModel
from prefect_augment.registry import MODELS, load_model_class, model_params

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_model.md"


def template() -> Any:
    (code,) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    )[:1]
    names: dict[str, Any] = {}
    exec(compile(code, "own_model.md", "exec", dont_inherit=True), names)
    return names["Shuffle"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "modality"), [("trees", "table"), ("vae", "table"), ("vae", "image")]
)
def test_models_of_ours_keep_the_contract(kind: str, modality: Any) -> None:
    pytest.importorskip(MODELS[kind].extra or "numpy", reason="its extra")
    params = model_params(
        TypeAdapter(ModelParams).validate_python({"kind": kind}), modality=modality
    )
    check_model(
        load_model_class(kind, modality=modality), params=params, modality=modality, steps=4
    )


def test_the_template_of_the_docs_keeps_it() -> None:
    check_model(template())


class Trees(TableTrees):
    """A model of ours, to be broken."""


def broken(**methods: Any) -> Any:
    return type("Broken", (Trees,), methods)


def wrong_shape(self: Any, conditions: Any, *, seeds: Any) -> NDArray[np.float64]:
    X = TableTrees.sample(self, conditions, seeds=seeds)
    return np.column_stack([X, X])


def forgets_seeds(self: Any, conditions: Any, *, seeds: Any) -> NDArray[np.float64]:
    return TableTrees.sample(self, conditions, seeds=np.arange(len(seeds)))


def unknown_levels(self: Any, conditions: Any, *, seeds: Any) -> NDArray[np.float64]:
    X = TableTrees.sample(self, conditions, seeds=seeds)
    X[:, 1:] = 2
    return X


def looks_around(self: Any, conditions: Any, *, seeds: Any) -> NDArray[np.float64]:
    X = TableTrees.sample(self, conditions, seeds=seeds)
    X[:, :1] += len(seeds)
    return X


def keeps_objects(self: Any) -> Any:
    config, arrays = TableTrees.state(self)
    return config, {**arrays, "mine": np.array([{}], dtype=object)}


def says_nothing(self: Any, data: Any, ctx: Any) -> None:
    TableTrees.fit(self, data, replace(ctx, report=lambda step, scalars: None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "why"),
    [
        (
            {"sample": wrong_shape},
            r"one record per condition: expected the shape \(48, 2\), found \(48, 4\)",
        ),
        (
            {"sample": forgets_seeds},
            "the same seed gives the same record: other seeds gave the same",
        ),
        (
            {"sample": unknown_levels},
            "values stay in their domain: training has the levels 0 and 1",
        ),
        ({"sample": looks_around}, "a record depends on its class and seed alone: the first seven"),
        (
            {"state": keeps_objects},
            "the state is json and arrays: expected numpy arrays .* not mine",
        ),
        ({"fit": says_nothing}, "progress is reported: ctx.report was never called"),
        ({"n_steps": property(lambda self: 1 / 0)}, "raised ZeroDivisionError"),
    ],
)
def test_what_is_broken_is_named(methods: dict[str, Any], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        check_model(broken(**methods), params=TreesModel())
