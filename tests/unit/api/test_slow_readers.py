"""Who reads slowly, or leaves, costs nothing: seen through a real server by a raw socket."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, APITimeoutError, RateLimitError

from luthier.api.edge import SlowReaders
from luthier.api.streaming import server_sent_events
from tests.servers import KEY, RunningServer, install_toy, wait_for

LONG = "word " * 60_000  # said back a letter a frame, it is more than the buffers of a connection hold
PATHS = {
    "openai": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    "zhipu": ("/api/paas/v4/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    "dashscope": (
        "/api/v1/services/aigc/text-generation/generation",
        {"input": {"prompt": LONG}, "parameters": {"incremental_output": True}},
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[RunningServer]:
    """One answer is made at a time and one waits; a stream that is not read ends after two seconds."""
    data = tmp_path_factory.mktemp("slow")
    install_toy(data, toy_folder)
    settings = {"BACKEND": "echo", "CONCURRENCY_PER_PROJECT": "1", "WAITING_PER_PROJECT": "1"}
    settings["STALLED_AFTER_SECONDS"] = "2"
    server = RunningServer(data, **{f"LUTHIER_SERVING__{name}": value for name, value in settings.items()})
    try:
        server.start()
        assert said(server) == 200
        yield server
    finally:
        server.stop()


def said(server: RunningServer, *, within_seconds: float = 60) -> int:
    """The status of a short request, or 0 where it is not answered in that time; it then leaves."""
    try:
        with server.client() as client:
            client.with_options(timeout=within_seconds).chat.completions.create(
                model="toy", messages=[{"role": "user", "content": "Hi"}]
            )
        return 200
    except APITimeoutError:
        return 0
    except APIStatusError as refused:
        return refused.status_code


def is_busy(server: RunningServer) -> bool:
    return said(server, within_seconds=0.3) == 0


@contextmanager
def asked(
    server: RunningServer, dialect: str = "openai", *, stream: bool = True, content: str = LONG, buffer: int = 4096
) -> Iterator[socket.socket]:
    """A connection on which an answer has been asked for, by default a long one."""
    path, more = PATHS[dialect]
    body = json.dumps({"model": "toy", "stream": stream} | more).replace(LONG, content).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += ["X-DashScope-SSE: enable"] if stream else []
    with closing(socket.socket()) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        line.settimeout(60)
        line.connect(("127.0.0.1", server.port))
        line.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        yield line


def refused(*lines: socket.socket, within_seconds: float = 60) -> list[socket.socket]:
    """Those of the connections that have been sent away, once one has been answered; none where none is in that time."""
    heard, _, _ = select.select(lines, [], [], within_seconds)
    for line in heard:
        assert b" 429 " in line.recv(100, socket.MSG_PEEK), "it was let in: nobody talks any more"
    return heard


@contextmanager
def waiting(server: RunningServer) -> Iterator[None]:
    """An answer that waits in the line: of two that are asked for at once, while a third is made, that which is not refused."""
    with asked(server, content="Hi") as one, asked(server, content="Hi") as other:
        assert len(refused(one, other)) == 1
        yield


def has_room_in_line(server: RunningServer) -> bool:
    with asked(server, content="Hi") as line:
        return not refused(line, within_seconds=2)


@contextmanager
def talking(server: RunningServer) -> Iterator[None]:
    """A long answer that is read on and on, but so slowly that it outlasts what is looked at."""
    with asked(server, buffer=1 << 18) as line:
        assert b" 200 " in line.recv(1000)
        gone = threading.Event()

        def read() -> None:
            while not gone.wait(0.02) and line.recv(1 << 14):
                pass

        reading = threading.Thread(target=read)
        reading.start()
        try:
            yield
        finally:
            gone.set()
            reading.join()


@pytest.mark.parametrize("dialect", PATHS)
def test_a_stream_that_is_not_read_makes_room_and_ends_without_an_end(server: RunningServer, dialect: str) -> None:
    with asked(server, dialect) as line:
        assert b" 200 " in line.recv(1000)
        assert said(server) == 200  # it waits until the other is given up
        heard = b""
        try:
            while more := line.recv(1 << 16):
                heard = heard[-100:] + more
        except ConnectionError:
            pass
        assert not heard.endswith(b"0\r\n\r\n")


async def test_what_the_system_does_not_see_is_ended_by_the_app_and_closes_what_makes_the_answer() -> None:
    closed = asyncio.Event()

    async def frames() -> AsyncGenerator[dict[str, Any], None]:
        try:
            while True:
                yield {"said": "a"}
        finally:
            closed.set()

    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if len(sent) > 3:
            await asyncio.sleep(60)

    async def receive() -> Any:
        await asyncio.sleep(60)

    answer = server_sent_events(frames(), lambda error: {})
    scope = {"type": "http", "path": "/", "asgi": {"spec_version": "2.3"}}
    await asyncio.wait_for(SlowReaders(answer, stalled_after_seconds=0.05)(scope, receive, send), 10)
    assert closed.is_set()
    assert sent == ["http.response.start", *["http.response.body"] * 3]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_leaves_makes_room_at_once(server: RunningServer, stream: bool) -> None:
    with asked(server, stream=stream) as line:
        if stream:
            assert b" 200 " in line.recv(1000)
        else:
            wait_for(lambda: is_busy(server))
    assert said(server) == 200


def test_who_leaves_the_line_is_not_counted_any_more(server: RunningServer) -> None:
    with talking(server):
        with waiting(server):
            pass
        wait_for(lambda: has_room_in_line(server))
    assert said(server) == 200


def test_a_full_line_is_told_with_a_time_to_come_again(server: RunningServer) -> None:
    with talking(server), waiting(server):
        with server.client() as client, pytest.raises(RateLimitError) as refused:
            client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "Hi"}])
        assert refused.value.response.headers["retry-after"].isdigit()
    assert said(server) == 200
