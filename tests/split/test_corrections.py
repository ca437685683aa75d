"""Corrected labels: which one holds after several decisions, and what an erasure leaves of them."""

import pytest

from prefect_augment.schema import Correction, DecisionRecord
from prefect_augment.split.corrections import forget_corrections, read_corrections
from prefect_augment.storage import Store


def put(store: Store, number: int, *changes: tuple[str, str, str], day: int = 1) -> str:
    """A decision on a day, with key, old label and new label of each correction."""
    made = tuple(Correction(aug_id=f"id-{k}", key=k, old=old, label=new) for k, old, new in changes)
    path = f"_proposals/ab.decision{'' if number == 1 else f'-{number}'}.json"
    decision = DecisionRecord(
        decision="approve",
        by="Ada",
        decided_at=f"2026-11-{day:02d}T00:00:00+00:00",
        n_corrected=len(made),
        corrections=made,
    )
    store.put(path, decision.to_json())
    return path


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ([("k", "a", "b")], {"k": {"a": "b"}}),
        ([("k", "a", "b"), ("k", "b", "c")], {"k": {"a": "c", "b": "c"}}),  # seen as b
        ([("k", "a", "b"), ("k", "a", "c")], {"k": {"a": "c"}}),  # both saw what the source says
        ([("k", "a", "b"), ("k", "b", "a")], {"k": {"b": "a"}}),  # taken back
        ([("k", "a", "b"), ("l", "a", "c")], {"k": {"a": "b"}, "l": {"a": "c"}}),
    ],
)
def test_the_last_decision_on_a_record_holds(
    store: Store, changes: list[tuple[str, str, str]], holds: dict[str, dict[str, str]]
) -> None:
    for number, change in enumerate(changes, start=1):
        put(store, number, change)
    assert read_corrections(store).labels == holds


def test_decisions_count_in_the_order_of_their_time(store: Store) -> None:
    put(store, 2, ("k", "a", "b"), day=3)
    put(store, 10, ("k", "a", "c"), day=3)
    put(store, 11, ("k", "a", "d"), day=2)
    assert read_corrections(store).labels == {"k": {"a": "c"}}


def test_without_corrections_there_is_nothing_to_apply(store: Store) -> None:
    put(store, 1)
    assert not read_corrections(store)
    forget_corrections(store, ["id-k"], lambda: pytest.fail("no key is looked for"))


def test_an_erased_record_leaves_the_decision_and_no_correction(store: Store) -> None:
    path = put(store, 1, ("k", "a", "b"), ("l", "a", "b"), ("m", "a", "b"))
    forget_corrections(store, ["id-l"], lambda: {"k"})
    assert read_corrections(store).labels == {"m": {"a": "b"}}
    left = DecisionRecord.model_validate_json(store.read(path))
    assert (left.by, left.n_corrected, len(left.corrections)) == ("Ada", 3, 1)
    assert b"id-k" not in store.read(path)
