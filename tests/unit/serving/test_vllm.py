"""vLLM behind the contract, against what stands in for its HTTP face."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import (
    ContextTooLong,
    InternalError,
    InvalidParameter,
    InvalidRequest,
    LuthierError,
    NotOffered,
    ReplicaUnavailable,
)
from luthier.nets.loading import weights_sha256
from luthier.nets.tokens import Token
from luthier.serving import engines
from luthier.serving.backends.base import AdapterUnreadable, Asked, Backend, load_adapter
from luthier.serving.backends.vllm import Vllm, backend, self_check, wire
from luthier.serving.engines import EngineNotInstalled
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest
from luthier.testing import toy_model
from tests import vllm_stand_in
from tests.unit.serving.toys import toy_adapter

PROMPT = list(b"Hello")
GREEDY = Sampling(temperature=0, max_tokens=8)
SECONDS = 60.0
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


class Place:
    """A storage with a toy model and one adapter, and the folder through which the stand-in is told what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = Storage((folder / "storage").as_uri())
        self.model = toy_model(folder / "storage/models/toy")
        self.adapter = toy_adapter(folder / "storage", "ckpt-1", seed=1)
        vllm_stand_in.install(folder / "engines")

    def spec(self, **options: Any) -> ReplicaSpec:
        return ReplicaSpec(
            replica="rep-1", base_model="toy", weights="models/toy", weights_sha256=weights_sha256(self.model),
            backend="vllm", options={"self_check": False} | options, precision="fp32", threads=1, adapters=2,
            listen=str(self.folder / "socket/s"),
        )  # fmt: skip

    def order(self, **orders: Any) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def heard(self, key: str) -> list[dict[str, Any]]:
        """What the stand-in noted that has such a key."""
        notes = map(json.loads, (self.folder / "requests.jsonl").read_text().splitlines())
        return [note for note in notes if key in note]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("vllm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_STAND_IN", str(place.folder))
        patch.setattr(engines, "_folder", place.folder / "engines")
        yield place


@pytest.fixture(scope="module")
def running(place: Place) -> Iterator[Vllm]:
    running = Vllm.open(place.spec(extra_args=["--enforce-eager"]), place.storage)
    yield running
    running.close()


@pytest.fixture
def vllm(place: Place, running: Vllm) -> Iterator[Vllm]:
    place.order()
    (place.folder / "requests.jsonl").write_text("")
    yield running
    assert running.is_idle


def answered(backend: Backend, *asked: Asked) -> tuple[list[list[int]], list[Exception | None]]:
    """The tokens of each answer, and the error that ended it."""
    made: dict[Asked, list[int]] = {one: [] for one in asked}
    errors: dict[Asked, Exception | None] = {}
    for one in asked:
        backend.begin(one)
    while len(errors) < len(asked):
        for said in backend.step():
            if said.token is not None:
                made[said.asked].append(said.token.id)
            if said.is_last or said.error is not None:
                errors[said.asked] = said.error
    return list(made.values()), [errors[one] for one in asked]


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def completion(asked: Asked) -> dict[str, Any]:
    return wire.completion(asked, model="base", room=100, secret=b"secret")


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({}, {"top_k": 0, "max_tokens": 100}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 1000}, {"max_tokens": 100}),
        ({"frequency_penalty": 0.5, "presence_penalty": -0.5}, {"frequency_penalty": 0.5, "presence_penalty": -0.5}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"logit_bias": {3: -100.0}}, {"logit_bias": {"3": -100.0}}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"stop": ["x"], "stop_tokens": [9]}, {"stop_token_ids": [1, 2], "ignore_eos": True}),
    ],
)
def test_each_field_of_sampling_is_said_in_its_words(sampling: dict[str, Any], said: dict[str, Any]) -> None:
    body = completion(Asked(PROMPT, Sampling(**sampling), stops={2, 1}))
    assert said.items() <= body.items()
    assert "stop" not in body  # stop strings are ours to find


def test_what_is_absent_is_left_to_chance_and_not_sent() -> None:
    assert {"seed", "logprobs", "logit_bias"}.isdisjoint(completion(Asked(PROMPT, Sampling(), stops=())))


class Later(Sampling):
    typical_p: float = 1.0


