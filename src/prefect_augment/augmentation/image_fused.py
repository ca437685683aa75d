"""A whole image policy as one warp, one colour matrix and one blur.

Flips, crops, rotations, shears, scales and shifts become one affine map, so that pixels are interpolated once. Changes
of brightness, contrast, saturation and hue become one colour matrix, so that values are rounded and clipped once. A
blur comes last. All numbers of a copy come from one hash of its seed. :func:`fused` reads the parameters off
albumentations' own operations and returns None where one does not fit; tests compare each with albumentations.

Intended differences from albumentations: the map is applied at once, so one operation may move back
in what another moved out; values are not clipped between operations; hue rotates in the YIQ plane
instead of HSV (a few levels for a tenth of a turn).
"""

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from itertools import count, permutations
from operator import mul
from struct import pack, unpack
from typing import Any

import numpy as np

from prefect_augment.array_types import Pixels
from prefect_augment.encoding.annotations import Targets

Map = tuple[float, float, float, float, float, float]  # rows of a 2 x 3 matrix, of pixel centres

LINEAR, NEAREST, REFLECT_101, CONSTANT = 1, 0, 4, 0  # cv2's numbers
MIN_RGBA_VALUES = 3 * 64 * 64  # from this size on four channels warp faster than three
FILL = 114  # gray around images with boxes: a reflection would show objects without a box
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_TO_YIQ = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# Rows are 3 x 4 matrices of RGB: keep luma, keep chroma, rotate chroma by a quarter turn, add an offset.
# A copy's matrix is a linear combination of the four.
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
    """Return a function that gives numbers in [0, 1) from a seed, eight per BLAKE2b hash."""
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
    """The changes of one image, collected operation by operation."""

    width: int
    height: int
    matrix: Map = IDENTITY
    colours: list[tuple[str, float]] = field(default_factory=list)
    blur: tuple[int, float] | None = None

    def then(self, n: Map) -> None:
        """Apply an affine map after the present one."""
        a, b, c, d, e, f = n
        g, h, i, j, k, m = self.matrix
        self.matrix = (
            a * g + b * j, a * h + b * k, a * i + b * m + c,
            d * g + e * j, d * h + e * k, d * i + e * m + f,
        )  # fmt: skip


Step = Callable[[_Copy, Draw], None]


class Fused:
    """A pipeline as one warp, one colour matrix and one blur; safe to share between threads."""

    def __init__(self, steps: Sequence[tuple[float, Step]]) -> None:
        self._steps = tuple(steps)  # (probability, change)

    def apply(
        self, image: Pixels, draw: Draw, targets: Targets | None = None
    ) -> tuple[Pixels, Targets | None]:
        """Return a changed image, shape (height, width, 1 or 3), and its moved targets.

        With targets the area outside a moved image is gray, else reflected.
        """
        copy = self._planned(image, draw)
        border = REFLECT_101 if targets is None else CONSTANT
        changed = _warped(image, copy, border, FILL, LINEAR)
        changed = _blurred(_coloured(changed, copy.colours), copy.blur)
        if targets is None:
            return changed, None
        moved = targets.moved(np.array(copy.matrix).reshape(2, 3), copy.width, copy.height)
        masks = tuple(_warped(mask, copy, CONSTANT, 0, NEAREST) for mask in targets.masks)
        return changed, replace(moved, masks=masks)

    def batch(self, images: Sequence[Pixels], draws: Sequence[Draw]) -> list[Pixels]:
        """Return each image as :meth:`apply` does, pass by pass.

        Small images take a third less time: the code of a pass stays in the processor's caches.
        """
        copies = [self._planned(image, draw) for image, draw in zip(images, draws, strict=True)]
        pairs = zip(images, copies, strict=True)
        changed = [_warped(image, copy, REFLECT_101, FILL, LINEAR) for image, copy in pairs]
        pairs = zip(changed, copies, strict=True)
        changed = [_coloured(image, copy.colours) for image, copy in pairs]
        return [_blurred(image, copy.blur) for image, copy in zip(changed, copies, strict=True)]

    def _planned(self, image: Pixels, draw: Draw) -> _Copy:
        copy = _Copy(image.shape[1], image.shape[0])
        for prob, step in self._steps:
            if draw() < prob:
                step(copy, draw)
        return copy


