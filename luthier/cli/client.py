"""The server that a verb speaks to, through the official client; its errors in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.errors import LuthierError, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from openai import APIError, OpenAI

Url = Annotated[
    str, typer.Option("--url", envvar="LUTHIER_URL", help="Where the server is.", show_default="http://127.0.0.1:8321")
]
Key = Annotated[str | None, typer.Option("--key", envvar="LUTHIER_API_KEY", help="API key, <id>.<secret>.")]

DEFAULT_URL = "http://127.0.0.1:8321"


class Refused(LuthierError):
    code = "refused"


@contextmanager
def connected(url: str, key: str | None) -> Iterator[OpenAI]:
    """The official client on that server. What goes wrong inside is raised as a LuthierError that says what to do."""
    import openai  # heavy, and only these verbs need it

    if not key:
        raise Unauthenticated(
            "No API key is known.", hint="Set LUTHIER_API_KEY, or pass --key; `luthier keys create` makes one."
        )
    try:
        with openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key) as client:
            yield client
    except openai.APIConnectionError as down:
        raise Unavailable(
            f"No server answers at {url}.", hint="Start one with `luthier serve`, or pass --url."
        ) from down
    except openai.APIError as refused:
        raise Refused(reason(refused)) from refused


def reason(refused: APIError) -> str:
    """What the server says of it."""
    body = refused.body if isinstance(refused.body, dict) else {}
    return str(body.get("message") or refused.message)
