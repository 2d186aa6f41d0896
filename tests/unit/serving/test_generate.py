"""The plain decode loop: greedy as transformers does it, sampling as its numbers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import ContextTooLong
from luthier.nets.generate import Sampler, decode
from luthier.testing import toy_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(toy_model(tmp_path_factory.mktemp("toy"))).eval()


def made(*asked: Any, **settings: Any) -> list[int]:
    """The ids of what `decode` yields."""
    return [token.id for token in decode(*asked, **settings)]


PROMPT = [72, 101, 108, 108, 111]


def test_greedy_is_the_librarys_own_generation(model: PreTrainedModel) -> None:
    theirs = model.generate(torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert made(model, PROMPT, Sampler(), stops=(), max_tokens=30) == theirs[0, len(PROMPT) :].tolist()


def test_greedy_takes_the_likeliest_without_a_cache(model: PreTrainedModel) -> None:
    tokens = list(PROMPT)
    for token in made(model, PROMPT, Sampler(), stops=(), max_tokens=10):
        assert token == int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)


def test_a_stop_is_yielded_and_ends(model: PreTrainedModel) -> None:
    free = made(model, PROMPT, Sampler(temperature=1, seed=1), stops=(), max_tokens=20)
    stop = free[5]
    assert made(model, PROMPT, Sampler(temperature=1, seed=1), stops={stop}) == free[: free.index(stop) + 1]


def test_without_a_limit_the_context_is_filled(model: PreTrainedModel) -> None:
    context = model.config.max_position_embeddings
    long = [65] * (context - 3)
    assert len(made(model, long, Sampler(), stops=())) == 3
    assert len(made(model, long, Sampler(), stops=(), max_tokens=9)) == 3
    with pytest.raises(ContextTooLong, match=str(context)):
        next(decode(model, [65] * context, Sampler(), stops=()))


@pytest.mark.parametrize("seed", [7, -1, 2**70])
def test_a_seed_repeats_whatever_else_is_drawn(model: PreTrainedModel, seed: int) -> None:
    alone = made(model, PROMPT, Sampler(temperature=1.2, top_p=0.9, seed=seed), stops=(), max_tokens=20)
    again = decode(model, PROMPT, Sampler(temperature=1.2, top_p=0.9, seed=seed), stops=(), max_tokens=20)
    other = decode(model, PROMPT, Sampler(temperature=1.2), stops=(), max_tokens=20)
    assert [one.id for one, _ in zip(again, other, strict=True)] == alone


def drawn(count: int = 4000, **settings: float) -> torch.Tensor:
    """Shares of three tokens whose chances at temperature 1 are 0.6, 0.3 and 0.1."""
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    sampler = Sampler(**{"temperature": 1.0, "seed": 0} | settings)
    return torch.tensor([sampler.choose(logits).id for _ in range(count)]).bincount(minlength=3) / count


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, [0.6, 0.3, 0.1]),
        ({"temperature": 0.5}, [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]),
        ({"temperature": 1e-40}, [1, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0]),
    ],
)
def test_tokens_are_drawn_by_their_chances(settings: dict[str, float], shares: list[float]) -> None:
    assert torch.allclose(drawn(**settings), torch.tensor(shares).float(), atol=0.03)


def test_penalties_follow_what_was_generated() -> None:
    logits = torch.tensor([2.0, 1.5, 0.0])

    def chosen(sampler: Sampler) -> list[int]:
        return [sampler.choose(logits).id for _ in range(5)]

    assert chosen(Sampler(frequency_penalty=0.4)) == [0, 0, 1, 0, 1]  # 2, 1.6, then 1.2 < 1.5, 1.2 > 1.1, 0.8 < 1.1
    assert chosen(Sampler(presence_penalty=0.4)) == [0, 0, 0, 0, 0]
    assert chosen(Sampler(presence_penalty=0.6)) == [0, 1, 0, 0, 0]  # 2, then 1.4 < 1.5, then both have paid once


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"temperature": 1.0, "seed": 11}, [28, 17, 36, 19, 13, 10, 21, 23, 13, 36, 23, 36]),
        ({"temperature": 0.8, "top_p": 0.9, "seed": 12}, [39, 33, 16, 39, 24, 23, 15, 28, 5, 5, 12, 29]),
        (
            {"temperature": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.2, "seed": 13},
            [2, 25, 36, 33, 31, 37, 1, 37, 14, 17, 8, 25],
        ),
        ({}, [38, 2, 2, 33, 30, 17, 35, 37, 22, 1, 12, 1]),
    ],
)
def test_a_seed_gives_what_it_always_gave(settings: dict[str, Any], tokens: list[int]) -> None:
    rows = [torch.sin(torch.arange(40) * (0.7 + 0.1 * n)) * 3 for n in range(12)]
    sampler = Sampler(**settings)
    assert [sampler.choose(row).id for row in rows] == tokens


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"top_k": 1}, [1, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0]),
        ({"top_k": 9}, [0.6, 0.3, 0.1]),
        ({"top_k": 2, "top_p": 0.65}, [1, 0, 0]),  # of the two, the first alone has more than 0.65
        ({"top_k": 2, "temperature": 2}, [2**0.5 / (2**0.5 + 1), 1 / (2**0.5 + 1), 0]),
        ({"logit_bias": {2: 100.0}}, [0, 0, 1]),
        ({"logit_bias": {0: -100.0, 1: math.log(2)}}, [0, 6 / 7, 1 / 7]),
    ],
)
def test_top_k_and_bias_change_the_chances(settings: dict[str, Any], shares: list[float]) -> None:
    assert torch.allclose(drawn(**settings), torch.tensor(shares).float(), atol=0.03)


def test_the_repetition_penalty_counts_prompt_and_answer_and_bears_the_sign() -> None:
    logits = torch.tensor([2.0, 1.5, -1.0, -1.5])

    def chosen(rounds: int = 3, **settings: Any) -> list[int]:
        sampler = Sampler(repetition_penalty=2, **settings)
        return [sampler.choose(logits).id for _ in range(rounds)]

    assert chosen() == [0, 1, 0]  # 2, then 1 < 1.5, then 1 > 0.75: what was seen pays once
    assert chosen(1, prompt=[0, 0]) == [1]
    bias = {0: -100.0, 1: -100.0}
    assert chosen(1, prompt=[2], logit_bias=bias) == [3]  # -2 < -1.5


def test_log_probabilities_are_told_before_anything_changes_them() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log() + 5
    sampler = Sampler(temperature=0.3, top_k=1, logit_bias={2: 50.0}, presence_penalty=2, logprobs=2)
    for _ in range(2):
        token = sampler.choose(logits)
        assert (token.id, token.logprob) == (2, pytest.approx(math.log(0.1)))
        assert token.likeliest == ((0, pytest.approx(math.log(0.6))), (1, pytest.approx(math.log(0.3))))
    assert Sampler(logprobs=0).choose(logits) == (0, pytest.approx(math.log(0.6)), ())
    assert Sampler().choose(logits) == (0, None, ())


class Alternating:
    """Allows token 9, then 1, then 9; there are ten it knows."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> bytes:
        return bytes([0b10, 0]) if len(self.taken) % 2 else bytes([0, 0b10])

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("settings", [{}, {"temperature": 2, "seed": 1}, {"temperature": 1, "top_k": 3, "top_p": 0.5}])
def test_nothing_comes_that_the_guide_does_not_allow(settings: dict[str, Any]) -> None:
    guide = Alternating()
    sampler = Sampler(logit_bias={5: 100.0}, guide=guide, **settings)
    logits = torch.zeros(30)  # more than it knows
    assert [sampler.choose(logits).id for _ in range(4)] == [9, 1, 9, 1] == guide.taken
