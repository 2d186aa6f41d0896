"""Where a replica listens, as one text: the path of a Unix socket, or tcp://HOST:PORT with the start's key before the host."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from luthier.core.errors import InvalidParameter

LONGEST_PATH = 100  # bytes; systems allow 104 to 108 in the address of a Unix socket

KEY_VARIABLE = "LUTHIER_REPLICA_KEY"
"""By which the environment of a replica's process tells it the key that its callers must know."""

_ANNOUNCED = "listening at "


@dataclass(frozen=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def text(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class TcpAddress:
    """Port 0 is one that the replica chooses, and then announces. As a str it has no key, so that it can be shown."""

    host: str
    port: int
    key: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"tcp://{self._host}:{self.port}"

    @property
    def text(self) -> str:
        """The whole of it, for who calls."""
        return f"tcp://{self.key}@{self._host}:{self.port}" if self.key else str(self)

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


Address = UnixAddress | TcpAddress


def parse(text: str) -> Address:
    """Raises InvalidParameter for what begins with tcp:// and is no address, and for a path too long for a socket."""
    if text.startswith("tcp://"):
        try:
            parts = urlsplit(text)
            host, port, key = parts.hostname, parts.port, parts.username
        except ValueError:
            host, port, key = None, None, None
        if not host or port is None:
            raise InvalidParameter("listen", "must be tcp://HOST:PORT")
        return TcpAddress(host, port, key or "")
    if (length := len(os.fsencode(text))) > LONGEST_PATH:
        raise InvalidParameter(
            "listen",
            f"a socket's path may be {LONGEST_PATH} bytes long, got {length}: {text}",
            hint="Use a shorter folder (TMPDIR), or listen at tcp://127.0.0.1.",
        )
    return UnixAddress(Path(text))


def announcement(port: int) -> str:
    """The line by which a replica says in its log at which port it listens."""
    return f"{_ANNOUNCED}{port}"


def announced(log: str) -> int | None:
    """The port that a replica's log tells, the last one; None where there is none yet."""
    ports = [line.removeprefix(_ANNOUNCED) for line in log.splitlines() if line.startswith(_ANNOUNCED)]
    return int(ports[-1]) if ports and ports[-1].isdigit() else None
