"""Proposals, decisions, and what lowering an amount does to a recipe."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.input import RunInput
from pydantic import ValidationError
from support.staging import class_plan, plan_of, recipe_of

from prefect_augment.errors import ParameterError
from prefect_augment.flows import _approval
from prefect_augment.flows._approval import answer_form
from prefect_augment.flows.approve import approve
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import (
    Answer,
    Approval,
    ClassAmount,
    Destination,
    Evaluation,
    Source,
    TreesModel,
)
from prefect_augment.publish.proposal import (
    Proposal,
    added_records,
    decide,
    list_proposals,
    lowered,
    lowered_amounts,
    read_labels,
    read_proposal,
    request_markdown,
)
from prefect_augment.schema import Recipe, RunResult
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.split.corrections import read_corrections
from prefect_augment.storage import Store, list_versions, open_store, read_manifest

MakeTable = Callable[..., pa.Table]
EVALUATION = Evaluation(
    n_seeds=1, n_settings=1, n_bootstrap=200, estimators=["logistic"], on_no_gain="publish"
)

pytestmark = pytest.mark.usefixtures("quick_runs")


# --- amounts ---


def recipe(**counts: dict[str, int]) -> Recipe:
    weights = {"ok": 0.5, "bad": 2.0}
    return recipe_of("SMOTE + trees", "mixture", class_weight=weights, **counts)


PLAN = plan_of(class_plan(name, n, 100) for name, n in {"ok": 100, "bad": 15}.items())


def effective(made: Recipe) -> dict[str, float]:
    """Records times weight, as a share of all: what an estimator sees of each class."""
    added = added_records(made)
    sums = {
        c.name: (c.n_real + added.get(c.name, 0)) * made.class_weight[c.name] for c in PLAN.classes
    }
    return {name: value / sum(sums.values()) for name, value in sums.items()}


def test_a_lowered_class_keeps_its_mixture_and_its_effective_count() -> None:
    before = recipe(synthetic={"bad": 6}, classic={"bad": 4})
    after = lowered(before, PLAN, {"bad": 5})
    assert (after.synthetic, after.classic) == ({"bad": 3}, {"bad": 2})
    assert effective(after) == pytest.approx(effective(before))
    n = {"ok": 100, "bad": 20}
    mean = sum(after.class_weight[k] * n[k] for k in n) / sum(n.values())
    assert mean == pytest.approx(1.0), "weights stay at mean 1 over train"


def test_a_class_lowered_to_zero_gets_none() -> None:
    after = lowered(recipe(synthetic={"bad": 6}, classic={"bad": 4}), PLAN, {"bad": 0})
    assert added_records(after) == {}
    assert after.class_weight["bad"] > after.class_weight["ok"]


def test_an_amount_that_is_not_lower_leaves_the_recipe_as_it_was_compared() -> None:
    before = recipe(synthetic={"bad": 6})
    assert lowered(before, PLAN, {"bad": 6}) is before


def test_fewer_duplicates_are_not_made_up_for_by_weight() -> None:
    before = recipe(copies={"bad": 10}).model_copy(update={"class_weight": {"ok": 1.0, "bad": 1.0}})
    after = lowered(before, PLAN, {"bad": 4}, copies=True)
    assert after.copies == {"bad": 4}
    assert set(after.class_weight.values()) == {1.0}


@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        ({"bad": 11}, ["'bad'", "11 records were requested", "0 to 10 are allowed"]),
        ({"bad": -1}, ["'bad'", "-1 records"]),
        ({"bda": 1}, ["'bda'", "did you mean 'bad'"]),
        ({"ok": 1}, ["'ok'", "adds no records"]),
    ],
)
def test_what_was_not_compared_is_refused(amounts: dict[str, int], words: list[str]) -> None:
    with pytest.raises(ParameterError) as refused:
        lowered_amounts(recipe(synthetic={"bad": 6}, classic={"bad": 4}), amounts)
    assert all(word in str(refused.value) for word in words), refused.value


def test_an_answer_that_contradicts_itself_is_refused() -> None:
    one = ClassAmount(name="bad", records=1)
    with pytest.raises(ValidationError, match="twice"):
        Answer(amounts=[one, one])
    with pytest.raises(ValidationError, match="leave them out, or approve"):
        Answer(decision="reject", amounts=[one])


# --- from a run to a version ---


@pytest.fixture(scope="module")
def proposed(
    make_table: MakeTable, quick_runs: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run up to its proposal: source and destination. A copy of the folder is as good as a run."""
    folder = tmp_path_factory.mktemp("proposed")
    pq.write_table(make_table(), folder / "in.parquet")
    result = rerun(folder / "in.parquet", folder / "out")
    assert result.status == "awaiting_approval"
    assert result.version is None
    return folder / "in.parquet", folder / "out"


