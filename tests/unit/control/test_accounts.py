"""Projects and keys: the first one, more, revoked ones, and what is sealed where."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    "two dots": f"{BOOTSTRAP}.x",
    "a newline behind": f"{BOOTSTRAP}\n",
    "very long": f"{BOOTSTRAP}{'s' * 100_000}",
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


async def test_a_revoked_key_ends_at_once_here_and_within_a_second_elsewhere(accounts: Accounts) -> None:
    elsewhere = Accounts(accounts.db, accounts.vault, accounts.clock)
    await accounts.found(BOOTSTRAP)
    await accounts.authenticate(BOOTSTRAP)
    await elsewhere.authenticate(BOOTSTRAP)
    await accounts.revoke(await accounts.operator(), "first")
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(BOOTSTRAP)
    await asyncio.sleep(1.0)
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(BOOTSTRAP)


async def test_a_key_is_read_once_for_many_calls_and_each_call_is_still_proved(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accounts.found(BOOTSTRAP)
    opened: list[str] = []
    open_ = accounts.vault.open
    monkeypatch.setattr(
        accounts.vault,
        "open",
        lambda sealed, *, bound_to: (opened.append(bound_to), open_(sealed, bound_to=bound_to))[1],
    )
    await asyncio.gather(*(accounts.authenticate(BOOTSTRAP) for _ in range(50)))
    for wrong in (WRONG["wrong secret"], WRONG["no secret"], WRONG["no dot"]):
        with pytest.raises(Unauthenticated):
            await accounts.authenticate(wrong)
    assert opened == ["first"]


NOW_MS = int(FakeClock().now().timestamp() * 1000)
HEADER = {"alg": "HS256", "sign_type": "SIGN", "typ": "JWT"}
PAYLOAD = {"api_key": "first", "exp": NOW_MS + 210_000, "timestamp": NOW_MS}
DAY_MS = 24 * 3600 * 1000


def compact(value: Any) -> bytes:
    """As the clients' library writes it: with this header a token has the shape of a key, but for its second dot."""
    return json.dumps(value, separators=(",", ":")).encode()


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token(
    payload: Any = PAYLOAD,
    header: Any = HEADER,
    *,
    secret: str = BOOTSTRAP.partition(".")[2],
    digest: Any = hashlib.sha256,
) -> str:
    """As the clients make it; whoever knows the secret can sign whatever they like."""
    parts = [part if isinstance(part, bytes) else compact(part) for part in (header, payload)]
    signed = ".".join(map(base64url, parts))
    return f"{signed}.{base64url(hmac.new(secret.encode(), signed.encode(), digest).digest())}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"exp": NOW_MS + 1},
        {"exp": NOW_MS + DAY_MS},
        {"exp": NOW_MS + 1000.5},
        {"timestamp": None},
        {"more": ["besides"]},
    ],
)
async def test_a_token_signed_with_a_key_speaks_for_it(accounts: Accounts, changes: dict[str, Any]) -> None:
    await accounts.found(BOOTSTRAP)
    assert (await accounts.authenticate(token(PAYLOAD | changes))).id == "first"


async def test_a_token_that_was_good_expires_and_ends_with_its_key(accounts: Accounts, clock: FakeClock) -> None:
    await accounts.found(BOOTSTRAP)
    await accounts.authenticate(token())
    clock.advance(209.999)
    await accounts.authenticate(token())
    clock.advance(0.001)
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(token())
    later = token(PAYLOAD | {"exp": NOW_MS + DAY_MS})
    await accounts.authenticate(later)
    await accounts.revoke(await accounts.operator(), "first")
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(later)


