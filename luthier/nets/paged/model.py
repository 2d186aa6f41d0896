"""A pass of transformers' own layers over a paged batch: their attention reads the pool, their linear layers the bank.

Shapes: N new tokens, S sequences, T keys of one, M of the longest, H heads, K key heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from luthier.core.errors import InvalidRequest
from luthier.nets.attention import attended
from luthier.nets.packing import longer_ones_differ
from luthier.nets.paged.bank import Bank, Places
from luthier.nets.paged.batch import BLOCK, PagedBatch, Part
from luthier.nets.paged.pool import Pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "luthier_paged"
"""The name under which transformers knows our attention."""

_SAME = 1e-3  # of the logits around their mean, relative to their size
_SAME_ROUNDED = 0.1  # where every layer rounds: in SmolLM2 the probes differ from each other by 0.3 and more
_PROBE = [[3, 1, 4, 1, 5, 9, 2, 6] * 3, [5, 3, 5], [8, 9, 7, 9, 3] * 4]
_WIDEST_CONCATENATION = 1024  # of ranks side by side: beyond it adapters are multiplied one after the other


class PagedModel:
    """One model, whose passes take tokens of many sequences. Not for several threads."""

    def __init__(self, model: PreTrainedModel, pool: Pool, bank: Bank) -> None:
        """The model's attention becomes ours. Raises InvalidRequest for a model that does not say the same with it."""
        self.model = model
        self.pool = pool
        self.bank = bank
        self._run: _Run | None = None
        self._has_window = False
        self._hooked: set[str] = set()
        self._prove()

    @torch.inference_mode()
    def logits(self, batch: PagedBatch) -> Tensor:
        """Write the new tokens' keys and values to the pool, and say what follows the tokens of `rows_R`: (R, V), fp32."""
        self._hook()
        device = self.model.device
        self._run = run = _Run(batch, self.pool, device)
        untyped: Any = self.model
        try:
            said = untyped(
                input_ids=_tensor(batch.ids_N, device)[None],
                position_ids=_tensor(batch.positions_N, device)[None],
                use_cache=False,
                logits_to_keep=_tensor(batch.rows_R, device),
                paged=run,
            )
        finally:
            self._run = None
            self._has_window = self._has_window or bool(run.windows)
        return said.logits[0].float()

    def _hook(self) -> None:
        for name, places in self.bank.layers.items():
            if name not in self._hooked:
                self._hooked.add(name)
                places.layer.register_forward_hook(self._adapted(places))

    def _adapted(self, places: Places) -> Any:
        def add(layer: nn.Module, given: tuple[Tensor, ...], said: Tensor) -> Tensor | None:
            run = self._run
            if run is None or not run.is_adapted or not places.rank:
                return None
            return _add_adapters(places, run, given[0], said)

        return add

    def _prove(self) -> None:
        """See that sequences of one batch get what each gets alone."""
        from transformers import AttentionInterface, AttentionMaskInterface

        config: Any = self.model.config
        before = config._attn_implementation
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, _no_mask)
        try:
            with torch.inference_mode():
                alone_SV = torch.stack([self._alone(ids) for ids in _PROBE])
            self.model.set_attn_implementation(ATTENTION)
            together_SV = self._together()
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as unfit:
            self.model.set_attn_implementation(before)
            raise _unfit(self.model, str(unfit)) from unfit
        why = longer_ones_differ(config, config.max_position_embeddings, has_window=self._has_window)
        difference = _difference(together_SV, alone_SV)
        if why is None and not difference < (_SAME if self.model.dtype == torch.float32 else _SAME_ROUNDED):
            why = f"the difference is {difference:.1e}"
        if why is not None:
            self.model.set_attn_implementation(before)
            raise _unfit(self.model, why)

    def _alone(self, ids: list[int]) -> Tensor:
        untyped: Any = self.model
        given = torch.tensor([ids], device=self.model.device)
        return untyped(input_ids=given, use_cache=False, logits_to_keep=1).logits[0, -1].float()

    def _together(self) -> Tensor:
        """What follows each probe, computed in three passes: half of each, then the rest but a token, then that one."""
        needed, count = -(-max(map(len, _PROBE)) // BLOCK), len(_PROBE)
        if needed * count > self.pool.blocks:
            raise ValueError(f"its cache of {self.pool.blocks} blocks has no room for a probe")
        said = torch.empty(0)
        for begin, end in ((0.0, 0.5), (0.5, 1.0), (1.0, None)):
            parts: list[Part] = []
            for place, ids in enumerate(_PROBE):
                first = int(begin * (len(ids) - 1))
                last = len(ids) if end is None else int(end * (len(ids) - 1))
                blocks = list(range(place, needed * count, count))  # none beside another of the same sequence
                parts.append(Part(ids[first:last], last, blocks))
            said = self.logits(PagedBatch.of(parts))
        return said


def _difference(ours_SV: Tensor, theirs_SV: Tensor) -> float:
    """The largest of all sequences. What is added to all logits alike changes no answer, and rounding shifts them together."""
    ours_SV, theirs_SV = (logits_SV - logits_SV.mean(1, keepdim=True) for logits_SV in (ours_SV, theirs_SV))
    return float(((ours_SV - theirs_SV).norm(dim=1) / theirs_SV.norm(dim=1)).max())


class _Run:
    """One pass: what every layer looks up, made once. Slots are of the keys that a sequence may read."""

    def __init__(self, batch: PagedBatch, pool: Pool, device: torch.device) -> None:
        self.pool = pool
        self.device = device
        self.slots_N = _tensor(batch.slots_N, device)
        self.bounds: list[int] = batch.bounds.tolist()
        self.lengths: list[int] = batch.lengths_S.tolist()
        self.tables_SB = _tensor(batch.tables_SB, device)
        self.adapters: list[int] = batch.adapters_S.tolist()
        self.is_adapted = any(place >= 0 for place in self.adapters)
        self.windows: set[int] = set()

    @cached_property
    def slots(self) -> list[Tensor]:
        """Of every sequence, (T)."""
        within = torch.arange(BLOCK, device=self.device)
        return [
            (table_B[: -(-length // BLOCK), None] * BLOCK + within).flatten()[:length]
            for table_B, length in zip(self.tables_SB, self.lengths, strict=True)
        ]

    @cached_property
    def is_one_each(self) -> bool:
        """Whether every sequence has one new token: what a GPU does at once, shorter ones filled up."""
        return len(self.bounds) > 2 and self.bounds[-1] == len(self.lengths) and self.device.type != "cpu"

    @cached_property
    def padded_slots(self) -> Tensor:
        return nn.utils.rnn.pad_sequence(self.slots, batch_first=True)

    @cached_property
    def key_lengths(self) -> Tensor:
        return torch.tensor(self.lengths, device=self.device)

    @cached_property
    def owners(self) -> Tensor:
        counts = [end - begin for begin, end in pairwise(self.bounds)]
        return torch.tensor(self.adapters, device=self.device).repeat_interleave(
            torch.tensor(counts, device=self.device)
        )

    @cached_property
    def used(self) -> list[int]:
        """The places of adapters in this batch."""
        return sorted({place for place in self.adapters if place >= 0})

    @cached_property
    def rows(self) -> list[tuple[int, Tensor]]:
        """The tokens of every place that is used."""
        return [(place, (self.owners == place).nonzero().flatten()) for place in self.used]

    @cached_property
    def used_places(self) -> Tensor:
        return torch.tensor(self.used, device=self.device)

    @cached_property
    def own(self) -> Tensor:
        """Which of the used places is each token's."""
        return self.owners[:, None] == self.used_places


def _add_adapters(places: Places, run: _Run, given_1NI: Tensor, said_1NO: Tensor) -> Tensor:
    """What the layer says with each token's adapter."""
    given_NI, said_NO = given_1NI.flatten(0, -2), said_1NO.flatten(0, -2).clone()
    if places.factor_PO is not None:  # DoRA: the weights' own part is scaled too, what is added to it is not
        bias = 0 if places.layer.bias is None else places.layer.bias
        factors_NO = torch.where(run.owners[:, None] >= 0, places.factor_PO[run.owners], 1)
        scaled_NO = factors_NO * (said_NO - bias + _thin(places, run, given_NI)) + bias
        return scaled_NO.to(said_1NO.dtype).view_as(said_1NO)
    if len(run.used) == 1 and len(run.rows[0][1]) == len(given_NI):
        place = run.used[0]
        said_NO.addmm_(given_NI @ places.a_PRI[place].T, places.b_POR[place].T)
        return said_NO.view_as(said_1NO)
    return said_NO.add_(_thin(places, run, given_NI)).view_as(said_1NO)


def _thin(places: Places, run: _Run, given_NI: Tensor) -> Tensor:
    """What adapters add, (N, O). All that are used side by side where tokens are few, else one after the other."""
    rank = places.rank
    if len(run.used) * rank <= _WIDEST_CONCATENATION and len(given_NI) <= _WIDEST_CONCATENATION // 8:
        a_URI, b_UOR = places.a_PRI[run.used_places], places.b_POR[run.used_places]
        narrow_NUR = (given_NI @ a_URI.flatten(0, 1).T).unflatten(1, (-1, rank)) * run.own[:, :, None]
        return narrow_NUR.flatten(1) @ b_UOR.transpose(0, 1).flatten(1).T
    added_NO = given_NI.new_zeros(len(given_NI), places.b_POR.shape[1])
    for place, rows in run.rows:
        added_NO[rows] = (given_NI[rows] @ places.a_PRI[place].T) @ places.b_POR[place].T
    return added_NO


def _attention(
    module: nn.Module,
    query_1HND: Tensor,
    key_1KND: Tensor,
    value_1KND: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: _Run,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each new token to its own sequence's keys, up to its own; gives (1, N, H, D)."""
    if attention_mask is not None or softcap is not None or s_aux is not None or dropout:
        raise ValueError("its attention has a mask, a cap, sinks or dropout")
    layer: Any = module
    keys_PKD, values_PKD = paged.pool.keys_LPKD[layer.layer_idx], paged.pool.values_LPKD[layer.layer_idx]
    keys_PKD[paged.slots_N] = key_1KND[0].transpose(0, 1)
    values_PKD[paged.slots_N] = value_1KND[0].transpose(0, 1)
    if sliding_window is not None:
        paged.windows.add(sliding_window)
    if paged.is_one_each:
        padded_slots = paged.padded_slots
        at_1M = torch.arange(padded_slots.shape[1], device=padded_slots.device)[None]
        seen_SM = at_1M < paged.key_lengths[:, None]
        if sliding_window is not None:
            seen_SM &= at_1M >= paged.key_lengths[:, None] - sliding_window
        said_SH1D = scaled_dot_product_attention(
            query_1HND[0].transpose(0, 1)[:, :, None],
            keys_PKD[padded_slots].transpose(1, 2),
            values_PKD[padded_slots].transpose(1, 2),
            attn_mask=seen_SM[:, None, None],
            scale=scaling,
            enable_gqa=True,
        )
        return said_SH1D.permute(2, 0, 1, 3), None
    parts: list[Tensor] = []
    for (begin, end), slots_T in zip(pairwise(paged.bounds), paged.slots, strict=True):
        if sliding_window is not None and len(slots_T) > sliding_window + end - begin:
            slots_T = slots_T[-(sliding_window + end - begin) :]
        key, value = keys_PKD[slots_T].transpose(0, 1)[None], values_PKD[slots_T].transpose(0, 1)[None]
        parts.append(attended(query_1HND[:, :, begin:end], key, value, scaling, sliding_window))
    return torch.cat(parts, 2).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """What transformers asks for a mask: our attention needs none."""


def _tensor(numbers: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device)


def _unfit(model: PreTrainedModel, why: str) -> InvalidRequest:
    return InvalidRequest(f"Answers of a model of type {model.config.model_type!r} cannot be made side by side: {why}.")
