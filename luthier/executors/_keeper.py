"""Stands beside one command for its whole life, so that whoever started it may die. Standard library only.

`python _keeper.py LOCK_FD CPUS FOLDER COMMAND...`, as the leader of a session, holding the lock on FOLDER/lock, which
the command then holds too. CPUS are what the command may use ("0,1"), or empty. Writes `handle.json` before the command
starts and `exit.json` when it has ended.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def main(lock: int, cpus: set[int], folder: Path, command: list[str]) -> None:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # meant for the command; a handler is not inherited
        signal.signal(number, lambda got, _: asked.append(got))
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as refused:
            print(f"cores cannot be chosen: {refused}", file=sys.stderr, flush=True)
    write(folder / "handle.json", {"name": folder.name, "pid": os.getpid()})
    try:
        process = subprocess.Popen(command, pass_fds=(lock,))
    except OSError as refused:
        print(f"cannot start {command[0]}: {refused}", file=sys.stderr, flush=True)
        code = 127
    else:
        for number in asked:  # came before there was a command to hear it
            process.send_signal(number)
        code = process.wait()
    write(folder / "exit.json", {"exit_code": code})
    os.killpg(0, signal.SIGKILL)  # what the command left behind, and ourselves


def write(path: Path, content: dict[str, object]) -> None:
    """Write a file that appears whole."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content))
    partial.replace(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), {int(cpu) for cpu in sys.argv[2].split(",") if cpu}, Path(sys.argv[3]), sys.argv[4:])
