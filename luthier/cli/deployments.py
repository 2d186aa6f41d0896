"""luthier deployments: list, create, scale, delete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.client import DEFAULT_URL, Key, Refused, Url, connected
from luthier.cli.console import Json, err, literal, out, print_json, table

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(help="Models on replicas of their own.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The deployment's name or id.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Return when every replica answers, or when it has failed.")]
_STUCK_SECONDS = 300.0  # that something has gone wrong and nothing changes any more
_UNDER_WAY = ("pending", "deploying", "updating")


@app.command()
def create(
    model: Annotated[str, typer.Option("--model", "-m", help="Base model, tuned model or checkpoint.")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What requests write as their model; one is made when absent.")
    ] = None,
    capacity: Annotated[int, typer.Option("--capacity", "-c", help="Replicas, 1 to 64.")] = 1,
    wait: Wait = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Have replicas of its own answer with a model."""
    with connected(url, key) as client:
        sent = {"model": model, "name": name, "capacity": capacity}
        made = client.post(_address(url), body=sent, cast_to=dict[str, Any])
        if wait:
            made = _awaited(client, url, made)
    _judge(made, json)


@app.command("list")
def list_(url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """List the deployments, newest first."""
    found: list[dict[str, Any]] = []
    with connected(url, key) as client:
        has_more = True
        while has_more:
            after = f"&after={found[-1]['id']}" if found else ""
            page = client.get(f"{_address(url)}?limit=100{after}", cast_to=dict[str, Any])
            found += page["data"]
            has_more = page["has_more"]
    if json:
        print_json(found)
        return
    rows = ((one["name"], one["status"], f"{one['ready']}/{one['capacity']}", one["model"], one["id"]) for one in found)
    table(("name", "status", "replicas", "model", "id"), rows)


@app.command()
def scale(
    name: Name,
    capacity: Annotated[int, typer.Option("--capacity", "-c", help="Replicas from now on, 1 to 64.")],
    wait: Wait = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Have more or fewer replicas; no request fails by it."""
    with connected(url, key) as client:
        scaled = client.patch(_address(url, name), body={"capacity": capacity}, cast_to=dict[str, Any])
        if wait:
            scaled = _awaited(client, url, scaled)
    _judge(scaled, json)


@app.command()
def delete(name: Name, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """End a deployment: nobody new is answered from now on."""
    with connected(url, key) as client:
        gone = client.delete(_address(url, name), cast_to=dict[str, Any])
    if json:
        print_json(gone)
        return
    out.print(f"{gone['name']} is {gone['status']}")


def _address(url: str, name: str = "") -> str:
    """Of our own API, which lies beside the one that the client speaks."""
    return f"{url.rstrip('/')}/api/platform/deployments{name and f'/{name}'}"


def _awaited(client: OpenAI, url: str, found: dict[str, Any]) -> dict[str, Any]:
    """Raises Refused where it does not come any further."""
    moved_at, before = time.monotonic(), _state(found)
    with err.status(literal(f"deploying {found['name']}")):
        while found["status"] in _UNDER_WAY:
            time.sleep(0.5)
            found = client.get(_address(url, found["id"]), cast_to=dict[str, Any])
            if before != _state(found) or found["error"] is None:
                moved_at, before = time.monotonic(), _state(found)
            elif time.monotonic() - moved_at > _STUCK_SECONDS:
                raise Refused(f"The deployment {found['name']} is still {found['status']}: {found['error']['message']}")
    return found


def _state(found: dict[str, Any]) -> tuple[str, int]:
    return found["status"], found["ready"]


def _judge(found: dict[str, Any], json: bool) -> None:
    if json:
        print_json(found)
    if found["status"] == "failed":
        raise Refused(f"The deployment {found['name']} failed: {found['error']['message']}")
    if not json:
        answering = f"{found['ready']} of {found['capacity']} replicas answer"
        out.print(f"{found['name']} is {found['status']} ({answering}); its id is {found['id']}", soft_wrap=True)
