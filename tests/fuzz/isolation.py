"""Many adapters on few places, each of which says a name of its own: no answer may come from another one.

    python -m tests.fuzz.isolation                       # 100 adapters on 12 places, 16 clients, 30 minutes
    python -m tests.fuzz.isolation --minutes 2 --seed 7

A real replica is asked by clients of several projects for random adapters, with questions that begin and end alike, at
temperature 0 and above; some leave in the middle of an answer. Files of an adapter are overwritten with another's meanwhile,
which must be refused and not answered. New projects ask what others have asked before: no token of theirs may be reused. Prints
counts in markdown; the exit code is 1 where an answer was wrong, late, or failed otherwise than by such a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import LuthierError
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import GenerateRequest, Sampling, TokenChunk, Turn
from tests.named_adapters import BASE_NAME, QUESTIONS, Named, answer_of, named_adapters
from tests.replicas import RunningReplica, whole

DEADLINE_SECONDS = 120.0
SCOPES = ["proj-a", "proj-b", "proj-c", "proj-d"]
SURE = Sampling(temperature=0, max_tokens=32)


@dataclass
class Seen:
    """What has happened; `faults` says what must not have."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    restored: dict[str, float] = field(default_factory=dict)
    """Of adapters that were overwritten: since when their files are their own again."""

    def may_be_refused(self, named: Named | None, asked_at: float) -> bool:
        return named is not None and self.restored.get(named.ref.id, 0.0) >= asked_at


def request_of(named: Named | None, question: str, scope: str, sampling: Sampling = SURE) -> GenerateRequest:
    turns = [Turn(role="user", content=question)]
    return GenerateRequest(adapter=named and named.ref, messages=turns, sampling=sampling, scope=scope)


def expected(named: Named | None) -> str:
    return answer_of(named.name if named else BASE_NAME)


async def client(replica: RunningReplica, adapters: list[Named], seen: Seen, dice: random.Random, until: float) -> None:
    """Ask one thing after the other; half of them of the few adapters that this client likes."""
    liked = dice.sample(adapters, 4)
    while time.monotonic() < until:
        named = None if dice.random() < 0.05 else dice.choice(liked if dice.random() < 0.5 else adapters)
        sampling = SURE
        if dice.random() < 0.2:
            sampling = Sampling(temperature=0.7, top_p=0.9, seed=dice.randrange(2**31), max_tokens=32)
        is_new = dice.random() < 0.05
        scope = f"proj-new-{dice.getrandbits(48):x}" if is_new else dice.choice(SCOPES)
        request = request_of(named, dice.choice(QUESTIONS), scope, sampling)
        leaves_after = dice.randint(1, 8) if dice.random() < 0.1 else None
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await _ask(replica, request, named, seen, leaves_after, is_new=is_new)
        except TimeoutError:
            seen.faults.append(f"{named} was not answered in {DEADLINE_SECONDS:.0f} s")
        except AdapterUnreadable as refused:
            if not seen.may_be_refused(named, asked_at):
                seen.faults.append(f"{named} was refused: {refused}")
            seen.counts["refused"] += 1
        except LuthierError as error:
            seen.faults.append(f"{named} failed: {error.code}: {error}")


async def _ask(
    replica: RunningReplica,
    request: GenerateRequest,
    named: Named | None,
    seen: Seen,
    leaves_after: int | None,
    *,
    is_new: bool,
) -> None:
    text, chunks = "", 0
    async with aclosing(replica.client.generate(request)) as parts:
        async for part in parts:
            if isinstance(part, TokenChunk):
                text, chunks = text + part.text, chunks + 1
                if chunks == leaves_after:
                    break
            else:
                seen.counts["answers"] += 1
                seen.counts["prompt tokens reused"] += (cached := part.cached_tokens)
                if is_new:
                    seen.counts["first requests of a project"] += 1
                    if cached:
                        seen.faults.append(f"{cached} tokens of another project were reused for {request.scope}")
                if text != expected(named):
                    seen.faults.append(f"{named} said {text!r}")
                return
    seen.counts["cancels"] += 1
    if not expected(named).startswith(text):
        seen.faults.append(f"{named} began with {text!r}")


