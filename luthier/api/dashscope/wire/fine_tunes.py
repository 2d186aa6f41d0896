"""Fine-tuning jobs, their logs, events and checkpoints as DashScope's clients read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from luthier.api import examples
from luthier.api.dashscope.errors import code_named
from luthier.api.dashscope.wire.envelope import Paged, Sent, moment
from luthier.api.dashscope.wire.hyper_parameters import HyperParameters, used
from luthier.api.received import Received
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.log import HEADER, line_of
from luthier.control.jobs.values import SUFFIX, Checkpoint, Job, JobEvent, JobRequest
from luthier.core.errors import InvalidParameter
from luthier.training.spec import PluginChoice

TrainingType = Literal["cpt", "sft", "efficient_sft", "dpo_full", "dpo_lora"]

_KINDS: dict[str, tuple[str, str]] = {
    "cpt": ("full", "cpt"),
    "sft": ("full", "sft"),
    "efficient_sft": ("lora", "sft"),
    "dpo_full": ("full", "dpo"),
    "dpo_lora": ("lora", "dpo"),
}
"""Method and objective of a training type."""


class CreateFineTune(Received):
    """What is not said: rows are not divided, over-long ones are left out, and every turn of an assistant is learned."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m-instruct",
                    "training_file_ids": ["file-0123456789abcdef"],
                    "training_type": "efficient_sft",
                    "hyper_parameters": {"n_epochs": 3, "learning_rate": "1.6e-4", "lora_rank": 8},
                    "finetuned_output_suffix": "tone",
                }
            ]
        }
    )

    model: str
    training_file_ids: Annotated[list[str], Field(min_length=1, max_length=100)]
    validation_file_ids: Annotated[list[str], Field(max_length=100)] | None = None
    hyper_parameters: HyperParameters | None = None
    training_type: TrainingType | None = Field(default=None, description="Absent: sft, which trains all weights.")
    finetuned_output_suffix: str | None = Field(default=None, description="A part of the tuned model's name.")
    model_name: str | None = Field(default=None, description="What the 2.x client calls it.")
    finetuned_output: str | None = Field(default=None, description="What the module API calls it.")

    def to_request(self) -> JobRequest:
        training_type = self.training_type or "sft"
        method, objective = _KINDS[training_type]
        asked = self.hyper_parameters or HyperParameters()
        asked.refuse_what_is_not_offered()
        validation = self.validation_file_ids or []
        return JobRequest(
            base_model=self.model,
            training_files=self.training_file_ids,
            validation_files=validation,
            suffix=self._suffix(),
            method=PluginChoice(name=method, options=asked.method_options(training_type, is_lora=method == "lora")),
            objective=PluginChoice(
                name=objective, options=asked.objective_options(training_type, is_dpo=objective == "dpo")
            ),
            epochs=asked.n_epochs,
            batch_size=asked.batch_size,
            learning_rate=asked.learning_rate,
            weight_decay=asked.weight_decay,
            evaluate_every_steps=asked.eval_steps,
            save_every_steps=asked.save_steps,
            max_length=asked.max_length,
            usual_max_length=2048,
            overlength="drop",
            turn_weights="ignored",
            least_rows=1,
            shown={"training_type": training_type, "hyper_parameters": asked.as_sent()},
            **asked.schedule(),
            **asked.division(validation),
        )

    def _suffix(self) -> str | None:
        for name in ("finetuned_output_suffix", "model_name", "finetuned_output"):
            if (sent := getattr(self, name)) is None:
                continue
            if not SUFFIX.fullmatch(sent):
                raise InvalidParameter(
                    name,
                    "becomes a part of the model's name, which must fit into an address: 1 to 64 letters, digits, "
                    f"'.', '_' or '-', a letter or digit first; got {sent!r}",
                )
            return sent
        return None


_STATUS = {
    Status.CHECKING: "PENDING",
    Status.QUEUED: "PENDING",
    Status.STARTING: "RUNNING",
    Status.RUNNING: "RUNNING",
    Status.PAUSED: "SUSPENDED",
    Status.CANCELLING: "RUNNING",
    Status.SUCCEEDED: "SUCCEEDED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELED",
}


CALLED = "The name to call, where its method is shared."


