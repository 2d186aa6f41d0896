"""Bytes by key, one thin typed layer over obstore: file://, memory://, s3://, gs:// and az:// by one URL.

Keys are relative, with `/` between their parts. A written object is whole or absent, never half.
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, from_url

from luthier.core.errors import AlreadyExists, InvalidParameter, NotFound, StorageUnavailable

_PART = 8 * 1024 * 1024  # bytes read from or sent to the store at a time
_AT_ONCE = 4  # parts of a stream on their way to the store: what a stream takes of the memory


class ObjectNotFound(NotFound):
    code = "object_not_found"


@dataclass(frozen=True)
class StoredObject:
    """`md5` is known of what came as a stream."""

    key: str
    size: int
    sha256: str
    md5: str | None = None


class Storage:
    """One store. Every method raises ObjectNotFound for a missing key and StorageUnavailable when the store fails.

    A key that leaves the store, or has an empty part, is an InvalidParameter.
    """

    def __init__(self, url: str, *, cache: Path | None = None) -> None:
        """Open the store at `url`; `cache` is where `folder` puts what does not lie on this machine already."""
        self.url = url
        self.cache = cache
        self._root: Path | None = None
        if url.startswith("file://"):
            self._root = Path(url2pathname(urlparse(url).path))
            self._root.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(self._root)
        elif url.startswith("memory://"):
            self._store = MemoryStore()
        else:
            self._store = from_url(url)

    def read(self, key: str) -> bytes:
        with _translated(key):
            return bytes(obstore.get(self._store, key).bytes())

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` to before `end`."""
        with _translated(key):
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def local_path(self, key: str) -> Path | None:
        """Where an object lies on this machine, read only; None for a store that is elsewhere."""
        return self._root / key if self._root is not None else None

    def write(self, key: str, data: bytes) -> StoredObject:
        """Write or replace an object."""
        with _translated(key):
            obstore.put(self._store, key, data)
        return StoredObject(key, len(data), hashlib.sha256(data).hexdigest())

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet. Raises AlreadyExists; of several writers exactly one succeeds."""
        with _translated(key):
            obstore.put(self._store, key, data, mode="create", use_multipart=False)

    def exists(self, key: str) -> bool:
        try:
            with _translated(key):
                obstore.head(self._store, key)
        except ObjectNotFound:
            return False
        return True

    def list(self, prefix: str, *, after: str | None = None) -> list[str]:
        """Keys below the folder `prefix`, sorted; only those that sort after the key `after` where it is given."""
        with _translated(prefix):
            pages = obstore.list(self._store, prefix=prefix)
            keys = sorted(item["path"] for page in pages for item in page)
        return [key for key in keys if after is None or key > after]

    def delete(self, prefix: str) -> None:
        """Remove every object below the folder `prefix`, and the object of that name; absent ones are no error."""
        if not prefix.strip("/"):
            raise ValueError("a store is not emptied by one call")
        with _translated(prefix):
            keys = [key for key in [*self.list(prefix), prefix] if self.exists(key)]
            if keys:
                obstore.delete(self._store, keys)
        if self._root is not None:
            _sweep(self._root / prefix.strip("/"))

    def upload(self, source: Path, key: str) -> StoredObject:
        """Copy a file of this machine into the store, streamed."""
        with _translated(key):
            obstore.put(self._store, key, source)
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredObject(key, source.stat().st_size, digest)

    def settle(self, prefix: str) -> None:
        """Return once the objects below `prefix` would survive a loss of power; other stores than local ones see to it."""
        if self._root is None:
            return
        top = self._root / prefix
        for path in [*top.rglob("*"), top, *(parent for parent in top.parents if parent.is_relative_to(self._root))]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def download(self, key: str, target: Path) -> None:
        """Copy an object to a file of this machine, streamed; the file appears whole."""
        partial = _beside(target)
        try:
            with _translated(key):
                chunks = obstore.get(self._store, key).stream(min_chunk_size=_PART)
                target.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as out:
                    out.writelines(chunks)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def folder(self, prefix: str, *, only: Collection[str] | None = None) -> Path:
        """The objects below `prefix` as a folder of this machine, for libraries that open files by path; read only.

        In a local store it is the folder itself; otherwise it is copied into the cache once, so such objects must
        never change. With `only`, no others than these names are sure to be there. Raises ObjectNotFound when there is none.
        """
        keys = self.list(prefix)
        if not keys:
            raise ObjectNotFound(f"Nothing is stored under {prefix!r}.")
        if self._root is not None:
            return self._root / prefix
        if self.cache is None:
            raise StorageUnavailable(f"No cache folder was given to copy {prefix!r} to.")
        target = self.cache / prefix
        if only is not None and not target.exists():
            keys = [key for key in keys if key.rsplit("/", 1)[-1] in only]
            target = self.cache / f"{prefix}.{hashlib.sha256(repr(sorted(only)).encode()).hexdigest()[:12]}"
        if not target.exists():
            partial = _beside(target)
            try:
                for key in keys:
                    self.download(key, partial / key.removeprefix(prefix).lstrip("/"))
                with suppress(OSError):  # somebody else was first; their copy is as good
                    partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    def lines(self, key: str, *, longest: int = 64 * 1024 * 1024) -> Iterator[bytes]:
        """The lines of an object without their line feeds, streamed; of a longer line only its first `longest` bytes."""
        rest = b""
        for chunk in self.stream(key):
            first, *whole = chunk.split(b"\n")
            rest += first[: longest - len(rest)]
            if whole:
                yield rest
                *whole, rest = whole
                yield from (line[:longest] for line in whole)
                rest = rest[:longest]
        if rest:
            yield rest

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes of an object, some megabytes at a time."""
        with _translated(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_PART):
                yield bytes(chunk)

    async def stream_async(self, key: str) -> AsyncIterator[bytes]:
        with _translated(key):
            async for chunk in (await obstore.get_async(self._store, key)).stream(min_chunk_size=_PART):
                yield bytes(chunk)

    async def write_stream(self, key: str, chunks: AsyncIterator[bytes]) -> StoredObject:
        """Write an object from a stream, counting and hashing on the way. When the stream fails nothing is left behind."""
        digest, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                await asyncio.to_thread(_update, chunk, digest, md5)  # others are served meanwhile
                size += len(chunk)
                yield chunk

        with _translated(key):
            await obstore.put_async(self._store, key, counted(), max_concurrency=_AT_ONCE)
        return StoredObject(key, size, digest.hexdigest(), md5.hexdigest())


