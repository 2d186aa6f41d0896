"""How many functions may be offered to a model, and what names they may have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from luthier.core.errors import InvalidParameter

MOST_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_names(names: Iterable[str], where: str) -> None:
    """Raises InvalidParameter for a name that no function can have, or that two have; `where` is the field of number {}."""
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise InvalidParameter(
                f"{where.format(place)}.name", f"must be 1 to 64 letters, digits, _ or -, got {name!r}"
            )
        if name in seen:
            raise InvalidParameter(f"{where.format(place)}.name", f"is used twice: {name!r}")
        seen.add(name)
