"""What a run measures on its way: mean losses and accuracies, tokens per second, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from luthier.training.objectives.base import Losses
from luthier.training.processes import Processes

_KEPT = 0.9  # share of the past that each step keeps in the smoothed speed


class Mean:
    """Means over the micro-batches added: the loss per unit, every measure per thing it is of; 0 while there was none."""

    def __init__(self) -> None:
        self._total = 0.0
        self._units = 0
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, losses: Losses, units: int) -> None:
        self._total += losses.total.item()
        self._units += units
        for name, (total, count) in losses.measures.items():
            before, counted = self._sums.get(name, (0.0, 0))
            self._sums[name] = (before + total.item(), counted + count)

    def over(self, processes: Processes) -> None:
        """Make this the mean over the micro-batches of all processes."""
        parts = processes.gathered((self._total, self._units, self._sums))
        self._total, self._units, self._sums = 0.0, 0, {}
        for total, units, sums in parts:
            self._total += total
            self._units += units
            for name, (of_part, count) in sums.items():
                before, counted = self._sums.get(name, (0.0, 0))
                self._sums[name] = (before + of_part, counted + count)

    @property
    def loss(self) -> float:
        return self._total / max(self._units, 1)

    @property
    def token_accuracy(self) -> float:
        return self._mean("token_accuracy")

    @property
    def measures(self) -> dict[str, float]:
        """What the objective measures beside the loss and the token accuracy."""
        return {name: self._mean(name) for name in self._sums if name != "token_accuracy"}

    def _mean(self, name: str) -> float:
        total, count = self._sums.get(name, (0.0, 0))
        return total / max(count, 1)


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
