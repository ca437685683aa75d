"""What belongs to an image and moves with it: boxes, masks, keypoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_VISIBILITY", "Targets"]

MIN_VISIBILITY = 0.1  # share of a box's area that has to be left in the image

Float = NDArray[np.float32]


def _none(columns: int) -> Float:
    return np.zeros((0, columns), dtype=np.float32)


@dataclass(frozen=True)
class Targets:
    """What an image shows where.

    Attributes
    ----------
    boxes : ndarray of float32, shape (n_boxes, 4)
        Left, top, width and height in pixels (COCO).
    keypoints : ndarray of float32, shape (n_keypoints, 2)
        x and y in pixels.
    masks : tuple of ndarray of uint8, shape (height, width)
    places : ndarray of int64, shape (n_boxes,)
        Which of the boxes that were given these are.
    inside : ndarray of bool, shape (n_keypoints,)
        Which keypoints are still in the image.
    """

    boxes: Float = field(default_factory=lambda: _none(4))
    keypoints: Float = field(default_factory=lambda: _none(2))
    masks: tuple[NDArray[np.uint8], ...] = ()
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    inside: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def started(self, width: int, height: int) -> Targets:
        """Return these with all keypoints there, and all boxes of which something lies in the image."""
        starts, ends = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        has_area = (np.minimum(ends, [width, height]) > np.maximum(starts, 0)).all(axis=1)
        return replace(
            self,
            boxes=self.boxes[has_area],
            places=np.flatnonzero(has_area),
            inside=np.ones(len(self.keypoints), np.bool_),
        )

    def moved(
        self, matrix: NDArray[np.float64], width: int, height: int, *, min_visibility: float
    ) -> Targets:
        """Return boxes and keypoints under an affine map of pixel centres; masks as they are.

        A box becomes the smallest upright one about its four corners, cut to the image.

        Parameters
        ----------
        matrix : ndarray of float64, shape (2, 3)
            From old to new coordinates of pixel centres.
        width, height : int
            Of the new image.
        min_visibility : float in [0, 1]
            Boxes of which a smaller share of the area stays in the image are left out.
        """
        linear, offset = matrix[:, :2], matrix[:, 2]
        x, y, w, h = self.boxes.astype(np.float64).T
        corners = np.stack([[x, y], [x + w, y], [x, y + h], [x + w, y + h]])  # (4, 2, n)
        # Box edges lie half a pixel before the centre of their first pixel.
        moved = np.einsum("ij,kjn->kin", linear, corners - 0.5) + offset[None, :, None] + 0.5
        low, high = moved.min(axis=0), moved.max(axis=0)  # (2, n)
        size = np.array([[width], [height]], dtype=np.float64)
        cut_low, cut_high = np.clip(low, 0, size), np.clip(high, 0, size)
        area, left = np.prod(high - low, axis=0), np.prod(cut_high - cut_low, axis=0)
        keep = (left > 0) & (left >= min_visibility * area)
        boxes = np.concatenate([cut_low, cut_high - cut_low])[:, keep].T.astype(np.float32)
        points = self.keypoints.astype(np.float64) @ linear.T + offset
        inside = ((points > -0.5) & (points < size[:, 0] - 0.5)).all(axis=1)
        return replace(
            self,
            boxes=boxes,
            places=self.places[keep],
            keypoints=points.astype(np.float32),
            inside=self.inside & inside,
        )
