"""Small grey pictures of three shapes, which are told apart by eye."""

import numpy as np
import pyarrow as pa

from prefect_augment.encoding.pixels import encode_png

COUNTS = {"ring": 240, "cross": 90, "dot": 60}


def pictures(seed: int = 0) -> pa.Table:
    """A table of the columns image and label."""
    rng = np.random.default_rng(seed)
    names = [name for name, n in COUNTS.items() for _ in range(n)]
    across, down = np.meshgrid(np.arange(12), np.arange(12))
    images = []
    for name in names:
        cx, cy, size, light = rng.uniform([4, 4, 2, 120], [7, 7, 4, 250])
        distance = np.hypot(across - cx, down - cy)
        shape = {
            "ring": np.abs(distance - size) < 1,
            "cross": np.minimum(np.abs(across - cx), np.abs(down - cy)) < 1,
            "dot": distance < size,
        }[name]
        pixels = np.clip(light * shape + rng.normal(30, 25, (12, 12)), 0, 255).astype(np.uint8)
        images.append({"bytes": encode_png(pixels[:, :, None]), "path": None})
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"image": pa.array(images, kind), "label": names})
