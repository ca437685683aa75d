"""Uses of a model's latents: what they need to know of a kind of data.

The uses are written once, over this protocol. Tables bring a
:class:`~prefect_augment.latents.table_adapter.TableView`, images an
:class:`~prefect_augment.latents.image_adapter.ImageView`, which is imported on use: it draws pictures.
"""

from __future__ import annotations

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
    """Records of one kind, as uses read, write and show them. Pictures may be empty: none is shown."""

    @property
    def where_columns(self) -> tuple[str, ...]:
        """Columns of the source that :meth:`where` looks at."""
        ...

    def made(
        self,
        X: NDArray[Any],
        codes: NDArray[np.int64],
        ids: Sequence[str],
        like: pa.Table | None = None,
    ) -> pa.Table:
        """Return records that the model made of these strata: its columns, then label and ``by``.

        ``like`` are the records that they were made from, in turn, where it was one or more of each.
        """
        ...

    def compared(
        self, X: NDArray[Any], table: pa.Table, made: pa.Table, head: Mapping[str, Any]
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return originals beside what was made of them, with errors; per column numbers that add up."""
        ...

    def summary(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return how well a column comes back."""
        ...

    def where(self, table: pa.Table, flagged: NDArray[np.bool_]) -> dict[str, pa.Array]:
        """Return further columns of anomalies: where in a flagged record it is strange."""
        ...

    def codes_picture(self) -> bytes:
        """Draw some records, their vectors, and what becomes of these."""
        ...

    def strange_picture(self, ids: Sequence[str]) -> bytes:
        """Draw some records, what becomes of them, and where they are strange."""
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
        """Draw some records, and what becomes of them: ``shifted`` gives each row with what it shows."""
        ...


def open_view(job: Job, fitted: Any, encoder: Encoder) -> View:
    """Return the view on a job's records with its model."""
    if isinstance(encoder, ImageEncoder):
        return ImageView(job, fitted, encoder)
    return TableView(encoder)
