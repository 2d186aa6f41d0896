"""Answers that are made in the background: kept through a crash, told apart by project, forgotten after a day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest
from sqlalchemy import select

from luthier.control.deployments.tables import ReplicaRow
from luthier.control.inference import asynchronous
from luthier.control.inference.asynchronous import AsyncCompletion
from luthier.control.inference.queries import AsyncCompletionQueries
from luthier.control.inference.service import CompletionRequest, Delta, Inference
from luthier.control.scheduling.leases import claim
from luthier.control.tenancy import SYSTEM, Principal
from luthier.core.errors import ContextTooLong, ModelNotFound, NotFound, RateLimited, ReplicaUnavailable
from luthier.serving.protocol import CalledTool, Finish, OfferedTool, Sampling, TokenChunk, TokenLikelihood, Turn
from tests.unit.control.conftest import ADA, BOB, House, on_sqlite

REQUEST = CompletionRequest(
    model="toy",
    messages=[Turn(role="user", content="谢谢")],
    tools=[OfferedTool(name="f", parameters={"type": "object"})],
    must_call=["f"],
    json_schema={},
    sampling=Sampling(temperature=0, logit_bias={7: 1.5}, logprobs=2),
    n=2,
)
CALL = CalledTool(id="call_1", name="f", arguments="{}")
SURE = TokenLikelihood(token="a", logprob=-0.5, bytes=[97])


class Scripted(Inference):
    """Says what a test tells it to, and remembers who asked for what."""

    def __init__(self, house: House, script: Callable[[], None] | None = None) -> None:
        super().__init__(house.parts.services.catalog, house.parts.services.inference.routing)
        self.script = script
        self.is_ready: Callable[[str], bool] | None = None
        self.asked: list[tuple[Principal, CompletionRequest]] = []

    async def check_ready(self, who: Principal, name: str) -> None:
        if self.is_ready is not None and not self.is_ready(name):
            raise ReplicaUnavailable("It is being loaded.")

    async def complete(
        self, who: Principal, request: CompletionRequest, *, in_background: bool = False
    ) -> AsyncGenerator[Delta, None]:
        self.asked.append((who, request))
        if self.script is not None:
            self.script()

        async def deltas() -> AsyncGenerator[Delta, None]:
            for choice in range(request.n):
                yield Delta(choice, TokenChunk(text="a\0", logprobs=[SURE]))
            yield Delta(1, TokenChunk(text="b", tool_calls=[CALL]))
            yield Delta(1, Finish(reason="tool_calls", prompt_tokens=3, completion_tokens=2))
            yield Delta(0, Finish(reason="stop", prompt_tokens=3, completion_tokens=1))

        return deltas()


def scripted(house: House, script: Callable[[], None] | None = None) -> Scripted:
    twin = Scripted(house, script)
    house.parts.services.async_completions.inference = twin
    return twin


async def submit(house: House) -> AsyncCompletion:
    return await house.parts.services.async_completions.submit(ADA, REQUEST, request_id="mine")


async def result(house: House, task: AsyncCompletion) -> AsyncCompletion:
    return await house.parts.services.async_completions.get(ADA, task.id)


async def test_what_was_asked_for_is_answered_as_it_was_asked(house: House) -> None:
    twin = scripted(house)
    task = await submit(house)
    assert (task.status, task.answers, (await result(house, task)).status) == ("processing", [], "processing")
    await house.parts.completer.once()
    done = await result(house, task)
    assert (done.status, done.request_id, done.model) == ("succeeded", "mine", "toy")
    first, second = done.answers
    assert (first.text, first.reason, first.completion_tokens, first.logprobs) == ("a\0", "stop", 1, [SURE])
    assert (second.text, second.reason, second.tool_calls) == ("a\0b", "tool_calls", [CALL])
    assert twin.asked == [(ADA, replace(REQUEST, is_whole=True))]


async def test_an_answer_that_was_being_made_when_the_server_died_is_made_again(house: House) -> None:
    scripted(house)
    task = await submit(house)
    completer = house.parts.completer
    await claim(house.parts.db, completer.table(), *completer.due(), seconds=0.2)
    await completer.once()
    assert (await result(house, task)).status == "processing"  # the dead worker's lease holds
    await asyncio.sleep(0.3)
    await completer.once()
    assert (await result(house, task)).status == "succeeded"


async def test_a_model_that_is_being_loaded_is_waited_for(house: House) -> None:
    def loading() -> None:
        raise ReplicaUnavailable("It is being loaded.")

    twin = scripted(house, loading)
    task = await submit(house)
    await house.parts.completer.once()
    assert (await result(house, task)).status == "processing"
    house.clock.advance(25 * 3600)
    twin.asked.clear()
    await until(house, lambda: bool(twin.asked))
    done = await result(house, task)  # after a day nobody waits for it any more
    assert (done.status, done.error and done.error.code) == ("failed", "replica_unavailable")


async def test_a_model_that_could_not_be_started_is_tried_again_only_after_a_while(house: House) -> None:
    inference = house.parts.services.inference

    async def refusal() -> str:
        with pytest.raises(ReplicaUnavailable) as refused:
            await inference.check_ready(ADA, "toy")
        return refused.value.message

    async def starts() -> int:
        async with house.parts.db.write() as session:
            rows = list(await session.scalars(select(ReplicaRow)))
            for row in rows:
                row.status = "gone"
        return len(rows)

    assert "is still being loaded" in await refusal()
    assert await starts() == 1
    assert "could not be started" in await refusal()
    assert await starts() == 1
    house.clock.advance(3600)
    assert "is still being loaded" in await refusal()
    assert await starts() == 2


async def test_what_cannot_be_answered_fails_with_the_reason(house: House) -> None:
    def refused() -> None:
        raise ContextTooLong("Too long.", param="messages")

    scripted(house, refused)
    task = await submit(house)
    await house.parts.completer.once()
    done = await result(house, task)
    assert done.status == "failed" and done.error is not None
    assert (done.error.code, done.error.message, done.error.param) == (
        "context_length_exceeded",
        "Too long.",
        "messages",
    )


async def test_a_result_can_be_fetched_for_a_day_and_is_then_forgotten(house: House) -> None:
    scripted(house)
    task = await submit(house)
    await house.parts.completer.once()
    house.clock.advance(24 * 3600 - 1)
    await house.parts.completer.once()
    assert (await result(house, task)).status == "succeeded"
    house.clock.advance(1)
    with pytest.raises(NotFound):
        await result(house, task)
    await house.parts.completer.once()
    house.clock.advance(-24 * 3600)
    with pytest.raises(NotFound):  # its row is gone too
        await result(house, task)


async def test_a_result_is_not_there_for_another_project(house: House) -> None:
    scripted(house)
    task = await submit(house)
    await house.parts.completer.once()
    with pytest.raises(NotFound):
        await house.parts.services.async_completions.get(BOB, task.id)


@on_sqlite
async def test_a_model_that_there_is_not_is_refused_at_once(house: House) -> None:
    with pytest.raises(ModelNotFound):
        await house.parts.services.async_completions.submit(ADA, CompletionRequest(model="gpt-9"), request_id="x")


@on_sqlite
async def test_a_deployment_that_is_being_made_may_be_asked_already(house: House) -> None:
    await house.parts.services.deployments.create(ADA, "toy", name="mine")
    asked = replace(REQUEST, model="mine")
    kept = await house.parts.services.async_completions.submit(ADA, asked, request_id="r-1")
    assert kept.status == "processing"


async def test_only_so_many_are_made_side_by_side(house: House) -> None:
    most = now = 0
    full = asyncio.Event()
    twin = scripted(house)
    make = house.parts.services.async_completions.make

    async def counted(row) -> list:
        nonlocal most, now
        now += 1
        most = max(most, now)
        if now == house.parts.completer.at_once:
            full.set()
        await full.wait()
        await asyncio.sleep(0.05)  # in which one too many would come
        now -= 1
        return await make(row)

    house.parts.services.async_completions.make = counted
    tasks = [await submit(house) for _ in range(12)]
    running = asyncio.create_task(house.parts.completer.run())
    try:
        async with asyncio.timeout(20):
            while not all([(await result(house, task)).status == "succeeded" for task in tasks]):
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert most == house.parts.completer.at_once == 8
    assert len(twin.asked) == 12


@on_sqlite
async def test_a_model_that_does_not_start_takes_no_place_from_others(house: House) -> None:
    toy = house.parts.storage.folder((await house.parts.services.catalog.trainable("toy", "lora")).weights)
    house.parts.installer.add("stuck", str(toy))
    scripted(house).is_ready = lambda name: name != "stuck"
    completions = house.parts.services.async_completions
    stuck = [await completions.submit(BOB, replace(REQUEST, model="stuck"), request_id="x") for _ in range(20)]
    task = await submit(house)
    running = asyncio.create_task(house.parts.completer.run())
    try:
        async with asyncio.timeout(20):
            while (await result(house, task)).status != "succeeded":
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert {(await completions.get(BOB, one.id)).status for one in stuck} == {"processing"}


@on_sqlite
async def test_one_that_asks_for_more_than_can_be_kept_up_with_is_told_to_wait(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "MOST_PENDING", 2)
    scripted(house)
    for _ in range(2):
        await submit(house)
    with pytest.raises(RateLimited, match="2 may be") as refused:
        await submit(house)
    assert refused.value.retry_after
    await house.parts.services.async_completions.submit(BOB, REQUEST, request_id="another project's")
    await house.parts.completer.once()
    await submit(house)


@on_sqlite
async def test_how_the_answers_are_to_be_told_is_kept_though_the_request_is_not(house: House) -> None:
    twin = scripted(house)
    completions = house.parts.services.async_completions
    older = await completions.submit(ADA, REQUEST, request_id="older", calls_functions=True)
    newer = await submit(house)
    await house.parts.completer.once()
    await house.parts.completer.once()
    assert [(await result(house, task)).calls_functions for task in (older, newer)] == [True, False]
    assert [asked for _, asked in twin.asked] == [replace(REQUEST, is_whole=True)] * 2  # the model is asked the same


@on_sqlite
async def test_a_request_is_not_kept_longer_than_it_is_needed(house: House) -> None:
    scripted(house)
    task = await submit(house)
    await house.parts.completer.once()
    async with house.parts.db.read() as session:
        row = await AsyncCompletionQueries(session, SYSTEM).get(task.id)
    assert row is not None
    assert (row.status, row.request) == ("succeeded", {})


@on_sqlite
async def test_a_place_that_becomes_free_is_taken_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(house)
    completer = house.parts.completer
    monkeypatch.setattr(completer, "at_once", 1)
    monkeypatch.setattr(completer, "every_seconds", 60.0)
    make = house.parts.services.async_completions.make

    async def slow(row) -> list:
        await asyncio.sleep(0.05)
        return await make(row)

    house.parts.services.async_completions.make = slow
    tasks = [await submit(house) for _ in range(6)]
    running = asyncio.create_task(completer.run())
    try:
        async with asyncio.timeout(20):
            while not all([(await result(house, task)).status == "succeeded" for task in tasks]):
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(house: House, condition: Callable[[], bool]) -> None:
    """Rounds until something happens: a row that failed is left alone for a moment."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.1)
            await house.parts.completer.once()
