"""Choosing the next tokens of a whole batch, each answer's as if it were alone.

Shapes: N answers, R those of them that are worked on together, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.errors import InternalError
from luthier.nets.tokens import Guide, Token

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_TOGETHER = 8  # rows: what is computed of them stays in a processor's cache
_BLOCK = 256  # tokens whose chances are summed before one of them is looked for
_FLOORS = (1e-4, 1e-7, 0.0)  # of the likeliest token's chance: those above the first are nearly always enough
_LEAST = float(np.finfo(np.float32).tiny)  # of a chance: what has less does not come
_COLDEST = 1e-30  # divides without leaving fp32; long before it the likeliest token is the only one


class Sampler:
    """How the tokens of one answer are chosen, and what of it was chosen so far.

    It has a random generator of its own, so a seed repeats them, whatever else is drawn meanwhile.

    Log-probabilities are those of the model's own chances, before anything that is set here changes them. Then, in this
    order: bias, repetition penalty, frequency and presence penalty, the guide, temperature, min_p, top_k, top_p.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        seed: int | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        prompt: Sequence[int] = (),
        guide: Guide | None = None,
    ) -> None:
        """Temperature 0 takes the likeliest token. Frequency and presence count what was generated, repetition also the
        prompt. `min_p` leaves out what has less than this share of the likeliest token's chance. With `logprobs` every
        token tells its own log-probability and those of so many likeliest.
        """
        self.temperature = temperature
        self.logprobs = logprobs
        self.guide = guide
        self._top_p = top_p
        self._top_k = top_k
        self._min_p = min_p
        self._frequency_penalty = frequency_penalty
        self._presence_penalty = presence_penalty
        self._repetition_penalty = repetition_penalty
        self._biased = np.fromiter(logit_bias or (), np.int64)
        self._biases = np.fromiter((logit_bias or {}).values(), np.float32)
        self._random = random.Random(None if seed is None else seed % 2**64)  # noqa: S311 (no secret is made)
        self._counts: dict[int, int] = {}
        self._seen = np.unique(np.asarray(prompt, np.int64)) if repetition_penalty != 1 else None
        is_shaped = repetition_penalty != 1 or frequency_penalty or presence_penalty or logit_bias or guide is not None
        self.is_plain = not temperature and not is_shaped and logprobs is None
        """The likeliest token it is, and nothing else is told."""

    def choose(self, logits_V: torch.Tensor) -> Token:
        """The next token, as `choose_all` chooses it; what that would answer in its place is raised."""
        [chosen] = choose_all([self], logits_V[None])
        if isinstance(chosen, Exception):
            raise chosen
        return chosen

    def shape(self, logits_V: Floats) -> None:
        """Write bias and penalties into the logits."""
        if len(self._biased):
            logits_V[self._biased] += self._biases
        if self._seen is not None:
            seen = logits_V[self._seen]
            penalty = np.float32(self._repetition_penalty)
            logits_V[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts and (self._frequency_penalty or self._presence_penalty):
            counts = np.fromiter(self._counts.values(), np.float32)
            penalties = counts * np.float32(self._frequency_penalty) + np.float32(self._presence_penalty)
            logits_V[np.fromiter(self._counts, np.int64)] -= penalties

    def draw(self, chances_V: Floats) -> int:
        """A token by its chances, which are those of this temperature and sum to 1; never one that has none."""
        if not self._min_p and self._top_p == 1 and (self._top_k is None or self._top_k >= len(chances_V)):
            block = _place(np.add.reduceat(chances_V, range(0, len(chances_V), _BLOCK)), self._random.random())
            begin = block * _BLOCK
            return begin + _place(chances_V[begin : begin + _BLOCK], self._random.random())
        tokens = self._left(chances_V)
        return int(tokens[_place(chances_V[tokens], self._random.random())])

    def take(self, token: int) -> None:
        """This one comes next."""
        if self._seen is not None and token not in self._seen:
            self._seen = np.append(self._seen, token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self.guide is not None:
            self.guide.take(token)

    def _left(self, chances_V: Floats) -> NDArray[np.int64]:
        """The tokens that min_p, top_k and top_p leave; where equals are cut, the lower ids."""
        peak, most = chances_V.max(), len(chances_V) if self._top_k is None else self._top_k
        tokens = np.empty(0, np.int64)
        for floor in (self._min_p,) if self._min_p else _FLOORS:
            tokens = np.flatnonzero(chances_V >= max(floor * peak, _LEAST))
            if len(tokens) >= most or (self._top_k is None and chances_V[tokens].sum(dtype=np.float64) >= self._top_p):
                break  # what lies below is left out in any case
        ordered = np.sort(chances_V[tokens])[::-1][:most]
        if self._top_p < 1:
            sums = np.cumsum(ordered, dtype=np.float64)
            share = self._top_p * (sums[-1] if self._min_p or self._top_k is not None else 1.0)
            ordered = ordered[: 1 + int(np.searchsorted(sums, share))]  # the first is always kept
        tokens = tokens[chances_V[tokens] >= ordered[-1]]
        if beyond := len(tokens) - len(ordered):
            tokens = np.delete(tokens, np.flatnonzero(chances_V[tokens] == ordered[-1])[-beyond:])
        return tokens


def choose_all(samplers: Sequence[Sampler], logits_NV: torch.Tensor) -> list[Token | Exception]:
    """The next token of every answer, or why there is none: of a row without a finite maximum an InternalError, of
    a guide that cannot go on what it raises. One answer's fault leaves the others alone.

    What is chosen depends on the answer's own row and sampler, on nothing else in the batch. The logits stay as they are.
    """
    with torch.no_grad():
        chosen = _likeliest(logits_NV)
        rows = [
            row for row, sampler in enumerate(samplers) if not (sampler.is_plain or isinstance(chosen[row], Exception))
        ]
        for begin in range(0, len(rows), _TOGETHER):
            some = rows[begin : begin + _TOGETHER]
            copied_RV = logits_NV.index_select(0, torch.tensor(some, device=logits_NV.device))
            copied_RV = copied_RV.float().cpu()  # on the CPU, so that a seed means the same on every device
            for row, one in zip(some, _shaped([samplers[row] for row in some], copied_RV), strict=True):
                chosen[row] = one
    return [_taken(sampler, one) for sampler, one in zip(samplers, chosen, strict=True)]


def _likeliest(logits_NV: torch.Tensor) -> list[Token | Exception]:
    if logits_NV.is_cpu:
        rows_NV = logits_NV.float().numpy()
        best_N = rows_NV.argmax(1)  # several times as fast as torch's
        peaks_N = rows_NV[np.arange(len(rows_NV)), best_N]
    else:
        peaks, best = logits_NV.max(1)
        best_N, peaks_N = best.cpu().numpy(), peaks.float().cpu().numpy()
    return [_checked(token, peak) for token, peak in zip(best_N.tolist(), peaks_N.tolist(), strict=True)]


def _checked(token: int, peak: float) -> Token | Exception:
    """A maximum is finite only where nothing is NaN or +inf, and not all is -inf."""
    if math.isfinite(peak):
        return Token(token)
    return InternalError(f"The model gave no token a finite likelihood: the highest is {peak}.")


def _shaped(samplers: Sequence[Sampler], logits_RV: torch.Tensor) -> list[Token | Exception]:
    """Of rows that are not plain. Writes into the logits."""
    tells = any(sampler.logprobs is not None for sampler in samplers)
    logprobs_RV = torch.log_softmax(logits_RV, dim=1) if tells else logits_RV
    faults = _shape(samplers, logits_RV.numpy())
    chosen = [faults.get(row, one) for row, one in enumerate(_likeliest(logits_RV))]
    chances_RV = logits_RV.numpy()
    if any(sampler.temperature for sampler in samplers):
        # The maximum is taken off first: then no temperature is too small to divide by.
        temperatures_R1 = torch.tensor([[max(sampler.temperature, _COLDEST)] for sampler in samplers])
        logits_RV.sub_(logits_RV.amax(1, keepdim=True)).div_(temperatures_R1)
        chances_RV = torch.softmax(logits_RV, dim=1).numpy()
    for row, (sampler, one) in enumerate(zip(samplers, chosen, strict=True)):
        if isinstance(one, Exception):
            continue
        token = sampler.draw(chances_RV[row]) if sampler.temperature else one.id
        chosen[row] = Token(token) if sampler.logprobs is None else _told(token, logprobs_RV[row], sampler.logprobs)
    return chosen


def _shape(samplers: Sequence[Sampler], logits_RV: Floats) -> dict[int, Exception]:
    """Write what is set into the logits. Gives the rows where that failed."""
    faults: dict[int, Exception] = {}
    masks: dict[int, bytes] = {}
    for row, sampler in enumerate(samplers):
        try:
            sampler.shape(logits_RV[row])
            if sampler.guide is not None:
                masks[row] = sampler.guide.allowed()
        except Exception as fault:  # one answer's: the others go on
            faults[row] = fault
    if masks:
        for row, forbidden_V in zip(masks, _forbidden(list(masks.values()), logits_RV.shape[1]), strict=True):
            np.copyto(logits_RV[row], -np.inf, where=forbidden_V)
    return faults


def _forbidden(masks: Sequence[bytes], size: int) -> NDArray[np.bool_]:
    """As booleans, a row for each mask; what lies beyond its last bit is forbidden too."""
    bits = np.zeros((len(masks), -(-size // 8)), np.uint8)
    for row, mask in zip(bits, masks, strict=True):
        told = np.frombuffer(mask, np.uint8)[: len(row)]
        row[: len(told)] = told
    return np.unpackbits(~bits, axis=1, count=size, bitorder="little").view(np.bool_)


def _told(token: int, logprobs_V: torch.Tensor, count: int) -> Token:
    best = logprobs_V.topk(min(count, len(logprobs_V)))
    likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logprobs_V[token]), likeliest)


def _taken(sampler: Sampler, chosen: Token | Exception) -> Token | Exception:
    if isinstance(chosen, Token):
        try:
            sampler.take(chosen.id)
        except Exception as fault:  # one answer's: the others go on
            return fault
    return chosen


def _place(weights: Floats, share: float) -> int:
    """Where a share of all weights ends, counted from the first; never at a weight of 0."""
    sums = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(sums, min(share * sums[-1], np.nextafter(sums[-1], 0)), side="right"))
