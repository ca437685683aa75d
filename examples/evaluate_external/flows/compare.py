"""Compare tools: a quick screen of each, a full evaluation of those that pass.

python -m flows.compare FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow, unmapped
from prefect_augment import (
    Destination,
    Evaluation,
    Experiment,
    NoModel,
    Quality,
    RunParams,
    Source,
    evaluate,
    filter_candidates,
    import_synthetic,
    ingest_dataset,
    plan_balance,
)
from tasks.pumps import write_readings
from tasks.tools import TOOLS, run_tool

LEAST_SHARE = 0.5  # of a tool's records that have to pass the screen


@flow(name="compare-tools")
def compare(
    folder: str = "~/evaluate-external",
    evaluation: Evaluation = Evaluation(),
    quality: Quality = Quality(purpose="faithful"),
) -> dict[str, Any]:
    """Report how many records of each tool pass the filter, and whether those of the good tools help.

    Args:
        folder: Where everything is kept.
        evaluation: How the records of a good tool are compared with strategies that need none.
        quality: The limits of the filter.
    """
    place = Path(folder).expanduser().resolve()
    files = write_readings(str(place))
    # No tool was given the hold-out.
    source = Source(uri=files["train"], label="state", holdout_uri=files["holdout"])
    made = run_tool.map(list(TOOLS), unmapped(files["train"])).result()

    dataset = ingest_dataset(source, Destination(uri=str(place / "screen")))
    params = RunParams(model=NoModel(), evaluation=evaluation, quality=quality)
    plan = plan_balance(dataset, params)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    external = import_synthetic.map(unmapped(dataset), unmapped(plan), made)
    screened = filter_candidates.map(unmapped(experiment), external)

    found: dict[str, Any] = {}
    for tool, file, report in zip(TOOLS, made, screened.result(), strict=True):
        passed = sum(c.n_passed for c in report.classes) / sum(
            c.n_candidates for c in report.classes
        )
        found[tool] = {"passed": round(passed, 3), "verdict": "not compared"}
        if passed >= LEAST_SHARE:
            compared = evaluate(
                source,
                file,
                Destination(uri=str(place / "compared" / tool)),
                evaluation=evaluation,
                quality=quality,
            )
            found[tool] |= {"verdict": compared.verdict.decision, "report": compared.report}
    return found


if __name__ == "__main__":
    print(json.dumps(compare(*sys.argv[1:])))
