"""What stands around all dialects: request ids, size limits, and every fault told in the dialect of its path."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.api.dialect import Dialect
from luthier.core import ids, logs
from luthier.core.errors import InternalError, InvalidRequest, LuthierError, NotFound

log = logs.get("api")

JSON_LIMIT_BYTES = 32 * 1024 * 1024


class TooLarge(InvalidRequest):
    code = "request_too_large"


class WrongMethod(InvalidRequest):
    code = "method_not_supported"


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


class SizeLimit:
    """Refuses a body that is too large as soon as that is known, before it fills memory or disk."""

    def __init__(self, app: ASGIApp, *, upload_limit_bytes: int, refuse: Callable[[Request, LuthierError], Response]) -> None:
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


def install(app: FastAPI, dialects: list[Dialect], *, upload_limit_bytes: int) -> None:
    """Put the routes of the dialects into the app, and the rest of this file around them."""
    for dialect in dialects:
        for prefix in dialect.prefixes:
            app.include_router(dialect.routes(), prefix=prefix)

    def told(request: Request, error: LuthierError) -> Response:
        request_id = request.scope.get("state", {}).get("request_id", "")
        for dialect in dialects:
            if any(request.url.path.startswith(f"{prefix}/") for prefix in dialect.prefixes):
                return dialect.render_error(error, request_id)
        status = 404 if isinstance(error, NotFound) else 500 if isinstance(error, InternalError) else 400
        return JSONResponse({"code": error.code, "message": error.text, "request_id": request_id}, status)

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, LuthierError)
        return told(request, error)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return told(request, _from_validation(error))

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return told(request, _from_framework(request, error))

    async def fault(request: Request, error: Exception) -> Response:
        log.error("a request failed", path=request.url.path, exc_info=error)
        return told(request, InternalError("The server made a mistake; its log has the rest beside this request's id."))

    app.add_exception_handler(LuthierError, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, fault)
    app.add_middleware(SizeLimit, upload_limit_bytes=upload_limit_bytes, refuse=told)
    app.add_middleware(RequestId)


def _from_validation(error: RequestValidationError) -> LuthierError:
    """All faults of a request in one sentence; the first one's field is the parameter."""
    faults = []
    for one in error.errors():
        place = [str(part) for part in one["loc"] if part not in ("body", "query", "path")]
        if one["type"] == "json_invalid":
            return InvalidRequest(f"The body is not JSON: {one.get('ctx', {}).get('error', one['msg'])}.")
        faults.append((".".join(place), one["msg"]))
    text = "; ".join(f"{field}: {message}" if field else message for field, message in faults)
    return InvalidRequest(f"{text}.", param=faults[0][0] or None)


def _from_framework(request: Request, error: HTTPException) -> LuthierError:
    if error.status_code == 404:
        return NotFound(f"There is nothing at {request.method} {request.url.path}.")
    if error.status_code == 405:
        return WrongMethod(f"{request.url.path} does not take {request.method}.")
    if error.status_code >= 500:
        return InternalError(str(error.detail))
    return InvalidRequest(str(error.detail))
