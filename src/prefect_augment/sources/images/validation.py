"""Image validation: header first, then a full decode, and a thumbnail. Needs Pillow (extra ``images``).

Pixels are not kept; :mod:`prefect_augment.encoding.images` decodes them for models.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prefect_augment.array_types import Int8
from prefect_augment.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

#: Side of the thumbnails that near-duplicates are compared on.
THUMB_SIDE = 32
# Raster formats only: PostScript would start another program, and Pillow's guess for formats without
# a signature (TGA, PCX) takes text for pictures.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT, MIRRORED_OR_TURNED_BY_A_QUARTER = 1, (5, 6, 7, 8)
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # to upright, by Pillow's Transpose
# Brightness of the thumbnail has to vary by this much, of 255, before it can resemble another one.
MIN_CONTRAST = 2.0
# Larger images are decoded one at a time, so that memory is bounded whatever the number of threads.
LARGE_PIXELS = 8_000_000
_one_large = threading.Lock()


class BadImageError(Exception):
    """Invalid image bytes; ``reason`` is one of few, ``detail`` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ImageCheck:
    """Properties of one valid image."""

    mode: str  # Pillow's names
    format: str
    width: int  # of the upright image, pixels
    height: int
    is_animated: bool
    is_rotated: bool  # by its EXIF orientation
    thumb: Int8  # upright, gray, centred, max |x| 127; integers, so sums are exact


def looks_like(data: bytes) -> bool:
    """Tell whether bytes begin like an image file, for columns that may hold anything."""
    return (
        data.startswith(SIGNATURES)
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        or data[4:12] in (b"ftypavif", b"jP  \r\n\x87\n")
    )


def header_of(data: bytes) -> ImageFile.ImageFile:
    """Open the image and read its header only; ``Image.open`` has a process-wide limit, ours follow later.

    Raises BadImageError if no decoder knows the bytes, MissingExtraError without Pillow.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            "images need Pillow: pip install 'prefect-augment[images]'", extra="images"
        ) from exc
    Image.init()
    file = io.BytesIO(data)
    detail = "no decoder knows it"
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = factory is not None and (accept is None or accept(data[:16]))
        if factory is None or accepted is not True:
            continue
        try:
            file.seek(0)
            return factory(file, "")
        except MemoryError:
            raise
        except Exception as exc:  # noqa: BLE001 - decoders raise anything on bytes that are not what they seem
            detail = f"{name}: {exc}"
    raise BadImageError("undecodable", detail)


def check_image(data: bytes, *, max_megapixels: float) -> ImageCheck:
    """Return the properties of an image after a full decode (of an animation, its first frame).

    Raises BadImageError with the reason ``empty``, ``undecodable``, ``truncated`` or ``oversized (…)``, by its header.
    """
    if not data:
        raise BadImageError("empty")
    image = header_of(data)
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImageError("undecodable", f"{width} x {height} px")
    if width * height > max_megapixels * 1e6:
        raise BadImageError(
            f"oversized (more than {max_megapixels:g} megapixels)", f"{width} x {height} px"
        )
    with _one_large if width * height > LARGE_PIXELS else nullcontext():
        mode, animated = image.mode, bool(getattr(image, "is_animated", False))
        orientation = _decode(image)
        thumb = _thumb(image, orientation)
    if orientation in MIRRORED_OR_TURNED_BY_A_QUARTER:
        width, height = height, width
    return ImageCheck(
        mode, image.format or "", width, height, animated, orientation != UPRIGHT, thumb
    )


def _decode(image: ImageFile.ImageFile) -> int:
    """Decode all pixels and return the EXIF orientation."""
    try:
        image.load()
    except MemoryError:
        raise  # the machine is too small, and not the image too large: its size has been checked
    except Exception as exc:
        text = str(exc)
        cut = any(word in text.lower() for word in ("truncated", "unexpected end", "not enough"))
        raise BadImageError("truncated" if cut else "undecodable", text) from exc
    try:
        # A tag that cannot be read is no orientation; the pixels are whole all the same.
        orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # noqa: BLE001 - see above
        return UPRIGHT
    return orientation if orientation in range(1, 9) else UPRIGHT


def _thumb(image: Image.Image, orientation: int) -> Int8:
    """Return the upright gray thumbnail, centred and scaled to integers."""
    from PIL import Image

    small = _gray(image).resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR)
    if orientation in TURNS:
        small = small.transpose(Image.Transpose(TURNS[orientation]))
    pixels = np.asarray(small, dtype=np.float32)
    centred = pixels - pixels.mean()
    peak = float(np.abs(centred).max())
    if not np.isfinite(peak) or peak < (MIN_CONTRAST if small.mode == "L" else 1e-12):
        return np.zeros(THUMB_SIDE * THUMB_SIDE, dtype=np.int8)
    return np.ascontiguousarray(np.rint(centred * (127.0 / peak)).astype(np.int8).ravel())


def _gray(image: Image.Image) -> Image.Image:
    """Return brightness alone; transparent counts as white."""
    from PIL import Image

    if image.mode == "L":
        return image
    if image.mode.startswith(("I", "F")):
        return image.convert("F")  # 16 bits and more: "L" would cut off what is above 255
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("L")
    return image.convert("L")
