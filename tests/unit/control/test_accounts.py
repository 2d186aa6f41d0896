"""Projects and keys: the first one, more, revoked ones, and what is sealed where."""

from __future__ import annotations

import hmac
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from luthier.control.accounts.service import Accounts
from luthier.control.accounts.tables import KeyRow
from luthier.control.accounts.vault import Vault
from luthier.control.audit import AuditRow
from luthier.control.db import Database
from luthier.core.clock import FakeClock
from luthier.core.errors import InternalError, InvalidParameter, NotFound, Unauthenticated
from tests.unit.control.conftest import ADA, BOB, add_projects

BOOTSTRAP = "first." + "s" * 32


@pytest.fixture
def accounts(database: Database, tmp_path: Path, clock: FakeClock) -> Accounts:
    return Accounts(database, Vault(tmp_path / "server.key"), clock)


async def test_the_first_key_is_made_once_and_speaks_for_the_default_project(accounts: Accounts) -> None:
    key = await accounts.found(None)
    assert key is not None
    assert await accounts.found(None) is None
    who = await accounts.authenticate(key)
    assert who.project == (await accounts.operator()).project
    assert [one.id for one in await accounts.list_keys(who)] == [key.split(".")[0]] == [who.id]


async def test_a_bootstrap_key_becomes_the_first_key_and_is_not_told_again(accounts: Accounts) -> None:
    assert await accounts.found(BOOTSTRAP) is None
    assert await accounts.found(BOOTSTRAP) is None
    assert (await accounts.authenticate(BOOTSTRAP)).id == "first"
    assert len(await accounts.list_keys(await accounts.operator())) == 1


async def test_a_bootstrap_key_may_come_later_and_its_new_secret_holds(accounts: Accounts) -> None:
    made = await accounts.found(None)
    assert made is not None
    await accounts.found(BOOTSTRAP)
    await accounts.found("first." + "t" * 32)
    await accounts.authenticate(made)
    await accounts.authenticate("first." + "t" * 32)
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(BOOTSTRAP)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "first",
        "first.",
        "first.short",
        ".x" * 40,
        f"{BOOTSTRAP}.x",
        f"{BOOTSTRAP}\n",
        f"a b.{'s' * 32}",
        "é." + "s" * 32,
    ],
)
async def test_a_bootstrap_key_of_another_form_is_refused_before_anything_is_made(accounts: Accounts, key: str) -> None:
    with pytest.raises(InvalidParameter, match=r"<id>\.<secret>"):
        await accounts.found(key)
    async with accounts.db.read() as session:
        assert list(await session.scalars(select(KeyRow))) == []


async def test_keys_are_made_listed_and_revoked_by_their_own_project_alone(accounts: Accounts) -> None:
    await add_projects(accounts.db)
    key = await accounts.create_key(ADA, "laptop")
    who = await accounts.authenticate(key)
    assert (who.project, who.sees_all) == (ADA.project, False)
    assert [one.name for one in await accounts.list_keys(ADA)] == ["laptop"]
    assert await accounts.list_keys(BOB) == []
    with pytest.raises(NotFound):
        await accounts.revoke(BOB, who.id)
    revoked = await accounts.revoke(ADA, who.id)
    assert revoked.revoked_at is not None
    assert await accounts.revoke(ADA, who.id) == revoked
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(key)
    async with accounts.db.read() as session:
        deeds = await session.scalars(select(AuditRow.deed).order_by(AuditRow.id))
        assert list(deeds) == ["key.created", "key.revoked"]


@pytest.mark.parametrize("name", ["", "x" * 129])
async def test_a_key_needs_a_name_of_a_sensible_length(accounts: Accounts, name: str) -> None:
    with pytest.raises(InvalidParameter):
        await accounts.create_key(ADA, name)


WRONG = {
    "unknown id": "nobody." + "s" * 32,
    "wrong secret": "first." + "t" * 32,
    "no secret": "first.",
    "no dot": "first",
    "nothing": "",
    "a piece of the secret": "first." + "s" * 31,
    "not ASCII": "first.é",
    "revoked": "",
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_key_gets_the_same_answer_and_the_same_work_whatever_is_wrong(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    await accounts.found(BOOTSTRAP)
    if case == "revoked":
        await accounts.revoke(await accounts.operator(), "first")
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    with pytest.raises(Unauthenticated) as refused:
        await accounts.authenticate(BOOTSTRAP if case == "revoked" else WRONG[case])
    assert refused.value.message == "The API key is not valid."
    assert len(compared) == 1  # in a time that tells nothing, also where there is nothing to compare with


def test_a_sealed_secret_opens_only_under_its_own_key_and_id(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "one.key")
    sealed = vault.seal("a secret", bound_to="key-1")
    assert b"secret" not in sealed
    assert sealed != vault.seal("a secret", bound_to="key-1")
    assert Vault(tmp_path / "one.key").open(sealed, bound_to="key-1") == "a secret"
    with pytest.raises(InternalError):
        vault.open(sealed, bound_to="key-2")
    with pytest.raises(InternalError, match="does not open"):
        Vault(tmp_path / "other.key").open(sealed, bound_to="key-1")
    with pytest.raises(InternalError):
        vault.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), bound_to="key-1")


def test_the_server_key_is_made_once_even_by_many_at_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def seal(number: int) -> bytes:
        together.wait()
        return Vault(tmp_path / "deep/server.key").seal(str(number), bound_to="x")

    with ThreadPoolExecutor(8) as threads:
        sealed = list(threads.map(seal, range(8)))
    vault = Vault(tmp_path / "deep/server.key")
    assert [vault.open(one, bound_to="x") for one in sealed] == [str(number) for number in range(8)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["server.key"]
    assert (tmp_path / "deep/server.key").stat().st_mode & 0o777 == 0o600


def test_a_server_key_that_is_no_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_bytes(b"short")
    with pytest.raises(InternalError, match="must hold 32 bytes, it holds 5"):
        Vault(tmp_path / "server.key")
