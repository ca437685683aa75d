"""After a look at the report: publish the proposal, or reject it.

python -m flows.release FOLDER "what was seen"
"""

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow
from prefect_augment import Answer, Destination, approve


@flow(name="release-defect-images")
def release(
    folder: str = "~/defect-images", proposal: str = "", answer: Answer = Answer()
) -> dict[str, Any]:
    """Publish the proposed version, or record why it is rejected.

    Args:
        folder: As the weekly flow's.
        proposal: Its id; the only open one if empty.
        answer: Approve or reject, with a comment, and with fewer records where wanted.
    """
    place = Path(folder).expanduser().resolve()
    result = approve(Destination(uri=str(place / "balanced")), proposal, answer)
    return {"status": result.status, "version": result.version, "manifest": result.manifest}


if __name__ == "__main__":
    folder, comment = sys.argv[1:3]
    print(json.dumps(release(folder, answer=Answer(comment=comment))))
