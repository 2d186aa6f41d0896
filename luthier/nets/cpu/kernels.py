"""The compiled pass: embedding, layers and output layer of a Llama-like model over the tokens of many sequences.

All threads of a crew run `work`. The pass is a row of phases, a phase a number of pieces; threads take piece after piece, and
go on when the last one is done. A piece is some outputs of a layer, or some tokens, or key heads of these: never a part of a
sum. So a number does not depend on how many threads there are, nor on which other tokens are in the pass.

What linear layers read and write lies in panels of WIDE tokens, feature by feature: those of one feature side by side, as one
or two vectors. Every sum goes through its inputs in turn, for all tokens of a panel at once. What attention reads and writes
lies token by token.

What a pass reads stands in its plan, an array of integers: sizes, and addresses of memory that its maker keeps alive.
Shapes: N tokens, E width of the model, H heads, K key heads, D width of a head, F width of the feed-forward layer, V
vocabulary, I inputs and O outputs of a linear layer, R an adapter's rank, L positions. Activations are floats in rows.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numba import njit

from luthier.nets.cpu import machine
from luthier.nets.cpu.machine import (
    FEW,
    LANES,
    MIX,
    OUTS_NARROW,
    OUTS_WIDE,
    TILE,
    WIDE,
    atomic_add,
    atomic_at,
    fetch,
    few,
    give_way,
    half_at,
    int_at,
    mix,
    number_at,
    outer,
    put_atomic,
    put_half,
    put_number,
    squares,
    stands_alone,
    tile,
    two_to,
    whole,
)
from luthier.nets.paged import batch as _batch
from luthier.nets.paged.batch import BLOCK

_BLOCK = BLOCK
_fast = {"reassoc", "contract", "nsz", "arcp"}
_inner = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_compiled = njit(**_inner, fastmath=_fast)
_exact = njit(**_inner, fastmath=False)  # said, or it would be as its first caller is

# A plan: sizes and what the model is made of
(LAYERS, WIDTH, HEADS, KEY_HEADS, HEAD, INNER, VOCABULARY, IS_HALF) = range(8)
(EMBEDDING, FIRST_LAYER, FINAL_NORM, OUTPUT, FLOATS, COSINES, SINES) = range(8, 15)
# and buffers of one pass: activations, and what the threads share
(STREAM, NORMED, ASKING, KEYED, VALUED, MIXED, GATED, RAISED) = range(15, 23)  # in panels
(QUERIES, KEYS, VALUES, THIN, THIN_STRIDE, SCORES, SCORES_STRIDE, OWN, OWN_STRIDE) = range(23, 32)  # token by token
(COUNTERS, OPEN, INSIDE) = range(32, 35)
# and the tokens, those of one adapter next to each other
(TOKENS, ROWS, RUNS, HAS_ADAPTERS, TABLE_STRIDE) = range(35, 40)
(IDS, POSITIONS, SLOTS, SEQUENCES, SEEN, TABLES, WANTED, STARTS, RUN_PLACES, LOGITS) = range(40, 50)
# and what is one piece: outputs of a layer, so many tokens, and of each sequence's only token whether all heads at once
(PIECE, TOKENS_AT_ONCE, ALL_HEADS) = range(50, 53)
PLAN = 53

# Floats of a plan
EPSILON, SCALE = range(2)

# A linear layer in a plan: the adapter's addresses are 0 where there is none, and so is the bias
(WEIGHT, BIAS, OUTPUTS, INPUTS, A, B, FACTOR, RANK) = range(8)
LINEAR = 8

# A layer of a plan: seven linear layers, then its own
(Q, K, V, O, GATE, UP, DOWN) = range(0, 7 * LINEAR, LINEAR)  # noqa: E741 - the field's name
(BEFORE_ATTENTION, BEFORE_INNER, QUERY_NORM, KEY_NORM, KEY_POOL, VALUE_POOL) = range(7 * LINEAR, 7 * LINEAR + 6)
LAYER = 64

PHASES_PER_LAYER = 12
COUNTER = 128
"""Bytes from one phase's counters to the next: pieces taken, and in a line of its own pieces done."""

TOGETHER = 8
"""Tokens in one piece, at most: each has scores of its own."""

_FEW_PANELS = 2  # through which some rows of weights go at once

OUTPUT_PIECE = 96
"""Outputs of the output layer in one piece."""

