"""Labels that a person corrected hold in place of the source's, and nothing else of the split changes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.schema import Correction, DatasetInfo, DatasetRef, DecisionRecord
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store

Publisher = Callable[[Store, DatasetRef], None]
PARTS = ("training", "validation", "holdout")


def table(n: int = 100, start: int = 0) -> pa.Table:
    labels = ["tail" if i % 5 == 0 else "head" for i in range(start, start + n)]
    return pa.table({"x": np.arange(start, start + n) * 1.0, "label": labels})


def staged(store: Store, uri: Path | str, **more: Any) -> tuple[DatasetInfo, dict[Any, list[Any]]]:
    """The info, and of each record by its x: part, label, aug_id and content key."""
    info = load_info(
        ingest(Source(uri=str(uri), label="label", **more), store=store, seed=0), store
    )
    found = {}
    for part in PARTS:
        rows = read_part(store, info, [part])
        columns = [rows[name].to_pylist() for name in ("x", "label", "aug_id", "content_key")]
        found.update({x: [part, *rest] for x, *rest in zip(*columns, strict=True)})
    return info, found


def correct(store: Store, records: dict[Any, list[Any]], labels: dict[Any, str]) -> None:
    """Ada approves, and names the labels of some records."""
    made = []
    for x, label in labels.items():
        _, old, aug_id, key = records[x]
        made.append(Correction(aug_id=aug_id, key=key, old=str(old).lower(), label=label))
    decision = DecisionRecord(
        decision="approve",
        by="Ada",
        decided_at="2026-11-23T10:00:00+00:00",
        n_corrected=len(made),
        corrections=tuple(made),
    )
    number = len(store.list("_proposals")) + 1
    store.put(f"_proposals/ab.decision-{number}.json", decision.to_json())


def test_a_corrected_record_keeps_its_part_and_every_other_record_is_as_it_was(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    pq.write_table(table(), tmp_path / "in.parquet")
    first, before = staged(store, tmp_path / "in.parquet")
    publish_as_is(
        store, ingest(Source(uri=str(tmp_path / "in.parquet"), label="label"), store=store, seed=0)
    )
    parts = {part: next(x for x in before if before[x][:2] == [part, "head"]) for part in PARTS}
    correct(store, before, dict.fromkeys(parts.values(), "tail"))
    second, after = staged(store, tmp_path / "in.parquet")
    assert second.key != first.key
    assert {x: after[x][:2] for x in parts.values()} == {x: [p, "tail"] for p, x in parts.items()}
    assert {x: r for x, r in after.items() if x not in parts.values()} == {
        x: r for x, r in before.items() if x not in parts.values()
    }
    assert "3 labels corrected, as approved by Ada on 2026-11-23" in second.notes
    (corrected,) = second.extra["corrected"]
    assert corrected["source_labels"] == {after[x][2]: "head" for x in parts.values()}
    again, _ = staged(store, tmp_path / "in.parquet")
    assert again.key == second.key, (
        "an unchanged source with the same corrections is staged already"
    )


def test_new_files_are_read_alone_and_the_corrected_records_are_counted(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(table(), folder / "a.parquet")
    _, before = staged(store, folder)
    correct(store, before, {1.0: "tail", 2.0: "tail"})
    publish_as_is(store, ingest(Source(uri=str(folder), label="label"), store=store, seed=0))
    pq.write_table(table(20, start=100), folder / "b.parquet")
    info, after = staged(store, folder)
    assert any("1 of 2 source files are new" in note for note in info.notes), info.notes
    assert "2 labels corrected, as approved by Ada on 2026-11-23" in info.notes
    assert (after[1.0][1], after[2.0][1], after[101.0][1]) == ("tail", "tail", "head")


def test_what_cannot_be_applied_is_said(tmp_path: Path, store: Store) -> None:
    pq.write_table(table(), tmp_path / "in.parquet")
    _, before = staged(store, tmp_path / "in.parquet")
    correct(store, before, {1.0: "tail", 2.0: "tail", 3.0: "tail", 4.0: "tail"})
    changed = table().to_pylist()
    changed[2]["label"], changed[3]["label"] = "third", "tail"  # the last is what Ada said
    changed[50]["label"] = "third"
    del changed[1]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "in.parquet")
    info, after = staged(store, tmp_path / "in.parquet")
    assert (after[2.0][1], after[3.0][1], after[4.0][1]) == ("third", "tail", "tail")
    assert any(
        note.startswith("corrected labels of 2 records were not applied") for note in info.notes
    )


@pytest.mark.parametrize("kind", ["category", "integer", "boolean"])
def test_labels_of_any_type_are_corrected(tmp_path: Path, store: Store, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, start, label in (("a", 0, "head"), ("b", 50, "tail")):
        labels = pa.array([label] * 50)
        if kind != "category":
            labels = pa.array([label == "tail"] * 50)
            labels = labels.cast(pa.int64()) if kind == "integer" else labels
        x = pa.array(np.arange(start, start + 50) * 1.0)
        labels = labels.dictionary_encode() if kind == "category" else labels
        pq.write_table(pa.table({"x": x, "label": labels}), folder / f"{name}.parquet")
    _, before = staged(store, folder)
    correct(store, before, {1.0: {"category": "tail", "integer": "1", "boolean": "true"}[kind]})
    _, after = staged(store, folder)
    assert after[1.0][1] == after[60.0][1] is not None
    assert after[2.0] == before[2.0]


def test_a_hold_out_of_its_own_is_corrected_too(tmp_path: Path, store: Store) -> None:
    pq.write_table(table(), tmp_path / "in.parquet")
    pq.write_table(table(50, start=100), tmp_path / "held.parquet")
    more = {"holdout_uri": str(tmp_path / "held.parquet")}
    _, before = staged(store, tmp_path / "in.parquet", **more)
    correct(store, before, {101.0: "tail"})
    info, after = staged(store, tmp_path / "in.parquet", **more)
    assert after[101.0][:2] == ["holdout", "tail"]
    assert "1 label corrected, as approved by Ada on 2026-11-23" in info.notes


def test_labels_of_images_in_class_folders_are_corrected(
    tmp_path: Path, store: Store, messy_images: ModuleType
) -> None:
    for name in ("ok", "cracked"):
        for i in range(15):
            path = tmp_path / "in" / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(messy_images.encode(messy_images.picture(i + 100 * (name == "ok"))))
    source = Source(uri=str(tmp_path / "in"))
    info = load_info(ingest(source, store=store, seed=0), store)
    rows = read_part(store, info, list(PARTS)).to_pylist()
    wrong = next(row for row in rows if row["label"] == "ok")
    record = {0: ["", "ok", wrong["aug_id"], wrong["content_key"]]}
    correct(store, record, {0: "cracked"})
    info = load_info(ingest(source, store=store, seed=0), store)
    after = {
        row["image"]["path"]: row["label"]
        for row in read_part(store, info, list(PARTS)).to_pylist()
    }
    before = {row["image"]["path"]: row["label"] for row in rows}
    assert after == {**before, wrong["image"]["path"]: "cracked"}
