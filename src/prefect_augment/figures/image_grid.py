"""Sheets of images as small PNGs: classes in the report, codes and anomaly maps of latents.

Each column is one record: the real image that is most like a synthetic one is below it, so that a copy is obvious.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prefect_augment.array_types import Pixels
from prefect_augment.figures.style import MAX_BYTES, drawable, font_path

N_COLUMNS = 8  # on a phone each is still 40 pixels wide
CELL = 112  # pixels: a whole multiple of 8, 14, 16 and 28
MAX_STRIP_ROWS = 4
_HEAT = "inferno"  # from black to light, told apart without colour vision, too
ROW_TITLES = {
    "real": "real",
    "classic": "the same, after classic augmentation",
    "synthetic": "synthetic",
    "nearest": "the real training image nearest to each",
}

# As fine as the other charts: the page shows two of these pixels as one.
_GAP, _PADDING = 8, 20
_TITLE, _TEXT = 34, 28
# As wide for one image as for eight, so that sheets stand below one another at one scale.
_WIDTH = 2 * _PADDING + N_COLUMNS * (CELL + _GAP) - _GAP
_HEADER = _PADDING + _TITLE + 20
_ABOVE, _BELOW = _TEXT + 14, 14  # of a row of images
ROW_HEIGHT = _ABOVE + CELL + _BELOW
_INK, _MUTED, _BORDER = (28, 36, 48), (91, 101, 114), (214, 219, 225)

Images = NDArray[np.uint8] | Sequence[Pixels]


def sheet(
    label: str,
    real: Images | None,
    synthetic: Images | None,
    nearest: Images | None,
    *,
    classic: Images | None = None,
) -> bytes:
    """A class's sheet of images, as a PNG below 200 kB; equal arrays give equal bytes.

    Rows have images of any size, uint8 of shape (height, width, channels); the first :data:`N_COLUMNS` are shown and
    rows without images left out. ``nearest`` goes with ``synthetic``, ``classic`` with ``real``. Small images are
    enlarged by a whole factor, large ones reduced.
    """
    rows = {"real": real, "classic": classic, "synthetic": synthetic, "nearest": nearest}
    titled = [(ROW_TITLES[name], images) for name, images in rows.items() if images is not None]
    return rows_sheet(label, titled)


def rows_sheet(title: str, rows: Sequence[tuple[str, Images]]) -> bytes:
    """A sheet of any titled rows; see :func:`sheet`."""
    shown = [(text, images[:N_COLUMNS]) for text, images in rows if len(images)]
    is_gray = all(pixels.shape[2] == 1 for _, images in shown for pixels in images)
    return _small_png(_draw(title, shown), is_gray)


def shown_name(label: str) -> str:
    """The class name as far as the sheet can draw it."""
    return drawable(label, width=(_WIDTH - 2 * _PADDING) / _TITLE)


def _draw(label: str, rows: Sequence[tuple[str, Images]]) -> Image.Image:
    height = _HEADER + max(1, len(rows)) * ROW_HEIGHT + _PADDING - _BELOW
    image = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_PADDING, _PADDING), shown_name(label), fill=_INK, font=_font(_TITLE))
    y = _HEADER
    if not rows:
        draw.text((_PADDING, y), "no images to show", fill=_MUTED, font=_font(_TEXT))
    for text, images in rows:
        draw.text((_PADDING, y), text, fill=_MUTED, font=_font(_TEXT))
        for i, pixels in enumerate(images):
            _paste(image, draw, pixels, _PADDING + i * (CELL + _GAP), y + _ABOVE)
        y += ROW_HEIGHT
    return image


def _paste(image: Image.Image, draw: ImageDraw.ImageDraw, pixels: Pixels, x: int, y: int) -> None:
    """Draw one record in the middle of its cell, with a border since many images are white."""
    thumbnail = _thumbnail(pixels)
    width, height = thumbnail.size
    left, top = x + (CELL - width) // 2, y + (CELL - height) // 2
    image.paste(thumbnail, (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_BORDER)


def _thumbnail(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longer = max(image.size)
    if 2 * longer <= CELL:
        factor = CELL // longer
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    width, height = (max(1, round(side * CELL / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def picture_png(pixels: Pixels) -> bytes:
    """One image by itself, as large as in a sheet, as PNG."""
    return _small_png(_thumbnail(pixels), is_gray=pixels.shape[2] == 1)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Every build of Pillow has the basic layout; the other would set some names differently.
    return ImageFont.truetype(font_path(), size, layout_engine=ImageFont.Layout.BASIC)


def _small_png(image: Image.Image, is_gray: bool) -> bytes:
    """The image as PNG below the limit, with fewer colours and then smaller where that is necessary."""
    plain = image.convert("L") if is_gray else image
    content = b""
    for n_colours, scale in ((0, 1.0), (128, 1.0), (48, 1.0), (64, 0.75), (32, 0.5)):
        size = (round(image.width * scale), round(image.height * scale))
        drawn = plain if scale == 1.0 else plain.resize(size, Image.Resampling.LANCZOS)
        if n_colours:
            drawn = drawn.quantize(n_colours, dither=Image.Dither.NONE)
        buffer = BytesIO()
        drawn.save(buffer, format="PNG", optimize=True)
        content = buffer.getvalue()
        if len(content) < MAX_BYTES:
            break
    return content


def code_images(Z: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Vectors (n, n_latent) as small gray squares (n, k, k, 1), one number per pixel, row by row.

    ``k`` is the smallest with ``k**2 >= n_latent``. Middle gray is 0, white the largest distance
    from it in any vector; unused pixels at the end are white.
    """
    n, n_latent = Z.shape
    k = int(np.ceil(np.sqrt(n_latent)))
    largest = float(np.abs(Z).max(initial=0.0)) or 1.0
    gray = np.full((n, k * k), 255, dtype=np.uint8)
    gray[:, :n_latent] = np.rint(127.5 + 127.5 * Z / largest)
    return gray.reshape(n, k, k, 1)


def heat_images(maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Anomaly maps (n, height, width) in colour: black is 0, light the largest value of all."""
    largest = float(maps.max(initial=0.0))
    shares = np.clip(maps, 0.0, None) / (largest or 1.0)
    colours = colormaps[_HEAT](shares)[..., :3]
    return np.asarray(np.rint(255 * colours), dtype=np.uint8)


def strip_sheet(title: str, images: Sequence[NDArray[np.uint8]]) -> bytes:
    """A PNG (below 200 kB) of the way from the first image to the last; of many steps some are shown."""
    most = MAX_STRIP_ROWS * N_COLUMNS
    n = len(images)
    steps = np.unique(np.rint(np.linspace(0, n - 1, min(n, most))).astype(int)).tolist()
    rows: list[tuple[str, Images]] = []
    for start in range(0, len(steps), N_COLUMNS):
        some = steps[start : start + N_COLUMNS]
        rows.append((f"steps {some[0]} to {some[-1]} of {n - 1}", [images[i] for i in some]))
    return rows_sheet(title, rows)
