"""Classic augmentation of text: small changes that leave it readable, seeded per record."""

from __future__ import annotations

import random
from collections.abc import Callable

from prefect_augment.augmentation.plugins import load_function
from prefect_augment.errors import ParameterError
from prefect_augment.params import Classic

__all__ = ["ENTRY_POINTS", "text_changer"]

ENTRY_POINTS = "prefect_augment.text"
SHARE = 0.1  # of the words, at least one
LEAST_WORDS = 4  # below it no word is left out

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
    """Return what changes a text under a seed; None where texts are left as they are.

    Raises
    ------
    ParameterError
        If the plug-in is not there.
    """
    if classic.text_plugin:
        function = load_function(
            classic.text_plugin, group=ENTRY_POINTS, field="classic.text_plugin"
        )

        def by_plugin(text: str, seed: int) -> str:
            made = function(text, random.Random(seed))  # noqa: S311 - no secret
            if not isinstance(made, str):
                raise ParameterError(
                    f"classic.text_plugin {classic.text_plugin!r} makes {type(made).__name__} of a text; expected str."
                )
            return made

        return by_plugin
    return changed if classic.text == "light" else None


def changed(text: str, seed: int) -> str:
    """Return a text with some words swapped, left out or mistyped.

    One kind of change per text, of a tenth of its words, at least one. Whitespace becomes single blanks.

    Parameters
    ----------
    text : str
    seed : int
        The same text and seed give the same text.

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
    if (kind is _leave_out and len(words) < LEAST_WORDS) or (kind is _swap and len(words) < 2):
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
