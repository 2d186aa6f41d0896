"""Special tokens inside what somebody wrote, kept plain while a template runs over them."""

from __future__ import annotations

import json
from functools import cached_property

from luthier.chat.messages import Conversation, Message
from luthier.chat.tokenizer import Shaped, Tokenizer
from luthier.core.errors import InvalidRequest

_STAND_INS = range(0xF0000, 0xFFFFE)  # private use: characters that mean nothing to anybody


class Guard:
    """One conversation, rendered by the model's template, and its renderings split at the template's special tokens.

    Where a text of the conversation holds a special token, or a part of one at its edge, the letters with which special
    tokens begin and end are exchanged in all texts before the template runs, and put back in the plain pieces of what
    it wrote: only what the template itself wrote is special.
    """

    def __init__(self, tokenizer: Tokenizer, conversation: Conversation) -> None:
        self._tokenizer = tokenizer
        self._conversation = conversation
        texts = [text for message in conversation.messages for text in _texts(message)]
        texts += [json.dumps(tool.definition, ensure_ascii=False) for tool in conversation.tools]
        self.is_needed = any(tokenizer.may_hold_special(text) for text in texts)
        self._masks: dict[int, str] = {}
        if self.is_needed:
            taken = set("".join(texts))
            free = (chr(sign) for sign in _STAND_INS if chr(sign) not in taken)
            self._masks = {ord(edge): next(free) for edge in sorted(tokenizer.special_edges)}

    def render(self, turns: int | None = None, *, generation_prompt: bool = False) -> str:
        """What the template writes of the first `turns` messages, of all when absent, with stand-ins where needed."""
        return self._tokenizer.written(self._shaped, turns, generation_prompt=generation_prompt)

    def split(self, rendering: str) -> list[int | str]:
        """Ids of the special tokens that the template wrote, and the texts between them as they truly are."""
        return [part if isinstance(part, int) else self.restored(part) for part in self._tokenizer.split(rendering)]

    def restored(self, text: str) -> str:
        """A plain part of a rendering as it truly is, without stand-ins."""
        return text.translate(self._originals) if self.is_needed else text

    def prove(self, rendering: str) -> None:
        """Check that splitting gives the tokens of encoding as a whole, with harmless letters where stand-ins are.

        Raises InvalidRequest where it does not.
        """
        if not self.is_needed:
            return
        harmless = rendering.translate({ord(mask): "a" for mask in self._masks.values()})
        if self._tokenizer.joined(self._tokenizer.split(harmless)) != self._tokenizer.encode(harmless):
            raise InvalidRequest(
                "The conversation has special tokens of the model inside a text, and this model's tokenizer gives no "
                "way to keep them plain.",
                hint="Take them out of the text.",
            )

    @cached_property
    def _shaped(self) -> Shaped:
        masked = (lambda text: text.translate(self._masks)) if self.is_needed else str
        return self._tokenizer.shaped(self._conversation.messages, self._conversation.tools, masked)

    @cached_property
    def _originals(self) -> dict[int, int]:
        return {ord(mask): edge for edge, mask in self._masks.items()}


def _texts(message: Message) -> list[str]:
    calls = [text for call in message.tool_calls for text in (call.id, call.name, call.arguments)]
    return [message.text, message.tool_call_id or "", *calls]
