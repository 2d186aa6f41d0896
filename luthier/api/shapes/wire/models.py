"""What may stand in "model"."""

from __future__ import annotations

from typing import Literal

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


class ModelList(Sent):
    """All of them: this list has no pages."""

    object: Literal["list"] = "list"
    data: list[Model]
