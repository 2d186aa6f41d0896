"""Published calls of these families that this server does not answer: each says so in plain words."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from luthier.api.auth import Caller
from luthier.core.errors import NotOffered

router = APIRouter(tags=["Not offered"])


@router.post("/embeddings", summary="Not offered: answers 400")
async def embeddings(who: Caller) -> dict[str, Any]:
    raise NotOffered("Embeddings are not offered by this version.")