OWN_FLOATS = _FEW_PANELS * WIDE * OUTPUT_PIECE
"""That a thread needs for itself, at least."""

_STRIP = 320  # inputs that are summed before the next, at most: a panel's and the weights' stay in the first cache
_NEAR = 128  # features of a panel that stay in the first cache, whatever else is read
_PATIENCE = 4000  # looks at a counter before a thread gives way


@_compiled
def _taken(plan, phase):
    return atomic_add(int_at(plan, COUNTERS) + phase * COUNTER, 1)


@_compiled
def _did(plan, phase):
    atomic_add(int_at(plan, COUNTERS) + phase * COUNTER + COUNTER // 2, 1)


@_compiled
def _await(plan, phase, pieces):
    """Wait for the pieces that others took; who waits long lets others run on its core."""
    stands_alone()
    counter = int_at(plan, COUNTERS) + phase * COUNTER + COUNTER // 2
    turns = 0
    while atomic_at(counter) < pieces:
        turns += 1
        if turns > _PATIENCE:
            give_way()


@_compiled
def _bytes(is_half):
    return 2 if is_half else 4


_f = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f(1.44269504), _f(0.693359375), _f(-2.12194440e-4)
_E = (_f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3), _f(4.1665795894e-2), _f(1.6666665459e-1), _f(0.5))
_NO, _YES = np.int64(0), np.int64(1)  # of one type with what is computed, or a function is compiled for each
_LEAST, _MOST, _HALF, _ONE, _ZERO = _f(-87.0), _f(88.0), _f(0.5), _f(1), _f(0)


@_compiled
def _exponential(x):
    """e to the x, but for the last bit or two, in operations that go through vectors."""
    x = min(max(x, _LEAST), _MOST)
    n = whole(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E[0] * r + _E[1]) * r + _E[2]) * r + _E[3]) * r + _E[4]) * r + _E[5]
    return (p * r * r + r + _ONE) * two_to(n)


# Panels


@_compiled
def _width(tokens, n):
    """How many tokens the panel of token n has room for."""
    return LANES if tokens - n // WIDE * WIDE <= LANES else WIDE


@_compiled
def _panels(tokens):
    return (tokens + WIDE - 1) // WIDE


@_compiled
def _first(tokens, columns, n):
    """Where token n's first feature is, of so many; the next is `_width` further."""
    return n // WIDE * WIDE * columns + n % WIDE


@_compiled
def _embed(plan, panel):
    """The embeddings of a panel's tokens into the stream; zeros where there is no token."""
    stands_alone()
    width, tokens = int_at(plan, WIDTH), int_at(plan, TOKENS)
    step = _width(tokens, panel * WIDE)
    for lane in range(step):
        n = panel * WIDE + lane
        row = int_at(plan, STREAM) + _first(tokens, width, n) * 4
        if n >= tokens:
            for i in range(width):
                put_number(row, i * step, _ZERO)
            continue
        token = int_at(int_at(plan, IDS), n)
        if int_at(plan, IS_HALF):
            source = int_at(plan, EMBEDDING) + token * width * 2
            for i in range(width):
                put_number(row, i * step, half_at(source, i))
        else:
            source = int_at(plan, EMBEDDING) + token * width * 4
            for i in range(width):
                put_number(row, i * step, number_at(source, i))


