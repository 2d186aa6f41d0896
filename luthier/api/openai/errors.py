"""OpenAI's words for errors: those of the error tree themselves."""

from __future__ import annotations

from luthier.api.shapes.errors import ErrorTable

table = ErrorTable(lambda error: error.code)
