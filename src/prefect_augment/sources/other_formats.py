"""Formats that are not read, by name and first bytes, with what to do."""

from collections import Counter
from collections.abc import Iterable

_PANDAS = "save it as CSV or Parquet, e.g. pandas.{}({!r}).to_parquet('data.parquet')"
_DATABASE = "give the file itself, with the table behind a #, as shop.db#orders"
_EXPORT = "export its table as Parquet or CSV"
_CODE = "it can run code when it is opened, so write it as Parquet where you trust it"
_ARRAYS = "write its arrays as Parquet, or its images as files"
_PICTURES = "convert its pictures to PNG"
# A format's name and endings, and the reader of pandas or what else to do.
_FORMATS = (
    ("SPSS", ".sav .zsav", "read_spss"),
    ("Stata", ".dta", "read_stata"),
    ("SAS", ".sas7bdat .xpt", "read_sas"),
    ("ORC", ".orc", "read_orc"),
    ("HDF5", ".h5 .hdf5 .hdf", "read_hdf"),
    ("JSON", ".json .json.gz", "read_json"),
    ("XML", ".xml", "read_xml"),
    ("text", ".txt .dat .csv.bz2 .csv.xz .csv.zst .csv.zip", "read_csv"),
    ("Excel", ".xlsx .xls", "name it .xlsx, and source.format auto reads it"),
    ("SQLite", ".sqlite .sqlite3 .db .db3", _DATABASE),
    ("DuckDB", ".duckdb", _DATABASE),
    ("Access", ".mdb .accdb", _EXPORT),
    ("Avro", ".avro", _EXPORT),
    ("ARFF", ".arff", _EXPORT),
    ("R", ".rds .rdata .rda", _EXPORT),
    ("MATLAB", ".mat", _EXPORT),
    ("pickle", ".pkl .pickle .joblib", _CODE),
    ("NumPy", ".npy .npz", _ARRAYS),
    ("TFRecord", ".tfrecord .tfrecords", _ARRAYS),
    ("DICOM", ".dcm .dicom", _PICTURES),
    ("NIfTI", ".nii .nii.gz", _PICTURES),
    ("HEIF", ".heic .heif", _PICTURES),
    ("video", ".mp4 .avi .mov .mkv", _PICTURES),
    ("7-Zip", ".7z", "unpack it"),
    ("RAR", ".rar", "unpack it"),
)
_BY_ENDING = {
    ending: (name, advice) for name, endings, advice in _FORMATS for ending in endings.split()
}
_MAGIC = (
    (b"SQLite format 3\0", ".sqlite"),
    (b"\xd0\xcf\x11\xe0", ".xls"),
    (b"PK\x03\x04", ".xlsx"),
    (b"\x89HDF", ".h5"),
    (b"ORC", ".orc"),
    (b"Obj\x01", ".avro"),
    (b"\x93NUMPY", ".npy"),
    (b"7z\xbc\xaf", ".7z"),
    (b"Rar!", ".rar"),
)


def _known(path: str, ending: str = "") -> tuple[str, str] | None:
    """Return the name of a file's format that is not read, and what to do; None for others."""
    low = path.lower()
    ending = ending or max((e for e in _BY_ENDING if low.endswith(e)), key=len, default="")
    if not ending:
        return None
    name, advice = _BY_ENDING[ending]
    return name, _PANDAS.format(advice, path) if advice.startswith("read_") else advice


def name_others(paths: Iterable[str]) -> str:
    """Return the files of formats that are not read, by format, with what to do; empty for none."""
    named = [(path, *known) for path in sorted(paths) if (known := _known(path))]
    counts = Counter(name for _, name, _ in named)
    first = {name: (path, advice) for path, name, advice in reversed(named)}
    return "; ".join(
        "{} {} file{} ({}): {}".format(n, name, "s" * (n > 1), *first[name])
        for name, n in counts.most_common(3)
    )


def what_it_is(start: bytes, name: str) -> str:
    """Return what a file that should be text is by its first bytes, with what to do; empty if unknown."""
    ending = next((ending for magic, ending in _MAGIC if start.startswith(magic)), "")
    known = _known(name, ending) if ending else None
    return "it is of the format {}, whatever its name says: {}".format(*known) if known else ""
