"""What the edge costs: streamed chat through Luthier beside the LiteLLM proxy, each against the same replica without it.

    python benchmarks/gateway.py --streams 1 32 256 --rounds 3
    python benchmarks/gateway.py --streams 32 --rounds 1 --without-peer

One replica with the echo backend says a numbered text back, a token a byte. It is asked in four ways, in turns, with the same
load: `direct` (serving.client over the replica's socket), `luthier` (`luthier serve`, which started that replica), `upstream`
(the thinnest server with OpenAI's API before the replica: a part of this file), and `litellm` (the LiteLLM proxy before that
upstream). What a gateway adds is its own figure less that of what lies behind it: luthier less direct, litellm less upstream.

The gateway under test has a core to itself; replica, upstream and load have another. Two loads for each number of streams:
`full`, where each stream asks again as soon as its answer has ended, and `steady`, where each asks once in `--every` seconds, one
after the other. Time to first token is from sending the request to the arrival of the first text; every answer is compared with
what was asked, chunk by chunk. Medians over the rounds are told; the exit code is 1 where an answer was broken or a figure is not
better than the peer's. What is asked is the cheapest there is, a base model and one short message, so that the edge is what is
seen. The peer's environment is made once, in `.peers/`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PEER = "litellm[proxy]==1.106.2"
KEY = f"first.{secrets.token_hex(20)}"
PEER_KEY = f"sk-{secrets.token_hex(20)}"
MODEL = "toy"
NUMBERS = 12  # in each text
WAYS = ("direct", "luthier", "upstream", "litellm")
BEHIND = {"luthier": "direct", "litellm": "upstream"}


@dataclass(frozen=True)
class Target:
    """Where requests go: a replica's socket, or the port of a server with OpenAI's API."""

    way: str
    address: str
    key: str = ""


@dataclass(frozen=True)
class Load:
    streams: int
    seconds: float
    every: float | None
    """Seconds between the requests of a stream; None: as soon as the answer has ended."""

    @property
    def name(self) -> str:
        return "full" if self.every is None else "steady"


@dataclass
class Answer:
    """`chunks` are the texts of the answer, in the order in which they came."""

    asked: str
    first_ms: float = 0.0
    raw: bytearray = field(default_factory=bytearray)
    chunks: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Every token came by itself and in its place: the toy's tokenizer has one a byte."""
        return self.chunks == list(self.asked)


# ---------------------------------------------------------------------------------------------------------------- the load


FIRST_TEXT = re.compile(rb'"content": ?"[^"]')
END = b"\r\n0\r\n\r\n"


