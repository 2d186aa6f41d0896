"""What stands around all dialects: request ids, size limits, and every fault told in the dialect of its path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.api.auth import Gate
from luthier.api.dialect import Dialect
from luthier.api.presence import CallerLeft, nobody_answered
from luthier.api.shown import read_examples
from luthier.core import ids, logs
from luthier.core.errors import InternalError, InvalidRequest, LuthierError, NotFound

log = logs.get("api")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

JSON_LIMIT_BYTES = 32 * 1024 * 1024


class TooLarge(InvalidRequest):
    code = "request_too_large"


class WrongMethod(InvalidRequest):
    code = "method_not_supported"


_OUTSIDE: dict[type[LuthierError], int] = {NotFound: 404, WrongMethod: 405, InternalError: 500}
"""Statuses outside of all dialects; 400 for the rest."""


class RequestId:
    """Gives every request an id, on the answer as `x-request-id` and on every line of the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = ids.new("req")
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with logs.bind(request=request_id):
            await self.app(scope, receive, with_id)


class Faults:
    """Tells a fault of ours where the request's id is still known to the answer and the log."""

    def __init__(self, app: ASGIApp, *, tell: Callable[[Request, LuthierError], Response]) -> None:
        self.app = app
        self.tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_begun = False

        async def noted(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as fault:
            log.error("a request failed", path=scope["path"], exc_info=fault)
            if is_begun:
                raise
            told = InternalError("The server made a mistake; its log has the rest beside this request's id.")
            await self.tell(Request(scope), told)(scope, receive, send)


class SizeLimit:
    """Refuses a body that is too large as soon as that is known, before it fills memory or disk."""

    def __init__(
        self, app: ASGIApp, *, upload_limit_bytes: int, refuse: Callable[[Request, LuthierError], Response]
    ) -> None:
        self.app = app
        self.upload_limit_bytes = upload_limit_bytes
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        form = request.headers.get("content-type", "").startswith("multipart/")
        limit = self.upload_limit_bytes if form else JSON_LIMIT_BYTES
        error = TooLarge(f"The request is larger than {limit:,} bytes, the most that is taken here.")
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > limit:
            await self.refuse(request, error)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise error
            return message

        await self.app(scope, counted, send)


class SlowReaders:
    """Ends a stream of events that its caller has stopped reading, so that what makes it is free for others.

    The server holds the next event back while the connection's buffers are full; one that is held back for so long ends the
    request. What is not a stream of events is left alone.
    """

    def __init__(self, app: ASGIApp, *, stalled_after_seconds: float) -> None:
        self.app = app
        self.stalled_after_seconds = stalled_after_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_stream = False

        async def send_in_time(message: Message) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                is_stream = MutableHeaders(scope=message).get("content-type", "").startswith("text/event-stream")
            if not is_stream:
                await send(message)
                return
            try:
                async with asyncio.timeout(self.stalled_after_seconds):
                    await send(message)
            except TimeoutError as stalled:
                raise _Stalled from stalled

        try:
            await self.app(scope, receive, send_in_time)
        except _Stalled:
            log.warning("a stream was not read", path=scope["path"], seconds=self.stalled_after_seconds)


class _Stalled(Exception):
    pass


class _Mounted(APIRouter):
    """The routes of a dialect below one path. A request for another path is not compared with each of them."""

    def __init__(self, path: str, router: APIRouter) -> None:
        super().__init__(routes=router.routes)
        self._path = path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if _lies_below(scope["path"], self._path) else (Match.NONE, {})


def install(app: FastAPI, dialects: list[Dialect], *, upload_limit_bytes: int, stalled_after_seconds: float) -> None:
    """Put the routes of the dialects into the app, and the rest of this file around them."""
    mounts = [(path, dialect, router) for dialect in dialects for path, router in dialect.mounts().items()]
    mounts.sort(
        key=lambda mount: len(mount[0]), reverse=True
    )  # of two that lie within each other the inner one is asked
    for path, _, router in mounts:
        app.include_router(_Mounted(path, router), prefix=path, dependencies=[Depends(_findable)])

    _describe(app, tuple(f"{path}/" for path, _, _ in mounts))

    def told(request: Request, error: LuthierError) -> Response:
        request_id = request.scope.get("state", {}).get("request_id", "")
        for path, dialect, _ in mounts:
            if _lies_below(request.scope["path"], path):
                return dialect.render_error(error, request_id)
        status = next((status for kind, status in _OUTSIDE.items() if isinstance(error, kind)), 400)
        return JSONResponse({"code": error.code, "message": error.text, "request_id": request_id}, status)

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, LuthierError)
        return told(request, error)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return told(request, _from_validation(error))

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = told(request, _from_framework(request, error))
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_taken(app, request.scope))
        return response

    app.add_exception_handler(LuthierError, known)
    app.add_exception_handler(CallerLeft, nobody_answered)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, framework)
    prefixes = tuple(f"{path}/" for path, _, _ in mounts)
    app.add_middleware(SlowReaders, stalled_after_seconds=stalled_after_seconds)
    app.add_middleware(SizeLimit, upload_limit_bytes=upload_limit_bytes, refuse=told)
    app.add_middleware(Gate, prefixes=prefixes, refuse=told)
    app.add_middleware(Faults, tell=told)
    app.add_middleware(RequestId)


