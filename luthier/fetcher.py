"""Fetches what a stranger's address names, without reaching anything that is not public.

A URL is parsed by one parser, its host is looked up once, every address found is checked, and the connection goes to a
checked address; the name stays in the Host header, in SNI and in the certificate's check. The standard library does it:
HTTP clients from the shelf take a name and look it up again, and http.client takes a socket that is open already.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from luthier.core.errors import InvalidParameter, InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Policy = Callable[[Address], bool]
Resolver = Callable[[str, int], Sequence[str]]

PORTS = (80, 443)
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)  # beside all that begin with 5
_PIECE = 64 * 1024  # bytes read at a time
_FRAMING = 256 * 1024  # bytes that headers and chunk marks may take beside the body


class FetchRefused(InvalidRequest):
    """An address that is not fetched, or that did not answer as it must. `code` is one of

    bad_url, host_not_allowed, address_not_allowed, host_unknown, certificate_refused, too_many_redirects,
    connection_failed, too_slow, too_large, bad_status, bad_response; of a host that was given up also host_silent.

    `is_passing` says whether the same address may well answer a little later, `retry_after` in how many seconds it
    asks to be tried again, and `status` what a host answered instead of 200; the last two are absent where nobody said.
    """

    code = "fetch_refused"

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        is_passing: bool = False,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)
        self.code = code
        self.is_passing = is_passing
        self.status = status


@dataclass(frozen=True)
class Fetched:
    url: str  # the address that gave the bytes, after redirects
    data: bytes
    sha256: str


@dataclass(frozen=True)
class Target:
    """A URL, taken apart. `host` is in lower case, an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int
    path: str  # with the query, ASCII only

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def __str__(self) -> str:
        """For messages and logs: without the query, which may hold a signature."""
        return _shown(self.url)


@dataclass(frozen=True)
class Admitted:
    """A target that may be connected to, at these addresses and no others."""

    target: Target
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    data: bytes  # empty unless the status is 2xx


