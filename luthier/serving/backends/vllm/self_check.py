"""Whether vLLM says what transformers says: its first greedy tokens of fixed prompts, and how likely it finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import Renderer
from luthier.core.errors import InternalError
from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked, Backend
from luthier.serving.protocol import Sampling

TOLERANCE = {"fp32": 0.02, "fp16": 0.2, "bf16": 0.5}
"""How far two log-probabilities may lie apart, by the precision that vLLM computes in; the reference is in fp32."""

LENGTH, LIKELIEST = 8, 20
_SAID = (
    "Hello! Who are you?",
    "What is 12 + 30? Answer with the number alone.",
    "请用一句话介绍北京。",
    "Write a Python function that returns the larger of two numbers.",
)
_SKIP = "Install another version of the engine, or skip this check with serving.options.self_check = false."


class AnswersWrongly(InternalError):
    """The engine's tokens are not those of its weights."""

    code = "engine_answers_wrongly"


@dataclass(frozen=True)
class Expected:
    """A prompt, and the reference's greedy answer with the likeliest tokens at each place."""

    prompt: list[int]
    answer: list[Token]


def expected(weights: Path, renderer: Renderer) -> list[Expected]:
    """Compute the reference, in a process that takes its memory away with it. It reads the weights whole, in fp32."""
    prompts = [renderer.prompt(Conversation((Message("user", said),))) for said in _SAID]
    done = subprocess.run(
        [sys.executable, "-m", "luthier.serving.backends.vllm.reference", str(weights), str(LENGTH), str(LIKELIEST)],
        input=json.dumps(prompts), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise InternalError(
            f"The answers that vLLM's are compared with could not be computed: the reference ended with {done.returncode}.",
            hint=f"It needs luthier[engine] and memory for the weights in fp32; its last words are in the log. {_SKIP}",
        )
    answers = json.loads(done.stdout.splitlines()[-1])
    return [
        Expected(prompt, [Token(id, logprob, tuple(map(tuple, likeliest))) for id, logprob, likeliest in answer])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def compare(backend: Backend, all_expected: Sequence[Expected], precision: str) -> None:
    """Ask the backend the same. Raises AnswersWrongly, with the first thing that differed."""
    for expected in all_expected:
        found = _answer(backend, expected.prompt)
        if (difference := differs(expected.answer, found, TOLERANCE[precision])) is not None:
            raise AnswersWrongly(
                f"vLLM does not answer as transformers does with these weights: after the prompt {expected.prompt[:8]}… "
                f"of {len(expected.prompt)} tokens, {difference}",
                hint=_SKIP,
            )


def differs(expected: Sequence[Token], found: Sequence[Token], tolerance: float) -> str | None:
    """What is different beyond the tolerance, said for people; None where nothing is.

    Where the two likeliest tokens are as good as equal, either may be chosen; what follows then is another text, and no
    longer compared.
    """
    if not found:
        return "nothing came."
    for place, (wanted, got) in enumerate(zip(expected, found, strict=False)):
        known = dict(wanted.likeliest) | {wanted.id: wanted.logprob}
        logprob, best = known.get(got.id), wanted.logprob
        assert best is not None and got.logprob is not None
        if logprob is None or best - logprob > tolerance:
            return f"token {place} is {got.id}, expected {wanted.id}."
        if abs(got.logprob - logprob) > tolerance:
            return f"token {place} ({got.id}) has log-probability {got.logprob:.3f}, expected {logprob:.3f}."
        if got.id != wanted.id:
            return None
    return None


def _answer(backend: Backend, prompt: list[int]) -> list[Token]:
    asked = Asked(prompt, Sampling(temperature=0, max_tokens=LENGTH, logprobs=1), stops=())
    backend.begin(asked)
    made: list[Token] = []
    while not backend.is_idle:
        for said in backend.step():
            if said.error is not None:
                raise said.error
            if said.token is not None:
                made.append(said.token)
    return made
