"""The page of all parameters, generated from the form's descriptions.

``python -m prefect_augment.params.reference FILE...`` (``make schema``) writes it.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from prefect_augment import params
from prefect_augment.params.base import Params

#: By the name of a flow's parameter, which the class has in capitals.
GROUPS: dict[str, type[Params]] = {
    name: getattr(params, name.title().replace("_", ""))
    for name in (
        "source", "destination", "balance", "classic", "encoder", "budget", "evaluation", "quality", "approval",
        "publish", "report", "compute", "answer", "output", "anomalies", "reconstruction", "denoising",
        "interpolation", "attribute_shift", "classification",
    )
}  # fmt: skip
_AFTER_MODELS = "budget"  # the group after the models, as in the form

_HEAD = """# Parameters

The parameters of a run: the groups of the form in the Prefect UI, the arguments of the flows, and the keys of a
file for `--params`. Each flow has those that it needs. All have defaults. This page is written by `make schema`.

```yaml
source: {uri: s3://lake/defects/, label: state}
destination: {uri: s3://lake/defects-balanced/}
model: {kind: trees}
evaluation: {on_no_gain: fail}
seed: 7
```

`seed` (0) is the seed of everything random: the same input, parameters and seed give the same bytes. `plan_only`
(false) shows the plan and an estimate, and trains and publishes nothing.
"""


def parameters_page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for name, group in GROUPS.items():
        if name == _AFTER_MODELS:
            parts.append("## model\n\nOne of these kinds.\n")
            parts += [_section(f"### {_kind(m)}", m) for m in _classes(params.ModelParams)]
        parts.append(_section(f"## {name}", group))
    return "\n".join(parts)


def _section(title: str, group: type[Params]) -> str:
    """Return a table of the fields, and one for each class of parameters in their lists."""
    lines = [title, "", inspect.cleandoc(group.__doc__ or ""), ""]
    fields = {
        name: f for name, f in group.model_fields.items() if name != "kind" or not _kind(group)
    }
    if fields:
        lines += ["| Name | Values | Default | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{name}` | {_values(f)} | {_default(f)} | {_cell(f.description or '')} |"
            for name, f in fields.items()
        ]
        lines.append("")
    for name, field in fields.items():
        each = "Each of " if get_origin(field.annotation) is list else ""
        for inner in _classes(field.annotation):
            kind = f", kind `{_kind(inner)}`" if _kind(inner) else ""
            lines.append(_section(f"{each}`{name}`{kind}:", inner))
    return "\n".join(lines)


def _values(field: FieldInfo) -> str:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Params):
        return "as below"
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        of = _choices(item)
        return f"list of {of}" if of else "list"
    return _choices(annotation) + _range(field)


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Union:
        choices = [c for member in get_args(annotation) if (c := _choices(member))]
        return f"{', '.join(choices)}, or as below" if choices else ""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return names.get(annotation, "")


def _range(field: FieldInfo) -> str:
    """Return the limits in words, such as ``from 0 below 1``."""
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    limits = [
        f"{word} {getattr(limit, name):g}"
        for name, word in words.items()
        for limit in field.metadata
        if getattr(limit, name, None) is not None
    ]
    return f", {' '.join(limits)}" if limits else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "to be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list | tuple | str) and not value:
        return "empty"
    if isinstance(value, Params):
        return f"`{next(iter(dict(value).values()))}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*.", "\\*.").replace("**", "\\*\\*")


def _kind(model: type[Params]) -> str:
    """Return the kind of a member of a union; empty for other models."""
    field = model.model_fields.get("kind")
    return "" if field is None or field.is_required() else str(field.get_default())


def _classes(annotation: Any) -> Iterator[type[Params]]:
    """Yield the classes of parameters in an annotation, such as those of a union or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Params):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for member in get_args(annotation):
            yield from _classes(member)


if __name__ == "__main__":
    for target in sys.argv[1:]:
        Path(target).write_text(parameters_page(), encoding="utf-8")
