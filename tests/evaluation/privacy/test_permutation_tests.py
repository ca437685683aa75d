"""Several tests at once keep their level; groups move as a whole."""

import numpy as np

from prefect_augment.evaluation.privacy.permutation_tests import Permuted, decide, permute


def permuted(n: int = 60, groups: np.ndarray | None = None) -> Permuted:
    rng = np.random.default_rng(0)
    is_member = np.arange(n) < n // 2
    stratum = np.arange(n) % 2
    own = np.arange(n) if groups is None else groups
    return permute(is_member, own, stratum, np.array([0.5, 0.5]), rng)


def test_at_most_the_level_of_permutations_is_found_by_any_test() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(2000, 1))
    tests = {
        "one": rng.normal(size=(2000, 1)),
        "many": rng.normal(size=(2000, 40)),
        "alike": shared,
        "as well": shared + 0.1 * rng.normal(size=(2000, 1)),
        "skewed": rng.exponential(size=(2000, 3)) ** 2,
        "constant": np.zeros((2000, 1)),
    }
    limits = decide(tests, 0.05)
    found = {name: (z >= limits[name]).any(axis=1) for name, z in tests.items()}
    share = np.any([*found.values()], axis=0).mean()
    assert 0.04 < share <= 0.05
    assert not found["constant"].any()
    # Forty statistics find no more than one, and statistics that are alike cost little.
    assert abs(found["many"].mean() - found["one"].mean()) < 0.002


def test_labels_keep_their_number_in_each_stratum_and_groups_stay_together() -> None:
    groups = np.repeat(np.arange(30), 2)
    # A group lies in both strata; it moves with its first record.
    pairs = permuted(60, groups)
    assert (pairs.labels[:, 0::2] == pairs.labels[:, 1::2]).all()
    alone = permuted()
    for k in (0, 1):
        assert (alone.labels[:, alone.stratum == k].sum(axis=1) == 15).all()
    assert (alone.labels[0] == (np.arange(60) < 30)).all()
    assert len(np.unique(alone.labels, axis=0)) > 1900


def test_difference_is_that_of_means() -> None:
    of = permuted()
    values = np.random.default_rng(2).normal(size=(60, 1))
    for k in (0, 1):
        values[of.stratum == k] -= values[of.stratum == k].mean()
    found = of.differences(values)
    for row in (0, 7):
        for k in (0, 1):
            part = values[of.stratum == k, 0]
            is_member = of.labels[row, of.stratum == k] > 0
            expected = part[is_member].mean() - part[~is_member].mean()
            assert np.isclose(found[row, k, 0], expected, atol=1e-6)


def test_classifier_finds_what_scores_show_together() -> None:
    of = permuted(400)
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(400, 12))
    weak = noise + 0.14 * of.labels[0][:, None]
    alone = of.over_strata(of.differences(weak - weak.mean(axis=0)))[0]
    statistic, outputs = of.classifier(weak - weak.mean(axis=0))
    assert statistic[0, 0] > alone.max() + 0.5
    assert np.corrcoef(outputs, of.labels[0])[0, 1] > 0.1
    nothing, _ = of.classifier(noise - noise.mean(axis=0))
    assert nothing[0, 0] < 2.5
