"""What a name in "model" leads to, which base models can be trained, and the publishing of what was trained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control import audit
from luthier.control.catalog import cards
from luthier.control.catalog.cards import ModelCard
from luthier.control.catalog.queries import ModelQueries
from luthier.control.catalog.tables import ModelRow
from luthier.control.db import Database
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import InvalidParameter, InvalidRequest, MethodNotAllowed, ModelNotDeployed, ModelNotFound
from luthier.core.pages import NumberedPage
from luthier.core.recent import Recent
from luthier.core.registry import MissingLibrary
from luthier.serving.protocol import AdapterRef
from luthier.storage import Storage
from luthier.training.methods.base import methods


@dataclass(frozen=True)
class NamedModel:
    """A model as it is listed. `kind` is base, fine_tuned or checkpoint; `base_model`, `job` and `method` are where it comes
    from. `is_callable`: it answers by its name at once.
    """

    name: str
    owned_by: str
    created_at: datetime
    kind: str
    base_model: str
    job: str | None = None
    method: str | None = None
    is_callable: bool = True


@dataclass(frozen=True)
class Servable:
    """What answers for a name: a model's weights, and the adapter on it; None for the weights themselves.

    `tokenizer` is the folder of tokenizer and template where they do not lie beside the weights. `deployment` is whose replicas
    answer; None: the shared pool.
    """

    name: str
    base_model: str
    weights: str
    weights_sha256: str
    renderer_sha256: str
    adapter: AdapterRef | None
    tokenizer: str | None = None
    deployment: str | None = None


@dataclass(frozen=True)
class Loadable:
    """What a replica of its own loads for a model: what `method` made of a base model, or that itself (None).

    Of a whole model, which lies in `weights` without a tokenizer, `artifact_sha256` is over all its files; `weights_sha256` is
    None, since nobody has looked at the weights alone yet.
    """

    model: str
    method: str | None
    base_model: str
    weights: str
    weights_sha256: str | None
    renderer_sha256: str | None
    adapter: AdapterRef | None = None
    tokenizer: str | None = None
    artifact_sha256: str | None = None


class Catalog:
    def __init__(self, db: Database, storage: Storage, clock: Clock) -> None:
        self.db = db
        self.storage = storage
        self.clock = clock
        self._cards: Recent[str, tuple[ModelCard | None]] = Recent(seconds=1.0)

    async def trainable(self, name: str, method: str) -> ModelCard:
        """The card of a base model that offers the method. Raises ModelNotFound or MethodNotAllowed."""
        card = await asyncio.to_thread(cards.installed, self.storage, name)
        if card is None:
            raise await self.unknown(name)
        if method not in card.methods:
            raise MethodNotAllowed(
                f"{name} does not offer the method {method!r}; it offers {', '.join(card.methods)}.", param="method"
            )
        return card

    async def resolve(self, who: Principal, name: str) -> Servable:
        """Whatever `name` leads to for this caller. A base model that was replaced may answer as it was for a second, and one
        that was asked for before it was added may be unknown for a second.

        Raises ModelNotFound, which tells what there is, and ModelNotDeployed for a model that no shared replica can answer
        for.
        """
        found = await self.find(who, name)
        if found is None:
            raise await self.unknown(name)
        return offered(name, found)

    async def find(self, who: Principal, name: str) -> Loadable | None:
        """The base model, the fine-tuned model or the checkpoint of that name, deployed or not; as old as with `resolve`."""
        card = await self._recent_card(name)
        if card is not None:
            return Loadable(name, None, name, card.weights, card.weights_sha256, card.renderer_sha256)
        async with self.db.read() as session:
            row = await ModelQueries(session, who).named(name)
        return None if row is None else _loadable(row)

    async def context_length(self, model: Servable) -> int | None:
        """Tokens that a model can read; None when its base model is not installed any more."""
        card = await self._recent_card(model.base_model)
        return card.context_length if card is not None else None

    async def list(self, who: Principal) -> list[NamedModel]:
        """Base models, then the caller's fine-tuned ones."""
        base = await asyncio.to_thread(cards.all_installed, self.storage)
        async with self.db.read() as session:
            tuned = await ModelQueries(session, who).fine_tuned()
        return [_of_card(card) for card in base] + [_of_row(row) for row in tuned]

    async def numbered(self, who: Principal, number: int, size: int) -> NumberedPage[NamedModel]:
        """What `list` lists; `number` counts pages from 1."""
        base = await asyncio.to_thread(cards.all_installed, self.storage)
        first = (number - 1) * size
        shown = [_of_card(card) for card in base[first : first + size]]
        async with self.db.read() as session:
            queries = ModelQueries(session, who)
            tuned = await queries.fine_tuned(limit=size - len(shown), offset=max(first - len(base), 0))
            total = len(base) + await queries.count_fine_tuned()
        return NumberedPage([*shown, *map(_of_row, tuned)], number, size, total)

    async def get(self, who: Principal, name: str) -> NamedModel:
        card = await asyncio.to_thread(cards.installed, self.storage, name)
        if card is not None:
            return _of_card(card)
        async with self.db.read() as session:
            row = await ModelQueries(session, who).named(name)
        if row is None:
            raise await self.unknown(name)
        return _of_row(row)

    async def delete(
        self,
        who: Principal,
        name: str,
        *nudges: str,
        with_it: Callable[[AsyncSession], Awaitable[None]] | None = None,
    ) -> None:
        """End a fine-tuned model or a checkpoint, and in the same transaction what ends `with_it`: the next call by its name
        fails. Raises InvalidRequest for a base model.
        """
        if await asyncio.to_thread(cards.installed, self.storage, name) is not None:
            raise InvalidRequest(f"{name} is a base model; only fine-tuned models can be deleted.", param="model")
        async with self.db.write(*nudges) as session:
            row = await ModelQueries(session, who).named(name)
            if row is None:
                raise await self.unknown(name)
            row.deleted_at = self.clock.now()
            audit.note(session, who, "model.deleted", row.id, self.clock)
            if with_it is not None:
                await with_it(session)

    def publish(
        self,
        session: AsyncSession,
        project: str,
        name: str,
        kind: str,
        trained: Trained,
        step: int,
        artifact: AdapterRef,
    ) -> None:
        """Give an artifact a name, in the caller's transaction."""
        session.add(
            ModelRow(
                id=artifact.id,
                project_id=project,
                name=name,
                kind=kind,
                method=trained.method,
                artifact_kind=_artifact_kind(trained.method),
                job_id=trained.job,
                step=step,
                base_model=trained.base_model,
                weights=trained.weights,
                weights_sha256=trained.weights_sha256,
                artifact_key=artifact.key,
                artifact_sha256=artifact.sha256,
                artifact_identity=artifact.identity,
                renderer_sha256=artifact.renderer_sha256,
                created_at=self.clock.now(),
                deleted_at=None,
            )
        )

    async def unknown(self, name: str) -> ModelNotFound:
        """The error that there is no such model, which tells what there is."""
        base = [card.name for card in await asyncio.to_thread(cards.all_installed, self.storage)]
        known = (
            f"Base models: {', '.join(base)}."
            if base
            else "No base model is installed: `luthier models add NAME PATH`."
        )
        return ModelNotFound(f"There is no model {name!r}.", param="model", hint=known)

    async def _recent_card(self, name: str) -> ModelCard | None:
        """What `installed` says, or said within the last second; that there is no card is kept too, as a tuned model has none."""

        async def read() -> tuple[ModelCard | None]:
            return (await asyncio.to_thread(cards.installed, self.storage, name),)

        kept = await self._cards.get(name, read)
        return kept[0] if kept is not None else None


