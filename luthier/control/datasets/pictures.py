"""The images of rows: brought once, told by their content, decoded in a process with limits, pinned by their sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.errors import AlreadyExists, InvalidRequest
from luthier.fetcher import Fetcher, FetchRefused
from luthier.formats._turns import images_in, source_of
from luthier.formats.base import Findings, Row
from luthier.images.archives import Archive
from luthier.images.decoding import Decoder, ImageRefused, Picture, from_data_url
from luthier.records.problems import shown
from luthier.storage import ObjectNotFound, Storage

_REMEMBERED = 100_000


@dataclass(frozen=True)
class Pins:
    """Where fetched images are kept: under `prefix`, the bytes by their sha256, and for each URL which they are.

    What is pinned is never fetched again, not even by another look at the same file.
    """

    storage: Storage
    prefix: str

    def get(self, url: str) -> bytes | None:
        try:
            sha256 = self.storage.read(self._of(url)).decode()
            return self.storage.read(f"{self.prefix}/{sha256}")
        except ObjectNotFound:
            return None

    def put(self, url: str, data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        self.storage.write(f"{self.prefix}/{sha256}", data)
        try:
            self.storage.create(self._of(url), sha256.encode())
        except AlreadyExists:
            return  # somebody was first; theirs holds

    def _of(self, url: str) -> str:
        return f"{self.prefix}/urls/{hashlib.sha256(url.encode()).hexdigest()}"


class Pictures:
    """Checks the images of rows. A context manager: the decoder's process ends with it."""

    def __init__(self, *, archive: Archive | None = None, hosts: Sequence[str] = (), pins: Pins | None = None) -> None:
        self._archive = archive
        self._fetcher = Fetcher(hosts=hosts)
        self._pins = pins
        self._decoder = Decoder()
        self._seen: dict[str, InvalidRequest | None] = {}  # by name or URL: what is wrong with it

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def check(self, row: Row, findings: Findings) -> None:
        """Look at every image of a row that has no other problem."""
        for path in images_in(row.get("messages")):
            source = source_of(row["messages"][path[0]]["content"][path[2]])
            refused = self._refused(source)
            if refused is None:
                continue
            where, why = ("messages", *path), refused.message.rstrip(".")
            if isinstance(refused, FetchRefused):
                findings.add("image_not_fetched", where, found=shown(source), expected=refused.text.rstrip("."))
            elif refused.code == "image_missing":
                findings.add("image_not_in_archive", where, found=shown(source))
            else:
                findings.add("image_unreadable", where, found=why)

    def _refused(self, source: str) -> InvalidRequest | None:
        if source.startswith("data:"):
            return self._fault(source)
        if source not in self._seen:  # rows often share an image, and what failed once is not tried again
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[source] = self._fault(source)
        return self._seen[source]

    def _fault(self, source: str) -> InvalidRequest | None:
        try:
            self._examine(source)
        except (ImageRefused, FetchRefused) as refused:
            return refused
        return None

    def _examine(self, source: str) -> Picture:
        if source.startswith("data:"):
            declared, data = from_data_url(source)
            return self._decoder.examine(data, declared=declared)
        if not source.startswith(("http://", "https://")):
            if self._archive is None:
                raise ImageRefused("image_missing", f"{source[:60]} is a name, and the file is no archive")
            return self._decoder.examine(self._archive.image(source))
        if self._pins is not None and (pinned := self._pins.get(source)) is not None:
            return self._decoder.examine(pinned)
        fetched = self._fetcher.get(source)
        picture = self._decoder.examine(fetched.data)
        if self._pins is not None:
            self._pins.put(source, fetched.data)
        return picture
