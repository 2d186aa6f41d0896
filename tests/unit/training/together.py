"""The second process of a run of two, for the tests: `python -m tests.unit.training.together STORAGE [KEY ATTEMPT PORT]...`.

It plays one spec after the other, so that libraries are imported once.
"""

from __future__ import annotations

import os
import sys

from luthier.storage import Storage
from luthier.training.run import run
from luthier.training.spec import TrainingSpec


def play(storage: Storage, spec: TrainingSpec, attempt: int, rank: int, port: int):
    """The last event of one of the two processes of a run."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return run(spec, storage, attempt=attempt)


if __name__ == "__main__":
    opened = Storage(sys.argv[1])
    for key, attempt, port in zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3], strict=True):
        play(opened, TrainingSpec.model_validate_json(opened.read(key)), int(attempt), 1, int(port))
