"""Whether the synthetic records of a class are, taken together, like real ones: safe or unsafe.

The tests are exact: if candidates were unseen real records, any order of theirs and validation's
records would be equally likely.

``domain``
    More than ``max_fault_share`` of them break the domain.
``copies``
    More lie close to the training records than of as many real ones, beyond chance. There is no
    allowance: a model that copies some of its records fails as soon as it can be told at all.
``noise``
    More lie beyond validation's farther records, by ``max_fault_share`` and by more than chance.
``labels``
    A class-balanced classifier that has seen no synthetic record takes more of them for another class
    than of validation's, by ``max_fault_share`` and by more than chance.
``collapse``
    They cover less than ``min_coverage`` of what as many real records would.

All strata, checks and tests within a check share ``false_alarm`` evenly (Bonferroni): of sound
models at most that share has any class called unsafe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prefect_augment.array_types import Bool, Float
from prefect_augment.evaluation.neighbours import more_below, more_true
from prefect_augment.params import Quality
from prefect_augment.schema import ClassCheck, ClassVerdict

CHECKS = ("domain", "copies", "noise", "labels", "collapse")
MIN_TO_COMPARE = 20  # records a side
# Quantiles at which distances are compared: the smallest finds few exact copies among many sound
# records, the others find that many are a little too near. The median is for data in which a third of
# the real records are copies of one another. Noise is tested at the other end.
COPY_SHARES = (0.0, 0.05, 0.25, 0.5)
NOISE_SHARE = 0.05


@dataclass(frozen=True)
class CopyEvidence:
    """Distances to the nearest training record; 0 or 1 where only equality is known."""

    candidates: Float
    real: Float  # of real records that the model was not trained on


@dataclass(frozen=True)
class Evidence:
    """What is known of a stratum's candidates and of real records like them."""

    valid: Bool  # (n_candidates,) within the domain
    near: Sequence[CopyEvidence]  # of valid candidates, per space; the first also tells noise
    equal: Sequence[CopyEvidence] = ()  # 0 where a record is equal; has more real records than near
    wrong: Bool | None = None  # taken for another class; None where that cannot be tested
    real_wrong: Bool | None = None
    coverage: float = float("nan")  # of real records by candidates; NaN with too few
    full_coverage: float = float("nan")  # of real records by as many real ones


def class_checks(evidence: Evidence, limits: Quality, *, n_strata: int) -> tuple[ClassCheck, ...]:
    """The checks that are possible for a stratum, in the order of :data:`CHECKS`.

    ``n_strata`` are the strata that share the false-alarm level.
    """
    alpha = limits.false_alarm / (n_strata * len(CHECKS))
    checks: list[ClassCheck] = []
    n = int(evidence.valid.sum())
    if len(evidence.valid) >= MIN_TO_COMPARE:
        broken = float(1.0 - evidence.valid.mean())
        checks.append(_check("domain", broken, 0.0, None, broken > limits.max_fault_share))
    if n < MIN_TO_COMPARE:
        return tuple(checks)
    if evidence.near:
        checks.append(_copies(evidence, alpha))
        checks.append(_noise(evidence.near[0], alpha, limits.max_fault_share))
    if evidence.wrong is not None and evidence.real_wrong is not None:
        checks.append(_labels(evidence.wrong, evidence.real_wrong, alpha, limits.max_fault_share))
    if np.isfinite(evidence.coverage) and np.isfinite(evidence.full_coverage):
        coverage, full = evidence.coverage, evidence.full_coverage
        failed = coverage < limits.min_coverage * full
        checks.append(_check("collapse", coverage, full, None, failed))
    return tuple(checks)


def class_verdict(checks: Sequence[ClassCheck]) -> ClassVerdict:
    """Unsafe where a check failed; safe where none did and copies could be tested."""
    if any(not c.passed for c in checks):
        return "unsafe"
    return "safe" if any(c.name == "copies" for c in checks) else "not tested"


FAULTS = {
    "domain": "{observed:.0%} break the domain",
    "copies": "more are near to training records than of real ones ({observed:.1%}, real {expected:.1%})",
    "noise": "{observed:.0%} are far from every training record (real {expected:.0%})",
    "labels": "a classifier takes {observed:.0%} for another class (real {expected:.0%})",
    "collapse": "they cover {observed:.0%} of what real records do (real {expected:.0%})",
}


def describe_faults(name: str, checks: Sequence[ClassCheck], *, dropped: bool = False) -> str:
    """The failed checks of a class in one sentence."""
    faults = [FAULTS[c.name].format(**c.model_dump()) for c in checks if not c.passed]
    kept = "; none of them is used" if dropped else ""
    return f"{name}: the synthetic records are unsafe: {', '.join(faults)}{kept}."


def _copies(evidence: Evidence, alpha: float) -> ClassCheck:
    """Whether too many are close, by any space or kind of equality."""
    p_values = [
        more_below(e.candidates, e.real, share) for e in evidence.near for share in COPY_SHARES
    ]
    p_values += [more_true(e.candidates == 0, e.real == 0) for e in evidence.equal]
    p = min(1.0, min(p_values) * len(p_values))
    first = evidence.near[0]
    limit = np.quantile(first.real, NOISE_SHARE)
    share, expected = (
        float(np.mean((d < limit) | (d == 0))) for d in (first.candidates, first.real)
    )
    return _check("copies", share, expected, p, p < alpha)


def _noise(evidence: CopyEvidence, alpha: float, allowed: float) -> ClassCheck:
    p = more_below(-evidence.candidates, -evidence.real, NOISE_SHARE)
    limit = np.quantile(evidence.real, 1.0 - NOISE_SHARE)
    share, expected = (float(np.mean(d > limit)) for d in (evidence.candidates, evidence.real))
    return _check("noise", share, expected, p, p < alpha and share - expected > allowed)


def _labels(wrong: Bool, real_wrong: Bool, alpha: float, allowed: float) -> ClassCheck:
    p = more_true(wrong, real_wrong)
    share, expected = float(wrong.mean()), float(real_wrong.mean())
    return _check("labels", share, expected, p, p < alpha and share - expected > allowed)


def _check(
    name: Literal["domain", "copies", "noise", "labels", "collapse"],
    share: float,
    expected: float,
    p_value: float | None,
    failed: bool,
) -> ClassCheck:
    return ClassCheck(
        name=name, observed=share, expected=expected, p_value=p_value, passed=not bool(failed)
    )
