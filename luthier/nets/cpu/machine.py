"""Words of the machine that numba lacks: memory by address, tiles of vectors, atomics; and where compiled code is kept.

Memory is reached by a base address and an index, never through arrays: their checks keep loops from becoming vectors. Floats
are 32 bits wide; a "half" is a bfloat16, widened exactly when read and rounded to the nearest when written.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.extending import intrinsic

from luthier.core import logs

log = logs.get("nets.cpu")

FEATURES: dict[str, bool] = dict(llvm.get_host_cpu_features())
LANES = 16 if FEATURES.get("avx512f") else 8
"""Floats in a vector: what one register holds, two of them on ARM."""
TILE = 6 if FEATURES.get("avx512f") or FEATURES.get("neon") else 3
"""Rows of activations that meet four rows of weights in registers: 12 sums where there are 16 registers, 24 where 32."""
WIDE = 2 * LANES
"""Tokens of a panel: activations of so many lie side by side, feature by feature; of LANES or fewer that are left, LANES."""
FITS = llvm.get_process_triple().startswith(("x86_64", "aarch64", "arm64")) and sys.byteorder == "little"

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INT, _FLOAT = types.int64, types.float32
_word: Any = intrinsic  # what it makes is called without the first argument, which checkers do not know
_Locator: Any = _CacheLocator


# Memory by address


def _pointer(builder: Any, base: Any, index: Any, kind: ir.Type) -> Any:
    return builder.gep(builder.inttoptr(base, kind.as_pointer()), [index])


def _widened(builder: Any, bits: Any, shape: Any) -> Any:
    """bfloat16s, as integers, to floats; `shape` makes a type the type of one of them or of a vector of them."""
    wide = builder.zext(bits, shape(_I32))
    sixteen = ir.Constant(shape(_I32), 16 if shape(_I32) == _I32 else [16] * shape(_I32).count)
    return builder.bitcast(builder.shl(wide, sixteen), shape(_F32))


@_word
def int_at(typingctx: Any, base: Any, index: Any) -> Any:
    """The 64-bit integer at place `index` from the address `base`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], args[1], _I64))

    return _INT(_INT, _INT), code


@_word
def number_at(typingctx: Any, base: Any, index: Any) -> Any:
    """The float at place `index` from the address `base`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], args[1], _F32))

    return _FLOAT(_INT, _INT), code


@_word
def half_at(typingctx: Any, base: Any, index: Any) -> Any:
    """The half at place `index` from the address `base`, as a float."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _widened(builder, builder.load(_pointer(builder, args[0], args[1], _I16)), lambda kind: kind)

    return _FLOAT(_INT, _INT), code


@_word
def put_number(typingctx: Any, base: Any, index: Any, number: Any) -> Any:
    """Write a float to place `index` from the address `base`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(builder, args[0], args[1], _F32))
        return context.get_dummy_value()

    return types.void(_INT, _INT, _FLOAT), code


@_word
def put_half(typingctx: Any, base: Any, index: Any, number: Any) -> Any:
    """Write a float as a half: the nearest one, of two the even one, as torch rounds."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[2], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), odd), _I32(16))
        no_number = builder.fcmp_unordered("uno", args[2], args[2])
        rounded = builder.select(no_number, _I32(0x7FC0), rounded)
        builder.store(builder.trunc(rounded, _I16), _pointer(builder, args[0], args[1], _I16))
        return context.get_dummy_value()

    return types.void(_INT, _INT, _FLOAT), code


def _prefetch(builder: Any, address: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [address, _I32(0), _I32(3), _I32(1)])


@_word
def fetch(typingctx: Any, address: Any) -> Any:
    """Ask for the line at an address, to be near when it is read."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(_INT), code


# Numbers


@_word
def whole(typingctx: Any, number: Any) -> Any:
    """The largest whole number not above a float, as a float."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_F32, [_F32])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.floor.f32"), args)

    return _FLOAT(_FLOAT), code


