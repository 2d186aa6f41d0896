"""A real server in a process of its own, as a user starts it, that can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from openai import OpenAI

from luthier.control.catalog.installing import Installer
from luthier.core.clock import SystemClock
from luthier.storage import Storage

KEY = "first.0123456789abcdef0123456789abcdef01234567"
PATIENCE_SECONDS = 120.0


class RunningServer:
    """`luthier serve` on a folder and a free port. `start` may be called again after `kill` or `stop`."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.data = data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "LUTHIER_BOOTSTRAP_KEY": KEY,
            "LUTHIER_MODELS__EMBEDDED": "false",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.data / "server.log").read_text()

    def start(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "luthier", "serve", "--port", str(self.port), "--data", str(self.data)]
        with (self.data / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError(f"the server did not become ready:\n{self.log}")

    def kill(self) -> None:
        """End the server's process as a power cut would; what it started lives on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it in good order, and whatever process of its data folder is still there."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        for process in self.engines():
            process.kill()

    def engines(self, program: str = "luthier.") -> list[psutil.Process]:
        """Trainers ("luthier.training") and replicas ("luthier.serving") that work for this server's folder."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            ours = any(str(self.data) in word for word in words)
            if ours and words[1:2] == ["-m"] and words[2].startswith(program):  # not the keeper of such a process
                found.append(process)
        return found

    def client(self, **options) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_SECONDS, **options)


def install_toy(data: Path, folder: Path) -> None:
    """Install the toy model of `folder` as `toy` for the server of that data folder."""
    storage = Storage((data / "objects").absolute().as_uri())
    Installer(storage, data / "scratch", sys.executable, SystemClock()).add("toy", str(folder))


def wait_for(condition, *, seconds: float = PATIENCE_SECONDS, every: float = 0.1):
    """What `condition` returns once that is true; AssertionError when the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError("it did not happen in time")
