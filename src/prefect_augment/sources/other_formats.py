"""Formats that are not read, by name and first bytes, with what to do."""

from collections import Counter
from collections.abc import Iterable

_PANDAS = "save it as CSV or Parquet, e.g. pandas.{}({!r}).to_parquet('data.parquet')"
_BY_READER: dict[str, dict[str, tuple[str, ...]]] = {
    "read_spss": {"SPSS": (".sav", ".zsav")},
    "read_stata": {"Stata": (".dta",)},
    "read_sas": {"SAS": (".sas7bdat", ".xpt")},
    "read_orc": {"ORC": (".orc",)},
    "read_hdf": {"HDF5": (".h5", ".hdf5", ".hdf")},
    "read_json": {"JSON": (".json", ".json.gz")},
    "read_xml": {"XML": (".xml",)},
    "read_csv": {"text": (".txt", ".dat", ".csv.bz2", ".csv.xz", ".csv.zst", ".csv.zip")},
}
_BY_ADVICE: dict[str, dict[str, tuple[str, ...]]] = {
    "name it .xlsx, and source.format auto reads it": {"Excel": (".xlsx", ".xls")},
    "give the file itself, with the table behind a #, as shop.db#orders": {
        "SQLite": (".sqlite", ".sqlite3", ".db", ".db3"),
        "DuckDB": (".duckdb",),
    },
    "export its table as Parquet or CSV": {
        "Access": (".mdb", ".accdb"),
        "Avro": (".avro",),
        "ARFF": (".arff",),
        "R": (".rds", ".rdata", ".rda"),
        "MATLAB": (".mat",),
    },
    "it can run code when it is opened, so write it as Parquet where you trust it": {
        "pickle": (".pkl", ".pickle", ".joblib"),
    },
    "write its arrays as Parquet, or its images as files": {
        "NumPy": (".npy", ".npz"),
        "TFRecord": (".tfrecord", ".tfrecords"),
    },
    "convert its pictures to PNG": {
        "DICOM": (".dcm", ".dicom"),
        "NIfTI": (".nii", ".nii.gz"),
        "HEIF": (".heic", ".heif"),
        "video": (".mp4", ".avi", ".mov", ".mkv"),
    },
    "unpack it": {"7-Zip": (".7z",), "RAR": (".rar",)},
}
_ADVICE = {
    ending: (name, advice)
    for table in (_BY_READER, _BY_ADVICE)
    for advice, of in table.items()
    for name, endings in of.items()
    for ending in endings
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


def _ending(path: str) -> str:
    """Return the ending of a format that is not read; empty for others."""
    low = path.lower()
    return max((e for e in _ADVICE if low.endswith(e)), key=len, default="")


def name_others(paths: Iterable[str]) -> str:
    """Return the files of formats that are not read, by format, with what to do; empty for none.

    Examples
    --------
    >>> name_others(["2024/a.db", "readme.md"])
    '1 SQLite file (2024/a.db): export its table as Parquet or CSV'
    """
    known = sorted(path for path in paths if _ending(path))
    counts = Counter(_ADVICE[_ending(path)][0] for path in known)
    first = {_ADVICE[_ending(path)][0]: path for path in reversed(known)}
    sentences = []
    for name, n in counts.most_common(3):
        path = first[name]
        advice = _ADVICE[_ending(path)][1]
        if advice in _BY_READER:
            advice = _PANDAS.format(advice, path)
        sentences.append(f"{n} {name} file{'s' * (n > 1)} ({path}): {advice}")
    return "; ".join(sentences)


def what_it_is(start: bytes, name: str) -> str:
    """Return what a file that should be text is by its first bytes, with what to do; empty if unknown."""
    for magic, ending in _MAGIC:
        if start.startswith(magic):
            form, advice = _ADVICE[ending]
            if advice in _BY_READER:
                advice = _PANDAS.format(advice, name)
            return f"it is of the format {form}, whatever its name says: {advice}"
    return ""
