"""`vllm serve` as a child of this process, on a port of this machine that nobody else has the key to."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from luthier.core import logs
from luthier.core.errors import InternalError, ReplicaUnavailable

BASE = "base"
"""The base model's name in the server; ids of adapters have a dash."""

_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_ANSWER_SECONDS = 300.0  # an adapter may come from a slow disk
_BESIDE = Path(__file__).with_name("_beside.py")
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_OUR_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")

log = logs.get("vllm")


class Refused(InternalError):
    """The server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"vLLM answered {status}: {message}")
        self.status = status
        self.said = message


class Server:
    """Runs from its making to `close`, and never longer than this process."""

    def __init__(self, program: Path, arguments: Sequence[str]) -> None:
        self.key = secrets.token_urlsafe(32)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        told = ["serve", *arguments, "--served-model-name", BASE, "--host", "127.0.0.1", "--port", str(port)]
        log.info("starting", program=str(program), arguments=told)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_BESIDE), str(program), *told],
            stdin=subprocess.PIPE,
            env=_environment(self.key),
            start_new_session=True,
        )
        self._is_closing = False

    def await_ready(self, within_seconds: float) -> int:
        """Wait until it answers, and say how many tokens its context holds. Raises ReplicaUnavailable when it does not."""
        deadline = time.monotonic() + within_seconds
        while self.is_alive:
            with suppress(OSError):  # nobody listens there yet
                return int(self.call("GET", "/v1/models")["data"][0]["max_model_len"])
            if time.monotonic() > deadline:
                raise ReplicaUnavailable(
                    f"vLLM did not answer within {within_seconds:g} seconds.",
                    hint="Look at its log, or allow more in serving.options.ready_within_seconds.",
                )
            time.sleep(_LOOK_SECONDS)
        raise ReplicaUnavailable("vLLM ended while it started.", hint="The log of this replica has its last words.")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def when_it_dies(self, tell: Callable[[], None]) -> None:
        """Call `tell`, in another thread, when it ends by itself."""

        def watch() -> None:
            self._process.wait()
            if not self._is_closing:
                log.error("vLLM has died")
                tell()

        Thread(target=watch, name="vllm watch", daemon=True).start()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request and its answer. Raises Refused for an error of the server's, OSError when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  (our own address)
        try:
            with _NO_PROXY.open(request, timeout=_ANSWER_SECONDS) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, reason(error.read())) from error
        try:
            return json.loads(text)
        except ValueError:
            return text  # the calls for adapters say a sentence

    def close(self) -> None:
        """End it and all that it has started."""
        self._is_closing = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()


def reason(body: bytes) -> str:
    """What an error of the server's says; its form has changed with its versions."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
        return str(told.get("error", told)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[:500]


def _environment(key: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in _OUR_PYTHON}
    return ours | {
        "VLLM_API_KEY": key,  # on the command line everybody on this machine could read it
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
