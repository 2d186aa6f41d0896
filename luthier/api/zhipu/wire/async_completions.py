"""An answer that is fetched later."""

from __future__ import annotations

from typing import Any, Literal

from luthier.api import examples
from luthier.api.kept_errors import kind_named
from luthier.api.shapes.wire import answers
from luthier.api.shapes.wire.base import Sent
from luthier.api.zhipu.errors import code_of
from luthier.control.inference.asynchronous import AsyncCompletion

TaskStatus = Literal["PROCESSING", "SUCCESS", "FAIL"]

_STATUS: dict[str, TaskStatus] = {"processing": "PROCESSING", "succeeded": "SUCCESS", "failed": "FAIL"}


class AsyncTask(Sent):
    """What was taken on."""

    id: str
    request_id: str
    model: str
    task_status: TaskStatus

    @classmethod
    def of(cls, completion: AsyncCompletion) -> AsyncTask:
        return cls.model_validate(_fields(completion))

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.TAKEN)


class AsyncResult(AsyncTask):
    """With `choices` and `usage` when it has succeeded, with `error` when it has failed."""

    created: int
    choices: list[answers.Choice] | None = None
    usage: answers.Usage | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def example(cls) -> Any:
        return result(examples.LATER)


def result(completion: AsyncCompletion) -> dict[str, Any]:
    """The fields of an AsyncResult; those that do not apply are left out."""
    fields = _fields(completion) | {"created": int(completion.created_at.timestamp())}
    if completion.answers:
        form = completion.calls_functions
        fields["choices"] = [answers.choice(n, one, calls_functions=form) for n, one in enumerate(completion.answers)]
        fields["usage"] = answers.usage_of(completion.answers)
    if completion.error is not None:
        code = code_of(kind_named(completion.error.code), completion.error.param)
        fields["error"] = completion.error.model_dump() | {"code": code}
    return fields


def _fields(completion: AsyncCompletion) -> dict[str, Any]:
    return {
        "id": completion.id,
        "request_id": completion.request_id,
        "model": completion.model,
        "task_status": _STATUS[completion.status],
    }
