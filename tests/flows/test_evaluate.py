"""Evaluating records that another tool made."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from support.engine_runs import QUICK
from support.tables import make_table
from typer.testing import CliRunner

from prefect_augment.cli.app import app, main
from prefect_augment.errors import RefusedError
from prefect_augment.experiment import evaluator
from prefect_augment.flows.evaluate import evaluate
from prefect_augment.params import Destination, Quality, Report, Source
from prefect_augment.schema import RunResult

pytestmark = pytest.mark.usefixtures("quick_runs")

FAITHFUL = Quality(purpose="faithful")


class Evaluated(NamedTuple):
    """What one file of records came to."""

    result: RunResult
    report: dict[str, Any]
    page: str
    parts: list[str]  # that the verdict has read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real records, and a hold-out that nothing was made from."""
    folder = tmp_path_factory.mktemp("evaluate")
    pq.write_table(make_table(), folder / "real.parquet")
    counts = {"ok": 60, "worn": 30, "cracked": 30}
    pq.write_table(make_table(seed=9, counts=counts), folder / "holdout.parquet")
    return folder


def evaluate_file(
    folder: Path, synthetic: Path, *, holdout: bool = True, **params: Any
) -> Evaluated:
    source = Source(
        uri=str(folder / "real.parquet"),
        label="state",
        holdout_uri=str(folder / "holdout.parquet") if holdout else "",
    )
    read_parts, parts = evaluator.read_parts, list[str]()

    def counted(store: Any, info: Any, wanted: Any, **options: Any) -> list[pa.Table]:
        parts.extend(wanted)
        return read_parts(store, info, wanted, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "read_parts", counted)
        result = evaluate.fn(
            source=source,
            synthetic=str(synthetic),
            destination=Destination(uri=str(folder / "evaluation")),
            **{"evaluation": QUICK, "quality": FAITHFUL, **params},
        )
    page = Path(result.report)
    report = json.loads((page.parent / "report.json").read_text())
    return Evaluated(result, report, page.read_text(), parts)


def of_class(table: pa.Table, name: str) -> pa.Table:
    return table.filter(pc.equal(table["state"], name))


@pytest.fixture(scope="module")
def copies(folder: Path) -> Evaluated:
    """The cracked records again, as CSV."""
    table = of_class(make_table(), "cracked")
    plain = table.set_column(3, "site", table["site"].cast(pa.string()))
    pa_csv.write_csv(plain, folder / "copies.csv")
    return evaluate_file(folder, folder / "copies.csv")


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Evaluated:
    """New records of one class, and three that cannot be compared."""
    table = make_table(seed=5, counts={"worn": 203})
    states = ["worn"] * 200 + ["molten", "molten", None]
    pq.write_table(table.set_column(6, "state", pa.array(states)), folder / "fresh.parquet")
    return evaluate_file(folder, folder / "fresh.parquet")


def reasons(compared: Evaluated, name: str) -> dict[str, int]:
    return next(c["reasons"] for c in compared.report["candidates"]["classes"] if c["name"] == name)


@pytest.mark.slow
def test_copies_of_training_records_are_caught(copies: Evaluated) -> None:
    assert copies.result.status == "evaluated"
    assert copies.result.verdict is not None
    assert copies.result.verdict.chosen == "external records"
    # Those that ingest put into validation were not seen as training records; the others are exact copies.
    assert reasons(copies, "cracked").get("near copy", 0) > 10


@pytest.mark.slow
def test_copies_give_away_who_was_in_the_training_data(copies: Evaluated) -> None:
    """Of all real records, those in validation too: whoever copied them had them."""
    privacy = copies.report["privacy"]
    assert copies.result.privacy == privacy["finding"] == "leak"
    drawn = privacy["sides"][0]
    assert (drawn["records"], drawn["n_synthetic"]) == ("drawn", 26)
    assert drawn["attack"]["auc"]["estimate"] == 1.0
    assert drawn["closeness"]["synthetic_copies"] == 1.0
    assert privacy["sentence"] in copies.result.notes
    assert "protect them like the real records" in copies.page


@pytest.mark.slow
def test_fresh_records_of_the_same_kind_mostly_pass(fresh: Evaluated) -> None:
    dropped = reasons(fresh, "worn")
    assert sum(n for reason, n in dropped.items() if reason != "surplus") < 80
    assert fresh.result.privacy == "none shown"
    auc = fresh.report["privacy"]["sides"][0]["attack"]["auc"]
    assert auc["low"] <= 0.5 <= auc["high"]


