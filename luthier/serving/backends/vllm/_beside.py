"""Stands beside vLLM for its whole life, so that it never outlives whoever started it. Standard library only.

`python _beside.py COMMAND...`, as the leader of a session, its standard input a pipe that nobody but the starter holds:
when the pipe closes, the command is asked to end, and then all that is left of the session is killed.
"""

import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 5.0


def main(command: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for whoever started us, who then closes the pipe
        signal.signal(number, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=end_when_alone, args=(process,), daemon=True).start()
    code = process.wait()
    print(f"{os.path.basename(command[0])} ended with {code}", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)  # what it left behind, and ourselves


def end_when_alone(process: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
