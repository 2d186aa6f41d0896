"""Exactly what will be trained of one row: its text, its tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from luthier.chat.examples import Fitted, Overlength, fitted, learned, sequences
from luthier.chat.messages import ImageGeneration
from luthier.chat.renderers.base import Rendered
from luthier.chat.tokenizer import Tokenizer
from luthier.control.datasets.archives import rows_in
from luthier.control.datasets.counting import billed, bills_text, renderer_in
from luthier.control.datasets.report import Start
from luthier.core.errors import InvalidParameter, InvalidRequest
from luthier.formats.base import Kind, formats, measure, problems_of
from luthier.records.problems import Problem
from luthier.records.reader import Reader, Record
from luthier.records.source import Source

SHOWN = 10_000
"""Tokens of a sequence that are shown at a time."""

_CONTEXT = 64  # tokens before and behind them, without which the text of the outer ones could not be told
_REPLACEMENT = "\ufffd"
_MOST_PENDING = 256  # tokens


class Token(BaseModel):
    id: int
    text: str = Field(description="Empty for a token that ends within a character; the next one then has all of it.")
    trained: bool


class PreviewedSequence(BaseModel):
    """One sequence as the model sees it; of a long one a part."""

    name: str = Field(description="row; for a pair of answers chosen and rejected.")
    text: str
    tokens: list[Token]
    first_token: int = Field(description="Place of the first of `tokens` in the sequence, from 0.")
    total_tokens: int
    trained_tokens: int


class Preview(BaseModel):
    """A row, and what is trained of it. `text` and `tokens` are of the first sequence; at most 10,000 tokens are shown at a
    time, the numbers are of all.
    """

    row: int
    line: int
    format: str
    kind: str
    problems: list[Problem] = []
    marks: list[str] = Field(
        default=[], description="too_long or nothing_trained (the row is dropped), truncated, refused, images."
    )
    text: str = ""
    tokens: list[Token] = []
    trained_tokens: int = 0
    billed_tokens: int = 0
    sequences: list[PreviewedSequence] = []
    said: str | None = Field(default=None, description="Why the model cannot take the row, where it cannot.")


def preview(
    source: Source,
    form: str,
    row: int,
    model: Path,
    *,
    max_length: int | None = None,
    overlength: Overlength = "drop",
    first_token: int = 0,
    starts: Sequence[Start] = (),
    is_fit: bool = False,
) -> Preview:
    """Look at a row, counted from 1; tokens are shown from `first_token` on. Raises InvalidParameter when the file has no
    such row.

    What is known of the file saves reading it: `starts` of its pieces, and whether it `is_fit`, so that each line is a row.
    """
    with rows_in(source) as (rows_of_file, _):
        record = record_at(rows_of_file, row, starts=starts, is_fit=is_fit)
    plugin = formats.load(form)
    shown = Preview(row=row, line=record.line or 1, format=form, kind=plugin.kind)
    if isinstance(record, Problem):
        return shown.model_copy(update={"problems": [record]})
    if problems := problems_of(record, plugin):
        return shown.model_copy(update={"problems": problems, "text": record.text[:10_000]})
    value = plugin.value(record.value)
    renderer = renderer_in(model)
    images = measure(value).images
    marks = ["images"] if images else []
    try:
        rows = sequences([value], renderer)[0]
    except InvalidRequest as refused:
        return shown.model_copy(
            update={"marks": [*marks, "refused"], "said": refused.text, "text": record.text[:10_000]}
        )
    trained = _fitted(rows, plugin.kind, max_length, overlength)
    if trained.dropped:
        marks.append(trained.dropped)
    else:
        rows = trained.sequences
    if trained.is_truncated:
        marks.append("truncated")
    names = (
        ("chosen", "rejected") if len(rows) == 2 else ("prompt",) if isinstance(value, ImageGeneration) else ("row",)
    )
    seen = [_sequence(name, one, renderer.tokenizer, first_token) for name, one in zip(names, rows, strict=True)]
    is_dropped = trained.dropped is not None
    return shown.model_copy(
        update={
            "marks": marks,
            "text": seen[0].text,
            "tokens": seen[0].tokens,
            "trained_tokens": 0 if is_dropped else sum(one.trained_tokens for one in seen),
            "billed_tokens": 0 if is_dropped else billed(rows, plugin.kind, images),
            "sequences": seen,
        }
    )


def _fitted(row: tuple[Rendered, ...], kind: Kind, max_length: int | None, overlength: Overlength) -> Fitted:
    """The row under the limit, if there is one. What an image is made from is read, not learned."""
    limit = max(len(one.tokens) for one in row) if max_length is None else max_length
    if bills_text(kind):
        return fitted(row, max_length=limit, overlength=overlength)
    read = tuple(Rendered(one.tokens, [0.0] * len(one.tokens)) for one in row)
    is_long = any(len(one.tokens) > limit for one in read)
    if is_long and overlength == "drop":
        return Fitted((), "too_long")
    if is_long and overlength == "truncate":
        read = tuple(Rendered(one.tokens[:limit], one.weights[:limit]) for one in read)
    return Fitted(read, is_truncated=is_long and overlength == "truncate")


def record_at(source: Source, row: int, *, starts: Sequence[Start] = (), is_fit: bool = False) -> Record | Problem:
    """A record by its number, or the problem that stands for one that is too long to be read. Raises InvalidParameter when
    there is none.
    """
    if row < 1:
        raise InvalidParameter("row", f"must be 1 or more, got {row}")
    start, rows, lines = max((one for one in starts if one[1] < row), default=(0, 0, 0))
    quick = _Passing(row - rows) if is_fit else None
    reader = Reader(source.blocks(start), quick=quick, is_start=start == 0)
    for found in reader:
        if isinstance(found, Record | Problem) and found.row == row - rows:
            return _moved(found, rows, lines)
    raise InvalidParameter("row", f"must be at most {rows + reader.rows:,}, the number of rows, got {row:,}")


class _Passing:
    """Passes over the lines of a file without problems up to one row, for each of them is a row or blank."""

    def __init__(self, row: int) -> None:
        self._left = row

    def __call__(self, lines: list[bytes], first_line: int) -> list[int]:
        stops = [place for place, line in enumerate(lines) if not line.strip()]
        rows = len(lines) - len(stops)
        if 0 < self._left <= rows:
            blank = set(stops)
            place = [place for place in range(len(lines)) if place not in blank][self._left - 1]
            stops = sorted((*stops, place))
        self._left -= rows
        return stops


def _moved(found: Record | Problem, rows: int, lines: int) -> Record | Problem:
    """The same, with so many rows and lines before it."""
    if isinstance(found, Problem):
        return found.model_copy(update={"row": (found.row or 0) + rows, "line": (found.line or 0) + lines})
    problems = [problem for one in found.problems if isinstance(problem := _moved(one, rows, lines), Problem)]
    return replace(found, row=found.row + rows, line=found.line + lines, problems=problems)


def _sequence(name: str, one: Rendered, tokenizer: Tokenizer, first: int) -> PreviewedSequence:
    last, before = first + SHOWN, max(first - _CONTEXT, 0)
    tokens = one.tokens[first:last]
    weights: list[Any] = [0, *one.weights[1:]][first:last]  # the first token has nothing before it to be learned from
    pieces = token_texts(one.tokens[before : last + _CONTEXT], tokenizer)[first - before :][: len(tokens)]
    return PreviewedSequence(
        name=name,
        text="".join(pieces),
        tokens=[
            Token(id=token, text=text, trained=bool(weight))
            for token, text, weight in zip(tokens, pieces, weights, strict=True)
        ],
        first_token=first,
        total_tokens=len(one.tokens),
        trained_tokens=learned(one),
    )


def token_texts(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each token; where a character is spread over several, the last of them has it all.

    A token's text is what it adds to that of those before it: alone, many tokenizers would drop the blank it begins with.
    """
    texts: list[str] = []
    replacement = [token for token in tokenizer.encode_plain(_REPLACEMENT) if tokenizer.decode([token]).strip()]
    before = begun = 0  # what was shown last, and what is not shown yet
    for place in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[before:place], special=True)
        if text.endswith(_REPLACEMENT) and place < len(tokens):
            pending = tokens[begun:place]
            is_whole = pending[-len(replacement) :] == replacement or _is_whole(pending[-1], tokenizer)
            if not is_whole and len(pending) < _MOST_PENDING:  # half a character
                texts.append("")
                continue
        texts.append(text[len(tokenizer.decode(tokens[before:begun], special=True)) :])
        before, begun = begun, place
    return texts


def _is_whole(token: int, tokenizer: Tokenizer) -> bool:
    """Whether a token is a text of whole characters, not the half of one that is shown like U+FFFD."""
    return tokenizer.encode_plain(tokenizer.decode([token], special=True)) == [token]
