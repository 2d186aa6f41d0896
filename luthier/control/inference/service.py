"""One completion: the name is resolved, a replica found, its tokens passed on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from luthier.control.catalog.service import Catalog
from luthier.control.deployments.routing import Routing
from luthier.control.tenancy import Principal
from luthier.core.errors import ReplicaUnavailable
from luthier.serving.protocol import Finish, GenerateRequest, Sampling, TokenChunk, Turn

Delta = TokenChunk | Finish


@dataclass(frozen=True)
class CompletionRequest:
    model: str
    messages: list[Turn]
    sampling: Sampling


class Inference:
    def __init__(self, catalog: Catalog, routing: Routing) -> None:
        self.catalog = catalog
        self.routing = routing

    async def complete(self, who: Principal, request: CompletionRequest) -> AsyncGenerator[Delta, None]:
        """The answer as it is made; what can be refused is raised before this returns.

        A replica that is lost before its first token is asked for once more on another; after it, ReplicaUnavailable ends
        the stream. Closing the generator ends the work.
        """
        model = await self.catalog.resolve(who, request.model)
        for last_try in (False, True):
            route = await self.routing.choose(model)
            asked = GenerateRequest(adapter=route.adapter, messages=request.messages, sampling=request.sampling)
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


async def _going_on(first: Delta, rest: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    try:
        yield first
        async for delta in rest:
            yield delta
    finally:
        await rest.aclose()
