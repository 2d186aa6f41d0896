"""Cursors and pages, once for all lists; numbered pages for the one family of clients that counts them."""

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


@dataclass(frozen=True)
class NumberedPage(Generic[T]):
    """The page of that number, from 1, of so many items a page; `total` counts the items of all pages."""

    items: list[T]
    number: int
    size: int
    total: int
