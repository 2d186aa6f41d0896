"""An answer as vLLM's completions are asked for it, and their stream as tokens: both by ids, so that no text is read twice."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from luthier.core.errors import InternalError, NotOffered
from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked
from luthier.serving.protocol import Sampling

_NOT_OURS = {"max_tokens", "stop", "stop_tokens"}  # the answer's end: said otherwise, or not the backend's business


def _same(value: Any) -> Any:
    return value


_SAID_AS: dict[str, Callable[[Any], Any]] = {
    "temperature": _same,
    "top_p": _same,
    "top_k": lambda count: count or 0,
    "min_p": lambda least: least or 0.0,
    "seed": lambda seed: None if seed is None else seed % 2**63,
    "frequency_penalty": _same,
    "presence_penalty": _same,
    "repetition_penalty": _same,
    "logit_bias": lambda biases: {str(token): bias for token, bias in biases.items()} or None,
    "logprobs": _same,
}
"""How each field of our sampling is said in vLLM's words; None is left out. It draws in the order that we do."""


def completion(asked: Asked, *, model: str, room: int, secret: bytes) -> dict[str, Any]:
    """The body of a request. Raises NotOffered for what vLLM cannot be told."""
    if asked.guide is not None:
        raise NotOffered(
            "Answers of this model are made by vLLM, which cannot be held to a schema, a regex or a tool's call here."
        )
    return {
        "model": model,
        "prompt": asked.prompt,
        "max_tokens": min(room, asked.sampling.max_tokens or room),
        "stop_token_ids": sorted(asked.stops),
        "ignore_eos": True,  # what ends an answer is said by its stops alone
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
        "cache_salt": hmac.new(secret, asked.scope.encode(), hashlib.sha256).hexdigest(),
        **_sampling(asked.sampling),
    }


def tokens(choice: dict[str, Any], sampling: Sampling) -> list[Token]:
    """The tokens of one piece of the stream."""
    if (ids := choice.get("token_ids")) is None:
        raise InternalError(
            "vLLM did not tell the ids of its tokens.", hint="Its version is too old; install it again."
        )
    if sampling.logprobs is None:
        return [Token(id) for id in ids]
    told = choice["logprobs"]
    return [
        Token(id, logprob, _likeliest(top, sampling.logprobs))
        for id, logprob, top in zip(ids, told["token_logprobs"], told["top_logprobs"], strict=True)
    ]


def _sampling(sampling: Sampling) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, field in type(sampling).model_fields.items():
        value = getattr(sampling, name)
        if name in _NOT_OURS:
            continue
        if name in _SAID_AS:
            said[name] = _SAID_AS[name](value)
        elif value != field.get_default(call_default_factory=True):
            raise NotOffered(f"Answers of this model are made by vLLM, which does not know {name}.", param=name)
    return {name: value for name, value in said.items() if value is not None}


def _likeliest(top: dict[str, float], count: int) -> tuple[tuple[int, float], ...]:
    """The chosen token comes first in `top`, and beyond the count where it is none of the likeliest."""
    ranked = sorted(top.items(), key=lambda item: -item[1])[:count]
    return tuple((int(name.removeprefix("token_id:")), logprob) for name, logprob in ranked)