@dataclass(frozen=True)
class Trained:
    """Where an artifact comes from."""

    job: str
    method: str
    base_model: str
    weights: str
    weights_sha256: str


def artifact_id() -> str:
    """A new id for an artifact's bytes."""
    return ids.new("art")


def _of_card(card: ModelCard) -> NamedModel:
    return NamedModel(card.name, card.owned_by, card.installed_at, "base", card.name)


def _of_row(row: ModelRow) -> NamedModel:
    return NamedModel(
        row.name,
        row.project_id,
        row.created_at,
        row.kind,
        row.base_model,
        job=row.job_id,
        method=row.method,
        is_callable=answers_at_once(row.method),
    )


def _loadable(row: ModelRow) -> Loadable:
    made = (row.name, row.method, row.base_model)
    if row.artifact_kind == "model":
        return Loadable(
            *made,
            row.artifact_key,
            None,
            row.renderer_sha256,
            tokenizer=row.weights,
            artifact_sha256=row.artifact_sha256,
        )
    adapter = AdapterRef(
        id=row.id,
        key=row.artifact_key,
        sha256=row.artifact_sha256,
        identity=row.artifact_identity,
        renderer_sha256=row.renderer_sha256,
    )
    return Loadable(*made, row.weights, row.weights_sha256, row.renderer_sha256, adapter)


def offered(name: str, found: Loadable) -> Servable:
    """A model that was found by that name, as the shared pool answers for it. Raises ModelNotDeployed where it cannot."""
    if found.method is not None and not answers_at_once(found.method):
        raise ModelNotDeployed(
            f"The model {name!r} was made by {found.method}; it must be deployed before it can answer.",
            param="model",
            hint=f"Run `luthier deployments create -m {name}`, or POST /api/platform/deployments. "
            "A model that is trained by lora answers at once.",
        )
    assert found.weights_sha256 is not None
    told = found.renderer_sha256 or ""
    return Servable(name, found.base_model, found.weights, found.weights_sha256, told, found.adapter)


def answers_at_once(method: str) -> bool:
    """Whether the running base model can answer with what a method makes. Of one that is not installed any more nothing can."""
    try:
        return methods.load(method).is_shared
    except (InvalidParameter, MissingLibrary):
        return False


def _artifact_kind(method: str) -> str:
    """Of a method that is not installed any more: what no running model takes."""
    try:
        return methods.load(method).artifact_kind
    except (InvalidParameter, MissingLibrary):
        return "model"
