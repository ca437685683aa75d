"""Finished cells of `tables.py`: what they were made of, and whether that is still so.

A cell is (set, seed, method). Its folder holds the rows that were drawn (`drawn.json` says what they
cost) and their scores (`scores.json`). Beside each stands what it was made of: digests of the source
files that its process loaded, of the set's file, and the versions of the libraries that compute. As
long as these are the same the cell is not made anew: an interrupted run goes on where it was, and a
change of one engine leaves the others' cells, and the peers', as they are.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _table_data

import prefect_augment

__all__ = ["HERE", "LIBRARIES", "fresh", "made_of", "write_json"]

HERE = Path(__file__).resolve().parent
PACKAGE = Path(prefect_augment.__file__).resolve().parent
LIBRARIES = ("numpy", "pandas", "scipy", "scikit-learn", "imbalanced-learn", "torch")


def made_of(
    modules: Iterable[str], set_name: str, packages: Iterable[str] = LIBRARIES
) -> dict[str, str]:
    """Return what a cell is made of.

    Parameters
    ----------
    modules : iterable of str
        Source files: relative to this folder, or to the package where they begin with ``/``.
    set_name : str
        The set.
    packages : iterable of str
        Libraries of this environment by name, or pinned ones of another as ``name==version``.
    """
    names = [
        f"set:{set_name}",
        *(f"code:{m}" for m in modules),
        *(f"package:{p}" for p in packages),
    ]
    return {name: _now(name) for name in sorted(names)}


def fresh(path: Path) -> dict[str, Any] | None:
    """Return what a cell's file says; None where there is none or it was made of other things."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    made_of = found.get("made_of")  # not there yet where a run was interrupted
    return found if made_of and all(_now(n) == value for n, value in made_of.items()) else None


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1))
    beside.replace(path)


@functools.cache
def _now(name: str) -> str:
    kind, _, of = name.partition(":")
    if kind == "set":
        return _table_data.digest(of)[:16]
    if kind == "package":
        return of.partition("==")[2] or importlib.metadata.version(of)
    path = PACKAGE / of[1:] if of.startswith("/") else HERE / of
    return _code_digest(path) if path.is_file() else "gone"


def _code_digest(path: Path) -> str:
    """Return the digest of what a source file does: comments, layout and docstrings do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
