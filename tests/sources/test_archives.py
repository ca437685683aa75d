"""Archives made to harm, or damaged on the way."""

import io
import tarfile
import zipfile

import pytest

from prefect_augment.errors import InputError
from prefect_augment.sources import archives
from prefect_augment.sources.archives import read_archive


def zipped(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def read(data: bytes, name: str, megapixels: float = 50.0) -> list[archives.Member]:
    found = read_archive(io.BytesIO(data), name=name, n_bytes=len(data), max_megapixels=megapixels)
    return list(found)


@pytest.mark.parametrize(("pack", "name"), [(zipped, "x.zip"), (tarred, "x.tar.gz")])
def test_a_member_larger_than_any_image_is_not_unpacked(pack, name: str) -> None:  # type: ignore[no-untyped-def]
    small, large = read(pack({"a/1.png": b"1", "a/2.png": bytes(9 << 20)}), name, megapixels=1.0)
    assert (small.data, small.reason) == (b"1", "")
    assert (large.data, large.reason) == (b"", "oversized (more bytes than an image may have)")


@pytest.mark.parametrize(("pack", "name"), [(zipped, "x.zip"), (tarred, "x.tar.gz")])
def test_an_archive_that_unpacks_to_far_more_than_it_weighs_is_refused(  # type: ignore[no-untyped-def]
    pack, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MIN_TOTAL_BYTES", 1 << 20)
    bomb = pack({f"a/{i}.bmp": bytes(1 << 20) for i in range(40)})
    with pytest.raises(InputError, match=r"unpacks to more than .* decompression bombs"):
        read(bomb, name)


def test_a_zip_whose_directory_lies_about_a_size_is_not_read_on() -> None:
    data = zipped({"a/1.png": bytes(100_000)})
    lie = data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (member,) = read(lie, "x.zip")
    assert member.data == b""
    assert member.reason


def test_a_member_with_a_wrong_checksum_is_quarantined_alone() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a/1.png", b"first")
        archive.writestr("a/2.png", b"other")
    first, second = read(sink.getvalue().replace(b"first", b"fIrst"), "x.zip")
    assert first.reason == "cannot be unpacked: its checksum is wrong"
    assert second.data == b"other"


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def test_what_is_no_archive_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="cannot be read as an archive"):
        read(b"not an archive at all" * 100, name)


def test_positions_count_members_from_one() -> None:
    members = read(tarred({"a/1.png": b"1", "a/2.png": b"2"}), "x.tgz")
    assert [(m.position, m.path) for m in members] == [(1, "a/1.png"), (2, "a/2.png")]
