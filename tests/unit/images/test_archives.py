"""A zip of rows and images is read where it lies, and every trick that a zip can play is a named problem."""

from __future__ import annotations

import io
import random
import stat
import struct
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings

from luthier.images import archives
from luthier.images.archives import Archive, ArchiveRefused, Limits
from luthier.images.decoding import ImageRefused
from luthier.images.ranges import StoredFile
from tests.unit.images.pictures import GOOD_FILES, archive, mutated, picture, zeros

MIB = 1024**2
ROWS = {"train.jsonl": b"{}\n"}
CENTRAL = {"flags": (8, "H"), "method": (10, "H"), "crc": (16, "I"), "packed": (20, "I"), "expanded": (24, "I")}
CENTRAL |= {"mode": (38, "I"), "start": (42, "I")}
LOCAL = {"flags": (6, "H"), "method": (8, "H"), "extra": (28, "H")}


def opened(data: bytes, **limits: int) -> Archive:
    return Archive(io.BytesIO(data), limits=Limits(**limits))


def problems(data: bytes, **limits: int) -> list[tuple[str, str]]:
    with pytest.raises(ArchiveRefused) as caught:
        opened(data, **limits)
    assert all(problem.message for problem in caught.value.problems)
    return [(problem.code, problem.name) for problem in caught.value.problems]


def patched(data: bytes, name: str, where: str = "central", **values: int) -> bytes:
    """An archive whose table of contents (or header in front of the entry) says something else of one entry."""
    mark, length, fields = (b"PK\1\2", 46, CENTRAL) if where == "central" else (b"PK\3\4", 30, LOCAL)
    out, place = bytearray(data), -1
    while (place := data.find(mark, place + 1)) >= 0:
        if data[place + length :].startswith(name.encode()):
            for field, value in values.items():
                offset, form = fields[field]
                struct.pack_into(f"<{form}", out, place + offset, value)
            return bytes(out)
    raise AssertionError(name)


def link(name: str, mode: int = stat.S_IFLNK | 0o777) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def test_rows_and_images_are_read_without_extracting() -> None:
    found = opened(archive(GOOD_FILES))
    assert found.rows_name == "train.jsonl"
    assert dict(found.images) == {"a.jpg": len(GOOD_FILES["a.jpg"]), "图.png": len(GOOD_FILES["图.png"])}
    assert found.image("图.png") == GOOD_FILES["图.png"]
    assert list(found.open_rows()) == [b'{"messages": []}\n'] * 3
    assert found.notes == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_both_ways_of_packing_are_read(method: int) -> None:
    found = opened(archive(GOOD_FILES, method))
    assert found.image("a.jpg") == GOOD_FILES["a.jpg"]
    assert found.open_rows().read() == GOOD_FILES["train.jsonl"]


def test_a_streamed_zip64_archive_with_a_comment_behind_a_stub_is_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise OSError

        def tell(self) -> int:
            raise OSError

    out = Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:  # sizes stand behind the data
        packed.comment = b"made by hand"
        for name, data in GOOD_FILES.items():
            with packed.open(name, "w", force_zip64=True) as entry:
                entry.write(data)
    found = opened(b"#!/bin/sh\n" + out.getvalue())
    assert found.image("a.jpg") == GOOD_FILES["a.jpg"]


def test_one_shared_folder_is_left_off_and_junk_is_noted() -> None:
    files = {f"数据/{name}": data for name, data in GOOD_FILES.items()}
    junk = {"__MACOSX/数据/._a.jpg": b"x", "数据/.DS_Store": b"x", "数据/._train.jsonl": b"x", "Thumbs.db": b"x"}
    found = opened(archive({"数据/": b"", **files, **junk}))
    assert (found.rows_name, list(found.images)) == ("train.jsonl", ["a.jpg", "图.png"])
    assert found.image("a.jpg") == GOOD_FILES["a.jpg"]
    assert [name for name, _ in found.notes] == list(junk)


def test_names_are_compared_in_one_form() -> None:
    decomposed = unicodedata.normalize("NFD", "é.jpg")
    found = opened(archive({**ROWS, decomposed: picture()}))
    assert list(found.images) == ["é.jpg"]
    assert found.image(decomposed) == found.image("é.jpg") == picture()


