"""Answers to held-out prompts: always the same prompts, what the model says at that step, within the share of time."""

from __future__ import annotations

from itertools import count

import pytest

from luthier.chat.renderers.base import Rendered, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.nets.generate import decode
from luthier.nets.loading import load_model
from luthier.nets.packing import prepare
from luthier.nets.sampling import Sampler
from luthier.testing import toy_rows, toy_spec
from luthier.training.data import Rows
from luthier.training.methods.base import methods
from luthier.training.objectives.base import Encoded
from luthier.training.run import run
from luthier.training.samples import Samples, _learned_from
from luthier.training.spec import PluginChoice
from tests.reference import trl

VALIDATION = toy_rows(7, seed=9)


@pytest.mark.parametrize("name", methods.names())
def test_the_answers_at_each_checkpoint_are_what_its_artifact_says(storage, told, name):
    spec = toy_spec(
        storage,
        method=PluginChoice(name=name),
        validation=VALIDATION,
        samples=3,
        sample_tokens=9,
        sample_share=1.0,
        epochs=6,
        save_every_steps=9,
    )
    run(spec, storage)
    sampled = [event for event in told(spec) if event.type == "sampled"]
    assert [event.step for event in sampled] == [0, 9, 18]
    for event in sampled:
        assert [sample.row for sample in event.samples] == [1, 3, 5]
        for sample in event.samples:
            word = VALIDATION[sample.row - 1]["messages"][0]["content"]
            assert sample.expected == f"{word} {word}"
            assert sample.prompt.endswith(f"<|im_start|>user\n{word}<|im_end|>\n<|im_start|>assistant\n")
    saved = {event.step: event for event in told(spec) if event.type == "checkpoint_saved"}
    renderer = renderer_for(Tokenizer(storage.folder(spec.weights)))
    for event in sampled[1:]:
        method = methods.load(name)
        way = method(method.Options())
        model = load_model(storage.folder(spec.weights), precision="fp32", is_quantised=way.is_quantised)
        prepare(model)
        way.attach(model.requires_grad_(False), seed=5)
        way.restore(model, storage.folder(saved[event.step].artifact_key))
        model.eval()
        for sample in event.samples:
            prompt = renderer.tokenizer.encode(sample.prompt)
            answer = [token.id for token in decode(model, prompt, Sampler(), stops=renderer.stops, max_tokens=9)]
            assert sample.is_cut == (answer[-1] not in renderer.stops)
            assert renderer.tokenizer.decode([t for t in answer if t not in renderer.stops]) == sample.answer
    assert sampled[0].samples != sampled[-1].samples


def test_samples_change_no_number_of_the_training(storage, series):
    changes = {"validation": VALIDATION, "method": PluginChoice(name="lora", options={"dropout": 0.2})}
    one = toy_spec(storage, job="ftjob-1", **changes)
    two = toy_spec(storage, job="ftjob-2", samples=2, sample_tokens=4, **changes)
    assert run(one, storage).artifact_sha256 == run(two, storage).artifact_sha256
    assert series(one) == series(two)


def test_between_start_and_end_answers_take_their_share_of_the_time_and_no_more(storage):
    spec = toy_spec(storage, samples=4, sample_tokens=2, sample_share=0.1)
    model = load_model(storage.folder(spec.weights), precision="fp32")
    renderer = renderer_for(Tokenizer(storage.folder(spec.weights)))
    rows = Rows([Encoded((Rendered([257, 70, 71, 72], [0, 0, 0, 1]),), row) for row in range(1, 5)], {})
    seconds = count(step=1)  # each look at the clock is a second later
    samples = Samples(spec, rows, renderer, model, now=lambda: float(next(seconds)))

    def answered(*, always: bool) -> int:
        return len(samples.take(lambda: None, always=always))

    assert answered(always=True) == 4
    # After 5 seconds nothing was spent; then one was, which is too much until more than 10 have gone by.
    assert [answered(always=False) for _ in range(5)] == [1, 0, 0, 0, 1]
    assert answered(always=True) == 4


def test_what_is_asked_is_all_before_the_last_answer_or_half_of_a_text(storage, told):
    assert _learned_from(Encoded((Rendered([1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 1, 1]),))) == 4
    assert _learned_from(Encoded((Rendered([1, 2, 3, 4, 5, 6], [1] * 6),))) == 3
    spec = trl.spec_of("dpo", storage)
    spec = spec.model_copy(update={"validation": spec.training, "samples": 1, "epochs": 1})
    run(spec, storage)
    (sample,) = next(event for event in told(spec) if event.type == "sampled").samples
    pair = trl.pairs()[0]
    assert sample.expected == pair["chosen"]["content"]
    assert pair["messages"][0]["content"] in sample.prompt
