"""What the gate measures of a stratum and reports: shares, distances, likeness, label fidelity."""

from __future__ import annotations

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
    """A stratum's records, and what has been found out about them.

    Attributes
    ----------
    training, validation, candidates : ndarray, shape (n, ...)
        Real records that the model has seen, others, and its own.
    valid, kept : ndarray of bool, shape (n_candidates,)
        Within the domain; passed every check and is wanted.
    distance : ndarray of float64, shape (n_candidates,)
        To the nearest training record.
    real : ndarray of float64
        The same of real records that the model has not seen, or of training records to one another.
    near : tuple of CopyEvidence
        What the class is judged by, of all candidates, in each space that there is; empty where there
        are too few real records to take distances from.
    equal : mapping of str to CopyEvidence
        Ways of being equal by their names, of all candidates.
    one_each : tuple of ndarray of bool
        Of training and validation, one record of each group.
    wrong, real_wrong : ndarray of bool, optional
        Which it takes for another class.
    """

    training: NDArray[Any]
    validation: NDArray[Any]
    candidates: NDArray[Any]
    valid: Bool
    kept: Bool
    distance: Float
    real: Float
    near: tuple[CopyEvidence, ...]
    equal: Mapping[str, CopyEvidence]
    one_each: tuple[Bool, Bool]
    wrong: Bool | None = None
    real_wrong: Bool | None = None

    @property
    def witnesses(self) -> NDArray[Any]:
        """Real records to compare with: the generator has seen fit, so validation where it is large enough."""
        return _enough(self.validation, self.training)

    @property
    def unlike(self) -> NDArray[Any]:
        """Of these, one of each group: what is expected of single records holds for them alone."""
        return _enough(self.validation[self.one_each[1]], self.training[self.one_each[0]])


def _enough(validation: NDArray[Any], training: NDArray[Any]) -> NDArray[Any]:
    return (
        validation if len(validation) >= MIN_TO_COMPARE else np.concatenate([validation, training])
    )


def class_evidence(of: Stratum, space: Space) -> Evidence:
    """What the checks of a class are made from."""
    real, candidates = of.unlike, of.candidates[of.valid]
    coverage = full = float("nan")
    if min(len(real), len(candidates)) >= MIN_TO_COMPARE:
        coverage = likeness(real, candidates, space=space).coverage
        full = expected_coverage(len(real), len(candidates))
    return Evidence(
        valid=of.valid,
        near=[CopyEvidence(e.candidates[of.valid], e.real) for e in of.near],
        equal=[CopyEvidence(e.candidates[of.valid], e.real) for e in of.equal.values()],
        wrong=None if of.wrong is None else of.wrong[of.valid],
        real_wrong=of.real_wrong,
        coverage=coverage,
        full_coverage=full,
    )


def class_metrics(
    of: Stratum,
    evidence: Evidence,
    space: Space,
    two_sample: Callable[[NDArray[Any], NDArray[Any]], float] | None,
) -> dict[str, float]:
    """Shares over all candidates of a stratum, and likeness of the kept ones to real records.

    Parameters
    ----------
    of : Stratum
    evidence : Evidence
        From :func:`class_evidence`.
    space : Space
        Where likeness is measured.
    two_sample : callable, optional
        See :class:`~prefect_augment.evaluation.quality.record_filter.Measures`; not asked without one.

    Returns
    -------
    dict of str to float
        ``precision``, ``recall``, ``density``, ``coverage`` and ``c2st_auc`` of what is kept;
        ``domain_fraction``, ``near_copy_fraction``, ``*_copy_fraction``, ``median_distance``,
        ``label_error`` and ``candidate_coverage`` of all candidates, and of real records as
        ``real_*``. What cannot be measured is left out.
    """
    real, synthetic = of.witnesses, of.candidates[of.kept][:MAX_COMPARED]
    found = likeness(real, synthetic, space=space)._asdict()
    if two_sample is not None and min(len(real), len(synthetic)) >= MIN_TO_COMPARE:
        found["c2st_auc"] = two_sample(real, synthetic)
    if len(of.candidates):
        found["domain_fraction"] = float(of.valid.mean())
        found["median_distance"] = float(np.median(of.distance))
        for name, way in of.equal.items():
            found[f"{name}_copy_fraction"] = float((way.candidates == 0).mean())
            if len(way.real):
                found[f"real_{name}_copy_fraction"] = float((way.real == 0).mean())
        if len(of.real):
            found["real_median_distance"] = float(np.median(of.real))
        if of.wrong is not None and of.real_wrong is not None:
            found["label_error"] = float(of.wrong.mean())
            found["real_label_error"] = float(of.real_wrong.mean())
        found["candidate_coverage"] = evidence.coverage
    # JSON has no NaN or infinity: what cannot be measured is left out.
    return {name: value for name, value in found.items() if np.isfinite(value)}
