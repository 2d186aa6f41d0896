"""Who is let in, who waits, and who is sent away: projects take turns, and nothing is kept of who has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest

from luthier.control.catalog.service import Servable
from luthier.control.deployments.routing import Route, Routing
from luthier.control.deployments.service import Deployments
from luthier.control.inference.limits import Gate, Limits, Place
from luthier.control.inference.service import CompletionRequest, Inference
from luthier.core.errors import AnswerTookTooLong, InvalidParameter, NoCapacity, RateLimited
from luthier.serving.protocol import Finish, GenerateRequest, Sampling, TokenChunk, Turn
from tests.unit.control.conftest import ADA, BOB


def gate(**limits: Any) -> Gate:
    return Gate(Limits(**limits))


async def in_line(gate: Gate, project: str, answers: int = 1) -> asyncio.Task[Place]:
    """Somebody who has come as far as he comes by himself."""
    coming = asyncio.create_task(gate.enter(project, answers))
    await asyncio.sleep(0)
    return coming


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_is_over_the_projects_limit_waits_and_others_do_not() -> None:
    one = gate(running_per_project=2)
    first, _ = await one.enter("ada", 1), await one.enter("ada", 1)
    third = await in_line(one, "ada")
    assert (await one.enter("bob", 1)).project == "bob"
    assert not third.done()
    first.leave()
    assert (await third).project == "ada"


async def test_n_answers_count_n() -> None:
    one = gate(running_per_project=4)
    three = await one.enter("ada", 3)
    two = await in_line(one, "ada", 2)
    small = await in_line(one, "ada")  # there would be room, but it came later
    await settled()
    assert not two.done() and not small.done()
    three.leave()
    await settled()
    assert two.done() and small.done()


async def test_projects_take_turns_however_many_one_of_them_sends() -> None:
    one = gate(running=1)
    place = await one.enter("ada", 1)
    coming = [await in_line(one, name) for name in ("ada", "ada", "ada", "bob", "cy", "bob")]
    order = []
    while coming:
        place.leave()
        await settled()
        [task] = [task for task in coming if task.done()]
        coming.remove(task)
        place = task.result()
        order.append(place.project)
    assert order == ["ada", "bob", "cy", "ada", "bob", "ada"]


async def test_a_large_request_is_not_overtaken_for_ever_by_small_ones_of_others() -> None:
    one = gate(running=4)
    first, second = await one.enter("ada", 2), await one.enter("ada", 2)
    large = await in_line(one, "bob", 4)
    first.leave()
    small = await in_line(one, "cy")
    await settled()
    assert not small.done()
    second.leave()
    (await large).leave()
    assert (await small).project == "cy"


async def test_a_project_whose_line_is_full_is_told_when_to_come_again() -> None:
    one = gate(running_per_project=1, waiting_per_project=2)
    await one.enter("ada", 1)
    waiting = [await in_line(one, "ada") for _ in range(2)]
    with pytest.raises(RateLimited) as refused:
        await one.enter("ada", 1)
    assert refused.value.retry_after
    assert (await one.enter("bob", 1)).project == "bob"
    for task in waiting:
        task.cancel()


async def test_everybodys_full_line_is_no_fault_of_the_project() -> None:
    one = gate(running=1, waiting=1)
    await one.enter("ada", 1)
    waiting = await in_line(one, "ada")
    with pytest.raises(NoCapacity) as refused:
        await one.enter("bob", 1)
    assert refused.value.retry_after
    waiting.cancel()


async def test_more_answers_than_can_ever_run_are_the_callers_fault() -> None:
    with pytest.raises(InvalidParameter, match="up to 3"):
        await gate(running_per_project=3).enter("ada", 4)
    with pytest.raises(InvalidParameter, match="up to 3"):
        gate(running_per_project=3).enter_in_background("ada", 4)


async def test_who_leaves_the_line_gives_up_its_place_in_it() -> None:
    one = gate(running=1, waiting=1)
    place = await one.enter("ada", 1)
    gone = await in_line(one, "ada")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    next_one = await in_line(one, "bob")
    place.leave()
    assert (await next_one).project == "bob"


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_who_goes_as_his_turn_comes_takes_no_place_with_him(leaves_first: bool) -> None:
    one = gate(running=1)
    place = await one.enter("ada", 1)
    gone, behind = await in_line(one, "bob"), await in_line(one, "cy")
    for act in (gone.cancel, place.leave) if leaves_first else (place.leave, gone.cancel):
        act()
    assert (await behind).project == "cy"
    assert gone.cancelled()


async def test_a_place_is_given_back_once() -> None:
    one = gate(running=1)
    place = await one.enter("ada", 1)
    place.leave()
    place.leave()
    await one.enter("ada", 1)
    assert not (await in_line(one, "ada")).done()


async def test_nothing_is_kept_of_projects_that_have_gone() -> None:
    one = gate(running=1, waiting_per_project=0)
    place = await one.enter("ada", 1)
    with pytest.raises(RateLimited):
        await one.enter("bob", 1)
    place.leave()
    assert not one._projects


async def test_background_work_takes_half_of_the_room_and_no_turn() -> None:
    one = gate(running=8, running_per_project=4)
    places = [one.enter_in_background("ada", 1) for _ in range(2)]
    with pytest.raises(NoCapacity):
        one.enter_in_background("ada", 1)
    live = [await one.enter("ada", 1) for _ in range(2)]
    waiting = await in_line(one, "ada")
    with pytest.raises(NoCapacity):  # bob has room, but somebody waits
        one.enter_in_background("bob", 1)
    places[0].leave()
    assert (await waiting).project == "ada"
    for place in live:
        place.leave()
    assert one.enter_in_background("ada", 1).in_background


async def test_background_work_that_is_more_than_half_runs_alone() -> None:
    one = gate(running_per_project=4)
    large = one.enter_in_background("ada", 3)
    with pytest.raises(NoCapacity):
        one.enter_in_background("ada", 1)
    large.leave()
    assert one.enter_in_background("ada", 1)


# --------------------------------------------------------------------------------------------- as a completion meets it


class Endless:
    """A model that says "a" until it is told to stop, as fast as it is read or once; and counts who listens."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.open = 0

    async def resolve(self, who: object, name: str) -> Servable:
        return Servable(name, name, f"models/{name}", "0" * 64, "0" * 64, None)

    async def context_length(self, model: object) -> int | None:
        return None

    async def is_ready(self, model: Servable) -> bool:
        return True

    async def choose(self, model: object, *, like: str) -> Route:
        return Route(cast(Any, self), None)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenChunk | Finish]:
        self.open += 1
        try:
            yield TokenChunk(text="a")
            while True:
                await asyncio.sleep(60 if self.silent else 0.001)
                yield TokenChunk(text="a")
        finally:
            self.open -= 1


