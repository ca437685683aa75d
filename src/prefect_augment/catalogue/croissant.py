"""Croissant 1.1 (JSON-LD): what catalogues of datasets read, made from a manifest.

``croissant.json`` lies beside the card and is about the newest version; its paths are relative to it.
Nothing in it is of a single record.
"""

import json
import re
from typing import Any
from urllib.parse import quote

from prefect_augment.catalogue.governance import governance, source_uri
from prefect_augment.schema import Manifest, ShardInfo
from prefect_augment.shards.parquet import LINEAGE

CROISSANT = "croissant.json"
_SPLITS = ("train", "holdout")
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{
        word: f"cr:{word}"
        for word in (
            "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject",
            "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
            "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
            "separator", "source", "subField", "transform",
        )
    },
}  # fmt: skip
# Arrow's names of types -> Croissant's. Readers cast by them: a decimal loses digits, no text does.
_TYPES = {
    "bool": "sc:Boolean", "halffloat": "cr:Float16", "float": "cr:Float32", "double": "cr:Float64",
    "string": "sc:Text", "large_string": "sc:Text", "string_view": "sc:Text", "null": "sc:Text",
    **{f"{u}int{n}": f"cr:{'U' if u else ''}Int{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}  # fmt: skip
_LIST = re.compile(r"(?:large_|fixed_size_)?list<\w+: (\w+)(?: not null)?>(?:\[(\d+)\])?")
_TYPE_STARTS = {"date": "sc:Date", "timestamp": "sc:DateTime", "time": "sc:Time", "decimal": "sc:Float"}  # fmt: skip
_LINEAGE = {
    "aug_id": "the record's own id",
    "aug_origin": "real, copy, classic (made from one real record) or synthetic (drawn from a model)",
    "aug_weight": "how often the recipe draws the record; mean 1 over train",
    "aug_parent": "aug_id of the record that a copy or classic record was made from",
    "aug_model": "digest of the model that a synthetic record was drawn from",
    "aug_seed": "seed that makes the record again",
}


def render_croissant(manifest: Manifest) -> bytes:
    """The Croissant description of a version, as JSON-LD: licence, files with digests, fields, class counts.

    References
    ----------
    MLCommons, "Croissant Format Specification 1.1" and "Croissant RAI Specification 1.0".
    """
    about = governance(manifest)
    origin = " ".join(about["origin"])
    fields: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": f"Balanced dataset, labelled by {manifest.label}",
        "description": f"{manifest.recipe.sentence} {origin}",
        "version": f"{manifest.version}.0.0",
        "datePublished": manifest.created_at,
        "license": _licence(manifest),
        "keywords": ["imbalanced data", *sorted({shard.origin for shard in manifest.shards})],
        "distribution": _distribution(manifest),
        "recordSet": [*_records(manifest), _counts(manifest)],
        "rai:dataCollection": origin,
        "rai:dataPreprocessingProtocol": about["preparation"],
        "rai:dataAnnotationProtocol": about["labelling"],
        "rai:dataUseCases": about["design"],
        "rai:dataLimitations": [*about["suitability"], *about["gaps"]],
        "rai:dataBiases": about["biases"],
        "rai:personalSensitiveInformation": about["people"],
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:endedAtTime": manifest.created_at,
            "prov:wasAssociatedWith": {
                "@type": "prov:SoftwareAgent",
                "name": "prefect-augment",
                "version": manifest.software.get("prefect-augment", ""),
            },
        },
        "prov:wasDerivedFrom": source_uri(manifest),
    }
    whole = {name: value for name, value in fields.items() if value}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def is_ours(data: bytes) -> bool:
    """Whether a croissant.json was written by this library, whatever its version."""
    return b'"name": "prefect-augment"' in data and b"prov:SoftwareAgent" in data


def _licence(manifest: Manifest) -> str:
    """The licence that the publisher named: a URL where it is a single SPDX identifier."""
    licence = str(manifest.params.get("publish", {}).get("licence", ""))
    return f"https://spdx.org/licenses/{licence}" if re.fullmatch(r"[\w.+-]+", licence) else licence


def _splits(manifest: Manifest) -> list[tuple[str, tuple[ShardInfo, ...]]]:
    return [(split, shards) for split in _SPLITS if (shards := manifest.split_shards(split))]


# --- files ------------------------------------------------------------------------------------


def _distribution(manifest: Manifest) -> list[dict[str, Any]]:
    """Every shard with size and digest; and the shards of a split as one set, which its records come from."""
    nodes = [_file(shard) for shard in manifest.shards]
    for split, shards in _splits(manifest):
        tars = [{"@id": s.path} for s in shards if s.path.endswith(".tar")]
        formats = ["image/jpeg", "image/png"] if tars else ["application/x-parquet"]
        # A record's files are called by its aug_id; further images have more in their names.
        names = [f"{'?' * 32}.{ending}" for ending in ("jpg", "png")]
        includes = names if tars else [s.path for s in shards]
        nodes.append(
            {
                "@type": "cr:FileSet",
                "@id": f"{split}-files",
                "name": f"{split}-files",
                "description": f"{'The images in the' if tars else 'The'} shards of {split}.",
                **({"containedIn": tars} if tars else {}),
                "encodingFormat": formats,
                "includes": includes,
            }
        )
    return nodes


