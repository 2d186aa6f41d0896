"""Projects and keys: the first key, more keys, and who a key speaks for."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control import audit
from luthier.control.accounts import claims
from luthier.control.accounts.queries import AccountQueries
from luthier.control.accounts.tables import KeyRow, ProjectRow
from luthier.control.accounts.vault import Vault
from luthier.control.db import Database
from luthier.control.tenancy import SYSTEM, SYSTEM_PROJECT, Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import InvalidParameter, NotFound, Unauthenticated
from luthier.core.recent import Recent

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{32,256}")


@dataclass(frozen=True)
class ApiKey:
    """A key as it is listed: without its secret."""

    id: str
    name: str
    project: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class _Valid:
    """A key that was not revoked when it was read."""

    secret: str
    who: Principal


class Accounts:
    def __init__(self, db: Database, vault: Vault, clock: Clock) -> None:
        self.db = db
        self.vault = vault
        self.clock = clock
        self._keys: Recent[str, _Valid] = Recent(seconds=1.0)

    async def found(self, bootstrap_key: str | None) -> str | None:
        """Make the projects and the first key when there are none; the key comes back once, when it was made here.

        A `bootstrap_key` (<id>.<secret>) that is not known yet becomes a key too; nothing comes back for it.
        Raises InvalidParameter when it has another form.
        """
        if bootstrap_key is not None and not _KEY.fullmatch(bootstrap_key):
            raise InvalidParameter(
                "bootstrap_key",
                "must be <id>.<secret>: letters, digits, - and _, one dot, a secret of at least 32 characters",
                hint="Try: python3 -c 'import secrets; print(\"first.\" + secrets.token_hex(20))'",
            )
        made = await self._found(bootstrap_key)
        self._keys.forget_all()
        return made

    async def create_key(self, who: Principal, name: str) -> str:
        """A new key of the caller's project; its secret is shown this once."""
        if not 1 <= len(name) <= 128:
            raise InvalidParameter("name", "must have 1 to 128 characters")
        async with self.db.write() as session:
            return self._add(session, who, *_generated(), name)

    async def list_keys(self, who: Principal) -> list[ApiKey]:
        async with self.db.read() as session:
            return [_api_key(row) for row in await AccountQueries(session, who).keys()]

    async def revoke(self, who: Principal, key_id: str) -> ApiKey:
        """End a key: here at once, in other processes within a second. Revoking it again changes nothing."""
        async with self.db.write() as session:
            row = await AccountQueries(session, who).key(key_id)
            if row is None:
                raise NotFound(f"There is no key {key_id!r}.", hint="List them with `luthier keys list`.")
            if row.revoked_at is None:
                row.revoked_at = self.clock.now()
                audit.note(session, who, "key.revoked", key_id, self.clock)
        self._keys.forget(key_id)
        return _api_key(row)

    async def operator(self) -> Principal:
        """Who a person at the server's own machine acts as: the default project."""
        async with self.db.read() as session:
            projects = await AccountQueries(session, SYSTEM).projects()
        return Principal(id="operator", project=next(p.id for p in projects if p.id != SYSTEM_PROJECT))

    async def authenticate(self, key: str) -> Principal:
        """Who a key speaks for, sent as it is or as a token signed with it (claims.py).

        Raises Unauthenticated, with the same words whatever is wrong with it.
        """
        claim = claims.read(key, self.clock.now())
        valid = None
        if claim.key_id is not None:
            valid = await self._keys.get(claim.key_id, partial(self._valid, claim.key_id))
        if not claim.is_proved_by(valid.secret if valid else secrets.token_hex(20)) or valid is None:
            raise Unauthenticated(
                "The API key is not valid.",
                hint="Keys are listed by `luthier keys list` and made by `luthier keys create`.",
            )
        return valid.who

    async def _found(self, bootstrap_key: str | None) -> str | None:
        async with self.db.write() as session:
            queries = AccountQueries(session, SYSTEM)
            if not await queries.projects():
                for project, name in ((SYSTEM_PROJECT, "system"), (ids.new("proj"), "default")):
                    session.add(ProjectRow(id=project, name=name, created_at=self.clock.now()))
                await session.flush()
            default = next(p for p in await queries.projects() if p.id != SYSTEM_PROJECT)
            who = Principal(id="system", project=default.id)
            if bootstrap_key is not None:
                key_id, secret = bootstrap_key.split(".")
                row = await queries.key(key_id)
                if row is None:
                    self._add(session, who, key_id, secret, "first key")
                else:  # the operator's setting is what holds
                    row.sealed_secret, row.revoked_at = self.vault.seal(secret, bound_to=key_id), None
                return None
            if await queries.keys():
                return None
            return self._add(session, who, *_generated(), "first key")

    async def _valid(self, key_id: str) -> _Valid | None:
        async with self.db.read() as session:
            row = await AccountQueries(session, SYSTEM).key(key_id)
        if row is None or row.revoked_at is not None:
            return None
        return _Valid(self.vault.open(row.sealed_secret, bound_to=row.id), Principal(id=row.id, project=row.project_id))

    def _add(self, session: AsyncSession, who: Principal, key_id: str, secret: str, name: str) -> str:
        session.add(
            KeyRow(
                id=key_id,
                project_id=who.project,
                name=name,
                sealed_secret=self.vault.seal(secret, bound_to=key_id),
                created_at=self.clock.now(),
                revoked_at=None,
            )
        )
        audit.note(session, who, "key.created", key_id, self.clock)
        return f"{key_id}.{secret}"


def _generated() -> tuple[str, str]:
    """An id and a secret of 256 bits, as one key with exactly one dot."""
    return ids.new("key").replace("key-", "lk"), secrets.token_hex(32)


def _api_key(row: KeyRow) -> ApiKey:
    return ApiKey(row.id, row.name, row.project_id, row.created_at, row.revoked_at)
