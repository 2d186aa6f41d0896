"""A job as OpenAI's clients ask for it."""

from __future__ import annotations

from luthier.api.shapes.wire import jobs
from luthier.control.jobs.values import JobRequest
from luthier.training.spec import PluginChoice

LEAST_ROWS = 10
"""OpenAI refuses a training file with fewer rows; so does this dialect."""


class CreateJob(jobs.CreateJob):
    def to_request(self) -> JobRequest:
        return self.asked(objective=PluginChoice(name="sft"), least_rows=LEAST_ROWS)
