"""What an answer must look like, held to by llguidance: JSON of a schema, a regex, or calls of certain tools."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from luthier.chat.renderers.base import Renderer
from luthier.core import logs
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.checks import LONGEST_SCHEMAS
from luthier.serving.protocol import GenerateRequest, OfferedTool

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

log = logs.get("guides")

LONGEST_REGEX, MOST_REPEATED = 4_000, 1_000
"""Characters of a regex, and how often a part of it may be demanded: long counts cost time with every token."""

LIMITS = {"max_items_in_row": 10_000, "max_lexer_states": 50_000, "max_grammar_size": 200_000, "verbose_errors": False}
"""What one answer may cost: some milliseconds a token, some dozen megabytes."""

_SIMPLIFY = "Simplify what the answer must look like."
_REMEMBERED = 8  # grammars, as several answers to one request have the same
_BLANKS = "[ \\n\\t]{0,40}"  # where JSON allows any number of them; a model could go on with them for ever


class Guides:
    """Makes the guides of one model's answers. Its methods may be called from any thread."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._known: LLTokenizer | None = None
        self._begun: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()  # one is compiled at a time: a schema may take a whole core for a while

    def prepare(self) -> None:
        """Read the vocabulary now: all threads wait for it, a second if it is large, and nobody's answer is made meanwhile."""
        try:
            with self._lock:
                _ = self._tokenizer
        except Exception as problem:
            log.warning("no answer of this model can be held to a form", problem=str(problem))

    def guide(self, request: GenerateRequest) -> AnswerGuide | None:
        """A guide of the answer's own; None where nothing is prescribed. It takes up to a second.

        Raises InvalidParameter where the schema of the answer (`response_format`), its regex (`structured_outputs`) or the
        schema of a tool (`tools`) cannot be held to, and NotOffered where the model's family writes calls in a way that
        cannot.
        """
        param = "response_format" if request.regex is None else "structured_outputs"
        if request.must_call is not None:
            param = "tools"
            wanted = [tool for tool in request.tools if tool.name in request.must_call]
            start, rules = "calls", self._calls(wanted, several=request.parallel_tool_calls)
        elif request.json_schema is not None or request.regex is not None:
            start, text = "text", _literals(self._renderer.before_text() if request.prompt is None else "", {})
            if request.regex is not None:
                form = _regex("FORM", request.regex, param)
            else:
                form = _json("form", request.json_schema or {"type": "object"}, param)
            rules = [f"text: {text} {form.partition(':')[0]}", form]
            if request.tools:
                start = "text | calls"
                rules += self._calls(request.tools, several=request.parallel_tool_calls)
        else:
            return None
        grammar = "\n".join([f"start: {start}", *rules])
        if len(grammar) > LONGEST_SCHEMAS:
            raise InvalidParameter(param, f"the schemas may be {LONGEST_SCHEMAS:,} characters of JSON, got more")
        with self._lock:
            return AnswerGuide(self._matcher(grammar, param).deep_copy(), param)

    def _calls(self, tools: Sequence[OfferedTool], *, several: bool) -> list[str]:
        between = self._renderer.between_calls
        between = f"<[{between}]>" if isinstance(between, int) else _literals(between, {})
        rules = [f"calls: call ({between} call)*" if several else "calls: call"]
        rules.append("call: " + " | ".join(f"call_{place}" for place in range(len(tools))))
        for place, tool in enumerate(tools):
            around = self._renderer.around_call(tool.name)
            if around is None:
                raise NotOffered(
                    f"A call of {tool.name!r} cannot be demanded: of this model's way of writing calls only reading is offered.",
                    param="tool_choice",
                    hint="Let the model choose (auto).",
                )
            before, behind = (_literals(text, self._renderer.tokenizer.words) for text in around)
            rules.append(f"call_{place}: {before} arguments_{place} {behind}")
            rules.append(_json(f"arguments_{place}", {"type": "object"} | (tool.parameters or {}), "tools"))
        return rules

    def _matcher(self, grammar: str, param: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        if (found := self._begun.get(grammar)) is not None:
            self._begun.move_to_end(grammar)
            return found
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        tried = matcher.deep_copy()
        if not tried.is_error():
            tried.compute_bitmask()  # some limits are met only now
        if tried.is_error() or tried.is_stopped():
            raise InvalidParameter(param, f"cannot be held to: {_reason(tried)}", hint=_SIMPLIFY)
        self._begun[grammar] = matcher
        if len(self._begun) > _REMEMBERED:
            self._begun.popitem(last=False)
        return matcher

    @property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if self._known is None:
            self._known = LLTokenizer(self._renderer.tokenizer.as_json(), eos_token=sorted(self._renderer.stops))
        return self._known


class AnswerGuide:
    """Where one answer stands in its grammar. Special tokens are never text, and a stop comes only where all is said."""

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher = matcher
        self._param = param

    def allowed(self) -> bytes:
        """Raises InvalidParameter where the grammar has become too much to follow."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not mask.strip(b"\0"):
            raise InvalidParameter(
                self._param, f"cannot be held to any further: {_reason(self._matcher)}", hint=_SIMPLIFY
            )
        return mask

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)


def _json(name: str, schema: Mapping[str, Any], param: str) -> str:
    try:
        return f"{name}: %json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": _BLANKS}})
    except RecursionError as deep:
        raise InvalidParameter(param, "the schema is nested too deeply") from deep


def _regex(name: str, regex: str, param: str) -> str:
    from llguidance import regex_to_lark

    if len(regex) > LONGEST_REGEX:
        raise InvalidParameter(param, f"a regex may be {LONGEST_REGEX:,} characters long, got {len(regex):,}")
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise InvalidParameter(param, "a regex ends within an escape")  # the library would read it without
    counts = [int(count) for counts in re.findall(r"\{(\d*)(?:,(\d*))?\}", regex) for count in counts if count]
    if (most := max(counts, default=0)) > MOST_REPEATED:
        raise InvalidParameter(param, f"a regex may repeat a part {MOST_REPEATED:,} times, got {most:,}")
    return f"{name}: /{regex_to_lark(regex, use_ascii='d')}/"


def _literals(text: str, words: Mapping[str, int]) -> str:
    """A text as a grammar says it. Markers that are single tokens are said by that token, as the model has learned."""
    longest_first = sorted(words, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if words else [text]
    return " ".join(f"<[{words[part]}]>" if part in words else json.dumps(part) for part in parts if part)


def _reason(matcher: LLMatcher) -> str:
    """What the library says, without the grammar that it quotes."""
    lines = matcher.get_error().split("\n")
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])  # of a regex
    if not said or said.startswith("NoExtension"):
        return "no answer can satisfy it"
    return re.sub(r"^at \d+\(\d+\): ", "", said)[:300]
