"""/files: upload, list, get, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form, UploadFile

from luthier.api import forms
from luthier.api.auth import Asked, Caller
from luthier.api.dashscope.errors import code_of
from luthier.api.dashscope.wire.envelope import FileAnswer, PageNumber, PageSize, RequestId, counts
from luthier.api.dashscope.wire.files import Deleted, FailedUpload, FileList, FileObject, Uploaded, UploadedFile
from luthier.core.errors import InvalidRequest, LuthierError

router = APIRouter(prefix="/files", tags=["files"])

PURPOSE = "fine-tune"
"""What a file is for where nobody says it: no client and no command line of this API ever sends a purpose."""


@router.post(
    "",
    summary="Upload files",
    openapi_extra=forms.example(files=["rows.jsonl"], descriptions=["How we speak."], purpose=["fine-tune"]),
)
async def upload(
    who: Caller,
    services: Asked,
    request_id: RequestId,
    files: list[UploadFile],
    descriptions: Annotated[list[str] | None, Form(description="In the order of the files.")] = None,
    purpose: Annotated[list[str] | None, Form(description="One for all, or in the order of the files.")] = None,
) -> FileAnswer[Uploaded]:
    """Several files may come at once. One that is refused does not lose the others; where none could be taken, the call fails."""
    uploaded: list[UploadedFile] = []
    refused: list[tuple[str, LuthierError]] = []
    for place, file in enumerate(files):
        name = file.filename or "upload"
        try:
            stored = await services.datasets.add_file(
                who,
                name,
                _purpose(purpose or [], place),
                forms.chunks(file),
                description=_at(descriptions or [], place),
            )
        except LuthierError as error:
            refused.append((name, error))
        else:
            uploaded.append(UploadedFile(file_id=stored.id, name=stored.filename))
    if not uploaded:
        raise _together(refused)
    failed = [FailedUpload(name=name, code=code_of(type(why)), message=why.text) for name, why in refused]
    return FileAnswer(request_id=request_id, data=Uploaded(uploaded_files=uploaded, failed_uploads=failed))


@router.get("", summary="List files, the newest first")
async def list_files(
    who: Caller, services: Asked, request_id: RequestId, page_no: PageNumber = 1, page_size: PageSize = 10
) -> FileAnswer[FileList]:
    found = await services.datasets.numbered(who, page_no, page_size)
    listed = FileList(files=[FileObject.of(file) for file in found.items], **counts(found))
    return FileAnswer(request_id=request_id, data=listed)


@router.get("/{file_id}", summary="Get a file's description")
async def get(file_id: str, who: Caller, services: Asked, request_id: RequestId) -> FileAnswer[FileObject]:
    return FileAnswer(request_id=request_id, data=FileObject.of(await services.datasets.get(who, file_id)))


@router.delete("/{file_id}", summary="Delete a file")
async def delete(file_id: str, who: Caller, services: Asked, request_id: RequestId) -> FileAnswer[Deleted]:
    await services.datasets.delete(who, file_id)
    return FileAnswer(request_id=request_id, data=Deleted())


def _together(refused: list[tuple[str, LuthierError]]) -> LuthierError:
    """What is said where no file could be taken."""
    for _, why in refused:
        if len(refused) == 1 or not isinstance(why, InvalidRequest):
            return why  # one that is not the caller's keeps its status, so that a client tries again
    return InvalidRequest("; ".join(f"{name}: {why.text}" for name, why in refused), param="files")


def _purpose(sent: Sequence[str], place: int) -> str:
    """The SDK's own constant is spelled fine_tune."""
    said = sent[0] if len(sent) == 1 else _at(sent, place)
    return PURPOSE if said in (None, "", "fine_tune") else said


def _at(sent: Sequence[str], place: int) -> str | None:
    return sent[place] if place < len(sent) else None
