"""What every encoder offers for storage: JSON bytes, equal for equal encoders, and their digest."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from prefect_augment.storage import sha256_hex

__all__ = ["StoredEncoder"]


class StoredEncoder(ABC):
    """An encoder that is written beside the weights of its model."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` makes the same encoder of."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the encoder that :meth:`to_config` wrote down."""

    @abstractmethod
    def outgrown_by(self, other: StoredEncoder) -> str:
        """Return why this encoder does not serve records that ``other`` was fitted on; else nothing."""

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
