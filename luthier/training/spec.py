"""TrainingSpec: a whole job as one frozen, serialisable value.

It holds storage keys, not paths, and no secrets, so that it can be shown, shared and replayed on another machine. It is
the same for every attempt at a job: which attempt it is comes with the launch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from luthier.chat.examples import Overlength, TurnWeights
from luthier.training.precision import Precision

SHARED_AMONG_ONE = "full needs several processes, among which weights are shared"


class Value(BaseModel):
    """Frozen and whole; its numbers are finite, because JSON has no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PluginChoice(Value):
    """A plugin by name, with options that its own `Options` class validates."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class DataFile(Value):
    """A file of examples: storage key, sha256 of its bytes, name of its format.

    `rows` and `trained_rows` are what was promised before the job started; a run that reads otherwise ends.
    """

    key: str
    sha256: str
    format: str = "messages"
    turn_weights: TurnWeights = Field(
        default="honoured", description="Whether an answer of weight 0 is left untrained, or trained as every other."
    )
    rows: int | None = None
    trained_rows: int | None = None
    dropped: dict[str, int] = Field(default_factory=dict, description="Rows that are not trained, by reason.")
    first_dropped: list[int] = Field(default_factory=list, description="The first of them, counted from 1.")


class Start(Value):
    """An artifact that training goes on from: a tuned model's or a checkpoint's, of the same base, method and shape."""

    key: str = Field(description="Storage key of its folder.")
    sha256: str


class TrainingSpec(Value):
    """What a field is by default is what was done before there was such a field: a spec stored then means what it meant."""

    version: Literal[1] = 1
    job: str = Field(description="Id of the job; everything the run writes lies under runs/<job>/.")
    base_model: str = Field(description="Name of the base model.")
    weights: str = Field(description="Storage key of the folder with its weights and tokenizer.")
    weights_sha256: str = Field(description="Hash of those weights; a run refuses others.")
    renderer_sha256: str | None = Field(
        None, description="Fingerprint of the renderer the data was checked with; a run refuses another."
    )
    training: DataFile
    validation: DataFile | None = None
    start: Start | None = Field(default=None, description="What training begins from; absent: the base model as it is.")
    method: PluginChoice = PluginChoice(name="lora")
    objective: PluginChoice = PluginChoice(name="sft")
    max_length: int = Field(ge=8, description="Tokens that a row may have.")
    overlength: Overlength = Field(
        default="drop", description="What becomes of a longer row: left out, cut, or a reason not to start."
    )
    epochs: int = Field(ge=1, le=100, description="How often every row is trained.")
    batch_size: int = Field(ge=1, le=4096, description="Rows per optimizer step.")
    micro_batch_tokens: int = Field(ge=8, description="Tokens that one forward pass takes at most.")
    learning_rate: float = Field(gt=0, le=1, description="Peak, reached after the warm-up.")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="Share of all steps in which the rate rises.")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="How the rate goes on after the warm-up; wsd: stable, then a decay at the end."
    )
    decay_ratio: float = Field(
        default=0.2, gt=0, le=1, description="Share of all steps in which the rate of wsd falls."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Share of matrices, times the rate, that is taken off in a step."
    )
    clip_norm: float = Field(default=1.0, gt=0, description="Largest global gradient norm.")
    seed: int = Field(ge=0, lt=2**31, description="What the order of rows and everything random follow from.")
    precision: Precision = Field(
        description="Of the frozen base model and of what is computed; what is trained is fp32. "
        "A machine that does not compute in it takes another and says so."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute a layer's inner values again in the backward pass: less memory, a third slower.",
    )
    share_prefixes: bool = Field(
        default=False,
        description="Compute once what rows of a micro-batch begin with alike, such as a long system prompt or the prompt of a "
        "pair.",
    )
    fused: bool = Field(
        default=False,
        description="Compute layers of known kinds (Llama, Qwen2, Qwen3, GLM-4) by operations of our own, and update tensors in "
        "one pass; false: by the library's.",
    )
    compiled: bool | None = Field(
        default=None,
        description="Compile small operations when the run begins, on a GPU attention too. Absent: where the run is long enough "
        "to repay it.",
    )
    threads: int = Field(ge=1, description="CPU threads of a process: part of the spec because sums depend on it.")
    processes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Processes that train together, each with a share of every step's micro-batches.",
    )
    sharding: Literal["none", "full"] = Field(
        default="none", description="full: each process keeps a part of every weight (FSDP2), else all of them."
    )
    evaluate_every_steps: int = Field(ge=1, description="Steps between evaluations of the validation file.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations without a better loss after which training ends, and its best checkpoint is the result.",
    )
    save_every_steps: int = Field(ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int | None = Field(
        default=None,
        ge=1,
        description="How many checkpoints stay: those of the best validation loss, or the newest where there is none, "
        "and always the last. Absent: all.",
    )
    samples: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Validation rows whose prompts are answered before the first step and at every checkpoint. "
        "Not where weights are sharded.",
    )
    sample_tokens: int = Field(default=64, ge=1, le=4096, description="Tokens of such an answer at most.")
    sample_share: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Share of a run's time that these answers take, those at its beginning and end apart.",
    )
    stall_after_seconds: float = Field(
        default=1800, gt=0, description="A run that gets no further for so long is ended."
    )

    @field_validator("sharding")
    @classmethod
    def _shares_something(cls, value: str, others: ValidationInfo) -> str:
        if value == "full" and others.data.get("processes") == 1:
            raise ValueError(SHARED_AMONG_ONE)
        return value

    @property
    def run_key(self) -> str:
        return f"runs/{self.job}"
