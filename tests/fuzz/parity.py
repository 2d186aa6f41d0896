"""What a replica answers beside what plain transformers and PEFT answer: token by token, for every method.

    python -m tests.fuzz.parity                                       # the embedded model, 200 prompts, 32 tokens each, fp32
    python -m tests.fuzz.parity --method lora --method dora --prompts 1000
    python -m tests.fuzz.parity --precision bf16                      # tells how far both agree

Every method trains an artifact in a few steps, by the trainer. Its greedy answers are made by `generate` of transformers, over
PEFT's own model of the artifact, one at a time in fp32: kept in `--data` for the next run. The backend makes the same: first each
alone, then all in batches of strangers with other adapters among them, then the first once more as the last. In fp32 tokens must
be equal up to where the two likeliest logits of the reference lie nearer than 1e-3, which is counted. Prints a line a method in
markdown; the exit code is 1 where fp32 tokens differ otherwise, or a method is not served.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.serving.backends.base import Asked, Backend, backends, load_adapter
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest
from luthier.testing import jsonl, toy_model, toy_rows
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec

NEAR = 1e-3
"""Two logits so near to each other may change places where sums are added in another order."""
AT_ONCE = 16
SMALL = {"rank": 4, "targets": "attention"}
CASES: dict[str, PluginChoice | None] = {
    "base": None,
    "lora": PluginChoice(name="lora", options={"rank": 8}),
    "rslora": PluginChoice(name="lora", options={**SMALL, "rank_stabilised": True}),
    "dora": PluginChoice(name="lora", options={**SMALL, "decomposed": True}),
    "qlora": PluginChoice(name="qlora", options={"rank": 8}),
    "full": PluginChoice(name="full", options={}),
    "ptuning_v2": PluginChoice(name="ptuning_v2", options={"prefix_length": 8, "projection_size": 16}),
}
WORDS = [
    "How",
    "should",
    "I",
    "tune",
    "the",
    "strings",
    "of",
    "a",
    "violin",
    "that",
    "sounds",
    "flat",
    "in",
    "cold",
    "rooms?",
]


@dataclass(frozen=True)
class Artifact:
    """What a method left. `ref` is an adapter over the base; without one `weights` are a whole model's."""

    weights: str
    ref: AdapterRef | None = None


@dataclass(frozen=True)
class Reference:
    """An answer's tokens, and how far the likeliest logit of each lay before the second."""

    tokens: list[int]
    margins: list[float]


@dataclass
class Agreement:
    answers: int = 0
    whole: int = 0
    near: int = 0
    """Answers that are equal up to a place where two logits are near."""
    different: int = 0
    tokens: int = 0
    equal_tokens: int = 0
    """Those before the first difference."""

    def add(self, reference: Reference, tokens: Sequence[int]) -> None:
        self.answers += 1
        self.tokens += len(reference.tokens)
        equal = common(reference.tokens, tokens)
        self.equal_tokens += equal
        if equal == len(reference.tokens) == len(tokens):
            self.whole += 1
        elif equal < len(reference.margins) and reference.margins[equal] < NEAR:
            self.near += 1
        else:
            self.different += 1


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def prompts(folder: Path, count: int, *, seed: int = 0) -> list[list[int]]:
    """Conversations of several lengths, as the model's renderer writes them."""
    from luthier.chat.messages import Conversation, Message
    from luthier.chat.renderers.base import renderer_for
    from luthier.chat.tokenizer import Tokenizer

    renderer, dice = renderer_for(Tokenizer(folder)), random.Random(seed)
    said = [" ".join(dice.choices(WORDS, k=dice.randint(1, 24))) for _ in range(count)]
    return [renderer.prompt(Conversation((Message("user", text),))) for text in said]


