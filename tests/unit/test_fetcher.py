"""One fetcher for strangers' addresses: what it reads out of a URL, whom it connects to, and when it gives up."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import InvalidParameter
from luthier.fetcher import Fetched, Fetcher, FetchRefused, is_public, parse

DATA = bytes(range(256)) * 40
HELLO = b"HTTP/1.1 200 OK\r\n"


class Server:
    """A real server on loopback whose answers are bytes, whole or in pieces over time; it keeps what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Callable[[], Iterable[bytes]]] = {}
        self.asked: list[str] = []
        self.connections = 0
        self._context = context
        self._plug = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._plug.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def on(self, path: str, *pieces: bytes, then: Callable[[], Iterable[bytes]] | None = None) -> None:
        self.answers[path] = lambda: itertools.chain(pieces, then() if then else ())

    def close(self) -> None:
        self._plug.close()

    def _run(self) -> None:
        while True:
            try:
                plug, _ = self._plug.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(plug,), daemon=True).start()

    def _answer(self, plug: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plug, server_side=True) if self._context else plug as wire:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (piece := wire.recv(4096)):
                        return
                    head += piece
                self.asked.append(head.decode())
                for piece in self.answers[head.split(b" ")[1].decode()]():
                    wire.sendall(piece)
        except OSError:
            pass  # the fetcher hung up, as it should


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.on("/good", HELLO, b"Content-Length: %d\r\nSet-Cookie: a=b\r\n\r\n" % len(DATA), DATA)
    yield server
    server.close()


def fetcher(
    server: Server,
    *,
    hosts: Sequence[str] = ("*",),
    names: Callable[[str], Sequence[str]] = lambda host: ["127.0.0.1"],
    refused: Sequence[str] = (),
    most_bytes: int = 100_000,
    within_seconds: float = 20,
    tls: ssl.SSLContext | None = None,
) -> Fetcher:
    """A fetcher to whom every address counts as public, less those in `refused`."""
    return Fetcher(
        hosts=hosts,
        most_bytes=most_bytes,
        within_seconds=within_seconds,
        ports=[server.port],
        policy=lambda address: str(address) not in refused,
        resolver=lambda host, port: names(host),
        tls=tls,
    )


def code_of(use: Callable[[], object]) -> str:
    with pytest.raises(FetchRefused) as caught:
        use()
    assert caught.value.message
    return caught.value.code


def test_a_file_is_fetched_with_its_digest_and_the_name_it_was_asked_by(server: Server) -> None:
    url = f"http://Pics.Example:{server.port}/good#part"
    server.answers["/good?x=%E5%9B%BE"] = server.answers["/good"]
    assert fetcher(server).get(url) == Fetched(
        f"http://pics.example:{server.port}/good", DATA, hashlib.sha256(DATA).hexdigest()
    )
    assert fetcher(server).get(f"http://pics.example:{server.port}/good?x=图").data == DATA
    first, second = server.asked
    assert f"\r\nHost: pics.example:{server.port}\r\n" in first
    assert "\r\nAccept-Encoding: identity\r\n" in first
    assert first.count("Host:") == 1
    assert "Cookie" not in second


