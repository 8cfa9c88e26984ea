"""OpenTelemetry through Serve's own tracing: where spans go, and one trace id for spans, logs and answers."""

import random
import secrets
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send


def otlp() -> list[SpanProcessor]:
    """For ``RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH``: OTLP over HTTP, set by ``OTEL_EXPORTER_OTLP_*``.

    Raises:
        ModuleNotFoundError: without the extra ``tracing``.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return [BatchSpanProcessor(OTLPSpanExporter())]


class TraceStart:
    """Begins a trace in the proxy for a request that brings none.

    Serve's spans, FastAPI's and our ids then agree. Whether its spans are exported is drawn here, for Serve
    goes by what a ``traceparent`` says.

    Args:
        share: Of the traces begun here, exported.
        draw: A number from 0 to 1, which tests replace.
    """

    def __init__(self, app: ASGIApp, *, share: float, draw: Callable[[], float] = random.random) -> None:
        self._app, self._share, self._draw = app, share, draw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"traceparent" not in {name.lower() for name, _ in scope["headers"]}:
            flags = "01" if self._draw() < self._share else "00"
            begun = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"
            scope = {**scope, "headers": [*scope["headers"], (b"traceparent", begun.encode())]}
        await self._app(scope, receive, send)


class SpanParent:
    """Makes the span that is open in the ingress the parent that the edge reads.

    For services without our part of the proxy, where ``TraceStart`` is. Unsampled requests have no span and
    keep what they brought.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and trace.get_current_span().get_span_context().is_valid:
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier)
            others = [pair for pair in scope["headers"] if pair[0].lower() != b"traceparent"]
            scope = {**scope, "headers": [*others, (b"traceparent", carrier["traceparent"].encode())]}
        await self._app(scope, receive, send)
