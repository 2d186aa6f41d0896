"""Choosing tokens: as the numbers say, and each answer's as if it were alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from luthier.core.errors import InternalError, InvalidParameter
from luthier.nets.sampling import Sampler, choose_all
from luthier.nets.tokens import Token


def drawn(**settings: Any) -> torch.Tensor:
    """Shares of three tokens whose chances at temperature 1 are 0.6, 0.3 and 0.1."""
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    sampler = Sampler(**{"temperature": 1.0, "seed": 0} | settings)
    return torch.tensor([sampler.choose(logits).id for _ in range(4000)]).bincount(minlength=3) / 4000


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
        ({"temperature": 1.0, "seed": 11}, [21, 17, 23, 20, 30, 12, 30, 1, 39, 21, 1, 1]),
        ({"temperature": 0.8, "top_p": 0.9, "seed": 12}, [20, 25, 29, 2, 1, 17, 11, 32, 26, 21, 23, 25]),
        (
            {"temperature": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.2, "seed": 13},
            [29, 33, 8, 8, 2, 7, 16, 23, 10, 33, 34, 29],
        ),
        ({}, [38, 2, 2, 33, 30, 17, 35, 37, 22, 1, 12, 1]),
    ],
)
def test_what_a_seed_gives_stays(settings: dict[str, Any], tokens: list[int]) -> None:
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
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0]),  # 0.3 is 0.5 of the likeliest, 0.1 a sixth
        ({"min_p": 0.4, "temperature": 2}, [0.6**0.5, 0.3**0.5, 0.1**0.5]),  # after temperature: the third has 0.408
        ({"min_p": 0.4, "top_p": 0.65}, [1, 0, 0]),  # of the two left, the first alone has more than 0.65
        ({"min_p": 1}, [1, 0, 0]),
        ({"logit_bias": {2: 100.0}}, [0, 0, 1]),
        ({"logit_bias": {0: -100.0, 1: math.log(2)}}, [0, 6 / 7, 1 / 7]),
    ],
)
def test_top_k_min_p_and_bias_change_the_chances(settings: dict[str, Any], shares: list[float]) -> None:
    expected = torch.tensor(shares).float()
    assert torch.allclose(drawn(**settings), expected / expected.sum(), atol=0.03)


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


BIAS = {4: 9.0, 299: -100.0}
SIZE = 5003
"""Of a vocabulary: no multiple of anything that is worked on together."""


class Even:
    """Allows the tokens with even ids below 400."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> bytes:
        return bytes([0b01010101]) * 50

    def take(self, token: int) -> None:
        self.taken.append(token)


TABLE: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"temperature": 1.0},
    {"temperature": 1e-6},
    {"temperature": 2.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.999},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 2.0, "top_k": 4000, "top_p": 0.97},
    {"temperature": 1.0, "top_k": 10**6},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.3, "min_p": 0.01, "top_k": 30, "top_p": 0.8, "logprobs": 20},
    {"frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"temperature": 1.0, "repetition_penalty": 1.3, "prompt": [1, 2, 3, 2]},
    {"temperature": 0.9, "logit_bias": BIAS, "logprobs": 0},
    {"guide": Even},
    {"temperature": 1.5, "guide": Even, "top_p": 0.9, "logprobs": 2},
]


def sampler_of(settings: dict[str, Any], seed: int) -> Sampler:
    guide = settings.get("guide")
    return Sampler(**settings | {"seed": seed, "guide": guide() if guide else None})


def logits_of(step: int, rows: int, size: int = SIZE) -> torch.Tensor:
    """Of every row others, as steep as a model's."""
    made = torch.Generator().manual_seed(step)
    return torch.randn(rows, size, generator=made) * torch.linspace(0.5, 4, rows)[:, None]


def test_a_batch_is_chosen_as_each_of_it_alone() -> None:
    together = [sampler_of(settings, seed) for seed, settings in enumerate(TABLE)]
    alone = [sampler_of(settings, seed) for seed, settings in enumerate(TABLE)]
    for step in range(6):
        logits = logits_of(step, len(TABLE))
        before = logits.clone()
        expected = [sampler.choose(row) for sampler, row in zip(alone, logits, strict=True)]
        order = sorted(range(len(TABLE)), key=lambda row: (row * 7 + step) % len(TABLE))  # other neighbours every time
        chosen = choose_all([together[row] for row in order], logits[order])
        assert chosen == [expected[row] for row in order]  # log-probabilities too, to the last bit
        assert torch.equal(logits, before)


