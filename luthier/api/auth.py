"""A key in the Authorization header → who is calling, before a byte of the body is read; and the services they may ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.control.tenancy import Principal
from luthier.core.errors import LuthierError, Unauthenticated
from luthier.services import Services


class Gate:
    """Lets nobody without a valid key below `prefixes`, whatever the path: what is not open is shut."""

    def __init__(
        self, app: ASGIApp, *, prefixes: tuple[str, ...], refuse: Callable[[Request, LuthierError], Response]
    ) -> None:
        self.app = app
        self.prefixes = prefixes
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and f"{scope['path']}/".startswith(self.prefixes):
            request = Request(scope)
            try:
                request.state.principal = await _caller(request)
            except LuthierError as error:
                await self.refuse(request, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def services_of(request: Request) -> Services:
    return _services(request)


async def caller_of(request: Request) -> Principal:
    return cast(Principal, request.state.principal)


# Coroutines, though they wait for nothing: FastAPI calls what is none in another thread, each time.
Asked = Annotated[Services, Depends(services_of)]
Caller = Annotated[Principal, Depends(caller_of)]


async def _caller(request: Request) -> Principal:
    """Raises Unauthenticated where the header is missing, of another scheme, or holds no valid key."""
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("No API key was sent.", hint="Send it as: Authorization: Bearer <key>.")
    return await _services(request).accounts.authenticate(key.strip())


def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)