@_compiled
def _norm_panel(plan, x, weight, y, step, worker):
    """y = x / root of its mean square * weight, for the tokens of one panel of so many features as the model is wide."""
    stands_alone()
    width, epsilon = int_at(plan, WIDTH), number_at(int_at(plan, FLOATS), EPSILON)
    factors = _own(plan, worker)
    squares(step // LANES - 1, x, width, factors)
    for lane in range(step):
        mean = number_at(factors, lane) / np.float32(width)
        put_number(factors, lane, _ONE / np.float32(math.sqrt(mean + epsilon)))
    for i in range(width):
        of_feature = number_at(weight, i)
        for lane in range(step):
            put_number(y, i * step + lane, number_at(x, i * step + lane) * number_at(factors, lane) * of_feature)


@_compiled
def _own(plan, worker):
    """The address of floats that are this thread's."""
    return int_at(plan, OWN) + worker * int_at(plan, OWN_STRIDE) * 4


@_compiled
def _pick(x, tokens, columns, n, y, first, last):
    """y = the features of token n from `first` up to `last`, next to each other."""
    stands_alone()
    source, step = x + _first(tokens, columns, n) * 4, _width(tokens, n)
    for i in range(first, last):
        put_number(y, i - first, number_at(source, i * step))


@_compiled
def _pick_all(x, tokens, columns, begin, end, y):
    """The rows of y from `begin` up to `end`, all features of these tokens; some features of all at a time, which are near."""
    for first in range(0, columns, _NEAR):
        last = min(columns, first + _NEAR)
        for n in range(begin, end):
            _pick(x, tokens, columns, n, y + (n * columns + first) * 4, first, last)


@_compiled
def _lay(x, tokens, columns, n, y, first, last):
    """The way back: the features from `first` on of token n in panels of y become those at x, next to each other."""
    stands_alone()
    target, step = y + _first(tokens, columns, n) * 4, _width(tokens, n)
    for i in range(first, last):
        put_number(target, i * step, number_at(x, i - first))


# Single tokens


@_compiled
def _norm(x, weight, y, width, epsilon):
    """y = x / root of its mean square * weight, one row of `width`."""
    stands_alone()
    total = _ZERO
    for i in range(width):
        total += number_at(x, i) * number_at(x, i)
    factor = _ONE / np.float32(math.sqrt(total / np.float32(width) + epsilon))
    for i in range(width):
        put_number(y, i, number_at(x, i) * factor * number_at(weight, i))


@_compiled
def _turn(row, cosines, sines, width, scale):
    """Rotary embedding of one head, in place, times `scale`."""
    half = width // 2
    for i in range(half):
        first, second = number_at(row, i), number_at(row, half + i)
        cosine, sine = number_at(cosines, i), number_at(sines, i)
        put_number(row, i, (first * cosine - second * sine) * scale)
        put_number(row, half + i, (second * cosine + first * sine) * scale)


@_compiled
def _place(plan, layer, n):
    """Norms and rotary embedding of token n's queries and keys; its keys and values into the pool."""
    stands_alone()
    heads, key_heads, width = int_at(plan, HEADS), int_at(plan, KEY_HEADS), int_at(plan, HEAD)
    position, slot = int_at(int_at(plan, POSITIONS), n), int_at(int_at(plan, SLOTS), n)
    cosines = int_at(plan, COSINES) + position * width * 2
    sines = int_at(plan, SINES) + position * width * 2
    epsilon, scale = number_at(int_at(plan, FLOATS), EPSILON), number_at(int_at(plan, FLOATS), SCALE)
    query_norm, key_norm = int_at(layer, QUERY_NORM), int_at(layer, KEY_NORM)
    size = key_heads * width
    queries = int_at(plan, QUERIES) + n * heads * width * 4
    keys = int_at(plan, KEYS) + n * size * 4
    values = int_at(plan, VALUES) + n * size * 4
    for h in range(heads):
        row = queries + h * width * 4
        if query_norm:
            _norm(row, query_norm, row, width, epsilon)
        _turn(row, cosines, sines, width, scale)
    for h in range(key_heads):
        row = keys + h * width * 4
        if key_norm:
            _norm(row, key_norm, row, width, epsilon)
        _turn(row, cosines, sines, width, _ONE)
    if int_at(plan, IS_HALF):
        key_slot, value_slot = int_at(layer, KEY_POOL) + slot * size * 2, int_at(layer, VALUE_POOL) + slot * size * 2
        for i in range(size):
            put_half(key_slot, i, number_at(keys, i))
            put_half(value_slot, i, number_at(values, i))
    else:
        key_slot, value_slot = int_at(layer, KEY_POOL) + slot * size * 4, int_at(layer, VALUE_POOL) + slot * size * 4
        for i in range(size):
            put_number(key_slot, i, number_at(keys, i))
            put_number(value_slot, i, number_at(values, i))


@_compiled
def _attend(plan, layer, begin, end, first, last, worker):
    """What the heads of the key heads from `first` up to `last` make of the keys that they see, for the tokens from `begin` up
    to `end`, all of one sequence.

    Keys and values of a block are near for all of these tokens. Those of one position lie next to each other for all heads:
    who takes all of them for one token reads memory in a row, and asks for a block while the one before is computed.
    """
    stands_alone()
    heads, key_heads, width = int_at(plan, HEADS), int_at(plan, KEY_HEADS), int_at(plan, HEAD)
    group, half = heads // key_heads, int_at(plan, IS_HALF)
    size = _bytes(half)
    seen = int_at(plan, SEEN)
    blocks = (int_at(seen, end - 1) + _BLOCK - 1) // _BLOCK  # the last one sees most
    table = int_at(plan, TABLES) + int_at(int_at(plan, SEQUENCES), begin) * int_at(plan, TABLE_STRIDE) * 8
    stride = int_at(plan, SCORES_STRIDE)
    scores = int_at(plan, SCORES) + worker * TOGETHER * heads * stride * 4
    apart = key_heads * width
    is_alone, share = end - begin == 1 and last - first == key_heads, _BLOCK * width * size
    for block in range(blocks):
        keys = int_at(layer, KEY_POOL) + int_at(table, block) * _BLOCK * apart * size
        following = int_at(layer, VALUE_POOL) + int_at(table, 0) * _BLOCK * apart * size
        if block + 1 < blocks:
            following = int_at(layer, KEY_POOL) + int_at(table, block + 1) * _BLOCK * apart * size
        for key_head in range(first, last):
            near, after = keys + key_head * width * size, (key_head + 1) * group
            ahead = following + key_head * share if is_alone else near
            for n in range(begin, end):
                count = min(_BLOCK, int_at(seen, n) - block * _BLOCK)
                if count <= 0:
                    continue
                for head in range(key_head * group, after, TILE):
                    rows, query = min(TILE, after - head), int_at(plan, QUERIES) + (n * heads + head) * width * 4
                    target = scores + (((n - begin) * heads + head) * stride + block * _BLOCK) * 4
                    fours = (count + 3) // 4
                    _products(rows, half, fours, near, apart, query, width, width, target, stride, ahead)
    mixed, columns = _own(plan, worker), heads * width
    for n in range(begin, end):
        for head in range(first * group, last * group):
            _soften(scores + ((n - begin) * heads + head) * stride * 4, int_at(seen, n))
        for i in range(first * group * width, last * group * width):
            put_number(mixed, (n - begin) * columns + i, _ZERO)
    wide = width // MIX * MIX
    for block in range(blocks):
        values = int_at(layer, VALUE_POOL) + int_at(table, block) * _BLOCK * apart * size
        following = int_at(layer, VALUE_POOL) + int_at(table, min(block + 1, blocks - 1)) * _BLOCK * apart * size
        for key_head in range(first, last):
            near, after = values + key_head * width * size, (key_head + 1) * group
            ahead = following + key_head * share if is_alone else near
            for n in range(begin, end):
                count = min(_BLOCK, int_at(seen, n) - block * _BLOCK)
                if count <= 0:
                    continue
                for head in range(key_head * group, after, TILE):
                    rows, out = min(TILE, after - head), mixed + ((n - begin) * columns + head * width) * 4
                    weights = scores + (((n - begin) * heads + head) * stride + block * _BLOCK) * 4
                    for d in range(0, wide, MIX):
                        v, later = near + d * size, ahead + d * _BLOCK * size
                        _mixed(rows, half, _YES, weights, stride, v, apart, count, out + d * 4, width, later)
                    for d in range(wide, width, 4):
                        v, later = near + d * size, ahead + d * _BLOCK * size
                        _mixed(rows, half, _NO, weights, stride, v, apart, count, out + d * 4, width, later)
    left, right = first * group * width, last * group * width
    for n in range(begin, end):
        row = mixed + ((n - begin) * columns + left) * 4
        _lay(row, int_at(plan, TOKENS), columns, n, int_at(plan, MIXED), left, right)


@_compiled
def _soften(scores, count):
    """Softmax of a row, in place."""
    stands_alone()
    top = number_at(scores, 0)
    for i in range(count):
        top = max(top, number_at(scores, i))
    total = _ZERO
    for i in range(count):
        weight = _exponential(number_at(scores, i) - top)
        put_number(scores, i, weight)
        total += weight
    factor = _ONE / total
    for i in range(count):
        put_number(scores, i, number_at(scores, i) * factor)


@_exact
def _products(rows, half, fours, w, w_stride, x, x_stride, count, y, y_stride, ahead):
    stands_alone()
    tile(rows, half, fours, w, w_stride, x, x_stride, count, y, y_stride, ahead)


@_exact
def _summed(outs, half, wide, w, w_stride, x, count, y, adds, ahead):
    stands_alone()
    outer(outs, half, wide, w, w_stride, x, count, y, adds, ahead)


@_exact
def _mixed(rows, half, wide, p, p_stride, v, v_stride, count, out, out_stride, ahead):
    stands_alone()
    mix(rows, half, wide, p, p_stride, v, v_stride, count, out, out_stride, ahead)


@_exact
def _summed_few(tokens, half, w, w_stride, x, count, y, adds, ahead):
    stands_alone()
    few(tokens, half, w, w_stride, x, count, y, adds, ahead)


# Linear layers


@_compiled
def _thin(plan, linear, x, t, run, worker):
    """t_NR = A x of one adapter, for the tokens that use it."""
    stands_alone()
    place, rank, inputs = int_at(int_at(plan, RUN_PLACES), run), int_at(linear, RANK), int_at(linear, INPUTS)
    if place < 0 or rank == 0:
        return
    half, stride = int_at(plan, IS_HALF), int_at(plan, THIN_STRIDE)
    tokens, row = int_at(plan, TOKENS), _own(plan, worker)
    a = int_at(linear, A) + place * rank * inputs * _bytes(half)
    end = int_at(int_at(plan, STARTS), run + 1)
    for n in range(int_at(int_at(plan, STARTS), run), end, TILE):
        rows, target = min(TILE, end - n), t + n * stride * 4
        for each in range(rows):
            _pick(x, tokens, inputs, n + each, row + each * inputs * 4, _NO, inputs)
        _products(rows, half, rank // 4, a, inputs, row, inputs, inputs, target, stride, a)


@_compiled
def _so_many(left, width):
    """How many of the outputs that are left go at once."""
    most, fewer, fewest = OUTS_WIDE if width == WIDE else OUTS_NARROW
    return most if left >= most else fewer if left >= fewer else fewest


@_compiled
def _linear(plan, linear, x, tokens, t, y, columns, first, start, end, worker):
    """y_NO = W x, B t of its adapter and the bias, for the outputs from `start` up to `end`; t is 0 where none is used.

    x and y are panels, those of y `columns` wide and without the outputs before `first`; bias and adapters want all of them.
    """
    stands_alone()
    inputs, half = int_at(linear, INPUTS), int_at(plan, IS_HALF)
    size = _bytes(half)
    weight, row = int_at(linear, WEIGHT), inputs * size
    strips = (inputs + _STRIP - 1) // _STRIP
    strip = ((inputs + strips - 1) // strips + 7) // 8 * 8
    if t:
        _fetch_adapters(plan, linear, start, end)
    # few panels: whole rows of weights one after the other, as they lie in memory; else as many as stay in the second cache
    in_a_row, are_few = tokens <= _FEW_PANELS * WIDE, tokens <= FEW
    at_once = LANES if are_few else OUTS_NARROW[0] if tokens <= LANES else OUTS_WIDE[0]
    group = at_once if in_a_row else end - start
    for some in range(start, end, group):
        last = min(some + group, end)
        for i in range(0, inputs, strip):
            count = min(strip, inputs - i)
            for n in range(0, tokens, WIDE):
                width = _width(tokens, n)
                source = x + (n * inputs + i * width) * 4
                o = some
                while o < last:
                    outs = _so_many(last - o, width)
                    takes_few = are_few and last - o >= LANES
                    if takes_few:
                        outs = LANES
                    w = weight + o * row + i * size
                    ahead = w  # later panels find them in a cache
                    if n == 0 and in_a_row:  # their next strip, or the next ones
                        ahead = w + strip * size if i + strip < inputs else w + outs * row - i * size
                    elif n == 0:
                        ahead = w + outs * row
                    target = y + (n * columns + (o - first) * width) * 4
                    if takes_few:
                        _summed_few(tokens, half, w, inputs, source, count, target, i, ahead)
                    else:
                        _summed(outs, half, width // LANES - 1, w, inputs, source, count, target, i, ahead)
                    o += outs
    if t and int_at(linear, RANK):
        _add_adapters(plan, linear, t, y, columns, start, end, worker)
    bias = int_at(linear, BIAS)
    if bias:
        for n in range(0, tokens, WIDE):
            width = _width(tokens, n)
            for o in range(start, end):
                target, added = y + (n * columns + o * width) * 4, number_at(bias, o)
                for lane in range(width):
                    put_number(target, lane, number_at(target, lane) + added)


@_compiled
def _fetch_all(address, size):
    """Ask for memory that is read next: it comes while other things are computed."""
    for at in range(0, size, 64):
        fetch(address + at)


@_compiled
def _fetch_adapters(plan, linear, start, end):
    """Ask for what `_add_adapters` will read."""
    rank, size = int_at(linear, RANK), _bytes(int_at(plan, IS_HALF))
    for run in range(int_at(plan, RUNS)):
        place = int_at(int_at(plan, RUN_PLACES), run)
        if place >= 0:
            b = int_at(linear, B) + (place * int_at(linear, OUTPUTS) + start) * rank * size
            _fetch_all(b, (end - start) * rank * size)


@_compiled
def _add_adapters(plan, linear, t, y, columns, start, end, worker):
    """y += B t for some outputs, each token by its own adapter; then the factor of a DoRA."""
    stands_alone()
    outputs, rank, half = int_at(linear, OUTPUTS), int_at(linear, RANK), int_at(plan, IS_HALF)
    stride, starts, factors = int_at(plan, THIN_STRIDE), int_at(plan, STARTS), int_at(linear, FACTOR)
    tokens, added, count = int_at(plan, TOKENS), _own(plan, worker), end - start
    for run in range(int_at(plan, RUNS)):
        place, last = int_at(int_at(plan, RUN_PLACES), run), int_at(starts, run + 1)
        if place < 0:
            continue
        b = int_at(linear, B) + (place * outputs + start) * rank * _bytes(half)
        for n in range(int_at(starts, run), last, TILE):
            rows = min(TILE, last - n)
            _products(rows, half, count // 4, b, rank, t + n * stride * 4, stride, rank, added, count, b)
            for each in range(rows):
                target, step = y + _first(tokens, columns, n + each) * 4, _width(tokens, n + each)
                for o in range(count):
                    place_of = (start + o) * step
                    both = number_at(target, place_of) + number_at(added, each * count + o)
                    if factors:
                        both *= number_at(factors, place * outputs + start + o)
                    put_number(target, place_of, both)


@_compiled
def _adapt(plan, phase, linear, count, x, worker):
    """The thin activations of up to three linear layers that read the same x, for every adapter of the pass."""
    stands_alone()
    runs = int_at(plan, RUNS)
    piece = _taken(plan, phase)
    while piece < count * runs:
        which = piece // runs
        _thin(plan, linear + which * LINEAR * 8, x, _thin_of(plan, which), piece % runs, worker)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, count * runs)


@_compiled
def _thin_of(plan, which):
    stands_alone()
    if int_at(plan, HAS_ADAPTERS) == 0:
        return _NO
    return int_at(plan, THIN) + which * int_at(plan, TOKENS) * int_at(plan, THIN_STRIDE) * 4


@_compiled
def _pieces(linear, piece):
    return (int_at(linear, OUTPUTS) + piece - 1) // piece


@_compiled
def _norms(plan, phase, weight, worker):
    """The stream's norm, panel by panel."""
    stands_alone()
    tokens, width = int_at(plan, TOKENS), int_at(plan, WIDTH)
    panel = _taken(plan, phase)
    while panel < _panels(tokens):
        begin = panel * WIDE * width * 4
        step = _width(tokens, panel * WIDE)
        _norm_panel(plan, int_at(plan, STREAM) + begin, weight, int_at(plan, NORMED) + begin, step, worker)
        _did(plan, phase)
        panel = _taken(plan, phase)
    _await(plan, phase, _panels(tokens))


# The pass


@_compiled
def _layer(plan, layer, phase, worker):
    """One layer: the stream goes in and out; returns the number of the next phase."""
    stands_alone()
    tokens, has_adapters = int_at(plan, TOKENS), int_at(plan, HAS_ADAPTERS)
    size = int_at(plan, PIECE)
    normed, mixed = int_at(plan, NORMED), int_at(plan, MIXED)
    at_once = int_at(plan, TOKENS_AT_ONCE)
    pieces = (tokens + at_once - 1) // at_once

    _norms(plan, phase, int_at(layer, BEFORE_ATTENTION), worker)
    phase += 1

    if has_adapters:
        _adapt(plan, phase, layer + Q * 8, np.int64(3), normed, worker)
        phase += 1
    q, k, v = layer + Q * 8, layer + K * 8, layer + V * 8
    of_q, of_k = _pieces(q, size), _pieces(k, size)
    parts = of_q + 2 * of_k
    piece = _taken(plan, phase)
    while piece < parts:
        if piece < of_q:
            which, linear, y, start = _NO, q, int_at(plan, ASKING), piece
        elif piece < of_q + of_k:
            which, linear, y, start = _YES, k, int_at(plan, KEYED), piece - of_q
        else:
            which, linear, y, start = np.int64(2), v, int_at(plan, VALUED), piece - of_q - of_k
        outputs = int_at(linear, OUTPUTS)
        end = min(outputs, (start + 1) * size)
        _linear(plan, linear, normed, tokens, _thin_of(plan, which), y, outputs, _NO, start * size, end, worker)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, parts)
    phase += 1

    piece = _taken(plan, phase)
    while piece < pieces:
        begin, end = piece * at_once, min(tokens, (piece + 1) * at_once)
        _pick_all(int_at(plan, ASKING), tokens, int_at(q, OUTPUTS), begin, end, int_at(plan, QUERIES))
        _pick_all(int_at(plan, KEYED), tokens, int_at(k, OUTPUTS), begin, end, int_at(plan, KEYS))
        _pick_all(int_at(plan, VALUED), tokens, int_at(v, OUTPUTS), begin, end, int_at(plan, VALUES))
        for n in range(begin, end):
            _place(plan, layer, n)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, pieces)
    phase += 1

    all_heads, key_heads, sequences = int_at(plan, ALL_HEADS), int_at(plan, KEY_HEADS), int_at(plan, SEQUENCES)
    parts = pieces * key_heads
    piece = _taken(plan, phase)
    while piece < parts:
        head, begin = piece // pieces, piece % pieces * at_once
        end = min(tokens, begin + at_once)
        while begin < end:
            after = begin + 1
            while after < end and int_at(sequences, after) == int_at(sequences, begin):
                after += 1
            if not all_heads or after - begin > 1:
                _attend(plan, layer, begin, after, head, head + 1, worker)
            elif head == 0:
                _attend(plan, layer, begin, after, _NO, key_heads, worker)
            begin = after
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, parts)
    phase += 1

    if has_adapters:
        _adapt(plan, phase, layer + O * 8, np.int64(1), mixed, worker)
        phase += 1
    _into_stream(plan, phase, layer + O * 8, mixed, worker)
    phase += 1

    _norms(plan, phase, int_at(layer, BEFORE_INNER), worker)
    phase += 1

    if has_adapters:
        _adapt(plan, phase, layer + GATE * 8, np.int64(2), normed, worker)
        phase += 1
    gate, up, inner = layer + GATE * 8, layer + UP * 8, int_at(plan, INNER)
    gated, raised = int_at(plan, GATED), int_at(plan, RAISED)
    parts = _pieces(gate, size)
    piece = _taken(plan, phase)
    while piece < parts:
        start, end = piece * size, min(inner, (piece + 1) * size)
        _linear(plan, gate, normed, tokens, _thin_of(plan, _NO), gated, inner, _NO, start, end, worker)
        _linear(plan, up, normed, tokens, _thin_of(plan, _YES), raised, inner, _NO, start, end, worker)
        for n in range(0, tokens, WIDE):
            step = _width(tokens, n)
            begin = (n * inner + start * step) * 4
            _gate(gated + begin, raised + begin, (end - start) * step)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, parts)
    phase += 1

    if has_adapters:
        _adapt(plan, phase, layer + DOWN * 8, np.int64(1), gated, worker)
        phase += 1
    _into_stream(plan, phase, layer + DOWN * 8, gated, worker)
    return phase + 1


