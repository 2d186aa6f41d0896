"""What bad requests cost those who ask well: steady streams on a real server, without and with bad requests arriving.

    python benchmarks/bad_input.py --seconds 30 --model smollm2-135m-instruct --data .luthier
    python benchmarks/bad_input.py --seconds 5

Eight streams ask again as soon as their answer has ended. In every second round one more client sends the requests of
tests/unit/api/test_bad_input.py, in all three dialects, one after the other, `--rate` of them a second. Prints as markdown the
time to first token and between tokens, p50 and p99, and how much the bad requests add; the exit code is 1 where an answer was
broken, a bad request was not refused with 400, or p99 grew by more than `--most` percent.
Without `--data` it is the toy model's, whose tokens cost next to nothing, so that every millisecond is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from openai import AsyncOpenAI  # noqa: E402

from luthier.cli.bench import percentile  # noqa: E402
from luthier.testing import toy_model  # noqa: E402
from tests.servers import KEY, RunningServer, install_toy  # noqa: E402
from tests.unit.api.test_bad_input import BAD, CHATS, body, post  # noqa: E402


@dataclass
class Round:
    """Seconds to the first token and between the others, and the statuses of bad requests."""

    firsts: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    broken: int = 0


async def stream(client: AsyncOpenAI, model: str, until: float, seen: Round, *, most: int) -> None:
    while time.perf_counter() < until:
        last = began = time.perf_counter()
        try:
            chunks = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Count."}],
                max_tokens=most,
                temperature=0,
                stream=True,
            )
            async for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    now = time.perf_counter()
                    (seen.firsts if last == began else seen.between).append(now - last)
                    last = now
        except Exception as error:  # whatever it is, an answer was not made
            print(f"an answer broke: {error}", file=sys.stderr)
            seen.broken += 1


def send_bad(server: RunningServer, model: str, until: float, seen: Round, rate: float) -> None:
    cases = [(path, {**body(path, **case), "model": model}) for case in BAD.values() for path in CHATS]
    sent = [(path, json.dumps(one).encode()) for path, one in cases]
    while True:
        for path, one in sent:
            began = time.perf_counter()
            if began >= until:
                return
            seen.statuses.append(post(server, path, one).status_code)
            if rate:
                time.sleep(max(0.0, began + 1 / rate - time.perf_counter()))


async def measure(server: RunningServer, asked: argparse.Namespace, *, bad: bool) -> Round:
    seen, until = Round(), time.perf_counter() + asked.seconds
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        work = [stream(client, asked.model, until, seen, most=asked.max_tokens) for _ in range(asked.streams)]
        if bad:
            work.append(asyncio.to_thread(send_bad, server, asked.model, until, seen, asked.rate))
        await asyncio.gather(*work)
    return seen


def joined(rounds: list[Round]) -> Round:
    whole = Round()
    for one in rounds:
        whole.firsts += one.firsts
        whole.between += one.between
        whole.statuses += one.statuses
        whole.broken += one.broken
    return whole


def report(without: Round, beside: Round, most: float) -> bool:
    """Print the table; whether all is as it must be."""
    print("| milliseconds | without | with bad requests | more |\n|---|---|---|---|")
    grown = 0.0
    for name, one, two in (
        ("time to first token", without.firsts, beside.firsts),
        ("time between tokens", without.between, beside.between),
    ):
        for part in (50, 99):
            a, b = percentile(sorted(one), part), percentile(sorted(two), part)
            if not a or not b:
                print(f"| {name} p{part} | too few | | |")
                return False
            more = (b / a - 1) * 100
            grown = max(grown, more) if part == 99 else grown
            print(f"| {name} p{part} | {a * 1000:.2f} | {b * 1000:.2f} | {more:+.0f} % |")
    wrong = [status for status in beside.statuses if status != 400]
    print(f"\n{len(beside.statuses)} bad requests, {len(wrong)} not answered with 400 {sorted(set(wrong))}; ", end="")
    print(f"{without.broken + beside.broken} answers broken.")
    return not wrong and not without.broken and not beside.broken and grown <= most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind, in turns")
    parser.add_argument(
        "--rate", type=float, default=5.0, help="bad requests a second; 0: the next when one is refused"
    )
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--most", type=float, default=20.0, help="percent by which p99 may grow")
    parser.add_argument("--model", default="toy")
    parser.add_argument("--data", type=Path, help="data folder that has the model; absent: a new one with the toy")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = asked.data or Path(name) / "data"
        if asked.data is None:
            install_toy(data, toy_model(Path(name) / "toy"))
        server = RunningServer(data)
        try:
            server.start()
            assert post(server, CHATS[0], {**body(CHATS[0]), "model": asked.model}).status_code == 200
            rounds: dict[bool, list[Round]] = {False: [], True: []}
            for _ in range(asked.rounds):
                for bad in (False, True):
                    rounds[bad].append(asyncio.run(measure(server, asked, bad=bad)))
        finally:
            server.stop()
    return 0 if report(joined(rounds[False]), joined(rounds[True]), asked.most) else 1


if __name__ == "__main__":
    sys.exit(main())
