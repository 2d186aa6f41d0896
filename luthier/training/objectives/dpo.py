"""Direct preference optimisation: prefer the chosen answer to the rejected one, measured from where the model began.

Rafailov et al., Direct Preference Optimization (arXiv 2305.18290), equation 7; label smoothing after Mitchell, A note on DPO with
noisy preferences; IPO after Azar et al. (arXiv 2310.12036), with log-probabilities as means over the answer's tokens; the
added likelihood of the chosen answer after Pang et al., Iterative Reasoning Preference Optimization (arXiv 2404.19733).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator

from luthier.training.objectives.base import Encoded, Losses, Objective
from luthier.training.options import Options

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.nets.losses import Learned
    from luthier.nets.packing import Packed


class DpoOptions(Options):
    beta: float = Field(
        0.1, gt=0, le=10, description="How strongly the model is held to what it was; less lets it go further."
    )
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid", description="The loss of DPO, or that of IPO, which overfits less."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of the pairs that may be the wrong way round; for the sigmoid loss."
    )
    nll_weight: float = Field(
        0.0, ge=0, le=10, description="Weight of the chosen answer's own likelihood, which keeps it from sinking."
    )

    @field_validator("label_smoothing")
    @classmethod
    def _of_the_sigmoid_loss(cls, value: float, others: ValidationInfo) -> float:
        if value and others.data.get("loss") == "ipo":
            raise ValueError("is of the sigmoid loss; ipo has none")
        return value


class Dpo(Objective):
    Options = DpoOptions
    wants = "preference"
    has_reference = True
    rate_share = 0.1
    options: DpoOptions

    def units(self, row: Encoded) -> int:
        return 1

    def losses(self, model: PreTrainedModel, packed: Packed, rows: Sequence[Encoded]) -> Losses:
        import torch
        from torch.nn.functional import logsigmoid

        from luthier.nets.losses import learned_tokens

        chosen = self.options
        said = learned_tokens(model, packed)
        sums_R2, lengths_R2 = _answers(said, packed)
        reference_R2 = torch.tensor([row.reference for row in rows], dtype=torch.float32, device=sums_R2.device)
        gains_R2 = sums_R2 - reference_R2
        if chosen.loss == "ipo":
            gains_R2 = gains_R2 / lengths_R2
            losses_R = (gains_R2[:, 0] - gains_R2[:, 1] - 1 / (2 * chosen.beta)) ** 2
        else:
            margins_R = chosen.beta * (gains_R2[:, 0] - gains_R2[:, 1])
            smooth = chosen.label_smoothing
            losses_R = -(1 - smooth) * logsigmoid(margins_R) - smooth * logsigmoid(-margins_R)
        if chosen.nll_weight:
            losses_R = losses_R - chosen.nll_weight * sums_R2[:, 0] / lengths_R2[:, 0]
        rewards_R2 = chosen.beta * gains_R2.detach()
        margins_R = rewards_R2[:, 0] - rewards_R2[:, 1]
        pairs, is_chosen_N = len(rows), packed.sequence_N % 2 == 0
        return Losses(
            losses_R.sum(),
            {
                "reward_accuracy": ((margins_R > 0).sum(), pairs),
                "reward_margin": (margins_R.sum(), pairs),
                "chosen_reward": (rewards_R2[:, 0].sum(), pairs),
                "rejected_reward": (rewards_R2[:, 1].sum(), pairs),
                "token_accuracy": ((said.correct_N & is_chosen_N).sum(), int(is_chosen_N.sum())),
            },
        )

    def references(self, model: PreTrainedModel, packed: Packed, rows: Sequence[Encoded]) -> list[tuple[float, ...]]:
        from luthier.nets.losses import learned_tokens

        sums_R2, _ = _answers(learned_tokens(model, packed), packed)
        return [tuple(pair) for pair in sums_R2.tolist()]


def _answers(said: Learned, packed: Packed) -> tuple[Tensor, Tensor]:
    """Of each pair the log-probabilities of both answers, (R, 2), and their lengths in tokens."""
    import torch

    sums_S = said.logprobs_N.new_zeros(packed.sequences).index_add(0, packed.sequence_N, said.logprobs_N)
    lengths_S = torch.bincount(packed.sequence_N, minlength=packed.sequences)
    return sums_S.view(-1, 2), lengths_S.view(-1, 2)
