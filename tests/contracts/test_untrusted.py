"""Every reader of users' files on files made to harm: records, quarantine or an error that names the file.

Each case is small and runs in this process. `make faults` has a hundred times as many as the fast tests.
"""

import io
import random
import resource
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import grammars

from prefect_augment.errors import AugmentError, InputError, StorageError
from prefect_augment.params import Source
from prefect_augment.registry import FORMATS
from prefect_augment.sources.base import SourceRecords, guarded, untrusted
from prefect_augment.sources.discovery import LAYOUTS, Listing, list_source
from prefect_augment.sources.images.annotations import READERS, read_labels
from prefect_augment.sources.images.files import Member
from prefect_augment.sources.images.validation import BadImageError, check_image
from prefect_augment.sources.open import reader_of
from prefect_augment.storage import open_store

pytest.importorskip("PIL", reason="the extra 'images'")

N_CASES, N_FAST = 10_000, 100
MAX_SECONDS, MAX_MIB = 2.0, 256  # for a case; for all of them together

Run = Callable[[bytes], Any]


def file(kind: Any, name: str) -> Run:
    """Read all batches of one file through the reader that ingest takes."""
    listing = Listing(open_store("memory://untrusted"), (), kind)
    read = reader_of(listing)

    def run(data: bytes) -> None:
        for _ in read(io.BytesIO(data), name=name, source=Source(label="label")):
            pass

    return run


def beside(layout: Any, name: str) -> Run:
    """Read the labels of two images from a file that lies beside them."""
    picture = grammars.images()[0]
    images = [Member("a.png", 1, picture), Member("img/b.png", 2, picture)]
    others = [Member("img/b.txt", 4, b"0 .5 .5 .1 .1")] if layout == "yolo" else []

    def run(data: bytes) -> None:
        read_labels([*images, Member(name, 3, data), *others], Source(format=layout))

    return run


def card(data: bytes) -> None:
    store = open_store("memory://untrusted-card")
    for name in ("a.parquet", "img/b.parquet"):
        if not store.exists(name):
            store.put(name, b"PAR1")
    store.put("README.md", data)
    list_source(store.uri, requested="auto", options=None)


def picture(data: bytes) -> None:
    try:
        check_image(data, max_megapixels=1)
    except BadImageError as exc:
        raise InputError("picture: in quarantine") from exc


def anything(rng: random.Random) -> bytes:
    return grammars.text_json(rng, grammars.value(rng))


CASES: dict[str, tuple[grammars.Make, Run, str]] = {
    "csv": (grammars.csv, file("csv", "in.csv"), "in.csv"),
    "jsonl": (grammars.jsonl, file("jsonl", "in.jsonl"), "in.jsonl"),
    "parquet": (grammars.parquet, file("parquet", "in.parquet"), "in.parquet"),
    "arrow": (grammars.arrow, file("arrow", "in.arrow"), "in.arrow"),
    "excel": (grammars.workbook, file("excel", "in.xlsx"), "in.xlsx"),
    "tar": (grammars.tar, file("archive", "in.tar"), "in.tar"),
    "zip": (grammars.zip_file, file("archive", "in.zip"), "in.zip"),
    "coco": (grammars.coco, beside("coco", "coco.json"), "CO"),
    "voc": (grammars.voc, beside("voc", "a.xml"), "a.xml"),
    "yolo": (grammars.yolo, beside("yolo", "a.txt"), "a.txt"),
    "yolo names": (grammars.yaml, beside("yolo", "data.yaml"), "data.yaml"),
    "webdataset": (anything, beside("webdataset", "a.json"), ".json"),
    "metadata.jsonl": (grammars.jsonl, beside("auto", "metadata.jsonl"), "metadata"),
    "metadata.csv": (grammars.csv, beside("auto", "metadata.csv"), "metadata"),
    "dataset card": (grammars.card, card, "untrusted-card"),
    "image": (grammars.image, picture, "picture"),
}


def test_every_registered_reader_is_here() -> None:
    assert set(FORMATS) | set(READERS) - {"folder"} | {"tar", "zip"} <= set(CASES)
    assert set(LAYOUTS) == set(READERS)


def read_cases(name: str, cases: range) -> Counter[str]:
    """Count what becomes of the cases; an error of any other kind passes."""
    make, run, where = CASES[name]
    outcomes: Counter[str] = Counter()
    for case in cases:
        data = make(random.Random(case))
        before = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(data)
            outcomes["read"] += 1
        except AugmentError as exc:
            outcomes["refused" if where in str(exc) else f"case {case}: {exc}"] += 1
        seconds = time.process_time() - before
        assert seconds < MAX_SECONDS, f"case {case} of {name} took {seconds:.1f} s"
    return outcomes


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.parametrize("name", CASES)
def test_a_file_made_to_harm_is_read_or_refused_by_name(name: str) -> None:
    assert set(read_cases(name, range(N_FAST))) <= {"read", "refused"}


@pytest.mark.faults
@pytest.mark.parametrize("name", CASES)
def test_ten_thousand_files_made_to_harm_are_read_or_refused_by_name(name: str) -> None:
    read_cases(name, range(3))
    before = peak_mib()
    outcomes = read_cases(name, range(N_FAST, N_FAST + N_CASES))
    assert outcomes["read"] > 20, "else the grammar makes nothing that passes"
    assert set(outcomes) <= {"read", "refused"}
    assert peak_mib() - before < MAX_MIB


# --- the guard --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"),
        struct.error("short"),
        MemoryError(),
        KeyError("k"),
        OSError("format"),
    ],
)
def test_what_a_parser_raises_names_the_file(error: Exception) -> None:
    def read(file: Any, *, name: str, source: Source) -> Iterator[SourceRecords]:
        raise error
        yield

    with pytest.raises(InputError, match=r"in\.x cannot be read as X") as refused:
        next(guarded(read, "X")(io.BytesIO(), name="in.x", source=Source()))
    assert refused.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [OSError(5, "I/O error"), StorageError("gone"), InputError("own")]
)
def test_failures_of_a_store_and_our_own_words_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as passed, untrusted("in.x", "X"):
        raise error
    assert passed.value is error
