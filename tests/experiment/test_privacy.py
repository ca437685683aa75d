"""What records of a model give away, from staged records to the report and the card."""

import json
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.report import section
from support.staging import ingested
from support.steps import experiment_of, publish_parts, release_of

from prefect_augment.evaluation.privacy.distances import SideNames, summarise
from prefect_augment.experiment import privacy as privacy_stage
from prefect_augment.experiment.confirmation import refusal_reason
from prefect_augment.experiment.filter import filter_candidates
from prefect_augment.experiment.privacy import measure, stored_privacy
from prefect_augment.ingest.external import import_candidates, plan_of_external
from prefect_augment.params import Evaluation, NoModel, Publish, Quality, Report, RunParams
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import plain_recipe
from prefect_augment.report.build import report
from prefect_augment.report.json import ReportData
from prefect_augment.report.report import build_report, markdown_summary
from prefect_augment.report.view_model import redact
from prefect_augment.schema import (
    BalancePlan,
    ColumnInfo,
    DatasetRef,
    FilterResult,
    Findings,
    Privacy,
    Release,
    Verdict,
)
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store

MakeTable = Callable[..., pa.Table]
# The filter drops nothing, so that what is kept is what was drawn.
OPEN = Quality(purpose="faithful", near_copy_quantile=0.0, fidelity_quantile=0.0)


SITE = "Baker Street"  # of real worn records, and of no synthetic one


def with_own_sites(table: pa.Table) -> pa.Table:
    """A third of the worn records from a place of their own."""
    sites = table["site"].to_pylist()
    worn = [i for i, name in enumerate(table["state"].to_pylist()) if name == "worn"]
    for i in worn[::3]:
        sites[i] = SITE
    return table.set_column(3, "site", pa.array(sites))


class Drawn(NamedTuple):
    store: Store
    dataset: DatasetRef
    plan: BalancePlan
    candidates: DatasetRef
    filtered: FilterResult
    privacy: Privacy


@pytest.fixture(scope="module")
def drawn(make_table: MakeTable, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Drawn]:
    """Records of a generator that was fitted on the training records."""
    folder = tmp_path_factory.mktemp("privacy")
    real = with_own_sites(make_table(counts={"ok": 300, "worn": 150}))

    def make(kind: str) -> Drawn:
        store = open_store(str(folder / kind))
        dataset = ingested(real, folder, store)
        training = read_part(store, load_info(dataset, store), ["training"])
        training = training.drop_columns(["aug_id", "content_key"])
        worn = training.filter(pa.array([name == "worn" for name in training["state"].to_pylist()]))
        if kind != "copies":
            fresh = make_table(seed=7, counts={"worn": 100}).cast(worn.schema)
            worn = fresh if kind == "fresh" else pa.concat_tables([fresh, worn])
        uri = str(folder / f"{kind}.parquet")
        pq.write_table(worn, uri)
        wanted = plan(dataset, RunParams(model=NoModel(), quality=OPEN), store, compares=False)
        candidates = import_candidates(dataset, uri, plan=wanted, store=store)
        wanted = plan_of_external(wanted, candidates)
        asked = experiment_of(dataset, wanted, quality=OPEN)
        filtered = filter_candidates(asked, candidates, store)
        asked = asked.model_copy(update={"candidates": filtered})
        privacy = measure(asked, candidates, store)
        return Drawn(store, dataset, wanted, candidates, filtered, privacy)

    return make


@pytest.fixture(scope="module")
def copies(drawn: Callable[..., Drawn]) -> Drawn:
    return drawn("copies")


@pytest.fixture(scope="module")
def fresh(drawn: Callable[..., Drawn]) -> Drawn:
    return drawn("fresh")


def side(privacy: Privacy, records: str) -> dict[str, object]:
    found = next(s for s in privacy.sides if s.records == records)
    return {"auc": found.attack.auc if found.attack else None, "finding": found.finding}


def test_generator_that_copies_leaks_whatever_the_filter_kept(copies: Drawn) -> None:
    found = side(copies.privacy, "drawn")
    assert found["finding"] == "leak"
    assert found["auc"].estimate == 1.0  # type: ignore[attr-defined]


def test_a_leaking_model_is_named_though_what_was_kept_is_not(copies: Drawn, fresh: Drawn) -> None:
    """The filter drops copies; the model that made them goes on making them."""
    kept = next(s for s in fresh.privacy.sides if s.records == "kept")
    drawn = next(s for s in copies.privacy.sides if s.records == "drawn")
    names = SideNames(members="training", others="validation")
    found = summarise([kept, drawn], names=names, feature_space="a space")
    assert found.finding == "none shown"
    assert "do not share the model" in found.sentence
    blind = summarise([kept, drawn], names=names, feature_space="", why_blind="Others were seen.")
    assert (blind.finding, blind.sentence) == ("not measured", "Others were seen.")
    seen = summarise([drawn], names=names, feature_space="", why_blind="Others were seen.")
    assert seen.finding == "leak"


