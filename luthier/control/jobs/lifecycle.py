"""Statuses of a job, which ones end it, and which may follow which; Jobs.move is the one place where a status changes."""

from __future__ import annotations

from enum import StrEnum

from luthier.core.errors import InvalidTransition


class Status(StrEnum):
    CHECKING = "checking"  # its files are being read, made and counted
    QUEUED = "queued"  # waits for cores
    STARTING = "starting"  # a process was started and has not told anything yet
    RUNNING = "running"  # steps are being taken
    PAUSED = "paused"  # stopped on request; it goes on from its last checkpoint when it is resumed
    CANCELLING = "cancelling"  # somebody asked to stop it; its process is ending
    SUCCEEDED = "succeeded"  # the model can be called
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"  # stopped on request; its checkpoints stay


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
ACTIVE = frozenset({Status.STARTING, Status.RUNNING, Status.CANCELLING})
"""A process may exist."""


class Wish(StrEnum):
    """What somebody asked of a job that its process has not heard yet, beside its status."""

    PAUSE = "pause"


_ALLOWED: dict[Status, frozenset[Status]] = {
    Status.CHECKING: frozenset({Status.QUEUED, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.STARTING, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.STARTING: frozenset(
        {Status.RUNNING, Status.QUEUED, Status.PAUSED, Status.CANCELLING, Status.SUCCEEDED, Status.FAILED}
    ),
    Status.RUNNING: frozenset({Status.QUEUED, Status.PAUSED, Status.CANCELLING, Status.SUCCEEDED, Status.FAILED}),
    Status.PAUSED: frozenset({Status.CHECKING, Status.QUEUED, Status.CANCELLED}),
    Status.CANCELLING: frozenset({Status.CANCELLED, Status.SUCCEEDED, Status.FAILED}),
}


def check(job: str, now: Status, then: Status) -> None:
    """Raises InvalidTransition when a job cannot go from `now` to `then`."""
    if then not in _ALLOWED.get(now, frozenset()):
        raise InvalidTransition(f"The job {job} is {now}; it cannot become {then}.")