@pytest.mark.slow
def test_records_given_are_those_filtered_and_those_set_aside(fresh: Evaluated) -> None:
    counts = fresh.result.external
    assert (counts["given"], counts["filtered"], counts["quarantined"]) == (203, 200, 3)
    assert fresh.result.quarantined == 3
    assert any("class 'molten'" in note for note in fresh.report["candidates"]["notes"])
    assert "is none of the real records" in fresh.page


@pytest.mark.slow
def test_nothing_is_said_to_be_published(fresh: Evaluated) -> None:
    assert fresh.result.verdict is not None
    assert not any("is published" in reason for reason in fresh.result.verdict.reasons)


@pytest.mark.slow
def test_records_with_swapped_labels_do_not_raise_the_score(folder: Path) -> None:
    ok = of_class(make_table(), "ok")
    swapped = ok.set_column(6, "state", pa.array(["cracked"] * ok.num_rows))
    pq.write_table(swapped, folder / "swapped.parquet")
    result = evaluate_file(folder, folder / "swapped.parquet").result
    assert result.verdict is not None
    assert result.verdict.decision != "accept"


@pytest.mark.slow
def test_leak_fails_where_that_is_asked_and_says_what_was_found(
    copies: Evaluated, folder: Path
) -> None:
    strict = FAITHFUL.model_copy(update={"on_leak": "fail"})
    with pytest.raises(RefusedError, match="on_leak") as refused:
        evaluate_file(folder, folder / "copies.csv", quality=strict)
    assert refused.value.exit_code == 3
    assert refused.value.values["result"].privacy == "leak"


@pytest.mark.slow
def test_without_a_holdout_nothing_is_claimed(folder: Path, fresh: Evaluated) -> None:
    """Whoever made the records may have had those that are held out here."""
    shows_none = Report(pictures="none")
    found = evaluate_file(folder, folder / "fresh.parquet", holdout=False, report=shows_none)
    assert found.result.privacy == "not measured"
    assert "without a hold-out of your own" in found.page
    # And with `none` no word of a record is anywhere.
    said = found.page + json.dumps(found.report) + found.result.to_json().decode()
    assert "molten" not in said
    assert any("class '…' is none of the real records'" in note for note in found.result.notes)


@pytest.mark.slow
def test_copies_of_the_holdout_are_named_as_a_leak_and_prove_nothing(folder: Path) -> None:
    """Whoever copies all rare records has copied those of the hold-out, which would then be found for sure."""
    real = pq.read_table(folder / "real.parquet")
    rare = of_class(real, "cracked")
    given = folder / "copied.parquet"
    pq.write_table(pa.concat_tables([rare] * 5), given)
    verdict = evaluate_file(folder, given, holdout=False).result.verdict
    assert verdict is not None
    assert verdict.synthetic == "no gain shown"
    assert verdict.decision == "inconclusive"
    (leak,) = (line for line in verdict.leaks if line.startswith("Leak: "))
    assert "hold-out records of cracked are among the external records" in leak
    assert verdict.answers[0] == leak


@pytest.mark.slow
def test_holdout_is_read_once(fresh: Evaluated) -> None:
    """For the verdict and for privacy together."""
    assert fresh.parts == ["holdout"]


@pytest.mark.slow
def test_command_line_prints_one_object_and_ends_with_3(
    folder: Path,
    copies: Evaluated,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run itself stands above; here is what becomes of its end."""
    refusal = RefusedError("refused: it leaks", result=copies.result)
    passed: dict[str, Any] = {}

    def flow(**params: Any) -> RunResult:
        passed.update(params)
        raise refusal

    flow.validate_parameters = lambda params: params  # type: ignore[attr-defined]
    monkeypatch.setattr("prefect_augment.flows.evaluate.evaluate", flow)
    real = str(folder / "real.parquet")  # whatever is there as synthetic records
    words = ["evaluate", real, real, "--label", "state", "--holdout", f"{folder}/holdout.parquet"]
    monkeypatch.setattr("sys.argv", ["prefect-augment", *words, "--fail-on", "leak", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["privacy"] == "leak"
    assert passed["quality"] == {"purpose": "faithful", "on_leak": "fail"}
    assert passed["source"]["holdout_uri"] == words[-1]
    assert CliRunner().invoke(app, [*words, "--fail-on", "luck"]).exit_code == 2
