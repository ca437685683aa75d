"""Which models can do more than sample: found by what their class offers, not by their names."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.params import AutoModel, ModelParams, NoModel
from prefect_augment.registry import MODELS, load_model_class, resolve_model
from prefect_augment.schema.base import Modality

__all__ = ["Ability", "able_model", "check_able"]

# As the protocols Encodes, ScoresClasses and Denoises of genmodels/base.py say, and the method that tells.
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
    """Return the model to train where one with an ability is needed.

    Parameters
    ----------
    model : ModelParams
        The wish. ``auto`` stands for the first registered kind that is able, with its defaults.
    ability : {"latents", "likelihoods", "denoising"}
        What the model has to offer.
    modality : str, optional
        The kind of data; while it is not known, it is enough to be able for any.

    Raises
    ------
    ParameterError
        If the model is not able, none is, or no model is wanted; names those that are.
    """
    if isinstance(model, NoModel):
        raise ParameterError(
            f"model is 'none', and this needs one that {_CAN[ability]}; "
            f"{_choose(ability, modality or 'table')}."
        )
    if isinstance(model, AutoModel):
        able = _able_kinds(ability, modality or "table")
        if not able:
            raise ParameterError(
                f"there is {_no_model(ability, modality or 'table')}.{_missing(modality or 'table')}"
            )
        return _wish(able[0])
    of = modality or _able_for(model, ability)
    kind = resolve_model(model, modality=of)  # of another modality: says so
    check_able(load_model_class(model, modality=of), kind or "", ability, modality=of)
    return model


def check_able(model: Any, kind: str, ability: Ability, *, modality: Modality) -> None:
    """Refuse a model, or a class of models, that lacks an ability.

    Raises
    ------
    ParameterError
        Names the kinds that have it.
    """
    if not hasattr(model, _METHODS[ability]):
        raise ParameterError(
            f"model {kind!r} {_LACKS[ability]}; {_choose(ability, modality)}.", kind=kind
        )


def _choose(ability: Ability, modality: Modality) -> str:
    able = _able_kinds(ability, modality)
    if not able:
        return f"there is {_no_model(ability, modality)}.{_missing(modality)}".removesuffix(".")
    return f"choose {' or '.join(able)}"


def _no_model(ability: Ability, modality: Modality) -> str:
    return f"no model of {modality} data that {_CAN[ability]}"


def _missing(modality: Modality) -> str:
    """Return the advice to install what models of this kind of data lack; empty where they lack nothing."""
    for kind in MODELS:
        if _makes(wish := _wish(kind), modality):
            try:
                load_model_class(wish, modality=modality)
            except MissingExtraError as exc:
                return f" {exc}"
    return ""


def _able_kinds(ability: Ability, modality: Modality) -> list[str]:
    """Return the kinds that are able, of those whose packages are installed, as they are registered."""
    wishes = {kind: _wish(kind) for kind in MODELS}
    return [
        kind
        for kind, wish in wishes.items()
        if _makes(wish, modality) and _is_able(wish, ability, modality)
    ]


def _wish(kind: str) -> ModelParams:
    """Return the wish for a kind with its defaults."""
    found: ModelParams = TypeAdapter(ModelParams).validate_python({"kind": kind})
    return found


def _able_for(model: ModelParams, ability: Ability) -> Modality:
    """Return the kind of data for which a model is able; else the first that it makes."""
    made: list[Modality] = [m for m in get_args(Modality) if _makes(model, m)]
    return next((m for m in made if _is_able(model, ability, m)), made[0])


def _makes(model: ModelParams, modality: Modality) -> bool:
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
