"""Words of the machine, and where compiled code is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from luthier.nets.cpu import machine
from luthier.nets.cpu.machine import half_at, kept, number_at, put_half, put_number


def _rounding() -> Any:
    @njit(nogil=True)
    def rounded(source, halves, back, count):
        for i in range(count):
            put_half(halves, i, number_at(source, i))
            put_number(back, i, half_at(halves, i))

    return rounded


def test_halves_are_rounded_as_torch_rounds() -> None:
    special = [0.0, -0.0, 1.00390625, 1.01171875, float("inf"), -3.4e38, float("nan")]  # two ties among them
    numbers = np.array([*special, *np.random.default_rng(0).standard_normal(100)], np.float32)
    halves, back = np.zeros(len(numbers), np.int16), np.zeros_like(numbers)
    _rounding()(numbers.ctypes.data, halves.ctypes.data, back.ctypes.data, len(numbers))
    expected = torch.from_numpy(numbers).bfloat16().float()
    assert torch.equal(torch.from_numpy(back).nan_to_num(7), expected.nan_to_num(7))


def test_compiled_code_is_kept_and_read_by_who_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first, second, other = _rounding(), _rounding(), _rounding()
    changed = tmp_path / "source.py"
    changed.write_text("another source")
    for function, source in ((first, Path(__file__)), (second, Path(__file__)), (other, changed)):
        kept(function, [source])
        function.compile("void(int64, int64, int64, int64)")
    assert [sum(f.stats.cache_hits.values()) for f in (first, second, other)] == [0, 1, 0]


def test_a_folder_that_cannot_be_written_is_told_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    function = _rounding()
    said: list[str] = []
    monkeypatch.setattr(machine, "log", SimpleNamespace(warning=lambda text, **_: said.append(text)))
    kept(function, [Path(__file__)])
    function.compile("void(int64, int64, int64, int64)")
    assert "every start compiles again" in said[0]
