"""Where files are worked on: in a process of its own, with a limit on memory and time, so that no file harms the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from contextlib import suppress
from typing import Any

from luthier.control.datasets.tasks import Task, perform
from luthier.core import logs
from luthier.core.errors import InvalidRequest, LuthierError, Unavailable
from luthier.storage import Storage

log = logs.get("workshop")
_MEGABYTES_A_SECOND = 2  # slower than any machine that is worth waiting for
_FETCHING_SECONDS = 3600.0  # more, where images may come from elsewhere
_SAID = 2000  # characters of what a process said when it died
_AT_ONCE = 4  # tasks on large files
_SHORT_AT_ONCE = 2  # tasks that are soon done, which do not wait for those
_SHORT_BYTES = 4 * 1024 * 1024
_OUT_OF_MEMORY = ("memoryerror", "brokenprocesspool", "memory allocation", "cannot allocate memory", "bad_alloc")


class WorkStopped(Unavailable):
    """The work on a file took too long or too much memory."""

    code = "check_stopped"


class Workshop(ABC):
    @abstractmethod
    async def do(self, task: Task) -> dict[str, Any]:
        """Do a task. Raises what the task raises, and WorkStopped when it went over a limit."""

    async def close(self) -> None:  # noqa: B027  (most have nothing to end)
        """End what stands ready for the next task."""


class InlineWorkshop(Workshop):
    """The twin for tests and for the command line: the work is done in a thread of this process, without limits."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    async def do(self, task: Task) -> dict[str, Any]:
        return await asyncio.to_thread(perform, task, self.storage)


class ProcessWorkshop(Workshop):
    def __init__(
        self,
        storage_url: str,
        *,
        cache: str,
        processes: int,
        memory_bytes: int,
        least_seconds: float,
        stands_ready: bool = False,
    ) -> None:
        """`memory_bytes` is the address space of each process; a task may take `least_seconds` and a second for two MB.

        Four large tasks and two short ones are done at a time; others wait their turn, which counts for nothing against
        their time. Where it `stands_ready`, a process is kept that has read our code and waits for the next task, which
        saves most of what a small one takes.
        """
        self.storage_url = storage_url
        self.cache = cache
        self.processes = processes
        self.memory_bytes = memory_bytes
        self.least_seconds = least_seconds
        self.stands_ready = stands_ready
        self._turn, self._short_turn = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_SHORT_AT_ONCE)
        self._ready: Process | None = None
        self._preparing: asyncio.Task[None] | None = None

    async def do(self, task: Task) -> dict[str, Any]:
        is_short = task.kind == "preview" or task.size <= _SHORT_BYTES
        async with self._short_turn if is_short else self._turn:
            process, self._ready = self._ready, None
            if process is None or process.returncode is not None:
                process = await _started()
            try:
                return await self._do(task, process)
            finally:
                if self.stands_ready and self._preparing is None:
                    self._preparing = asyncio.create_task(self._prepare())

    async def close(self) -> None:
        self.stands_ready = False
        if self._preparing is not None:
            await self._preparing
        if self._ready is not None:
            await _end(self._ready)

    async def _prepare(self) -> None:
        """Have a process ready for the next task."""
        try:
            if self._ready is None:
                self._ready = await _started()
        except OSError as full:  # the next task will try for itself
            log.warning("no process could be started in advance", why=str(full))
        finally:
            self._preparing = None

    async def _do(self, task: Task, process: Process) -> dict[str, Any]:
        within = self.least_seconds + task.size / (_MEGABYTES_A_SECOND * 1e6)
        if task.options.get("image_hosts"):
            within += _FETCHING_SECONDS
        letter = {
            "storage": self.storage_url,
            "cache": self.cache,
            "memory_bytes": self.memory_bytes,
            "task": task.model_copy(update={"processes": self.processes}).model_dump(),
        }
        try:
            async with asyncio.timeout(within):
                answer, said = await process.communicate(json.dumps(letter).encode())
        except TimeoutError as slow:
            raise WorkStopped(f"The work took longer than {within:,.0f} seconds.") from slow
        finally:
            await _end(process)
        if process.returncode or not answer:
            text = said.decode(errors="replace")[-_SAID:]
            log.error("work on a file ended badly", kind=task.kind, key=task.key, status=process.returncode, said=text)
            raise WorkStopped(_ended(process.returncode, text))
        told = json.loads(answer)
        if "error" in told:
            raise _raised(told["error"])
        return told["result"]


async def _started() -> Process:
    """A process that waits for a task; it ends when we do."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "luthier.control.datasets.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # its own helpers end with it
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await process.wait()


def _ended(status: int | None, said: str) -> str:
    if any(sign in said.lower() for sign in _OUT_OF_MEMORY) or status == -signal.SIGKILL:
        return "The work needed more memory than it may have."
    return f"The process that does the work ended with status {status}."


def _raised(error: dict[str, Any]) -> LuthierError:
    """The error that the process told of; what may pass by itself stays recognisable."""
    if error["is_unavailable"]:
        found: LuthierError = Unavailable(error["message"], hint=error["hint"])
    else:
        found = InvalidRequest(error["message"], param=error["param"], hint=error["hint"])
    found.code = error["code"]
    return found