@_compiled
def _gate(gated, raised, count):
    """gated = silu(gated) * raised."""
    stands_alone()
    for i in range(count):
        x = number_at(gated, i)
        put_number(gated, i, x / (_ONE + _exponential(-x)) * number_at(raised, i))


@_compiled
def _into_stream(plan, phase, linear, x, worker):
    """stream += a linear layer of x, whose outputs go through `normed`: nobody reads that at the time."""
    stands_alone()
    tokens, width, stream, y = int_at(plan, TOKENS), int_at(plan, WIDTH), int_at(plan, STREAM), int_at(plan, NORMED)
    size = int_at(plan, PIECE)
    pieces = _pieces(linear, size)
    piece = _taken(plan, phase)
    while piece < pieces:
        start, end = piece * size, min(width, (piece + 1) * size)
        _linear(plan, linear, x, tokens, _thin_of(plan, _NO), y, width, _NO, start, end, worker)
        for n in range(0, tokens, WIDE):
            step = _width(tokens, n)
            begin = n * width + start * step
            for i in range(begin, begin + (end - start) * step):
                put_number(stream, i, number_at(stream, i) + number_at(y, i))
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, pieces)


@_compiled
def _finish(plan, panel, worker):
    """The norm of a panel of those tokens whose logits are wanted."""
    stands_alone()
    rows, tokens, width = int_at(plan, ROWS), int_at(plan, TOKENS), int_at(plan, WIDTH)
    step, normed = _width(rows, panel * WIDE), int_at(plan, NORMED) + panel * WIDE * width * 4
    for lane in range(step):
        n = int_at(int_at(plan, WANTED), min(panel * WIDE + lane, rows - 1))
        source, apart = int_at(plan, STREAM) + _first(tokens, width, n) * 4, _width(tokens, n)
        for i in range(width):
            put_number(normed, i * step + lane, number_at(source, i * apart))
    _norm_panel(plan, normed, int_at(plan, FINAL_NORM), normed, step, worker)