def _file(shard: ShardInfo) -> dict[str, Any]:
    is_tar = shard.path.endswith(".tar")
    return {
        "@type": "cr:FileObject",
        "@id": shard.path,
        "name": shard.path.rpartition("/")[2],
        "description": f"{shard.n_records} {shard.origin} records of {shard.split}.",
        "contentUrl": shard.path,
        "contentSize": f"{shard.n_bytes} B",
        "encodingFormat": "application/x-tar" if is_tar else "application/x-parquet",
        "sha256": shard.sha256,
    }


# --- records ----------------------------------------------------------------------------------


def _records(manifest: Manifest) -> list[dict[str, Any]]:
    """A record set per split."""
    sets = []
    for split, shards in _splits(manifest):
        if shards[0].path.endswith(".tar"):
            fields = _tar_fields(split)
            missing = "The class is in the .cls beside each image, the rest in its .json."
        else:
            fields, missing = _fields(manifest, split)
        n = sum(shard.n_records for shard in shards)
        sets.append(
            {
                "@type": "cr:RecordSet",
                "@id": split,
                "name": split,
                "description": f"{n} records of {split}. {missing}".strip(),
                "field": fields,
            }
        )
    return sets


def _fields(manifest: Manifest, split: str) -> tuple[list[dict[str, Any]], str]:
    """The columns of a split's records, and a sentence on those that Croissant has no type for."""
    columns = [(c.name, c.arrow_type, "") for c in manifest.columns]
    columns.append((manifest.label, manifest.label_type, "the class"))
    columns += [(field.name, str(field.type), _LINEAGE[field.name]) for field in LINEAGE]
    fields, missing = [], []
    for name, arrow_type, about in columns:
        kind = _type(arrow_type)
        if not kind:
            missing.append(name)
            continue
        field: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"{split}/{quote(name, safe='')}",
            "name": name,
            "description": about or f"column {name}, {arrow_type}",
            **kind,
            "source": {"fileSet": {"@id": f"{split}-files"}, "extract": {"column": name}},
        }
        if kind["dataType"] == "sc:ImageObject":
            field["source"]["transform"] = {"jsonPath": "bytes"}
        if name == manifest.label:
            field["dataType"] = [kind["dataType"], "cr:Label"]
        fields.append(field)
    return fields, f"Columns that Croissant has no type for: {', '.join(missing)}." * bool(missing)


def _type(arrow_type: str) -> dict[str, Any]:
    """Croissant's type of a column; empty if there is none.

    Examples
    --------
    >>> _type("dictionary<values=string, indices=int32, ordered=0>"), _type("list<item: float>")
    ({'dataType': 'sc:Text'}, {'dataType': 'cr:Float32', 'isArray': True, 'arrayShape': '-1'})
    """
    if known := _TYPES.get(arrow_type):
        return {"dataType": known}
    if match := re.fullmatch(r"dictionary<values=(.+?), indices=.*>", arrow_type):
        return _type(match[1])
    if match := _LIST.fullmatch(arrow_type):
        kind = _TYPES.get(match[1])
        return {"dataType": kind, "isArray": True, "arrayShape": match[2] or "-1"} if kind else {}
    if re.match(r"struct<bytes: (large_)?binary\b", arrow_type):
        return {"dataType": "sc:ImageObject"}
    starts = (kind for start, kind in _TYPE_STARTS.items() if arrow_type.startswith(start))
    kind = next(starts, None)
    return {"dataType": kind} if kind else {}


def _tar_fields(split: str) -> list[dict[str, Any]]:
    files = {"fileSet": {"@id": f"{split}-files"}}
    key, image = ({"extract": {"fileProperty": part}} for part in ("filename", "content"))
    key["transform"] = {"regex": r"^([^.]*)\."}
    return [
        {
            "@type": "cr:Field",
            "@id": f"{split}/{name}",
            "name": name,
            "description": about,
            "dataType": kind,
            "source": files | source,
        }
        for name, about, kind, source in (
            ("key", "name of the record's files", "sc:Text", key),
            ("image", "the image", "sc:ImageObject", image),
        )
    ]


def _counts(manifest: Manifest) -> dict[str, Any]:
    """The records of each split, class and origin, as a record set with its data inside."""
    columns = {"split": "sc:Text", "class": "sc:Text", "origin": "sc:Text", "records": "sc:Integer"}
    rows = [
        dict(zip((f"class_counts/{name}" for name in columns), (split, name, origin, n), strict=True))
        for split, classes in manifest.class_counts.items()
        for name, origins in classes.items()
        for origin, n in origins.items()
    ]  # fmt: skip
    return {
        "@type": "cr:RecordSet",
        "@id": "class_counts",
        "name": "class_counts",
        "description": "Records of each split, class and origin.",
        "key": [{"@id": f"class_counts/{name}"} for name in ("split", "class", "origin")],
        "field": [
            {"@type": "cr:Field", "@id": f"class_counts/{name}", "name": name, "dataType": kind}
            for name, kind in columns.items()
        ],
        "data": rows,
    }
