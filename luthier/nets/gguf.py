"""A GGUF file once into safetensors, tokenizer and template: `python -m luthier.nets.gguf SOURCE TARGET`.

For the model that travels in a package. The file is read once by the `gguf` library; going through transformers gives the same
numbers, but reads the file four times, which takes a minute instead of seconds.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from luthier.core.errors import InvalidRequest

if TYPE_CHECKING:
    import torch
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTROL = 3  # the type that GGUF gives to special tokens


def convert_gguf(source: Path, target: Path) -> None:
    """Write the model of a GGUF file as bf16 safetensors, tokenizer and template into the folder `target`.

    Models of the Llama shape with a byte-level BPE tokenizer ("gpt2" in GGUF's words) are taken, else InvalidRequest is
    raised. `target` appears whole or not at all.
    """
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise InvalidRequest(f"{source.name} is a {fields['general.architecture']} model; use its safetensors release.")
    config = _config(fields)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_state(reader, config), partial / "model.safetensors", metadata={"format": "pt"})
    _write_json(partial / "config.json", config)
    _write_json(
        partial / "generation_config.json", {name: config[name] for name in config if name.endswith("token_id")}
    )
    _save_tokenizer(fields, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers reads it. The file has no output matrix of its own where it is the embedding's."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _state(reader: gguf.GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor by transformers' name, dequantised, in bf16."""
    import torch

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    wanted = ["model.embed_tokens", "model.norm"]
    for layer in range(config["num_hidden_layers"]):
        parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
        parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
        wanted += [f"model.layers.{layer}.{part}" for part in parts]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    state: dict[str, torch.Tensor] = {}
    for name in wanted:
        tensor = stored.pop(f"{names.get_name(name)}.weight")
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if (part := name.rsplit(".", 1)[1]) in heads:
            numbers = _unrotated(numbers, heads[part])
        state[f"{name}.weight"] = torch.from_numpy(numbers.copy()).to(torch.bfloat16)
    if stored.keys() - {"rope_freqs.weight"}:
        raise InvalidRequest(f"The file has tensors that are not known: {', '.join(sorted(stored)[:5])}.")
    return state


def _unrotated(numbers: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as transformers orders them: GGUF pairs the halves of a head that rotate together."""
    half = numbers.shape[0] // heads // 2
    return numbers.reshape(heads, half, 2, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)


def _save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    if fields["tokenizer.ggml.model"] != "gpt2":
        raise InvalidRequest("Only byte-level BPE tokenizers are read from GGUF; use the safetensors release.")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        **{name: tokens[fields[f"tokenizer.ggml.{key}"]] for name, key in named.items()},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"])


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _pre_tokenizer(rule: str) -> PreTokenizer:
    """How text is cut before byte pairs are merged, by llama.cpp's name of the rule."""
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule == "smollm":  # every digit alone, then GPT-2's rule
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if rule in ("default", "gpt-2"):
        return byte_level
    raise InvalidRequest(
        f"The file cuts text by the rule {rule!r}, which is not known here; use the safetensors release."
    )


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
