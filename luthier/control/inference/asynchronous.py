"""Completions that are asked for now and fetched later; what is promised is kept in a row until it is a day old."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import BaseModel, Field, TypeAdapter

from luthier.control.db import Database
from luthier.control.inference.answers import Answer, gathered
from luthier.control.inference.queries import AsyncCompletionQueries
from luthier.control.inference.service import CompletionRequest, Inference
from luthier.control.inference.tables import AsyncCompletionRow
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import LuthierError, NotFound, RateLimited

KEPT = timedelta(days=1)
"""How long an answer can be fetched; also how long one is tried for."""

MOST_PENDING = 1_000
"""Completions of one project that are not answered yet."""

_requests = TypeAdapter(CompletionRequest)

_FORM = "calls_functions"
"""What a row keeps beside the fields of its request, which is no matter of the model's: how the answers are told."""


class Failure(BaseModel):
    code: str
    message: str
    param: str | None = None


class Outcome(BaseModel):
    """What came of a request: answers, or an error. `calls_functions` as it was asked for."""

    answers: list[Answer] = Field(default_factory=list)
    error: Failure | None = None
    calls_functions: bool = False


@dataclass(frozen=True)
class AsyncCompletion:
    """`status` is processing, succeeded (there are answers) or failed (there is an error).

    `calls_functions` says that the calls in its answers are to be told in their older form.
    """

    id: str
    request_id: str
    model: str
    status: str
    answers: list[Answer]
    error: Failure | None
    created_at: datetime
    calls_functions: bool = False


class AsyncCompletions:
    def __init__(self, db: Database, inference: Inference, clock: Clock) -> None:
        self.db = db
        self.inference = inference
        self.clock = clock

    async def submit(
        self, who: Principal, request: CompletionRequest, *, request_id: str, calls_functions: bool = False
    ) -> AsyncCompletion:
        """Take a request on; it is answered in the background, through restarts too.

        `request_id` is the caller's own word for it; `calls_functions` is kept for who tells the answers. Raises ModelNotFound
        at once, and RateLimited for a project that has MOST_PENDING under way; what else can be wrong is told by the result.
        """
        await self.inference.check_known(who, request.model)
        async with self.db.read() as session:
            pending = await AsyncCompletionQueries(session, who).count_pending()
        if pending >= MOST_PENDING:
            raise RateLimited(
                f"{pending:,} asynchronous completions of this project are not answered yet; {MOST_PENDING:,} may be.",
                hint="Wait until some of them have been answered.",
                retry_after=10,
            )
        row = AsyncCompletionRow(
            id=ids.new("task"),
            project_id=who.project,
            key_id=who.id,
            request_id=request_id,
            model=request.model,
            status="processing",
            request=_requests.dump_python(request, mode="json") | {_FORM: calls_functions},
            result=None,
            created_at=self.clock.now(),
            ended_at=None,
        )
        async with self.db.write("async_completions") as session:
            session.add(row)
        return _completion(row)

    async def get(self, who: Principal, completion_id: str) -> AsyncCompletion:
        async with self.db.read() as session:
            row = await AsyncCompletionQueries(session, who).get(completion_id)
        if row is None or self.is_forgotten(row):
            raise NotFound(
                f"There is no asynchronous completion {completion_id!r}.", hint="Results are kept for a day."
            )
        return _completion(row)

    # What the scheduler does

    def is_forgotten(self, row: AsyncCompletionRow) -> bool:
        return row.ended_at is not None and row.ended_at + KEPT <= self.clock.now()

    async def make(self, row: AsyncCompletionRow) -> list[Answer]:
        """The answers to what a row asks for; made again it may be another answer, unless the request has a seed.

        Raises ReplicaUnavailable at once where no replica is ready yet: others, whose model is, need not wait behind it;
        and NoCapacity where there is room for those only who wait at the other end of a connection.
        """
        request = replace(_requests.validate_python(row.request), is_whole=True)
        who = Principal(id=row.key_id, project=row.project_id)
        await self.inference.check_ready(who, request.model)
        deltas = await self.inference.complete(who, request, in_background=True)
        return await gathered(deltas, request.n, with_logprobs=request.sampling.logprobs is not None)

    def succeed(self, row: AsyncCompletionRow, answers: list[Answer]) -> None:
        self._end(row, "succeeded", Outcome(answers=answers))

    def fail(self, row: AsyncCompletionRow, error: LuthierError) -> None:
        self._end(row, "failed", Outcome(error=Failure(code=error.code, message=error.text, param=error.param)))

    def _end(self, row: AsyncCompletionRow, status: str, outcome: Outcome) -> None:
        outcome.calls_functions = row.request.get(_FORM, False)
        row.status, row.result, row.ended_at = status, outcome.model_dump_json(), self.clock.now()
        row.request = {}  # nobody needs it any more


def _completion(row: AsyncCompletionRow) -> AsyncCompletion:
    outcome = Outcome.model_validate_json(row.result) if row.result else Outcome()
    return AsyncCompletion(
        id=row.id,
        request_id=row.request_id,
        model=row.model,
        status=row.status,
        answers=outcome.answers,
        error=outcome.error,
        created_at=row.created_at,
        calls_functions=outcome.calls_functions,
    )