@_word
def two_to(typingctx: Any, exponent: Any) -> Any:
    """2 to a whole float from -126 to 127."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], _I32), _I32(127))
        return builder.bitcast(builder.shl(biased, _I32(23)), _F32)

    return _FLOAT(_FLOAT), code


# What threads share


@_word
def atomic_add(typingctx: Any, address: Any, number: Any) -> Any:
    """Add to the integer at an address, and return what it was."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return _INT(_INT, _INT), code


@_word
def atomic_at(typingctx: Any, address: Any) -> Any:
    """The integer at an address as other threads left it, with all that they wrote before."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "seq_cst", 8)

    return _INT(_INT), code


@_word
def put_atomic(typingctx: Any, address: Any, number: Any) -> Any:
    """Write an integer for other threads, after all that was written before."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], _I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(_INT, _INT), code


@_word
def stands_alone(typingctx: Any) -> Any:
    """Have the function that says this compiled once, not into each of its callers: that would take a minute."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), code


give_way = types.ExternalFunction("sched_yield", types.int32())
"""Let another thread of this core go first."""


# Tiles: a few rows of weights and a few rows of activations, their sums in registers


def _lanes(builder: Any, pointer: Any, lanes: int, is_half: bool) -> Any:
    """`lanes` numbers as floats in a vector of LANES, zeros behind them."""
    kind = ir.VectorType(_I16 if is_half else _F32, lanes)
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=2 if is_half else 4)
    if is_half:
        loaded = _widened(builder, loaded, lambda each: ir.VectorType(each, lanes))
    if lanes == LANES:
        return loaded
    places = [*range(lanes), *[lanes] * (LANES - lanes)]
    return builder.shuffle_vector(loaded, ir.Constant(loaded.type, [0.0] * lanes), _places(places))


def _places(places: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_I32, len(places)), places)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = a.type
    name = f"llvm.fma.v{kind.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def _sums_of_four(builder: Any, vectors: list[Any]) -> Any:
    """The sums of four vectors of LANES, as one vector of four."""
    groups = range(0, LANES, 4)

    def both(a: Any, b: Any, left: list[int], right: list[int]) -> Any:
        sides = [builder.shuffle_vector(a, b, _places([g + p for g in groups for p in side])) for side in (left, right)]
        return builder.fadd(*sides)

    low, high = [0, LANES, 1, LANES + 1], [2, LANES + 2, 3, LANES + 3]
    a, b, c, d = vectors
    first, second = both(a, b, low, high), both(c, d, low, high)
    total = both(first, second, [0, 1, LANES, LANES + 1], [2, 3, LANES + 2, LANES + 3])
    while total.type.count > 4:
        half = total.type.count // 2
        total = builder.fadd(
            builder.shuffle_vector(total, total, _places([*range(half)])),
            builder.shuffle_vector(total, total, _places([*range(half, 2 * half)])),
        )
    return total


@_word
def outer(
    typingctx: Any,
    outs: Any,
    half: Any,
    wide: Any,
    w: Any,
    w_stride: Any,
    x: Any,
    count: Any,
    y: Any,
    adds: Any,
    ahead: Any,
) -> Any:
    """y[o, n] (+)= sum of w[o, i] x[i, n] over i in turn, for the tokens n of one panel: WIDE where `wide` is 1, else LANES.

    `outs` is one of OUTS_WIDE or OUTS_NARROW; there are `count` of i, a multiple of 4. Rows of x and y are as long as the
    panel is wide, those of w `w_stride` numbers, halves where `half` is 1. Meanwhile rows of w from the address `ahead` on are
    asked for, which are read next.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        outs, half, wide, *rest = args
        for is_wide, sizes in ((True, OUTS_WIDE), (False, OUTS_NARROW)):
            for is_half in (False, True):
                is_kind = builder.and_(
                    builder.icmp_signed("==", wide, _I64(int(is_wide))),
                    builder.icmp_signed("==", half, _I64(int(is_half))),
                )
                with builder.if_then(is_kind):
                    for size in sizes:
                        with builder.if_then(builder.icmp_signed("==", outs, _I64(size))):
                            _outer(builder, size, 2 if is_wide else 1, is_half, *rest)
        return context.get_dummy_value()

    return types.void(*[_INT] * 10), code


