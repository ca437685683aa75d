"""Hugging Face dataset folders as a source: which of their files are the records.

Three forms: ``save_to_disk`` output (``state.json`` beside Arrow files, a folder per split below
``dataset_dict.json``), a README with ``configs: data_files:``, and files named by split
(``data/train-00000-of-00002.parquet``). Only train is read, only from files in the folder; notes name the rest.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_augment.errors import InputError
from prefect_augment.registry import FORMATS
from prefect_augment.sources.images.files import SPLIT_NAMES, match_segments
from prefect_augment.storage import Store
from prefect_augment.text import load_yaml

STATE, INFO, DICT, CARD = "state.json", "dataset_info.json", "dataset_dict.json", "README.md"
# Cards and states are a few kB; what is larger is none.
MAX_BYTES = 4 << 20
NAMED_BY_SPLIT = re.compile(
    r"(?:(?P<folder>.*)/)?(?P<split>[a-z]+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.\w+"
)
TRAIN = "train"


def choose_files(paths: Sequence[str], store: Store) -> tuple[list[str], tuple[str, ...]] | None:
    """Return the files with the records of a Hugging Face dataset folder, and notes; None if it is not one.

    Raises InputError if it names files that are not there, or has no obvious split or configuration.
    """
    if {STATE, INFO} <= set(paths):
        return _saved(paths, store, ""), ()
    if DICT in paths:
        return _of_splits(_saved_splits(paths, store), store)
    splits = _card_splits(paths, store) or _named_splits(paths)
    return _of_splits(splits, store) if splits else None


def _of_splits(
    splits: Mapping[str, Sequence[str]], store: Store
) -> tuple[list[str], tuple[str, ...]]:
    """Choose the train split, or the only one."""
    names = sorted(splits)
    if TRAIN not in splits and len(splits) > 1:
        raise InputError(
            f"{store.uri} is a Hugging Face dataset with the splits {_listed(names)} and none called {TRAIN!r}; "
            f"give the files of one as source.uri, e.g. {store.uri}/{_example(splits[names[0]])}.",
            uri=store.uri,
            splits=names,
        )
    split = TRAIN if TRAIN in splits else names[0]
    note = f"a Hugging Face dataset folder: its split {split!r} is read"
    others = [name for name in names if name != split]
    if others:
        note += (
            f", {_listed(others)} not; to test on one of them give it as source.holdout_uri, e.g. "
            f"{store.uri}/{_example(splits[others[0]])}"
        )
    return sorted(splits[split]), (note,)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _example(paths: Sequence[str]) -> str:
    """Return a glob for the files of a split, or the folder that holds only it."""
    folder, _, name = paths[0].rpartition("/")
    if name.endswith(".arrow"):
        return folder
    glob = re.sub(r"-\d{5}-of-\d{5}.*(?=\.\w+$)", "-*", name) if len(paths) > 1 else name
    return f"{folder}/{glob}" if folder else glob


def _saved_splits(paths: Sequence[str], store: Store) -> dict[str, list[str]]:
    listed = _read_json(store, DICT).get("splits")
    splits = [str(name) for name in listed] if isinstance(listed, list) else []
    if not splits:
        raise InputError(f"{store.uri}/{DICT} names no splits; save the dataset again.", path=DICT)
    for name in splits:
        _refuse_outside(store, DICT, name, f"{name}/{STATE}" in paths)
    return {name: _saved(paths, store, f"{name}/") for name in splits}


def _saved(paths: Sequence[str], store: Store, folder: str) -> list[str]:
    state = f"{folder}{STATE}"
    files = _read_json(store, state).get("_data_files")
    files = files if isinstance(files, list) else []
    names = [f.get("filename") for f in files if isinstance(f, dict)]
    for name in names:
        _refuse_outside(store, state, str(name), f"{folder}{name}" in paths)
    if not names:
        raise InputError(
            f"{store.uri}/{state} names no data files; save the dataset again.", path=state
        )
    return [f"{folder}{name}" for name in names]


def _refuse_outside(store: Store, where: str, name: str, is_there: bool) -> None:
    is_outside = "/" in name or "\\" in name or name in ("", ".", "..")
    if is_outside or not is_there:
        why = (
            "is no file beside it; refused" if is_outside else "is not there; copy the folder again"
        )
        raise InputError(f"{store.uri}/{where} names {name!r}, which {why}.", path=where)


def _read_json(store: Store, path: str) -> dict[str, Any]:
    try:
        value = json.loads(_read_small(store, path))
    except (ValueError, RecursionError) as exc:
        raise InputError(
            f"{store.uri}/{path} is not readable JSON ({exc}); save the dataset again.", path=path
        ) from exc
    return value if isinstance(value, dict) else {}


def _read_small(store: Store, path: str) -> bytes:
    return store.read(path) if store.size(path) <= MAX_BYTES else b""


def _card_splits(paths: Sequence[str], store: Store) -> dict[str, list[str]]:
    """Return the splits that the README's front matter lists; none if it lists no tables."""
    if CARD not in paths:
        return {}
    configs = _configs(_read_small(store, CARD))
    if not configs:
        return {}
    splits: dict[str, list[str]] = {}
    for split, patterns in _data_files(_chosen_config(configs, store).get("data_files")):
        matching = [
            p for p in paths if any(p == glob or match_segments(p, glob) for glob in patterns)
        ]
        if not matching:
            raise InputError(
                f"{store.uri}/{CARD} lists {_listed(patterns)} as the files of the split {split!r}, and the folder "
                "has no such file; copy the folder again, or give the files as a glob.",
                path=CARD,
            )
        splits.setdefault(split, []).extend(p for p in matching if p not in splits.get(split, []))
    endings = tuple(ending for entry in FORMATS.values() for ending in entry.endings)
    if not all(p.lower().endswith(endings) for files in splits.values() for p in files):
        return {}  # images and archives, which are read by what they are
    return splits


