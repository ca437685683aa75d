"""Strata: the class of a record, and the values of the ``balance.by`` columns beside it."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int
from prefect_augment.encoding.values import plain

# How a null of a ``by`` column is written; a real text "null" falls into the same cell.
NULL_TEXT = "null"


def table_strata(table: pa.Table, *, label: str, by: Sequence[str] = ()) -> list[str]:
    """Return the stratum of each record of a table, see :func:`stratum_names`."""
    return stratum_names(_texts(table, label), {name: _texts(table, name) for name in by})


def _texts(table: pa.Table, name: str) -> list[str]:
    return plain(table.column(name)).cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


def codes_of(values: Sequence[str], names: Sequence[str]) -> Int:
    """Return the index of each value among ``names``, -1 for another."""
    index = {name: k for k, name in enumerate(names)}
    return np.array([index.get(value, -1) for value in values], dtype=np.int64)


def stratum_names(labels: Sequence[str], by: Mapping[str, Sequence[str | None]]) -> list[str]:
    r"""Return each record's stratum: its class, or ``"class | column=value | …"`` with ``by`` columns.

    ``|`` and ``\`` in a class or value are escaped with ``\``, so two strata never share a name; None is
    written as :data:`NULL_TEXT`.

    Examples
    --------
    >>> stratum_names(["sick", "well"], {"sex": ["f", None]})
    ['sick | sex=f', 'well | sex=null']
    """
    if not by:
        return list(labels)
    columns = [
        [f"{_escape(name)}={NULL_TEXT if v is None else _escape(v)}" for v in values]
        for name, values in by.items()
    ]
    return [
        " | ".join((_escape(label), *cell)) for label, *cell in zip(labels, *columns, strict=True)
    ]


def stratum_parts(name: str, by: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the class, and the value of each ``by`` column as text: the inverse of :func:`stratum_names`."""
    if not by:
        return name, {}
    # A bar inside a class or value has a backslash before it, not a blank.
    label, *cells = name.split(" | ")
    pairs = zip(by, cells, strict=True)
    return _unescape(label), {column: _unescape(cell)[len(column) + 1 :] for column, cell in pairs}


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
