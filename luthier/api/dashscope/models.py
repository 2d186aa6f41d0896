"""/models: what a call may name as its model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from luthier.api.auth import Asked, Caller
from luthier.api.dashscope.wire.envelope import Answer, PageNumber, PageSize, RequestId, counts
from luthier.api.dashscope.wire.models import Model, ModelList
from luthier.core.errors import ModelNotFound
from luthier.core.pages import NumberedPage

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="List models")
async def list_models(
    who: Caller,
    services: Asked,
    request_id: RequestId,
    model: Annotated[str | None, Query(description="Only the one of this name; the list is empty without it.")] = None,
    page_no: PageNumber = 1,
    page_size: PageSize = 10,
) -> Answer[ModelList]:
    """Base models, then what was trained here."""
    if model is None:
        found = await services.catalog.numbered(who, page_no, page_size)
    else:
        try:
            named = [await services.catalog.get(who, model)]
        except ModelNotFound:  # the client makes its own error of an empty list
            named = []
        found = NumberedPage(named if page_no == 1 else [], page_no, page_size, len(named))
    listed = ModelList(models=[Model.of(one) for one in found.items], **counts(found))
    return Answer(request_id=request_id, output=listed)


@router.get("/{name:path}", summary="Get a model")
async def get(name: str, who: Caller, services: Asked, request_id: RequestId) -> Answer[Model]:
    return Answer(request_id=request_id, output=Model.of(await services.catalog.get(who, name)))
