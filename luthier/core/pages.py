"""Cursors and pages, once for all lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class PageRequest:
    """At most `limit` items after the one whose id is `after`; None starts at the beginning."""

    limit: int = 20
    after: str | None = None


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    has_more: bool
