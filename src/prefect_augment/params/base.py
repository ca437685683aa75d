"""What all params have in common."""

from __future__ import annotations

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