OUTS_WIDE, OUTS_NARROW = (6, 2, 1), (8, 4, 1)
"""Outputs that `outer` takes at once: with their sums, 12 or 8 vectors, and what is read all registers are used."""


@_word
def few(
    typingctx: Any,
    tokens: Any,
    half: Any,
    w: Any,
    w_stride: Any,
    x: Any,
    count: Any,
    y: Any,
    adds: Any,
    ahead: Any,
) -> Any:
    """As `outer`, to the bit, for LANES outputs and the first `tokens`, up to FEW, of a panel of LANES.

    It reads weights by whole vectors, and turns them in registers: it waits for memory alone.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tokens, half, *rest = args
        for is_half in (False, True):
            with builder.if_then(builder.icmp_signed("==", half, _I64(int(is_half)))):
                is_one = builder.icmp_signed("==", tokens, _I64(1))
                with builder.if_else(is_one) as (then, otherwise):
                    with then:
                        _few(builder, 1, is_half, *rest)
                    with otherwise:  # more sums than are asked for: the panel has room for them
                        _few(builder, FEW, is_half, *rest)
        return context.get_dummy_value()

    return types.void(*[_INT] * 9), code


FEW = 4


@_word
def squares(typingctx: Any, wide: Any, x: Any, count: Any, y: Any) -> Any:
    """y[n] = sum of x[i, n] squared over `count` of i in turn, for the tokens of one panel as in `outer`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, x, count, y = args
        byte, kind = ir.IntType(8).as_pointer(), ir.VectorType(_F32, LANES)
        for vectors in (1, 2):
            with builder.if_then(builder.icmp_signed("==", wide, _I64(vectors - 1))):
                sums = [cgutils.alloca_once(builder, kind) for _ in range(vectors)]
                for each in sums:
                    builder.store(ir.Constant(kind, [0.0] * LANES), each)

                def step(at: list[Any], sums: list[Any] = sums) -> None:
                    for v, each in enumerate(sums):
                        value = _vector(builder, at[0], v * LANES)
                        builder.store(_fma(builder, value, value, builder.load(each)), each)

                _walk(builder, count, [builder.inttoptr(x, byte)], [vectors * LANES * 4], step)
                for v, each in enumerate(sums):
                    target = builder.gep(builder.inttoptr(y, byte), [_I64(v * LANES * 4)])
                    builder.store(builder.load(each), builder.bitcast(target, kind.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[_INT] * 4), code


@_word
def tile(
    typingctx: Any,
    rows: Any,
    half: Any,
    fours: Any,
    w: Any,
    w_stride: Any,
    x: Any,
    x_stride: Any,
    count: Any,
    y: Any,
    y_stride: Any,
    ahead: Any,
) -> Any:
    """y[n, o] = sum of w[o, i] x[n, i] over i: 4 rows of w at a time, `fours` times, up to TILE rows of x.

    There are `count` of i, a multiple of 4; w is of halves where `half` is 1; strides are in numbers. The order of
    additions depends on `count` alone. Meanwhile as much memory as w takes is asked for, from the address `ahead` on.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _for_each_case(builder, args[0], args[1], lambda rows, is_half: _tile(builder, rows, is_half, *args[2:]))
        return context.get_dummy_value()

    return types.void(*[_INT] * 11), code


@_word
def mix(
    typingctx: Any,
    rows: Any,
    half: Any,
    wide: Any,
    p: Any,
    p_stride: Any,
    v: Any,
    v_stride: Any,
    count: Any,
    out: Any,
    out_stride: Any,
    ahead: Any,
) -> Any:
    """out[g, d] += p[g, t] v[t, d] for t in turn, up to TILE rows of g, and MIX of d where `wide` is 1, else 4 of them.

    Meanwhile as much memory as is read of v is asked for, from the address `ahead` on.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, half, wide, *rest = args
        with builder.if_else(builder.icmp_signed("!=", wide, _I64(0))) as (then, otherwise):
            with then:
                _for_each_case(builder, rows, half, lambda rows, is_half: _mix(builder, rows, is_half, 4, LANES, *rest))
            with otherwise:
                _for_each_case(builder, rows, half, lambda rows, is_half: _mix(builder, rows, is_half, 1, 4, *rest))
        return context.get_dummy_value()

    return types.void(*[_INT] * 11), code


MIX = 4 * LANES


def _for_each_case(builder: Any, rows: Any, half: Any, write: Callable[..., None]) -> None:
    """Code for every number of rows and both widths, of which one runs."""
    for is_half in (False, True):
        with builder.if_then(builder.icmp_signed("==", half, _I64(int(is_half)))):
            for number in range(1, TILE + 1):
                with builder.if_then(builder.icmp_signed("==", rows, _I64(number))):
                    write(number, is_half)


def _vector(builder: Any, pointer: Any, index: int) -> Any:
    """LANES floats from place `index` on."""
    kind = ir.VectorType(_F32, LANES)
    place = builder.gep(pointer, [_I64(index * 4)])
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=4)


