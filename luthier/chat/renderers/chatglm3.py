"""ChatGLM3: `[gMASK]sop`, then `<|role|>`, metadata and a line feed, the text; the next role's marker ends a turn."""

from __future__ import annotations

import ast
import json
from keyword import iskeyword
from typing import ClassVar

from luthier.chat import calls
from luthier.chat.messages import ToolCall
from luthier.chat.renderers.glm4 import Glm4
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest

_FENCE, _END_FENCE = "```python\n", "\n```"


class ChatGlm3(Glm4):
    """As GLM-4, but the line feed and the text are encoded apart, for its tokenizer puts a blank before every text; and a
    call's arguments stand in a fence of Python, as keywords of `tool_call`.

    Recognised by its special tokens alone: the family ships its template as code, which is never run.
    """

    START: ClassVar[tuple[str, ...]] = ("[gMASK]", "sop")
    END: ClassVar[str] = "</s>"
    BLANK: ClassVar[str] = " "
    PREAMBLE: ClassVar[str] = (
        "You can call functions. A call is the function's name alone in the first line of the answer, and below it a "
        "fence of Python that calls tool_call with the arguments as keywords. The functions, one a line:\n"
    )

    @classmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        try:
            cls(tokenizer)
        except InvalidRequest:
            return False
        return tokenizer.id_of("<sop>") is None

    def turn(self, metadata: str, content: str) -> list[str]:
        return [f"{metadata}\n", content]

    def call(self, call: ToolCall) -> str:
        keywords = [_keyword(name, value) for name, value in calls.arguments_of(call).items()]
        written = ast.Call(func=ast.Name("tool_call"), args=[], keywords=keywords)
        return _FENCE + ast.unparse(written) + _END_FENCE

    def arguments(self, content: str) -> str | None:
        code = content.strip().removeprefix(_FENCE.strip()).removesuffix("```").strip()
        if code.startswith("{"):
            return super().arguments(content)  # as GLM-4 says it
        try:
            written = ast.parse(code, mode="eval").body  # read, never run
            if not isinstance(written, ast.Call) or ast.unparse(written.func) != "tool_call" or written.args:
                return None
            found: dict[str, object] = {}
            for keyword in written.keywords:
                value = ast.literal_eval(keyword.value)
                found |= value if keyword.arg is None else {keyword.arg: value}
            return json.dumps(found, ensure_ascii=False)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None

    def may_begin_arguments(self, content: str) -> bool:
        return True  # Python says the same in many ways

    def around_call(self, name: str) -> tuple[str, str] | None:
        return None  # Python, not JSON

    def _split(self, tokens: list[int]) -> tuple[str, str]:
        for place, token in enumerate(tokens, start=1):
            if "\n" in self.tokenizer.decode([token]):
                metadata, _, begun = self.tokenizer.decode(tokens[:place]).partition("\n")
                return metadata, begun + self.tokenizer.decode(tokens[place:])
        return "", self.tokenizer.decode(tokens)


def _keyword(name: str, value: object) -> ast.keyword:
    literal = ast.parse(repr(value), mode="eval").body
    if name.isidentifier() and name.isascii() and not iskeyword(name):
        return ast.keyword(arg=name, value=literal)
    return ast.keyword(arg=None, value=ast.Dict(keys=[ast.Constant(name)], values=[literal]))
