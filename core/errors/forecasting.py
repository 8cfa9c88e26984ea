"""The conditions of seed 003 that no other surface has."""

from core.errors.platform import RequestError, ResourceNotFoundError, ServiceUnavailableError


class EmptyContextError(RequestError):
    code = "EMPTY_CONTEXT"


class UnsupportedQuantileError(RequestError):
    code = "UNSUPPORTED_QUANTILE"


class HorizonTooLongError(RequestError):
    code = "HORIZON_TOO_LONG"


class ModelNotOfTypeError(RequestError):
    code = "MODEL_NOT_OF_TYPE"


class UnknownWeightsError(RequestError):
    code = "UNKNOWN_WEIGHTS"


class CovariatesMismatchError(RequestError):
    code = "COVARIATES_MISMATCH"


class InvalidSamplesError(RequestError):
    code = "INVALID_SAMPLES"


class SeriesMismatchError(RequestError):
    code = "SERIES_MISMATCH"


class ModeConflictError(RequestError):
    code = "MODE_CONFLICT"


class FeaturesMissingError(RequestError):
    code = "FEATURES_MISSING"


class MetaModeError(RequestError):
    code = "META_MODE_UNSUPPORTED"


class ForecasterNotFoundError(ResourceNotFoundError):
    code = "FORECASTER_NOT_FOUND"


class BackendGoneError(ResourceNotFoundError):
    code = "BACKEND_GONE"


class ModelDownloadError(ServiceUnavailableError):
    code = "MODEL_DOWNLOAD_FAILED"


class InferenceError(ServiceUnavailableError):
    code = "INFERENCE_FAILED"


class SidecarUnreachableError(ServiceUnavailableError):
    code = "SIDECAR_UNREACHABLE"
