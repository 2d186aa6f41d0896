"""A file from one client trains by another's job and answers through a third's call: each in its own environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from luthier.testing import jsonl, toy_rows
from tests.compat.environments import CLIENTS, python_of
from tests.servers import KEY, RunningServer, wait_for

pytestmark = pytest.mark.timeout(600)  # environments are made, a model is trained

ZHIPU_UPLOADS = """
from zhipuai import ZhipuAI
client = ZhipuAI(base_url=URL + "/api/paas/v4/", api_key=KEY)
print(client.files.create(file=open("rows.jsonl", "rb"), purpose="fine-tune").id)
"""
DASHSCOPE_TRAINS = """
import dashscope
dashscope.base_http_api_url, dashscope.api_key = URL + "/api/v1", KEY
asked = dict(mode="efficient_sft", hyper_parameters={"n_epochs": 1, "batch_size": "6"})
print(dashscope.FineTunes.call(model="toy", training_file_ids=[GIVEN], **asked).output.job_id)
"""
DASHSCOPE_LOOKS = """
import dashscope
dashscope.base_http_api_url, dashscope.api_key = URL + "/api/v1", KEY
output = dashscope.FineTunes.get(GIVEN).output
print(output.status, output.finetuned_output if output.status == "SUCCEEDED" else "-")
"""
ZAI_SAYS = """
from zai import ZhipuAiClient
client = ZhipuAiClient(base_url=URL + "/api/paas/v4/", api_key=KEY)
said = client.chat.completions.create(
    model=GIVEN, messages=[{"role": "user", "content": "ab"}], do_sample=False, max_tokens=8
)
print("said", said.choices[0].message.content)
"""
OPENAI_DELETES = """
from openai import OpenAI
client = OpenAI(base_url=URL + "/v1", api_key=KEY)
print(client.models.delete(GIVEN).deleted)
"""
DASHSCOPE_SAYS = """
import dashscope
dashscope.base_http_api_url, dashscope.api_key = URL + "/api/v1", KEY
print(dashscope.Generation.call(model=GIVEN, prompt="ab").status_code)
"""


def test_what_one_client_brings_another_uses(toy_server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(toy_rows(12)))

    def by(client: str, program: str, given: str = "") -> list[str]:
        names = f"URL, KEY, GIVEN = {(toy_server.url, KEY, given)!r}\n"
        done = subprocess.run(
            [str(python_of(next(one for one in CLIENTS if one.name == client))), "-c", names + program],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    [file] = by("zhipuai", ZHIPU_UPLOADS)
    [job] = by("dashscope-1", DASHSCOPE_TRAINS, file)
    status, model = wait_for(
        lambda: (seen := by("dashscope", DASHSCOPE_LOOKS, job))[0] in ("SUCCEEDED", "FAILED") and seen, every=1.0
    )
    assert status == "SUCCEEDED"
    assert by("zai", ZAI_SAYS, model)[0] == "said"
    assert by("openai", OPENAI_DELETES, model) == ["True"]
    assert by("dashscope", DASHSCOPE_SAYS, model) == ["404"]