def test_a_field_it_does_not_know_is_refused_where_it_is_used() -> None:
    assert "typical_p" not in completion(Asked(PROMPT, Later(), stops=()))
    with pytest.raises(NotOffered, match="typical_p"):
        completion(Asked(PROMPT, Later(typical_p=0.5), stops=()))


def test_cached_work_is_salted_by_scope_with_what_nobody_can_guess() -> None:
    salts = [
        completion(Asked(PROMPT, GREEDY, (), scope=scope))["cache_salt"] for scope in ("", "proj-1", "proj-2", "proj-1")
    ]
    assert salts[1] == salts[3]
    assert len(set(salts)) == 3
    assert "proj-1" not in salts[1]
    asked = Asked(PROMPT, GREEDY, (), scope="proj-1")
    assert wire.completion(asked, model="base", room=9, secret=b"other")["cache_salt"] != salts[1]


def test_a_token_beyond_the_likeliest_is_not_counted_among_them() -> None:
    told = {"token_logprobs": [-3.0], "top_logprobs": [{"token_id:7": -3.0, "token_id:5": -0.5, "token_id:6": -1.0}]}
    made = wire.tokens({"token_ids": [7], "logprobs": told}, Sampling(logprobs=2))
    assert made == [Token(7, -3.0, ((5, -0.5), (6, -1.0)))]


def test_a_version_that_tells_no_token_ids_is_found_out() -> None:
    with pytest.raises(InternalError, match="ids"):
        wire.tokens({"text": "Hi"}, Sampling())


def test_it_is_asked_by_token_ids_and_answers_by_them(place: Place, vllm: Vllm) -> None:
    [made], [error] = answered(vllm, Asked(PROMPT, GREEDY, stops={260}, scope="proj-1"))
    assert error is None
    assert made == [token for token, _, _ in vllm_stand_in.answer(place.heard("prompt")[0], "base")]
    [body] = place.heard("prompt")
    assert (body["prompt"], body["model"], body["stop_token_ids"]) == (PROMPT, "base", [260])


def test_an_answer_without_a_limit_fills_the_context(vllm: Vllm) -> None:
    [made], _ = answered(vllm, Asked(PROMPT, Sampling(temperature=0), stops=()))
    assert len(made) == vllm_stand_in.CONTEXT - len(PROMPT)


def test_a_prompt_without_room_is_refused(vllm: Vllm) -> None:
    with pytest.raises(ContextTooLong, match="512"):
        vllm.begin(Asked([5] * 512, GREEDY, stops=()))


def test_many_answers_are_made_beside_each_other(place: Place, vllm: Vllm) -> None:
    place.order(token_seconds=0.01)
    asked = [Asked([n], GREEDY, stops=()) for n in range(40)]
    made, errors = answered(vllm, *asked)
    assert errors == [None] * 40
    place.order()
    assert made == [answered(vllm, Asked([n], GREEDY, stops=()))[0][0] for n in range(40)]


@pytest.mark.parametrize(
    ("orders", "count", "kind", "said"),
    [
        ({"refuses": "top_k is odd"}, 0, InvalidRequest, "top_k is odd"),
        ({"refuses": "busy", "status": 503}, 0, ReplicaUnavailable, "busy"),
        ({"refuses": "a bug", "status": 500}, 0, InternalError, "a bug"),
        ({"fails_after": 4}, 4, InternalError, "broken kernel"),
        ({"breaks_after": 4}, 4, ReplicaUnavailable, "broke"),
        ({"finish_reason": "abort"}, 8, InternalError, "abort"),
    ],
)
def test_what_fails_for_an_answer_ends_it_after_what_was_made(
    place: Place, vllm: Vllm, orders: dict[str, Any], count: int, kind: type[LuthierError], said: str
) -> None:
    place.order(**orders)
    [made], [error] = answered(vllm, Asked(PROMPT, GREEDY, stops=()))
    assert len(made) == count
    assert type(error) is kind
    assert said in str(error)
    place.order()
    assert answered(vllm, Asked(PROMPT, GREEDY, stops=()))[1] == [None]


def test_a_cancelled_answer_is_aborted_in_the_server(place: Place, vllm: Vllm) -> None:
    place.order(token_seconds=0.02)
    asked = Asked(PROMPT, Sampling(temperature=0, max_tokens=400), stops=())
    vllm.begin(asked)
    while not vllm.step():
        pass
    vllm.cancel(asked)
    assert vllm.is_idle
    until(lambda: place.heard("aborted"))


