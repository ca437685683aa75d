"""Tables of images, and small grey pictures of three shapes, which are told apart by eye."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest

from prefect_augment.encoding.pixels import encode_png

COUNTS = {"ring": 240, "cross": 90, "dot": 60}


def image_table(
    images: Iterable[np.ndarray], labels: Sequence[str], paths: Sequence[str] | None = None
) -> pa.Table:
    """A table of the columns image and label; pixels of shape (height, width) or (…, 3), in PNG."""
    pytest.importorskip("PIL", reason="the extra 'images'")
    rows = [
        {"bytes": encode_png(image if image.ndim == 3 else image[:, :, None]), "path": None}
        for image in images
    ]
    for row, path in zip(rows, paths or (), strict=bool(paths)):
        row["path"] = path
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"image": pa.array(rows, kind), "label": labels})


def pictures(seed: int = 0, counts: Mapping[str, int] = COUNTS) -> pa.Table:
    """A table of pictures of these shapes."""
    return image_table(*shapes(seed, counts))


def shapes(seed: int, counts: Mapping[str, int]) -> tuple[list[np.ndarray], list[str]]:
    """So many pictures of each shape, and their names."""
    rng = np.random.default_rng(seed)
    names = [name for name, n in counts.items() for _ in range(n)]
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
        pixels = light * shape + rng.normal(30, 25, (12, 12))
        images.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return images, names