def test_utf8_names_without_the_flag_are_read_as_utf8() -> None:
    data = archive({**ROWS, "图.jpg": picture()})
    for where in ("central", "local"):
        data = patched(data, "图.jpg", where, flags=0)
    assert list(opened(data).images) == ["图.jpg"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("b.jpg", "image_missing", "Add it"),
        ("A.JPG", "image_missing", "Did you mean a.jpg"),
        ("train.jsonl", "image_missing", ""),
        ("", "image_name_not_allowed", ""),
        ("..", "image_name_not_allowed", ""),
        ("../a.jpg", "image_name_not_allowed", ""),
        ("sub/a.jpg", "image_name_not_allowed", ""),
        ("/a.jpg", "image_name_not_allowed", ""),
        ("sub\\a.jpg", "image_name_not_allowed", ""),
        ("x" * 100_000, "image_missing", ""),
        ("a.jpg\0", "image_missing", ""),
        ("\ud800.jpg", "image_missing", ""),
    ],
)
def test_a_name_that_a_row_gives_and_that_is_not_there(name: str, code: str, said: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        opened(archive(GOOD_FILES)).image(name)
    assert caught.value.code == code
    assert said in caught.value.text
    assert len(caught.value.text) < 500


NAMES = {
    "../a.jpg": "archive_path",
    "../../etc/passwd": "archive_path",
    "x/../a.jpg": "archive_path",
    "./a.jpg": "archive_path",
    "..": "archive_path",
    "/a.jpg": "archive_path",
    "//host/a.jpg": "archive_path",
    "x//a.jpg": "archive_path",
    "C:a.jpg": "archive_path",
    "C:/a.jpg": "archive_path",
    "..\\a.jpg": "archive_path",
    "C:\\a.jpg": "archive_path",
    "a\n.jpg": "archive_name",
    "gpj.\u202ea.jpg": "archive_name",
    "a\u200b.jpg": "archive_name",
    "x" * 252 + ".jpg": "archive_name",
    "__MACOSX/../../a.jpg": "archive_path",
    "sub/a.jpg": "archive_path",
    "sub/deeper/a.jpg": "archive_path",
    "more.zip": "archive_in_archive",
    "more.TAR.GZ": "archive_in_archive",
    "a.gif": "archive_image_type",
    "a.SVG": "archive_image_type",
    "a.exe": "archive_other_file",
    "README": "archive_other_file",
    "jpg": "archive_other_file",
}


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_does_not_belong(name: str) -> None:
    found = problems(archive({**GOOD_FILES, name: b"x"}))
    assert NAMES[name] in [code for code, _ in found]
    assert all(shown.isprintable() and len(shown) <= 130 for _, shown in found)


def test_a_nul_in_a_name_is_seen() -> None:
    data = archive({**ROWS, "a.jpg_.exe": b"x"}).replace(b"a.jpg_.exe", b"a.jpg\0.exe")
    assert problems(data)[0] == ("archive_name", "a.jpg\\x00.exe")


def test_a_name_in_another_encoding_is_named() -> None:
    data = archive({**ROWS, "xxxx.jpg": b"x"}).replace(b"xxxx.jpg", "文件.jpg".encode("gbk"))
    assert problems(data)[0][0] == "archive_name_not_utf8"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_the_same_to_somebody_are_refused() -> None:
    pairs = [("a.jpg", "a.jpg"), ("é.jpg", unicodedata.normalize("NFD", "é.jpg"))]
    for first, second in pairs:
        data = archive([("train.jsonl", b"{}"), (first, b"x"), (second, b"y")])
        assert problems(data) == [("archive_duplicate", unicodedata.normalize("NFC", first))]
    for first, second in [("a.jpg", "A.JPG"), ("ß.png", "SS.png"), ("é.jpg", "E\u0301.jpg")]:
        data = archive([("train.jsonl", b"{}"), (first, b"x"), (second, b"y")])
        assert problems(data) == [("archive_duplicate", unicodedata.normalize("NFC", second))]


def test_links_and_devices_are_refused() -> None:
    modes = {"a.jpg": stat.S_IFLNK, "b.jpg": stat.S_IFIFO, "c.jpg": stat.S_IFCHR, "d.jpg": stat.S_IFDIR}
    data = archive(
        [("train.jsonl", b"{}"), *((link(name, mode | 0o777), b"/etc/passwd") for name, mode in modes.items())]
    )
    codes = ["archive_link", "archive_not_a_file", "archive_not_a_file", "archive_not_a_file"]
    assert problems(data) == list(zip(codes, modes, strict=True))
    dos = link("e.jpg")
    dos.create_system = 0  # the system that it claims to be from does not matter
    assert problems(archive([("train.jsonl", b"{}"), (dos, b"/etc/passwd")])) == [("archive_link", "e.jpg")]
    folder = link("train.jsonl")
    assert ("archive_link", "train.jsonl") in problems(archive([(folder, b"/etc/passwd"), ("a.jpg", b"x")]))


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2000])
def test_encrypted_entries_are_refused(flag: int) -> None:
    data = archive(GOOD_FILES)
    assert problems(patched(data, "a.jpg", flags=flag)) == [("archive_encrypted", "a.jpg")]
    only_local = opened(patched(data, "a.jpg", "local", flags=flag))
    with pytest.raises(ImageRefused, match="does not fit"):
        only_local.image("a.jpg")