def inference(model: Endless, **limits: Any) -> Inference:
    return Inference(cast(Deployments, model), cast(Routing, model), Limits(**limits))


def asking(n: int = 1) -> CompletionRequest:
    return CompletionRequest("toy", [Turn(role="user", content="Hi")], sampling=Sampling(), n=n)


@pytest.mark.parametrize("n", [1, 2])
async def test_closing_an_answer_lets_the_next_one_in(n: int) -> None:
    model = Endless()
    one = inference(model, running_per_project=n)
    async with aclosing(await one.complete(ADA, asking(n))) as deltas:
        await anext(deltas)
        waiting = asyncio.create_task(one.complete(ADA, asking(n)))
        await asyncio.sleep(0.01)
        assert not waiting.done() and model.open == n
    async with aclosing(await waiting):
        assert model.open == n
    assert model.open == 0


class Loading(Endless):
    """As Endless, for one model that answers and one, cold, that is never loaded."""

    async def is_ready(self, model: Servable) -> bool:
        return model.name != "cold"

    async def choose(self, model: Any, *, like: str) -> Route:
        if model.name == "cold":
            await asyncio.sleep(60)
        return await super().choose(model, like=like)


async def test_who_waits_for_a_model_to_be_loaded_takes_nobodys_place() -> None:
    one = inference(Loading(), running=1, waiting=1)
    cold = [asyncio.create_task(one.complete(ADA, replace(asking(), model="cold"))) for _ in range(3)]
    with pytest.raises(NoCapacity):  # as many wait as may run and stand in line
        await cold[2]
    async with aclosing(await one.complete(ADA, asking())) as deltas:
        await anext(deltas)
    for task in cold:
        task.cancel()
    await asyncio.gather(*cold, return_exceptions=True)


async def test_who_waits_for_a_model_to_be_loaded_does_so_within_the_time_of_his_answer() -> None:
    with pytest.raises(AnswerTookTooLong):
        await inference(Loading(), answer_within_seconds=0.05).complete(ADA, replace(asking(), model="cold"))


@pytest.mark.parametrize("n", [1, 2])
async def test_an_answer_of_which_nobody_took_a_part_gives_its_place_back(n: int) -> None:
    model = Endless()
    one = inference(model, running_per_project=n)
    dropped = await one.complete(ADA, asking(n))
    del dropped
    closed = await asyncio.wait_for(one.complete(ADA, asking(n)), 5)
    await closed.aclose()
    await asyncio.wait_for(one.complete(ADA, asking(n)), 5)
    assert model.open == n


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "talking"])
@pytest.mark.parametrize("n", [1, 2])
async def test_an_answer_ends_with_its_time(silent: bool, n: int) -> None:
    model = Endless(silent=silent)
    one = inference(model, running_per_project=n, answer_within_seconds=0.1)
    deltas = await one.complete(ADA, asking(n))
    with pytest.raises(AnswerTookTooLong):
        async for _ in deltas:
            pass
    assert model.open == 0
    await one.complete(ADA, asking(n))


async def test_the_time_in_line_is_a_part_of_an_answers_time() -> None:
    one = inference(Endless(), running=1, answer_within_seconds=0.1)
    deltas = await one.complete(ADA, asking())
    with pytest.raises(AnswerTookTooLong):
        await one.complete(BOB, asking())
    await deltas.aclose()


async def test_background_answers_are_told_that_there_is_no_room() -> None:
    one = inference(Endless(), running_per_project=1)
    async with aclosing(await one.complete(ADA, asking())):
        with pytest.raises(NoCapacity):
            await one.complete(ADA, asking(), in_background=True)
