"""A fine-tuning job: what is asked for, what is shown, what happened to it, what it saved."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from luthier.api import examples
from luthier.api.received import Received
from luthier.api.shapes.wire.base import Sent, unix
from luthier.chat.examples import Overlength
from luthier.control.jobs.lifecycle import TERMINAL, Status
from luthier.control.jobs.values import Checkpoint, Job, JobEvent, JobRequest
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.training.methods.base import methods
from luthier.training.spec import PluginChoice

Auto = BeforeValidator(lambda value: None if value == "auto" else value)
"""Before a number: "auto", null and absence all mean that it is left to us."""


class Hyperparameters(BaseModel):
    """A name we do not know is refused: a job that silently ignores what was asked for is worse than one that does not start."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    n_epochs: Annotated[int | None, Field(ge=1, le=100), Auto] = None
    batch_size: Annotated[int | None, Field(ge=1, le=256), Auto] = None
    learning_rate_multiplier: Annotated[float | None, Field(gt=0, le=100), Auto] = None


class DpoHyperparameters(Hyperparameters):
    beta: Annotated[float | None, Field(gt=0, le=10), Auto] = Field(
        default=None, description="How strongly the model is held to what it was; absent: 0.1."
    )


class Supervised(Received):
    hyperparameters: Hyperparameters | None = None


class Dpo(Received):
    hyperparameters: DpoHyperparameters | None = None


class Method(Received):
    type: str = Field(default="supervised", description="supervised or dpo.")
    supervised: Supervised | None = None
    dpo: Dpo | None = None


