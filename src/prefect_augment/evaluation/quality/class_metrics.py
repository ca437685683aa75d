"""What the record filter reports of a stratum: shares, distances, likeness and label errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.quality.class_tests import MIN_TO_COMPARE, CopyEvidence, Evidence
from prefect_augment.evaluation.quality.prdc import MAX_COMPARED, expected_coverage, likeness

__all__ = ["Stratum", "class_evidence", "class_metrics"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Stratum:
    """A stratum's records and the results of the checks on single records."""

    training: NDArray[Any]  # the records that the model has seen, (n, ...)
    validation: NDArray[Any]
    candidates: NDArray[Any]
    valid: Bool  # (n_candidates,) within the domain
    kept: Bool
    distance: Float  # (n_candidates,) to the nearest training record
    real: Float  # the same of unseen real records, or of training records to one another
    near: tuple[CopyEvidence, ...]  # per space; empty with too few real records
    equal: Mapping[str, CopyEvidence]  # by the kind of equality
    one_each: tuple[Bool, Bool]  # one training and one validation record of each group
    wrong: Bool | None = None  # (n_candidates,) taken for another class
    real_wrong: Bool | None = None

    @property
    def reference(self) -> NDArray[Any]:
        """Real records to compare with: validation's, with training records where there are few."""
        return _enough(self.validation, self.training)

    @property
    def independent(self) -> NDArray[Any]:
        """One real record of each group, for tests that assume independent records."""
        return _enough(self.validation[self.one_each[1]], self.training[self.one_each[0]])


def _enough(validation: NDArray[Any], training: NDArray[Any]) -> NDArray[Any]:
    return (
        validation if len(validation) >= MIN_TO_COMPARE else np.concatenate([validation, training])
    )


def class_evidence(stratum: Stratum, space: Space) -> Evidence:
    """The evidence that :func:`~.class_tests.class_checks` needs, of one stratum."""
    real, candidates = stratum.independent, stratum.candidates[stratum.valid]
    coverage = full = float("nan")
    if min(len(real), len(candidates)) >= MIN_TO_COMPARE:
        coverage = likeness(real, candidates, space=space).coverage
        full = expected_coverage(len(real), len(candidates))
    return Evidence(
        valid=stratum.valid,
        near=[CopyEvidence(e.candidates[stratum.valid], e.real) for e in stratum.near],
        equal=[CopyEvidence(e.candidates[stratum.valid], e.real) for e in stratum.equal.values()],
        wrong=None if stratum.wrong is None else stratum.wrong[stratum.valid],
        real_wrong=stratum.real_wrong,
        coverage=coverage,
        full_coverage=full,
    )


def class_metrics(
    stratum: Stratum,
    evidence: Evidence,
    space: Space,
    two_sample: Callable[[NDArray[Any], NDArray[Any]], float] | None,
) -> dict[str, float]:
    """Shares over all candidates of a stratum, and likeness of the kept ones to real records.

    ``precision``, ``recall``, ``density``, ``coverage`` and ``c2st_auc`` (with ``two_sample``) are
    of kept records. ``domain_fraction``, ``*_copy_fraction``, ``median_distance``, ``label_error``
    and ``candidate_coverage`` are of all candidates; ``real_*`` are the same of real records. What
    cannot be measured is left out.
    """
    real, synthetic = stratum.reference, stratum.candidates[stratum.kept][:MAX_COMPARED]
    metrics = likeness(real, synthetic, space=space)._asdict()
    if two_sample is not None and min(len(real), len(synthetic)) >= MIN_TO_COMPARE:
        metrics["c2st_auc"] = two_sample(real, synthetic)
    if len(stratum.candidates):
        metrics["domain_fraction"] = float(stratum.valid.mean())
        metrics["median_distance"] = float(np.median(stratum.distance))
        for name, equal in stratum.equal.items():
            metrics[f"{name}_copy_fraction"] = float((equal.candidates == 0).mean())
            if len(equal.real):
                metrics[f"real_{name}_copy_fraction"] = float((equal.real == 0).mean())
        if len(stratum.real):
            metrics["real_median_distance"] = float(np.median(stratum.real))
        if stratum.wrong is not None and stratum.real_wrong is not None:
            metrics["label_error"] = float(stratum.wrong.mean())
            metrics["real_label_error"] = float(stratum.real_wrong.mean())
        metrics["candidate_coverage"] = evidence.coverage
    # JSON has no NaN or infinity: what cannot be measured is left out.
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
