"""Reads a file through a format: how many rows, and everything that is wrong, each with its line."""

from __future__ import annotations

import codecs
from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from luthier.formats.base import BadLine, formats
from luthier.storage import Storage

KEPT = 1000
"""Problems that a report lists; the counts go on."""

_HEAD = 64 * 1024  # bytes that a format is recognised by


class Problem(BaseModel):
    model_config = ConfigDict(frozen=True)

    line: int = Field(description="Counted from 1; 0 speaks of the file as a whole.")
    code: str
    message: str

    @property
    def text(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


class DatasetReport(BaseModel):
    """What one reading of a file found. It is fit for training when it has rows and no problem."""

    model_config = ConfigDict(frozen=True)

    format: str | None
    kind: str | None
    rows: int
    characters: int = Field(description="Of all messages; tokens are counted when a model is chosen.")
    problems: list[Problem]
    counts: dict[str, int] = Field(description="Problems by code, also those beyond the listed ones.")

    @property
    def fit(self) -> bool:
        return self.rows > 0 and not self.counts

    @property
    def summary(self) -> str | None:
        """The first problem and how many more there are; None where there is none."""
        if not self.problems:
            return None
        more = sum(self.counts.values()) - 1
        return self.problems[0].text + (f" ({more:,} more)" if more else "")


def inspect(storage: Storage, key: str) -> DatasetReport:
    """Read a stored file once, line by line, and report. Faults of the file are in the report, never raised."""
    name = _recognised(storage, key)
    if name is None:
        return _unread(
            "unknown_format", 'no row of the form {"messages": [{"role": ..., "content": ...}, ...]} was found'
        )
    format_ = formats.load(name)()
    rows = characters = 0
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    for found in format_.read(storage.lines(key)):
        if isinstance(found, BadLine):
            counts[found.code] += 1
            if len(problems) < KEPT:
                problems.append(Problem(line=found.line, code=found.code, message=found.message))
        else:
            rows += 1
            characters += sum(len(message.content) for message in found.conversation.messages)
    if not rows and not problems:
        return _unread("no_rows", "the file has no rows")
    return DatasetReport(
        format=name, kind=format_.kind, rows=rows, characters=characters, problems=problems, counts=dict(counts)
    )


def _recognised(storage: Storage, key: str) -> str | None:
    """The format that knows the beginning of the file; with one format there is nothing to confuse."""
    head = b""
    for line in storage.lines(key):
        head += line + b"\n"
        if len(head) >= _HEAD:
            break
    head = head.removeprefix(codecs.BOM_UTF8)
    if not head.strip():
        return "messages"
    known = [name for name in formats.names() if formats.load(name).recognises(head)]
    return known[0] if known else "messages" if head.lstrip().startswith((b"{", b"[")) else None


def _unread(code: str, message: str) -> DatasetReport:
    problem = Problem(line=0, code=code, message=f"{message}.")
    return DatasetReport(format=None, kind=None, rows=0, characters=0, problems=[problem], counts={code: 1})
