"""Looks at a hold-out are counted in the destination, before it is read and whatever comes of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from support.staging import manifest_of, verdict_of

from prefect_augment.errors import CommitConflictError, ParameterError
from prefect_augment.experiment.looks import FIRST, Looks, spent_alpha
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.maintenance.inspect import inspect
from prefect_augment.maintenance.layout import kind_of
from prefect_augment.report.card import render_card
from prefect_augment.report.html import render_page
from prefect_augment.report.json import ReportData
from prefect_augment.report.report import markdown_summary
from prefect_augment.schema import DatasetInfo, Look, PublishedFile, Verdict
from prefect_augment.split.ledger import HOLDOUT, TRAINING, Ledger
from prefect_augment.split.ledger_io import write_ledger
from prefect_augment.storage import Store, manifest_path, open_store, read_manifest

PUBLISHED_BEFORE = Path(__file__).parents[1] / "maintenance" / "data" / "published_0.1.zip"


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


def ledger(store: Store, n_holdout: int, unit: str = "record") -> str:
    """The path of a ledger with so many entries in the hold-out, and one in training."""
    texts = [f"{i:032x}" for i in range(n_holdout + 1)]
    keys = np.array(texts, dtype=object)
    if unit == "record":
        keys = np.array([bytes.fromhex(text) for text in texts], dtype="S16")
        keys[0] = b"0" * 16  # numpy drops zeros at the end
    parts = np.array([TRAINING] + [HOLDOUT] * n_holdout, dtype=np.int8)
    made = Ledger("salt", unit, keys, np.zeros(len(keys)), ["a"] * len(keys), parts)  # type: ignore[arg-type]
    return write_ledger(store, made, prefix="_staging/ingest/k")


def info(store: Store, n_holdout: int = 100, **fields: Any) -> DatasetInfo:
    """A dataset whose hold-out has so many records, now and ever."""
    known = {
        "stage": "ingest", "key": "k", "digest": "d", "label": "y", "label_type": "string",
        "schema_digest": "s", "columns": (), "shards": (), "compared": ("a",),
        "part_counts": {"holdout": {"a": n_holdout}},
    }  # fmt: skip
    if not fields.get("holdout_uri"):
        known["ledger"] = ledger(store, n_holdout)
    return DatasetInfo(**{**known, **fields})


def publish(store: Store, version: int, verdict: Verdict | None, **fields: Any) -> None:
    path = ledger(store, 100)
    file = PublishedFile(path=path, n_bytes=1, sha256="0" * 64)
    manifest = manifest_of(version, key=f"k{version}", verdict=verdict, ledger=file, **fields)
    store.put(manifest_path(version), manifest.sealed().to_json())


def test_looks_are_counted_with_what_is_new(store: Store) -> None:
    first = Looks(store, info(store, 100)).take("one")
    assert (first.number, first.n_holdout, first.n_new, first.level) == (1, 100, 100, 0.95)
    second = Looks(store, info(store, 140)).take("two")
    assert (second.number, second.n_holdout, second.n_new) == (2, 140, 40)
    third = Looks(store, info(store, 140)).take("three")
    assert (third.number, third.n_new) == (3, 0)
    assert 0.95 < second.level < third.level < 1


def test_a_retry_is_the_same_look(store: Store) -> None:
    looks = [Looks(store, info(store, 100)).take(key) for key in ("one", "two", "three")]
    again = [Looks(store, info(store, 100 + i)).take(key) for i, key in enumerate(("two", "three"))]
    assert again == looks[1:]
    assert len(store.list("_looks")) == 3


def test_records_that_left_the_source_are_not_new_when_others_come(store: Store) -> None:
    """A source of the last ninety days: the ledger knows that all of today's records are new."""
    Looks(store, info(store, 100)).take("one")
    rolled = info(store, 200, part_counts={"holdout": {"a": 100}})
    assert Looks(store, rolled).take("two").n_new == 100
    assert rolled.part_counts["holdout"]["a"] == 100


