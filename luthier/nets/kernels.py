"""Operations that a library's kernel may stand in for; until one was taken, all are our own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

Operation = TypeVar("Operation", bound=Callable[..., Any])

taken: dict[tuple[str, str], Callable[..., Any]] = {}
"""Kernels by the name of the operation and the type of device whose tensors go to them."""


def replaceable(ours: Operation) -> Operation:
    """An operation whose first argument is a tensor, which tells the device. `own` gives ours, whatever was taken."""
    name = getattr(ours, "__name__", "")

    @wraps(ours)
    def either(first: Tensor, *given: Any, **named: Any) -> Any:
        if not taken:
            return ours(first, *given, **named)
        return taken.get((name, first.device.type), ours)(first, *given, **named)

    return either  # pyright: ignore[reportReturnType]


def is_taken(operation: Callable[..., Any], first: Tensor) -> bool:
    """Whether a kernel stands in for an operation on such a tensor's device."""
    return (operation.__name__, first.device.type) in taken


def own(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Our own of an operation that may be replaced."""
    untyped: Any = operation
    return untyped.__wrapped__
