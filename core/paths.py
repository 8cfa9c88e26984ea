"""What may be called a name: objects of the artefact store, and files that a request points at."""

import re
from collections.abc import Sequence
from pathlib import Path

from core.errors import DataTargetError, RequestError

NAME_LIMIT = 512
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_SEGMENT_PATTERN = re.compile(_SEGMENT)
_NAME_PATTERN = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def is_segment(text: str) -> bool:
    """True of one step of a name.

    Examples:
        >>> is_segment("bundle.safetensors"), is_segment(".tmp"), is_segment("a/b")
        (True, False, False)
    """
    return _SEGMENT_PATTERN.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """True of a relative POSIX path that can leave no folder: such segments, joined by single slashes.

    Examples:
        >>> is_name("models/iris/bundle.safetensors"), is_name("models/../secrets"), is_name("/etc/passwd")
        (True, False, False)
    """
    return len(text) <= NAME_LIMIT and _NAME_PATTERN.fullmatch(text) is not None


def check_name(text: str) -> None:
    """Touches no file.

    Raises:
        RequestError: ``text`` is not a name.
    """
    if not is_name(text):
        raise RequestError(
            "a stored name must be letters, digits, '.', '_', '-', in segments joined by '/'",
            name=text[:NAME_LIMIT],
            limit=NAME_LIMIT,
        )


def resolve_within(path: str, roots: Sequence[Path]) -> Path:
    """Finds the regular file that a user's path means.

    Args:
        path: Absolute, or relative to any of the roots; the first root that has such a file decides.
        roots: Folders whose content users may read. They may be links themselves.

    Returns:
        The real path, free of links.

    Raises:
        DataTargetError: It names no regular file inside a root once links are resolved. The message is the
            same for a file that is absent and one that is outside, so that nobody can probe the server.
    """
    real_roots = [root.resolve() for root in roots]
    for root in real_roots:
        file = _regular_file(root, path)
        if file is not None and any(file.is_relative_to(allowed) for allowed in real_roots):
            return file
    raise DataTargetError(
        "data_path must name a file inside a data root; check it or upload the data", field="data_path"
    )


def _regular_file(root: Path, path: str) -> Path | None:
    try:
        file = (root / path).resolve(strict=True)
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # absent or too long; a NUL; a circle of links
        return None
