"""``rollback``, ``gc``, ``export`` and ``erase`` as commands: what they print and how they end."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import releases
from support.steps import publish_parts
from typer.testing import CliRunner

from prefect_augment.cli.app import app
from prefect_augment.errors import AugmentError, IntegrityError
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.storage import open_store


def call(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    release = releases.stage_release(open_store(str(tmp_path / "out")))
    publish_parts(**vars(release))
    recipe = release.recipe.model_copy(update={"synthetic": {}, "sentence": "None."})
    publish_parts(**{**vars(release), "recipe": recipe})
    return tmp_path / "out"


def test_a_dataset_is_rolled_back_collected_exported_and_erased_from(
    dest: Path, tmp_path: Path
) -> None:
    assert call("rollback", dest, "--to", 1)["version"] == 3
    found = call("gc", dest, "--keep-last", 1, "--dry-run")
    assert (found["versions_removed"], found["dry_run"]) == ([1, 2], True)
    assert call("gc", dest, "--keep-last", 1)["versions_kept"] == [3]

    chosen = ["--split", "train", "--origins", "real", "--origins", "classic"]
    assert call("export", dest, tmp_path / "tree", *chosen)["n_records"] == {"train": 51}
    with pytest.raises(AugmentError, match="--origins false is no origin"):
        call("export", dest, tmp_path / "tree", "--origins", "false")

    ids = open_dataset(dest).to_table(origins=["real"])["aug_id"].to_pylist()
    (tmp_path / "ids.txt").write_text(f"{ids[0]}\n\n{ids[1]}\n")
    erased = call("erase", dest, "--ids", tmp_path / "ids.txt", "--ids", ids[2])
    assert (erased["version"], erased["n_erased"]["real"]) == (4, 3)
    assert call("erase", dest, "--where", "site=nord")["version"] == 5
    with pytest.raises(AugmentError, match="is not COLUMN=VALUE"):
        call("erase", dest, "--where", "site")
    assert call("verify", dest)["ok"]


def test_they_print_for_people_too(dest: Path) -> None:
    result = CliRunner().invoke(app, ["gc", str(dest), "--dry-run"])
    assert result.exit_code == 0
    assert "named by a version" in result.stdout


def test_a_place_without_a_dataset_is_said_to_be_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["versions", str(tmp_path)])
    assert isinstance(result.exception, IntegrityError)
    assert "holds no published dataset" in str(result.exception)
