"""What a run measures on its way: mean losses and accuracies, tokens per second, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from luthier.nets.losses import TokenLosses

_KEPT = 0.9  # share of the past that each step keeps in the smoothed speed


class Mean:
    """Mean loss and accuracy per trained token over the micro-batches added; 0 while nothing was trained."""

    def __init__(self) -> None:
        self._total = 0.0
        self._trained = 0
        self._correct = 0

    def add(self, losses: TokenLosses) -> None:
        self._total += losses.total.item()
        self._trained += losses.trained
        self._correct += losses.correct

    @property
    def loss(self) -> float:
        return self._total / max(self._trained, 1)

    @property
    def token_accuracy(self) -> float:
        return self._correct / max(self._trained, 1)


class Pace:
    """Speed over steps, smoothed, from which the time left follows. Tokens are those of rows, without padding."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._begun = now()
        self._step_begun = self._begun
        self._tokens = 0.0
        self._seconds = 0.0

    def begin_step(self) -> None:
        self._step_begun = self._now()

    def end_step(self, tokens: int) -> None:
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + self._now() - self._step_begun

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / max(self._seconds, 1e-9)

    @property
    def elapsed_seconds(self) -> float:
        """Since this attempt began."""
        return self._now() - self._begun

    def seconds_left(self, tokens: int) -> float:
        """How long `tokens` more take, evaluations and checkpoints apart."""
        return tokens / self.tokens_per_second if self._tokens else 0.0
