"""What stock transformers and PEFT say of an artifact: its loss on files of rows, one row at a time.

    python -m benchmarks.stock STORAGE SPEC [--artifact KEY]

SPEC is a file with a job's spec as JSON and a list of files beside it (`Bench.stock_losses` writes it); the losses are
printed as JSON. Only the conversation's tokens are ours: the model, its attention and its adapter are as anybody loads
them, so this is also the proof that others can read what we write.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.formats.base import formats
from luthier.storage import Storage
from luthier.training.objectives.base import Encoded, objectives
from luthier.training.spec import DataFile, TrainingSpec

if TYPE_CHECKING:
    import torch


def losses(storage: Storage, spec: TrainingSpec, artifact_key: str | None, files: list[DataFile]) -> list[float]:
    """The mean loss of a learned token in each file, by the base model with an artifact, or by itself."""
    import torch

    from luthier.training.data import read_rows

    torch.set_num_threads(spec.threads)
    weights = storage.folder(spec.weights)
    renderer = renderer_for(Tokenizer(weights))
    model = _loaded(weights, storage.folder(artifact_key) if artifact_key else None, spec.precision)
    found: list[float] = []
    for file in files:
        plugin = objectives.load("cpt" if formats.load(file.format).kind == "text" else "sft")
        rows = read_rows(storage, file, plugin(plugin.Options()), renderer, max_length=spec.max_length)
        with torch.inference_mode():
            found.append(sum(float(_loss(model, row)) for row in rows.rows) / rows.trained)
    return found


def _loaded(weights: Path, artifact: Path | None, precision: str) -> Any:
    """The model of a user who has never heard of us."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    is_adapter = artifact is not None and (artifact / "adapter_config.json").is_file()
    folder = weights if artifact is None or is_adapter else artifact
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return (PeftModel.from_pretrained(model, artifact) if is_adapter else model).eval()


def _loss(model: Any, row: Encoded) -> torch.Tensor:
    """The sum over a row's learned tokens."""
    import torch

    (one,) = row.sequences
    ids, shares = torch.tensor([one.tokens]), torch.tensor(one.weights[1:])
    logits_TV = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
    return (torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="none") * shares).sum()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("storage")
    arguments.add_argument("spec", type=Path)
    arguments.add_argument("--artifact")
    asked = arguments.parse_args()
    told = json.loads(asked.spec.read_text())
    spec = TrainingSpec.model_validate(told["spec"])
    files = [DataFile.model_validate(file) for file in told["files"]]
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(spec.threads), "TOKENIZERS_PARALLELISM": "false"}
    print(json.dumps(losses(Storage(asked.storage), spec, asked.artifact, files)))


if __name__ == "__main__":
    main()
