"""The plain decode loop and sampling: one sequence, a key/value cache, one token at a time.

Shapes: B batch (1 here), T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import ContextTooLong
from luthier.nets.prefix import Prefix, prefix_of

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class Sampler:
    """Chooses the tokens of one answer. It has a random generator of its own, so a seed repeats them."""

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
    ) -> None:
        """Temperature 0 takes the likeliest token. The penalties count what was generated, not the prompt."""
        self._temperature = temperature
        self._top_p = top_p
        self._frequency_penalty = frequency_penalty
        self._presence_penalty = presence_penalty
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed % 2**64)
        self._counts: dict[int, int] = {}

    def choose(self, logits_V: torch.Tensor) -> int:
        logits_V = logits_V.float().cpu()  # on the CPU, so that a seed means the same on every device
        if self._counts and (self._frequency_penalty or self._presence_penalty):
            seen = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=logits_V.dtype)
            penalties = counts * self._frequency_penalty + self._presence_penalty
            logits_V = logits_V.index_add(0, seen, penalties, alpha=-1)
        token = int(logits_V.argmax()) if self._temperature == 0 else self._draw(logits_V)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _draw(self, logits_V: torch.Tensor) -> int:
        # The maximum is taken off first: then no temperature is too small to divide by.
        chances_V = torch.softmax((logits_V - logits_V.max()) / self._temperature, dim=0)
        if self._top_p < 1:
            chances_V, order = chances_V.sort(descending=True)
            before_V = chances_V.cumsum(0) - chances_V
            kept = int((before_V < self._top_p).sum())  # the first is always kept
            return int(order[torch.multinomial(chances_V[:kept], 1, generator=self._random)])
        return int(torch.multinomial(chances_V, 1, generator=self._random))


def decode(
    model: PreTrainedModel,
    prompt: list[int],
    sampler: Sampler,
    *,
    stops: Collection[int],
    max_tokens: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, each computed when it is asked for.

    Ends after a token of `stops`, which is yielded too, after `max_tokens`, or where the model's context is full;
    `max_tokens=None` takes what the context holds. Raises ContextTooLong when the prompt leaves no room for a token.
    """
    prefix = prefix_of(model)
    context = model.config.max_position_embeddings - (prefix.positions if prefix else 0)
    room = context - len(prompt)
    if room < 1:
        raise ContextTooLong(
            f"The messages are {len(prompt)} tokens long; the model's context holds {context} with the answer.",
            hint="Shorten the messages.",
        )
    tokens, cache = prompt, _begun(model, prefix)
    for _ in range(room if max_tokens is None else min(room, max_tokens)):
        logits_V, cache = _forward(model, tokens, cache)
        token = sampler.choose(logits_V)
        yield token
        if token in stops:
            return
        tokens = [token]


@torch.no_grad()
def _begun(model: PreTrainedModel, prefix: Prefix | None) -> Cache | None:
    """A cache that holds the prefix, which stands before every prompt."""
    if prefix is None:
        return None
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for layer, both_2KPD in enumerate(prefix().to(model.dtype)):
        cache.update(both_2KPD[None, 0], both_2KPD[None, 1], layer)
    return cache


@torch.no_grad()
def _forward(model: PreTrainedModel, tokens: list[int], cache: Cache | None) -> tuple[torch.Tensor, Cache]:
    """The logits after the last of `tokens`, and the cache that now holds them all."""
    ids_BT = torch.tensor([tokens], device=model.device)
    out = model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1], out.past_key_values
