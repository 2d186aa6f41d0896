"""Chat rows: one `{"messages": [{"role": ..., "content": ...}, ...]}` a line, as OpenAI's fine-tuning takes them."""

from __future__ import annotations

from luthier.formats._chat import ChatRows, has_functions, is_chat
from luthier.formats._quick_chat import QuickChat
from luthier.formats._turns import Rules, image_parts
from luthier.formats.base import Quick, Row
from luthier.records.foreign import has_retired_functions


class Messages(ChatRows):
    kind = "chat"
    describes = '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
    rules = Rules()

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return (
            is_chat(row)
            and not has_functions(row)
            and not has_retired_functions(row)
            and not image_parts(row["messages"])
        )

    @classmethod
    def quick(cls) -> Quick:
        return QuickChat()
