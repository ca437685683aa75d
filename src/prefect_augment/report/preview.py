"""A preview of a policy: images of a source under each of its operations."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.augmentation.label_preservation import policy_sheet
from prefect_augment.encoding.labels import label_text
from prefect_augment.encoding.pixels import decode_image
from prefect_augment.errors import ParameterError
from prefect_augment.figures.image_grid import CELL, N_COLUMNS
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Classic, Source
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage.store import open_store

__all__ = ["preview"]


def preview(
    source: Source, classic: Classic, *, seed: int = 0, source_options: dict[str, Any] | None = None
) -> bytes:
    """A sheet (PNG below 200 kB) of images of the rarest classes under each operation; stores nothing.

    ParameterError if the source has no images, or the policy is none.
    """
    policy = ImagePolicy.from_params(classic)
    policy.check()
    with TemporaryDirectory() as folder:
        store = open_store(folder)
        info = load_info(
            ingest(source, store=store, seed=seed, source_options=source_options), store
        )
        if info.image is None or policy.is_none:
            raise ParameterError(
                "a preview needs images and a policy; the source is a table, or classic.image is 'none'."
            )
        counts = info.part_counts["training"]
        wanted = sorted(counts, key=lambda name: (counts[name], name))[:N_COLUMNS]
        examples: dict[str, tuple[str, bytes]] = {}
        for table in iter_shards(store, [s for s in info.shards if s.split == "training"]):
            labels = label_text(table[info.label]).to_pylist()
            for name in wanted:
                if name not in examples and name in labels:
                    row = table.take(pa.array([labels.index(name)])).to_pylist()[0]
                    examples[name] = row["aug_id"], row[info.image.column]["bytes"]
        keys, data = zip(*(examples[name] for name in wanted), strict=True)
        images = [decode_image(one, max_pixels=None, at_least=2 * CELL) for one in data]
        return policy_sheet(images, keys, policy)
