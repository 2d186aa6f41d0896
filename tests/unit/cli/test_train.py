"""luthier train: a job file of a person becomes a job, runs, and goes on; what is wrong with it is told at once."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import threading
import tomllib
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from luthier.cli import job_file, main, train
from luthier.cli.console import duration
from luthier.cli.job_example import example
from luthier.core.errors import LossDiverged
from luthier.formats.base import known
from luthier.storage import Storage
from luthier.testing import jsonl, toy_rows
from luthier.training import fit, loop, program
from luthier.training.draft import Draft, read_draft
from luthier.training.events import Evaluated
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import TrainingSpec
from tests.servers import install_toy

LEAST = 'base_model = "toy"\ntraining = "train.jsonl"\n'
QUICK = LEAST + "epochs = 1\nthreads = 1\nmax_length = 64\n"


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    """A data folder in which the toy is installed."""
    data = tmp_path_factory.mktemp("data")
    install_toy(data, toy_folder)
    return data


@pytest.fixture
def here(tmp_path: Path, toy_data: Path) -> Path:
    shutil.copytree(toy_data, tmp_path / "data")
    (tmp_path / "train.jsonl").write_bytes(jsonl(toy_rows(12)))
    (tmp_path / "job.toml").write_text(QUICK)
    return tmp_path


def luthier(folder: Path, *said: str) -> tuple[int, str, str]:
    """What `luthier train ...` in that folder ends with and prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "LUTHIER_"))}
    out, err, code, mask = io.StringIO(), io.StringIO(), 0, os.umask(0)
    with (
        patch.dict(os.environ, clean | {"LUTHIER_SERVER__DATA": str(folder / "data"), "COLUMNS": "200"}, clear=True),
        patch.object(sys, "argv", ["luthier", "train", *said]),
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        finally:
            os.umask(mask)
    return code, out.getvalue(), err.getvalue()


def storage_of(folder: Path) -> Storage:
    return Storage((folder / "data" / "objects").as_uri())


def spec_in(folder: Path, said: str) -> TrainingSpec:
    """The spec that a command named in its output."""
    named = re.search(r"its spec: (\S+)", said)
    assert named is not None, said
    return TrainingSpec.model_validate_json(Path(named[1]).read_bytes())


def test_a_job_file_trains_and_says_where_everything_lies(here: Path) -> None:
    (here / "job.toml").write_text(QUICK + "validation = 0.25\n")
    code, out, _ = luthier(here, "job.toml")
    assert code == 0, out
    spec = spec_in(here, out)
    assert (spec.training.rows, spec.validation and spec.validation.rows) == (9, 3)
    assert "9 rows to train, 3 split off" in out
    assert re.search(r"step 3: validation loss [\d.]+ ★ best, token accuracy", out)
    assert re.search(r"step 3/3 · loss [\d.]+ · valid [\d.]+ ★ · [\d,]+ tokens/s · 0:00 left", out)
    artifact = re.search(r"The adapter lies in (\S+)", out)
    assert artifact is not None and (Path(artifact[1]) / "adapter_model.safetensors").is_file()
    assert "an adapter in PEFT's form, to be used with toy" in out


def test_the_same_file_goes_on_and_a_changed_one_is_another_job(here: Path) -> None:
    first = luthier(here, "job.toml")[1]
    again = luthier(here, "job.toml")[1]
    assert spec_in(here, again) == spec_in(here, first)
    assert "this job has run before" in again and "goes on from step 3" in again
    (here / "job.toml").write_text(QUICK + "learning_rate = 0.001\n")
    other = luthier(here, "job.toml")[1]
    assert spec_in(here, other).job != spec_in(here, first).job
    assert "run before" not in other


def test_every_fault_of_a_job_file_is_told_at_once(here: Path) -> None:
    (here / "pairs.jsonl").write_bytes(known()["chosen_rejected"].sample())
    (here / "job.toml").write_text(
        'base_model = "toi"\ntraining = "pairs.jsonl"\nvalidation = "none.jsonl"\nepochs = 0\n[method_options]\nrank = 0\n'
    )
    code, out, err = luthier(here, "job.toml")
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: job.toml has 5 faults"
    assert "  epochs: must be a whole number from 1 to 100, got 0" in err
    assert "  method_options.rank: must be a whole number from 1 to 512, got 0" in err
    assert "  base_model: there is no model and no folder 'toi'; installed: toy" in err
    assert "  training: 'pairs.jsonl' holds preference rows; the objective 'sft' wants chat rows" in err
    assert "Objectives for preference rows: dpo." in err
    assert "  validation: there is no file 'none.jsonl'" in err
    assert not storage_of(here).list("files") and not storage_of(here).list("runs")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("max_length = 9000", "max_length: must be at most 512, the context of toy, got 9,000"),
        ("max_length = 8", "training: No row of 'train.jsonl' can be trained: of 12 rows 12 are longer than 8 tokens"),
        ("overlength = 'fail'\nmax_length = 20", "training: 12 rows of 'train.jsonl' are longer than 20 tokens"),
        ("validation = 0.01", "validation: A split of 12 rows by 0.01 would leave one of the files empty."),
        ("validation = 'faulty.jsonl'", "validation: 'faulty.jsonl' cannot be trained on: line 1"),
        ("start = 'nowhere'", "start: there is no folder 'nowhere', neither here nor in the storage"),
        ("start = '../a//b'", "start: there is no folder '../a//b', neither here nor in the storage"),
        ("start = '.'", "start: '.' is no artifact of the method 'lora': it has no file adapter_model.safetensors"),
        ("start = 'models'", "start: 'models' is no artifact of the method 'lora'"),
        ("method = 'ptuning_v2'\nmax_length = 481", "max_length: must be at most 480: toy has a context of 512"),
        ("patience = 2", "patience: needs validation rows, and there are none"),
        ("clip_norm = inf", "clip_norm: must be a finite number, got inf"),
        ("epochs = ", "is not TOML: Invalid value (at line 3, column 10)"),
    ],
)
def test_what_the_model_the_data_or_the_file_do_not_allow_is_a_fault(here: Path, written: str, words: str) -> None:
    (here / "faulty.jsonl").write_text('{"messages": []}\n')
    (here / "job.toml").write_text(f"{LEAST}{written}\n")
    code, _, err = luthier(here, "job.toml")
    assert (code, words in err) == (2, True), err
    assert err.startswith("error: job.toml has 1 fault\n")


