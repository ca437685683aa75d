"""Which models can do more than sample, by the methods of their class."""

from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.params import AutoModel, ModelParams, NoModel
from prefect_augment.registry import MODELS, load_model_class, resolve_model
from prefect_augment.schema import Modality

# One method of each of the protocols Encodes, ScoresClasses and Denoises in genmodels/base.py.
Ability = Literal["latents", "likelihoods", "denoising"]
_METHODS: dict[Ability, str] = {
    "latents": "embed",
    "likelihoods": "class_log_likelihoods",
    "denoising": "denoise",
}
_CAN: dict[Ability, str] = {
    "latents": "has a latent space",
    "likelihoods": "knows how likely a record is in a class",
    "denoising": "takes noise out of records",
}
_LACKS: dict[Ability, str] = {
    "latents": "has no latent space",
    "likelihoods": "does not know how likely a record is in a class",
    "denoising": "does not take noise out of records",
}


def able_model(
    model: ModelParams, ability: Ability, *, modality: Modality | None = None
) -> ModelParams:
    """Return the model to train for an ability; ``auto`` stands for the first registered kind that has it.

    Without a modality, the ability for any kind of data suffices. Raises ParameterError, which names the
    capable kinds, if the model is not capable, none is, or it is ``none``.
    """
    if isinstance(model, NoModel):
        raise ParameterError(
            f"model is 'none', and this needs one that {_CAN[ability]}; "
            f"{_choose(ability, modality or 'table')}."
        )
    if isinstance(model, AutoModel):
        able = _capable(ability, modality or "table")
        if not able:
            raise ParameterError(
                f"there is {_no_model(ability, modality or 'table')}.{_missing(modality or 'table')}"
            )
        return _params_of(able[0])
    modality = modality or _able_for(model, ability)
    kind = resolve_model(model, modality=modality)  # raises for another modality
    check_able(load_model_class(model, modality=modality), kind or "", ability, modality=modality)
    return model


def check_able(model: Any, kind: str, ability: Ability, *, modality: Modality) -> None:
    """Raise ParameterError for a model, or a class of models, without an ability; it names kinds that have it."""
    if not hasattr(model, _METHODS[ability]):
        raise ParameterError(
            f"model {kind!r} {_LACKS[ability]}; {_choose(ability, modality)}.", kind=kind
        )


def _choose(ability: Ability, modality: Modality) -> str:
    able = _capable(ability, modality)
    if not able:
        return f"there is {_no_model(ability, modality)}.{_missing(modality)}".removesuffix(".")
    return f"choose {' or '.join(able)}"


def _no_model(ability: Ability, modality: Modality) -> str:
    return f"no model of {modality} data that {_CAN[ability]}"


def _missing(modality: Modality) -> str:
    """Return advice to install missing packages of this modality's models; empty if there are none."""
    for kind in MODELS:
        if _models(params := _params_of(kind), modality):
            try:
                load_model_class(params, modality=modality)
            except MissingExtraError as exc:
                return f" {exc}"
    return ""


def _capable(ability: Ability, modality: Modality) -> list[str]:
    """Return the capable kinds of those whose packages are installed, in the registry's order."""
    candidates = {kind: _params_of(kind) for kind in MODELS}
    return [
        kind
        for kind, params in candidates.items()
        if _models(params, modality) and _is_able(params, ability, modality)
    ]


def _params_of(kind: str) -> ModelParams:
    """Return the parameters of a kind with their defaults."""
    model: ModelParams = TypeAdapter(ModelParams).validate_python({"kind": kind})
    return model


def _able_for(model: ModelParams, ability: Ability) -> Modality:
    """Return the modality for which a model is capable, else the first that it models."""
    modalities: list[Modality] = [m for m in get_args(Modality) if _models(model, m)]
    return next((m for m in modalities if _is_able(model, ability, m)), modalities[0])


def _models(model: ModelParams, modality: Modality) -> bool:
    try:
        resolve_model(model, modality=modality)
    except ParameterError:
        return False
    return True


def _is_able(model: ModelParams, ability: Ability, modality: Modality) -> bool:
    try:
        return hasattr(load_model_class(model, modality=modality), _METHODS[ability])
    except MissingExtraError:
        return False
