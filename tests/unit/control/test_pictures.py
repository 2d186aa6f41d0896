"""Images of rows: decoded, fetched once, pinned, found in an archive."""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from luthier.control.datasets import downloads, pictures
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.pictures import Pins
from luthier.control.datasets.report import DatasetReport
from luthier.fetcher import Fetched, FetchRefused
from luthier.formats.base import known
from luthier.images.decoding import MOST_BYTES, MOST_PIXELS, ImageRefused
from luthier.records.problems import Problem
from luthier.records.reader import Reader, Record
from luthier.records.source import Given, LocalFile
from luthier.storage import Storage
from luthier.testing import jsonl
from tests.unit.images.pictures import picture

URL = "https://pictures.example/cat.jpg"
REASONS = ["status 404", "status 503"] + [
    word
    for refused in (FetchRefused, ImageRefused)
    for word in re.findall(
        r"\b[a-z]+(?:_[a-z]+)+\b", (refused.__doc__ or "").replace("is_passing", "").replace("retry_after", "")
    )
    if word not in ("bad_status", "image_missing", "image_name_not_allowed")
]


def asked(source: str, *, text: str = "What is it?", answer: str = "A cat.") -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": source}}
    content = [{"type": "text", "text": text}, image]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def report(*rows: dict[str, Any], **options: Any) -> DatasetReport:
    return inspect(Given("".join(json.dumps(row) + "\n" for row in rows).encode()), **options)


def packed(rows: list[dict[str, Any]], images: dict[str, bytes]) -> Given:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name, data in images.items():
            archive.writestr(name, data)
    return Given(written.getvalue())


