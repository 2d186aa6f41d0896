import pytest

from benchmarks.stock import losses
from luthier.storage import Storage
from luthier.testing import toy_rows, toy_spec
from luthier.training.run import run
from luthier.training.spec import PluginChoice


@pytest.mark.parametrize("method", ["lora", "full", "ptuning_v2"])
def test_stock_libraries_read_the_loss_that_the_run_told_before_and_after(method, tmp_path):
    storage = Storage(tmp_path.as_uri())
    spec = toy_spec(storage, validation=toy_rows(6, seed=1), method=PluginChoice(name=method), epochs=1)
    told = []
    last = run(spec, storage, emit=lambda event: told.append(event.loss) if event.type == "evaluated" else None)
    assert last.type == "succeeded" and spec.validation is not None
    (after,) = losses(storage, spec, last.artifact_key, [spec.validation])
    assert after == pytest.approx(told[-1], abs=1e-4) != pytest.approx(told[0], abs=1e-2)
    if method != "ptuning_v2":  # which has a prefix from the beginning
        assert losses(storage, spec, None, [spec.validation]) == [pytest.approx(told[0], abs=1e-4)]
