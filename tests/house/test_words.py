"""Retired words are in no identifier and in no text that users read; a word has one meaning, the field's."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# The field's word -> parts of an identifier, split at underscores and capitals, that it has replaced.
REPLACED = {
    "requested, params": "wish wishes wished asked",
    "Result, Info": "fact facts",
    "strategy": "arm arms",
    "filter, classifier, early stopping, evaluator": "judge judges judged bench workbench",
    "quality, evaluation, validation, prior shift": "gate gates val rescaled",
    "estimator, classifier": "learner learners",
    "external, expand, diagnostics, training_budget, schedule": "foreign stand standing further effort clock",
    "write_index, shard_layout, validate": "settle settled placing usable earlier inherit inherited marks",
    "spill, hash64": "binned pile piles aside folded compact",
    "near_copies, redaction": "nearness disclosure",
    "fix, message, or what it is": "mend said told found made",
}
RETIRED = {word for words in REPLACED.values() for word in words.split()}

# Python's, and Prefect's.
ALLOWED = {"FileNotFoundError", "ModuleNotFoundError", "PackageNotFoundError", "ObjectNotFound"}

# Text -> why.
ALLOWED_TEXTS = {"not judged": "how version 0.1 stored `not tested`"}

# In prose only where they are jargon; `made` and `found` are English.
RETIRED_IN_TEXT = re.compile(
    r"\b(arms?|workbench|wish(es|ed)?|learners?|judge[sd]?|judging|gates?|mend(s|ed)?|passed over|facts|"
    r"val (records|part)|fit (records|part))\b|>(fit|val)<",
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
            if name not in ALLOWED and RETIRED & set(_words(name)):
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
