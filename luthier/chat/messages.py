"""What people and models say to each other, free of any dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn. `trained` is false for an answer that a training example shows but must not teach."""

    role: Role
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