def train(storage: Storage, weights: str, case: str) -> Artifact:
    """A few steps of the method over the base; what was trained before is taken as it is."""
    from luthier.nets.loading import weights_sha256
    from luthier.training.events import Succeeded
    from luthier.training.run import run

    choice = CASES[case]
    if choice is None:
        return Artifact(weights)
    kept = f"parity/{digest(storage.folder(weights))[:8]}-{case}.json"
    if storage.exists(kept):
        found = json.loads(storage.read(kept))
    else:
        key = f"parity/files/{case}"
        settled: dict[str, Any] = {
            "job": f"ftjob-{case}",
            "base_model": "base",
            "weights": weights,
            "weights_sha256": weights_sha256(storage.folder(weights)),
            "training": DataFile(key=key, sha256=storage.write(key, jsonl(toy_rows(8))).sha256),
            "method": choice,
            "max_length": 128,
            "epochs": 2,
            "batch_size": 4,
            "micro_batch_tokens": 512,
            "learning_rate": 5e-4 if case == "full" else 0.01,
            "seed": 1,
            "precision": "fp32",
            "threads": 1,
            "evaluate_every_steps": 100,
            "save_every_steps": 100,
            "share_prefixes": True,
            "fused": True,
        }
        spec = TrainingSpec(**settled)
        done = run(spec, storage)
        assert isinstance(done, Succeeded), done
        found = {"key": done.artifact_key, "sha256": done.artifact_sha256}
        storage.write(kept, json.dumps(found).encode())
    if case == "full":
        return Artifact(found["key"])
    return Artifact(weights, AdapterRef(id=f"art-{case}", key=found["key"], sha256=found["sha256"]))


def references(
    storage: Storage, artifact: Artifact, asked: list[list[int]], new_tokens: int, stops: frozenset[int]
) -> list[Reference]:
    """The answers of transformers and PEFT, in fp32 and each alone; from an earlier run where they were kept."""
    what = [artifact.weights, artifact.ref and artifact.ref.sha256, asked, new_tokens, sorted(stops)]
    key = f"parity/references/{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]}.json"
    if storage.exists(key):
        return [Reference(**one) for one in json.loads(storage.read(key))]
    found = _generated(storage, artifact, asked, new_tokens, stops)
    storage.write(key, json.dumps([vars(one) for one in found]).encode())
    return found


def _generated(
    storage: Storage, artifact: Artifact, asked: list[list[int]], new_tokens: int, stops: frozenset[int]
) -> list[Reference]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(storage.folder(artifact.weights), dtype=torch.float32)
    if artifact.ref is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(storage.folder(artifact.ref.key)))
    model.eval()
    found = []
    for prompt in asked:
        ids_BT = torch.tensor([prompt])
        with torch.inference_mode():
            done = model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=sorted(stops),
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tops = [logits_BV[0].topk(2).values for logits_BV in done.logits]
        margins = [float(top[0] - top[1]) for top in tops]
        found.append(Reference(done.sequences[0, len(prompt) :].tolist(), margins))
    return found


def open_backend(storage: Storage, weights: str, *, precision: str, adapters: int, name: str = "builtin") -> Backend:
    from luthier.nets.loading import weights_sha256

    spec = {
        "replica": "rep-1",
        "base_model": "base",
        "weights": weights,
        "weights_sha256": weights_sha256(storage.folder(weights)),
        "precision": precision,
        "threads": 1,
        "adapters": max(1, adapters),
        "listen": "",
    }
    return backends.load(name).open(ReplicaSpec.model_validate(spec), storage)


def answers(
    backend: Backend,
    asked: Sequence[tuple[list[int], str | None]],
    new_tokens: int,
    stops: frozenset[int],
    *,
    at_once: int,
) -> list[list[int]]:
    """The tokens of each answer; so many are made side by side, another one joins when one has ended."""
    made = {place: [] for place in range(len(asked))}
    running: dict[Asked, int] = {}
    waiting = list(enumerate(asked))[::-1]
    while waiting or running:
        while waiting and len(running) < at_once:
            place, (prompt, adapter) = waiting.pop()
            one = Asked(prompt, Sampling(temperature=0, max_tokens=new_tokens), stops, adapter)
            backend.begin(one)
            running[one] = place
        for said in backend.step():
            if said.error is not None:
                raise said.error
            if said.token is not None:
                made[running[said.asked]].append(said.token.id)
            if said.is_last:
                del running[said.asked]
    return [made[place] for place in range(len(asked))]


