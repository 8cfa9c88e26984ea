"""The error tree and its catalogue, held against the tables of the seeds row by row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from ray.exceptions import RayTaskError

import core.errors
from core.catalogue import CATALOGUE, ErrorType, RetryMode, Severity, filled
from core.errors import StillhouseError, class_of, without_paths
from core.errors import spectra as spectra_errors


def subclasses(error):
    return [error, *(deeper for child in error.__subclasses__() for deeper in subclasses(child))]


ERRORS = [e for e in subclasses(StillhouseError)[1:] if e.__module__.startswith("core.errors")]
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.code)

# ── Seed 001: the twelve classes ────────────────────────────────────────────────────────────────────────────

CLASSES = {
    "NetworkError": ("transient", "medium", 503, {"service": "trainer"}),
    "ServiceUnavailableError": ("transient", "high", 503, {"service": "trainer", "retry_after": 7}),
    "TimeoutError": ("transient", "medium", 504, {"operation": "copying", "timeout_seconds": 30}),
    "ConfigurationError": ("permanent", "medium", 422, {"field": "epochs", "issue": "too many"}),
    "ResourceNotFoundError": ("permanent", "low", 404, {"resource_type": "project", "resource_id": "7"}),
    "InsufficientPermissionsError": ("permanent", "low", 403, {"action": "train", "required_role": "train"}),
    "ValidationError": ("user_error", "low", 400, {"field": "epochs", "constraint": "> 0", "value": -5}),
    "QuotaExceededError": ("user_error", "medium", 429, {"resource": "jobs", "limit": 3, "current": 3}),
    "DatasetValidationError": ("user_error", "medium", 422, {"issue": "no rows", "rows": 0}),
    "DatabaseError": ("system_error", "critical", 500, {"operation": "insert"}),
    "StorageError": ("system_error", "high", 500, {"operation": "read", "bucket": "b", "key": "k"}),
    "UnexpectedError": ("system_error", "critical", 500, {}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_seed_001_have_its_types_severities_and_contexts(name):
    error_type, severity, status, context = CLASSES[name]
    cause = OSError("refused")
    error = getattr(core.errors, name)(original=cause, **context)
    assert (error.error_type, error.severity, error.entry.status) == (error_type, severity, status)
    assert error.details == context
    assert error.__cause__ is cause
    assert len(error.user_message) < 100
    assert "…" not in error.message


def test_messages_hold_their_context():
    error = core.errors.ValidationError(field="epochs", constraint="must be > 0", value=-5)
    assert "epochs" in error.message
    assert "must be > 0" in error.user_message


def test_timeouts_that_cannot_be_retried_are_permanent():
    error = core.errors.TimeoutError(operation="x", timeout_seconds=3, is_retryable=False)
    assert error.error_type is ErrorType.PERMANENT
    assert not error.retryable
    assert core.errors.TimeoutError(operation="x", timeout_seconds=3).retryable


APPENDIX = {
    "CUDA_OOM": ("system_error", "high"),
    "TRAINER_UNREACHABLE": ("transient", "medium"),
    "TRAINING_TIMEOUT": ("permanent", "medium"),
    "INVALID_MODEL": ("permanent", "low"),
    "INVALID_CONFIG": ("permanent", "low"),
    "DATASET_NOT_FOUND": ("permanent", "low"),
    "DATASET_INVALID_FORMAT": ("user_error", "medium"),
    "DATASET_TOO_LARGE": ("user_error", "medium"),
    "DATASET_BROKEN": ("permanent", "high"),
    "INSUFFICIENT_PERMISSIONS": ("permanent", "low"),
    "QUOTA_EXCEEDED": ("user_error", "medium"),
    "INVALID_TOKEN": ("permanent", "low"),
    "DATABASE_ERROR": ("system_error", "critical"),
    "STORAGE_ERROR": ("system_error", "high"),
    "MLFLOW_UNAVAILABLE": ("transient", "low"),
    "TEMPORAL_ERROR": ("system_error", "critical"),
}


@pytest.mark.parametrize("code", APPENDIX)
def test_codes_of_the_appendix_have_its_types_and_severities(code):
    assert (CATALOGUE[code].type, CATALOGUE[code].severity) == APPENDIX[code]


# ── Seed 002: exceptions and statuses ───────────────────────────────────────────────────────────────────────

EXCEPTIONS = {
    "ValidationException": 422,
    "FileValidationException": 422,
    "ModelValidationException": 422,
    "SpectrumValidationException": 422,
    "ClassificationException": 400,
    "SpectrumProcessingException": 400,
    "BatchProcessingException": 400,
    "ModelNotFoundException": 404,
    "SpectrumNotFoundException": 404,
    "TemplateNotFoundException": 404,
    "LineListNotFoundException": 404,
    "ElementNotFoundException": 404,
    "ResourceNotFoundException": 404,
    "ResourceConflictException": 409,
    "ModelConflictException": 409,
    "ConfigurationException": 500,
    "ExternalServiceException": 500,
    "OSCServiceException": 500,
    "FileNotFoundException": 404,
    "FileReadException": 400,
    "UnsupportedFileFormatException": 400,
    "StorageException": 500,
    "ModelConfigurationException": 500,
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_of_seed_002_have_its_statuses(name):
    assert getattr(core.errors, name)("…").entry.status == EXCEPTIONS[name]


@pytest.mark.parametrize("kind", ["File", "Model", "Spectrum"])
def test_validation_exceptions_are_one_family(kind):
    exception = getattr(spectra_errors, f"{kind}ValidationException")
    assert issubclass(exception, spectra_errors.ValidationException)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ClassificationException", "Classification failed."),
        ("SpectrumProcessingException", "Spectrum processing failed."),
        ("BatchProcessingException", "Batch processing failed."),
        ("FileValidationException", "File validation failed."),
        ("ModelValidationException", "Model validation failed."),
        ("SpectrumValidationException", "Spectrum validation failed."),
        ("ConfigurationException", "Configuration error."),
        ("ModelConfigurationException", "Model configuration error."),
        ("OSCServiceException", "OSC service error."),
    ],
)
def test_exceptions_of_seed_002_say_what_it_says(name, message):
    assert getattr(core.errors, name)().message == message


# ── Seed 003: conditions and statuses ───────────────────────────────────────────────────────────────────────

CONDITIONS = {
    "EMPTY_CONTEXT": 400,
    "UNSUPPORTED_QUANTILE": 400,
    "HORIZON_TOO_LONG": 400,
    "MODEL_NOT_OF_TYPE": 400,
    "UNKNOWN_WEIGHTS": 400,
    "COVARIATES_MISMATCH": 400,
    "INVALID_SAMPLES": 400,
    "SERIES_MISMATCH": 400,
    "MODE_CONFLICT": 400,
    "FEATURES_MISSING": 400,
    "META_MODE_UNSUPPORTED": 400,
    "INVALID_TOKEN": 401,
    "FORECASTER_NOT_FOUND": 404,
    "MODEL_NOT_FOUND": 404,
    "MODEL_EXISTS": 409,
    "BACKEND_GONE": 410,
    "PAYLOAD_TOO_LARGE": 413,
    "SCHEMA_VIOLATION": 422,
    "MODEL_DOWNLOAD_FAILED": 503,
    "INFERENCE_FAILED": 503,
    "SIDECAR_UNREACHABLE": 503,
}


@pytest.mark.parametrize("code", CONDITIONS)
def test_conditions_of_seed_003_have_its_statuses(code):
    assert CATALOGUE[code].status == CONDITIONS[code]


# ── The catalogue ───────────────────────────────────────────────────────────────────────────────────────────


@every_error
def test_every_error_has_an_entry_of_its_own(error):
    assert error("…").entry.code == error.code
    own = error.__mro__[: error.__mro__.index(StillhouseError)]
    origin = [base for base in own if vars(base).get("code") == error.code][-1]
    assert class_of(error.code) is origin  # a variant of a code has a status or an advice of its own


def test_every_entry_has_an_error():
    assert CATALOGUE.keys() == {error.code for error in ERRORS}


@every_entry
def test_entries_speak_to_people(entry):
    for text in (entry.message, entry.suggested_action):
        assert 10 < len(text) < 100
        assert text[0].isupper() or text[0] == "{"
        assert text.endswith(".")
    assert entry.code == entry.code.upper()
    assert len(entry.code) <= 63
    assert entry.type in ErrorType
    assert entry.severity in Severity


@every_entry
def test_retrying_fits_the_type(entry):
    if entry.type is ErrorType.USER_ERROR:
        assert entry.retry is RetryMode.AFTER_CHANGE
        assert 400 <= entry.status < 500
    if entry.type is ErrorType.TRANSIENT:
        assert entry.retryable
    waits = entry.retry in (RetryMode.AUTO, RetryMode.AFTER_DELAY)
    assert waits == (entry.retry_after_s is not None)


@every_entry
@given(details=st.dictionaries(st.sampled_from(["service", "limit", "field", "issue", "details"]), st.text()))
def test_messages_are_short_whatever_fills_them(entry, details):
    for template in (entry.message, entry.suggested_action):
        assert len(filled(template, details)) < 100


@every_error
def test_messages_without_details_do_not_raise(error):
    raised = error()
    assert raised.message
    assert raised.suggested_action


@every_error
def test_errors_survive_the_way_through_ray_with_message_and_details(error):
    details = {"field": "epochs", "line": 3, "missing": ["a", "b"]}
    raised = error("What happened.", original=OSError("inside"), **details)
    copy = cloudpickle.loads(cloudpickle.dumps(raised))
    assert type(copy) is error
    assert (copy.message, str(copy), copy.details) == ("What happened.", "What happened.", details)


@every_error
def test_errors_survive_the_wrapping_that_ray_gives_to_what_a_task_raises(error):
    wrapped = RayTaskError("call", "Traceback …", error("What happened.", line=3)).as_instanceof_cause()
    copy = cloudpickle.loads(cloudpickle.dumps(wrapped))
    assert isinstance(copy, error)
    assert (type(copy.cause), copy.cause.message, copy.cause.details) == (
        error,
        "What happened.",
        {"line": 3},
    )


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot open /srv/data/x.csv (denied)", "cannot open <path> (denied)"),
        ("[Errno 2] No such file: '/home/a b/x'", "[Errno 2] No such file: '<path>'"),
        (r"C:\data\secret\x.csv is locked", "<path> is locked"),
        ("file:///srv/data/x.csv", "file://<path>"),
        ("input/output error, 1/2 of the rows", "input/output error, 1/2 of the rows"),
        ("GET /api/v1/limits lists them", "GET /api/v1/limits lists them"),
    ],
)
def test_foreign_messages_lose_their_paths(text, clean):
    assert without_paths(text) == clean
