"""All SQL on deployments and replicas."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, or_, select

from luthier.control.deployments.lifecycle import CALLABLE, THERE, Status
from luthier.control.deployments.tables import DeploymentRow, ReplicaRow
from luthier.control.tenancy import Queries
from luthier.core.pages import NumberedPage, Page, PageRequest


class DeploymentQueries(Queries):
    async def get(self, deployment_id: str) -> DeploymentRow | None:
        return await self.session.scalar(self.visible(DeploymentRow).where(DeploymentRow.id == deployment_id))

    async def called(self, name: str) -> DeploymentRow | None:
        """By its id or its private name."""
        named = or_(DeploymentRow.id == name, DeploymentRow.name == name)
        return await self.session.scalar(self.visible(DeploymentRow).where(named, _IS_THERE))

    async def callable_of(self, model: str) -> DeploymentRow | None:
        """The newest that answers with that model."""
        rows = self.visible(DeploymentRow).where(DeploymentRow.model == model, DeploymentRow.status.in_(CALLABLE))
        return await self.session.scalar(rows.order_by(DeploymentRow.id.desc()).limit(1))

    async def page(self, page: PageRequest) -> Page[DeploymentRow]:
        """Newest first; ids sort by time, so the cursor is an id."""
        rows = self.visible(DeploymentRow).where(_IS_THERE)
        if page.after is not None:
            rows = rows.where(DeploymentRow.id < page.after)
        found = list(await self.session.scalars(rows.order_by(DeploymentRow.id.desc()).limit(page.limit + 1)))
        return Page(found[: page.limit], has_more=len(found) > page.limit)

    async def numbered(self, number: int, size: int) -> NumberedPage[DeploymentRow]:
        return await self.newest(DeploymentRow, number, size, _IS_THERE)

    async def ready(self, deployments: Collection[str]) -> dict[str, int]:
        """How many replicas of each answer now; those with none are left out."""
        live = self.visible(ReplicaRow).where(ReplicaRow.deployment_id.in_(deployments), ReplicaRow.status == "ready")
        rows = live.subquery()
        counts = select(rows.c.deployment_id, func.count()).group_by(rows.c.deployment_id)
        return {str(id): count for id, count in await self.session.execute(counts)}

    async def of_model(self, model: str) -> list[DeploymentRow]:
        """Those that were made of it and have not been deleted."""
        lives_on = DeploymentRow.status.in_(THERE - {Status.DELETING})
        rows = self.visible(DeploymentRow).where(DeploymentRow.model == model, lives_on)
        return list(await self.session.scalars(rows.order_by(DeploymentRow.id)))


class ReplicaQueries(Queries):
    async def of_weights(self, weights: str) -> ReplicaRow | None:
        """The shared replica of that folder of weights that is not gone, else the one that went last."""
        rows = self.visible(ReplicaRow).where(ReplicaRow.weights == weights, ReplicaRow.deployment_id.is_(None))
        return await self.session.scalar(rows.order_by(ReplicaRow.status == "gone", ReplicaRow.id.desc()).limit(1))

    async def of_deployment(self, deployment_id: str) -> list[ReplicaRow]:
        """Those that are not gone."""
        rows = self.visible(ReplicaRow).where(ReplicaRow.deployment_id == deployment_id, ReplicaRow.status != "gone")
        return list(await self.session.scalars(rows.order_by(ReplicaRow.place, ReplicaRow.id)))

    async def alive(self) -> list[ReplicaRow]:
        """All that are not gone."""
        return list(await self.session.scalars(self.visible(ReplicaRow).where(ReplicaRow.status != "gone")))

    async def get(self, replica_id: str) -> ReplicaRow | None:
        return await self.session.scalar(self.visible(ReplicaRow).where(ReplicaRow.id == replica_id))


_IS_THERE = DeploymentRow.status.in_(THERE)