class Fetcher:
    """Gets files from public hosts. Keeps nothing between calls; many threads may use one."""

    def __init__(
        self,
        *,
        hosts: Sequence[str],
        most_bytes: int = 10 * 1024 * 1024,
        within_seconds: float = 10,
        redirects: int = 3,
        setting: str = "LUTHIER_DATA__IMAGE_HOSTS",
        ports: Sequence[int] = PORTS,
        policy: Policy | None = None,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Fetch from `hosts` only: `pics.example.com`, `*.example.com` (its subdomains, not itself), or `*` for any.

        The time is for the whole of a call: looking up, connecting, every redirect and the body. `setting` is what the
        operator is told to set where a host is missing. `ports`, `policy`, `resolver` and `tls` are there for tests,
        whose server is on loopback; absent, they are 80 and 443, `is_public`, the system's and the system's.
        Raises InvalidParameter for a pattern that can match no host.
        """
        self._gate = Gate(hosts, setting=setting, ports=ports, policy=policy or is_public, resolver=resolver or look_up)
        self._most_bytes = most_bytes
        self._within_seconds = within_seconds
        self._redirects = redirects
        self._tls = tls

    def get(self, url: str) -> Fetched:
        """The bytes at `url`, their type unseen: who wants an image examines it. Raises FetchRefused."""
        deadline = Deadline(self._within_seconds)
        for _ in range(self._redirects + 1):
            admitted = self._gate.admit(url, deadline)
            answer = exchange(admitted, deadline=deadline, most_bytes=self._most_bytes, tls=self._tls)
            if answer.status in _REDIRECTS and "location" in answer.headers:
                url = _follow(admitted.target, answer.headers["location"])
                continue
            if answer.status != 200:
                raise FetchRefused(
                    "bad_status",
                    f"{admitted.target} answered with status {answer.status}, expected 200.",
                    hint="Check that the address can be opened without signing in.",
                    is_passing=answer.status in _PASSING or answer.status >= 500,
                    status=answer.status,
                    retry_after=_seconds(answer.headers.get("retry-after", "")),
                )
            return Fetched(admitted.target.url, answer.data, hashlib.sha256(answer.data).hexdigest())
        raise FetchRefused(
            "too_many_redirects",
            f"{_shown(url)} is redirected more than {self._redirects} times.",
            hint="Give the address that the file lies at.",
        )


class Gate:
    """Decides whether a URL may be connected to, and at which addresses."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        setting: str,
        ports: Sequence[int] = PORTS,
        policy: Policy,
        resolver: Resolver,
    ) -> None:
        self._hosts = tuple(_pattern(host) for host in hosts)
        self._setting = setting
        self._ports = ports
        self._policy = policy
        self._resolver = resolver

    def admit(self, url: str, deadline: Deadline) -> Admitted:
        """Check a URL, its host against the list, and every address of the host, looked up once. Raises FetchRefused."""
        target = parse(url)
        self._allow(target)
        if target.port not in self._ports:
            allowed = " and ".join(str(port) for port in self._ports)
            raise FetchRefused("address_not_allowed", f"{target}: port {target.port} is not allowed, {allowed} are.")
        addresses = self._addresses(target, deadline)
        for address in addresses:
            if not self._policy(address):
                raise FetchRefused(
                    "address_not_allowed",
                    f"{target} leads to {address}, which is not a public address.",
                    hint="Put the file on a public host, or send it as data.",
                )
        return Admitted(target, addresses)

    def _allow(self, target: Target) -> None:
        if not self._hosts:
            raise FetchRefused(
                "host_not_allowed",
                f"{target} was not fetched: this server fetches from no host.",
                hint=f'The operator allows hosts with {self._setting}, e.g. ["{target.host}"].',
            )
        for pattern in self._hosts:
            if pattern in ("*", target.host) or (pattern.startswith("*.") and target.host.endswith(pattern[1:])):
                return
        raise FetchRefused(
            "host_not_allowed",
            f"{target} was not fetched: the host {target.host} is not on this server's list.",
            hint=f"The operator can add it to {self._setting}.",
        )

    def _addresses(self, target: Target, deadline: Deadline) -> tuple[Address, ...]:
        try:
            return (ipaddress.ip_address(target.host),)
        except ValueError:
            found = _in_time(lambda: self._resolver(target.host, target.port), target, deadline)
        try:
            addresses = tuple(dict.fromkeys(ipaddress.ip_address(text) for text in found))
        except ValueError as wrong:
            raise FetchRefused("host_unknown", f"{target.host} was looked up to no address: {wrong}") from wrong
        if not addresses:
            raise FetchRefused("host_unknown", f"{target.host} has no address.", hint="Check the host's name.")
        return addresses


class Deadline:
    """A point in time that a whole call must be done by."""

    def __init__(self, within_seconds: float) -> None:
        self._seconds = within_seconds
        self._end = time.monotonic() + within_seconds

    def left(self) -> float:
        """Seconds left, above 0. Raises FetchRefused (too_slow) when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> FetchRefused:
        return FetchRefused(
            "too_slow",
            f"There was no whole answer within {self._seconds:g} seconds.",
            hint="Put the file on a faster host, or send it as data.",
            is_passing=True,
        )


def exchange(
    admitted: Admitted,
    *,
    deadline: Deadline,
    most_bytes: int,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request and its answer: no redirect followed, no proxy, no cookie, the connection closed after it.

    The body of a 2xx answer is read, up to `most_bytes`; any other is left unread. Raises FetchRefused.
    """
    target = admitted.target
    asked = {"Host": target.authority, "User-Agent": "luthier", "Accept": "*/*", "Accept-Encoding": "identity"}
    try:
        with _connect(admitted, deadline, tls) as plug:
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.auto_open = 0  # nobody but us connects
            connection.sock = _Wire(plug, deadline, most_bytes)
            connection.request(
                method, target.path, body=body, headers={**asked, **(headers or {}), "Connection": "close"}
            )
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            data = _body(response, target, most_bytes) if 200 <= response.status < 300 else b""
            return Answer(response.status, found, data)
    except http.client.HTTPException as wrong:
        is_cut_off = isinstance(wrong, http.client.RemoteDisconnected | http.client.IncompleteRead)
        said = f"{target} did not answer in HTTP: {type(wrong).__name__}."
        raise FetchRefused("bad_response", said, is_passing=is_cut_off) from wrong
    except TimeoutError as late:
        raise deadline.passed() from late
    except (ssl.SSLCertVerificationError, ValueError) as wrong:  # ValueError: of some names and certificates
        raise FetchRefused("certificate_refused", f"{target} showed no valid certificate: {wrong}") from wrong
    except OSError as failed:
        said = f"{target} could not be reached: {failed}"
        raise FetchRefused("connection_failed", said, is_passing=True) from failed


