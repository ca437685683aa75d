"""The dataset card, README.md: derived from the newest manifest, so that ``load_dataset(DEST)`` works.

``croissant.json`` is derived and kept up in the same way. Both may lag after a kill; the next run or
``verify --repair`` updates them. A README, or a croissant.json, by somebody else is left alone.
"""

import logging

import yaml

from prefect_augment.catalogue.croissant import CROISSANT, is_ours, render_croissant
from prefect_augment.catalogue.governance import article_10, is_shared
from prefect_augment.report.environment import render
from prefect_augment.schema import Manifest
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.storage import Store, latest_version, read_manifest

logger = logging.getLogger(__name__)

CARD = "README.md"
_MARK = "<!-- Derived from _manifests by prefect-augment; changes are lost. -->"
_MAX_CLASSES = 100
_NO_CORRECTION = 0.01  # factors nearer to 1 are not worth a table
_SPLITS = ("train", "holdout")
_ORIGINS = ("real", "copy", "classic", "synthetic")
# Arrow's names of types -> those of `datasets`.
_DTYPES = {"double": "float64", "float": "float32", "large_string": "string", "string": "string"}
_DTYPES |= {kind: kind for kind in ("bool", "int8", "int16", "int32", "int64")}


def render_card(manifest: Manifest) -> str:
    """The card of a version; user strings are escaped."""
    is_tar = any(s.path.endswith(".tar") for s in manifest.shards)
    train = manifest.recipe.prior_train
    shares = {k: (true, train[k]) for k, true in manifest.recipe.prior_true.items() if train.get(k)}
    if all(abs(true / trained - 1) < _NO_CORRECTION for true, trained in shares.values()):
        shares = {}
    return render(
        "card.md.j2",
        manifest=manifest,
        mark=_MARK,
        splits=_SPLITS,
        most=_MAX_CLASSES,
        features=_features(manifest) if is_tar else "",
        origins={
            split: [o for o in _ORIGINS if any(o in counts for counts in classes.values())]
            for split, classes in manifest.class_counts.items()
        },
        corrected=list(shares.items()),
        article_10=article_10(manifest),
        is_shared=is_shared(manifest),
        is_tar=is_tar,
    )


def derived_files(manifest: Manifest) -> dict[str, bytes]:
    """Files beside the manifests that follow from the newest one, by path."""
    return {CARD: render_card(manifest).encode(), CROISSANT: render_croissant(manifest)}


def _features(manifest: Manifest) -> str:
    """Features of the tars for `datasets`, which would miss fields that the first records lack."""
    names = {str(k): name for k, name in enumerate(manifest.classes)}
    fields = [(c.name, _DTYPES[c.arrow_type]) for c in manifest.columns if c.arrow_type in _DTYPES]
    fields += [(field.name, _DTYPES[str(field.type)]) for field in LINEAGE]
    features = [
        {"name": "cls", "dtype": {"class_label": {"names": names}}},
        {"name": "jpg", "dtype": "image"},
        {"name": "png", "dtype": "image"},
        {"name": "json", "struct": [{"name": name, "dtype": dtype} for name, dtype in fields]},
        {"name": "__key__", "dtype": "string"},
    ]
    info = {"dataset_info": {"features": features}}
    return yaml.safe_dump(info, sort_keys=False, allow_unicode=False, width=100_000)


def card_is_current(store: Store) -> bool:
    """Whether README.md and croissant.json are those of the newest version, or somebody else's."""
    latest = latest_version(store)
    if latest is None:
        return True
    files = derived_files(read_manifest(store, latest))
    return all(_there(store, path) in (data, None) for path, data in files.items())


def refresh_card(store: Store) -> bool:
    """Write the newest version's card and croissant.json where they lag; return whether one was written.

    Of two commits that race, the older one's files may be put last. So each checks again after its
    put, until the files are the newest version's.
    """
    written, others = False, set[str]()
    while (latest := latest_version(store)) is not None:
        files = derived_files(read_manifest(store, latest))
        there = {path: _there(store, path) for path in files}
        others |= {path for path, data in there.items() if data is None}
        old = [p for p in files if there[p] is not None and there[p] != files[p]]
        for path in old:
            store.put(path, files[path])
            written = True
        if not old:
            break
    for path in sorted(others):
        logger.warning(
            "%s/%s was written by somebody else and is left alone%s. Rename it and run `prefect-augment verify "
            "--repair` to get ours.",
            store.uri,
            path,
            "; datasets.load_dataset may not find the shards" if path == CARD else "",
        )
    return written


def _there(store: Store, path: str) -> bytes | None:
    """Our file, empty where there is none; None where the file is somebody else's."""
    try:
        data = store.read(path)
    except FileNotFoundError:
        return b""
    is_own = _MARK.encode() in data if path == CARD else is_ours(data)
    return data if is_own else None
