"""Names of models and formats, and where their code is: strings, imported on use.

A model has its kind in the params, ``module:Class`` per modality, and the extra that its imports need. Other
packages register models in the entry-point group ``prefect_augment.models``, chosen by ``PluginModel``; such a
class may have a pydantic class ``Params``, which then validates the options. A function of somebody else's is
found the same way, in a group of its own (:func:`load_function`), and so are source formats: the ending of their
files is the name in ``prefect_augment.formats``, such as ``.orc``, and a
:class:`~prefect_augment.sources.base.SourceReader` reads one.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.params import (
    AutoModel,
    DiffusionModel,
    ModelParams,
    NoModel,
    PluginModel,
    TreesModel,
)
from prefect_augment.schema import Modality
from prefect_augment.text import suggestion

ENTRY_POINTS = "prefect_augment.models"
FORMAT_ENTRY_POINTS = "prefect_augment.formats"
# A form must not run whatever a user types: the worker's environment has to allow it.
ALLOW_IMPORT_PATHS = "PREFECT_AUGMENT_ALLOW_IMPORT_PATHS"


@dataclass(frozen=True)
class ModelEntry:
    """Where a model's code is."""

    targets: Mapping[Modality, str]  # module:Class by modality; params are the same
    extra: str = ""  # extra of prefect-augment for its imports


def _entry(extra: str, **targets: str) -> ModelEntry:
    """Return the entry of a model of ours; ``targets`` are ``module:Class`` below its modality's folder."""
    folders: dict[str, Modality] = {"trees": "table", "tables": "table", "images": "image"}
    places = {
        folders[folder]: f"prefect_augment.genmodels.{folder}.{target}"
        for folder, target in targets.items()
    }
    return ModelEntry(places, extra)


MODELS: dict[str, ModelEntry] = {
    "trees": _entry("", trees="model:TableTrees"),
    "flow": _entry("torch", tables="flow:TableFlow"),
    "mst": _entry("dp", tables="mst:TableMst"),
    "vae": _entry("torch", tables="vae:TableVae", images="vae:Vae"),
    "gan": _entry("torch", tables="gan:TableGan", images="gan:ImageGan"),
    "autoencoder": _entry(
        "torch", tables="autoencoder:TableAutoencoder", images="autoencoder:Autoencoder"
    ),
    "diffusion": _entry("torch", images="flow_matching:Diffusion"),
}

# The model of AutoModel.
_AUTO: dict[Modality, TreesModel | DiffusionModel] = {
    "table": TreesModel(),
    "image": DiffusionModel(),
}


@dataclass(frozen=True)
class FormatEntry:
    """Where the code of a source format of tables is, and the endings of its files."""

    target: str  # module:function with the signature of shards.base.SourceReader
    endings: tuple[str, ...]
    title: str  # in messages


