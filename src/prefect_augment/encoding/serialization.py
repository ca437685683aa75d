"""What the encoders of tables and images share: strata, the source's exact types, and their form as JSON."""

import base64
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Int
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.values import plain, value_type, values_from_json, values_to_json
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.schema import Modality, class_order
from prefect_augment.storage import sha256_hex

FORMAT = 1


class StoredEncoder(ABC):
    """An encoder that is written beside the weights of its model."""

    modality: ClassVar[Modality]

    def __init__(
        self,
        *,
        schema: pa.Schema,
        label: str,
        by: Sequence[str],
        dictionaries: Mapping[str, pa.Array],
        strata: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.schema = schema
        self.label = label
        self.by = tuple(by)
        # Each dictionary column's values in the source's order, unused ones included, as pandas shows them.
        self._dictionaries = dict(dictionaries)
        # Stratum -> column (the label and the ``by`` columns) -> value as JSON.
        self._strata = dict(strata)

    @staticmethod
    def _of_records(
        table: pa.Table, names: Collection[str], label: str, by: Sequence[str]
    ) -> dict[str, Any]:
        """Return the arguments of every encoder that is fitted on the columns ``names`` of records."""
        fields = [field for field in table.schema if field.name in names]
        # As it is read from storage: Arrow renames the fields inside a map.
        schema = _from_bytes(pa.schema(fields, table.schema.metadata).serialize())
        dictionaries = {}
        for field in schema:
            if pa.types.is_dictionary(field.type):
                chunks = table.column(field.name).unify_dictionaries().chunks
                none = pa.array([], field.type.value_type)
                dictionaries[field.name] = chunks[0].dictionary if chunks else none
        strata = _stratum_values(table, label, by)
        return {
            "schema": schema,
            "label": label,
            "by": by,
            "dictionaries": dictionaries,
            "strata": strata,
        }

    def to_config(self) -> dict[str, Any]:
        """Return the encoder as plain JSON for :meth:`from_config`."""
        return {
            "format": FORMAT,
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "types": {field.name: str(field.type) for field in self.schema},  # for people
            "label": self.label,
            "by": list(self.by),
            "dictionaries": {k: values_to_json(v, column=k) for k, v in self._dictionaries.items()},
            "strata": self._strata,
        }

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the encoder that :meth:`to_config` wrote down."""

    @classmethod
    def _of_all(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of every encoder from a config; ParameterError for another kind or format."""
        modality = config.get("modality", "table")
        if config.get("format") != FORMAT or modality != cls.modality:
            raise ParameterError(
                f"the encoder has format {config.get('format')!r} of {modality!r} data; this version reads {FORMAT} "
                f"of {cls.modality!r} data; train the model again."
            )
        schema = _from_bytes(base64.b64decode(config["schema"]))
        return {
            "schema": schema,
            "label": config["label"],
            "by": config["by"],
            "dictionaries": {
                name: values_from_json(values, value_type(schema.field(name).type))
                for name, values in config["dictionaries"].items()
            },
            "strata": {name: config["strata"][name] for name in class_order(config["strata"])},
        }

    @property
    def strata(self) -> tuple[str, ...]:
        """Strata seen, in their natural order."""
        return tuple(self._strata)

    def stratum_labels(self) -> pa.Array:
        """Return the label's value in each stratum, in the label's own type and the strata's order."""
        field = self.schema.field(self.label)
        return self._conformed(field, self._of_stratum(field), self._dictionaries)

    def _stratum_codes(self, strata: Sequence[str]) -> Int:
        """Return the index of each record's stratum; raises ParameterError for an unknown one."""
        index = {name: k for k, name in enumerate(self._strata)}
        unknown = sorted(set(strata) - set(index))
        if unknown:
            raise ParameterError(
                f"unknown strata {unknown}; the encoder has seen: {', '.join(map(repr, index))}."
            )
        return np.array([index[name] for name in strata], dtype=np.int64)

    def _of_stratum(self, field: pa.Field, codes: Int | None = None) -> pa.Array:
        """Return the label or a ``by`` column of records whose strata these are (default: each stratum once)."""
        known = [values[field.name] for values in self._strata.values()]
        values = values_from_json(known, value_type(field.type))
        return values if codes is None else values.take(pa.array(codes))

    @staticmethod
    def _conformed(
        field: pa.Field, column: pa.Array, dictionaries: Mapping[str, pa.Array]
    ) -> pa.Array:
        """Return the column in its field's type; raises ParameterError for a null that the field forbids."""
        if column.null_count and not field.nullable:
            raise ParameterError(
                f"column {field.name!r} may not be null, and a record has no value for it; "
                "a model may leave a value out only where it has seen that."
            )
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
            levels = dictionaries[field.name]
            indices = pc.index_in(column, value_set=plain(levels), skip_nulls=True)
            if levels.type != field.type.value_type:  # a view that was loaded as plain text
                levels = levels.cast(field.type.value_type)
            return pa.DictionaryArray.from_arrays(
                indices.cast(field.type.index_type), levels, ordered=field.type.ordered
            )
        if pa.types.is_run_end_encoded(field.type) and not pa.types.is_run_end_encoded(column.type):
            return pc.run_end_encode(column, run_end_type=field.type.run_end_type)
        return column if column.type == field.type else column.cast(field.type)

    def outgrown_by(self, other: "StoredEncoder") -> str:
        """Return how records of ``other``, fitted on these and more, exceed this encoder's domain; else "".

        The domain is the columns and strata; of a table the levels and grids, and each number's range plus a
        twentieth of it; of images the sizes and colours. The text is the end of a sentence.
        """
        if type(other) is not type(self) or other.schema != self.schema:
            return "the columns differ"
        if (other.label, other.by, other.strata) != (self.label, self.by, self.strata):
            return "the classes differ"
        return self._values_outgrown_by(other)

    @abstractmethod
    def _values_outgrown_by(self, other: Self) -> str:
        """Return how the values of ``other`` exceed this encoder's domain; else ""."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the encoder's JSON, 64 hexadecimal digits."""
        return sha256_hex(self.to_json())

    def to_json(self) -> bytes:
        """Return the encoder as JSON bytes; equal encoders give equal bytes."""
        return (
            json.dumps(self.to_config(), sort_keys=True, indent=1, ensure_ascii=True) + "\n"
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return the encoder that :meth:`to_json` wrote down."""
        return cls.from_config(json.loads(data))


def _from_bytes(schema: Any) -> pa.Schema:
    return pa.ipc.read_schema(pa.BufferReader(schema))


def _stratum_values(table: pa.Table, label: str, by: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return per stratum the values of label and ``by`` columns: the most frequent of its name."""
    names = table_strata(table, label=label, by=by)
    columns = [values_to_json(plain(table.column(name)), column=name) for name in (label, *by)]
    counts = Counter(zip(names, *columns, strict=True))
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], repr(item[0])))
    known: dict[str, dict[str, Any]] = {}
    for (stratum, *values), _ in ordered:
        known.setdefault(stratum, dict(zip((label, *by), values, strict=True)))
    return {name: known[name] for name in class_order(known)}


def check_columns_there(table: pa.Table, names: Iterable[str]) -> None:
    """Raise SchemaError for columns that a table lacks."""
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"columns {missing} are missing; the table has {table.column_names}. "
            "It has to have the columns that the encoder was fitted on.",
            columns=missing,
        )
