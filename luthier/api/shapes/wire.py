"""The request and answer models that OpenAI's and Zhipu's clients share, and what of them we mean."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from luthier.chat.examples import Overlength
from luthier.control.catalog.service import NamedModel
from luthier.control.datasets.service import File
from luthier.control.datasets.uploads import Part as SentPart
from luthier.control.datasets.uploads import Upload
from luthier.control.inference.service import CompletionRequest
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.values import Checkpoint, Job, JobEvent, JobRequest
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.protocol import Finish, Sampling, Turn

LEAST_ROWS = 10
"""OpenAI refuses a training file with fewer rows; so does this dialect."""


class Received(BaseModel):
    """A request: fields we do not know are ignored, as the official API does."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        _refuse_what_is_no_text(value)
        return value


class Sent(BaseModel):
    """A part of an answer."""


_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def _refuse_what_is_no_text(value: Any) -> None:
    """JSON can name signs that UTF-8 cannot carry (half a surrogate pair) or PostgreSQL cannot keep (U+0000)."""
    if isinstance(value, str) and _NO_TEXT.search(value):
        raise ValueError("U+0000 and halves of surrogate pairs are not text")
    for inner in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_what_is_no_text(inner)


def unix(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None


def page(items: Sequence[Any], has_more: bool) -> dict[str, Any]:
    data = [item.model_dump() for item in items]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "has_more": has_more, "first_id": first, "last_id": last}


# Files


class FileObject(Sent):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    status_details: str | None = None
    expires_at: int | None = None

    @classmethod
    def of(cls, file: File) -> FileObject:
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at.timestamp()),
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
            status_details=file.report.summary if file.report else None,
        )


# Uploads


class CreateUpload(Received):
    """The `mime_type` that clients send is not kept: what a file holds is read from its bytes."""

    bytes: Annotated[int, Field(ge=1)]
    filename: str
    purpose: str
    category: str | None = None
    mime_type: str | None = None
    expires_after: dict[str, Any] | None = None

    def refuse_what_is_not_offered(self) -> None:
        if self.expires_after is not None:
            raise NotOffered("Files that expire are not offered by this version; delete them.", param="expires_after")


class CompleteUpload(Received):
    part_ids: list[str]
    md5: str | None = None


class UploadObject(Sent):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None

    @classmethod
    def of(cls, upload: Upload) -> UploadObject:
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created_at.timestamp()),
            expires_at=int(upload.expires_at.timestamp()),
            filename=upload.filename,
            purpose=upload.purpose,
            status=upload.status,
            file=FileObject.of(upload.file) if upload.file else None,
        )


class UploadPart(Sent):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: SentPart) -> UploadPart:
        return cls(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=part.upload)


# Fine-tuning

Auto = BeforeValidator(lambda value: None if value == "auto" else value)
"""Before a number: "auto", null and absence all mean that it is left to us."""


