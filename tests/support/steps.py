"""The steps of a run from their parts, as tests put them together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect_augment.params import Classic, Publish, RunParams
from prefect_augment.plan.plan import plan as make_plan
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.publish.publish import publish
from prefect_augment.schema import (
    ApprovalDecision,
    BalancePlan,
    Commit,
    DatasetRef,
    Experiment,
    FilterResult,
    ModelRef,
    Recipe,
    Release,
    ReportRef,
    Strategy,
    Verdict,
)
from prefect_augment.storage import Store

__all__ = [
    "candidates_with",
    "experiment_of",
    "planned_experiment",
    "publish_arguments",
    "publish_parts",
    "release_of",
    "strategies_of",
]


def experiment_of(
    dataset: DatasetRef,
    plan: BalancePlan | None = None,
    *,
    candidates: FilterResult | None = None,
    **params: Any,
) -> Experiment:
    """An experiment with these sections of parameters."""
    plan = plan or BalancePlan.without_amounts()
    return Experiment(dataset=dataset, plan=plan, candidates=candidates, params=RunParams(**params))


def planned_experiment(
    dataset: DatasetRef, store: Store, *, changes: Mapping[str, Any] | None = None, **params: Any
) -> Experiment:
    """An experiment by the plan of these params, with changes to that plan."""
    planned = make_plan(dataset, RunParams(**params), store, compares=False)
    return experiment_of(dataset, planned.model_copy(update=changes), **params)


def strategies_of(*families: str, modality: Any = "table", **options: Any) -> list[Strategy]:
    """The strategies without a model that are of these families."""
    every = make_strategies(modality, **{"model": None, "classic": Classic(), **options})
    return [strategy for strategy in every if strategy.family in families]


def candidates_with(
    kept: Mapping[str, int], shares: Mapping[str, float] | None = None
) -> FilterResult:
    """What the filter says where it kept so many records; with soft labels these are rows."""
    return FilterResult(
        root="",
        path="",
        key="",
        purpose="utility",
        classes=(),
        kept=(),
        dropped=(),
        feature_space="",
        rows=dict(kept),
        shares=dict(shares or {}),
    )


def release_of(
    dataset: DatasetRef,
    plan: BalancePlan,
    recipe: Recipe | None = None,
    *,
    candidates: FilterResult | None = None,
    verdict: Verdict | None = None,
    classic: DatasetRef | None = None,
    models: Sequence[ModelRef] = (),
    requested: dict[str, Any] | None = None,
    release: dict[str, Any] | None = None,
    **params: Any,
) -> Release:
    """A release of these parts; ``params`` are sections of parameters."""
    return Release(
        experiment=experiment_of(dataset, plan, candidates=candidates, **params),
        recipe=recipe,
        verdict=verdict,
        classic=classic,
        models=tuple(models),
        requested=requested or {},
        **(release or {}),
    )


def publish_arguments(
    *,
    dataset: DatasetRef,
    plan: BalancePlan,
    recipe: Recipe,
    store: Store,
    verdict: Verdict | None = None,
    candidates: FilterResult | None = None,
    classic: DatasetRef | None = None,
    models: Sequence[ModelRef] = (),
    report: ReportRef | None = None,
    publish: Publish | None = None,
    requested: dict[str, Any] | None = None,
) -> tuple[Release, ReportRef | None, Store]:
    """What `publish` takes of these parts."""
    release = release_of(
        dataset,
        plan,
        recipe,
        candidates=candidates,
        verdict=verdict,
        classic=classic,
        models=models,
        requested=requested,
        publish=publish or Publish(),
    )
    return release, report, store


def publish_parts(
    *,
    approval: ApprovalDecision | None = None,
    on_progress: Callable[[float, str], None] | None = None,
    **parts: Any,
) -> Commit:
    """Publish a version of these parts."""
    return publish(*publish_arguments(**parts), approval=approval, on_progress=on_progress)
