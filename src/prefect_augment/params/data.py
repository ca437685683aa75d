"""Where records come from, what their columns are, and where they go."""

import os
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from prefect_augment.params.base import Params
from prefect_augment.params.locations import Location


class ColumnOverride(Params):
    """The kind of a column that is detected wrongly."""

    name: str
    """The column's name."""
    kind: Literal["numeric", "category", "identifier", "opaque", "drop"]
    """numeric or category: learnt by models. identifier: left out, synthetic records get a fresh one. opaque: kept in
    real records, null in synthetic ones. drop: not published."""


class _Place(Params):
    @model_validator(mode="before")
    @classmethod
    def _from_location(cls, value: Any) -> Any:
        """Also take a path or URL in the place of the section, as people write it in Python."""
        return {"uri": os.fspath(value)} if isinstance(value, str | os.PathLike) else value


class Source(_Place):
    """Where the labelled records come from, and how they are split."""

    uri: Location = ""
    """A file, folder or glob: a local path or any fsspec URL (s3://…). Several files are one dataset; a Hugging Face
    dataset folder is its train split. Images: a folder with a folder per class, a zip or tar of one, WebDataset tars,
    annotated images, or Parquet. Also a Delta, Iceberg or Lance table, a database (shop.db#orders,
    postgresql://host/shop#SELECT …) or a workbook (book.xlsx#sheet). Leave empty for the built-in example table."""
    label: str = ""
    """The column that holds the class. Empty: found where only one column can be it."""
    format: Literal[
        "auto", "parquet", "csv", "jsonl", "arrow", "excel", "folder", "webdataset", "coco", "voc", "yolo"
    ] = "auto"  # fmt: skip
    """auto goes by the files' names; csv covers TSV and semicolons; jsonl is one JSON object per line; arrow covers
    Feather; excel covers OpenDocument; folder is a folder (or zip, or tar) with a folder of images per class; coco, voc
    and yolo are annotations beside images."""
    include: list[str] = Field(default_factory=list)
    """Image files to read, as glob patterns: *.jpg looks at names, train/**/*.jpg at paths. Empty: all of them."""
    exclude: list[str] = Field(default_factory=list)
    """Image files to leave out, as glob patterns, e.g. *.png where masks lie beside the images."""
    max_megapixels: float = Field(default=50.0, gt=0.0, le=1000.0)
    """Larger images go to quarantine before they are decoded (decompression bombs)."""
    encoding: str = "auto"
    """Text encoding of CSV files; auto looks at the bytes."""
    separator: str = "auto"
    """Separator of CSV files; auto looks at the first lines."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first line of a CSV file names the columns; auto looks at the lines. no: column_1, column_2 …"""
    decimal: Literal["auto", ".", ","] = "auto"
    """Decimal mark of CSV files."""
    columns: list[ColumnOverride] = Field(default_factory=list)
    """Columns that the tool would read wrongly, and what they are."""
    holdout_fraction: float = Field(default=0.2, gt=0.0, lt=0.9)
    """Share of each class kept aside for the last comparison, where no column or URI is given."""
    holdout_column: str = ""
    """A column that marks hold-out records: true/1, or one of holdout, test. It is not published."""
    holdout_uri: Location = ""
    """Hold-out records of their own; never copied, never trained on."""
    on_overlap: Literal["drop", "error"] = "drop"
    """Records of the source that are also in the hold-out URI: leave them out of training and count them, or stop."""
    validation_fraction: float = Field(default=0.2, gt=0.0, lt=0.9)
    """Share of the training records that choose between strategies."""
    group_column: str = ""
    """Records with the same value (a patient, a machine) stay on one side of the split."""
    group_pattern: str = ""
    r"""The same for images, from their paths: a regular expression (RE2) with one group, e.g. '(smear\d+)_'. Empty, and
    no group column: near-duplicate images stay together."""
    storage_block: str = ""
    """Name of a saved Prefect storage block with the credentials, e.g. remote-file-system/lake."""

    @model_validator(mode="after")
    def _one_holdout_and_group(self) -> "Source":
        if self.holdout_column and self.holdout_uri:
            raise ValueError("holdout_column and holdout_uri are both given; keep one of them.")
        if not self.group_pattern:
            return self
        if self.group_column:
            raise ValueError("group_column and group_pattern are both given; keep one of them.")
        try:
            n_groups = re.compile(self.group_pattern).groups
        except re.error as exc:
            raise ValueError(f"group_pattern is not a regular expression: {exc}.") from exc
        if n_groups != 1:
            raise ValueError(
                f"group_pattern has {n_groups} groups; put parentheses around the one part of the path that names "
                "the group, and write (?:…) for others."
            )
        return self


class Destination(_Place):
    """Where the balanced dataset is published."""

    uri: Location = ""
    """A folder: a local path or any fsspec URL. Versions accumulate in it; work in progress is kept under _staging.
    Leave empty for a folder below prefect-augment in the home folder."""
    workspace: str = ""
    """Where everything stays that holds real records (staging, split, reports, models), so that the destination can
    be shared: a folder on the same storage. With publish.origins: [synthetic] it is <destination>-workspace unless you
    name one; with other origins there is none unless you do."""
    storage_block: str = ""
    """Name of a saved Prefect storage block with the credentials."""
