"""The flows of other teams in examples/, each run from a repository of its own against the built wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.settings import PREFECT_API_URL

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/prefect.yaml"))

Run = Callable[[str], Any]

QUICK = (
    "from prefect_augment import Evaluation; "
    "evaluation = Evaluation(n_seeds=1, n_settings=1, n_bootstrap=200, estimators=['logistic'])"
)
# Pictures are seen by a network of few steps, whose scores nobody reads.
SHORT = "from prefect_augment.plan import estimate; estimate._STEPS_RANGE = (8, 8)"


@pytest.fixture(scope="module")
def site(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip lays it out; its libraries are those of the tests."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.fixture
def repository_of(
    request: pytest.FixtureRequest, site: Path, prefect_harness: None, tmp_path: Path
) -> Run:
    """Copy an example away from here, and give a function that runs Python code in the copy."""
    theirs = tmp_path / "their-repository"
    shutil.copytree(EXAMPLES / request.param, theirs)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "OMP_NUM_THREADS": "1",
    }

    def run(code: str) -> Any:
        """Run the code, which prints one JSON value last, and return that."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=theirs,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,  # 63 s of computing for the pictures, on a machine that may do other things
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    used = run("import json, prefect_augment; print(json.dumps(prefect_augment.__file__))")
    assert Path(used).is_relative_to(site), "the wheel is what is tested"
    return run


@pytest.mark.e2e
@pytest.mark.parametrize("repository_of", ["fraud_features"], indirect=True)
def test_a_nightly_pipeline_trains_on_every_new_version(repository_of: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    nights = [
        repository_of(
            # Their classifier is of the first kind, and takes the multipliers of that.
            f"{QUICK.replace('logistic', 'boosting')}\nimport json\nfrom flows.nightly import nightly\n"
            f"print(json.dumps(nightly({str(data)!r}, {day!r}, evaluation)))"
        )
        for day in ("2026-11-01", "2026-11-02")
    ]
    assert [night["version"] for night in nights] == [1, 2]
    assert nights[1]["balanced_accuracy"] > 0.65, "it finds fraud; guessing gives 0.5"
    assert (data / "models" / "fraud.joblib").is_file()
    kept = repository_of(
        "import json\nfrom prefect_augment import open_dataset\n"
        f"old, new = (open_dataset({str(data / 'features-balanced')!r}, v) for v in (1, 2))\n"
        "of = lambda d, split: set(d.to_table(split, origins=['real'])['aug_id'].to_pylist())\n"
        "ids = [of(d, split) for split in ('train', 'holdout') for d in (old, new)]\n"
        "cards = [set(new.to_table(s)['card'].to_pylist()) for s in ('train', 'holdout')]\n"
        "print(json.dumps([ids[0] <= ids[1], ids[2] <= ids[3], not (cards[0] & cards[1])]))"
    )
    assert kept[:2] == [True, True], "the old split is kept"
    assert kept[2], "no card is on both sides"


@pytest.mark.e2e
@pytest.mark.parametrize("repository_of", ["defect_images"], indirect=True)
def test_pictures_are_published_only_after_somebody_approved(
    repository_of: Run, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    waiting = repository_of(
        f"{SHORT}\n{QUICK}\nimport json\nfrom prefect_augment import Budget\nfrom flows.weekly import weekly\n"
        f"print(json.dumps(weekly({str(data)!r}, week=1, budget=Budget(steps=20), evaluation=evaluation)))"
    )
    assert waiting["status"] == "awaiting_approval"
    assert Path(waiting["report"]).is_file()
    assert not (data / "balanced" / "_manifests").exists()

    released = repository_of(
        "import json\nfrom prefect_augment import Answer\nfrom flows.release import release\n"
        f"print(json.dumps(release({str(data)!r}, {waiting['proposal']!r}, "
        "Answer(comment='dents look right'))))"
    )
    assert (released["status"], released["version"]) == ("published", 1)
    manifest = (data / "balanced" / "_manifests" / "v00000001.json").read_text()
    assert "dents look right" in manifest


@pytest.mark.e2e
@pytest.mark.parametrize("repository_of", ["evaluate_external"], indirect=True)
def test_a_tool_that_copies_is_screened_out_and_another_is_compared(
    repository_of: Run, tmp_path: Path
) -> None:
    found = repository_of(
        f"{QUICK}\nimport json\nfrom flows.compare import compare\n"
        f"print(json.dumps(compare({str(tmp_path / 'data')!r}, evaluation)))"
    )
    assert found["photocopier"]["passed"] < 0.2
    assert found["photocopier"]["verdict"] == "not compared"
    assert found["gaussian"]["passed"] > 0.5
    assert found["gaussian"]["verdict"] in ("accept", "inconclusive", "reject")
    assert Path(found["gaussian"]["report"]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_deployments_of_an_example_name_flows_that_take_their_parameters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EXAMPLES / name
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    try:
        for deployment in yaml.safe_load((folder / "prefect.yaml").read_text())["deployments"]:
            path, flow_name = deployment["entrypoint"].split(":")
            spec = spec_from_file_location(f"example_{name}_{Path(path).stem}", folder / path)
            assert spec is not None
            assert spec.loader is not None
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            flow = getattr(module, flow_name)
            assert isinstance(flow, Flow)
            flow.validate_parameters(deployment["parameters"])
            described = flow.parameters.model_dump()["properties"].values()
            assert all(field.get("description") for field in described), (
                "the form says what is meant"
            )
    finally:
        # Each example has a package of its own called tasks.
        for module_name in set(sys.modules) - before:
            if module_name.split(".")[0] in ("tasks", "flows"):
                del sys.modules[module_name]
