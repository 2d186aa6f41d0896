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
    tokenizer: str | None = Field(
        default=None, description="Storage key of the folder with tokenizer and template; None: that of the weights."
    )
    backend: str = "builtin"
    options: dict[str, Any] = Field(default_factory=dict, description="Of the backend, which says what they may be.")
    precision: Literal["bf16", "fp16", "fp32"]
    threads: int = Field(ge=1)
    adapters: int = Field(ge=1, description="Adapters kept on the device; the coldest goes first.")
    cache_bytes: int | None = Field(
        default=None, ge=1, description="For keys and values; None: 1 GiB on a CPU, most of what is free on a GPU."
    )
    listen: str = Field(
        description="Path of the Unix socket on which it listens, or tcp://HOST:PORT; port 0: a free one."
    )
    grace_seconds: float = Field(
        default=5.0, ge=0, description="For answers that are running when the replica is asked to stop."
    )

    @property
    def vocabulary(self) -> str:
        """Storage key of the folder with tokenizer and template."""
        return self.tokenizer or self.weights
