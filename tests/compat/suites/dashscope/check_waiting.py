"""What the command line was told to wait for before the first check; its file is the last by name."""

from __future__ import annotations

import re

import dashscope


def test_a_job_that_the_command_line_waits_for_succeeds(cli, called, waiting) -> None:
    """2.x has a fault of its own once it sees a job run: it stops waiting with `Invalid response for job`."""
    said = cli.finished(called)
    made = re.search(r"Create fine-tune job success, job_id: (ftjob-\w+)", said)
    assert made, said

    def ended():
        job = dashscope.FineTunes.get(made[1]).output
        return job if job.status in ("SUCCEEDED", "FAILED", "CANCELED") else None

    job = waiting(ended)
    assert job.status == "SUCCEEDED", job
    assert job.training_type == "efficient_sft" and job.validation_file_ids == []
    gave_up = hasattr(dashscope, "Client") and "Invalid response for job" in said
    assert gave_up or f"fine-tuned model:{job.finetuned_output}" in said.replace("model: ", "model:"), said
