"""The comparison of arms, as both flows run it."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_augment.datatypes import Arm, ArmScore, BalancePlan, DatasetRef, GateReport
from prefect_augment.params import Classic, Gate, ModelParams
from prefect_augment.tasks._runtime import run_each
from prefect_augment.tasks.judge import score_arm

__all__ = ["score_arms"]

N_FINALISTS = 3  # arms that are scored with all seeds, beside as is


def score_arms(
    arms: Sequence[Arm],
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    seed: int,
    n_seeds: int,
    workers: int,
    candidates: GateReport | None = None,
    device: str = "auto",
) -> list[ArmScore]:
    """Score all arms with one seed, and the best ones with all of them."""

    def each(items: list[dict[str, object]]) -> list[ArmScore]:
        return run_each(
            score_arm,
            items,
            workers=workers,
            dataset=dataset,
            plan=plan,
            model=model,
            classic=classic,
            gate=gate,
            run_seed=seed,
            candidates=candidates,
            device=device,
        )

    first = each([{"arm": arm, "seed": 0} for arm in arms])
    # As is is always among them; each finalist keeps the amount that its own search found.
    ranked = sorted(first, key=lambda s: (s.arm.family != "as_is", -s.score))
    finalists = [s.arm for s in ranked[: N_FINALISTS + 1]]
    rest = each([{"arm": arm, "seed": i} for arm in finalists for i in range(1, n_seeds)])
    return first + rest
