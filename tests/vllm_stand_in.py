"""Stands in for `vllm serve`: its HTTP face over tokens that follow from a hash. Standard library only.

It takes the arguments, checks the key, holds adapters, streams completions by token ids, and notices who leaves. Behaviour
follows vLLM's published source (completions protocol and serving, the adapter calls). It reads what it shall do wrong from
`orders.json` in the folder of VLLM_STAND_IN, at each request anew, and writes what it was asked to `requests.jsonl` there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import stat
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTEXT = 512


def install(engines: Path) -> None:
    """Put the stand-in into a folder of engines, as `luthier engine install vllm` would put vLLM."""
    program = engines / "vllm/environment-1/bin/vllm"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).absolute()} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    record = {"name": "vllm", "version": "0.0.stand-in", "environment": "environment-1"}
    (engines / "vllm/engine.json").write_text(json.dumps(record))


def chances(mark: str, tokens: list[int]) -> list[tuple[int, float]]:
    """The candidates for the next token with their log-probabilities, the likeliest first."""
    source = random.Random(hashlib.sha256(json.dumps([mark, tokens]).encode()).digest())
    weights = sorted((source.random() ** 3 + 1e-6 for _ in range(32)), reverse=True)
    return [(id, math.log(w / sum(weights))) for id, w in zip(source.sample(range(256), 32), weights, strict=True)]


def answer(body: dict[str, Any], mark: str) -> Iterator[tuple[int, float, list[tuple[int, float]]]]:
    """Each token with its log-probability and the likeliest, until a stop or the length that was asked for."""
    made: list[int] = []
    seed = body.get("seed")
    while len(made) < body["max_tokens"] and not (made and made[-1] in body["stop_token_ids"]):
        known = chances(mark, body["prompt"] + made)
        biases = {int(token): bias for token, bias in body.get("logit_bias", {}).items()}
        shaped = sorted(((id, lp + biases.get(id, 0)) for id, lp in known), key=lambda one: -one[1])
        if body["temperature"] == 0:
            chosen = shaped[0][0]
        else:
            source = random.Random(None if seed is None else f"{seed} {len(made)}")
            chosen = source.choices([id for id, _ in shaped], [math.exp(lp / body["temperature"]) for _, lp in shaped])[
                0
            ]
        made.append(chosen)
        yield chosen, dict(known)[chosen], known


class Face(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        if self.path == "/health":
            self.say(200, "")
        elif self.path == "/v1/models" and self.is_known():
            self.say(200, {"data": [{"id": self.server.base, "max_model_len": self.server.context}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_known():
            return
        self.server.note({"path": self.path, **body})
        if self.path == "/v1/load_lora_adapter":
            self.load(body)
        elif self.path == "/v1/unload_lora_adapter":
            if self.server.adapters.pop(body["lora_name"], None) is None:
                self.fail(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            else:
                self.say(200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
        elif self.path == "/v1/completions":
            self.complete(body)
        else:
            self.fail(404, "Not Found")

    def load(self, body: dict[str, Any]) -> None:
        if said := self.server.orders.get("refuses_adapters"):
            self.fail(400, said)
        elif body["lora_name"] in self.server.adapters:
            self.fail(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        else:
            bytes_ = Path(body["lora_path"], "adapter_model.safetensors").read_bytes()
            self.server.adapters[body["lora_name"]] = hashlib.sha256(bytes_).hexdigest()
            self.say(200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    def complete(self, body: dict[str, Any]) -> None:
        orders = self.server.orders
        mark = self.server.adapters.get(body["model"]) or (body["model"] == self.server.base and "base")
        if not mark:
            self.fail(404, f"The model `{body['model']}` does not exist.")
        elif said := orders.get("refuses"):
            self.fail(orders.get("status", 400), said)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self.stream(body, mark, orders)
            except OSError:
                self.server.note({"aborted": body["prompt"]})
                self.close_connection = True

    def stream(self, body: dict[str, Any], mark: str, orders: dict[str, Any]) -> None:
        made = orders.get("answers", {}).get(json.dumps(body["prompt"])) or answer(body, mark)
        waiting: list[Any] = []
        for place, token in enumerate(made):
            time.sleep(orders.get("token_seconds", 0))
            if place == orders.get("dies_after"):
                os._exit(9)
            if place == orders.get("breaks_after"):
                self.close_connection = True
                return
            if place == orders.get("fails_after"):
                self.event({"error": {"message": "a broken kernel", "type": "InternalServerError", "code": 500}})
                self.chunk(b"data: [DONE]\n\n")
                self.chunk(b"")
                return
            waiting.append(token)
            if place % 3 == 0 or place == body["max_tokens"] - 1:  # as when the server was slow: two at once
                self.event({"choices": [self.choice(body, waiting)]})
                waiting = []
        last = "stop" if token[0] in body["stop_token_ids"] else orders.get("finish_reason", "length")
        self.event({"choices": [self.choice(body, waiting) | {"finish_reason": last}]})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def choice(self, body: dict[str, Any], made: list[Any]) -> dict[str, Any]:
        ids = [id for id, _, _ in made] if body.get("return_token_ids") else None
        choice = {"index": 0, "text": "\u2028\u0085" * len(made), "finish_reason": None, "token_ids": ids}
        if (count := body.get("logprobs")) is not None:
            tops = [dict([(id, lp), *[one for one in known if one[0] != id][:count]]) for id, lp, known in made]
            choice["logprobs"] = {
                "token_logprobs": [lp for _, lp, _ in made],
                "top_logprobs": [{f"token_id:{id}": lp for id, lp in top.items()} for top in tops],
            }
        return choice

    def event(self, told: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def is_known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self.fail(401, "Unauthorized")
        return False

    def fail(self, status: int, message: str) -> None:
        self.say(status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})

    def say(self, status: int, told: Any) -> None:
        data = told.encode() if isinstance(told, str) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class StandIn(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, asked: argparse.Namespace) -> None:
        super().__init__((asked.host, asked.port), Face)
        self.base: str = asked.served_model_name
        self.context: int = asked.max_model_len or CONTEXT
        self.adapters: dict[str, str] = {}
        self.folder = Path(os.environ["VLLM_STAND_IN"]) if "VLLM_STAND_IN" in os.environ else None

    @property
    def orders(self) -> dict[str, Any]:
        return orders(self.folder)

    def note(self, what: dict[str, Any]) -> None:
        if self.folder is not None:
            with (self.folder / "requests.jsonl").open("a") as file:
                file.write(json.dumps(what) + "\n")


def orders(folder: Path | None) -> dict[str, Any]:
    if folder is None or not (folder / "orders.json").exists():
        return {}
    return json.loads((folder / "orders.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-loras", type=int)
    parser.add_argument("--max-lora-rank", type=int, choices=[8, 16, 32, 64, 128, 256, 320, 512])
    parser.add_argument("--generation-config")
    parser.add_argument("--logprobs-mode", choices=["raw_logprobs"])
    parser.add_argument("--max-logprobs", type=int)
    parser.add_argument("--enforce-eager", action="store_true")
    asked = parser.parse_args()
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True" or not asked.enable_lora:
        sys.exit("adapters could not be loaded")
    server = StandIn(asked)
    server.note({"pid": os.getpid(), "arguments": sys.argv[1:]})
    if server.orders.get("does_not_start"):
        sys.exit("no GPU")
    server.serve_forever()


if __name__ == "__main__":
    main()
