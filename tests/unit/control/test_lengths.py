"""Rows are counted once by each tokenizer: exactly what the previews show, in the background where the file is large."""

from __future__ import annotations

import asyncio
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from luthier.app import Parts
from luthier.chat.examples import fitted, learned
from luthier.chat.renderers.base import Rendered
from luthier.control.datasets import counting, inspection, service
from luthier.control.datasets.counting import count_file
from luthier.control.datasets.lengths import Lengths, kept, summed, under
from luthier.control.datasets.preview import preview
from luthier.control.datasets.service import Counted, File, TokenizedBy
from luthier.control.datasets.tables import LengthsRow
from luthier.control.datasets.tasks import Task
from luthier.control.datasets.workshop import Workshop, WorkStopped
from luthier.core.errors import InvalidRequest, StorageUnavailable
from luthier.formats.base import known
from luthier.records.source import Given, LocalFile
from luthier.testing import jsonl, toy_rows, toy_tokenizer
from tests.unit.control.conftest import ADA, House
from tests.unit.control.test_preview import PAIR, ROW, without_tools


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_tokenizer(folder)
    return folder


LONG = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x" * 60}]}
PAIRS = [PAIR, PAIR | {"chosen": {"role": "assistant", "content": "y" * 40}}]
FILES: dict[str, bytes] = {
    "messages": jsonl([ROW, LONG, *toy_rows(5)]),
    "function_calling": known()["function_calling"].sample(),
    "chosen_rejected": jsonl(PAIRS),
    "preferred_output": known()["preferred_output"].sample(),
    "text": jsonl([{"text": "a"}, {"text": "abc" * 20}, {"text": "你🙂"}]),
    "image_generation": known()["image_generation"].sample(),
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("overlength", ["drop", "truncate"])
@pytest.mark.parametrize("limit", [8, 22, 30, 50, 4000])
def test_what_is_counted_is_the_sum_of_what_the_previews_show(
    toy: Path, form: str, overlength: Any, limit: int
) -> None:
    source = Given(FILES[form])
    [lengths] = [Lengths.of(one.to_bytes()) for one in count_file(source, form, toy)]
    shown = [
        preview(source, form, row, toy, max_length=limit, overlength=overlength) for row in range(1, lengths.rows + 1)
    ]
    chosen = lengths.under(limit, overlength)
    assert chosen.billed_tokens == sum(one.billed_tokens for one in shown)
    assert chosen.trained_tokens == sum(one.trained_tokens for one in shown)
    assert chosen.truncated == sum("truncated" in one.marks for one in shown)
    dropped = [(one.row, mark) for one in shown for mark in one.marks if mark in ("too_long", "nothing_trained")]
    assert [(one["row"], one["reason"]) for one in chosen.dropped] == dropped
    assert chosen.trained_rows + len(dropped) == chosen.rows == lengths.rows
    assert sum(chosen.dropped_counts.values()) == len(dropped)


SEQUENCES = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0])), min_size=1, max_size=12), min_size=1, max_size=2
)


@given(rows=st.lists(SEQUENCES, max_size=8), limit=st.integers(1, 14), overlength=st.sampled_from(["drop", "truncate"]))
def test_a_limit_on_the_lengths_does_what_it_does_to_the_rows(rows: list, limit: int, overlength: Any) -> None:
    lengths = Lengths()
    written = [tuple(Rendered([t for t, _ in one], [w for _, w in one]) for one in row) for row in rows]
    for number, row in enumerate(written, 1):
        lengths.take(row, number, 0)
    kept = [fitted(row, max_length=limit, overlength=overlength) for row in written]
    chosen = lengths.under(limit, overlength)
    trained = [one for one in kept if one.dropped is None]
    assert chosen.trained_rows == len(trained)
    assert chosen.billed_tokens == sum(len(s.tokens) for one in trained for s in one.sequences)
    assert chosen.trained_tokens == sum(learned(s) for one in trained for s in one.sequences)
    assert chosen.truncated == sum(one.is_truncated for one in trained)
    reasons = [(number, one.dropped) for number, one in enumerate(kept, 1) if one.dropped]
    assert [(one["row"], one["reason"]) for one in chosen.dropped] == reasons


