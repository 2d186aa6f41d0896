"""Cross entropy and token accuracy, computed only where something is learned.

Shapes: B rows, T tokens with padding, D hidden size, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenLosses(NamedTuple):
    """`total` is the weighted sum in fp32 and carries the gradient.

    `trained` is the number of tokens that were learned, `correct` of those that were the model's first choice.
    """

    total: Tensor
    trained: int
    correct: int


def token_losses(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, weights_BT: Tensor) -> TokenLosses:
    """Losses of every token whose weight is above 0, each predicted from the tokens before it.

    `model` is any causal language model of transformers, wrapped by PEFT or not. A row's first token is never learned.
    At least one weight must be above 0, or `total` carries no gradient.
    """
    chosen_BT = torch.zeros_like(weights_BT, dtype=torch.bool)
    chosen_BT[:, :-1] = weights_BT[:, 1:] > 0  # a token is learned at the position before it
    targets_N = input_ids_BT[:, 1:][chosen_BT[:, :-1]]
    weights_N = weights_BT[:, 1:][chosen_BT[:, :-1]]
    logits_NV = _logits_at(model, input_ids_BT, attention_mask_BT, chosen_BT).float()
    losses_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    correct = int((logits_NV.detach().argmax(-1) == targets_N).sum())
    return TokenLosses((losses_N * weights_N).sum(), len(targets_N), correct)


def _logits_at(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, chosen_BT: Tensor) -> Tensor:
    """The model's logits at the chosen positions, (N, V).

    Hidden states are narrowed on their way into the output layer, so that whatever the architecture does to its logits
    afterwards (scaling, capping) is done by its own code. One that feeds its output layer otherwise gives full logits.
    """
    wrapped: Any = model  # its own way of saying that PEFT may have wrapped it
    base: PreTrainedModel = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    is_narrowed = False

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        nonlocal is_narrowed
        if not inputs or inputs[0].shape[:-1] != chosen_BT.shape:
            return None
        is_narrowed = True
        return (inputs[0][chosen_BT].unsqueeze(0), *inputs[1:])

    output = base.get_output_embeddings()
    hook = output.register_forward_pre_hook(narrow) if output is not None else None
    try:
        logits = model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits[0] if is_narrowed else logits[chosen_BT]
