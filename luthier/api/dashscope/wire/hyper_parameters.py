"""The hyper-parameters that DashScope documents or its clients send, and what each of them means here.

A name we do not know is refused: a job that silently ignores what was asked for is worse than one that does not start.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from luthier.core.errors import InvalidParameter
from luthier.training.spec import TrainingSpec

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
    "wsd": "wsd",
}
"""Names of `lr_scheduler_type`, each with ours."""


Left = BeforeValidator(lambda value: None if value in ("auto", "") else value)
"""Before a value: "auto", an empty string, null and absence all mean that it is left to us."""


class HyperParameters(BaseModel):
    """Numbers may come as strings."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    n_epochs: Annotated[int | None, Field(ge=1, le=100), Left] = None
    batch_size: Annotated[int | None, Field(ge=1, le=4096), Left] = None
    learning_rate: Annotated[float | None, Field(gt=0, le=1), Left] = Field(
        default=None, description="Absolute; absent: found from model and data."
    )
    max_length: Annotated[int | None, Field(ge=8), Left] = Field(
        default=None, description="Tokens that a row may have; longer rows are left out. Absent: 2,048."
    )
    lr_scheduler_type: Annotated[str | None, Left] = Field(
        default=None, description=f"One of {', '.join(SCHEDULES)}; absent: cosine."
    )
    warmup_ratio: Annotated[float | None, Field(ge=0, lt=1), Left] = Field(
        default=None, description="Absent: 0.05, and 0 for the schedule constant."
    )
    weight_decay: Annotated[float | None, Field(ge=0), Left] = None
    split: Annotated[float | None, Field(gt=0, le=1), Left] = Field(
        default=None,
        description="Share of the rows that is trained, where no validation file is named; absent: all of them.",
    )
    max_split_val_dataset_sample: Annotated[int | None, Field(ge=1), Left] = Field(
        default=None, description="Rows that such a split keeps for validation at most."
    )
    prompt_loss: Annotated[float | None, Left] = Field(
        default=None, description="Only 0 is offered: answers are learned, prompts are not."
    )
    eval_steps: Annotated[int | None, Field(ge=1), Left] = None
    save_steps: Annotated[int | None, Field(ge=1), Left] = None
    lora_rank: Annotated[int | None, Field(ge=1, le=512), Left] = None
    lora_alpha: Annotated[float | None, Field(gt=0), Left] = None
    lora_dropout: Annotated[float | None, Field(ge=0, lt=1), Left] = None
    beta: Annotated[float | None, Field(gt=0, le=10), Left] = Field(
        default=None, description="For dpo_full and dpo_lora."
    )

    def as_sent(self) -> dict[str, Any]:
        """Those that were sent, numbers as numbers."""
        return self.model_dump(exclude_none=True)

    def schedule(self) -> dict[str, Any]:
        """The fields of a JobRequest that say how the learning rate goes."""
        if self.lr_scheduler_type is None:
            return {"warmup_ratio": self.warmup_ratio}
        name = self.lr_scheduler_type.lower()
        if name not in SCHEDULES:
            raise wrong("lr_scheduler_type", f"must be one of {', '.join(SCHEDULES)}, got {self.lr_scheduler_type!r}")
        warmup = 0.0 if name == "constant" and self.warmup_ratio is None else self.warmup_ratio
        return {"schedule": SCHEDULES[name], "warmup_ratio": warmup}

    def division(self, validation_files: list[str]) -> dict[str, Any]:
        """The fields of a JobRequest that say what is kept for validation, where no file is named for it."""
        share = 0.0 if self.split is None else round(1 - self.split, 9)
        if not 0 < share < 1 or validation_files:
            return {}
        return {
            "validation_share": share,
            "validation_rows_at_most": self.max_split_val_dataset_sample,
        }

    def method_options(self, training_type: str, *, is_lora: bool) -> dict[str, Any]:
        asked = {"rank": self.lora_rank, "alpha": self.lora_alpha, "dropout": self.lora_dropout}
        options = {name: value for name, value in asked.items() if value is not None}
        if options and not is_lora:
            raise wrong(
                f"lora_{next(iter(options))}",
                f"is for efficient_sft and dpo_lora; {training_type} trains all weights and has no such number",
            )
        return options

    def objective_options(self, training_type: str, *, is_dpo: bool) -> dict[str, Any]:
        if self.beta is None:
            return {}
        if not is_dpo:
            raise wrong("beta", f"is for dpo_full and dpo_lora; {training_type} has no such number")
        return {"beta": self.beta}

    def refuse_what_is_not_offered(self) -> None:
        if self.prompt_loss:
            raise wrong(
                "prompt_loss", f"must be 0: what is learned is the answers, not the prompts; got {self.prompt_loss}"
            )


def wrong(name: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"hyper_parameters.{name}", why)


def used(spec: TrainingSpec) -> dict[str, Any]:
    """What a job trains with, by the names of this API."""
    return {
        "n_epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "learning_rate": spec.learning_rate,
        "max_length": spec.max_length,
        "lr_scheduler_type": spec.schedule,
        "warmup_ratio": spec.warmup_ratio,
        "weight_decay": spec.weight_decay,
        "eval_steps": spec.evaluate_every_steps,
        "save_steps": spec.save_every_steps,
        **_lora(spec.method.options),
        **({"beta": spec.objective.options["beta"]} if "beta" in spec.objective.options else {}),
    }


def _lora(options: dict[str, Any]) -> dict[str, Any]:
    """An alpha that nobody asked for is twice the rank."""
    if "rank" not in options:
        return {}
    rank, alpha = options["rank"], options.get("alpha")
    return {
        "lora_rank": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "lora_dropout": options.get("dropout", 0.0),
    }
