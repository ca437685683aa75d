"""Image records as arrays and back: one fitted encoder, shared by models, filters and estimators.

Each image (see :mod:`.pixels`) is scaled, aspect kept, into a square of the model's resolution; reflection
fills the rest. Decoding crops the filling and writes a PNG of the dataset's most common size.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.pixels import (
    DECODING_RULE,
    content_box,
    decode_image,
    encode_png,
    fit_square,
    image_bytes,
    is_gray,
    read_image,
    resize,
    with_channels,
)
from prefect_augment.encoding.serialization import StoredEncoder, check_columns_there
from prefect_augment.errors import ParameterError, SchemaError, UndecodableError

DEFAULT_SIZE = 32  # of models; research/images.md: above it no generator pays on a CPU
SIZE_STEP = 4  # networks halve the sides twice
# Of staged records, beside the user's own columns.
IDS = ("aug_id", "content_key")
_OWN = ("column", "size", "channels", "out_channels")  # of an ImageEncoder
# Sizes that vary more than this have no most common one worth the name.
COMMON_SHARE = 0.1


class ImageEncoder(StoredEncoder):
    """The sizes, channels and schema that turn a dataset's image records into uint8 arrays and back.

    ``size`` is the side of the arrays; decoded records have ``out_size`` (width, height). ``channels`` is 1 if
    all images are gray (three equal channels count), ``out_channels`` if most have one channel; else 3.
    """

    modality = "image"

    def __init__(
        self,
        *,
        column: str,
        size: int,
        channels: int,
        out_size: tuple[int, int],
        out_channels: int,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.column = column
        self.size = size
        self.channels = channels
        self.out_size = out_size
        self.out_channels = out_channels

    @classmethod
    def fit(
        cls,
        table: pa.Table,
        *,
        column: str,
        label: str,
        by: Sequence[str] = (),
        size: int | None = None,
        image_size: int = 0,
        columns: Collection[str] | None = None,
    ) -> "ImageEncoder":
        """Return the encoder of these records; every image is decoded once.

        ``size`` is the model's resolution, a multiple of 4 from 8 on (default: :func:`model_size`).
        ``image_size`` is the longer side of decoded records; 0 takes the dataset's most common size, or the
        median width and height where no size is shared by a tenth of the images. ``columns`` are the
        source's columns (default: all but ``aug_id`` and ``content_key``).
        """
        check_columns_there(table, [column, label, *by])
        if size is not None and (size < 8 or size % SIZE_STEP):
            raise ParameterError(
                f"size={size} cannot be a model's resolution; choose a multiple of {SIZE_STEP} from 8 on."
            )
        common_size, all_gray, out_channels = _survey(table.column(column), column)
        kept = set(table.column_names) - set(IDS) if columns is None else {*columns, column, label}
        return cls(
            column=column,
            size=model_size(common_size) if size is None else size,
            channels=1 if all_gray else 3,
            out_size=_scaled(common_size, image_size) if image_size else common_size,
            out_channels=out_channels,
            **cls._of_records(table, kept, label, by),
        )

    @property
    def rule(self) -> str:
        """What is done to every image, in sentences for the report."""
        width, height = self.out_size
        kind = "gray" if self.out_channels == 1 else "RGB"
        return (
            f"{DECODING_RULE} Models and classifiers see them at {self.size}×{self.size} pixels in "
            f"{'gray' if self.channels == 1 else 'colour'}: scaled with the aspect kept, filled up "
            f"by reflection. Synthetic images go out as {width}×{height} {kind} PNG. Real records "
            "keep their own bytes."
        )

    def encode(self, table: pa.Table) -> NDArray[np.uint8]:
        """Return the records' images as uint8, shape (n_records, size, size, channels).

        Raises UndecodableError, with the record's position, if an image cannot be decoded.
        """
        check_columns_there(table, [self.column])
        column = table.column(self.column)
        return encode_column(column, size=self.size, channels=self.channels, name=self.column)

    def decode(
        self,
        images: NDArray[np.uint8],
        *,
        strata: Sequence[str],
        aug_ids: Sequence[str],
        like: pa.Table | None = None,
    ) -> pa.Table:
        """Return images (n, size, size, channels) as records with the source's exact schema.

        ``strata`` give the label and the ``by`` columns; paths are ``synthetic/<aug_id>.png``; other columns
        are null. With ``like``, the records they derive from (repeated in turn up to n), each image takes the
        shape and colours of its own, with the longer side of ``out_size``. Raises ParameterError for another
        shape, an unknown stratum, or another column that may not be null.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, self.channels):
            raise ParameterError(
                f"images are {images.dtype} of shape {images.shape}; expected uint8 of shape "
                f"(n, {self.size}, {self.size}, {self.channels})."
            )
        codes = self._stratum_codes(strata)
        forms = [(self.out_size, self.out_channels)] if like is None else self._own(like)
        encoded = [
            encode_png(self.output(image, *form))
            for image, form in zip(images, cycle(forms), strict=False)
        ]
        paths = [f"synthetic/{aug_id}.png" for aug_id in aug_ids]
        columns = []
        for field in self.schema:
            if field.name == self.column:
                column = image_array(encoded, paths, field.type)
            elif field.name == self.label or field.name in self.by:
                column = self._of_stratum(field, codes)
            else:
                column = pa.nulls(len(codes), field.type)
            columns.append(self._conformed(field, column, self._dictionaries))
        return pa.table(columns, schema=self.schema)

    def output(
        self,
        image: NDArray[np.uint8],
        out_size: tuple[int, int] | None = None,
        out_channels: int | None = None,
    ) -> NDArray[np.uint8]:
        """Return one model image as it goes out: filling cut off, at ``out_size``."""
        out_size, out_channels = out_size or self.out_size, out_channels or self.out_channels
        left, top, width, height = content_box(*out_size, self.size)
        content = image[top : top + height, left : left + width]
        return with_channels(resize(content, *out_size), out_channels)

    def _own(self, records: pa.Table) -> list[tuple[tuple[int, int], int]]:
        """Return the size and channels that each record's image is to have."""
        own = []
        for data in image_bytes(records.column(self.column), name=self.column):
            pixels, size = read_image(data, at_least=1)
            channels = 1 if is_gray(pixels) else pixels.shape[2]
            own.append((_scaled(size, max(self.out_size)), channels))
        return own

    def _values_outgrown_by(self, other: Self) -> str:
        if (other.size, other.channels) != (self.size, self.channels):
            return "images are of another size, or have colours now"
        if (other.out_size, other.out_channels) != (self.out_size, self.out_channels):
            return "most images are of another size now"
        return ""

    def to_config(self) -> dict[str, Any]:
        """Return the encoder as plain JSON: the inverse of :meth:`from_config`."""
        return {
            **super().to_config(),
            **{name: getattr(self, name) for name in _OWN},
            "modality": self.modality,
            "out_size": list(self.out_size),
            "rule": self.rule,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the encoder that :meth:`to_config` wrote down."""
        known = cls._of_all(config)
        own = {name: config[name] for name in _OWN}
        return cls(**known, **own, out_size=tuple(config["out_size"]))


def encode_column(
    column: pa.ChunkedArray | pa.Array, *, size: int, channels: int, name: str = "image"
) -> NDArray[np.uint8]:
    """Return the images of a column as uint8 squares, shape (n, size, size, channels).

    The column is ``struct<bytes: binary, path: string>`` or binary; ``name`` is used in messages.
    """
    images = np.empty((len(column), size, size, channels), dtype=np.uint8)
    for i, data in enumerate(image_bytes(column, name=name)):
        try:
            pixels = decode_image(data, at_least=2 * size)
        except UndecodableError as exc:
            raise UndecodableError(
                f"image {i} of column {name!r} cannot be decoded: {exc}; ingest the source again.",
                reason=exc.reason,
            ) from exc
        images[i] = with_channels(fit_square(pixels, size), channels)
    return images


def image_array(
    encoded: Sequence[bytes | None], paths: Sequence[str | None], kind: pa.DataType
) -> pa.Array:
    """Return encoded images as a column of this type; other fields of a struct are null."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        known = {"bytes": list(encoded), "path": list(paths)}
        fields = [kind.field(i) for i in range(kind.num_fields)]
        values = [
            pa.array(known[f.name], f.type) if f.name in known else pa.nulls(len(encoded), f.type)
            for f in fields
        ]
        return pa.StructArray.from_arrays(values, fields=fields)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array(encoded, kind)
    raise SchemaError(f"{kind} holds no images; expected struct<bytes: binary, path: string>.")


def model_size(common_size: tuple[int, int]) -> int:
    """Return the resolution of models for images of this width and height.

    The longer side up to 32, rounded up to a multiple of 4 from 8 on; else 32.
    """
    longer = max(common_size)
    if longer > DEFAULT_SIZE:
        return DEFAULT_SIZE
    return max(8, -(-longer // SIZE_STEP) * SIZE_STEP)


def _survey(column: pa.ChunkedArray, name: str) -> tuple[tuple[int, int], bool, int]:
    """Look at every image once: the common size, whether all are gray, and the common channels."""
    sizes: Counter[tuple[int, int]] = Counter()
    channels: Counter[int] = Counter()
    all_gray = True
    for data in image_bytes(column, name=name):
        # Coloured or not shows at a reduced size just as well.
        pixels, size = read_image(data, at_least=2 * DEFAULT_SIZE)
        sizes[size] += 1
        channels[pixels.shape[2]] += 1
        all_gray = all_gray and is_gray(pixels)
    if not sizes:
        raise ParameterError(
            f"column {name!r} has no images to fit an encoder on; expected at least one record."
        )
    return _common_size(sizes), all_gray, 1 if channels[1] >= channels[3] else 3


def _common_size(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    size, n = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    n_images = sizes.total()
    if n > 1 and n >= COMMON_SHARE * n_images:
        return size
    widths, heights = zip(*sizes.elements(), strict=True)
    # The lower of the two in the middle: a size that there is, and whole.
    return sorted(widths)[(n_images - 1) // 2], sorted(heights)[(n_images - 1) // 2]


def _scaled(size: tuple[int, int], longer: int) -> tuple[int, int]:
    if longer < 1:
        raise ParameterError(f"image_size={longer} is no length; choose 0 or a number of pixels.")
    width, height = (max(1, round(side * longer / max(size))) for side in size)
    return width, height
