"""What passes between control and replica: newline-delimited JSON over a Unix socket or TCP, one object a line.

A connection carries one call: the caller sends one Call and reads Answers until a final one (Finish, Health, Fault).
Closing the connection cancels the call. Over TCP the caller first sends a line with the key of that replica's start; one
who does not know it is told nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

LONGEST_LINE = 32 * 1024 * 1024  # bytes


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterRef(Wire):
    """An adapter by its id, which is never reused for other bytes. `key` is the storage folder of its PEFT files.

    `identity` is that of its bytes, its tensors and the base weights; None for one of before there was one.
    `renderer_sha256` is the fingerprint of the renderer it was trained with; a replica with another one refuses it.
    """

    id: str
    key: str
    sha256: str
    identity: str | None = None
    renderer_sha256: str | None = None


class CalledTool(Wire):
    """A function that an assistant's turn calls. `arguments` is JSON as it was written."""

    id: str
    name: str
    arguments: str


class OfferedTool(Wire):
    """A function that may be called; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class Turn(Wire):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[CalledTool] = Field(default_factory=list, description="An assistant's.")
    tool_call_id: str | None = Field(default=None, description="Which call a tool's turn answers.")


class Sampling(Wire):
    """How tokens are chosen. Temperature 0 is greedy; with a seed the same request gives the same text."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1, description="None: all tokens.")
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="Leaves out what has less than this share of the likeliest one's chance."
    )
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1, description="None: as many as the model's context holds.")
    stop: list[str] = Field(default_factory=list)
    stop_tokens: list[int] = Field(default_factory=list, description="Token ids that end the answer and are not shown.")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=10, description="Divides the positive logits of tokens seen in prompt or answer (CTRL)."
    )
    logit_bias: dict[int, float] = Field(default_factory=dict, description="Added to the logits of these token ids.")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Tell every token's log-probability, and those of so many likeliest."
    )


class GenerateRequest(Wire):
    op: Literal["generate"] = "generate"
    adapter: AdapterRef | None = Field(default=None, description="None: the base model itself.")
    messages: list[Turn] = Field(default_factory=list)
    prompt: str | list[int] | None = Field(
        default=None, description="A plain text, or its tokens, that the answer continues, in place of messages."
    )
    tools: list[OfferedTool] = Field(default_factory=list)
    must_call: list[str] | None = Field(
        default=None, description="The answer must call one of these tools; None: it may call any, or none."
    )
    parallel_tool_calls: bool = True
    json_schema: dict[str, Any] | None = Field(
        default=None, description="The answer is JSON of this schema; {} is any JSON object."
    )
    regex: str | None = Field(
        default=None, description="The whole answer matches it; not beside json_schema. Rust's syntax, no look-around."
    )
    sampling: Sampling = Sampling()
    scope: str = Field(default="", description="Whose it is: cached work is shared within a scope alone.")


class HealthRequest(Wire):
    op: Literal["health"] = "health"


class Likelihood(Wire):
    """A token, its natural log-probability before temperature, and its bytes (half a character, perhaps)."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLikelihood(Likelihood):
    """Of a token that was chosen; `likeliest` are those that could have been, the likeliest first."""

    likeliest: list[Likelihood] = Field(default_factory=list)


class TokenChunk(Wire):
    """More of the answer: text, never half a character or a part of a stop string; or whole tool calls."""

    type: Literal["chunk"] = "chunk"
    text: str = ""
    tool_calls: list[CalledTool] = Field(default_factory=list)
    logprobs: list[TokenLikelihood] = Field(
        default_factory=list,
        description="Where they were asked for: of the tokens that became certain with this chunk.",
    )


class Finish(Wire):
    type: Literal["finish"] = "finish"
    reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(default=0, description="Of the prompt: those that were known from an earlier request.")


class Health(Wire):
    """The replica answers: a real token was generated before it said so for the first time."""

    type: Literal["health"] = "health"
    replica: str
    base_model: str
    weights_sha256: str | None = Field(default=None, description="Of the weights that it has opened; None: not told.")
    renderer_sha256: str
    adapters: list[str]
    active: int = Field(description="Requests being answered now.")


class Fault(Wire):
    """The call failed; `code` is that of the error tree."""

    type: Literal["fault"] = "fault"
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = Field(default=None, description="Seconds until it is worth another try.")


Call = Annotated[GenerateRequest | HealthRequest, Field(discriminator="op")]
Answer = Annotated[TokenChunk | Finish | Health | Fault, Field(discriminator="type")]

calls: TypeAdapter[Call] = TypeAdapter(Call)
answers: TypeAdapter[Answer] = TypeAdapter(Answer)
