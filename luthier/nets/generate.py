"""The plain decode loop and sampling: one sequence, a key/value cache, one token at a time.

Shapes: B batch (1 here), T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.errors import ContextTooLong
from luthier.nets.prefix import Prefix, prefix_of
from luthier.nets.tokens import Guide, Token

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class Sampler:
    """Chooses the tokens of one answer. It has a random generator of its own, so a seed repeats them.

    Log-probabilities are those of the model's own chances, before anything that is set here changes them. Then, in this
    order: bias, repetition penalty, frequency and presence penalty, the guide, temperature, top_k, top_p.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        prompt: Sequence[int] = (),
        guide: Guide | None = None,
    ) -> None:
        """Temperature 0 takes the likeliest token. Frequency and presence count what was generated, repetition also the
        prompt. With `logprobs` every token tells its own log-probability and those of so many likeliest.
        """
        self._temperature = temperature
        self._top_p = top_p
        self._top_k = top_k
        self._frequency_penalty = frequency_penalty
        self._presence_penalty = presence_penalty
        self._repetition_penalty = repetition_penalty
        self._bias = dict(logit_bias or {})
        self._logprobs = logprobs
        self._guide = guide
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed % 2**64)
        self._counts: dict[int, int] = {}
        self._prompt = prompt
        self._seen_V: torch.Tensor | None = None  # which tokens were in the prompt or the answer, once it is asked

    def choose(self, logits_V: torch.Tensor) -> Token:
        logits_V = logits_V.float().cpu()  # on the CPU, so that a seed means the same on every device
        shaped_V = self._shaped(logits_V)
        token = int(shaped_V.argmax()) if self._temperature == 0 else self._draw(shaped_V)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen_V is not None:
            self._seen_V[token] = True
        if self._guide is not None:
            self._guide.take(token)
        return Token(token) if self._logprobs is None else _told(token, logits_V, self._logprobs)

    def _shaped(self, logits_V: torch.Tensor) -> torch.Tensor:
        if self._bias:
            biases = torch.tensor(list(self._bias.values()), dtype=logits_V.dtype)
            logits_V = logits_V.index_add(0, torch.tensor(list(self._bias)), biases)
        if self._repetition_penalty != 1:
            if self._seen_V is None:
                self._seen_V = torch.zeros(len(logits_V), dtype=torch.bool)
                self._seen_V[torch.tensor(self._prompt, dtype=torch.long)] = True
            repeated_V = torch.where(
                logits_V > 0, logits_V / self._repetition_penalty, logits_V * self._repetition_penalty
            )
            logits_V = torch.where(self._seen_V, repeated_V, logits_V)
        if self._counts and (self._frequency_penalty or self._presence_penalty):
            seen = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=logits_V.dtype)
            penalties = counts * self._frequency_penalty + self._presence_penalty
            logits_V = logits_V.index_add(0, seen, penalties, alpha=-1)
        if self._guide is not None:
            logits_V = logits_V.masked_fill(~_bits(self._guide.allowed(), len(logits_V)), -torch.inf)
        return logits_V

    def _draw(self, logits_V: torch.Tensor) -> int:
        # The maximum is taken off first: then no temperature is too small to divide by.
        chances_V = torch.softmax((logits_V - logits_V.max()) / self._temperature, dim=0)
        if self._top_k is None and self._top_p == 1:
            return int(torch.multinomial(chances_V, 1, generator=self._random))
        chances_V, order = chances_V.sort(descending=True)
        if self._top_k is not None:
            chances_V = chances_V[: self._top_k]
            chances_V = chances_V / chances_V.sum()
        if self._top_p < 1:
            before_V = chances_V.cumsum(0) - chances_V
            chances_V = chances_V[: int((before_V < self._top_p).sum())]  # the first is always kept
        return int(order[torch.multinomial(chances_V, 1, generator=self._random)])


def decode(
    model: PreTrainedModel,
    prompt: list[int],
    sampler: Sampler,
    *,
    stops: Collection[int],
    max_tokens: int | None = None,
) -> Iterator[Token]:
    """Yield the tokens that follow `prompt`, each computed when it is asked for.

    Ends after a token of `stops`, which is yielded too, after `max_tokens`, or where the model's context is full;
    `max_tokens=None` takes what the context holds. Raises ContextTooLong when the prompt leaves no room for a token.
    """
    prefix = prefix_of(model)
    context = model.config.max_position_embeddings - (prefix.positions if prefix else 0)
    room = context - len(prompt)
    if room < 1:
        raise ContextTooLong(
            f"The prompt is {len(prompt)} tokens long; the model's context holds {context} with the answer.",
            hint="Shorten it.",
        )
    tokens, cache = prompt, _begun(model, prefix)
    for _ in range(room if max_tokens is None else min(room, max_tokens)):
        logits_V, cache = _forward(model, tokens, cache)
        token = sampler.choose(logits_V)
        yield token
        if token.id in stops:
            return
        tokens = [token.id]


def _told(token: int, logits_V: torch.Tensor, count: int) -> Token:
    logprobs_V = torch.log_softmax(logits_V, dim=0)
    best = logprobs_V.topk(min(count, len(logprobs_V)))
    likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logprobs_V[token]), likeliest)


def _bits(allowed: bytes, count: int) -> torch.Tensor:
    """As booleans, one for each of `count` tokens."""
    found = np.unpackbits(np.frombuffer(allowed, np.uint8), count=count, bitorder="little")
    return torch.from_numpy(found.view(bool))


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
