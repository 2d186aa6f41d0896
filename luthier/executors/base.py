"""The Executor contract: capacity, start, observe, stop, logs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from luthier.core.registry import Registry


@dataclass(frozen=True)
class Launch:
    """What to run. `name` identifies it for good: starting a name twice starts one process."""

    name: str
    command: list[str]
    cores: int
    environment: dict[str, str] = field(default_factory=dict)


class State(StrEnum):
    RUNNING = "running"
    ENDED = "ended"  # it ran and is gone; `exit_code` where it is known
    UNKNOWN = "unknown"  # its state cannot be read now, which says nothing about it


@dataclass(frozen=True)
class Observation:
    state: State
    exit_code: int | None = None


Handle = dict[str, Any]
"""How an executor finds a process again, also after our own restart: small, serialisable, kept in a row."""


class Executor(ABC):
    """Starts processes that outlive this one. Every method may be called again with the same arguments."""

    @property
    @abstractmethod
    def cores(self) -> int:
        """Cores that may be handed out in all."""

    @abstractmethod
    def start(self, launch: Launch) -> Handle:
        """Start a process and return at once.

        Calling again with the same `launch.name` returns the process already started, even when it has ended, so a
        scheduler that died between starting and writing it down can simply try again.
        """

    @abstractmethod
    def observe(self, handle: Handle) -> Observation: ...

    @abstractmethod
    def stop(self, handle: Handle, *, grace_seconds: float) -> None:
        """Ask a process to end, and end it by force `grace_seconds` after it was first asked.

        Returns at once; call again until it is gone.
        """

    @abstractmethod
    def logs(self, name: str, *, last_bytes: int = 20_000) -> str:
        """The end of what the process of that launch printed; empty when there is nothing."""


executors: Registry[Executor] = Registry("luthier.executors", Executor, kind="executor")