def test_groups_count_as_one_each(store: Store) -> None:
    found = info(store, 50, ledger=ledger(store, 5, "group:patient"))
    assert Looks(store, found).take("one").n_new == 5
    look = Looks(store, info(store, 60, ledger=ledger(store, 7, "group:patient"))).take("two")
    assert look.sentence.startswith("Second look at this hold-out; 2 groups of its 60 records are")


def test_a_hold_out_of_its_own_is_counted_by_its_records(store: Store) -> None:
    own = {"holdout_uri": "memory://elsewhere"}
    assert Looks(store, info(store, 30, **own)).take("one").n_new == 30
    assert Looks(store, info(store, 20, **own)).take("two").n_new == 0
    assert Looks(store, info(store, 35, **own)).take("three").n_new == 5


def test_two_runs_at_once_take_two_numbers(store: Store) -> None:
    found = info(store)
    keys = [f"run {i % 12}" for i in range(24)]  # each of them twice
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda key: Looks(store, found).take(key), keys))
    assert taken[:12] == taken[12:]
    assert sorted(look.number for look in taken[:12]) == list(range(1, 13))
    assert sum(look.alpha for look in taken[:12]) < 0.05


def test_a_late_listing_repeats_no_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = info(store)
    Looks(store, found).take("one")
    monkeypatch.setattr(Store, "list", lambda self, prefix="": [])
    assert Looks(store, found).take("one").number == 1
    assert Looks(store, found).take("two").number == 2


def test_endless_competition_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(store, info(store))
    other = iter(range(1000))
    put = Store.put_if_absent

    def lost(self: Store, path: str, data: bytes, **options: Any) -> bool:
        put(self, path, data.replace(b'"mine"', b'"other %d"' % next(other)), **options)
        return False

    monkeypatch.setattr(Store, "put_if_absent", lost)
    with pytest.raises(CommitConflictError, match="run again"):
        looks.take("mine")


def test_only_the_look_after_a_proven_one_gets_what_that_spent(store: Store) -> None:
    looks = Looks(store, info(store))
    looks.mark_proven(looks.take("one"))
    second, third = looks.take("two"), looks.take("three")
    assert second.level == 0.95
    assert third.level > 0.99


def test_another_dataset_in_the_same_folder_has_its_own_count(store: Store) -> None:
    Looks(store, info(store)).take("one")
    assert Looks(store, info(store, schema_digest="other")).take("one").number == 1


def test_versions_from_before_looks_were_counted_are_looks(store: Store) -> None:
    """A version that has another's verdict, or none, is no look; one that was removed may have been."""
    publish(store, 1, verdict_of("a"))
    publish(store, 3, verdict_of("b"))
    publish(store, 4, verdict_of("a"), notes=("Rolled back to version 1.",))
    publish(store, 5, None)
    look = Looks(store, info(store, 130)).take("new")
    assert (look.number, look.n_new) == (4, 30)  # of 1 and 3, and of 2 that is gone
    for version in (1, 3, 4):
        store.delete(manifest_path(version))
    assert Looks(store, info(store, 130)).take("newer").number == 5, "the count is stored"


def test_versions_of_other_columns_are_none(store: Store) -> None:
    publish(store, 1, verdict_of("a"), source_schema="other")
    assert Looks(store, info(store)).take("new").number == 1


def test_a_copy_without_the_looks_goes_on_from_its_versions(store: Store) -> None:
    publish(store, 1, verdict_of("a", look=Look(number=7, n_holdout=9, n_new=0, level=0.999)))
    assert Looks(store, info(store)).take("new").number == 8


def test_a_dataset_of_0_1_is_continued(tmp_path: Path) -> None:
    with ZipFile(PUBLISHED_BEFORE) as archive:
        archive.extractall(tmp_path)
    store = open_store(str(tmp_path / "published"))
    old = read_manifest(store)
    found = info(store, 100, label=old.label, schema_digest=old.source_schema)
    look = Looks(store, found).take("new")
    assert (look.number, look.n_new) == (2, 100 - old.verdict.n_holdout)


