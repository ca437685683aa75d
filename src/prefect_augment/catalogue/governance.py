"""The fields of Article 10 of the EU AI Act, as far as a manifest can fill them.

Regulation (EU) 2024/1689, Article 10(2) asks of data sets for training, validation and testing: (a) design choices,
(b) collection and origin, (c) preparation, (d) assumptions, (e) availability, quantity and suitability, (f, g) possible
biases and what is done about them, (h) gaps and shortcomings. What a manifest cannot know is named as such.
"""

from collections import Counter

from prefect_augment.params.locations import hide_secrets
from prefect_augment.schema import Manifest, real_counts
from prefect_augment.text import interval_percent, percent

_MAX_CLASSES = 20
_OF = {
    "real": "real records of the source",
    "copy": "copies of real records",
    "classic": "classic records, each made from one real record",
    "synthetic": "synthetic records, drawn from a model",
}


def is_shared(manifest: Manifest) -> bool:
    """Whether a version holds synthetic records alone, so that it can be shared."""
    return bool(manifest.shards) and all(s.origin == "synthetic" for s in manifest.shards)


def source_uri(manifest: Manifest) -> str:
    """Where the source was; empty where it is unknown, or nobody's business since the version is for sharing."""
    uri = "" if is_shared(manifest) else str(manifest.params.get("source", {}).get("uri", ""))
    return hide_secrets(uri)


def governance(manifest: Manifest) -> dict[str, list[str]]:
    """Plain sentences on a version, by what Article 10(2) asks for."""
    counts = Counter[str]()
    for shard in manifest.shards:
        counts[shard.origin] += shard.n_records
    return {
        "design": _design(manifest),
        "origin": _origin(manifest, counts),
        "preparation": _preparation(manifest, counts),
        "labelling": _labelling(manifest, counts),
        "assumptions": [
            f"Column {manifest.label} is the class of what a record's other columns describe.",
            "The hold-out is drawn as later data are. What the data stand for in the world is not known here.",
        ],
        "suitability": _suitability(manifest),
        "biases": _biases(manifest),
        "measures": _measures(manifest),
        "gaps": _gaps(manifest),
        "people": _people(manifest),
    }


def article_10(manifest: Manifest) -> list[tuple[str, list[str]]]:
    """Headings with their letter in Article 10(2), and the sentences below each."""
    about = governance(manifest)
    return [
        ("Design choices (a)", about["design"]),
        ("Collection and origin (b)", about["origin"]),
        ("Preparation (c)", [*about["preparation"], *about["labelling"]]),
        ("Assumptions (d)", about["assumptions"]),
        ("Availability, quantity and suitability (e)", about["suitability"]),
        ("Possible biases (f)", about["biases"]),
        ("Measures against them (g)", about["measures"]),
        ("Gaps and shortcomings (h)", about["gaps"]),
        ("Personal data", about["people"]),
    ]


def _design(manifest: Manifest) -> list[str]:
    plan = sum(entry.n_synthetic for entry in manifest.plan)
    sentences = [
        f"Made to train classifiers of column {manifest.label}. {manifest.recipe.sentence}"
    ]
    if manifest.verdict is None:
        return [*sentences, "The recipe was not compared on a hold-out."]
    sentences.append(
        f"Chosen among {len(manifest.verdict.strategies)} strategies by {manifest.verdict.measure.title} on "
        f"{manifest.verdict.n_holdout:,} hold-out records, with {manifest.verdict.n_seeds} training seeds. "
        f"{manifest.verdict.headline}"
    )
    return [*sentences, f"At most {plan:,} synthetic records were planned."] if plan else sentences


def _origin(manifest: Manifest, counts: Counter[str]) -> list[str]:
    parts = [f"{counts[origin]:,} {text}" for origin, text in _OF.items() if counts[origin]]
    sentences = [f"It holds {'; '.join(parts)}. Column aug_origin says it of each record."]
    if uri := source_uri(manifest):
        sentences.append(f"The source is {uri}.")
    for model in manifest.models:
        if counts["synthetic"]:
            sentences.append(
                f"Synthetic records come from the model {model.kind} ({model.digest[:12]}), trained on "
                f"{model.n_training:,} real records."
            )
    return [*sentences, "How, when and why the source was collected is not recorded here."]