def _describe(app: FastAPI, prefixes: tuple[str, ...]) -> None:
    """Say in the API's document that everything below these paths wants a key, since the Gate is what sees to it; and put
    in the examples of answers.
    """
    framework_openapi = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = framework_openapi()
            read_examples(document)
            document.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, operations in document["paths"].items():
                if f"{path}/".startswith(prefixes):
                    for operation in operations.values():
                        operation["security"] = [{"key": []}]
        return framework_openapi()

    app.openapi = described


def _lies_below(asked: str, path: str) -> bool:
    return asked.startswith(path) and (len(asked) == len(path) or asked[len(path)] == "/")


def _taken(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that the asked path takes: the framework's own word is of the first of its routes alone."""

    def takes(method: str) -> bool:
        asked = {**scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in app.router.routes)

    return [method for method in _METHODS if takes(method)]


async def _findable(request: Request) -> None:
    """Raises NotFound for U+0000 in an address: no id has it, and PostgreSQL refuses to look for it."""
    if any(
        "\0" in text for text in (request.scope["path"], *request.query_params.keys(), *request.query_params.values())
    ):
        raise NotFound("There is nothing at an address with U+0000 in it.")


def _from_validation(error: RequestValidationError) -> LuthierError:
    """All faults of a request in one sentence; the first one's field is the parameter."""
    faults: dict[str, list[str]] = {}
    for one in error.errors():
        if one["type"] == "json_invalid":
            return InvalidRequest(f"The body is not JSON: {one.get('ctx', {}).get('error', one['msg'])}.")
        if one["loc"] == ("body",) and isinstance(error.body, bytes):
            return InvalidRequest("The body was not sent as JSON.", hint="Send it with Content-Type: application/json.")
        said = (
            "is not a field that is known here"
            if one["type"] == "extra_forbidden"
            else one["msg"].removeprefix("Value error, ")
        )
        told = faults.setdefault(_field(one, error.body), [])
        if said not in told:
            told.append(said)
    text = "; ".join((f"{field}: " if field else "") + " or ".join(messages) for field, messages in faults.items())
    return InvalidRequest(f"{text}.", param=next(iter(faults)) or None)


def _field(fault: Mapping[str, Any], body: Any) -> str:
    """The field as the caller wrote it: where several types would do, pydantic adds the name of each that it tried."""
    where, *parts = fault["loc"]
    if where != "body":
        return ".".join(map(str, parts))
    field = ""
    for place, part in enumerate(parts, 1):
        is_missing = fault["type"] == "missing" and place == len(parts)
        if isinstance(body, Mapping) and (part in body or is_missing):
            body = body.get(part)
            field += f".{part}"
        elif isinstance(body, list) and isinstance(part, int):
            body = body[part]
            field += f"[{part}]"
    return field.removeprefix(".")


def _from_framework(request: Request, error: HTTPException) -> LuthierError:
    if error.status_code == 404:
        return NotFound(f"There is nothing at {request.method} {request.url.path}.")
    if error.status_code == 405:
        return WrongMethod(f"{request.url.path} does not take {request.method}.")
    if isinstance(error.__cause__, LuthierError):  # raised while the framework read the body
        return error.__cause__
    if isinstance(error.__cause__, UnicodeDecodeError):
        return InvalidRequest("The body is not JSON: it is not UTF-8.")
    if isinstance(error.__cause__, RecursionError):
        return InvalidRequest("The body is not JSON that can be read: it is nested too deeply.")
    if error.status_code >= 500:
        return InternalError(str(error.detail))
    return InvalidRequest(str(error.detail))
