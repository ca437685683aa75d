"""Every week: new pictures, and a balanced version of them that waits for approval.

python -m flows.weekly FOLDER
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect_augment import (
    Approval,
    Budget,
    Classic,
    Destination,
    Evaluation,
    NoModel,
    Source,
    rebalance,
)
from tasks.camera import photograph


@flow(name="defect-images")
def weekly(
    folder: str = "~/defect-images",
    week: int = 0,
    budget: Budget = Budget(minutes=5),
    evaluation: Evaluation = Evaluation(),
) -> dict[str, str]:
    """Photograph the parts and propose a balanced version of all pictures.

    Args:
        folder: Where everything is kept.
        week: Number of the week; this week's if 0.
        budget: How long the comparison may take.
        evaluation: How strategies are compared.
    """
    place = Path(folder).expanduser().resolve()
    pictures = photograph(str(place), week or datetime.now(UTC).isocalendar().week)
    result = rebalance(
        source=Source(uri=pictures, format="folder"),
        destination=Destination(uri=str(place / "balanced")),
        # Small turns, shifts and changes of light; no generative model.
        classic=Classic(image="safe"),
        model=NoModel(),
        # A subflow cannot be suspended: the run ends with a proposal, and flows/release.py publishes it.
        approval=Approval(ask=True),
        budget=budget,
        evaluation=evaluation,
    )
    return {"status": result.status, "proposal": result.proposal, "report": result.report}


if __name__ == "__main__":
    print(json.dumps(weekly(*sys.argv[1:2])))
