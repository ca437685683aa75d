"""The fast path: a whole policy as one warp, one colour matrix and one blur.

Flips, crops, turns, shears, scales and shifts of a pipeline become one affine map, so that pixels are
interpolated once; what is done to brightness, contrast, saturation and hue becomes one matrix of colours,
so that values are rounded and cut off once; a blur comes last. All numbers of a copy come from one hash
of its seed. :func:`fused` reads the parameters off albumentations' own operations, and returns None where
a pipeline has one that does not fit; tests hold each against albumentations.

Differences from albumentations, by design: the map is applied at once, so that what one operation moves
out another one may bring back; values are not cut off between operations; hue turns in the YIQ plane
instead of HSV (a few levels for a tenth of a turn).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import count, permutations
from operator import mul
from struct import pack, unpack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.annotations import Targets

__all__ = ["Draw", "Fused", "draws", "fused"]

Pixels = NDArray[np.uint8]
Map = tuple[float, float, float, float, float, float]  # rows of a 2 x 3 matrix, of pixel centres

LINEAR, NEAREST, REFLECT_101, CONSTANT = 1, 0, 4, 0  # cv2's numbers
FOUR_PAY = 3 * 64 * 64  # values from which on that pays
GROUND = 114  # about images with boxes: a reflection would show objects that no box names
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_TO_YIQ = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# Rows: the 3 x 4 matrices of RGB by which luma goes through, colour goes through, colour is turned by a quarter,
# and an offset is added. One product with four numbers makes the matrix of a copy.
_basis = np.zeros((4, 3, 4))
_basis[:3, :, :3] = [
    _FROM_YIQ @ np.array(m) @ _TO_YIQ
    for m in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, 1], [0, -1, 0]],
    )
]
_basis[3, :, 3] = 1.0
_COLOUR_BASIS = _basis.reshape(4, 12)
IDENTITY: Map = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


Draw = Callable[[], float]


def draws(seed: int) -> Draw:
    """Return what gives numbers in [0, 1) that depend on a seed alone, one a call: eight to a BLAKE2b hash."""
    return _numbers(seed).__next__


def _numbers(seed: int) -> Iterator[float]:
    key = pack("<Q", seed % 2**64)
    for n in count():
        block = blake2b(key, digest_size=64, salt=pack("<Q", n)).digest()
        for word in reversed(unpack("<8Q", block)):
            yield word * 2.0**-64


def _within(limits: tuple[float, float], draw: Draw) -> float:
    return limits[0] + (limits[1] - limits[0]) * draw()


@dataclass
class _Copy:
    """What is done to one image, gathered operation by operation."""

    width: int
    height: int
    matrix: Map = IDENTITY
    colours: list[tuple[str, float]] = field(default_factory=list)
    blur: tuple[int, float] | None = None

    def then(self, n: Map) -> None:
        """Add an affine map after what there is."""
        a, b, c, d, e, f = n
        g, h, i, j, k, m = self.matrix
        self.matrix = (
            a * g + b * j, a * h + b * k, a * i + b * m + c,
            d * g + e * j, d * h + e * k, d * i + e * m + f,
        )  # fmt: skip


Act = Callable[[_Copy, Draw], None]


class Fused:
    """A pipeline as one warp, one colour matrix and one blur; threads may share it."""

    def __init__(self, steps: Sequence[tuple[float, Act]]) -> None:
        self._steps = tuple(steps)  # probability and what is done

    def apply(
        self,
        image: Pixels,
        draw: Draw,
        targets: Targets | None = None,
        *,
        min_visibility: float = 0.0,
    ) -> tuple[Pixels, Targets | None]:
        """Return an image, and what belongs to it, as the numbers drawn have it.

        Parameters
        ----------
        image : ndarray of uint8, shape (height, width, 1 or 3)
        draw : callable
            See :func:`draws`.
        targets : Targets, optional
            With them the ground about a moved image is gray; else it is the image reflected.
        min_visibility : float in [0, 1]
            Boxes of which a smaller share of the area stays in the image are left out.
        """
        copy = self._planned(image, draw)
        border = REFLECT_101 if targets is None else CONSTANT
        changed = _warped(image, copy, border, GROUND, LINEAR)
        changed = _blurred(_coloured(changed, copy.colours), copy.blur)
        if targets is None:
            return changed, None
        moved = targets.moved(
            np.array(copy.matrix).reshape(2, 3),
            copy.width,
            copy.height,
            min_visibility=min_visibility,
        )
        masks = tuple(_warped(mask, copy, CONSTANT, 0, NEAREST) for mask in targets.masks)
        return changed, Targets(moved.boxes, moved.keypoints, masks, moved.places, moved.inside)

    def batch(self, images: Sequence[Pixels], draws: Sequence[Draw]) -> list[Pixels]:
        """Return each image as :meth:`apply` does, pass by pass.

        Small images take a third less time so: the code of a pass stays in the processor's caches.
        """
        copies = [self._planned(image, draw) for image, draw in zip(images, draws, strict=True)]
        found = [
            _warped(image, copy, REFLECT_101, GROUND, LINEAR)
            for image, copy in zip(images, copies, strict=True)
        ]
        found = [_coloured(image, copy.colours) for image, copy in zip(found, copies, strict=True)]
        return [_blurred(image, copy.blur) for image, copy in zip(found, copies, strict=True)]

    def _planned(self, image: Pixels, draw: Draw) -> _Copy:
        copy = _Copy(image.shape[1], image.shape[0])
        for prob, act in self._steps:
            if draw() < prob:
                act(copy, draw)
        return copy


def fused(nodes: Sequence[Any]) -> Fused | None:
    """Return the fast path of a pipeline's operations, or None where one does not fit in.

    Parameters
    ----------
    nodes : sequence of albumentations.BasicTransform
        As :class:`.pipeline.Pipeline` has built them: their attributes are checked and complete.
    """
    steps = []
    for node in nodes:
        make = _MAKERS.get(type(node).__name__)
        act = make(node) if make else None
        if act is None:
            return None
        steps.append((float(node.p), act))
    return Fused(steps)


# --- pixels -----------------------------------------------------------------------------------


@cache
def _cv2() -> Any:
    import cv2

    return cv2


def _warped(image: Pixels, copy: _Copy, border: int, ground: int, interpolation: int) -> Pixels:
    """Return the image under the copy's map: cut, resized and mirrored where that is all, else warped."""
    height, width = image.shape[:2]
    size = (copy.width, copy.height)
    if copy.matrix == IDENTITY and size == (width, height):
        return image
    part = _upright_part(copy, width, height)
    if part is None:
        cv2 = _cv2()
        matrix = np.array(copy.matrix).reshape(2, 3)
        is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.size >= FOUR_PAY
        if is_rgb:  # OpenCV warps four channels faster than three, to the same pixels
            image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
        warped = cv2.warpAffine(
            image, matrix, size, flags=interpolation, borderMode=border, borderValue=(ground,) * 4
        )
        warped = cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) if is_rgb else warped
        return _as_before(warped, image.ndim)
    left, top, right, bottom, mirrored, upside_down = part
    changed = image[top:bottom, left:right]
    if (right - left, bottom - top) != size:
        changed = _as_before(_cv2().resize(changed, size, interpolation=interpolation), image.ndim)
    # A flip of a view costs nothing here; what reads it next makes it whole.
    changed = changed[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return np.ascontiguousarray(changed)


def _as_before(image: Any, n_axes: int) -> Pixels:
    """Return an image with the axis of its one channel, which OpenCV drops."""
    return np.asarray(image if image.ndim == n_axes else image[:, :, None])


def _upright_part(
    copy: _Copy, width: int, height: int
) -> tuple[int, int, int, int, bool, bool] | None:
    """Return the pixels that fill the copy where nothing turns, and whether they are mirrored."""
    a, b, c, d, e, f = copy.matrix
    if b or d or not a or not e:
        return None
    edges = []
    for scale, shift, side in ((a, c, copy.width), (e, f, copy.height)):
        ends = ((-0.5 - shift) / scale + 0.5, (side - 0.5 - shift) / scale + 0.5)
        if any(abs(end - round(end)) > 1e-6 for end in ends):
            return None
        edges.append(sorted(round(end) for end in ends))
    (left, right), (top, bottom) = edges
    if left < 0 or top < 0 or right > width or bottom > height:
        return None
    return left, top, right, bottom, a < 0, e < 0


def _coloured(image: Pixels, colours: Sequence[tuple[str, float]]) -> Pixels:
    """Return the image with all changes of colour as one matrix.

    In YIQ they are few numbers: a gain and an offset of luma, and one complex gain of the two colour axes, whose
    length is saturation and whose angle is hue.
    """
    if not colours:
        return image
    cv2 = _cv2()
    n_channels = image.shape[2]
    gain, offset, chroma = 1.0, 0.0, 1.0 + 0.0j
    luma = math.nan
    for kind, value in colours:
        if kind == "gain":
            gain, offset, chroma = value * gain, value * offset, value * chroma
        elif kind == "offset":
            offset += value
        elif kind == "contrast":
            if math.isnan(luma):
                means = cv2.mean(image)
                luma = means[0] if n_channels == 1 else sum(map(mul, LUMA, means))
            middle = gain * luma + offset
            gain, chroma = value * gain, value * chroma
            offset = value * offset + (1 - value) * middle
        elif kind == "saturation":
            chroma *= value
        else:
            chroma *= cmath.exp(2j * math.pi * value)
    if n_channels == 1:
        matrix = np.array([[gain, offset]])
    else:
        parts = np.array((gain, chroma.real, chroma.imag, offset))
        matrix = (parts @ _COLOUR_BASIS).reshape(3, 4)
    return _as_before(cv2.transform(image, matrix), 3)


def _blurred(image: Pixels, blur: tuple[int, float] | None) -> Pixels:
    if blur is None:
        return image
    size, sigma = blur
    return _as_before(_cv2().GaussianBlur(image, (size, size), sigma, borderType=REFLECT_101), 3)


# --- operations -------------------------------------------------------------------------------
# Each reads an operation of albumentations and returns what it does; None where it does not fit in.

_ORDERS = tuple(permutations(range(4)))
_Made = Act | None


def _horizontal_flip(node: Any) -> _Made:
    return lambda copy, _: copy.then((-1.0, 0.0, copy.width - 1.0, 0.0, 1.0, 0.0))


def _vertical_flip(node: Any) -> _Made:
    return lambda copy, _: copy.then((1.0, 0.0, 0.0, 0.0, -1.0, copy.height - 1.0))


def _nothing(node: Any) -> _Made:
    return lambda copy, _: None


def _is_plain(node: Any) -> bool:
    return bool(node.interpolation == LINEAR and node.border_mode == REFLECT_101)


def _turned(degrees: float, centre: tuple[float, float]) -> Map:
    """Return a turn about a centre, as cv2.getRotationMatrix2D has it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = centre
    return (cos, sin, (1 - cos) * x - sin * y, -sin, cos, sin * x + (1 - cos) * y)


def _rotate(node: Any) -> _Made:
    if not _is_plain(node) or node.crop_border:
        return None

    def act(copy: _Copy, draw: Draw) -> None:
        centre = ((copy.width - 1) / 2, (copy.height - 1) / 2)
        copy.then(_turned(_within(node.limit, draw), centre))

    return act


def _affine(node: Any) -> _Made:
    if not _is_plain(node) or node.fit_output or node.balanced_scale:
        return None
    if node.translate_px and any(map(any, node.translate_px.values())):
        return None  # whole pixels are albumentations' own way
    shift = node.translate_percent or {"x": (0.0, 0.0), "y": (0.0, 0.0)}
    keep_ratio = node.keep_ratio

    def act(copy: _Copy, draw: Draw) -> None:
        sx = _within(node.scale["x"], draw)
        sy = sx if keep_ratio else _within(node.scale["y"], draw)
        centre = x, y = (copy.width - 1) / 2, (copy.height - 1) / 2
        copy.then((sx, 0.0, (1 - sx) * x, 0.0, sy, (1 - sy) * y))
        copy.then(_turned(_within(node.rotate, draw), centre))
        # Minus, as albumentations has it: a shear to the right moves the top.
        tan_x = math.tan(math.radians(-_within(node.shear["x"], draw)))
        tan_y = math.tan(math.radians(-_within(node.shear["y"], draw)))
        right = _within(shift["x"], draw) * copy.width
        down = _within(shift["y"], draw) * copy.height
        copy.then((1.0, tan_x, right - tan_x * y, tan_y, 1.0, down - tan_y * x))

    return act


def _resized_crop(node: Any) -> _Made:
    if node.interpolation != LINEAR:
        return None
    new_height, new_width = node.size
    tries = 10
    log_ratio = (math.log(node.ratio[0]), math.log(node.ratio[1]))

    def act(copy: _Copy, draw: Draw) -> None:
        area = copy.width * copy.height
        width, height = copy.width, copy.height  # where nothing fits
        for _ in range(tries):
            wanted = _within(node.scale, draw) * area
            ratio = math.exp(_within(log_ratio, draw))
            w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
            if 0 < w <= copy.width and 0 < h <= copy.height:
                width, height = w, h
                break
        left = int((copy.width - width + 1) * draw())
        top = int((copy.height - height + 1) * draw())
        sx, sy = new_width / width, new_height / height
        copy.then((sx, 0.0, (0.5 - left) * sx - 0.5, 0.0, sy, (0.5 - top) * sy - 0.5))
        copy.width, copy.height = new_width, new_height

    return act


def _brightness_contrast(node: Any) -> _Made:
    if not node.brightness_by_max or node.ensure_safe_range:
        return None

    def act(copy: _Copy, draw: Draw) -> None:
        copy.colours.append(("gain", 1.0 + _within(node.contrast_limit, draw)))
        copy.colours.append(("offset", 255.0 * _within(node.brightness_limit, draw)))

    return act


def _colour_jitter(node: Any) -> _Made:
    ranges = [
        ("gain", node.brightness), ("contrast", node.contrast),
        ("saturation", node.saturation), ("hue", node.hue),
    ]  # fmt: skip

    def act(copy: _Copy, draw: Draw) -> None:
        values = [(kind, _within(limits, draw)) for kind, limits in ranges]
        copy.colours += [values[i] for i in _ORDERS[int(len(_ORDERS) * draw())]]

    return act


def _gaussian_blur(node: Any) -> _Made:
    low, high = node.blur_limit

    def act(copy: _Copy, draw: Draw) -> None:
        sigma = _within(node.sigma_limit, draw)
        size = low + int((high - low + 1) * draw())
        size = int(sigma * 3.5) * 2 + 1 if size == 0 else size
        copy.blur = (size + 1 - size % 2, sigma)

    return act


_MAKERS: dict[str, Callable[[Any], _Made]] = {
    "Affine": _affine,
    "ColorJitter": _colour_jitter,
    "GaussianBlur": _gaussian_blur,
    "HorizontalFlip": _horizontal_flip,
    "NoOp": _nothing,
    "RandomBrightnessContrast": _brightness_contrast,
    "RandomResizedCrop": _resized_crop,
    "Rotate": _rotate,
    "VerticalFlip": _vertical_flip,
}
