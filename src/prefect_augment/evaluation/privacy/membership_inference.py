"""What synthetic records reveal about the real records that they were made from.

Three measurements on the same distances: a membership-inference attack, the distance to the closest
record, and the exposure of the most isolated records. *Members* are the records that the generative
model was fitted on. *Others* are real records that it never saw, and show what to expect of a model
that memorised nothing. Both must be random draws from one population, so the space must treat them
alike. Features of a network trained on the members do not, and are not used here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta, norm, rankdata, t

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.evaluation.neighbours import Space, nearest_by_blocks
from prefect_augment.schema import Attack, Closeness, Exposure, Interval

K_ISOLATION = 5  # as for density and coverage
# With as many synthetic records as real ones, some is among the five nearest of nearly every record.
K_EXPOSED = 1
RARE_SHARE = 0.1
MIN_RECORDS = 5  # a side: with fewer an interval says nothing
FALSE_ALARMS = 0.05
MIN_FOR_SHARE = 20  # others: a 5 % quantile of fewer is their minimum


@dataclass(frozen=True)
class Distances:
    """Distances within one class, of its real records where nothing else is said."""

    is_member: Bool  # (n_real,), members first
    groups: Int  # records of a group and side count together in intervals
    to_synthetic: Float  # to the nearest synthetic record
    # To the K_ISOLATION-th nearest other real record, members and others together, so that it does
    # not tell which side a record is on.
    radius: Float
    nearest: Float  # the same to the K_EXPOSED-th nearest
    synthetic_to_members: Float  # (n_synthetic,)
    others_to_members: Float  # (n_others,)

    @property
    def n_pairs(self) -> tuple[int, int]:
        """Numbers of members and others."""
        n = int(self.is_member.sum())
        return n, len(self.is_member) - n


def measure_distances(
    members: Array,
    others: Array,
    synthetic: Array,
    *,
    space: Space,
    member_groups: Int | None = None,
    other_groups: Int | None = None,
) -> Distances:
    """All distances for the measurements of one class.

    ``space`` must be made without knowing who is a member. Without groups every record is its own.
    """
    m, o, s = (space.place(X) for X in (members, others, synthetic))
    real = space.place(np.concatenate([members, others]))
    groups = [
        np.arange(len(X)) if given is None else given
        for X, given in ((members, member_groups), (others, other_groups))
    ]
    return Distances(
        is_member=np.arange(len(real)) < len(members),
        groups=np.concatenate(groups),
        to_synthetic=space.nearest(real, s),
        radius=_to_kth_other(space, real, K_ISOLATION),
        nearest=_to_kth_other(space, real, K_EXPOSED),
        synthetic_to_members=space.nearest(s, m),
        others_to_members=space.nearest(o, m),
    )


def _to_kth_other(space: Space, points: Any, k: int) -> Float:
    """Distance of each to its k-th nearest other one, or to the farthest where there are fewer."""
    k = min(k, len(points) - 1)
    if k == 1:
        return space.nearest_others(points)
    if k < 1:
        return np.full(len(points), np.inf)
    return nearest_by_blocks(space.distances, points, points, to_others=True, k=k)


def attack(classes: Sequence[Distances], *, level: float = 0.95) -> Attack | None:
    """A membership-inference attack by distance, over one class or several.

    The attacker has the synthetic records and a real one, and takes it for a member the nearer the nearest synthetic
    record of its class is, relative to how far apart real records of its neighbourhood are. ``auc`` is the mean over
    the classes, weighted by their information. None where no class has :data:`MIN_RECORDS` on both sides. The
    interval is DeLong's on the logit scale with its variance over groups; where the AUC is 0 or 1, it is that of as
    many independent pairs as the smaller side has groups.

    Chen et al. 2020, "GAN-Leaks", section 4 (the nearest synthetic record as the attack, and its calibration by how
    hard a record is). Hilprecht et al. 2019, "Monte Carlo and Reconstruction Membership Inference Attacks against
    Generative Models". DeLong et al. 1988 (variance of an AUC); Obuchowski 1997 (over groups); van Elteren 1960
    (weights of strata). Carlini et al. 2022, "Membership Inference Attacks From First Principles", on the share found
    at few false alarms.
    """
    large = [c for c in classes if min(c.n_pairs) >= MIN_RECORDS]
    if not large:
        return None
    scores = [(c.is_member, relative_distances(c)) for c in large]
    return attack_by_scores(
        [(values[member], values[~member]) for member, values in scores],
        np.concatenate([c.groups[c.is_member] for c in large]),
        np.concatenate([c.groups[~c.is_member] for c in large]),
        level=level,
    )


def attack_by_scores(
    scores: Sequence[tuple[Float, Float]],
    member_groups: Int,
    other_groups: Int,
    *,
    level: float = 0.95,
) -> Attack:
    """As :func:`attack`, from scores of members and others in each class; the smaller, the more like a member."""
    weights = stratum_weights([(len(a), len(b)) for a, b in scores])
    auc, member_parts, other_parts, detected = 0.0, [], [], []
    for (a, b), weight in zip(scores, weights, strict=True):
        class_auc, of_members, of_others = _auc(a, b)
        auc += weight * class_auc
        member_parts.append(weight * (of_members - class_auc) / len(a))
        other_parts.append(weight * (of_others - class_auc) / len(b))
        if len(b) >= MIN_FOR_SHARE:
            detected.append(a < np.quantile(b, FALSE_ALARMS, method="lower"))
    # The variance, over groups of records.
    variance, n_groups = 0.0, []
    for parts, groups in ((member_parts, member_groups), (other_parts, other_groups)):
        codes = np.unique(groups, return_inverse=True)[1]
        sums = np.bincount(codes, weights=np.concatenate(parts))
        n_groups.append(len(sums))
        variance += float((sums**2).sum()) * len(sums) / max(1, len(sums) - 1)
    return Attack(
        auc=_interval(auc, variance, min(n_groups), level),
        n_members=sum(len(a) for a, _ in scores),
        n_others=sum(len(b) for _, b in scores),
        detected_share=float(np.concatenate(detected).mean()) if detected else None,
    )


def stratum_weights(sizes: Sequence[tuple[int, int]]) -> Float:
    """Van Elteren's weights of strata with so many members and others; their sum is 1."""
    weights = np.array([n * m / (n + m + 1) for n, m in sizes])
    return weights / weights.sum()


