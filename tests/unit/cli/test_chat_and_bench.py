"""`luthier chat` and `luthier bench` as they are typed, against a server that says back what it hears."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from luthier.cli.bench import percentile
from luthier.control.catalog.installing import Installer
from luthier.core.clock import SystemClock
from luthier.storage import Storage
from tests.servers import KEY, RunningServer, install_toy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("talking")
    install_toy(data, toy_folder)
    storage = Storage((data / "objects").absolute().as_uri())
    Installer(storage, data / "scratch", sys.executable, SystemClock()).add("other", str(toy_folder))
    server = RunningServer(data, LUTHIER_SERVING__BACKEND="echo")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def command(server: RunningServer, *words: str) -> list[str]:
    return [sys.executable, "-m", "luthier", *words, "--url", server.url, "--key", KEY]


def typed(server: RunningServer, *words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(server, *words), input=lines, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_conversation_goes_on_and_can_be_begun_anew(server: RunningServer) -> None:
    lines = "Hello\n/reset\n/system Be brief.\nAgain\n/help\n/nonsense\nStill\n/quit\nNever\n"
    said = typed(server, "chat", "toy", "--seed", "7", lines=lines)
    assert said.stdout.split("\n")[:2] == ["Hello", "Again"]
    assert "/compare MODEL" in said.stdout and "Never" not in said.stdout
    assert said.stdout.rstrip().endswith("Still")
    assert "no command /nonsense" in said.stderr


def test_two_models_answer_each_message_with_their_names(server: RunningServer) -> None:
    said = typed(server, "chat", "toy", lines="One\n/compare other\nTwo\n/compare\nThree\n")
    assert said.stdout.split("\n") == ["One", "toy:", "Two", "other:", "Two", "Three", ""]


def test_a_model_that_there_is_not_ends_with_a_word(server: RunningServer) -> None:
    said = typed(server, "chat", "toy", "Hi", "--compare", "nobody")
    assert said.returncode == 1
    assert "nobody" in said.stderr and "Traceback" not in said.stderr


def test_what_is_refused_does_not_end_the_conversation(server: RunningServer) -> None:
    said = typed(server, "chat", "toy", lines="/compare nobody\nOne\n/compare\nTwo\n")
    assert said.returncode == 0
    assert "nobody" in said.stderr and "Traceback" not in said.stderr
    assert said.stdout.split("\n") == ["toy:", "One", "nobody:", "Two", ""]


class Hesitant(BaseHTTPRequestHandler):
    """Says back what it hears; of "Wait" it says a word and then nothing more until nobody listens."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        heard = body["messages"][-1]["content"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        chunk["choices"] = [{"index": 0, "delta": {"content": heard}, "finish_reason": None}]
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        while heard == "Wait":
            time.sleep(0.05)
            try:
                self.wfile.write(b": nothing yet\n\n")
            except ConnectionError:
                return
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is written down."""


def test_ctrl_c_stops_an_answer_and_not_the_conversation() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hesitant) as hesitant:
        threading.Thread(target=hesitant.serve_forever, daemon=True).start()
        words = [sys.executable, "-m", "luthier", "chat", "toy", "--url", f"http://127.0.0.1:{hesitant.server_port}"]
        with subprocess.Popen(
            [*words, "--key", KEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # Whoever runs the tests in the background may have had it ignored, which is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as talk:
            assert talk.stdin is not None and talk.stdout is not None
            try:
                talk.stdin.write("Wait\n")
                assert talk.stdout.read(4) == "Wait"
                talk.send_signal(signal.SIGINT)
                rest, _ = talk.communicate("Still there\n\n", timeout=60)
            finally:
                talk.kill()
        hesitant.shutdown()
    assert talk.returncode == 0
    assert rest.strip().endswith("(stopped)\nStill there")


def test_a_bench_counts_what_was_answered(server: RunningServer) -> None:
    told = typed(
        server,
        "bench",
        "toy",
        "--requests",
        "6",
        "--concurrency",
        "3",
        "--prompt-tokens",
        "5",
        "--max-tokens",
        "4",
        "--json",
    )
    found = json.loads(told.stdout)
    assert (found["requests"], found["answered"], found["errors"], found["completion_tokens"]) == (6, 6, {}, 24)
    first, between = found["first_token_seconds"], found["between_tokens_seconds"]
    assert 0 < first["p50"] <= first["p90"] <= first["p99"] <= found["seconds"]
    assert 0 <= between["p50"] <= between["p99"]


def test_a_bench_asks_what_a_file_asks(server: RunningServer, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "never sent"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    told = typed(server, "bench", "toy", "--requests", "2", "--dataset", str(tmp_path / "rows.jsonl"), "--json")
    assert json.loads(told.stdout)["completion_tokens"] == 2 * len(["a", "b", "c", "end"])


def test_a_bench_tells_errors_by_their_kind(server: RunningServer, tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": "Hi"}], [{"role": "nobody", "content": "Hi"}]]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"messages": turns}) for turns in rows))
    told = typed(server, "bench", "toy", "--requests", "4", "--dataset", str(tmp_path / "rows.jsonl"))
    assert "2 of 4 requests answered" in told.stdout
    assert "2 × 400 invalid_parameter" in told.stdout


def test_a_file_without_a_prompt_is_refused(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "Hi"}\n')
    told = typed(server, "bench", "toy", "--dataset", str(tmp_path / "rows.jsonl"))
    assert told.returncode == 1
    assert "line 1" in told.stderr


@pytest.mark.parametrize(("part", "value"), [(50, 50), (90, 90), (99, 99)])
def test_a_percentile_is_one_of_the_values(part: int, value: int) -> None:
    assert percentile(list(range(1, 101)), part) == value
    assert percentile([7.0], part) == 7.0
    assert percentile([], part) is None
