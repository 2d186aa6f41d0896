"""What the API's document shows: one file, one job and what comes of it, which every dialect tells in its own words.

Here are the values below the edge; an answer's example is made of them by what makes the answers themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import StreamingResponse

from luthier.control.catalog.service import NamedModel
from luthier.control.datasets.preview import Preview, Token
from luthier.control.datasets.repairing import Changes
from luthier.control.datasets.report import DatasetReport
from luthier.control.datasets.service import File
from luthier.control.datasets.transforms.split import SplitOptions
from luthier.control.datasets.uploads import Part, Upload
from luthier.control.deployments.lifecycle import Status as DeploymentStatus
from luthier.control.deployments.service import Deployment
from luthier.control.inference.answers import Answer
from luthier.control.inference.asynchronous import AsyncCompletion
from luthier.control.inference.service import CompletionRequest, Delta
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.values import Checkpoint, Job, JobEvent, JobRequest
from luthier.core.errors import InvalidParameter, ReplicaUnavailable
from luthier.serving.protocol import Finish, TokenChunk
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec

REQUEST_ID = "req-01k7m3v5c8t9x2r4w6y8z0a7"
MADE_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_PROJECT = "proj-default"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

FILE = File(
    id="file-01k7m3v5c8t9x2r4w6y8z0a2",
    filename="rows.jsonl",
    purpose="fine-tune",
    bytes=120_417,
    sha256=_SHA256,
    key="files/file-01k7m3v5c8t9x2r4w6y8z0a2",
    status="processed",
    category=None,
    parent=None,
    operation=None,
    report=DatasetReport(
        format="messages", kind="chat", rows=200, lines=200, turns=600, trained_turns=200, characters=98_310
    ),
    created_at=MADE_AT,
    md5="098f6bcd4621d373cade4e832627b4f6",
    description="How we speak.",
)

SPLIT = SplitOptions(seed=7).model_dump()
DIVISION = {"rows": 200, "training": 160, "validation": 40, "tags": {}}
CHANGES = Changes(rows_changed=2, counts=Counter({"blank_lines": 2}))


def _version(place: int, name: str, rows: int, operation: dict[str, Any]) -> File:
    """A file that was made of FILE."""
    assert FILE.report is not None
    return replace(
        FILE,
        id=f"{FILE.id[:-1]}{place}",
        filename=f"rows.{name}.jsonl",
        report=FILE.report.model_copy(update={"rows": rows}),
        parent=FILE.id,
        operation=operation,
    )


TRAINING, VALIDATION = (
    _version(place, name, DIVISION[name], {"name": "split", "options": SPLIT, "division": DIVISION})
    for place, name in enumerate(("training", "validation"), 3)
)
REPAIRED = _version(5, "repaired", 200, {"name": "repair", "counts": CHANGES.counts, "rows_changed": 2})

BASE = NamedModel("smollm2-135m-instruct", "luthier", MADE_AT, "base", "smollm2-135m-instruct")

_LORA = PluginChoice(name="lora", options={"rank": 8, "alpha": 16})

JOB = Job(
    id="ftjob-01k7m3v5c8t9x2r4w6y8z0a3",
    project=_PROJECT,
    status=Status.SUCCEEDED,
    request=JobRequest(base_model=BASE.name, training_files=[FILE.id], suffix="tone", method=_LORA),
    spec=TrainingSpec(
        job="ftjob-01k7m3v5c8t9x2r4w6y8z0a3",
        base_model=BASE.name,
        weights=f"models/{BASE.name}",
        weights_sha256=_SHA256,
        renderer_sha256=None,
        training=DataFile(key=FILE.key, sha256=_SHA256, rows=200, trained_rows=200),
        method=_LORA,
        max_length=2048,
        epochs=2,
        batch_size=4,
        micro_batch_tokens=1024,
        learning_rate=2e-3,
        seed=42,
        precision="fp32",
        threads=2,
        evaluate_every_steps=25,
        save_every_steps=25,
        share_prefixes=True,
        fused=True,
    ),
    model_name=f"{BASE.name}-tone-x7k2",
    trained_tokens=48_200,
    seconds_left=None,
    error=None,
    created_at=MADE_AT,
    started_at=MADE_AT + timedelta(seconds=2),
    finished_at=MADE_AT + timedelta(minutes=3),
)

TUNED = NamedModel(JOB.model_name, _PROJECT, MADE_AT, "fine_tuned", BASE.name, job=JOB.id, method="lora")

DEPLOYMENT = Deployment(
    id="deploy-01k7m3v5c8t9x2r4w6y8z0ab",
    project=_PROJECT,
    name="support",
    model=TUNED.name,
    method="lora",
    base_model=BASE.name,
    capacity=2,
    ready=1,
    status=DeploymentStatus.UPDATING,
    progress=0.0,
    error=None,
    created_by="key-01k7m3v5c8t9x2r4w6y8z0a1",
    created_at=MADE_AT,
    changed_at=MADE_AT + timedelta(minutes=1),
)

EVENT = JobEvent(
    id="ftevent-01k7m3v5c8t9x2r4w6y8z0a4",
    job=JOB.id,
    number=7,
    level="info",
    kind="metrics",
    message="Step 25/100: training loss=1.31",
    data={"step": 25, "total_steps": 100, "train_loss": 1.31, "learning_rate": 2e-3, "trained_tokens": 12_050},
    created_at=MADE_AT + timedelta(minutes=1),
)

CHECKPOINT = Checkpoint(
    id="ftckpt-01k7m3v5c8t9x2r4w6y8z0a5",
    job=JOB.id,
    step=25,
    model_name=f"{JOB.model_name}-step-25",
    metrics={"step": 25, "train_loss": 1.31},
    created_at=MADE_AT + timedelta(minutes=1),
)

_TOKENS = [
    Token(id=place, text=text, trained=place in (12, 2))
    for place, text in ((9, "user"), (10, "Hi"), (11, "assistant"), (12, "Hello"), (2, "<|im_end|>"))
]
ROW = Preview(
    row=1,
    line=1,
    format="messages",
    kind="chat",
    text="".join(token.text for token in _TOKENS),
    tokens=_TOKENS,
    trained_tokens=2,
    billed_tokens=len(_TOKENS),
    sequences=[],
)

UPLOAD = Upload(
    id="upload-01k7m3v5c8t9x2r4w6y8z0a6",
    filename=FILE.filename,
    purpose=FILE.purpose,
    bytes=FILE.bytes,
    status="completed",
    created_at=MADE_AT,
    expires_at=MADE_AT + timedelta(hours=1),
    file=FILE,
)

PART = Part(id="part-01k7m3v5c8t9x2r4w6y8z0a8", upload=UPLOAD.id, bytes=FILE.bytes, created_at=MADE_AT)

ANSWER = Answer(text="It is Paris.", prompt_tokens=24, completion_tokens=5)

_ASKED_LATER = ("task-01k7m3v5c8t9x2r4w6y8z0a9", "mine-1", BASE.name)
TAKEN = AsyncCompletion(*_ASKED_LATER, "processing", [], None, MADE_AT)
LATER = AsyncCompletion(*_ASKED_LATER, "succeeded", [ANSWER], None, MADE_AT)

REFUSAL = InvalidParameter("temperature", "must be at most 2, got 3")
ABSENCE = ReplicaUnavailable("The model is being loaded.", retry_after=5)


async def deltas() -> AsyncGenerator[Delta, None]:
    """ANSWER as it is made."""
    first, _, last = ANSWER.text.partition(" ")
    yield Delta(0, TokenChunk(text=first))
    yield Delta(0, TokenChunk(text=f" {last}"))
    yield Delta(
        0, Finish(reason="stop", prompt_tokens=ANSWER.prompt_tokens, completion_tokens=ANSWER.completion_tokens)
    )


async def events_of_job() -> AsyncGenerator[JobEvent | None, None]:
    yield EVENT


async def changes_of_deployment() -> AsyncGenerator[Deployment | None, None]:
    yield DEPLOYMENT


async def complete(request: CompletionRequest) -> AsyncGenerator[Delta, None]:
    """What Inference gives for any request here."""
    return deltas()


def all_of(given: AsyncIterable[Any]) -> list[Any]:
    """Everything of what waits for nothing, without a loop of events."""

    async def collected() -> list[Any]:
        return [one async for one in given]

    try:
        collected().send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def events(response: StreamingResponse) -> str:
    """A stream as it is sent."""
    return b"".join(all_of(response.body_iterator)).decode()
