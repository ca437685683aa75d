"""Image labels from ``metadata.csv`` or ``metadata.jsonl`` beside them: the imagefolder of `datasets`.

Each line names a file, relative to the metadata's folder, and its fields.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.sources.images.files import SPLIT_NAMES, Labels, Member

NAMES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"
LABEL_FIELDS = ("label", "class", "category", "target")
MISSING = "unlabelled: metadata says no label of it"


def metadata_labels(members: Sequence[Member], source: Source) -> Labels | None:
    """Return the class of each image that metadata name; None if there are none, or they have no class.

    Raises InputError if the folders with metadata are splits, or a file cannot be read.
    """
    files = [m for m in members if m.path.rpartition("/")[2] in NAMES]
    rows = [(member, row) for member in files for row in _rows(member)]
    fields = {name for _, row in rows for name in row}
    field = next((name for name in (source.label, *LABEL_FIELDS) if name in fields), "")
    if not field:
        return None
    _refuse_splits(files)
    there = {member.path for member in members}
    of_path: dict[str, str] = {}
    n_gone = 0
    for member, row in rows:
        folder, slash, _ = member.path.rpartition("/")
        path = folder + slash + str(row[FILE_NAME]).removeprefix("./")
        if path not in there:
            n_gone += 1
        elif label := label_of(row.get(field)):
            of_path[path] = label
    gone = f"{n_gone} lines of metadata name files that are not there"
    return Labels(
        of_path,
        frozenset(member.path for member in files),
        missing=MISSING,
        notes=(f"labels are the field {field!r} of {files[0].path}", *([gone] if n_gone else [])),
    )


def _refuse_splits(files: Sequence[Member]) -> None:
    folders = sorted({member.path.rpartition("/")[0].rpartition("/")[2] for member in files})
    if len(folders) > 1 and {folder.lower() for folder in folders} <= SPLIT_NAMES:
        raise InputError(
            f"the folders {', '.join(map(repr, folders))} look like splits with metadata in each; give one of them as "
            "source.uri and the one to test on as source.holdout_uri.",
            folders=folders,
        )


def _rows(member: Member) -> list[dict[str, Any]]:
    """Return the lines that name a file; others are skipped, and their image has no label."""
    text = member.data.decode("utf-8-sig", "replace")
    rows: Iterable[Any] = map(parsed, text.splitlines())
    if member.path.endswith(".csv"):
        rows = csv.DictReader(io.StringIO(text, newline=""))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get(FILE_NAME), str)]


def parsed(text: str | bytes) -> Any:
    """Return the value, None if it is no JSON, or nested too deeply to be a label."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def label_of(value: Any) -> str:
    """Return a field's value as a class; empty where it is none."""
    return str(value).strip() if isinstance(value, bool | int | str) else ""
