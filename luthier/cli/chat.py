"""luthier chat: one question, or a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.client import DEFAULT_URL, Key, Url, connected
from luthier.cli.console import Json, out, print_json, visible

if TYPE_CHECKING:
    from openai import OpenAI


def chat(
    model: Annotated[str, typer.Argument(help="A base model, a tuned model or a checkpoint.")],
    message: Annotated[str | None, typer.Argument(help="What to say; absent: a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Talk to a model."""
    said: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    sampling = {"temperature": temperature, "max_tokens": max_tokens}
    with connected(url, key) as client:
        if message is not None:
            _answer(client, model, [*said, {"role": "user", "content": message}], sampling, json)
            return
        if sys.stdin.isatty():
            out.print(f"Talking to {model}. An empty line ends it.")
        while line := (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip():
            said.append({"role": "user", "content": line})
            said.append({"role": "assistant", "content": _answer(client, model, said, sampling, json)})


def _answer(client: OpenAI, model: str, messages: list[dict[str, str]], sampling: dict[str, Any], json: bool) -> str:
    """Print the answer as it comes, or as JSON when it is whole; and return its text."""
    asked: Any = {"model": model, "messages": messages, **sampling}
    if json:
        whole = client.chat.completions.create(**asked)
        print_json(whole.model_dump())
        return whole.choices[0].message.content or ""
    text = ""
    for chunk in client.chat.completions.create(stream=True, **asked):
        piece = chunk.choices[0].delta.content or ""
        print(visible(piece) if sys.stdout.isatty() else piece, end="", flush=True)
        text += piece
    print()
    return text
