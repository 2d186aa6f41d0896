"""What every request and every answer of these families has in common; their lists."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from luthier.api import examples
from luthier.api.shown import Shown


class Sent(Shown):
    """A part of an answer."""


T = TypeVar("T")


class ListPage(Sent, Generic[T]):
    """A page of a list. The next one is asked for with `after` set to `last_id`."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def example(cls) -> Any:
        item = cls.example_of_argument()
        return cls(data=[item], has_more=False, first_id=item["id"], last_id=item["id"]) if item else None


class Deleted(Sent):
    id: str
    object: str
    deleted: Literal[True] = True

    @classmethod
    def example(cls) -> Any:
        return cls(id=examples.FILE.id, object="file")


class Error(Sent):
    """What went wrong; `code` does not change from version to version."""

    message: str
    type: str
    param: str | None = Field(description="The field that is to blame, as the caller wrote it.")
    code: str | None


class ErrorEnvelope(Sent):
    error: Error


class Listed(Protocol):
    id: str


def page(items: Sequence[Listed], has_more: bool) -> dict[str, Any]:
    """The fields of a ListPage."""
    first, last = (items[0].id, items[-1].id) if items else (None, None)
    return {"data": items, "has_more": has_more, "first_id": first, "last_id": last}


def unix(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None
