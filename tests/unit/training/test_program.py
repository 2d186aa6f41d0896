"""The trainer as a process: exit codes, signals, the environment."""

import os
import signal
import subprocess
import sys
import time

from luthier.testing import toy_spec
from luthier.training.program import execute, main


def test_exit_codes_tell_how_it_ended(storage, tmp_path):
    spec = toy_spec(storage)
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    storage.write("specs/bad", spec.model_copy(update={"job": "ftjob-bad", "max_length": 8}).model_dump_json().encode())
    assert main([str(path), "--storage", storage.url, "--attempt", "1"]) == 0
    assert main(["specs/bad", "--storage", storage.url]) == 1
    storage.write(f"{spec.run_key}/attempts/0009", b"{}")
    assert execute(spec, storage, 2) == 3


def test_the_callback_gets_every_event_and_signals_are_given_back(storage, told):
    spec = toy_spec(storage)
    before, shown = signal.getsignal(signal.SIGTERM), []
    assert execute(spec, storage, 1, shown.append) == 0
    assert shown == told(spec)
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_a_term_signal_cancels_the_run(storage, told, tmp_path):
    spec = toy_spec(storage, epochs=100, save_every_steps=1000, evaluate_every_steps=1000)
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "luthier.training.program", str(path), "--storage", storage.url]
    with subprocess.Popen(command) as process:
        try:
            while not told(spec) and process.poll() is None:
                time.sleep(0.05)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert told(spec)[-1].type == "cancelled"
