"""Whatever comes in at whatever path, the answer has the form of that path's dialect, and no request fills the memory."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from luthier.api.dialect import Dialect, dialects
from luthier.api.edge import JSON_LIMIT_BYTES
from luthier.core.errors import NotFound
from tests.servers import KEY, RunningServer
from tests.unit.api.conftest import Api

GIGABYTE = 1 << 30
LOADED = [dialects.load(name)() for name in dialects.names()]
MOUNTS: dict[str, Dialect] = {path: dialect for dialect in LOADED for path in dialect.mounts()}
OPTIONAL = {"problems", "request_id"}


@pytest.fixture(params=sorted(MOUNTS))
def mount(request: pytest.FixtureRequest) -> str:
    return request.param


def form(value: Any) -> Any:
    """The names in an object, without those that only some errors have."""
    return (
        {key: form(inner) for key, inner in value.items() if key not in OPTIONAL} if isinstance(value, dict) else None
    )


def is_of_the_dialect(mount: str, body: bytes) -> bool:
    expected = bytes(MOUNTS[mount].render_error(NotFound("There is none."), "req-1").body)
    return form(json.loads(body)) == form(json.loads(expected))


def refused(api: Api, method: str, path: str, mount: str, **sent: Any) -> int:
    """The status of a call that must be refused in the dialect of its mount."""
    answer = api.call(method, path, sent.pop("key", api.ada), **sent)
    assert answer.status_code >= 400
    assert answer.headers["content-type"] == "application/json"
    assert is_of_the_dialect(mount, answer.content), answer.text
    return answer.status_code


def operations(api: Api, mount: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths that belong to a mount and to none within it, their parameters filled in, with what may be done there."""
    inner = [path for path in MOUNTS if path.startswith(f"{mount}/")]
    for path, item in api.app.openapi()["paths"].items():
        below = path == mount or path.startswith(f"{mount}/")
        if below and not any(path == one or path.startswith(f"{one}/") for one in inner):
            yield re.sub(r"\{[^}]*\}", "none", path), item


def test_a_path_that_there_is_not(api: Api, mount: str) -> None:
    assert refused(api, "GET", f"{mount}/there/is/no/such-path", mount) == 404


def test_a_method_that_a_path_does_not_take(api: Api, mount: str) -> None:
    found = [path for path, item in operations(api, mount) if "none" not in path and "patch" not in item]
    assert found
    for path in found:
        assert refused(api, "PATCH", path, mount) == 405, path


def test_a_refused_method_is_told_the_methods_that_its_path_takes(api: Api, mount: str) -> None:
    for path, item in operations(api, mount):
        taken = {method.upper() for method in item}
        wrong = "PATCH" if "PATCH" not in taken else "PUT"
        answer = api.call(wrong, path, api.ada)
        assert (answer.status_code, is_of_the_dialect(mount, answer.content)) == (405, True), path
        allowed = answer.headers["allow"].split(", ")
        assert len(allowed) == len(set(allowed)) and taken <= set(allowed), path
        for method in allowed:  # what a path with a parameter takes is taken by it too
            assert api.call(method, path, api.ada).status_code != 405, f"{method} {path}"


def test_outside_of_the_dialects_a_refused_method_is_told_too(api: Api) -> None:
    answer = api.call("DELETE", "/healthz", None)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_supported")
    assert answer.headers["allow"] == "GET"


def test_no_other_refusal_says_what_is_allowed(api: Api, mount: str) -> None:
    for path in (f"{mount}/there/is/no/such-path", mount):
        answer = api.call("GET", path, api.ada)
        assert answer.status_code == 404 and "allow" not in answer.headers, path


@pytest.mark.parametrize("key", [None, "nonsense", "nobody." + "s" * 40, "a.b.c"])
def test_no_key_or_a_wrong_one(api: Api, mount: str, key: str | None) -> None:
    for path in (f"{mount}/there/is/no/such-path", *(path for path, _ in operations(api, mount))):
        assert refused(api, "GET", path, mount, key=key) == 401


@pytest.mark.parametrize(
    "body",
    [b"{", b"{'model': 1}", b'{"model": "\xff\xfe"}', b"\xff\xfe{\x00", b"[" * 100_000, b"\x00", b'{"model": 1e999,}'],
    ids=["half", "python", "not utf-8", "half utf-16", "deep", "null byte", "comma"],
)
def test_a_body_that_is_no_json(api: Api, mount: str, body: bytes) -> None:
    taking = [path for path, item in operations(api, mount) if "application/json" in contents(item.get("post", {}))]
    for path in taking:
        status = refused(api, "POST", path, mount, content=body, headers={"content-type": "application/json"})
        assert status == 400, path


def contents(operation: dict[str, Any]) -> dict[str, Any]:
    return operation.get("requestBody", {}).get("content", {})


def test_a_path_that_is_not_utf_8_or_has_a_null_byte(api: Api, mount: str) -> None:
    for path in ("%ff%fe", "%00", "x%00y"):
        assert refused(api, "GET", f"{mount}/{path}", mount) == 404


