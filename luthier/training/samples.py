"""A few held-out prompts, answered by the model as it starts and at every checkpoint, beside the expected answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING

from luthier.chat.renderers.base import Renderer
from luthier.nets.generate import decode
from luthier.nets.sampling import Sampler
from luthier.training.data import Rows
from luthier.training.events import Sample
from luthier.training.objectives.base import Encoded
from luthier.training.spec import TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Samples:
    """Always the same prompts, answered with the likeliest tokens, so that answers differ only by what was learned."""

    def __init__(
        self,
        spec: TrainingSpec,
        rows: Rows | None,
        renderer: Renderer,
        model: PreTrainedModel,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._renderer = renderer
        self._model = model
        self._now = now
        self._begun = now()
        self._spent = 0.0
        held = rows.rows if rows else []
        count = min(spec.samples, len(held))
        self._rows = [held[place * len(held) // count] for place in range(count)]

    def take(self, check: Callable[[], None], *, always: bool) -> list[Sample]:
        """Answers in the order of the prompts: all of them `always`, else as many as the share of time allows.

        `check` is called before each answer and may raise.
        """
        self._model.eval()
        found: list[Sample] = []
        for row in self._rows:
            check()
            begun = self._now()
            if not always and self._spent >= self._spec.sample_share * (begun - self._begun):
                break
            found.append(self._answered(row))
            if not always:
                self._spent += self._now() - begun
        return found

    def _answered(self, row: Encoded) -> Sample:
        tokens = list(row.sequences[0].tokens)
        start = _learned_from(row)
        stops = self._renderer.stops
        made = decode(self._model, tokens[:start], Sampler(), stops=stops, max_tokens=self._spec.sample_tokens)
        said = [token.id for token in made]
        is_cut = said[-1] not in stops
        return Sample(
            row=row.row,
            prompt=self._renderer.tokenizer.decode(tokens[:start], special=True),
            expected=self._text(tokens[start:]),
            answer=self._text(said),
            is_cut=is_cut,
        )

    def _text(self, tokens: list[int]) -> str:
        """The text of an answer up to the token that ends it."""
        stops = self._renderer.stops
        return self._renderer.tokenizer.decode(list(takewhile(lambda token: token not in stops, tokens)))


def _learned_from(row: Encoded) -> int:
    """Where the last part that is learned begins; the middle of a text that is learned from its beginning."""
    weights = row.sequences[0].weights
    end = max(place for place, weight in enumerate(weights) if weight)
    start = end
    while start and weights[start - 1]:
        start -= 1
    return start if start > 1 else max(len(weights) // 2, 1)
