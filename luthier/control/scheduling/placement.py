"""Which cores a run or a replica gets."""

from __future__ import annotations

from collections.abc import Iterable


def free_cores(capacity: int, taken: Iterable[int]) -> int:
    return capacity - sum(taken)


def fits(wanted: int, capacity: int, taken: Iterable[int]) -> bool:
    """Whether a run may start now: in the free cores, or alone when it wants more than there are."""
    others = list(taken)
    return not others or wanted <= free_cores(capacity, others)


def replica_cores(capacity: int) -> int:
    """Half of the machine, so that answers and a training run disturb each other little."""
    return max(1, capacity // 2)
