"""A dataset of synthetic records alone can be given away: nothing of the real ones lies in it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.engine_runs import PUBLISH

from prefect_augment import open_dataset, remake_records
from prefect_augment.encoding.record_ids import record_keys
from prefect_augment.errors import ParameterError, RefusedError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import ColumnOverride, Destination, Publish, Quality, Source, TreesModel
from prefect_augment.schema import Correction, DecisionRecord, RunResult
from prefect_augment.storage import open_store, read_manifest, with_workspace

pytestmark = [pytest.mark.usefixtures("quick_runs"), pytest.mark.slow]

N = 600


def people(seed: int, n: int = N) -> pd.DataFrame:
    """Records with an identifier, texts and numbers of one person each, and a shared level or two."""
    rng = np.random.default_rng(seed)
    sick = rng.random(n) < 0.12
    x = rng.normal(size=n) + 1.2 * sick
    town = rng.choice(["north", "south", "east"], n).astype(object)
    town[::15] = [f"Farm {seed} of person {i}" for i in range(len(town[::15]))]
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "income": np.round(np.exp(10 + 0.4 * x + rng.normal(size=n) * 0.3), 2),
            "score": x + rng.normal(size=n) * 0.5,
            "town": pd.Categorical(town),
            "patient": [f"p{seed}{i:05d}" for i in range(n)],
            "state": np.where(sick, "sick", "well"),
        }
    )


def run(folder: Path, source: Path, **params: object) -> RunResult:
    return rebalance.fn(
        source=Source(uri=str(source), label="state"),
        destination=Destination(uri=str(folder / "out")),
        model=TreesModel(),
        **{"evaluation": PUBLISH, "publish": Publish(origins=["synthetic"]), **params},
    )


@dataclass(frozen=True)
class Shared:
    folder: Path
    members: pd.DataFrame
    result: RunResult

    @property
    def bytes(self) -> dict[str, bytes]:
        out = self.folder / "out"
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, quick_runs: None) -> Shared:
    folder = tmp_path_factory.mktemp("shared")
    members = people(1)
    members.to_parquet(folder / "people.parquet", index=False)
    return Shared(folder, members, run(folder, folder / "people.parquet"))


def test_only_card_manifest_and_shards_lie_in_the_destination(shared: Shared) -> None:
    assert shared.result.status == "published"
    assert {path.split("/")[0] for path in shared.bytes} == {
        "README.md", "_manifests", "_workspace.json", "croissant.json", "data",
    }  # fmt: skip
    assert (shared.folder / "out-workspace" / "_splits" / "v00000001.parquet").exists()
    assert Path(shared.result.report).is_file()
    report = verify(with_workspace(open_store(str(shared.folder / "out"))), shareable=True)
    assert report.ok, report.problems


def test_the_attacks_of_a_stranger_find_nothing(shared: Shared) -> None:
    """600 memberships and labels by hash, 40 ages by guessing, and values of one person."""
    everything = b"\n".join([*shared.bytes.values(), *(p.encode() for p in shared.bytes)])
    columns = open_store(str(shared.folder / "out")).list("data")
    published = pd.concat(
        [pd.read_parquet(shared.folder / "out" / path) for path in columns]
    ).astype({"town": object})
    texts = {str(v) for c in published for v in published[c].astype(str)}

    def keys(frame: pd.DataFrame) -> list[str]:
        return record_keys(pa.Table.from_pandas(frame, preserve_index=False), label="state")

    members = keys(shared.members)
    assert not sum(key in texts or key.encode() in everything for key in members)
    guesses = pd.concat([shared.members.iloc[:40].assign(age=age) for age in range(18, 90)])
    assert not set(keys(guesses)) & texts
    for name in ("income", "score", "town", "patient"):
        counts = shared.members[name].value_counts()
        rare = set(counts.index[counts == 1])
        assert len(rare) >= 40
        assert not rare & set(published[name].dropna()), name
        assert not any(str(value).encode() in everything for value in rare), name


def test_equal_inputs_give_equal_data_whatever_the_keys_are(shared: Shared, tmp_path: Path) -> None:
    again = Shared(tmp_path, shared.members, run(tmp_path, shared.folder / "people.parquet"))
    data = {path: body for path, body in shared.bytes.items() if path.startswith("data/")}
    assert data
    assert data == {path: body for path, body in again.bytes.items() if path.startswith("data/")}
    assert again.bytes["_workspace.json"] != shared.bytes["_workspace.json"]


def test_a_share_goes_on_as_any_dataset_does(shared: Shared, tmp_path: Path) -> None:
    """Reruns, new records, garbage collection, remaking, and what is refused."""
    for name in ("out", "out-workspace"):
        shutil.copytree(shared.folder / name, tmp_path / name)
    source = tmp_path / "people"
    source.mkdir()
    shared.members.to_parquet(source / "1.parquet", index=False)
    people(2, 120).to_parquet(source / "2.parquet", index=False)
    with pytest.raises(ParameterError, match="publish.origins says otherwise"):
        run(tmp_path, source, publish=Publish())
    with pytest.raises(ParameterError, match="lets values of single records out"):
        run(tmp_path, source, quality=Quality(min_level_records=1))
    store = with_workspace(open_store(str(tmp_path / "out")))
    # The plant of somebody else makes a rerun refuse, and leaves the version before.
    (tmp_path / "out" / "notes.csv").write_text(shared.members.iloc[[7]].to_csv())
    with pytest.raises(RefusedError, match=r"notes\.csv"):
        run(tmp_path, source)
    assert read_manifest(store).version == 1
    named = {shard.path for shard in read_manifest(store).shards}
    assert set(store.list("data")) == named
    (tmp_path / "out" / "notes.csv").unlink()
    # A corrected label is counted in the manifest, and stays in the workspace.
    members = pa.Table.from_pandas(shared.members, preserve_index=False)
    old, key = shared.members["state"][0], record_keys(members, label="state")[0]
    new = "well" if old == "sick" else "sick"
    made = Correction(aug_id="0" * 32, key=key, old=old, label=new)
    day = "2026-11-23T10:00:00+00:00"
    decision = DecisionRecord(decision="reject", decided_at=day, corrections=(made,))
    store.put("_proposals/ab.decision.json", decision.to_json())
    assert run(tmp_path, source).version == 2
    (corrected,) = read_manifest(store).corrected
    assert (corrected.n_records, corrected.source_labels, corrected.digest) == (1, {}, "")
    assert not open_store(str(tmp_path / "out")).list("_proposals")
    assert run(tmp_path, source).status == "unchanged"
    collect_garbage(store, keep_last=1, older_than_days=0)
    report = verify(store, shareable=True)
    assert report.ok, report.problems
    dataset = open_dataset(str(tmp_path / "out"))
    row = dataset.to_table().slice(3, 1).to_pylist()[0]
    (made,) = remake_records(dataset, [row["aug_id"]]).to_pylist()
    assert made == {name: value for name, value in row.items() if not name.startswith("aug_")}


def test_without_synthetic_records_nothing_is_said_of_attacks(
    shared: Shared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = PUBLISH.model_copy(update={"on_no_gain": "recipe"})
    result = run(tmp_path, shared.folder / "people.parquet", evaluation=strict, publish=Publish())
    assert result.recipe is not None
    assert not result.recipe.synthetic
    page = Path(result.report).read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (page, card, caplog.text):
        for alarm in ("Safe to publish", "guard them", "hand on the model", "Is each class safe"):
            assert alarm not in text


@pytest.mark.parametrize("said", [{}, {"group_column": "patient"}, {"columns": "category"}])
def test_a_share_with_peoples_numbers_is_refused_until_somebody_says_what_they_are(
    said: dict[str, str], tmp_path: Path
) -> None:
    frame = people(0).assign(patient=[f"p{i // 3:05d}" for i in range(N)])
    frame.to_parquet(tmp_path / "people.parquet")
    columns = [ColumnOverride(name="patient", kind="category")] if "columns" in said else []
    source = Source(
        uri=str(tmp_path / "people.parquet"),
        label="state",
        group_column=said.get("group_column", ""),
        columns=columns,
    )

    def plan() -> RunResult:
        return rebalance.fn(
            source=source,
            destination=Destination(uri=str(tmp_path / "out")),
            publish=Publish(origins=["synthetic"]),
            plan_only=True,
        )

    if said:
        assert plan().status == "planned"
    else:
        with pytest.raises(ParameterError, match="'patient' says whose record it is"):
            plan()
