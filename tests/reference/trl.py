"""Makes trl.json: the losses of TRL's trainers on the toy model, on the same rows, from the same adapter.

    pip install -e '.[engine]' trl==1.16.0
    python -m tests.reference.trl

TRL gets our tokens, our order of rows and our adapter as it starts; the model, the loss and the steps are its own.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from luthier.storage import Storage
from luthier.testing import jsonl, toy_rows, toy_spec
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec

KEPT = Path(__file__).with_suffix(".json")
STEPS = 12
CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"beta": 0.3},
    "ipo": {"beta": 0.3, "loss": "ipo"},
}


def pairs(*, seed: int = 3) -> list[dict[str, Any]]:
    """Preference rows of different lengths."""
    rows = []
    for row in toy_rows(16, seed=seed):
        asked, answer = row["messages"]
        other = {"role": "assistant", "content": answer["content"][::-1] + "."}
        rows.append({"messages": [asked], "chosen": answer, "rejected": other})
    return rows


def spec_of(case: str, storage: Storage) -> TrainingSpec:
    """The job of a case: twelve steps of four rows at a constant rate."""
    is_sft = case == "sft"
    data = storage.write("files/rows", jsonl(toy_rows(16, seed=3) if is_sft else pairs()))
    file = DataFile(key=data.key, sha256=data.sha256, format="messages" if is_sft else "chosen_rejected")
    return toy_spec(
        storage,
        training=file,
        objective=PluginChoice(name="sft" if is_sft else "dpo", options=CASES[case]),
        batch_size=4,
        epochs=3,
        learning_rate=3e-3,
        warmup_ratio=0.0,
        schedule="constant",
        micro_batch_tokens=120,
    )


def main() -> None:
    found = {
        "command": "python -m tests.reference.trl",
        "versions": {name: version(name) for name in ("trl", "transformers", "peft", "torch")},
        "python": platform.python_version(),
        "losses": {case: _losses(case) for case in CASES},
    }
    KEPT.write_text(json.dumps(found, indent=2) + "\n")


def _losses(case: str) -> list[float]:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from luthier.chat.renderers.base import renderer_for
    from luthier.chat.tokenizer import Tokenizer
    from luthier.nets.loading import load_model
    from luthier.training.data import BatchPlan, read_rows
    from luthier.training.methods.lora import Lora, LoraOptions
    from luthier.training.objectives.base import objectives

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        storage = Storage((scratch / "objects").as_uri())
        spec = spec_of(case, storage)
        weights = storage.folder(spec.weights)
        (scratch / "adapter").mkdir()
        method = Lora(LoraOptions())
        ours = method.attach(load_model(weights, precision="fp32").requires_grad_(False), seed=spec.seed)
        method.export(ours, scratch / "adapter", base_model=str(weights))

        plugin = objectives.load(spec.objective.name)
        rows = read_rows(
            storage, spec.training, plugin(plugin.Options()), renderer_for(Tokenizer(weights)), max_length=64
        )
        plan = BatchPlan(len(rows.rows), spec.seed, spec.batch_size, spec.epochs)
        order = [place for step in range(1, STEPS + 1) for place in plan.rows_of(step)]
        data = Dataset.from_list([_given(case, rows.rows[place].sequences) for place in order])

        base = AutoModelForCausalLM.from_pretrained(weights)
        model = PeftModel.from_pretrained(base, scratch / "adapter", is_trainable=True)
        tokenizer = AutoTokenizer.from_pretrained(weights)
        shared: dict[str, Any] = {
            "output_dir": str(scratch / "out"),
            "per_device_train_batch_size": spec.batch_size,
            "max_steps": STEPS,
            "learning_rate": spec.learning_rate,
            "lr_scheduler_type": "constant",
            "max_grad_norm": spec.clip_norm,
            "weight_decay": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential",
            "max_length": None,
        }
        if case == "sft":
            trainer: Any = SFTTrainer(model, SFTConfig(**shared), train_dataset=data, processing_class=tokenizer)
        else:
            chosen = CASES[case]
            arguments = DPOConfig(
                **shared,
                beta=chosen["beta"],
                loss_type=[chosen.get("loss", "sigmoid")],
            )

            class Tokenized(DPOTrainer):
                def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                    return dataset

            trainer = Tokenized(model, args=arguments, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        return [one["loss"] for one in trainer.state.log_history if "loss" in one]


def _given(case: str, sequences: tuple[Any, ...]) -> dict[str, list[int]]:
    """A row as TRL takes it when it is tokenized already."""
    if case == "sft":
        [one] = sequences
        labels = [token if weight else -100 for token, weight in zip(one.tokens, one.weights, strict=True)]
        return {"input_ids": one.tokens, "labels": labels}
    chosen, rejected = sequences
    prompt = next(place for place, weight in enumerate(chosen.weights) if weight)

    def answer(one: Any) -> list[int]:
        return [token for token, weight in zip(one.tokens, one.weights, strict=True) if weight]

    return {"prompt_ids": chosen.tokens[:prompt], "chosen_ids": answer(chosen), "rejected_ids": answer(rejected)}


if __name__ == "__main__":
    sys.exit(main())