def _preparation(manifest: Manifest, counts: Counter[str]) -> list[str]:
    sentences = []
    if manifest.n_quarantined:
        sentences.append(
            f"Cleaning: {manifest.n_quarantined:,} records could not be used and were left out."
        )
    if counts["copy"] or counts["classic"] or counts["synthetic"]:
        added = [f"{n:,} {o}" for o, n in sorted(counts.items()) if o != "real"]
        sentences.append(f"Enrichment: {', '.join(added)} records were added.")
    if manifest.filtered and counts["synthetic"]:
        n, passed = (
            sum(getattr(c, f) for c in manifest.filtered) for f in ("n_candidates", "n_passed")
        )
        sentences.append(f"Of {n:,} candidates the filter let {passed:,} through.")
    if manifest.recipe.classic_policy:
        sentences.append(f"Augmentation as records are drawn: {manifest.recipe.classic_policy}.")
    if manifest.encoder is not None:
        sentences.append(
            f"The comparison used the encoder {manifest.encoder.name}, licence {manifest.encoder.licence}."
        )
    return sentences or ["Nothing was cleaned, added or aggregated."]


def _labelling(manifest: Manifest, counts: Counter[str]) -> list[str]:
    sentences = [
        f"Labels of real records are the source's column {manifest.label}; who gave them is not recorded here."
    ]
    if counts["synthetic"]:
        soft = ", weighted by an ensemble's probabilities" if manifest.recipe.shares else ""
        sentences.append(f"A synthetic record has the class that its model was asked for{soft}.")
    if manifest.recipe.doubted:
        sentences.append(
            f"{len(manifest.recipe.doubted):,} records with doubted labels count less."
        )
    return sentences


def _suitability(manifest: Manifest) -> list[str]:
    sizes = real_counts(manifest.plan)
    sentences = []
    if sizes:
        least, most = min(sizes, key=lambda c: sizes[c]), max(sizes, key=lambda c: sizes[c])
        sentences.append(
            f"Real training records of {len(sizes)} classes: {sizes[least]:,} ({least}) to {sizes[most]:,} ({most})."
        )
    verdict = manifest.verdict
    if verdict is None:
        return [*sentences, "Suitability was not measured."]
    if verdict.minimum_detectable_effect < 1:  # 1: the chosen strategy is what it was compared with
        smallest = percent(verdict.minimum_detectable_effect)
        sentences.append(f"The comparison could show effects of {smallest} points and more.")
    return sentences


def _biases(manifest: Manifest) -> list[str]:
    verdict = manifest.verdict
    sentences = []
    if recall := (verdict.class_recall.get(verdict.shown, {}) if verdict else {}):
        ordered = sorted(recall, key=lambda name: recall[name].estimate)[:_MAX_CLASSES]
        parts = [f"{name} {interval_percent(recall[name])}" for name in ordered]
        sentences.append(
            f"Recall by class on the hold-out in percent, lowest first: {'; '.join(parts)}."
        )
    else:
        sentences.append("Errors were not examined by class.")
    if unsafe := [c.name for c in manifest.filtered if c.verdict == "unsafe"]:
        sentences.append(
            f"Synthetic records do not resemble real ones enough in: {', '.join(unsafe)}."
        )
    by = sorted({name for entry in manifest.plan for name in entry.by})
    sentences.append(
        f"Amounts were planned by class and {', '.join(by)}."
        if by
        else "Groups other than the classes were not examined; name their columns in balance.by."
    )
    return sentences


def _measures(manifest: Manifest) -> list[str]:
    weights = manifest.recipe.class_weight.values()
    sentences = []
    if weights and max(weights) > min(weights):
        sentences.append(
            f"Class weights from {min(weights):.3g} to {max(weights):.3g} stand in aug_weight."
        )
    raised = {c.name: c.target for c in manifest.plan if c.target > c.n_real}
    if raised:
        sentences.append(
            f"{len(raised)} of {len(manifest.plan)} classes or strata were to be raised."
        )
    return sentences or ["None: the classes are as frequent as in the source."]


def _gaps(manifest: Manifest) -> list[str]:
    not_compared = manifest.verdict.not_compared if manifest.verdict else {}
    sentences = [
        f"Class {name} was not compared: {why}"
        for name, why in list(not_compared.items())[:_MAX_CLASSES]
    ]
    holes = {c.name: c.n_null for c in manifest.columns if c.n_null}
    if holes:
        sentences.append(f"{len(holes)} of {len(manifest.columns)} columns have missing values.")
    if manifest.verdict is not None and manifest.verdict.leaks:
        sentences.append(
            "Training and hold-out records overlap: " + " ".join(manifest.verdict.leaks)
        )
    sentences.append(
        "Whether the records are representative of their use, in place and time, is not known here."
    )
    return sentences


def _people(manifest: Manifest) -> list[str]:
    sentences = [
        "Whether records are of people, or hold special categories of data, is not known here."
    ]
    for model in manifest.models:
        sentences += model.guarantee.sentences if model.guarantee else ()
    if is_shared(manifest):
        sentences.append(
            "All records are synthetic; before publication every file was searched for real records and rare values."
        )
    return sentences
