"""The process that works on one file: reads its task from standard input and writes the answer to standard output."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from luthier.control.datasets.tasks import Task, perform
from luthier.core.errors import LuthierError, Unavailable
from luthier.storage import Storage


def main() -> None:
    if not (told := sys.stdin.read()):  # nobody has a task any more
        return
    letter = json.loads(told)
    resource.setrlimit(resource.RLIMIT_AS, (letter["memory_bytes"], letter["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    storage = Storage(letter["storage"], cache=Path(letter["cache"]))
    try:
        told = {"result": perform(Task.model_validate(letter["task"]), storage)}
    except LuthierError as error:
        told = {
            "error": {
                "code": error.code,
                "message": error.message,
                "param": error.param,
                "hint": error.hint,
                "is_unavailable": isinstance(error, Unavailable),
            }
        }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
