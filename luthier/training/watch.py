"""Watches a run: the best validation loss, when to end early, and signs that it goes wrong."""

from __future__ import annotations

import math
from statistics import median

from luthier.core.errors import LossDiverged
from luthier.training.spec import Value

_RECENT, _BEFORE = 5, 20  # steps that are compared
_RISEN_TIMES, _RISEN_BY = 3.0, 2.0


class Standing(Value):
    """What is known so far; kept with every checkpoint, so that a resumed run decides as the undisturbed one."""

    best_step: int | None = None
    best_loss: float | None = None
    without_better: int = 0
    """Evaluations since then."""
    losses: tuple[float, ...] = ()
    """Of the last steps."""


class Watch:
    def __init__(self, patience: int | None, standing: Standing | None = None) -> None:
        """`patience` is the number of evaluations without a better loss after which training ends; None: never."""
        self._patience = patience
        self.standing = standing or Standing()

    @property
    def is_over(self) -> bool:
        """Whether training ends early."""
        return self._patience is not None and self.standing.without_better >= self._patience

    def judge(self, step: int, loss: float) -> bool:
        """Take a validation loss; whether it is the best so far."""
        best = self.standing.best_loss
        is_better = best is None or loss < best
        found = (
            {"best_step": step, "best_loss": loss, "without_better": 0}
            if is_better
            else {"without_better": self.standing.without_better + 1}
        )
        self.standing = self.standing.model_copy(update=found)
        return is_better

    def step(self, step: int, loss: float) -> None:
        """Take a step's loss. Raises LossDiverged when it is no number, has been 0 for some steps, or rose steeply.

        Steeply: the median of five losses is more than three times that of the twenty before, and more by 2.
        """
        refuse_unless_finite(loss, "loss", step)
        losses = (*self.standing.losses, loss)[-_RECENT - _BEFORE :]
        self.standing = self.standing.model_copy(update={"losses": losses})
        if len(losses) >= _RECENT and not any(losses[-_RECENT:]):
            raise LossDiverged(
                f"The loss has been exactly 0 for {_RECENT} steps, up to step {step}: nothing is learned any more.",
                hint="Look for rows that have all the same answer, or use a smaller learning rate.",
            )
        if len(losses) == _RECENT + _BEFORE:
            before, recent = median(losses[:_BEFORE]), median(losses[_BEFORE:])
            if recent > _RISEN_TIMES * before and recent > before + _RISEN_BY:
                raise LossDiverged(
                    f"The loss rose from {before:.2f} to {recent:.2f} within {_RECENT} steps, up to step {step}.",
                    hint=_HINT,
                )


_HINT = "Use a smaller learning rate, or look for faulty rows."


def refuse_unless_finite(value: float, what: str, step: int) -> None:
    """Raise LossDiverged for what is no number."""
    if not math.isfinite(value):
        raise LossDiverged(f"The {what} became {value} at step {step}.", hint=_HINT)