def test_pieces_counted_side_by_side_give_the_same(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + jsonl(toy_rows(700)) + b"\n\n" + jsonl([ROW]))
    [whole] = count_file(LocalFile(path), "messages", toy)
    assert (whole.rows, whole.lines[0], whole.lines[-1]) == (701, 2, 704)
    monkeypatch.setattr(inspection, "PIECE", 9_000)
    monkeypatch.setattr(counting, "_BATCH", 64)
    for processes in (1, 2):
        out = BytesIO()
        summary = summed(count_file(LocalFile(path), "messages", toy, processes=processes), out)
        assert summary == summed([whole])
        pieces = list(kept([out.getvalue()]))
        assert len(pieces) > 5
        assert [line for one in pieces for line in one.lines] == list(whole.lines)
        assert [size for one in pieces for size in one.longest] == list(whole.longest)
        for limit, overlength in ((50, "drop"), (50, "truncate"), (5000, "drop")):
            assert under(pieces, limit, overlength) == whole.under(limit, overlength)  # type: ignore[arg-type]


@given(cuts=st.lists(st.integers(0, 400), max_size=8), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_what_was_kept_is_read_back_from_blocks_of_any_size(cuts: list[int], sizes: list[int]) -> None:
    blocks = [Lengths() for _ in range(3)]
    for number, size in enumerate(sizes):
        blocks[number % 3].take((Rendered([0] * size, [1.0] * size),), number + 1, 0)
    out = BytesIO()
    summed(blocks, out)
    data, places = out.getvalue(), sorted(cuts)
    found = list(kept(data[a:b] for a, b in pairwise([0, *places, len(out.getvalue())])))
    assert [(one.longest, one.lines, one.begins) for one in found] == [
        (one.longest, one.lines, one.begins) for one in blocks
    ]


def test_lengths_that_are_cut_off_are_not_taken_for_all_of_them() -> None:
    out = BytesIO()
    summed([Lengths(), Lengths()], out)
    with pytest.raises(ValueError, match="cut off"):
        list(kept([out.getvalue()[:-1]]))


def test_rows_that_the_model_refuses_are_told_and_the_others_counted(tmp_path: Path) -> None:
    source = Given(jsonl(toy_rows(2)) + known()["function_calling"].sample() + jsonl(toy_rows(1)))
    [lengths] = count_file(source, "function_calling", without_tools(tmp_path / "deaf"))
    assert lengths.refused_rows == len(lengths.refused) == lengths.rows - 3
    assert lengths.under(100, "drop").dropped_counts == {"refused": lengths.refused_rows}
    found = summed([lengths, lengths])
    rows = list(range(3, lengths.rows))
    assert [(row, line) for row, line, _ in found.refused] == [
        (row + before, row) for before in (0, lengths.rows) for row in rows
    ]
    assert "uses tools" in found.refused[0][2]


def test_statistics_of_nothing_and_of_some() -> None:
    assert summed([Lengths()]).statistics == {"percentiles": {}, "histogram": []}
    lengths = Lengths()
    for size in (10, 20, 30):
        lengths.take((Rendered([0] * size, [1.0] * size),), 1, 0)
    told = summed([lengths]).statistics
    assert (told["percentiles"]["min"], told["percentiles"]["p50"], told["percentiles"]["max"]) == (10, 20, 30)
    assert sum(bar["rows"] for bar in told["histogram"]) == 3
    assert lengths.under(15, "fail").too_long == 2


# Kept with the file


async def ask(house: House, file: File) -> Counted | None:
    card = await house.parts.services.catalog.trainable("toy", "lora")
    return await asked(house.parts, file, card)


async def asked(parts: Parts, file: File, model: TokenizedBy) -> Counted | None:
    return await parts.services.datasets.counted(file, ADA.project, model, max_length=64, overlength="drop")


async def rows_of(house: House, file: File) -> int:
    async with house.parts.db.read() as session:
        found = await session.scalar(select(func.count()).where(LengthsRow.file_id == file.id))
    return found or 0


async def test_a_small_file_is_counted_at_once_and_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await house.upload(rows=12)
    monkeypatch.setattr(service, "_KEPT_FROM", 1)
    first = await ask(house, file)
    assert first is not None
    assert first.summary.rows == first.chosen.rows == 12
    monkeypatch.setattr(house.parts.services.datasets, "workshop", None)  # nothing is counted again
    monkeypatch.setattr(service, "under", None)  # nor gone through again
    assert await ask(house, file) == first
    assert first.summary.statistics["percentiles"]["max"] == first.summary.longest


async def test_what_many_limits_make_of_a_large_file_is_not_all_kept(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_KEPT_FROM", 1)
    monkeypatch.setattr(service, "_KEPT_AT_MOST", 3)
    file = await house.upload(rows=12)
    card = await house.parts.services.catalog.trainable("toy", "lora")
    for limit in range(20, 40):
        found = await house.parts.services.datasets.counted(
            file, ADA.project, card, max_length=limit, overlength="drop"
        )
        assert found is not None and found.chosen.rows == 12
    assert len(house.parts.storage.list("lengths")) == 3


def test_long_rows_are_encoded_few_at_a_time(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    encode = counting._count
    monkeypatch.setattr(counting, "_BATCH_CHARACTERS", 500)
    monkeypatch.setattr(counting, "_count", lambda batch, *rest: (batches.append(len(batch)), encode(batch, *rest)))
    [lengths] = count_file(Given(jsonl([LONG] * 40)), "messages", toy)
    assert lengths.rows == sum(batches) == 40
    assert max(batches) == 500 // len(jsonl([LONG])) + 1


async def test_a_model_that_writes_otherwise_is_counted_by_itself(house: House) -> None:
    file = await house.upload(rows=12)
    card = await house.parts.services.catalog.trainable("toy", "lora")
    await ask(house, file)
    for other in (card.model_copy(update={"renderer_sha256": "x"}), card):
        await asked(house.parts, file, other)
    assert await rows_of(house, file) == 2


async def test_a_small_file_that_takes_long_is_counted_in_the_background(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await house.upload(rows=12)
    monkeypatch.setattr(house.parts.services.datasets, "workshop", Failing(WorkStopped("It took too long.")))
    assert await ask(house, file) is None
    await house.parts.counter.once()
    assert await ask(house, file) is not None


async def test_a_large_file_is_counted_in_the_background(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await house.upload(rows=12)
    small = await ask(house, await house.upload(rows=12))
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    assert await ask(house, file) is None
    assert await ask(house, file) is None
    await house.parts.counter.once()
    assert await ask(house, file) == small
    assert await rows_of(house, file) == 1


@pytest.mark.parametrize("limit", [10, 10**6])
async def test_many_who_ask_at_once_make_one_count(house: House, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", limit)
    file = await house.upload(rows=12)
    others = [house.again(house.parts.training.executor) for _ in range(2)]
    card = await house.parts.services.catalog.trainable("toy", "lora")
    found = await asyncio.gather(*(asked(parts, file, card) for parts in (house.parts, *others) for _ in range(4)))
    assert all(one == found[0] for one in found)
    assert await rows_of(house, file) == 1
    await house.parts.counter.once()
    found = await ask(house, file)
    assert found is not None and found.summary.rows == 12
    assert len(house.parts.storage.list("lengths")) == 1
    await house.parts.services.datasets.delete(ADA, file.id)
    assert house.parts.storage.list("lengths") == []


class Failing(Workshop):
    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.asked = 0

    async def do(self, task: Task) -> dict[str, Any]:
        self.asked += 1
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (WorkStopped("The work took longer than 3 seconds."), "longer than 3 seconds"),
        (InvalidRequest("No renderer knows this model's chat template."), "No renderer knows"),
    ],
)
async def test_what_kept_a_file_from_being_counted_is_told_and_not_tried_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str
) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    file = await house.upload(rows=12)
    await ask(house, file)
    house.parts.counter.workshop = failing = Failing(fault)
    for _ in range(3):
        await house.parts.counter.once()
    assert failing.asked == 1
    with pytest.raises(InvalidRequest, match=said):
        await ask(house, file)


async def test_a_storage_that_is_away_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    monkeypatch.setattr(house.parts.counter, "every_seconds", 0)
    file = await house.upload(rows=12)
    await ask(house, file)
    workshop, house.parts.counter.workshop = house.parts.counter.workshop, Failing(StorageUnavailable("away"))
    await house.parts.counter.once()
    house.parts.counter.workshop = workshop
    await house.parts.counter.once()
    assert await ask(house, file) is not None


async def test_a_fault_of_ours_is_tried_some_times_then_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    monkeypatch.setattr(house.parts.counter, "every_seconds", 0)
    file = await house.upload(rows=12)
    await ask(house, file)
    house.parts.counter.workshop = failing = Failing(ZeroDivisionError("ours"))
    for _ in range(12):
        await house.parts.counter.once()
    assert failing.asked == 8
    with pytest.raises(InvalidRequest, match="A fault of the server's own"):
        await ask(house, file)


async def test_counting_a_file_that_was_deleted_meanwhile_comes_to_an_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    file = await house.upload(rows=12)
    await ask(house, file)
    await house.parts.services.datasets.delete(ADA, file.id)
    await house.parts.counter.once()
    with pytest.raises(InvalidRequest, match="was deleted"):
        await ask(house, file)


async def test_a_file_that_cannot_be_trained_is_not_counted(house: House) -> None:
    with pytest.raises(InvalidRequest, match="cannot be counted, it has problems: line 1"):
        await ask(house, await house.upload(content=b'{"messages": []}\n'))