def test_adapters_are_loaded_under_their_ids_and_answer_by_them(place: Place, vllm: Vllm) -> None:
    load_adapter(vllm, place.storage, place.adapter)
    [tuned, plain], _ = answered(vllm, Asked(PROMPT, GREEDY, (), "ckpt-1"), Asked(PROMPT, GREEDY, ()))
    path = Path(place.heard("lora_path")[0]["lora_path"])
    assert (path / "adapter_model.safetensors").is_file()  # as long as it is loaded it may be read again
    vllm.unload_adapter("ckpt-1")
    assert not path.exists()
    assert tuned != plain
    assert [note["lora_name"] for note in place.heard("lora_name")] == ["ckpt-1", "ckpt-1"]
    assert {note["model"] for note in place.heard("prompt")} == {"ckpt-1", "base"}


def test_an_adapter_that_the_server_refuses_is_not_there_and_may_come_again(place: Place, vllm: Vllm) -> None:
    place.order(refuses_adapters="unsupported module lm_head")
    with pytest.raises(AdapterUnreadable, match="unsupported module lm_head"):
        load_adapter(vllm, place.storage, place.adapter)
    with pytest.raises(InternalError, match="not loaded"):
        vllm.begin(Asked(PROMPT, GREEDY, (), "ckpt-1"))
    place.order()
    load_adapter(vllm, place.storage, place.adapter)
    vllm.unload_adapter("ckpt-1")


def altered(place: Place, id: str, tensors: Callable[[dict[str, Any]], Any], **config: Any) -> AdapterRef:
    """The adapter with other contents, published as they are."""
    folder = place.folder / f"storage/adapters/{id}"
    if not folder.exists():
        folder.mkdir()
        old = place.folder / "storage" / place.adapter.key
        (folder / "adapter_config.json").write_text(
            json.dumps(json.loads((old / "adapter_config.json").read_text()) | config)
        )
        state = load_file(old / "adapter_model.safetensors")
        tensors(state)
        save_file(state, folder / "adapter_model.safetensors")
    return AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(folder))


