"""luthier bench: how many answers a server makes, and how long they take, as its clients see it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.client import DEFAULT_URL, Key, Url, connected
from luthier.cli.console import Json, out, print_json, table
from luthier.core.errors import InvalidParameter

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_WORDS = "a all and are as at be but by for from have he his in is it not of on or that the they this to was with"


def bench(
    model: Annotated[str, typer.Argument(help="A base model, a tuned model or a checkpoint.")],
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of a prompt, about.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer, at most.")] = 64,
    dataset: Annotated[
        Path | None,
        typer.Option(help="JSON Lines with `messages`: prompts from their first turns, in place of made ones."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same prompts.")] = 0,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Measure throughput and latency of a model. One request goes before all others, and is not counted."""
    prompts = _from_file(dataset) if dataset else _made(prompt_tokens, seed)
    with connected(url, key) as client:  # what it raises of the asynchronous one below is told in words too
        from openai import AsyncOpenAI

        async def measured() -> Report:
            async with AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as one:
                await _take(one, model, next(prompts), max_tokens)
                return await _measure(one, model, list(islice(prompts, requests)), concurrency, max_tokens)

        report = asyncio.run(measured())
    if json:
        print_json(report.as_dict())
    else:
        report.show()
    if not report.taken:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Taken:
    """One answer: seconds to its first token and between the others, and the tokens that the server counted."""

    first: float
    between: list[float]
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Report:
    """What came of all requests. Times are in seconds."""

    seconds: float = 0.0
    taken: list[Taken] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Percentiles are None where nothing was measured."""
        firsts = sorted(one.first for one in self.taken)
        between = sorted(gap for one in self.taken for gap in one.between)
        made = sum(one.completion_tokens for one in self.taken)
        return {
            "requests": len(self.taken) + self.errors.total(),
            "answered": len(self.taken),
            "errors": dict(self.errors),
            "seconds": self.seconds,
            "requests_per_second": len(self.taken) / self.seconds,
            "prompt_tokens": sum(one.prompt_tokens for one in self.taken),
            "completion_tokens": made,
            "tokens_per_second": made / self.seconds,
            "first_token_seconds": {f"p{part}": percentile(firsts, part) for part in (50, 90, 99)},
            "between_tokens_seconds": {f"p{part}": percentile(between, part) for part in (50, 99)},
        }

    def show(self) -> None:
        told = self.as_dict()
        out.print(
            f"{told['answered']} of {told['requests']} requests answered in {self.seconds:.1f} s: "
            f"{told['requests_per_second']:.2f} requests/s, {told['tokens_per_second']:.1f} tokens/s"
        )
        rows = (("time to first token", "first_token_seconds"), ("time between tokens", "between_tokens_seconds"))
        table(
            ("", "p50", "p90", "p99"),
            [[name, *(_milliseconds(told[key].get(part)) for part in ("p50", "p90", "p99"))] for name, key in rows],
        )
        for kind, count in self.errors.most_common():
            out.print(f"{count} × {kind}")


def percentile(ordered: Sequence[float], part: int) -> float | None:
    """The smallest of the values that so many in a hundred do not exceed; None of no values."""
    return ordered[math.ceil(len(ordered) * part / 100) - 1] if ordered else None


async def _measure(client: AsyncOpenAI, model: str, prompts: list[list[Any]], concurrency: int, most: int) -> Report:
    import openai

    report, left = Report(), iter(prompts)

    async def worker() -> None:
        for messages in left:
            try:
                report.taken.append(await _take(client, model, messages, most))
            except openai.APIStatusError as refused:
                report.errors[f"{refused.status_code} {refused.code or ''}".strip()] += 1
            except openai.APIError as broken:
                report.errors[str(broken.code or type(broken).__name__)] += 1

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    report.seconds = time.perf_counter() - began
    return report


async def _take(client: AsyncOpenAI, model: str, messages: list[Any], most: int) -> Taken:
    asked = time.perf_counter()
    arrived: list[float] = []
    usage = None
    async with await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=most,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as chunks:
        async for chunk in chunks:
            usage = chunk.usage or usage
            if chunk.choices and chunk.choices[0].delta.content:
                arrived.append(time.perf_counter())
    arrived = arrived or [time.perf_counter()]  # an answer without a text
    between = [later - earlier for earlier, later in pairwise(arrived)]
    counted = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, len(arrived))
    return Taken(arrived[0] - asked, between, *counted)


def _made(tokens: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """Prompts without end, no two alike, of common words: most tokenizers make about one token of each."""
    dice = random.Random(seed)  # noqa: S311 (a prompt is no secret)
    while True:
        yield [{"role": "user", "content": " ".join(dice.choices(_WORDS.split(), k=tokens))}]


def _from_file(path: Path) -> Iterator[list[Any]]:
    """The conversations of a file up to their first answer, again and again. Raises InvalidParameter where it has none."""
    prompts: list[list[Any]] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            turns = loads(line)["messages"] if line.strip() else []
            before = next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
        except (ValueError, KeyError, TypeError) as wrong:
            raise InvalidParameter("dataset", f"line {number} of {path} is no row with messages") from wrong
        if before:
            prompts.append(turns[:before])
    if not prompts:
        raise InvalidParameter("dataset", f"{path} has no conversation that begins with a prompt")
    return cycle(prompts)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.1f} ms"
