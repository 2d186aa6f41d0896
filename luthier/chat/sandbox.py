"""Runs the chat template that a model ships, bounded: it writes text and reaches nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.core.errors import InvalidRequest

LONGEST = 1_000_000  # characters a template may write besides ten times what it was given
MOST_TURNS = 1_000_000  # numbers that all calls of range() in one rendering may give together


_TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The day that every template is told. With the true one a model would be trained on other tokens than it is served with, and
a job that goes on tomorrow on others than today; this one is what Llama's templates say themselves where they are not told."""


class Template:
    """A template in jinja's sandbox.

    Bounded are the text it writes, what its ranges count to, and what `*` and `**` make of a number. That stops
    nonsense, not malice: a template that only computes can still take long and much memory. Templates come from models
    that the operator installed, never from a request.
    """

    def __init__(self, source: str) -> None:
        sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        sandbox.filters["tojson"] = _to_json
        sandbox.globals["raise_exception"] = _refuse
        sandbox.globals["strftime_now"] = _TODAY.strftime
        try:
            self._template = sandbox.from_string(source)
        except (jinja2.TemplateError, RecursionError) as broken:
            raise InvalidRequest(f"The model's chat template cannot be read: {broken}") from broken

    def render(self, *, given: int, **values: Any) -> str:
        """The text that the template writes of values that hold `given` characters.

        Raises InvalidRequest with the template's own complaint, or when it goes beyond its bounds.
        """
        allowed = LONGEST + 10 * given
        written: list[str] = []
        try:
            for piece in self._template.generate(range=_counted_range(), **values):
                written.append(piece)
                allowed -= len(piece)
                if allowed < 0:
                    raise jinja2.TemplateError("it writes without end")
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as refused:
            raise InvalidRequest(f"The model's chat template refused this conversation: {refused}") from refused
        return "".join(written)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if operator == "**" and any(abs(number) > 1000 for number in numbers):
            raise jinja2.TemplateError("a power is too big")
        longest = max((len(value) for value in (left, right) if isinstance(value, str | list | tuple)), default=0)
        if operator == "*" and longest and any(number * longest > LONGEST for number in numbers):
            raise jinja2.TemplateError("a repetition is too big")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}` marks answers for other tools; here its body is written and that is all."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _counted_range() -> Callable[..., range]:
    left = MOST_TURNS

    def counted(*bounds: int) -> range:
        nonlocal left
        numbers = range(*bounds)
        try:
            left -= len(numbers)
        except OverflowError:
            left = -1
        if left < 0:
            raise jinja2.TemplateError("a range is too big")
        return numbers

    return counted


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
