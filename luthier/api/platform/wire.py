"""Our own API's answers about files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.chat.examples import Overlength
from luthier.control.datasets.counting import Lengths
from luthier.control.datasets.service import Counted, File
from luthier.records.problems import Problem


class FileVersion(BaseModel):
    """A file and where it comes from."""

    id: str
    filename: str
    bytes: int
    sha256: str
    status: str
    format: str | None
    kind: str | None
    category: str | None
    rows: int | None
    parent: str | None
    operation: dict[str, Any] | None
    created_at: int

    @classmethod
    def of(cls, file: File) -> FileVersion:
        return cls(
            id=file.id,
            filename=file.filename,
            bytes=file.bytes,
            sha256=file.sha256,
            status=file.status,
            format=file.report.format if file.report else None,
            kind=file.report.kind if file.report else None,
            category=file.category,
            rows=file.report.rows if file.report else None,
            parent=file.parent,
            operation=file.operation,
            created_at=int(file.created_at.timestamp()),
        )


class Tokens(BaseModel):
    """What a model makes of the rows, and which of them a limit leaves out. Rows = trained + dropped."""

    model: str
    objective: str
    max_length: int
    overlength: Overlength
    status: str = Field(description="counting: ask again in a moment; counted.")
    rows: int = 0
    trained_rows: int = 0
    truncated_rows: int = 0
    too_long_rows: int = Field(
        default=0, description="Rows longer than the limit that are kept: cut, or the reason not to start."
    )
    dropped_rows: int = 0
    dropped_counts: dict[str, int] = {}
    dropped: list[dict[str, Any]] = Field(
        default=[], description="The first 1,000, each with row, line, reason, tokens."
    )
    refused: list[dict[str, Any]] = Field(default=[], description="Rows that the model cannot write, and why.")
    tokens: int = Field(default=0, description="Of all rows, before anything is dropped.")
    billed_tokens: int = Field(default=0, description="Of one pass over the rows that are trained.")
    trained_tokens: int = 0
    statistics: dict[str, Any] = {}

    @classmethod
    def of(cls, counted: Counted, *, model: str, objective: str, max_length: int, overlength: Overlength) -> Tokens:
        asked: dict[str, Any] = {
            "model": model,
            "objective": objective,
            "max_length": max_length,
            "overlength": overlength,
        }
        lengths = counted.lengths
        if lengths is None:
            return cls(status="counting", **asked)
        chosen = lengths.under(max_length, overlength)
        return cls(
            status="counted",
            rows=chosen.rows,
            trained_rows=chosen.trained_rows,
            truncated_rows=chosen.truncated,
            too_long_rows=chosen.too_long,
            dropped_rows=chosen.rows - chosen.trained_rows,
            dropped_counts=chosen.dropped_counts,
            dropped=[{**one, "line": lengths.lines[one["row"] - 1]} for one in chosen.dropped],
            refused=_refused(lengths),
            tokens=lengths.tokens,
            billed_tokens=chosen.billed_tokens,
            trained_tokens=chosen.trained_tokens,
            statistics=counted.statistics,
            **asked,
        )


def _refused(lengths: Lengths) -> list[dict[str, Any]]:
    return [{"row": row, "line": lengths.lines[row - 1], "reason": why} for row, why in lengths.refused]


class Report(BaseModel):
    """Everything that checking a file found; `problems` are the first 1,000 in the order of the file."""

    id: str
    filename: str
    status: str
    status_details: str | None
    category: str | None
    format: str | None
    kind: str | None
    rows: int | None
    lines: int | None
    turns: int | None
    trained_turns: int | None
    characters: int | None
    images: int | None
    tags: dict[str, int]
    duplicate_rows: int | None
    repairable: bool
    problems: list[Problem]
    counts: dict[str, int]
    warnings: list[Problem]
    warning_counts: dict[str, int]
    tokens: Tokens | None = None

    @classmethod
    def of(cls, file: File) -> Report:
        found = file.report
        numbers = ("rows", "lines", "turns", "trained_turns", "characters", "images", "duplicate_rows")
        return cls(
            id=file.id,
            filename=file.filename,
            status=file.status,
            status_details=found.summary if found else None,
            category=file.category,
            format=found.format if found else None,
            kind=found.kind if found else None,
            tags=found.tags if found else {},
            repairable=found.repairable if found else False,
            problems=found.problems if found else [],
            counts=found.counts if found else {},
            warnings=found.warnings if found else [],
            warning_counts=found.warning_counts if found else {},
            **{name: getattr(found, name, None) for name in numbers},
        )


class SplitRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ratio: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows that go to validation.")
    seed: int | None = Field(default=None, ge=0, lt=2**31, description="Absent: one is drawn, and told.")
    by_tag: bool = Field(default=True, description="Whether each tag is split in the same proportion.")
