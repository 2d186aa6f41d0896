"""/tokens: how many tokens a text is for a model."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from luthier.api.auth import Asked, Caller
from luthier.api.platform.wire import Text, TokenCount

router = APIRouter()


@router.post("/tokens")
async def count(who: Caller, services: Asked, body: Text) -> TokenCount:
    """Count a text as it is, by the tokenizer that counts training data and bills it; a template adds its own tokens."""
    model = await services.deployments.resolve(who, body.model)
    tokens = await asyncio.to_thread(services.datasets.tokens, model.tokenizer or model.weights, body.text)
    return TokenCount(model=body.model, characters=len(body.text), tokens=tokens)
