"""A compiled pass over many sequences for models of the Llama shape on a processor, where the machine and the model fit."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core import logs
from luthier.nets.paged.bank import Bank
from luthier.nets.paged.batch import BLOCK, PagedBatch
from luthier.nets.paged.pool import Pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logs.get("nets.cpu")

_MODELS = ("llama", "mistral", "qwen2", "qwen3")
_ROTARY = ("default", "linear", "llama3")
_LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_LINEAR += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_MOST = 512
_ROWS_OF_OUTPUT = 16384  # of the output layer, widened at a time
_PROBE = 21  # tokens of a probe: the last of them alone
_PROBED = 200_000_000  # weights that a probe goes through at most, the output layer aside


def decoder_of(model: PreTrainedModel, pool: Pool, bank: Bank, *, threads: int) -> Decoder | None:
    """A decoder of that model, or None where it cannot be: the log says why.

    `model` stays where it is: its weights are read in place, so they must not be moved. `pool` has the model's dtype, and
    `bank` belongs to the model. A short probe must come out as from the library itself in fp32.
    """
    reason = _misfit(model, pool)
    if reason is None:
        decoder = Decoder(model, pool, bank, threads=threads)
        error = _error(model, threads)
        allowed = 1e-4 if pool.keys_LPKD.dtype == torch.float32 else 0.02  # keys and values are rounded
        if error <= allowed:
            return decoder
        decoder.close()
        reason = f"a probe differs from the library's answer by {error:.2g} of its size, more than {allowed:g}"
    log.info("no compiled pass for this model", reason=reason)
    return None


def _misfit(model: PreTrainedModel, pool: Pool) -> str | None:
    """Why the compiled pass cannot compute this model, or None."""
    try:
        from luthier.nets.cpu import machine
    except ImportError as problem:
        return f"numba is not there: {problem}"
    config: Any = model.config
    if not machine.FITS:
        return "not for this processor"
    if config.model_type not in _MODELS:
        return f"not for models of the type {config.model_type}"
    if config.hidden_act != "silu":
        return f"not for the activation {config.hidden_act}"
    rotary = config.rope_parameters
    if rotary.get("rope_type", "default") not in _ROTARY or rotary.get("partial_rotary_factor", 1) != 1:
        return f"not for positions of the type {rotary}"
    if _slides(config):
        return "not for a sliding window"
    dtype = pool.keys_LPKD.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        return f"not for {dtype}"
    wrong = {name for name, weight in model.named_parameters() if weight.dtype != dtype or weight.device.type != "cpu"}
    if wrong:
        return f"weights that are not {dtype} on the processor, as {min(wrong)}"
    for layer in _decoder(model).layers:
        for name in _LINEAR:
            linear = layer.get_submodule(name)
            if type(linear) is not nn.Linear or not linear.weight.is_contiguous():
                return f"not for the layer {name}, a {type(linear).__name__}"
            if linear.in_features % 4 or linear.out_features % 4:
                return f"not for a layer of {linear.in_features} inputs and {linear.out_features} outputs"
    if type(model.lm_head) is not nn.Linear or model.lm_head.bias is not None or config.vocab_size < 4:
        return "not for such an output layer"
    if pool.keys_LPKD.shape[-1] % 4:
        return f"not for heads of width {pool.keys_LPKD.shape[-1]}"
    return None


def _slides(config: Any) -> bool:
    """Whether some layer sees the last tokens only, and fewer than the model has positions for."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None or (types is not None and "sliding_attention" not in types):
        return False
    return window < config.max_position_embeddings


def _decoder(model: PreTrainedModel) -> Any:
    return model.model


