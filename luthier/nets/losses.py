"""Log-probabilities, cross entropy and token accuracy, computed only where something is learned and a chunk at a time.

Shapes: T tokens laid end to end, N learned positions, U different ones of them, C in a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.core.errors import InvalidRequest
from luthier.nets.kernels import replaceable
from luthier.nets.packing import Packed, hidden_states
from luthier.nets.products import linear, times

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_BYTES = {"cpu": 64 * 1024**2, "cuda": 512 * 1024**2}
"""Of the logits of a chunk in fp32; what is computed from them takes three times as much."""


class Learned(NamedTuple):
    """Of every learned token: its log-probability, in fp32 and with the gradient; whether it was the model's first choice."""

    logprobs_N: Tensor
    correct_N: Tensor


def learned_tokens(model: PreTrainedModel, packed: Packed, *, chunk: int | None = None) -> Learned:
    """Log-probabilities of the learned tokens, each predicted from the tokens before it.

    `model` went through `prepare` and `prove_head`. At most `chunk` positions have logits at a time, in the backward pass
    too; absent, as many as fit into some memory.
    """
    hidden_TD = hidden_states(model, packed)
    asked_2N = torch.stack((packed.chosen_N, packed.targets_N))
    once_2U, which_N = torch.unique(asked_2N, dim=1, return_inverse=True)
    if once_2U.shape[1] == asked_2N.shape[1]:
        return _learned(model, hidden_TD[packed.chosen_N], packed.targets_N, chunk)
    said = _learned(
        model, hidden_TD[once_2U[0]], once_2U[1], chunk
    )  # rows that share a learned token ask the same of it
    return Learned(said.logprobs_N[which_N], said.correct_N[which_N])


def _learned(model: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor, chunk: int | None) -> Learned:
    size = chunk or _that_fits(model, hidden_ND.device)
    if torch.is_grad_enabled() and hidden_ND.requires_grad and is_frozen(model):
        return Learned(*_FrozenHead.apply(model, size, hidden_ND, targets_N))
    if len(hidden_ND) <= size:
        return Learned(*_of_chunk(model, hidden_ND, targets_N))
    parts = [
        checkpoint(_of_chunk, model, hidden_CD, targets_C, use_reentrant=False)
        for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True)
    ]
    return Learned(torch.cat([logprobs for logprobs, _ in parts]), torch.cat([correct for _, correct in parts]))


def _that_fits(model: PreTrainedModel, device: torch.device) -> int:
    config: Any = model.config
    return max(_CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"]) // (4 * config.vocab_size), 1)


def _of_chunk(model: PreTrainedModel, hidden_CD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    logits_CV = head(model, hidden_CD).float()
    logprobs_C = -nn.functional.cross_entropy(logits_CV, targets_C, reduction="none")
    return logprobs_C, logits_CV.detach().argmax(-1) == targets_C


def is_frozen(model: PreTrainedModel) -> bool:
    """Whether the output layer is one product with a weight that does not learn, times a number at most."""
    output: Any = model.get_output_embeddings()
    is_plain = type(output) is nn.Linear and not any(one.requires_grad for one in output.parameters())
    return is_plain and getattr(model.config, "final_logit_softcapping", None) is None


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under an output layer that does not learn: what they are by the hidden states is found while the logits
    are there, as in Liger Kernel (Hsu et al., arXiv 2410.10989), so that these are made once.
    """

    @staticmethod
    def forward(
        ctx: Any, model: PreTrainedModel, size: int, hidden_ND: Tensor, targets_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        output: Any = model.get_output_embeddings()
        logprobs_N, correct_N, slopes_ND = frozen_head(hidden_ND, targets_N, output, head_factor(model), size)
        ctx.save_for_backward(slopes_ND)
        ctx.mark_non_differentiable(correct_N)
        return logprobs_N, correct_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None]:
        (slopes_ND,) = ctx.saved_tensors
        return None, None, (slopes_ND * gradients[0][:, None]).to(slopes_ND.dtype), None


@replaceable
def frozen_head(
    hidden_ND: Tensor, targets_N: Tensor, output: nn.Linear, factor: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each target its log-probability in fp32, whether it is the first choice, and the slopes of the log-probability by the
    hidden state, (N, D). There are logits of `size` positions at a time; they are multiplied by `factor`.
    """
    slopes_ND = torch.empty_like(hidden_ND)
    logprobs, correct = [], []
    for hidden_CD, targets_C, slopes_CD in zip(
        hidden_ND.split(size), targets_N.split(size), slopes_ND.split(size), strict=True
    ):
        logits_CV = linear(hidden_CD, output.weight, output.bias)
        logits_CV = (logits_CV if factor == 1.0 else logits_CV * factor).float()
        correct.append(logits_CV.argmax(-1) == targets_C)
        shares_CV = torch.log_softmax(logits_CV, -1)
        logprobs.append(shares_CV.gather(-1, targets_C[:, None])[:, 0])
        torch.exp(shares_CV, out=shares_CV)
        shares_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1
        torch.mul(times(shares_CV.to(hidden_CD.dtype), output.weight), -factor, out=slopes_CD)
    return torch.cat(logprobs), torch.cat(correct), slopes_ND


def head_factor(model: PreTrainedModel) -> float:
    """What an architecture multiplies its logits by."""
    config: Any = model.config
    times, over = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return (1.0 if times is None else times) / (1.0 if over is None else over)  # Cohere, Granite


def head(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """The logits of hidden states, (N, V), with what some architectures do to them afterwards."""
    config: Any = model.config
    output: Any = model.get_output_embeddings()
    logits_NV = output(hidden_ND)
    if (factor := head_factor(model)) != 1.0:
        logits_NV = logits_NV * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV


def prove_head(model: PreTrainedModel) -> None:
    """Prove that `head` says of the last hidden states what the model itself says.

    Raises InvalidRequest for an architecture that does something else to its logits.
    """
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]], device=model.device)
    decoder: Any = model.get_decoder()
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0]
        found = head(model, decoder(input_ids=ids, use_cache=False).last_hidden_state[0])
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InvalidRequest(
            f"What a model of type {model.config.model_type!r} does with its logits is not known here.",
            hint="Choose a model such as Llama, Qwen, GLM-4 or SmolLM.",
        )
