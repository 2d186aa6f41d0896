"""A chat as it is asked for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from luthier.api.received import Received
from luthier.api.shapes.wire.extras import Extras, TokenId
from luthier.api.shapes.wire.messages import ChatMessage, turns
from luthier.api.shapes.wire.tools import Choice, Function, FunctionName, NamedTool, Tool, chosen, functions_of, offered
from luthier.api.tool_names import MOST_TOOLS
from luthier.control.inference.service import CompletionRequest
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.protocol import Sampling

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stops = str | Annotated[list[str], Field(max_length=4)]
"""Texts that end the answer and are no part of it: one, or up to four."""


class StreamOptions(Received):
    include_usage: bool = False


class JsonSchema(Received):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="The schema is enforced either way.")


class ResponseFormat(Received):
    type: str = Field(default="text", description="text, json_object or json_schema.")
    json_schema: JsonSchema | None = None

    def to_schema(self) -> dict[str, Any] | None:
        """The schema of the answer, {} for any JSON object; None for a text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {}
        if self.type != "json_schema":
            raise InvalidParameter(
                "response_format.type", f"must be text, json_object or json_schema, got {self.type!r}"
            )
        if self.json_schema is None:
            raise InvalidParameter("response_format.json_schema", "must be there for the type json_schema")
        return self.json_schema.schema_ or {}


Bias = Annotated[float, Field(ge=-100, le=100)]


class ChatRequest(Extras):
    """What the families share; each adds its own and says what is meant by absence."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MOST_TOOLS)] | None = Field(
        default=None, description="Older form of tools."
    )
    function_call: str | FunctionName | None = Field(default=None, description="Older form of tool_choice.")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: dict[TokenId, Bias] | None = Field(default=None, description="Token ids, and what is added.")

    @property
    def answers(self) -> int:
        return self.n or 1

    @property
    def calls_functions(self) -> bool:
        """Whether calls are answered in the older form."""
        return bool(self.functions)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with a chunk of its own for the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def asked(self, *, temperature: float, top_p: float, tools: list[Tool]) -> CompletionRequest:
        """The request, with the dialect's temperature and `top_p`, and those of the tools that it knows."""
        choice = self._choice(tools)
        json_schema, regex = self.form(self.response_format.to_schema() if self.response_format else None)
        return CompletionRequest(
            model=self.model,
            messages=turns(self.messages),
            tools=choice.tools,
            must_call=choice.must_call,
            parallel_tool_calls=self.parallel_tool_calls is not False and not self.calls_functions,
            json_schema=json_schema,
            regex=regex,
            sampling=self.with_extras(
                Sampling(
                    temperature=temperature,
                    top_p=top_p,
                    seed=self.seed,
                    max_tokens=self.max_completion_tokens or self.max_tokens,
                    stop=stops(self.stop),
                    frequency_penalty=self.frequency_penalty or 0.0,
                    presence_penalty=self.presence_penalty or 0.0,
                    logit_bias=self.logit_bias or {},
                    logprobs=self._likeliest(),
                )
            ),
            n=self.answers,
            is_whole=not self.stream,
        )

    def _choice(self, tools: list[Tool]) -> Choice:
        if not self.functions:
            return chosen(offered(functions_of(tools), "tools[{}].function"), self.tool_choice, "tool_choice")
        if tools:
            raise InvalidParameter("functions", "cannot be offered beside tools, which have taken their place")
        asked = self.function_call
        if isinstance(asked, FunctionName):
            asked = NamedTool(function=asked)
        if asked == "required":
            raise InvalidParameter("function_call", "must be none, auto, or an object that names a function")
        return chosen(offered(self.functions, "functions[{}]"), asked, "function_call")

    def _likeliest(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InvalidParameter("top_logprobs", "is for requests with logprobs set to true")
        return None


def stops(asked: str | list[str] | None) -> list[str]:
    return [text for text in ([asked] if isinstance(asked, str) else asked or []) if text]


def refuse(wanted: dict[str, bool]) -> None:
    """Raises NotOffered for the first field that is wanted: an answer that ignores it would be a wrong answer."""
    for name, is_wanted in wanted.items():
        if is_wanted:
            raise NotOffered(f"{name} is not offered by this version.", param=name)
