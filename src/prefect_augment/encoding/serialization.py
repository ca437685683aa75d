"""The storage form of every encoder: JSON bytes, equal for equal encoders, and their digest."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa

from prefect_augment.encoding.strata import StratumValues, conform_column, stratum_column
from prefect_augment.storage import sha256_hex

__all__ = ["StoredEncoder"]


class StoredEncoder(ABC):
    """An encoder that is written beside the weights of its model."""

    schema: pa.Schema
    label: str
    by: tuple[str, ...]
    _strata: StratumValues
    _dictionaries: Mapping[str, pa.Array]

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Return the encoder as plain JSON for :meth:`from_config`."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the encoder that :meth:`to_config` wrote down."""

    @property
    @abstractmethod
    def strata(self) -> tuple[str, ...]:
        """Strata seen, in their natural order."""

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
