"""Deployments as DashScope's clients write and read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from luthier.api import examples
from luthier.api.dashscope.errors import code_named
from luthier.api.dashscope.wire.envelope import Paged, Sent
from luthier.api.received import Received
from luthier.control.catalog.service import NamedModel
from luthier.control.deployments import service


class CreateDeployment(Received):
    """A plan, a version and a way of billing are read and passed over: there is one of each."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_name": "smollm2-135m-instruct", "capacity": 2}]})

    model_name: str = Field(description="A base model, a tuned model or a checkpoint.")
    capacity: int | None = Field(default=None, description="Replicas; 1 when absent.")
    ptu_capacity: int | None = Field(default=None, description="The same.")
    name: str | None = Field(default=None, description="The name to call; absent: one is made of the model's.")
    suffix: Annotated[str, Field(max_length=8)] | None = Field(
        default=None, description="The name is then the model's, a hyphen, and this."
    )

    @property
    def replicas(self) -> int:
        return next((one for one in (self.capacity, self.ptu_capacity) if one is not None), 1)

    @property
    def private_name(self) -> str | None:
        return self.name or (f"{self.model_name}-{self.suffix}" if self.suffix else None)


class Scale(Received):
    model_config = ConfigDict(json_schema_extra={"examples": [{"capacity": 3}]})

    capacity: int | None = Field(default=None, description="Replicas from now on.")
    ptu_capacity: int | None = Field(default=None, description="The same.")


class Deployment(Sent):
    """Ids and times are strings, and no list is null: the clients refuse anything else."""

    deployed_model: str = Field(description="The name to call.")
    deployment_id: str = Field(description="Can be called too, and is never used again.")
    status: str = Field(
        description="PENDING, DEPLOYING, RUNNING, UPDATING, FAILED or DELETING. RUNNING: all replicas answer."
    )
    model_name: str
    base_model: str
    base_capacity: int = Field(description="The least capacity, which is also its step.")
    capacity: int
    ready_capacity: int = Field(description="Replicas that answer now.")
    gmt_create: str = Field(description="YYYY-MM-DDTHH:MM:SS, UTC.")
    gmt_modified: str
    workspace_id: str
    charge_type: str = "post_paid"
    creator: str
    modifier: str
    plan: Literal["lora", "mu"] = Field(description="lora: an adapter on a base model; mu: a whole model.")
    code: str | None = Field(default=None, exclude_if=lambda it: it is None, description="What went wrong last.")
    message: str | None = Field(default=None, exclude_if=lambda it: it is None)

    @classmethod
    def of(cls, one: service.Deployment) -> Deployment:
        return cls(
            deployed_model=one.name,
            deployment_id=one.id,
            status=one.status.upper(),
            model_name=one.model,
            base_model=one.base_model,
            base_capacity=1,
            capacity=one.capacity,
            ready_capacity=one.ready,
            gmt_create=_moment(one.created_at),
            gmt_modified=_moment(one.changed_at),
            workspace_id=one.project,
            creator=one.created_by,
            modifier=one.created_by,
            plan="lora" if one.method in ("lora", "qlora") else "mu",
            code=code_named(one.error.code) if one.error else None,
            message=one.error.message if one.error else None,
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.DEPLOYMENT)


class DeploymentList(Paged):
    deployments: list[Deployment]

    @classmethod
    def example(cls) -> Any:
        return cls(deployments=[Deployment.of(examples.DEPLOYMENT)], page_no=1, page_size=10, total=1)


class Deleted(Sent):
    status: str = "success"

    @classmethod
    def example(cls) -> Any:
        return cls()


class Deployable(Sent):
    model_name: str
    base_capacity: int = 1

    @classmethod
    def of(cls, model: NamedModel) -> Deployable:
        return cls(model_name=model.name)


class DeployableList(Paged):
    models: list[Deployable]

    @classmethod
    def example(cls) -> Any:
        return cls(
            models=[Deployable.of(examples.BASE), Deployable.of(examples.TUNED)], page_no=1, page_size=10, total=2
        )


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