def _configs(card: bytes) -> list[dict[str, Any]]:
    match = re.match(rb"(?:\xef\xbb\xbf)?---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        front = load_yaml(match[1]) if match else None
    except ValueError:
        return []  # a page that is no dataset card
    configs = front.get("configs") if isinstance(front, dict) else None
    if not isinstance(configs, list):
        return []
    return [c for c in configs if isinstance(c, dict) and c.get("data_files")]


def _chosen_config(configs: Sequence[dict[str, Any]], store: Store) -> dict[str, Any]:
    default = [c for c in configs if c.get("default") is True]
    default = default or [c for c in configs if c.get("config_name") == "default"]
    if default or len(configs) == 1:
        return (default or configs)[0]
    names = [str(config.get("config_name")) for config in configs]
    raise InputError(
        f"{store.uri} is a Hugging Face dataset with the configurations {_listed(names)}; give the files of one as "
        "source.uri, as a folder or a glob.",
        uri=store.uri,
    )


def _data_files(listed: Any) -> list[tuple[str, list[str]]]:
    """Return split and patterns of each entry, whichever of its forms ``data_files`` has."""
    if isinstance(listed, dict):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    entries = listed if isinstance(listed, list) else [listed]
    splits = []
    for entry in entries:
        split, path = TRAIN, entry
        if isinstance(entry, dict):
            split, path = str(entry.get("split", TRAIN)), entry.get("path")
        patterns = path if isinstance(path, list) else [path]
        splits.append((split, [str(pattern).removeprefix("./") for pattern in patterns]))
    return splits


def _named_splits(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the splits in file names, if all tables of one folder are named so and there are several."""
    splits: dict[str, list[str]] = {}
    folders = set()
    for path in paths:
        match = NAMED_BY_SPLIT.fullmatch(path)
        if match and match["split"] in SPLIT_NAMES:
            splits.setdefault(match["split"], []).append(path)
            folders.add(match["folder"])
    return splits if len(splits) > 1 and len(folders) == 1 else {}
