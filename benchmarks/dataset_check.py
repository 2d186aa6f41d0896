"""Checking rows: speed and memory beside `datasets` with a Python validation map, and beside plain loops.

    python benchmarks/dataset_check.py --gigabytes 1 --processes 1
    python benchmarks/dataset_check.py --gigabytes 4 --processes 2 --skip-peer
    python benchmarks/dataset_check.py --gigabytes 0.256 --format function_calling --skip-peer

Rows are made on the spot from a seed. Each part runs in a process of its own, one after the other, in the same run; its
time is wall time, its memory the peak of the resident sets of the process and its children together, sampled every 50 ms
(shared pages count once for each). The peer wants `datasets` (`--peer-python` names an interpreter that has it); token
counting wants a folder with a tokenizer (`--model FOLDER`). Both read rows of the format `messages` only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WORDS = 20_000
KINDS = (
    *("messages", "names", "labels", "function_calling", "function_calling_varied"),
    *("chosen_rejected", "preferred_output", "text"),
)


def make(path: Path, size: int, rows_of: str = "messages", seed: int = 1) -> int:
    """Write rows of a kind in English and Chinese until the file has that size; how many. Chat has one to three questions and
    answers.
    """
    draw = random.Random(seed)  # noqa: S311
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    signs = [chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(2000)]

    def text(least: int, most: int) -> str:
        said = " ".join(draw.choices(words, k=draw.randint(least, most)))
        if draw.random() < 0.2:
            said += "，" + "".join(draw.choices(signs, k=draw.randint(5, 80)))
        return said + ('\nHe said: "well"' if draw.random() < 0.1 else "")

    def user() -> dict:
        return {"role": "user", "content": text(8, 60)}

    def answer() -> dict:
        return {"role": "assistant", "content": text(20, 120)}

    def chat() -> dict:
        messages = [{"role": "system", "content": text(5, 20)}] if draw.random() < 0.5 else []
        for _ in range(draw.randint(1, 3)):
            messages += [user(), answer()]
        return {"messages": messages}

    def prompt() -> list[dict]:
        return [user()] if draw.random() < 0.6 else [user(), answer(), user()]

    def tools() -> list[dict]:
        schema = {name: {"type": "string", "description": text(5, 12)} for name in ("city", "day", "unit")}
        parameters = {"type": "object", "properties": schema, "required": ["city"]}
        return [
            {"type": "function", "function": {"name": name, "description": text(8, 20), "parameters": parameters}}
            for name in ("weather", "book", "cancel")
        ]

    def call() -> list[dict]:
        given = json.dumps({"city": text(1, 2), "day": "2027-03-05", "count": draw.randint(1, 9)}, ensure_ascii=False)
        name, id_ = draw.choice(["weather", "book", "cancel"]), f"call_{draw.randint(0, 10**9)}"
        called = {"id": id_, "type": "function", "function": {"name": name, "arguments": given}}
        result = {
            "role": "tool",
            "tool_call_id": id_,
            "content": json.dumps({"result": text(5, 40)}, ensure_ascii=False),
        }
        return [{"role": "assistant", "content": None, "tool_calls": [called]}, result]

    def calling(declared: list[dict]) -> dict:
        return {"messages": [user(), *call(), answer(), user(), *call(), answer()], "tools": declared}

    same_tools = tools()
    kinds: dict[str, Callable[[], dict]] = {
        "messages": chat,
        "names": lambda: {"messages": [user() | {"name": "Ann"}, answer()]},
        "labels": lambda: chat() | {"id": draw.randint(1, 10**6)},
        "function_calling": lambda: calling(same_tools),
        "function_calling_varied": lambda: calling(tools()),
        "chosen_rejected": lambda: {"messages": prompt(), "chosen": answer(), "rejected": answer()},
        "preferred_output": lambda: {
            "input": {"messages": prompt(), "tools": []},
            "preferred_output": [answer()],
            "non_preferred_output": [answer()],
        },
        "text": lambda: {"text": text(100, 400)},
    }
    mark = b'"text": "' if rows_of == "text" else b'"content": "'
    rows = written = 0
    block: list[bytes] = []
    with path.open("wb") as file:
        while written < size:
            block.append(json.dumps(kinds[rows_of](), ensure_ascii=False).encode() + b"\n")
            rows += 1
            if len(block) == 1000:  # repeated with another first word, so that making the file does not take an hour
                for number in range(20):
                    for line in block:
                        line = line.replace(mark, mark + b"%d " % number, 1)
                        file.write(line)
                        written += len(line)
                rows += 19 * len(block)
                block.clear()
                if written >= size:
                    break
    return rows


def check(path: Path, processes: int) -> str:
    from luthier.control.datasets.inspection import inspect
    from luthier.records.source import LocalFile

    report = inspect(LocalFile(path), processes=processes)
    assert report.fit or set(report.counts) == {"unknown_field"}, report.summary
    return f"{report.rows:,} rows, {report.duplicate_rows} repeated"


def orjson_loop(path: Path) -> str:
    import orjson

    rows = 0
    with path.open("rb") as file:
        for line in file:
            orjson.loads(line)
            rows += 1
    return f"{rows:,} rows"


def peer(path: Path) -> str:
    """What people do today: load the file with `datasets`, then map a validation over its rows."""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=os.environ["PEER_CACHE"])

    def valid(row: dict) -> dict:
        messages = row["messages"]
        fault = None
        for place, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in ("system", "user", "assistant"):
                fault = f"messages[{place}].role is {role!r}"
            elif not isinstance(content, str) or (role == "assistant" and not content.strip()):
                fault = f"messages[{place}].content is empty"
            elif role == "system" and place > 0:
                fault = "a system message is not the first"
        roles = {message["role"] for message in messages}
        if not {"user", "assistant"} <= roles:
            fault = "no user or no assistant"
        return {"fault": fault}

    processes = int(os.environ["PEER_PROCESSES"])
    checked = rows.map(valid, remove_columns=["messages"], num_proc=processes if processes > 1 else None)
    return f"{len(checked):,} rows"


def count_tokens(path: Path, model: str, processes: int) -> str:
    from luthier.control.datasets.counting import count_file
    from luthier.control.datasets.lengths import summed
    from luthier.records.source import LocalFile

    lengths = summed(count_file(LocalFile(path), "messages", Path(model), processes=processes))
    return f"{lengths.tokens:,} tokens"


def encode_batch(path: Path, model: str) -> str:
    """The tokenizer's own batch encoding of the same texts, without a template: the practical limit."""
    import orjson
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokens = 0
    texts: list[str] = []
    with path.open("rb") as file:
        for line in file:
            texts += [message["content"] for message in orjson.loads(line)["messages"]]
            if len(texts) > 4000:
                tokens += sum(len(one.ids) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
                texts.clear()
    tokens += sum(len(one.ids) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    return f"{tokens:,} tokens"


PARTS: dict[str, Callable[..., str]] = {
    "check": check,
    "orjson": orjson_loop,
    "peer": peer,
    "tokens": count_tokens,
    "encode_batch": encode_batch,
}


def measured(python: str, part: str, *arguments: str, env: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, peak MB and what a part said, run in a process of its own."""
    import psutil

    command = [python, __file__, "--part", part, *arguments]
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    said = process.stdout.read().strip().splitlines()
    if process.returncode:
        raise SystemExit(f"{part} failed")
    return seconds, peak / 1e6, said[-1] if said else ""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gigabytes", type=float, default=1.0)
    arguments.add_argument(
        "--format", default="messages", choices=KINDS, help="names, labels: chat rows with such fields"
    )
    arguments.add_argument("--processes", type=int, default=1)
    arguments.add_argument("--skip-peer", action="store_true")
    arguments.add_argument("--model", help="folder with tokenizer.json, for token counting")
    arguments.add_argument("--peer-python", default=sys.executable, help="interpreter that has `datasets`")
    arguments.add_argument("--folder", type=Path, help="where the file is made; it is kept there")
    arguments.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.part:
        path, *rest = asked.rest
        print(PARTS[asked.part](Path(path), *(int(one) if one.isdigit() else one for one in rest)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        path = folder / f"{asked.format}-{asked.gigabytes:g}.jsonl"
        if not path.exists():
            make(path, int(asked.gigabytes * 1e9), asked.format)
        size = path.stat().st_size / 1e6
        print(f"{size:,.0f} MB; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        runs = [("check", str(path), str(asked.processes)), ("orjson", str(path))]
        if not asked.skip_peer and asked.format == "messages":
            runs.append(("peer", str(path)))
        if asked.model and asked.format == "messages":
            runs += [("tokens", str(path), asked.model, str(asked.processes)), ("encode_batch", str(path), asked.model)]
        for part, *rest in runs:
            with tempfile.TemporaryDirectory(dir=scratch) as cache:
                python = asked.peer_python if part == "peer" else sys.executable
                seconds, peak, said = measured(
                    python,
                    part,
                    *rest,
                    env={"PEER_CACHE": cache, "PEER_PROCESSES": str(asked.processes), "HF_HUB_OFFLINE": "1"},
                )
            print(f"{part:<14} {seconds:8.1f} s {size / seconds:8.1f} MB/s {peak:8.0f} MB peak   {said}", flush=True)


if __name__ == "__main__":
    main()
