"""A text that is continued, in OpenAI's older form: one or several prompts in, numbered choices out."""

from __future__ import annotations

import codecs
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from luthier.api.shapes.wire.answers import LEAST_LOGPROB, Usage
from luthier.api.shapes.wire.base import Sent
from luthier.api.shapes.wire.chat import Bias, Seed, Stops, StreamOptions, refuse, stops
from luthier.api.shapes.wire.extras import Extras, TokenId
from luthier.control.inference.service import CompletionRequest
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.protocol import Sampling, TokenLikelihood

ANSWERS_AT_MOST = 128
"""Of one request, to all of its prompts together."""


class CreateCompletion(Extras):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "max_tokens": 32}
        }
    )

    model: str
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text or its token ids, or several of them."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Absent: 16.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(default=None, description="Not offered above n.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = Field(default=None, description="Whether a choice begins with its prompt.")
    suffix: str | None = Field(default=None, description="Not offered.")
    stop: Stops | None = None
    seed: Seed | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenId, Bias] | None = None

    @property
    def answers(self) -> int:
        """How many choices every prompt has."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def opening(self, request: CompletionRequest) -> str:
        """What a choice begins with before anything is made."""
        return request.prompt if self.echo and isinstance(request.prompt, str) else ""

    def to_requests(self) -> list[CompletionRequest]:
        """One for each prompt. Raises NotOffered and InvalidParameter."""
        refuse({"suffix": bool(self.suffix), "best_of": (self.best_of or 1) > self.answers})
        if self.best_of is not None and self.best_of < self.answers:
            raise InvalidParameter("best_of", f"must be at least n, {self.answers}, got {self.best_of}")
        prompts = self._prompts()
        if self.echo and self.logprobs is not None:
            raise NotOffered("logprobs of an echoed prompt are not offered by this version.", param="echo")
        if self.echo and any(not isinstance(prompt, str) for prompt in prompts):
            raise NotOffered("echo is offered for prompts that are texts.", param="echo")
        json_schema, regex = self.form()
        asked = CompletionRequest(
            model=self.model,
            json_schema=json_schema,
            regex=regex,
            sampling=self.with_extras(
                Sampling(
                    temperature=1.0 if self.temperature is None else self.temperature,
                    top_p=1.0 if self.top_p is None else self.top_p,
                    seed=self.seed,
                    max_tokens=self.max_tokens or 16,
                    stop=stops(self.stop),
                    frequency_penalty=self.frequency_penalty or 0.0,
                    presence_penalty=self.presence_penalty or 0.0,
                    logit_bias=self.logit_bias or {},
                    logprobs=self.logprobs,
                )
            ),
            n=self.answers,
            is_whole=not self.stream,
        )
        return [replace(asked, prompt=one) for one in prompts]

    def _prompts(self) -> list[str | list[int]]:
        asked: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        prompts: list[Any] = [asked] if asked and isinstance(asked[0], int) else asked
        if not prompts or any(not prompt for prompt in prompts):
            raise InvalidParameter("prompt", "must be a text or token ids, or a list of them; none of them empty")
        if (wanted := len(prompts) * self.answers) > ANSWERS_AT_MOST:
            each = f" with {self.answers} answers each" if self.answers > 1 else ""
            raise InvalidParameter(
                "prompt",
                f"takes at most {ANSWERS_AT_MOST} answers at once, got {len(prompts):,} prompts{each}: {wanted:,}",
            )
        return prompts


class Logprobs(Sent):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int] = Field(description="Where in the text of the choice each token begins.")


class Choice(Sent):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None


class Completion(Sent):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Offsets:
    """Counts the characters of tokens that may end within one."""

    def __init__(self, start: int) -> None:
        self._place = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def before(self, token: bytes) -> int:
        """How many characters stand before a token, which is the next one."""
        place = self._place
        self._place += len(self._decoder.decode(token))
        return place


def choice(index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}


def logprobs(tokens: list[TokenLikelihood], likeliest: int, offsets: Offsets) -> dict[str, Any]:
    """Of every token its own likelihood, and those of the likeliest together with it."""
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [max(token.logprob, LEAST_LOGPROB) for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens] if likeliest else None,
        "text_offset": [offsets.before(bytes(token.bytes)) for token in tokens],
    }


def _likeliest(token: TokenLikelihood) -> dict[str, float]:
    return {one.token: max(one.logprob, LEAST_LOGPROB) for one in (token, *token.likeliest)}
