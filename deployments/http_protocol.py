"""HTTP/1.1 as Serve's proxy reads it: heads of bounded size, and refusals in our words."""

from typing import Final

import uvicorn.protocols.http.auto
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from core.errors import HeadersTooLargeError, MalformedBodyError, StillhouseError
from deployments.dialects import Asked, render
from deployments.origin import Origin

HEAD_BYTES: Final = 1 << 20  # what is smaller gets to the edge, which knows the route and its dialect


class GuardedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which reads a head that does not end for ever, in quadratic time.

    One connection with 250 MB of header stopped the proxy for two minutes.
    """

    _head_bytes = 0
    _in_head = True

    def on_message_begin(self) -> None:
        self._head_bytes, self._in_head = 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(
                    HeadersTooLargeError(f"The headers must be below {HEAD_BYTES} bytes: send fewer.")
                )

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # it says less
        self._refuse(MalformedBodyError("The request must be well-formed HTTP/1.1, but it is not."))

    def _refuse(self, error: StillhouseError) -> None:
        """Answers before the route is known, hence as ``detail``, and hangs up."""
        origin = Origin()
        rendered = render(error, Asked("", None, origin.request_id, origin.trace_id))
        start, body = rendered.messages(x_request_id=origin.request_id, x_trace_id=origin.trace_id)
        headers = [*start["headers"], (b"connection", b"close")]
        lines = (name + b": " + value + b"\r\n" for name, value in headers)
        head = STATUS_LINE[start["status"]] + b"".join(lines) + b"\r\n"
        self.transport.write(head + body["body"])
        self.transport.close()


def guard_http() -> None:
    """Makes servers that are started in this process from now on use it."""
    uvicorn.protocols.http.auto.AutoHTTPProtocol = GuardedHttp
