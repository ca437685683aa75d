"""Encoded images as pixels and back. Needs the extra ``images``.

Decoding takes the first frame, applies the EXIF orientation, resolves palettes, lays transparency on white,
turns CMYK, YCbCr, LAB and HSV into RGB and deep pixels into 8 bit; gray has one channel, colours three.
"""

import io
from collections.abc import Iterator
from typing import Final, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageCms

from prefect_augment.array_types import Pixels
from prefect_augment.errors import SchemaError, UndecodableError
from prefect_augment.sources.images.validation import ORIENTATION, UPRIGHT, BadImageError, header_of

QUALITY = 95  # of JPEGs

DECODING_RULE = (
    "Images are read upright (EXIF), the first frame where there are several, transparency laid on "
    "white, palettes, CMYK and LAB as RGB, deep pixels as 8 bit."
)

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))


def decode_image(data: bytes, *, at_least: int = 0) -> Pixels:
    """Return the pixels of an encoded image of a size that ingest has checked, uint8 (height, width, 1 or 3).

    A JPEG may be decoded at 1/2, 1/4 or 1/8 scale while both sides stay at least ``at_least`` pixels, up to eight
    times faster; 0 keeps the size. Raises UndecodableError if the bytes are no image, truncated or damaged.
    """
    return read_image(data, at_least=at_least)[0]


def read_image(data: bytes, *, at_least: int) -> tuple[Pixels, tuple[int, int]]:
    """As :func:`decode_image`, with the width and height that the whole image has upright."""
    try:
        image = header_of(data)
        width, height = image.size
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        turn = _turn(image)
        pixels = _to_array(image if turn is None else image.transpose(turn))
    except BadImageError as exc:
        reason = "not an image" if data else "empty file"
        raise UndecodableError(f"{reason} ({exc.detail})", reason=reason) from exc
    except MemoryError:
        raise
    except Exception as exc:  # decoders raise anything on damaged files, as fuzzing has shown
        reason, lines = "image is cut off or damaged", str(exc).strip().splitlines()
        detail = lines[0] if lines else type(exc).__name__
        raise UndecodableError(f"{reason} ({detail})", reason=reason) from exc
    return pixels, (height, width) if turn in _SIDEWAYS else (width, height)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose that makes the image upright; None if it is, or its EXIF is unreadable."""
    try:
        # TIFF is upright once it is loaded, and has lost the tag.
        orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # noqa: BLE001 - as above
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _to_array(image: Image.Image) -> Pixels:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _to_8_bit(np.asarray(image))[:, :, None]
    if image.has_transparency_data or mode in ("La", "RGBa"):
        image = _on_white(image)
    elif mode == "1":
        image = image.convert("L")
    elif mode == "LAB":
        image = _lab_to_rgb(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _on_white(image: Image.Image) -> Image.Image:
    gray = image.mode in ("1", "L", "LA", "La")
    # Premultiplied modes have one way out: the mode they are the other form of.
    plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    layer = (image.convert(plain) if plain else image).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return flat.convert("L" if gray else "RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only with inPlace
    return converted


def _to_8_bit(values: NDArray[np.generic]) -> Pixels:
    """Scale deep pixels to 8 bit by their range.

    Non-negative integers count as 8, 12 or 16 bit, the first that holds the largest (scanners store 12 bit
    in 16); floats within [0, 1] as shares; anything else is stretched from minimum to maximum. NaN is black.
    """
    x = values.astype(np.float64)
    finite = np.isfinite(x)
    low, high = (float(x[finite].min()), float(x[finite].max())) if finite.any() else (0.0, 0.0)
    x = np.where(finite, x, low)
    is_share = values.dtype.kind == "f" and high <= 1.0
    tops = [1.0] if is_share else [float(2**bits - 1) for bits in (8, 12, 16)]
    top = next((top for top in tops if high <= top), None)
    if low >= 0.0 and top is not None:
        low, high = 0.0, top
    scaled = (x - low) / (high - low) * 255.0 if high > low else np.zeros_like(x)
    return np.rint(scaled).astype(np.uint8)


def encode_png(pixels: Pixels) -> bytes:
    """A PNG without metadata; equal pixels give equal bytes under one version of zlib."""
    return _encode(pixels, "PNG", compress_level=6)


def encode_jpeg(pixels: Pixels) -> bytes:
    """A JPEG of quality 95 without metadata and with full colour resolution."""
    return _encode(pixels, "JPEG", quality=QUALITY, subsampling=0)


def _encode(pixels: Pixels, format: Literal["PNG", "JPEG"], **options: int) -> bytes:  # noqa: A002 - Pillow's word
    buffer = io.BytesIO()
    _to_image(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def is_jpeg(data: bytes) -> bool:
    """Tell by the first bytes whether a file is a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def is_gray(pixels: Pixels) -> bool:
    """Tell whether the channels are equal everywhere."""
    return pixels.shape[2] == 1 or bool((pixels == pixels[:, :, :1]).all())


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """The image with one or three channels: gray repeated, or colours as ITU-R 601 luma."""
    if pixels.shape[2] == channels:
        return pixels
    return _to_array(_to_image(pixels).convert("L" if channels == 1 else "RGB"))


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """The image at another size: bicubic, over the whole area of each new pixel."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return _to_array(_to_image(pixels).resize((width, height), Image.Resampling.BICUBIC))


def content_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Return where an image lies in its square of side ``size``: left, top, width, height.

    The longer side fills the square; an image that lacks at most 3 pixels is not scaled.
    """
    longer = max(width, height)
    if not size - 4 < longer <= size:
        width, height = (max(1, round(side * size / longer)) for side in (width, height))
    return (size - width) // 2, (size - height) // 2, width, height


