"""Files that nobody would write, from small grammars and changed bytes; the same for the same seed."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Make = Callable[[random.Random], bytes]

WORDS = (
    "", "a", "b", "cat", "dog", "0", "1", "-1", "1.5", "1e5", "1e999", "-inf", "nan", "NA", "null", "true",
    "2024-02-30", "2024-99-99", "2024-01-01 12:00", "24:61", "²", "٣", "é", "\u202e", "\ufeff", "\0",
    "\x1b[31m", "=1+1", "9" * 40,
    "0x10", "1_000", "1,5",
    "a.png", "img/b.png", "../up.png", "<b>", "{", "}", "[", "]",
    '"', "'", "\\", "%s", "*", "&a",
    "*a", "!!python/object:os.system", "---", "?", ":", "#", "|",
)  # fmt: skip
LABELS = ("label", "class", "category", "cls", "target", "file_name")


def changed(rng: random.Random, data: bytes, *, around: int | None = None) -> bytes:
    """Cut, flip, repeat or put in some bytes; ``around`` prefers a place."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        n = len(out)
        at = rng.randrange(n + 1)
        if around is not None and rng.random() < 0.7:
            at = max(0, min(n, around % (n + 1) + rng.randrange(-24, 24)))
        match rng.randrange(6):
            case 0:
                del out[at:]
            case 1:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                out[at : at + 4] = rng.choice(
                    (b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x80\x80\x80\x01")
                )
            case 3:
                out[at:at] = out[at : at + rng.randrange(1, 64)]
            case 4:
                del out[at : at + rng.randrange(1, 16)]
            case 5:
                out[at:at] = rng.choice(WORDS).encode()
    return bytes(out)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A value of JSON or YAML, sometimes nested, sometimes absurd."""
    match rng.randrange(9 if depth < 3 else 6):
        case 0:
            return rng.choice((0, 1, -1, 2**31, 2**63, 10**400, 1.5, float("inf"), float("nan")))
        case 1:
            return rng.choice((None, True, False))
        case 6:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 7 | 8:
            names = (*LABELS, "a", "")
            return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randrange(4))}
        case _:
            return rng.choice(WORDS)


def text_json(rng: random.Random, given: Any) -> bytes:
    """JSON of a value, sometimes cut or nested deeper than a stack is high."""
    if rng.random() < 0.02:
        n = rng.choice((60, 2000, 100_000))
        return b'{"annotations":' + b"[" * n + rng.choice((b"]" * n + b"}", b""))
    data = json.dumps(given, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return changed(rng, data) if rng.random() < 0.4 else data


# --- tables -----------------------------------------------------------------------------------


def csv(rng: random.Random) -> bytes:
    separator = rng.choice(",;\t|")
    end = rng.choice(("\n", "\r\n", "\r", "\n\n"))
    width = rng.randrange(1, 5)
    quoted = rng.choice((0.0, 0.2, 0.9))

    def field() -> str:
        text = rng.choice(WORDS)
        return f'"{text}"' if rng.random() < quoted else text

    rows = [
        separator.join(field() for _ in range(width + (rng.random() < 0.1)))
        for _ in range(rng.randrange(8))
    ]
    data = end.join(rows).encode(
        rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-be")), "replace"
    )
    if rng.random() < 0.1:
        data = gzip.compress(data)
    return changed(rng, data) if rng.random() < 0.3 else data


def jsonl(rng: random.Random) -> bytes:
    names = rng.sample((*LABELS, "a", "b"), 3)
    rows = [
        text_json(rng, {n: value(rng, 1) for n in names} if rng.random() < 0.8 else value(rng))
        for _ in range(rng.randrange(6))
    ]
    data = b"\n".join(rows)
    return gzip.compress(data) if rng.random() < 0.1 else data


@cache
def tables() -> tuple[pa.Table, ...]:
    rng = np.random.default_rng(0)
    plain = pa.table({"x": rng.normal(size=8), "n": [1, None] * 4, "label": ["a", "b"] * 4})
    rich = pa.table(
        {
            "label": pa.array(["a", "b", None]).dictionary_encode(),
            "at": pa.array([0, 1, 2], pa.timestamp("us", "Europe/Berlin")),
            "of": pa.array([[1], [], None], pa.list_(pa.int8())),
            "image": pa.array([{"bytes": b"\x89PNG", "path": "a.png"}] * 3),
        }
    )
    return plain, rich


@cache
def parquets() -> tuple[bytes, ...]:
    files = []
    for table, options in zip(
        tables(), ({"compression": "snappy"}, {"use_dictionary": False}), strict=True
    ):
        file = io.BytesIO()
        pq.write_table(table, file, **options)
        files.append(file.getvalue())
    return tuple(files)


def parquet(rng: random.Random) -> bytes:
    data = rng.choice(parquets())
    size = struct.unpack("<I", data[-8:-4])[0]  # the footer, of which most is Thrift
    return changed(rng, data, around=len(data) - 8 - rng.randrange(size))


@cache
def arrows() -> tuple[bytes, ...]:
    files = []
    for table in tables():
        for new in (pa.ipc.new_file, pa.ipc.new_stream):
            file = io.BytesIO()
            with new(file, table.schema) as writer:
                writer.write_table(table)
            files.append(file.getvalue())
    return tuple(files)


def arrow(rng: random.Random) -> bytes:
    data = rng.choice(arrows())
    return changed(rng, data, around=rng.choice((0, len(data) - 64, rng.randrange(len(data)))))


@cache
def workbooks() -> tuple[bytes, ...]:
    import openpyxl

    files = []
    for table in tables():
        book = openpyxl.Workbook()
        book.active.append(table.column_names)
        for row in zip(*table.to_pydict().values(), strict=True):
            plain = (str(v) if not isinstance(v, int | float | str | None) else v for v in row)
            book.active.append(list(plain))
        file = io.BytesIO()
        book.save(file)
        files.append(file.getvalue())
    return tuple(files)


def workbook(rng: random.Random) -> bytes:
    data = rng.choice(workbooks())
    return changed(rng, data, around=rng.choice((len(data) - rng.randrange(300), None)))


# --- images, and what lies beside them --------------------------------------------------------


@cache
def images() -> tuple[bytes, ...]:
    from PIL import Image

    files = []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        picture.save(file, form)
        files.append(file.getvalue())
    return tuple(files)


def image(rng: random.Random) -> bytes:
    return changed(rng, rng.choice(images()), around=rng.choice((16, 40, None)))


def coco(rng: random.Random) -> bytes:
    def one(**fields: Any) -> Any:
        return {
            k: value(rng, 2) if rng.random() < 0.1 else v
            for k, v in fields.items()
            if rng.random() < 0.97
        }

    number = lambda: rng.choice((0, 1, 2, -5, 0.5, 10**400, float("nan")))  # noqa: E731
    whole: dict[str, Any] = {
        "images": [one(id=i, file_name=rng.choice(("a.png", "b.png", "no.png"))) for i in range(3)],
        "categories": [one(id=i, name=rng.choice(WORDS)) for i in range(2)],
        "annotations": [
            one(
                image_id=rng.randrange(4),
                category_id=rng.randrange(3),
                bbox=[number() for _ in range(4)],
            )
            for _ in range(3)
        ],
    }
    if rng.random() < 0.1:
        whole[rng.choice(list(whole))] = value(rng)
    return text_json(rng, whole)


def voc(rng: random.Random) -> bytes:
    side = lambda: rng.choice(("1", "-5", "1e999", "x", "", "9" * 50))  # noqa: E731
    box = "".join(f"<{s}>{side()}</{s}>" for s in ("xmin", "ymin", "xmax", "ymax"))
    encoding = rng.choice(("utf-8", "utf-16", "hex", "idna", "utf-7", "nonsense", "rot13"))
    head = rng.choice(
        ("", f'<?xml version="1.0" encoding="{encoding}"?>', "<!DOCTYPE a [<!ENTITY x 'y'>]>")
    )
    name = rng.choice(("cat", "&x;", "&#0;", "²", ""))
    body = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>" * rng.randrange(3)
    if rng.random() < 0.01:
        body = "<a>" * 100_000
    data = f"{head}<annotation><filename>a.png</filename>{body}</annotation>".encode()
    return changed(rng, data) if rng.random() < 0.5 else data


def yolo(rng: random.Random) -> bytes:
    number = lambda: rng.choice(("0", "1", "0.5", "-1", "1e400", "9" * 400, "e", ".", "nan", "²"))  # noqa: E731
    lines = [
        " ".join(number() for _ in range(rng.choice((5, 5, 5, 4, 9))))
        for _ in range(rng.randrange(4))
    ]
    return rng.choice(("\n", "\r\n", "\x85")).join(lines).encode()


def yaml(rng: random.Random) -> bytes:
    word = lambda: rng.choice(WORDS)  # noqa: E731
    lines = [
        rng.choice(
            (
                f"names: [{word()}, {word()}]",
                f"names: {{{word()}: {word()}, 1: b}}",
                f"names:\n  {word()}: {word()}\n  - {word()}",
                f"date: {word()}",
                f"x: &a [{word()}]",
                "y: [*a, *a]",
                f"configs: [{{config_name: {word()}, data_files: {word()}}}]",
                f"data_files: {{train: {word()}}}",
                "names: " + "[" * rng.choice((3, 200)),
                "<<: {a: 1}",
                f"? {word()}\n: {word()}",
            )
        )
        for _ in range(rng.randrange(1, 4))
    ]
    data = "\n".join(lines).encode()
    return changed(rng, data) if rng.random() < 0.4 else data


def card(rng: random.Random) -> bytes:
    return b"---\n" + yaml(rng) + b"\n---\n# A data set\n"


# --- archives ---------------------------------------------------------------------------------


@cache
def archives() -> tuple[bytes, ...]:
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as one, zipfile.ZipFile(packed, "w") as other:
        for label in "ab":
            for i in range(2):
                member = tarfile.TarInfo(f"{label}/{i}.png")
                member.size = len(images()[0])
                one.addfile(member, io.BytesIO(images()[0]))
                other.writestr(member.name, images()[0], zipfile.ZIP_DEFLATED)
    return tar.getvalue(), packed.getvalue(), gzip.compress(tar.getvalue(), mtime=0)


def tar(rng: random.Random) -> bytes:
    data = rng.choice((archives()[0], archives()[0], archives()[2]))
    return changed(rng, data, around=rng.choice((0, 100, 124, 156, 257)) + 512 * rng.randrange(6))


def zip_file(rng: random.Random) -> bytes:
    data = archives()[1]
    return changed(rng, data, around=len(data) - rng.randrange(300))
