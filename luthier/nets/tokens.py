"""What passes between those who ask for tokens and those who make them; no torch here."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Token(NamedTuple):
    """A token that was made. `logprob` and `likeliest` are absent where nobody asked for them.

    Both are natural logarithms of the model's own chances: before temperature, bias, penalties and every restriction.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Guide(Protocol):
    """Says which tokens may come next, as an answer that must have a form goes on."""

    def allowed(self) -> bytes:
        """A bit for each token id, the lowest bit of a byte first; what lies beyond the last may not come."""
        ...

    def take(self, token: int) -> None:
        """This one came."""
        ...
