"""Tables as matrices and back: one fitted encoder, shared by models, filters and estimators.

Fitted on some records (for a model: the training part), it keeps the source's schema, each column's
codec and the classes. ``decode`` restores columns, order, types and schema metadata.
"""

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.encoding.codecs import (
    CategoryCodec,
    Codec,
    NumberCodec,
    codec_from_config,
    fit_category,
    fit_number,
)
from prefect_augment.encoding.fill import fill_column, fit_fill
from prefect_augment.encoding.rare_values import RareValues
from prefect_augment.encoding.serialization import StoredEncoder
from prefect_augment.encoding.strata import (
    conform_column,
    dictionaries_of,
    stored_schema,
    stratum_codes,
    stratum_column,
    stratum_parts,
    stratum_values,
    table_strata,
)
from prefect_augment.encoding.values import plain, value_type, values_from_json, values_to_json
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.schema import ColumnInfo, class_order

__all__ = ["TableEncoder", "table_strata"]

FORMAT = 1
LEARNT = ("numeric", "category")


class TableEncoder(StoredEncoder):
    """The codecs and schema that turn a table's records into float64 and back.

    Numbers are encoded as :class:`~.codecs.NumberCodec` says, infinite values and nulls as NaN; categories
    as the index of the level, null and unseen values as NaN.
    """

    def __init__(
        self,
        *,
        schema: pa.Schema,
        label: str,
        by: Sequence[str],
        codecs: Mapping[str, Codec],
        fills: Mapping[str, dict[str, Any]],
        dictionaries: Mapping[str, pa.Array],
        strata: Mapping[str, dict[str, Any]],
    ) -> None:
        self.schema = schema
        self.label = label
        self.by = tuple(by)
        self._codecs = dict(codecs)
        self._fills = dict(fills)
        self._dictionaries = dict(dictionaries)
        self._strata = dict(strata)
        self._rare: RareValues | None = None
        self._shown: Mapping[str, Any] = self._dictionaries  # what records list of them

    @classmethod
    def fit(
        cls, table: pa.Table, *, columns: Sequence[ColumnInfo], label: str, by: Sequence[str] = ()
    ) -> "TableEncoder":
        """Return the encoder of these records.

        Of ``columns``, numeric and category ones are learnt, except the ``by`` columns, which the stratum
        fixes; columns not described (ids of staged records) are left out. Raises SchemaError if a column is
        missing or cannot be learnt, ParameterError if one that may not be null has no fill rule.
        """
        kind_of = {result.name: result.kind for result in columns}
        _check_columns(table, [*kind_of, label, *by])
        fields = [f for f in table.schema if f.name in kind_of or f.name == label]
        schema = stored_schema(pa.schema(fields, table.schema.metadata))
        codecs: dict[str, Codec] = {}
        fills: dict[str, dict[str, Any]] = {}
        for field in schema:
            if field.name == label or field.name in by:
                continue
            kind = kind_of[field.name]
            if kind in LEARNT:
                fit_codec = fit_number if kind == "numeric" else fit_category
                codecs[field.name] = fit_codec(
                    plain(table.column(field.name)), column=field.name, nullable=field.nullable
                )
            else:
                fills[field.name] = fit_fill(field, table.column(field.name), kind)
        return cls(
            schema=schema,
            label=label,
            by=by,
            codecs=codecs,
            fills=fills,
            dictionaries=dictionaries_of(table, schema),
            strata=stratum_values(table, label, by),
        )

    # --- properties ---

    @property
    def names(self) -> tuple[str, ...]:
        """Learnt columns, in the order of the matrix."""
        return tuple(self._codecs)

    @property
    def is_category(self) -> NDArray[np.bool_]:
        """Which columns of the matrix hold level codes, shape (n_columns,)."""
        return np.array([c.is_category for c in self._codecs.values()], dtype=bool)

    @property
    def n_levels(self) -> NDArray[np.int64]:
        """Levels per column of the matrix, 0 for numeric ones, shape (n_columns,)."""
        return np.array([c.n_levels for c in self._codecs.values()], dtype=np.int64)

    def codec(self, name: str) -> Codec:
        """Return how a learnt column is encoded."""
        return self._codecs[name]

    def is_fixed(self, name: str) -> bool:
        """Tell whether a column that is not learnt has a known value: by the stratum, or always."""
        return name == self.label or name in self.by or self._fills[name]["rule"] == "constant"

    @property
    def strata(self) -> tuple[str, ...]:
        """Strata seen, in their natural order."""
        return tuple(self._strata)

    def guarding(
        self, rare: RareValues | None, *, lists_rare_levels: bool = False
    ) -> "TableEncoder":
        """Return the same encoder, which decodes to none of these rare values.

        A dictionary then lists the levels that enough records share, and the classes, unless
        ``lists_rare_levels``. A level is not changed: the model must not know the rare ones, see
        :func:`.without_rare_levels`.
        """
        guarding = copy(self)
        guarding._rare, guarding._shown = rare, self._dictionaries
        if rare is not None and not lists_rare_levels:
            guarding._shown = {
                name: self._frequent(name, values, rare)
                for name, values in self._dictionaries.items()
            }
        return guarding

    def _frequent(self, name: str, values: pa.Array, rare: RareValues) -> pa.Array:
        """A dictionary's values that records with these rare values may show."""
        if name in self._codecs:
            codec, j = self._codecs[name], self.names.index(name)
            if not isinstance(
                codec, CategoryCodec
            ):  # numbers, whose dictionary is no list of levels
                return values
            shown = codec.levels.take(pa.array(rare.levels[j]))
        elif name in self._fills:
            shown = pa.array([], value_type(values.type))
            if self.is_fixed(name):
                shown = fill_column(
                    self.schema.field(name),
                    self._fills[name],
                    places=np.zeros(1, dtype=np.int64),
                    aug_ids=[""],
                )
        else:
            shown = stratum_column(
                self.schema.field(name), self._strata, np.arange(len(self._strata))
            )
        known = plain(values)  # views have no filter
        return known.filter(pc.is_in(known, value_set=plain(shown))).cast(values.type)

    # --- records to matrix and back ---

    def encode(self, table: pa.Table) -> NDArray[np.float64]:
        """Return the records in matrix form, float64 of shape (n_records, n_columns).

        NaN marks a value that is null, NaN, infinite, or a level not seen in fitting.
        """
        _check_columns(table, self.names)
        X = np.empty((table.num_rows, len(self._codecs)), dtype=np.float64)
        for j, (name, codec) in enumerate(self._codecs.items()):
            X[:, j] = codec.encode(_as_type(plain(table.column(name)), codec.kind, name))
        return X

    def decode(
        self,
        X: NDArray[np.float64],
        *,
        strata: Sequence[str],
        ordinals: NDArray[np.int64] | None = None,
        aug_ids: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        given: Collection[str] = (),
    ) -> pa.Table:
        """Return a matrix (n, n_columns) as records with the source's exact schema.

        Values are snapped to their column's domain; ``strata`` give the label and the ``by`` columns.
        Integer identifiers follow ``ordinals``, each record's number within its stratum (default: row order), so
        they do not depend on n; text identifiers follow ``aug_ids``. ``columns`` restricts the output; ``given``
        are columns whose value was asked for, rare or not.
        Raises ParameterError for an unknown stratum or a missing value in a column that may not be null.
        """
        codes = stratum_codes(strata, self._strata)
        ordinals = _positions(strata) if ordinals is None else np.asarray(ordinals, dtype=np.int64)
        places = ordinals * len(self._strata) + codes  # distinct, and independent of n
        values: list[pa.Array] = []
        fields = [f for f in self.schema if columns is None or f.name in columns]
        for field in fields:
            if field.name in self._codecs:
                column = self._decoded(X, field.name, is_given=field.name in given)
            elif field.name in self._fills:
                column = fill_column(field, self._fills[field.name], places=places, aug_ids=aug_ids)
            else:
                column = stratum_column(field, self._strata, codes)
            values.append(conform_column(field, column, self._shown))
        return pa.table(values, schema=pa.schema(fields, self.schema.metadata))

    def _decoded(self, X: NDArray[np.float64], name: str, *, is_given: bool) -> pa.Array:
        codec, j = self._codecs[name], self.names.index(name)
        x = X[:, j]
        if self._rare is not None and isinstance(codec, NumberCodec) and not is_given:
            x = self._rare.apart(j, x, codec)
        return codec.decode(x)

    def decode_learnt(self, X: NDArray[np.float64]) -> pa.Table:
        """Return a matrix (n, n_columns) as the learnt columns alone, in their types; any value may be null."""
        fields = [self.schema.field(name).with_nullable(True) for name in self.names]
        return pa.table(
            [
                conform_column(f, self._codecs[f.name].decode(X[:, j]), self._dictionaries)
                for j, f in enumerate(fields)
            ],
            schema=pa.schema(fields),
        )

    def labels(self, classes: Sequence[str]) -> NDArray[Any]:
        """Return classes by their names as values of the label column, shape (n_classes,); None if never seen."""
        values = {
            stratum_parts(name, self.by)[0]: v[self.label] for name, v in self._strata.items()
        }
        kind = value_type(self.schema.field(self.label).type)
        column = values_from_json([values.get(name) for name in classes], kind)
        return np.asarray(column.to_pandas())

    def in_domain(
        self, X: NDArray[np.float64], *, may_miss: Collection[int] = ()
    ) -> NDArray[np.bool_]:
        """Tell which rows of a matrix hold only values of their columns' domains, shape (n,).

        False where a number is out of range, a level unknown, or a value missing in a column without nulls that
        is not among ``may_miss``.
        """
        valid = np.ones(len(X), dtype=bool)
        for j, codec in enumerate(self._codecs.values()):
            valid &= codec.in_domain(X[:, j]) | (np.isnan(X[:, j]) & (j in may_miss))
        return valid

    def _values_outgrown_by(self, other: Self) -> str:
        if other.names != self.names or other._fills != self._fills:
            return "columns are of another kind, or identifiers begin elsewhere"
        if other._dictionaries != self._dictionaries:
            return "categories have new values"
        for name, codec in self._codecs.items():
            if why := codec.outgrown_by(other._codecs[name]):
                return f"column {name!r} {why}"
        return ""

    # --- to storage and back ---

    def to_config(self) -> dict[str, Any]:
        """Return the encoder as plain JSON: the inverse of :meth:`from_config`."""
        return {
            "format": FORMAT,
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "types": {field.name: str(field.type) for field in self.schema},  # for people
            "label": self.label,
            "by": list(self.by),
            "learnt": {name: codec.config() for name, codec in self._codecs.items()},
            "not_learnt": self._fills,
            "dictionaries": {k: values_to_json(v, column=k) for k, v in self._dictionaries.items()},
            "strata": self._strata,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the encoder that :meth:`to_config` wrote down."""
        if config.get("format") != FORMAT:
            raise ParameterError(
                f"the encoder has format {config.get('format')!r}, this version reads {FORMAT}; "
                "train the model again."
            )
        schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(config["schema"])))
        types = {field.name: value_type(field.type) for field in schema}
        order = [name for name in schema.names if name in config["learnt"]]  # JSON has no order
        return cls(
            schema=schema,
            label=config["label"],
            by=config["by"],
            codecs={name: codec_from_config(config["learnt"][name], types[name]) for name in order},
            fills=config["not_learnt"],
            dictionaries={
                k: values_from_json(v, types[k]) for k, v in config["dictionaries"].items()
            },
            strata={name: config["strata"][name] for name in class_order(config["strata"])},
        )


def _check_columns(table: pa.Table, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"columns {missing} are missing; the table has {table.column_names}. "
            "It has to have the columns that the encoder was fitted on.",
            columns=missing,
        )


def _as_type(values: pa.Array, kind: pa.DataType, column: str) -> pa.Array:
    """Return the values in the type that the encoder was fitted on, where that loses nothing."""
    if values.type == kind:
        return values
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise SchemaError(
            f"column {column!r} is {values.type} and was {kind} when the encoder was fitted: "
            f"{exc}; "
            "cast it to that type.",
            column=column,
        ) from exc


def _positions(strata: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each record among those of its stratum."""
    seen: Counter[str] = Counter()
    places = []
    for name in strata:
        places.append(seen[name])
        seen[name] += 1
    return np.array(places, dtype=np.int64)
