"""The Executor contract: capacity, start, move, observe, stop, logs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from luthier.core.registry import Registry

Cores = tuple[int, ...]
"""Cores of an executor, by their numbers from 0."""


@dataclass(frozen=True)
class Launch:
    """What to run. `name` identifies it for good: starting a name twice starts one process.

    `cores` are those that it may use, with all that it starts; libraries that ask the environment for a number of threads find
    theirs. Where cores cannot be chosen, as on macOS, that number is all that it is told.
    """

    name: str
    command: list[str]
    cores: Cores
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
        """How many cores may be handed out in all. Who hands them out sees to it that nobody is given another's."""

    @abstractmethod
    def start(self, launch: Launch) -> Handle:
        """Start a process and return at once.

        Calling again with the same `launch.name` returns the process already started, even when it has ended, so a
        scheduler that died between starting and writing it down can simply try again.
        """

    @abstractmethod
    def move(self, handle: Handle, cores: Cores) -> None:
        """Let a process use these cores from now on, with all that it has started; it keeps its threads.

        Nothing happens to one that is there already or has ended, nor where cores cannot be chosen.
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
