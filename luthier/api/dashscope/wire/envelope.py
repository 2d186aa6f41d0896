"""What is around every request and answer: fields we do not know are ignored; an answer is one object with the request's id."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import Field

from luthier.api import examples
from luthier.api.shown import Shown
from luthier.core.pages import NumberedPage

T = TypeVar("T")


class Sent(Shown):
    """A part of an answer."""


class Answer(Sent, Generic[T]):
    """What a call that succeeded answers. It never has a `code`: the 2.x client takes any for a failure."""

    request_id: str
    output: T

    @classmethod
    def example(cls) -> Any:
        shown = cls.example_of_argument()
        return None if shown is None else {"request_id": examples.REQUEST_ID, "output": shown}


class FileAnswer(Sent, Generic[T]):
    """The same for files, whose part is called `data`."""

    request_id: str
    data: T

    @classmethod
    def example(cls) -> Any:
        shown = cls.example_of_argument()
        return None if shown is None else {"request_id": examples.REQUEST_ID, "data": shown}


class Fault(Sent):
    """What a call that failed answers."""

    code: str = Field(examples=["InvalidParameter"])
    message: str = Field(examples=["hyper_parameters.n_epochs: Input should be less than or equal to 100."])
    request_id: str


class Paged(Sent):
    page_no: int
    page_size: int
    total: int = Field(description="Items of all pages.")


PageNumber = Annotated[int, Query(ge=1, le=1_000_000, description="Counted from 1.")]
PageSize = Annotated[int, Query(ge=1, le=1000, description="Items a page.")]


def counts(page: NumberedPage[Any]) -> dict[str, int]:
    return {"page_no": page.number, "page_size": page.size, "total": page.total}


def moment(at: datetime) -> str:
    """A time as this API writes it, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _request_id(request: Request) -> str:
    return request.state.request_id


RequestId = Annotated[str, Depends(_request_id)]