class Hyperparameters(BaseModel):
    """A name we do not know is refused: a job that silently ignores what was asked for is worse than one that does not start."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Annotated[int | None, Field(ge=1, le=100), Auto] = None
    batch_size: Annotated[int | None, Field(ge=1, le=256), Auto] = None
    learning_rate_multiplier: Annotated[float | None, Field(gt=0, le=100), Auto] = None


class Supervised(Received):
    hyperparameters: Hyperparameters | None = None


class Method(Received):
    type: str = "supervised"
    supervised: Supervised | None = None


class CreateJob(Received):
    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: list[Any] | None = None
    max_length: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="Ours: tokens that a row may have; absent: 2,048, or the model's context where it is less.",
    )
    overlength: Overlength | None = Field(default=None, description="Ours: what becomes of a longer row; absent: drop.")

    def to_request(self) -> JobRequest:
        method = self.method or Method()
        if method.type not in ("supervised", "dpo", "reinforcement"):
            raise InvalidParameter("method.type", f"must be supervised, got {method.type!r}")
        if method.type != "supervised":
            raise NotOffered(
                f"The method {method.type!r} is not offered by this version; supervised is.", param="method.type"
            )
        if self.integrations:
            raise NotOffered("integrations are not offered by this version.", param="integrations")
        if self.metadata is not None:
            _check_metadata(self.metadata)
        asked = (method.supervised and method.supervised.hyperparameters) or self.hyperparameters or Hyperparameters()
        return JobRequest(
            base_model=self.model,
            training_files=[self.training_file],
            validation_files=[self.validation_file] if self.validation_file else [],
            suffix=self.suffix,
            seed=self.seed,
            epochs=asked.n_epochs,
            batch_size=asked.batch_size,
            learning_rate_multiplier=asked.learning_rate_multiplier,
            max_length=self.max_length,
            overlength=self.overlength or "drop",
            least_rows=LEAST_ROWS,
            metadata=self.metadata,
        )


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise InvalidParameter("metadata", "takes at most 16 pairs, keys of 64 and values of 512 characters")


_STATUS = {
    Status.CHECKING: "validating_files",
    Status.QUEUED: "queued",
    Status.STARTING: "running",
    Status.RUNNING: "running",
    Status.PAUSED: "paused",
    Status.CANCELLING: "running",
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


class FineTuningJob(Sent):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    model: str
    status: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    organization_id: str
    result_files: list[str] = []
    seed: int
    fine_tuned_model: str | None
    finished_at: int | None
    trained_tokens: int | None
    error: dict[str, Any] | None
    estimated_finish: int | None
    metadata: dict[str, str] | None
    integrations: list[Any] = []

    @classmethod
    def of(cls, job: Job) -> FineTuningJob:
        asked, spec = job.request, job.spec
        used = {
            "n_epochs": spec.epochs if spec else asked.epochs or "auto",
            "batch_size": spec.batch_size if spec else asked.batch_size or "auto",
            "learning_rate_multiplier": asked.learning_rate_multiplier or ("auto" if spec is None else 1.0),
        }
        return cls(
            id=job.id,
            created_at=int(job.created_at.timestamp()),
            model=asked.base_model,
            status=_STATUS[job.status],
            training_file=asked.training_files[0],
            validation_file=next(iter(asked.validation_files), None),
            hyperparameters=used,
            method={"type": "supervised", "supervised": {"hyperparameters": used}},
            organization_id=job.project,
            seed=spec.seed if spec else asked.seed or 0,
            fine_tuned_model=job.model_name if job.status is Status.SUCCEEDED else None,
            finished_at=unix(job.finished_at),
            trained_tokens=job.trained_tokens if job.status is Status.SUCCEEDED else None,
            error=job.error.model_dump() if job.error else None,
            estimated_finish=int(time.time() + job.seconds_left) if job.seconds_left is not None else None,
            metadata=asked.metadata,
        )


class FineTuningEvent(Sent):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: JobEvent) -> FineTuningEvent:
        return cls(
            id=event.id,
            created_at=int(event.created_at.timestamp()),
            level=event.level,
            message=event.message,
            type=event.kind,
            data=event.data,
        )


class FineTuningCheckpoint(Sent):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float | int | None]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> FineTuningCheckpoint:
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at.timestamp()),
            fine_tuning_job_id=checkpoint.job,
            fine_tuned_model_checkpoint=checkpoint.model_name,
            step_number=checkpoint.step,
            metrics={name: value for name, value in checkpoint.metrics.items() if value is not None},
        )


# Models


class Model(Sent):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str

    @classmethod
    def of(cls, model: NamedModel) -> Model:
        return cls(id=model.name, created=int(model.created_at.timestamp()), owned_by=model.owned_by)


# Chat


class Part(Received):
    type: str
    text: str | None = None


class ChatMessage(Received):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(Received):
    include_usage: bool = False


class ChatRequest(Received):
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    audio: Any = None

    def to_request(self) -> CompletionRequest:
        self._refuse_what_is_not_offered()
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return CompletionRequest(
            model=self.model,
            messages=[_turn(place, message) for place, message in enumerate(self.messages)],
            sampling=Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                seed=self.seed,
                max_tokens=self.max_completion_tokens or self.max_tokens,
                stop=[text for text in stop if text],
                frequency_penalty=self.frequency_penalty or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
            ),
        )

    def _refuse_what_is_not_offered(self) -> None:
        """An answer that ignores one of these would be a wrong answer."""
        wanted = {
            "n": self.n not in (None, 1),
            "tools": bool(self.tools),
            "functions": bool(self.functions),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
            "logprobs": bool(self.logprobs),
            "logit_bias": bool(self.logit_bias),
            "modalities": self.modalities not in (None, ["text"]),
            "audio": bool(self.audio),
        }
        for name, asked in wanted.items():
            if asked:
                raise NotOffered(f"{name} is not offered by this version.", param=name)


def _turn(place: int, message: ChatMessage) -> Turn:
    where = f"messages[{place}]"
    role = "system" if message.role == "developer" else message.role
    if role not in ("system", "user", "assistant"):
        raise InvalidParameter(f"{where}.role", f"must be system, user or assistant, got {message.role!r}")
    if isinstance(message.content, list):
        if any(part.type != "text" for part in message.content):
            raise NotOffered("Only text parts are offered by this version.", param=f"{where}.content")
        return Turn(role=role, content="".join(part.text or "" for part in message.content))
    if message.content is None:
        raise InvalidParameter(f"{where}.content", "must be a text")
    return Turn(role=role, content=message.content)


def usage(finish: Finish) -> dict[str, Any]:
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def completion(completion_id: str, model: str, text: str, finish: Finish) -> dict[str, Any]:
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": finish.reason,
                "logprobs": None,
            }
        ],
        "usage": usage(finish),
    }


def chunk(
    completion_id: str, model: str, created: int, delta: dict[str, Any] | None, reason: str | None = None, **more: Any
) -> dict[str, Any]:
    """One frame of a stream; `delta` None makes the frame without choices that carries the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
    return {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
        **more,
    }