def _update(chunk: bytes, *digests: hashlib._Hash) -> None:
    for digest in digests:
        digest.update(chunk)


def _beside(target: Path) -> Path:
    """A name for what will be `target`, used by this thread alone."""
    return target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")


def _sweep(path: Path) -> None:
    """Remove what writers that were killed left unfinished at or below a deleted path: `name#1` and the like."""
    shutil.rmtree(path, ignore_errors=True)
    for half in path.parent.glob(f"{glob.escape(path.name)}#*"):
        half.unlink(missing_ok=True)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Turn the client library's errors into ours."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as missing:
        raise ObjectNotFound(f"Nothing is stored under {key!r}.") from missing
    except (AlreadyExistsError, FileExistsError) as exists:
        raise AlreadyExists(f"{key!r} is stored already.") from exists
    except ValueError as refused:
        raise InvalidParameter("key", f"{key!r} is no key of an object: {refused}") from refused
    except BaseError as failed:
        raise StorageUnavailable(f"The storage failed on {key!r}: {failed}") from failed


def digest(folder: Path, pattern: str = "*") -> str:
    """sha256 over names and contents of the files in a folder that match, whatever their order on the disk."""
    return digest_of(contents(folder, pattern))


def contents(folder: Path, pattern: str = "*") -> dict[str, str]:
    """The files in a folder that match, by name: the sha256 of each."""
    found: dict[str, str] = {}
    for path in folder.glob(pattern):
        if path.is_file():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def digest_of(contents: Mapping[str, str]) -> str:
    """What `digest` says of a folder with such files."""
    return hashlib.sha256("".join(f"{name}\0{contents[name]}\n" for name in sorted(contents)).encode()).hexdigest()
