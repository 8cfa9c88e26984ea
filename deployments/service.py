"""What the routes ask of the service behind them. The ingress is one; tests bring their own."""

from collections.abc import AsyncGenerator, Mapping
from typing import Literal, Protocol

from core.datasets import DatasetCatalogue
from core.paging import Page
from core.registry_index import RunEntry
from core.resilience import Breaker
from core.saved_models import ModelStore
from deployments.edge.border import Observer
from deployments.edge.idempotency import KeyLedger
from deployments.job_desk import JobDesk
from deployments.job_feed import JobFeed
from deployments.origin import Origin
from deployments.predict_call import PredictAnswer, PredictCall
from deployments.settings import Settings

JobKind = Literal["train", "distill"]
Report = dict[str, object]
"""``{"event": "started" | "epoch" | "result", …}``"""


class Service(Protocol):
    """Every method may raise StillhouseError, and nothing else on purpose.

    Attributes:
        datasets, models: Over storage, blocking: call them in a thread.
        keys: Of the requests that carry an Idempotency-Key.
        breakers: Of this replica, by the service that each spares.
    """

    settings: Settings
    datasets: DatasetCatalogue
    models: ModelStore

    @property
    def observer(self) -> Observer: ...

    @property
    def keys(self) -> KeyLedger: ...

    @property
    def desk(self) -> JobDesk: ...

    @property
    def feed(self) -> JobFeed: ...

    @property
    def breakers(self) -> Mapping[str, Breaker]: ...

    async def reset_breaker(self, service: str) -> None:
        """Closes one of them, and in seconds those of all replicas."""

    def run_job(self, kind: JobKind, payload: object, origin: Origin) -> AsyncGenerator[Report]:
        """Validates, trains and stores; the last report is the ``result``. Leaving it stops the training."""

    async def run_predict(self, call: PredictCall) -> PredictAnswer: ...

    async def export_model(self, model_id: str, format: str) -> bytes | memoryview:  # noqa: A002
        """A saved model in another format; raises ModelNotFoundError."""

    async def list_runs(self, limit: int, cursor: str | None) -> Page[RunEntry]: ...

    async def get_run(self, run_id: str) -> RunEntry:
        """Without restarting its time to live; raises RunNotFoundError."""

    async def delete_run(self, run_id: str) -> None: ...

    async def save_run(self, run_id: str, model_id: str, overwrite: bool) -> str:
        """Copies a run to a saved model; returns its path in storage."""

    async def read_bundle(self, run_id: str) -> bytes | memoryview: ...

    async def ping(self) -> None:
        """One empty call to a predictor; raises ServiceUnavailableError when none answers."""

    async def health(self) -> tuple[bool, dict[str, object]]:
        """Whether requests can be served, and the state of each component."""

    def queue(self) -> dict[str, int]:
        """``{"capacity", "free"}`` of the trainers, as this ingress sees them."""