def parse(url: str) -> Target:
    """Take a URL apart, strictly: what other parsers might read differently is refused.

    Raises FetchRefused (bad_url) for anything but http and https, user names, spaces and control characters,
    backslashes, hosts outside ASCII, trailing dots, zone ids and numbers that are not plain IPv4 addresses. A fragment
    is dropped; a path outside ASCII is sent as UTF-8 with percent signs.
    """
    if len(url) > 8192:
        raise FetchRefused("bad_url", f"An address may have 8,192 characters, this one has {len(url)}.")
    if any(letter <= " " or letter in "\\\x7f" or 0xD800 <= ord(letter) < 0xE000 for letter in url):
        raise _bad(url, "it holds a space, a backslash or a control character", "Write them with percent signs.")
    if (parts := _URL.fullmatch(url)) is None:
        raise _bad(url, "it must start with http:// or https:// and name a host")
    scheme, authority = parts["scheme"].lower(), parts["authority"].lower()
    if "@" in authority:
        raise _bad(url, "it holds a user name or password", "Leave out what stands before the @.")
    if (place := _AUTHORITY.fullmatch(authority)) is None:
        raise _bad(url, "its host must be letters, digits, dots and hyphens", "Write other alphabets in xn-- form.")
    host = _literal(url, place["v6"]) if place["v6"] is not None else _name(url, place["name"])
    port = int(place["port"]) if place["port"] else {"http": 80, "https": 443}[scheme]
    path = quote(parts["path"] or "", safe=_SAFE) or "/"
    query = quote(parts["query"] or "", safe=_SAFE)
    return Target(scheme, host, port, path + query)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, by IANA's registries of special addresses.

    Addresses that carry an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo, ISATAP) are not public whatever they
    carry, and neither are the metadata services of clouds.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address.scope_id is not None or address not in _UNICAST_V6:
        return False
    if address.packed[8:12] in (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe"):  # ISATAP
        return False
    return not any(address in network for network in _NOT_PUBLIC_V6)


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host as the system knows them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(place[0]) for *_, place in found]


_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]+)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?", re.ASCII | re.I
)
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[1-9][0-9]{0,4}))?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_SAFE = "".join(map(chr, range(0x21, 0x7F)))  # all that parse() lets through in ASCII stays as it came

_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT, and Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's services for its machines
        "169.254.0.0/16",  # link-local, and most metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")  # outside: loopback, mapped, NAT64, ULA, link-local, multicast
_NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]


class _Wire:
    """What http.client wants of a socket, with what is left of the time before every step."""

    def __init__(self, plug: socket.socket, deadline: Deadline, most_bytes: int) -> None:
        self._plug = plug
        self._deadline = deadline
        self._most_bytes = most_bytes

    def sendall(self, data: bytes) -> None:
        self._plug.settimeout(self._deadline.left())
        self._plug.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._plug, self._deadline, self._most_bytes), _PIECE)

    def close(self) -> None:
        """Nothing: http.client closes before the body is read, and `exchange` closes in the end."""


class _Incoming(io.RawIOBase):
    """The bytes that come in, timed and counted: the headers and chunk marks of an answer may be endless too."""

    def __init__(self, plug: socket.socket, deadline: Deadline, most_bytes: int) -> None:
        self._plug = plug
        self._deadline = deadline
        self._most_bytes = most_bytes
        self._bytes_left = 2 * most_bytes + _FRAMING

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        self._plug.settimeout(self._deadline.left())
        count = self._plug.recv_into(buffer)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise _too_large(None, self._most_bytes)
        return count


def _connect(admitted: Admitted, deadline: Deadline, tls: ssl.SSLContext | None) -> socket.socket:
    """Connect to the first checked address that answers, giving each its share of the time. Raises OSError."""
    target, failed = admitted.target, OSError("no address")
    for tried, address in enumerate(admitted.addresses):
        share = deadline.left() / (len(admitted.addresses) - tried)
        try:
            plug = socket.create_connection((str(address), target.port), timeout=share)
        except OSError as refused:
            failed = refused
            continue
        if target.scheme == "http":
            return plug
        try:
            plug.settimeout(deadline.left())
            return (tls or ssl.create_default_context()).wrap_socket(plug, server_hostname=target.host)
        except BaseException:
            plug.close()
            raise
    raise failed


