"""The Objective contract: what an example becomes, and what is minimised over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from luthier.chat.examples import learned, sequences
from luthier.chat.renderers.base import Rendered, Renderer
from luthier.core.registry import Registry
from luthier.formats.base import Example, Kind
from luthier.training import options as plugin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.nets.packing import Packed


@dataclass(frozen=True)
class Encoded:
    """A row as the loop knows it: one sequence, or those of a chosen and a rejected answer.

    `reference` is what the model said of it before the first step, for an objective that asks.
    """

    sequences: tuple[Rendered, ...]
    row: int = 0
    """Its number in the file, from 1."""
    reference: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of all sequences."""
        return sum(len(one.tokens) for one in self.sequences)

    @property
    def longest(self) -> int:
        return max(len(one.tokens) for one in self.sequences)

    @property
    def trained(self) -> int:
        """Tokens that are learned; the first of a sequence has nothing before it to be learned from."""
        return sum(map(learned, self.sequences))


class Losses(NamedTuple):
    """What an objective says of a micro-batch. `total` is a sum in fp32 over the units of its rows and has the gradient.

    `measures` are sums of what is shown beside the loss, each with the number of things that it was summed over.
    """

    total: Tensor
    measures: Mapping[str, tuple[Tensor, int]]


class Objective(ABC):
    """One thing to minimise. Importing an objective's file must not import torch.

    Promises, held by tests/contract: what else is in a micro-batch does not change a loss; the loss falls on a toy set.
    """

    Options: ClassVar[type[plugin.Options]]
    wants: ClassVar[Kind]
    rate_share: ClassVar[float] = 1.0
    """What this objective takes of the learning rate that suits supervised fine-tuning by the same method."""
    has_reference: ClassVar[bool] = False
    """Whether rows are compared with what the model said of them before the first step."""

    def __init__(self, options: plugin.Options) -> None:
        self.options = options

    def encode(self, example: Example, renderer: Renderer) -> tuple[Rendered, ...]:
        """The sequences that an example is trained as; the length limit is held against each of them."""
        return sequences([example.value], renderer)[0]

    def units(self, row: Encoded) -> int:
        """How much a row counts in the mean that is minimised over a step: its learned tokens, or 1 for a pair."""
        return row.trained

    @abstractmethod
    def losses(self, model: PreTrainedModel, packed: Packed, rows: Sequence[Encoded]) -> Losses:
        """What is minimised, summed over the units of a micro-batch; `packed` has the sequences of its rows in order."""

    def references(self, model: PreTrainedModel, packed: Packed, rows: Sequence[Encoded]) -> list[tuple[float, ...]]:
        """What is to be remembered of each row of the model as it starts; without a gradient."""
        raise NotImplementedError


objectives: Registry[Objective] = Registry("luthier.training.objectives", Objective, kind="objective")