def test_other_methods_are_refused() -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert ("archive_method", "a.jpg") in problems(archive(GOOD_FILES, method))
    assert problems(patched(archive(GOOD_FILES), "a.jpg", method=93)) == [("archive_method", "a.jpg")]


def test_there_is_one_text_file() -> None:
    assert problems(archive({"a.jpg": b"x"})) == [("archive_no_rows", "")]
    assert problems(archive({})) == [("archive_no_rows", "")]
    assert problems(archive({"a.jsonl": b"", "b.json": b""})) == [("archive_two_row_files", "")]
    assert opened(archive({"x/a.json": b"[]"})).rows_name == "a.json"


def test_all_problems_are_told_together() -> None:
    data = archive({"a.gif": b"x", "sub/b.jpg": b"x", "../c.jpg": b"x", "d.zip": b"x"})
    with pytest.raises(ArchiveRefused) as caught:
        opened(data)
    assert len(caught.value.problems) == 6  # the path of c.jpg counts twice, and there are no rows
    assert "and 3 more" in caught.value.text
    many = archive({f"{number}.gif": b"" for number in range(1500)})
    assert len(problems(many)) == archives.MOST_PROBLEMS


def test_limits_on_size_and_number() -> None:
    data = archive(GOOD_FILES)
    assert problems(data, most_packed_bytes=len(data) - 1) == [("archive_too_large", "")]
    assert problems(data, most_entries=2) == [("archive_too_many", "")]
    assert problems(data, most_expanded_bytes=100) == [("archive_unpacks_large", "")]
    assert problems(data, most_image_bytes=len(GOOD_FILES["a.jpg"]) - 1) == [("archive_image_too_large", "a.jpg")]
    assert opened(data, most_entries=3, most_packed_bytes=len(data)).rows_name == "train.jsonl"


def test_a_bomb_of_entries_is_refused_before_they_are_looked_at() -> None:
    data = archive({f"{number}.jpg": b"" for number in range(10_001)})
    contents = data[data.index(b"PK\1\2") : data.index(b"PK\5\6")]
    many = contents * 5  # 50,005 entries
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 5, 5, len(many), 0, 0)  # which says there are five
    tracemalloc.start()
    assert problems(data) == problems(many + end) == [("archive_too_many", "")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(many) + MIB
    huge = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 5, 5, 20 * MIB, 0, 0)
    assert problems(bytes(20 * MIB) + huge) == [("archive_too_many", "")]


def raw_archive(packed: bytes, expanded: int, crc: int = 0, name: bytes = b"a.jpg") -> bytes:
    """Rows, and one deflated entry that says of itself what it likes."""
    data = bytearray(archive({**ROWS, "~": b"x"}))
    start = data.index(b"PK\3\4", 1)
    contents = data.index(b"PK\1\2")
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), expanded, len(name), 0) + name
    rows = bytes(data[contents : data.index(b"PK\1\2", contents + 1)])
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), expanded, len(name), 0, 0, 0, 0, 0, start
    )
    table = rows + central + name
    body = bytes(data[:start]) + local + packed
    return body + table + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(table), len(body), 0)


def deflated_zeros(count: int) -> bytes:
    return zeros(count)[2:-4]


def test_a_bomb_that_admits_it_is_refused_by_its_ratio_and_by_its_size() -> None:
    bomb = raw_archive(deflated_zeros(50 * MIB), 50 * MIB)
    assert problems(bomb) == [("archive_bomb", "a.jpg"), ("archive_bomb", ""), ("archive_image_too_large", "a.jpg")]
    assert ("archive_bomb", "train.jsonl") in problems(archive({"train.jsonl": bytes(2 * MIB)}))
    assert opened(archive({"train.jsonl": bytes(MIB)})).rows_name == "train.jsonl"  # small: no harm


@pytest.mark.parametrize("crc", [0, zlib.crc32(bytes(1000))])
def test_a_bomb_that_hides_its_size_is_stopped_while_it_is_inflated(crc: int) -> None:
    bomb = raw_archive(deflated_zeros(50 * MIB), 1000, crc)
    tracemalloc.start()
    with pytest.raises(ImageRefused, match="more bytes than it declares") as caught:
        opened(bomb).image("a.jpg")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.code == "image_entry_damaged"
    assert peak < 2 * MIB
    rows = raw_archive(deflated_zeros(50 * MIB), 1000, crc, b"b.json").replace(b"train.jsonl", b"train..jpeg")
    with pytest.raises(ArchiveRefused, match="more bytes than it declares"):
        opened(rows).open_rows().read(2000)


