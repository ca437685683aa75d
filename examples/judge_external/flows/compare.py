"""Which of the tools is worth its licence: a quick screen of each, a full judgement of those that pass.

python -m flows.compare FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow, unmapped
from prefect_augment import (
    Destination,
    NoModel,
    Source,
    evaluate,
    import_synthetic,
    ingest_dataset,
    filter_candidates,
    plan_balance,
)
from tasks.pumps import write_readings
from tasks.tools import TOOLS, run_tool

LEAST_SHARE = 0.5  # of a tool's records that have to pass the screen


@flow(name="compare-tools")
def compare(
    folder: str = "~/judge-external", gate: Gate = Gate(purpose="faithful")
) -> dict[str, Any]:
    """Say of each tool how many records pass the gate, and of the good ones whether they help.

    Args:
        folder: Where everything is kept.
        gate: How strictly records are judged.
    """
    place = Path(folder).expanduser().resolve()
    files = write_readings(str(place))
    # No tool was given the hold-out.
    source = Source(uri=files["train"], label="state", holdout_uri=files["holdout"])
    made = run_tool.map(list(TOOLS), unmapped(files["train"])).result()

    dataset = ingest_dataset(source, Destination(uri=str(place / "screen")))
    plan = plan_balance(dataset, model=NoModel(), **gate)
    given = import_synthetic.map(unmapped(dataset), unmapped(plan), made)
    screened = filter_candidates.map(unmapped(dataset), given, unmapped(plan), gate=unmapped(gate))

    found: dict[str, Any] = {}
    for tool, file, report in zip(TOOLS, made, screened.result(), strict=True):
        passed = sum(c.n_passed for c in report.classes) / sum(
            c.n_candidates for c in report.classes
        )
        found[tool] = {"passed": round(passed, 3), "verdict": "not judged"}
        if passed >= LEAST_SHARE:
            compared = evaluate(
                source, file, Destination(uri=str(place / "compared" / tool)), **gate
            )
            found[tool] |= {"verdict": compared.verdict.decision, "report": compared.report}
    return found


if __name__ == "__main__":
    print(json.dumps(compare(*sys.argv[1:])))
