"""The built-in backend says what transformers and PEFT say, and takes no adapter that fits only in part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import InternalError, InvalidParameter, InvalidRequest
from luthier.nets.loading import load_model, weights_sha256
from luthier.serving.backends import base
from luthier.serving.backends.base import AdapterUnreadable, Asked, Backend, load_adapter
from luthier.serving.backends.builtin import Builtin
from luthier.serving.backends.builtin.alone import Alone
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest
from luthier.testing import toy_model
from tests.unit.serving.toys import TARGETS, toy_adapter, toy_peft

PROMPT = list(b"Hello")
PROMPTS = [
    list(b"Hello"),
    list(b"Another prompt, a longer one than a block of keys."),
    list(b"x"),
    list(b"0123456789abcdef"),
]
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def spec(**changes: Any) -> ReplicaSpec:
    return ReplicaSpec(
        **{
            "replica": "rep-1", "base_model": "toy", "weights": "models/toy", "weights_sha256": "", "precision": "fp32",
            "threads": 1, "adapters": 3, "listen": "", "cache_bytes": 2**20,
        }
        | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    toy_model(folder / "models/toy")
    return folder


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Builtin]:
    made = Builtin.open(spec(weights_sha256=weights_sha256(folder / "models/toy")), Storage(folder.as_uri()))
    assert isinstance(made, Builtin)
    yield made
    made.close()


def answers(backend: Backend, asked: list[tuple[list[int], str | None]], count: int = 12) -> list[list[int]]:
    """Greedy answers to prompts with adapters, made beside each other."""
    every = [Asked(prompt, Sampling(temperature=0, max_tokens=count), (), adapter) for prompt, adapter in asked]
    made: dict[Asked, list[int]] = {one: [] for one in every}
    for one in every:
        backend.begin(one)
    while not backend.is_idle:
        for said in backend.step():
            assert said.error is None, said.error
            if said.token is not None:
                made[said.asked].append(said.token.id)
    return list(made.values())


def generated(model: Any, prompt: list[int], count: int = 12) -> list[int]:
    with torch.inference_mode():
        said = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return said[0, -count:].tolist()


def variants() -> dict[str, dict[str, Any]]:
    return {
        "lora": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}, "alpha_pattern": {"v_proj": 1}},
    }


def peft_adapter(folder: Path, id: str, seed: int, **options: Any) -> tuple[AdapterRef, Any]:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = load_model(folder / "models/toy", precision="fp32")
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **options))
        for name, weight in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
            elif "magnitude" in name:
                weight.data *= torch.rand_like(weight) + 0.5
    model.eval().save_pretrained(folder / f"adapters/{id}")
    return AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(folder / f"adapters/{id}")), model


def test_answers_of_all_kinds_of_lora_in_one_batch_are_those_of_peft(backend: Builtin, folder: Path) -> None:
    kinds = variants()
    made = {
        kind: peft_adapter(folder, f"kind-{kind}", seed, **options)
        for seed, (kind, options) in enumerate(kinds.items())
    }
    bare = answers(backend, [(prompt, None) for prompt in PROMPTS])
    model = load_model(folder / "models/toy", precision="fp32")
    assert bare == [generated(model, prompt) for prompt in PROMPTS]
    for together in (("lora", "rslora", "dora"), ("pattern", "dora", "lora")):
        for kind in together:
            load_adapter(backend, Storage(folder.as_uri()), made[kind][0])
        asked = [(prompt, f"kind-{kind}") for prompt in PROMPTS for kind in together]
        expected = [generated(made[kind][1], prompt) for prompt in PROMPTS for kind in together]
        assert answers(backend, [*asked, (PROMPT, None)]) == [*expected, bare[0]]
        assert len({tuple(said) for said in expected}) > len(PROMPTS)
        for kind in together:
            backend.unload_adapter(f"kind-{kind}")
    assert answers(backend, [(prompt, None) for prompt in PROMPTS]) == bare


def test_a_prefix_of_p_tuning_stands_before_every_prompt(folder: Path, backend: Builtin) -> None:
    from peft import PeftModel, PrefixTuningConfig

    for positions in (5, 16, 21):
        id = f"prefix-{positions}"
        keys = torch.randn(positions, 2 * 2 * 2 * 8, generator=torch.Generator().manual_seed(positions))
        place = folder / f"adapters/{id}"
        config = PrefixTuningConfig(
            num_virtual_tokens=positions, token_dim=16, num_attention_heads=2, num_layers=2,
            num_transformer_submodules=1, task_type="CAUSAL_LM", inference_mode=True,
        )  # fmt: skip
        config.save_pretrained(str(place))
        save_file({"prompt_embeddings": keys}, place / "adapter_model.safetensors")
        load_adapter(backend, Storage(folder.as_uri()), AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(place)))
        model = PeftModel.from_pretrained(load_model(folder / "models/toy", precision="fp32"), str(place)).eval()
        expected = [generated(model, prompt) for prompt in PROMPTS]
        bare = answers(backend, [(prompt, None) for prompt in PROMPTS])
        for _ in range(2):  # the second time from what is cached
            found = answers(backend, [*((prompt, id) for prompt in PROMPTS), *((prompt, None) for prompt in PROMPTS)])
            assert found == [*expected, *bare]
        assert expected != bare
        backend.unload_adapter(id)


def test_log_probabilities_of_a_given_text_are_those_of_peft(backend: Builtin, folder: Path) -> None:
    load_adapter(backend, Storage(folder.as_uri()), toy_adapter(folder, "ckpt-1", seed=1))
    models = {
        "ckpt-1": toy_peft(folder / "models/toy", seed=1),
        None: load_model(folder / "models/toy", precision="fp32"),
    }
    for adapter, model in models.items():
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([PROMPTS[1]])).logits[0, :-1].log_softmax(-1)
        expected = [float(row[token]) for row, token in zip(logprobs, PROMPTS[1][1:], strict=True)]
        assert backend.logprobs(PROMPTS[1], adapter=adapter) == pytest.approx(expected, abs=1e-4)
    backend.unload_adapter("ckpt-1")


def test_files_that_are_overwritten_while_they_are_read_are_not_answered(
    backend: Builtin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, model = peft_adapter(folder, "mine", 1, **variants()["lora"])
    other, _ = peft_adapter(folder, "another", 2, **variants()["lora"])
    place, hashed = folder / mine.key, []

    def overwritten(checked: Path) -> str:
        found = digest(checked)
        shutil.rmtree(place)
        shutil.copytree(folder / other.key, place)
        hashed.append(checked)
        return found

    monkeypatch.setattr(base, "digest", overwritten)
    load_adapter(backend, Storage(folder.as_uri()), mine)
    assert answers(backend, [(PROMPT, "mine")]) == [generated(model, PROMPT)]
    backend.unload_adapter("mine")
    with pytest.raises(AdapterUnreadable, match="not the ones"):
        load_adapter(backend, Storage(folder.as_uri()), mine)
    assert len(hashed) == 2 and not any(copy.exists() for copy in hashed)


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A.replace("layers.0", "layers.7")] = tensors.pop(A)


def shortened(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A] = tensors[A][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(A), f"missing: {A} \\(1 in all\\)"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), r"without a place: extra \(1 in all\)"),
        (renamed, "missing: .*; without a place: "),
        (shortened, r"has shape \(4, 31\) instead of \(4, 32\)"),
    ],
)
def test_a_file_that_fits_only_in_part_is_refused_whole(
    backend: Builtin, folder: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    good = toy_adapter(folder, "ckpt-3", seed=3)
    file = folder / good.key / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    bare = backend.logprobs(PROMPT, adapter=None)
    with pytest.raises(AdapterUnreadable, match=said):
        load_adapter(backend, Storage(folder.as_uri()), good.model_copy(update={"sha256": digest(folder / good.key)}))
    assert backend.logprobs(PROMPT, adapter=None) == bare
    with pytest.raises(InternalError, match="not loaded"):
        backend.logprobs(PROMPT, adapter="ckpt-3")
    load_adapter(backend, Storage(folder.as_uri()), toy_adapter(folder, "ckpt-3", seed=3))
    backend.unload_adapter("ckpt-3")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bias": "all"}, "not a plain LoRA: it has bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
        ({"peft_type": "PREFIX_TUNING"}, "does not fit the base model"),
        ({"target_modules": ["absent"]}, "does not fit the base model"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    backend: Builtin, folder: Path, settings: dict[str, object], said: str
) -> None:
    ref = toy_adapter(folder, "ckpt-4", seed=4)
    file = folder / ref.key / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(AdapterUnreadable, match=said):
        load_adapter(backend, Storage(folder.as_uri()), ref.model_copy(update={"sha256": digest(folder / ref.key)}))


def test_pickled_weights_are_not_read(backend: Builtin, folder: Path) -> None:
    ref = toy_adapter(folder, "ckpt-5", seed=5)
    file = folder / ref.key / "adapter_model.safetensors"
    torch.save(load_file(file), folder / ref.key / "adapter_model.bin")
    file.unlink()
    with pytest.raises(AdapterUnreadable, match="cannot be read"):
        load_adapter(backend, Storage(folder.as_uri()), ref.model_copy(update={"sha256": digest(folder / ref.key)}))


def test_other_base_weights_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="not the ones"):
        Builtin.open(spec(weights_sha256="0" * 64), Storage(folder.as_uri()))


def test_a_token_that_the_model_has_no_row_for_is_refused_and_others_go_on(backend: Builtin) -> None:
    well = Asked(PROMPT, Sampling(temperature=0, max_tokens=3), ())
    backend.begin(well)
    with pytest.raises(InvalidParameter, match="100000 is no token"):
        backend.begin(Asked([5, 100_000], Sampling(max_tokens=3), ()))
    said = [one for _ in range(3) for one in backend.step()]
    assert [one.error for one in said] == [None] * 3 and said[-1].is_last


def test_a_model_whose_answers_cannot_be_batched_is_answered_one_by_one(folder: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from tests.unit.nets.families import SMALL

    torch.manual_seed(0)
    place = folder / "models/capped"
    Gemma2ForCausalLM(Gemma2Config(**SMALL | {"vocab_size": 300})).save_pretrained(place)
    backend = Builtin.open(
        spec(weights="models/capped", weights_sha256=weights_sha256(place)), Storage(folder.as_uri())
    )
    assert isinstance(backend, Alone)
    model = load_model(place, precision="fp32")
    assert answers(backend, [(prompt, None) for prompt in PROMPTS]) == [generated(model, prompt) for prompt in PROMPTS]
