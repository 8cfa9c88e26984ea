"""The catalogue: what each error code means for whoever meets it.

Type, severity, status, whether to retry, what to say and what to do come from here alone, never from where an
error is raised. Where the seeds disagree, the row of the code decides (seed 001, appendix):

- INVALID_CONFIG is low although ConfigurationError, its class, is medium; TRAINER_UNREACHABLE is medium although
  ServiceUnavailableError is high; TRAINING_TIMEOUT is permanent although TimeoutError is transient.
- ValidationError is 400 (seed 001) and ValidationException 422 (seed 002): two codes.
- ConfigurationError is 422, the fault of a request (seed 001); ConfigurationException is 500, the fault of a
  deployment (seed 002): two codes.
- StorageError and StorageException are one: 500.
- A model that exists already is 409 in seeds 002 and 003: one code, MODEL_EXISTS.
- Seed 000 knows 400, 404 and 503 alone: its dialect maps, the catalogue does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MESSAGE_CHARS: Final = 100  # a message for people is shorter (seed 001)
_VALUE_CHARS: Final = 40


class ErrorType(StrEnum):
    """Who has to act (seed 001, Error Taxonomy)."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    USER_ERROR = "user_error"
    SYSTEM_ERROR = "system_error"


class Severity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class RetryMode(StrEnum):
    """How the same work may be tried again.

    Never; by itself, after ``retry_after_s``; by a person, after ``retry_after_s``; or changed.
    """

    NONE = "none"
    AUTO = "auto"
    AFTER_DELAY = "after_delay"
    AFTER_CHANGE = "after_change"


@dataclass(frozen=True, slots=True)
class Entry:
    """One code.

    Attributes:
        status: HTTP status in the ``detail`` and ``platform`` dialects.
        message: For people, under 100 characters; ``{name}`` stands for a detail of the error.
        suggested_action: What to do next; with ``{name}`` likewise.
        retry_after_s: Seconds to wait where the error itself does not know better; None where waiting does
            not help.
    """

    code: str
    type: ErrorType
    severity: Severity
    status: int
    retry: RetryMode
    message: str
    suggested_action: str
    retry_after_s: int | None = None

    @property
    def retryable(self) -> bool:
        """Whether it can succeed although the request was right: not where the request must change."""
        return self.retry is not RetryMode.NONE and self.type in (ErrorType.TRANSIENT, ErrorType.SYSTEM_ERROR)

    def message_for(self, details: Mapping[str, object]) -> str:
        return filled(self.message, details)

    def action_for(self, details: Mapping[str, object]) -> str:
        return filled(self.suggested_action, details)


def filled(template: str, details: Mapping[str, object]) -> str:
    """The template with its placeholders filled; never raises, and stays short enough to be read.

    >>> filled("The limit of {limit} {resource} is reached.", {"limit": 3})
    'The limit of 3 … is reached.'
    """
    text = template.format_map(_Known(details))
    return text if len(text) < MESSAGE_CHARS else text[: MESSAGE_CHARS - 2] + "…"


class _Known(dict[str, object]):
    """Details that are missing, empty or long are shown as an ellipsis or cut."""

    def __missing__(self, name: str) -> str:
        return "…"

    def __getitem__(self, name: str) -> str:
        value = super().get(name)
        text = "…" if value is None else str(value)
        return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 1] + "…"


def _catalogue(*entries: Entry) -> Mapping[str, Entry]:
    return {entry.code: entry for entry in entries}


_T, _P, _U, _S = ErrorType.TRANSIENT, ErrorType.PERMANENT, ErrorType.USER_ERROR, ErrorType.SYSTEM_ERROR
_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL
_NONE, _AUTO, _DELAY, _CHANGE = RetryMode.NONE, RetryMode.AUTO, RetryMode.AFTER_DELAY, RetryMode.AFTER_CHANGE

