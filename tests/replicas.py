"""A replica in a process of its own, as an executor starts it, and asked over its socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from luthier.nets.loading import weights_sha256
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import Finish, GenerateRequest, TokenChunk
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage

PATIENCE_SECONDS = 120.0


class RunningReplica:
    """`serving.program` for the model in `weights` of a storage in `folder`; ends with the `with` block."""

    def __init__(self, folder: Path, weights: str = "models/toy", **changes: Any) -> None:
        self._private = tempfile.TemporaryDirectory(prefix="replica-")  # a socket's path is short, its folder is ours
        self.storage = Storage(folder.absolute().as_uri())
        settled: dict[str, Any] = {
            "replica": "rep-1",
            "base_model": "base",
            "weights": weights,
            "weights_sha256": weights_sha256(self.storage.folder(weights)),
            "precision": "fp32",
            "threads": 1,
            "adapters": 4,
            "listen": f"{self._private.name}/s",
        }
        self.spec = ReplicaSpec(**settled | changes)
        self.client = ReplicaClient(self.spec.listen)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (Path(self._private.name) / "log").read_text()

    def __enter__(self) -> RunningReplica:
        spec = Path(self._private.name) / "spec.json"
        spec.write_text(self.spec.model_dump_json())
        command = [sys.executable, "-m", "luthier.serving.program", str(spec), "--storage", self.storage.url]
        with (Path(self._private.name) / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not Path(self.spec.listen).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                told = self.log
                self.__exit__()
                raise AssertionError(f"the replica did not become ready:\n{told}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._private.cleanup()


async def whole(client: ReplicaClient, request: GenerateRequest) -> tuple[str, Finish]:
    """The text of an answer, and how it ended."""
    text = ""
    async with aclosing(client.generate(request)) as parts:
        async for part in parts:
            if isinstance(part, TokenChunk):
                text += part.text
            else:
                return text, part
    raise AssertionError("an answer without its end")
