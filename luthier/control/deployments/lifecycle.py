"""Statuses of a deployment."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    PENDING = "pending"  # its files have not been looked at yet
    DEPLOYING = "deploying"  # its replicas are starting; nobody is answered before all of them have answered
    RUNNING = "running"  # every replica has answered a real request
    UPDATING = "updating"  # it answers; replicas are being added, taken away or replaced
    FAILED = "failed"  # `error` says why; nothing runs
    DELETING = "deleting"  # nobody new is answered; answers that are running have a while to end
    DELETED = "deleted"  # nothing runs, and nobody sees it any more


CALLABLE = frozenset({Status.RUNNING, Status.UPDATING})
ALIVE = frozenset({Status.PENDING, Status.DEPLOYING, Status.RUNNING, Status.UPDATING})
"""Replicas are wanted."""

THERE = ALIVE | {Status.FAILED, Status.DELETING}
"""Its owner sees it."""

MOST_FAILED_STARTS = 3
"""Of replicas, one after the other; then a deployment of which none answers has failed."""
