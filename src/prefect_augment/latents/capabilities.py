"""Which models can do more than sample, by the methods of their class."""

from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.params import AutoModel, ModelParams, NoModel
from prefect_augment.registry import MODELS, load_model_class, resolve_model
from prefect_augment.schema import Modality

Ability = Literal["latents", "likelihoods", "denoising"]
# A method (genmodels/base.py describes the first two); who has it; who has not.
_ABILITIES: dict[Ability, tuple[str, str, str]] = {
    "latents": ("embed", "has a latent space", "has no latent space"),
    "likelihoods": (
        "class_log_likelihoods",
        "knows how likely a record is in a class",
        "does not know how likely a record is in a class",
    ),
    "denoising": ("denoise", "takes noise out of records", "does not take noise out of records"),
}


def able_model(
    model: ModelParams, ability: Ability, *, modality: Modality | None = None
) -> ModelParams:
    """The model to train for an ability; ``auto`` stands for the first registered kind that has it.

    Without a modality, the ability for any kind of data suffices. Raises ParameterError, which names the
    capable kinds, if the model is not capable, none is, or it is ``none``.
    """
    if isinstance(model, NoModel):
        raise ParameterError(
            f"model is 'none', and this needs one that {_ABILITIES[ability][1]}; "
            f"{_choose(ability, modality or 'table')}."
        )
    if isinstance(model, AutoModel):
        able, why_none = _capable(ability, modality or "table")
        if not able:
            raise ParameterError(why_none)
        return TypeAdapter(ModelParams).validate_python({"kind": able[0]})
    if modality is None:  # one that the model can do it for, else the first that it models
        entry = MODELS.get(model.kind)
        known: list[Modality] = [*(entry.targets if entry else get_args(Modality))]
        modality = ([m for m in known if _is_able(model, ability, m)] or known)[0]
    kind = resolve_model(model, modality=modality)  # raises for another modality
    check_able(load_model_class(model, modality=modality), kind or "", ability, modality=modality)
    return model


def check_able(model: Any, kind: str, ability: Ability, *, modality: Modality) -> None:
    """Raise ParameterError for a model, or a class of models, without an ability; it names kinds that have it."""
    method, _, lacks = _ABILITIES[ability]
    if not hasattr(model, method):
        raise ParameterError(f"model {kind!r} {lacks}; {_choose(ability, modality)}.", kind=kind)


def _choose(ability: Ability, modality: Modality) -> str:
    able, why_none = _capable(ability, modality)
    return f"choose {' or '.join(able)}" if able else why_none.removesuffix(".")


def _capable(ability: Ability, modality: Modality) -> tuple[list[str], str]:
    """The capable kinds, in the registry's order, and a sentence for where there is none: what to install."""
    kinds = [kind for kind, entry in MODELS.items() if modality in entry.targets]
    advice = ""
    for kind in kinds:
        try:
            load_model_class(kind, modality=modality)
        except MissingExtraError as exc:
            advice = advice or f" {exc}"
    why_none = f"there is no model of {modality} data that {_ABILITIES[ability][1]}.{advice}"
    return [kind for kind in kinds if _is_able(kind, ability, modality)], why_none


def _is_able(model: str | ModelParams, ability: Ability, modality: Modality) -> bool:
    try:
        return hasattr(load_model_class(model, modality=modality), _ABILITIES[ability][0])
    except MissingExtraError:
        return False
