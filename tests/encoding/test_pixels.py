"""Every kind of image file ends as 8-bit gray or RGB, by a stated rule, or as a stated refusal."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from prefect_augment.encoding.pixels import (
    content_box,
    decode_image,
    encode_jpeg,
    encode_png,
    fit_square,
    image_bytes,
    is_gray,
    is_jpeg,
    read_image,
    resize,
    with_channels,
)
from prefect_augment.errors import SchemaError, UndecodableError
from prefect_augment.sources.images.validation import BadImageError, check_image, header_of

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def gradient(height: int = 12, width: int = 20, channels: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


# --- files to pixels --------------------------------------------------------------------------


def test_gray_and_rgb_files_come_back_pixel_by_pixel() -> None:
    for channels in (1, 3):
        pixels = gradient(channels=channels)
        assert np.array_equal(decode_image(encode_png(pixels)), pixels)


@pytest.mark.parametrize("kind", ["BMP", "PPM", "JPEG2000", "AVIF", "WEBP", "GIF"])
def test_every_format_is_found_out_from_the_bytes(kind: str) -> None:
    if kind not in Image.SAVE:
        pytest.skip(f"this build of Pillow cannot write {kind}")
    smooth = resize(gradient(3, 3), 64, 48)
    pixels = decode_image(encoded(Image.fromarray(smooth), kind))
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - smooth).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_images_stand_upright(orientation: int, kind: str) -> None:
    """Checked against Pillow's own transposition, which no code of ours uses."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif} | ({"quality": 100} if kind == "JPEG" else {})
    data = encoded(Image.fromarray(gradient()), kind, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels, size = read_image(data, at_least=0)
    assert np.array_equal(pixels, expected)
    assert size == (expected.shape[1], expected.shape[0])


def test_broken_orientation_leaves_the_image_as_it_lies() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=exif)
    broken = data.replace(b"Exif\x00\x00MM\x00*", b"Exif\x00\x00XX\x00*")
    assert broken != data
    assert decode_image(broken).shape == (12, 20, 3)


def test_palettes_become_colours_and_their_transparency_white() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((3, 1), 1)
    assert decode_image(encoded(image))[0, 0].tolist() == list(RED)
    assert decode_image(encoded(image))[1, 3].tolist() == [0, 0, 255]
    assert decode_image(encoded(image, transparency=1))[1, 3].tolist() == list(WHITE)


def test_transparency_is_laid_on_white() -> None:
    half = decode_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128))))
    assert half.shape == (2, 2, 3)
    assert half[0, 0].tolist() == [255, 127, 127]
    gray = decode_image(encoded(Image.new("LA", (2, 2), (0, 0))))
    assert gray.tolist() == [[[255], [255]], [[255], [255]]]
    colour_key = decode_image(encoded(Image.new("RGB", (1, 1), RED), transparency=RED))
    assert colour_key[0, 0].tolist() == list(WHITE)


def test_other_colour_spaces_become_rgb() -> None:
    cmyk = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert cmyk[0, 0].tolist() == list(RED)
    red = Image.new("RGB", (8, 8), RED)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    as_lab = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
    assert as_lab is not None
    from_lab = decode_image(encoded(as_lab, "TIFF"))
    assert np.abs(from_lab[0, 0].astype(int) - RED).max() <= 5  # L*a*b* has 8 bit a channel
    ycbcr = decode_image(encoded(red.convert("YCbCr"), "TIFF"))
    assert np.abs(ycbcr[0, 0].astype(int) - RED).max() <= 2


def test_one_bit_images_are_black_and_white() -> None:
    image = Image.new("1", (3, 1), 0)
    image.putpixel((2, 0), 1)
    assert decode_image(encoded(image)).ravel().tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 100, 255], np.uint16, [0, 100, 255]),  # 8 bit in a 16-bit file
        ([0, 2048, 4095], np.uint16, [0, 128, 255]),  # 12 bit
        ([0, 32768, 65535], np.uint16, [0, 128, 255]),
        ([-100, 0, 100], np.int32, [0, 128, 255]),  # stretched: no bit depth fits
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 128.0, 255.0], np.float32, [0, 128, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
        ([0.0, np.nan, 1.0], np.float32, [0, 0, 255]),
        ([np.nan, np.inf, np.nan], np.float32, [0, 0, 0]),
        ([7, 7, 7], np.int32, [7, 7, 7]),
    ],
)
def test_deep_pixels_become_8_bit_by_range(
    values: list[float], dtype: type, expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], dtype=dtype))
    pixels = decode_image(encoded(image, "TIFF"))
    assert pixels.shape == (1, 3, 1)
    assert pixels.ravel().tolist() == expected


def test_sixteen_bit_png_is_read_by_range() -> None:
    image = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert decode_image(encoded(image)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data)[0, 0].tolist() == list(RED)


