"""The plain decode loop: one sequence, a key/value cache, one token at a time.

Shapes: B batch (1 here), T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import ContextTooLong
from luthier.nets.prefix import Prefix, prefix_of
from luthier.nets.sampling import Sampler
from luthier.nets.tokens import Token

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


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
