import json
import math
from pathlib import Path

import pytest

from benchmarks.engines import Found
from benchmarks.serving import Line, Rates, best, grows, lines, missed, shares_of, weight_bytes

PEERS = {
    Line("generate", "fp32", 0): {1: 10.0, 8: 50.0},
    Line("generate", "fp32", 4): {1: 8.0, 8: 20.0},
}


def test_floors_that_are_kept_are_not_told() -> None:
    ours: Rates = {Line("builtin", "fp32", 0): {1: 20.0, 8: 100.0}, Line("builtin", "fp32", 4): {1: 1.0, 8: 80.0}}
    assert missed({**PEERS, **ours}, {1: 0.1, 8: 0.7}, [1, 8], 4) == []


@pytest.mark.parametrize(
    ("base", "mixed", "share", "told"),
    [
        ({1: 19.0, 8: 100.0}, {1: 1.0, 8: 80.0}, 0.8, "base beside generate, batch 1"),
        ({1: 20.0, 8: 100.0}, {1: 1.0, 8: 79.0}, 0.8, "mixed beside PEFT mixed, batch 8"),
        ({1: 20.0, 8: 100.0}, {1: 1.0, 8: 80.0}, 0.69, "mixed beside our base, batch 8"),
        ({1: 20.0, 8: 100.0}, {1: 1.0, 8: math.nan}, 0.8, "mixed beside"),
    ],
)
def test_a_floor_that_is_missed_is_told(
    base: dict[int, float], mixed: dict[int, float], share: float, told: str
) -> None:
    ours: Rates = {Line("builtin", "fp32", 0): base, Line("builtin", "fp32", 4): mixed}
    [first, *_] = missed({**PEERS, **ours}, {1: share, 8: share}, [1, 8], 4)
    assert first.startswith(told)


def test_what_adapters_leave_is_measured_within_one_process() -> None:
    paces = (1.0, 0.5, 2.0)  # of the machine, round by round
    rounds = [Found(rates={8: 80.0 * pace}, own_rates={8: 100.0 * pace}) for pace in paces]
    other = [Found(rates={8: 500.0})]
    measured = {Line("builtin", "fp32", 0): other, Line("builtin", "fp32", 4): rounds}
    assert shares_of(measured, "rates", 4) == {8: pytest.approx(0.8)}


def test_a_peer_counts_with_the_precision_that_is_better_for_it() -> None:
    rates: Rates = {Line("generate", "bf16", 0): {1: 5.0}, Line("generate", "fp32", 0): {1: 9.0}}
    assert best(rates, "generate", 0, 1) == 9.0
    assert {line.precision for line in lines("bf16", 4, []) if line.engine == "generate"} == {"bf16", "fp32"}
    assert {line.precision for line in lines("bf16", 4, []) if line.engine == "builtin"} == {"bf16"}


def test_memory_grows_when_the_end_holds_a_tenth_more_than_the_second_quarter() -> None:
    flat = [(float(second), 100.0 if second > 4 else 50.0) for second in range(40)]
    leaking = [(float(second), 100.0 + second) for second in range(40)]
    assert not grows(flat) and grows(leaking)


def test_the_bytes_of_a_model_are_those_of_its_tensors_in_a_precision(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}, "__metadata__": {}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
    assert (weight_bytes(tmp_path, "fp32"), weight_bytes(tmp_path, "bf16")) == (48, 24)
