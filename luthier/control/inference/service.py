"""One completion: the name is resolved, a replica found, its tokens passed on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from luthier.control.catalog.service import Catalog
from luthier.control.deployments.routing import Routing
from luthier.control.tenancy import Principal
from luthier.core.errors import NotOffered, ReplicaUnavailable
from luthier.serving.protocol import Finish, GenerateRequest, OfferedTool, Sampling, TokenChunk, Turn


@dataclass(frozen=True)
class Delta:
    """More of one of the answers. `choice` counts them from 0; each ends with its own Finish."""

    choice: int
    part: TokenChunk | Finish


@dataclass(frozen=True)
class CompletionRequest:
    """What is asked of a model, every default of the dialect filled in. Either `messages` or `prompt` is given.

    `must_call`, `json_schema` and `parallel_tool_calls` mean what they mean in a GenerateRequest. `n` answers are made; with a
    seed the first of them is the one that would have been made alone.
    """

    model: str
    messages: list[Turn] = field(default_factory=list)
    prompt: str | list[int] | None = None
    tools: list[OfferedTool] = field(default_factory=list)
    must_call: list[str] | None = None
    parallel_tool_calls: bool = True
    json_schema: dict[str, Any] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1


class Inference:
    def __init__(self, catalog: Catalog, routing: Routing) -> None:
        self.catalog = catalog
        self.routing = routing

    async def complete(self, who: Principal, request: CompletionRequest) -> AsyncGenerator[Delta, None]:
        """The answers as they are made; what can be refused is raised before this returns.

        A replica that is lost before its first token is asked for once more on another; after it, ReplicaUnavailable ends
        the stream. Closing the generator ends the work.
        """
        if request.n > 1:
            raise NotOffered("n above 1 is not offered by this version.", param="n")
        model = await self.catalog.resolve(who, request.model)
        for last_try in (False, True):
            route = await self.routing.choose(model)
            asked = GenerateRequest(
                adapter=route.adapter,
                messages=request.messages,
                prompt=request.prompt,
                tools=request.tools,
                must_call=request.must_call,
                parallel_tool_calls=request.parallel_tool_calls,
                json_schema=request.json_schema,
                sampling=request.sampling,
            )
            answer = route.replica.generate(asked)
            try:
                return _going_on(await anext(answer), answer)
            except ReplicaUnavailable:
                await self.routing.lost(model)
                if last_try:
                    raise
            except BaseException:  # the caller went away, or the request was refused
                await answer.aclose()
                raise
        raise AssertionError("unreachable")


async def _going_on(
    first: TokenChunk | Finish, rest: AsyncGenerator[TokenChunk | Finish, None]
) -> AsyncGenerator[Delta, None]:
    try:
        yield Delta(0, first)
        async for part in rest:
            yield Delta(0, part)
    finally:
        await rest.aclose()