WITHOUT_EXP = {"api_key": "first", "timestamp": NOW_MS}
GOOD = token()
WRONG_TOKENS = {
    "another secret": token(secret="t" * 32),
    "no secret": token(secret=""),
    "the key as the secret": token(secret=BOOTSTRAP),
    "another id": token(PAYLOAD | {"api_key": "second"}),
    "no id": token({"exp": NOW_MS + 1000}),
    "an id that is a number": token(PAYLOAD | {"api_key": 1}),
    "an id that is a list": token(PAYLOAD | {"api_key": ["first"]}),
    "an id with U+0000": token(PAYLOAD | {"api_key": "first\0"}),
    "an id with half a character": token(PAYLOAD | {"api_key": "\ud800"}),
    "the whole key as the id": token(PAYLOAD | {"api_key": BOOTSTRAP}),
    "alg none": token(header=HEADER | {"alg": "none"}),
    "alg none without a signature": f"{token(header=HEADER | {'alg': 'none'}).rpartition('.')[0]}.",
    "alg hs256": token(header=HEADER | {"alg": "hs256"}),
    "alg HS512": token(header=HEADER | {"alg": "HS512"}, digest=hashlib.sha512),
    "HS256 by its name, HS512 by its signature": token(digest=hashlib.sha512),
    "alg RS256": token(header=HEADER | {"alg": "RS256"}),
    "alg in a list": token(header=HEADER | {"alg": ["HS256"]}),
    "no alg": token(header={"sign_type": "SIGN"}),
    "an extension that must be understood": token(header=HEADER | {"crit": ["b64"], "b64": False}),
    "expired": token(PAYLOAD | {"exp": NOW_MS}),
    "seconds for milliseconds": token(PAYLOAD | {"exp": NOW_MS // 1000 + 210}),
    "good for more than a day": token(PAYLOAD | {"exp": NOW_MS + DAY_MS + 1}),
    "no exp": token(WITHOUT_EXP),
    "exp null": token(PAYLOAD | {"exp": None}),
    "exp true": token(PAYLOAD | {"exp": True}),
    "exp a text": token(PAYLOAD | {"exp": str(NOW_MS + 1000)}),
    "exp infinite": token(PAYLOAD | {"exp": float("inf")}),
    "exp not a number": token(PAYLOAD | {"exp": float("nan")}),
    "exp enormous": token(b'{"api_key": "first", "exp": 1' + b"0" * 400 + b"}"),
    "exp of too many digits": token(b'{"api_key": "first", "exp": 1' + b"0" * 2900 + b"}"),
    "a payload that is no object": token(b"[1]"),
    "a payload that is no JSON": token(b"{"),
    "a payload that is no UTF-8": token(b'{"api_key": "\xff"}'),
    "a payload that is nested deeply": token(b"[" * 2900),
    "a header that is no object": token(header=b"1"),
    "a header that is no JSON": token(header=b"\xff\xfe"),
    "no signature": f"{GOOD.rpartition('.')[0]}.",
    "a piece of the signature": GOOD[:-1],
    "a signature with padding": f"{GOOD}=",
    "a part too many": f"{GOOD}.x",
    "base64 of an impossible length": f"a.{GOOD.partition('.')[2]}",
    "not base64": GOOD.replace(".", "!.", 1),
}


@pytest.mark.parametrize("case", WRONG_TOKENS)
async def test_a_wrong_token_gets_the_same_answer_as_a_wrong_key(accounts: Accounts, case: str) -> None:
    await accounts.found(BOOTSTRAP)
    with pytest.raises(Unauthenticated) as refused:
        await accounts.authenticate(WRONG_TOKENS[case])
    assert refused.value.message == "The API key is not valid."


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NEARLY = st.builds(
    lambda payload, header: token(payload, header),
    st.dictionaries(st.sampled_from(["api_key", "exp"]), JSON_VALUES).map(lambda some: PAYLOAD | some),
    st.dictionaries(st.sampled_from(["alg", "crit"]), JSON_VALUES, min_size=1).map(lambda some: HEADER | some),
)
DOTTED = st.lists(st.text(st.characters(min_codepoint=45, max_codepoint=122)), min_size=1, max_size=4).map(".".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(garbage=st.text() | DOTTED | NEARLY | st.binary().map(lambda payload: token(payload)))
async def test_garbage_is_refused_and_never_a_fault_of_ours(accounts: Accounts, garbage: str) -> None:
    await accounts.found(BOOTSTRAP)
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(garbage)


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