def fit_square(pixels: Pixels, size: int) -> Pixels:
    """The image in a square of ``size``: scaled with its aspect kept, the rest filled by reflection."""
    left, top, width, height = content_box(pixels.shape[1], pixels.shape[0], size)
    content = resize(pixels, width, height)
    for axis, (before, n) in enumerate(((top, height), (left, width))):
        if n < size:
            around = [(0, 0)] * 3
            around[axis] = (before, size - n - before)
            content = np.pad(content, around, mode="reflect" if n > 1 else "edge")
    return content


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def image_bytes(column: pa.ChunkedArray | pa.Array, *, name: str = "image") -> Iterator[bytes]:
    """Yield the encoded images of a column, empty bytes for none.

    The column is ``struct<bytes: binary, path: string>``, as `datasets` writes it, or binary.
    """
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        kind = chunk.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            chunk = pc.struct_field(chunk, "bytes")  # null where the struct is
        if not (pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type)):
            raise SchemaError(
                f"column {name!r} is {kind}; expected struct<bytes: binary, path: string> or binary.",
                column=name,
            )
        for value in chunk:
            yield cast("bytes", value.as_py()) if value.is_valid else b""


_SPACES = {"YCbCr": "RGB", "Gray": "GRAY"}
_EXIF_WITHIN = 65_536  # bytes: a segment holds no more, and EXIF comes first


def decode_checked(data: bytes) -> Pixels:
    """Return the pixels of an image that ingest has accepted: the same as :func:`decode_image`.

    Plain JPEGs go through libjpeg-turbo, three to six times faster than Pillow; the rest through Pillow.
    """
    space = _plain_space(data)
    if not space:
        return decode_image(data)
    import simplejpeg

    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace=space)
    except ValueError:  # cut off, as far as this decoder minds
        return decode_image(data)
    return pixels


def encode_like(pixels: Pixels, data: bytes) -> bytes:
    """Return pixels as PNG, or as a JPEG of quality 95 with the chroma subsampling of the JPEG ``data``."""
    if not is_jpeg(data):
        return encode_png(pixels)
    if not _plain_space(data):
        return encode_jpeg(pixels)
    import simplejpeg

    gray = pixels.shape[2] == 1
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels),
        quality=QUALITY,
        colorspace="GRAY" if gray else "RGB",
        colorsubsampling="Gray" if gray else simplejpeg.decode_jpeg_header(data)[3],
    )
    return encoded


def _plain_space(data: bytes) -> str:
    """Return the colour space of a plain JPEG; empty for one that Pillow has to decode."""
    if not is_jpeg(data) or data.find(b"Exif\0\0", 0, _EXIF_WITHIN) >= 0:
        return ""
    import simplejpeg

    try:
        space: str = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        return ""
    return _SPACES.get(space, "")
