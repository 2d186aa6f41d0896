"""Several answers to one request come side by side, and are those that would have come alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from luthier.control.catalog.service import Servable
from luthier.control.deployments.routing import Route, Routing
from luthier.control.deployments.service import Deployments
from luthier.control.inference.service import MOST_ANSWERS, MOST_TO_READ, CompletionRequest, Delta, Inference
from luthier.core.errors import ContextTooLong, InvalidParameter, InvalidRequest, ReplicaUnavailable
from luthier.serving.protocol import (
    CalledTool,
    Finish,
    GenerateRequest,
    OfferedTool,
    Sampling,
    TokenChunk,
    Turn,
)
from luthier.testing import toy_model
from tests.unit.control.conftest import ADA
from tests.unit.serving.toys import toy_replica


class Anything:
    """Every model is there, and this replica answers for it."""

    def __init__(self, replica: Any) -> None:
        self.replica = replica
        self.lost_ones = 0

    async def resolve(self, who: object, name: str) -> Servable:
        return Servable(name, name, f"models/{name}", "0" * 64, "0" * 64, None)

    async def context_length(self, model: object) -> int | None:
        return None

    async def is_ready(self, model: object) -> bool:
        return True

    async def choose(self, model: object, *, like: str) -> Route:
        return Route(self.replica, None)

    async def lost(self, model: object, route: Route) -> None:
        self.lost_ones += 1


def inference(replica: Any) -> Inference:
    every = Anything(replica)
    return Inference(cast(Deployments, every), cast(Routing, every))


def asking(n: int = 1, **sampling: Any) -> CompletionRequest:
    return CompletionRequest("toy", [Turn(role="user", content="Hi")], sampling=Sampling(**sampling), n=n)


async def answers(inference: Inference, request: CompletionRequest) -> list[str]:
    """The text of every answer, with the reason of its end."""
    found = [""] * request.n
    async for delta in await inference.complete(ADA, request):
        part = delta.part
        found[delta.choice] += part.text if isinstance(part, TokenChunk) else f" [{part.reason}]"
    return found


@pytest.fixture
async def toy(tmp_path: Path) -> AsyncIterator[Inference]:
    toy_model(tmp_path / "models/toy")
    async with toy_replica(tmp_path) as client:
        yield inference(client)


async def test_each_is_the_answer_that_its_seed_gives_alone(toy: Inference) -> None:
    sampling = {"temperature": 1.2, "max_tokens": 12}
    together = await answers(toy, asking(4, seed=70, **sampling))
    alone = [(await answers(toy, asking(seed=70 + n, **sampling)))[0] for n in range(4)]
    assert together == alone
    assert len(set(together)) == 4


async def test_they_come_side_by_side_and_each_has_its_end(toy: Inference) -> None:
    deltas = [d async for d in await toy.complete(ADA, asking(3, temperature=0, max_tokens=20))]
    ends = [place for place, delta in enumerate(deltas) if isinstance(delta.part, Finish)]
    assert sorted(deltas[place].choice for place in ends) == [0, 1, 2]
    assert {delta.choice for delta in deltas[: ends[0]]} == {0, 1, 2}  # all had begun before the first was over
    finishes = [part for d in deltas if isinstance(part := d.part, Finish)]
    assert len({finish.prompt_tokens for finish in finishes}) == 1


@pytest.mark.parametrize("sampling", [{"max_tokens": 1}, {"logit_bias": {65: 100.0}, "stop_tokens": [65]}])
async def test_every_answer_has_begun_before_one_of_them_ends(toy: Inference, sampling: dict[str, Any]) -> None:
    """A client that has seen one answer alone, and its end, takes it for the end of all. In the second case all are empty."""
    deltas = [d async for d in await toy.complete(ADA, asking(3, temperature=0, **sampling))]
    ended = [place for place, delta in enumerate(deltas) if isinstance(delta.part, Finish)]
    assert {delta.choice for delta in deltas[: ended[0]]} == {0, 1, 2}


async def test_what_is_refused_is_raised_before_the_first_part(toy: Inference) -> None:
    with pytest.raises(InvalidParameter, match="logit_bias"):
        await toy.complete(ADA, asking(3, logit_bias={999: 1.0}))
    long = CompletionRequest("toy", [Turn(role="user", content="x" * 600)], n=2)
    with pytest.raises(ContextTooLong):
        await toy.complete(ADA, long)


@pytest.mark.parametrize("n", [0, -1, MOST_ANSWERS + 1])
async def test_how_many_is_limited(toy: Inference, n: int) -> None:
    with pytest.raises(InvalidParameter, match=f"from 1 to {MOST_ANSWERS}"):
        await toy.complete(ADA, asking(n))


async def test_many_answers_to_much_are_refused(toy: Inference) -> None:
    much = [Turn(role="user", content="x" * (MOST_TO_READ // 4 + 1))]
    with pytest.raises(InvalidParameter, match="to read") as refused:
        await toy.complete(ADA, CompletionRequest("toy", much, n=4))
    assert refused.value.param == "n"
    with pytest.raises(InvalidRequest, match="tokens long"):  # one answer may be asked for
        await toy.complete(ADA, CompletionRequest("toy", much))


LONG = "x" * (MOST_TO_READ // 4 + 1)
READ_TOO = {
    "the schema of a tool": {"tools": [OfferedTool(name="f", parameters={"title": LONG})]},
    "a tool's description": {"tools": [OfferedTool(name="f", description=LONG)]},
    "the schema of the answer": {"json_schema": {"title": LONG}},
    "a call's arguments": {
        "messages": [Turn(role="assistant", content="", tool_calls=[CalledTool(id="1", name="f", arguments=LONG)])]
    },
}


@pytest.mark.parametrize("case", READ_TOO)
async def test_what_is_read_besides_the_texts_counts_too(toy: Inference, case: str) -> None:
    with pytest.raises(InvalidParameter, match="to read") as refused:
        await toy.complete(ADA, replace(asking(4), **READ_TOO[case]))
    assert refused.value.param == "n"


class Scripted:
    """Answers by the seed: each a list of what it does, a text to say or an error to raise. Knows which are open."""

    def __init__(self, *scripts: list[str | Exception]) -> None:
        self.scripts = scripts
        self.begun: list[int] = []
        self.open: set[int] = set()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenChunk | Finish]:
        choice = request.sampling.seed or 0
        self.begun.append(choice)
        self.open.add(choice)
        try:
            for does in self.scripts[choice]:
                await asyncio.sleep(0)
                if isinstance(does, Exception):
                    raise does
                yield TokenChunk(text=does)
            await asyncio.sleep(60)
        finally:
            self.open.discard(choice)


GOING_ON: list[str | Exception] = ["a"] * 1000


async def test_one_that_fails_ends_all() -> None:
    replica = Scripted(GOING_ON, ["a", ReplicaUnavailable("It broke off.")], GOING_ON)
    with pytest.raises(ReplicaUnavailable, match="broke off"):
        async for _ in await inference(replica).complete(ADA, asking(3, seed=0)):
            pass
    assert (replica.begun, replica.open) == ([0, 1, 2], set())


async def test_one_that_is_refused_ends_all() -> None:
    replica = Scripted(GOING_ON, [InvalidRequest("No.")], GOING_ON)
    with pytest.raises(InvalidRequest, match="No"):
        await inference(replica).complete(ADA, asking(3, seed=0))
    assert replica.open == set()


async def test_one_that_is_lost_at_once_is_asked_for_again() -> None:
    replica = Scripted(GOING_ON, [ReplicaUnavailable("Gone.")])
    parts = inference(replica)
    with pytest.raises(ReplicaUnavailable, match="Gone"):
        await parts.complete(ADA, asking(2, seed=0))
    assert (sorted(replica.begun), replica.open) == ([0, 1, 1], set())


async def test_closing_ends_all_of_them() -> None:
    replica = Scripted(GOING_ON, GOING_ON, GOING_ON)
    async with aclosing(await inference(replica).complete(ADA, asking(3, seed=0))) as deltas:
        assert isinstance(await anext(deltas), Delta)
        assert replica.open == {0, 1, 2}
    assert replica.open == set()


async def test_a_caller_who_leaves_early_ends_all_of_them() -> None:
    replica = Scripted([], [], [])
    asked = asyncio.create_task(inference(replica).complete(ADA, asking(3, seed=0)))
    while len(replica.open) < 3:
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert replica.open == set()