def test_every_fault_of_a_spec_is_told_at_once(here: Path) -> None:
    luthier(here, "job.toml")
    key = next(key for key in storage_of(here).list("runs") if key.endswith("spec.json"))
    spec = json.loads(storage_of(here).read(key))
    spec |= {"job": "ftjob-mine", "epochs": 0, "weights": "models/none", "objective": {"name": "dpo"}}
    spec["method"]["options"]["alpha"] = -1
    spec["validation"] = spec["training"] | {"key": "files/none", "format": "nonsense"}
    (here / "spec.json").write_text(json.dumps(spec))
    code, out, err = luthier(here, "spec.json")
    assert (code, out, err.splitlines()[0]) == (2, "", "error: spec.json has 6 faults")
    for words in (
        "epochs: must be a whole number from 1 to 100, got 0",
        "method.options.alpha: must be a number above 0, got -1",
        "training.format: 'messages' has chat rows; the objective 'dpo' wants preference rows",
        "validation.key: nothing is stored under 'files/none'",
        "validation.format: there is no format 'nonsense'",
        "weights: nothing is stored under 'models/none'",
    ):
        assert words in err


def spec_in_json(folder: Path, **changes: Any) -> str:
    """What `luthier train` says of a spec that can be run but for these changes; it must be refused."""
    job = train._read(folder / "job.toml", storage_of(folder), train.settings_with(folder / "data")).spec
    (folder / "spec.json").write_text(json.dumps(job.model_dump(mode="json") | {"job": "ftjob-mine"} | changes))
    code, out, err = luthier(folder, "spec.json")
    assert (code, out) == (2, ""), out
    return err


@pytest.mark.parametrize("key", ["../train.jsonl", "a//b"])
def test_what_is_no_key_of_a_storage_is_a_fault_of_the_spec(here: Path, key: str) -> None:
    said = spec_in_json(here, training={"key": key, "sha256": "0"}, weights=key, job=key)
    assert said.startswith("error: spec.json has 3 faults\n")
    for field in ("training.key", "weights", "job"):
        assert f"  {field}: " in said and "is no key of a storage" in said