CATALOGUE: Final = _catalogue(
    # The request (seeds 000 and 001, and the edge)
    Entry("VALIDATION_FAILED", _U, _LOW, 400, _CHANGE, "Invalid value for {field}: {constraint}.", "Provide a valid value for {field}."),
    Entry("INVALID_REQUEST", _U, _LOW, 400, _CHANGE, "The request cannot be carried out as it is.", "Change what the message names and send it again."),
    Entry("MALFORMED_BODY", _U, _LOW, 400, _CHANGE, "The body is not what this route reads.", "Send one JSON object, encoded as UTF-8."),
    Entry("INVALID_PARAMETER", _U, _LOW, 400, _CHANGE, "A field has a value that is not accepted.", "Correct the named field; GET /api/v1/limits lists the ranges."),
    Entry("INVALID_DATA_TARGET", _U, _LOW, 400, _CHANGE, "The data to train on is not named completely.", "Give target_column and one of dataset_id and data_path."),
    Entry("INVALID_TEACHER", _U, _LOW, 400, _CHANGE, "The teacher is missing or cannot be used.", "Give teacher_run_id, teacher_model_path or teacher_model_id of a trained model."),
    Entry("SCHEMA_VIOLATION", _U, _LOW, 422, _CHANGE, "The request does not fit the schema of the route.", "Correct the fields that the answer lists."),
    Entry("SCHEMA_MISMATCH", _U, _LOW, 422, _CHANGE, "The rows do not fit the columns that the model was trained on.", "Send every column of the model's schema, with values of its type."),
    Entry("PAYLOAD_TOO_LARGE", _U, _LOW, 413, _CHANGE, "The body is larger than this service accepts.", "Send less; GET /api/v1/limits tells the limit."),
    Entry("HEADERS_TOO_LARGE", _U, _LOW, 431, _CHANGE, "The headers are larger than this service accepts.", "Send fewer or shorter headers."),
    Entry("UNSUPPORTED_MEDIA_TYPE", _U, _LOW, 415, _CHANGE, "The body comes in an encoding that is not read here.", "Send it as it is, or with Content-Encoding: gzip."),
    Entry("REQUEST_TIMEOUT", _T, _MEDIUM, 408, _AUTO, "The body did not arrive in time.", "Send it again on a faster connection.", 1),
    Entry("NOT_FOUND", _P, _LOW, 404, _NONE, "There is nothing at this address.", "GET /docs lists the routes."),
    Entry("METHOD_NOT_ALLOWED", _P, _LOW, 405, _CHANGE, "This route does not take that method.", "Use a method named in the Allow header."),
    Entry("IDEMPOTENCY_KEY_REUSED", _U, _LOW, 422, _CHANGE, "This Idempotency-Key came with another request before.", "Send a new key with a new request."),
    Entry("IDEMPOTENCY_IN_PROGRESS", _T, _LOW, 409, _DELAY, "The first request with this Idempotency-Key is still at work.", "Send the same request again in a few seconds for its answer.", 5),
    Entry("RATE_LIMITED", _T, _LOW, 429, _AUTO, "Rate limit exceeded. Please try again later.", "Wait {retry_after} s, then go on more slowly.", 60),
    # Who may (seed 001)
    Entry("INVALID_TOKEN", _P, _LOW, 401, _CHANGE, "The bearer token is missing or not accepted.", "Send Authorization: Bearer <token> with a valid token."),
    Entry("INSUFFICIENT_PERMISSIONS", _P, _LOW, 403, _NONE, "This token may not {action}.", "Ask the operator for a token with the scope {required_role}."),
    Entry("QUOTA_EXCEEDED", _U, _MEDIUM, 429, _CHANGE, "The limit of {limit} {resource} is reached.", "Finish or delete some {resource}, or ask for a higher limit."),
    # Configurations (seed 001)
    Entry("CONFIGURATION_INVALID", _P, _MEDIUM, 422, _CHANGE, "Configuration error: {issue}.", "Correct the field {field} of the configuration."),
    Entry("INVALID_CONFIG", _P, _LOW, 422, _CHANGE, "The training settings are not valid: {details}.", "Correct the named field; GET /api/v1/limits lists the ranges."),
    Entry("INVALID_MODEL", _P, _LOW, 422, _CHANGE, "The model or training mode is not supported here.", "Choose one of those that the message lists."),
    # Datasets
    Entry("DATASET_VALIDATION_FAILED", _U, _MEDIUM, 422, _CHANGE, "The dataset does not hold what it must: {issue}.", "Check the dataset and upload it again."),
    Entry("DATASET_INVALID_FORMAT", _U, _MEDIUM, 400, _CHANGE, "The table cannot be read or trained on.", "Correct the line or column that the message names and upload it again."),
    Entry("DATASET_TOO_LARGE", _U, _MEDIUM, 413, _CHANGE, "The table is larger than this service accepts.", "Send fewer rows or columns; GET /api/v1/limits tells the limits."),
    Entry("DATASET_BROKEN", _P, _HIGH, 409, _CHANGE, "The dataset changed since it was prepared.", "Upload it again and start anew."),
    Entry("DATASET_NOT_FOUND", _P, _LOW, 404, _CHANGE, "This dataset is not available.", "Upload it with POST /api/v1/datasets or choose another."),
    # Things that are not there, or there already
    Entry("RESOURCE_NOT_FOUND", _P, _LOW, 404, _NONE, "The {resource_type} does not exist.", "Check the id of the {resource_type} and try again."),
    Entry("RUN_NOT_FOUND", _P, _LOW, 404, _CHANGE, "There is no such run, or it has expired.", "Train again, or save runs that must outlive their time to live."),
    Entry("MODEL_NOT_FOUND", _P, _LOW, 404, _NONE, "There is no such model.", "GET /api/v1/models lists the saved ones."),
    Entry("RESOURCE_CONFLICT", _P, _LOW, 409, _CHANGE, "Something of that name already exists.", "Choose another name, or delete the one that is there."),
    Entry("MODEL_EXISTS", _U, _LOW, 409, _CHANGE, "A model of this name already exists.", "Choose another model_id or set overwrite to true."),
    Entry("BUNDLE_INVALID", _P, _HIGH, 400, _CHANGE, "The model file is damaged or of an unknown kind.", "Train the model again, or restore the file."),
    # Training
    Entry("TRAINING_FAILED", _S, _HIGH, 500, _NONE, "Training could not be completed.", "Read the message; change the data or the settings it names."),
    Entry("TRAINING_DIVERGED", _P, _MEDIUM, 422, _CHANGE, "Training stopped because the loss is no longer a number.", "Lower learning_rate, or check the columns for extreme values."),
    Entry("TRAINING_TIMEOUT", _P, _MEDIUM, 504, _CHANGE, "Training passed its limit of {limit_s} seconds.", "Lower epochs or send fewer rows."),
    Entry("TRAINING_STOPPED", _T, _LOW, 503, _AUTO, "Training was stopped before it ended.", "Send the request again.", 5),
    Entry("CHECKPOINT_INVALID", _P, _MEDIUM, 422, _CHANGE, "Training cannot go on from this checkpoint.", "Resume from another checkpoint, or start anew."),
    Entry("CUDA_OOM", _S, _HIGH, 500, _CHANGE, "The GPU ran out of memory during training.", "Lower batch_size (now {batch_size}) or choose a smaller model, then retry."),
    Entry("HOST_OOM", _S, _HIGH, 500, _CHANGE, "The training process ran out of memory.", "Use fewer rows or columns, or ask for more memory, then retry."),
    Entry("RUNTIME_UNAVAILABLE", _S, _HIGH, 503, _NONE, "PyTorch is not available where training would run.", "Ask the operator to install PyTorch on the trainer nodes."),
    Entry("TRAINER_UNREACHABLE", _T, _MEDIUM, 503, _AUTO, "Training cannot start right now.", "The service is busy or restarting; try again in {retry_after} s.", 30),
    # Training jobs (seed 001; jobs.md, section 14)
    Entry("JOB_NOT_FOUND", _P, _LOW, 404, _NONE, "There is no such training job.", "Check its id: GET /api/v1/training-jobs lists your jobs."),
    Entry("JOB_STATE_CONFLICT", _P, _LOW, 409, _NONE, "This is not possible while the job is {state}.", "Read the job's status before you ask for another."),
    Entry("JOB_CANCELLED", _P, _LOW, 409, _CHANGE, "The job was cancelled.", "Retry the job to run it again."),
    Entry("JOB_STALE", _S, _HIGH, 504, _DELAY, "The training was silent for {silent_s} seconds and was ended.", "Retry the job; it goes on from its last checkpoint.", 30),
    Entry("WORKER_DIED", _T, _HIGH, 500, _AUTO, "The trainer of this job was lost.", "Wait: the job goes on from its last checkpoint by itself.", 30),
    Entry("GPU_UNAVAILABLE", _T, _HIGH, 503, _AUTO, "No GPU is free for this job.", "Wait until one is free, or run the job on the CPU.", 30),
    Entry("DISK_FULL", _S, _HIGH, 500, _DELAY, "The disk of the trainer or of storage is full.", "Tell the operator, then retry the job.", 60),
    Entry("SNAPSHOT_FAILED", _S, _HIGH, 500, _DELAY, "The snapshot of the dataset could not be written.", "Retry the job; tell the operator if it persists.", 30),
    Entry("CALLBACK_REJECTED", _U, _LOW, 400, _CHANGE, "The callback of the trainer is not valid.", "Send what the message names."),
    Entry("MODEL_NOT_READY", _T, _LOW, 409, _DELAY, "The job has no model yet.", "Wait until the job is completed.", 10),
    # Parts of the service, and services beside it (seed 001)
    Entry("NETWORK_ERROR", _T, _MEDIUM, 503, _AUTO, "Unable to connect to {service}.", "Try again in a few seconds.", 5),
    Entry("SERVICE_UNAVAILABLE", _T, _HIGH, 503, _AUTO, "Part of the service does not answer at this time.", "Try again in {retry_after} s.", 5),
    Entry("QUEUE_FULL", _T, _MEDIUM, 503, _AUTO, "Too much work waits for the trainers already.", "Try again in {retry_after} s.", 10),
    Entry("SERVICE_OVERLOADED", _T, _MEDIUM, 503, _AUTO, "The service has more requests than it can take.", "Try again in {retry_after} s.", 5),
    Entry("CIRCUIT_OPEN", _T, _HIGH, 503, _DELAY, "{service} failed repeatedly and is being given time to recover.", "Try again in {retry_after} s.", 30),
    Entry("OPERATION_TIMEOUT", _T, _MEDIUM, 504, _AUTO, "The operation took too long and was cancelled.", "Try again; if it persists, send fewer rows or a smaller model.", 5),
    Entry("DATABASE_ERROR", _S, _CRITICAL, 500, _DELAY, "A system error occurred; the operators have been notified.", "Try again later; tell the operator the request id if it persists.", 30),
    Entry("STORAGE_ERROR", _S, _HIGH, 500, _DELAY, "Storage could not be read or written.", "Try again later; tell the operator if it persists.", 30),
    Entry("MLFLOW_UNAVAILABLE", _T, _LOW, 503, _AUTO, "The tracking server does not answer; training goes on without it.", "Nothing: what was tracked is sent when it answers again.", 60),
    Entry("TEMPORAL_ERROR", _S, _CRITICAL, 500, _AUTO, "The workflow engine failed; jobs are started directly.", "Try again later; tell the operator the request id if it persists.", 60),
    Entry("SYSTEM_ERROR", _S, _CRITICAL, 500, _NONE, "An unexpected error occurred.", "Tell the operator the request id, which the log has too."),
    # Spectra (seed 002)
    Entry("DOMAIN_VALIDATION_FAILED", _U, _LOW, 422, _CHANGE, "Validation failed.", "Correct what the message names and send it again."),
    Entry("FILE_VALIDATION_FAILED", _U, _LOW, 422, _CHANGE, "File validation failed.", "Correct the file and upload it again."),
    Entry("MODEL_VALIDATION_FAILED", _U, _LOW, 422, _CHANGE, "Model validation failed.", "Correct the model or its class mapping and upload it again."),
    Entry("SPECTRUM_VALIDATION_FAILED", _U, _LOW, 422, _CHANGE, "Spectrum validation failed.", "Correct the spectrum and send it again."),
    Entry("CLASSIFICATION_FAILED", _U, _MEDIUM, 400, _CHANGE, "Classification failed.", "Check the spectrum and the options, then send it again."),
    Entry("SPECTRUM_PROCESSING_FAILED", _U, _MEDIUM, 400, _CHANGE, "Spectrum processing failed.", "Check the spectrum and the options, then send it again."),
    Entry("BATCH_PROCESSING_FAILED", _U, _MEDIUM, 400, _CHANGE, "Batch processing failed.", "Check the files that the message names, then send them again."),
    Entry("FILE_READ_ERROR", _U, _LOW, 400, _CHANGE, "The file could not be read.", "Correct the line or column that the message names."),
    Entry("UNSUPPORTED_FILE_FORMAT", _U, _LOW, 400, _CHANGE, "This file format is not supported.", "Use one of the formats that the message lists."),
    Entry("FILE_NOT_FOUND", _P, _LOW, 404, _NONE, "There is no such file.", "Check its name and try again."),
    Entry("SPECTRUM_NOT_FOUND", _P, _LOW, 404, _NONE, "There is no such spectrum.", "Check its id and try again."),
    Entry("TEMPLATE_NOT_FOUND", _P, _LOW, 404, _CHANGE, "There is no template for this type and age.", "Choose a type and an age that the analysis options list."),
    Entry("LINE_LIST_NOT_FOUND", _P, _LOW, 404, _NONE, "There is no such line list.", "Check its name and try again."),
    Entry("ELEMENT_NOT_FOUND", _P, _LOW, 404, _CHANGE, "The line list has no such element.", "Choose an element of the line list."),
    Entry("CONFIGURATION_ERROR", _S, _HIGH, 500, _NONE, "Configuration error.", "Tell the operator the request id, which the log has too."),
    Entry("MODEL_CONFIGURATION_ERROR", _S, _HIGH, 500, _NONE, "Model configuration error.", "Tell the operator the request id, which the log has too."),
    Entry("EXTERNAL_SERVICE_ERROR", _S, _HIGH, 500, _DELAY, "A service beside this one failed.", "Try again later; tell the operator if it persists.", 30),
    Entry("OSC_SERVICE_ERROR", _S, _MEDIUM, 500, _DELAY, "OSC service error.", "Try again later, or send the spectrum as a file.", 30),
    # Forecasting (seed 003)
    Entry("EMPTY_CONTEXT", _U, _LOW, 400, _CHANGE, "The context and each of its series must hold values.", "Send at least one value for each series."),
    Entry("UNSUPPORTED_QUANTILE", _U, _LOW, 400, _CHANGE, "Quantile levels must be among 0.1, 0.2, … 0.9.", "Choose levels among them."),
    Entry("HORIZON_TOO_LONG", _U, _LOW, 400, _CHANGE, "The horizon is longer than this model computes.", "Lower horizon to the limit that the message names."),
    Entry("MODEL_NOT_OF_TYPE", _U, _LOW, 400, _CHANGE, "The model is not a member of the requested type.", "Choose a model of this type, or its own type."),
    Entry("UNKNOWN_WEIGHTS", _U, _LOW, 400, _CHANGE, "The weights name a model that is not of this type.", "Give weights to models of this type only."),
    Entry("COVARIATES_MISMATCH", _U, _LOW, 400, _CHANGE, "The covariates do not fit the context or the horizon.", "Give past values for the context and future ones for the horizon."),
    Entry("INVALID_SAMPLES", _U, _LOW, 400, _CHANGE, "The number of samples must be at least 1.", "Raise numSamples to 1 or more."),
    Entry("SERIES_MISMATCH", _U, _LOW, 400, _CHANGE, "Target and features must have the same series and the same names.", "Send the same number of series, each with the same features."),
    Entry("MODE_CONFLICT", _U, _LOW, 400, _CHANGE, "The mode does not fit the backend, the levels or the model.", "Choose a mode that the message names."),
    Entry("FEATURES_MISSING", _U, _LOW, 400, _CHANGE, "Features that the model was trained on are missing.", "Send every feature that the message names."),
    Entry("META_MODE_UNSUPPORTED", _U, _LOW, 400, _CHANGE, "This combination of members and mode is not supported.", "Choose the mode that the message names."),
    Entry("FORECASTER_NOT_FOUND", _P, _LOW, 404, _NONE, "There is no forecasting model of that name.", "Choose one that the list of models has."),
    Entry("BACKEND_GONE", _P, _MEDIUM, 410, _CHANGE, "The backend of this model no longer exists here.", "Train it again with a backend that exists."),
    Entry("MODEL_DOWNLOAD_FAILED", _T, _MEDIUM, 503, _AUTO, "The model could not be downloaded.", "Try again in {retry_after} s; operators can fetch it beforehand.", 30),
    Entry("INFERENCE_FAILED", _T, _HIGH, 503, _DELAY, "The model failed while it computed.", "Shorten the context and try again; report it if it persists.", 5),
    Entry("SIDECAR_UNREACHABLE", _T, _MEDIUM, 503, _AUTO, "The worker of this model does not answer.", "Try again in {retry_after} s, when it has restarted.", 5),
)  # fmt: skip
