"""The program an executor starts: `python -m luthier.serving.program SPEC_PATH --storage URL`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from luthier.core import logs
from luthier.core.errors import LuthierError
from luthier.serving import engines
from luthier.serving.address import KEY_VARIABLE
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage


def main() -> int:
    """Serve one replica until SIGTERM; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="luthier.serving.program", description=__doc__)
    parser.add_argument("spec", type=Path, help="file with a ReplicaSpec as JSON")
    parser.add_argument("--storage", required=True, help="URL of the storage with weights and adapters")
    parser.add_argument("--cache", type=Path, help="folder for copies of what a distant storage holds")
    parser.add_argument("--engines", type=Path, help="folder of the engines that have environments of their own")
    asked = parser.parse_args()
    logs.configure()
    spec = ReplicaSpec.model_validate_json(asked.spec.read_text())
    _prepare(spec.threads)
    if asked.engines:
        engines.use(asked.engines)
    from luthier.serving.replica import serve

    key = os.environ.pop(KEY_VARIABLE, "")
    try:
        asyncio.run(serve(spec, Storage(asked.storage, cache=asked.cache), key=key))
    except LuthierError as error:
        logs.get("replica").error("cannot serve", code=error.code, reason=error.text)
        return 1
    return 0


def _prepare(threads: int) -> None:
    """Set what torch and its libraries read when they are first imported, and keep new files to ourselves."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["GOMP_SPINCOUNT"] = "20000"  # waiting threads neither burn a core nor sleep at once
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.umask(0o077)


if __name__ == "__main__":
    sys.exit(main())