@pytest.mark.parametrize(
    ("id", "tensors", "config", "said"),
    [
        ("missing", lambda state: state.pop(A), {}, f"missing: {A}"),
        ("extra", lambda state: state.update({A.replace("q_proj", "k_proj"): state[A].clone()}), {}, "without a place"),
        ("shape", lambda state: state.update({A: state[A][:, :5].clone()}), {}, r"\(4, 5\) instead of \(4, 32\)"),
        ("ranks", lambda state: None, {"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ("dora", lambda state: None, {"use_dora": True}, "use_dora"),
        ("bare", lambda state: None, {"r": None}, "cannot be read"),
        ("wide", lambda state: None, {"r": 128}, "rank 128"),
    ],
)
def test_an_adapter_that_fits_only_in_part_never_reaches_the_server(
    place: Place, vllm: Vllm, id: str, tensors: Callable[[dict[str, Any]], Any], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdapterUnreadable, match=said):
        load_adapter(vllm, place.storage, altered(place, id, tensors, **config))
    assert place.heard("lora_name") == []


def test_nobody_else_on_the_machine_learns_the_key(place: Place, running: Vllm) -> None:
    line = psutil.Process(running._server._process.pid).children()[0].cmdline()
    assert running._server.key not in " ".join(line)
    guess = urllib.request.Request(f"{running._server.url}/v1/models", headers={"Authorization": "Bearer guess"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(guess)


def test_when_it_dies_all_answers_end_in_an_error_and_so_does_the_replica(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(backend, "end_this_process", lambda: ended.append(True))
    place.order(dies_after=4, token_seconds=0.01)
    vllm = Vllm.open(place.spec(), place.storage)
    _, errors = answered(vllm, *(Asked([n], GREEDY, ()) for n in range(3)))
    assert [type(error) for error in errors] == [ReplicaUnavailable] * 3
    until(lambda: ended)
    with pytest.raises(ReplicaUnavailable, match="died"):
        vllm.begin(Asked(PROMPT, GREEDY, ()))
    vllm.close()


def test_a_server_that_does_not_start_is_told_at_once(place: Place) -> None:
    place.order(does_not_start=True)
    with pytest.raises(ReplicaUnavailable, match="while it started"):
        Vllm.open(place.spec(), place.storage)


def test_other_weights_are_refused(place: Place) -> None:
    with pytest.raises(InvalidRequest, match="not the ones"):
        Vllm.open(place.spec().model_copy(update={"weights_sha256": "0" * 64}), place.storage)


def test_without_the_engine_one_is_told_how_to_install_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_folder", tmp_path)
    with pytest.raises(EngineNotInstalled) as told:
        Vllm.open(place.spec(), place.storage)
    assert told.value.hint == "Install it with: luthier engine install vllm"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_model_length": 9}, "serving.options.max_model_length"),
        ({"max_lora_rank": 7}, "serving.options.max_lora_rank"),
        ({"extra_args": ["--port=1"]}, "--port"),
        ({"extra_args": ["--trust-remote-code"]}, "--trust-remote-code"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        Vllm.Options.read(options)


def test_options_are_said_to_the_server_and_ours_win(place: Place, running: Vllm) -> None:
    given = Vllm.Options(max_model_len=256, max_lora_rank=16, extra_args=("--dtype", "float16"))
    line = backend._arguments(place.spec(), "weights", given)
    assert " ".join(line).startswith("weights --dtype float16 --dtype float32 ")
    assert "--max-model-len 256" in " ".join(line)
    assert "--max-lora-rank 16" in " ".join(line)


REFERENCE = [Token(5, -0.1, ((5, -0.1), (6, -2.5))), Token(7, -0.9, ((7, -0.9), (8, -0.91), (9, -3.0)))]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([Token(5, -0.1), Token(7, -0.9)], None),
        ([Token(5, -0.11), Token(8, -0.9)], None),  # as good as equal: either may come
        ([Token(5, -0.1), Token(8, -0.91), Token(0, -9.0)], None),  # what follows is another text
        ([], "nothing came"),
        ([Token(6, -2.5)], "token 0 is 6, expected 5"),
        ([Token(5, -0.1), Token(9, -3.0)], "token 1 is 9, expected 7"),
        ([Token(5, -0.1), Token(200, -0.9)], "token 1 is 200, expected 7"),
        ([Token(5, -0.5)], "log-probability -0.500, expected -0.100"),
    ],
)
def test_the_self_check_tells_what_differs(found: list[Token], said: str | None) -> None:
    told = self_check.differs(REFERENCE, found, 0.02)
    assert told is said is None or (told is not None and said is not None and said in told)


@pytest.mark.timeout(300)  # a fresh process imports transformers
def test_it_serves_only_where_it_says_what_transformers_says(place: Place) -> None:
    expected = self_check.expected(place.model, renderer_for(Tokenizer(place.model)))
    answers = {json.dumps(one.prompt): [list(token) for token in one.answer] for one in expected}
    place.order(answers=answers)
    right = Vllm.open(place.spec(self_check=True), place.storage)
    right.close()
    answers[json.dumps(expected[-1].prompt)][3][1] -= 0.5
    place.order(answers=answers)
    with pytest.raises(self_check.AnswersWrongly, match=r"token 3 .* log-probability"):
        Vllm.open(place.spec(self_check=True), place.storage)
    assert not psutil.pid_exists(place.heard("pid")[-1]["pid"])


@pytest.fixture
def replica(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """The replica's program over the stand-in, ready."""
    place.order()
    (place.folder / "requests.jsonl").write_text("")
    (place.folder / "socket/s").unlink(missing_ok=True)
    spec = place.folder / "spec.json"
    spec.write_text(place.spec().model_dump_json())
    command = [
        sys.executable,
        "-m",
        "luthier.serving.program",
        str(spec),
        "--storage",
        (place.folder / "storage").as_uri(),
    ]
    process = subprocess.Popen([*command, "--engines", str(place.folder / "engines")])
    until(lambda: process.poll() is not None or (place.folder / "socket/s").exists())
    assert process.poll() is None
    yield process
    process.kill()
    process.wait()


def test_the_server_ends_with_a_replica_that_is_killed(place: Place, replica: subprocess.Popen[bytes]) -> None:
    replica.kill()
    until(lambda: not psutil.pid_exists(place.heard("pid")[0]["pid"]))


def test_a_replica_ends_with_its_server(place: Place, replica: subprocess.Popen[bytes]) -> None:
    os.kill(place.heard("pid")[0]["pid"], signal.SIGKILL)
    replica.wait(SECONDS)
