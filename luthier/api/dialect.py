"""The Dialect contract: the paths an API family owns, and how it says an error. A dialect is a folder beside this file."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fastapi import APIRouter
from starlette.responses import Response

from luthier.core.errors import LuthierError
from luthier.core.registry import Registry


class Dialect(ABC):
    prefixes: tuple[str, ...]
    """Everything below these paths is answered in this dialect, unknown paths and faults of ours included."""

    @abstractmethod
    def routes(self) -> APIRouter:
        """Its routes, without the prefix."""

    @abstractmethod
    def render_error(self, error: LuthierError, request_id: str) -> Response:
        """An error as this family's clients expect it."""


dialects: Registry[Dialect] = Registry("luthier.api", Dialect, kind="dialect", folders=True)
