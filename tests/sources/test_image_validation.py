"""Single images: what is good enough, what is not, and the thumbnail that stands for each."""

import io
import struct
import time
import warnings
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageOps

from prefect_augment.encoding.pixels import decode_image
from prefect_augment.errors import UndecodableError
from prefect_augment.sources.images.validation import BadImageError, check_image, looks_like


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(float), other.astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def reason_of(data: bytes, max_megapixels: float = 1.0) -> str:
    """Why bytes cannot be used; empty where they can."""
    try:
        check_image(data, max_megapixels=max_megapixels)
    except BadImageError as exc:
        return exc.reason.split(" ")[0]
    return ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_thumbnail_is_upright_like_the_picture(
    messy_images: ModuleType, orientation: int
) -> None:
    data = messy_images.rotated(4, orientation)
    check = check_image(data, max_megapixels=1)
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored)
    plain = check_image(messy_images.encode(upright), max_megapixels=1)
    assert (check.width, check.height) == upright.size
    assert check.is_rotated == (orientation != 1)
    assert similarity(check.thumb, plain.thumb) > 0.999


def test_a_bomb_is_refused_by_its_header_without_a_warning(messy_images: ModuleType) -> None:
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(BadImageError) as refused:
            check_image(messy_images.bomb(), max_megapixels=50)
    assert refused.value.reason == "oversized (more than 50 megapixels)"
    assert refused.value.detail == "10000 x 10000 px"
    assert not caught
    assert time.process_time() - start < 2.0  # decoding it would show


def frames_beyond_any_limit() -> list[bytes]:
    """A GIF of 35 bytes with a frame of 65,535 squared, and a WebP with a canvas of 16,383 squared."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00\x3b"
    gif = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame
    animated = io.BytesIO()
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(animated, "WEBP", save_all=True, append_images=[blue])
    webp = bytearray(animated.getvalue())
    canvas = webp.index(b"VP8X") + 12
    webp[canvas : canvas + 6] = (16382).to_bytes(3, "little") * 2
    return [gif, bytes(webp)]


@pytest.mark.parametrize("data", frames_beyond_any_limit(), ids=["gif", "webp"])
def test_pillow_s_own_alarm_is_a_reason_and_no_end_of_the_run(data: bytes) -> None:
    assert reason_of(data) == "undecodable"
    with pytest.raises(UndecodableError):
        decode_image(data)


@pytest.mark.slow
def test_more_than_pillows_own_limit_may_be_asked_for(messy_images: ModuleType) -> None:
    """Pillow alone warns above 89 megapixels, and in tests a warning is an error."""
    assert check_image(messy_images.bomb(), max_megapixels=200).width == 10_000


def test_every_broken_file_has_its_reason(messy_images: ModuleType) -> None:
    broken = messy_images.broken_variants()
    found = {name: reason_of(data, 50.0) for name, (data, _) in broken.items()}
    wanted = {name: reason.split(" ")[0] for name, (_, reason) in broken.items()}
    assert found == {**wanted, "notes.txt": "undecodable"}


def test_cut_at_any_byte_an_image_is_whole_or_refused(messy_images: ModuleType) -> None:
    """Nothing that a decoder may raise ends the run."""
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = messy_images.encode(messy_images.picture(1), kind)
        cuts = range(0, len(data), max(1, len(data) // 40))
        reasons = [reason_of(data[:cut]) for cut in cuts]
        assert reasons[0] == "empty"
        assert set(reasons[1:-1]) <= {"", "truncated", "undecodable"}
        assert reasons.count("") < len(reasons) / 4


def test_damaged_bytes_never_end_the_run(messy_images: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = np.frombuffer(messy_images.encode(messy_images.picture(1), kind), dtype=np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            reason = reason_of(data.tobytes())
            assert reason in ("", "truncated", "undecodable", "oversized")


def test_a_flat_picture_resembles_nothing(messy_images: ModuleType) -> None:
    flat = messy_images.encode(Image.new("RGB", (9, 9), "teal"))
    assert not check_image(flat, max_megapixels=1).thumb.any()


def test_sixteen_bits_are_compared_in_full(messy_images: ModuleType) -> None:
    """Cut to eight bits, a dark 16-bit picture would be white."""
    eight = check_image(messy_images.encode(messy_images.picture(8, mode="L")), max_megapixels=1)
    sixteen = check_image(messy_images.encode(messy_images.gray16(8)), max_megapixels=1)
    assert similarity(eight.thumb, sixteen.thumb) > 0.999


def test_images_are_told_from_other_bytes(messy_images: ModuleType) -> None:
    assert all(looks_like(data) for data in messy_images.readable_variants().values())
    assert not any(looks_like(data) for data in (b"", b"text", b"PK\x03\x04", b"%PDF-1.7", b"{}"))


def test_small_images_are_checked_at_a_thousand_a_second(messy_images: ModuleType) -> None:
    data = [messy_images.encode(messy_images.picture(i, (32, 32))) for i in range(300)]
    check_image(data[0], max_megapixels=1)
    start = time.process_time()
    for one in data:
        check_image(one, max_megapixels=1)
    assert 300 / (time.process_time() - start) > 1000
