"""The name of a step's outcome: from its version, the parameters that change its bytes, and its inputs.

:data:`STEPS` names those parameters, :data:`UNUSED` the others with the reason. A test goes over every field of
every class of parameters.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Step:
    """A step whose outcome is found again by its key."""

    version: int  # raised when the code gives other bytes for the same parameters and inputs
    # Parameters that change bytes: a section, or a field as budget.steps.
    uses: tuple[str, ...] = ()


#: Each fold of a table trains the model, samples and filters again.
_SCORES = ("model", "classic", "encoder", "evaluation.estimators", "evaluation.metric", "quality")
_TRAINING_BUDGET = ("budget.minutes", "budget.steps", "budget.batch_size", "budget.reuse_growth")
_VERDICT = (
    "evaluation.n_seeds", "evaluation.max_recall_loss", "evaluation.n_bootstrap", "evaluation.on_no_gain",
    "publish.require",
)  # fmt: skip

STEPS: dict[str, Step] = {
    "ingest": Step(7, ("source",)),
    "select": Step(2, ("anomalies.train_on",)),
    "version": Step(2),
    "import": Step(5, ("source.max_megapixels",)),
    # A plan has no stored outcome; it is an input of the steps below.
    "plan": Step(1, ("balance", "budget.minutes", "budget.steps", "evaluation.n_settings")),
    "slowness": Step(1),
    "check_policy": Step(3, ("classic.max_label_damage",)),
    "train": Step(7, ("model", *_TRAINING_BUDGET, "quality.min_level_records")),
    "sample": Step(3),
    "filter": Step(10, ("quality", "encoder")),
    "encoder": Step(1, ("encoder.sha256",)),
    "features": Step(1, ("encoder",)),
    "privacy": Step(4),
    "draws": Step(5, ("model", "quality")),
    "pilot": Step(10, _SCORES),
    "predict": Step(4, _SCORES),
    "audit": Step(1, ("encoder", "evaluation.estimators")),
    "score": Step(10, _SCORES),
    "confirm": Step(15, (*_SCORES, *_VERDICT)),
    "augment": Step(3, ("classic", "quality.min_level_records")),
    "report-page": Step(10, ("report", "classic", "encoder")),
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

#: Parameters that change no byte of any step, and the reason.
UNUSED: dict[str, str] = {
    "source.uri": "the files' names, sizes and etags are inputs",
    "source.holdout_uri": "as source.uri",
    "source.storage_block": "how files are opened",
    "destination": "where the result goes",
    "classic.max_memory_mib": "refuses, and changes no record",
    "classic.on_label_damage": "warns or refuses",
    "encoder.uri": "the file's sha256 is used",
    "encoder.storage_block": "how the file is opened",
    "encoder.licence": "refuses, and is in the recipe, an input of the version",
    "budget.device": "recorded with the calibration, which reruns obey",
    "budget.devices": "an input of train where there are several",
    "budget.checkpoint_seconds": "how often work is saved",
    "quality.on_leak": "refuses, and changes no record",
    "approval": "who has to agree",
    "answer": "lowered amounts are in the recipe, an input of the version; labels are inputs of the next ingest",
    "publish.export": "a copy of the version",
    "compute": "where tasks run, and how many at the same time",
    "output.uri": "where the result goes",
    "output.storage_block": "how that is opened",
}


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes."""
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

    ``params`` are the sections that the step uses, by name; ``inputs`` are keys and digests of what it reads.
    """
    sections = dict(params) if params is not None else {}
    known = STEPS[step]
    used = {path: _value(sections, path) for path in known.uses}
    text = canonical_json([step, known.version, used, list(inputs), seed])
    return hashlib.sha256(text).hexdigest()[:24]


def _value(sections: Mapping[str, Any], path: str) -> Any:
    """Return a section without the fields that change no byte, or one field of it, as JSON."""
    name, _, field = path.partition(".")
    unused = {other.partition(".")[2] for other in UNUSED if other.startswith(f"{name}.")}
    value = sections[name]
    if isinstance(value, BaseModel):  # a plug-in's options may be a dict
        value = value.model_dump(mode="json", exclude=unused)
    return value[field] if field else value