def test_new_records_of_the_distribution_show_nothing(fresh: Drawn) -> None:
    for records in ("drawn", "kept"):
        found = side(fresh.privacy, records)
        assert found["finding"] == "none shown"
        assert found["auc"].low <= 0.5 <= found["auc"].high  # type: ignore[attr-defined]
    assert "another attack still may" in fresh.privacy.sentence


def test_of_many_records_some_are_looked_at_by_chance_and_not_the_first(
    drawn: Callable[..., Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New records first, then copies: what comes last is what the filter has dropped."""
    monkeypatch.setitem(privacy_stage.MAX_SYNTHETIC, "table", 80)
    found = drawn("copies last").privacy
    assert side(found, "drawn")["finding"] == "leak"
    assert "A random 80 synthetic records of each class were compared." in " ".join(found.notes)


def test_what_was_measured_is_found_again_and_is_the_same(copies: Drawn, fresh: Drawn) -> None:
    assert stored_privacy(copies.store, copies.dataset, copies.filtered) == copies.privacy
    asked = experiment_of(fresh.dataset, fresh.plan, candidates=fresh.filtered, quality=OPEN)
    again = measure(asked, fresh.candidates, fresh.store)
    assert again.to_json() == fresh.privacy.to_json()
    other = copies.filtered.model_copy(update={"key": "another"})
    assert stored_privacy(copies.store, copies.dataset, other) is None
    assert stored_privacy(copies.store, copies.dataset, None) is None


def test_card_says_it_where_synthetic_records_are_published(fresh: Drawn) -> None:
    kept = fresh.filtered.kept_counts
    for counts, said in ((kept, True), ({}, False)):
        recipe = plain_recipe(fresh.plan, counts)
        publish_parts(
            dataset=fresh.dataset, plan=fresh.plan, recipe=recipe, verdict=None, candidates=fresh.filtered,
            classic=None, models=[], report=None, publish=Publish(), requested={}, store=fresh.store,
        )  # fmt: skip
        card = fresh.store.read("README.md").decode()
        assert ("another attack still may" in card) == said


def release_with(drawn: Drawn, pictures: Literal["real", "synthetic", "none"]) -> Release:
    """What was measured, and a recipe that publishes it."""
    recipe = plain_recipe(drawn.plan, drawn.filtered.kept_counts)
    findings = {"findings": Findings(privacy=drawn.privacy)}
    return release_of(
        drawn.dataset, drawn.plan, candidates=drawn.filtered, report=Report(pictures=pictures),
        recipe=recipe, release=findings,
    )  # fmt: skip


def test_report_has_the_section_the_key_and_the_artifact(fresh: Drawn) -> None:
    ref, summary = report(release_with(fresh, "none"), fresh.store)
    info = json.loads(fresh.store.read(f"{ref.prefix}/report.json"))
    page = fresh.store.read(f"{ref.prefix}/report.html").decode()
    assert Privacy.model_validate(info["privacy"]) == fresh.privacy
    assert 'id="privacy"' in page
    assert "Is each class safe?" in page
    assert "**Privacy.**" in summary


@pytest.mark.parametrize("publish", [Publish(), Publish(origins=["real"])])
def test_report_is_silent_where_nothing_synthetic_goes_out(fresh: Drawn, publish: Publish) -> None:
    counts = {} if "synthetic" in publish.origins else fresh.filtered.kept_counts
    release = release_with(fresh, "none")
    params = release.experiment.params.model_copy(update={"publish": publish})
    experiment = release.experiment.model_copy(update={"params": params})
    recipe = plain_recipe(fresh.plan, counts)
    release = release.model_copy(update={"recipe": recipe, "experiment": experiment})
    ref, summary = report(release, fresh.store)
    assert json.loads(fresh.store.read(f"{ref.prefix}/report.json"))["privacy"] is None
    page = fresh.store.read(f"{ref.prefix}/report.html").decode()
    assert 'id="privacy"' not in page
    assert "Is each class safe?" not in page
    assert "Privacy" not in summary


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["real", "synthetic", "none"])
def test_report_and_artifact_show_of_real_records_what_they_may(
    fresh: Drawn, pictures: Literal["real", "synthetic", "none"]
) -> None:
    """A value of real records is in no page, finding or summary that may not show it."""
    ref, summary = report(release_with(fresh, pictures), fresh.store)
    page, info = (fresh.store.read(f"{ref.prefix}/report.{e}").decode() for e in ("html", "json"))
    assert (SITE in info) == (pictures == "real")
    if pictures != "real":  # else it is in a picture on the page
        assert SITE not in page + summary
    made = "north"  # of synthetic records too
    assert (made in info) == (pictures != "none")
    assert json.loads(info)["privacy"] is not None


def test_words_that_quote_values_are_hidden_and_names_are_not() -> None:
    data = ReportData(
        title="t",
        label="state",
        pictures="synthetic",
        columns=(column("load", "always 'x'"),),
        quarantine={
            "column 'load': 'Sherlock' is not a number": 2,
            "column 'load': \"O'Hara\" is not a number": 1,
            "no label": 3,
        },
        notes=("others' records and others' 'Watson'", "column 'state' is the label"),
        counts_before={"worn": {"real": 3}},
    )
    found = redact(data)
    assert found.quarantine == {"column 'load': '…' is not a number": 3, "no label": 3}
    assert found.notes == ("others' records and others' '…'", "column 'state' is the label")
    assert found.columns[0].note == "always '…'"
    shown = data.model_copy(update={"pictures": "real"})
    assert redact(shown) == shown
    files = build_report(data)
    text = b"".join(content for name, content in files.items() if not name.endswith(".png"))
    assert not any(word in text for word in (b"Sherlock", b"Hara", b"Watson"))
    assert "Sherlock" not in markdown_summary(data)


def column(name: str, note: str) -> ColumnInfo:
    return ColumnInfo(
        name=name, arrow_type="double", kind="numeric", n_null=0, n_unique=3, note=note
    )


def test_section_has_a_row_for_each_attack_on_what_is_published(copies: Drawn) -> None:
    kept, drawn = copies.privacy.sides
    assert (kept.records, drawn.records) == ("kept", "drawn")
    shown = section("privacy", privacy=copies.privacy)
    n_attacked = sum(bool(s.attacks) for s in (kept, drawn))
    assert shown.count("Linking two halves of a record") == n_attacked
    linked = next(a for a in drawn.attacks if a.name == "linkability")
    row = shown.split("Attacks: drawn")[1].split("Linking two halves")[1].split("</tr>")[0]
    assert "yes" in row
    assert f"{100 * linked.success.estimate:.1f} (" in row
    assert f"{100 * linked.chance:.1f}<" in row


def test_section_escapes_names_and_shows_no_value(fresh: Drawn) -> None:
    first = fresh.privacy.sides[0]
    named = first.classes[0].model_copy(update={"name": "<script>x</script>"})
    side = first.model_copy(update={"classes": (named,)})
    odd = fresh.privacy.model_copy(update={"sides": (side,)})
    assert "<script>" not in section("privacy", privacy=odd)
    # Numbers, shares and names of classes: nothing else has a place in these results.
    texts = [value for value in _leaves(fresh.privacy.model_dump()) if isinstance(value, str)]
    assert not any(value in text for text in texts for value in ("north", "south", "sn-0"))


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def test_space_does_not_know_who_is_a_member(copies: Drawn) -> None:
    """Training and validation in another order give the same distances."""
    from prefect_augment.experiment.evaluators import open_evaluator

    evaluator = open_evaluator(copies.store, experiment_of(copies.dataset, copies.plan))
    X = evaluator.records.X
    one, other = evaluator.plain_space(X), evaluator.plain_space(X[::-1])
    a, b = (s.distances(s.place(X[:20]), s.place(X[20:40])) for s in (one, other))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("finding", ["leak", "gap"])
@pytest.mark.parametrize(
    ("params", "goes_out", "refused"),
    [
        (RunParams(), True, False),
        (RunParams(quality=Quality(on_leak="fail")), True, True),
        (RunParams(quality=Quality(on_leak="fail")), False, False),
        (RunParams(evaluation=Evaluation(on_no_gain="fail")), False, False),
    ],
)
def test_a_leak_refuses_what_would_go_out(
    copies: Drawn, params: RunParams, goes_out: bool, refused: bool, finding: str
) -> None:
    leaking = copies.privacy.model_copy(update={"finding": finding})
    verdict: Verdict | None = None
    assert bool(refusal_reason(params, verdict, leaking, goes_out=goes_out)) == refused
    shown = leaking.model_copy(update={"finding": "none shown"})
    assert refusal_reason(params, verdict, shown, goes_out=goes_out) == ""
