from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_augment.errors import IntegrityError
from prefect_augment.schema import Interval
from prefect_augment.storage import Stage, Store, open_store, read_result

ONE = Interval(estimate=1.0, low=0.5, high=1.5)
TWO = Interval(estimate=2.0, low=0.5, high=2.5)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(open_store(str(tmp_path)), "filter", "key")


def refuse() -> Interval:
    raise AssertionError("built again")


def test_an_outcome_is_found_again(stage: Stage) -> None:
    assert stage.outcome(Interval) is None
    assert stage.finish(ONE) == ONE
    assert stage.outcome(Interval) == ONE
    assert stage.outcome_path == "_staging/filter/key/outcome.json"


def test_the_first_worker_s_outcome_stands(stage: Stage) -> None:
    stage.finish(ONE)
    assert stage.finish(TWO) == ONE


def test_a_stage_is_built_where_it_has_no_outcome_yet(stage: Stage) -> None:
    with pytest.raises(AssertionError):
        stage.run(Interval, refuse)
    assert stage.run(Interval, lambda: ONE) == ONE
    assert stage.run(Interval, refuse) == ONE


def test_an_item_with_a_receipt_is_not_built_again(stage: Stage) -> None:
    assert stage.item("0", Interval, lambda: ONE) == ONE
    assert stage.item("0", Interval, refuse) == ONE


def test_a_failed_item_leaves_no_receipt(stage: Stage) -> None:
    with pytest.raises(AssertionError):
        stage.item("0", Interval, refuse)
    assert stage.item("0", Interval, lambda: TWO) == TWO


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"[1]"])
def test_a_damaged_receipt_is_named(stage: Stage, damage: Callable[[bytes], bytes]) -> None:
    stage.finish(ONE)
    stage.store.put(stage.outcome_path, damage(ONE.to_json()))
    with pytest.raises(
        IntegrityError, match=r"outcome\.json is not a readable Interval.*delete it"
    ):
        stage.outcome(Interval)


def test_receipts_work_on_any_file_system() -> None:
    store: Store = open_store(f"memory://{uuid4().hex}")
    Stage(store, "s", "k").finish(ONE)
    assert read_result(store, "_staging/s/k/outcome.json", Interval) == ONE
    store.fs.rm(store.root, recursive=True)
