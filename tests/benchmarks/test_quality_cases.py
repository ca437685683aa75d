"""Generators whose fault is known, three seeds of each: `benchmarks/quality.py` has some two hundred."""

from types import ModuleType

import numpy as np
import pytest

SEEDS = range(3)
# Which check has to fail for a fault, in some class at least; any may make the others unsafe.
CHECKS = {
    "copies": "copies",
    "blurred copies": "copies",
    "moved copies": "copies",
    "swapped labels": "labels",
    "one record per class": "collapse",
    "noise": "noise",
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["table", "image"])
def test_sound_generators_are_safe_and_every_fault_is_caught(
    quality_cases: ModuleType, kind: str, seed: int
) -> None:
    if kind == "image":
        pytest.importorskip("torch", reason="needs the torch extra")
    world = quality_cases.world(kind, quality_cases.DRAWN[kind], seed)
    sound = quality_cases.answer(world, "none")
    assert sound.n_compared == world.n_classes
    assert sound.unsafe == ()
    assert sound.dropped < 0.4, "three checks drop about 5 % each"
    for fault, check in CHECKS.items():
        if fault == "moved copies" and kind == "table":
            continue
        found = quality_cases.answer(world, fault)
        assert found.caught, fault
        assert check in found.failed, fault
        assert not found.is_false_alarm, fault
        assert found.dropped > 0.6, fault


@pytest.mark.parametrize("seed", SEEDS)
def test_fifty_copies_of_a_thousand_make_a_class_unsafe_and_are_dropped(
    quality_cases: ModuleType, seed: int
) -> None:
    world = quality_cases.world("table", quality_cases.DRAWN["table"], seed, n_fresh=1000)
    for n, verdict in ((0, "safe"), (50, "unsafe")):
        outcome = quality_cases.filtered(world, quality_cases.dosed(world, "copies", n))
        assert outcome.strata[0].verdict == verdict
        assert (outcome.reason[:n] == "near copy").all()
        assert np.mean(outcome.reason[n:] == "near copy") < 0.2


def test_a_sound_class_with_few_validation_records_is_safe(quality_cases: ModuleType) -> None:
    """Held against its training records' distances to one another it was unsafe, at p = 1e-5."""
    world = quality_cases.world("table", quality_cases.DRAWN["table"], 94)
    assert np.bincount(world.validation.stratum).min() < 20
    assert quality_cases.answer(world, "none").unsafe == ()
