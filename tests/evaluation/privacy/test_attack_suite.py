"""Planted leaks are named by the attack that is made for them; fresh draws by none."""

import numpy as np
import pytest

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.attack_suite import (
    ClassScores,
    Suite,
    bandwidths,
    density_ratio,
    most_real,
    origin_shares,
    run_suite,
    score_class,
)
from prefect_augment.evaluation.privacy.distances import Part, SideNames, privacy_side
from prefect_augment.evaluation.privacy.membership_inference import measure_distances
from prefect_augment.evaluation.quality.image_filter import ShiftSpace
from prefect_augment.schema import PrivacySide

N_COLUMNS = 5
NAMES = SideNames("training", "validation")


def records(rng: np.random.Generator, n: int, n_levels: int = 0) -> np.ndarray:
    """Heavy-tailed numbers, then two categories if there are levels."""
    numbers = rng.standard_t(4, size=(n, N_COLUMNS))
    levels = rng.integers(0, n_levels, size=(n, 2)) if n_levels else np.zeros((n, 0))
    return np.hstack([numbers, levels])


def made_of(kind: str, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    copied = members[rng.integers(0, len(members), len(members))]
    if kind == "fresh":
        return records(rng, len(members))
    if kind == "shift":
        return copied + np.array([3.0, -1.0, 0.5, 2.0, -4.0])
    if kind == "scales":
        return copied * np.array([0.1, 3.0, 1.5, 10.0, 0.7]) + 1.0
    if kind == "halves":
        return np.hstack([copied[:, :2], rng.permutation(copied)[:, 2:]])
    return copied + float(kind) * rng.normal(size=copied.shape)


def scored(
    kind: str, seed: int, n: int = 150, m: int = 80, n_levels: int = 0, name: str = "a"
) -> ClassScores:
    rng = np.random.default_rng(seed)
    members, others = records(rng, n, n_levels), records(rng, m, n_levels)
    if n_levels:
        made = members[: n // 2] if kind == "copies" else records(rng, n, n_levels)
    else:
        made = made_of(kind, members, rng)
    is_category = np.arange(members.shape[1]) >= N_COLUMNS
    space = FeatureSpace.of(np.vstack([members, others]), is_category)
    distances = measure_distances(members, others, made, space=space)
    return score_class(name, distances, members, others, made, space=space, n_classes=1)


def suite(*args: object, **options: object) -> Suite:
    return run_suite([scored(*args, **options)])  # type: ignore[arg-type,return-value]


def alone(
    members: np.ndarray, others: np.ndarray, made: np.ndarray, space: FeatureSpace | ShiftSpace
) -> Suite:
    distances = measure_distances(members, others, made, space=space)
    return run_suite(  # type: ignore[return-value]
        [score_class("a", distances, members, others, made, space=space, n_classes=1)]
    )


def found_by(found: Suite) -> set[str]:
    return {result.name for result in found.results if result.detected}


@pytest.mark.parametrize(
    ("kind", "attack", "missed_by"),
    [
        ("shift", "ranks", "nearest"),
        ("scales", "ranks", "nearest"),
        ("halves", "columns", "singling out"),
        ("0.5", "origins", "linkability"),
        ("1.0", "origins", "linkability"),
    ],
)
def test_leak_is_named_by_the_attack_made_for_it(kind: str, attack: str, missed_by: str) -> None:
    found = suite(kind, 1, 250, 120)
    assert found.finding == "leak"
    assert attack in found_by(found)
    assert missed_by not in found_by(found)
    result = next(r for r in found.results if r.name == attack)
    assert result.success.low > result.chance


def test_copies_are_named_by_the_three_risks_of_regulators() -> None:
    """Also where half of the members are copied, and some columns are categories."""
    found = suite("copies", 0, n_levels=3)
    assert {"singling out", "linkability", "inference"} <= found_by(found)
    link = next(r for r in found.results if r.name == "linkability")
    assert link.success.estimate > 0.45
    assert link.chance < 0.2


@pytest.mark.slow
def test_fresh_draws_are_rarely_named() -> None:
    """Of 100 cases 3 are expected; 9 and more in 1 of 200."""
    named = [suite("fresh", seed, 60, 30).finding != "none shown" for seed in range(100)]
    assert sum(named) <= 8


@pytest.mark.slow
def test_fresh_draws_with_categories_and_nulls_are_rarely_named() -> None:
    named = [suite("fresh", seed, 60, 30, 3).finding != "none shown" for seed in range(60)]
    assert sum(named) <= 6


def test_records_that_keep_away_from_members_are_a_gap() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.random((150, 2)), rng.random((100, 2))
    made = rng.random((4000, 2))
    space = FeatureSpace.of(np.vstack([members, others]), np.zeros(2, dtype=bool))
    made = made[space.nearest(space.place(made), space.place(members)) > 0.03]
    found = alone(members, others, made, space)
    assert found.finding == "gap"
    assert found.classes == {"a": "gap"}


def test_one_class_that_leaks_among_others_is_named() -> None:
    parts = [scored("fresh", seed, name=f"fresh {seed}") for seed in range(4)]
    found = run_suite([*parts, scored("0.2", 9, 40, 20, name="copied")])
    assert found.finding == "leak"
    assert found.classes["copied"] == "leak"
    assert set(found.classes.values()) == {"leak", "none shown"}


def test_column_that_is_constant_in_one_class_is_compared_in_the_other() -> None:
    """With a null here and there, an infinite number, and one column in all."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 60)
    for n_columns in (1, 3):
        real = rng.normal(size=(240, n_columns))
        real[:120, 0][y == 0] = real[120:, 0][y == 0] = 0.0
        real[5, -1], real[7, -1] = np.nan, np.inf
        members, others = Part(real[:120], y), Part(real[120:], y)
        space = FeatureSpace.of(real, np.zeros(n_columns, dtype=bool))
        for made, finding in ((rng.permutation(real[:120]), "none shown"), (real[:120], "leak")):
            if finding == "none shown":
                made = rng.normal(size=made.shape)
                made[y == 0, 0] = 0.0
            found = privacy_side(
                "kept", members, others, Part(made, y), classes=("a", "b"), space=space,
                max_real=2000, max_synthetic=2000, names=NAMES,
            )  # fmt: skip
            assert found.finding == finding


def test_group_counts_once() -> None:
    """Three members and three others, each fifty times, are too few to show anything."""
    once = scored("0.2", 0, 3, 3)
    many = ClassScores(
        name="a",
        is_member=np.repeat(once.is_member, 50),
        groups=np.repeat(np.arange(6), 50),
        scores={name: np.repeat(x, 50, axis=0) for name, x in once.scores.items()},
        exposed=np.repeat(once.exposed, 50),
    )
    assert run_suite([many]).finding == "none shown"
    own = ClassScores(many.name, many.is_member, np.arange(300), many.scores, many.exposed)
    assert run_suite([own]).finding == "leak"


def test_same_records_give_the_same_result() -> None:
    assert suite("1.0", 5) == suite("1.0", 5)
    assert run_suite([]) is None


def test_pictures_are_attacked_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, size=(160, 8, 8, 1)).astype(np.uint8)
    members, others = pictures[:100], pictures[100:]
    noise = rng.integers(0, 60, size=members.shape)
    made = np.clip(members.astype(int) + noise, 0, 255).astype(np.uint8)
    found = alone(members, others, made, ShiftSpace())
    assert [r.name for r in found.results] == ["nearest", "density", "origins", "classifier"]
    assert all(r.detected for r in found.results)


def side(made: np.ndarray, members: np.ndarray, others: np.ndarray) -> PrivacySide:
    parts = [Part(X, np.zeros(len(X), dtype=np.int64)) for X in (members, others, made)]
    space = FeatureSpace.of(np.vstack([members, others]), np.zeros(N_COLUMNS, dtype=bool))
    return privacy_side(
        "kept", *parts, classes=("a",), space=space, max_real=2000, max_synthetic=2000, names=NAMES
    )


def test_interval_excludes_chance_where_an_attack_is_found() -> None:
    """Nearly: the decision is that of permuted labels, the interval that of a formula."""
    results = [
        (r.success.low > r.chance, r.detected)
        for kind in ("fresh", "1.0", "halves", "shift")
        for r in suite(kind, 3).results
    ]
    assert np.mean([above == found for above, found in results]) > 0.9


def test_sentence_names_the_strongest_attack() -> None:
    rng = np.random.default_rng(0)
    members, others = records(rng, 120), records(rng, 80)
    shifted = side(members + 3.0, members, others)
    assert shifted.finding == "leak"
    assert "The strongest of 9 attacks looks at the order of the values" in shifted.sentence
    assert "in 100.0 % (all attacks together:" in shifted.sentence
    fresh = side(records(rng, 120), members, others)
    assert fresh.finding == "none shown"
    assert "strongest" not in fresh.sentence


@pytest.mark.slow
def test_of_large_classes_some_records_are_attacked_and_distances_are_of_all() -> None:
    """What only the records left out give away is found by their distances."""
    n = most_real(1)
    rng = np.random.default_rng(0)
    members, others = records(rng, n + 600), records(rng, n)
    found = side(members[n:], members, others)
    assert found.finding == "leak"
    assert not any(a.detected for a in found.attacks)


def test_each_synthetic_record_has_one_origin_in_all() -> None:
    rng = np.random.default_rng(0)
    to_made = rng.random((30, 50)).astype(np.float32)
    to_made[3] = 0.0  # nearest to all
    shares = origin_shares(to_made, (0.1, 0.2))
    assert shares.sum() == pytest.approx(50, rel=1e-5)
    assert shares.argmax() == 3


def test_density_ratio_is_that_of_two_gaussian_kernels() -> None:
    to_made = np.array([[1.0, 4.0], [0.0, 9.0]], dtype=np.float32)
    to_real = np.array([[np.inf, 2.0], [2.0, np.inf]], dtype=np.float32)
    found = density_ratio(to_made, to_real, (1.0,), 2)
    made = np.log(np.exp(-to_made / 2).sum(axis=1))
    assert found == pytest.approx(made + 1.0, abs=1e-5)
    assert bandwidths(to_real, 2) == pytest.approx((1.0, 1.5, 2.0))
