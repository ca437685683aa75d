"""The dataset card, README.md: derived from the newest manifest, so that ``load_dataset(DEST)`` works.

``croissant.json`` is derived and kept up in the same way. Both may lag after a kill; the next run or
``verify --repair`` updates them. A README, or a croissant.json, by somebody else is left alone.
"""

import logging

import yaml

from prefect_augment.catalogue.croissant import CROISSANT, is_ours, render_croissant
from prefect_augment.catalogue.governance import article_10, is_shared
from prefect_augment.schema import EncoderInfo, Manifest, Recipe, Verdict
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.storage import Store, latest_version, read_manifest
from prefect_augment.text import markdown_text

logger = logging.getLogger(__name__)

CARD = "README.md"
_MARK = "<!-- Derived from _manifests by prefect-augment; changes are lost. -->"
_MAX_CLASSES = 100
_NO_CORRECTION = 0.01  # factors nearer to 1 are not worth a table
_SPLITS = ("train", "holdout")

_HOW_TO_READ = """
## How to read it

```python
from prefect_augment import open_dataset

dataset = open_dataset(DEST)
table = dataset.to_pandas()             # split="holdout" for the hold-out
weight = dataset.sample_weight()        # the recipe, as sample_weight of any estimator
```

{shards}

The last columns say where a record comes from:

| column | meaning |
| --- | --- |
| `aug_id` | the record's own id |
| `aug_origin` | `real`, `copy`, `classic` (made from one real record) or `synthetic` (drawn from a model) |
| `aug_weight` | how often the recipe draws the record, mean 1 over train; the estimator's sample weight |
| `aug_parent` | `aug_id` of the record that a copy or classic record was made from |
| `aug_model` | digest of the model that a synthetic record was drawn from |
| `aug_seed` | seed that makes the record again |

"""

_HOLDS_REAL = """
`_staging`, `_splits` and `_quarantine` hold or describe records of the source. To hand on the published records only,
copy `data` and this file.
"""
_SHARED = """
All records are synthetic. Those of the source, the report and the split stay in the workspace of whoever made this
dataset; `prefect-augment verify --shareable` searched this folder for them.
"""


_PARQUET = """
`pandas.read_parquet(dataset.paths["train"])` and the same in polars or duckdb read the shards themselves;
`datasets.load_dataset(DEST)` reads this version. Do not read `data/` by a wildcard: it holds the shards of all
versions.
"""
_TAR = """
`webdataset.WebDataset(dataset.paths["train"])` reads the shards themselves: `.cls` is the place of the class in
`dataset.classes`, `.json` holds the columns below; `datasets.load_dataset(DEST)` reads this version. Do not read
`data/` by a wildcard: it holds the shards of all versions.
"""
# Arrow's names of types -> those of `datasets`.
_DTYPES = {"double": "float64", "float": "float32", "large_string": "string", "string": "string"}
_DTYPES |= {kind: kind for kind in ("bool", "int8", "int16", "int32", "int64")}


def render_card(manifest: Manifest) -> str:
    """The card of a version; user strings are escaped."""
    lines = ["configs:", "- config_name: default", "  data_files:"]
    for split in _SPLITS:
        shards = manifest.split_shards(split)
        if shards:
            lines += [f"  - split: {split}", "    path:", *(f"    - {s.path}" for s in shards)]
    parts = [
        "---",
        *(lines + (_features(manifest) if _is_tar(manifest) else [])),
        "---",
        _MARK,
        "",
        f"# Balanced dataset, version {manifest.version}",
        "",
        markdown_text(manifest.recipe.sentence),
        "",
        *_verdict(manifest.verdict),
        "",
        *([markdown_text(manifest.approval.sentence), ""] if manifest.approval else []),
        *(f"- {markdown_text(note)}" for note in manifest.notes),
        "",
        f"The class is in column {markdown_text(manifest.label)}.",
        "",
        *_counts(manifest),
        *_elsewhere(manifest),
        *_encoder(manifest.encoder),
        *_prior(manifest.recipe),
        *_governance(manifest),
        _HOW_TO_READ.format(shards=(_TAR if _is_tar(manifest) else _PARQUET).strip())
        + (_SHARED if is_shared(manifest) else _HOLDS_REAL),
    ]
    return "\n".join(parts)


def derived_files(manifest: Manifest) -> dict[str, bytes]:
    """Files beside the manifests that follow from the newest one, by path."""
    return {CARD: render_card(manifest).encode(), CROISSANT: render_croissant(manifest)}


