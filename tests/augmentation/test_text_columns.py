"""Texts in classic records: a text classification set is balanced, and every text is its parent's, changed."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment import open_dataset, registry
from prefect_augment.augmentation.text import ENTRY_POINTS, changed, text_changer
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.flows.augment import augment
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Balance, Classic, Destination, Source

WORDS = {
    "praise": ["great", "lovely", "solid", "quick", "happy"],
    "complaint": ["broken", "late", "cracked", "rude", "faulty"],
}
COMMON = ["the", "box", "came", "with", "my", "order", "today", "from", "your", "shop"]


def reviews(n: int = 160, *, columns: dict[str, Any] | None = None) -> pa.Table:
    """A review in eleven is a complaint; what it is shows in its words."""
    rng = random.Random(0)
    labels = ["complaint" if i % 11 == 0 else "praise" for i in range(n)]
    texts = [
        " ".join([*rng.sample(COMMON, rng.randint(3, 7)), *rng.sample(WORDS[y], 2)]) for y in labels
    ]
    return pa.table({"text": texts, **(columns or {}), "label": labels})


def balanced(source: pa.Table, folder: Path, **classic: Any) -> list[dict[str, Any]]:
    pq.write_table(source, folder / "in.parquet")
    augment.fn(
        source=Source(uri=str(folder / "in.parquet"), label="label"),
        destination=Destination(uri=str(folder / "out")),
        balance=Balance(target="majority"),
        classic=Classic(**classic),
    )
    found: list[dict[str, Any]] = (
        open_dataset(str(folder / "out")).to_table(split="train").to_pylist()
    )
    return found


def test_a_text_classification_set_is_balanced_with_its_labels(tmp_path: Path) -> None:
    records = balanced(reviews(), tmp_path, text="light", table="oversampling")
    real = {r["aug_id"]: r for r in records if r["aug_origin"] == "real"}
    made = [r for r in records if r["aug_origin"] == "classic"]
    counts = [sum(r["label"] == name for r in records) for name in WORDS]
    assert counts[0] == counts[1]
    n_changed = 0
    for record in made:
        parent = real[record["aug_parent"]]
        assert record["label"] == parent["label"] == "complaint"
        old, new = parent["text"].split(), record["text"].split()
        assert len(old) - 1 <= len(new) <= len(old)
        assert len(set(old) - set(new)) <= 1, "one word swapped, left out or mistyped"
        n_changed += old != new
    assert n_changed > 0.9 * len(made)
    assert len({r["text"] for r in made}) > 0.5 * len(made)


def test_texts_beside_numbers_are_the_parents_changed(tmp_path: Path) -> None:
    table = reviews(columns={"stars": [float(i % 5) + (i % 7) / 10 for i in range(160)]})
    texts = table["text"].to_pylist()
    texts[11], texts[22] = None, ""
    table = table.set_column(0, "text", pa.array(texts))
    records = balanced(table, tmp_path, text="light")
    real = {r["aug_id"]: r["text"] for r in records if r["aug_origin"] == "real"}
    made = [r for r in records if r["aug_origin"] == "classic"]
    empty = [r for r in made if not real[r["aug_parent"]]]
    assert empty
    assert all(r["text"] == real[r["aug_parent"]] for r in empty), "nothing is made of nothing"
    assert all(r["text"] for r in made if real[r["aug_parent"]])
    assert len({r["stars"] for r in made}) > 20, "numbers are SMOTE's"


@pytest.mark.slow
def test_without_being_asked_for_texts_stay_empty_and_alone_are_refused(tmp_path: Path) -> None:
    table = reviews(columns={"stars": [float(i % 5) for i in range(160)]})
    (tmp_path / "a").mkdir()
    made = [r for r in balanced(table, tmp_path / "a") if r["aug_origin"] == "classic"]
    assert {r["text"] for r in made} == {None}
    with pytest.raises(ParameterError, match="set classic.text='light'"):
        balanced(reviews(), tmp_path)
    with pytest.raises(InputError, match="with the flow augment"):
        rebalance.fn(
            source=Source(uri=str(tmp_path / "in.parquet"), label="label"),
            destination=Destination(uri=str(tmp_path / "compared")),
        )


def test_changes_depend_on_text_and_seed_alone() -> None:
    text = "the lid does not close any more"
    assert [changed(text, s) for s in range(20)] == [changed(text, s) for s in range(20)]
    assert len({changed(text, s) for s in range(40)}) > 10
    assert changed("", 3) == ""
    assert changed("—", 3) == "—", "nothing to mistype"
    assert len(changed("ok", 3)) == 2


class Shouting:
    """An installed package's function."""

    name = "loud"

    def load(self) -> Any:
        return lambda text, rng: text.upper() + rng.choice("!?")


def test_a_users_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [Shouting()] if group == ENTRY_POINTS else []
    )
    change = text_changer(Classic(text_plugin="loud"))
    assert change("so", 1) == change("so", 1)
    assert change("so", 1)[:2] == "SO"
    with pytest.raises(ParameterError, match="did you mean 'loud'"):
        text_changer(Classic(text_plugin="lod"))
    assert text_changer(Classic()) is None