def fused(nodes: Sequence[Any]) -> Fused | None:
    """Return the fast path of albumentations' operations, or None where one does not fit.

    ``nodes`` are those of :class:`.image_pipeline.Pipeline`, whose attributes are checked and complete.
    """
    steps = []
    for node in nodes:
        make = _MAKERS.get(type(node).__name__)
        step = make(node) if make else None
        if step is None:
            return None
        steps.append((float(node.p), step))
    return Fused(steps)


@cache
def _cv2() -> Any:
    import cv2

    return cv2


def _warped(image: Pixels, copy: _Copy, border: int, fill: int, interpolation: int) -> Pixels:
    """Return the image under the copy's map: cropped, resized and mirrored where that suffices, else warped."""
    height, width = image.shape[:2]
    size = (copy.width, copy.height)
    if copy.matrix == IDENTITY and size == (width, height):
        return image
    part = _upright_part(copy, width, height)
    if part is None:
        cv2 = _cv2()
        matrix = np.array(copy.matrix).reshape(2, 3)
        is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.size >= MIN_RGBA_VALUES
        if is_rgb:  # OpenCV warps four channels faster than three, to the same pixels
            image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
        warped = cv2.warpAffine(
            image, matrix, size, flags=interpolation, borderMode=border, borderValue=(fill,) * 4
        )
        warped = cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) if is_rgb else warped
        return _as_before(warped, image.ndim)
    left, top, right, bottom, mirrored, upside_down = part
    changed = image[top:bottom, left:right]
    if (right - left, bottom - top) != size:
        changed = _as_before(_cv2().resize(changed, size, interpolation=interpolation), image.ndim)
    # Flip the view; the next line makes it contiguous.
    changed = changed[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return np.ascontiguousarray(changed)


def _as_before(image: Any, n_axes: int) -> Pixels:
    """Return an image with its single channel's axis, which OpenCV drops."""
    return np.asarray(image if image.ndim == n_axes else image[:, :, None])


def _upright_part(
    copy: _Copy, width: int, height: int
) -> tuple[int, int, int, int, bool, bool] | None:
    """Return the pixels that fill the copy if nothing is rotated, and whether they are mirrored."""
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
    """Return the image with all colour changes as one matrix.

    In YIQ these are few numbers: gain and offset of luma, and one complex gain of the two chroma axes,
    whose modulus is saturation and whose angle is hue.
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


# Each reads an operation of albumentations and returns its change; None where it does not fit.

_ORDERS = tuple(permutations(range(4)))


def _horizontal_flip(node: Any) -> Step | None:
    return lambda copy, _: copy.then((-1.0, 0.0, copy.width - 1.0, 0.0, 1.0, 0.0))


def _vertical_flip(node: Any) -> Step | None:
    return lambda copy, _: copy.then((1.0, 0.0, 0.0, 0.0, -1.0, copy.height - 1.0))


def _is_plain(node: Any) -> bool:
    return bool(node.interpolation == LINEAR and node.border_mode == REFLECT_101)


def _turned(degrees: float, centre: tuple[float, float]) -> Map:
    """Return a rotation about a centre, as cv2.getRotationMatrix2D does."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = centre
    return (cos, sin, (1 - cos) * x - sin * y, -sin, cos, sin * x + (1 - cos) * y)


def _rotate(node: Any) -> Step | None:
    if not _is_plain(node) or node.crop_border:
        return None

    def step(copy: _Copy, draw: Draw) -> None:
        centre = ((copy.width - 1) / 2, (copy.height - 1) / 2)
        copy.then(_turned(_within(node.limit, draw), centre))

    return step


def _affine(node: Any) -> Step | None:
    if not _is_plain(node) or node.fit_output or node.balanced_scale:
        return None
    if node.translate_px and any(map(any, node.translate_px.values())):
        return None  # albumentations shifts by whole pixels
    shift = node.translate_percent or {"x": (0.0, 0.0), "y": (0.0, 0.0)}
    keep_ratio = node.keep_ratio

    def step(copy: _Copy, draw: Draw) -> None:
        sx = _within(node.scale["x"], draw)
        sy = sx if keep_ratio else _within(node.scale["y"], draw)
        centre = x, y = (copy.width - 1) / 2, (copy.height - 1) / 2
        copy.then((sx, 0.0, (1 - sx) * x, 0.0, sy, (1 - sy) * y))
        copy.then(_turned(_within(node.rotate, draw), centre))
        # Negative as in albumentations: a shear to the right moves the top.
        tan_x = math.tan(math.radians(-_within(node.shear["x"], draw)))
        tan_y = math.tan(math.radians(-_within(node.shear["y"], draw)))
        right = _within(shift["x"], draw) * copy.width
        down = _within(shift["y"], draw) * copy.height
        copy.then((1.0, tan_x, right - tan_x * y, tan_y, 1.0, down - tan_y * x))

    return step


def _resized_crop(node: Any) -> Step | None:
    if node.interpolation != LINEAR:
        return None
    new_height, new_width = node.size
    tries = 10
    log_ratio = (math.log(node.ratio[0]), math.log(node.ratio[1]))

    def step(copy: _Copy, draw: Draw) -> None:
        area = copy.width * copy.height
        width, height = copy.width, copy.height  # where nothing fits
        for _ in range(tries):
            new_area = _within(node.scale, draw) * area
            ratio = math.exp(_within(log_ratio, draw))
            w, h = round(math.sqrt(new_area * ratio)), round(math.sqrt(new_area / ratio))
            if 0 < w <= copy.width and 0 < h <= copy.height:
                width, height = w, h
                break
        left = int((copy.width - width + 1) * draw())
        top = int((copy.height - height + 1) * draw())
        sx, sy = new_width / width, new_height / height
        copy.then((sx, 0.0, (0.5 - left) * sx - 0.5, 0.0, sy, (0.5 - top) * sy - 0.5))
        copy.width, copy.height = new_width, new_height

    return step


def _brightness_contrast(node: Any) -> Step | None:
    if not node.brightness_by_max or node.ensure_safe_range:
        return None

    def step(copy: _Copy, draw: Draw) -> None:
        copy.colours.append(("gain", 1.0 + _within(node.contrast_limit, draw)))
        copy.colours.append(("offset", 255.0 * _within(node.brightness_limit, draw)))

    return step


def _colour_jitter(node: Any) -> Step | None:
    ranges = [
        ("gain", node.brightness), ("contrast", node.contrast),
        ("saturation", node.saturation), ("hue", node.hue),
    ]  # fmt: skip

    def step(copy: _Copy, draw: Draw) -> None:
        values = [(kind, _within(limits, draw)) for kind, limits in ranges]
        copy.colours += [values[i] for i in _ORDERS[int(len(_ORDERS) * draw())]]

    return step


def _gaussian_blur(node: Any) -> Step | None:
    low, high = node.blur_limit

    def step(copy: _Copy, draw: Draw) -> None:
        sigma = _within(node.sigma_limit, draw)
        size = low + int((high - low + 1) * draw())
        size = int(sigma * 3.5) * 2 + 1 if size == 0 else size
        copy.blur = (size + 1 - size % 2, sigma)

    return step


_MAKERS: dict[str, Callable[[Any], Step | None]] = {
    "Affine": _affine,
    "ColorJitter": _colour_jitter,
    "GaussianBlur": _gaussian_blur,
    "HorizontalFlip": _horizontal_flip,
    "NoOp": lambda node: lambda copy, draw: None,
    "RandomBrightnessContrast": _brightness_contrast,
    "RandomResizedCrop": _resized_crop,
    "Rotate": _rotate,
    "VerticalFlip": _vertical_flip,
}
