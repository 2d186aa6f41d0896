"""The one exception tree.

LuthierError
├── InvalidRequest            the caller can fix it
│   ├── InvalidParameter      `param` names the field
│   ├── DatasetInvalid        problems of a file, all found in one reading
│   ├── FileNotChecked        a file that is still being read
│   ├── MethodNotAllowed      this base model does not offer that method
│   ├── NotOffered            a published call or field that this server does not offer
│   └── ContextTooLong        the prompt does not fit the model
├── Unauthenticated
├── PermissionDenied
├── NotFound                  FileNotFound · JobNotFound · ModelNotFound · ModelNotDeployed · DeploymentNotFound
├── Conflict                  InvalidTransition · AlreadyExists
├── QuotaExceeded             RateLimited
├── Unavailable               NoCapacity · ReplicaUnavailable · StorageUnavailable
├── AnswerTookTooLong         it was not complete in the time that one may take
├── RunFailed                 what ends a run: OutOfMemory · LossDiverged · CheckpointUnreadable · RunLost
└── InternalError             a fault of ours

A class is a sentence with a stable `code`. It never carries an HTTP status: that is each dialect's business.
"""

from __future__ import annotations


class LuthierError(Exception):
    """Something a caller is told about. `hint` says what to do next, `retry_after` is in seconds."""

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        self.retry_after = retry_after

    @property
    def text(self) -> str:
        """The message and, where there is one, the hint: what a person should read."""
        return f"{self.message} {self.hint}" if self.hint else self.message


class InvalidRequest(LuthierError):
    code = "invalid_request"


class InvalidParameter(InvalidRequest):
    code = "invalid_parameter"

    def __init__(self, param: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{param}: {message}", param=param, hint=hint)


class DatasetInvalid(InvalidRequest):
    """`problems` are (line, what is wrong), lines counted from 1."""

    code = "invalid_training_file"

    def __init__(self, message: str, problems: list[tuple[int, str]], *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.problems = problems


class FileNotChecked(InvalidRequest):
    code = "file_not_checked"


class MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"


class NotOffered(InvalidRequest):
    code = "not_offered"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthenticated(LuthierError):
    code = "invalid_api_key"


class PermissionDenied(LuthierError):
    code = "permission_denied"


class NotFound(LuthierError):
    code = "not_found"


class FileNotFound(NotFound):
    code = "file_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class ModelNotDeployed(NotFound):
    """A model that no shared replica can answer for: it must be deployed first."""

    code = "model_not_deployed"


class DeploymentNotFound(NotFound):
    code = "deployment_not_found"


class Conflict(LuthierError):
    code = "conflict"


class InvalidTransition(Conflict):
    code = "invalid_transition"


class AlreadyExists(Conflict):
    code = "already_exists"


class QuotaExceeded(LuthierError):
    code = "quota_exceeded"


class RateLimited(QuotaExceeded):
    """Too many requests for now; `retry_after` says when to come again."""

    code = "rate_limit_exceeded"


class Unavailable(LuthierError):
    code = "unavailable"


class NoCapacity(Unavailable):
    code = "no_capacity"


class ReplicaUnavailable(Unavailable):
    code = "replica_unavailable"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class AnswerTookTooLong(LuthierError):
    code = "answer_took_too_long"


class RunFailed(LuthierError):
    """What ends a run; the trainer writes it into its last event with the same code."""

    code = "run_failed"


class OutOfMemory(RunFailed):
    code = "out_of_memory"


class LossDiverged(RunFailed):
    code = "loss_diverged"


class CheckpointUnreadable(RunFailed):
    code = "checkpoint_unreadable"


class RunLost(RunFailed):
    code = "run_lost"


class InternalError(LuthierError):
    code = "internal_error"
