"""The trainer as a process: exit codes, signals, the environment."""

import os
import signal
import subprocess
import sys
import time

import pytest

from luthier.testing import toy_spec
from luthier.training.program import execute, main, next_attempt


def test_exit_codes_tell_how_it_ended(storage, tmp_path):
    spec = toy_spec(storage)
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    storage.write("specs/bad", spec.model_copy(update={"job": "ftjob-bad", "max_length": 8}).model_dump_json().encode())
    assert main([str(path), "--storage", storage.url, "--attempt", "1"]) == 0
    assert main(["specs/bad", "--storage", storage.url]) == 1
    storage.write(f"{spec.run_key}/attempts/0009", b"{}")
    assert execute(spec, storage, 2) == 3


def test_an_attempt_without_a_number_comes_after_the_newest(storage, tmp_path, told):
    spec = toy_spec(storage)
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    assert execute(spec, storage, 4) == 0  # leaves events and checkpoints, and claims nothing
    assert main([str(path), "--storage", storage.url]) == 0
    assert told(spec, 5)[0].type == "started"
    assert storage.exists(f"{spec.run_key}/attempts/0005")
    assert next_attempt(storage, spec) == 6


def test_processes_that_torchrun_starts_must_be_told_the_number_of_a_second_attempt(storage, monkeypatch, capsys):
    spec = toy_spec(storage, processes=2)
    storage.write("specs/two", spec.model_dump_json().encode())
    storage.write(f"{spec.run_key}/events/0001/000000000.jsonl", b"")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        main(["specs/two", "--storage", storage.url])
    assert "attempt 1 at ftjob-toy is stored already; tell every process --attempt 2" in capsys.readouterr().err


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
