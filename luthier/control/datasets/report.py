"""What one reading of a file found."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from luthier.records.problems import MEANINGS, Problem

KEPT = 1000
"""Problems that a report lists; the counts go on."""

KEPT_TAGS = 1000

Start = tuple[int, int, int]
"""Where a record begins: bytes, rows and lines before it."""


class DatasetReport(BaseModel):
    """What one reading of a file found. It is fit for training when it has rows and no problem."""

    model_config = ConfigDict(frozen=True)

    format: str | None = None
    kind: str | None = None
    rows: int = 0
    lines: int = 0
    turns: int = Field(default=0, description="Messages of all rows.")
    trained_turns: int = Field(default=0, description="Answers that are trained.")
    characters: int = Field(default=0, description="Of all texts; tokens are counted for a model.")
    images: int = 0
    tags: dict[str, int] = Field(default_factory=dict, description="Rows by tag; rows without one are not in it.")
    duplicate_rows: int = Field(default=0, description="Rows that repeat an earlier one exactly.")
    problems: list[Problem] = Field(default_factory=list)
    counts: dict[str, int] = Field(
        default_factory=dict, description="Problems by code, also those beyond the listed ones."
    )
    warnings: list[Problem] = Field(default_factory=list)
    warning_counts: dict[str, int] = Field(default_factory=dict)
    starts: list[Start] = Field(
        default_factory=list, description="Of pieces of the file, so that a row is found without reading all before it."
    )

    @property
    def fit(self) -> bool:
        return self.rows > 0 and not self.counts

    @property
    def repairable(self) -> bool:
        """Whether the repair does all that was found. A file in UTF-16 is checked only after its repair."""
        return bool(self.counts) and all(MEANINGS[code].repairable for code in self.counts)

    @property
    def summary(self) -> str | None:
        """The first problem and how many more there are; None where there is none."""
        if not self.problems:
            return None
        more = sum(self.counts.values()) - 1
        return self.problems[0].text.en + (f" ({more:,} more)" if more else "")


def of_problem(problem: Problem) -> DatasetReport:
    """The report of a file that could not be read as rows."""
    return DatasetReport(problems=[problem], counts={problem.code: 1})


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems as they stand in the file, those of the whole file first; at most as many as a report lists."""
    return sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))[:KEPT]
