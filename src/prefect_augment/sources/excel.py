"""Excel and OpenDocument workbooks as sources, by calamine."""

import io
import zipfile
from typing import IO

import numpy as np
import pyarrow as pa

from prefect_augment.errors import EmptyFileError, InputError, MissingExtraError
from prefect_augment.params import Source
from prefect_augment.sources.archives import refuse_bomb, size_of
from prefect_augment.sources.base import SourceRecords, refuse_duplicates, untrusted
from prefect_augment.text import suggestion


def read_sheet(file: IO[bytes], *, name: str, source: Source, sheet: str = "") -> SourceRecords:
    """Return the records of one sheet, the first by default, whose first line names the columns; types go by all cells.

    Raises InputError if the workbook is damaged, unpacks to far more than its size, or has no such sheet.
    """
    try:
        import fastexcel
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"{name} needs fastexcel: pip install 'prefect-augment[excel]'", extra="excel"
        ) from exc
    n_bytes = size_of(file)
    data = file.read()
    with untrusted(name, "an Excel workbook"):
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as parts:
                refuse_bomb(name, n_bytes, sum(part.file_size for part in parts.infolist()))
        book = fastexcel.read_excel(data)
        sheets = book.sheet_names
        if sheet and sheet not in sheets:
            raise InputError(
                f"{name} has no sheet {sheet!r}; {suggestion(sheet, sheets)}.", path=name
            )
        batch = book.load_sheet(sheet or 0, schema_sample_rows=None).to_arrow()
    if not batch.num_columns:
        raise EmptyFileError(f"sheet {sheet or sheets[0]!r} of {name} is empty.", path=name)
    refuse_duplicates(batch.schema.names, name)
    schema = pa.schema([field.with_nullable(True) for field in batch.schema])
    others = ", ".join(map(repr, sheets[1:6]))
    note = f"sheet {sheets[0]!r} was read, not {others}; name another behind a #"
    return SourceRecords(
        pa.Table.from_batches([batch]).cast(schema),
        np.arange(1, batch.num_rows + 1, dtype=np.int64),
        notes=(note,) if len(sheets) > 1 and not sheet else (),
    )
