"""ReplicaSpec: one running server process for a base model, as one frozen value."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ReplicaSpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    replica: str = Field(description="Id of the replica.")
    base_model: str
    weights: str = Field(description="Storage key of the folder with its weights and tokenizer.")
    weights_sha256: str
    backend: str = "builtin"
    options: dict[str, Any] = Field(default_factory=dict, description="Of the backend, which says what they may be.")
    precision: Literal["bf16", "fp16", "fp32"]
    threads: int = Field(ge=1)
    adapters: int = Field(ge=1, description="Adapters kept on the device; the coldest goes first.")
    socket: str = Field(description="Path of the Unix socket on which it listens.")