def _body(response: http.client.HTTPResponse, target: Target, most_bytes: int) -> bytes:
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchRefused(
            "bad_response", f"{target} sent its answer packed ({encoding[:40]!r}), asked was plain bytes."
        )
    promised = response.length  # absent where the length is told by chunks or by the end
    if promised is not None and promised > most_bytes:
        raise _too_large(target, most_bytes)
    pieces, size = [], 0
    while piece := response.read(min(_PIECE, most_bytes + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise _too_large(target, most_bytes)
    if promised is not None and size != promised:
        said = f"{target} sent {size:,} bytes and had promised {promised:,}."
        raise FetchRefused("bad_response", said, is_passing=True)
    return b"".join(pieces)


def _seconds(text: str) -> float | None:
    """What a Retry-After header asks for; None where it names no number, as those that name a date."""
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _follow(target: Target, location: str) -> str:
    """The address that a redirect names; it goes through every check again."""
    try:
        location = location.encode("latin-1").decode()  # header bytes as http.client hands them on
        if any(letter <= " " or letter in "\\\x7f" for letter in location):  # before urljoin drops some of them
            raise ValueError("a space, a backslash or a control character")
        return urljoin(target.url, location)
    except ValueError as wrong:
        raise FetchRefused("bad_url", f"{target} redirects to what is no address: {wrong}") from wrong


def _in_time(work: Callable[[], Sequence[str]], target: Target, deadline: Deadline) -> Sequence[str]:
    """Look up in a thread, since the system's call knows no time limit; one that hangs ends by itself."""
    found: list[Sequence[str]] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except (OSError, ValueError) as wrong:  # ValueError: a name that cannot be encoded
            failed.append(wrong)

    thread = threading.Thread(target=run, name=f"look up {target.host}", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if failed:
        said = f"{target.host} could not be looked up: {failed[0]}"
        if isinstance(failed[0], socket.gaierror) and failed[0].errno == socket.EAI_AGAIN:
            raise FetchRefused("connection_failed", said, is_passing=True) from failed[0]
        raise FetchRefused("host_unknown", said, hint="Check the host's name.") from failed[0]
    if not found:
        raise deadline.passed()
    return found[0]


def _pattern(host: str) -> str:
    pattern = host.strip().lower()
    if pattern == "*":
        return pattern
    wild = pattern.startswith("*.")
    try:
        name = parse(f"http://{pattern.removeprefix('*.')}/").host
    except FetchRefused as wrong:
        raise InvalidParameter("hosts", f"{host!r} is no host, no *.domain and not *: {wrong.message}") from wrong
    if name != pattern.removeprefix("*.").strip("[]") or (wild and _NUMBER.fullmatch(name.rsplit(".", 1)[-1])):
        raise InvalidParameter(
            "hosts", f"{host!r} must be a host alone, without scheme, port or path", hint=f"{name!r}?"
        )
    return f"*.{name}" if wild else name


def _literal(url: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as wrong:
        raise _bad(url, "its host is no IPv6 address") from wrong


def _name(url: str, name: str) -> str:
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad(url, "its host is no name: no empty parts, no trailing dot, no hyphen at an edge")
    if _NUMBER.fullmatch(labels[-1]):  # what system libraries may read as an address
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as wrong:
            raise _bad(
                url, "its host is a number in an odd notation", "Write four decimals, like 192.0.2.1."
            ) from wrong
    return name


def _bad(url: str, why: str, hint: str | None = None) -> FetchRefused:
    return FetchRefused("bad_url", f"{_shown(url)} is no address that can be fetched: {why}.", hint=hint)


def _too_large(target: Target | None, most_bytes: int) -> FetchRefused:
    return FetchRefused(
        "too_large",
        f"{target or 'The answer'} is larger than the {most_bytes:,} bytes that are allowed.",
        hint="Send a smaller file.",
    )


def _shown(url: str) -> str:
    """An address for messages: without its query and password, on one line, and short."""
    scheme, mark, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
    place = (f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else scheme.rpartition("@")[2])[:120]
    return "".join(letter if letter.isprintable() and letter != "\\" else ascii(letter)[1:-1] for letter in place)
