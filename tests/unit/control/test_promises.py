"""Rows in = rows trained + rows dropped: promised before a job starts, and held against what its run did."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from luthier.control.datasets import service
from luthier.control.datasets.tables import LengthsRow
from luthier.control.jobs.lifecycle import Status
from luthier.core.errors import DatasetInvalid, InvalidParameter
from luthier.testing import InlineExecutor, jsonl
from luthier.training.events import Started, Succeeded
from tests.unit.control.conftest import ADA, House
from tests.unit.control.trainers import TOTAL, Trainer, played, rounds, told


def row(answer: int) -> dict[str, Any]:
    """A row of 22 tokens and so many for the answer."""
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * answer}]}


ROWS = [row(8), row(90), row(8), row(200), row(18)]  # 30, 112, 30, 222 and 40 tokens


async def submit(house: House, rows: list[dict[str, Any]] = ROWS, **asked: Any):
    return await house.submit(training_files=[(await house.upload(content=jsonl(rows))).id], **asked)


@pytest.mark.parametrize(
    ("asked", "promised", "kept"),
    [
        ({}, (5, 5), (512, "drop")),  # the toy reads 512 tokens, less than 2,048
        ({"max_length": 50}, (5, 3), (50, "drop")),
        ({"max_length": 50, "overlength": "truncate"}, (5, 5), (50, "truncate")),
        ({"max_length": 20, "overlength": "truncate"}, None, None),
        ({"max_length": 222, "overlength": "fail"}, (5, 5), (222, "fail")),
    ],
)
async def test_the_spec_says_how_many_rows_will_be_trained(
    house: House, asked: dict[str, Any], promised: tuple[int, int] | None, kept: tuple[int, str] | None
) -> None:
    if promised is None:
        with pytest.raises(DatasetInvalid, match="of 5 rows 5 are longer than 20 tokens"):
            await submit(house, **asked)
        return
    spec = (await submit(house, **asked)).spec
    assert spec is not None
    assert (spec.training.rows, spec.training.trained_rows) == promised
    assert (spec.max_length, spec.overlength) == kept


async def test_a_model_that_reads_more_gets_the_default_of_2048(house: House) -> None:
    storage = house.parts.storage
    card = storage.read("models/toy/card.json").replace(b'"context_length": 512', b'"context_length": 32768')
    assert b"32768" in card
    storage.write("models/toy/card.json", card)
    spec = (await submit(house, [*ROWS, row(2100)])).spec
    assert spec is not None
    assert (spec.max_length, spec.training.rows, spec.training.trained_rows) == (2048, 6, 5)


@pytest.mark.parametrize(
    ("rows", "asked", "said"),
    [
        ([row(90), row(200)], {"max_length": 50}, r"2 are longer than 50 tokens \(the shortest of them has 112\)"),
        (
            ROWS,
            {"max_length": 50, "overlength": "fail"},
            "2 rows of 'rows.jsonl' are longer than 50 tokens; the longest has 222",
        ),
    ],
)
async def test_a_job_that_could_train_nothing_is_refused_with_the_lengths(
    house: House, rows: list[dict[str, Any]], asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(DatasetInvalid, match=said) as refused:
        await submit(house, rows, **asked)
    assert refused.value.param == "training_file"


async def test_a_validation_file_of_which_nothing_is_left_is_named(house: House) -> None:
    long = await house.upload(content=jsonl([row(90)]))
    with pytest.raises(DatasetInvalid, match="1 are longer than 50") as refused:
        await submit(house, max_length=50, validation_files=[long.id])
    assert refused.value.param == "validation_file"


async def test_a_limit_beyond_what_the_model_reads_is_refused(house: House) -> None:
    with pytest.raises(InvalidParameter, match="max_length: must be at most 512, the context of toy, got 513"):
        await submit(house, max_length=513)


async def test_a_job_waits_until_its_rows_are_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    job = await submit(house, max_length=50)
    assert (job.status, job.spec) == (Status.CHECKING, None)
    assert (await told(house.parts, ADA, job))[-1].message == "Its files are being made ready."
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.CHECKING
    await house.parts.counter.once()
    await house.parts.preparer.once()
    ready = await house.jobs.get(ADA, job.id)
    assert ready.spec is not None
    assert (ready.spec.training.rows, ready.spec.training.trained_rows) == (5, 3)


def weighed(*weights: int | None) -> dict[str, Any]:
    """A conversation with an answer of ten letters for each weight; None where none is written."""
    turns: list[dict[str, Any]] = []
    for weight in weights:
        said = {} if weight is None else {"weight": weight}
        turns += [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 10, **said}]
    return {"messages": turns}


WEIGHED = [weighed(0, 1), weighed(1, 0), weighed(None, None), weighed(0, None, 0, 1)]


@pytest.mark.parametrize(
    ("turn_weights", "asked", "rows", "tokens"),
    [
        ("honoured", {}, 4, 1 + 1 + 2 + 2),
        ("ignored", {}, 4, 2 + 2 + 2 + 4),
        ("honoured", {"max_length": 33, "overlength": "truncate"}, 2, 1 + 1),  # of one answer and a little of the rest
        ("ignored", {"max_length": 33, "overlength": "truncate"}, 4, 4),
    ],
)
async def test_a_promise_holds_for_either_way_with_weights(
    house: House, turn_weights: str, asked: dict[str, Any], rows: int, tokens: int
) -> None:
    pytest.importorskip("torch")
    from luthier.training.run import run

    def train(process) -> int:
        trainer = Trainer(process)
        run(trainer.spec, trainer.storage, attempt=trainer.attempt, stop=process.stopping)
        return 0

    parts = house.again(InlineExecutor(train))
    job = await submit(house, WEIGHED, turn_weights=turn_weights, epochs=1, **asked)
    assert job.spec is not None
    assert (job.spec.training.rows, job.spec.training.trained_rows) == (4, rows)
    done = await rounds(parts, ADA, job, Status.SUCCEEDED, Status.FAILED, within_seconds=110)
    assert done.status is Status.SUCCEEDED, done.error
    [learned] = [
        int(event.message.split(", ")[1].split()[0].replace(",", ""))
        for event in await told(parts, ADA, done)
        if "trained tokens an epoch" in event.message
    ]
    assert learned == tokens * 11  # ten letters and the token that ends them


async def test_the_two_ways_with_weights_are_counted_apart(house: House) -> None:
    file = await house.upload(content=jsonl(WEIGHED))
    found = [
        (await house.submit(training_files=[file.id], turn_weights=way, max_length=100)).spec
        for way in ("honoured", "ignored", "honoured", "ignored")
    ]
    assert [spec.training.turn_weights for spec in found if spec] == ["honoured", "ignored"] * 2
    async with house.parts.db.read() as session:
        counted = list(await session.scalars(select(LengthsRow.turn_weights).order_by(LengthsRow.id)))
    assert counted == ["honoured", "ignored"]


def run_of(rows: int, dropped: int):
    """A trainer that says at its end how many rows it trained."""

    def play(trainer: Trainer) -> int:
        trainer._tell(
            Started, 0, total_steps=TOTAL, rows=rows, dropped=[2, 4], dropped_rows=dropped, trained_tokens_per_epoch=50,
            tokens_per_epoch=90, trainable_parameters=7, libraries={},
        )  # fmt: skip
        trainer.steps(1, TOTAL)
        trainer.saved(TOTAL)
        key = f"{trainer.spec.run_key}/checkpoints/0001-{TOTAL:08d}/adapter"
        trainer._tell(
            Succeeded,
            TOTAL,
            artifact_key=key,
            artifact_sha256="sha",
            trained_tokens=60,
            rows=rows,
            dropped_rows=dropped,
        )
        return 0

    return play


@pytest.mark.parametrize(
    ("rows", "dropped", "ends"), [(3, 2, Status.SUCCEEDED), (2, 2, Status.FAILED), (3, 1, Status.FAILED)]
)
async def test_a_run_that_trained_other_rows_than_were_promised_has_failed(
    house: House, rows: int, dropped: int, ends: Status
) -> None:
    parts = house.again(InlineExecutor(played(run_of(rows, dropped))))
    done = await rounds(parts, ADA, await submit(house, max_length=50), Status.SUCCEEDED, Status.FAILED)
    assert done.status is ends
    if ends is Status.FAILED:
        assert done.error is not None
        assert done.error.code == "rows_lost"
        assert f"{rows} rows were trained and {dropped} dropped; 3 of 5 were promised" in done.error.message
    events = await told(parts, ADA, done)
    assert any(f"are not trained ({dropped}): 2, 4." in event.message for event in events)