def test_a_spec_is_held_against_what_lies_in_the_storage(here: Path) -> None:
    file = {"key": "files/other", "sha256": "0" * 64}
    storage_of(here).write("files/other", b"")
    storage_of(here).write("artifacts/other/adapter_model.safetensors", b"")
    start = {"key": "artifacts/other", "sha256": "0" * 64}
    said = spec_in_json(here, training=file, weights_sha256="0" * 64, start=start)
    assert said.startswith("error: spec.json has 3 faults\n")
    for field in ("training.sha256", "weights_sha256", "start.sha256"):
        assert f"  {field}: what is stored has another hash" in said
    assert "must be at most 512, the context of toy, got 513" in spec_in_json(here, max_length=513)
    assert "start.key: 'models' is no artifact" in spec_in_json(here, start=start | {"key": "models"})
    assert "training: No row of " in spec_in_json(here, max_length=8)


def test_4_bits_without_their_library_are_a_fault_that_names_the_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_file, "find_spec", lambda name: None)
    (here / "job.toml").write_text(QUICK + 'method = "qlora"\n')
    code, _, err = luthier(here, "job.toml")
    assert (code, "method: 'qlora' needs bitsandbytes" in err) == (2, True)
    assert "pip install 'luthier[quantised]'" in err


def test_a_file_that_begins_with_a_byte_order_mark_is_read(here: Path) -> None:
    (here / "job.toml").write_text(QUICK + "epochs = 0\n".replace("epochs", "patience"), encoding="utf-8-sig")
    assert "error: job.toml has 1 fault\n  patience: must be" in luthier(here, "job.toml")[2]
    (here / "spec.json").write_text('{"job": 3}', encoding="utf-8-sig")
    assert "job: must be a text, got 3" in luthier(here, "spec.json")[2]


def test_a_spec_in_json_runs_as_it_is(here: Path) -> None:
    written = spec_in(here, luthier(here, "job.toml")[1])
    (here / "spec.json").write_text(written.model_copy(update={"job": "ftjob-mine"}).model_dump_json())
    code, out, _ = luthier(here, "spec.json")
    assert code == 0
    assert "runs/ftjob-mine/checkpoints/0001-00000003/adapter" in out


def test_a_model_that_lies_in_a_folder_is_brought_once(here: Path, toy_folder: Path) -> None:
    shutil.copytree(toy_folder, here / "My Toy")
    (here / "job.toml").write_text(QUICK.replace('"toy"', '"My Toy"'))
    spec = spec_in(here, luthier(here, "job.toml")[1])
    assert (spec.base_model, spec.weights.rsplit("/", 1)[0]) == ("my-toy", "models/my-toy")
    path = storage_of(here).local_path(f"{spec.weights}/model.safetensors")
    assert path is not None
    written = path.stat().st_mtime_ns
    assert spec_in(here, luthier(here, "job.toml")[1]) == spec
    assert path.stat().st_mtime_ns == written
    assert not storage_of(here).exists("models/my-toy/card.json")


def test_a_folder_without_a_tokenizer_is_refused(here: Path, toy_folder: Path) -> None:
    shutil.copytree(toy_folder, here / "bare")
    (here / "bare" / "tokenizer.json").unlink()
    (here / "job.toml").write_text(QUICK.replace('"toy"', '"bare"'))
    code, _, err = luthier(here, "job.toml")
    assert (code, "base_model: bare has no tokenizer.json" in err) == (2, True)


def test_rows_of_another_tool_are_put_right_and_that_is_said(here: Path) -> None:
    theirs = [{"conversations": [{"from": "human", "value": "ab"}, {"from": "gpt", "value": "ab ab"}]}] * 6
    (here / "train.json").write_text(json.dumps(theirs))
    (here / "job.toml").write_text(QUICK.replace("train.jsonl", "train.json"))
    code, out, _ = luthier(here, "job.toml")
    assert code == 0
    assert "train.json: put right (json_array 1, other_rows 6)" in out
    assert spec_in(here, out).training.rows == 6


def test_a_split_by_the_same_seed_gives_the_same_rows(here: Path) -> None:
    job, read = here / "job.toml", []
    for written in ("validation = 0.5", "validation = 0.5\nepochs = 2", "validation = 0.5\nseed = 1"):
        job.write_text(f"{LEAST}max_length = 64\n{written}\n")
        read.append(train._read(job, storage_of(here), train.settings_with(here / "data")).spec)
    rows = [(spec.training.sha256, spec.validation and spec.validation.sha256) for spec in read]
    assert rows[0] == rows[1] != rows[2]