def named(name: str) -> dict[str, Any]:
    content = [{"text": "What is it?"}, {"image": name}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": [{"text": "A cat."}]}]}


class Web:
    """What the fetcher finds, and how often it was asked."""

    def __init__(self, **found: bytes) -> None:
        self.found = {URL: picture("JPEG")} | found
        self.asked: list[str] = []
        self.passing: set[str] = set()
        self.gate: Callable[[], object] = lambda: None

    def get(self, url: str) -> Fetched:
        self.asked.append(url)
        self.gate()
        if url in self.passing:
            raise FetchRefused("bad_status", f"{url} answered 503.", status=503, is_passing=True)
        if url not in self.found:
            raise FetchRefused("bad_status", f"{url} answered 404.", status=404)
        return Fetched(url, self.found[url], "")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web()
    monkeypatch.setattr(pictures, "Fetcher", lambda hosts: web)
    monkeypatch.setattr(downloads, "PAUSES", (0, 0))
    return web


def test_the_samples_with_images_are_fit() -> None:
    for name in ("image_messages", "image_generation", "image_archive"):
        found = inspect(Given(known()[name].sample()))
        assert found.fit and found.images == found.rows == 2


def test_a_picture_that_is_cut_off_is_told_at_its_place() -> None:
    row = json.loads(known()["image_messages"].sample().splitlines()[0])
    part = row["messages"][1]["content"][0]["image_url"]
    part["url"] = part["url"][: len(part["url"]) // 2 // 4 * 4 - 1]
    found = report(row)
    [problem] = found.problems
    assert (problem.code, problem.row, problem.message_index) == ("image_unreadable", 1, 1)
    assert problem.field == "messages[1].content[0]"


def test_bytes_of_another_type_than_the_prefix_says_are_refused() -> None:
    row = json.loads(known()["image_messages"].sample().splitlines()[0])
    part = row["messages"][1]["content"][0]["image_url"]
    part["url"] = part["url"].replace("image/jpeg", "image/png")
    assert [problem.code for problem in report(row).problems] == ["image_unreadable"]


def test_nothing_is_fetched_where_no_host_is_allowed() -> None:
    [problem] = report(asked(URL)).problems
    assert problem.code == "image_not_fetched"
    assert "LUTHIER_DATA__IMAGE_HOSTS" in problem.text.en


def test_an_image_is_fetched_once_pinned_by_its_hash_and_never_fetched_again(web: Web, tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    pins = Pins(storage, "images/p/file-1")
    assert report(asked(URL), asked(URL, text="And now?"), pins=pins).fit
    assert web.asked == [URL]
    web.found[URL] = picture("PNG")  # the world changes
    assert report(asked(URL), pins=pins).fit
    assert web.asked == [URL]
    kept = [key for key in storage.list("images/p/file-1") if "/urls/" not in key]
    assert [storage.read(key) for key in kept] == [picture("JPEG")]


def test_what_is_no_picture_is_not_pinned(web: Web, tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    web.found[URL] = b"<html>not found</html>"
    assert [p.code for p in report(asked(URL), pins=Pins(storage, "images/p/f")).problems] == ["image_unreadable"]
    assert storage.list("images") == []


def test_an_address_that_fails_is_asked_once_and_told_for_every_row(web: Web) -> None:
    found = report(asked("https://gone.example/1.jpg"), asked("https://gone.example/1.jpg", text="again"))
    assert found.counts == {"image_not_fetched": 2}
    assert web.asked == ["https://gone.example/1.jpg"]


def test_a_passing_failure_is_told_as_one_and_checking_again_fetches_only_what_is_missing(
    web: Web, tmp_path: Path
) -> None:
    pins = Pins(Storage(tmp_path.as_uri()), "images/p")
    other = "https://slow.example/1.jpg"
    web.passing.add(other)
    found = report(asked(URL), asked(other), pins=pins)
    [problem] = found.problems
    assert (problem.code, problem.row, problem.expected) == ("image_unreachable", 2, "status 503")
    assert "503" in problem.text.en and "503" in problem.text.zh and "/check" in problem.fix
    web.passing.clear()
    web.found[other] = picture("PNG")
    web.asked.clear()
    assert report(asked(URL), asked(other), pins=pins).fit
    assert web.asked == [other]


def test_images_are_fetched_ahead_side_by_side_and_told_in_the_order_of_the_rows(web: Web) -> None:
    everybody = threading.Barrier(4)
    web.gate = lambda: everybody.wait(60)
    urls = [f"https://h{n}.example/{n}.jpg" for n in range(4)]
    web.found[urls[3]] = picture("JPEG")
    found = report(*(asked(url) for url in urls))
    assert [(problem.row, problem.found) for problem in found.problems] == [
        (n + 1, f'"{url}"') for n, url in enumerate(urls[:3])
    ]


def test_rows_are_read_ahead_within_bounds(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_ROWS_AHEAD", 3)
    monkeypatch.setattr(pictures, "_CHARACTERS_AHEAD", 2000)
    read: list[int] = []

    def records(*rows: dict[str, Any]) -> Iterator[Record]:
        for found in Reader([jsonl(list(rows))]):
            assert isinstance(found, Record)
            read.append(found.row)
            yield found

    form = known()["image_messages"]
    with pictures.Pictures(hosts=["*"]) as looking:
        ahead = looking.ahead(records(*(asked(URL, text=str(n)) for n in range(10))), form)
        assert len(list(islice(ahead, 2))) == 2 and read == [1, 2, 3, 4, 5]
        read.clear()
        ahead = looking.ahead(records(*(asked(URL, text="x" * 1000) for _ in range(10))), form)
        assert isinstance(next(ahead), Record) and read == [1, 2]


def test_images_of_a_row_that_has_another_problem_are_not_fetched(web: Web) -> None:
    assert report(asked(URL) | {"messages": asked(URL)["messages"][:1]}).counts == {"no_assistant": 1}
    assert web.asked == []


def test_files_of_a_project_share_what_was_fetched(web: Web, tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    assert report(asked(URL), pins=Pins(storage, "images/p")).fit
    assert report(asked(URL, text="Another file"), pins=Pins(storage, "images/p")).fit
    assert web.asked == [URL]
    assert report(asked(URL), pins=Pins(storage, "images/q")).fit
    assert web.asked == [URL, URL]


def test_of_two_who_pin_an_address_at_once_the_first_one_holds(tmp_path: Path) -> None:
    pins = Pins(Storage(tmp_path.as_uri()), "images/p")
    with ThreadPoolExecutor(8) as pool:
        held = set(pool.map(lambda n: pins.put(URL, b"%d" % n), range(8)))
    assert len(held) == 1 and pins.get(URL) in held


def test_what_somebody_else_pinned_meanwhile_is_what_is_looked_at(web: Web, tmp_path: Path) -> None:
    pins = Pins(Storage(tmp_path.as_uri()), "images/p")
    web.gate = lambda: pins.put(URL, b"no picture")
    assert report(asked(URL), pins=pins).counts == {"image_unreadable": 1}
    assert pins.get(URL) == b"no picture"


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_words_in_both_languages(reason: str) -> None:
    for code in ("image_not_fetched", "image_unreachable", "image_unreadable"):
        text = Problem(code=code, found=reason, expected=reason).text
        assert reason not in text.en.split() and reason not in text.zh
        assert not re.search("[a-z]+ [a-z]+", text.zh)


def test_the_limits_that_are_told_are_those_that_hold() -> None:
    assert "10 MiB" in Problem(code="image_unreadable", found="image_too_large").text.en
    assert MOST_BYTES == 10 * 1024**2
    assert f"{MOST_PIXELS:,}" in Problem(code="image_unreadable", found="image_too_many_pixels").text.en


def test_names_are_found_in_the_archive_and_missing_ones_are_told_with_their_row() -> None:
    source = packed([named("cat.jpg"), named("dog.jpg")], {"cat.jpg": picture("JPEG")})
    [problem] = inspect(source).problems
    assert (problem.code, problem.row, problem.line, problem.found) == ("image_not_in_archive", 2, 2, '"dog.jpg"')


def test_an_archive_on_the_disk_is_read_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    path.write_bytes(packed([named("cat.png")] * 3, {"cat.png": picture("PNG")}).data)
    found = inspect(LocalFile(path), processes=2)
    assert found.fit and found.format == "image_archive" and found.images == 3 and found.duplicate_rows == 2


def test_a_name_outside_of_an_archive_is_told() -> None:
    assert [problem.code for problem in report(named("cat.jpg")).problems] == ["image_not_in_archive"]


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        ({"../cat.jpg": b"x"}, {"archive_path"}),
        (
            {"inner.zip": b"PK\x03\x04", "cat.gif": b"x", "a.txt": b""},
            {"archive_in_archive", "archive_image_type", "archive_other_file"},
        ),
        ({"deep/er/cat.jpg": b"x", "more.json": b""}, {"archive_path", "archive_two_row_files"}),
    ],
)
def test_all_that_is_wrong_with_an_archive_is_told_together(names: dict[str, bytes], codes: set[str]) -> None:
    found = inspect(packed([named("cat.jpg")], names))
    assert not found.fit and set(found.counts) == codes
    for problem in found.problems:
        assert problem.text.en.isprintable() and not re.search("[a-z]+ [a-z]+", problem.text.zh)


def test_an_office_document_is_told_from_an_archive_of_rows() -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("xl/workbook.xml", "<x/>")
    [problem] = inspect(Given(written.getvalue())).problems
    assert (problem.code, problem.found) == ("file_type", "an Office document")


def test_text_rows_in_an_archive_are_asked_for_without_it() -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    [problem] = inspect(packed([row], {})).problems
    assert problem.code == "archive_no_images" and "rows.jsonl" in problem.text.en
