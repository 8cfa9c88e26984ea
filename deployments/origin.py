"""Where work comes from: the ids that follow a request through ingress, trainer and registry."""

import re
import secrets
import uuid
from dataclasses import dataclass, field
from typing import Final

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


@dataclass(frozen=True, slots=True)
class Origin:
    """A request, as logs, errors and traces name it.

    Attributes:
        request_id: The client's, where it sent a valid one.
        trace_id: 32 hex digits of W3C Trace Context; the caller's trace where it has one.
        idempotency: Names the request's Idempotency-Key for its client and route; empty without one.
    """

    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    idempotency: str = ""

    @classmethod
    def of(cls, request_id: str | None, traceparent: str | None) -> "Origin":
        """From the headers of a request; ids that are none are replaced."""
        parent = _TRACEPARENT.fullmatch(traceparent or "")
        given = {
            "request_id": request_id if _REQUEST_ID.fullmatch(request_id or "") else None,
            "trace_id": parent[1] if parent and int(parent[1], 16) and int(parent[2], 16) else None,
        }
        return cls(**{name: value for name, value in given.items() if value is not None})

    def log_fields(self) -> dict[str, str]:
        """For ``extra`` of a log call."""
        return {"trace_id": self.trace_id, "client_request_id": self.request_id}