def test_a_chunked_answer_and_one_that_ends_with_the_connection_are_read(server: Server) -> None:
    server.on("/chunked", HELLO, b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n0\r\n\r\n")
    server.on("/until-end", HELLO, b"\r\nabcde")
    for path in ("chunked", "until-end"):
        assert fetcher(server).get(f"http://a.example:{server.port}/{path}").data == b"abcde"


def test_no_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetcher(server).get(f"http://a.example:{server.port}/good").data == DATA


PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "223.5.5.5", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1"]
PUBLIC += ["2606:4700:4700::1111", "2400:3200::1", "2a00:1450:4001:80b::200e"]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:10.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:0:7f00:1::"),
    *("2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "2606:4700::5efe:10.0.0.1"),
    *("2606:4700::200:5efe:10.0.0.1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd00:42::1", "fe80::1"),
    *("fe80::1%eth0", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_by_number_and_by_name(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    named = Fetcher(hosts=["*"], resolver=lambda host, port: ["8.8.8.8", address])
    assert code_of(lambda: named.get("http://a.example/x")) == "address_not_allowed"  # one bad address is enough
    if "%" not in address:
        host = f"[{address}]" if ":" in address else address
        assert code_of(lambda: Fetcher(hosts=["*"]).get(f"http://{host}/x")) == "address_not_allowed"


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
@settings(max_examples=200, deadline=None)
def test_what_python_calls_not_global_is_never_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert address.is_global or not is_public(address)


def test_loopback_by_its_common_name_is_refused() -> None:
    assert code_of(lambda: Fetcher(hosts=["*"]).get("http://localhost/x")) == "address_not_allowed"


BAD_URLS = [
    *("", "x", "/etc/passwd", "file:///etc/passwd", "ftp://a.example/x", "gopher://a.example/", "//a.example/x"),
    *("javascript:alert(1)", "http:/a.example", "http:a.example", "http://", "http:///x", "http://?x", "http://#x"),
    *("http://user@a.example/", "http://user:word@a.example/", "http://a.example@127.0.0.1/", "http://@a.example/"),
    *("http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0x7f.1/", "http://127.1/"),
    *("http://127.0.1/", "http://0177.0.0.1/", "http://127.0.0.01/", "http://0x7f.0.0.1/", "http://127.0.0.0x1/"),
    *("http://1.2.3.4.5/", "http://256.0.0.1/", "http://a.example.1/", "http://0/", "http://0x/", "http://127.0.0.1./"),
    *("http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1/", "http://::1/", "http://[v1.x]/"),
    *("http://[::1]x/", "http://[]/", "http://[1.2.3.4]/", "http://[:::]/", "http://a.example./", "http://.a.example/"),
    *("http://a..example/", "http://./", "http://-a.example/", "http://a-.example/", f"http://{'a' * 64}.example/"),
    *(f"http://{'a.' * 127}example/", "http://ａ.example/", "http://①②⑦.0.0.1/", "http://127。0。0。1/"),
    *(
        "http://ⓛocalhost/",
        "http://bücher.example/",
        "http://a.example\u200b/",
        "http://a%2eexample/",
        "http://a%00.b/",
    ),
    *("http://a.example\\@127.0.0.1/", "http:\\\\a.example\\x", "http://a.example/\\x", " http://a.example/"),
    *("http://a.example/ ", "http://a.example/a b", "http://a.exam\nple/", "http://a.example/\r\nX: y", "http://a\t/"),
    *("http://a.example/\0", "http://a.example/\x7f", "http://a.example/\ud800", "ht\ntp://a.example/"),
    *("http://a.example:/", "http://a.example:0/", "http://a.example:080/", "http://a.example:x/"),
    *("http://a.example:-1/", "http://a.example:80:80/", "http://a.example:999999/", "http://a.example:８0/"),
    *("http://a,b.example/", "http://a.example;x/", "http://a!b/", "http://{x}/", "http://a.example/" + "x" * 8200),
]


@pytest.mark.parametrize("url", BAD_URLS, ids=range(len(BAD_URLS)))
def test_a_url_that_parsers_might_read_differently_is_refused(url: str) -> None:
    asked: list[str] = []
    sloppy = Fetcher(hosts=["*"], policy=lambda address: True, resolver=lambda host, port: asked.append(host) or [])
    assert code_of(lambda: sloppy.get(url)) == "bad_url"
    assert asked == []


def test_a_refusal_shows_neither_password_nor_signature() -> None:
    for url in ("http://user:secret@a.example/x", "http://a.example/x\n?sig=secret", "http://a.example/x?sig=secret"):
        with pytest.raises(FetchRefused) as caught:
            Fetcher(hosts=["b.example"]).get(url)
        assert "secret" not in caught.value.text
        assert "\n" not in caught.value.text


@given(st.text(max_size=40) | st.text(alphabet="ahtp:/@.[]%0x17\\#?é \n-", max_size=40).map("http://".__add__))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_target_or_refused(text: str) -> None:
    target, code = None, None
    try:
        target = parse(text)
    except FetchRefused as refused:
        code = refused.code
    if target is None:
        assert code == "bad_url"
    else:
        assert parse(target.url) == target
        assert target.path.isascii() and target.path.startswith("/")


@pytest.mark.parametrize("port", [22, 6379, 8080, 65536])
def test_other_ports_are_refused(port: int) -> None:
    assert code_of(lambda: Fetcher(hosts=["*"]).get(f"http://8.8.8.8:{port}/")) == "address_not_allowed"


@pytest.mark.parametrize(
    ("hosts", "host", "is_allowed"),
    [
        (["pics.example"], "pics.example", True),
        (["PICS.example"], "Pics.Example", True),
        (["pics.example"], "a.pics.example", False),
        (["pics.example"], "pics.example.evil.example", False),
        (["*.pics.example"], "a.b.pics.example", True),
        (["*.pics.example"], "pics.example", False),
        (["*.pics.example"], "evilpics.example", False),
        (["a.example", "*"], "anything.example", True),
        (["[2606:4700::1]"], "[2606:4700:0::1]", True),
        (["*.1.1.1"], "1.1.1.1", False),
    ],
)
def test_hosts_are_allowed_by_name_or_by_domain(server: Server, hosts: list[str], host: str, is_allowed: bool) -> None:
    def get() -> Fetched:
        return fetcher(server, hosts=hosts, names=lambda name: []).get(f"http://{host}:1/good")

    if "*.1.1.1" in hosts:
        with pytest.raises(InvalidParameter):
            get()
        return
    assert code_of(get) == ("address_not_allowed" if is_allowed else "host_not_allowed")  # the port is looked at next


@pytest.mark.parametrize("host", ["http://a.example", "a.example/x", "a.example:80", "", "*a.example", "a.*", "127.1"])
def test_a_pattern_that_matches_no_host_is_refused_at_once(host: str) -> None:
    with pytest.raises(InvalidParameter, match="hosts"):
        Fetcher(hosts=[host])


def test_with_no_hosts_nothing_is_fetched_and_the_setting_is_named() -> None:
    with pytest.raises(FetchRefused) as caught:
        Fetcher(hosts=[]).get("https://pics.example/x")
    assert caught.value.code == "host_not_allowed"
    assert caught.value.hint is not None
    assert "LUTHIER_DATA__IMAGE_HOSTS" in caught.value.hint


def test_a_name_is_looked_up_once_so_rebinding_changes_nothing(server: Server) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    fetched = fetcher(server, names=lambda host: next(answers), refused=["10.0.0.1"]).get(
        f"http://rebind.example:{server.port}/good"
    )
    assert fetched.data == DATA
    assert next(answers) == ["10.0.0.1"]  # nobody asked a second time


def test_the_connection_goes_to_the_checked_address_whatever_the_system_says(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, looked_up = socket.getaddrinfo, []

    def recorded(host: str, *rest: object, **more: object) -> object:
        looked_up.append(host)
        return system(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", recorded)
    assert fetcher(server).get(f"http://no-such-name.invalid:{server.port}/good").data == DATA
    assert set(looked_up) <= {"127.0.0.1"}


def test_the_next_address_is_tried_when_the_first_does_not_answer(server: Server) -> None:
    get = fetcher(server, names=lambda host: ["127.0.0.9", "127.0.0.1"]).get
    assert get(f"http://two.example:{server.port}/good").data == DATA


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_the_last_address_is_told(server: Server, status: int) -> None:
    server.on("/a", b"HTTP/1.1 %d Go\r\nLocation: b?x=1\r\nContent-Length: 0\r\n\r\n" % status)
    server.on("/b?x=1", b"HTTP/1.1 302 Go\r\nLocation: //other.example:%d/good\r\n\r\n" % server.port)
    fetched = fetcher(server).get(f"http://a.example:{server.port}/a")
    assert (fetched.url, fetched.data) == (f"http://other.example:{server.port}/good", DATA)


@pytest.mark.parametrize(
    ("location", "code"),
    [
        (b"http://private.example:%d/good", "address_not_allowed"),
        (b"http://10.0.0.1:%d/good", "address_not_allowed"),
        (b"http://[::ffff:10.0.0.1]:%d/", "address_not_allowed"),
        (b"http://b.example:1%d/good", "bad_url"),
        (b"http://b.example:22/good?%d", "address_not_allowed"),
        (b"http://167772161:%d/good", "bad_url"),
        (b"http://u@b.example:%d/good", "bad_url"),
        (b"file:///etc/passwd?%d", "bad_url"),
        (b"http://b.example\\@10.0.0.1:%d/", "bad_url"),
        (b"/a\tb%d", "bad_url"),
        (b"\xff\xfe%d", "bad_url"),
        (b"http://[%d", "bad_url"),
    ],
)
def test_a_redirect_goes_through_the_same_checks(server: Server, location: bytes, code: str) -> None:
    server.on("/a", b"HTTP/1.1 302 Go\r\nLocation: " + location % server.port + b"\r\n\r\n")
    names = {"a.example": ["127.0.0.1"], "private.example": ["127.0.0.2"], "b.example": ["127.0.0.1"]}
    refused = ["127.0.0.2", "10.0.0.1", "::ffff:a00:1"]
    get = fetcher(server, names=names.__getitem__, refused=refused).get
    assert code_of(lambda: get(f"http://a.example:{server.port}/a")) == code
    assert server.connections == 1


def test_a_redirect_to_a_host_that_is_not_on_the_list_is_refused(server: Server) -> None:
    server.on("/a", b"HTTP/1.1 302 Go\r\nLocation: http://b.example:%d/good\r\n\r\n" % server.port)
    get = fetcher(server, hosts=["a.example"]).get
    assert code_of(lambda: get(f"http://a.example:{server.port}/a")) == "host_not_allowed"


def test_redirects_end(server: Server) -> None:
    server.on("/loop", b"HTTP/1.1 302 Go\r\nLocation: /loop\r\n\r\n")
    assert code_of(lambda: fetcher(server).get(f"http://a.example:{server.port}/loop")) == "too_many_redirects"
    assert server.connections == 4


def drip(piece: bytes = b"x", seconds: float = 0.05) -> Iterator[bytes]:
    while True:
        time.sleep(seconds)
        yield piece


ANSWERS: list[tuple[str, tuple[bytes, ...], Callable[[], Iterable[bytes]] | None]] = [
    ("bad_status", (b"HTTP/1.1 404 No\r\n\r\n",), None),
    ("bad_status", (b"HTTP/1.1 500 No\r\n\r\n",), lambda: drip()),
    ("bad_status", (b"HTTP/1.1 206 Part\r\nContent-Length: 1\r\n\r\nx",), None),
    ("bad_status", (b"HTTP/1.1 204 None\r\n\r\n",), None),
    ("bad_status", (b"HTTP/1.1 302 No place\r\n\r\n",), None),
    ("too_large", (HELLO, b"Content-Length: 100001\r\n\r\n"), None),
    ("too_large", (HELLO, b"Content-Length: 99999999999999999999\r\n\r\n"), None),
    ("too_large", (HELLO, b"\r\n"), lambda: itertools.repeat(b"x" * 1000)),
    (
        "too_large",
        (HELLO, b"Transfer-Encoding: chunked\r\n\r\n"),
        lambda: itertools.repeat(b"400\r\n%s\r\n" % (b"x" * 1024)),
    ),
    ("too_large", (HELLO, b"Transfer-Encoding: chunked\r\n\r\n0\r\n"), lambda: itertools.repeat(b"X: y\r\n" * 100)),
    ("too_large", (), lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)),
    ("bad_response", (HELLO,), lambda: itertools.repeat(b"X: y\r\n")),
    ("bad_response", (HELLO, b"X: "), lambda: itertools.repeat(b"y" * 1000)),
    ("bad_response", (HELLO, b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"), None),
    ("bad_response", (HELLO, b"Content-Encoding: identity, br\r\nContent-Length: 1\r\n\r\nx"), None),
    ("bad_response", (HELLO, b"Content-Length: 10\r\n\r\nshort"), None),
    ("bad_response", (HELLO, b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"), None),
    ("bad_response", (HELLO, b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab"), None),
    ("bad_response", (b"SSH-2.0-OpenSSH_9\r\n",), None),
    ("bad_response", (), None),
    ("too_slow", (), lambda: drip()),
    ("too_slow", (HELLO,), lambda: drip(b"X: y\r\n")),
    ("too_slow", (HELLO, b"\r\n"), lambda: drip()),
    ("too_slow", (HELLO, b"Content-Length: 90000\r\n\r\n"), lambda: drip()),
    ("too_slow", (HELLO, b"Transfer-Encoding: chunked\r\n\r\n"), lambda: drip(b"1\r\nx\r\n")),
    ("too_slow", (HELLO, b"Content-Length: 9\r\n\r\n"), lambda: drip(b"", 3)),
]


@pytest.mark.parametrize(("code", "pieces", "then"), ANSWERS, ids=[f"{n} {row[0]}" for n, row in enumerate(ANSWERS)])
def test_an_answer_that_is_not_as_it_must_be(
    server: Server, code: str, pieces: tuple[bytes, ...], then: Callable[[], Iterable[bytes]] | None
) -> None:
    server.on("/x", *pieces, then=then)
    within = 0.7 if code == "too_slow" else 20
    started = time.monotonic()
    get = fetcher(server, within_seconds=within).get
    assert code_of(lambda: get(f"http://a.example:{server.port}/x")) == code
    assert time.monotonic() - started < 10
    assert code != "too_slow" or time.monotonic() - started >= 0.7


def test_exactly_the_most_bytes_are_allowed(server: Server) -> None:
    server.on("/x", HELLO, b"\r\n", b"x" * 100_000)
    assert len(fetcher(server).get(f"http://a.example:{server.port}/x").data) == 100_000


def test_the_time_holds_for_all_redirects_together_and_for_the_look_up(server: Server) -> None:
    def slowly() -> Iterator[bytes]:
        time.sleep(0.4)
        yield b"HTTP/1.1 302 Go\r\nLocation: /x\r\n\r\n"

    server.on("/x", then=slowly)
    assert code_of(lambda: fetcher(server, within_seconds=1).get(f"http://a.example:{server.port}/x")) == "too_slow"
    hanging = fetcher(server, within_seconds=0.2, names=lambda host: time.sleep(5) or [])
    started = time.monotonic()
    assert code_of(lambda: hanging.get(f"http://a.example:{server.port}/x")) == "too_slow"
    assert time.monotonic() - started < 3


def test_a_host_that_cannot_be_found_or_reached(server: Server) -> None:
    def fails(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    for names in (fails, lambda host: [], lambda host: ["nonsense"]):
        get = fetcher(server, names=names).get
        assert code_of(lambda get=get: get(f"http://a.example:{server.port}/good")) == "host_unknown"
    server.close()
    closed = fetcher(server, names=lambda host: ["127.0.0.9"])
    assert code_of(lambda: closed.get(f"http://a.example:{server.port}/good")) == "connection_failed"


def refusal(use: Callable[[], object]) -> FetchRefused:
    with pytest.raises(FetchRefused) as caught:
        use()
    return caught.value


@pytest.mark.parametrize(
    ("status", "is_passing"),
    [(404, False), (403, False), (410, False), (429, True), (408, True), (500, True), (503, True), (302, False)],
)
def test_a_status_tells_whether_it_will_pass(server: Server, status: int, is_passing: bool) -> None:
    server.on("/x", b"HTTP/1.1 %d No\r\n\r\n" % status)
    refused = refusal(lambda: fetcher(server).get(f"http://a.example:{server.port}/x"))
    assert (refused.code, refused.status, refused.is_passing) == ("bad_status", status, is_passing)


def test_what_may_pass_is_told_from_what_lasts(server: Server) -> None:
    def fails(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "ask again")

    url = f"http://a.example:{server.port}/x"
    server.on("/x", HELLO, b"Content-Length: 10\r\n\r\nshort")
    assert refusal(lambda: fetcher(server).get(url)).is_passing
    server.on("/x")
    assert refusal(lambda: fetcher(server).get(url)).is_passing
    server.on("/x", b"SSH-2.0-OpenSSH_9\r\n")
    assert not refusal(lambda: fetcher(server).get(url)).is_passing
    server.on("/x", HELLO, b"Content-Length: 100001\r\n\r\n")
    assert not refusal(lambda: fetcher(server).get(url)).is_passing
    assert not refusal(lambda: Fetcher(hosts=[]).get(url)).is_passing
    asks_again = refusal(lambda: fetcher(server, names=fails).get(url))
    assert (asks_again.code, asks_again.is_passing) == ("connection_failed", True)
    refused = refusal(lambda: fetcher(server, names=lambda host: ["127.0.0.9"]).get(url))
    assert (refused.code, refused.is_passing) == ("connection_failed", True)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("0", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None)]
)
def test_a_host_says_when_to_ask_again(server: Server, header: str, seconds: float | None) -> None:
    server.on("/x", b"HTTP/1.1 429 Slowly\r\nRetry-After: " + header.encode() + b"\r\n\r\n")
    assert refusal(lambda: fetcher(server).get(f"http://a.example:{server.port}/x")).retry_after == seconds


def certificate(folder: Path, name: str) -> Path:
    """A key and a certificate of its own for one name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_is_checked_against_the_name_not_the_address(tmp_path: Path) -> None:
    path = certificate(tmp_path, "pics.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    said: list[str] = []
    context.sni_callback = lambda wire, name, _: said.append(name)
    server = Server(context)
    server.on("/good", HELLO, b"Content-Length: 2\r\n\r\nok")
    trusting = ssl.create_default_context(cafile=os.fspath(path))
    try:
        assert fetcher(server, tls=trusting).get(f"https://pics.example:{server.port}/good").data == b"ok"
        assert said == ["pics.example"]
        wrong_name = fetcher(server, tls=trusting)
        assert code_of(lambda: wrong_name.get(f"https://other.example:{server.port}/good")) == "certificate_refused"
        not_trusted = fetcher(server)
        assert code_of(lambda: not_trusted.get(f"https://pics.example:{server.port}/good")) == "certificate_refused"
    finally:
        server.close()


def test_a_handshake_that_hangs_is_too_slow(server: Server) -> None:
    get = fetcher(server, within_seconds=0.5).get
    assert code_of(lambda: get(f"https://a.example:{server.port}/good")) == "too_slow"
