"""tokenizer.json and a template in a sandbox, without transformers: used by control, trainer and replica alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from luthier.chat.messages import Message
from luthier.core.errors import InvalidRequest


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
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that somebody wrote: `<|im_end|>` in it is nine characters, not the end of a turn."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        """The text of token ids, without special tokens unless `special`."""
        return self._fast.decode(tokens, skip_special_tokens=not special)

    def id_of(self, token: str) -> int | None:
        return self._fast.token_to_id(token)

    @property
    def size(self) -> int:
        return self._fast.get_vocab_size()

    @property
    def has_template(self) -> bool:
        return isinstance(self._source, str)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end a generation by the model's own configuration."""
        found: set[int] = set()
        stated = self._generation.get("eos_token_id")
        found.update(stated if isinstance(stated, list) else [stated] if isinstance(stated, int) else [])
        if isinstance(name := self._special("eos_token"), str) and (token := self.id_of(name)) is not None:
            found.add(token)
        return frozenset(found)

    def template(self, messages: list[Message], *, generation_prompt: bool) -> str:
        """The text that the model's own template gives. Raises InvalidRequest with the template's own complaint."""
        try:
            return self._compiled.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=generation_prompt,
                **{name: self._special(name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as refused:
            raise InvalidRequest(f"The model's chat template refused this conversation: {refused}") from refused

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if not isinstance(self._source, str):
            raise InvalidRequest("The model ships no chat template.", hint="Use an instruction-tuned model.")
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        sandbox.globals["raise_exception"] = _refuse
        sandbox.globals["strftime_now"] = lambda form: datetime.now(UTC).astimezone().strftime(form)
        return sandbox.from_string(self._source)

    def _special(self, name: str) -> str | None:
        value = self._config.get(name)
        return value.get("content") if isinstance(value, dict) else value


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
