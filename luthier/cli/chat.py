"""luthier chat: one question, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.client import DEFAULT_URL, Key, Url, connected, reason
from luthier.cli.console import Json, complain, out, print_json, visible

if TYPE_CHECKING:
    from openai import OpenAI

HELP = """\
/system TEXT    what the model is told before the conversation; without a text, nothing
/compare MODEL  have another model answer each message too; without a name, no more
/reset          begin a new conversation
/help           this list
/quit           end (so does an empty line)
Ctrl-C stops an answer."""


def chat(
    model: Annotated[str, typer.Argument(help="A base model, a tuned model or a checkpoint.")],
    message: Annotated[str | None, typer.Argument(help="What to say; absent: a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    compare: Annotated[str | None, typer.Option(help="Another model that answers each message too.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Talk to a model."""
    sampling = {"temperature": temperature, "max_tokens": max_tokens} | ({} if seed is None else {"seed": seed})
    with connected(url, key) as client:
        talk = Talk(client, [model, *([compare] if compare else [])], system, sampling, json)
        if message is not None:
            talk.say(message)
            return
        if sys.stdin.isatty():
            out.print(f"Talking to {model}. /help lists what can be done besides; an empty line ends it.")
        while (line := _line()) and line != "/quit":
            if line.startswith("/"):
                talk.obey(line)
            else:
                _say_on(talk, line)


def _say_on(talk: Talk, message: str) -> None:
    """As `say`; what the server refuses is told, and the conversation goes on."""
    import openai

    try:
        talk.say(message)
    except openai.APIConnectionError:
        raise
    except openai.APIError as refused:
        complain(reason(refused))


def _line() -> str:
    """What is typed next; empty at the end."""
    try:
        return (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    except (EOFError, KeyboardInterrupt):
        return ""


@dataclass
class Talk:
    """A conversation with one model, or the same one with each of two: every model hears its own answers alone."""

    client: OpenAI
    models: list[str]
    system: str | None
    sampling: dict[str, Any]
    json: bool
    said: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def say(self, message: str) -> None:
        """Have every model answer. What is stopped or refused is not kept."""
        for model in self.models:
            if len(self.models) > 1 and not self.json:
                out.print(f"{model}:")
            heard = [*self.said.get(model, []), {"role": "user", "content": message}]
            opening = [{"role": "system", "content": self.system}] if self.system else []
            answer = _answer(self.client, model, [*opening, *heard], self.sampling, self.json)
            if answer is None:
                return
            self.said[model] = [*heard, {"role": "assistant", "content": answer}]

    def obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._told,
            "/compare": self._compared,
            "/reset": lambda _: self.said.clear(),
            "/help": lambda _: out.print(HELP),
        }
        if word not in commands:
            complain(f"There is no command {word}.", "/help lists those that there are.")
            return
        commands[word](rest.strip())

    def _told(self, text: str) -> None:
        self.system = text or None

    def _compared(self, model: str) -> None:
        """The other one hears the conversation from here on, with the answers that the first has given."""
        first = self.models[0]
        if model == first:
            complain(f"{model} answers already.")
            return
        self.models = [first, *([model] if model else [])]
        self.said = {one: list(self.said.get(first, [])) for one in self.models}


def _answer(
    client: OpenAI, model: str, messages: list[dict[str, str]], sampling: dict[str, Any], json: bool
) -> str | None:
    """Print the answer as it comes, or as JSON when it is whole; and return its text, None where Ctrl-C stopped it."""
    asked: Any = {"model": model, "messages": messages, **sampling}
    try:
        if json:
            whole = client.chat.completions.create(**asked)
            print_json(whole.model_dump())
            return whole.choices[0].message.content or ""
        text = ""
        with client.chat.completions.create(stream=True, **asked) as chunks:
            for chunk in chunks:
                piece = chunk.choices[0].delta.content or ""
                print(visible(piece) if sys.stdout.isatty() else piece, end="", flush=True)
                text += piece
    except KeyboardInterrupt:
        out.print("\n(stopped)")
        return None
    print()
    return text