def _error(model: PreTrainedModel, threads: int) -> float:
    """How far the logits of a probe are from the library's, relative to their size, through as many layers as take no second."""
    base: Any = _decoder(model)
    of_a_layer = sum(weight.numel() for weight in base.layers[0].parameters())
    layers = max(1, min(len(base.layers), _PROBED // of_a_layer))
    ids_N = np.arange(_PROBE, dtype=np.int64) * 7919 % model.config.vocab_size
    attention = base.layers[0].self_attn
    dtype = attention.k_proj.weight.dtype
    heads = attention.k_proj.out_features // attention.head_dim
    pool = Pool.of(
        layers=layers, heads=heads, width=attention.head_dim, blocks=3, dtype=dtype, device=torch.device("cpu")
    )
    decoder = Decoder(model, pool, Bank(model, 1), threads=threads, layers=layers)
    tables_SB = np.array([[2, 0]])
    slots_N = tables_SB[0, np.arange(_PROBE) // BLOCK] * BLOCK + np.arange(_PROBE) % BLOCK
    ours = []
    for first, last in ((0, _PROBE - 1), (_PROBE - 1, _PROBE)):
        count = last - first
        batch = PagedBatch(
            ids_N=ids_N[first:last],
            positions_N=np.arange(first, last),
            slots_N=slots_N[first:last],
            bounds=np.array([0, count]),
            lengths_S=np.array([last]),
            tables_SB=tables_SB,
            adapters_S=np.array([-1]),
            rows_R=np.arange(count),
        )
        ours.append(decoder.logits(batch))
    decoder.close()
    ours_NV = torch.cat(ours)
    theirs_NV = _library_logits(model, torch.from_numpy(ids_N), layers)
    return float((ours_NV - theirs_NV).norm() / theirs_NV.norm())


def _library_logits(model: PreTrainedModel, ids_N: Tensor, layers: int) -> Tensor:
    """The library's own modules over one sequence, through its first layers and out, in fp32 whatever the weights are."""
    base, config = _decoder(model), model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"  # the modules ask for it at every call
    try:
        with torch.inference_mode():
            positions_1N = torch.arange(len(ids_N))[None]
            hidden_1NE = base.embed_tokens(ids_N[None]).float()
            turned = base.rotary_emb(hidden_1NE, positions_1N)
            mask_11NN = torch.full((1, 1, len(ids_N), len(ids_N)), torch.finfo(torch.float32).min).triu(1)
            for layer in base.layers[:layers]:
                hidden_1NE = _precise(layer)(hidden_1NE, attention_mask=mask_11NN, position_embeddings=turned)
            hidden_NE = _precise(base.norm)(hidden_1NE)[0]
            parts = model.lm_head.weight.split(_ROWS_OF_OUTPUT)
            return torch.cat([hidden_NE @ part_VE.T.float() for part_VE in parts], 1)
    finally:
        config._attn_implementation = before


def _piece(width: int, threads: int) -> int:
    """How many outputs of a layer are one piece: of a layer as wide as the model three for each thread, as long as they are worth
    a piece and their weights stay in the second cache.
    """
    return min(max(width // (3 * threads), 32), 96) // 4 * 4


def _precise(module: nn.Module) -> nn.Module:
    """The same in fp32: itself, or a copy."""
    is_precise = all(weight.dtype == torch.float32 for weight in module.parameters())
    return module if is_precise else copy.deepcopy(module).float()


class Decoder:
    """Passes over a pool's sequences; one thread at a time may ask. See `decoder_of`."""

    most = _MOST
    """Tokens that a pass may have."""

    def __init__(
        self, model: PreTrainedModel, pool: Pool, bank: Bank, *, threads: int, layers: int | None = None
    ) -> None:
        """The first `layers` of the model, None for all of them."""
        from luthier.nets.cpu import kernels
        from luthier.nets.cpu.crew import Crew, Pace

        kernels.ready()
        self._kernels = kernels
        self._model, self._pool, self._bank = model, pool, bank
        self._threads = threads
        self._kept: dict[Any, Any] = {}
        """Arrays and tensors whose addresses stand in the plan."""
        self._plan = np.zeros(kernels.PLAN, np.int64)
        self._layers = self._describe(layers or len(_decoder(model).layers))
        numbers = range(len(_decoder(model).layers))
        self._adaptable = {f"model.layers.{number}.{name}" for number in numbers for name in _LINEAR}
        self._version = -1
        self._positions = 0
        self._reach(min(model.config.max_position_embeddings, pool.blocks * BLOCK))
        address = self._plan.ctypes.data
        self._pace = Pace()
        self._crew = Crew(lambda worker: kernels.work(address, worker), threads - 1)

    def logits(self, batch: PagedBatch) -> Tensor:
        """The logits (R, V), floats, of the tokens wanted; the batch's keys and values are in the pool afterwards.

        A row depends on its own sequence and adapter alone, bit by bit. Raises ValueError for more tokens than `most`.
        """
        tokens = len(batch.ids_N)
        if tokens > self.most:
            raise ValueError(f"A pass may have {self.most} tokens, got {tokens}.")
        if self._bank.version != self._version:
            self._read_bank()
        self._reach(int(batch.positions_N.max()) + 1)
        logits_RV = self._fill(batch)
        is_shared = self._threads > 1 and self._pace.is_shared(tokens)
        began, had = time.perf_counter(), self._crew.seconds() if is_shared else []
        self._kernels.open_pass(self._plan.ctypes.data)
        if is_shared:
            self._crew.call()
        self._kernels.work(self._plan.ctypes.data, 0)
        if self._threads > 1:
            seconds, has = time.perf_counter() - began, self._crew.seconds() if had else []
            given = min((after - before for before, after in zip(had, has, strict=True)), default=0.0) / seconds
            self._pace.took(tokens, is_shared, seconds, given)
        return logits_RV

    def knows(self, bank: Bank) -> bool:
        """Whether every layer that adapters have changed so far is one that a compiled pass changes too."""
        return bank.layers.keys() <= self._adaptable

    def close(self) -> None:
        """Let the threads go; may be called again."""
        self._crew.close()

    # What the plan says

    def _keep(self, name: Any, what: Any) -> int:
        """The address of a tensor or an array that lives as long as this, or until another comes under its name."""
        self._kept[name] = what
        return what.data_ptr() if isinstance(what, Tensor) else what.ctypes.data

    def _numbers(self, name: Any, weight: Tensor | None) -> int:
        """The address of a small weight as floats, 0 without one."""
        return 0 if weight is None else self._keep(name, weight.detach().float().contiguous())

    def _zeros(self, name: str, *shape: int) -> int:
        """The address of floats of this shape: pages that nobody has touched take no memory."""
        return self._keep(name, np.zeros(shape, np.float32))

    def _describe(self, count: int) -> np.ndarray:
        """Write sizes, weights and buffers into the plan, and return the table of its layers."""
        k, plan, pool = self._kernels, self._plan, self._pool
        base, config = _decoder(self._model), self._model.config
        _, _, key_heads, head = pool.keys_LPKD.shape
        first = base.layers[0]
        heads = first.self_attn.q_proj.out_features // head
        inner = first.mlp.gate_proj.out_features
        width = config.hidden_size
        half = pool.keys_LPKD.dtype != torch.float32
        plan[[k.LAYERS, k.WIDTH, k.HEADS, k.KEY_HEADS]] = count, width, heads, key_heads
        plan[[k.HEAD, k.INNER, k.VOCABULARY, k.IS_HALF]] = head, inner, self._model.lm_head.out_features, half
        plan[k.PIECE] = _piece(width, self._threads)
        plan[k.EMBEDDING] = self._keep("embedding", base.embed_tokens.weight.detach())
        plan[k.FINAL_NORM] = self._numbers("norm", base.norm.weight)
        output = np.zeros(k.LINEAR, np.int64)
        self._describe_linear(output, self._model.lm_head)
        plan[k.OUTPUT] = self._keep("output", output)
        plan[k.FLOATS] = self._keep("floats", np.array([config.rms_norm_eps, head**-0.5], np.float32))

        layers = np.zeros((count, k.LAYER), np.int64)
        for number in range(count):
            row, layer = layers[number], base.layers[number]
            for place, name in enumerate(_LINEAR):
                linear = layer.get_submodule(name)
                self._describe_linear(row[place * k.LINEAR : (place + 1) * k.LINEAR], linear)
            norms = {
                k.BEFORE_ATTENTION: layer.input_layernorm,
                k.BEFORE_INNER: layer.post_attention_layernorm,
                k.QUERY_NORM: getattr(layer.self_attn, "q_norm", None),
                k.KEY_NORM: getattr(layer.self_attn, "k_norm", None),
            }
            for field, norm in norms.items():
                row[field] = self._numbers((number, field), norm.weight if norm is not None else None)
            row[k.KEY_POOL] = pool.keys_LPKD[number].data_ptr()
            row[k.VALUE_POOL] = pool.values_LPKD[number].data_ptr()
        plan[k.FIRST_LAYER] = self._keep("layers", layers)

        most = self.most
        for field, name, columns in (
            (k.STREAM, "stream", width),
            (k.NORMED, "normed", width),
            (k.ASKING, "asking", heads * head),
            (k.KEYED, "keyed", key_heads * head),
            (k.VALUED, "valued", key_heads * head),
            (k.MIXED, "mixed", heads * head),
            (k.GATED, "gated", inner),
            (k.RAISED, "raised", inner),
            (k.QUERIES, "queries", heads * head),
            (k.KEYS, "keys", key_heads * head),
            (k.VALUES, "values", key_heads * head),
        ):
            plan[field] = self._zeros(name, most, columns)
        plan[k.OWN_STRIDE] = own = max(k.TOGETHER * max(width, heads * head, inner), k.OWN_FLOATS)
        plan[k.OWN] = self._zeros("own", self._threads, own)
        phases = count * k.PHASES_PER_LAYER + 3
        plan[k.COUNTERS] = self._keep("counters", np.zeros((phases, k.COUNTER // 8), np.int64))
        return layers

    def _describe_linear(self, row: np.ndarray, linear: nn.Linear) -> None:
        k = self._kernels
        row[k.WEIGHT] = self._keep(linear, linear.weight.detach())
        row[k.BIAS] = self._numbers((linear, "bias"), linear.bias)
        row[k.OUTPUTS], row[k.INPUTS] = linear.out_features, linear.in_features

    def _read_bank(self) -> None:
        """Where the adapters lie now: the bank may have made room for them elsewhere."""
        k, rank = self._kernels, 0
        if not self.knows(self._bank):
            raise ValueError(
                f"A compiled pass has no place for an adapter of {min(self._bank.layers.keys() - self._adaptable)}."
            )
        for number, row in enumerate(self._layers):
            for place, name in enumerate(_LINEAR):
                linear = row[place * k.LINEAR : (place + 1) * k.LINEAR]
                places = self._bank.layers.get(f"model.layers.{number}.{name}")
                if places is None:
                    linear[[k.A, k.B, k.FACTOR, k.RANK]] = 0
                    for part in ("a", "b", "factor"):
                        self._kept.pop((number, place, part), None)
                    continue
                linear[k.A] = self._keep((number, place, "a"), places.a_PRI)
                linear[k.B] = self._keep((number, place, "b"), places.b_POR)
                factor = places.factor_PO
                linear[k.FACTOR] = 0 if factor is None else self._keep((number, place, "factor"), factor)
                linear[k.RANK] = places.rank
                rank = max(rank, places.rank)
        self._plan[k.THIN_STRIDE] = rank
        self._plan[k.THIN] = self._zeros("thin", 3, self.most, rank)
        self._version = self._bank.version

    def _reach(self, positions: int) -> None:
        """Have cosines and sines for so many positions, from the model's own module."""
        if positions <= self._positions:
            return
        positions = max(positions, 2 * self._positions)
        width = int(self._plan[self._kernels.HEAD])
        ids_1L = torch.arange(positions)[None]
        with torch.inference_mode():
            both = _decoder(self._model).rotary_emb(torch.zeros(1, dtype=torch.float32), ids_1L)
        for field, name, table_1LD in zip(
            (self._kernels.COSINES, self._kernels.SINES), ("cos", "sin"), both, strict=True
        ):
            self._plan[field] = self._keep(name, table_1LD[0, :, : width // 2].contiguous())
        self._positions = positions

    def _fill(self, batch: PagedBatch) -> Tensor:
        """Write the tokens into the plan, those of one adapter next to each other; returns where the logits will be."""
        k, plan = self._kernels, self._plan
        tokens, rows = len(batch.ids_N), len(batch.rows_R)
        news_S = np.diff(batch.bounds)
        sequences_N = np.repeat(np.arange(batch.sequences), news_S)
        seen_N = batch.lengths_S[sequences_N] - batch.bounds[sequences_N + 1] + np.arange(tokens) + 1
        adapters_N = batch.adapters_S[sequences_N]
        order_N = np.argsort(adapters_N, kind="stable")
        sorted_N = adapters_N[order_N]
        starts = np.flatnonzero(np.diff(sorted_N, prepend=-2, append=-2))
        where_N = np.empty_like(order_N)
        where_N[order_N] = np.arange(tokens)
        for field, name, numbers in (
            (k.IDS, "ids", batch.ids_N[order_N]),
            (k.POSITIONS, "positions", batch.positions_N[order_N]),
            (k.SLOTS, "slots", batch.slots_N[order_N]),
            (k.SEQUENCES, "sequences", sequences_N[order_N]),
            (k.SEEN, "seen", seen_N[order_N]),
            (k.TABLES, "tables", batch.tables_SB),
            (k.WANTED, "wanted", where_N[batch.rows_R]),
            (k.STARTS, "starts", starts),
            (k.RUN_PLACES, "places", sorted_N[starts[:-1]]),
        ):
            plan[field] = self._keep(name, np.ascontiguousarray(numbers, np.int64))
        has_adapters = bool(self._plan[k.THIN_STRIDE]) and bool(sorted_N[-1] >= 0)
        plan[[k.TOKENS, k.ROWS, k.RUNS, k.HAS_ADAPTERS]] = tokens, rows, len(starts) - 1, has_adapters
        plan[k.TOKENS_AT_ONCE] = min(max(tokens // (8 * self._threads), 1), k.TOGETHER)
        # Heads of a token that is alone are read in a row; of others, one head's keys are still near for the next token.
        plan[k.ALL_HEADS] = np.count_nonzero(news_S == 1) >= 4 * self._threads
        plan[k.TABLE_STRIDE] = batch.tables_SB.shape[1]
        longest = -(-int(seen_N.max()) // BLOCK) * BLOCK
        if longest > plan[k.SCORES_STRIDE]:
            plan[k.SCORES_STRIDE] = 2 * longest
            plan[k.SCORES] = self._zeros("scores", self._threads, k.TOGETHER, int(plan[k.HEADS]), 2 * longest)
        self._kept["counters"].fill(0)
        logits_RV = torch.empty(rows, int(plan[k.VOCABULARY]), dtype=torch.float32)
        plan[k.LOGITS] = logits_RV.data_ptr()
        return logits_RV
