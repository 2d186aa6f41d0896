"""/files: upload with a category, report, rows as they will be trained, repair, split, versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, UploadFile

from luthier.api import examples, forms
from luthier.api.auth import Asked, Caller
from luthier.api.platform.wire import FileVersion, FileWithVersions, Repaired, Report, Split, SplitRequest, Tokens
from luthier.api.shown import as_json, in_document
from luthier.chat.examples import Overlength
from luthier.control.datasets.preview import Preview
from luthier.control.jobs.planning import limit_of
from luthier.core.errors import InvalidParameter
from luthier.training.defaults import LONGEST
from luthier.training.objectives.base import objectives

router = APIRouter()

Objective = Annotated[str | None, Query(description="Absent: the one that trains on the file's kind.")]
MaxLength = Annotated[
    int | None,
    Query(
        ge=8,
        le=1_000_000,
        description="Tokens that a row may have; absent: 2,048, or the model's context where that is less.",
    ),
]


@router.post("/files", openapi_extra=forms.example(file="rows.jsonl", purpose="fine-tune"))
async def upload(
    who: Caller,
    services: Asked,
    file: UploadFile,
    purpose: Annotated[str, Form()] = "fine-tune",
    category: Annotated[
        str | None, Form(description="The format that the file is of; absent: it is told from the rows.")
    ] = None,
) -> FileVersion:
    stored = await services.datasets.add_file(
        who, file.filename or "upload", purpose, forms.chunks(file), category=category
    )
    return FileVersion.of(stored)


@router.get("/files/{file_id}")
async def retrieve(file_id: str, who: Caller, services: Asked) -> FileWithVersions:
    """A file, where it comes from, and the versions made of it."""
    file = await services.datasets.get(who, file_id)
    made = await services.datasets.children(who, file_id)
    return FileWithVersions.with_versions(file, made)


@router.post("/files/{file_id}/check")
async def check(file_id: str, who: Caller, services: Asked) -> FileVersion:
    """Check a file again that was found wrong: an image could not be fetched then, or a limit was too low."""
    return FileVersion.of(await services.datasets.check_again(who, file_id))


@router.get("/files/{file_id}/report")
async def report(
    file_id: str,
    who: Caller,
    services: Asked,
    model: str | None = None,
    objective: Objective = None,
    max_length: MaxLength = None,
    overlength: Overlength = "drop",
) -> Report:
    """What checking the file found; with a model also how long its rows are, and which of them a limit leaves out."""
    file = await services.datasets.get(who, file_id)
    found = Report.of(file)
    if model is None:
        return found
    by = await services.catalog.resolve(who, model)
    limit = limit_of(model, await services.catalog.context_length(by) or LONGEST, max_length)
    if file.report is None or not file.report.fit:
        return found
    fitting = _objective(objective, file.report.kind)
    counted = await services.datasets.counted(file, who.project, by, max_length=limit, overlength=overlength)
    tokens = Tokens.of(counted, model=model, objective=fitting, max_length=limit, overlength=overlength)
    return found.model_copy(update={"tokens": tokens})


@router.get("/files/{file_id}/rows/{row}", responses={200: {"content": in_document(as_json(examples.ROW))}})
async def row(
    file_id: str,
    row: int,
    who: Caller,
    services: Asked,
    model: str,
    max_length: Annotated[
        int | None, Query(ge=8, le=1_000_000, description="Tokens that a row may have; absent: any number.")
    ] = None,
    overlength: Overlength = "drop",
    first_token: Annotated[
        int, Query(ge=0, description="Place of the first token to show, from 0; 10,000 are shown at a time.")
    ] = 0,
) -> Preview:
    """Exactly what will be trained of one row, counted from 1."""
    servable = await services.catalog.resolve(who, model)
    return await services.datasets.preview(
        who, file_id, row, servable, max_length=max_length, overlength=overlength, first_token=first_token
    )


@router.post("/files/{file_id}/repair")
async def repair(file_id: str, who: Caller, services: Asked) -> Repaired:
    """Make a new version without the faults that have one right answer, and say what was changed."""
    return Repaired.with_changes(*await services.datasets.repair(who, file_id))


@router.post("/files/{file_id}/split")
async def split(file_id: str, who: Caller, services: Asked, body: SplitRequest | None = None) -> Split:
    """Make a training and a validation version; the same options on the same file give the same rows."""
    options = (body or SplitRequest()).options()
    training, validation, division = await services.datasets.split(who, file_id, options)
    return Split.of(training, validation, options, division)


def _objective(asked: str | None, kind: str | None) -> str | None:
    """The objective that is asked for, else the first that trains on such rows; None where there is none yet."""
    fitting = [name for name in objectives.names() if objectives.load(name).wants == kind]
    if asked is not None and asked not in fitting:
        expected = " or ".join(fitting) or "absent"
        raise InvalidParameter("objective", f"must be {expected} for a file of {kind} rows, got {asked}")
    return asked or next(iter(fitting), None)
