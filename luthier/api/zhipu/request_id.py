"""What a request is called in its answer: as the caller called it, else as we do."""

from __future__ import annotations

from fastapi import Request


def request_id_of(request: Request, asked: str | None) -> str:
    return asked or request.scope["state"]["request_id"]
