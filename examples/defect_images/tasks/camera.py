"""Their own step before ours: a week of pictures from the line, in a folder per class."""

from pathlib import Path

import cv2
import numpy as np
from prefect import task

SIDE = 16
WEEK = {"fine": 160, "scratch": 70, "dent": 66}


@task
def photograph(folder: str, week: int = 1) -> str:
    """Write the week's pictures; return the folder of all weeks."""
    rng = np.random.default_rng(week)
    for name, n in WEEK.items():
        place = Path(folder) / "pictures" / name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            path = place / f"week-{week:02d}-{i:04d}.png"
            picture = _part(name, rng)
            if not path.exists():
                cv2.imwrite(str(path), picture)
    return str(Path(folder) / "pictures")


def _part(name: str, rng: np.random.Generator) -> np.ndarray:
    """A brushed plate, shape (side, side) of uint8, perhaps with a bright line or a dark disc."""
    rows = rng.normal(120.0, 12.0, (SIDE, 1))
    plate = np.clip(rows + rng.normal(0.0, 14.0, (SIDE, SIDE)), 0, 255).astype(np.uint8)
    x, y = (int(v) for v in rng.integers(4, SIDE - 4, 2))
    if name == "scratch":
        dx, dy = (int(v) for v in rng.integers(-5, 6, 2))
        cv2.line(plate, (x, y), (x + dx, y + dy + 3), int(rng.integers(170, 230)), 1)
    elif name == "dent":
        cv2.circle(plate, (x, y), int(rng.integers(2, 4)), int(rng.integers(40, 80)), -1)
    return plate
