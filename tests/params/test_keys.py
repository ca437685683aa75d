"""What names the outcome of a step: every parameter that changes bytes counts, and no other."""

import re
from typing import Any

import pytest

from prefect_augment import params
from prefect_augment.params import Evaluation, Quality, RunParams
from prefect_augment.params.keys import STEPS, UNUSED, Step, canonical_json, step_key

# The sections of all flows, by the name that they have in params and in STEPS.
SECTIONS: dict[str, type] = {
    **{
        name: field.annotation
        for name, field in RunParams.model_fields.items()
        if name not in ("seed", "model")
    },
    "source": params.Source,
    "destination": params.Destination,
    "approval": params.Approval,
    "answer": params.Answer,
    "compute": params.Compute,
    "output": params.Output,
    "anomalies": params.Anomalies,
    "reconstruction": params.Reconstruction,
    "denoising": params.Denoising,
    "interpolation": params.Interpolation,
    "attribute_shift": params.AttributeShift,
    "classification": params.Classification,
}
FIELDS = [
    f"{section}.{field}" for section, kind in SECTIONS.items() for field in kind.model_fields
] + ["model"]
USED = {path for step in STEPS.values() for path in step.uses}


def is_in(path: str, paths: Any) -> bool:
    return path in paths or path.partition(".")[0] in paths


@pytest.mark.parametrize("path", FIELDS)
def test_a_parameter_changes_a_key_or_has_a_reason_not_to(path: str) -> None:
    if path in UNUSED:  # of a section that a step uses as a whole, it is left out
        assert path not in USED
    else:
        assert is_in(path, USED) != is_in(path, UNUSED), path


def test_no_step_uses_a_parameter_that_is_not_there() -> None:
    known = {*FIELDS, *SECTIONS}
    assert known >= USED
    assert set(UNUSED) <= known
    assert all(len(reason) > 10 for reason in UNUSED.values())


@pytest.fixture
def _step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "s", Step(1, ("evaluation.n_seeds", "quality", "budget.steps")))
    monkeypatch.setitem(STEPS, "other", Step(1, STEPS["s"].uses))


@pytest.mark.usefixtures("_step")
@pytest.mark.parametrize(
    "change",
    [
        {"params": RunParams(evaluation=Evaluation(n_seeds=5))},
        {"params": RunParams(quality=Quality(min_coverage=0.1))},
        {"inputs": ["y", "x"]},
        {"seed": 1},
        {"step": "other"},
    ],
)
def test_everything_that_changes_bytes_changes_the_key(change: dict[str, Any]) -> None:
    given = {"step": "s", "params": RunParams(), "inputs": ["x", "y"], "seed": 0}
    assert step_key(**given) != step_key(**{**given, **change})
    assert step_key(**given) == step_key(**given)


@pytest.mark.usefixtures("_step")
def test_another_version_of_a_step_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = step_key("s", RunParams())
    monkeypatch.setitem(STEPS, "s", Step(2, STEPS["s"].uses))
    assert step_key("s", RunParams()) != before


@pytest.mark.usefixtures("_step")
def test_what_changes_no_byte_changes_no_key() -> None:
    key = step_key("s", RunParams())
    assert re.fullmatch(r"[0-9a-f]{24}", key)
    assert step_key("s", RunParams(evaluation=Evaluation(n_settings=1))) == key
    assert step_key("s", RunParams(quality=Quality(on_leak="fail"))) == key


@pytest.mark.usefixtures("_step")
def test_sections_by_name_are_the_parameters_of_a_run() -> None:
    run = RunParams(quality=Quality(purpose="faithful"))
    sections = {"budget": run.budget, "quality": run.quality, "evaluation": run.evaluation}
    assert step_key("s", sections) == step_key("s", run)


def test_the_order_of_names_does_not_change_the_json() -> None:
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_params_models_are_taken_by_value() -> None:
    assert canonical_json(Evaluation()) == canonical_json(Evaluation())
    assert canonical_json(Evaluation()) != canonical_json(Evaluation(n_seeds=5))
    with pytest.raises(TypeError, match="no canonical JSON"):
        canonical_json(object())
