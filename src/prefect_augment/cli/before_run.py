"""What can be refused before Prefect is imported and a server started: a wrong parameter, file or label."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect_augment.errors import AugmentError, ParameterError

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic_core import ErrorDetails

    from prefect_augment.params import Source
    from prefect_augment.sources.discovery import Listing

# Beside the sections; Prefect refuses those that a flow does not have.
OTHERS = ("seed", "plan_only", "synthetic", "proposal")
# Text is read whole to know its columns' types; a larger file's label is checked in the run.
MAX_TEXT_BYTES = 8 << 20


def check_before_run(parameters: Mapping[str, Any]) -> None:
    """Raise ParameterError or InputError for what a run of any flow would refuse at its start."""
    from pydantic import TypeAdapter

    from prefect_augment.params import ModelParams
    from prefect_augment.params.locations import refuse_secrets
    from prefect_augment.params.reference import GROUPS
    from prefect_augment.sources.discovery import list_source

    sections: dict[str, Any] = {**GROUPS, "model": ModelParams}
    for name in parameters:
        if name not in sections and name not in OTHERS:
            raise ParameterError(_unknown(name, "", (*sections, *OTHERS)))
    read = {}
    for name in sections.keys() & parameters.keys():
        with parameter_errors(name):
            read[name] = TypeAdapter(sections[name]).validate_python(parameters[name])
    synthetic = str(parameters.get("synthetic", ""))
    refuse_secrets(synthetic)
    if "source" in read:
        _check_source(read["source"])
        if synthetic and not read["source"].storage_block:
            list_source(synthetic, requested="auto", options=None)


@contextmanager
def parameter_errors(section: str = "") -> Iterator[None]:
    """Turn pydantic's validation errors into ours: one sentence per field, exit 2."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as exc:
        sentences = [_sentence(e, section, exc.title) for e in exc.errors(include_url=False)]
        raise ParameterError("; ".join(sentences)) from exc


def _sentence(error: ErrorDetails, section: str, title: str) -> str:
    """Say what is wrong with a field, and which name or value is near."""
    where, value, ctx = list(error["loc"]), error["input"], error.get("ctx", {})
    path = ".".join(map(str, [section, *where] if section else where))
    if error["type"] == "extra_forbidden":
        return _unknown(str(where[-1]), path.rpartition(".")[0], _fields(title, where[:-1]))
    if error["type"] == "union_tag_invalid":
        path, value = f"{path}.kind", ctx["tag"]
    expected = re.findall(r"'([^']*)'", str(ctx.get("expected_tags", ctx.get("expected", ""))))
    if not expected or not isinstance(value, str):
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    return f"{path} is {value!r}{_near(value, expected)}"


def _unknown(name: str, section: str, known: Collection[str]) -> str:
    of = f" of {section}" if section else ""
    return f"{name!r} is no parameter{of}{_near(name, known)}"


def _near(name: str, known: Collection[str]) -> str:
    from prefect_augment.text import suggestion

    if not known:
        return ""
    names = suggestion(name, known)
    return f"{': ' if names.startswith('did') else '. '}{names}"


def _fields(title: str, where: list[int | str]) -> list[str]:
    """Return the names of a section's fields, or of those of a kind of model; none of what lies deeper."""
    from prefect_augment import params
    from prefect_augment.params.base import Params

    kinds = {
        k.model_fields["kind"].default: k
        for k in Params.__subclasses__()
        if "kind" in k.model_fields
    }
    kind = kinds.get(where[0]) if len(where) == 1 else getattr(params, title, None)
    return list(kind.model_fields) if kind is not None and len(where) < 2 else []


# --- the source ---------------------------------------------------------------------------------


def _check_source(source: Source) -> None:
    """Refuse locations where nothing lies, and names of columns that the first file does not have."""
    from prefect_augment.encoding.columns import require_columns
    from prefect_augment.encoding.labels import find_label
    from prefect_augment.sources.discovery import LAYOUTS, list_source
    from prefect_augment.sources.tables import database_kind

    # A block is kept by the server, and a query may take long.
    if not source.uri or source.storage_block or database_kind(source.uri):
        return
    listing = list_source(source.uri, requested=source.format, options=None)
    if source.holdout_uri:
        requested = "auto" if source.format in LAYOUTS else source.format
        list_source(source.holdout_uri, requested=requested, options=None)
    schema = _first_schema(listing, source)
    if schema is None:
        return
    if source.label:
        find_label(schema.empty_table(), source.label)
    require_columns(schema, [source.holdout_column], what="source.holdout_column")
    require_columns(schema, [source.group_column], what="source.group_column")


def _first_schema(listing: Listing, source: Source) -> pa.Schema | None:
    """Return the columns of the first file; None where they are not read quickly, or where it cannot be read."""
    from prefect_augment.registry import FORMATS
    from prefect_augment.sources.base import in_batches
    from prefect_augment.sources.open import reader_of

    ours = listing.manifest is not None or listing.denoised
    if ours or listing.format not in {*FORMATS, "table"} or not listing.entries:
        return None
    first = listing.entries[0]
    if listing.format in ("csv", "jsonl") and first.n_bytes > MAX_TEXT_BYTES:
        return None
    try:
        with listing.open(first) as file:
            batches = in_batches(reader_of(listing)(file, name=first.path, source=source))
            return next(batches).table.schema
    except AugmentError:
        return None  # other files may be read; the run says which are not