def test_training_goes_on_from_an_adapter_by_its_path_or_its_key(here: Path) -> None:
    done = luthier(here, "job.toml")[1]
    artifact = re.search(r"The adapter lies in (\S+)", done)
    assert artifact is not None
    starts, key = [], artifact[1].split("objects/")[1]
    for named in (artifact[1], str(Path(artifact[1]).parent), key, key.removesuffix("/adapter")):
        (here / "job.toml").write_text(f'{QUICK}start = "{named}"\n')
        code, out, _ = luthier(here, "job.toml")
        assert code == 0
        starts.append(spec_in(here, out).start)
    assert starts[0] is not None and starts[2] is not None
    assert starts[0] == starts[1] and starts[2] == starts[3]
    assert starts[0].sha256 == starts[2].sha256
    assert starts[2].key == key


def test_a_run_that_fails_names_the_cause_and_the_last_good_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.learning_rate

    def fail(spec: Any, step: int, total: int) -> float:
        if step == 3:
            raise LossDiverged("The loss rose.", hint="Use a smaller learning rate.")
        return real(spec, step, total)

    (here / "job.toml").write_text(QUICK + "save_every_steps = 2\n")
    monkeypatch.setattr(loop, "learning_rate", fail)
    code, out, err = luthier(here, "job.toml")
    assert code == 1
    assert "failed (loss_diverged): The loss rose. Use a smaller learning rate." in err
    assert re.search(r"the last good checkpoint is \S+/checkpoints/0001-00000002; run again", err)
    assert "failed" not in out
    monkeypatch.undo()
    assert "goes on from step 2" in luthier(here, "job.toml")[1]


def test_a_run_that_fails_at_once_says_that_there_is_no_checkpoint(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 1 / 0)
    code, _, err = luthier(here, "job.toml")
    assert (code, "failed (internal_error)" in err) == (1, True)
    assert "no checkpoint was saved: run again, the job begins again" in err


def test_a_run_that_stands_still_names_the_cause_before_its_process_is_ended(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    is_over = threading.Event()

    def die() -> None:  # in place of the end of this process
        shown.append(sys.stderr.getvalue())  # type: ignore[attr-defined]
        is_over.set()

    monkeypatch.setattr(program, "_die", die)
    monkeypatch.setattr(loop, "learning_rate", lambda *_: is_over.wait(60) and 0.001)
    (here / "job.toml").write_text(QUICK + "stall_after_seconds = 3\n")
    luthier(here, "job.toml")
    assert "failed (run_stalled): The run got no further for 3 seconds after step 0." in shown[0]
    assert "no checkpoint was saved" in shown[0]


def test_a_run_that_a_newer_attempt_overtakes_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "execute", lambda *_: program.SUPERSEDED)
    code, _, err = luthier(here, "job.toml")
    assert (code, "A newer attempt at this job has taken over" in err) == (3, True)


def test_the_best_validation_loss_of_before_counts_when_a_job_goes_on(here: Path) -> None:
    (here / "job.toml").write_text(QUICK.replace("epochs = 1", "epochs = 4") + "validation = 0.25\n")
    spec = spec_in(here, luthier(here, "job.toml")[1])
    told = [
        event.loss for event in train.read_events(storage_of(here), spec.run_key, 1, -1) if isinstance(event, Evaluated)
    ]
    assert train._best_before(storage_of(here), spec, 2) == min(told[1:])
    assert train._best_before(storage_of(here), spec, 1) is None


def uncommented(text: str) -> str:
    """An example with every field written out."""
    return re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("method", methods.names())
def test_an_example_has_every_field_and_says_what_holds_without_it(here: Path, method: str, objective: str) -> None:
    code, text, err = luthier(here, "--example", "--method", method, "--objective", objective)
    assert (code, err) == (0, "")
    short, long = tomllib.loads(text), tomllib.loads(uncommented(text))
    assert short.keys() == {*("base_model", "training", "method", "objective", "method_options", "objective_options")}
    assert long.keys() == Draft.model_fields.keys()
    assert long["method_options"].keys() == methods.load(method).Options.model_fields.keys()
    assert long["objective_options"].keys() == objectives.load(objective).Options.model_fields.keys()
    drafts = [read_draft(one) for one in (short, long)]
    assert [faults for _, faults in drafts] == [[], []]
    for name, field in TrainingSpec.model_fields.items():
        if name in Draft.model_fields and field.description and name not in ("base_model", "start"):
            assert field.description in " ".join(text.replace("\n# ", " ").split()), name


