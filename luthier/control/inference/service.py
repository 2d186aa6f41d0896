"""One completion: the name is resolved, a replica found, its tokens passed on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from luthier.control.catalog.service import Servable
from luthier.control.deployments.routing import Route, Routing
from luthier.control.deployments.service import Deployments
from luthier.control.inference.limits import Gate, Limits, Place
from luthier.control.tenancy import Principal
from luthier.core.errors import AnswerTookTooLong, InvalidParameter, ReplicaUnavailable
from luthier.serving.protocol import AdapterRef, Finish, GenerateRequest, OfferedTool, Sampling, TokenChunk, Turn

MOST_ANSWERS = 128
_ALIKE = 1_000
"""Characters, or tokens, with which requests begin alike that go to the same replica."""

MOST_TO_READ = 4_000_000
"""Characters, or tokens, of all that is given, tools and schemas too, times the answers: each answer reads it anew."""


@dataclass(frozen=True)
class Delta:
    """More of one of the answers. `choice` counts them from 0; each ends with its own Finish."""

    choice: int
    part: TokenChunk | Finish


@dataclass(frozen=True)
class CompletionRequest:
    """What is asked of a model, every default of the dialect filled in. Either `messages` or `prompt` is given.

    `must_call`, `json_schema`, `regex` and `parallel_tool_calls` mean what they mean in a GenerateRequest. `n` answers
    are made, from 1 to MOST_ANSWERS; with a seed they are those that would have been made alone with the seeds from this one on.
    `is_whole`: nobody sees an answer before it is whole, so one may be made anew.
    """

    model: str
    messages: list[Turn] = field(default_factory=list)
    prompt: str | list[int] | None = None
    tools: list[OfferedTool] = field(default_factory=list)
    must_call: list[str] | None = None
    parallel_tool_calls: bool = True
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    is_whole: bool = False


class Inference:
    def __init__(self, deployments: Deployments, routing: Routing, limits: Limits | None = None) -> None:
        self.deployments = deployments
        self.routing = routing
        self.gate = Gate(limits or Limits())
        self.door = Gate(self.gate.limits)  # before the gate, for those whose model is being loaded

    async def check_known(self, who: Principal, name: str) -> None:
        """Raises what `complete` raises for a model that is not there, or not deployed; one that is being deployed will do."""
        with suppress(ReplicaUnavailable):
            await self.deployments.resolve(who, name)

    async def check_ready(self, who: Principal, name: str) -> None:
        """Have a replica started where none is ready for that model, and raise ReplicaUnavailable at once."""
        await self.routing.choose(await self.deployments.resolve(who, name), waits=False)

    async def complete(
        self, who: Principal, request: CompletionRequest, *, in_background: bool = False
    ) -> AsyncGenerator[Delta, None]:
        """The answers as they are made, side by side; what can be refused is raised before this returns.

        Every answer's Finish counts the prompt's tokens, which are the same for all: add them up once.

        Who waits for a replica to start takes no place from others. Who finds as many answers being made as may be waits in
        line, and where the line is full is told RateLimited or NoCapacity; `in_background` nothing waits, and NoCapacity is
        raised at once. An answer that is not complete in the time that one may take, its time in line included, ends with
        AnswerTookTooLong.

        A replica that is lost before its first token is asked for once more on another; after it, ReplicaUnavailable ends
        the stream, or, where answers are whole, that one is made anew, once. Where one answer fails, all end. Closing the
        generator, or dropping it, ends the work.
        """
        _check_count(request)
        model = await self.deployments.resolve(who, request.model)
        await self._check_length(model, request.sampling.max_tokens)
        deadline = asyncio.get_running_loop().time() + self.gate.limits.answer_within_seconds
        try:
            async with asyncio.timeout_at(deadline):
                if in_background:
                    place = self.gate.enter_in_background(who.project, request.n)
                else:
                    await self._await_replica(who, model, request.n)
                    place = await self.gate.enter(who.project, request.n)
                try:
                    deltas = _until(deadline, place, await self._begun_all(who, model, request))
                    await anext(deltas)
                except BaseException:
                    place.leave()
                    raise
        except TimeoutError:
            raise _took_too_long() from None
        return cast(AsyncGenerator[Delta, None], deltas)

    async def _await_replica(self, who: Principal, model: Servable, answers: int) -> None:
        if await self.routing.is_ready(model):
            return
        place = await self.door.enter(who.project, answers)
        try:
            await self.routing.choose(model, like="")
        finally:
            place.leave()

    async def _check_length(self, model: Servable, max_tokens: int | None) -> None:
        """Within the context an answer may be asked to be longer than the prompt leaves room for; it then ends there."""
        if max_tokens is None:
            return
        context = await self.deployments.context_length(model)
        if context is not None and max_tokens > context:
            raise InvalidParameter(
                "max_tokens",
                f"may be up to {context:,}, which is the context of {model.base_model}, got {max_tokens:,}",
            )

    async def _begun_all(self, who: Principal, model: Servable, request: CompletionRequest) -> list[_Begun]:
        if request.n == 1:
            return [await self._begun(who, model, request, 0)]
        answers = [asyncio.create_task(self._begun(who, model, request, choice)) for choice in range(request.n)]
        try:
            return await asyncio.gather(*answers)
        except BaseException:  # the caller went away, or the request was refused
            for answer in answers:
                answer.cancel()
            for begun in await asyncio.gather(*answers, return_exceptions=True):
                if isinstance(begun, _Begun):
                    await begun.rest.aclose()
            raise

    async def _begun(self, who: Principal, model: Servable, request: CompletionRequest, choice: int) -> _Begun:
        like = _beginning(model, request)
        for last_try in (False, True):
            route = await self.routing.choose(model, like=like)
            answer = route.replica.generate(_asked(who, request, route.adapter, choice))
            try:
                first = await anext(answer)
            except ReplicaUnavailable:
                await self.routing.lost(model, route)
                if last_try:
                    raise
            except BaseException:
                await answer.aclose()
                raise
            else:
                anew = partial(self._anew, who, model, request, choice, route) if request.is_whole else None
                return _Begun(choice, first, answer, anew)
        raise AssertionError("unreachable")

    async def _anew(
        self, who: Principal, model: Servable, request: CompletionRequest, choice: int, lost: Route
    ) -> _Begun:
        await self.routing.lost(model, lost)
        return await self._begun(who, model, replace(request, is_whole=False), choice)


@dataclass(frozen=True)
class _Begun:
    """An answer whose first part has come. `anew` makes it once more, where nobody has seen anything of it."""

    choice: int
    first: TokenChunk | Finish
    rest: AsyncGenerator[TokenChunk | Finish, None]
    anew: Callable[[], Awaitable[_Begun]] | None = None

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        async with aclosing(self._parts() if self.anew is None else self._whole(self.anew)) as parts:
            async for part in parts:
                yield Delta(self.choice, part)

    async def _parts(self) -> AsyncGenerator[TokenChunk | Finish, None]:
        try:
            yield self.first
            async for part in self.rest:
                yield part
        finally:
            await self.rest.aclose()

    async def _whole(self, anew: Callable[[], Awaitable[_Begun]]) -> AsyncGenerator[TokenChunk | Finish, None]:
        """Nothing but empty chunks, which tell that it is being made, until it is whole."""
        answer = self
        while True:
            made: list[TokenChunk | Finish] = []
            try:
                async with aclosing(answer._parts()) as parts:
                    async for part in parts:
                        made.append(part)
                        yield TokenChunk()
                break
            except ReplicaUnavailable:
                if answer is not self:
                    raise
            answer = await anew()
        for part in made:
            yield part


async def _until(deadline: float, place: Place, answers: list[_Begun]) -> AsyncGenerator[Delta | None, None]:
    """None, and then the deltas, up to that time of the loop; the place is left at their end.

    Closing a generator that has not begun runs nothing of it. Who has taken the None has one that ends the work whenever it is
    closed or dropped.
    """
    deltas = answers[0].deltas() if len(answers) == 1 else _merged(answers)
    try:
        yield None
        while True:
            async with asyncio.timeout_at(deadline):
                delta = await anext(deltas, None)
            if delta is None:
                return
            yield delta
    except TimeoutError:
        raise _took_too_long() from None
    finally:
        try:
            await deltas.aclose()
            for answer in answers:  # where the deltas had not begun
                await answer.rest.aclose()
        finally:
            place.leave()


def _took_too_long() -> AnswerTookTooLong:
    return AnswerTookTooLong(
        "The answer was not complete in the time that one may take here.", hint="Ask for fewer tokens (max_tokens)."
    )


async def _merged(answers: list[_Begun]) -> AsyncGenerator[Delta, None]:
    """What comes from all of them, in the order in which it comes, but something of each before one of them ends.

    DashScope's client stops reading once all answers have ended that it has seen something of.
    """
    come: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(maxsize=len(answers))
    streams = [answer.deltas() for answer in answers]

    async def pass_on(deltas: AsyncGenerator[Delta, None]) -> None:
        try:
            async for delta in deltas:
                await come.put(delta)
            await come.put(None)
        except Exception as error:
            await come.put(error)

    passing: list[asyncio.Task[None]] = []
    try:
        for answer, deltas in zip(answers, streams, strict=True):
            yield Delta(answer.choice, TokenChunk()) if isinstance(answer.first, Finish) else await anext(deltas)
        passing += [asyncio.create_task(pass_on(deltas)) for deltas in streams]
        left = len(answers)
        while left:
            one = await come.get()
            if isinstance(one, BaseException):
                raise one
            if one is None:
                left -= 1
            else:
                yield one
    finally:
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
        for deltas in streams:
            await deltas.aclose()


def _asked(who: Principal, request: CompletionRequest, adapter: AdapterRef | None, choice: int) -> GenerateRequest:
    sampling = request.sampling
    if choice and sampling.seed is not None:
        sampling = sampling.model_copy(update={"seed": sampling.seed + choice})
    return GenerateRequest(
        adapter=adapter,
        messages=request.messages,
        prompt=request.prompt,
        tools=request.tools,
        must_call=request.must_call,
        parallel_tool_calls=request.parallel_tool_calls,
        json_schema=request.json_schema,
        regex=request.regex,
        sampling=sampling,
        scope=who.project,
    )


def _beginning(model: Servable, request: CompletionRequest) -> str:
    """What a replica may have read already for another request of the same kind: the same model and the same first words."""
    if model.deployment is None:
        return ""
    if request.messages:
        return "".join(turn.content[:_ALIKE] for turn in request.messages[:2])[:_ALIKE]
    return str((request.prompt or "")[:_ALIKE])


def _check_count(request: CompletionRequest) -> None:
    if not 1 <= request.n <= MOST_ANSWERS:
        raise InvalidParameter("n", f"must be from 1 to {MOST_ANSWERS}, got {request.n}")
    if request.n == 1:
        return
    given = _given(request)
    if request.n * given > MOST_TO_READ:
        raise InvalidParameter(
            "n", f"{request.n} answers to {given:,} characters or tokens are more than {MOST_TO_READ:,} to read"
        )


def _given(request: CompletionRequest) -> int:
    """Characters, or tokens, that are read for one answer, or that it is held to."""
    turns = sum(
        len(turn.content) + sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
        for turn in request.messages
    )
    tools = sum(len(tool.name) + len(tool.description) + _written(tool.parameters, "tools") for tool in request.tools)
    form = _written(request.json_schema, "response_format") + len(request.regex or "")
    return turns + len(request.prompt or "") + tools + form


def _written(schema: dict[str, Any] | None, param: str) -> int:
    """Characters of a schema as JSON."""
    try:
        return len(json.dumps(schema, ensure_ascii=False)) if schema else 0
    except RecursionError as deep:
        raise InvalidParameter(param, "the schema is nested too deeply") from deep
