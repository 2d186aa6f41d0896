"""The Method contract: which numbers learn, and in what form they leave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.errors import CheckpointUnreadable
from luthier.core.registry import Registry
from luthier.training import options as plugin

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class Method(ABC):
    """One way to train a model. Importing a method's file must not import torch.

    Promises, held by tests/contract: what `trainable` does not name stays bit-identical; the same seed attaches the
    same numbers; an export that is restored onto a freshly attached model gives the same logits.
    """

    Options: ClassVar[type[plugin.Options]]
    artifact_kind: ClassVar[Literal["adapter", "model"]]
    rate: ClassVar[float]
    """Peak learning rate that suits a model of 135 million parameters and steps of 8 rows, for supervised fine-tuning."""
    artifact_files: ClassVar[str] = "*"
    """Pattern of the files that `restore` reads of an artifact; a folder without one cannot be gone on from."""
    is_shared: ClassVar[bool] = False
    """Whether a running base model can answer with the artifact at once, beside others; else it must be started with it."""
    is_quantised: ClassVar[bool] = False
    """Whether the base model's weights are kept in 4 bits."""
    mixes_precision: ClassVar[bool] = False
    """Whether fp32 weights are computed with in the precision of the spec, operation by operation."""

    def __init__(self, options: plugin.Options) -> None:
        self.options = options

    @property
    def positions(self) -> int:
        """Positions of the model's context that the method takes for itself."""
        return 0

    @property
    def drops(self) -> bool:
        """Whether training drops some of what it sees, drawn for each token."""
        return False

    @abstractmethod
    def attach(self, model: PreTrainedModel, *, seed: int, blank: Sequence[int] = ()) -> PreTrainedModel:
        """Make the model ready to train and return it; new numbers are drawn from `seed`.

        `blank` are tokens that say as little as can be, a line feed, for what has to begin with some.

        Raises InvalidRequest when the model cannot be trained so.
        """

    @abstractmethod
    def numbers(self, model: nn.Module) -> dict[str, Tensor]:
        """What an attached model's artifact is made of, by the names that `write` knows; still where it lies."""

    @abstractmethod
    def write(self, model: nn.Module, numbers: dict[str, Tensor], folder: Path, *, base_model: str) -> None:
        """Write the artifact into `folder`, which is empty, from what `numbers` gave. Equal numbers give equal bytes."""

    def export(self, model: nn.Module, folder: Path, *, base_model: str) -> None:
        """Write the artifact of an attached model into `folder`, which is empty."""
        self.write(model, self.numbers(model), folder, base_model=base_model)

    @abstractmethod
    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put an artifact's numbers back into an attached model.

        Raises CheckpointUnreadable when they do not fit, or the folder has no artifact of this method.
        """

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, always in the same order."""
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def read_numbers(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of an artifact's file. Raises CheckpointUnreadable where it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / name)
    except FileNotFoundError as absent:
        raise CheckpointUnreadable(
            f"There is no {name} in what training was to go on from.",
            hint="It must be the artifact of a job of the same method.",
        ) from absent
    except SafetensorError as damaged:
        raise CheckpointUnreadable(f"{name} cannot be read: {damaged}.") from damaged


methods: Registry[Method] = Registry("luthier.training.methods", Method, kind="method")


def method_of(name: str, options: dict[str, Any], *, param: str = "method.options") -> Method:
    """A method with its options. Raises InvalidParameter for a name or an option that there is not."""
    method = methods.load(name)
    return method(method.Options.read(options, param=param))