class CreateJob(Received):
    """What is asked of a job. What an absent field means where the dialects differ, each says in its `to_request`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "smollm2-135m-instruct",
                "training_file": "file-01k7m3v5c8t9x2r4w6y8z0a2",
                "validation_file": None,
                "suffix": "tone",
                "seed": 42,
                "metadata": {"team": "red"},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
            }
        }
    )

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(
        default=None, description="Older place of what stands in `method` now."
    )
    integrations: list[Any] | None = None
    max_length: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="Ours: tokens that a row may have; absent: 2,048, or the model's context where it is less.",
    )
    overlength: Overlength | None = Field(default=None, description="Ours: what becomes of a longer row; absent: drop.")
    tuning: str | None = Field(
        default=None, description="Ours: which numbers learn: lora, qlora, full or ptuning_v2; absent: lora."
    )
    tuning_options: dict[str, Any] | None = Field(
        default=None, description='Ours: options of that method, for lora for example {"rank": 8, "alpha": 16}.'
    )

    def asked(self, *, objective: PluginChoice | None, least_rows: int, **more: Any) -> JobRequest:
        """The request, with what the dialect says where the caller says nothing.

        `objective` holds where no method is named. Raises NotOffered and InvalidParameter.
        """
        if self.integrations:
            raise NotOffered("integrations are not offered by this version.", param="integrations")
        _check_metadata(self.metadata)
        numbers = self._hyperparameters()
        if self.method is not None:
            objective = PluginChoice(name="sft")
            if self.method.type == "dpo":
                beta = numbers.beta if isinstance(numbers, DpoHyperparameters) else None
                objective = PluginChoice(name="dpo", options={} if beta is None else {"beta": beta})
        return JobRequest(
            base_model=self.model,
            training_files=[self.training_file],
            validation_files=[self.validation_file] if self.validation_file else [],
            suffix=self.suffix,
            seed=self.seed,
            method=self._tuning(),
            objective=objective,
            epochs=numbers.n_epochs,
            batch_size=numbers.batch_size,
            learning_rate_multiplier=numbers.learning_rate_multiplier,
            max_length=self.max_length,
            overlength=self.overlength or "drop",
            least_rows=least_rows,
            metadata=self.metadata,
            **more,
        )

    def _tuning(self) -> PluginChoice:
        name = self.tuning or "lora"
        if name not in methods.names():
            raise InvalidParameter("tuning", f"must be one of {', '.join(methods.names())}, got {name!r}")
        methods.load(name).Options.read(self.tuning_options or {}, param="tuning_options")
        return PluginChoice(name=name, options=self.tuning_options or {})

    def _hyperparameters(self) -> Hyperparameters:
        """Those of the method that is asked for; a number that it does not say, the older place may."""
        method = self.method or Method()
        if method.type == "reinforcement":
            raise NotOffered(
                "The method 'reinforcement' is not offered by this version; supervised and dpo are.",
                param="method.type",
            )
        if method.type not in ("supervised", "dpo"):
            raise InvalidParameter("method.type", f"must be supervised or dpo, got {method.type!r}")
        said = {"supervised": _said(method.supervised), "dpo": _said(method.dpo)}
        for name, numbers in said.items():
            if name != method.type and numbers:
                raise InvalidParameter(
                    f"method.{name}.hyperparameters.{next(iter(numbers))}",
                    f"is for the method {name}; method.type is {method.type}",
                )
        kind = DpoHyperparameters if method.type == "dpo" else Hyperparameters
        older = self.hyperparameters.model_dump(exclude_none=True) if self.hyperparameters else {}
        return kind(**older | said[method.type])


def _said(method: Supervised | Dpo | None) -> dict[str, Any]:
    """The hyper-parameters that stand below a method."""
    return method.hyperparameters.model_dump(exclude_none=True) if method and method.hyperparameters else {}


def _check_metadata(metadata: dict[str, str] | None) -> None:
    pairs = (metadata or {}).items()
    if len(pairs) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in pairs):
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


class JobError(Sent):
    code: str
    message: str
    param: str | None


CALLED = "The name to call, where its method is shared."


class FineTuningJob(Sent):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    model: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, int | float | str] = Field(
        description="What is used; auto where it is not known yet. The rate is the factor that was asked for, or 1."
    )
    method: dict[str, Any]
    tuning: str = Field(description="Ours: which numbers learn.")
    organization_id: str = Field(description="The project that the job belongs to.")
    result_files: list[str] = Field(default_factory=list)
    seed: int
    fine_tuned_model: str | None = Field(description=f"{CALLED} Null until the job has succeeded.")
    finished_at: int | None
    trained_tokens: int | None
    error: JobError | None
    estimated_finish: int | None
    metadata: dict[str, str] | None
    integrations: list[Any] = Field(default_factory=list)
    request_id: str | None = Field(default=None, description="What the caller called the request that made the job.")

    @classmethod
    def of(cls, job: Job) -> FineTuningJob:
        asked, spec = job.request, job.spec
        used: dict[str, int | float | str] = {
            "n_epochs": spec.epochs if spec else asked.epochs or "auto",
            "batch_size": spec.batch_size if spec else asked.batch_size or "auto",
            "learning_rate_multiplier": asked.learning_rate_multiplier or ("auto" if spec is None else 1.0),
        }
        has_ended = job.status in TERMINAL
        fields = {
            "id": job.id,
            "created_at": int(job.created_at.timestamp()),
            "model": asked.base_model,
            "status": _STATUS[job.status],
            "training_file": asked.training_files[0],
            "validation_file": next(iter(asked.validation_files), None),
            "hyperparameters": used,
            "method": _method(job, used),
            "tuning": asked.method.name,
            "organization_id": job.project,
            "seed": spec.seed if spec else asked.seed or 0,
            "fine_tuned_model": job.model_name if job.status is Status.SUCCEEDED else None,
            "finished_at": unix(job.finished_at),
            "trained_tokens": job.trained_tokens if job.status is Status.SUCCEEDED else None,
            "error": job.error.model_dump() if job.error else None,
            "estimated_finish": None if has_ended or job.seconds_left is None else int(time.time() + job.seconds_left),
            "metadata": asked.metadata,
            "request_id": asked.shown.get("request_id"),
        }
        return cls.model_validate(fields)

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.JOB)


def _method(job: Job, used: dict[str, int | float | str]) -> dict[str, Any]:
    """These families know two objectives; one that they do not know is supervised to them."""
    chosen = job.spec.objective if job.spec else job.request.objective
    if chosen is None or chosen.name != "dpo":
        return {"type": "supervised", "supervised": {"hyperparameters": used}}
    return {"type": "dpo", "dpo": {"hyperparameters": used | {"beta": chosen.options.get("beta", "auto")}}}


class FineTuningEvent(Sent):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: JobEvent) -> FineTuningEvent:
        return cls.model_validate(
            {
                "id": event.id,
                "created_at": int(event.created_at.timestamp()),
                "level": event.level,
                "message": event.message,
                "type": event.kind,
                "data": event.data,
            }
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.EVENT)


class FineTuningCheckpoint(Sent):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str = Field(description=CALLED)
    step_number: int
    metrics: dict[str, float | int]

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

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.CHECKPOINT)
