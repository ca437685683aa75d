"""The lineage is a PROV document that the reference library reads, and says where each part comes from."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from support.steps import publish_parts

from prefect_augment.catalogue.provenance import render_provenance
from prefect_augment.errors import ParameterError
from prefect_augment.maintenance.inspect import rendered
from prefect_augment.params import Publish
from prefect_augment.schema import ApprovalDecision
from prefect_augment.storage import Store, open_store, read_manifest


@pytest.fixture
def store(tmp_path: Path, releases: ModuleType) -> Store:
    store = open_store(str(tmp_path / "out"))
    release = releases.stage_release(store)
    release.requested = {"source": {"uri": "https://host/a.csv?sig=hidden-word"}}
    publish_parts(**vars(release))
    publish_parts(**vars(release) | {"publish": Publish(shard_records=10)})
    return store


@pytest.mark.filterwarnings("ignore")
def test_the_reference_library_reads_it(store: Store) -> None:
    prov = pytest.importorskip("prov.model")
    text = rendered(store, None, "prov")
    assert "hidden-word" not in text
    document = prov.ProvDocument.deserialize(content=text)
    derived = {
        (str(a), str(b))
        for record in document.get_records(prov.ProvDerivation)
        for a, b, *_ in [record.args]
    }
    assert derived >= {
        ("aug:version-2", "aug:version-1"),
        ("aug:train-synthetic", "aug:model-ffffffffffff"),
        ("aug:model-ffffffffffff", "aug:source"),
        ("aug:train-classic", "aug:train-real"),
        ("aug:train-real", "aug:source"),
    }
    entities = {
        str(e.identifier): dict(e.extra_attributes) for e in document.get_records(prov.ProvEntity)
    }
    known = {str(name): value for name, value in entities["aug:train-synthetic"].items()}
    assert known["aug:n_records"] == 4
    agents = [str(a.identifier) for a in document.get_records(prov.ProvAgent)]
    assert agents == ["aug:prefect-augment"]
    assert prov.ProvDocument.deserialize(content=document.serialize()) == document


def test_an_older_version_and_who_approved_it_are_shown(store: Store) -> None:
    assert "aug:version-2" not in json.loads(rendered(store, 1, "prov"))["entity"]
    approval = ApprovalDecision(
        decision="approve", by="Ana", decided_at="2026-01-01T00:00:00+00:00"
    )
    manifest = read_manifest(store).model_copy(update={"approval": approval})
    assert json.loads(render_provenance(manifest))["agent"]["aug:approver"]["aug:name"] == "Ana"
    assert json.loads(rendered(store, 1, "croissant"))["version"] == "1.0.0"
    with pytest.raises(ParameterError, match="choose of croissant, prov"):
        rendered(store, 1, "rdf")
