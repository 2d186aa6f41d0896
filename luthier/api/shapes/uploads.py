"""/uploads: create, parts, complete, cancel."""

from __future__ import annotations

from fastapi import APIRouter, UploadFile

from luthier.api import forms
from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire.files import purpose
from luthier.api.shapes.wire.uploads import CompleteUpload, CreateUpload, UploadObject, UploadPart

router = APIRouter(tags=["Uploads"])


@router.post("/uploads", summary="Begin a file that comes in parts")
async def create(body: CreateUpload, who: Caller, services: Asked) -> UploadObject:
    lifetime = body.expires_after.seconds if body.expires_after else None
    upload = await services.uploads.create(
        who,
        body.filename,
        purpose(body.purpose),
        body.bytes,
        category=body.category,
        file_expires_after_seconds=lifetime,
    )
    return UploadObject.of(upload)


@router.post(
    "/uploads/{upload_id}/parts", summary="Add a part", openapi_extra=forms.example(data="the bytes of one part")
)
async def add_part(upload_id: str, data: UploadFile, who: Caller, services: Asked) -> UploadPart:
    return UploadPart.of(await services.uploads.add_part(who, upload_id, forms.chunks(data)))


@router.post("/uploads/{upload_id}/complete", summary="Make the file of its parts")
async def complete(upload_id: str, body: CompleteUpload, who: Caller, services: Asked) -> UploadObject:
    return UploadObject.of(await services.uploads.complete(who, upload_id, body.part_ids, body.md5))


@router.post("/uploads/{upload_id}/cancel", summary="Give an upload up")
async def cancel(upload_id: str, who: Caller, services: Asked) -> UploadObject:
    return UploadObject.of(await services.uploads.cancel(who, upload_id))
