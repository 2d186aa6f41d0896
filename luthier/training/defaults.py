"""Turns "auto" into numbers, from the model's size and the number of rows. What comes out is written into the spec."""

from __future__ import annotations

import secrets

from pydantic import Field

from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.precision import Precision, has_gpu
from luthier.training.precision import precision as precision_here
from luthier.training.spec import Value

_TUNED_ON = 135e6  # parameters of the model for which the rates of methods were found, by steps of so many rows
_TUNED_BATCH = 8
_BY_SIZE = (
    0.375  # Schulman et al., LoRA Without Regret: width to the power of 0.78 for Llama models; size grows as its square
)
_EVALUATIONS = 4  # of a run, and checkpoints
_SAMPLES = 3
_VISITS = 400  # how often a small file's rows are seen in all
LONGEST = 2048
"""Tokens that a row may have where nothing else is asked and the model can read so many."""


class Resolved(Value):
    """The fields of a TrainingSpec that may be left to us; named as there. Each says what it is when nothing is asked."""

    max_length: int = Field(description="2,048, or the model's context where that is less.")
    epochs: int = Field(
        description="2; more for under 200 rows, up to 10, so that rows are seen about 400 times in all; 1 from 10,000 rows on."
    )
    batch_size: int = Field(
        description="The power of two at or below a 32nd of the rows, from 4 to 64, and never more than the rows."
    )
    micro_batch_tokens: int = Field(
        description="8,192 where there is a GPU; on a processor 2,048 in bf16, 1,024 in fp32."
    )
    learning_rate: float = Field(
        description="The method's at 135 million parameters (4e-3 for lora), times the objective's share (a tenth for dpo); "
        "for steps of fewer than 8 rows less in proportion; falling with the size to the power of 3/8 (a model 60 times as "
        "large takes about a fifth), at most ten times what it is at 135 million; to two digits."
    )
    seed: int = Field(description="Drawn.")
    precision: Precision = Field(
        description="bf16 where the GPU or the processor multiplies it itself, otherwise fp32."
    )
    threads: int = Field(description="The cores that the job may use, divided among its processes; at least 1.")
    evaluate_every_steps: int = Field(description="A quarter of the steps.")
    save_every_steps: int = Field(description="A quarter of the steps.")
    patience: int = Field(
        description="As many evaluations as there are: with validation rows the result is the best checkpoint."
    )
    samples: int = Field(description="3, where there are validation rows.")
    share_prefixes: bool = Field(
        description="true, unless there is dropout, which would then be drawn once for all of those rows."
    )
    fused: bool = Field(description="true.")


def resolve(
    *,
    parameters: int,
    context_length: int,
    rows: int,
    cores: int,
    method: str = "lora",
    objective: str = "sft",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    learning_rate_multiplier: float | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    processes: int = 1,
    precision: Precision | None = None,
    drops: bool = False,
) -> Resolved:
    """Numbers for what is None, as Resolved says; what is given is kept. `rows` are those that are trained.

    `learning_rate_multiplier` multiplies the learning rate, given or not. `drops` is what the method says of itself.
    """
    epochs = epochs or (1 if rows >= 10_000 else min(max(-(-_VISITS // rows), 2), 10))
    batch_size = batch_size or min(max(_power_of_two(rows // 32), 4), 64, rows)
    tuned = methods.load(method).rate * objectives.load(objective).rate_share
    by_batch = min(batch_size / _TUNED_BATCH, 1.0)
    by_size = min((_TUNED_ON / parameters) ** _BY_SIZE, 10.0)
    rate = learning_rate or float(f"{tuned * by_batch * by_size:.1e}")
    steps = epochs * -(-rows // batch_size)
    precision = precision or precision_here()
    return Resolved(
        max_length=min(context_length, LONGEST) if max_length is None else max_length,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_tokens=8192 if has_gpu() else 2048 if precision == "bf16" else 1024,
        learning_rate=rate * (learning_rate_multiplier or 1.0),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        precision=precision,
        threads=max(cores // processes, 1),
        evaluate_every_steps=-(-steps // _EVALUATIONS),
        save_every_steps=-(-steps // _EVALUATIONS),
        patience=_EVALUATIONS,
        samples=_SAMPLES,
        share_prefixes=not drops,
        fused=True,
    )


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`; 1 for less."""
    return 1 << max(number.bit_length() - 1, 0)