@_compiled
def _say(plan, piece, worker):
    """Some logits of all rows that are wanted."""
    stands_alone()
    output, rows, outputs = int_at(plan, OUTPUT), int_at(plan, ROWS), int_at(plan, VOCABULARY)
    start, end = piece * OUTPUT_PIECE, min(outputs, (piece + 1) * OUTPUT_PIECE)
    width, own = int_at(plan, WIDTH), _own(plan, worker)
    for n in range(0, rows, _FEW_PANELS * WIDE):
        count, normed = min(_FEW_PANELS * WIDE, rows - n), int_at(plan, NORMED) + n * width * 4
        _linear(plan, output, normed, count, _NO, own, OUTPUT_PIECE, start, start, end, worker)
        for row in range(count):
            target = int_at(plan, LOGITS) + (n + row) * outputs * 4
            source, step = own + _first(count, OUTPUT_PIECE, row) * 4, _width(count, row)
            for o in range(start, end):
                put_number(target, o, number_at(source, (o - start) * step))


@_compiled
def _pass(plan, worker):
    tokens, rows = int_at(plan, TOKENS), int_at(plan, ROWS)
    phase = _NO
    piece = _taken(plan, phase)
    while piece < _panels(tokens):
        _embed(plan, piece)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, _panels(tokens))
    phase += 1

    for number in range(int_at(plan, LAYERS)):
        phase = _layer(plan, int_at(plan, FIRST_LAYER) + number * LAYER * 8, phase, worker)

    piece = _taken(plan, phase)
    while piece < _panels(rows):
        _finish(plan, piece, worker)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, _panels(rows))
    phase += 1

    pieces = _pieces(int_at(plan, OUTPUT), OUTPUT_PIECE)
    piece = _taken(plan, phase)
    while piece < pieces:
        _say(plan, piece, worker)
        _did(plan, phase)
        piece = _taken(plan, phase)
    _await(plan, phase, pieces)


