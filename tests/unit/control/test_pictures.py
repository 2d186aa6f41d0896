"""Images of rows: decoded, fetched once, pinned, found in an archive."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.control.datasets import pictures
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.pictures import Pins
from luthier.control.datasets.report import DatasetReport
from luthier.fetcher import Fetched, FetchRefused
from luthier.formats.base import known
from luthier.records.source import Given, LocalFile
from luthier.storage import Storage
from tests.unit.images.pictures import picture

URL = "https://pictures.example/cat.jpg"


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

    def get(self, url: str) -> Fetched:
        self.asked.append(url)
        if url not in self.found:
            raise FetchRefused("bad_status", f"{url} answered 404.")
        return Fetched(url, self.found[url], "")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    web = Web()
    monkeypatch.setattr(pictures, "Fetcher", lambda hosts: web)
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
    ("names", "said"),
    [
        ({"../cat.jpg": b"x"}, "another folder"),
        ({"inner.zip": b"PK\x03\x04"}, "inner.zip"),
        ({"deep/er/cat.jpg": b"x"}, "folder"),
    ],
)
def test_all_that_is_wrong_with_an_archive_is_told_together(names: dict[str, bytes], said: str) -> None:
    found = inspect(packed([named("cat.jpg")], names))
    assert not found.fit and set(found.counts) == {"archive_refused"}
    assert any(said in problem.text.en for problem in found.problems)


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
    assert problem.code == "archive_refused" and "rows.jsonl" in problem.text.en
