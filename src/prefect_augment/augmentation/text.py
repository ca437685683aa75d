"""Classic augmentation of text: small changes that leave it readable, seeded per record.

Columns of free text in classic records hold the changed text of the parent.
"""

import random
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.params import Classic
from prefect_augment.registry import load_function
from prefect_augment.schema import ColumnInfo, DatasetInfo, DatasetRef
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage import Store

ENTRY_POINTS = "prefect_augment.text"
SHARE = 0.1  # of the words, at least one
MIN_WORDS = 4  # below it no word is left out

# Neighbours of a key on a QWERTY keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEAR = {
    key: "".join(
        row[j]
        for i, row in enumerate(_ROWS)
        for j in range(len(row))
        if (i, j) != (r, c) and abs(i - r) <= 1 and abs(j - c) <= 1
    )
    for r, keys in enumerate(_ROWS)
    for c, key in enumerate(keys)
}

Change = Callable[[str, int], str]


def text_changer(classic: Classic) -> Change | None:
    """Return a function that changes a text under a seed; None where texts stay as they are.

    Raises ParameterError if the plug-in does not exist.
    """
    if classic.text_plugin:
        function = load_function(
            classic.text_plugin, group=ENTRY_POINTS, field="classic.text_plugin"
        )

        def by_plugin(text: str, seed: int) -> str:
            result = function(text, random.Random(seed))  # noqa: S311 - no secret
            if not isinstance(result, str):
                raise ParameterError(
                    f"classic.text_plugin {classic.text_plugin!r} returns {type(result).__name__}; expected str."
                )
            return result

        return by_plugin
    return changed if classic.text == "light" else None


def changed(text: str, seed: int) -> str:
    """Return a text with some words swapped, left out or mistyped; the same for the same seed.

    One kind of change per text, of a tenth of its words, at least one. Whitespace becomes single blanks.

    Examples
    --------
    >>> changed("the lid does not close any more", 0)
    'the lid does not close any'
    >>> changed("the lid does not close any more", 1)
    'the lid does not any close more'
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    words = text.split()
    if not words:
        return text
    kind = rng.choice([_swap, _leave_out, _mistype])
    if (kind is _leave_out and len(words) < MIN_WORDS) or (kind is _swap and len(words) < 2):
        kind = _mistype
    for _ in range(max(1, round(SHARE * len(words)))):
        kind(words, rng)
    return " ".join(words)


def _swap(words: list[str], rng: random.Random) -> None:
    i = rng.randrange(len(words) - 1)
    words[i], words[i + 1] = words[i + 1], words[i]


def _leave_out(words: list[str], rng: random.Random) -> None:
    del words[rng.randrange(len(words))]


def _mistype(words: list[str], rng: random.Random) -> None:
    able = [
        (i, j) for i, word in enumerate(words) for j, c in enumerate(word) if c.lower() in _NEAR
    ]
    if not able:
        return
    i, j = rng.choice(able)
    word = words[i]
    typed = rng.choice(_NEAR[word[j].lower()])
    words[i] = word[:j] + (typed.upper() if word[j].isupper() else typed) + word[j + 1 :]


def is_free_text(column: ColumnInfo) -> bool:
    """Whether a column holds texts of which hardly any two are equal."""
    return column.kind == "opaque" and "string" in column.arrow_type


def is_learnable(info: DatasetInfo) -> bool:
    """Whether records hold anything that estimators and models read."""
    return info.image is not None or any(c.kind in ("numeric", "category") for c in info.columns)


def check_comparable(dataset: DatasetRef, store: Store) -> None:
    """Raise InputError for records that hold nothing but free text."""
    if not is_learnable(load_info(dataset, store)):
        raise InputError(
            "besides the label the source holds free text alone, which neither models nor estimators read; bring rare "
            "classes up with the flow augment (classic.text 'light', classic.table 'oversampling'), or add columns of "
            "numbers, such as an embedding of the text."
        )


def with_texts(
    table: pa.Table, source: DatasetInfo, change: Change | None, store: Store
) -> pa.Table:
    """Return classic records with their parents' free text, changed under each record's own seed.

    ``change`` maps a text and a seed to a text; with None the columns stay empty. Empty texts stay so.
    """
    columns = [c.name for c in source.columns if is_free_text(c)]
    if change is None or not columns:
        return table
    parents = table["aug_parent"].unique()
    shards = [shard for shard in source.shards if shard.split in ("training", "validation")]
    texts: dict[str, dict[str, str | None]] = {}
    for part in iter_shards(store, shards, ["aug_id", *columns]):
        for record in part.filter(pc.is_in(part["aug_id"], value_set=parents)).to_pylist():
            texts[record.pop("aug_id")] = record
    ids, parent_of = table["aug_id"].to_pylist(), table["aug_parent"].to_pylist()
    for name in columns:
        seeds = [int(s[:15], 16) for s in derived_ids("classic text", ids, name).to_pylist()]
        changed_texts = [
            change(text, seed) if (text := texts[parent][name]) else text
            for parent, seed in zip(parent_of, seeds, strict=True)
        ]
        at, field = table.column_names.index(name), table.schema.field(name)
        table = table.set_column(at, field, pa.array(changed_texts, field.type))
    return table
