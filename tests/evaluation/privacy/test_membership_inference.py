"""Known answers: a generator that copies, one that is the true distribution, and noise in between."""

import numpy as np
import pytest

from prefect_augment.evaluation.neighbours import FeatureSpace, nearest_by_blocks
from prefect_augment.evaluation.privacy.membership_inference import (
    Distances,
    attack,
    closeness,
    exposure,
    measure_distances,
)

N_COLUMNS = 4


def records(rng: np.random.Generator, n: int) -> np.ndarray:
    """Of a heavy-tailed population: some records lie far from all others."""
    return rng.standard_t(4, size=(n, N_COLUMNS))


def distances(kind: str, seed: int, *, n_members: int = 120, n_others: int = 60) -> Distances:
    rng = np.random.default_rng(seed)
    members, others = records(rng, n_members), records(rng, n_others)
    if kind == "fresh":
        made = records(rng, n_members)
    else:
        noise = {"copies": 0.0, "a little noise": 0.2, "more noise": 0.7}[kind]
        made = members + noise * rng.normal(size=members.shape)
    space = FeatureSpace.of(np.vstack([members, others]), np.zeros(N_COLUMNS, dtype=bool))
    return measure_distances(members, others, made, space=space)


def auc(kind: str, seed: int) -> float:
    return attack([distances(kind, seed)]).auc.estimate


@pytest.mark.parametrize("seed", range(3))
def test_attack_on_copies_is_near_one_and_on_noise_in_between(seed: int) -> None:
    copies, little, more = (auc(kind, seed) for kind in ("copies", "a little noise", "more noise"))
    assert copies == 1.0
    assert 0.5 < more < little < copies
    found = attack([distances("copies", seed)])
    # 60 pairs at least, all right: 0.025 ** (1 / 60).
    assert found.auc.low == pytest.approx(0.025 ** (1 / 60))
    assert found.detected_share == 1.0


def test_interval_holds_one_half_where_the_records_are_new() -> None:
    """Of 100 fresh sets 5 are expected outside at 95 %; 11 and more in 1 case of 100."""
    intervals = [attack([distances("fresh", seed)]) for seed in range(100)]
    outside = [a for a in intervals if a is not None and not a.auc.low <= 0.5 <= a.auc.high]
    assert len(intervals) - intervals.count(None) == 100
    assert len(outside) <= 10


def test_auc_is_the_share_of_pairs_and_ties_count_half() -> None:
    """Worked out by hand; DeLong's variance of it too."""
    members = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0])
    others = np.array([1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    known = Distances(
        is_member=np.arange(16) < 8,
        groups=np.arange(16),
        to_synthetic=np.concatenate([members, others]),
        radius=np.ones(16),
        nearest=np.ones(16),
        synthetic_to_members=members,
        others_to_members=others,
    )
    pairs = np.mean([[(o > m) + 0.5 * (o == m) for o in others] for m in members])
    found = attack([known])
    assert found.auc.estimate == pytest.approx(pairs)
    of_members = np.array([[(o > m) + 0.5 * (o == m) for o in others] for m in members])
    variance = of_members.mean(1).var(ddof=1) / 8 + of_members.mean(0).var(ddof=1) / 8
    from scipy.stats import t

    reach = t.ppf(0.975, 7) * np.sqrt(variance) / (pairs * (1 - pairs))
    logit = np.log(pairs / (1 - pairs))
    assert found.auc.low == pytest.approx(1 / (1 + np.exp(-(logit - reach))))


def test_records_of_a_group_count_once() -> None:
    """Each record ten times is no more evidence than once."""
    once = distances("more noise", 1, n_members=30, n_others=30)
    fields = {name: np.repeat(value, 10) for name, value in vars(once).items()}
    many = attack([Distances(**fields)])
    single = attack([once])
    assert many.auc.estimate == pytest.approx(single.auc.estimate)
    assert many.auc.low == pytest.approx(single.auc.low, abs=1e-9)


def test_classes_are_compared_each_by_itself() -> None:
    """A class whose records lie far apart and hold more members is no leak."""
    near = distances("fresh", 1, n_members=40, n_others=40)
    far = distances("fresh", 2, n_members=40, n_others=40)
    far = Distances(**{n: v * 1000 if v.dtype == float else v for n, v in vars(far).items()})
    both, alone = attack([near, far]), [attack([near]), attack([far])]
    means = [a.auc.estimate for a in alone if a is not None]
    assert both.auc.estimate == pytest.approx(np.mean(means))


def test_too_few_records_say_nothing() -> None:
    assert attack([distances("copies", 0, n_members=4, n_others=60)]) is None
    assert attack([]) is None
    assert exposure([]) is None
    assert closeness([]) is None


def test_closest_records_tell_copies_from_new_ones() -> None:
    copies, fresh = (closeness([distances(kind, 0)]) for kind in ("copies", "fresh"))
    assert (copies.synthetic_copies, copies.others_copies, copies.nearer_share) == (1.0, 0.0, 1.0)
    assert fresh.nearer_share < 0.15
    assert fresh.synthetic_median == pytest.approx(fresh.others_median, rel=0.3)


def test_isolated_records_that_are_copied_are_exposed_and_others_as_expected() -> None:
    copies = exposure([distances("copies", seed) for seed in range(3)])
    fresh = exposure([distances("fresh", seed) for seed in range(3)])
    assert copies.members == 1.0
    assert copies.difference.low > 0.2
    assert fresh.difference.low < 0 < fresh.difference.high


def test_kth_nearest_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2))
    all_pairs = np.sort(np.abs(X[:, None] - X[None]).sum(axis=2), axis=1)

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(a[:, None] - b[None]).sum(axis=2))

    found = nearest_by_blocks(between, X, X, to_others=True, k=5)
    assert found == pytest.approx(all_pairs[:, 5])
