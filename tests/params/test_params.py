"""The form of every flow, and what params say when they cannot be granted."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from prefect_augment.errors import ParameterError
from prefect_augment.flows.approve import approve
from prefect_augment.flows.augment import augment
from prefect_augment.flows.evaluate import evaluate
from prefect_augment.flows.form import rebalance as rebalance_form
from prefect_augment.flows.latents import (
    anomalies,
    classify,
    denoise,
    embed,
    interpolate,
    reconstruct,
    shift_attribute,
)
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.flows.train import train
from prefect_augment.params import (
    AttributeShift,
    Balance,
    ClassTarget,
    Compute,
    DiffusionModel,
    PluginModel,
    Publish,
    Source,
)
from prefect_augment.params.reference import parameters_page

USES: list[Flow[Any, Any]] = [
    anomalies, classify, denoise, embed, interpolate, reconstruct, shift_attribute,
]  # fmt: skip
FLOWS: list[Flow[Any, Any]] = [rebalance, augment, train, evaluate, approve, *USES]
# In the order of work: what comes in, what is wanted, how, what has to hold, what goes out.
ORDER = [
    *("source", "synthetic", "destination", "proposal", "answer", "balance"),
    *("anomalies", "reconstruction", "denoising"),
    *("interpolation", "attribute_shift", "classification"),
    *("model", "classic", "encoder", "budget", "evaluation", "quality"),
    *("approval", "publish", "report", "compute", "output", "seed", "plan_only", "label"),
]


def schema(flow: Flow[Any, Any]) -> dict[str, Any]:
    return flow.parameters.model_dump()


def fields(flow: Flow[Any, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that the form shows, flat ones and those of groups."""
    found = schema(flow)
    definitions = found["definitions"]
    for name, info in found["properties"].items():
        # A description that is the section's own stands in the section alone.
        yield name, definitions.get(info.get("$ref", "").rpartition("/")[2], {}) | info
    for name, definition in definitions.items():
        for field, info in definition["properties"].items():
            yield f"{name}.{field}", info


@pytest.mark.parametrize("flow", [rebalance_form, *FLOWS], ids=lambda flow: flow.name)
def test_every_field_of_the_form_has_a_description(flow: Flow[Any, Any]) -> None:
    missing = [
        name
        for name, info in fields(flow)
        if not name.endswith(".kind") and len(info.get("description", "")) < 10
    ]
    assert not missing


@pytest.mark.parametrize("flow", [rebalance_form, *FLOWS], ids=lambda flow: flow.name)
def test_nothing_of_the_form_is_raw_json(flow: Flow[Any, Any]) -> None:
    """An object without named fields, or a field of no type, is a code editor in the form."""
    free = [
        name
        for name, info in fields(flow)
        if not {"type", "$ref", "allOf", "oneOf", "anyOf", "enum", "const"} & set(info)
        or isinstance(info.get("additionalProperties"), dict)
        or (info.get("type") == "object" and "properties" not in info)
        or (info.get("type") == "array" and not info.get("items"))
    ]
    assert not free
    open_ = [n for n, d in schema(flow)["definitions"].items() if d.get("additionalProperties")]
    assert not open_, "unknown names are refused"


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_server_takes_every_field_as_a_parameter_of_a_deployment(flow: Flow[Any, Any]) -> None:
    """Prefect drops keys called "required" from the schema that it checks such parameters by."""
    from prefect.utilities.schema_tools import validate

    groups = {
        name: {field: info["default"] for field, info in definition.items() if "default" in info}
        for name, info in schema(flow)["properties"].items()
        if (ref := info.get("$ref", info.get("allOf", [{}])[0].get("$ref", "")))
        and (definition := schema(flow)["definitions"][ref.rsplit("/", 1)[1]]["properties"])
    }
    assert groups
    validate(groups, schema(flow), raise_on_error=True, ignore_required=True)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_groups_of_the_form_are_in_the_order_of_work(flow: Flow[Any, Any]) -> None:
    properties = schema(flow)["properties"]
    shown = sorted(properties, key=lambda name: properties[name]["position"])
    assert shown == [name for name in ORDER if name in shown]


