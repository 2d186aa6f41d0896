"""Models as DashScope's clients read them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.api import examples
from luthier.api.dashscope.wire.envelope import Paged, Sent, moment
from luthier.control.catalog.service import NamedModel


class Model(Sent):
    model: str = Field(description="What a call names.")
    name: str = Field(description="The same.")
    provider: str
    source: Literal["base", "custom"] = Field(description="custom: it was trained here.")
    base_model: str
    job_id: str | None = Field(description="The job that made it; null for a base model.")
    gmt_create: str = Field(description="YYYY-MM-DD HH:MM:SS, UTC.")

    @classmethod
    def of(cls, model: NamedModel) -> Model:
        return cls(
            model=model.name,
            name=model.name,
            provider=model.owned_by,
            source="base" if model.kind == "base" else "custom",
            base_model=model.base_model,
            job_id=model.job,
            gmt_create=moment(model.created_at),
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.TUNED)


class ModelList(Paged):
    models: list[Model]

    @classmethod
    def example(cls) -> Any:
        models = [Model.of(examples.BASE), Model.of(examples.TUNED)]
        return cls(models=models, page_no=1, page_size=10, total=len(models))
