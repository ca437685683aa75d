"""Which generative models ``model: auto`` tries, and which it passes over and why."""

from __future__ import annotations

from importlib.util import find_spec

from prefect_augment.datatypes import BalancePlan, DatasetFacts
from prefect_augment.params import AutoModel, Budget, FlowModel, ModelParams, TreesModel
from prefect_augment.registry import model_kinds, resolve_model
from prefect_augment.stages.records import SMALL_VAL

__all__ = ["PILOT_SHARE", "model_of", "pilot_budget", "suitable", "training_budget"]

# Of a model's training, what its pilot gets.
PILOT_SHARE = 0.25
_BY_NAME = "tried only where it is asked for by name: it was ahead of the others on no set that it was measured on"
_TABLES: dict[str, ModelParams] = {"trees": TreesModel(), "flow": FlowModel()}


def suitable(
    facts: DatasetFacts, plan: BalancePlan, model: ModelParams
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the kinds of models to compare by pilots, and why others are passed over.

    Parameters
    ----------
    facts : DatasetFacts
        Of the ingested records.
    plan : BalancePlan
        Without synthetic records in it, no model is tried.
    model : ModelParams
        The wish; one by name is not compared with others.

    Returns
    -------
    tuple of str
        Kinds; no more than one leaves nothing to compare.
    dict of str to str
        Kind -> reason, for the report.
    """
    kind = resolve_model(model, modality=facts.modality)
    if not isinstance(model, AutoModel) or kind is None or not plan.n_synthetic:
        return ((kind,) if kind and plan.n_synthetic else ()), {}
    over = {k: _BY_NAME for k in model_kinds(facts.modality) if k != kind}
    if facts.modality == "image":
        return (kind,), over
    del over["flow"]
    n_val = min((facts.part_counts.get("val", {}).get(k, 0) for k in facts.judged), default=0)
    if find_spec("torch") is None:
        over["flow"] = "it needs the extra torch"
    elif n_val < SMALL_VAL["table"]:
        over["flow"] = (
            f"it is trained in steps, and the rarest judged class has {n_val} val records: arms are compared by "
            f"folds below {SMALL_VAL['table']}, and every fold would take its whole budget"
        )
    else:
        return (kind, "flow"), over
    return (kind,), over


def model_of(kind: str) -> ModelParams:
    """Return the params of a kind that :func:`suitable` names for tables."""
    return _TABLES[kind]


def pilot_budget(budget: Budget) -> Budget:
    """Return what a pilot's training may take: a quarter of what the run's would."""
    return budget.model_copy(
        update={
            "minutes": PILOT_SHARE * budget.minutes,
            "steps": max(1, round(PILOT_SHARE * budget.steps)) if budget.steps else 0,
        }
    )


def training_budget(budget: Budget, n_piloted: int) -> Budget:
    """Return what training may take after so many kinds' pilots: of minutes what these have left.

    Steps are as many as were asked for.
    """
    if budget.steps:
        return budget
    left = 1 - PILOT_SHARE * n_piloted
    return budget.model_copy(update={"minutes": left * budget.minutes})