def test_source_and_destination_are_all_that_a_run_needs() -> None:
    required = {name for flow in FLOWS for name in schema(flow).get("required", [])}
    assert required <= {"source", "synthetic"}
    given = {"source": {"uri": "s3://lake/in", "label": "kind"}, "destination": {"uri": "s3://x/"}}
    assert rebalance.validate_parameters(given)["approval"].ask is False


@pytest.mark.parametrize(
    ("group", "value", "words"),
    [
        ("balance", {"target": "count"}, "say how many records each class should have"),
        ("source", {"holdout_column": "a", "holdout_uri": "b"}, "keep one of them"),
        ("source", {"group_pattern": "x"}, "put parentheses around"),
        ("approval", {"timeout_hours": 0}, "timeout_hours"),
        ("budget", {"devise": "cpu"}, "devise"),
    ],
)
def test_a_value_that_cannot_be_granted_says_what_to_do(
    group: str, value: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterTypeError, match=words):
        rebalance.validate_parameters({group: value})


def test_a_class_is_named_once() -> None:
    with pytest.raises(ValidationError, match="twice"):
        Balance(classes=[ClassTarget(name="a"), ClassTarget(name="a")])


def test_options_of_a_plug_in_are_rows_in_the_form_and_a_mapping_in_yaml() -> None:
    options = {"width": 5, "rate": 0.5, "deep": True, "mode": "wide", "five": "5", "at": [1, 2]}
    model = PluginModel(name="x", options=options)  # type: ignore[arg-type]
    assert model.option_values == options, "types survive, a text that looks like a number too"
    assert PluginModel.model_validate(model.model_dump()) == model
    rows = [{"name": "width", "value": "5"}, {"name": "mode", "value": "wide"}]
    typed = PluginModel.model_validate({"name": "x", "options": rows})
    assert typed.option_values == {"width": 5, "mode": "wide"}
    with pytest.raises(ValidationError, match="twice"):
        PluginModel.model_validate({"name": "x", "options": rows[:1] * 2})


def test_an_unknown_name_is_not_ignored() -> None:
    with pytest.raises(ValidationError, match="lable"):
        Source.model_validate({"uri": "x", "lable": "kind"})


@pytest.mark.parametrize("flow", [f for f in FLOWS if f is not approve], ids=lambda f: f.name)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_library_takes_is_refused_at_once(flow: Flow[Any, Any], seed: int) -> None:
    given: dict[str, Any] = {"source": Source(uri="nowhere.parquet", label="y"), "seed": seed}
    if flow is evaluate:
        given["synthetic"] = "nowhere.csv"
    if flow is shift_attribute:
        given["attribute_shift"] = AttributeShift(column="y", start="a", end="b")
    with pytest.raises(ParameterError, match=f"seed is {seed}; expected"):
        flow.fn(**given)


def test_infinity_is_no_amount() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Balance(max_synthetic_per_real=math.inf)


@pytest.mark.parametrize("size", [4, 50])
def test_a_size_that_networks_cannot_halve_twice_is_refused(size: int) -> None:
    with pytest.raises(ValidationError, match="size"):
        DiffusionModel(size=size)


def test_the_page_of_parameters_is_that_of_the_models() -> None:
    page = Path(__file__).parents[2] / "docs" / "parameters.md"
    assert page.read_text("utf-8") == parameters_page(), "make schema"


def test_copies_that_are_not_let_out_are_refused_before_any_work() -> None:
    with pytest.raises(ValidationError, match="leaves 'copy' out"):
        Publish(materialise="copies", origins=["real"])


def test_guidance_away_from_what_is_never_learnt_is_refused() -> None:
    with pytest.raises(ValidationError, match="label_dropout 0 never trains"):
        DiffusionModel(guidance=2.0, label_dropout=0.0)
    DiffusionModel(guidance=2.0, guide="early", label_dropout=0.0)


def test_an_address_is_of_a_cluster_and_holds_no_secret() -> None:
    with pytest.raises(ValueError, match="engine is 'processes', which has none"):
        Compute(engine="processes", address="tcp://10.0.0.1:8786")
    with pytest.raises(ParameterError, match="password or token"):
        Compute(engine="dask", address="tcp://me:secret@10.0.0.1:8786")
    assert Compute(engine="ray", address="ray://10.0.0.1:10001").workers == 0
