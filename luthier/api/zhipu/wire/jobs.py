"""A job as Zhipu's client asks for it, and the answer to the end of a model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from luthier.api import examples
from luthier.api.shapes.wire import jobs
from luthier.api.shapes.wire.base import Sent
from luthier.control.jobs.values import JobRequest


class CreateJob(jobs.CreateJob):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "smollm2-135m-instruct",
                "training_file": "file-01k7m3v5c8t9x2r4w6y8z0a2",
                "hyperparameters": {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"},
                "suffix": "tone",
                "request_id": "mine-1",
            }
        }
    )

    request_id: str | None = None

    def to_request(self) -> JobRequest:
        """What is learned from follows from the rows, where no method is named: this dialect has no field for it."""
        shown = {"request_id": self.request_id} if self.request_id else {}
        return self.asked(objective=None, least_rows=1, shown=shown)


class DeletedModel(Sent):
    """Its deletion is over when this is answered."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str
    model_name: str
    delete_status: Literal["deleted"] = "deleted"

    @classmethod
    def example(cls) -> Any:
        return cls(request_id=examples.REQUEST_ID, model_name=examples.JOB.model_name)
