"""The storage form of every encoder: JSON bytes, equal for equal encoders, and their digest."""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from prefect_augment.encoding.strata import StratumValues, conform_column, stratum_column
from prefect_augment.encoding.values import value_type, values_from_json, values_to_json
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
        strata: StratumValues,
    ) -> None:
        self.schema = schema
        self.label = label
        self.by = tuple(by)
        self._dictionaries = dict(dictionaries)
        self._strata = dict(strata)

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
        schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(config["schema"])))
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
        values = stratum_column(field, self._strata, np.arange(len(self._strata)))
        return conform_column(field, values, self._dictionaries)

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


def check_columns_there(table: pa.Table, names: Iterable[str]) -> None:
    """Raise SchemaError for columns that a table lacks."""
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"columns {missing} are missing; the table has {table.column_names}. "
            "It has to have the columns that the encoder was fitted on.",
            columns=missing,
        )
