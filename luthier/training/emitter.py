"""Numbers a run's events and carries them into segment objects; notices when a newer attempt has taken over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from luthier.core import logs
from luthier.core.clock import Clock, SystemClock
from luthier.core.errors import LuthierError, RunFailed
from luthier.storage import Storage
from luthier.training.events import Failed, Progress, RunEvent, Told, attempts_key, write_segment

Event = TypeVar("Event", bound=Told)
_log = logs.get("training")


class Superseded(Exception):
    """A newer attempt at the job exists: this one stops and writes nothing more."""


class RunStalled(RunFailed):
    """Nothing happened for longer than anything should take."""

    code = "run_stalled"


class Emitter:
    """A context: inside it a thread writes what waits, at least every `every_seconds`.

    Progress may wait for so long and is lost when the process dies before; every other event is stored when `emit`
    returns. What goes wrong in the thread is raised by the next `emit`, `check` or `flush`; what goes wrong in the
    callback is logged.
    """

    def __init__(
        self,
        storage: Storage,
        run_key: str,
        attempt: int,
        *,
        also: Callable[[RunEvent], None] | None = None,
        clock: Clock | None = None,
        every_seconds: float = 1.0,
        stalled_after_seconds: float = math.inf,
        on_stall: Callable[[], None] | None = None,
    ) -> None:
        """Where after a first time nothing is told or checked for so long, a `failed` event is stored and `on_stall` called."""
        self._storage = storage
        self._run_key = run_key
        self._attempt = attempt
        self._also = also
        self._clock = clock or SystemClock()
        self._every_seconds = every_seconds
        self._number = 0
        self._waiting: list[RunEvent] = []
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._fault: Exception | None = None
        self._stalled_after_seconds = stalled_after_seconds
        self._on_stall = on_stall
        self._alive_at = math.inf  # weights may be long on their way: the first event or check begins the watch
        self._thread = threading.Thread(target=self._carry, name="events", daemon=True)
        self.step = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def emit(self, kind: type[Event], *, step: int, **fields: Any) -> Event:
        """Make an event of `kind`, number it, store it, and hand it to the callback."""
        event = kind(number=self._number, at=self.now(), step=step, **fields)
        self._number += 1
        self._alive_at = time.monotonic()
        self.step = step
        self._waiting.append(event)  # type: ignore[arg-type]
        if isinstance(event, Progress):
            self.check()
        else:
            self.flush()
        self._show(event)  # type: ignore[arg-type]
        return event

    def now(self) -> datetime:
        return self._clock.now()

    def check(self) -> None:
        """Say that the run gets on. Raise, once, what the thread met: Superseded, RunStalled, or the storage's error."""
        self._alive_at = time.monotonic()
        self._raise()

    def flush(self) -> None:
        """Store what waits. Raises Superseded, before anything is written, when a newer attempt exists."""
        with self._writing:
            self._raise()
            if self._is_superseded():
                raise Superseded(f"A newer attempt than {self._attempt} at {self._run_key} exists.")
            if events := list(self._waiting):
                write_segment(self._storage, self._run_key, self._attempt, events)
                del self._waiting[: len(events)]  # only now, so that a failed write loses nothing

    def _show(self, event: RunEvent) -> None:
        if self._also is None:
            return
        try:
            self._also(event)
        except Exception as fault:  # a progress bar that breaks is no reason to end a run
            _log.error("the callback failed", on=event.type, exc_info=fault)

    def _carry(self) -> None:
        while not self._closed.wait(self._every_seconds):
            try:
                self.flush()
                if time.monotonic() - self._alive_at > self._stalled_after_seconds:
                    self._stall()
                    return
            except Exception as fault:  # raised again where the run can hear it
                self._fault = fault
                return

    def _raise(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _stall(self) -> None:
        """Tell the end of a run whose own thread does not come back; should it come back, it hears of it."""
        stall = RunStalled(
            f"The run got no further for {self._stalled_after_seconds:.0f} seconds after step {self.step}.",
            hint="The trainer's log shows where it stood. It can go on from its last checkpoint.",
        )
        _log.error("stalled", step=self.step)
        self.emit(Failed, step=self.step, code=stall.code, message=stall.text)
        self._fault = stall
        if self._on_stall is not None:
            self._on_stall()

    def _is_superseded(self) -> bool:
        try:
            keys = self._storage.list(attempts_key(self._run_key))
        except LuthierError as unreadable:
            _log.warning("attempts cannot be listed, going on", run=self._run_key, why=unreadable.message)
            return False
        return any(int(key.rsplit("/", 1)[1]) > self._attempt for key in keys)


class Silent(Emitter):
    """That of a process which is not the first of its run: it numbers events and stores none."""

    def flush(self) -> None:
        self._waiting.clear()
