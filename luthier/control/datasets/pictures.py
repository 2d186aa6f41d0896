"""The images of rows: brought once, told by their content, decoded in a process with limits, pinned by their sha256."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from luthier.control.datasets.downloads import Downloads
from luthier.core.errors import AlreadyExists
from luthier.fetcher import Fetched, Fetcher, FetchRefused
from luthier.formats.base import DatasetFormat, Findings, Row
from luthier.images.archives import Archive
from luthier.images.decoding import Decoder, ImageRefused, from_data_url
from luthier.records.problems import Problem, shown
from luthier.records.reader import Blank, Record
from luthier.storage import ObjectNotFound, Storage

V = TypeVar("V")

_REMEMBERED = 100_000
_ROWS_AHEAD = 256
_CHARACTERS_AHEAD = 4 * 1024 * 1024


@dataclass(frozen=True)
class Pins:
    """Where fetched images are kept: under `prefix`, the bytes by their sha256, and for each URL which they are.

    What is pinned is never fetched again, by no file that shares the prefix. Of several who pin one URL the first one
    holds; all of them may go on with what `put` gives back.
    """

    storage: Storage
    prefix: str

    def get(self, url: str) -> bytes | None:
        try:
            sha256 = self.storage.read(self._of(url)).decode()
            return self.storage.read(f"{self.prefix}/{sha256}")
        except ObjectNotFound:
            return None

    def put(self, url: str, data: bytes) -> bytes:
        """Pin the bytes, and give back those that are pinned: others, where somebody was first."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.storage.write(f"{self.prefix}/{sha256}", data)  # before the URL names it
        try:
            self.storage.create(self._of(url), sha256.encode())
        except AlreadyExists:
            return self.get(url) or data
        return data

    def _of(self, url: str) -> str:
        return f"{self.prefix}/urls/{hashlib.sha256(url.encode()).hexdigest()}"


class Fault(NamedTuple):
    """What is wrong with an image, as a problem says it."""

    code: str
    found: str
    expected: str = ""


class Pictures:
    """Checks the images of rows. A context manager: its threads and the decoder's process end with it."""

    def __init__(self, *, archive: Archive | None = None, hosts: Sequence[str] = (), pins: Pins | None = None) -> None:
        self._archive = archive
        self._pins = pins
        self._decoder = Decoder()
        self._downloads = Downloads(Fetcher(hosts=hosts).get, self._brought)
        self._on_the_way: dict[str, Future[Fault | None]] = {}
        self._seen: dict[str, Fault | None] = {}  # by name or URL: what is wrong with it

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._downloads.close()
        self._decoder.close()

    def ahead(
        self, found: Iterable[Record | Problem | Blank], form: type[DatasetFormat]
    ) -> Iterator[Record | Problem | Blank]:
        """What was found in a file of that format, in its order, read some rows ahead so that their images are on the way."""
        window: deque[Record | Problem | Blank] = deque()
        characters = 0
        for one in found:
            window.append(one)
            characters += _characters(one)
            if isinstance(one, Record):
                self._begin(one, form)
            while len(window) > _ROWS_AHEAD or characters > _CHARACTERS_AHEAD:
                characters -= _characters(window[0])
                yield window.popleft()
        while window:
            yield window.popleft()

    def check(self, form: type[DatasetFormat], row: Row, findings: Findings) -> None:
        """Look at every image of a row of that format that has no other problem."""
        for path, source in form.images(row):
            if (fault := self._fault(source)) is not None:
                findings.add(fault.code, path, found=fault.found, expected=fault.expected)

    def _begin(self, record: Record, form: type[DatasetFormat]) -> None:
        """Ask for the images of a row, if it is one that they will be looked at of."""
        row = record.value
        if record.problems or not isinstance(row, dict) or not form.recognises(row):
            return
        findings = Findings(record, unplaced=frozenset(("error", "warning")))
        form.check(row, findings)
        if findings.problems:
            return
        for _, source in form.images(row):
            if _is_url(source) and source not in self._seen and source not in self._on_the_way:
                _kept(self._on_the_way, source, self._downloads.begin(source))

    def _fault(self, source: str) -> Fault | None:
        if source.startswith("data:"):
            return self._embedded(source)
        if source not in self._seen:  # rows often share an image, and what failed once is not tried again
            if _is_url(source):
                fault = (self._on_the_way.pop(source, None) or self._downloads.begin(source)).result()
            else:
                fault = self._named(source)
            _kept(self._seen, source, fault)
        return self._seen[source]

    def _embedded(self, source: str) -> Fault | None:
        try:
            declared, data = from_data_url(source)
            self._decoder.examine(data, declared=declared)
        except ImageRefused as refused:
            return Fault("image_unreadable", refused.code)
        return None

    def _named(self, name: str) -> Fault | None:
        if self._archive is None:
            return Fault("image_not_in_archive", shown(name))
        try:
            self._decoder.examine(self._archive.image(name))
        except ImageRefused as refused:
            if refused.code in ("image_missing", "image_name_not_allowed"):
                return Fault("image_not_in_archive", shown(name))
            return Fault("image_unreadable", refused.code)
        return None

    def _brought(self, url: str, get: Callable[[str], Fetched]) -> Fault | None:
        """In a thread of its own: what is told is small, so however many images are on the way, few lie in memory."""
        try:
            data = self._pins.get(url) if self._pins is not None else None
            is_pinned = data is not None
            if data is None:
                data = get(url).data
            self._decoder.examine(data)
            if self._pins is not None and not is_pinned and (held := self._pins.put(url, data)) != data:
                self._decoder.examine(held)
        except ImageRefused as refused:
            return Fault("image_unreadable", refused.code)
        except FetchRefused as refused:
            reason = refused.code if refused.status is None else f"status {refused.status}"
            return Fault("image_unreachable" if refused.is_passing else "image_not_fetched", shown(url), reason)
        return None


def _kept(known: dict[str, V], source: str, value: V) -> None:
    """Remember what is known of a source, and forget the oldest instead of growing."""
    if len(known) >= _REMEMBERED:
        del known[next(iter(known))]
    known[source] = value


def _characters(found: Record | Problem | Blank) -> int:
    return len(found.text) if isinstance(found, Record) else 0


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))
