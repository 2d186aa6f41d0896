"""Examples into the token sequences that are trained, and what a length limit does to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from luthier.chat.messages import Conversation, ImageGeneration, PlainText, PreferencePair
from luthier.chat.renderers.base import Rendered, Renderer

Overlength = Literal["drop", "truncate", "fail"]
"""What becomes of a row that is longer than the limit: left out, cut behind the limit, or a reason not to start."""

TurnWeights = Literal["honoured", "ignored"]
"""Whether an answer of weight 0 is left untrained, or trained as every other."""

Drop = Literal["too_long", "nothing_trained"]
"""Why a row is not trained: it is longer than the limit, or nothing that is learned is left of it."""


@dataclass(frozen=True)
class Fitted:
    """The sequences of a row as they are trained. A dropped row has none."""

    sequences: tuple[Rendered, ...]
    dropped: Drop | None = None
    is_truncated: bool = False


def weighed(
    value: Conversation | PreferencePair | PlainText | ImageGeneration, turn_weights: TurnWeights
) -> Conversation | PreferencePair | PlainText | ImageGeneration:
    """An example as it is to be trained; of a pair only the answers are, whatever their weights."""
    if turn_weights == "honoured" or not isinstance(value, Conversation):
        return value
    return replace(value, messages=tuple(replace(message, trained=True) for message in value.messages))


def sequences(
    values: list[Conversation | PreferencePair | PlainText | ImageGeneration], renderer: Renderer
) -> list[tuple[Rendered, ...]]:
    """What is trained of each example: one sequence, or that of the chosen and that of the rejected answer.

    Pictures are left out: the tokens that stand for them are a vision model's processor's to make. Raises InvalidRequest
    for an example that the model's renderer cannot write.
    """
    conversations: list[Conversation] = []
    for value in values:
        if isinstance(value, PreferencePair):
            conversations += [value.answered(replace(one, trained=True)) for one in (value.chosen, value.rejected)]
        elif isinstance(value, ImageGeneration):
            conversations.append(value.prompt)
        elif isinstance(value, Conversation):
            conversations.append(value)
    written = iter(renderer.examples([_without_images(one) if one.images else one for one in conversations]))
    return [
        (renderer.text(value),)
        if isinstance(value, PlainText)
        else (next(written), next(written))
        if isinstance(value, PreferencePair)
        else (next(written),)
        for value in values
    ]


def _without_images(conversation: Conversation) -> Conversation:
    messages = (replace(message, content=message.text) for message in conversation.messages)
    return Conversation(tuple(messages), conversation.tools)


def fitted(row: tuple[Rendered, ...], *, max_length: int, overlength: Overlength) -> Fitted:
    """A row under a limit of tokens a sequence. `fail` keeps what is too long; the caller says so."""
    is_long = any(len(one.tokens) > max_length for one in row)
    if is_long and overlength == "drop":
        return Fitted((), "too_long")
    if is_long and overlength == "truncate":
        row = tuple(Rendered(one.tokens[:max_length], one.weights[:max_length]) for one in row)
    if not all(learned(one) for one in row):
        return Fitted((), "too_long" if is_long else "nothing_trained")
    return Fitted(row, is_truncated=is_long and overlength == "truncate")


def learned(one: Rendered) -> int:
    """Tokens of a sequence that are learned; the first has nothing before it to be learned from."""
    return sum(1 for weight in one.weights[1:] if weight)
