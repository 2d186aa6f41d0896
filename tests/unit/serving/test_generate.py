"""The plain decode loop: greedy as transformers does it, until a stop or the end of the context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import ContextTooLong
from luthier.nets.generate import decode
from luthier.nets.sampling import Sampler
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