def test_garbage_collection_keeps_looks(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    publish(store, 1, None)
    looks = Looks(store, info(store))
    looks.mark_proven(looks.take("one"))
    paths = store.list("_looks")
    assert [kind_of(path) for path in paths] == ["look", "look"]
    store.put("_staging/score/old/a.json", b"{}")
    report = collect_garbage(store, older_than_days=0)
    assert report.n_removed > 0
    assert store.list("_looks") == paths
    assert report.unknown == ()


@pytest.mark.parametrize(
    ("look", "words"),
    [
        ((1, 1400, 0.95), ("First", "all 1,400 records are new", "95 %")),
        ((3, 212, 0.98904), ("Third", "212 of 1,400 records are new since the last one", "98.9 %")),
        ((22, 0, 0.999831), ("22nd", "0 of 1,400 records are new since the last one", "99.983 %")),
        ((111, 9, 0.9999), ("111th", "9 of 1,400 records are new since the last one", "99.99 %")),
    ],
)
def test_a_look_is_a_sentence(look: tuple[int, int, float], words: tuple[str, str, str]) -> None:
    number, n_new, level = look
    which, news, needed = words
    sentence = Look(number=number, n_holdout=1400, n_new=n_new, level=level).sentence
    assert sentence == f"{which} look at this hold-out; {news}; proven needs a {needed} interval."


def test_page_card_and_inspect_say_which_look_it_was(store: Store) -> None:
    look = Look(number=3, n_holdout=1400, n_new=212, level=0.989)
    verdict = verdict_of("a", look=look)
    publish(store, 1, verdict)
    assert inspect(store).look == look
    assert look.sentence in render_card(read_manifest(store))
    data = ReportData(title="a", label="y", verdict=verdict)
    assert look.sentence in render_page(data, ()).decode()
    assert look.sentence in markdown_summary(data)


def spent(sizes: list[int], proven: set[int] = frozenset()) -> list[float]:  # type: ignore[assignment]
    """What each look spends; ``proven`` are the numbers of those that end so."""
    alphas: list[float] = []
    for number, n_now in enumerate(sizes, start=1):
        before, returned = sizes[max(0, number - 2)], alphas[-1] if number - 1 in proven else 0.0
        alphas.append(
            spent_alpha(number, n_first=sizes[0], n_before=before, n_now=n_now, returned=returned)
        )
    return alphas


@pytest.mark.parametrize("growth", [0.0, 0.01, 0.5, 10.0])
def test_thousands_of_looks_spend_no_more_than_five_percent(growth: float) -> None:
    alphas = spent([int(1000 * (1 + growth * i)) for i in range(3000)])
    assert FIRST + 0.014 < sum(alphas) <= 0.05
    assert min(alphas) > 0


def test_the_first_look_pays_nothing() -> None:
    assert 1 - 2 * spent([17])[0] == pytest.approx(0.95)


def test_records_that_arrived_count_for_themselves() -> None:
    """The twentieth look after a doubling spends ten times as much as the same without."""
    stale, fresh = spent([1000] * 20)[-1], spent([1000] * 19 + [2000])[-1]
    assert fresh > 10 * stale


def test_a_proven_look_returns_what_it_spent_to_the_next_one() -> None:
    alphas = spent([1000] * 20, proven=set(range(1, 20)))
    assert alphas == [FIRST] * 20
    assert spent([1000] * 3, proven={1})[2] == spent([1000] * 3)[2], "to the next one alone"


def test_looks_without_effect_share_five_percent_however_many_others_are_proven() -> None:
    """Up to the first false `proven`, only looks with an effect return what they spent."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        has_effect = set((1 + np.flatnonzero(rng.random(200) < rng.random())).tolist())
        sizes = np.cumsum(rng.integers(0, 100, size=200)).tolist()
        alphas = spent(sizes, proven=has_effect)
        null = [a for number, a in enumerate(alphas, start=1) if number not in has_effect]
        assert sum(null) <= 0.05


@pytest.mark.parametrize("given", [(0, 1, 1), (2, 5, 4), (1, -1, 4)])
def test_counts_that_cannot_be_are_refused(given: tuple[int, int, int]) -> None:
    number, n_before, n_now = given
    with pytest.raises(ParameterError, match="looks count from 1"):
        spent_alpha(number, n_first=1, n_before=n_before, n_now=n_now)
