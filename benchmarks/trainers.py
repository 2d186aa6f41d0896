"""One trainer in a process of its own, by the interpreter of its own environment: LLaMA-Factory, ms-swift, TRL or axolotl.

    ENVIRONMENT/bin/python -P benchmarks/trainers.py '{"peer": "trl", "setting": "padding free", ...}'

`benchmarks.training` starts it with a `Job` as JSON and reads the file that it writes, a `Trained`. Each peer is asked through
its own configuration and started through the function behind its command. Beside it runs a watch on the Trainer of
transformers, on which all of them are built: it counts the tokens of every micro-batch that are no padding, and notes when an
optimizer step ended and which loss was logged for it. Nothing of Luthier is imported here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("llamafactory", "ms-swift", "axolotl", "trl", "torch", "transformers", "peft", "accelerate", "datasets")
RANK, ALPHA = 16, 32
BETA = 0.1
PACK_TOKENS = 1024
"""Of a pack, where rows are packed: the least power of two that holds every row."""

GENERATION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The model's own template, with marks around what the assistant said, by which TRL finds what is learned."""


@dataclass(frozen=True)
class Job:
    """What one process trains. `began` is when it was started, by the clock that tells the time of day.

    `rows` are those of the data, `batch` those of an optimizer step, `step_tokens` the tokens of one, on average.
    """

    peer: str
    setting: str
    objective: str
    model: str
    data: str
    out: str
    precision: str
    threads: int
    rows: int
    batch: int
    step_tokens: float
    max_length: int
    learning_rate: float
    seed: int
    began: float
    device: str = "cpu"
    method: str = "lora"

    @property
    def is_dpo(self) -> bool:
        return self.objective == "dpo"


@dataclass
class Trained:
    """What came of it. `steps` are, for each optimizer step, the seconds since the process began when it ended, the tokens
    and the learned tokens until then, and its loss. The learned ones are 0 where they cannot be seen.
    """

    steps: list[tuple[float, int, int, float]] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)


def batches(job: Job) -> dict[str, Any]:
    """How the rows of a step are divided into micro-batches, for every peer alike."""
    at_once = {
        "one row": 1,
        "default padding": job.batch,
        "liger": job.batch,
        "padding free": job.batch,
        "packing": 1,
        "neat packing": 1,
    }
    size = at_once[job.setting]
    steps = job.batch // size
    if "packing" in job.setting:
        steps = max(1, round(job.step_tokens / PACK_TOKENS))
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}


def common(job: Job) -> dict[str, Any]:
    """Settings of transformers' TrainingArguments that every peer takes."""
    return {
        "output_dir": f"{job.out}/trained",
        "num_train_epochs": 1,
        **batches(job),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "seed": job.seed,
        "use_cpu": job.device == "cpu",
        "bf16": job.precision == "bf16",
        "report_to": "none",
    }


