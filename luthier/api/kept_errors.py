"""The class of an error that was kept by its own stable name, such as what ended a job."""

from __future__ import annotations

from luthier.core.errors import LuthierError


def kind_named(code: str) -> type[LuthierError]:
    """LuthierError where no class has that name."""
    return next((kind for kind in _below(LuthierError) if kind.code == code), LuthierError)


def _below(kind: type[LuthierError]) -> list[type[LuthierError]]:
    """A class and all that come from it, those nearest to it first."""
    return [kind, *(each for one in kind.__subclasses__() for each in _below(one))]
