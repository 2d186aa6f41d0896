"""Deployments get as many replicas as they are to have, answer by their names, change without a failed request, end at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
from sqlalchemy import select, update

from luthier.app import Parts
from luthier.control.audit import AuditRow
from luthier.control.catalog.service import Trained
from luthier.control.deployments.lifecycle import Status
from luthier.control.deployments.service import MOST_REPLICAS, Deployment
from luthier.control.deployments.tables import DeploymentRow, ReplicaRow
from luthier.control.inference.service import CompletionRequest
from luthier.control.scheduling import replicas
from luthier.control.scheduling.leases import claim
from luthier.control.tenancy import Principal
from luthier.core.errors import (
    AlreadyExists,
    DeploymentNotFound,
    InternalError,
    InvalidParameter,
    InvalidRequest,
    InvalidTransition,
    ModelNotDeployed,
    ModelNotFound,
    NoCapacity,
    ReplicaUnavailable,
)
from luthier.core.pages import PageRequest
from luthier.core.settings import ServingSection
from luthier.executors.base import Executor, executors
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import AdapterRef, Finish, Sampling, TokenChunk, Turn
from luthier.storage import digest
from luthier.testing import InlineExecutor, InlineProcess
from tests.unit.control.conftest import ADA, BOB, House, on_sqlite


def serving(house: House, executor: Executor, **changes: object) -> Parts:
    """A server that answers by echo."""
    return house.again(executor, serving=ServingSection.model_validate({"backend": "echo"} | changes))


def local(house: House) -> Executor:
    return executors.load("local")(house.folder / "processes", 2)  # type: ignore[call-arg]


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    loops = [asyncio.create_task(one.run()) for one in (parts.replicas, parts.deployments)]
    try:
        yield
    finally:
        await parts.replicas.mark_all_stopping()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await parts.replicas.stop_all()


async def until(
    parts: Parts, name: str, *statuses: Status, who: Principal = ADA, ready: int | None = None
) -> Deployment:
    async with asyncio.timeout(90):
        while True:
            found = await parts.services.deployments.get(who, name)
            if found.status in statuses and ready in (None, found.ready):
                return found
            await asyncio.sleep(0.02)


async def until_gone(house: House, parts: Parts, *, left: int = 0) -> None:
    """Wait, while time goes by, until no more replicas are left."""
    async with asyncio.timeout(60):
        while sum(row.status != "gone" for row in await rows(parts)) > left:
            house.clock.advance(0.2)
            await asyncio.sleep(0.05)


async def until_not_there(parts: Parts, name: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await parts.services.deployments.get(ADA, name)
            except DeploymentNotFound:
                return
            await asyncio.sleep(0.02)


async def say(parts: Parts, model: str, text: str, **asked: object) -> str:
    request = CompletionRequest(model, [Turn(role="user", content=text)], sampling=Sampling.model_validate(asked))
    deltas = [delta async for delta in await parts.services.inference.complete(ADA, request)]
    assert isinstance(deltas[-1].part, Finish)
    return "".join(delta.part.text for delta in deltas if isinstance(delta.part, TokenChunk))


async def rows(parts: Parts) -> list[ReplicaRow]:
    async with parts.db.read() as session:
        return list(await session.scalars(select(ReplicaRow).order_by(ReplicaRow.id)))


async def tuned(house: House, name: str, method: str) -> str:
    """A model that `method` made of toy, with files that the echo checks; returns its name."""
    parts = house.parts
    base = await parts.services.catalog.resolve(ADA, "toy")
    source = parts.storage.folder(base.weights)
    key = f"artifacts/{name}"
    if method == "full":
        for path in (*source.glob("*.safetensors"), source / "config.json"):
            parts.storage.upload(path, f"{key}/{path.name}")
    else:
        parts.storage.write(f"{key}/adapter_config.json", b"{}")
    artifact = AdapterRef(
        id=f"art-{name}",
        key=key,
        sha256=digest(parts.storage.folder(key)),
        renderer_sha256=base.renderer_sha256,
    )
    trained = Trained("ftjob-1", method, "toy", base.weights, base.weights_sha256)
    async with parts.db.write() as session:
        parts.services.catalog.publish(session, ADA.project, name, "fine_tuned", trained, 3, artifact)
    return name


@on_sqlite
async def test_a_deployment_of_two_answers_is_scaled_and_deleted_without_a_failed_request(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "_LOOKED_AT_EVERY_SECONDS", 0.1)
    parts = serving(house, local(house), ready_within_seconds=60)
    deployments = parts.services.deployments
    made = await deployments.create(ADA, "toy", capacity=2, name="mine")
    assert (made.status, made.progress, made.ready) == (Status.PENDING, 0.0, 0)
    async with running(parts):
        with pytest.raises(ReplicaUnavailable, match="still"):
            await say(parts, "mine", "Too early")
        found = await until(parts, "mine", Status.RUNNING)
        assert (found.ready, found.progress) == (2, 1.0)
        assert await say(parts, "mine", "Hello") == await say(parts, made.id, "Hello") == "Hello"
        assert {row.deployment_id for row in await rows(parts)} == {made.id}  # the pool was not asked

        failed: list[Exception] = []
        is_over = asyncio.Event()

        async def ask() -> None:
            while not is_over.is_set():
                try:
                    assert await say(parts, "mine", "On and on") == "On and on"
                except Exception as error:
                    failed.append(error)

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        assert (await deployments.scale(ADA, "mine", 1)).status == Status.UPDATING
        await until(parts, "mine", Status.RUNNING, ready=1)
        await until_gone(house, parts, left=1)
        grown = await deployments.scale(ADA, "mine", 2)
        assert (grown.status, grown.progress) == (Status.UPDATING, 0.0)  # the one that stood does not count
        await until(parts, "mine", Status.RUNNING, ready=2)
        is_over.set()
        await asyncio.gather(*asking)
        assert failed == []

        assert (await deployments.delete(ADA, "mine")).status == Status.DELETING
        with pytest.raises(ModelNotDeployed, match="being deleted"):
            await say(parts, "mine", "Still there?")
        await until_gone(house, parts)
        await until_not_there(parts, "mine")
    again = await deployments.create(ADA, "toy", name="mine")  # the name is free
    assert again.id != made.id


@on_sqlite
async def test_a_replica_that_dies_is_replaced_while_the_other_answers(house: House) -> None:
    parts = serving(house, local(house), ready_within_seconds=60)
    await parts.services.deployments.create(ADA, "toy", capacity=2, name="mine")
    async with running(parts):
        await until(parts, "mine", Status.RUNNING)
        victim, other = await rows(parts)
        assert victim.handle is not None
        os.killpg(victim.handle["pid"], signal.SIGKILL)
        answers = await asyncio.gather(*(say(parts, "mine", f"Word {n}") for n in range(10)))
        assert answers == [f"Word {n}" for n in range(10)]
        async with asyncio.timeout(60):
            while [row.status for row in await rows(parts)] != ["gone", "ready", "ready"]:
                await asyncio.sleep(0.02)
        await until(parts, "mine", Status.RUNNING)
        assert other.id in {row.id for row in await rows(parts) if row.status == "ready"}


@on_sqlite
@pytest.mark.parametrize("method", ["full", "ptuning_v2"])
async def test_a_model_that_the_pool_cannot_answer_for_answers_by_its_own_name_once_it_is_deployed(
    house: House, method: str
) -> None:
    model = await tuned(house, "toy-mine", method)
    parts = serving(house, local(house), grace_seconds=0)
    with pytest.raises(ModelNotDeployed, match=f"made by {method}") as refused:
        await parts.services.deployments.resolve(ADA, model)
    assert refused.value.hint is not None and "luthier deployments create -m toy-mine" in refused.value.hint
    made = await parts.services.deployments.create(ADA, model, name="mine")
    async with running(parts):
        await until(parts, "mine", Status.RUNNING)
        for name in (model, "mine", made.id):
            assert await say(parts, name, "Hello") == "Hello"
        [row] = await rows(parts)
        assert row.weights == ("artifacts/toy-mine" if method == "full" else (await base(parts)).weights)
        with pytest.raises(ModelNotFound):
            await parts.services.deployments.resolve(BOB, "mine")
        await parts.services.deployments.delete_model(ADA, model)
        for name in (model, "mine", made.id):
            with pytest.raises((ModelNotFound, ModelNotDeployed)):
                await say(parts, name, "Still there?")
        await until_not_there(parts, "mine")


async def base(parts: Parts):
    return await parts.services.catalog.resolve(ADA, "toy")


@on_sqlite
async def test_an_adapter_is_on_the_replica_before_the_deployment_runs(house: House) -> None:
    await tuned(house, "toy-mine", "lora")
    parts = serving(house, local(house))
    await parts.services.deployments.create(ADA, "toy-mine", name="mine")
    async with running(parts):
        await until(parts, "mine", Status.RUNNING)
        [row] = await rows(parts)
        assert row.socket is not None
        health = await replicas.ReplicaClient(row.socket).health(timeout=5)
        assert health.adapters == ["art-toy-mine"]
        assert (await parts.services.deployments.resolve(ADA, "toy-mine")).deployment is None  # the pool's


@on_sqlite
@pytest.mark.parametrize(("wrong", "why"), [("bytes", "not the ones"), ("renderer", "written otherwise")])
async def test_a_model_that_a_replica_refuses_fails_with_the_reason(house: House, wrong: str, why: str) -> None:
    await tuned(house, "toy-mine", "lora")
    if wrong == "bytes":
        house.parts.storage.write("artifacts/toy-mine/adapter_config.json", b"[]")
    parts = serving(house, local(house))
    made = await parts.services.deployments.create(ADA, "toy-mine")
    if wrong == "renderer":
        async with parts.db.write() as session:
            await session.execute(update(DeploymentRow).values(renderer_sha256="f" * 64))
    async with running(parts):
        found = await until(parts, made.name, Status.FAILED)
        assert found.error is not None and why in found.error.message
        with pytest.raises(ModelNotDeployed, match=why):
            await parts.services.deployments.resolve(ADA, made.id)
        with pytest.raises(InvalidTransition):
            await parts.services.deployments.scale(ADA, made.id, 2)
        await until_gone(house, parts)
    await parts.services.deployments.delete(ADA, made.id)


async def test_whole_models_whose_files_were_altered_are_not_deployed(house: House) -> None:
    await tuned(house, "toy-mine", "full")
    house.parts.storage.write("artifacts/toy-mine/config.json", b"{}")
    made = await house.parts.services.deployments.create(ADA, "toy-mine")
    await house.parts.deployments.once()
    found = await house.parts.services.deployments.get(ADA, made.id)
    assert found.status == Status.FAILED
    assert found.error is not None and "not the ones it was published with" in found.error.message


def refusing(process: InlineProcess) -> int:
    process.print(
        "2030-01-01 [error    ] cannot serve    code=invalid_request part=replica reason='The weights are others.'"
    )
    return 1


async def test_three_starts_that_fail_are_told_with_what_the_replica_said(house: House) -> None:
    executor = InlineExecutor(refusing)
    parts = serving(house, executor)
    made = await parts.services.deployments.create(ADA, "toy")
    async with running(parts):
        found = await until(parts, made.id, Status.FAILED)
    assert found.error is not None and found.error.message == "The weights are others."
    assert len(executor.started) == 3


@pytest.mark.parametrize(
    "database_url", ["postgresql"], indirect=True
)  # in one process a writer that is cancelled may lock SQLite
async def test_replicas_that_the_server_itself_stopped_are_no_failed_starts(house: House) -> None:
    def waits(process: InlineProcess) -> int:
        process.stopping.wait(60)
        return 0

    executor = InlineExecutor(waits)
    parts = serving(house, executor)
    made = await parts.services.deployments.create(ADA, "toy")
    for restart in range(1, 5):
        async with running(parts), asyncio.timeout(30):
            while len(executor.started) < restart or (await rows(parts))[-1].status != "starting":
                await asyncio.sleep(0.02)
        async with parts.db.write() as session:  # loops that were cancelled may have kept their leases
            for table in (DeploymentRow, ReplicaRow):
                await session.execute(update(table).values(lease_token=None, lease_until=None))
    found = await parts.services.deployments.get(ADA, made.id)
    assert (found.status, found.error) == (Status.DEPLOYING, None)


@on_sqlite
@pytest.mark.parametrize("grace", [0.0, 30.0])
async def test_an_answer_that_is_being_made_when_its_deployment_is_deleted_has_the_grace_and_then_ends_with_an_error(
    house: House, grace: float
) -> None:
    parts = serving(house, local(house), grace_seconds=grace)
    await parts.services.deployments.create(ADA, "toy", name="mine")
    async with running(parts):
        await until(parts, "mine", Status.RUNNING)
        request = CompletionRequest("mine", [], prompt="x" * 1_500_000)  # more than is made meanwhile
        async with aclosing(await parts.services.inference.complete(ADA, request)) as deltas:
            await anext(deltas)
            await parts.services.deployments.delete(ADA, "mine")
            if grace:
                await asyncio.sleep(2.0)
                assert [row.status for row in await rows(parts)] == ["draining"]
                house.clock.advance(grace)
            await until_not_there(parts, "mine")
            with pytest.raises(ReplicaUnavailable):
                async for _ in deltas:
                    pass


@on_sqlite
async def test_an_answer_on_a_replica_that_goes_as_its_deployment_shrinks_has_all_the_time_that_one_may_take(
    house: House,
) -> None:
    parts = serving(house, local(house), grace_seconds=0, answer_within_seconds=600)
    await parts.services.deployments.create(ADA, "toy", capacity=2, name="mine")
    async with running(parts):
        await until(parts, "mine", Status.RUNNING)
        async with AsyncExitStack() as answers:
            for letter in "abcdefghijklmnop":  # requests that begin alike go to one replica as long as it can take more
                request = CompletionRequest("mine", [], prompt=letter * 1_500_000)  # more than is made meanwhile
                await answers.enter_async_context(aclosing(await parts.services.inference.complete(ADA, request)))
                if all([await active(row) for row in await rows(parts)]):
                    break
            else:
                raise AssertionError("a replica was not asked")
            await parts.services.deployments.scale(ADA, "mine", 1)
            async with asyncio.timeout(60):
                while "draining" not in {row.status for row in await rows(parts)}:
                    await asyncio.sleep(0.02)
            house.clock.advance(590)
            await asyncio.sleep(2.0)
            assert sorted(row.status for row in await rows(parts)) == ["draining", "ready"]
            house.clock.advance(20)
            await until_gone(house, parts, left=1)


async def active(row: ReplicaRow) -> int:
    """How many answers a replica is making."""
    assert row.socket is not None
    return (await ReplicaClient(row.socket).health(timeout=10.0)).active


def waiting() -> InlineExecutor:
    """Processes that live until they are told to end, and say nothing."""
    return InlineExecutor(lambda process: 0 if process.stopping.wait(60) else 1)


async def starting(parts: Parts) -> None:
    """A deployment of one replica, whose process is started."""
    await parts.services.deployments.create(ADA, "toy", name="mine")
    for _ in range(2):  # its files are looked at, its place is filled
        await parts.deployments.once()
    await parts.replicas.once()
    assert [row.status for row in await rows(parts)] == ["starting"]


@pytest.mark.parametrize(
    ("fault", "was_ready", "silent_for", "becomes", "failed_starts"),
    [
        (ReplicaUnavailable("Nobody there."), True, 59, "starting", 0),
        (ReplicaUnavailable("Nobody there."), True, 61, "stopping", 0),
        (ReplicaUnavailable("Nobody there."), False, 3599, "starting", 0),
        (ReplicaUnavailable("Nobody there."), False, 3601, "stopping", 1),
        (NoCapacity("Many ask."), True, 3601, "starting", 0),
        (InternalError("It stumbled."), True, 0, "draining", 0),
        (InternalError("It stumbled."), False, 0, "draining", 1),
        (InvalidRequest("It never will."), False, 0, "draining", 3),
    ],
)
@on_sqlite
async def test_what_becomes_of_a_replica_that_lives_and_does_not_answer(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    was_ready: bool,
    silent_for: float,
    becomes: str,
    failed_starts: int,
) -> None:
    async def health(self: object, *, timeout: float) -> None:
        raise fault

    monkeypatch.setattr(replicas.ReplicaClient, "health", health)
    parts = serving(house, waiting())
    await starting(parts)
    if was_ready:
        async with parts.db.write() as session:
            await session.execute(update(ReplicaRow).values(ready_at=house.clock.now()))
    house.clock.advance(silent_for)
    await parts.replicas.once()
    assert [row.status for row in await rows(parts)] == [becomes]
    async with parts.db.read() as session:
        assert await session.scalar(select(DeploymentRow.failed_starts)) == failed_starts


@on_sqlite
async def test_a_replica_that_cannot_be_started_again_and_again_is_told(house: House) -> None:
    parts = serving(house, waiting())
    made = await parts.services.deployments.create(ADA, "toy")
    for _ in range(2):
        await parts.deployments.once()
    [lease] = await claim(parts.db, ReplicaRow, *parts.replicas.due())
    assert await parts.replicas.give_up(lease, OSError("no such interpreter"))
    assert [row.status for row in await rows(parts)] == ["gone"]
    found = await parts.services.deployments.get(ADA, made.id)
    assert found.error is not None and "could not be started" in found.error.message
    async with parts.db.read() as session:
        assert await session.scalar(select(DeploymentRow.failed_starts)) == 1


@on_sqlite
async def test_a_process_that_was_started_and_not_written_down_is_found_and_ended(house: House) -> None:
    executor = waiting()
    parts = serving(house, executor)
    await starting(parts)
    async with parts.db.write() as session:  # as if the server had died in between, and the deployment was scaled then
        at = house.clock.now()
        await session.execute(update(ReplicaRow).values(status="draining", draining_since=at, handle=None, socket=None))
    async with asyncio.timeout(30):
        while [row.status for row in await rows(parts)] != ["gone"]:
            await parts.replicas.once()
    assert len(executor.started) == 1
    assert executor.join(executor.started[0].name).exit_code == 0  # it was told to end


@on_sqlite
async def test_a_deployment_that_is_given_up_keeps_no_replica(house: House) -> None:
    parts = serving(house, waiting())
    await starting(parts)
    [lease] = await claim(parts.db, DeploymentRow, *parts.deployments.due())
    assert await parts.deployments.give_up(lease, RuntimeError("again"))
    assert (await parts.services.deployments.get(ADA, "mine")).status == Status.FAILED
    assert [row.status for row in await rows(parts)] == ["draining"]


async def test_a_model_that_is_deleted_meanwhile_gets_no_deployment(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await tuned(house, "toy-mine", "lora")
    catalog = house.parts.services.catalog
    find = catalog.find

    async def find_and_lose(who: Principal, name: str) -> object:
        found = await find(who, name)
        await catalog.delete(who, name)
        return found

    monkeypatch.setattr(catalog, "find", find_and_lose)
    with pytest.raises(ModelNotFound):
        await house.parts.services.deployments.create(ADA, model)
    assert (await house.parts.services.deployments.list(ADA, PageRequest())).items == []


async def test_deployments_that_end_with_their_model_leave_a_trace_once(house: House) -> None:
    deployments = house.parts.services.deployments
    model = await tuned(house, "toy-mine", "lora")
    made = [(await deployments.create(ADA, model)).id for _ in range(2)]
    await deployments.delete(ADA, made[0])
    house.clock.advance(10)
    await deployments.delete_model(ADA, model)
    async with house.parts.db.read() as session:
        deeds = select(AuditRow.subject).where(AuditRow.deed == "deployment.deleted").order_by(AuditRow.subject)
        assert list(await session.scalars(deeds)) == made
    assert (await deployments.get(ADA, made[1])).changed_at == house.clock.now()


@pytest.mark.parametrize("capacity", [0, -1, MOST_REPLICAS + 1])
async def test_how_many_replicas_is_limited(house: House, capacity: int) -> None:
    deployments = house.parts.services.deployments
    with pytest.raises(InvalidParameter, match=f"from 1 to {MOST_REPLICAS}"):
        await deployments.create(ADA, "toy", capacity=capacity)
    made = await deployments.create(ADA, "toy")
    with pytest.raises(InvalidParameter, match=f"from 1 to {MOST_REPLICAS}"):
        await deployments.scale(ADA, made.id, capacity)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 161, "deploy-0123456789abcdefghjkmnpq"])
async def test_a_name_that_does_not_fit_is_refused(house: House, name: str) -> None:
    with pytest.raises(InvalidParameter, match="name"):
        await house.parts.services.deployments.create(ADA, "toy", name=name)


async def test_a_name_leads_to_one_thing_only(house: House) -> None:
    deployments = house.parts.services.deployments
    await tuned(house, "toy-mine", "lora")
    await deployments.create(ADA, "toy", name="mine")
    for taken in ("toy", "toy-mine", "mine"):
        with pytest.raises(AlreadyExists):
            await deployments.create(ADA, "toy", name=taken)
    await deployments.create(BOB, "toy", name="mine")  # private to each project


async def test_another_projects_deployment_is_not_there(house: House) -> None:
    deployments = house.parts.services.deployments
    made = await deployments.create(ADA, "toy", name="mine")
    for name in (made.id, "mine"):
        with pytest.raises(DeploymentNotFound):
            await deployments.get(BOB, name)
        with pytest.raises(DeploymentNotFound):
            await deployments.scale(BOB, name, 2)
        with pytest.raises(DeploymentNotFound):
            await deployments.delete(BOB, name)
        with pytest.raises(ModelNotFound):
            await deployments.resolve(BOB, name)
    assert (await deployments.list(BOB, PageRequest())).items == []
    await tuned(house, "toy-mine", "full")
    with pytest.raises(ModelNotFound):
        await deployments.create(BOB, "toy-mine")


async def test_deployments_are_listed_by_page_the_newest_first(house: House) -> None:
    deployments = house.parts.services.deployments
    made = [(await deployments.create(ADA, "toy")).id for _ in range(3)]
    first = await deployments.list(ADA, PageRequest(limit=2))
    assert ([one.id for one in first.items], first.has_more) == (made[:0:-1], True)
    rest = await deployments.list(ADA, PageRequest(limit=2, after=made[1]))
    assert ([one.id for one in rest.items], rest.has_more) == (made[:1], False)
    page = await deployments.numbered(ADA, 2, 2)
    assert ([one.id for one in page.items], page.total) == (made[:1], 3)
