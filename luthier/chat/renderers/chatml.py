"""ChatML: `<|im_start|>role`, a line feed, the text, `<|im_end|>`, a line feed. SmolLM2, Qwen2.5 and many others."""

from __future__ import annotations

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import PROBES, Rendered, Renderer
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest

START, END = "<|im_start|>", "<|im_end|>"


class ChatML(Renderer):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._start = _single(tokenizer, START)
        self._end = _single(tokenizer, END)
        self._line_feed = tokenizer.encode("\n")
        self._system = _default_system(tokenizer)

    @classmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        """True where the markers are single tokens and the model's template writes the probes as we do."""
        if not tokenizer.has_template or tokenizer.id_of(START) is None or tokenizer.id_of(END) is None:
            return False
        try:
            ours = cls(tokenizer)
            return all(
                ours.prompt(asked) == tokenizer.encode(tokenizer.template(list(asked.messages), generation_prompt=True))
                for asked in (Conversation(probe.messages[:-1]) for probe in PROBES)
            )
        except InvalidRequest:
            return False

    @property
    def stops(self) -> frozenset[int]:
        return frozenset({self._end}) | self.tokenizer.ends

    def prompt(self, conversation: Conversation) -> list[int]:
        return [*self.example(conversation).tokens, self._start, *self._opening("assistant")]

    def example(self, conversation: Conversation) -> Rendered:
        tokens: list[int] = []
        weights: list[float] = []

        def add(ids: list[int], weight: float = 0.0) -> None:
            tokens.extend(ids)
            weights.extend([weight] * len(ids))

        for message in self._with_system(conversation):
            add([self._start])
            if message.role == "assistant":
                weight = 1.0 if message.trained else 0.0
                add(self._opening("assistant"))  # apart from the answer, as the model meets it when it generates
                add(self.tokenizer.encode_plain(message.content), weight)
                add([self._end], weight)
            else:
                add(self.tokenizer.encode_plain(f"{message.role}\n{message.content}"))
                add([self._end])
            add(self._line_feed)
        return Rendered(tokens, weights)

    def _opening(self, role: str) -> list[int]:
        return self.tokenizer.encode_plain(f"{role}\n")

    def _with_system(self, conversation: Conversation) -> tuple[Message, ...]:
        if self._system is None or (conversation.messages and conversation.messages[0].role == "system"):
            return conversation.messages
        return (Message("system", self._system), *conversation.messages)


def _single(tokenizer: Tokenizer, marker: str) -> int:
    token = tokenizer.id_of(marker)
    if token is None:
        raise InvalidRequest(f"The tokenizer has no token {marker}.")
    return token


def _default_system(tokenizer: Tokenizer) -> str | None:
    """What the model's template says as the system when nobody else does; None where it says nothing."""
    text = tokenizer.template([Message("user", "x")], generation_prompt=False)
    opening = f"{START}system\n"
    return text[len(opening) : text.index(END)] if text.startswith(opening) else None
