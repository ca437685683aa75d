"""What names the outcome of a step: its version, the parameters that change its bytes, its inputs.

:data:`STEPS` is the one place that says which parameters those are; :data:`UNUSED` lists the others, with the
reason. A test goes over every field of every class of parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

__all__ = ["STEPS", "UNUSED", "Step", "canonical_json", "step_key"]


@dataclass(frozen=True)
class Step:
    """A step whose outcome is found again by its key.

    Attributes
    ----------
    version : int
        Raised whenever the code would give other bytes for the same parameters and inputs.
    uses : tuple of str
        Parameters that change the bytes: a section (``quality``) or a field of one (``budget.steps``).
    """

    version: int
    uses: tuple[str, ...] = ()


#: What a fold of a table does again: train the model, sample, filter.
_DRAWS = ("model", "classic", "evaluation.estimators", "quality")

STEPS: dict[str, Step] = {
    "ingest": Step(5, ("source",)),
    "select": Step(2, ("anomalies.train_on",)),
    "version": Step(2),
    "import": Step(5, ("source.max_megapixels",)),
    # No outcome is kept of a plan: what it comes to is an input of the steps below.
    "plan": Step(1, ("balance", "budget.minutes", "budget.steps", "evaluation.n_settings")),
    "check_policy": Step(2, ("classic.max_label_damage",)),
    "train": Step(
        6, ("model", "budget.minutes", "budget.steps", "budget.batch_size", "budget.reuse_growth")
    ),
    "sample": Step(2),
    "filter": Step(5, ("quality",)),
    "privacy": Step(3),
    "draws": Step(1, ("model", "quality")),
    "pilot": Step(3, _DRAWS),
    "score": Step(4, _DRAWS),
    "confirm": Step(
        6,
        (
            *_DRAWS,
            "evaluation.n_seeds",
            "evaluation.max_recall_loss",
            "evaluation.n_bootstrap",
            "evaluation.on_no_gain",
        ),
    ),
    "augment": Step(2, ("classic",)),
    "report-page": Step(4, ("report", "classic")),
    "report": Step(3),
    "publish": Step(3, ("publish",)),
    "erase": Step(1),
    "embeddings": Step(3, ("output.parts",)),
    "anomalies": Step(3, ("output.parts", "anomalies")),
    "reconstructions": Step(4, ("output.parts", "reconstruction")),
    "denoised": Step(3, ("output.parts", "denoising")),
    "interpolations": Step(5, ("output.parts", "interpolation")),
    "shifts": Step(3, ("output.parts", "attribute_shift")),
    "classes": Step(2, ("output.parts", "classification")),
}

#: Parameters that change no byte of any step, and why.
UNUSED: dict[str, str] = {
    "source.uri": "the files' names, sizes and etags stand for it",
    "source.holdout_uri": "as source.uri",
    "source.storage_block": "says how files are opened",
    "destination": "says where the result goes",
    "classic.max_memory_mib": "refuses, and changes nothing that is made",
    "classic.on_label_damage": "warns or refuses",
    "budget.device": "recorded with the calibration, which reruns obey",
    "budget.checkpoint_seconds": "says how often work is saved",
    "quality.on_leak": "refuses, and changes nothing that is made",
    "approval": "says who has to agree",
    "answer": "what is lowered stands in the recipe, which names the version",
    "publish.export": "a copy of what is published",
    "compute": "says how many work at the same time",
    "output.uri": "says where the result goes",
    "output.storage_block": "says how that is opened",
}


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def step_key(
    step: str,
    params: Mapping[str, BaseModel] | BaseModel | None = None,
    *,
    inputs: Sequence[Any] = (),
    seed: int | None = None,
) -> str:
    """Return the name of a step's outcome, 24 hexadecimal digits.

    Parameters
    ----------
    step : str
        A name of :data:`STEPS`.
    params : mapping of str to Params, or RunParams
        The sections that the step uses, by their name.
    inputs : sequence
        What the step reads: keys, digests, anything that JSON can hold.
    seed : int, optional
        Where the step draws random numbers.
    """
    sections = dict(params) if params is not None else {}
    known = STEPS[step]
    used = {path: _value(sections, path) for path in known.uses}
    text = canonical_json([step, known.version, used, list(inputs), seed])
    return hashlib.sha256(text).hexdigest()[:24]


def _value(sections: Mapping[str, Any], path: str) -> Any:
    """Return a section without what changes no byte, or one field of it, as JSON."""
    name, _, field = path.partition(".")
    unused = {other.partition(".")[2] for other in UNUSED if other.startswith(f"{name}.")}
    value = sections[name]
    if isinstance(value, BaseModel):  # options of a plug-in that has no class for them are a dict
        value = value.model_dump(mode="json", exclude=unused)
    return value[field] if field else value
