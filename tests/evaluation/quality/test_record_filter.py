"""Generators whose fault is known meet the filter that must catch it."""

import numpy as np
import pytest

from prefect_augment.encoding.arrays import FilterRequest, Labelled
from prefect_augment.evaluation.quality.record_filter import REASONS, filter_records, table_measures

N_COLUMNS = 6
IS_CATEGORY = np.arange(N_COLUMNS) == 5
N_LEVELS = np.where(IS_CATEGORY, 4, 0)


def world(n_k, seed):
    """Two classes on curved sheets, well apart, with nulls and a category that tells a little."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], n_k)
    t = rng.normal(size=(len(y), 2))
    X = np.column_stack(
        [t, t[:, 0] ** 2, t.sum(axis=1), t[:, 0] * t[:, 1], rng.integers(0, 3, len(y))]
    )
    X[:, :5] += 0.15 * rng.normal(size=(len(y), 5))
    X[:, 2] += 3.0 * y
    X[:, 5] += y * (rng.random(len(y)) < 0.5)
    X[rng.random(len(y)) < 0.05, 1] = np.nan
    return Labelled(X, y)


TRAINING, VALIDATION, FRESH = world((500, 250), 0), world((150, 150), 1), world((200, 250), 2)


@pytest.fixture(scope="module")
def fresh_outcome():
    """What the filter makes of fresh real records."""
    return filtered(FRESH, wanted=(50, 100))


def filtered(candidates, *, training=TRAINING, validation=VALIDATION, wanted=(300, 300), **kwargs):
    kwargs.setdefault("strata", ["head", "tail"])
    kwargs.setdefault("stratum_class", np.arange(len(kwargs["strata"])))
    request = FilterRequest(
        wanted=np.array(wanted),
        ordinals=np.arange(len(candidates)),
        training_keys=[f"key-{i}" for i in range(len(training))],
        **kwargs,
    )
    return filtered_by(request, training, validation, candidates)


def filtered_by(request, training, validation, candidates):
    measures = table_measures(
        training, is_category=IS_CATEGORY, n_levels=N_LEVELS, stratum_class=request.stratum_class,
        seed=request.seed,
    )  # fmt: skip
    return filter_records(training, validation, candidates, request, measures=measures)


def of_one_class(*parts, k=0):
    X = np.concatenate(parts)
    return Labelled(X, np.full(len(X), k))


def share(outcome, candidates, reason, stratum=1):
    return float((outcome.reason[candidates.stratum == stratum] == reason).mean())


@pytest.mark.slow
def test_fresh_real_records_pass_at_the_nominal_rate(fresh_outcome):
    """Each of three checks drops about 5 %."""
    for stratum in (0, 1):
        for reason in ("near copy", "outlier", "label"):
            assert share(fresh_outcome, FRESH, reason, stratum) == pytest.approx(0.05, abs=0.05)
        assert share(fresh_outcome, FRESH, "repeat", stratum) == 0
        assert fresh_outcome.passed[FRESH.stratum == stratum].mean() > 0.75


def test_copies_under_another_label_are_copies():
    """Records of the head as records of the tail: no distance within the tail tells that."""
    rare, common = FRESH.X[FRESH.stratum == 1][:160], TRAINING.X[TRAINING.stratum == 0][:40]
    outcome = filtered(of_one_class(rare, common, k=1))
    assert (outcome.reason[160:] == "near copy").all()
    assert outcome.strata[1].metrics["exact_copy_fraction"] == 0.2
    assert outcome.strata[1].verdict == "unsafe"


def test_where_real_records_repeat_copies_of_unlike_ones_are_dropped_all_the_same():
    """A tenth of the rows are all alike, so equal records are nothing strange; copies of others are."""
    X, alike = TRAINING.X[TRAINING.stratum == 1], np.tile(TRAINING.X[-1], (10, 1))
    outcome = filtered(
        of_one_class(X[:30], alike, FRESH.X[FRESH.stratum == 1][:200]),
        training=of_one_class(X[:200], alike, alike),
        validation=of_one_class(VALIDATION.X[VALIDATION.stratum == 1][:90], alike),
        wanted=(240,),
        strata=["tail"],
    )
    assert (outcome.reason[:30] == "near copy").all()
    assert (outcome.reason[30:40] != "near copy").all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 20])
def test_a_class_of_groups_is_held_against_one_record_of_each(size):
    """Five to forty patients with ten or twenty records each; sound ones are records of new patients."""
    unsafe = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sets = [(400 // size, size), (100 // size, size), (300, 1)]
        made = [_patients(rng, n, each) for n, each in sets]
        training, validation, fresh = map(of_one_class, made)
        outcome = filtered(
            fresh, training=training, validation=validation, wanted=(300,), strata=["ill"],
            purpose="faithful", seed=seed,
            training_groups=np.arange(len(training)) // size, validation_groups=np.arange(len(validation)) // size,
        )  # fmt: skip
        unsafe += outcome.strata[0].verdict == "unsafe"
    assert unsafe == 0


def _patients(rng, n, each):
    X = np.repeat(rng.normal(size=(n, N_COLUMNS)), each, axis=0)
    X += 0.3 * rng.normal(size=X.shape)
    X[:, 5] = 0
    return X


def test_copies_of_training_records_are_caught():
    outcome = filtered(Labelled(TRAINING.X[-200:], TRAINING.stratum[-200:]))
    assert (outcome.reason == "near copy").all()
    assert outcome.strata[1].metrics["exact_copy_fraction"] == 1.0


def test_copies_with_a_little_noise_are_caught():
    rng = np.random.default_rng(0)
    X = TRAINING.X[-200:] + 1e-3 * rng.normal(size=(200, N_COLUMNS)) * ~IS_CATEGORY
    copies = Labelled(X, TRAINING.stratum[-200:])
    assert share(filtered(copies), copies, "near copy") > 0.95


def test_swapped_labels_are_caught():
    swapped = Labelled(FRESH.X, 1 - FRESH.stratum)
    assert filtered(swapped).passed.mean() < 0.05


def test_noise_is_caught():
    rng = np.random.default_rng(0)
    low, high = np.nanmin(TRAINING.X, axis=0), np.nanmax(TRAINING.X, axis=0)
    X = rng.uniform(low, high, (300, N_COLUMNS))
    X[:, 5] = np.round(X[:, 5])
    assert filtered(of_one_class(X, k=1)).passed.mean() < 0.05


def test_a_collapsed_generator_is_caught(fresh_outcome):
    """One good record again and again, and 50 others: of the one, a share as of real ones stays."""
    first = int(np.flatnonzero(fresh_outcome.passed & (FRESH.stratum == 1))[0])
    again, others = np.repeat(FRESH.X[[first]], 250, axis=0), FRESH.X[FRESH.stratum == 1][:50]
    outcome = filtered(of_one_class(again, others, k=1))
    assert (outcome.reason[:250] == "repeat").sum() >= 248
    assert outcome.passed[250:].mean() > 0.7


@pytest.mark.slow
def test_candidates_outside_the_domain_are_dropped_first():
    in_domain = np.arange(len(FRESH)) % 2 == 0
    outcome = filtered(FRESH, in_domain=in_domain)
    assert (outcome.reason[~in_domain] == "domain").all()
    assert (outcome.reason[in_domain] != "domain").all()


@pytest.mark.slow
def test_utility_keeps_the_highest_scores_and_faithful_the_first_ordinals(fresh_outcome):
    utility, faithful = fresh_outcome, filtered(FRESH, wanted=(50, 100), purpose="faithful")
    for outcome in (utility, faithful):
        assert [c.n_kept for c in outcome.strata] == [50, 100]
    tail = FRESH.stratum == 1
    surplus = tail & (utility.reason == "surplus")
    assert utility.score[tail & utility.kept].min() >= utility.score[surplus].max()
    passed = np.flatnonzero(tail & faithful.passed)
    assert np.array_equal(np.flatnonzero(tail & faithful.kept), passed[:100])


@pytest.mark.slow
def test_outcome_does_not_depend_on_the_order_of_records(fresh_outcome):
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(t)) for t in (TRAINING, VALIDATION, FRESH)]
    order = orders[-1]
    request = FilterRequest(
        strata=["head", "tail"],
        stratum_class=np.arange(2),
        wanted=np.array([50, 100]),
        ordinals=order,
        training_keys=[f"key-{i}" for i in orders[0]],
    )
    shuffled = zip((TRAINING, VALIDATION, FRESH), orders, strict=True)
    b = filtered_by(request, *(Labelled(t.X[rows], t.stratum[rows]) for t, rows in shuffled))
    # A tree's sums run in the order of the rows; a candidate at a limit may fall the other way.
    assert (b.passed == fresh_outcome.passed[order]).mean() > 0.99


def test_every_candidate_is_accounted_for(fresh_outcome):
    outcome = fresh_outcome
    assert outcome.kept.sum() == sum(c.n_kept for c in outcome.strata)
    assert set(outcome.reason) <= {"", *REASONS}
    assert np.array_equal(outcome.kept, outcome.reason == "")
    for c in outcome.strata:
        assert c.n_candidates == c.n_kept + sum(c.reasons.values())
        assert c.n_passed == c.n_kept + c.reasons.get("surplus", 0)
        assert {"density", "coverage", "c2st_auc"} <= set(c.metrics)
    assert outcome.notes == ()


@pytest.mark.parametrize("n_tail", [0, 1, 2, 7])
def test_tiny_classes_are_filtered_by_what_there_is(n_tail):
    """No validation record, one or two training records: only exact copies can be told, and that is said."""
    rows = np.r_[:500, len(TRAINING) - n_tail : len(TRAINING)]
    outcome = filtered(
        of_one_class(FRESH.X[FRESH.stratum == 1][:40], TRAINING.X[-1:], k=1),
        training=Labelled(TRAINING.X[rows], TRAINING.stratum[rows]),
        validation=of_one_class(VALIDATION.X[VALIDATION.stratum == 0]),
    )
    assert outcome.passed[:40].all()
    assert outcome.passed[40] == (n_tail == 0)
    assert any("only exact copies" in n for n in outcome.notes)
    assert any("labels are not checked" in n for n in outcome.notes)


def test_a_single_class_is_filtered_without_a_classifier():
    training, validation, fresh = (
        of_one_class(t.X[t.stratum == 1]) for t in (TRAINING, VALIDATION, FRESH)
    )
    outcome = filtered(
        fresh, training=training, validation=validation, wanted=(150,), strata=["only"]
    )
    assert outcome.passed.mean() > 0.8
    assert outcome.kept.sum() == 150


def test_nothing_to_filter_is_not_an_error():
    empty = Labelled(np.empty((0, N_COLUMNS)), np.empty(0, dtype=np.int64))
    outcome = filtered(empty)
    assert [c.n_candidates for c in outcome.strata] == [0, 0]
    assert not len(outcome.kept)


def test_strata_of_one_class_share_its_classifier():
    """Distances go by stratum (class within a site), labels by class."""
    site = (np.arange(2000) % 2).astype(np.int64)
    training, validation, fresh = (
        Labelled(t.X, 2 * t.stratum + site[: len(t)]) for t in (TRAINING, VALIDATION, FRESH)
    )
    strata = [f"{c} | site={s}" for c in ("head", "tail") for s in (0, 1)]
    given = {
        "training": training, "validation": validation, "wanted": (10,) * 4, "strata": strata,
        "stratum_class": np.array([0, 0, 1, 1]),
    }  # fmt: skip
    outcome = filtered(fresh, **given)
    assert [c.name for c in outcome.strata] == strata
    assert [c.n_kept for c in outcome.strata] == [10, 10, 10, 10]
    swapped = Labelled(fresh.X, 3 - fresh.stratum)
    assert filtered(swapped, **given | {"wanted": (1,) * 4}).passed.mean() < 0.05
