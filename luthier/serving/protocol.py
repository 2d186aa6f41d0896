"""What passes between control and replica: newline-delimited JSON over a Unix socket, one object a line.

A connection carries one call: the caller sends one Call and reads Answers until a final one (Finish, Health, Fault).
Closing the connection cancels the call.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

LONGEST_LINE = 32 * 1024 * 1024  # bytes


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterRef(Wire):
    """An adapter by its id, which is never reused for other bytes. `key` is the storage folder of its PEFT files.

    `renderer_sha256` is the fingerprint of the renderer it was trained with; a replica with another one refuses it.
    """

    id: str
    key: str
    sha256: str
    renderer_sha256: str | None = None


class Turn(Wire):
    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Wire):
    """How tokens are chosen. Temperature 0 is greedy; with a seed the same request gives the same text."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1, description="None: as many as the model's context holds.")
    stop: list[str] = Field(default_factory=list)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)


class GenerateRequest(Wire):
    op: Literal["generate"] = "generate"
    adapter: AdapterRef | None = Field(default=None, description="None: the base model itself.")
    messages: list[Turn]
    sampling: Sampling = Sampling()


class HealthRequest(Wire):
    op: Literal["health"] = "health"


class TokenChunk(Wire):
    """More text of the answer; never half a character, never a part of a stop string."""

    type: Literal["chunk"] = "chunk"
    text: str


class Finish(Wire):
    type: Literal["finish"] = "finish"
    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Health(Wire):
    """The replica answers: a real token was generated before it said so for the first time."""

    type: Literal["health"] = "health"
    replica: str
    base_model: str
    renderer_sha256: str
    adapters: list[str]
    active: int = Field(description="Requests being answered now.")


class Fault(Wire):
    """The call failed; `code` is that of the error tree."""

    type: Literal["fault"] = "fault"
    code: str
    message: str
    param: str | None = None


Call = Annotated[GenerateRequest | HealthRequest, Field(discriminator="op")]
Answer = Annotated[TokenChunk | Finish | Health | Fault, Field(discriminator="type")]

calls: TypeAdapter[Call] = TypeAdapter(Call)
answers: TypeAdapter[Answer] = TypeAdapter(Answer)
