"""What a client prefers (RFC 7240)."""

from starlette.datastructures import Headers


def prefers_async(headers: Headers) -> bool:
    """Whether the answer may come before the work is done.

    >>> prefers_async(Headers({"prefer": "wait=5, Respond-Async; x=1"}))
    True
    """
    preferences = ",".join(headers.getlist("prefer")).lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in preferences)
