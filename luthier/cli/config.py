"""luthier config: the settings as understood, and where each value came from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from luthier.cli.console import Json, print_json, table
from luthier.cli.serve import Data, settings_with
from luthier.core.settings import Settings


def config(data: Data = None, json: Json = False) -> None:
    """Print every setting with its value and where that comes from; secrets are masked."""
    settings = settings_with(data)
    rows = [(name, value, _origin(settings, name, data is not None)) for name, value in _leaves(settings)]
    if json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return
    table(("setting", "value", "from"), rows)


def _leaves(section: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        here = f"{path}{name}"
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{here}.")
        elif isinstance(value, SecretStr):
            yield here, "********"
        elif name == "url" and value:
            yield here, re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:********@", value)
        else:
            yield here, value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _origin(settings: Settings, name: str, data_was_said: bool) -> str:
    variable = f"LUTHIER_{name.replace('.', '__').upper()}"
    if name == "server.data" and data_was_said:
        return "--data"
    if variable in {key.upper() for key in os.environ}:
        return variable
    section: Any = settings
    for part in name.split("."):
        if part not in section.model_fields_set:
            return "default"
        section = getattr(section, part)
    return "luthier.toml"
