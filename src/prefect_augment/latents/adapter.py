"""What the uses of latents need to know of tables or images.

The uses are written once, over this protocol. Tables bring a
:class:`~prefect_augment.latents.table_adapter.TableView`, images an
:class:`~prefect_augment.latents.image_adapter.ImageView`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.latents.base import Job
from prefect_augment.latents.image_adapter import ImageView
from prefect_augment.latents.table_adapter import TableView
from prefect_augment.synthesis.model_store import Encoder

__all__ = ["View", "open_view"]


class View(Protocol):
    """Records of one modality, as uses read, write and show them. A picture may be empty."""

    @property
    def where_columns(self) -> tuple[str, ...]:
        """Columns of the source that :meth:`where` reads."""
        ...

    def decode(
        self,
        X: NDArray[Any],
        codes: NDArray[np.int64],
        ids: Sequence[str],
        like: pa.Table | None = None,
    ) -> pa.Table:
        """Return decoded records of these strata: the model's columns, then label and ``by``.

        ``like`` are the records that they were decoded from, in turn, one or several times each.
        """
        ...

    def compare(
        self, X: NDArray[Any], table: pa.Table, decoded: pa.Table, head: Mapping[str, Any]
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return originals beside their reconstructions and errors, and additive numbers per column."""
        ...

    def summary(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return how well a column is reconstructed, from its added numbers."""
        ...

    def where(self, table: pa.Table, flagged: NDArray[np.bool_]) -> dict[str, pa.Array]:
        """Return further columns of anomalies: where in a flagged record the anomaly is."""
        ...

    def codes_picture(self) -> bytes:
        """Draw some records, their vectors and their reconstructions."""
        ...

    def strange_picture(self, ids: Sequence[str]) -> bytes:
        """Draw these records, their reconstructions, and where the anomalies are."""
        ...

    def strip_picture(self, strip: pa.Table) -> bytes:
        """Draw the records of an interpolation."""
        ...

    def shift_picture(
        self,
        title: str,
        ids: Sequence[str],
        shifted: Callable[[pa.Table], Sequence[tuple[str, NDArray[Any]]]],
    ) -> bytes:
        """Draw some records, and below them the titled rows that ``shifted`` returns."""
        ...


def open_view(job: Job, fitted: Any, encoder: Encoder) -> View:
    """Return the view of a job's records and model."""
    if isinstance(encoder, ImageEncoder):
        return ImageView(job, fitted, encoder)
    return TableView(encoder)