def relative_distances(distances: Distances) -> Float:
    """Distances over the radius of the neighbourhood, shape (n_real,); smaller means more like a member."""
    radius = np.where(np.isfinite(distances.radius), distances.radius, 0.0)
    positive = radius[radius > 0]
    # Of repeated records the radius is 0; a hundredth of the usual one keeps the order of distances.
    floor = 0.01 * float(np.median(positive)) if len(positive) else 1.0
    return np.maximum(distances.to_synthetic, 0.0) / np.maximum(radius, floor)


def _auc(members: Float, others: Float) -> tuple[float, Float, Float]:
    """AUC, each member's share of farther others, each other's share of nearer members."""
    n, m = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    of_members = 1.0 - (ranks[:n] - rankdata(members)) / m
    of_others = (ranks[n:] - rankdata(others)) / n
    return float(of_members.mean()), of_members, of_others


def _interval(auc: float, variance: float, n_groups: int, level: float) -> Interval:
    tail = (1.0 - level) / 2
    if variance <= 0.0 and auc in (0.0, 1.0):
        bound = float(beta.ppf(tail, n_groups, 1))
        low, high = (bound, 1.0) if auc == 1.0 else (0.0, 1.0 - bound)
        return Interval(estimate=auc, low=low, high=high)
    if variance <= 0.0:
        return Interval(estimate=auc, low=auc, high=auc)
    # One record of each side short of certainty: the logit has no end there.
    centre = min(max(auc, 1e-6), 1 - 1e-6)
    reach = t.ppf(1.0 - tail, max(1, n_groups - 1)) * np.sqrt(variance) / (centre * (1 - centre))
    logit = np.log(centre / (1 - centre))
    low, high = (1 / (1 + np.exp(-np.clip(logit + d, -700, 700))) for d in (-reach, reach))
    return Interval(estimate=auc, low=float(low), high=float(high))


