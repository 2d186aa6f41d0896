"""tokenizer.json and a template in a sandbox, without transformers: used by control, trainer and replica alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from luthier.chat.calls import PROBE, arguments_of
from luthier.chat.messages import Message, Tool, ToolCall
from luthier.chat.sandbox import Template
from luthier.core.errors import InvalidRequest


@dataclass(frozen=True)
class Shaped:
    """Messages and tools as a template takes them: made once, written as often as its prefixes are asked for."""

    messages: list[dict[str, Any]]
    sizes: list[int]
    """Characters of each message."""
    tools: list[dict[str, Any]]
    tools_size: int


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
"""What of a model's folder is read here."""


class Tokenizer:
    """The tokenizer of one model, read from the folder of its weights.

    Raises InvalidRequest when the folder has no `tokenizer.json` that can be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise InvalidRequest(f"{folder} has no tokenizer.json.", hint="Save the model with its fast tokenizer.")
        try:
            self._fast, self._plain = (FastTokenizer.from_file(str(folder / "tokenizer.json")) for _ in range(2))
        except Exception as broken:  # the library has no class of its own
            raise InvalidRequest(f"{folder}/tokenizer.json cannot be read: {broken}") from broken
        self._plain.encode_special_tokens = True  # special tokens inside a text are plain text here
        for one in (self._fast, self._plain):  # files as published often carry a length limit and padding
            one.no_truncation()
            one.no_padding()
        self._config = _json(folder / "tokenizer_config.json")
        self._generation = _json(folder / "generation_config.json") or _json(folder / "config.json")
        template = folder / "chat_template.jinja"
        self._source = template.read_text() if template.is_file() else self._config.get("chat_template")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens count as special: for templates and markers of our own."""
        return _ids(self._fast, text)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that somebody wrote: `<|im_end|>` in it is nine characters, not the end of a turn."""
        return _ids(self._plain, text)

    def encode_plain_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """What `encode_plain` gives for each of many texts, on all cores."""
        return [found.ids for found in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_document(self, text: str) -> list[int]:
        """What `encode_plain` gives, behind the token that begins a document where the model wants one."""
        tokens = _ids(self._plain, text, special=True)
        return tokens[:-1] if tokens and tokens[-1] in self.ends else tokens  # some would end it, too

    def parts(self, text: str) -> list[tuple[int, int, int | None]]:
        """A text as `encode` cuts it: where each part begins and ends, and its id if it is a special token."""
        parts: list[tuple[int, int, int | None]] = []
        done, eats = 0, False  # some special tokens eat the blanks beside them

        def between(start: int, end: int, *, eats_before: bool) -> None:
            if eats:
                start = end - len(text[start:end].lstrip())
            if eats_before:
                end = start + len(text[start:end].rstrip())
            if start < end:
                parts.append((start, end, None))

        for found in self._pattern.finditer(text):
            number, token = self._specials[found.group()]
            between(done, found.start(), eats_before=token.lstrip)
            parts.append((found.start(), found.end(), number))
            done, eats = found.end(), token.rstrip
        between(done, len(text), eats_before=False)
        return parts

    def split(self, text: str) -> list[int | str]:
        """Ids of the special tokens of a text, and the plain texts between them."""
        return [text[start:end] if token is None else token for start, end, token in self.parts(text)]

    def joined(self, pieces: Sequence[int | str]) -> list[int]:
        """The tokens of what `split` gave."""
        tokens: list[int] = []
        for piece in pieces:
            tokens += [piece] if isinstance(piece, int) else self.encode_plain(piece)
        return tokens

    def may_hold_special(self, text: str) -> bool:
        """Whether a special token stands in a text, or could come to stand at its edge; true in doubt."""
        return bool(self._pattern.search(text)) or text.endswith(self._edges[0]) or text.startswith(self._edges[1])

    @cached_property
    def special_edges(self) -> frozenset[str]:
        """The letters with which special tokens begin and end."""
        return frozenset(letter for name in self._specials for letter in (name[0], name[-1]))

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, without special tokens unless `special`."""
        return self._fast.decode(tokens, skip_special_tokens=not special)

    def id_of(self, token: str) -> int | None:
        return self._fast.token_to_id(token)

    def name_of(self, number: int) -> str:
        """A token as it stands in the vocabulary."""
        return self._fast.id_to_token(number) or ""

    def special_id(self, token: str) -> int | None:
        """The id of a special token; None also where the tokenizer takes it for a word, which a text could forge."""
        return self._specials[token][0] if token in self._specials else None

    def knows(self, number: int) -> bool:
        """Whether a number is the id of a token."""
        return 0 <= number < 2**32 and self._fast.id_to_token(number) is not None

    @cached_property
    def words(self) -> dict[str, int]:
        """Markers that are single tokens and yet plain text, such as `<tool_call>` of some families."""
        known = self._fast.get_added_tokens_decoder().items()
        return {token.content: number for number, token in known if token.content and not token.special}

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether its vocabulary writes bytes as letters."""
        return b'"ByteLevel"' in self._fast.decoder.__getstate__()

    def as_json(self) -> str:
        """All of it as a `tokenizer.json`."""
        return self._fast.to_str()

    @property
    def size(self) -> int:
        return self._fast.get_vocab_size()

    @property
    def has_template(self) -> bool:
        return isinstance(self._source, str)

    @property
    def end(self) -> int | None:
        """The id that ends a document: the tokenizer's own end token, else the lowest of `ends`."""
        if isinstance(name := self._special("eos_token"), str) and (token := self.id_of(name)) is not None:
            return token
        return min(self.ends, default=None)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end a generation by the model's own configuration."""
        found: set[int] = set()
        stated = self._generation.get("eos_token_id")
        found.update(stated if isinstance(stated, list) else [stated] if isinstance(stated, int) else [])
        if isinstance(name := self._special("eos_token"), str) and (token := self.id_of(name)) is not None:
            found.add(token)
        return frozenset(found)

    def template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        generation_prompt: bool,
    ) -> str:
        """The text that the model's own template gives. Raises InvalidRequest with the template's own complaint."""
        return self.written(self.shaped(messages, tools), generation_prompt=generation_prompt)

    def shaped(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), masked: Callable[[str], str] = str
    ) -> Shaped:
        """What the template takes; `masked` is applied to every text that somebody wrote.

        Raises InvalidRequest where the template wants a call's arguments as an object and they are none.
        """
        return _shaped(messages, tools, masked, as_object=self._object_arguments)

    def written(self, shaped: Shaped, turns: int | None = None, *, generation_prompt: bool) -> str:
        """What the template writes of the first `turns` messages, of all when absent.

        Raises InvalidRequest with the template's own complaint.
        """
        return self._compiled.render(
            given=sum(shaped.sizes[:turns]) + shaped.tools_size,
            messages=shaped.messages[:turns],
            tools=shaped.tools or None,
            add_generation_prompt=generation_prompt,
            **{name: self._special(name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
        )

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the model's template writes the tools it is given."""
        asked = [Message("user", "x")]
        try:
            with_tools = self.template(asked, tools=[PROBE], generation_prompt=True)
            return with_tools != self.template(asked, generation_prompt=True)
        except InvalidRequest:
            return False

    @cached_property
    def _object_arguments(self) -> bool:
        """Whether the template wants a call's arguments as an object; the other form it would encode twice, or refuse.

        Told from what it makes of both: the form is right whose JSON stands in the rendering as it is.
        """

        def quality(as_object: bool) -> int:
            call = ToolCall("call00000", PROBE.name, '{"city": "Paris"}')
            turns = [Message("user", "x"), Message("assistant", "", tool_calls=(call,))]
            turns.append(Message("tool", "y", tool_call_id=call.id))
            try:
                text = self.written(_shaped(turns, [PROBE], str, as_object=as_object), generation_prompt=False)
            except InvalidRequest:
                return 0
            return 2 if '"city"' in text and '\\"city' not in text else 1

        return quality(True) >= quality(False)

    @cached_property
    def _compiled(self) -> Template:
        if not isinstance(self._source, str):
            raise InvalidRequest("The model ships no chat template.", hint="Use an instruction-tuned model.")
        return Template(self._source)

    @cached_property
    def _specials(self) -> dict[str, tuple[int, AddedToken]]:
        known = self._fast.get_added_tokens_decoder().items()
        return {token.content: (number, token) for number, token in known if token.special and token.content}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile("|".join(re.escape(name) for name in longest_first) or r"(?!)")

    @cached_property
    def _edges(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Every beginning and every end of a special token."""
        beginnings = {name[:length] for name in self._specials for length in range(1, len(name))}
        ends = {name[length:] for name in self._specials for length in range(1, len(name))}
        return tuple(beginnings), tuple(ends)

    def _special(self, name: str) -> str | None:
        value = self._config.get(name)
        return value.get("content") if isinstance(value, dict) else value


def _ids(tokenizer: FastTokenizer, text: str, *, special: bool = False) -> list[int]:
    """Its token ids. A batch of one: `encode` would keep every other thread of the process waiting meanwhile."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _shaped(
    messages: Sequence[Message], tools: Sequence[Tool], masked: Callable[[str], str], *, as_object: bool
) -> Shaped:
    return Shaped(
        messages=[_message(message, masked, as_object=as_object) for message in messages],
        sizes=[len(m.text) + sum(len(call.arguments) for call in m.tool_calls) for m in messages],
        tools=[_definition(tool, masked) for tool in tools],
        tools_size=sum(len(_to_text(tool)) for tool in tools),
    )


def _message(message: Message, masked: Callable[[str], str], *, as_object: bool) -> dict[str, Any]:
    """As OpenAI writes a message, which is what templates expect."""
    shaped: dict[str, Any] = {"role": message.role, "content": masked(message.text)}
    if message.tool_calls:
        shaped["tool_calls"] = [
            {
                "id": masked(call.id),
                "type": "function",
                "function": {
                    "name": masked(call.name),
                    "arguments": _mapped(arguments_of(call), masked) if as_object else masked(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shaped["tool_call_id"] = masked(message.tool_call_id)
    return shaped


def _definition(tool: Tool, masked: Callable[[str], str]) -> dict[str, Any]:
    function = {name: _mapped(value, masked) for name, value in tool.definition["function"].items()}
    return {"type": "function", "function": function}


def _mapped(value: Any, masked: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked(key): _mapped(one, masked) for key, one in value.items()}
    return [_mapped(one, masked) for one in value] if isinstance(value, list | tuple) else value


def _to_text(tool: Tool) -> str:
    return json.dumps(tool.definition, ensure_ascii=False)
