"""A chat as Zhipu's clients ask for it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from luthier.api.shapes.wire import chat
from luthier.api.shapes.wire.tools import Tool
from luthier.api.tool_names import MOST_TOOLS
from luthier.control.inference.service import CompletionRequest


class ZhipuTool(Tool):
    """A function, or one of the services of Zhipu's own, which only what is switched off can be here."""

    web_search: dict[str, Any] | None = None
    retrieval: dict[str, Any] | None = None

    @property
    def is_off(self) -> bool:
        """Whether a caller says that a service is not to be used."""
        said = {"web_search": self.web_search, "retrieval": self.retrieval}.get(self.type)
        return said is not None and said.get("enable") is False


class ChatRequest(chat.ChatRequest):
    """Fields of Zhipu's that change nothing here (user_id, meta, thinking, tool_stream ...) are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "smollm2-135m-instruct",
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "temperature": 0.7,
                "request_id": "mine-1",
            }
        }
    )

    tools: Annotated[list[ZhipuTool], Field(max_length=MOST_TOOLS)] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    request_id: Annotated[str, Field(max_length=256)] | None = None
    do_sample: bool | None = Field(
        default=None, description="false: the likeliest token every time, whatever temperature and top_p say."
    )

    def to_request(self) -> CompletionRequest:
        is_greedy = self.do_sample is False
        return self.asked(
            temperature=0.0 if is_greedy else 1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if is_greedy or self.top_p is None else self.top_p,
            tools=[tool for tool in self.tools or [] if not tool.is_off],
        )
