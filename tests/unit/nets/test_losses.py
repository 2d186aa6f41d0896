"""Losses at chosen positions equal what full logits give, for plain, wrapped and unusual models."""

import pytest
import torch
from torch import nn
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from luthier.nets.losses import token_losses
from luthier.training.methods.lora import Lora, LoraOptions

SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def capped() -> nn.Module:
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0, initializer_range=0.5))


def scaled() -> nn.Module:
    return Cohere2ForCausalLM(Cohere2Config(**SMALL, logit_scale=0.25))


def wrapped() -> nn.Module:
    return Lora(LoraOptions(rank=4)).attach(llama().requires_grad_(False), seed=0)


def without_a_split() -> nn.Module:
    """A model that tells of no output layer."""
    model = llama()
    model.get_output_embeddings = lambda: None
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows, the second padded; the first token of the first row has a weight that cannot be learned."""
    ids = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 11, 12, 13, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    weights = torch.tensor([[1.0, 0, 0, 1, 1, 1], [0, 0, 0.5, 1, 0, 0]])
    return ids, mask, weights


@pytest.mark.parametrize("make", [llama, capped, scaled, wrapped, without_a_split])
def test_chosen_positions_give_the_loss_of_full_logits(make):
    torch.manual_seed(0)
    model = make().eval()
    ids, mask, weights = batch()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    hits = (logits.argmax(-1) == ids[:, 1:]) & (weights[:, 1:] > 0)

    found = token_losses(model, ids, mask, weights)

    torch.testing.assert_close(found.total, (each * weights[:, 1:]).sum())
    assert (found.trained, found.correct) == (5, int(hits.sum()))


def test_the_output_layer_sees_only_chosen_positions_and_keeps_no_hook():
    model = llama()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    token_losses(model, *batch())
    model(input_ids=batch()[0])
    assert seen == [(1, 5, 32), (2, 6, 32)]


def test_gradients_equal_those_of_full_logits():
    torch.manual_seed(0)
    model = llama()
    ids, mask, weights = batch()
    token_losses(model, ids, mask, weights).total.backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    (each * weights[:, 1:]).sum().backward()
    for our, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(our, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_hand_computed_case():
    """Logits that are fixed: token 3 is certain by ln 9 over three others, so p(3) = 9 / 12."""

    class Fixed(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

        def forward(self, input_ids, attention_mask, use_cache):
            logits = torch.zeros(*input_ids.shape, 4)
            logits[..., 3] = torch.log(torch.tensor(9.0))
            return type("Output", (), {"logits": logits})

    ids, weights = torch.tensor([[0, 3, 3, 1]]), torch.tensor([[0.0, 1, 1, 1]])
    found = token_losses(Fixed(), ids, torch.ones_like(ids), weights)
    expected = 2 * torch.log(torch.tensor(12 / 9)) + torch.log(torch.tensor(12.0))
    torch.testing.assert_close(found.total, expected)
    assert (found.trained, found.correct) == (3, 2)
