"""RunEvent: what a run tells, in order; and the numbered segment objects in which events travel.

A segment is `runs/<job>/events/<attempt>/<number of its first event>.jsonl`, one event a line, written with conditional
create, so that local disks, object stores and clusters carry events alike (object stores have no append).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from luthier.core.errors import AlreadyExists
from luthier.storage import Storage
from luthier.training.spec import Value


class Told(Value):
    """What every event has: its number within the attempt (from 0), the time in UTC, the step it belongs to."""

    number: int = 0
    at: datetime
    step: int


class Started(Told):
    """The loop begins, after step `step` (0 unless the run was resumed)."""

    type: Literal["started"] = "started"
    total_steps: int
    rows: int
    dropped: list[int] = Field(description="Numbers of the first 1,000 rows that are not trained, counted from 1.")
    dropped_rows: int = 0
    validation_dropped: list[int] = Field(default=[], description="The same, of the validation file.")
    validation_dropped_rows: int = 0
    trained_tokens_per_epoch: int
    tokens_per_epoch: int
    trainable_parameters: int
    libraries: dict[str, str]
    active: list[str] = Field(default=[], description="What is faster here than with the libraries alone.")
    inactive: dict[str, str] = Field(default={}, description="What could be, and why it is not.")


class Progress(Told):
    """An optimizer step was taken. `loss` is a mean over its trained tokens, or pairs, before the update."""

    type: Literal["progress"] = "progress"
    total_steps: int
    epoch: float
    loss: float
    token_accuracy: float
    measures: dict[str, float] = Field(default={}, description="What the objective shows beside them.")
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float
    elapsed_seconds: float
    trained_tokens: int = Field(description="Tokens of all rows seen so far, prompts included: what one pays for.")


class Evaluated(Told):
    """Mean loss and token accuracy over the whole validation file, with the weights as they are after `step`."""

    type: Literal["evaluated"] = "evaluated"
    loss: float
    token_accuracy: float
    measures: dict[str, float] = Field(default={}, description="What the objective shows beside them.")


class Sample(Value):
    """A held-out prompt, what its row says to it and what the model says, as text; `is_cut`: the answer was not over."""

    row: int = Field(description="Number of the row in the validation file, counted from 1.")
    prompt: str
    expected: str
    answer: str
    is_cut: bool


class Sampled(Told):
    """Answers of the weights as they are after `step`, always to the same prompts; after step 0 those of the start."""

    type: Literal["sampled"] = "sampled"
    samples: list[Sample]


class Noted(Told):
    """Something that is done otherwise than was asked for, and why."""

    type: Literal["noted"] = "noted"
    message: str


class CheckpointSaved(Told):
    """The checkpoint under `key` is complete; its `adapter/` folder can be served, the whole of it resumed from."""

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    is_best: bool = Field(default=False, description="Whether its validation loss is the best so far.")
    key: str
    artifact_key: str
    artifact_sha256: str
    artifact_identity: str | None = Field(default=None, description="Of its bytes, its tensors and the base weights.")
    train_loss: float
    train_token_accuracy: float
    valid_loss: float | None = None
    valid_token_accuracy: float | None = None


class CheckpointsDropped(Told):
    """These checkpoints are not among the best any more, and gone."""

    type: Literal["checkpoints_dropped"] = "checkpoints_dropped"
    keys: list[str]


class Succeeded(Told):
    """The last step was taken; the artifact is the last checkpoint's, or with a patience the best one's."""

    type: Literal["succeeded"] = "succeeded"
    result_step: int | None = Field(default=None, description="The step whose checkpoint the artifact is.")
    artifact_kind: Literal["adapter", "model"] = "adapter"
    artifact_key: str
    artifact_sha256: str
    artifact_identity: str | None = None
    trained_tokens: int
    rows: int | None = Field(default=None, description="That were trained, once an epoch.")
    dropped_rows: int = 0


class Failed(Told):
    """The run ended by a fault; `code` is that of the error tree."""

    type: Literal["failed"] = "failed"
    code: str
    message: str


class Cancelled(Told):
    """The run was asked to stop, and did; its checkpoints stay."""

    type: Literal["cancelled"] = "cancelled"


RunEvent = Annotated[
    Started
    | Noted
    | Progress
    | Evaluated
    | Sampled
    | CheckpointSaved
    | CheckpointsDropped
    | Succeeded
    | Failed
    | Cancelled,
    Field(discriminator="type"),
]
_adapter: TypeAdapter[RunEvent] = TypeAdapter(RunEvent)


def segment_key(run_key: str, attempt: int, first: int) -> str:
    return f"{run_key}/events/{attempt:04d}/{first:09d}.jsonl"


def write_segment(storage: Storage, run_key: str, attempt: int, events: list[RunEvent]) -> None:
    """Write events that follow each other as one object. Writing the same segment again is harmless."""
    data = b"".join(_adapter.dump_json(event) + b"\n" for event in events)
    try:
        storage.create(segment_key(run_key, attempt, events[0].number), data)
    except AlreadyExists:
        if storage.read(segment_key(run_key, attempt, events[0].number)) != data:
            raise  # somebody else writes as this attempt


def read_events(storage: Storage, run_key: str, attempt: int, after: int) -> list[RunEvent]:
    """Events of an attempt numbered above `after` (-1 for all), in order."""
    folder = f"{run_key}/events/{attempt:04d}"
    keys = storage.list(folder)
    begun = [key for key in keys if int(key.rsplit("/", 1)[1].removesuffix(".jsonl")) <= after]
    found: list[RunEvent] = []
    for key in keys[max(len(begun) - 1, 0) :]:
        found += [_adapter.validate_json(line) for line in storage.read(key).splitlines() if line]
    return [event for event in found if event.number > after]


def attempts_key(run_key: str) -> str:
    """The folder of attempt markers, `<attempt:04d>` each, written by whoever starts an attempt, before it starts."""
    return f"{run_key}/attempts"


def pause_key(run_key: str, attempt: int) -> str:
    """The object that tells an attempt that is asked to stop to save a checkpoint first, written before it is asked."""
    return f"{run_key}/pauses/{attempt:04d}"
