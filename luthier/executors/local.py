"""Processes on this machine, in sessions of their own, so that they outlive us.

Every launch has a folder with `handle.json`, `output.log`, `exit.json`, `stop` and `lock`. The lock is held by the
process and its keeper (`_keeper.py`) for as long as they live: so it tells who is alive, also after a restart of ours
or of the machine, and a process that was given an old pid is never mistaken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from luthier.core.errors import InternalError, InvalidParameter
from luthier.executors.base import Cores, Executor, Handle, Launch, Observation, State

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEEPER = Path(__file__).with_name("_keeper.py")
_LOOK_SECONDS = 0.01


class Local(Executor):
    def __init__(self, folder: Path, cores: int) -> None:
        """Keep the state of launches in `folder`, on a disk of this machine; `cores` is how many may be handed out.

        They are the first of those that this process may use; numbers beyond begin again with the first.
        """
        self._folder = folder
        self._cores = cores
        self._cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    @property
    def cores(self) -> int:
        return self._cores

    def start(self, launch: Launch) -> Handle:
        """The command gets our environment less every LUTHIER_ variable, the launch's, and as many threads as cores.

        Until the keeper of the process has written itself down it holds the lock, so that nobody else starts one, even
        if we die in between; if the keeper dies first, nothing was started and the lock is free again.
        """
        folder = self._launch_folder(launch.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while not (folder / "handle.json").exists():
            with (folder / "lock").open("a") as lock:
                if _take(lock.fileno(), fcntl.LOCK_EX) and not (folder / "handle.json").exists():
                    _spawn(launch, self._cpus_of(launch.cores), folder, lock.fileno())
            time.sleep(_LOOK_SECONDS)
        return json.loads((folder / "handle.json").read_text())

    def move(self, handle: Handle, cores: Cores) -> None:
        cpus = self._cpus_of(cores)
        if not cpus or self.observe(handle).state is not State.RUNNING:
            return
        keeper: int = handle["pid"]
        with contextlib.suppress(OSError):  # it ended meanwhile, or may not be moved
            if os.sched_getaffinity(keeper) == cpus:
                return
            moved: set[int] = set()
            while found := set(_threads_of(keeper)) - moved:  # until nobody new has come of those not yet moved
                for thread in (*(found - {keeper}), keeper):  # the keeper last, by which it is known where all are
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread, cpus)
                moved |= found

    def observe(self, handle: Handle) -> Observation:
        """The exit code is negative for a signal, and None where the process was ended by force."""
        folder = self._launch_folder(handle["name"])
        try:
            with (folder / "lock").open() as lock:
                is_held = not _take(lock.fileno(), fcntl.LOCK_SH)  # shared: who looks is not taken for the process
            if (folder / "exit.json").exists():  # looked at second: it is written before the lock is let go
                return Observation(State.ENDED, json.loads((folder / "exit.json").read_text())["exit_code"])
        except OSError:
            return Observation(State.UNKNOWN)
        return Observation(State.RUNNING if is_held else State.ENDED)

    def stop(self, handle: Handle, *, grace_seconds: float) -> None:
        if self.observe(handle).state is not State.RUNNING:
            return
        asked = self._launch_folder(handle["name"]) / "stop"  # its age is the time since the first ask
        try:
            asked.touch(exist_ok=False)
        except FileExistsError:
            if time.time() >= asked.stat().st_mtime + grace_seconds:
                _signal_group(handle["pid"], signal.SIGKILL)
        else:
            _signal_group(handle["pid"], signal.SIGTERM)

    def logs(self, name: str, *, last_bytes: int = 20_000) -> str:
        output = self._launch_folder(name) / "output.log"
        if not output.exists():
            return ""
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - last_bytes))
            return file.read(last_bytes).decode(errors="replace")

    def _cpus_of(self, cores: Cores) -> set[int]:
        """What the system calls these cores; empty where they cannot be chosen."""
        return {self._cpus[core % len(self._cpus)] for core in cores} if self._cpus else set()

    def _launch_folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidParameter("name", f"must be letters, digits, '.', '_' and '-', got {name!r}")
        return self._folder / name


def _spawn(launch: Launch, cpus: set[int], folder: Path, lock: int) -> None:
    """Start the keeper with our lock and wait until it has written itself down."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}
    environment |= launch.environment | dict.fromkeys(_THREADS, str(len(launch.cores)))
    with (folder / "output.log").open("ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", _KEEPER, str(lock), ",".join(map(str, cpus)), folder, *launch.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,
        )
    threading.Thread(target=keeper.wait, name=f"reap {launch.name}", daemon=True).start()  # leaves no zombie
    while True:
        has_ended = keeper.poll() is not None
        if (folder / "handle.json").exists():
            return
        if has_ended:
            raise InternalError(f"The keeper of {launch.name} ended before it started; see {folder / 'output.log'}.")
        time.sleep(_LOOK_SECONDS)


def _take(lock: int, kind: int) -> bool:
    """Whether the lock could be had at once; closing the file lets it go."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _threads_of(pid: int) -> Iterator[int]:
    """The threads of a process and of all that came of it, on Linux."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
        with contextlib.suppress(OSError):
            yield from map(int, os.listdir(f"/proc/{member}/task"))


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # ended meanwhile; macOS says it the second way
        os.killpg(pid, number)
