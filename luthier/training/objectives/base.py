"""The Objective contract: what an example becomes, and what is minimised over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.chat.examples import sequences
from luthier.chat.renderers.base import Rendered, Renderer
from luthier.core.registry import Registry
from luthier.formats.base import Example, Kind
from luthier.training import options as plugin

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.nets.losses import TokenLosses


@dataclass(frozen=True)
class Encoded:
    """A row as the loop knows it: `tokens[i]` is learned with weight `weights[i]`."""

    tokens: list[int]
    weights: list[float]

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def trained(self) -> int:
        """Tokens that are learned; the first has nothing before it to be learned from."""
        return sum(1 for weight in self.weights[1:] if weight)


class Objective(ABC):
    """One thing to minimise. Importing an objective's file must not import torch.

    Promises, held by tests/contract: padding and the size of a micro-batch do not change a loss; the loss falls on a
    toy set.
    """

    Options: ClassVar[type[plugin.Options]]
    wants: ClassVar[Kind]

    def __init__(self, options: plugin.Options) -> None:
        self.options = options

    def encode(self, example: Example, renderer: Renderer) -> tuple[Rendered, ...]:
        """The sequences that an example is trained as; the length limit is held against each of them."""
        return sequences([example.value], renderer)[0]

    @abstractmethod
    def joined(self, row: tuple[Rendered, ...]) -> Encoded:
        """The sequences of one row as the loop plans with them."""

    @abstractmethod
    def collate(self, rows: Sequence[Encoded], device: torch.device) -> Any:
        """A micro-batch for `loss`, padded right, on the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> TokenLosses:
        """The sum of token losses over a micro-batch, and what was counted on the way."""


objectives: Registry[Objective] = Registry("luthier.training.objectives", Objective, kind="objective")
