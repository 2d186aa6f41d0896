"""luthier keys: create, list, revoke; on the server's own machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from luthier.cli.console import Json, err, out, print_json, table
from luthier.cli.serve import Data, settings_with
from luthier.control.accounts.service import Accounts, ApiKey
from luthier.control.accounts.vault import Vault
from luthier.control.db import Database
from luthier.control.tenancy import Principal
from luthier.core.clock import SystemClock

app = typer.Typer(help="API keys, on the server's own machine.", no_args_is_help=True)
T = TypeVar("T")


@app.command()
def create(name: Annotated[str, typer.Argument(help="What it is for.")], data: Data = None, json: Json = False) -> None:
    """Make a key; its secret is shown this once."""
    key = _with_accounts(data, lambda accounts, who: accounts.create_key(who, name))
    if json:
        print_json({"key": key})
        return
    err.print("It is shown this once; keep it:")
    print(key)


@app.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """List the keys, without their secrets."""
    keys = _with_accounts(data, lambda accounts, who: accounts.list_keys(who))
    if json:
        print_json([_shown(key) for key in keys])
        return
    rows = ((k.id, k.name, f"{k.created_at:%Y-%m-%d %H:%M}", "revoked" if k.revoked_at else "valid") for k in keys)
    table(("id", "name", "created", ""), rows)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The part before the dot.")], data: Data = None, json: Json = False
) -> None:
    """End a key at once."""
    key = _with_accounts(data, lambda accounts, who: accounts.revoke(who, key_id))
    if json:
        print_json(_shown(key))
        return
    out.print(f"{key_id} is revoked")


def _shown(key: ApiKey) -> dict[str, str | None]:
    return {name: None if value is None else str(value) for name, value in asdict(key).items()}


def _with_accounts(data: Path | None, act: Callable[[Accounts, Principal], Awaitable[T]]) -> T:
    async def acted() -> T:
        settings = settings_with(data)
        folder = settings.server.data
        folder.mkdir(parents=True, exist_ok=True)
        db = Database(settings.database_url)
        try:
            await db.migrate()
            accounts = Accounts(db, Vault(folder / "server.key"), SystemClock())
            return await act(accounts, await accounts.operator())
        finally:
            await db.close()

    return asyncio.run(acted())