def _spread(builder: Any, number: Any) -> Any:
    """A vector of LANES of one number."""
    kind = ir.VectorType(number.type, LANES)
    lone = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(lone, lone, _places([0] * LANES))


def _outer(
    builder: Any,
    outs: int,
    vectors: int,
    is_half: bool,
    w: Any,
    w_stride: Any,
    x: Any,
    count: Any,
    y: Any,
    adds: Any,
    ahead: Any,
) -> None:
    kind, ints = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
    byte = ir.IntType(8).as_pointer()
    size, width = 2 if is_half else 4, vectors * LANES
    w_bytes = builder.mul(w_stride, _I64(size))
    offsets = [builder.mul(w_bytes, _I64(o)) for o in range(outs)]
    zero = ir.Constant(kind, [0.0] * LANES)
    sums = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(outs)]
    for each in (each for row in sums for each in row):
        builder.store(zero, each)

    def step(at: list[Any]) -> None:
        for offset in offsets:
            _prefetch(builder, builder.gep(at[2], [offset]))
        for i in range(0, 4, 2):
            pairs = []
            for offset in offsets:
                place = builder.gep(at[0], [builder.add(offset, _I64(i * size))])
                if not is_half:
                    pairs.append([_spread(builder, _float_at(builder, place, part)) for part in range(2)])
                    continue
                both = _spread(builder, builder.load(builder.bitcast(place, _I32.as_pointer()), align=2))
                low = builder.shl(both, ir.Constant(ints, [16] * LANES))
                high = builder.and_(both, ir.Constant(ints, [-65536] * LANES))
                pairs.append([builder.bitcast(part, kind) for part in (low, high)])
            for part in range(2):
                values = [_vector(builder, at[1], (i + part) * width + v * LANES) for v in range(vectors)]
                for pair, row in zip(pairs, sums, strict=True):
                    for value, each in zip(values, row, strict=True):
                        builder.store(_fma(builder, pair[part], value, builder.load(each)), each)

    at = [builder.inttoptr(each, byte) for each in (w, x, ahead)]
    _walk(builder, builder.sdiv(count, _I64(4)), at, [4 * size, 4 * width * 4, 4 * size], step)
    is_added = builder.icmp_signed("!=", adds, _I64(0))
    target = builder.inttoptr(y, byte)
    for o in range(outs):
        for v in range(vectors):
            place = builder.gep(target, [_I64((o * width + v * LANES) * 4)])
            place = builder.bitcast(place, kind.as_pointer())
            before = builder.select(is_added, builder.load(place, align=4), zero)
            builder.store(builder.fadd(before, builder.load(sums[o][v])), place, align=4)