def rerun(source: Path, destination: Path | str, **params: object) -> RunResult:
    asked = {
        "model": TreesModel(),
        "evaluation": EVALUATION,
        "approval": Approval(ask=True),
        **params,
    }
    return rebalance.fn(
        source=Source(uri=str(source), label="state"),
        destination=Destination(uri=str(destination)),
        **asked,
    )


@pytest.fixture
def store(proposed: tuple[Path, Path], tmp_path: Path) -> Store:
    """A destination of its own with an open proposal."""
    shutil.copytree(proposed[1], tmp_path / "out")
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def source(proposed: tuple[Path, Path]) -> Path:
    """What the proposal was made from, where it was: a receipt names its place."""
    return proposed[0]


def answer(store: Store, proposal: str = "", **said: object) -> RunResult:
    return approve.fn(Destination(uri=store.uri), proposal, Answer(**said))


@pytest.mark.slow
def test_nothing_is_published_until_somebody_approves(store: Store) -> None:
    assert list_versions(store) == ()
    (state,) = list_proposals(store)
    assert state.status == "open"
    assert state.added, "an open proposal says what would be added"

    result = answer(store, by="Ada", comment="looks right")
    assert (result.status, result.version) == ("published", 1)
    manifest = read_manifest(store)
    assert manifest.approval is not None
    assert (manifest.approval.by, manifest.approval.comment) == ("Ada", "looks right")
    assert not verify(store).problems
    assert list_proposals(store)[0].status == "approved"
    assert "Approved by Ada" in store.read("README.md").decode()
    assert "Approved by Ada" in store.read(manifest.report).decode()


@pytest.mark.slow
def test_an_approved_version_is_the_one_that_nobody_was_asked_about(
    store: Store, source: Path, tmp_path: Path
) -> None:
    """The decision is recorded and is no part of what the version is."""
    answer(store, by="Ada")
    shutil.copytree(store.root, tmp_path / "free", ignore=lambda *_: ["_manifests", "README.md"])
    rerun(source, tmp_path / "free", approval=Approval())
    free = read_manifest(open_store(str(tmp_path / "free")))
    assert read_manifest(store).content_digest == free.content_digest


