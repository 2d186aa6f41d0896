"""What may stand in "model"."""

from __future__ import annotations

from typing import Any, Literal

from luthier.api import examples
from luthier.api.shapes.wire.base import Sent
from luthier.control.catalog.service import NamedModel


class Model(Sent):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str

    @classmethod
    def of(cls, model: NamedModel) -> Model:
        return cls(id=model.name, created=int(model.created_at.timestamp()), owned_by=model.owned_by)

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.TUNED)


class ModelList(Sent):
    """All of them: this list has no pages."""

    object: Literal["list"] = "list"
    data: list[Model]

    @classmethod
    def example(cls) -> Any:
        return cls(data=[Model.of(examples.BASE), Model.of(examples.TUNED)])