@njit(nogil=True)
def open_pass(plan):
    """Open a pass, before the others are called: one who came first would find nothing to do. `plan` is a plan's address."""
    put_atomic(plan + OPEN * 8, 1)


@njit(nogil=True)
def work(plan, worker):
    """Work on a pass until it is done; `plan` is a plan's address, `worker` this thread's number in its crew.

    Worker 0 returns when the pass is done and nobody is inside any more. Another returns at once where none is open. No two
    threads may come with one number.
    """
    if worker == 0:
        _pass(plan, worker)
        put_atomic(plan + OPEN * 8, 0)
        turns = 0
        while atomic_at(plan + INSIDE * 8) > 0:
            turns += 1
            if turns > _PATIENCE:
                give_way()
    else:
        atomic_add(plan + INSIDE * 8, 1)
        if atomic_at(plan + OPEN * 8) != 0:
            _pass(plan, worker)
        atomic_add(plan + INSIDE * 8, -1)


def ready() -> None:
    """Have these ready to be called: read from where compiled code is kept, or compiled, which takes seconds."""
    for function, takes in ((open_pass, "void(int64)"), (work, "void(int64, int64)")):
        machine.kept(function, [Path(__file__), Path(machine.__file__), Path(_batch.__file__)])
        function.compile(takes)