class FineTune(Sent):
    """Lists and the hyper-parameters are never null, ids and times are strings: the clients refuse anything else."""

    job_id: str
    job_name: str
    status: str = Field(description="PENDING, RUNNING, SUSPENDED, SUCCEEDED, FAILED or CANCELED.")
    model: str
    base_model: str
    finetuned_output: str | None = Field(description=f"{CALLED} Null until the job has succeeded.")
    training_file_ids: list[str]
    validation_file_ids: list[str]
    hyper_parameters: dict[str, Any] = Field(description="What was sent and, once it is known, what is used.")
    training_type: str
    create_time: str = Field(description="YYYY-MM-DD HH:MM:SS, UTC.")
    end_time: str | None
    user_identity: str
    creator: str
    modifier: str
    group: str = "llm"
    workspace_id: str
    usage: int = Field(description="Trained tokens.")
    code: str | None = Field(default=None, exclude_if=lambda it: it is None, description="Why a job failed.")
    message: str | None = Field(default=None, exclude_if=lambda it: it is None)

    @classmethod
    def of(cls, job: Job) -> FineTune:
        asked, spec = job.request, job.spec
        sent: dict[str, Any] = asked.shown.get("hyper_parameters", {})
        return cls(
            job_id=job.id,
            job_name=job.id,
            status=_STATUS[job.status],
            model=asked.base_model,
            base_model=asked.base_model,
            finetuned_output=job.model_name if job.status is Status.SUCCEEDED else None,
            training_file_ids=asked.training_files,
            validation_file_ids=asked.validation_files,
            hyper_parameters=(used(spec) if spec else {}) | sent,
            training_type=asked.shown.get("training_type") or _training_type(job),
            create_time=moment(job.created_at),
            end_time=moment(job.finished_at) if job.finished_at else None,
            user_identity=job.project,
            creator=job.project,
            modifier=job.project,
            workspace_id=job.project,
            usage=job.trained_tokens or 0,
            code=code_named(job.error.code) if job.error else None,
            message=job.error.message if job.error else None,
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.JOB)


def _training_type(job: Job) -> str:
    """That of a job which another dialect asked for: the nearest that this one has a word for."""
    objective = job.spec.objective if job.spec else job.request.objective
    name = objective.name if objective else "sft"
    is_full = job.request.method.name == "full"
    if name == "dpo":
        return "dpo_full" if is_full else "dpo_lora"
    return "cpt" if name == "cpt" else "sft" if is_full else "efficient_sft"


class FineTuneList(Paged):
    jobs: list[FineTune]

    @classmethod
    def example(cls) -> Any:
        return cls(jobs=[FineTune.of(examples.JOB)], page_no=1, page_size=10, total=1)


class Done(Sent):
    """The clients want an object here, never a bare true."""

    status: Literal["success"] = "success"

    @classmethod
    def example(cls) -> Any:
        return cls()


class Log(Sent):
    total: int = Field(description="Lines of this answer: an answer with fewer than were asked for is the last.")
    logs: list[str]

    @classmethod
    def example(cls) -> Any:
        lines = [HEADER, line_of(examples.EVENT)]
        return cls(total=len(lines), logs=lines)


def event(one: JobEvent) -> dict[str, Any]:
    """An event as a frame of a stream."""
    return {
        "job_id": one.job,
        "create_time": moment(one.created_at),
        "level": one.level,
        "type": one.kind,
        "message": one.message,
        "data": one.data,
    }


class FineTuneCheckpoint(Sent):
    checkpoint_id: str
    full_name: str
    job_id: str
    checkpoint: str
    step: int
    model_name: str = Field(description=CALLED)
    model_display_name: str
    status: Literal["SUCCEEDED"] = "SUCCEEDED"
    create_time: str
    expire_time: str | None = Field(default=None, description="Always null: checkpoints stay.")

    @classmethod
    def of(cls, one: Checkpoint) -> FineTuneCheckpoint:
        name = f"checkpoint-{one.step}"
        return cls(
            checkpoint_id=f"{one.job}:{name}",
            full_name=f"{one.job}:{name}",
            job_id=one.job,
            checkpoint=name,
            step=one.step,
            model_name=one.model_name,
            model_display_name=one.model_name,
            create_time=moment(one.created_at),
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.CHECKPOINT)
