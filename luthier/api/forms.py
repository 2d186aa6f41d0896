"""An example of a form, for the API's document: the framework reads none from its fields."""

from __future__ import annotations

from typing import Any


def example(**fields: Any) -> dict[str, Any]:
    """What a route adds to its description; a file stands there by its name."""
    return {"requestBody": {"content": {"multipart/form-data": {"example": fields}}}}
