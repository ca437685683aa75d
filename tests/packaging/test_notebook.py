"""examples/first_rebalance.ipynb, run in a kernel of its own."""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_rebalance.ipynb"


@pytest.mark.e2e
def test_the_notebook_runs_and_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc]
        def process_message(self, message: Any, *rest: Any) -> Any:
            if message["msg_type"] == "update_display_data":
                shown.append(message["content"]["data"]["text/html"])
            return super().process_message(message, *rest)

    Client(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shares = [float(m[1]) for html in shown if (m := re.match(r"<progress value=([0-9.]+)>", html))]
    assert len(shares) > 5
    assert shares[-1] == 1.0
    _, plan, run, answers, model = (c["outputs"] for c in notebook.cells if c.cell_type == "code")
    assert "<td>malignant</td>" in plan[-1]["data"]["text/html"]
    assert "report.html" in run[-1]["data"]["text/html"]
    assert answers[0]["text"].count("\n") >= 2
    assert "malignant" in model[-1]["data"]["text/plain"]
