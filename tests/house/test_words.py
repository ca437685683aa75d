"""The retired words of the house's first year are in no identifier and in no text that users read.

A word has one meaning and is the field's: `CONTRIBUTING.md`. What a word here was replaced by stands beside it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# As a part of an identifier: split at underscores and capitals.
RETIRED = {
    "wish": "requested, params",
    "wishes": "requested, params",
    "wished": "requested",
    "asked": "requested",
    "fact": "Result, Info",
    "facts": "Result, Info",
    "arm": "strategy",
    "arms": "strategies",
    "judge": "filter, classifier, early stopping",
    "judges": "classifiers",
    "judged": "compared, filtered",
    "bench": "evaluator",
    "workbench": "evaluator",
    "gate": "quality, evaluation",
    "gates": "quality, evaluation",
    "val": "validation",
    "learner": "estimator, classifier",
    "learners": "estimators, classifiers",
    "foreign": "external",
    "standing": "expand",
    "further": "diagnostics",
    "effort": "training_budget",
    "clock": "schedule",
    "settle": "write_index",
    "settled": "assigned",
    "placing": "shard_layout",
    "usable": "validate",
    "binned": "external_partition",
    "pile": "partition",
    "piles": "partitions",
    "aside": "spilled",
    "folded": "hash64",
    "compact": "keys",
    "nearness": "near_copies",
    "disclosure": "redaction",
    "mend": "fix",
    "said": "message, reported",
    "told": "reported",
    "found": "what it is",
    "made": "what it is",
}

# Exception -> why the word is right there.
ALLOWED = {
    "FileNotFoundError": "Python's",
    "ModuleNotFoundError": "Python's",
    "PackageNotFoundError": "Python's",
    "ObjectNotFound": "Prefect's",
}

# Text -> why.
ALLOWED_TEXTS = {"not judged": "how version 0.1 stored `not tested`"}

# In prose only where they are jargon; `made` and `found` are English.
RETIRED_IN_TEXT = re.compile(
    r"\b(arms?|workbench|wish(es|ed)?|learners?|judge[sd]?|judging|gates?|mend(s|ed)?|passed over|facts|"
    r"val (records|part)|fit (records|part))\b",
    re.IGNORECASE,
)


def _modules(repository: Path) -> Iterator[Path]:
    for folder in ("src", "flows", "tasks", "genmodels"):
        yield from sorted((repository / folder).rglob("*.py"))


def _identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings, without docstrings: messages, descriptions, help."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.lineno, node.value


@pytest.mark.slow
def test_no_identifier_has_a_retired_word(repository: Path) -> None:
    names: dict[str, str] = {}
    for path in _modules(repository):
        for name in _identifiers(ast.parse(path.read_text())):
            if name not in ALLOWED and RETIRED.keys() & set(_words(name)):
                names.setdefault(name, str(path.relative_to(repository)))
    assert names == {}


@pytest.mark.slow
def test_no_message_has_a_retired_word(repository: Path) -> None:
    texts = [
        f"{path.relative_to(repository)}:{line}: {text[:80]}"
        for path in _modules(repository)
        for line, text in _strings(ast.parse(path.read_text()))
        # A single lower-case word is a name in storage, such as the alias of a field.
        if RETIRED_IN_TEXT.search(text) and " " in text and text not in ALLOWED_TEXTS
    ]
    assert texts == []


def test_no_page_has_a_retired_word(repository: Path) -> None:
    pages = [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]
    pages += sorted((repository / "src" / "prefect_augment" / "report" / "templates").rglob("*.j2"))
    pages += [repository / "prefect.yaml", *sorted((repository / "examples").rglob("*.md"))]
    lines = [
        f"{page.relative_to(repository)}:{number}: {line[:80]}"
        for page in pages
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if RETIRED_IN_TEXT.search(line)
    ]
    assert lines == []
