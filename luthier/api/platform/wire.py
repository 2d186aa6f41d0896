"""Our own API's answers about files and deployments."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.api import examples
from luthier.api.received import Received
from luthier.api.shown import Shown
from luthier.chat.examples import Overlength
from luthier.control.datasets.service import Counted, File
from luthier.control.deployments import service
from luthier.formats.base import DatasetFormat, known
from luthier.records.problems import Problem


class Line(BaseModel):
    line: int | None
    message: str


class Refusal(BaseModel):
    """What a call that failed answers; `problems` where a file is to blame."""

    code: str
    message: str
    hint: str | None = Field(description="What to do next.")
    param: str | None = Field(description="The field that is to blame, as the caller wrote it.")
    request_id: str
    problems: list[Line] | None = None


class FileVersion(Shown):
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

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.FILE)


class FileWithVersions(FileVersion):
    versions: list[FileVersion] = Field(description="Those that were made of it, oldest first.")

    @classmethod
    def with_versions(cls, file: File, made: list[File]) -> FileWithVersions:
        return cls(**FileVersion.of(file).model_dump(), versions=[FileVersion.of(one) for one in made])

    @classmethod
    def example(cls) -> Any:
        return cls.with_versions(examples.FILE, [examples.TRAINING, examples.VALIDATION])


class Repaired(FileVersion):
    changes: dict[str, Any] = Field(description="Counts by code, and the first changed rows before and after.")

    @classmethod
    def with_changes(cls, file: File, changes: dict[str, Any]) -> Repaired:
        return cls(**FileVersion.of(file).model_dump(), changes=changes)

    @classmethod
    def example(cls) -> Any:
        return cls.with_changes(examples.REPAIRED, vars(examples.CHANGES))


class Split(Shown):
    training: FileVersion
    validation: FileVersion
    options: dict[str, Any] = Field(description="Those it was made with; they give the same rows again.")
    division: dict[str, Any]

    @classmethod
    def of(cls, training: File, validation: File, options: dict[str, Any], division: dict[str, Any]) -> Split:
        return cls(
            training=FileVersion.of(training),
            validation=FileVersion.of(validation),
            options=options,
            division=division,
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.TRAINING, examples.VALIDATION, examples.SPLIT, examples.DIVISION)


class Format(BaseModel):
    """What a file may hold."""

    name: str
    kind: str
    row: str
    file: str
    sample: str

    @classmethod
    def of(cls, name: str, form: type[DatasetFormat]) -> Format:
        sample = f"/api/platform/formats/{name}/sample"
        return cls(name=name, kind=form.kind, row=form.describes, file=sample_name(name, form), sample=sample)


def sample_name(name: str, form: type[DatasetFormat]) -> str:
    """What the sample file of a format is called."""
    return f"{name}.zip" if form.in_archive else f"{name}.jsonl"


class Formats(Shown):
    data: list[Format]

    @classmethod
    def example(cls) -> Any:
        return cls(data=[Format.of(name, form) for name, form in known().items()])


class Text(BaseModel):
    model: str
    text: str = Field(max_length=1_000_000)


class TokenCount(Shown):
    model: str
    characters: int
    tokens: int

    @classmethod
    def example(cls) -> Any:
        return cls(model=examples.BASE.name, characters=12, tokens=5)


class Tokens(BaseModel):
    """What a model makes of the rows, and which of them a limit leaves out. Rows = trained + dropped."""

    model: str
    objective: str | None
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
    def of(
        cls, counted: Counted | None, *, model: str, objective: str | None, max_length: int, overlength: Overlength
    ) -> Tokens:
        asked: dict[str, Any] = {
            "model": model,
            "objective": objective,
            "max_length": max_length,
            "overlength": overlength,
        }
        if counted is None:
            return cls(status="counting", **asked)
        found, chosen = counted.summary, counted.chosen
        return cls(
            status="counted",
            rows=chosen.rows,
            trained_rows=chosen.trained_rows,
            truncated_rows=chosen.truncated,
            too_long_rows=chosen.too_long,
            dropped_rows=chosen.rows - chosen.trained_rows,
            dropped_counts=chosen.dropped_counts,
            dropped=chosen.dropped,
            refused=[{"row": row, "line": line, "reason": why} for row, line, why in found.refused],
            tokens=found.tokens,
            billed_tokens=chosen.billed_tokens,
            trained_tokens=chosen.trained_tokens,
            statistics=found.statistics,
            **asked,
        )


class Report(Shown):
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

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.FILE)


class SplitRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ratio: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows that go to validation.")
    seed: int | None = Field(default=None, ge=0, lt=2**31, description="Absent: one is drawn, and told.")
    by_tag: bool = Field(default=True, description="Whether each tag is split in the same proportion.")

    def options(self) -> dict[str, Any]:
        return self.model_dump() | {"seed": secrets.randbelow(2**31) if self.seed is None else self.seed}


class CreateDeployment(Received):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "smollm2-135m-instruct", "name": "mine", "capacity": 2}]},
    )

    model: str = Field(description="A base model, a tuned model or a checkpoint.")
    name: str | None = Field(default=None, description="What requests write as their model; absent: one is made.")
    capacity: int = Field(default=1, description="Replicas, 1 to 64.")


class Scale(Received):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"capacity": 2}]})

    capacity: int = Field(description="Replicas from now on, 1 to 64.")


class Failure(BaseModel):
    code: str
    message: str


class Deployment(Shown):
    id: str
    name: str = Field(description="What requests write as their model; the id does as well.")
    model: str
    method: str | None = Field(description="How the model was trained; null: it is a base model.")
    base_model: str
    capacity: int = Field(description="Replicas that there are to be.")
    ready: int = Field(description="Replicas that answer now.")
    status: str = Field(description="pending, deploying, running, updating, failed or deleting.")
    progress: float = Field(description="Of what is being started, from 0 to 1.")
    error: Failure | None = Field(description="What went wrong last.")
    created_at: int
    changed_at: int

    @classmethod
    def of(cls, one: service.Deployment) -> Deployment:
        return cls(
            id=one.id,
            name=one.name,
            model=one.model,
            method=one.method,
            base_model=one.base_model,
            capacity=one.capacity,
            ready=one.ready,
            status=one.status,
            progress=one.progress,
            error=Failure(code=one.error.code, message=one.error.message) if one.error else None,
            created_at=int(one.created_at.timestamp()),
            changed_at=int(one.changed_at.timestamp()),
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.DEPLOYMENT)


class Deployments(Shown):
    data: list[Deployment]
    has_more: bool

    @classmethod
    def example(cls) -> Any:
        return cls(data=[Deployment.of(examples.DEPLOYMENT)], has_more=False)