@pytest.mark.slow
def test_fewer_records_are_a_prefix_of_those_that_were_compared(
    store: Store, tmp_path: Path
) -> None:
    (state,) = list_proposals(store)
    name, most = next(iter(state.added.items()))
    candidates = read_proposal(store).release.experiment.candidates
    assert candidates is not None
    kept = pa.concat_tables([pq.read_table(tmp_path / "out" / s.path) for s in candidates.kept])
    best = [
        row["aug_id"]
        for row in sorted(kept.to_pylist(), key=lambda row: (row["aug_rank"], row["aug_ordinal"]))
        if row["aug_stratum"] == name
    ]

    answer(store, amounts=[ClassAmount(name=name, records=most // 2)])
    table = open_dataset(store.uri).to_table()
    rows = [r for r in table.to_pylist() if r["state"] == name and r["aug_origin"] != "real"]
    assert len(rows) == most // 2
    synthetic = {r["aug_id"] for r in rows if r["aug_origin"] == "synthetic"}
    assert synthetic == set(best[: len(synthetic)])
    decided = read_manifest(store).approval
    assert decided is not None
    assert decided.amounts == {name: most // 2}


@pytest.mark.slow
def test_a_class_that_is_dropped_has_only_its_real_records(store: Store) -> None:
    (state,) = list_proposals(store)
    result = answer(store, amounts=[ClassAmount(name=name, records=0) for name in state.added])
    assert {o for n in result.counts["train"].values() for o in n} == {"real"}


@pytest.mark.slow
def test_raising_an_amount_publishes_nothing_and_decides_nothing(store: Store) -> None:
    name, most = next(iter(list_proposals(store)[0].added.items()))
    with pytest.raises(ParameterError, match=f"0 to {most} are allowed"):
        answer(store, amounts=[ClassAmount(name=name, records=most + 1)])
    assert list_proposals(store)[0].status == "open"
    assert list_versions(store) == ()


@pytest.mark.slow
def test_a_rejection_is_kept_and_stands(store: Store, source: Path) -> None:
    result = answer(store, decision="reject", by="Ada", comment="too few")
    assert (result.status, result.version) == ("rejected", None)
    assert list_versions(store) == ()

    second = rerun(source, store.uri)
    assert second.status == "rejected"
    assert second.approval is not None
    assert second.approval.comment == "too few"
    with pytest.raises(ParameterError, match="too few.*again"):
        answer(store, second.proposal)
    asked = rerun(source, store.uri, approval=Approval(ask=True, ask_again=True))
    assert asked.status == "awaiting_approval"
    assert answer(store, second.proposal, again=True, by="Bob").version == 1
    assert store.read(f"_proposals/{second.proposal}.decision.json"), "what was said first is kept"
    with pytest.raises(ParameterError, match="A decision stays"):
        answer(store, second.proposal, decision="reject", again=True)


@pytest.mark.slow
def test_an_approval_that_was_interrupted_is_finished_by_the_same_command(store: Store) -> None:
    decide(store, read_proposal(store), Answer(by="Ada"))  # and then the process was killed
    proposal = list_proposals(store)[0].id
    assert answer(store, proposal, by="Ada").version == 1
    assert answer(store, proposal, by="Ada").status == "unchanged"


# --- labels ---


def records_of(store: Store) -> list[dict[str, str]]:
    """The staged records of the proposal: training first."""
    info = load_info(read_proposal(store).release.dataset, store)
    return read_part(store, info, ["training", "validation", "holdout"]).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{id} = {other}\nbad",
            "labels, line 2: expected `aug_id = label` or `suggested`, found 'bad'",
        ),
        ("{id} =", "line 1: expected"),
        (
            "\n00ff = {other}",
            "labels, line 2: '00ff', to be '{other}', is the aug_id of no source record",
        ),
        (
            "{id} = {other}s",
            "line 1: {id} has the label '{label}', and '{other}s' is no class of the dataset; did you",
        ),
        (
            "{id} = {other}\n{id} = {label}",
            "line 2: {id} is '{label}', and '{other}' in line 1; keep one",
        ),
    ],
)
def test_labels_that_cannot_be_corrected_are_refused_and_nothing_is_decided(
    store: Store, text: str, words: str
) -> None:
    first = records_of(store)[0]
    other = next(r["state"] for r in records_of(store) if r["state"] != first["state"])
    known = {"id": first["aug_id"], "label": first["state"], "other": other}
    with pytest.raises(ParameterError) as refused:
        answer(store, labels=text.format(**known))
    assert words.format(**known) in str(refused.value)
    assert list_proposals(store)[0].status == "open"


@pytest.mark.slow
def test_labels_can_be_corrected_after_a_decision_and_with_a_rejection(store: Store) -> None:
    proposal = read_proposal(store)
    one, two = [r for r in records_of(store) if r["state"] == "ok"][:2]
    other = next(r["state"] for r in records_of(store) if r["state"] != one["state"])
    rejected = decide(
        store, proposal, Answer(decision="reject", labels=f"{one['aug_id']} = {other}")
    )
    assert rejected.n_corrected == 1
    assert "1 label is corrected from the next run on" in rejected.sentence
    text = f"{one['aug_id']} = {one['state']}\n{two['aug_id']} = {other}"  # the first is as it was
    more = decide(store, proposal, Answer(decision="reject", labels=text))
    again = decide(store, proposal, Answer(decision="reject", labels=text))
    assert (more.n_corrected, again) == (1, more)
    corrections = read_corrections(store)
    assert corrections.labels == {r["content_key"]: {r["state"]: other} for r in (one, two)}
    shown = list_proposals(store)[0].decision
    assert shown == more, "what travels has no record in it"


@pytest.mark.slow
def test_suggested_takes_what_the_audit_doubts(store: Store) -> None:
    proposal = read_proposal(store)
    one, two = [r for r in records_of(store) if r["state"] == "ok"][:2]
    other = next(r["state"] for r in records_of(store) if r["state"] != one["state"])
    audit = {
        "aug_id": [one["aug_id"], two["aug_id"]],
        "suggested": [other, other],
        "doubted": [True, False],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(audit), sink)
    store.put(f"{proposal.report.prefix}/audit.parquet", sink.getvalue().to_pybytes())
    (correction,) = read_labels(store, proposal, "suggested\n")
    store.delete(f"{proposal.report.prefix}/audit.parquet")
    with pytest.raises(ParameterError, match="has no audit, so no label is suggested"):
        read_labels(store, proposal, "suggested")
    assert (correction.aug_id, correction.old, correction.label) == (
        one["aug_id"], one["state"], other,
    )  # fmt: skip


@pytest.mark.slow
def test_a_form_with_a_wrong_line_is_asked_for_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect checks the form by its schema, which knows no record: a run does not fail for a typing error."""
    proposal, asked, forgotten = read_proposal(store), [], []
    labels = iter(["nobody = knows", ""])

    def resumed(wait_for_input: type[RunInput], **_: object) -> object:
        asked.append(str(wait_for_input._description))
        return wait_for_input(decision="approve", labels=next(labels), approved_by="Ada")

    monkeypatch.setattr(_approval, "_pause_key", lambda proposal_id: f"{proposal_id}-{len(asked)}")
    monkeypatch.setattr(_approval, "suspend_flow_run", resumed)
    monkeypatch.setattr(_approval, "delete_flow_run_input", forgotten.append)
    taken = _approval._answer(proposal, store, timeout_seconds=60)
    assert (taken.by, taken.labels) == ("Ada", "")
    assert forgotten == [f"suspended-{proposal.id}-0-response"]
    assert "not taken" not in asked[0]
    assert "The last answer was not taken:** labels, line 1: 'nobody', to be 'knows'" in asked[1]


@pytest.mark.slow
def test_what_is_published_already_needs_nobody(store: Store, source: Path) -> None:
    answer(store)
    second = rerun(source, store.uri)
    assert (second.status, second.version) == ("unchanged", 1)


@pytest.mark.slow
def test_a_proposal_without_records_to_add_asks_for_a_decision_only(store: Store) -> None:
    proposal = read_proposal(store)
    weights = {"synthetic": {}, "classic": {}, "copies": {}}
    recipe = proposal.recipe.model_copy(update=weights)
    release = proposal.release.model_copy(update={"recipe": recipe})
    plain = proposal.model_copy(update={"release": release})
    assert "no amounts to lower" in request_markdown(plain, report_link="")
    assert list(answer_form(plain).model_fields) == [
        "decision",
        "labels",
        "comment",
        "approved_by",
    ]


@pytest.mark.slow
def test_a_proposal_is_found_by_the_start_of_its_id(store: Store) -> None:
    whole = list_proposals(store)[0].id
    assert read_proposal(store, whole[:6]).id == whole
    with pytest.raises(ParameterError, match=whole):
        read_proposal(store, "zz")
    answer(store)
    with pytest.raises(ParameterError, match="no proposal open"):
        read_proposal(store)


@pytest.mark.slow
def test_names_of_classes_are_no_markup_in_what_an_approver_reads(store: Store) -> None:
    proposal: Proposal = read_proposal(store)
    first = proposal.plan.classes[0].model_copy(update={"name": "<img src=x>|**a**"})
    plan = proposal.plan.model_copy(update={"classes": (first,)})
    experiment = proposal.release.experiment.model_copy(update={"plan": plan})
    release = proposal.release.model_copy(update={"experiment": experiment})
    evil = proposal.model_copy(update={"release": release})
    text = request_markdown(evil, report_link="")
    assert "<img" not in text
    assert "\\|\\*\\*a" in text