# Format, as Source.format names it.
FORMATS: dict[str, FormatEntry] = {
    name: FormatEntry(f"prefect_augment.sources.{name}:{function}", endings, title)
    for name, function, endings, title in (
        ("parquet", "read_batches", (".parquet", ".pq"), "Parquet"),
        ("csv", "read_batches", (".csv", ".tsv", ".csv.gz", ".tsv.gz"), "CSV"),
        ("jsonl", "read_batches", (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "JSON lines"),
        ("arrow", "read_batches", (".arrow", ".feather", ".ipc", ".arrows"), "Arrow"),
        ("excel", "read_sheet", (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "Excel"),
    )
}
# Other packages' formats, which auto knows by the ending.
for _point in entry_points(group=FORMAT_ENTRY_POINTS):
    FORMATS.setdefault(
        _point.name.strip("."), FormatEntry(_point.value, (_point.name,), _point.name)
    )


@dataclass(frozen=True)
class ShardEntry:
    """Where the code of a published format is, and the modalities that it supports."""

    target: str  # module:Class with the methods of shards.base.ShardFormat
    modalities: tuple[Modality, ...]


# Published format, as Publish.format names it. Staged records are always Parquet.
SHARD_FORMATS: dict[str, ShardEntry] = {
    "parquet": ShardEntry("prefect_augment.shards.parquet:ParquetShards", ("table", "image")),
    "webdataset": ShardEntry("prefect_augment.shards.webdataset:WebDatasetShards", ("image",)),
}


def model_kinds(modality: Modality) -> list[str]:
    """Return the kinds of models for a modality, sorted."""
    return sorted(kind for kind, entry in MODELS.items() if modality in entry.targets)


def resolve_model(params: ModelParams, *, modality: Modality = "table") -> str | None:
    """Return the requested kind of model; None for no model.

    ``auto`` is sequential trees for tables and diffusion for images. Raises ParameterError if there is no such model
    for the modality.
    """
    if isinstance(params, NoModel):
        return None
    if isinstance(params, PluginModel):
        return params.name
    if isinstance(params, AutoModel):
        return _AUTO[modality].kind
    if modality not in (targets := MODELS[params.kind].targets):
        raise ParameterError(
            f"model {params.kind!r} makes {' and '.join(targets)} data and the source holds {modality} data; "
            f"choose one of: {', '.join(model_kinds(modality))}."
        )
    return params.kind


def model_params(params: ModelParams, *, modality: Modality = "table") -> Any:
    """Return the argument of the model's ``build``: its own params, for a plug-in its validated options.

    Raises ParameterError for no model, or options that a plug-in does not accept.
    """
    if isinstance(params, NoModel):
        raise ParameterError(
            "model kind 'none' has nothing to train; choose 'auto' or another kind."
        )
    resolve_model(params, modality=modality)
    if isinstance(params, AutoModel):
        return _AUTO[modality]
    if isinstance(params, PluginModel):
        return _plugin_options(params, _load_plugin(params.name))
    return params


def load_model_class(model: str | ModelParams, *, modality: Modality = "table") -> Any:
    """Import and return the class of a model, by its kind, a plug-in's name, or its params.

    A plug-in's options are validated too. Raises MissingExtraError for a missing package, and ParameterError for an
    unknown model.
    """
    if isinstance(model, NoModel):
        raise ParameterError("model kind 'none' has no class; choose 'auto' or another kind.")
    if isinstance(model, AutoModel):
        model = _AUTO[modality]
    kind = model if isinstance(model, str) else getattr(model, "name", model.kind)
    if kind in MODELS and not isinstance(model, PluginModel):
        entry = MODELS[kind]
        target = entry.targets.get(modality) or next(iter(entry.targets.values()))
        return _load(target, what=f"model {kind!r}", extra=entry.extra)
    plugin = _load_plugin(kind)
    if isinstance(model, PluginModel):
        _plugin_options(model, plugin)
    return plugin


def load_reader(source_format: str) -> Any:
    """Import and return the function that reads a source format; ParameterError for an unknown one."""
    return _load_format(source_format, FORMATS, what="source format")


def load_shard_format(name: str) -> Any:
    """Import and return the class of a published format; ParameterError for an unknown one."""
    return _load_format(name, SHARD_FORMATS, what="shard format")


def _load_format(name: str, entries: Mapping[str, FormatEntry | ShardEntry], *, what: str) -> Any:
    if name not in entries:
        raise ParameterError(f"unknown {what} {name!r}; there are: {', '.join(entries)}.")
    return _load(entries[name].target, what=f"{what} {name!r}", extra="")


def check_shard_format(name: str, *, modality: Modality) -> None:
    """Raise ParameterError for an unknown format, or one that does not support the modality."""
    load_shard_format(name)
    if modality not in SHARD_FORMATS[name].modalities:
        formats = [kind for kind, entry in SHARD_FORMATS.items() if modality in entry.modalities]
        raise ParameterError(
            f"publish.format {name!r} is for {' and '.join(SHARD_FORMATS[name].modalities)} data, and the source is "
            f"{modality} data; choose one of: {', '.join(formats)}.",
            format=name,
        )


def load_function(name: str, *, group: str, field: str) -> Callable[..., Any]:
    """Return a user's function: an entry point of ``group``, or ``module:function`` where that is allowed.

    ``field`` is the parameter that named it, for messages. Raises ParameterError if there is none, it
    cannot be imported, or it is no function.
    """
    points = {point.name: point for point in entry_points(group=group)}
    try:
        if name in points:
            function = points[name].load()
        elif ":" in name and os.environ.get(ALLOW_IMPORT_PATHS):
            module, _, attribute = name.partition(":")
            function = getattr(importlib.import_module(module), attribute)
        elif ":" in name:
            raise ParameterError(
                f"{field} {name!r} is an import path, which this worker does not follow: set {ALLOW_IMPORT_PATHS}=1 in "
                f"its environment, or offer the function in the entry-point group {group!r}."
            )
        else:
            raise ParameterError(
                f"there is no {field} {name!r} in the entry-point group {group!r}; "
                f"{suggestion(name, sorted(points)) if points else 'no installed package offers any'}."
            )
    except (ImportError, AttributeError) as exc:
        raise ParameterError(
            f"{field} {name!r} cannot be imported: {exc}; fix or reinstall its package."
        ) from exc
    if not callable(function):
        raise ParameterError(f"{field} {name!r} is {type(function).__name__} and no function.")
    return cast("Callable[..., Any]", function)


def _load(target: str, *, what: str, extra: str) -> Any:
    module, name = target.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        # A missing module of this package is a broken installation, not a missing extra.
        if not extra or (exc.name or "").partition(".")[0] == "prefect_augment":
            raise
        raise MissingExtraError(
            f"{what} needs {exc.name}: pip install 'prefect-augment[{extra}]'", extra=extra
        ) from exc


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load_plugin(name: str) -> Any:
    plugins = _plugins()
    if name not in plugins:
        raise ParameterError(
            f"there is no model {name!r}: built in are {', '.join(sorted(MODELS))}; installed packages offer "
            f"{', '.join(sorted(plugins)) or 'none'} in the entry-point group {ENTRY_POINTS!r}.",
            kind=name,
        )
    if name in MODELS:
        raise ParameterError(
            f"plug-in {plugins[name].value} is named {name!r} like a built-in model, so records of both could not be "
            "told apart; rename its entry point.",
            kind=name,
        )
    try:
        return plugins[name].load()
    except (ImportError, AttributeError) as exc:
        raise ParameterError(
            f"plug-in model {name!r} ({plugins[name].value}) cannot be imported: {exc}; fix or reinstall its package.",
            kind=name,
        ) from exc


def _plugin_options(params: PluginModel, model_class: Any) -> Any:
    """Return the options, validated by the plug-in's own class of params if it has one."""
    own = getattr(model_class, "Params", None)
    if not (isinstance(own, type) and issubclass(own, BaseModel)):
        return params.option_values
    try:
        return own.model_validate(params.option_values)
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise ParameterError(
            f"plug-in model {params.name!r} does not accept its options: {problems}.",
            kind=params.name,
        ) from exc
