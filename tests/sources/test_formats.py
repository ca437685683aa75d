"""Every source format through the real ingest: JSON lines, Arrow, Feather, Hugging Face dataset folders."""

import gzip
import io
import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.registry import FORMATS, load_reader
from prefect_augment.schema import Manifest
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.sources.discovery import list_source
from prefect_augment.sources.hf_layout import choose_files
from prefect_augment.storage import Store, open_store

datasets = pytest.importorskip("datasets")

N = 60
PARTS = ("training", "validation", "holdout")


def make_table(n: int = N, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "x": rng.normal(size=n),
            "n": pa.array([None if i % 7 == 0 else i for i in range(n)], pa.int64()),
            "flag": [i % 2 == 0 for i in range(n)],
            "site": [("nord", "süd")[i % 2] for i in range(n)],
            "label": [("a", "b", "b")[i % 3] for i in range(n)],
        }
    )


def as_lines(table: pa.Table) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())


def as_arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def as_feather(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    feather.write_feather(table, sink)
    return sink.getvalue()


WRITERS = {
    "in.jsonl": as_lines,
    "in.ndjson.gz": lambda table: gzip.compress(as_lines(table)),
    "in.arrow": as_arrow,
    "in.feather": as_feather,
}


def ingested(tmp_path: Path, uri: Path | str, **changes: Any) -> tuple[pa.Table, Any]:
    """All records that ingest staged, and its info."""
    store = open_store(str(tmp_path / "out"))
    info = load_info(
        ingest(Source(uri=str(uri), label="label", **changes), store=store, seed=0), store
    )
    return read_part(store, info, PARTS), info


def records(table: pa.Table) -> list[Any]:
    names = [name for name in table.column_names if name in make_table().column_names]
    return sorted(map(repr, table.select(names).to_pylist()))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_gives_the_records_that_its_parquet_file_would(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(WRITERS[name](make_table()))
    table, info = ingested(tmp_path, tmp_path / "in")
    assert records(table) == records(make_table())
    assert [c.arrow_type for c in info.columns] == ["double", "int64", "bool", "string"]
    pq.write_table(make_table(), tmp_path / "same.parquet")
    same, _ = ingested(tmp_path / "parquet", tmp_path / "same.parquet")
    assert sorted(table["aug_id"].to_pylist()) == sorted(same["aug_id"].to_pylist())


@pytest.mark.parametrize("name", WRITERS)
def test_several_files_are_one_dataset(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        (tmp_path / "in" / f"{i}{name}").write_bytes(WRITERS[name](make_table(seed=i)))
    table, info = ingested(tmp_path, f"{tmp_path}/in/*{name[2:]}")
    assert table.num_rows == 2 * N
    assert [f.n_records for f in info.sources] == [N, N]


def test_a_format_can_be_asked_for_by_name_whatever_the_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "records.json").write_bytes(as_lines(make_table()))
    table, _ = ingested(tmp_path, tmp_path / "records.json", format="jsonl")
    assert table.num_rows == N


def test_lines_that_do_not_fit_are_in_quarantine_with_file_line_and_reason(
    tmp_path: Path, store: Store
) -> None:
    lines = as_lines(make_table()).splitlines(keepends=True)
    lines[4:4] = [b"not json\n", b"\n", b"[1]\n"]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    table, info = ingested(tmp_path, tmp_path / "in.jsonl")
    assert (table.num_rows, info.n_quarantined) == (N, 2)
    (shard,) = info.quarantine
    found = pq.read_table(io.BytesIO(store.read(shard.path))).to_pylist()
    assert [(r["file"] if "file" in r else r["path"], r["position"]) for r in found] == [
        ("in.jsonl", 5), ("in.jsonl", 7),
    ]  # fmt: skip
    assert [r["reason"] for r in found] == [
        "not JSON: Expecting value at character 1", "not an object but a list",
    ]  # fmt: skip
    assert [r["record"] for r in found] == ["not json", "[1]"]


def test_formats_are_not_mixed_and_all_are_named(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        (tmp_path / name).write_bytes(write(make_table()))
    with pytest.raises(InputError, match="holds 2 JSON lines and 2 Arrow files"):
        list_source(str(tmp_path), requested="auto", options=None)


def test_every_format_can_be_asked_for_and_has_a_reader() -> None:
    """The form's choice is written out in the params; the registry must not know more, or less."""
    wished = typing.get_args(Source.model_fields["format"].annotation)
    assert set(FORMATS) <= set(wished)
    for name in FORMATS:
        assert callable(load_reader(name))


# --- Hugging Face dataset folders -------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


FEATURES = datasets.Features(
    {
        "x": datasets.Value("float64"),
        "n": datasets.Value("int64"),
        "flag": datasets.Value("bool"),
        "site": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["low", "high"]),
    }
)


def as_dataset(seed: int = 0, n: int = N) -> Any:
    rows = make_table(n, seed).to_pydict()
    rows["label"] = [int(value == "b") for value in rows["label"]]
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def test_what_save_to_disk_leaves_comes_back_with_its_features(tmp_path: Path) -> None:
    as_dataset().save_to_disk(tmp_path / "in", num_shards=3)
    (tmp_path / "in" / "data-00000-of-00009.arrow").write_bytes(b"a file of an older save")
    table, info = ingested(tmp_path, tmp_path / "in")
    assert records(table) == records(as_dataset().data.table)
    assert info.label_type == "int64"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": ["low", "high"], "_type": "ClassLabel"}
    assert [f.n_records for f in info.sources] == [20, 20, 20]


def test_of_saved_splits_train_is_read_and_another_can_be_the_hold_out(tmp_path: Path) -> None:
    splits = datasets.DatasetDict(train=as_dataset(), test=as_dataset(seed=1))
    splits.save_to_disk(tmp_path / "in")
    table, info = ingested(tmp_path, tmp_path / "in")
    assert records(table) == records(as_dataset().data.table)
    (note,) = [note for note in info.notes if "Hugging Face" in note]
    assert "its split 'train' is read, 'test' not" in note
    said = note.rsplit("e.g. ", 1)[1]
    assert said == f"{tmp_path}/in/test"
    table, info = ingested(tmp_path / "held", tmp_path / "in", holdout_uri=said)
    assert info.holdout_uri == said
    assert table.num_rows == 2 * N


def write_repository(folder: Path, card: str = "") -> None:
    (folder / "data").mkdir(parents=True)
    for split, seed in (("train", 0), ("test", 1)):
        for i in range(2):
            table = as_dataset(seed).data.table.combine_chunks().slice(i * N // 2, N // 2)
            pq.write_table(table, folder / "data" / f"{split}-{i:05d}-of-00002.parquet")
    if card:
        (folder / "README.md").write_text(card)


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: [data/test-*]
---
# Data
"""


@pytest.mark.parametrize(
    "card", ["", CARD, "# Data\n", "---\n: [\n---\n"], ids=["none", "configs", "plain", "broken"]
)
def test_a_repository_s_train_split_is_read(card: str, tmp_path: Path) -> None:
    write_repository(tmp_path / "in", card)
    table, info = ingested(tmp_path, tmp_path / "in")
    assert records(table) == records(as_dataset().data.table)
    assert [f.path for f in info.sources] == [
        f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)
    ]
    (note,) = [note for note in info.notes if "Hugging Face" in note]
    said = note.rsplit("e.g. ", 1)[1]
    assert said == f"{tmp_path}/in/data/test-*.parquet"
    _, info = ingested(tmp_path / "held", tmp_path / "in", holdout_uri=said)
    assert info.holdout_uri == said


def test_what_datasets_itself_reads_of_a_repository_is_what_we_read(tmp_path: Path) -> None:
    card = CARD.replace("data/train-*", "data/**/train-00001*").replace("[data/test-*]", "data/t?st-*")  # fmt: skip
    write_repository(tmp_path / "in", card)
    theirs = datasets.load_dataset(str(tmp_path / "in"), split="train", cache_dir=str(tmp_path / "cache"))  # fmt: skip
    table, _ = ingested(tmp_path, tmp_path / "in")
    assert records(table) == records(theirs.data.table)


def choose(tmp_path: Path) -> Any:
    store = open_store(str(tmp_path))
    return choose_files(store.list(), store)


@pytest.mark.parametrize(
    ("data_files", "expected"),
    [
        ("one.csv", ["one.csv"]),
        (["one.csv", "sub/*.csv"], ["one.csv", "sub/two.csv"]),
        ({"train": "sub/**", "test": "one.csv"}, ["sub/two.csv"]),
        ([{"split": "extra", "path": "./one.csv"}], ["one.csv"]),
        ("**", None),  # not all of it tables
    ],
)
def test_a_card_names_files_in_each_of_its_forms(
    data_files: Any, expected: list[str] | None, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.csv").touch()
    (tmp_path / "sub" / "two.csv").touch()
    front = json.dumps({"configs": [{"config_name": "c", "data_files": data_files}]})
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    chosen = choose(tmp_path)
    assert (chosen and chosen[0]) == expected


@pytest.mark.parametrize("path", ["../secret.csv", "/etc/passwd", "data/none-*"])
def test_a_card_that_names_files_outside_its_folder_or_none_is_refused(
    path: str, tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text("x,label\n1,a\n")
    write_repository(tmp_path / "in", CARD.replace("data/train-*", path))
    with pytest.raises(InputError, match="the folder has no such file"):
        ingested(tmp_path, tmp_path / "in")


@pytest.mark.parametrize("stars", ["*a" * 14 + "*b.csv", "**/" * 30 + "b.csv"])
def test_a_glob_of_many_stars_is_matched_in_no_time(stars: str, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a"] * 30)
    folder.mkdir(parents=True)
    (folder / "c.csv").touch()
    (tmp_path / ("a" * 200 + ".csv")).touch()
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- data_files: '{stars}'\n---\n")
    with pytest.raises(InputError, match="the folder has no such file"):
        choose(tmp_path)


def test_a_card_with_aliases_is_no_card(tmp_path: Path) -> None:
    """A few of them stand for more values than fit into memory."""
    (tmp_path / "one.csv").touch()
    front = "x: &x [a]\nconfigs:\n- {config_name: *x, data_files: one.csv}\n"
    (tmp_path / "README.md").write_text(f"---\n{front}---\n")
    assert choose(tmp_path) is None


def test_one_of_several_configurations_has_to_be_named(tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": f"{name}/*.csv"} for name in ("de", "en")
    ]
    for name in ("de", "en"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").touch()
    card = tmp_path / "README.md"
    card.write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    with pytest.raises(InputError, match="configurations 'de', 'en'; give the files of one"):
        choose(tmp_path)
    configs[1]["default"] = True
    card.write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    assert choose(tmp_path)[0] == ["en/a.csv"]


def test_splits_without_train_have_to_be_chosen(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        (tmp_path / f"{split}-00000-of-00001.parquet").touch()
    with pytest.raises(InputError, match="splits 'test', 'validation' and none called 'train'"):
        choose(tmp_path)


OUTSIDE = "which is no file beside it; refused"
BROKEN = ("", "{", "[]", '{"_data_files": 3}', '{"_data_files": [3]}', "[" * 100_000)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        *(
            (json.dumps({"_data_files": [{"filename": name}]}), says)
            for name, says in {
                "../data-00000-of-00001.arrow": OUTSIDE,
                "/etc/hostname": OUTSIDE,
                "..": OUTSIDE,
                "gone.arrow": "which is not there; copy the folder again",
            }.items()
        ),
        *((text, "state.json .*save the dataset again") for text in BROKEN),
    ],
)
def test_a_saved_dataset_with_a_broken_or_foreign_state_is_refused(
    state: str, says: str, tmp_path: Path
) -> None:
    as_dataset().save_to_disk(tmp_path / "in")
    (tmp_path / "in" / "state.json").write_text(state)
    with pytest.raises(InputError, match=says):
        ingested(tmp_path, tmp_path / "in")


def test_our_own_published_dataset_is_still_read_by_its_manifest(
    tmp_path: Path, publish_two: Any
) -> None:
    """Its card lists files as Hugging Face does; the manifest says more."""
    publish_two(open_store(str(tmp_path / "ours")))
    listing = list_source(str(tmp_path / "ours"), requested="auto", options=None)
    assert isinstance(listing.manifest, Manifest)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.sav"], r"1 SPSS file \(a.sav\): .*read_spss\('a.sav'\).to_parquet"),
        (["b.sqlite", "a.db", "notes.md"], r"2 SQLite files \(a.db\): give the file itself"),
        (["model.pkl"], "can run code when it is opened"),
        (["notes.md"], "1 other file"),
    ],
)
def test_formats_that_are_not_read_are_named_with_the_way_out(
    names: list[str], said: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=said):
        list_source(str(tmp_path), requested="auto", options=None)
