"""Continuous batching: which answers' tokens each pass computes, and what it takes of the pool."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import ContextTooLong, NoCapacity
from luthier.nets.paged.batch import BLOCK, PagedBatch, Part
from luthier.nets.paged.blocks import Blocks, keys_of
from luthier.nets.sampling import Sampler, choose_all
from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked, Said

if TYPE_CHECKING:
    from torch import Tensor

MOST_ANSWERS = 256
"""That are made beside each other; more wait."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """An adapter that answers may use: a place of the bank, or a prefix that lies in blocks of its own.

    `root` is what keys of cached blocks begin with; no other adapter has the same, nor has this one with other bytes.
    """

    root: str
    place: int = -1
    prefix: int = 0
    """Positions that stand before every prompt."""
    prefix_blocks: Sequence[int] = ()


NO_ADAPTER = Loaded("")


@dataclass(eq=False)
class _Answer:
    """Keys and values of the first `done` positions lie in the blocks; `tokens` are the prompt's and those made since."""

    asked: Asked
    adapter: Loaded
    sampler: Sampler
    tokens: list[int]
    left: int  # tokens that may still be made
    root: bytes
    keys: list[bytes]  # of the whole blocks behind the prefix's, as far as they are known
    blocks: list[int] = field(default_factory=list)
    done: int = 0

    @property
    def length(self) -> int:
        return self.adapter.prefix + len(self.tokens)

    @property
    def pending(self) -> int:
        return self.length - self.done

    @property
    def begun(self) -> int:
        """The first block that is no whole block of the prefix: the first with a key."""
        return self.adapter.prefix // BLOCK