class Stream:
    """One client: a connection that is kept, a request at a time. Bytes are only looked at for the first text and the end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, text: str) -> Answer:
        return await (self._ask_replica(text) if self.target.way == "direct" else self._ask_server(text))

    async def _ask_replica(self, text: str) -> Answer:
        from luthier.serving.client import ReplicaClient
        from luthier.serving.protocol import GenerateRequest, Sampling, TokenChunk, Turn

        request = GenerateRequest(messages=[Turn(role="user", content=text)], sampling=Sampling(temperature=0))
        answer, began = Answer(text), time.perf_counter()
        async for part in ReplicaClient(self.target.address).generate(request):
            if isinstance(part, TokenChunk):
                answer.first_ms = answer.first_ms or (time.perf_counter() - began) * 1000
                answer.chunks.append(part.text)
        return answer

    async def _ask_server(self, text: str) -> Answer:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", int(self.target.address))
        assert self._reader is not None
        body = json.dumps(
            {"model": MODEL, "stream": True, "temperature": 0, "messages": [{"role": "user", "content": text}]}
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.target.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        answer, began = Answer(text), time.perf_counter()
        self._writer.write(head + body)
        while not answer.raw.endswith(END):
            piece = await self._reader.read(1 << 16)
            if not piece:
                self._writer = None
                break
            answer.raw += piece
            if not answer.first_ms and FIRST_TEXT.search(answer.raw):
                answer.first_ms = (time.perf_counter() - began) * 1000
        return answer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


async def drive(target: Target, load: Load) -> dict[str, float | int]:
    """Put the load on the target; times in milliseconds. Counted are answers that end after the first half second."""
    answers: list[Answer] = []
    early = 0
    warm = time.perf_counter() + 0.5
    end = warm + load.seconds

    async def client(number: int) -> None:
        nonlocal early
        stream, count = Stream(target), 0
        if load.every:
            await asyncio.sleep(load.every * number / load.streams)
        while (now := time.perf_counter()) < end:
            count += 1
            answer = await stream.ask(f"{number}.{count}:" + ",".join(map(str, range(count, count + NUMBERS))))
            if time.perf_counter() >= warm:
                answers.append(answer)
            else:
                early += 1
            if load.every:
                await asyncio.sleep(max(0, now + load.every - time.perf_counter()))
        stream.close()

    gc.collect()
    gc.disable()  # the load must not stop to collect
    try:
        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(load.streams)))
        took = time.perf_counter() - max(began, warm)
    finally:
        gc.enable()
    for answer in answers:
        answer.chunks = answer.chunks or texts(bytes(answer.raw))
    first = sorted(answer.first_ms for answer in answers)
    return {
        "requests": len(answers),
        "answered": len(answers) + early,
        "broken": sum(not answer.is_whole for answer in answers),
        "p50": percentile(first, 50),
        "p99": percentile(first, 99),
        "per_second": len(answers) / took,
    }


def texts(raw: bytes) -> list[str]:
    """The texts of a streamed answer with chunked transfer encoding, up to where it was broken off; an answer of another status
    has none.
    """
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        return []
    body = b""
    while size := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
        length, rest = int(size[1], 16), rest[size.end() :]
        body, rest = body + rest[:length], rest[length + 2 :]
    *whole, _ = body.decode(errors="replace").split("\n\n")  # what no blank line ends was broken off
    frames = [line[5:].strip() for line in whole if line.startswith("data:")]
    found = [json.loads(frame) for frame in frames if frame != "[DONE]"]
    said = [frame["choices"][0]["delta"].get("content") for frame in found if frame.get("choices")]
    return [text for text in said if text]


def percentile(ordered: list[float], share: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else float("nan")


# ------------------------------------------------------------------------------------------------------------ the upstream


async def upstream(replica: str, port: int) -> None:
    """Serve OpenAI's streamed chat from a replica's socket, with no check that is not needed."""
    server = await asyncio.start_server(lambda reader, writer: converse(replica, reader, writer), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def converse(replica: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            body = json.loads(await reader.readexactly(int(length[1]) if length else 0) or b"{}")
            if "messages" not in body:  # a proxy may ask which models there are
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            async for frame in frames(replica, body["messages"][-1]["content"]):
                writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has gone
    finally:
        writer.close()


async def frames(replica: str, text: str) -> AsyncIterator[bytes]:
    from luthier.serving.client import ReplicaClient
    from luthier.serving.protocol import GenerateRequest, Sampling, TokenChunk, Turn

    opened = (
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"toy","choices":[{"index":0,"delta":'
    )
    yield f'data: {opened}{{"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'.encode()
    request = GenerateRequest(messages=[Turn(role="user", content=text)], sampling=Sampling(temperature=0))
    async for part in ReplicaClient(replica).generate(request):
        if isinstance(part, TokenChunk):
            yield f'data: {opened}{{"content":{json.dumps(part.text)}}},"finish_reason":null}}]}}\n\n'.encode()
    yield f'data: {opened}{{}},"finish_reason":"stop"}}]}}\n\ndata: [DONE]\n\n'.encode()


# ------------------------------------------------------------------------------------------------------------- the servers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pin(process: int, core: int) -> None:
    """Every thread of a process; those that they start later inherit it."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(process: int) -> float:
    """Of a process and all its threads, since its start."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: list[str], ready: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, from its first good answer at the address `ready` until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment)
    try:
        deadline = time.monotonic() + 300  # a fresh environment's modules are compiled
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended:\n{log.read_text()}")
            try:
                with urllib.request.urlopen(ready, timeout=5):  # noqa: S310
                    break
            except OSError:
                time.sleep(0.2)
        else:
            raise SystemExit(f"{command[0]} does not answer:\n{log.read_text()}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def install_toy(data: Path, folder: Path) -> None:
    from luthier.control.catalog.installing import Installer
    from luthier.core.clock import SystemClock
    from luthier.storage import Storage
    from luthier.testing import toy_model

    storage = Storage((data / "objects").absolute().as_uri())
    Installer(storage, data / "scratch", sys.executable, SystemClock()).add(MODEL, str(toy_model(folder)))


def peer_program() -> Path:
    """LiteLLM's command, in an environment of its own that is made where there is none."""
    home = HERE.parent / ".peers" / PEER.replace("[", "-").replace("]", "")
    if not (home / "made").exists():
        home.parent.mkdir(exist_ok=True)
        uv = Path(sys.executable).with_name("uv")
        python = str(home / "bin" / "python")
        if uv.exists():  # it does not read pip's settings
            told = {"UV_DEFAULT_INDEX": "PIP_INDEX_URL", "UV_FIND_LINKS": "PIP_FIND_LINKS", "SSL_CERT_FILE": "PIP_CERT"}
            known = {ours: os.environ[theirs] for ours, theirs in told.items() if os.environ.get(theirs)}
            commands = [
                [str(uv), "venv", "--clear", "--quiet", "--python", sys.executable, str(home)],
                [str(uv), "pip", "install", "--quiet", "--python", python, PEER],
            ]
        else:
            known = {}
            commands = [[sys.executable, "-m", "venv", "--clear", str(home)], [python, "-m", "pip", "install", PEER]]
        for command in commands:
            subprocess.run(command, check=True, env=known | os.environ)
        (home / "made").touch()
    return home / "bin" / "litellm"


