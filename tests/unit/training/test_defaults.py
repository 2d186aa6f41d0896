"""What "auto" becomes, and that finding out needs no torch."""

import subprocess
import sys

import pytest

from luthier.training import defaults, precision
from luthier.training.defaults import resolve

SMALL = {"parameters": 134_515_008, "context_length": 8192, "cores": 2}


@pytest.fixture(autouse=True)
def _a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(defaults, "has_gpu", lambda: False)
    monkeypatch.setattr(precision, "has_gpu", lambda: False)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch_size"),
    [(3, 10, 3), (40, 10, 4), (100, 4, 4), (300, 2, 8), (5_000, 2, 64), (10_000, 1, 64)],
)
def test_epochs_and_batch_follow_the_rows(rows, epochs, batch_size):
    found = resolve(**SMALL, rows=rows)
    assert (found.epochs, found.batch_size) == (epochs, batch_size)


@pytest.mark.parametrize(("parameters", "rate"), [(134_515_008, 4e-3), (1e9, 1.9e-3), (7e9, 9.1e-4), (27_000, 4e-2)])
def test_larger_models_learn_at_a_smaller_rate(parameters, rate):
    assert resolve(**SMALL | {"parameters": int(parameters)}, rows=300).learning_rate == rate


@pytest.mark.parametrize(("batch_size", "rate"), [(1, 5e-4), (4, 2e-3), (8, 4e-3), (64, 4e-3)])
def test_small_steps_are_taken_at_a_smaller_rate(batch_size, rate):
    assert resolve(**SMALL, rows=300, batch_size=batch_size).learning_rate == rate


def test_what_is_given_is_kept():
    found = resolve(**SMALL, rows=300, epochs=3, batch_size=5, learning_rate=1e-3, learning_rate_multiplier=0.5, seed=0)
    assert (found.epochs, found.batch_size, found.learning_rate, found.seed) == (3, 5, 5e-4, 0)


@pytest.mark.parametrize(
    ("computes", "given", "tokens"), [("bf16", None, 2048), ("fp32", None, 1024), ("bf16", "fp32", 1024)]
)
def test_more_tokens_go_through_at_once_where_they_are_multiplied_faster(monkeypatch, computes, given, tokens):
    monkeypatch.setattr(defaults, "precision_here", lambda: computes)
    found = resolve(**SMALL, rows=300, precision=given)
    assert (found.micro_batch_tokens, found.precision) == (tokens, given or computes)


def test_a_run_is_evaluated_and_saved_about_four_times():
    found = resolve(**SMALL, rows=300)  # 2 epochs of 38 steps
    assert (found.evaluate_every_steps, found.save_every_steps) == (19, 19)


@pytest.mark.parametrize("drops", [False, True])
def test_beginnings_are_shared_unless_something_is_dropped(drops):
    found = resolve(**SMALL, rows=300, drops=drops)
    assert (found.share_prefixes, found.fused) == (not drops, True)


@pytest.mark.parametrize(
    ("flags", "computes"), [("fpu avx512f amx_bf16", True), ("fpu avx512_bf16", True), ("fpu avx2", False)]
)
def test_bf16_is_used_where_the_processor_computes_in_it(tmp_path, flags, computes):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert precision.computes_in_bf16(tmp_path / "cpuinfo") is computes
    assert precision.computes_in_bf16(tmp_path / "nowhere") is False


def test_options_are_validated_without_torch():
    program = """
import sys
import luthier.training.defaults, luthier.training.events, luthier.training.program, luthier.training.spec
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
for registry in (methods, objectives):
    for name in registry.names():
        registry.load(name).Options.read({}, param="method").model_json_schema()
assert not {"torch", "transformers", "peft"} & set(sys.modules), "heavy"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
