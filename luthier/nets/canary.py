"""A fixed conversation, and how likely a tuned model and its base find it: a sanity check of what answers. No torch.

It is no identity: log-probabilities differ a little between machines and precisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import Renderer
from luthier.nets.identity import CANARY

_SAID = Conversation((Message("user", "Who are you?"), Message("assistant", "I am here to help.")))
_LONGEST = 64  # tokens: the check is a part of what it takes to load an adapter

_TOLERANCE = {"fp32": 0.01, "fp16": 0.02, "bf16": 0.1}
"""Nats that the mean over the tokens may be off by, when one side computes in that precision.

SmolLM2-135M in bf16 is 0.05 off itself in fp32, and the same numbers summed in another order 3e-7.
"""


def canary_tokens(renderer: Renderer) -> list[int]:
    """The fixed conversation as a model's renderer writes it, or how it begins."""
    return list(renderer.example(_SAID).tokens[:_LONGEST])


class Canary(BaseModel):
    """`tuned` and `base` are the natural log-probabilities of `tokens` from the second on, each after those before it.

    Both are of the base weights as they are served, never in 4 bits, in `precision`, the softmax in fp32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    tokens: list[int]
    tuned: list[float]
    base: list[float]
    precision: Literal["bf16", "fp16", "fp32"]

    @classmethod
    def kept(cls, folder: Path) -> Canary | None:
        """What was written when the artifact was; None where nothing was. Raises ValueError where it cannot be read."""
        try:
            return cls.model_validate_json((folder / CANARY).read_bytes())
        except FileNotFoundError:
            return None

    def tells_apart(self, precision: str) -> bool:
        """Whether tuned model and base differ by more than what precision alone may make of it."""
        return distance(self.tuned, self.base) > 2 * self.tolerance(precision)

    def tolerance(self, precision: str) -> float:
        return max(_TOLERANCE[self.precision], _TOLERANCE[precision])

    def problem(self, found: Sequence[float], *, precision: str) -> str | None:
        """What is wrong with log-probabilities that were computed in `precision`, said for people; None: nothing is.

        They must be nearer to the tuned model's than to anything that is as far from those as the base is: at most half
        as far off as the base, or, where the two hardly differ, within the tolerance of the precision.
        """
        if len(found) != len(self.tuned):
            return f"it has {len(found)} log-probabilities instead of {len(self.tuned)}"
        off, gap = distance(found, self.tuned), distance(self.base, self.tuned)
        if off <= max(self.tolerance(precision), gap / 2):  # nan is not
            return None
        if distance(found, self.base) <= off:
            return f"it answers as the base model does ({off:.3f} nats a token from what was trained)"
        return f"its answer is {off:.3f} nats a token from what was trained, and the base model's {gap:.3f}"


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean of the absolute differences."""
    return math.fsum(abs(a - b) for a, b in zip(one, other, strict=True)) / max(len(one), 1)