def closeness(classes: Sequence[Distances]) -> Closeness | None:
    """Distance to the closest member: of synthetic records against that of others.

    Quantiles and shares over several classes are means over their synthetic records. None where no class has a
    synthetic record and :data:`MIN_RECORDS` others. Park et al. 2018, "Data Synthesis based on Generative Adversarial
    Networks", section 5 (DCR); Platzer & Reutterer 2021, "Holdout-Based Empirical Assessment of Mixed-Type Synthetic
    Data" (held-out records for comparison).
    """
    rows, weights = [], []
    for c in classes:
        synthetic, others = c.synthetic_to_members, c.others_to_members
        if not len(synthetic) or len(others) < MIN_RECORDS or not c.is_member.any():
            continue
        low = np.quantile(others, FALSE_ALARMS)
        rows.append(
            [
                *np.quantile(synthetic, [0.5, FALSE_ALARMS]),
                *(np.median(others), low),
                (synthetic < low).mean(),
                *((synthetic == 0).mean(), (others == 0).mean()),
            ]
        )
        weights.append(len(synthetic))
    if not rows:
        return None
    names = ("synthetic_median", "synthetic_low", "others_median", "others_low")
    shares = ("nearer_share", "synthetic_copies", "others_copies")
    means = np.average(np.array(rows), axis=0, weights=weights)
    return Closeness(**dict(zip((*names, *shares), map(float, means), strict=True)))


def exposure(classes: Sequence[Distances], *, level: float = 0.95) -> Exposure | None:
    """Share of the most isolated records that have a synthetic record among their k nearest.

    The most isolated are the :data:`RARE_SHARE` of a class whose :data:`K_ISOLATION`-th nearest real record is
    farthest, members and others alike; k is :data:`K_EXPOSED`. The difference is members' share minus others', with
    Newcombe's interval (1998, "Interval Estimation for the Difference Between Independent Proportions", method 10).
    None with fewer than :data:`MIN_RECORDS` isolated records on a side. Stadler et al. 2022, "Synthetic Data –
    Anonymisation Groundhog Day": outliers are at risk, and means over all records hide it.
    """
    members, others = [], []
    for c in classes:
        if not len(c.radius):
            continue
        is_rare = c.radius >= np.quantile(c.radius, 1 - RARE_SHARE, method="higher")
        is_exposed = c.to_synthetic < c.nearest
        members.append(is_exposed[is_rare & c.is_member])
        others.append(is_exposed[is_rare & ~c.is_member])
    a, b = (np.concatenate(x) if x else np.zeros(0, dtype=bool) for x in (members, others))
    if min(len(a), len(b)) < MIN_RECORDS:
        return None
    p, q = float(a.mean()), float(b.mean())
    return Exposure(
        n_members=len(a),
        n_others=len(b),
        members=p,
        others=q,
        difference=share_difference(p, len(a), q, len(b), level),
    )


def share_difference(p: float, n: int, q: float, m: int, level: float) -> Interval:
    """The share p of n minus the share q of m, with Newcombe's interval."""
    (low_p, high_p), (low_q, high_q) = _wilson(p, n, level), _wilson(q, m, level)
    return Interval(
        estimate=p - q,
        low=p - q - float(np.hypot(p - low_p, high_q - q)),
        high=p - q + float(np.hypot(high_p - p, q - low_q)),
    )


def _wilson(p: float, n: int, level: float) -> tuple[float, float]:
    z = float(norm.ppf(0.5 + level / 2))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return float(centre - reach), float(centre + reach)