@pytest.mark.parametrize(
    ("method", "objective"),
    [(method, "sft") for method in methods.names()] + [("lora", name) for name in objectives.names() if name != "sft"],
)
def test_an_example_runs_once_its_model_and_its_file_are_there(here: Path, method: str, objective: str) -> None:
    samples = {form.kind: form.sample() for form in known().values()} | {"chat": jsonl(toy_rows())}
    (here / "train.jsonl").write_bytes(samples[objectives.load(objective).wants])
    text = example(method, objective, base_model="toy", training="train.jsonl")
    for written in (text, uncommented(text)):
        (here / "job.toml").write_text(written)
        job = train._read(here / "job.toml", storage_of(here), train.settings_with(here / "data")).spec
        assert (job.method.name, job.objective.name) == (method, objective)
    (here / "job.toml").write_text(text)
    assert luthier(here, "job.toml")[0] == 0


def test_what_is_absent_is_told_once(here: Path) -> None:
    text = " ".join(luthier(here, "--example")[1].replace("\n# ", " ").split())
    assert "Absent: all. A whole number at least 1. keep_checkpoints" in text
    assert " Processes that train together, each" in text


def test_without_a_job_file_the_command_was_typed_wrongly(here: Path) -> None:
    code, _, err = luthier(here)
    assert (code, "--example" in err) == (2, True)


FORECAST = fit.Forecast(
    device="cpu",
    memory_bytes=2 * 1024**3,
    spare_bytes=1024**3 // 10,
    tried_bytes=2 * 1024**3,
    longest=40,
    steps=82,
    tokens_per_step=540.0,
    trainable_parameters=4_884_480,
    as_written=fit.Estimate(
        micro_batch_tokens=1024,
        peak_bytes=3 * 1024**3,
        peak_while="training",
        fits=False,
        micro_batches_per_step=1.5,
        seconds_per_step=3.24,
        seconds=271.0,
    ),
    chosen=None,
)


def planned(monkeypatch: pytest.MonkeyPatch, found: fit.Forecast) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def forecast(*_: Any, **how: Any) -> fit.Forecast:
        asked.append(how)
        return found

    monkeypatch.setattr(fit, "forecast", forecast)
    return asked


def test_a_plan_that_does_not_fit_says_so_and_what_would(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = FORECAST.as_written
    assert written is not None
    smaller = {"micro_batch_tokens": 256, "peak_bytes": 1024**3, "fits": True}
    asked = planned(monkeypatch, FORECAST.model_copy(update={"chosen": written.model_copy(update=smaller)}))
    code, out, err = luthier(here, "job.toml", "--plan", "--memory", "2GiB")
    assert (code, asked[0]["memory_bytes"], asked[0]["choose"]) == (1, 2 * 1024**3, True)
    assert "3.00 GiB while training; of 2.00 GiB (cpu) 102 MiB stay free" in out
    assert "3.2 s, 1.5 micro-batches of at most 1,024 tokens" in out
    assert "4:31" in out and "4,884,480 parameters" in out
    assert "micro_batch_tokens = 256 fits: 1.00 GiB, 3.2 s a step" in out
    assert "This does not fit into 2.00 GiB and leave 102 MiB free." in err
    assert not [key for key in storage_of(here).list("runs") if not key.endswith("spec.json")]


def lines_of(out: str, begin: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines() if line.startswith(begin)]


@pytest.mark.parametrize(
    ("active", "inactive", "told"),
    [
        (("shared prefixes", "fused layers"), {}, ["active shared prefixes, fused layers"]),
        (
            ("shared prefixes",),
            {"fused layers": "its norms learn"},
            ["active shared prefixes", "not active fused layers: its norms learn"],
        ),
        (
            (),
            {"shared prefixes": "it was not asked for", "fused layers": "its adapter has dropout"},
            ["not active shared prefixes: it was not asked for", "not active fused layers: its adapter has dropout"],
        ),
    ],
)
def test_a_plan_says_what_is_active_and_why_something_is_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, active: Any, inactive: dict[str, str], told: list[str]
) -> None:
    planned(monkeypatch, FORECAST.model_copy(update={"active": active, "inactive": inactive}))
    out = luthier(here, "job.toml", "--plan")[1]
    assert lines_of(out, "active") + lines_of(out, "not active") == told
    found = json.loads(luthier(here, "job.toml", "--plan", "--json")[1])
    assert (tuple(found["active"]), found["inactive"]) == (active, inactive)


