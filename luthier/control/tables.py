"""Every table in one place, for what needs to know them all: migrations, and the test of their owners."""

from luthier.control.accounts.tables import KeyRow, ProjectRow
from luthier.control.audit import AuditRow
from luthier.control.catalog.tables import ModelRow
from luthier.control.datasets.tables import FileRow, LengthsRow, UploadPartRow, UploadRow
from luthier.control.deployments.tables import DeploymentRow, ReplicaRow
from luthier.control.inference.tables import AsyncCompletionRow
from luthier.control.jobs.tables import CheckpointRow, EventRow, JobRow, RunRow

__all__ = [
    "AsyncCompletionRow",
    "AuditRow",
    "CheckpointRow",
    "DeploymentRow",
    "EventRow",
    "FileRow",
    "JobRow",
    "KeyRow",
    "LengthsRow",
    "ModelRow",
    "ProjectRow",
    "ReplicaRow",
    "RunRow",
    "UploadPartRow",
    "UploadRow",
]
