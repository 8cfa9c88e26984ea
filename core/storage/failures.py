"""How the failures of both backends are caught and told."""

import errno
from typing import Final

from core.errors import StorageError


def storage_error(error: Exception, operation: str, name: str) -> StorageError:
    """Says what to do, and names the reason without the paths and addresses in ``error``."""
    number = (error.errno if isinstance(error, OSError) else None) or 0
    advice = f"Storage failed to {operation} an object; try again, and tell the operator if it persists."
    if number in (errno.ENOSPC, errno.EDQUOT):
        advice = "Storage is full; delete what is not needed, then try again."
    reason = s3_code(error) or errno.errorcode.get(number, type(error).__name__)
    return StorageError(advice, operation=operation, name=name, reason=reason)


def s3_code(error: Exception) -> str | None:
    """S3's name of a failure, from the botocore exception that s3fs keeps as the cause."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


_PASSING: Final = frozenset(
    {"InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "Throttling", "503", "500"}
)


def is_passing(error: BaseException) -> bool:
    """Whether a failure of S3 may be gone a moment later: lost connections, and its own plea to come back."""
    if not isinstance(error, Exception) or isinstance(error, FileNotFoundError | FileExistsError):
        return False
    code = s3_code(error)
    if code is not None:
        return code in _PASSING
    from aiohttp import ClientError as ConnectionFailure
    from botocore.exceptions import ConnectionError as EndpointFailure  # type: ignore[import-untyped]
    from botocore.exceptions import HTTPClientError

    lost = ConnectionFailure | EndpointFailure | HTTPClientError | ConnectionError | TimeoutError
    return isinstance(error, lost)


def s3_failures() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError as ConnectionFailure  # these come with s3fs, an extra
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, BotoCoreError, ClientError, ConnectionFailure)
