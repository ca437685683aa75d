"""Tables as matrices and back: one fitted encoder, shared by models, filters and estimators.

Fitted on some records (for a model: the training part), it keeps the source's schema, each column's
codec and the classes. ``decode`` restores columns, order, types and schema metadata.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.codecs import (
    CategoryCodec,
    Codec,
    NumberCodec,
    codec_from_config,
    fit_category,
    fit_number,
)
from prefect_augment.encoding.rare_values import RareValues
from prefect_augment.encoding.serialization import StoredEncoder, check_columns_there
from prefect_augment.encoding.strata import stratum_parts
from prefect_augment.encoding.values import plain, value_type, values_from_json, values_to_json
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.schema import ColumnInfo
from prefect_augment.storage.keys import ranks_within

LEARNT = ("numeric", "category")


class TableEncoder(StoredEncoder):
    """The codecs and schema that turn a table's records into float64 and back.

    Numbers are encoded as :class:`~.codecs.NumberCodec` says, infinite values and nulls as NaN; categories
    as the index of the level, null and unseen values as NaN.
    """

    modality = "table"

    def __init__(
        self, *, codecs: Mapping[str, Codec], fills: Mapping[str, dict[str, Any]], **shared: Any
    ) -> None:
        super().__init__(**shared)
        self._codecs = dict(codecs)
        self._fills = dict(fills)
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
        check_columns_there(table, [*kind_of, label, *by])
        shared = cls._of_records(table, {*kind_of, label}, label, by)
        codecs: dict[str, Codec] = {}
        fills: dict[str, dict[str, Any]] = {}
        for field in shared["schema"]:
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
        return cls(codecs=codecs, fills=fills, **shared)

    @property
    def names(self) -> tuple[str, ...]:
        """Learnt columns, in the order of the matrix."""
        return tuple(self._codecs)

    @property
    def is_category(self) -> Bool:
        """Which columns of the matrix hold level codes, shape (n_columns,)."""
        return np.array([c.is_category for c in self._codecs.values()], dtype=bool)

    @property
    def n_levels(self) -> Int:
        """Levels per column of the matrix, 0 for numeric ones, shape (n_columns,)."""
        return np.array([c.n_levels for c in self._codecs.values()], dtype=np.int64)

    def codec(self, name: str) -> Codec:
        """Return how a learnt column is encoded."""
        return self._codecs[name]

    def is_fixed(self, name: str) -> bool:
        """Tell whether a column that is not learnt has a known value: by the stratum, or always."""
        return name == self.label or name in self.by or self._fills[name]["rule"] == "constant"

    def guarding(
        self, rare: RareValues | None, *, lists_rare_levels: bool = False
    ) -> "TableEncoder":
        """Return the same encoder, which decodes to none of these rare values.

        A dictionary then lists the levels that enough records share, and the classes, unless ``lists_rare_levels``. A
        level is not changed: the model must not know the rare ones, see :func:`.without_rare_levels`.
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
            if not isinstance(codec, CategoryCodec):
                return values  # numbers, whose dictionary is no list of levels
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
            shown = self._of_stratum(self.schema.field(name))
        known = plain(values)  # views have no filter
        return known.filter(pc.is_in(known, value_set=plain(shown))).cast(values.type)

    def encode(self, table: pa.Table) -> Float:
        """Return the records in matrix form, float64 of shape (n_records, n_columns).

        NaN marks a value that is null, NaN, infinite, or a level not seen in fitting.
        """
        check_columns_there(table, self.names)
        X = np.empty((table.num_rows, len(self._codecs)), dtype=np.float64)
        for j, (name, codec) in enumerate(self._codecs.items()):
            X[:, j] = codec.encode(_as_type(plain(table.column(name)), codec.kind, name))
        return X

    def decode(
        self,
        X: Float,
        *,
        strata: Sequence[str],
        ordinals: Int | None = None,
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
        codes = self._stratum_codes(strata)
        ordinals = ranks_within(codes) if ordinals is None else np.asarray(ordinals, dtype=np.int64)
        places = ordinals * len(self._strata) + codes  # distinct, and independent of n
        values: list[pa.Array] = []
        fields = [f for f in self.schema if columns is None or f.name in columns]
        for field in fields:
            if field.name in self._codecs:
                column = self._decoded(X, field.name, is_given=field.name in given)
            elif field.name in self._fills:
                column = fill_column(field, self._fills[field.name], places=places, aug_ids=aug_ids)
            else:
                column = self._of_stratum(field, codes)
            values.append(self._conformed(field, column, self._shown))
        return pa.table(values, schema=pa.schema(fields, self.schema.metadata))

    def _decoded(self, X: Float, name: str, *, is_given: bool) -> pa.Array:
        codec, j = self._codecs[name], self.names.index(name)
        x = X[:, j]
        if self._rare is not None and isinstance(codec, NumberCodec) and not is_given:
            x = self._rare.apart(j, x, codec)
        return codec.decode(x)

    def decode_learnt(self, X: Float) -> pa.Table:
        """Return a matrix (n, n_columns) as the learnt columns alone, in their types; any value may be null."""
        fields = [self.schema.field(name).with_nullable(True) for name in self.names]
        return pa.table(
            [
                self._conformed(f, self._codecs[f.name].decode(X[:, j]), self._dictionaries)
                for j, f in enumerate(fields)
            ],
            schema=pa.schema(fields),
        )

    def labels(self, classes: Sequence[str]) -> Array:
        """Return classes by their names as values of the label column, shape (n_classes,); None if never seen."""
        values = {
            stratum_parts(name, self.by)[0]: v[self.label] for name, v in self._strata.items()
        }
        kind = value_type(self.schema.field(self.label).type)
        column = values_from_json([values.get(name) for name in classes], kind)
        return np.asarray(column.to_pandas())

    def in_domain(self, X: Float, *, may_miss: Collection[int] = ()) -> Bool:
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

    def to_config(self) -> dict[str, Any]:
        """Return the encoder as plain JSON: the inverse of :meth:`from_config`."""
        learnt = {name: codec.config() for name, codec in self._codecs.items()}
        return {**super().to_config(), "learnt": learnt, "not_learnt": self._fills}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the encoder that :meth:`to_config` wrote down."""
        known = cls._of_all(config)
        learnt = {
            field.name: codec_from_config(config["learnt"][field.name], value_type(field.type))
            for field in known["schema"]  # JSON has no order
            if field.name in config["learnt"]
        }
        return cls(**known, codecs=learnt, fills=config["not_learnt"])


def _as_type(values: pa.Array, kind: pa.DataType, column: str) -> pa.Array:
    """Return the values in the type that the encoder was fitted on, where that loses nothing."""
    if values.type == kind:
        return values
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise SchemaError(
            f"column {column!r} is {values.type} and was {kind} when the encoder was fitted: {exc}; cast it to that "
            "type.",
            column=column,
        ) from exc


def fit_fill(field: pa.Field, column: pa.ChunkedArray, kind: str) -> dict[str, Any]:
    """Return, as JSON, the rule that fills a column without a codec (constant, empty, identifier, opaque).

    Constants are repeated; ``empty`` and ``opaque`` columns become null, as do nullable identifiers that are
    no numbers. Other identifiers are fresh: signed and float ones count down from ``min(0, smallest) - 1``,
    unsigned ones from the type's maximum (the next free number would collide with validation or hold-out
    records), text is ``synthetic-`` and 16 digits of the ``aug_id``. Raises ParameterError if the column
    may not be null and no rule fits.
    """
    values = plain(column)
    if kind == "constant" and values.null_count < len(values):
        return {
            "rule": "constant",
            "value": values_to_json(values.drop_null()[:1], column=field.name)[0],
        }
    if kind == "identifier":
        signed = pa.types.is_signed_integer(values.type) or (
            pa.types.is_floating(values.type) and not field.nullable
        )
        if signed:
            smallest = pc.min(values).as_py() if values.null_count < len(values) else 0
            return {"rule": "count", "first": min(0, int(np.floor(smallest))) - 1}
        if pa.types.is_unsigned_integer(values.type):
            return {"rule": "count", "first": 2**values.type.bit_width - 1}
        if not field.nullable and (
            pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        ):
            return {"rule": "text"}
    if not field.nullable:
        raise ParameterError(
            f"column {field.name!r} ({kind}, {field.type}) may not be null and cannot be made, so synthetic records "
            "have no value for it; drop it with a source.columns entry, make it nullable, or use model none.",
            column=field.name,
        )
    return {"rule": "null"}


def fill_column(
    field: pa.Field, rule: dict[str, Any], *, places: Int, aug_ids: Sequence[str] | None
) -> pa.Array:
    """Return the column's values for new records by a rule of :func:`fit_fill`, dictionaries decoded.

    ``places`` holds a number per record that no other record has; text identifiers need ``aug_ids``.
    """
    n = len(places)
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if rule["rule"] == "constant":
        value = values_from_json([rule["value"]], kind)
        values = value.take(pa.array(np.zeros(n, dtype=np.int64)))
    elif rule["rule"] == "count":
        values = _counted(field, kind, rule["first"], places)
    elif rule["rule"] == "text":
        if aug_ids is None:
            raise ParameterError(
                f"column {field.name!r} is named after each record's aug_id; pass aug_ids."
            )
        values = pa.array([f"synthetic-{aug_id[:16]}" for aug_id in aug_ids], type=kind)
    else:
        values = pa.nulls(n, field.type)
    return values


def _counted(field: pa.Field, kind: pa.DataType, first: int, places: Int) -> pa.Array:
    """Return ``first - place``; raises ParameterError beyond the type's range."""
    if not pa.types.is_integer(kind):
        return pa.array((first - places).astype(np.float64)).cast(kind)
    lowest = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
    if len(places) and first - int(places.max()) < lowest:
        raise ParameterError(
            f"identifier column {field.name!r} is {kind}, which has no fresh number left for "
            f"{int(places.max()) + 1} synthetic records; widen its type, or drop it with a source.columns entry.",
            column=field.name,
        )
    wide = np.uint64 if pa.types.is_unsigned_integer(kind) else np.int64
    return pa.array(wide(first) - places.astype(wide)).cast(kind)
