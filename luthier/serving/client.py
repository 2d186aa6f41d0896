"""Talks to one replica: generate, health."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from pydantic import BaseModel, ValidationError

from luthier.core.errors import (
    ContextTooLong,
    InternalError,
    InvalidParameter,
    InvalidRequest,
    LuthierError,
    NoCapacity,
    NotOffered,
    ReplicaUnavailable,
    StorageUnavailable,
)
from luthier.serving.address import TcpAddress, UnixAddress, parse
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import (
    LONGEST_LINE,
    Answer,
    Fault,
    Finish,
    GenerateRequest,
    Health,
    HealthRequest,
    TokenChunk,
    answers,
)

_BY_CODE: dict[str, type[LuthierError]] = {
    error.code: error
    for error in (
        AdapterUnreadable,
        ContextTooLong,
        InvalidParameter,
        InvalidRequest,
        NoCapacity,
        NotOffered,
        ReplicaUnavailable,
        StorageUnavailable,
    )
}

_TAKEN_IN_WITHIN_SECONDS = 5.0  # by a replica that many ask at once


class ReplicaClient:
    """A replica by its address, with the key where it has one. Nobody there, or an answer broken off, is ReplicaUnavailable;
    one that lives, but takes nobody more in, is NoCapacity.
    """

    def __init__(self, address: str | Path) -> None:
        self._address = parse(str(address))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenChunk | Finish]:
        """Yield text as it is made, then a Finish; closing this cancels the call.

        Raises the error that the replica reports, InternalError for one whose code is not known here.
        """
        async with aclosing(self._call(request)) as received:
            async for answer in received:
                assert isinstance(answer, TokenChunk | Finish)
                yield answer

    async def health(self, *, timeout: float) -> Health:
        """What the replica says of itself. `timeout` is in seconds; after it ReplicaUnavailable is raised."""
        try:
            async with asyncio.timeout(timeout):
                [answer] = [answer async for answer in self._call(HealthRequest())]
        except TimeoutError as late:
            raise ReplicaUnavailable(f"The replica at {self._address} did not answer in {timeout} s.") from late
        assert isinstance(answer, Health)
        return answer

    async def _call(self, call: BaseModel) -> AsyncGenerator[Answer]:
        """Send a call, yield its answers up to the final one."""
        try:
            reader, writer = await self._opened()
            try:
                writer.write(call.model_dump_json().encode() + b"\n")
                await writer.drain()
                while line := await self._line(reader):
                    answer = answers.validate_json(line)
                    if isinstance(answer, Fault):
                        raise _error(answer)
                    yield answer
                    if not isinstance(answer, TokenChunk):
                        return
            finally:
                writer.close()
        except (OSError, ValidationError) as broken:
            raise ReplicaUnavailable(f"The replica at {self._address} cannot be reached.", retry_after=1) from broken
        raise ReplicaUnavailable(f"The replica at {self._address} broke off its answer.", retry_after=1)

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._address, TcpAddress):
            return await self._opened_by_tcp(self._address)
        connection = await self._connected(self._address)
        try:
            return await asyncio.open_unix_connection(sock=connection, limit=LONGEST_LINE)
        except BaseException:
            connection.close()
            raise

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError as long:
            told = f"The replica at {self._address} sent a line of more than {LONGEST_LINE:,} bytes."
            raise ReplicaUnavailable(told, retry_after=1) from long

    async def _opened_by_tcp(self, address: TcpAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(_TAKEN_IN_WITHIN_SECONDS):
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=LONGEST_LINE)
        writer.write(address.key.encode() + b"\n")
        return reader, writer

    async def _connected(self, address: UnixAddress) -> socket.socket:
        """A Unix socket connects at once, or says that the other side's queue is full; asyncio would take that for connected."""
        until = time.monotonic() + _TAKEN_IN_WITHIN_SECONDS
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            while True:
                try:
                    connection.connect(address.text)
                    return connection
                except BlockingIOError as full:
                    if time.monotonic() > until:
                        raise NoCapacity(
                            "So many ask the model that nobody more is taken in.", hint="Try again.", retry_after=2
                        ) from full
                    await asyncio.sleep(0.005)
        except BaseException:
            connection.close()
            raise


def _error(fault: Fault) -> LuthierError:
    kind = _BY_CODE.get(fault.code, InternalError)
    error = kind.__new__(kind)  # the message is whole already; a class's own constructor would add to it
    LuthierError.__init__(error, fault.message, param=fault.param, retry_after=fault.retry_after)
    return error