class Batcher:
    """Passes over all answers. It chooses what is computed and by whom; `logits` computes it."""

    def __init__(
        self,
        blocks: Blocks,
        logits: Callable[[PagedBatch], Tensor],
        copy: Callable[[int, int], None],
        *,
        context: int,
        chunk_tokens: int,
        chunk_tokens_beside: int,
    ) -> None:
        """`copy` copies a block onto another. A pass takes at most `chunk_tokens` of prompts, in their order. Where answers are
        being made beside them that is as many times `chunk_tokens_beside` as prompts are unread: for one, so that nobody waits
        long for a next token; for many, since small passes would keep all of them longer.
        """
        self._blocks = blocks
        self._logits = logits
        self._copy = copy
        self._context = context
        self._chunk_tokens = chunk_tokens
        self._chunk_tokens_beside = chunk_tokens_beside
        self._waiting: list[_Answer] = []
        self._running: list[_Answer] = []
        self._answers: dict[Asked, _Answer] = {}

    @property
    def is_idle(self) -> bool:
        return not self._answers

    def begin(self, asked: Asked, adapter: Loaded) -> None:
        """Take an answer in. Raises ContextTooLong, and NoCapacity where it could never be held."""
        context = self._context - adapter.prefix
        room = context - len(asked.prompt)
        if room < 1:
            raise ContextTooLong(
                f"The prompt is {len(asked.prompt)} tokens long; the model's context holds {context} with the answer.",
                hint="Shorten it.",
            )
        longest = asked.sampling.max_tokens
        if _blocks_of(adapter.prefix + len(asked.prompt) + 1) > self._blocks.count:
            raise NoCapacity("The prompt is longer than this replica's cache; give it more, or shorten the prompt.")
        root = hashlib.sha256(f"{asked.scope}\0{adapter.root}".encode()).digest()
        answer = _Answer(
            asked,
            adapter,
            Sampler(
                **asked.sampling.model_dump(exclude={"max_tokens", "stop", "stop_tokens"}),
                prompt=asked.prompt,
                guide=asked.guide,
            ),
            list(asked.prompt),
            room if longest is None else min(room, longest),
            root,
            [],
        )
        answer.keys = _keys(answer)
        self._answers[asked] = answer
        self._waiting.append(answer)

    def cancel(self, asked: Asked) -> None:
        if (answer := self._answers.pop(asked, None)) is not None:
            self._drop(answer)

    def end_all(self, adapter: Loaded, error: Exception) -> list[Said]:
        """End the answers that use an adapter."""
        ended = [answer for answer in self._answers.values() if answer.adapter is adapter]
        return [self._failed(answer, error) for answer in ended]

    def take(self, count: int) -> list[int] | None:
        """Hold so many blocks, if need be those of the answers that came last, which begin anew; None: there are too few."""
        while (taken := self._blocks.take(count)) is None and self._running:
            self._put_back(self._running[-1])
        return taken

    def logits_of(self, tokens: list[int], adapter: Loaded) -> Tensor:
        """What follows each of these tokens, (T, V), computed in a pass of its own and kept nowhere. Raises NoCapacity."""
        begun, rest = divmod(adapter.prefix, BLOCK)
        length = adapter.prefix + len(tokens)
        if (own := self.take(_blocks_of(length) - begun)) is None:
            raise NoCapacity("The replica's cache is full.", retry_after=5)
        try:
            if rest:
                self._copy(adapter.prefix_blocks[begun], own[0])
            batch = PagedBatch.of([Part(tokens, length, [*adapter.prefix_blocks[:begun], *own], adapter.place)])
            return self._logits(replace(batch, rows_R=np.arange(len(tokens))))
        finally:
            self._blocks.release(own)

    def step(self) -> list[Said]:
        """One pass over all answers that run, prompts by the chunk."""
        said = self._admit()
        parts = self._parts(said)
        if not parts:
            return said
        logits_RV = self._logits(PagedBatch.of([self._part(answer, count) for answer, count in parts]))
        asking = [answer for answer, count in parts if count == answer.pending]
        for answer, count in parts:
            answer.done += count
            self._keep(answer, count)
        if not asking:
            return said
        for answer, chosen in zip(asking, choose_all([answer.sampler for answer in asking], logits_RV), strict=True):
            said.append(self._failed(answer, chosen) if isinstance(chosen, Exception) else self._told(answer, chosen))
        return said

    def _told(self, answer: _Answer, token: Token) -> Said:
        answer.tokens.append(token.id)
        answer.left -= 1
        is_last = token.id in answer.asked.stops or not answer.left
        if is_last:
            self.cancel(answer.asked)
        return Said(answer.asked, token, is_last=is_last)

    def _failed(self, answer: _Answer, error: Exception) -> Said:
        self.cancel(answer.asked)
        return Said(answer.asked, error=error)

    def _admit(self) -> list[Said]:
        """Let those who wait run, in their order, as long as the pool has room for what they have to read.

        One whose beginning is just being computed for another waits for that, to find it in the pool.
        """
        said: list[Said] = []
        coming = {key for answer in self._running if (key := self._next_key(answer, answer.done // BLOCK))}
        for answer in list(self._waiting):
            if len(self._running) >= MOST_ANSWERS:
                break
            known = next((n for n, key in enumerate(answer.keys) if not self._blocks.is_known(key)), len(answer.keys))
            if (key := self._next_key(answer, answer.begun + known)) in coming:
                continue
            if self._find_room(answer):
                self._waiting.remove(answer)
                self._running.append(answer)
                coming |= {key} if key else set()
            elif self._running:
                break
            else:
                said.append(self._failed(answer, NoCapacity("The replica's cache has no room for this prompt.")))
        return said

    def _next_key(self, answer: _Answer, block: int) -> bytes | None:
        """Of the block that the answer computes next, where others may find it then."""
        is_whole = block < (answer.length - 1) // BLOCK and block - answer.begun < len(answer.keys)
        return answer.keys[max(block - answer.begun, 0)] if is_whole else None

    def _find_room(self, answer: _Answer) -> bool:
        """Have the blocks of all that the answer has to read, those that are known found; else nothing."""
        prefix = answer.adapter.prefix
        found = self._blocks.find(answer.keys[: (answer.length - 1) // BLOCK - answer.begun])
        own = _blocks_of(answer.length) - answer.begun - len(found)
        spare = len(self._running)  # those who run go on
        if own + spare > self._blocks.free or (taken := self._blocks.take(own)) is None:
            self._blocks.release(found)
            return False
        shared = list(answer.adapter.prefix_blocks[: answer.begun])
        if prefix % BLOCK and not found:  # the rest of the prefix stands at the beginning of the answer's first block
            self._copy(answer.adapter.prefix_blocks[answer.begun], taken[0])
        self._blocks.hold(shared)
        answer.blocks = [*shared, *found, *taken]
        answer.done = max(prefix, (answer.begun + len(found)) * BLOCK)
        if answer.length == len(answer.asked.prompt) + prefix:
            answer.asked.cached_tokens = answer.done - prefix
        return True

    def _parts(self, said: list[Said]) -> list[tuple[_Answer, int]]:
        """Who computes how many tokens in this pass: one each who has but one, then prompts in their order."""
        ready = [answer for answer in self._running if answer.pending == 1]
        for answer in ready:
            if answer in self._running and not self._grow(answer):
                said.append(self._failed(answer, NoCapacity("The replica's cache is full.")))
        parts = [(answer, 1) for answer in self._running if answer.pending == 1]
        budget = self._chunk_tokens
        if parts:
            unread = len(self._running) - len(parts)
            budget = min(budget - len(parts), self._chunk_tokens_beside * unread)
            uneven = (
                budget + len(parts)
            ) % BLOCK  # compiled passes compute so many tokens, or twice as many, at a time
            budget -= uneven if uneven < budget else 0
        for answer in self._running:
            if answer.pending > 1 and budget > 0:
                count = min(answer.pending, budget)
                parts.append((answer, count))
                budget -= count
        return parts

    def _grow(self, answer: _Answer) -> bool:
        """Have a block for the next position, if need be one that another answer gives back: the youngest begins anew."""
        while len(answer.blocks) < _blocks_of(answer.length):
            if (taken := self._blocks.take(1)) is not None:
                answer.blocks += taken
                continue
            youngest = self._running[-1]
            if youngest is answer and len(self._running) == 1:
                return False
            self._put_back(youngest)
            if youngest is answer:
                return True
        return True

    def _put_back(self, answer: _Answer) -> None:
        """It begins anew from its own tokens, before all others that wait."""
        self._drop(answer)
        self._waiting.insert(0, answer)

    def _part(self, answer: _Answer, count: int) -> Part:
        begin = answer.done - answer.adapter.prefix
        ids = answer.tokens[begin : begin + count]
        is_wanted = count == answer.pending
        return Part(ids, answer.done + count, answer.blocks, answer.adapter.place, is_wanted)

    def _keep(self, answer: _Answer, count: int) -> None:
        """Let others find the blocks that the last so many tokens have made whole."""
        first = max((answer.done - count) // BLOCK - answer.begun, 0)
        whole = answer.done // BLOCK - answer.begun
        if whole > len(answer.keys):
            answer.keys = _keys(answer)
        for number in range(first, whole):
            self._blocks.keep(answer.blocks[answer.begun + number], answer.keys[number])

    def _drop(self, answer: _Answer) -> None:
        for line in (self._running, self._waiting):
            if answer in line:
                line.remove(answer)
        self._blocks.release(answer.blocks)
        answer.blocks, answer.done = [], 0


def _keys(answer: _Answer) -> list[bytes]:
    """The first block behind a prefix's last whole one begins with the prefix's rest."""
    rest = answer.adapter.prefix % BLOCK
    return keys_of(answer.root, [*range(-rest, 0), *answer.tokens], known=answer.keys)


def _blocks_of(positions: int) -> int:
    return -(-positions // BLOCK)
