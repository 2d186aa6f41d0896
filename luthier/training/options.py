"""Options: what a plugin lets people choose. It stands in the plugin's own file, above the class that uses it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError

from luthier.core.errors import InvalidParameter
from luthier.training.spec import Value


class Options(Value):
    """Frozen; unknown fields are refused; every field has a default and a description."""

    @classmethod
    def read(cls, values: dict[str, Any], *, param: str) -> Self:
        """Options from what somebody wrote. Raises InvalidParameter that names every fault, below the field `param`."""
        try:
            return cls.model_validate(values)
        except ValidationError as wrong:
            faults = [(".".join([param, *map(str, e["loc"])]), e["msg"]) for e in wrong.errors()]
            rest = "".join(f"; {name}: {message}" for name, message in faults[1:])
            raise InvalidParameter(faults[0][0], faults[0][1] + rest) from wrong