def peer_configuration(upstream_port: int) -> str:
    """As its documentation advises for production: one worker a core, quiet logs, no database, no callbacks."""
    return json.dumps(
        {
            "model_list": [
                {
                    "model_name": MODEL,
                    "litellm_params": {
                        "model": f"openai/{MODEL}",
                        "api_base": f"http://127.0.0.1:{upstream_port}/v1",
                        "api_key": "none",
                    },
                }
            ],
            "litellm_settings": {
                "set_verbose": False,
                "drop_params": True,
                "request_timeout": 600,
                "json_logs": False,
                "telemetry": False,
            },
            "general_settings": {"master_key": PEER_KEY, "disable_spend_logs": True, "disable_error_logs": True},
        }
    )  # YAML reads JSON


PEER_SETTINGS = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_DOCS": "True",
}


# --------------------------------------------------------------------------------------------------------------- the whole


def measured(target: Target, load: Load, gateway: int | None) -> dict[str, float]:
    """One load on one target, in a process of its own beside the replica; with the gateway's CPU time for each request."""
    before = cpu_seconds(gateway) if gateway else 0.0
    command = [sys.executable, __file__, "--drive", json.dumps([asdict(target), asdict(load)])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"The load on {target.way} failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    if gateway:
        found["cpu_ms"] = (cpu_seconds(gateway) - before) * 1000 / max(1, found["answered"])
    return found


def run(arguments: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("The gateway needs a core to itself, and the load another: this machine offers one.")
    core, others = cores[0], cores[1]
    peer = None if arguments.without_peer else peer_program()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-")))
        install_toy(folder / "data", folder / "toy")
        os.sched_setaffinity(0, {others})
        port = free_port()
        serve = [sys.executable, "-m", "luthier", "serve", "--port", str(port), "--data", str(folder / "data")]
        luthier = stack.enter_context(
            started(
                serve,
                f"http://127.0.0.1:{port}/healthz",
                folder / "luthier.log",
                LUTHIER_BOOTSTRAP_KEY=KEY,
                LUTHIER_MODELS__EMBEDDED="false",
                LUTHIER_SERVING__BACKEND="echo",
                LUTHIER_LOGS__LEVEL="warning",
                OMP_NUM_THREADS="1",
            )
        )
        targets = {"luthier": Target("luthier", str(port), KEY)}
        asyncio.run(Stream(targets["luthier"]).ask("Hello"))  # starts the replica
        [spec] = (folder / "data" / "replicas").glob("*.json")
        replica = json.loads(spec.read_text())["listen"]
        targets["direct"] = Target("direct", replica)
        gateways = {"luthier": luthier.pid}
        pin(luthier.pid, core)
        if peer is not None:
            behind = free_port()
            command = [sys.executable, __file__, "--upstream", replica, str(behind)]
            process = subprocess.Popen(command)
            stack.callback(process.terminate)
            targets["upstream"] = Target("upstream", str(behind))
            port = free_port()
            (folder / "peer.yaml").write_text(peer_configuration(behind))
            os.sched_setaffinity(0, cores)  # its start is long
            command = [str(peer), "--config", str(folder / "peer.yaml"), "--host", "127.0.0.1", "--port", str(port)]
            litellm = stack.enter_context(
                started(
                    [*command, "--num_workers", "1"],
                    f"http://127.0.0.1:{port}/health/liveliness",
                    folder / "peer.log",
                    **PEER_SETTINGS,
                )
            )
            pin(litellm.pid, core)
            os.sched_setaffinity(0, {others})
            gateways["litellm"] = litellm.pid
            targets["litellm"] = Target("litellm", str(port), PEER_KEY)
        for way in WAYS:  # what is loaded lazily is loaded now
            if way in targets:
                measured(targets[way], Load(8, 1.0, None), None)
        loads = [
            Load(streams, arguments.seconds, every)
            for streams in arguments.streams
            for every in ((None, arguments.every) if streams > 1 else (None,))
        ]
        rows: dict[tuple[str, str, int], list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for load in loads:
                for way in (way for way in WAYS if way in targets):
                    found = measured(targets[way], load, gateways.get(way))
                    rows.setdefault((way, load.name, load.streams), []).append(found)
                    print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        if not report(arguments, rows, loads):
            raise SystemExit(1)


def report(
    arguments: argparse.Namespace, rows: dict[tuple[str, str, int], list[dict[str, float]]], loads: list[Load]
) -> bool:
    """Print tables in Markdown; whether every answer was whole and every figure better than the peer's."""

    def median(way: str, load: Load, figure: str) -> float:
        return statistics.median(row.get(figure, float("nan")) for row in rows[way, load.name, load.streams])

    peers = ("luthier", "litellm") if not arguments.without_peer else ("luthier",)
    print(f"    python benchmarks/gateway.py {' '.join(sys.argv[1:])}\n")
    print(f"{machine()}; Python {platform.python_version()}, uvicorn {version('uvicorn')}, {PEER}.\n")
    print(
        "| load | streams | way | first token p50 ms | p99 ms | added p50 | added p99 | requests/s | CPU ms/request |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for load in loads:
        for way in (way for way in WAYS if (way, load.name, load.streams) in rows):
            cells = [f"{median(way, load, figure):.2f}" for figure in ("p50", "p99")]
            for figure in ("p50", "p99"):
                behind = BEHIND.get(way)
                cells.append(f"{median(way, load, figure) - median(behind, load, figure):.2f}" if behind else "")
            cells.append(f"{median(way, load, 'per_second'):.0f}")
            cells.append(f"{median(way, load, 'cpu_ms'):.2f}" if way in BEHIND else "")
            print(f"| {load.name} | {load.streams} | {way} | {' | '.join(cells)} |")
    if not arguments.without_peer:
        print(
            "\n| load | streams | added p50, times less | added p99, times less | requests/s, times more | CPU, times less |"
        )
        print("|---|---|---|---|---|---|")
        for load in loads:
            added = {
                (way, figure): median(way, load, figure) - median(BEHIND[way], load, figure)
                for way in peers
                for figure in ("p50", "p99")
            }
            cells = [ratio(added["litellm", figure], added["luthier", figure]) for figure in ("p50", "p99")]
            cells.append(ratio(median("luthier", load, "per_second"), median("litellm", load, "per_second")))
            cells.append(ratio(median("litellm", load, "cpu_ms"), median("luthier", load, "cpu_ms")))
            print(f"| {load.name} | {load.streams} | {' | '.join(cells)} |")
    requests = sum(int(row["requests"]) for found in rows.values() for row in found)
    broken = sum(int(row["broken"]) for found in rows.values() for row in found)
    print(f"\n{requests} answers compared, {broken} with a chunk lost, doubled or out of its place.")
    if arguments.without_peer:
        return broken == 0
    figures, missed = 0, []
    for load in loads:
        for figure in ("p50", "p99"):
            ours, theirs = (median(way, load, figure) - median(BEHIND[way], load, figure) for way in peers)
            figures += 1
            if not ours < theirs:
                missed.append(f"added {figure}, {load.name} {load.streams}: {ours:.2f} beside {theirs:.2f} ms")
        if load.every is None:
            ours, theirs = (median(way, load, "per_second") for way in peers)
            figures += 1
            if not ours > theirs:
                missed.append(f"requests/s, full {load.streams}: {ours:.0f} beside {theirs:.0f}")
    print(f"Better than the peer in {figures - len(missed)} of {figures} figures.", *missed, sep="\n- ")
    return broken == 0 and not missed


def ratio(one: float, other: float) -> str:
    return f"{one / other:.1f}" if one > 0 and other > 0 else "–"


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores of {model[1] if model else platform.processor()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between the requests of a steady stream")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--upstream", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        target, load = json.loads(arguments.drive)
        print(json.dumps(asyncio.run(drive(Target(**target), Load(**load)))))
    elif arguments.upstream:
        asyncio.run(upstream(arguments.upstream[0], int(arguments.upstream[1])))
    else:
        run(arguments)


if __name__ == "__main__":
    main()
