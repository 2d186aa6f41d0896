"""All SQL on replicas."""

from __future__ import annotations

from luthier.control.deployments.tables import ReplicaRow
from luthier.control.tenancy import Queries


class ReplicaQueries(Queries):
    async def of_weights(self, weights: str) -> ReplicaRow | None:
        """The replica of that folder of weights that is not gone, else the one that went last."""
        rows = self.visible(ReplicaRow).where(ReplicaRow.weights == weights)
        return await self.session.scalar(rows.order_by(ReplicaRow.status == "gone", ReplicaRow.id.desc()).limit(1))

    async def get(self, replica_id: str) -> ReplicaRow | None:
        return await self.session.scalar(self.visible(ReplicaRow).where(ReplicaRow.id == replica_id))
