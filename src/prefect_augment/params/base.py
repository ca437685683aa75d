"""What all params have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

__all__ = ["Params"]


def _title(name: str, info: object) -> str:
    """Return a field's name as the form shows it: ``holdout_uri`` is the hold-out URI."""
    words = [_WORDS.get(word, word) for word in name.removeprefix("n_").split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


_WORDS = {"uri": "URI", "mib": "MiB", "holdout": "hold-out", "prob": "probability"}


class Params(BaseModel):
    """Base of all params: unknown names are refused, so that a typing error is not ignored; so is infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, field_title_generator=_title, allow_inf_nan=False
    )

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return params that a checkpoint keeps; fields of earlier versions that have gone are left out."""
        return cls(**{name: value for name, value in stored.items() if name in cls.model_fields})
