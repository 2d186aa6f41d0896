"""Replicas that are killed while they answer: every stream ends whole or says that it does not, and the server goes on.

    python -m tests.fuzz.kills                                  # 200 kills under 16 streams, the echo backend
    python -m tests.fuzz.kills --kills 20 --backend builtin

A server with a pool replica is asked for streams in OpenAI's dialect, without pause; the replica's process gets SIGKILL at
random moments, some while it starts. A stream that had begun must end with a finish_reason and [DONE] or with an error event,
within the deadline; a request that had not begun must be answered after all or get a 503 that says so. Prints what became of the
requests, and how long it took until a request sent after a kill was served, in markdown; the exit code is 1 where a stream was
cut, changed or hung, or where the 99th percentile of that time is above `--bound`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import psutil

from luthier.testing import toy_model
from tests.servers import KEY, PATIENCE_SECONDS, RunningServer, install_toy

DEADLINE_SECONDS = 180.0
LETTERS = 1500  # of a text, which the echo backend says back a token a letter
WHOLE, TOLD, REFUSED = "answered whole", "ended with an error event", "refused with 503"


@dataclass
class Seen:
    """What became of the requests; `faults` says what must not have."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    back_after: list[float] = field(default_factory=list)
    """Seconds from a kill to the first text of a request that was sent after it."""
    kills: int = 0
    begun: list[tuple[float, float]] = field(default_factory=list)
    """Of each request that had a first text: when it was sent, and when that text came."""


@dataclass
class Ending:
    """A stream as it was read: its text, and what ended it."""

    text: str = ""
    reason: str | None = None
    is_done: bool = False
    error: str | None = None

    def read(self, line: str) -> None:
        """Take in a line of server-sent events."""
        if not line.startswith("data:"):
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]["message"]
        for choice in event.get("choices", []):
            self.text += choice["delta"].get("content") or ""
            self.reason = choice.get("finish_reason") or self.reason

    def outcome(self, expected: str | None) -> str:
        """WHOLE or TOLD, or a sentence that says what is wrong with it. `expected` None: any text is right."""
        if self.error:
            is_a_part = expected is None or expected.startswith(self.text)
            return TOLD if is_a_part else f"other text before the error: {self.text[:40]!r}"
        if self.reason is None or not self.is_done:
            return f"cut after {len(self.text)} letters, finish_reason {self.reason}, [DONE] {self.is_done}"
        if expected is not None and self.text != expected:
            return f"ended as if whole after {len(self.text)} of {len(expected)} letters"
        return WHOLE


async def client(http: httpx.AsyncClient, seen: Seen, dice: random.Random, *, echo: bool, done: asyncio.Event) -> None:
    while not done.is_set():
        text = "".join(dice.choice("abcdefgh ") for _ in range(LETTERS if echo else 20)).strip()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                outcome = await ask(http, seen, text, echo=echo)
        except TimeoutError:
            outcome = f"hung for {DEADLINE_SECONDS:.0f} s"
        except (httpx.HTTPError, ValueError) as broken:
            outcome = f"broken off: {broken!r}"
        seen.outcomes[outcome if outcome in (WHOLE, TOLD, REFUSED) else "wrong"] += 1
        if outcome not in (WHOLE, TOLD, REFUSED):
            seen.faults.append(outcome)


async def ask(http: httpx.AsyncClient, seen: Seen, text: str, *, echo: bool) -> str:
    """What became of one request."""
    body = {
        "model": "toy",
        "stream": True,
        "temperature": 0,
        "max_tokens": LETTERS + 1 if echo else 200,
        "messages": [{"role": "user", "content": text}],
    }
    sent, ending = time.monotonic(), Ending()
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            error = json.loads(await response.aread())["error"]
            if response.status_code == 503 and error["message"]:
                await asyncio.sleep(min(1.0, float(response.headers.get("retry-after", 1))))
                return REFUSED
            return f"status {response.status_code}: {error}"
        is_silent = True
        async for line in response.aiter_lines():
            ending.read(line)
            if is_silent and ending.text:
                is_silent = False
                seen.begun.append((sent, time.monotonic()))
    return ending.outcome(text if echo else None)


