"""The twelve classes of seed 001 and the failures of the platform below them."""

from functools import cached_property

from core.catalogue import ErrorType, RetryMode, Severity
from core.errors.base import StillhouseError

# ── Transient ───────────────────────────────────────────────────────────────────────────────────────────────


class NetworkError(StillhouseError):
    """Details: ``service``."""

    code = "NETWORK_ERROR"


class ServiceUnavailableError(StillhouseError):
    """Try again later. Details: ``service``, ``retry_after``."""

    code = "SERVICE_UNAVAILABLE"


class QueueFullError(ServiceUnavailableError):
    code = "QUEUE_FULL"


class OverloadedError(ServiceUnavailableError):
    code = "SERVICE_OVERLOADED"


class CircuitOpenError(ServiceUnavailableError):
    """A breaker spares a failing service; ``retry_after`` is what remains of its cool-down."""

    code = "CIRCUIT_OPEN"


class RuntimeUnavailableError(ServiceUnavailableError):
    code = "RUNTIME_UNAVAILABLE"


class TrainerUnreachableError(ServiceUnavailableError):
    code = "TRAINER_UNREACHABLE"


class TrainingStoppedError(ServiceUnavailableError):
    """Nobody waits for the answer any more, or the service is going down."""

    code = "TRAINING_STOPPED"


class WorkerDiedError(ServiceUnavailableError):
    """The process that ran a job is gone."""

    code = "WORKER_DIED"


class GpuUnavailableError(ServiceUnavailableError):
    code = "GPU_UNAVAILABLE"


class ModelNotReadyError(ServiceUnavailableError):
    code = "MODEL_NOT_READY"


class MlflowUnavailableError(ServiceUnavailableError):
    code = "MLFLOW_UNAVAILABLE"


class TimeoutError(StillhouseError):  # noqa: A001  # the customer's name
    """Permanent with ``is_retryable=False``. Details: ``operation``, ``timeout_seconds``."""

    code = "OPERATION_TIMEOUT"

    @cached_property
    def error_type(self) -> ErrorType:
        return ErrorType.PERMANENT if self.details.get("is_retryable") is False else super().error_type

    @cached_property
    def retryable(self) -> bool:
        return super().retryable and self.details.get("is_retryable") is not False


class RequestTimeoutError(TimeoutError):
    code = "REQUEST_TIMEOUT"


class TrainingTimeoutError(TimeoutError):
    """Details: ``limit_s``."""

    code = "TRAINING_TIMEOUT"


# ── Permanent ───────────────────────────────────────────────────────────────────────────────────────────────


class ConfigurationError(StillhouseError):
    """A request that asks for what cannot be. Details: ``field``, ``issue``."""

    code = "CONFIGURATION_INVALID"


class TrainingModeError(ConfigurationError):
    code = "INVALID_MODEL"


class HiddenConfigError(ConfigurationError):
    code = "INVALID_CONFIG"


class ResourceNotFoundError(StillhouseError):
    """Details: ``resource_type``, ``resource_id``."""

    code = "RESOURCE_NOT_FOUND"


class NotFoundError(ResourceNotFoundError):
    """No route has this address."""

    code = "NOT_FOUND"


class MethodNotAllowedError(NotFoundError):
    """Details: ``allow``, the methods that the route takes."""

    code = "METHOD_NOT_ALLOWED"


class DatasetNotFoundError(ResourceNotFoundError):
    code = "DATASET_NOT_FOUND"


class RunNotFoundError(ResourceNotFoundError):
    code = "RUN_NOT_FOUND"


class ModelNotFoundError(ResourceNotFoundError):
    code = "MODEL_NOT_FOUND"


class JobNotFoundError(ResourceNotFoundError):
    code = "JOB_NOT_FOUND"


class JobStateConflictError(StillhouseError):
    """Details: ``state``, the job's current one."""

    code = "JOB_STATE_CONFLICT"


class JobBusyError(JobStateConflictError):
    """What is asked will be possible when the job has ended."""

    @cached_property
    def retryable(self) -> bool:
        return True

    @cached_property
    def retry_mode(self) -> RetryMode:
        return RetryMode.AFTER_DELAY


class JobCancelledError(StillhouseError):
    code = "JOB_CANCELLED"


class InsufficientPermissionsError(StillhouseError):
    """Details: ``action``, ``required_role``."""

    code = "INSUFFICIENT_PERMISSIONS"


class AuthenticationError(InsufficientPermissionsError):
    code = "INVALID_TOKEN"


# ── The user's ──────────────────────────────────────────────────────────────────────────────────────────────


class ValidationError(StillhouseError):
    """A request that must change before it can work. Details: ``field``, ``constraint``, ``value``."""

    code = "VALIDATION_FAILED"


class RequestError(ValidationError):
    code = "INVALID_REQUEST"


class MalformedBodyError(RequestError):
    code = "MALFORMED_BODY"