def test_a_reduced_jpeg_is_smaller_and_still_large_enough() -> None:
    data = encode_jpeg(resize(gradient(), 400, 240))
    pixels, size = read_image(data, at_least=64)
    assert size == (400, 240)
    assert 64 <= min(pixels.shape[:2]) < 240


# --- refusals ---------------------------------------------------------------------------------


def reason_of(data: bytes) -> str:
    with pytest.raises(UndecodableError) as caught:
        decode_image(data)
    return caught.value.reason


def test_refusals_say_why_in_few_words() -> None:
    png, jpeg = encode_png(gradient(64, 64)), encode_jpeg(gradient(64, 64))
    assert reason_of(b"") == "empty file"
    assert reason_of(b"class,count\ncat,3\n") == "not an image"
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not an image"
    assert reason_of(png[: len(png) // 2]) == "image is cut off or damaged"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "image is cut off or damaged"


@pytest.mark.slow
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.integers(0, 4))
def test_damaged_files_are_decoded_or_refused_and_never_anything_else(
    place: int, value: int, kind: int
) -> None:
    data = bytearray(_SOUND[kind])
    data[place % len(data)] = value
    try:
        width, height = header_of(bytes(data)).size
        if width * height > 1_000_000:  # which ingest refuses
            return
        pixels = decode_image(bytes(data))
    except (BadImageError, UndecodableError):
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] in (1, 3)


@pytest.mark.slow
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.integers(0, 4))
def test_what_ingest_lets_pass_is_decoded(place: int, value: int, kind: int) -> None:
    data = bytearray(_SOUND[kind])
    data[place % len(data)] = value
    try:
        found = check_image(bytes(data), max_megapixels=1.0)
    except BadImageError:
        return
    pixels, size = read_image(bytes(data), at_least=0)
    assert size == (found.width, found.height) == (pixels.shape[1], pixels.shape[0])


_SOUND = [
    encoded(Image.fromarray(gradient()), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")
]


# --- pixels to files --------------------------------------------------------------------------


def test_equal_pixels_give_equal_bytes_without_metadata() -> None:
    pixels = gradient()
    assert encode_png(pixels) == encode_png(pixels.copy())
    assert Image.open(io.BytesIO(encode_png(pixels))).info == {}
    assert is_jpeg(encode_jpeg(pixels))
    assert not is_jpeg(encode_png(pixels))


def test_jpegs_are_close_to_their_pixels() -> None:
    smooth = resize(gradient(4, 4), 64, 64)
    again = decode_image(encode_jpeg(smooth))
    assert np.abs(again.astype(int) - smooth).mean() < 2


# --- sizes and channels -----------------------------------------------------------------------


def test_aspect_is_kept_and_the_rest_is_a_reflection() -> None:
    pixels = gradient(16, 32)
    square = fit_square(pixels, 32)
    assert content_box(32, 16, 32) == (0, 8, 32, 16)
    assert np.array_equal(square[8:24], pixels)
    assert np.array_equal(square[7], pixels[1])
    assert np.array_equal(square[24], pixels[-2])


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1), 8), ((1, 200), 32), ((500, 3), 32), ((29, 30), 32), ((32, 32), 32)]
)
def test_every_shape_fits_the_square(shape: tuple[int, int], size: int) -> None:
    assert fit_square(gradient(*shape), size).shape == (size, size, 3)


def test_images_that_nearly_fit_keep_their_pixels() -> None:
    pixels = gradient(30, 30)
    assert np.array_equal(fit_square(pixels, 32)[1:31, 1:31], pixels)


def test_gray_is_a_matter_of_pixels() -> None:
    gray = gradient(channels=1)
    assert is_gray(gray)
    assert is_gray(with_channels(gray, 3))
    assert not is_gray(gradient())
    assert np.array_equal(with_channels(with_channels(gray, 3), 1), gray)


# --- columns ----------------------------------------------------------------------------------


def test_images_are_read_from_structs_and_from_binary() -> None:
    structs = pa.array([{"bytes": b"a", "path": "x"}, {"bytes": None, "path": "y"}, None])
    assert list(image_bytes(structs)) == [b"a", b"", b""]
    assert list(image_bytes(pa.chunked_array([[b"a"], [b"b"]]))) == [b"a", b"b"]
    assert list(image_bytes(pa.array([b"a"], pa.large_binary()))) == [b"a"]


def test_a_column_of_something_else_is_refused_by_name() -> None:
    with pytest.raises(SchemaError, match="'photo' is string"):
        list(image_bytes(pa.array(["x.png"]), name="photo"))


def test_tiff_orientation_is_applied_once() -> None:
    """Pillow turns TIFF by itself when it loads it."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 3
    pixels = gradient()
    data = encoded(Image.fromarray(pixels), "TIFF", tiffinfo=tags)
    assert np.array_equal(decode_image(data), pixels[::-1, ::-1])