def parity(
    storage: Storage, weights: str, *, cases: Sequence[str], count: int, new_tokens: int, precision: str = "fp32"
) -> dict[str, dict[str, Agreement]]:
    """By case, then by way: alone, among strangers, and the first of them again as the last."""
    from luthier.chat.renderers.base import renderer_for
    from luthier.chat.tokenizer import Tokenizer
    from luthier.core.errors import LuthierError

    folder = storage.folder(weights)
    stops, asked = frozenset(renderer_for(Tokenizer(folder)).stops), prompts(folder, count)
    artifacts = {case: train(storage, weights, case) for case in cases}
    expected = {case: references(storage, one, asked, new_tokens, stops) for case, one in artifacts.items()}
    found: dict[str, dict[str, Agreement]] = {}
    for base in dict.fromkeys(one.weights for one in artifacts.values()):
        backend = open_backend(storage, base, precision=precision, adapters=len(cases))
        beside: list[str] = []  # what this base can answer as
        for case in (case for case in cases if artifacts[case].weights == base):
            ref = artifacts[case].ref
            try:
                if ref is not None:
                    load_adapter(backend, storage, ref)
            except LuthierError as refused:
                print(f"{case} is not served by this backend: {refused}", file=sys.stderr)
                continue
            beside.append(case)
            found[case] = {way: Agreement() for way in ("alone", "among strangers", "first again as last")}
        ids = {case: one.ref and one.ref.id for case, one in artifacts.items()}
        for case in beside:
            alone = answers(backend, [(one, ids[case]) for one in asked], new_tokens, stops, at_once=1)
            for reference, tokens in zip(expected[case], alone, strict=True):
                found[case]["alone"].add(reference, tokens)
        mixed = [(case, place) for place in range(count) for case in beside]
        random.Random(1).shuffle(mixed)
        mixed += mixed[: len(beside)]
        made = answers(
            backend, [(asked[place], ids[case]) for case, place in mixed], new_tokens, stops, at_once=AT_ONCE
        )
        for number, ((case, place), tokens) in enumerate(zip(mixed, made, strict=True)):
            way = "among strangers" if number < count * len(beside) else "first again as last"
            found[case][way].add(expected[case][place], tokens)
        backend.close()
    return found


def table(found: dict[str, dict[str, Agreement]]) -> str:
    heads = ["method", "way", "answers", "equal", "equal up to near logits", "different", "tokens before a difference"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for case, ways in found.items():
        for way, one in ways.items():
            if one.answers:
                cells = [case, way, one.answers, f"{one.whole} ({one.whole / one.answers:.1%})", one.near]
                cells += [one.different, f"{one.equal_tokens / max(1, one.tokens):.2%}"]
                rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=CASES, help="all, when left out")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--toy", action="store_true", help="the toy model instead of the embedded one")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "luthier-parity")
    asked = parser.parse_args()
    storage = Storage((asked.data / "objects").absolute().as_uri())
    if asked.toy:
        weights = "models/toy"
        if not storage.exists(f"{weights}/config.json"):
            toy_model(asked.data / "objects" / weights)
    else:
        from luthier.control.catalog.installing import Installer
        from luthier.core.clock import SystemClock

        weights = Installer(storage, asked.data / "scratch", sys.executable, SystemClock()).embedded().weights
    cases = asked.method or list(CASES)
    found = parity(
        storage, weights, cases=cases, count=asked.prompts, new_tokens=asked.new_tokens, precision=asked.precision
    )
    print(f"{asked.prompts} prompts, {asked.new_tokens} tokens, {asked.precision}.\n\n{table(found)}")
    missing = [case for case in cases if case not in found]
    print(*(f"\nNot served: {case}" for case in missing), sep="")
    is_different = any(one.different for ways in found.values() for one in ways.values())
    return 1 if missing or (asked.precision == "fp32" and is_different) else 0


if __name__ == "__main__":
    sys.exit(main())