class ParameterError(RequestError):
    code = "INVALID_PARAMETER"


class DataTargetError(RequestError):
    code = "INVALID_DATA_TARGET"


class TeacherSourceError(RequestError):
    code = "INVALID_TEACHER"


class SchemaError(RequestError):
    """Details: ``violations``, a list of ``{type, loc, msg, input}`` as pydantic words them."""

    code = "SCHEMA_VIOLATION"


class PredictionInputError(RequestError):
    code = "SCHEMA_MISMATCH"


class PayloadTooLargeError(RequestError):
    code = "PAYLOAD_TOO_LARGE"


class HeadersTooLargeError(RequestError):
    code = "HEADERS_TOO_LARGE"


class UnsupportedMediaTypeError(RequestError):
    code = "UNSUPPORTED_MEDIA_TYPE"


class IdempotencyKeyReusedError(RequestError):
    code = "IDEMPOTENCY_KEY_REUSED"


class ResourceConflictError(ValidationError):
    code = "RESOURCE_CONFLICT"


class IdempotencyInProgressError(ResourceConflictError):
    code = "IDEMPOTENCY_IN_PROGRESS"


class ModelExistsError(ResourceConflictError):
    code = "MODEL_EXISTS"


class CallbackRejectedError(RequestError):
    code = "CALLBACK_REJECTED"


class CallbackForeignError(CallbackRejectedError):
    """A token of another job (jobs.md, row 49)."""

    @cached_property
    def status(self) -> int:
        return 403


class QuotaExceededError(StillhouseError):
    """Details: ``resource``, ``limit``, ``current``."""

    code = "QUOTA_EXCEEDED"


class RateLimitedError(QuotaExceededError):
    """Details: ``retry_after``."""

    code = "RATE_LIMITED"


class DatasetValidationError(StillhouseError):
    """The data, not the request, is at fault. Details: ``issue`` and what describes it."""

    code = "DATASET_VALIDATION_FAILED"


class DatasetError(DatasetValidationError):
    code = "DATASET_INVALID_FORMAT"


class DatasetTooLargeError(DatasetError):
    code = "DATASET_TOO_LARGE"


class DatasetBrokenError(DatasetValidationError):
    code = "DATASET_BROKEN"


# ── The system's ────────────────────────────────────────────────────────────────────────────────────────────


class DatabaseError(StillhouseError):
    """Details: ``operation``."""

    code = "DATABASE_ERROR"


class DatabaseUnavailableError(DatabaseError):
    """No connection could be had, so nothing was done: the same call may succeed soon (jobs.md, row 65)."""

    @cached_property
    def status(self) -> int:
        return 503

    @cached_property
    def retry_mode(self) -> RetryMode:
        return RetryMode.AUTO

    @cached_property
    def retry_after_s(self) -> float:
        return 5.0


class DatabaseTimeoutError(DatabaseError):
    """A statement took longer than it may (jobs.md, row 66)."""

    @cached_property
    def status(self) -> int:
        return 504

    @cached_property
    def error_type(self) -> ErrorType:
        return ErrorType.PERMANENT

    @cached_property
    def severity(self) -> Severity:
        return Severity.MEDIUM

    @cached_property
    def retry_mode(self) -> RetryMode:
        return RetryMode.NONE


class StorageError(StillhouseError):
    """Details: ``operation``, ``bucket``, ``key``."""

    code = "STORAGE_ERROR"


class DiskFullError(StorageError):
    code = "DISK_FULL"


class SnapshotError(StorageError):
    """What a job is to read could not be recorded."""

    code = "SNAPSHOT_FAILED"


class UnexpectedError(StillhouseError):
    """An exception that nobody foresaw: ``original``."""

    code = "SYSTEM_ERROR"


class WorkflowError(UnexpectedError):
    code = "TEMPORAL_ERROR"


class BundleError(StillhouseError):
    """A bundle file that cannot be trusted."""

    code = "BUNDLE_INVALID"


class CheckpointError(StillhouseError):
    """A kept state that training cannot go on from."""

    code = "CHECKPOINT_INVALID"


class CheckpointMissingError(CheckpointError):
    """There is none to go on from (jobs.md, row 58)."""

    @cached_property
    def status(self) -> int:
        return 409

    @cached_property
    def severity(self) -> Severity:
        return Severity.LOW


class TrainingError(StillhouseError):
    code = "TRAINING_FAILED"


class TrainingDivergedError(TrainingError):
    code = "TRAINING_DIVERGED"


class CudaOutOfMemoryError(TrainingError):
    """Details: ``batch_size``, ``allocated_bytes``, ``total_bytes``."""

    code = "CUDA_OOM"


class HostOutOfMemoryError(TrainingError):
    code = "HOST_OOM"


class JobStaleError(TrainingError):
    """Details: ``silent_s``."""

    code = "JOB_STALE"
