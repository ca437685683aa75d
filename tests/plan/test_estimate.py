from itertools import pairwise
from operator import attrgetter

import pytest
from hypothesis import given, strategies as st
from support.staging import image_info

from prefect_augment.nn.machine import classifier_size, cpu_multiplies_bf16
from prefect_augment.plan import estimate as module
from prefect_augment.plan.estimate import (
    classifier_steps,
    estimate,
    estimate_images,
    slowness,
    whole_run,
)
from prefect_augment.schema import DatasetInfo, Estimate
from prefect_augment.storage import Store
from prefect_augment.synthesis.training_budget import training_bytes, trees_seconds


def test_estimate_grows_with_everything_it_counts() -> None:
    base = {
        "n_records": 10_000, "n_bytes": 500_000, "n_columns": 14, "n_classes": 3, "n_added": 1000,
        "n_strategies": 8, "n_folds": 1, "n_seeds": 3, "n_estimators": 2, "n_model_strategies": 0,
    }  # fmt: skip
    limit = 200_000
    least = estimate(**base, max_compared=limit)
    needs = attrgetter("seconds", "memory_bytes", "output_bytes")
    for name, value in base.items():
        more = estimate(**{**base, name: 2 * value + 1}, max_compared=limit)
        assert needs(more) > needs(least), name
    assert least.output_bytes == pytest.approx(550_000 + 400_000)
    large, larger = (
        estimate(**base | {"n_records": n, "n_bytes": 50 * n}, max_compared=limit)
        for n in (10**6, 10**7)
    )
    # A sample is compared.
    assert larger.memory_bytes == pytest.approx(large.memory_bytes, rel=0.01)
    assert larger.seconds > large.seconds
    assert larger.output_bytes > 9 * large.output_bytes


def test_training_is_estimated_as_it_was_measured() -> None:
    """Processes on a table of 2.5 million records and 10 columns, each model at its limit, 2026-11."""
    assert training_bytes(100_000, 10, network=False) == pytest.approx(531e6, rel=0.2)
    assert training_bytes(200_000, 10, network=True) == pytest.approx(719e6, rel=0.2)
    assert trees_seconds(100_000, 10) == pytest.approx(6.1, rel=0.5)


def test_images_are_classified_at_their_own_size_up_to_64() -> None:
    sizes = [(28, 28), (30, 31), (3, 4), (136, 192)]
    assert [classifier_size(size) for size in sizes] == [28, 32, 8, 64]


def test_steps_grow_with_the_root_of_the_records_within_bounds() -> None:
    assert [classifier_steps(n) for n in (10, 12_000, 48_000, 10**7)] == [300, 800, 1600, 3000]


@given(st.integers(1, 10**6), st.floats(0.001, 1e4), st.floats(0.001, 1.0))
def test_a_budget_only_ever_takes_steps_away(n: int, seconds: float, step_seconds: float) -> None:
    found = classifier_steps(n, seconds=seconds, step_seconds=step_seconds)
    assert 300 <= found <= classifier_steps(n)
    assert found == 300 or found * step_seconds <= seconds or found == classifier_steps(n)


BASE: dict[str, object] = {
    "n_train": 12_000, "n_scored": 3_000, "n_bytes": 8 * 2**20, "side": 28, "n_pixels": 784,
    "n_channels": 1, "n_added": 0, "n_strategies": 8, "folds": (1,), "n_seeds": 3, "has_model": False,
}  # fmt: skip


def test_a_run_without_a_comparison_takes_less_of_everything() -> None:
    needs, _, _ = estimate_images(**BASE)  # type: ignore[arg-type]

    def of(*, compares: bool, has_model: bool = False, n_bytes: int = 8 * 2**20) -> Estimate:
        return whole_run(
            needs, n_bytes=n_bytes, compares=compares, has_model=has_model,
            training_seconds=60.0 * has_model,
        )  # fmt: skip

    alone, compared = (of(compares=compares) for compares in (False, True))
    modelled = of(compares=True, has_model=True)
    assert alone.comparison_seconds == 0
    assert compared.seconds == pytest.approx(alone.seconds + needs.comparison_seconds)
    assert modelled.seconds == compared.seconds + 60
    for less, more in pairwise((alone, compared, modelled)):
        assert (less.writes, less.reads) < (more.writes, more.reads)
    larger = of(compares=False, n_bytes=2**30)
    assert (larger.writes, larger.reads) > (alone.writes + 30, alone.reads + 3000)


