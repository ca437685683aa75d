"""W3C PROV (PROV-JSON): where a version's records come from, made from its manifest."""

import json
from collections import defaultdict
from typing import Any

from prefect_augment.catalogue.governance import source_uri
from prefect_augment.schema import Manifest

_NAMESPACE = "urn:prefect-augment:"
_SOURCE, _RUN, _SOFTWARE = "aug:source", "aug:run", "aug:prefect-augment"


def render_provenance(manifest: Manifest) -> bytes:
    """The lineage of a version as PROV-JSON: its parts by split and origin, models, source, software, approval.

    References
    ----------
    W3C Member Submission 2013, "The PROV-JSON Serialization"; Moreau and Missier 2013, "PROV-DM".
    """
    document = _Document()
    version = _version(document, manifest)
    document.entity(_SOURCE, "source", {"label": manifest.label, "schema": manifest.source_schema})
    if uri := source_uri(manifest):
        document.nodes["entity"][_SOURCE]["prov:location"] = uri
    document.node(
        "activity", _RUN, {"prov:endTime": manifest.created_at, "aug:key": manifest.dataset_key}
    )
    document.node(
        "agent",
        _SOFTWARE,
        {
            "prov:type": _qualified("prov:SoftwareAgent"),
            **{f"aug:{name}": text for name, text in sorted(manifest.software.items())},
        },
    )
    document.relate("used", activity=_RUN, entity=_SOURCE)
    document.relate("wasAssociatedWith", activity=_RUN, agent=_SOFTWARE)
    document.relate("wasGeneratedBy", entity=version, activity=_RUN)
    models = _models(document, manifest)
    _parts(document, manifest, version, models)
    if manifest.encoder is not None:
        encoder = manifest.encoder.model_dump(include={"name", "sha256", "licence"})
        document.entity("aug:encoder", "encoder", encoder)
        document.relate("used", activity=_RUN, entity="aug:encoder")
    if (approval := manifest.approval) is not None:
        about = {"prov:type": _qualified("prov:Person"), "aug:name": approval.by}
        document.node("agent", "aug:approver", about)
        document.relate("wasAttributedTo", entity=version, agent="aug:approver")
    return document.to_json()


def _qualified(name: str) -> dict[str, str]:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}


def _version(document: "_Document", manifest: Manifest) -> str:
    version = f"aug:version-{manifest.version}"
    about = {
        "version": manifest.version,
        "digest": manifest.content_digest,
        "recipe": manifest.recipe.strategy.name,
    }
    document.entity(version, "version", about)
    document.relate("wasDerivedFrom", generatedEntity=version, usedEntity=_SOURCE)
    if manifest.parent is not None:
        parent = f"aug:version-{manifest.parent}"
        document.entity(parent, "version", {"version": manifest.parent})
        ends = {"generatedEntity": version, "usedEntity": parent}
        document.relate("wasDerivedFrom", **ends, **{"prov:type": _qualified("prov:Revision")})
    return version


def _models(document: "_Document", manifest: Manifest) -> list[str]:
    """Each model was trained on the source, in an activity of its own."""
    names = []
    for model in manifest.models:
        name, training = f"aug:model-{model.digest[:12]}", f"aug:training-{model.key}"
        about = {"kind": model.kind, "digest": model.digest, "encoder": model.encoder_digest}
        document.entity(name, "model", about)
        document.node(
            "activity", training, {"aug:n_training": model.n_training, "aug:steps": model.steps}
        )
        document.relate("used", activity=training, entity=_SOURCE)
        document.relate("wasAssociatedWith", activity=training, agent=_SOFTWARE)
        document.relate("wasGeneratedBy", entity=name, activity=training)
        document.relate("wasDerivedFrom", generatedEntity=name, usedEntity=_SOURCE)
        names.append(name)
    return names


def _parts(document: "_Document", manifest: Manifest, version: str, models: list[str]) -> None:
    """The records of one split and origin are a member of the version."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for shard in manifest.shards:
        counts[shard.split, shard.origin] += shard.n_records
    for (split, origin), n_records in counts.items():
        part = f"aug:{split}-{origin}"
        document.entity(part, "records", {"split": split, "origin": origin, "n_records": n_records})
        document.relate("hadMember", collection=version, entity=part)
        from_real = (split, "real") in counts and origin in ("copy", "classic")
        parents = [f"aug:{split}-real"] if from_real else models if origin == "synthetic" else []
        for parent in parents or [_SOURCE]:
            document.relate("wasDerivedFrom", generatedEntity=part, usedEntity=parent)


class _Document:
    """Nodes and relations of a PROV-JSON document."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self.n_relations = 0

    def node(self, kind: str, name: str, attributes: dict[str, Any]) -> None:
        self.nodes[kind][name] = {k: v for k, v in attributes.items() if v not in ("", None)}

    def entity(self, name: str, kind: str, attributes: dict[str, Any]) -> None:
        """Add an entity of one of our types."""
        own = {f"aug:{k}": v for k, v in attributes.items()}
        self.node("entity", name, {"prov:type": _qualified(f"aug:{kind}")} | own)

    def relate(self, kind: str, /, **ends: Any) -> None:
        """Add a relation; ``ends`` are its nodes, and further attributes with a prefix."""
        self.n_relations += 1
        named = {end if ":" in end else f"prov:{end}": name for end, name in ends.items()}
        self.nodes[kind][f"_:r{self.n_relations}"] = named

    def to_json(self) -> bytes:
        fields = {"prefix": {"aug": _NAMESPACE, "prov": "http://www.w3.org/ns/prov#"}} | self.nodes
        return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()
