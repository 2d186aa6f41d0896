"""Bytes by key, the same on a disk and in memory: whole or absent, created once, streamed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier import storage as module
from luthier.core.errors import AlreadyExists, InvalidParameter, StorageUnavailable
from luthier.storage import ObjectNotFound, Storage, digest


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    url = {"file": (tmp_path / "objects").as_uri(), "memory": "memory://"}[request.param]
    return Storage(url, cache=tmp_path / "cache")


async def stream(*chunks: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if then is not None:
        raise then


async def test_what_is_written_is_read_back_whole_and_in_pieces(storage: Storage) -> None:
    stored = storage.write("a/b", b"hello")
    assert (stored.key, stored.size, stored.sha256) == ("a/b", 5, hashlib.sha256(b"hello").hexdigest())
    assert storage.read("a/b") == b"hello"
    assert b"".join([chunk async for chunk in storage.stream_async("a/b")]) == b"hello"
    storage.write("a/b", b"other")
    assert storage.read("a/b") == b"other"


@pytest.mark.parametrize(
    "use",
    [
        lambda storage, _: storage.read("absent"),
        lambda storage, _: list(storage.lines("absent")),
        lambda storage, folder: storage.download("absent", folder / "new/target"),
        lambda storage, _: storage.folder("absent"),
    ],
    ids=["read", "lines", "download", "folder"],
)
def test_a_missing_key_is_said_and_leaves_nothing_behind(storage: Storage, tmp_path: Path, use: Callable) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ObjectNotFound, match="absent"):
        use(storage, tmp_path)
    assert not storage.exists("absent")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_object_is_created_once(storage: Storage) -> None:
    storage.create("attempts/0001", b"first")
    with pytest.raises(AlreadyExists, match="attempts/0001"):
        storage.create("attempts/0001", b"second")
    assert storage.read("attempts/0001") == b"first"


def test_of_many_threads_exactly_one_creates_an_object(storage: Storage) -> None:
    together = threading.Barrier(8)

    def create(number: int) -> int | None:
        together.wait()
        try:
            storage.create("one", str(number).encode())
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        [winner] = [number for number in threads.map(create, range(8)) if number is not None]
    assert storage.read("one") == str(winner).encode()


def test_a_folder_lists_what_lies_below_it_sorted(storage: Storage) -> None:
    for key in ("runs/b", "runs/a/2", "runs/a/1", "runs-other"):
        storage.write(key, b"")
    assert storage.list("runs") == ["runs/a/1", "runs/a/2", "runs/b"]
    assert storage.list("runs", after="runs/a/1") == ["runs/a/2", "runs/b"]
    assert storage.list("runs", after="runs/z") == []
    assert storage.list("nothing") == []


def test_delete_takes_a_folder_or_an_object_and_may_be_repeated(storage: Storage) -> None:
    for key in ("a/1", "a/b/2", "ab", "c"):
        storage.write(key, b"")
    for _ in range(2):
        storage.delete("a")
        assert storage.list("") == ["ab", "c"]
    storage.delete("c")
    assert storage.list("") == ["ab"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a\r", b"b\r"]),
        (b"\n\na\n\n", [b"", b"", b"a", b""]),
        (b"abcdef\nghijkl\nm\n", [b"abcdef", b"ghijkl", b"m"]),
        ("åäö\n谢谢\n".encode(), ["åäö".encode(), "谢谢".encode()]),
    ],
)
@pytest.mark.parametrize("part", [1, 2, 7, 1024])
def test_lines_are_the_same_wherever_a_chunk_ends(storage, monkeypatch, part: int, content: bytes, lines) -> None:
    monkeypatch.setattr(module, "_PART", part)
    storage.write("file", content)
    assert list(storage.lines("file")) == lines


async def test_a_stream_is_counted_and_hashed_on_the_way(storage: Storage) -> None:
    chunks = [bytes([number]) * 3_000_000 for number in range(4)]
    stored = await storage.write_stream("big", stream(*chunks))
    assert (stored.size, stored.sha256) == (12_000_000, hashlib.sha256(b"".join(chunks)).hexdigest())
    assert storage.read("big") == b"".join(chunks)


@pytest.mark.parametrize("chunks", [(), (b"some",), (b"x" * 6_000_000,) * 3], ids=["none", "little", "much"])
async def test_a_stream_that_fails_leaves_nothing_behind(storage: Storage, tmp_path: Path, chunks) -> None:
    with pytest.raises(ConnectionError, match="went away"):
        await storage.write_stream("files/new", stream(*chunks, then=ConnectionError("the caller went away")))
    assert storage.list("") == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_files_go_up_and_come_down(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100_000)
    stored = storage.upload(tmp_path / "source", "models/weights")
    assert (stored.size, stored.sha256) == (100_000, hashlib.sha256(b"x" * 100_000).hexdigest())
    storage.download("models/weights", tmp_path / "deep/down/target")
    assert (tmp_path / "deep/down/target").read_bytes() == b"x" * 100_000
    assert [path.name for path in (tmp_path / "deep/down").iterdir()] == ["target"]


def test_objects_become_a_folder_for_libraries_that_want_one(storage: Storage) -> None:
    storage.write("models/toy/config.json", b"{}")
    storage.write("models/toy/deep/weights", b"123")
    folder = storage.folder("models/toy")
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "deep/weights").read_bytes() == b"123"
    assert storage.folder("models/toy") == folder


def test_many_threads_that_want_a_folder_get_it_whole(tmp_path: Path) -> None:
    storage = Storage("memory://", cache=tmp_path / "cache")
    for number in range(20):
        storage.write(f"models/toy/{number}", b"x" * 1000)
    together = threading.Barrier(8)

    def files(_: int) -> int:
        together.wait()
        return sum(path.stat().st_size for path in storage.folder("models/toy").iterdir())

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(files, range(8))) == [20_000] * 8
    assert [path.name for path in (tmp_path / "cache/models").iterdir()] == ["toy"]


def test_a_distant_folder_needs_a_cache() -> None:
    storage = Storage("memory://")
    storage.write("models/toy/weights", b"")
    with pytest.raises(StorageUnavailable, match="cache"):
        storage.folder("models/toy")


@pytest.mark.parametrize("key", ["../outside", "a//b"])
def test_a_key_that_is_none_is_said(storage: Storage, key: str) -> None:
    with pytest.raises(InvalidParameter, match="is no key of an object"):
        storage.read(key)


def test_a_store_that_fails_is_not_a_missing_object(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    storage.write("a", b"")
    with pytest.raises(StorageUnavailable):
        storage.read("a/b")  # below something that is no folder


def test_a_digest_is_of_names_and_contents_and_passes_over_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = digest(tmp_path)
    (tmp_path / "sub").mkdir()
    assert digest(tmp_path) == before
    (tmp_path / "b").write_bytes(b"2")
    assert digest(tmp_path, "a*") == before != digest(tmp_path)
    (tmp_path / "a").write_bytes(b"3")
    assert digest(tmp_path, "a*") != before