async def overwrite(
    replica: RunningReplica, folder: Path, adapters: list[Named], seen: Seen, dice: random.Random, until: float
) -> None:
    """Put another adapter's files in the place of one's for a while, again and again: until it is asked for and refused."""
    while time.monotonic() < until:
        victim, other = dice.sample(adapters, 2)
        place, kept = folder / victim.ref.key, folder / "kept"
        seen.restored[victim.ref.id] = math.inf
        place.rename(kept)
        shutil.copytree(folder / other.ref.key, place)
        seen.counts["overwrites"] += 1
        end = min(until, time.monotonic() + 3)
        try:
            while time.monotonic() < end:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    said, _ = await whole(replica.client, request_of(victim, dice.choice(QUESTIONS), SCOPES[0]))
                if said != expected(victim):  # it may be resident, with its own bytes
                    seen.faults.append(f"{victim}, overwritten, said {said!r}")
                await asyncio.sleep(0.2)
        except AdapterUnreadable:
            seen.counts["refused"] += 1
        finally:
            shutil.rmtree(place)
            kept.rename(place)
            seen.restored[victim.ref.id] = time.monotonic()
        await asyncio.sleep(0.5)


async def watch(replica: RunningReplica, places: int, seen: Seen) -> None:
    """Count what is loaded and evicted, at least: what comes and goes between two looks is not seen."""
    before: set[str] = set()
    while True:
        now = set((await replica.client.health(timeout=DEADLINE_SECONDS)).adapters)
        seen.counts["loads"] += len(now - before)
        seen.counts["evictions"] += len(before - now)
        if len(now) > places:
            seen.faults.append(f"{len(now)} adapters on {places} places")
        before = now
        await asyncio.sleep(0.05)


async def load(
    replica: RunningReplica, folder: Path, adapters: list[Named], *, clients: int, seconds: float, seed: int
) -> Seen:
    """Have the replica asked in all these ways for so long; what was seen."""
    seen, until = Seen(), time.monotonic() + seconds
    dice = [random.Random(f"{seed}-{number}") for number in range(clients + 1)]
    watching = asyncio.create_task(watch(replica, replica.spec.adapters, seen))
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(overwrite(replica, folder, adapters, seen, dice[-1], until))
            for number in range(clients):
                tasks.create_task(client(replica, adapters, seen, dice[number], until))
        if watching.done():
            watching.result()  # raises what ended it
    finally:
        watching.cancel()
    return seen


def isolation(
    folder: Path, *, adapters: int, places: int, clients: int, seconds: float, seed: int = 0, precision: str = "fp32"
) -> Seen:
    """Train the adapters, start a replica, put the load on it."""
    named = named_adapters(folder, adapters, seed=seed)
    with RunningReplica(folder, adapters=places, precision=precision) as replica:
        return asyncio.run(load(replica, folder, named, clients=clients, seconds=seconds, seed=seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--places", type=int, default=12)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isolation-") as folder:
        seen = isolation(
            Path(folder),
            adapters=asked.adapters,
            places=asked.places,
            clients=asked.clients,
            seconds=asked.minutes * 60,
            seed=asked.seed,
            precision=asked.precision,
        )
    print(
        f"{asked.adapters} adapters on {asked.places} places, {asked.clients} clients, {asked.minutes:g} minutes, "
        f"{asked.precision}, seed {asked.seed}.\n\n| what | count |\n|---|---|"
    )
    for what, count in {**seen.counts, "wrong": len(seen.faults)}.items():
        print(f"| {what} | {count:,} |")
    print(*(f"- {fault}" for fault in seen.faults[:20]), sep="\n")
    return 1 if seen.faults else 0


if __name__ == "__main__":
    sys.exit(main())
