"""Several attacks on membership, and one decision over all of them.

Each attack gives every real record a score without knowing who is a member. An attack is *found* where
its success is larger than all attacks together reach under permuted labels, but for a share
:data:`FALSE_ALARM` (:mod:`.permutation_tests`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, logsumexp
from scipy.stats import norm, rankdata

from prefect_augment.array_types import Array, Bool, Float, Float32, Int
from prefect_augment.evaluation.neighbours import Points, Space
from prefect_augment.evaluation.privacy.membership_inference import (
    MIN_RECORDS,
    RARE_SHARE,
    Distances,
    attack_by_scores,
    relative_distances,
    share_difference,
    stratum_weights,
)
from prefect_augment.evaluation.privacy.permutation_tests import decide, permute, standardised
from prefect_augment.evaluation.privacy.record_pairs import (
    Columns,
    Whole,
    compare,
    inferred_shares,
    random_subsets,
    singled_out,
    without_each,
)
from prefect_augment.nn.threads import single_threaded
from prefect_augment.schema import AttackName, AttackResult, Finding, Interval

SCALES = (1.0, 1.5, 2.0)  # of the root mean square distance of neighbours per column
# Dimension of small images, of the size that Pope et al. 2021, "The Intrinsic Dimension of Images", find.
IMAGE_DEGREES = 12
SMALLEST = 1e-3  # bandwidth where nearly all records are equal


def bandwidths(squares: Float32, n_degrees: int) -> tuple[float, ...]:
    """Bandwidths for records with these squared distances to one another, shape (n, n)."""
    nearest = squares.min(axis=1)
    positive = nearest[(nearest > 0) & np.isfinite(nearest)]
    usual = float(np.sqrt(np.median(positive) / n_degrees)) if len(positive) else 1.0
    return tuple(max(SMALLEST, scale * usual) for scale in SCALES)


def density_ratio(
    to_synthetic: Float32, to_real: Float32, widths: tuple[float, ...], n_degrees: int
) -> Float:
    """Log of the synthetic over the real density at each real record, shape (n,).

    The distances are squared: to synthetic records (n, m), and to real ones (n, n), infinite to itself, so that a
    record's own density is that of the others. Of the ``widths`` the one is taken under which real records are the
    likeliest of one another; ``n_degrees`` is the densities' dimension. Van Breugel et al. 2023, "Membership
    Inference Attacks against Synthetic Data through Overfitting Detection" (DOMIAS), with kernels for both densities.
    """
    real = [logsumexp(to_real * _factor(width), axis=1) for width in widths]
    fit = [
        float(np.mean(logs) - n_degrees * np.log(width))
        for logs, width in zip(real, widths, strict=True)
    ]
    best = int(np.argmax(fit))
    return logsumexp(to_synthetic * _factor(widths[best]), axis=1) - real[best]


def origin_shares(to_synthetic: Float32, widths: tuple[float, ...]) -> Float:
    """How many synthetic records a real record is the origin of, in expectation; shape (n,).

    If every synthetic record were one of these real records with Gaussian noise, this is the sum of
    the posterior probabilities that it came from the record, averaged over the bandwidths. Records
    compete for each synthetic record, which the nearest distance leaves out.
    """
    shares = np.zeros(len(to_synthetic))
    for width in widths:
        logs = to_synthetic * np.float32(_factor(width))
        logs -= logs.max(axis=0)
        np.exp(logs, out=logs)
        shares += (logs / logs.sum(axis=0)).sum(axis=1)
    return shares / len(widths)


def _factor(width: float) -> np.float32:
    return np.float32(-0.5 / width**2)


FALSE_ALARM = 0.03  # of all attacks together, on records that reveal nothing
MAX_COLUMNS = 60
MAX_REAL = 2000  # of both sides and all classes
MAX_VALUES = 300_000_000  # distances of pairs in all subsets; bounds the synthetic records
MOST_DEVIATIONS = 6.0  # half of an interval

PAIRS: tuple[AttackName, ...] = ("nearest", "columns", "ranks", "density", "origins")
RATES: tuple[AttackName, ...] = ("singling out", "linkability", "inference")


@dataclass(frozen=True)
class ClassScores:
    """What the attacks say of the real records of one class; the larger, the more like a member."""

    name: str
    is_member: Bool  # (n,)
    groups: Int  # (n,)
    scores: dict[AttackName, Float]  # (n, n_variants)
    # (n,) whether an isolated record has a synthetic one as its nearest; NaN for others
    exposed: Float


@dataclass(frozen=True)
class Suite:
    """The decision over all attacks."""

    results: tuple[AttackResult, ...]
    classes: dict[str, Finding]  # what the class by itself shows
    finding: Finding


def most_real(n_classes: int) -> int:
    """Records of a class and side that are attacked."""
    return max(MIN_RECORDS, MAX_REAL // (2 * n_classes))


def score_class(
    name: str,
    distances: Distances,
    members: Array,
    others: Array,
    synthetic: Array,
    *,
    space: Space,
    n_classes: int,
) -> ClassScores:
    """Attack the real records of one class.

    ``distances`` are of the same members and others. The first records count where there are too many.
    """
    most = most_real(n_classes)
    members, others = members[:most], others[:most]
    n, first_other = len(members), distances.n_pairs[0]
    rows = np.r_[:n, first_other : first_other + len(others)]  # of the distances
    rng = np.random.default_rng(0)
    pool = space.place(np.concatenate([members, others]))
    scores: dict[AttackName, Float] = {}
    scores["nearest"] = -relative_distances(distances)[rows, None]
    if isinstance(pool, Points):
        # The same columns in each class, so that the scores of classes belong together.
        n_columns = pool.numbers.shape[1] // 2 + pool.levels.shape[1]
        columns = np.sort(rng.permutation(n_columns)[:MAX_COLUMNS])
        most = _most_synthetic(n_classes, len(pool), len(columns) + 30)
        table, drawn = (Columns.of(p, columns) for p in (pool, space.place(synthetic[:most])))
        scores |= _column_scores(table, drawn, rng)
    else:
        most = _most_synthetic(n_classes, len(pool), 100)
        real, images = (Whole(space, p) for p in (pool, space.place(synthetic[:most])))
        whole = np.ones((1, 1), dtype=np.float32)
        by_real, by_images = (compare(real, other, whole).squares for other in (real, images))
        scores |= _density_scores(by_real, by_images, IMAGE_DEGREES)
    radius = distances.radius[rows]
    isolated = radius >= np.quantile(radius, 1 - RARE_SHARE, method="higher")
    return ClassScores(
        name=name,
        is_member=distances.is_member[rows],
        groups=distances.groups[rows],
        scores=scores,
        exposed=np.where(isolated, (distances.to_synthetic < distances.nearest)[rows], np.nan),
    )


def _most_synthetic(n_classes: int, n_real: int, values_per_pair: int) -> int:
    return max(1, MAX_VALUES // (n_classes * n_real * values_per_pair))


def _column_scores(
    real: Columns, synthetic: Columns, rng: np.random.Generator
) -> dict[AttackName, Float]:
    subsets = random_subsets(real.n_parts, rng)
    secrets, known = without_each(real.n_parts, rng)
    to_synthetic = compare(real, synthetic, np.concatenate([subsets, known]))
    to_real = compare(real, real, subsets)
    scores = _density_scores(to_real.squares, to_synthetic.squares, real.n_parts)
    n = len(subsets)
    if n:
        scores["columns"] = -_relative(to_synthetic.nearest[:n], to_real.nearest).T
        # Whether both halves of a record lead to the same synthetic record.
        halves = to_synthetic.rows[:2]
        scores["linkability"] = (halves[0] == halves[1])[:, None].astype(np.float64)
        shares = inferred_shares(real, synthetic, secrets, to_synthetic.rows[n:])
        scores["inference"] = shares[:, None]
    scores["singling out"] = singled_out(real, synthetic, rng)[:, None].astype(np.float64)
    ranked_real, ranked_synthetic = real.ranked(), synthetic.ranked()
    whole = np.ones((1, real.n_parts), dtype=np.float32)
    to_synthetic, to_real = (
        compare(ranked_real, other, whole) for other in (ranked_synthetic, ranked_real)
    )
    widths = bandwidths(to_real.squares, real.n_parts)
    scores["ranks"] = np.stack(
        [
            -_relative(to_synthetic.nearest, to_real.nearest)[0],
            origin_shares(to_synthetic.squares, widths),
        ],
        axis=1,
    )
    return scores


def _density_scores(
    to_real: Float32, to_synthetic: Float32, n_degrees: int
) -> dict[AttackName, Float]:
    widths = bandwidths(to_real, n_degrees)
    return {
        "density": density_ratio(to_synthetic, to_real, widths, n_degrees)[:, None],
        "origins": origin_shares(to_synthetic, widths)[:, None],
    }


def _relative(nearest: Float32, radius: Float32) -> Float:
    """Distances over those to the nearest other real record, by subset, shape (n_subsets, n)."""
    positive = np.where((radius > 0) & np.isfinite(radius), radius, np.nan)
    # Where records repeat, a hundredth of the usual distance keeps the order.
    least = np.full((len(radius), 1), 1e-6)
    some = np.isfinite(positive).any(axis=1)
    least[some, 0] = 0.01 * np.nanmedian(positive[some], axis=1)
    return nearest / np.maximum(np.where(np.isfinite(radius), radius, 0.0), least)


def run_suite(classes: Sequence[ClassScores]) -> Suite | None:
    """Decide on all attacks over all classes; None where there is no class."""
    if not classes:
        return None
    pool = _Pool.of(classes)
    permuted = permute(
        pool.is_member, pool.groups, pool.stratum, pool.weights, np.random.default_rng(0)
    )
    with single_threaded():
        by_class = {name: permuted.differences(values) for name, values in pool.compared.items()}
        overall = {name: permuted.over_strata(z) for name, z in by_class.items()}
        classifier, outputs = permuted.classifier(np.hstack([*pool.compared.values()]))
        isolated = permuted.share_difference(pool.exposed, np.isfinite(pool.exposed))
    near, origins = (standardised(by_class[name][:, :, 0]) for name in ("nearest", "origins"))
    rates = [name for name in RATES if name in overall]
    tests: dict[str, Float] = {
        **{name: overall[name] for name in PAIRS if name in overall},
        "classifier": classifier,
        "classes": np.hstack([near, origins]),
        "isolated": isolated,
        # Members that synthetic records keep away from are revealed as well.
        "gap": -np.hstack([overall["nearest"], near]),
    }
    if rates:
        tests["rates"] = np.hstack([overall[name] for name in rates])
    limits = decide(tests, FALSE_ALARM)
    detected = {name: z[0] >= limits[name] for name, z in tests.items()}
    results = []
    for name in (*PAIRS, "classifier", *rates):
        if name == "classifier":
            z, scores = classifier, outputs[:, None]
        elif name in overall:
            z, scores = overall[name], pool.scores[name]
        else:
            continue
        limit = limits["rates" if name in rates else name]
        best = int(z[0].argmax())
        is_detected = bool(z[0, best] >= limit)
        result = pool.result(name, scores[:, best], limit=limit, detected=is_detected)
        if name == "classifier":
            # Its outputs depend on one another, so that the interval is that of the permutations.
            interval = _test_based(result.success, float(z[0, 0]), limit)
            result = result.model_copy(update={"success": interval})
        results.append(result)
    gaps = detected.pop("gap")
    leaks = detected["classes"].reshape(2, -1).any(axis=0)  # of each class
    by_classifier = detected.pop("classifier")  # which finds gaps as well
    finding: Finding = "none shown"
    if any(of.any() for of in detected.values()):
        finding = "leak"
    elif gaps.any():
        finding = "gap"
    elif by_classifier.any():
        finding = "leak"
    return Suite(
        results=tuple(results),
        classes={
            part.name: "leak" if leaks[k] else "gap" if gaps[1 + k] else "none shown"
            for k, part in enumerate(classes)
        },
        finding=finding,
    )


@dataclass(frozen=True)
class _Pool:
    is_member: Bool  # (n,)
    groups: Int
    stratum: Int
    weights: Float  # (n_classes,)
    scores: dict[AttackName, Float]  # (n, n_variants)
    compared: dict[AttackName, Float]  # of mean 0 in each class
    exposed: Float

    @classmethod
    def of(cls, classes: Sequence[ClassScores]) -> "_Pool":
        is_member = np.concatenate([c.is_member for c in classes])
        groups = np.concatenate([c.groups for c in classes])
        return cls(
            is_member=is_member,
            groups=2 * np.unique(groups, return_inverse=True)[1] + is_member,
            stratum=np.repeat(np.arange(len(classes)), [len(c.groups) for c in classes]),
            weights=stratum_weights(
                [(int(c.is_member.sum()), int((~c.is_member).sum())) for c in classes]
            ),
            scores={
                name: np.concatenate([c.scores[name] for c in classes])
                for name in classes[0].scores
            },
            compared={
                name: np.concatenate([_centred(name, c.scores[name]) for c in classes])
                for name in classes[0].scores
            },
            exposed=np.concatenate([c.exposed for c in classes]),
        )

    def result(
        self, name: AttackName, scores: Float, *, limit: float, detected: bool
    ) -> AttackResult:
        """An attack's success, with an interval as wide as the decision over all attacks asks for."""
        level = 2 * float(norm.cdf(min(limit, MOST_DEVIATIONS))) - 1
        sides = [
            [scores[(self.stratum == k) & (self.is_member == side)] for side in (True, False)]
            for k in range(len(self.weights))
        ]
        if name in RATES:
            members, others = (
                float(self.weights @ [of[side].mean() for of in sides]) for side in (0, 1)
            )
            n, m = int(self.is_member.sum()), int((~self.is_member).sum())
            gap = share_difference(members, n, others, m, level)
            low, high = others + gap.low, others + gap.high
            if name == "inference":  # means of shares vary less than shares of records
                a, b = scores[self.is_member], scores[~self.is_member]
                reach = min(limit, MOST_DEVIATIONS) * float(np.sqrt(a.var() / n + b.var() / m))
                low, high = members - reach, members + reach
            success = Interval(estimate=members, low=max(0.0, low), high=min(1.0, high))
            return AttackResult(name=name, success=success, chance=others, detected=detected)
        auc = attack_by_scores(
            [(-members, -others) for members, others in sides],
            self.groups[self.is_member],
            self.groups[~self.is_member],
            level=level,
        ).auc
        return AttackResult(name=name, success=auc, chance=0.5, detected=detected)


def _test_based(auc: Interval, z: float, limit: float) -> Interval:
    """The interval of an AUC, on the logit scale, that a test against one half with this statistic implies.

    Miettinen 1976, "Estimability and Estimation in Case-Referent Studies".
    """
    if not 0.0 < auc.estimate < 1.0 or z == 0.0 or not np.isfinite(limit):
        return auc
    centre = logit(auc.estimate)
    reach = limit * abs(centre / z)
    low, high = (float(expit(centre + d)) for d in (-reach, reach))
    return Interval(estimate=auc.estimate, low=low, high=high)


def _centred(name: AttackName, scores: Float) -> Float:
    """What is compared under permuted labels, of mean 0.

    Of shares of origins the root, which makes the variance of counts even; of others the ranks.
    """
    values = np.sqrt(scores) if name == "origins" else rankdata(scores, axis=0) / len(scores)
    return values - values.mean(axis=0)
