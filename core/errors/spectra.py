"""The exceptions of seed 002 under the names that it gives them; those that exist already are aliases."""

from core.errors.platform import (
    ModelExistsError,
    ModelNotFoundError,
    RequestError,
    ResourceConflictError,
    ResourceNotFoundError,
    StorageError,
    UnexpectedError,
    ValidationError,
)

ResourceNotFoundException = ResourceNotFoundError
ModelNotFoundException = ModelNotFoundError
ResourceConflictException = ResourceConflictError
ModelConflictException = ModelExistsError
StorageException = StorageError


class ValidationException(ValidationError):
    code = "DOMAIN_VALIDATION_FAILED"


class FileValidationException(ValidationException):
    code = "FILE_VALIDATION_FAILED"


class ModelValidationException(ValidationException):
    code = "MODEL_VALIDATION_FAILED"


class SpectrumValidationException(ValidationException):
    code = "SPECTRUM_VALIDATION_FAILED"


class ClassificationException(RequestError):
    code = "CLASSIFICATION_FAILED"


class SpectrumProcessingException(RequestError):
    code = "SPECTRUM_PROCESSING_FAILED"


class BatchProcessingException(RequestError):
    code = "BATCH_PROCESSING_FAILED"


class FileReadException(RequestError):
    code = "FILE_READ_ERROR"


class UnsupportedFileFormatException(RequestError):
    code = "UNSUPPORTED_FILE_FORMAT"


class FileNotFoundException(ResourceNotFoundError):
    code = "FILE_NOT_FOUND"


class SpectrumNotFoundException(ResourceNotFoundError):
    code = "SPECTRUM_NOT_FOUND"


class TemplateNotFoundException(ResourceNotFoundError):
    code = "TEMPLATE_NOT_FOUND"


class LineListNotFoundException(ResourceNotFoundError):
    code = "LINE_LIST_NOT_FOUND"


class ElementNotFoundException(ResourceNotFoundError):
    code = "ELEMENT_NOT_FOUND"


class ConfigurationException(UnexpectedError):
    code = "CONFIGURATION_ERROR"


class ModelConfigurationException(ConfigurationException):
    code = "MODEL_CONFIGURATION_ERROR"


class ExternalServiceException(UnexpectedError):
    code = "EXTERNAL_SERVICE_ERROR"


class OSCServiceException(ExternalServiceException):
    code = "OSC_SERVICE_ERROR"
