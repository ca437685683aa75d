"""A parameter that changes bytes is in the key of a step: a forgotten one would give a stale result."""

import inspect
import re
import typing

import pytest
from pydantic import BaseModel

from prefect_augment import params as package
from prefect_augment.params.base import Params
from prefect_augment.params.keys import STEPS, UNUSED, step_key

# Sections by the name that steps know them by: those of flows, and those of the uses of latents.
SECTIONS: dict[str, type[Params]] = {
    "source": package.Source,
    "destination": package.Destination,
    "balance": package.Balance,
    "classic": package.Classic,
    "encoder": package.Encoder,
    "budget": package.Budget,
    "evaluation": package.Evaluation,
    "quality": package.Quality,
    "approval": package.Approval,
    "answer": package.Answer,
    "publish": package.Publish,
    "report": package.Report,
    "compute": package.Compute,
    "output": package.Output,
    "anomalies": package.Anomalies,
    "reconstruction": package.Reconstruction,
    "denoising": package.Denoising,
    "interpolation": package.Interpolation,
    "attribute_shift": package.AttributeShift,
    "classification": package.Classification,
}


def known_params() -> set[type[Params]]:
    """Every class of parameters that the package offers."""
    return {c for c in vars(package).values() if inspect.isclass(c) and issubclass(c, Params)}


def nested(section: type[BaseModel]) -> set[type]:
    """The classes that a section holds in lists or unions."""
    found: set[type] = set()
    waiting = [field.annotation for field in section.model_fields.values()]
    while waiting:
        kind = waiting.pop()
        waiting += typing.get_args(kind)
        if inspect.isclass(kind) and issubclass(kind, BaseModel) and kind not in found:
            found.add(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
    return found


def test_every_class_of_parameters_is_a_section_or_part_of_one() -> None:
    models = {
        c for c in known_params() if "kind" in c.model_fields and c.__name__.endswith("Model")
    }
    parts = {kind for section in SECTIONS.values() for kind in nested(section)}
    parts |= {kind for model in models for kind in nested(model)}
    # RunParams and the form bundle sections, `model` is one whole section whatever its kind.
    bundles = {package.RunParams, package.TableSettings, package.ImageSettings}
    assert known_params() - set(SECTIONS.values()) - parts - models == bundles


@pytest.mark.parametrize("name", [*SECTIONS, "model"])
def test_every_field_is_in_a_key_or_changes_no_byte(name: str) -> None:
    used = {path for step in STEPS.values() for path in step.uses}
    if name in used or name in UNUSED:
        return  # the whole section, but for the fields that are listed as unused
    fields = {f"{name}.{field}" for field in SECTIONS[name].model_fields}
    assert fields - used - set(UNUSED) == set()


def test_what_is_listed_is_there_and_is_not_both_used_and_unused() -> None:
    used = {path for step in STEPS.values() for path in step.uses}
    assert used & set(UNUSED) == set()
    for path in used | set(UNUSED):
        section, _, field = path.partition(".")
        assert section == "model" or section in SECTIONS
        assert not field or field in SECTIONS[section].model_fields, path
    assert all(re.fullmatch(r"[a-z].*[^.]", reason) for reason in UNUSED.values())


def test_a_key_changes_with_what_is_used_and_with_nothing_else() -> None:
    run = package.RunParams()

    def key(**changes: object) -> str:
        return step_key("confirm", run.model_copy(update=changes), inputs=["dataset"], seed=1)

    assert key() == key()
    assert key() != key(quality=package.Quality(near_copy_quantile=0.1))
    assert key() != key(evaluation=package.Evaluation(n_bootstrap=100))
    assert key() == key(quality=package.Quality(on_leak="fail"))
    assert key() == key(report=package.Report(pictures="none"))
    assert step_key("filter", run, inputs=["a"]) != step_key("filter", run, inputs=["b"])
    assert step_key("filter", run, seed=1) != step_key("filter", run, seed=2)
