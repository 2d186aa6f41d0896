"""Options: what a plugin lets people choose. It stands in the plugin's own file, above the class that uses it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError

from luthier.training.faults import faults_in, refusal
from luthier.training.spec import Value


class Options(Value):
    """Frozen; unknown fields are refused; every field has a default and a description."""

    @classmethod
    def read(cls, values: dict[str, Any], *, param: str) -> Self:
        """Options from what somebody wrote. Raises InvalidParameter that names every fault, below the field `param`."""
        try:
            return cls.model_validate(values)
        except ValidationError as wrong:
            raise refusal(faults_in(cls, wrong, below=param)) from wrong
