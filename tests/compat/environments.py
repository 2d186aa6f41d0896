"""Environments of the official clients: one each, because their requirements contradict each other; made once, then kept."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".clients"
RUNNER = ["pytest==9.1.1"]


@dataclass(frozen=True)
class Client:
    name: str
    suites: list[str]
    requires: list[str]


CLIENTS = [Client(name, **said) for name, said in tomllib.loads((HERE / "clients.toml").read_text()).items()]


def python_of(client: Client) -> Path:
    """The interpreter of a client's environment, which is made where there is none with these requirements."""
    FOLDER.mkdir(exist_ok=True)
    home, stamp = FOLDER / client.name, FOLDER / f"{client.name}.made"
    wanted = "\n".join([sys.version, *RUNNER, *client.requires])
    with (FOLDER / f"{client.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the suite may want it at once
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            _make(home, [*RUNNER, *client.requires])
            stamp.write_text(wanted)
    return home / "bin" / "python"


def _make(home: Path, requirements: list[str]) -> None:
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        _run([str(uv), "venv", "--clear", "--quiet", "--python", sys.executable, str(home)])
        _run([str(uv), "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), *requirements])
    else:
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements])


def _run(command: list[str]) -> None:
    """uv does not read pip's settings: it is handed the mirror, the wheels and the certificates that pip is told of."""
    told = {"UV_DEFAULT_INDEX": "PIP_INDEX_URL", "UV_FIND_LINKS": "PIP_FIND_LINKS", "SSL_CERT_FILE": "PIP_CERT"}
    known = {ours: os.environ[theirs] for ours, theirs in told.items() if os.environ.get(theirs)}
    done = subprocess.run(command, env=known | os.environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
