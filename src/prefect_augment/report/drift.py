"""What changed since the version before: class counts, recipe, verdict.

Columns are left to a monitor.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.schema import (
    ClassDrift,
    Drift,
    Interval,
    Manifest,
    Release,
    StrategyDrift,
    Verdict,
)
from prefect_augment.storage import Store, list_versions, read_manifest
from prefect_augment.text import count, natural_order, percent

logger = logging.getLogger(__name__)

ALPHA = 0.01  # of a false flag among all classes
MAX_NAMED = 4  # classes in a sentence


def find_previous(store: Store, dataset_key: str) -> Manifest | None:
    """The newest version that was not made from these inputs; None where there is none.

    A run that repeats what it has published is compared with the version before that, so its report
    stays the same.
    """
    for version in reversed(list_versions(store)):
        try:
            manifest = read_manifest(store, version)
        except (IntegrityError, SchemaError) as exc:
            logger.info("drift: version %d is left out: %s", version, exc)
            continue
        if manifest.dataset_key != dataset_key:
            return manifest
    return None


def drift_since(before: Manifest, release: Release) -> Drift:
    """Changes since a version."""
    old = {
        name: origins["real"]
        for name, origins in before.class_counts.get("train", {}).items()
        if origins.get("real")
    }
    new = release.experiment.plan.real_counts
    drift = Drift(
        version=before.version,
        n_before=sum(old.values()),
        n_now=sum(new.values()),
        classes=class_drifts(old, new),
        strategies=_strategy_drifts(before.verdict, release.verdict),
        recipe_before=before.recipe.strategy.name,
        recipe_now=release.recipe.strategy.name if release.recipe else "",
        verdict_before=before.verdict.decision if before.verdict else "",
        verdict_now=release.verdict.decision if release.verdict else "",
    )
    return drift.model_copy(update={"sentence": _sentence(drift)})


def class_drifts(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[ClassDrift, ...]:
    """Every class of the two versions, by its size now; a share has moved if the change exceeds chance."""
    names = sorted({*before, *now}, key=lambda c: (-now.get(c, 0), natural_order(c)))
    n, m = sum(before.values()), sum(now.values())
    n_eff = n * m / (n + m) if n and m else 0.0
    drifts = []
    for name in names:
        a, b = before.get(name, 0), now.get(name, 0)
        noise = _share_noise((a + b) / max(n + m, 1), n_eff, ALPHA / max(len(names), 1))
        moved = abs(a / max(n, 1) - b / max(m, 1)) > noise
        drifts.append(
            ClassDrift(name=name, before=a, now=b, noise=noise, changed=moved or not (a and b))
        )
    return tuple(drifts)


def _share_noise(share: float, n_eff: float, alpha: float) -> float:
    """How far a share moves by chance: two-sided, by the normal distribution."""
    if n_eff == 0:
        return 1.0
    # At least one record of variance: a share of 0 has none, and may still move.
    variance = max(share * (1 - share), 1 / (1 + n_eff)) / n_eff
    return min(1.0, NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(variance))


def _strategy_drifts(before: Verdict | None, now: Verdict | None) -> tuple[StrategyDrift, ...]:
    """Every strategy of one of two hold-outs, the best now first."""
    was, now_ = (verdict.balanced_accuracy if verdict else {} for verdict in (before, now))
    names = sorted(
        {*was, *now_},
        key=lambda name: (-now_[name].estimate if name in now_ else 1.0, natural_order(name)),
    )
    return tuple(
        StrategyDrift(
            name=name,
            before=was.get(name),
            now=now_.get(name),
            changed=_apart(was.get(name), now_.get(name)),
        )
        for name in names
    )


def _apart(a: Interval | None, b: Interval | None) -> bool:
    """Whether two estimates differ by more than the root of the sum of their squared half-widths."""
    if a is None or b is None:
        return False
    widths = math.hypot((a.high - a.low) / 2, (b.high - b.low) / 2)
    return abs(a.estimate - b.estimate) > widths


def _sentence(drift: Drift) -> str:
    more = drift.n_now - drift.n_before
    size = (
        f"{count(abs(more))} records {'more' if more > 0 else 'fewer'}"
        if more
        else "as many records"
    )
    if more and drift.n_before:
        size += f" ({percent(abs(more) / drift.n_before)} %)"
    parts = [f"Since version {drift.version}: {size}."]
    parts += _named("New classes", [c.name for c in drift.classes if not c.before])
    parts += _named("Classes that are gone", [c.name for c in drift.classes if not c.now])
    moved = [c.name for c in drift.classes if c.changed and c.before and c.now]
    parts += _named("Classes whose share moved beyond chance", moved)
    if drift.recipe_before and drift.recipe_now and drift.recipe_before != drift.recipe_now:
        parts.append(f"The recipe was “{drift.recipe_before}” and is “{drift.recipe_now}”.")
    return " ".join(parts)


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{what}: {', '.join(f'“{name}”' for name in names[:MAX_NAMED])}{more}."]
