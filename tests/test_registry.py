"""The registry: strings until a model is used, and clear words where it cannot be."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from prefect_augment import registry
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.genmodels.trees.model import TableTrees
from prefect_augment.params import (
    AutoModel,
    DiffusionModel,
    NoModel,
    PluginModel,
    Publish,
    TreesModel,
    VaeModel,
)
from prefect_augment.registry import (
    FORMATS,
    MODELS,
    SHARD_FORMATS,
    ModelEntry,
    check_shard_format,
    load_model_class,
    load_reader,
    load_shard_format,
    model_params,
    resolve_model,
)


def test_auto_is_trees_for_tables_and_none_is_none() -> None:
    assert resolve_model(AutoModel(), modality="table") == "trees"
    assert resolve_model(NoModel(), modality="table") is None
    assert resolve_model(TreesModel(), modality="table") == "trees"
    assert model_params(AutoModel()) == TreesModel()
    assert model_params(TreesModel(min_leaf=7)).min_leaf == 7


def test_a_model_of_tables_is_refused_for_images() -> None:
    with pytest.raises(ParameterError, match="'trees' makes table data"):
        resolve_model(TreesModel(), modality="image")
    with pytest.raises(ParameterError, match="'diffusion' makes image data"):
        resolve_model(DiffusionModel(), modality="table")


def test_one_kind_may_have_a_class_for_each_kind_of_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "two_models.py").write_text("class OfTables: ...\nclass OfImages: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    both = ModelEntry({"table": "two_models:OfTables", "image": "two_models:OfImages"})
    monkeypatch.setitem(MODELS, "vae", both)
    for modality, name in (("table", "OfTables"), ("image", "OfImages")):
        assert resolve_model(VaeModel(), modality=modality) == "vae"  # type: ignore[arg-type]
        for requested in (VaeModel(), "vae"):
            found = load_model_class(requested, modality=modality)  # type: ignore[arg-type]
            assert found.__name__ == name


def test_auto_is_diffusion_for_images() -> None:
    assert resolve_model(AutoModel(), modality="image") == "diffusion"
    assert model_params(AutoModel(), modality="image") == DiffusionModel()


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_registered_model_can_be_imported(kind: str) -> None:
    if MODELS[kind].extra:
        pytest.importorskip(
            {"dp": "opendp"}.get(MODELS[kind].extra, MODELS[kind].extra),
            reason=f"the extra {MODELS[kind].extra!r}",
        )
    assert callable(load_model_class(kind).from_state)


def test_every_registered_format_can_be_imported() -> None:
    for name in FORMATS:
        assert callable(load_reader(name))
    endings = [load_shard_format(name)().ending for name in SHARD_FORMATS]
    assert len(set(endings)) == len(SHARD_FORMATS)
    assert set(SHARD_FORMATS) == set(get_args(Publish.model_fields["format"].annotation))


def test_a_format_is_refused_for_data_that_it_does_not_hold() -> None:
    for modality in ("table", "image"):
        check_shard_format("parquet", modality=modality)
    check_shard_format("webdataset", modality="image")
    with pytest.raises(ParameterError, match="choose one of: parquet"):
        check_shard_format("webdataset", modality="table")
    with pytest.raises(ParameterError, match="parquet, webdataset"):
        check_shard_format("lance", modality="table")


@pytest.mark.parametrize("requested", [AutoModel(), TreesModel(), "trees"])
def test_class_is_found_by_params_and_by_kind(requested: object) -> None:
    assert load_model_class(requested) is TableTrees  # type: ignore[arg-type]


def test_unknown_names_are_answered_with_those_there_are() -> None:
    with pytest.raises(ParameterError, match="built in are .*trees"):
        load_model_class("forest")
    with pytest.raises(ParameterError, match="parquet, csv"):
        load_reader("xlsx")
    with pytest.raises(ParameterError, match="'none'"):
        load_model_class(NoModel())


def test_a_missing_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(MODELS, "more", ModelEntry({"table": "needs_more:Model"}, extra="torch"))
    with pytest.raises(MissingExtraError, match=r"pip install 'prefect-augment\[torch\]'"):
        load_model_class("more")


def install(folder: Path, entry_points: str) -> None:
    """A package with these entry points, as an installation leaves it."""
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package that offers three models."""
    (tmp_path / "other_models.py").write_text(
        "from pydantic import BaseModel\n"
        "class Params(BaseModel):\n    width: int = 3\n"
        "class Wide:\n    Params = Params\n"
        "class Plain:\n    pass\n"
    )
    install(
        tmp_path,
        f"[{registry.ENTRY_POINTS}]\nwide = other_models:Wide\nplain = other_models:Plain\n"
        "gone = other_models:Gone\ntrees = other_models:Plain\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugins")
def test_plugins_come_by_entry_point_and_check_their_options() -> None:
    requested = PluginModel(name="wide", options={"width": 5})
    assert load_model_class(requested).__name__ == "Wide"
    params = model_params(requested)
    assert isinstance(params, BaseModel)
    assert params.model_dump() == {"width": 5}
    assert model_params(PluginModel(name="plain", options={"a": 1})) == {"a": 1}
    with pytest.raises(ParameterError, match="'wide' does not accept its options: width"):
        load_model_class(PluginModel(name="wide", options={"width": "broad"}))


@pytest.mark.usefixtures("plugins")
def test_broken_and_shadowing_plugins_are_named() -> None:
    with pytest.raises(ParameterError, match=r"'gone'.*cannot be imported"):
        load_model_class(PluginModel(name="gone"))
    with pytest.raises(ParameterError, match="'trees' like a built-in"):
        load_model_class(PluginModel(name="trees"))
    with pytest.raises(ParameterError, match="gone, plain, trees, wide"):
        load_model_class(PluginModel(name="missing"))


@pytest.mark.slow
def test_a_format_of_another_package_is_read_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "other_formats.py").write_text(
        "import numpy as np, pyarrow as pa\n"
        "from prefect_augment.sources.base import SourceRecords\n"
        "def read(file, *, name, source):\n"
        "    words = file.read().decode().split()\n"
        "    return SourceRecords(pa.table({'word': words}), np.arange(1, len(words) + 1))\n"
    )
    install(tmp_path, f"[{registry.FORMAT_ENTRY_POINTS}]\n.words = other_formats:read\n")
    (tmp_path / "in.words").write_text("ok ok worn")
    code = (
        "import sys\n"
        "from prefect_augment.params import Source\n"
        "from prefect_augment.sources.discovery import list_source\n"
        "from prefect_augment.sources.open import reader_of\n"
        "listing = list_source(sys.argv[1], requested='auto', options=None)\n"
        "with listing.open(listing.entries[0]) as file:\n"
        "    for batch in reader_of(listing)(file, name='in.words', source=Source()):\n"
        "        print(batch.table['word'].to_pylist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in.words")],
        env={"PYTHONPATH": ":".join([str(tmp_path), *(p for p in sys.path if p)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['ok', 'ok', 'worn']\n", done.stderr


def test_importing_the_registry_loads_no_model() -> None:
    code = "import sys, prefect_augment.registry; print('sklearn' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]