def _few(
    builder: Any,
    tokens: int,
    is_half: bool,
    w: Any,
    w_stride: Any,
    x: Any,
    count: Any,
    y: Any,
    adds: Any,
    ahead: Any,
) -> None:
    kind, byte = ir.VectorType(_F32, LANES), ir.IntType(8).as_pointer()
    size = 2 if is_half else 4
    w_bytes = builder.mul(w_stride, _I64(size))
    offsets = [builder.mul(w_bytes, _I64(o)) for o in range(LANES)]
    sums = [cgutils.alloca_once(builder, kind) for _ in range(tokens)]
    for each in sums:
        builder.store(ir.Constant(kind, [0.0] * LANES), each)

    def step(at: list[Any], lanes: int) -> None:
        for offset in offsets:
            _prefetch(builder, builder.gep(at[2], [offset]))
        rows = [_lanes(builder, builder.gep(at[0], [offset]), lanes, is_half) for offset in offsets]
        for i, weights in enumerate(_turned(builder, rows)[:lanes]):
            for n, each in enumerate(sums):
                lone = _spread(builder, _float_at(builder, at[1], i * LANES + n))
                builder.store(_fma(builder, weights, lone, builder.load(each)), each)

    main = builder.sdiv(count, _I64(LANES))
    rest = builder.sdiv(builder.sub(count, builder.mul(main, _I64(LANES))), _I64(4))
    at = [builder.inttoptr(each, byte) for each in (w, x, ahead)]
    apart = [size, LANES * 4, size]
    at = _walk(builder, main, at, [LANES * each for each in apart], lambda at: step(at, LANES))
    _walk(builder, rest, at, [4 * each for each in apart], lambda at: step(at, 4))
    is_added = builder.icmp_signed("!=", adds, _I64(0))
    for n, each in enumerate(sums):
        for o in range(LANES):
            place = _pointer(builder, y, _I64(o * LANES + n), _F32)
            before = builder.select(is_added, builder.load(place, align=4), _F32(0.0))
            total = builder.extract_element(builder.load(each), _I32(o))
            builder.store(builder.fadd(before, total), place, align=4)


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors: turned four by four first, then by fours."""
    groups = range(0, LANES, 4)

    def picked(a: Any, b: Any, places: list[int]) -> Any:
        """Of every group of four: 0 to 3 are of `a`, 4 to 7 of `b`."""
        where = [g + p if p < 4 else LANES + g + p - 4 for g in groups for p in places]
        return builder.shuffle_vector(a, b, _places(where))

    turned: list[Any] = [None] * LANES
    for first in groups:
        a, b, c, d = rows[first : first + 4]
        ab, cd = picked(a, b, [0, 4, 1, 5]), picked(c, d, [0, 4, 1, 5])
        more_ab, more_cd = picked(a, b, [2, 6, 3, 7]), picked(c, d, [2, 6, 3, 7])
        turned[first] = picked(ab, cd, [0, 1, 4, 5])
        turned[first + 1] = picked(ab, cd, [2, 3, 6, 7])
        turned[first + 2] = picked(more_ab, more_cd, [0, 1, 4, 5])
        turned[first + 3] = picked(more_ab, more_cd, [2, 3, 6, 7])
    apart = 4
    while apart < LANES:
        for i in (i for i in range(LANES) if not i & apart):
            a, b = turned[i], turned[i + apart]
            low = [lane if not lane & apart else LANES + lane - apart for lane in range(LANES)]
            high = [lane + apart if not lane & apart else LANES + lane for lane in range(LANES)]
            turned[i] = builder.shuffle_vector(a, b, _places(low))
            turned[i + apart] = builder.shuffle_vector(a, b, _places(high))
        apart *= 2
    return turned


def _float_at(builder: Any, pointer: Any, index: int) -> Any:
    place = builder.gep(pointer, [_I64(index * 4)])
    return builder.load(builder.bitcast(place, _F32.as_pointer()), align=4)


def _tile(
    builder: Any,
    rows: int,
    is_half: bool,
    fours: Any,
    w: Any,
    w_stride: Any,
    x: Any,
    x_stride: Any,
    count: Any,
    y: Any,
    y_stride: Any,
    ahead: Any,
) -> None:
    zero, four = ir.Constant(ir.VectorType(_F32, LANES), [0.0] * LANES), ir.VectorType(_F32, 4)
    byte = ir.IntType(8).as_pointer()
    size = 2 if is_half else 4
    w_bytes, x_bytes = builder.mul(w_stride, _I64(size)), builder.mul(x_stride, _I64(4))
    w_offsets = [builder.mul(w_bytes, _I64(o)) for o in range(4)]
    x_offsets = [builder.mul(x_bytes, _I64(n)) for n in range(rows)]
    four_rows = builder.mul(w_bytes, _I64(4))
    ys = [builder.add(y, builder.mul(y_stride, _I64(n * 4))) for n in range(rows)]
    sums = [[cgutils.alloca_once(builder, zero.type) for _ in range(4)] for _ in range(rows)]
    main = builder.sdiv(count, _I64(LANES))
    rest = builder.sdiv(builder.sub(count, builder.mul(main, _I64(LANES))), _I64(4))
    with cgutils.for_range(builder, fours) as outer:
        first = builder.mul(outer.index, _I64(4))
        for each in (each for row in sums for each in row):
            builder.store(zero, each)

        def step(at: list[Any], lanes: int) -> None:
            if lanes == LANES:
                for line in range(0, 4 * LANES * size, 64):
                    _prefetch(builder, builder.gep(at[2], [_I64(line)]))
            # activations first, then one weight at a time: with three rows that is all of 16 registers
            activations = [_lanes(builder, builder.gep(at[1], [offset]), lanes, False) for offset in x_offsets]
            for o in range(4):
                weights = _lanes(builder, builder.gep(at[0], [w_offsets[o]]), lanes, is_half)
                for n in range(rows):
                    builder.store(_fma(builder, weights, activations[n], builder.load(sums[n][o])), sums[n][o])

        done = builder.mul(builder.mul(count, _I64(4 * size)), outer.index)
        begin, later = builder.add(w, builder.mul(four_rows, outer.index)), builder.add(ahead, done)
        at = [builder.inttoptr(each, byte) for each in (begin, x, later)]
        at = _walk(builder, main, at, [LANES * size, LANES * 4, 4 * LANES * size], lambda at: step(at, LANES))
        _walk(builder, rest, at[:2], [4 * size, 16], lambda at: step(at, 4))
        for n in range(rows):
            target = builder.bitcast(_pointer(builder, ys[n], first, _F32), four.as_pointer())
            builder.store(_sums_of_four(builder, [builder.load(each) for each in sums[n]]), target, align=4)


def _walk(builder: Any, times: Any, at: list[Any], apart: list[int], step: Callable[[list[Any]], None]) -> list[Any]:
    """Do a step so many times, each pointer so many bytes further every time; returns where they are then.

    The pointers move themselves, and what is read beside them stands a fixed way off: one register each. With an index to
    be added to each, the compiler runs out of registers in the innermost loop.
    """
    before = builder.block
    body, end = builder.append_basic_block("walk"), builder.append_basic_block("walked")
    builder.cbranch(builder.icmp_signed(">", times, _I64(0)), body, end)
    builder.position_at_end(body)
    left = builder.phi(_I64)
    moving = [builder.phi(each.type) for each in at]
    step(moving)
    nexts = [builder.gep(each, [_I64(far)]) for each, far in zip(moving, apart, strict=True)]
    lefts = builder.sub(left, _I64(1))
    left.add_incoming(times, before)
    left.add_incoming(lefts, builder.block)
    for each, first, then in zip(moving, at, nexts, strict=True):
        each.add_incoming(first, before)
        each.add_incoming(then, builder.block)
    after = builder.block
    builder.cbranch(builder.icmp_signed(">", lefts, _I64(0)), body, end)
    builder.position_at_end(end)
    found = []
    for first, then in zip(at, nexts, strict=True):
        last = builder.phi(first.type)
        last.add_incoming(first, before)
        last.add_incoming(then, after)
        found.append(last)
    return found


def _mix(
    builder: Any,
    rows: int,
    is_half: bool,
    vectors: int,
    lanes: int,
    p: Any,
    p_stride: Any,
    v: Any,
    v_stride: Any,
    count: Any,
    out: Any,
    out_stride: Any,
    ahead: Any,
) -> None:
    kind = ir.VectorType(_F32, lanes)
    ps = [builder.add(p, builder.mul(p_stride, _I64(g * 4))) for g in range(rows)]
    outs = [builder.add(out, builder.mul(out_stride, _I64(g * 4))) for g in range(rows)]

    def place(g: int, d: int) -> Any:
        return builder.bitcast(_pointer(builder, outs[g], _I64(d * lanes), _F32), kind.as_pointer())

    sums = [
        [cgutils.alloca_once_value(builder, builder.load(place(g, d), align=4)) for d in range(vectors)]
        for g in range(rows)
    ]
    with cgutils.for_range(builder, count) as loop:
        start = builder.mul(loop.index, v_stride)
        size = 2 if is_half else 4
        for line in range(0, vectors * lanes * size, 64):
            later = builder.add(ahead, builder.mul(loop.index, _I64(vectors * lanes * size)))
            _prefetch(builder, builder.inttoptr(builder.add(later, _I64(line)), ir.IntType(8).as_pointer()))
        values = []
        for d in range(vectors):
            number = _I16 if is_half else _F32
            pointer = _pointer(builder, v, builder.add(start, _I64(d * lanes)), number)
            pointer = builder.bitcast(pointer, ir.VectorType(number, lanes).as_pointer())
            value = builder.load(pointer, align=2 if is_half else 4)
            values.append(_widened(builder, value, lambda e: ir.VectorType(e, lanes)) if is_half else value)
        for g in range(rows):
            weight = builder.load(_pointer(builder, ps[g], loop.index, _F32))
            lone = builder.insert_element(ir.Constant(kind, ir.Undefined), weight, _I32(0))
            spread = builder.shuffle_vector(lone, lone, _places([0] * lanes))
            for d in range(vectors):
                builder.store(_fma(builder, spread, values[d], builder.load(sums[g][d])), sums[g][d])
    for g in range(rows):
        for d in range(vectors):
            builder.store(builder.load(sums[g][d]), place(g, d), align=4)


# Where compiled code is kept


def kept(function: Any, sources: Iterable[Path]) -> None:
    """Keep what a function compiles to, for the next process: by these sources, this processor and numba's own version.

    It lies in NUMBA_CACHE_DIR, else in the user's cache. Two processes may compile at once: files appear whole. Where the
    folder cannot be written, every process compiles for itself, and the log says so.
    """
    text = b"".join(source.read_bytes() for source in sources)
    digest = hashlib.sha256(text + repr((numba.__version__, llvm.get_host_cpu_name(), FEATURES)).encode()).hexdigest()
    folder = _cache_folder() / digest[:16]

    class Locator(_Locator):
        def __init__(self, py_func: Any, py_file: str) -> None:
            self._py_file = py_file

        def get_cache_path(self) -> str:
            return str(folder)

        def get_source_stamp(self) -> str:
            return digest

        def get_disambiguator(self) -> str:
            return ""

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls(py_func, py_file)

    class Implementation(CompileResultCacheImpl):
        _locator_classes: ClassVar = [Locator]

    class Cache(FunctionCache):
        _impl_class = Implementation

    try:
        Locator.from_function(function.py_func, "").ensure_cache_path()
        function._cache = Cache(function.py_func)
    except OSError as problem:
        log.warning("compiled code is not kept: every start compiles again", folder=str(folder), problem=str(problem))


def _cache_folder() -> Path:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / "luthier"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "luthier" / "compiled"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier" / "compiled"
