"""A chat as OpenAI's clients ask for it."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from luthier.api.shapes.wire import chat
from luthier.api.shapes.wire.chat import refuse
from luthier.control.inference.service import CompletionRequest


class ChatRequest(chat.ChatRequest):
    """Fields of OpenAI's that change nothing here (user, metadata, store, service_tier ...) are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "smollm2-135m-instruct",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is the capital of France?"},
                ],
                "temperature": 0.7,
                "max_tokens": 64,
            }
        }
    )

    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: dict[str, Any] | None = None

    def to_request(self) -> CompletionRequest:
        refuse(
            {
                "modalities": self.modalities not in (None, [], ["text"]),
                "audio": bool(self.audio),
                "web_search_options": self.web_search_options is not None,
            }
        )
        return self.asked(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            tools=self.tools or [],
        )
