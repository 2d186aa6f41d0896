"""A split is random, repeatable, complete and balanced; its validation rows are never trained."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.service import File
from luthier.control.datasets.transforms import split as split_module
from luthier.control.datasets.transforms.split import SplitOptions, split
from luthier.control.jobs.lifecycle import Status
from luthier.core.errors import FileNotFound, InvalidRequest
from luthier.images.archives import Archive
from luthier.records.source import Given
from luthier.testing import jsonl
from tests.unit.control.conftest import ADA, BOB, House
from tests.unit.images.pictures import archive, picture


def rows(count: int, *tags: str) -> list[dict[str, Any]]:
    turns = [[{"role": "user", "content": f"row {n}"}, {"role": "assistant", "content": "yes"}] for n in range(count)]
    return [{"messages": one} | ({"tag": tags[n % len(tags)]} if tags else {}) for n, one in enumerate(turns)]


def divided(content: bytes, **options: Any) -> tuple[list[bytes], list[bytes], dict[str, Any]]:
    training, validation = io.BytesIO(), io.BytesIO()
    told = split(Given(content), SplitOptions(**options), training, validation)
    return training.getvalue().splitlines(keepends=True), validation.getvalue().splitlines(keepends=True), told


def test_a_thousand_rows_become_eight_hundred_and_two_hundred() -> None:
    content = jsonl(rows(1000))
    training, validation, told = divided(content)
    assert (len(training), len(validation)) == (800, 200)
    assert told == {"rows": 1000, "training": 800, "validation": 200, "tags": {}}
    assert not set(training) & set(validation)
    assert sorted(training + validation) == sorted(content.splitlines(keepends=True))
    numbers = [int(json.loads(line)["messages"][0]["content"][4:]) for line in validation]
    assert numbers == sorted(numbers)
    assert len([n for n in numbers if n < 500]) in range(70, 130)  # at random, not from one end


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    content = jsonl(rows(200))
    assert divided(content, seed=7) == divided(content, seed=7)
    assert divided(content, seed=7)[1] != divided(content, seed=8)[1]


def test_rows_keep_their_bytes() -> None:
    lines = [
        b'  {"messages":[],"n": 1e5}\r\n',
        b'{"b": "\\u4f60", "a": "\xe4\xbd\xa0"}\n',
        b"\n",
        b'{"x":1}\n',
        b'{"y":2}\n',
        b'{"z":3}',
    ]
    training, validation, _ = divided(b"".join(lines), ratio=0.4)
    assert sorted(training + validation) == sorted(line.rstrip(b"\n") + b"\n" for line in lines if line.strip())


def test_each_tag_is_split_in_the_same_proportion() -> None:
    content = jsonl(rows(90, "a", "a", "b") + rows(5) + rows(5, "c"))
    training, validation, told = divided(content, ratio=0.2)
    assert told["tags"] == {
        "": {"rows": 5, "training": 4, "validation": 1},
        "a": {"rows": 60, "training": 48, "validation": 12},
        "b": {"rows": 30, "training": 24, "validation": 6},
        "c": {"rows": 5, "training": 4, "validation": 1},
    }
    assert Counter(json.loads(line).get("tag", "") for line in validation) == {"a": 12, "b": 6, "c": 1, "": 1}
    assert divided(content, ratio=0.2, by_tag=False)[2]["tags"] == {}
    assert len(training) + len(validation) == 100


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), ratio=st.floats(0.01, 0.99))
def test_what_validation_gets_is_given_out_by_largest_remainder(sizes: list[int], ratio: float) -> None:
    content = jsonl([row for tag, size in enumerate(sizes) for row in rows(size, f"t{tag}")])
    whole = sum(sizes)
    wanted = round(whole * ratio)
    if not 0 < wanted < whole:
        with pytest.raises(InvalidRequest, match="would leave one of the files empty"):
            divided(content, ratio=ratio)
        return
    told = divided(content, ratio=ratio)[2]
    assert (told["validation"], told["training"] + told["validation"]) == (wanted, whole)
    for tag, size in enumerate(sizes):
        balance = told["tags"][f"t{tag}"]
        assert balance["rows"] == balance["training"] + balance["validation"] == size
        assert abs(balance["validation"] - size * wanted / whole) < 1


@pytest.mark.parametrize(("count", "ratio"), [(1, 0.5), (2, 0.2), (100, 0.001), (3, 0.9)])
def test_too_few_rows_are_refused(count: int, ratio: float) -> None:
    with pytest.raises(
        InvalidRequest, match=f"A split of {count} rows by {ratio:g} would leave one of the files empty"
    ):
        divided(jsonl(rows(count)), ratio=ratio)


# Kept as versions


async def bytes_of(house: House, file: File) -> bytes:
    return b"".join([chunk async for chunk in await house.parts.services.datasets.content(ADA, file.id)])


async def test_both_files_are_versions_with_their_parent_their_operation_and_their_hash(house: House) -> None:
    datasets = house.parts.services.datasets
    content = jsonl(rows(50, "a", "b"))
    file = await house.upload(content=content)
    options = {"ratio": 0.2, "seed": 3, "by_tag": True}
    training, validation, division = await datasets.split(ADA, file.id, options)
    await house.parts.inspector.once()
    for made, name, count in ((training, "training", 40), (validation, "validation", 10)):
        read = await datasets.get(ADA, made.id)
        assert read.report is not None
        assert (read.status, read.report.rows, read.parent) == ("processed", count, file.id)
        assert read.operation == {"name": "split", "options": options, "division": division, "output": name}
        assert read.filename == f"rows.{name}.jsonl"
        data = await bytes_of(house, made)
        assert read.sha256 == hashlib.sha256(data).hexdigest()
    assert sorted((await bytes_of(house, training) + await bytes_of(house, validation)).splitlines()) == sorted(
        content.splitlines()
    )
    again = await datasets.split(ADA, file.id, options)
    assert [one.sha256 for one in again[:2]] == [training.sha256, validation.sha256]
    assert await bytes_of(house, file) == content
    assert len(await datasets.children(ADA, file.id)) == 4
    with pytest.raises(FileNotFound):
        await datasets.split(BOB, file.id, options)


async def test_validation_rows_are_not_among_the_rows_that_train(house: House) -> None:
    file = await house.upload(content=jsonl(rows(50)))
    training, validation, _ = await house.parts.services.datasets.split(ADA, file.id, {"ratio": 0.2, "seed": 3})
    await house.parts.inspector.once()
    job = await house.submit(training_files=[training.id], validation_files=[validation.id])
    assert (job.status, job.spec is not None) == (Status.QUEUED, True)
    assert job.spec is not None and job.spec.validation is not None
    assert (job.spec.training.rows, job.spec.validation.rows) == (40, 10)
    trained = set(house.parts.storage.read(job.spec.training.key).splitlines())
    assert not trained & set(house.parts.storage.read(job.spec.validation.key).splitlines())


async def test_a_file_that_cannot_be_trained_on_is_not_split(house: House) -> None:
    datasets = house.parts.services.datasets
    with pytest.raises(InvalidRequest, match="cannot be split, it has problems: line 1"):
        await datasets.split(ADA, (await house.upload(content=b'{"messages": []}\n')).id, {})
    assert len(house.parts.storage.list("files")) == 1


# Archives


def pictured(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": [{"text": f"What is row {n}?"}, {"image": name}]},
                {"role": "assistant", "content": [{"text": "A cat."}]},
            ]
        }
        for n, name in enumerate(names)
    ]


PICTURED = archive(
    {
        "图片/rows.json": jsonl(pictured(*(f"{n}.jpg" for n in range(8)), "shared.png", "shared.png")),
        **{f"图片/{n}.jpg": picture("JPEG", width=20 + n) for n in range(8)},
        "图片/shared.png": picture("PNG"),
        "图片/unused.png": picture("PNG", width=9),
    }
)


def archives(content: bytes, **options: Any) -> tuple[bytes, bytes, dict[str, Any]]:
    training, validation = io.BytesIO(), io.BytesIO()
    told = split(Given(content), SplitOptions(**options), training, validation)
    return training.getvalue(), validation.getvalue(), told


def test_an_archive_gives_two_each_with_the_images_that_its_rows_name_and_no_others() -> None:
    training, validation, told = archives(PICTURED, ratio=0.3)
    assert (told["training"], told["validation"]) == (7, 3)
    old = Archive(io.BytesIO(PICTURED))
    rows = []
    for content, count in ((training, 7), (validation, 3)):
        report = inspect(Given(content))
        assert report.fit and (report.rows, report.images) == (count, count)
        made = Archive(io.BytesIO(content))
        lines = made.open_rows().readlines()
        assert made.rows_name == "rows.json"
        assert set(made.images) == {json.loads(line)["messages"][0]["content"][1]["image"] for line in lines}
        assert all(made.image(name) == old.image(name) for name in made.images)
        rows += lines
    assert sorted(rows) == sorted(old.open_rows().readlines())


def test_the_same_archive_split_twice_gives_the_same_bytes() -> None:
    assert archives(PICTURED, seed=5) == archives(PICTURED, seed=5)


async def test_the_versions_of_an_archive_are_fit(house: House) -> None:
    datasets = house.parts.services.datasets
    file = await house.upload(content=PICTURED)
    training, validation, _ = await datasets.split(ADA, file.id, {"ratio": 0.3})
    await house.parts.inspector.once()
    for made, count in ((training, 7), (validation, 3)):
        read = await datasets.get(ADA, made.id)
        assert read.status == "processed" and read.report is not None and read.report.rows == count


def test_ever_so_many_tags_are_split_and_the_largest_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "MOST_TAGS", 20)
    monkeypatch.setattr(split_module, "KEPT_TAGS", 5)
    content = jsonl(rows(10, "much") * 10 + [row | {"tag": f"t{n}"} for n, row in enumerate(rows(400))])
    training, validation, told = divided(content)
    assert (told["rows"], len(training), len(validation)) == (500, 400, 100)
    assert len(told["tags"]) == 5
    assert told["tags"]["much"] == {"rows": 100, "training": 80, "validation": 20}
