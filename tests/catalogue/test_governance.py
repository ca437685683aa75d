"""The card's section for Article 10 of the EU AI Act follows from the manifest, and names what it cannot know."""

from pathlib import Path
from types import ModuleType

import pytest
from support.staging import verdict_of
from support.steps import publish_parts

from prefect_augment.catalogue.croissant import render_croissant
from prefect_augment.catalogue.governance import article_10
from prefect_augment.report.card import render_card
from prefect_augment.schema import Interval, Manifest, PrivacyGuarantee
from prefect_augment.storage import open_store, read_manifest


@pytest.fixture
def manifest(tmp_path: Path, releases: ModuleType) -> Manifest:
    store = open_store(str(tmp_path / "out"))
    publish_parts(**vars(releases.stage_release(store)))
    return read_manifest(store)


def test_every_field_of_the_article_has_a_sentence(manifest: Manifest) -> None:
    sections = dict(article_10(manifest))
    assert [heading[-2] for heading in sections][:8] == list("abcdefgh")
    assert all(sections.values())
    card = render_card(manifest)
    for heading in sections:
        assert f"**{heading}.**" in card
    assert "60 real records" in card
    assert "1 records could not be used" in card
    assert "who gave them is not recorded here" in card


def test_a_share_says_neither_its_source_nor_where_it_lies(manifest: Manifest) -> None:
    assert "The source is in." in render_card(manifest)
    only = tuple(s for s in manifest.shards if s.origin == "synthetic")
    card = render_card(manifest.model_copy(update={"shards": only}))
    assert "The source is" not in card
    assert "All records are synthetic" in card


def test_differential_privacy_is_stated_with_its_limits(manifest: Manifest) -> None:
    guarantee = PrivacyGuarantee(
        epsilon=1.0, delta=1e-6, rho=0.0244, mechanism="MST", bounds_from="data"
    )
    models = tuple(m.model_copy(update={"guarantee": guarantee}) for m in manifest.models)
    private = manifest.model_copy(update={"models": models})
    assert Manifest.model_validate_json(private.to_json()).models == models
    for text in (render_card(private), render_croissant(private).decode()):
        assert "epsilon 1, delta 1e-06" in text
        assert "does not cover the numbers' ranges" in text
    assert "epsilon" not in render_card(manifest)


def test_biases_are_shown_by_class_lowest_first(manifest: Manifest) -> None:
    recall = {
        "a": Interval(estimate=0.9, low=0.8, high=0.95),
        "b": Interval(estimate=0.5, low=0.3, high=0.7),
    }
    verdict = verdict_of("model", class_recall={"model": recall}, not_compared={"c": "too few."})
    sections = dict(article_10(manifest.model_copy(update={"verdict": verdict})))
    assert (
        "lowest first: b 50.0 (30.0 to 70.0); a 90.0 (80.0 to 95.0)."
        in sections["Possible biases (f)"][0]
    )
    assert "Class c was not compared: too few." in sections["Gaps and shortcomings (h)"]
