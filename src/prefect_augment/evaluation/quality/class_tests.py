"""Whether a class's synthetic records as a whole are as real ones would be: safe or unsafe.

The gate drops single records. This asks of all candidates of a stratum together what no single one
can tell, by tests that are exact where candidates are real records that nobody has seen: any order
of theirs and of validation's is then as likely as any other.

``domain``
    More of them break the domain than ``max_fault_share``.
``copies``
    More lie nearest to the training records than of as many real ones would, by chance. There is no
    allowance: a generator that copies some of its records is found as soon as it can be told at all.
``noise``
    More lie beyond validation's farther records, by ``max_fault_share`` and by more than chance.
``labels``
    A class-balanced classifier, which has seen no synthetic record, takes more of them for another
    class than of validation's, by ``max_fault_share`` and by more than chance.
``collapse``
    They cover less than ``min_coverage`` of what as many real ones would.

Chance is bounded over everything that is looked at: all strata, checks and ways of looking of a check
share ``false_alarm`` evenly (Bonferroni), so that of sound generators at most that share has any
class called unsafe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Limits
from prefect_augment.evaluation.exact_tests import more_below, more_marked
from prefect_augment.schema.base import ClassCheck

__all__ = [
    "CHECKS",
    "MIN_TO_COMPARE",
    "CopyEvidence",
    "Evidence",
    "class_checks",
    "class_verdict",
    "said_of",
]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

CHECKS = ("domain", "copies", "noise", "labels", "collapse")
MIN_TO_COMPARE = 20  # records a side
# Where distances are looked at: the nearest real record finds few exact copies among many sound
# records, the others that many are a little too near; the median is there for sets in which a third of
# the real records are copies of one another. Noise is looked for at the other end.
COPY_SHARES = (0.0, 0.05, 0.25, 0.5)
NOISE_SHARE = 0.05


@dataclass(frozen=True)
class CopyEvidence:
    """One way in which candidates can be near to training records.

    Attributes
    ----------
    candidates, real : ndarray of float64
        Distance of each candidate, and of each real record that was not trained on, to the nearest
        training record; 0 or 1 where only equality is known.
    """

    candidates: Float
    real: Float


@dataclass(frozen=True)
class Evidence:
    """What is known of a stratum's candidates and of real records like them.

    Attributes
    ----------
    valid : ndarray of bool, shape (n_candidates,)
        Within the domain.
    near : sequence of CopyEvidence
        Ways of being near; the first one's distances also tell noise. Of valid candidates.
    equal : sequence of CopyEvidence
        Ways of being equal, 0 where a record is; with more real records than ``near`` has.
    wrong, real_wrong : ndarray of bool, optional
        Taken for another class by the judge; None where the class cannot be judged.
    coverage, full_coverage : float
        Of real records by the candidates, and by as many real ones; NaN where there are too few.
    """

    valid: Bool
    near: Sequence[CopyEvidence]
    equal: Sequence[CopyEvidence] = ()
    wrong: Bool | None = None
    real_wrong: Bool | None = None
    coverage: float = float("nan")
    full_coverage: float = float("nan")


def class_checks(evidence: Evidence, limits: Limits, *, n_strata: int) -> tuple[ClassCheck, ...]:
    """The checks that can be made of a stratum, in the order of :data:`CHECKS`.

    Parameters
    ----------
    evidence : Evidence
    limits : Limits
    n_strata : int
        Strata that are judged together.
    """
    alpha = limits.false_alarm / (n_strata * len(CHECKS))
    found: list[ClassCheck] = []
    n = int(evidence.valid.sum())
    if len(evidence.valid) >= MIN_TO_COMPARE:
        broken = float(1.0 - evidence.valid.mean())
        found.append(_check("domain", broken, 0.0, None, broken > limits.max_fault_share))
    if n < MIN_TO_COMPARE:
        return tuple(found)
    if evidence.near:
        found.append(_copies(evidence, alpha))
        found.append(_noise(evidence.near[0], alpha, limits.max_fault_share))
    if evidence.wrong is not None and evidence.real_wrong is not None:
        found.append(_labels(evidence.wrong, evidence.real_wrong, alpha, limits.max_fault_share))
    if np.isfinite(evidence.coverage) and np.isfinite(evidence.full_coverage):
        least = limits.min_coverage * evidence.full_coverage
        found.append(
            _check(
                "collapse",
                evidence.coverage,
                evidence.full_coverage,
                None,
                evidence.coverage < least,
            )
        )
    return tuple(found)


def class_verdict(checks: Sequence[ClassCheck]) -> Literal["safe", "unsafe", "not judged"]:
    """Unsafe where a check failed; safe where none did and copies could be looked for."""
    if any(not c.passed for c in checks):
        return "unsafe"
    return "safe" if any(c.name == "copies" for c in checks) else "not judged"


SAID = {
    "domain": "{found:.0%} break the domain",
    "copies": "more are near to training records than of real ones ({found:.1%}, real {expected:.1%})",
    "noise": "{found:.0%} are far from every training record (real {expected:.0%})",
    "labels": "a classifier takes {found:.0%} for another class (real {expected:.0%})",
    "collapse": "they cover {found:.0%} of what real records do (real {expected:.0%})",
}


def said_of(name: str, checks: Sequence[ClassCheck], *, dropped: bool = False) -> str:
    """What is wrong with a class, in one sentence."""
    faults = [SAID[c.name].format(**c.model_dump()) for c in checks if not c.passed]
    kept = "; none of them is used" if dropped else ""
    return f"{name}: the synthetic records are unsafe: {', '.join(faults)}{kept}."


def _copies(evidence: Evidence, alpha: float) -> ClassCheck:
    """Too many nearest, in any way of looking."""
    p_values = [
        more_below(way.candidates, way.real, share)
        for way in evidence.near
        for share in COPY_SHARES
    ]
    p_values += [more_marked(way.candidates == 0, way.real == 0) for way in evidence.equal]
    p = min(1.0, min(p_values) * len(p_values))
    first = evidence.near[0]
    limit = np.quantile(first.real, NOISE_SHARE)
    found, expected = (
        float(np.mean((d < limit) | (d == 0))) for d in (first.candidates, first.real)
    )
    return _check("copies", found, expected, p, p < alpha)


def _noise(way: CopyEvidence, alpha: float, allowed: float) -> ClassCheck:
    p = more_below(-way.candidates, -way.real, NOISE_SHARE)
    limit = np.quantile(way.real, 1.0 - NOISE_SHARE)
    found, expected = (float(np.mean(d > limit)) for d in (way.candidates, way.real))
    return _check("noise", found, expected, p, p < alpha and found - expected > allowed)


def _labels(wrong: Bool, real_wrong: Bool, alpha: float, allowed: float) -> ClassCheck:
    p = more_marked(wrong, real_wrong)
    found, expected = float(wrong.mean()), float(real_wrong.mean())
    return _check("labels", found, expected, p, p < alpha and found - expected > allowed)


def _check(
    name: Literal["domain", "copies", "noise", "labels", "collapse"],
    found: float,
    expected: float,
    p_value: float | None,
    failed: bool,
) -> ClassCheck:
    return ClassCheck(
        name=name, found=found, expected=expected, p_value=p_value, passed=not bool(failed)
    )


# --- exact tests ------------------------------------------------------------------------------