PACKED = zlib.compress(b"x" * 1000)[2:-4]
CRC = zlib.crc32(b"x" * 1000)
BROKEN = {
    "fewer": (raw_archive(PACKED, 1001, CRC), "fewer bytes"),
    "checksum": (raw_archive(PACKED, 1000, CRC ^ 1), "checksum"),
    "cut off": (raw_archive(PACKED[:-2], 1000, CRC), "cut off"),
    "noise": (raw_archive(b"\xff" * 50, 1000, CRC), "damaged"),
    "stowaway": (raw_archive(PACKED + b"hidden", 1000, CRC), "belong to no file"),
    "far stowaway": (raw_archive(PACKED + bytes(100_000), 1000, CRC), "belong to no file"),
    "nothing": (raw_archive(b"", 1000, CRC), "cut off"),
    "other name": (patched(archive(GOOD_FILES), "a.jpg").replace(b"a.jpg", b"b.jpg", 1), "does not fit"),
    "other method": (patched(archive(GOOD_FILES), "a.jpg", "local", method=0), "does not fit"),
    "long header": (patched(archive(GOOD_FILES), "a.jpg", "local", extra=60_000), "overlaps"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_entry_that_is_not_what_it_declares(name: str) -> None:
    data, said = BROKEN[name]
    found = opened(data)
    with pytest.raises(ImageRefused, match=said) as caught:
        found.image("a.jpg")
    assert caught.value.code == "image_entry_damaged"


def test_entries_that_share_bytes_are_refused() -> None:
    data = archive(GOOD_FILES)
    assert problems(patched(data, "a.jpg", start=0)) == [("archive_damaged", "train.jsonl")]
    assert problems(patched(data, "a.jpg", packed=len(data), expanded=9)) == [("archive_damaged", "a.jpg")]
    last = patched(data, "图.png", packed=100_000, expanded=100_000)
    assert problems(last) == [("archive_damaged", "图.png")]
    quoted = patched(data, "a.jpg", start=20)  # the header of one inside the data of another
    assert ("archive_damaged", "train.jsonl") in problems(quoted)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        picture(),
        b"PK\5\6",
        b"PK\3\4" + bytes(100),
        archive(GOOD_FILES)[:-1],
        archive(GOOD_FILES)[10:-30],
        b"PK\5\6" + b"\xff" * 18,
        b"Rar!\x1a\7\0" + bytes(100),
    ],
    ids=range(9),
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    assert problems(data)[0][0] in ("archive_damaged", "archive_too_many")


def test_many_readers_share_an_archive() -> None:
    chance = random.Random(1)
    files = {f"{number}.jpg": chance.randbytes(chance.randrange(200_000)) for number in range(20)}
    found = opened(archive({**files, "rows.jsonl": b"row\n" * 100_000}))
    with ThreadPoolExecutor(4) as pool:
        images = pool.map(found.image, list(files) * 3)
        assert found.open_rows().read() == b"row\n" * 100_000
        assert list(images) == list(files.values()) * 3


def test_an_archive_that_lies_in_a_store_is_read_by_ranges() -> None:
    data = archive({**GOOD_FILES, "big.jpg": random.Random(1).randbytes(300_000)})
    asked: list[int] = []

    def read_range(start: int, end: int) -> bytes:
        asked.append(end - start)
        return data[start:end]

    found = Archive(StoredFile(read_range, len(data), block_bytes=1000, blocks_kept=100))
    assert found.image("a.jpg") == GOOD_FILES["a.jpg"]
    assert found.open_rows().read() == GOOD_FILES["train.jsonl"]
    assert sum(asked) < 100_000  # the big one was left where it is


def _use(data: bytes) -> None:
    found = opened(data)
    for name in found.images:
        read: Callable[[str], bytes] = found.image
        try:
            assert len(read(name)) == found.images[name]
        except ImageRefused as refused:
            assert refused.code == "image_entry_damaged"  # noqa: PT017
    found.open_rows().read()


FOLDED = {f"d/{name}": data for name, data in GOOD_FILES.items()}


@given(
    mutated(
        [archive(GOOD_FILES), archive(GOOD_FILES, zipfile.ZIP_STORED), archive(FOLDED), raw_archive(PACKED, 1000, CRC)]
    )
)
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_an_archive_or_refused(data: bytes) -> None:
    try:
        _use(data)
    except ArchiveRefused as refused:
        assert refused.problems  # noqa: PT017
