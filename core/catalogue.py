"""The catalogue: what each error code means for whoever meets it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core.errors import StillhouseError


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


@dataclass(frozen=True, slots=True)
class Entry:
    """One code.

    Attributes:
        status: HTTP status on routes of the ``detail`` dialect.
        message: For people, under 100 characters.
        retry_after_s: Seconds to wait before the same request is worth sending again; None where waiting
            does not help.
    """

    code: str
    type: ErrorType
    severity: Severity
    status: int
    message: str
    suggested_action: str
    retry_after_s: int | None = None

    @property
    def retryable(self) -> bool:
        return self.retry_after_s is not None


_T, _P, _U, _S = ErrorType.TRANSIENT, ErrorType.PERMANENT, ErrorType.USER_ERROR, ErrorType.SYSTEM_ERROR
_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL

CATALOGUE: Final = {
    entry.code: entry
    for entry in (
        Entry("INVALID_REQUEST", _U, _LOW, 400, "The request cannot be carried out as it is.", "Change what the message names and send it again."),
        Entry("MALFORMED_BODY", _U, _LOW, 400, "The body is not what this route reads.", "Send one JSON object, encoded as UTF-8."),
        Entry("INVALID_PARAMETER", _U, _LOW, 400, "A field has a value that is not accepted.", "Correct the named field; GET /api/v1/limits lists the ranges."),
        Entry("INVALID_DATA_TARGET", _U, _LOW, 400, "The data to train on is not named completely.", "Give target_column and one of dataset_id and data_path."),
        Entry("INVALID_TEACHER", _U, _LOW, 400, "The teacher is missing or cannot be used.", "Give teacher_run_id, teacher_model_path or teacher_model_id of a trained model."),
        Entry("INVALID_MODEL", _P, _LOW, 400, "The training mode is not supported here.", "Choose one of the modes that the message lists."),
        Entry("INVALID_CONFIG", _P, _LOW, 400, "The hidden layers are not configured correctly.", "Correct the named field; GET /api/v1/limits lists the ranges."),
        Entry("INVALID_PREDICTION_INPUT", _U, _LOW, 422, "The rows do not fit the model.", "Send every column of the model's schema, with values of its type."),
        Entry("SCHEMA_VIOLATION", _U, _LOW, 422, "The request does not fit the schema of the route.", "Correct the fields listed in detail."),
        Entry("BODY_TOO_LARGE", _U, _MEDIUM, 413, "The body is larger than this service accepts.", "Send less; GET /api/v1/limits tells the limit."),
        Entry("DATASET_INVALID_FORMAT", _U, _MEDIUM, 400, "The table cannot be read or trained on.", "Correct the line or column that the message names and upload it again."),
        Entry("DATASET_TOO_LARGE", _U, _MEDIUM, 413, "The table is larger than this service accepts.", "Send fewer rows or columns; GET /api/v1/limits tells the limits."),
        Entry("DATASET_NOT_FOUND", _P, _LOW, 404, "There is no such dataset.", "Upload it with POST /api/v1/datasets or choose another."),
        Entry("RUN_NOT_FOUND", _P, _LOW, 404, "There is no such run, or it has expired.", "Train again, or save runs that must outlive their time to live."),
        Entry("MODEL_NOT_FOUND", _P, _LOW, 404, "There is no such model.", "GET /api/v1/models lists the saved ones."),
        Entry("NOT_FOUND", _P, _LOW, 404, "There is nothing at this address.", "GET /docs lists the routes."),
        Entry("METHOD_NOT_ALLOWED", _P, _LOW, 405, "This route does not take that method.", "Use a method named in the Allow header."),
        Entry("MODEL_EXISTS", _U, _LOW, 409, "A model of this name already exists.", "Choose another model_id or set overwrite to true."),
        Entry("BUNDLE_INVALID", _P, _HIGH, 400, "The model file is damaged or of an unknown kind.", "Train the model again, or restore the file."),
        Entry("TRAINING_FAILED", _P, _MEDIUM, 400, "Training could not be completed.", "Read the message; change the data or the settings it names."),
        Entry("TRAINING_TIMEOUT", _P, _MEDIUM, 400, "Training took longer than is allowed.", "Lower epochs or send fewer rows."),
        Entry("TRAINING_STOPPED", _T, _LOW, 503, "Training was stopped before it ended.", "Send the request again.", 5),
        Entry("RUNTIME_UNAVAILABLE", _S, _CRITICAL, 503, "PyTorch is not available where training would run.", "Ask the operator to install PyTorch on the trainer nodes.", 60),
        Entry("TRAINER_UNREACHABLE", _T, _MEDIUM, 503, "No trainer can take the work at this time.", "Try again in a minute.", 10),
        Entry("OVERLOADED", _T, _MEDIUM, 503, "Too much work is waiting already.", "Try again after the time in Retry-After.", 10),
        Entry("UNAVAILABLE", _T, _MEDIUM, 503, "Part of the service does not answer at this time.", "Try again in a few seconds.", 5),
        Entry("INVALID_TOKEN", _P, _LOW, 401, "The bearer token is missing or not accepted.", "Send Authorization: Bearer <token> with a valid token."),
        Entry("STORAGE_ERROR", _S, _HIGH, 500, "Storage could not be read or written.", "Try again later; tell the operator if it persists.", 30),
        Entry("SYSTEM_ERROR", _S, _CRITICAL, 500, "An unexpected error occurred.", "Tell the operator the request id, which the log has too."),
    )
}  # fmt: skip


def entry_of(error: StillhouseError) -> Entry:
    return CATALOGUE[error.code]