class Watch:
    """Counts and times what the Trainer of transformers does, once it is `set`."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._tokens = self._learned = 0
        self._ends: list[tuple[float, int, int]] = []
        self._losses: list[float] = []

    def set(self) -> None:
        from transformers import Trainer
        from transformers.trainer_callback import CallbackHandler

        watch = self
        train, end, log = Trainer.training_step, CallbackHandler.on_step_end, CallbackHandler.on_log

        def training_step(trainer: Any, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
            watch._count(inputs)
            return train(trainer, model, inputs, *others, **named)

        def on_step_end(handler: Any, *others: Any, **named: Any) -> Any:
            watch._ends.append((time.time() - watch._began, watch._tokens, watch._learned))
            return end(handler, *others, **named)

        def on_log(handler: Any, args: Any, state: Any, control: Any, logs: Any, *others: Any, **named: Any) -> Any:
            if "loss" in logs:
                watch._losses.append(float(logs["loss"]))
            return log(handler, args, state, control, logs, *others, **named)

        Trainer.training_step = training_step
        CallbackHandler.on_step_end, CallbackHandler.on_log = on_step_end, on_log  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def steps(self) -> list[tuple[float, int, int, float]]:
        return [(*end, loss) for end, loss in zip(self._ends, self._losses, strict=True)]

    def _count(self, inputs: dict[str, Any]) -> None:
        names = [name for name in inputs if name.endswith("input_ids")]
        for name in names:
            self._tokens += real_tokens(inputs[name], inputs.get(name.replace("input_ids", "attention_mask")))
        for name in ("labels", "completion_mask"):
            if name in inputs:
                self._learned += int((inputs[name] != (-100 if name == "labels" else 0)).sum())
                break


def real_tokens(ids_BT: Any, mask: Any) -> int:
    """Tokens that are no padding, by a mask of them, or of whom each of them sees; without one all are."""
    if mask is None:
        return ids_BT.numel()
    if mask.dim() == 2:
        return int((mask != 0).sum())
    sees_itself_BT = mask[:, 0].diagonal(dim1=-2, dim2=-1)
    return int(sees_itself_BT.sum() if mask.dtype.is_floating_point is False else (sees_itself_BT == 0).sum())


def llamafactory(job: Job) -> None:
    from llamafactory.train.tuner import run_exp  # pyright: ignore[reportMissingImports]

    folder = Path(job.out)
    columns = {"messages": "messages"}
    if job.is_dpo:
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    rows = {
        "file_name": job.data,
        "formatting": "sharegpt",
        "columns": columns,
        "tags": tags,
        "ranking": job.is_dpo,
    }
    (folder / "dataset_info.json").write_text(json.dumps({"rows": rows}))
    settings = {
        **common(job),
        "model_name_or_path": job.model,
        "stage": job.objective,
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": job.out,
        "template": "smollm",
        "cutoff_len": PACK_TOKENS if "packing" in job.setting else job.max_length,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        "save_strategy": "no",
        "overwrite_cache": True,
    }
    if job.setting == "neat packing":
        settings |= {"packing": True, "neat_packing": True}
    if job.is_dpo:
        settings |= {"pref_beta": BETA, "pref_loss": "sigmoid"}
    run_exp(settings)


def swift(job: Job) -> None:
    from swift.pipelines import rlhf_main, sft_main  # pyright: ignore[reportMissingImports]

    settings = {
        **common(job),
        "model": job.model,
        "model_type": json.loads(Path(job.model, "config.json").read_text())["model_type"],
        "template": "chatml",
        "dataset": job.data,
        "tuner_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "torch_dtype": "bfloat16" if job.precision == "bf16" else "float32",
        "max_length": PACK_TOKENS if "packing" in job.setting else job.max_length,
        "gradient_checkpointing": False,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "load_from_cache_file": False,
        "eval_strategy": "no",
        "add_version": False,
        "packing": job.setting == "packing",
        "padding_free": job.setting == "padding free",
    }
    if job.is_dpo:
        settings |= {"rlhf_type": "dpo", "beta": BETA}
    (rlhf_main if job.is_dpo else sft_main)(
        [text for pair in settings.items() for text in (f"--{pair[0]}", str(pair[1]))]
    )


def trl(job: Job) -> None:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.chat_template = GENERATION_TEMPLATE
    rows: Any = load_dataset("json", data_files=job.data, split="train")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    loading: dict[str, Any] = {"dtype": dtype}
    if job.method == "qlora":
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    settings = {
        **common(job),
        "max_length": PACK_TOKENS if job.setting == "packing" else job.max_length,
        "gradient_checkpointing": False,
        "model_init_kwargs": loading,
        "use_liger_kernel": job.setting == "liger",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "padding_free": job.setting == "padding free",
    }
    if settings["padding_free"] and not job.is_dpo:
        settings["max_length"] = None  # it cuts nothing there, and refuses a number
    if job.is_dpo:
        of_dpo: Any = DPOConfig(**settings, beta=BETA, precompute_ref_log_probs=True)
        trainer: Any = DPOTrainer(
            job.model, args=of_dpo, train_dataset=rows, processing_class=tokenizer, peft_config=lora
        )
    else:
        of_sft: Any = SFTConfig(**settings, assistant_only_loss=True, packing=job.setting == "packing")
        trainer = SFTTrainer(job.model, args=of_sft, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    trainer.save_model()


def axolotl(job: Job) -> None:
    from axolotl.cli.train import do_cli  # pyright: ignore[reportMissingImports]

    sizes = batches(job)
    rows = {
        "path": job.data,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    settings = {
        "base_model": job.model,
        "tokenizer_type": "AutoTokenizer",
        "chat_template": "tokenizer_default",
        "datasets": [rows],
        "dataset_prepared_path": f"{job.out}/prepared",
        "output_dir": f"{job.out}/trained",
        "adapter": "lora",
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),  # of a GPU
        "sequence_len": PACK_TOKENS if job.setting == "packing" else job.max_length,
        "sample_packing": job.setting == "packing",
        "attn_implementation": "sdpa",
        "micro_batch_size": sizes["per_device_train_batch_size"],
        "gradient_accumulation_steps": sizes["gradient_accumulation_steps"],
        "num_epochs": 1,
        "optimizer": "adamw_torch_fused",
        "learning_rate": job.learning_rate,
        "lr_scheduler": "constant",
        "max_grad_norm": 1.0,
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "bf16": job.precision == "bf16",
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "seed": job.seed,
        "use_cpu": job.device == "cpu",
    }
    path = Path(job.out, "axolotl.json")  # which is YAML as well
    path.write_text(json.dumps(settings))
    do_cli(str(path))


PEERS = {"axolotl": axolotl, "llamafactory": llamafactory, "swift": swift, "trl": trl}


def libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    os.chdir(job.out)  # what a peer writes beside itself is gone with the folder
    watch = Watch(job.began)
    watch.set()
    PEERS[job.peer](job)
    Path(job.out, "trained.json").write_text(json.dumps(asdict(Trained(watch.steps, libraries()))))


if __name__ == "__main__":
    main()