def test_images_that_are_not_held_take_no_memory() -> None:
    def memory(n_train: int, *, has_model: bool = False) -> int:
        given = BASE | {"n_train": n_train, "has_model": has_model}
        return estimate_images(**given)[0].memory_bytes  # type: ignore[arg-type]

    assert memory(1_000_000) == memory(2_000_000) < 3 * 2**30
    assert memory(1_000_000, has_model=True) > 5 * memory(1_000_000)


def expected_of_images(**changes: object) -> tuple[float, int]:
    found, steps, _ = estimate_images(**BASE | changes)  # type: ignore[arg-type]
    return found.comparison_seconds, steps


def test_judging_images_takes_longer_with_more_of_anything() -> None:
    seconds, steps = expected_of_images()
    assert steps == 800
    more = {
        "n_strategies": 12, "folds": (5,), "n_seeds": 5, "side": 64, "has_model": True,
        "n_train": 24_000, "has_bf16": False,
    }  # fmt: skip
    for name, value in more.items():
        assert expected_of_images(**{name: value})[0] > seconds, name


def test_a_short_budget_takes_steps_from_all_strategies_alike() -> None:
    """One seed has to fit; how many more, the schedule decides."""
    seconds, steps = expected_of_images(n_seeds=1)
    half, fewer = expected_of_images(n_seeds=1, seconds=seconds / 2)
    assert 300 < fewer < steps
    assert half == pytest.approx(seconds / 2, rel=0.05)


def test_a_narrow_classifier_takes_less_and_leaves_the_filters_as_they_are() -> None:
    (narrow, steps), (whole, same) = (expected_of_images(width=w) for w in (0.5, 1.0))
    assert narrow < whole / 2
    assert steps == same
    filters = [
        expected_of_images(width=w, has_model=True)[0] - alone
        for w, alone in ((0.5, narrow), (1.0, whole))
    ]
    assert filters[0] == pytest.approx(filters[1], rel=0.01)


def test_a_short_budget_takes_folds_once_the_steps_are_at_their_least() -> None:
    asked = {"n_train": 900, "folds": (5, 3, 1), "n_seeds": 1}
    found = []
    for folds in (5, 3, 1):
        seconds, steps = expected_of_images(**{**asked, "folds": (folds,)})
        assert steps == 300
        found.append(seconds)
    for seconds, allowed in zip(found, (5, 3, 1), strict=True):
        *_, n_folds = estimate_images(**BASE | asked | {"seconds": seconds * 1.01})  # type: ignore[arg-type]
        assert n_folds == allowed
    *_, least = estimate_images(**BASE | asked | {"seconds": 0.1})  # type: ignore[arg-type]
    assert least == 1, "something is always compared"


def test_a_slow_machine_takes_fewer_steps_instead_of_more_minutes() -> None:
    asked = {"n_train": 3_200, "width": 0.5, "n_seeds": 1, "seconds": 90.0}
    seconds, steps = expected_of_images(**asked)
    slower, fewer = expected_of_images(**asked, slow=2.0)
    assert 300 <= fewer < steps
    assert slower < 2 * seconds
    assert expected_of_images(**asked, slow=64.0)[1] == 300, "fewer than that teach nothing"
    ample = asked | {"seconds": 600.0}
    assert expected_of_images(**ample, slow=2.0)[1] == expected_of_images(**ample)[1]


@pytest.fixture
def images_info() -> DatasetInfo:
    return DatasetInfo(
        stage="ingest", key="k", digest="d", label="label", label_type="string", schema_digest="s",
        columns=(), shards=(), part_counts={}, compared=(), modality="image",
        image=image_info(28, 28, n=9, n_channels=1),
    )  # fmt: skip


@pytest.mark.parametrize(("times", "found"), [(0.2, 1), (1.3, 1), (1.6, 2), (5.0, 4)])
def test_slowness_is_measured_once_in_powers_of_two(
    times: float,
    found: float,
    images_info: DatasetInfo,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rerun on a machine that is less busy plans alike; one that is faster than expected is as expected."""
    expected = module._step_seconds(28, narrow=True, has_bf16=cpu_multiplies_bf16())
    monkeypatch.setattr(module, "calibrate", lambda _: times * module._TIMED_STEPS * expected)
    assert slowness(images_info, store, device="cpu") == found
    monkeypatch.setattr(module, "calibrate", lambda _: pytest.fail("measured again"))
    assert slowness(images_info, store, device="cpu") == found


@pytest.mark.slow
def test_slowness_is_that_of_the_classifier(images_info: DatasetInfo, store: Store) -> None:
    found = slowness(images_info, store, device="cpu")
    assert found >= 1
    assert found.is_integer()
