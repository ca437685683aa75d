"""A folder of class folders with every trouble that images of real users have had, and a clean one.

Loaded through the fixture `messy_images`, because importlib mode puts no folder of tests on the import
path.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Class names end up in Markdown, HTML, paths and Prefect's artifacts.
CLASSES = ("ok", "two words", "<b>bold & co", "😀 émoji", "a.b")
EXIF_ORIENTATION = 0x0112


def picture(seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """A smooth picture like no other one: another seed gives other shapes, not only other noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def gray16(seed: int) -> Image.Image:
    return Image.fromarray(np.asarray(picture(seed, mode="L"), dtype=np.uint16) * 257)


def with_alpha(seed: int) -> Image.Image:
    image = picture(seed, mode="RGBA")
    image.putalpha(picture(seed + 1, mode="L"))
    return image


def rotated(seed: int, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encode(picture(seed), "JPEG", quality=92, exif=exif)


def animated(seed: int, kind: str) -> bytes:
    frames = [picture(seed + i).convert("P") for i in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    """A hundred megapixels of nothing in a few kilobytes; Pillow alone would only warn."""
    return encode(Image.new("1", (10_000, 10_000)))


def readable_variants() -> dict[str, bytes]:
    """File name to bytes of every kind that has to come through unchanged."""
    clear = picture(60).convert("P")
    return {
        "gray.png": encode(picture(1, mode="L")),
        "gray_alpha.png": encode(with_alpha(2).convert("LA")),
        "bilevel.png": encode(picture(3, mode="1")),
        "rgb.jpg": encode(picture(4), "JPEG"),
        "rgba.png": encode(with_alpha(5)),
        "palette.png": encode(picture(6, mode="P")),
        "palette_clear.png": encode(clear, transparency=bytes(range(256))),
        "cmyk.jpg": encode(picture(7, mode="CMYK"), "JPEG"),
        "sixteen.png": encode(gray16(8)),
        "float.tif": encode(picture(9, mode="F"), "TIFF"),
        "lab.tif": encode(Image.merge("LAB", picture(10).split()), "TIFF"),
        "turned.jpg": rotated(11, 6),
        "mirrored.JPG": rotated(12, 2),
        "moving.gif": animated(13, "GIF"),
        "moving.png": animated(20, "PNG"),
        "moving.webp": animated(30, "WEBP"),
        "wide.bmp": encode(picture(14, (90, 8)), "BMP"),
        "tiny.png": encode(Image.new("RGB", (1, 1), "red")),
        "flat.png": encode(Image.new("RGB", (30, 30), "white")),
        "large.jpeg": encode(picture(15, (400, 300)), "JPEG"),
        "no_ending": encode(picture(16)),
        "wrong_ending.gif": encode(picture(17), "JPEG"),
    }


def broken_variants() -> dict[str, tuple[bytes, str]]:
    """File name to bytes and the reason it has to be quarantined for."""
    return {
        "empty.png": (b"", "empty"),
        "cut.png": (encode(picture(40, (64, 64)))[:-200], "truncated"),
        "cut.jpg": (encode(picture(41, (64, 64)), "JPEG")[:-100], "truncated"),
        "text.jpg": (b"this was never a picture\n" * 9, "undecodable"),
        "page.png": (b"<!DOCTYPE html><html>404</html>", "undecodable"),
        "header.jpg": (b"\xff\xd8\xff\xe0", "undecodable"),
        "bomb.png": (bomb(), "oversized (more than 50 megapixels)"),
        "notes.txt": (b"look at this one again", "not an image (.txt)"),
    }


@dataclass
class Messy:
    """What lies in a messy folder, by relative path."""

    root: Path
    readable: dict[str, bytes] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def put_readable(self, path: str, data: bytes) -> None:
        self.put(path, data)
        self.readable[path] = data
        self.labels[path] = path.split("/")[0]


def make_messy_folder(root: Path) -> Messy:
    """Write the folder and say what has to become of each file in it."""
    messy = Messy(root)
    for name, data in readable_variants().items():
        messy.put_readable(f"ok/{name}", data)
    for k, label in enumerate(CLASSES):
        for i in range(12):  # the same stems in every class
            messy.put_readable(f"{label}/{i:03d}.png", encode(picture(1000 * (k + 1) + i)))
    messy.put_readable("two words/deep/er/900.png", encode(picture(50)))
    for name, (data, reason) in broken_variants().items():
        messy.put(f"ok/{name}", data)
        messy.quarantined[f"ok/{name}"] = reason
    messy.put("stray.png", encode(picture(51)))
    messy.quarantined["stray.png"] = "unlabelled: not in a class folder"
    (root / "ok" / "gone.png").symlink_to(root / "nowhere.png")
    messy.quarantined["ok/gone.png"] = "unreadable: broken link"
    for path in (
        ".hidden/001.png",
        "ok/.DS_Store",
        "ok/._001.png",
        "two words/Thumbs.db",
        "__MACOSX/ok/._001.png",
    ):
        messy.put(path, encode(picture(52)))
        messy.ignored.append(path)
    messy.put("README.md", b"# my pictures")
    messy.ignored.append("README.md")
    (root / "ok" / "loop").symlink_to(root, target_is_directory=True)
    (root / "ok" / "itself.png").symlink_to(root / "ok" / "itself.png")
    # A link that does not loop is followed: data sets are often made of links.
    elsewhere = root.parent / f"{root.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.png").write_bytes(encode(picture(53)))
    (root / "two words" / "more").symlink_to(elsewhere, target_is_directory=True)
    messy.readable["two words/more/linked.png"] = encode(picture(53))
    messy.labels["two words/more/linked.png"] = "two words"
    return messy


# --- clean ones -------------------------------------------------------------------------------

SHAPES = {"stripe": 60, "blob": 40, "<i>ring & 😀": 24}
SHAPE_SIDE = 12


def shapes() -> dict[str, bytes]:
    """Path to PNG of three kinds of pictures, which a generator learns in a hundred steps."""
    rng = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(SHAPE_SIDE), np.arange(SHAPE_SIDE))
    found = {}
    for k, (label, n) in enumerate(SHAPES.items()):
        for i in range(n):
            cx, cy, width, slope = rng.uniform([3, 3, 1.2, -1], [8, 8, 3, 1])
            around = np.hypot(across - cx, down - cy)
            distance = (down - cy - slope * (across - 5.5), around, around - 2 * width)[k]
            pixels = 200 * np.exp(-((distance / width) ** 2)) + rng.normal(20, 6, around.shape)
            pixels = pixels.clip(0, 255).astype(np.uint8)
            found[f"{label}/{i:03d}.png"] = encode(Image.fromarray(pixels))
    return found


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files by relative path, in the order given, and return the folder."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder
