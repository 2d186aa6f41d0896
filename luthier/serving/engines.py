"""Engines that have environments of their own, apart from the trainer's: made, listed and found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from luthier.core.errors import InvalidParameter, Unavailable

LEAST = {"vllm": "0.12.0"}
"""The engines that can be installed, with the least version of each that knows every field we send: an older one would
leave some out of account without a word."""

_RECORD = "engine.json"
_folder: Path | None = None


class EngineNotInstalled(Unavailable):
    code = "engine_not_installed"


class EngineNotUsable(Unavailable):
    """An environment could not be made, or what is in it cannot be used."""

    code = "engine_not_usable"


@dataclass(frozen=True)
class Engine:
    name: str
    version: str
    environment: Path

    @property
    def program(self) -> Path:
        return self.environment / "bin" / self.name


def use(folder: Path) -> None:
    """Look for engines there from now on, in this process."""
    global _folder
    _folder = folder


def find(name: str) -> Engine:
    """An engine of the folder in use. Raises EngineNotInstalled, with what to do."""
    if _folder is not None and (engine := _recorded(_folder / name)) is not None and engine.program.is_file():
        return engine
    raise EngineNotInstalled(
        f"The engine {name!r} is not installed{f' in {_folder}' if _folder else ''}.",
        hint=f"Install it with: luthier engine install {name}",
    )


def installed(folder: Path) -> list[Engine]:
    return [engine for name in sorted(LEAST) if (engine := _recorded(folder / name)) is not None]


def install(
    folder: Path,
    name: str,
    *,
    version: str | None = None,
    python: str | None = None,
    say: Callable[[str], None] = print,
) -> Engine:
    """Make an environment for an engine, see that it can be imported, and put it in the place of the one before.

    It is made with uv where there is one, else with venv and pip; `python` is the interpreter it is made of, absent: ours.
    Until all is well, an engine that is installed stays as it is. Raises InvalidParameter for what is not known or too old,
    and EngineNotUsable with the reason.
    """
    if (least := LEAST.get(name)) is None:
        raise InvalidParameter("engine", f"there is no engine {name!r} to install; known: {', '.join(LEAST)}")
    if version is not None and _parts(version) < _parts(least):
        raise InvalidParameter("version", f"must be {least} or later, got {version}")
    place = folder / name
    before = _recorded(place)
    environment = place / f"environment-{uuid4().hex[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    try:
        wanted = f"{name}=={version}" if version else f"{name}>={least}"
        say(f"Making an environment in {environment}")
        _make(environment, python or sys.executable, wanted)
        say(f"Importing {name}")
        engine = Engine(name, _imported(environment, name), environment)
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    partial = place / f".{_RECORD}"
    partial.write_text(json.dumps(asdict(engine) | {"environment": environment.name}))
    partial.replace(place / _RECORD)
    if before is not None:
        shutil.rmtree(before.environment, ignore_errors=True)  # replicas that run on it have read what they need
    return engine


def _make(environment: Path, python: str, wanted: str) -> None:
    if uv := shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent)):
        _run([uv, "venv", "--quiet", "--python", python, str(environment)])
        _run([uv, "pip", "install", "--python", str(environment / "bin/python"), wanted])
    else:
        _run([python, "-m", "venv", str(environment)])
        _run([str(environment / "bin/python"), "-m", "pip", "install", wanted])


def _run(command: list[str]) -> None:
    """What it says goes to our standard error, where a person sees how far it is."""
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2).returncode
    except OSError as absent:
        raise EngineNotUsable(f"{command[0]} cannot be started: {absent.strerror}.") from absent
    if code:
        raise EngineNotUsable(f"`{' '.join(command)}` ended with {code}; what it said stands above.")


def _imported(environment: Path, name: str) -> str:
    """The version of a package as its own environment imports it."""
    code = f"import {name}; print('version', {name}.__version__)"
    done = subprocess.run([str(environment / "bin/python"), "-I", "-c", code], capture_output=True, text=True)
    if found := re.search(r"^version (\S+)$", done.stdout, re.MULTILINE):
        return found[1]
    last_words = "\n".join(done.stderr.strip().splitlines()[-3:])
    raise EngineNotUsable(f"{name} was installed and cannot be imported: {last_words}")


def _recorded(place: Path) -> Engine | None:
    try:
        record = json.loads((place / _RECORD).read_text())
    except FileNotFoundError:
        return None
    return Engine(record["name"], record["version"], place / record["environment"])


def _parts(version: str) -> list[int]:
    """What of a version can be compared. Raises InvalidParameter where it is none."""
    if not re.fullmatch(r"\d+(\.\d+)*([a-z.+].*)?", version):
        raise InvalidParameter("version", f"must be a version such as 0.12.0, got {version!r}")
    return [int(part) for part in re.match(r"[\d.]+", version)[0].strip(".").split(".")]  # pyright: ignore[reportOptionalSubscript]