def test_a_plan_whose_longest_row_does_not_fit_says_what_to_change(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "job.toml").write_text(QUICK + 'method = "full"\nmicro_batch_tokens = 128\n')
    asked = planned(monkeypatch, FORECAST.model_copy(update={"as_written": None}))
    code, _, err = luthier(here, "job.toml", "--plan")
    assert (code, asked[0]["choose"]) == (1, False)
    assert "The longest row alone, 40 tokens, needs more than the 2.00 GiB of memory that there are (cpu)" in err
    assert 'Try gradient_checkpointing = true, a max_length below 40, method = "lora", a smaller model.' in err
    assert "A dry step" not in err
    assert (
        "A dry step can take no more than what is free here, 2.00 GiB"
        in luthier(here, "job.toml", "--plan", "--memory", "9GiB")[2]
    )


def test_a_plan_can_be_read_by_a_script(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(monkeypatch, FORECAST)
    code, out, _ = luthier(here, "job.toml", "--plan", "--json")
    told = json.loads(out)
    assert (code, told["fits"], told["as_written"]["micro_batch_tokens"]) == (1, False, 1024)


@pytest.mark.parametrize(
    ("size", "found"), [("6GiB", 6 * 1024**3), ("500 mb", 5 * 10**8), ("1.5gib", 3 * 2**29), ("7B", 7)]
)
def test_an_amount_of_memory_is_read(size: str, found: int) -> None:
    assert train._bytes(size) == found


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["job.toml", "--plan", "--memory", "6"], "--memory: it must be a number above 0 and one of B, KB"),
        (["job.toml", "--plan", "--memory", "0GiB"], "--memory: it must be a number above 0"),
        (["job.toml", "--memory", "6GiB"], "--memory: it is for --plan"),
        (["job.toml", "--json"], "--json: it is for --plan"),
        (["job.toml", "--method", "full"], "--method: it is for --example"),
        (["job.toml", "--plan", "--objective", "dpo"], "--objective: it is for --example"),
        (["job.toml", "--example"], "JOB: it says nothing beside --example"),
        (["--example", "--plan"], "--plan: it says nothing beside --example"),
    ],
)
def test_an_option_that_has_no_meaning_there_is_refused(here: Path, said: list[str], words: str) -> None:
    code, out, err = luthier(here, *said)
    assert (code, out, words in err) == (2, "", True), err


def test_a_plan_of_several_processes_says_what_is_not_in_its_figures(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, FORECAST.model_copy(update={"processes": 2, "not_counted": ("the sums",)}))
    out = luthier(here, "job.toml", "--plan")[1]
    assert "3.00 GiB in 2 processes while training" in out
    assert re.search(r"not counted +the sums", out)


def test_rows_that_are_left_out_or_cut_are_listed_before_a_run_and_in_a_plan(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, FORECAST)
    (here / "train.jsonl").write_bytes(jsonl(toy_rows(30)))
    (here / "job.toml").write_text(QUICK.replace("64", "34"))
    plan, run = luthier(here, "job.toml", "--plan")[1], luthier(here, "job.toml")[1]
    spec = spec_in(here, run)
    left_out = sum(spec.training.dropped.values())
    assert left_out > 5
    for told in (plan, run):
        assert f"train.jsonl: {left_out} of 30 rows left out" in told
        assert re.search(rf"row {spec.training.first_dropped[0]}: \d\d tokens, longer than 34", told)
        assert len(re.findall("longer than 34", told)) == 5
        assert f"and {left_out - 5} more" in told
    assert run.index("left out") < run.index("step 1/")
    rows = json.loads(luthier(here, "job.toml", "--plan", "--json")[1])["rows"]["training"]
    assert [one["row"] for one in rows["dropped"]][:3] == spec.training.first_dropped[:3]
    assert min(one["tokens"] for one in rows["dropped"]) > 34
    (here / "job.toml").write_text(QUICK.replace("64", "34") + 'overlength = "truncate"\n')
    assert f"train.jsonl: {left_out} rows cut to 34 tokens" in luthier(here, "job.toml", "--plan")[1]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(9, "0:09"), (271, "4:31"), (3600, "1:00:00"), (3 * 24 * 3600 + 5, "72:00:05")]
)
def test_a_long_time_is_told_in_hours(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
