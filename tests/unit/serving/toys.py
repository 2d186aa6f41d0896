"""Toy adapters for a toy model, and a replica of it in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.nets.loading import weights_sha256
from luthier.serving.backends.base import backends
from luthier.serving.client import ReplicaClient
from luthier.serving.engine import Engine
from luthier.serving.protocol import AdapterRef
from luthier.serving.replica import Replica
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest

TARGETS = ["q_proj", "v_proj", "down_proj"]


def toy_peft(model: Path, *, seed: int, rank: int = 4) -> Any:
    """A PEFT model over the toy in `model`, made as a training method does, its weights large enough to be seen."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.nets.loading import load_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft = get_peft_model(
            load_model(model, precision="fp32"), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        )
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return peft.eval()


def toy_adapter(storage: Path, id: str, *, seed: int, rank: int = 4) -> AdapterRef:
    """Write an adapter of the toy in models/toy as PEFT's files and say how it is referred to."""
    folder = storage / f"adapters/{id}"
    toy_peft(storage / "models/toy", seed=seed, rank=rank).save_pretrained(folder)
    return AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(folder))


@asynccontextmanager
async def toy_replica(folder: Path, *, backend: str = "builtin") -> AsyncIterator[ReplicaClient]:
    """A replica of the model in models/toy that answers on a socket of this process."""
    storage, model = Storage(folder.as_uri()), folder / "models/toy"
    spec = ReplicaSpec(
        replica="rep-1", base_model="toy", weights="models/toy",
        weights_sha256=weights_sha256(model) if backend == "builtin" else "", backend=backend, precision="fp32",
        threads=1, adapters=1, listen="", cache_bytes=2**22,
    )  # fmt: skip
    engine, renderer = Engine(), renderer_for(Tokenizer(model))
    made = await engine.call(lambda: backends.load(backend).open(spec, storage))
    engine.serve(made)
    replica = Replica(spec, storage, engine, made, renderer)
    socket = folder / f"s-{backend}"
    async with await asyncio.start_unix_server(replica.answer, socket, limit=2**25):
        yield ReplicaClient(socket)
        await replica.drain(0)
    socket.unlink(missing_ok=True)
    engine.close()
