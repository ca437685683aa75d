"""Runs that the user's own classifier decides, as docs/verdict.md shows them, from Python and from YAML."""

import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.tables import make_table

from prefect_augment import Budget, Evaluation, NoModel, Source, rebalance
from prefect_augment.errors import ParameterError
from prefect_augment.params import Destination
from prefect_augment.registry import ALLOW_IMPORT_PATHS
from prefect_augment.storage import open_store, read_manifest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")

MODELS = """
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline as steps
from sklearn.preprocessing import StandardScaler

def make_pipeline(C):
    numbers = ColumnTransformer([("numbers", StandardScaler(), ["cycles"])])
    return steps(numbers, LogisticRegression(C=C))
"""


def example(language: str) -> str:
    section = PAGE.split("## Your own classifier\n", 1)[1].split("\n## ")[0]
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pa.csv.write_csv(make_table(counts={"ok": 240, "worn": 60}), "parts.csv")


@pytest.mark.flow
@pytest.mark.usefixtures("quick_runs", "_parts")
def test_a_pipeline_from_python_decides_and_is_in_the_manifest() -> None:
    names: dict[str, Any] = {}
    code = example("python").replace("minutes=1", "minutes=0.2")
    exec(compile(code, "verdict.md", "exec", dont_inherit=True), names)
    manifest = read_manifest(open_store("parts-balanced"))
    assert manifest.verdict is not None
    info = manifest.verdict.estimators["LogisticRegression"]
    assert (info.package, len(info.digest)) == ("scikit-learn", 64)
    assert manifest.verdict == names["result"].verdict.without_paths()
    asked = manifest.params["evaluation"]["estimators"]
    assert [e["digest"] for e in asked] == [info.digest]


@pytest.mark.flow
@pytest.mark.usefixtures("quick_runs", "_parts")
def test_a_factory_from_yaml_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(ALLOW_IMPORT_PATHS, "1")
    asked = yaml.safe_load(example("yaml"))
    result = rebalance(**asked, model=NoModel(), budget=Budget(minutes=0.1))
    sys.modules.pop("my_models")
    assert set(result.verdict.strategies["as is"]) == {"make_pipeline"}
    assert result.verdict.estimators["make_pipeline"].digest


@pytest.mark.flow
@pytest.mark.usefixtures("_parts")
def test_a_pipeline_that_fails_on_the_records_does_so_before_a_model_is_trained() -> None:
    numbers = ColumnTransformer([("numbers", StandardScaler(), ["load", "serial"])])
    evaluation = Evaluation(estimators=[make_pipeline(numbers, LogisticRegression())])
    with pytest.raises(ParameterError, match=r"failed in fit .*columns load \(float64\), cycles"):
        rebalance(
            source=Source(uri="parts.csv", label="state"),
            destination=Destination(uri="out"),
            evaluation=evaluation,
        )
    assert not Path("out", "_staging", "train").exists()


@pytest.mark.flow
def test_a_classifier_that_cannot_decide_fails_before_anything_is_read() -> None:
    nothing = {"source": Source(uri="absent.csv"), "destination": Destination(uri="out")}
    evaluation = Evaluation(estimators=[{"factory": "absent"}])
    with pytest.raises(ParameterError, match="entry-point group 'prefect_augment.estimators'"):
        rebalance(**nothing, evaluation=evaluation)
