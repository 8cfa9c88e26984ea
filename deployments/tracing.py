"""OpenTelemetry through Serve's own tracing: where spans go, and one trace id for spans, logs and answers."""

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


class SpanParent:
    """Makes the span that Serve opened for a request the parent that the edge reads.

    Without it, a request that brings no ``traceparent`` would have one trace id in its spans and another in
    its answer and logs. Unsampled requests have no span and keep what they brought.
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
