"""Whatever template the tokenizer ships; where an assistant's turn begins and ends is taken from renderings of prefixes."""

from __future__ import annotations

from luthier.chat.messages import Conversation
from luthier.chat.renderers.base import PROBES, Rendered, Renderer
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest


class Native(Renderer):
    @classmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        """True where the spans of the probes can be proved: every shorter rendering begins the longer one."""
        if not tokenizer.has_template or not tokenizer.ends:
            return False
        try:
            return all(cls(tokenizer).example(probe).trained > 0 for probe in PROBES)
        except InvalidRequest:
            return False

    @property
    def stops(self) -> frozenset[int]:
        return self.tokenizer.ends

    def prompt(self, conversation: Conversation) -> list[int]:
        return self._render(conversation, len(conversation.messages), generation_prompt=True)

    def example(self, conversation: Conversation) -> Rendered:
        """Raises InvalidRequest when the template rewrites earlier turns, so that no span can be proved."""
        tokens: list[int] = []
        weights: list[float] = []
        for place, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            before = self._render(conversation, place, generation_prompt=True)
            after = self._render(conversation, place + 1, generation_prompt=False)
            if after[: len(before)] != before or before[: len(tokens)] != tokens:
                raise InvalidRequest("The model's template rewrites earlier turns; what it trains cannot be proved.")
            stop = next((n for n in range(len(before), len(after)) if after[n] in self.stops), None)
            if stop is None:
                raise InvalidRequest("The model's template does not end an answer with a stop token.")
            weights += [0.0] * (len(before) - len(tokens))
            weights += [1.0 if message.trained else 0.0] * (stop + 1 - len(before))
            weights += [0.0] * (len(after) - stop - 1)
            tokens = after
        whole = self._render(conversation, len(conversation.messages), generation_prompt=False)
        return Rendered(whole, weights + [0.0] * (len(whole) - len(weights)))

    def _render(self, conversation: Conversation, turns: int, *, generation_prompt: bool) -> list[int]:
        messages = list(conversation.messages[:turns])
        return self.tokenizer.encode(self.tokenizer.template(messages, generation_prompt=generation_prompt))
