"""A ready replica is found again without asking the database, and not for longer than it may be true."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from luthier.control.catalog.service import Servable
from luthier.control.db import Database
from luthier.control.deployments.queries import ReplicaQueries
from luthier.control.deployments.routing import Routing
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.tenancy import SYSTEM
from luthier.core.clock import FakeClock
from luthier.core.errors import ReplicaUnavailable
from luthier.serving.protocol import AdapterRef
from tests.unit.control.conftest import add_projects

TOY = Servable("toy", "toy", "models/toy", "0" * 64, "0" * 64, None)
TUNED = replace(TOY, name="toy:tuned", adapter=AdapterRef(id="art-1", key="artifacts/1", sha256="1" * 64))


@pytest.fixture
async def routing(database: Database, clock: FakeClock) -> Routing:
    """With one replica of TOY's weights, ready."""
    await add_projects(database)
    async with database.write() as session:
        session.add(
            ReplicaRow(
                id="rep-1",
                project_id=SYSTEM.project,
                status="ready",
                base_model=TOY.base_model,
                weights=TOY.weights,
                weights_sha256=TOY.weights_sha256,
                socket="/tmp/one.sock",
                last_used_at=clock.now(),
                created_at=clock.now(),
            )
        )
    return Routing(database, clock, ready_within_seconds=0.2)


async def row(routing: Routing) -> ReplicaRow:
    async with routing.db.read() as session:
        found = await ReplicaQueries(session, SYSTEM).get("rep-1")
    assert found is not None
    return found


async def becomes(routing: Routing, status: str) -> None:
    """Somebody else writes it."""
    async with routing.db.write() as session:
        found = await ReplicaQueries(session, SYSTEM).get("rep-1")
        assert found is not None
        found.status = status


async def test_many_requests_ask_the_database_once_and_each_gets_its_own_adapter(
    routing: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    replicas = routing._replicas

    async def counted(model: Servable) -> list[ReplicaRow]:
        reads.append(model.weights)
        return await replicas(model)

    monkeypatch.setattr(routing, "_replicas", counted)
    routes = await asyncio.gather(*(routing.choose(model) for _ in range(20) for model in (TOY, TUNED)))
    assert [route.adapter for route in routes] == [None, TUNED.adapter] * 20
    assert reads == [TOY.weights]


async def test_a_replica_that_was_lost_is_not_chosen_again(routing: Routing) -> None:
    await routing.lost(TUNED, await routing.choose(TOY))
    assert (await row(routing)).status == "starting"
    with pytest.raises(ReplicaUnavailable):
        await routing.choose(TOY)
    await becomes(routing, "ready")
    await routing.choose(TOY)


async def test_a_replica_that_goes_by_itself_is_chosen_for_a_second_at_most(routing: Routing) -> None:
    await routing.choose(TOY)
    await becomes(routing, "gone")
    await asyncio.sleep(1.0)
    with pytest.raises(ReplicaUnavailable):
        await routing.choose(TOY)


async def test_a_replica_of_other_weights_is_another(routing: Routing) -> None:
    await routing.choose(TOY)
    with pytest.raises(ReplicaUnavailable):
        await routing.choose(replace(TOY, weights="models/other"))


async def test_that_a_replica_is_used_is_noted_while_requests_come(routing: Routing, clock: FakeClock) -> None:
    await routing.choose(TOY)
    clock.advance(60)
    await asyncio.sleep(1.0)
    await routing.choose(TOY)
    assert (await row(routing)).last_used_at == clock.now()


async def test_a_replica_that_is_about_to_end_is_not_chosen_after_a_pause(routing: Routing, clock: FakeClock) -> None:
    await routing.choose(TOY)
    clock.advance(60)
    await becomes(routing, "stopping")
    with pytest.raises(ReplicaUnavailable):
        await routing.choose(TOY)


async def test_use_that_could_not_be_noted_is_noted_by_the_next(
    routing: Routing, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await routing.choose(TOY)
    clock.advance(60)
    with monkeypatch.context() as patch:
        patch.setattr(routing.db, "write", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            await routing.choose(TOY)
    await routing.choose(TOY)
    assert (await row(routing)).last_used_at == clock.now()
