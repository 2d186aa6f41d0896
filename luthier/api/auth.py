"""A key in the Authorization header → who is calling; and the services they may ask."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from luthier.control.tenancy import Principal
from luthier.core.errors import Unauthenticated
from luthier.services import Services


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def caller_of(request: Request) -> Principal:
    """Raises Unauthenticated where the header is missing, of another scheme, or holds no valid key."""
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("No API key was sent.", hint="Send it as: Authorization: Bearer <key>.")
    return await services_of(request).accounts.authenticate(key.strip())


Asked = Annotated[Services, Depends(services_of)]
Caller = Annotated[Principal, Depends(caller_of)]