def _is_tar(manifest: Manifest) -> bool:
    return any(s.path.endswith(".tar") for s in manifest.shards)


def _features(manifest: Manifest) -> list[str]:
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
    text = yaml.safe_dump(info, sort_keys=False, allow_unicode=False, width=100_000)
    return text.splitlines()


def _verdict(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["Verdict: none; the recipe was not compared on a hold-out."]
    return [
        f"**{markdown_text(verdict.headline)}** Compared on {verdict.n_holdout} hold-out records."
        + (f" {verdict.look.sentence}" if verdict.look else ""),
        "",
        *(f"- {markdown_text(reason)}" for reason in verdict.details),
    ]


def _counts(manifest: Manifest) -> list[str]:
    lines = []
    for split in [s for s in _SPLITS if s in manifest.class_counts]:
        classes = manifest.class_counts[split]
        origins = [
            o
            for o in ("real", "copy", "classic", "synthetic")
            if any(o in c for c in classes.values())
        ]
        lines += [
            f"## Records: {split}",
            "",
            f"| class | {' | '.join(origins)} |",
            f"| --- |{' ---: |' * len(origins)}",
        ]
        for name, counts in list(classes.items())[:_MAX_CLASSES]:
            cells = " | ".join(f"{counts.get(o, 0):,}" for o in origins)
            lines.append(f"| {markdown_text(name)} | {cells} |")
        if len(classes) > _MAX_CLASSES:
            lines.append(
                f"| … and {len(classes) - _MAX_CLASSES} more, see the manifest | {' | ' * len(origins)}"
            )
        lines.append("")
    return lines


def _encoder(encoder: EncoderInfo | None) -> list[str]:
    """The section on the user's encoder, whose licence goes with the outputs."""
    if encoder is None:
        return []
    return [
        "",
        "## Encoder",
        "",
        f"The comparison had features of the pretrained encoder {markdown_text(encoder.name)}.",
        f"Licence {markdown_text(encoder.licence)}, sha256 `{encoder.sha256}`. Its weights are not in this dataset.",
    ]


def _prior(recipe: Recipe) -> list[str]:
    """The section that corrects the probabilities of a classifier trained by the recipe."""
    true, train = recipe.prior_true, recipe.prior_train
    names = [name for name in true if train.get(name)]
    if all(abs(true[name] / train[name] - 1) < _NO_CORRECTION for name in names):
        return []
    lines = [
        "",
        "## Probabilities",
        "",
        "A classifier trained by the recipe expects classes to be as frequent as the recipe makes them. Its decisions",
        "were compared: leave them as they are. To use probabilities as such, multiply each class's probability by",
        "its factor and scale them to sum to 1: `dataset.correct_prior(probabilities)`, or `RecipeClassifier`.",
        "Where classes have other shares in use, pass these as `prior`.",
        "",
        "| class | share of the source | share in training | factor |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in names[:_MAX_CLASSES]:
        cells = f"{true[name]:.2%} | {train[name]:.2%} | {true[name] / train[name]:.3g}"
        lines.append(f"| {markdown_text(name)} | {cells} |")
    if len(names) > _MAX_CLASSES:
        lines.append(f"| … and {len(names) - _MAX_CLASSES} more, see the manifest | | | |")
    return lines


def _governance(manifest: Manifest) -> list[str]:
    """The section with what Article 10(2) of the EU AI Act asks for."""
    lines = [
        "",
        "## Data governance",
        "",
        "What Article 10(2) of the EU AI Act (Regulation 2024/1689) asks for, as far as the manifest knows it.",
        "",
    ]
    for heading, sentences in article_10(manifest):
        lines.append(f"- **{heading}.** {' '.join(map(markdown_text, sentences))}")
    return lines


def _elsewhere(manifest: Manifest) -> list[str]:
    lines = []
    if manifest.holdout_uri:
        lines.append(f"The hold-out is {markdown_text(manifest.holdout_uri)} and is not copied.")
    if manifest.n_quarantined:
        where = "" if is_shared(manifest) else "; see `_quarantine`"
        lines.append(f"{manifest.n_quarantined:,} records could not be used{where}.")
    if manifest.report and not is_shared(manifest):
        word = "The comparison" if manifest.verdict else "What is in it"
        lines.append(f"{word}: [report]({manifest.report}).")
    return lines


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
