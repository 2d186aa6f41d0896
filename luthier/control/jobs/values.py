"""Jobs as values: what is asked for, what is shown."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.chat.examples import Overlength, TurnWeights
from luthier.control.jobs.lifecycle import Status, Wish
from luthier.training.spec import PluginChoice, TrainingSpec

SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a suffix looks like as a whole: it becomes a part of the model's name, which stands in addresses."""


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobRequest(Value):
    """A job as a dialect asks for it, with that dialect's defaults filled in. None means "auto": computed, then written down."""

    base_model: str
    training_files: list[str] = Field(min_length=1, description="Rows of several files are trained as one file's.")
    validation_files: list[str] = Field(default_factory=list)
    validation_share: float | None = Field(
        default=None, gt=0, lt=1, description="Of the training rows, kept for validation where no such file is named."
    )
    validation_rows_at_most: int | None = Field(default=None, ge=1, description="That such a share may have.")
    suffix: str | None = None
    seed: int | None = None
    method: PluginChoice = PluginChoice(name="lora")
    objective: PluginChoice | None = Field(
        default=PluginChoice(name="sft"), description="None: the one that the rows of the training file are for."
    )
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = Field(default=None, description="Absolute; the multiplier multiplies it too.")
    learning_rate_multiplier: float | None = None
    schedule: str | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    evaluate_every_steps: int | None = None
    save_every_steps: int | None = None
    max_length: int | None = Field(default=None, description="Tokens that a row may have, as asked for.")
    usual_max_length: int = Field(
        default=2048, description="What it is where nobody asked; less where the model reads less."
    )
    overlength: Overlength = Field(default="drop", description="What becomes of a longer row.")
    turn_weights: TurnWeights = Field(
        default="honoured", description="Whether a turn of weight 0 is left untrained, or trained as every other."
    )
    least_rows: int = Field(default=1, description="Fewer rows than this are refused.")
    metadata: dict[str, str] | None = None
    shown: dict[str, Any] = Field(
        default_factory=dict, description="What the dialect wants to show again, as it was sent."
    )


class Error(Value):
    code: str
    message: str
    param: str | None = None


class Job(Value):
    """`wish` is what was asked of it and is still under way; `created_by` the key of who asked for it, where that is known."""

    id: str
    project: str
    status: Status
    request: JobRequest
    spec: TrainingSpec | None
    model_name: str
    trained_tokens: int | None
    seconds_left: float | None
    error: Error | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    wish: Wish | None = None
    created_by: str | None = None


class JobEvent(Value):
    """`kind` is message or metrics; `level` info, warn or error; `number` counts a job's events from 1."""

    id: str
    job: str
    number: int
    level: str
    kind: str
    message: str
    data: dict[str, Any] | None
    created_at: datetime


class Checkpoint(Value):
    id: str
    job: str
    step: int
    model_name: str
    metrics: dict[str, float | int | None]
    created_at: datetime