async def killer(server: RunningServer, seen: Seen, dice: random.Random, kills: int) -> None:
    """Kill a replica, mostly after answers have come from it, now and then while it starts. Raises when none comes back."""
    while seen.kills < kills:
        replica = await _found(server)
        replica.kill()
        killed_at = time.monotonic()
        seen.kills += 1
        await asyncio.to_thread(_gone, replica)
        if dice.random() < 0.1 and seen.kills < kills:
            await asyncio.sleep(dice.random() * 2)
            continue
        served_at = await _served_after(seen, killed_at)
        seen.back_after.append(served_at - killed_at)
        await asyncio.sleep(dice.uniform(0.1, 1.5))


def _gone(replica: psutil.Process) -> None:
    psutil.wait_procs([replica], timeout=PATIENCE_SECONDS)


async def _found(server: RunningServer) -> psutil.Process:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (there := await asyncio.to_thread(server.engines, "luthier.serving")):
        assert time.monotonic() < deadline, f"no replica was started again:\n{server.log[-4000:]}"
        await asyncio.sleep(0.05)
    return there[0]


async def _served_after(seen: Seen, moment: float) -> float:
    """When the first request that was sent after a moment had its first text."""
    deadline = moment + PATIENCE_SECONDS
    looked_at = 0
    while True:
        for sent, first in seen.begun[looked_at:]:
            if sent > moment:
                return first
        looked_at = len(seen.begun)
        assert time.monotonic() < deadline, f"nothing was served for {PATIENCE_SECONDS:.0f} s after a kill"
        await asyncio.sleep(0.01)


async def load(server: RunningServer, *, kills: int, clients: int, seed: int, echo: bool) -> Seen:
    """Have the server asked until the last kill is got over; what was seen. Raises what ends the killer."""
    seen, done = Seen(), asyncio.Event()
    headers = {"authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=clients)
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=DEADLINE_SECONDS, limits=limits) as http,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(clients):
            tasks.create_task(client(http, seen, random.Random(f"{seed}-{number}"), echo=echo, done=done))
        await _served_after(seen, time.monotonic())  # the clients begin now
        await killer(server, seen, random.Random(seed), kills)
        done.set()
    if server.process is None or server.process.poll() is not None:
        seen.faults.append("the server itself has ended")
    return seen


def kills(folder: Path, *, kills: int, clients: int, seed: int = 0, backend: str = "echo") -> Seen:
    """Start a server in a folder, put the load on it, kill so many replicas."""
    install_toy(folder / "data", toy_model(folder / "toy", context=2048))
    server = RunningServer(folder / "data", LUTHIER_SERVING__BACKEND=backend, LUTHIER_LOGS__LEVEL="warning")
    try:
        server.start()
        return asyncio.run(load(server, kills=kills, clients=clients, seed=seed, echo=backend == "echo"))
    finally:
        server.stop()


def percentile(values: list[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--backend", default="echo")
    parser.add_argument("--bound", type=float, default=15.0, help="seconds until served again, 99th percentile")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        seen = kills(Path(folder), kills=asked.kills, clients=asked.clients, seed=asked.seed, backend=asked.backend)
    p50, p99 = percentile(seen.back_after, 50), percentile(seen.back_after, 99)
    print(f"{seen.kills} kills under {asked.clients} streams, {asked.backend}, seed {asked.seed}.\n")
    print("| requests | count |\n|---|---|")
    for outcome in (WHOLE, TOLD, REFUSED, "wrong"):
        print(f"| {outcome} | {seen.outcomes[outcome]:,} |")
    print(f"\nServed again after {p50:.1f} s (p50), {p99:.1f} s (p99); the bound is {asked.bound:g} s.")
    print(*(f"- {fault}" for fault in seen.faults[:20]), sep="\n")
    return 1 if seen.faults or p99 > asked.bound else 0


if __name__ == "__main__":
    sys.exit(main())
