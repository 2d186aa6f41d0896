"""A call of a model as DashScope's clients make it, and the forms of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from luthier.api.dashscope.wire.envelope import Sent
from luthier.api.dashscope.wire.messages import Input, Tool, ToolChoice, functions_of, offered
from luthier.api.received import Received
from luthier.api.tool_names import MOST_TOOLS
from luthier.control.inference.service import MOST_ANSWERS, CompletionRequest
from luthier.core.errors import InvalidParameter
from luthier.serving.protocol import CalledTool, Finish, Likelihood, OfferedTool, Sampling, TokenChunk, TokenLikelihood


class JsonSchema(Received):
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(Received):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def wanted(self) -> dict[str, Any] | None:
        """The schema that the answer must have; None where it may be any text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {}
        if self.json_schema is None or self.json_schema.schema_ is None:
            raise InvalidParameter("parameters.response_format.json_schema", "must have a schema")
        return self.json_schema.schema_


def _no_switch(value: Any) -> Any:
    """true is no number here, though it is one to Python."""
    if any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value])):
        raise ValueError("must be texts or ids of tokens")
    return value


class Parameters(Received):
    """`enable_search`, `search_options`, `enable_thinking`, `thinking_budget` and `stream` are taken and have no effect:
    nothing is searched for here, a model thinks as it was trained to, and a header is what switches streaming.
    """

    result_format: Literal["text", "message"] | None = Field(
        default=None, description="Absent: text. It is message where several answers, tools or logprobs are asked for."
    )
    incremental_output: bool | None = Field(
        default=None, description="A frame of a stream has only what is new; absent: all of the answer so far."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="Absent: 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Absent: 1.")
    top_k: Annotated[int, Field(ge=0)] | None = Field(default=None, description="0 or absent: all tokens.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Absent: as many as the model's context holds."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[str | int | list[str] | list[int] | None, BeforeValidator(_no_switch)] = Field(
        default=None, description="Texts, or ids of tokens, that end the answer and are not a part of it."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(default=None, description="Absent: 1.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = Field(default=None, description="Answers to make.")
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="Absent: at most one call is made.")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def form(self) -> Literal["text", "message"]:
        if self.tools or self.logprobs or (self.n or 1) > 1:
            return "message"
        return self.result_format or "text"

    def sampling(self) -> Sampling:
        stop = self.stop if isinstance(self.stop, list) else [] if self.stop is None else [self.stop]
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or None,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=[one for one in stop if isinstance(one, str) and one],
            stop_tokens=[one for one in stop if isinstance(one, int)],
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def offered(self) -> list[OfferedTool]:
        functions = functions_of(self.tools or [])
        return [] if self.tool_choice == "none" else [offered(function) for function in functions]

    def must_call(self) -> list[str] | None:
        names = [function.name for function in functions_of(self.tools or [])]
        if self.tool_choice == "required":
            if not names:
                raise InvalidParameter("parameters.tool_choice", "is required, but there are no tools")
            return names
        if not isinstance(self.tool_choice, ToolChoice):
            return None
        if (name := self.tool_choice.function.name) not in names:
            raise InvalidParameter("parameters.tool_choice", f"names {name!r}, which is not among the tools")
        return [name]


class GenerationRequest(Received):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m-instruct-tone-x7k2",
                    "input": {"messages": [{"role": "user", "content": "Who are you?"}]},
                    "parameters": {"result_format": "message"},
                },
                {"model": "smollm2-135m-instruct", "input": {"prompt": "Who are you?"}},
            ]
        }
    )

    model: str
    input: Input
    parameters: Parameters | None = None

    def to_request(self) -> CompletionRequest:
        asked = self.parameters or Parameters()
        return CompletionRequest(
            model=self.model,
            messages=self.input.turns(),
            tools=asked.offered(),
            must_call=asked.must_call(),
            parallel_tool_calls=bool(asked.parallel_tool_calls),
            json_schema=asked.response_format.wanted() if asked.response_format else None,
            sampling=asked.sampling(),
            n=asked.n or 1,
        )


class Usage(Sent):
    """`input_tokens` are counted once for all answers."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class Output(Sent):
    """With `result_format` text a `text` and a `finish_reason`, with message the `choices`."""

    text: str | None = None
    finish_reason: str | None = Field(default=None, description='stop, length or tool_calls; "null" before the end.')
    choices: list[dict[str, Any]] | None = None


class Generated(Sent):
    """For the document: answers are written as plain objects, which costs less for a frame."""

    request_id: str
    output: Output
    usage: Usage


@dataclass
class Choice:
    """One of the answers, as far as it has come."""

    index: int
    text: list[str] = field(default_factory=list)
    calls: list[CalledTool] = field(default_factory=list)
    logprobs: list[TokenLikelihood] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, part: TokenChunk | Finish) -> None:
        if isinstance(part, Finish):
            self.finish = part
            return
        self.text.append(part.text)
        self.calls += part.tool_calls
        self.logprobs += part.logprobs

    def new(self, part: TokenChunk | Finish) -> Choice:
        """Only what `part`, which was just added, brought."""
        only = Choice(self.index)
        only.add(part)
        return only

    def shown(self, *, calls_before: int = 0) -> dict[str, Any]:
        """A choice of an answer in the form message; `calls_before` is the number of calls that earlier frames had."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text)}
        if self.calls:
            message["tool_calls"] = [_call(calls_before + place, call) for place, call in enumerate(self.calls)]
        shown = {"index": self.index, "finish_reason": self.reason, "message": message}
        if self.logprobs:
            shown["logprobs"] = {"content": [_likelihood(one) for one in self.logprobs]}
        return shown

    def as_text(self) -> dict[str, Any]:
        return {"text": "".join(self.text), "finish_reason": self.reason}

    @property
    def reason(self) -> str:
        """The clients want the word null, not JSON's null, where there is none yet."""
        return self.finish.reason if self.finish else "null"


def usage(finished: Sequence[Finish]) -> dict[str, int]:
    read = finished[0].prompt_tokens
    written = sum(one.completion_tokens for one in finished)
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _call(index: int, call: CalledTool) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": index, "id": call.id, "type": "function", "function": function}


def _likelihood(one: TokenLikelihood) -> dict[str, Any]:
    return _likely(one) | {"top_logprobs": [_likely(other) for other in one.likeliest]}


def _likely(one: Likelihood) -> dict[str, Any]:
    return {"token": one.token, "bytes": one.bytes, "logprob": one.logprob}
