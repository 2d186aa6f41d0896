"""Calls that OpenAI publishes and this server does not answer: each says so in plain words."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from luthier.api.auth import Caller
from luthier.core.errors import NotOffered

router = APIRouter(tags=["Not offered"])


@router.post("/fine_tuning/alpha/graders/validate", summary="Not offered: answers 400")
async def validate_grader(who: Caller) -> dict[str, Any]:
    raise NotOffered("Graders are not offered by this version.")


@router.post("/fine_tuning/alpha/graders/run", summary="Not offered: answers 400")
async def run_grader(who: Caller) -> dict[str, Any]:
    raise NotOffered("Graders are not offered by this version.")
