"""The command line, without Prefect: what it prints and how it ends."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.tables import make_table

from prefect_augment.cli import app as cli, options, runs
from prefect_augment.cli.datasets import _read_labels
from prefect_augment.cli.formatting import show_run
from prefect_augment.encoding.pixels import encode_png
from prefect_augment.errors import ParameterError
from prefect_augment.examples import example_source
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Approval, Destination, Evaluation, NoModel, Source
from prefect_augment.publish.proposal import read_proposal
from prefect_augment.schema import Correction, DecisionRecord, RunResult
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store, read_manifest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command line as a shell does; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["prefect-augment", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A published dataset of one version, and the run's result."""
    folder = tmp_path_factory.mktemp("published")
    pq.write_table(make_table(), folder / "in.parquet")
    result = rebalance.fn(
        source=Source(uri=str(folder / "in.parquet"), label="state"),
        destination=Destination(uri=str(folder / "out")),
        model=NoModel(),
        evaluation=Evaluation(n_seeds=1, n_settings=1, n_bootstrap=100),
    )
    return folder / "out", result


@pytest.fixture
def published(finished: tuple[Path, RunResult]) -> Path:
    return finished[0]


@pytest.fixture
def demo_calls(
    finished: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """What the demo asks of the flow, which answers with a finished run, without Prefect."""
    calls: list[dict[str, Any]] = []

    def flow(**given: Any) -> RunResult:
        calls.append(given)
        return finished[1]

    monkeypatch.setattr(options, "prefect_session", lambda quiet: nullcontext())
    monkeypatch.setattr(sys.modules["prefect_augment.flows.rebalance"], "rebalance", flow)
    return calls


def test_help_lists_the_commands(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in ("rebalance", "evaluate", "profile", "versions", "inspect", "verify", "demo"):
        assert name in out


def test_version_is_that_of_the_package(call: Call) -> None:
    assert call("--version")[:2] == (0, f"prefect-augment {version('prefect-augment')}\n")


@pytest.mark.slow
def test_demo_says_of_both_parts_what_was_found_and_where(
    call: Call, demo_calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, out, _ = call("demo", tmp_path)
    assert code == 0
    assert [given["destination"].uri for given in demo_calls] == [
        f"{tmp_path}/table",
        f"{tmp_path}/images",
    ]
    end = out[out.index("The demo is done") :]
    for name in ("table", "images"):
        assert f"- {name}: version 1 published." in end
        assert f"prefect-augment inspect {tmp_path}/{name}" in end
    assert end.count("report.html") == 2


@pytest.mark.slow
def test_demo_ends_with_one_object_of_both_parts(
    call: Call, demo_calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, out, _ = call("demo", tmp_path, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["table"]["version"] == found["images"]["version"] == 1
    assert found["seconds"] >= 0


@pytest.mark.slow
def test_demo_goes_on_with_the_table_where_nothing_for_images_is_installed(
    call: Call,
    demo_calls: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    code, out, _ = call("demo", tmp_path)
    assert (code, len(demo_calls)) == (0, 1)
    assert "pip install 'prefect-augment[images,torch]'" in out
    code, out, _ = call("demo", tmp_path, "--json")
    assert json.loads(out)["images"] is None


def test_profile_finds_columns_and_classes(call: Call, tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "in.parquet")
    code, out, _ = call("profile", tmp_path / "in.parquet", "--label", "state", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert found["class_counts"]["lost"] == 2
    assert {c["name"]: c["kind"] for c in found["columns"]}["serial"] == "identifier"
    code, out, _ = call("profile", tmp_path / "in.parquet", "--label", "state")
    assert code == 0
    assert "Imbalance ratio" in out


def test_profile_of_images_says_why_some_cannot_be_used(call: Call, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.full((9, 9, 1), 40 * i, dtype=np.uint8)
            (tmp_path / name / f"{i}.png").write_bytes(encode_png(pixels))
    (tmp_path / "bad" / "3.png").write_bytes(b"no image")
    code, out, _ = call("profile", tmp_path)
    assert code == 0
    assert "quarantined 1: 1 × undecodable" in " ".join(out.split())
    # A temporary folder may be called pytest-1.
    assert not re.search(r"(?<!\w)-1\b", out), "images are not counted by their values"


def test_a_wrong_label_ends_with_2_and_a_suggestion(call: Call, tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "in.parquet")
    code, out, _ = call("profile", tmp_path / "in.parquet", "--label", "stat")
    assert code == 2
    assert "did you mean 'state'" in " ".join(out.split())


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("source: {uri: a, labell: b}", ["profile", "x"], "labell"),
        ("budget: {minutes: 5}", ["rebalance", "a", "b", "--minutes", "0"], "budget.minutes"),
        ("budget: {minutes: 5}", ["rebalance", "a", "b", "--target", "best"], "median"),
        *(
            (
                text,
                ["rebalance", "a", "b", "--model", "none"],
                f"'{text.split(':')[0]}' in the parameters file is",
            )
            for text in ("source:", "source: defects.parquet", "model: trees")
        ),
    ],
)
def test_a_wrong_parameters_file_ends_with_2_and_names_the_field(
    call: Call,
    tmp_path: Path,
    text: str,
    arguments: list[str],
    says: str,
) -> None:
    (tmp_path / "params.yaml").write_text(text)
    code, _, err = call(*arguments, "--params", tmp_path / "params.yaml")
    assert code == 2
    assert says in " ".join(err.split())


class Asked:
    """Stands where a flow is, and keeps what it is asked for."""

    given: dict[str, Any]

    def validate_parameters(self, given: dict[str, Any]) -> dict[str, Any]:
        self.given = given
        raise ParameterError("that is all")


@pytest.mark.parametrize("name", ["rebalance", "evaluate"])
def test_options_go_before_the_parameters_file_and_that_before_the_defaults(
    call: Call,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    flow = Asked()
    monkeypatch.setattr(options, "prefect_session", lambda quiet: nullcontext())
    monkeypatch.setattr(import_module(f"prefect_augment.flows.{name}"), name, flow)

    def asked(text: str, *arguments: str) -> tuple[int, Any]:
        (tmp_path / "params.yaml").write_text(text)
        other = source.uri if name == "evaluate" else "b"  # synthetic records have to be there
        call(name, source.uri, other, "--params", tmp_path / "params.yaml", *arguments)
        return flow.given["seed"], flow.given.get("compute", {}).get("workers")

    assert asked("{}") == (0, None)
    assert asked("{seed: 7, compute: {workers: 1}}") == (7, 1)
    assert asked("{seed: 7, compute: {workers: 1}}", "--seed", "0", "--workers", "4") == (0, 4)


def test_a_quick_run_is_short_where_nothing_else_was_asked_for(
    call: Call,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = Asked()
    monkeypatch.setattr(options, "prefect_session", lambda quiet: nullcontext())
    for name in ("rebalance", "evaluate"):
        monkeypatch.setattr(import_module(f"prefect_augment.flows.{name}"), name, flow)
    (tmp_path / "params.yaml").write_text("evaluation: {n_seeds: 5, on_no_gain: fail}")
    given = (source.uri, "b", "--quick", "--params", tmp_path / "params.yaml")

    call("rebalance", *given, "--minutes", "7")
    assert flow.given["model"] == {"kind": "none"}
    assert flow.given["budget"] == {"minutes": 7}
    assert flow.given["evaluation"] == {"n_seeds": 5, "n_settings": 2, "on_no_gain": "fail"}
    call("rebalance", *given, "--model", "trees")
    assert flow.given["model"] == {"kind": "trees"}
    call("evaluate", source.uri, source.uri, *given[2:])
    assert "model" not in flow.given
    assert flow.given["budget"] == {"minutes": 2}


@pytest.mark.slow
def test_a_quick_run_answers_and_says_what_it_left_out(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "prefect_session", lambda quiet: nullcontext())
    given = example_source(str(tmp_path)).uri
    code, out, _ = call("rebalance", given, tmp_path / "out", "--label", "digit", "--quick")
    said = " ".join(out.split())
    assert code == 0
    assert "Use threshold: +" in said
    assert "leave out --quick to try synthetic records" in said
    assert "more settings and seeds too" in said
    manifest = read_manifest(open_store(str(tmp_path / "out")))
    assert manifest.params["model"] == {"kind": "none"}
    assert manifest.params["budget"]["minutes"] == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("model: {kind: tree}", "model.kind is 'tree': did you mean 'trees'?"),
        (
            "model: {kind: trees, min_leav: 2}",
            "no parameter of model.trees: did you mean 'min_leaf'",
        ),
        ("balanse: {}", "'balanse' is no parameter: did you mean 'balance'?"),
        ("budget: {minutes: -1}", "budget.minutes: Input should be greater than 0"),
        ("source: {group_column: sit}", "'sit' is not a column of the source"),
        ("source: {holdout_uri: nowhere.csv}", "at nowhere.csv: found nothing"),
    ],
)
def test_wrong_parameters_are_one_line_before_prefect_is_imported(
    call: Call,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    error: str,
) -> None:
    monkeypatch.setattr(options, "prefect_session", None)
    (tmp_path / "params.yaml").write_text(text)
    given = ("--label", source.label, "--params", tmp_path / "params.yaml")
    code, out, said = call("rebalance", source.uri, tmp_path / "out", *given)
    assert (code, out, len(said.splitlines())) == (2, "", 1)
    assert error in said


def test_synthetic_records_that_are_not_there_are_one_line_before_prefect_is_imported(
    call: Call, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "prefect_session", None)
    code, out, said = call("evaluate", source.uri, "nowhere.parquet", "--label", source.label)
    assert (code, out, len(said.splitlines())) == (2, "", 1)
    assert "at nowhere.parquet: found nothing" in said


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {path}']",
        "balance: !!python/object/apply:os.system ['touch {path}']",
        "x: &x [1]\nbalance: [*x, *x]",
        "balance: {{<<: {{target: median}}, __class__: x}}",
        "{{" * 60,
    ],
)
def test_a_parameters_file_runs_nothing(
    call: Call, source: Source, tmp_path: Path, text: str
) -> None:
    (tmp_path / "params.yaml").write_text(text.format(path=tmp_path / "touched"))
    code, _, said = call(
        "rebalance", source.uri, tmp_path / "out", "--params", tmp_path / "params.yaml"
    )
    assert (code, len(said.splitlines())) == (2, 1)
    assert not (tmp_path / "touched").exists()


def test_versions_inspect_and_verify_say_what_is_there(call: Call, published: Path) -> None:
    code, out, _ = call("versions", published, "--json")
    assert (code, [result["version"] for result in json.loads(out)]) == (0, [1])
    code, out, _ = call("versions", published)
    assert code == 0
    assert "real" in out
    code, out, _ = call("inspect", published)
    assert code == 0
    for text in ("class (state)", "Version 1, published", "Recipe: "):
        assert text in out
    assert len(out.splitlines()) < 50, "the rest is behind --json"
    code, out, _ = call("verify", published, "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    code, out, _ = call("verify", published)
    assert code == 0
    assert "Version 1 is as it was published" in out


def test_verify_ends_with_1_where_a_shard_is_damaged(
    call: Call, published: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    shard = next((copy / "data").glob("train-real-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    code, out, _ = call("verify", copy)
    assert code == 1
    assert shard.name in out


@pytest.mark.slow
def test_proposals_are_listed_and_a_wrong_amount_is_refused(
    call: Call, published: Path, tmp_path: Path
) -> None:
    rebalance.fn(
        source=Source(uri=str(published.parent / "in.parquet"), label="state"),
        destination=Destination(uri=str(tmp_path / "out")),
        model=NoModel(),
        evaluation=Evaluation(n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"]),
        approval=Approval(ask=True),
    )
    code, out, _ = call("approve", tmp_path / "out", "--list", "--json")
    (found,) = json.loads(out)
    assert (code, found["status"], found["decision"]) == (0, "open", None)
    code, out, _ = call("approve", tmp_path / "out", "--list")
    assert found["id"] in out
    code, _, err = call("approve", tmp_path / "out", "--amount", "cracked=many")
    assert code == 2
    assert "cracked=40" in err


@pytest.mark.slow
def test_labels_that_a_person_corrects_are_read_by_the_next_run(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options, "prefect_session", lambda quiet: nullcontext())
    clean = make_table()
    flipped = {i: name for i, name in enumerate(clean["state"].to_pylist()) if i % 40 == 0}
    names = clean["state"].to_pylist()
    for i, name in flipped.items():
        names[i] = next(other for other in set(names) if other != name)
    at = clean.column_names.index("state")
    pq.write_table(clean.set_column(at, "state", pa.array(names)), tmp_path / "in.parquet")
    out = tmp_path / "out"

    def run(*, ask: bool) -> RunResult:
        return rebalance.fn(
            source=Source(uri=str(tmp_path / "in.parquet"), label="state"),
            destination=Destination(uri=str(out)),
            model=NoModel(),
            evaluation=Evaluation(
                n_seeds=1,
                n_settings=1,
                n_bootstrap=100,
                estimators=["logistic"],
                on_no_gain="publish",
            ),
            approval=Approval(ask=ask),
        )

    def published() -> dict[str, tuple[str, str]]:
        parts = [open_dataset(str(out)).to_table(split, ["real"]) for split in ("train", "holdout")]
        rows = [row for part in parts for row in part.to_pylist()]
        return {row["serial"]: (row["state"], row["aug_id"]) for row in rows}

    assert run(ask=True).status == "awaiting_approval"
    store = open_store(str(out))
    info = load_info(read_proposal(store).release.dataset, store)
    records = read_part(store, info, ["training", "validation", "holdout"])
    right = dict(zip(clean["serial"].to_pylist(), clean["state"].to_pylist(), strict=True))
    edited = records.select(["aug_id"]).append_column(
        "label", pa.array([right[serial] for serial in records["serial"].to_pylist()])
    )
    pq.write_table(edited, tmp_path / "audit.parquet")
    code, text, said = call(
        "approve", out, "--relabel", tmp_path / "audit.parquet", "--by", "Ada", "--json"
    )
    assert code == 0, said
    assert json.loads(text)["approval"]["n_corrected"] == len(flipped)
    first = published()
    assert [first[f"sn-0-{i:05d}"][0] for i in flipped] == [names[i] for i in flipped]
    approval = read_manifest(store).approval
    assert approval is not None
    assert f"{len(flipped)} labels are corrected from the next run on" in approval.sentence

    assert run(ask=False).version == 2
    second = published()
    assert {serial: name for serial, (name, _) in second.items()} == right
    assert not verify(store).problems
    manifest = read_manifest(store)
    (corrected,) = manifest.corrected
    assert (corrected.by, corrected.n_records) == ("Ada", len(flipped))
    assert corrected.source_labels == {second[f"sn-0-{i:05d}"][1]: names[i] for i in flipped}
    note = f"{len(flipped)} labels corrected, as approved by Ada on "
    assert any(text.startswith(note) for text in manifest.notes)
    assert note in store.read(manifest.report).decode()
    assert run(ask=False).status == "unchanged"

    gone = second["sn-0-00000"][1]
    key = next(
        c.key for c in _kept(store) if c.old == names[0] and c.aug_id == first["sn-0-00000"][1]
    )
    code, _, said = call("erase", out, "--ids", gone)
    assert code == 0, said
    assert key not in {c.key for c in _kept(store)}
    assert len(_kept(store)) == len(flipped) - 1
    (left,) = read_manifest(store).corrected
    assert (left.n_records, gone in left.source_labels) == (len(flipped) - 1, False)


def _kept(store: Store) -> tuple[Correction, ...]:
    (path,) = (p for p in store.list("_proposals") if "decision" in p)
    return DecisionRecord.model_validate_json(store.read(path)).corrections


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read as CSV or Parquet"),
        ("aug_id,state\n1,b\n", "lacks label; expected the columns aug_id and label"),
        (
            "aug_id,label\n" + "1,b\n" * 5001,
            "5,001 records; keep those whose label changes, at most 5,000",
        ),
    ],
)
def test_a_file_of_labels_that_cannot_be_used_is_refused(
    call: Call, tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    code, _, err = call("approve", tmp_path / "out", "--relabel", tmp_path / "labels.csv")
    assert code == 2
    assert words in " ".join(err.split())


def test_labels_of_a_csv_file_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("aug_id,label,suggested\n00ab,01,x\n1e5,a = b,x\n")
    assert _read_labels(tmp_path / "labels.csv") == "00ab = 01\n1e5 = a = b"


def test_a_folder_that_is_no_dataset_is_said_plainly(call: Call, tmp_path: Path) -> None:
    code, _, err = call("verify", tmp_path)
    assert code != 0
    assert str(tmp_path) in err


def test_the_table_of_classes_adds_up_those_beyond_thirty(
    finished: tuple[Path, RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    result = finished[1]
    (some, *_) = result.plan.classes
    classes = [
        some.model_copy(update={"name": f"c{i}", "label": f"c{i}", "n_real": i, "compared": i > 5})
        for i in range(40)
    ]
    plan = result.plan.model_copy(update={"classes": tuple(classes)})
    show_run(Console(width=100), result.model_copy(update={"plan": plan, "recipe": None}))
    rows = re.findall(r"│ (c\d+|11 more classes)[^│]*│\s+(\d+) │", capsys.readouterr().out)
    assert len(rows) == 30
    assert rows[-1] == ("11 more classes", str(sum(range(11))))
    assert sum(int(n) for _, n in rows) == sum(range(40))
