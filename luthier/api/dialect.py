"""The Dialect contract: the paths an API family owns, and how it says an error. A dialect is a folder beside this file."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fastapi import APIRouter
from starlette.responses import Response

from luthier.core.errors import LuthierError
from luthier.core.registry import Registry


class Dialect(ABC):
    @abstractmethod
    def mounts(self) -> dict[str, APIRouter]:
        """Its routes, by the path below which they hang.

        Everything at and below such a path is answered in this dialect, unknown paths and faults of ours included, but for
        what lies below a longer path of another one.
        """

    @abstractmethod
    def render_error(self, error: LuthierError, request_id: str) -> Response:
        """An error as this family's clients expect it."""


dialects: Registry[Dialect] = Registry("luthier.api", Dialect, kind="dialect", folders=True, besides={"shapes"})