@pytest.mark.parametrize("query", ["metadata[a%00]=b", "metadata[a]=%00", "a%00b"])
def test_a_null_byte_in_a_query_is_found_nowhere(api: Api, query: str) -> None:
    assert refused(api, "GET", f"/v1/fine_tuning/jobs?{query}", "/v1") == 404


# ------------------------------------------------------------------------------------------------ over a socket of its own


@dataclass
class Heard:
    """What came back, how much of the body had been sent by then, and how much the server grew meanwhile."""

    status: int
    head: bytes
    body: bytes
    sent: int
    grown: int


def say(server: RunningServer, path: str, *headers: str, body: Iterator[bytes]) -> Heard:
    """Send a request in pieces until the server answers or will hear no more."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    sent = 0
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as line:
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *headers, "", ""]
        line.sendall("\r\n".join(lines).encode())
        line.setblocking(False)
        deadline = time.monotonic() + 60
        heard = b""
        try:
            for piece in body:
                left = memoryview(piece)
                while left and not heard:
                    assert time.monotonic() < deadline
                    try:
                        count = line.send(left)
                        left, sent = left[count:], sent + count
                    except BlockingIOError:
                        time.sleep(0.001)
                    heard = attempt(line)
                if heard:
                    break
        except ConnectionError:
            pass  # what it had to say may have come before
        line.setblocking(True)
        heard = rest(line, heard)
    done.set()
    watching.join()
    head, _, answer = heard.partition(b"\r\n\r\n")
    return Heard(int(head.split()[1]), head, answer, sent, peak - before)


def attempt(line: socket.socket) -> bytes:
    try:
        return line.recv(1 << 16)
    except BlockingIOError:
        return b""


def rest(line: socket.socket, heard: bytes) -> bytes:
    """What was heard and all after it, to the end of the answer's body, which has a stated length, or of the connection."""
    line.settimeout(10)
    try:
        while not is_whole(heard) and (more := line.recv(1 << 16)):
            heard += more
    except (ConnectionError, TimeoutError):
        pass
    return heard


def is_whole(heard: bytes) -> bool:
    head, _, body = heard.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def a_gigabyte(*, chunked: bool, size: int = GIGABYTE) -> Iterator[bytes]:
    """Made while it is sent; spaces, which are good JSON up to there."""
    piece = b" " * (1 << 16)
    for _ in range(size // len(piece)):
        yield b"10000\r\n" + piece + b"\r\n" if chunked else piece


JSON = "Content-Type: application/json"
FORM = "Content-Type: multipart/form-data; boundary=x"


@pytest.mark.parametrize("kind", [JSON, FORM], ids=["json", "form"])
def test_a_gigabyte_that_is_announced_is_refused_before_it_is_sent(
    toy_server: RunningServer, mount: str, kind: str
) -> None:
    said = say(toy_server, f"{mount}/any/thing", kind, f"Content-Length: {GIGABYTE}", body=iter(()))
    assert said.status == 413
    assert is_of_the_dialect(mount, said.body)
    assert said.grown < 20_000_000


def test_who_asks_whether_to_send_a_gigabyte_is_not_told_to(toy_server: RunningServer, mount: str) -> None:
    asked = ("Expect: 100-continue", f"Content-Length: {GIGABYTE}")
    said = say(toy_server, f"{mount}/any/thing", JSON, *asked, body=iter(()))
    assert said.status == 413
    assert is_of_the_dialect(mount, said.body)


def test_a_gigabyte_that_comes_all_the_same_is_not_read(toy_server: RunningServer) -> None:
    said = say(toy_server, "/v1/chat/completions", JSON, f"Content-Length: {GIGABYTE}", body=a_gigabyte(chunked=False))
    assert said.status == 413
    assert said.sent < GIGABYTE // 4
    assert said.grown < 50_000_000


def test_a_gigabyte_in_chunks_that_nobody_announced_is_read_up_to_the_limit(toy_server: RunningServer) -> None:
    said = say(toy_server, "/v1/chat/completions", JSON, "Transfer-Encoding: chunked", body=a_gigabyte(chunked=True))
    assert said.status == 413
    assert is_of_the_dialect("/v1", said.body)
    assert JSON_LIMIT_BYTES - (1 << 20) < said.sent < GIGABYTE // 4
    assert said.grown < 3 * JSON_LIMIT_BYTES


def test_what_comes_to_a_path_that_takes_no_body_or_is_none_does_not_stay_in_memory(toy_server: RunningServer) -> None:
    for path in ("/v1/models", "/v1/there/is/none"):
        much = a_gigabyte(chunked=True, size=4 * JSON_LIMIT_BYTES)
        said = say(toy_server, path, JSON, "Transfer-Encoding: chunked", body=much)
        assert said.status in (404, 405)
        assert said.grown < 2 * JSON_LIMIT_BYTES


def test_after_all_that_the_server_answers(toy_server: RunningServer) -> None:
    assert [model.id for model in toy_server.client().models.list()] == ["toy"]