@pytest.mark.parametrize("settings", [one for one in TABLE if one.get("temperature", 0) > 0.1])
def test_the_shares_drawn_are_those_of_the_rule_written_out(settings: dict[str, Any]) -> None:
    """Against a plain reckoning over the sorted vocabulary, whichever way the tokens were found."""
    [logits] = logits_of(3, 1, 300) * 4
    expected = chances_by_the_rule(logits, settings)
    drawn = torch.zeros(300)
    settings = settings | {"logprobs": None} | ({"logit_bias": BIAS} if "logit_bias" in settings else {})
    tokens = choose_all([sampler_of(settings, seed) for seed in range(1000)], logits.expand(1000, -1))
    for token in tokens:
        assert isinstance(token, Token)
        drawn[token.id] += 1 / 1000
    assert not drawn[expected == 0].any()
    assert (drawn - expected).abs().max() < 0.06


def chances_by_the_rule(logits: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    logits = logits.double()
    if "logit_bias" in settings:
        logits[list(BIAS)] += torch.tensor(list(BIAS.values()))
    for token in set(settings.get("prompt", ())):
        logits[token] *= settings["repetition_penalty"] ** (-1 if logits[token] > 0 else 1)
    if "guide" in settings:
        logits[1::2] = -torch.inf
    chances = torch.softmax(logits / settings["temperature"], 0)
    chances[chances < settings.get("min_p", 0) * chances.max()] = 0
    ordered, order = (chances / chances.sum()).sort(descending=True)
    ordered[settings.get("top_k", len(ordered)) :] = 0
    ordered /= ordered.sum()
    ordered[ordered.cumsum(0) - ordered >= settings.get("top_p", 1)] = 0
    return torch.zeros_like(chances).scatter(0, order, ordered / ordered.sum()).float()


def test_a_row_without_finite_numbers_is_a_fault_of_its_own() -> None:
    logits = logits_of(1, 5)
    logits[0, 7] = torch.nan
    logits[1, 7] = torch.inf
    logits[2] = -torch.inf
    logits[3, 100:] = -torch.inf  # some tokens that cannot come are no fault
    for settings in ({}, {"temperature": 1.0, "logprobs": 1}):
        chosen = choose_all([sampler_of(settings, seed) for seed in range(5)], logits)
        assert [type(one) for one in chosen] == [InternalError] * 3 + [Token] * 2
        assert chosen[3:] == [sampler_of(settings, seed).choose(logits[seed]) for seed in (3, 4)]
    with pytest.raises(InternalError, match="nan"):
        Sampler().choose(logits[0])


class Lost:
    """Cannot say what may come."""

    def allowed(self) -> bytes:
        raise InvalidParameter("response_format", "cannot be held to any further")

    def take(self, token: int) -> None:
        raise AssertionError("nothing was allowed")


class Silent(Lost):
    """Allows nothing at all."""

    def allowed(self) -> bytes:
        return b""


def test_a_guide_that_cannot_go_on_ends_its_own_answer_only() -> None:
    logits = logits_of(1, 4)
    samplers = [Sampler(guide=Lost()), Sampler(guide=Even()), Sampler(guide=Silent()), Sampler(temperature=1, seed=5)]
    lost, even, silent, free = choose_all(samplers, logits)
    assert (type(lost), type(silent)) == (InvalidParameter, InternalError)
    assert even == Sampler(guide=Even()).choose(logits[1])
    assert free == Sampler(temperature=1, seed=5).choose(logits[3])


def test_a_token_the_model_does_not_have_is_the_fault_of_its_answer_only() -> None:
    logits = logits_of(1, 2)
    beyond, other = choose_all([Sampler(logit_bias={SIZE: 1.0}), Sampler(logit_bias={3: 100.0})], logits)
    assert isinstance(beyond, IndexError)
    assert other == Token(3)


def test_without_a_seed_answers_differ() -> None:
    logits = torch.zeros(2, SIZE)
    samplers = [Sampler(temperature=1), Sampler(temperature=1)]
    one, other = zip(*(choose_all(samplers, logits) for _ in range(4)), strict=True)
    assert one != other


def test_half_precision_is_chosen_from_in_full() -> None:
    logits = logits_of(2, 3).bfloat16()
    for settings in ({}, {"temperature": 1.0, "seed": 3, "logprobs": 2}):
        assert choose_all([Sampler(**settings)] * 3, logits)[0] == Sampler(**settings).choose(logits[0].float())
