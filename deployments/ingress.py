"""The ingress: validates, dispatches and answers; free of torch."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import pydantic_core
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from core.admission import Admission, Ticket
from core.contract import (
    DistillRequest,
    TrainRequest,
    validate_distill,
    validate_train,
)
from core.errors import (
    MalformedBodyError,
    ModelExistsError,
    StillhouseError,
    TrainerUnreachableError,
    TrainingTimeoutError,
    without_paths,
)
from core.paging import Page
from core.registry_index import RunEntry
from core.resilience import POLICIES, Breaker, Caller, Integration, is_worth_another_attempt
from deployments.breakers import Breakers
from deployments.calls import (
    CALL_TIMEOUT_S,
    PROBE_TIMEOUT_S,
    RuntimeProbe,
    answer_of,
    cancel,
    next_report,
    probed,
    was_lost,
    within,
)
from deployments.dialects import Asked, handler_answer, render
from deployments.instruments import telemetry
from deployments.job_actor import JobsClient
from deployments.job_desk import JobDesk, Jobs, job_id_of
from deployments.job_feed import JobFeed
from deployments.lookups import World
from deployments.origin import Origin
from deployments.predict_call import PredictAnswer, PredictCall, packed
from deployments.registry import RegistryClient
from deployments.service import JobKind, Report
from deployments.settings import Settings
from deployments.tracing import SpanParent
from deployments.web import build_web_app

ABANDONED_AFTER_S: Final = 24 * 3600.0
Result = TypeVar("Result")


class Ingress:
    """The service behind HTTP and behind ``serve.get_app_handle``."""

    def __init__(
        self,
        settings: Settings,
        trainer: DeploymentHandle[Any],
        predictor: DeploymentHandle[Any],
        jobs: Jobs | None = None,
    ) -> None:
        self.observer = telemetry(settings.telemetry, "ingress")
        self.settings = settings
        self._world = World.of(settings)
        self.datasets, self.models = self._world.datasets, self._world.models
        self._trainer, self._predictor = trainer, predictor
        self._registry = RegistryClient(settings)
        self.desk = JobDesk(jobs or JobsClient(settings, _app_name()), self._world)
        self.feed = JobFeed(self.desk.jobs)
        self._runtime = RuntimeProbe(trainer)
        self._training = Caller("trainer", POLICIES[Integration.TRAINER], observer=self.observer)
        self._predicting = Caller(
            "predictor",
            POLICIES[Integration.PREDICTOR],
            observer=self.observer,
            is_retryable=was_lost,
            counts=is_worth_another_attempt,  # one that fails at a request answers others
        )
        self._breakers = Breakers(
            self._training.breaker,
            self._predicting.breaker,
            self._registry.breaker,
            self._world.storage.breaker,
        )
        capacity = -(-settings.trainer.queue_capacity // settings.ingress.replicas)
        self._admission = Admission(capacity, time.monotonic)
        self.datasets.sweep(ABANDONED_AFTER_S, time.time())
        for root in settings.roots():
            root.mkdir(parents=True, exist_ok=True)

    def __del__(self) -> None:
        """Serve calls it when the replica ends, before it kills the process."""
        self.observer.close()

    @property
    def keys(self) -> RegistryClient:
        """The registry's actor has them."""
        return self._registry

    @property
    def breakers(self) -> Mapping[str, Breaker]:
        return self._breakers.by_service

    async def reset_breaker(self, service: str) -> None:
        await self._breakers.reset(service, self._registry)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = build_web_app(self, behind_serve=True)
        app.add_middleware(SpanParent)
        app.openapi()  # made now, not by the first request
        return app

    async def check_health(self) -> None:
        """Async, so that it answers whatever the threads do; Serve asks every 10 s."""
        self.observer.state(self._admission, self.breakers)
        self._breakers.obey(self._registry)
        with contextlib.suppress(StillhouseError):  # it also starts the dispatcher, for which jobs may wait
            self.observer.state_of_jobs(await self.desk.jobs.counts())

    # ── Python handles ──────────────────────────────────────────────────────────────────────────────────

    async def handle_train_request(self, payload: object) -> tuple[int, Mapping[str, object]]:
        """``(status, body)``, exactly what ``POST /api/v1/train`` sends."""
        return await self._handled("train", payload)

    async def handle_distill_request(self, payload: object) -> tuple[int, Mapping[str, object]]:
        """``(status, body)``, exactly what ``POST /api/v1/distill`` sends."""
        return await self._handled("distill", payload)

    async def predict(self, payload: object) -> tuple[int, Mapping[str, object]]:
        """``(status, body)``, exactly what ``POST /api/v1/predict`` sends for a JSON body."""
        try:
            answer = await self.run_predict(PredictCall(packed(_as_json(payload))))
        except StillhouseError as error:
            self.observer.failed_call(error, "predict", Origin())
            rendered = render(error, Asked("/api/v1/predict"))
            return rendered.status, rendered.body
        return 200, pydantic_core.from_json(bytes(answer.body))

    async def _handled(self, kind: JobKind, payload: object) -> tuple[int, Mapping[str, object]]:
        origin = Origin()
        try:
            async with contextlib.aclosing(self.run_job(kind, payload, origin)) as reports:
                async for report in reports:
                    if report["event"] == "result":
                        return 200, report["body"]  # type: ignore[return-value]
        except StillhouseError as error:
            self.observer.failed_call(error, kind, origin)
            return handler_answer(error)
        raise AssertionError("a job ends with its result or an error")

    # ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────

    async def run_job(self, kind: JobKind, payload: object, origin: Origin) -> AsyncGenerator[Report]:
        """See ``Service.run_job``."""
        if not isinstance(payload, Mapping):
            raise MalformedBodyError(f"The body must be a JSON object, got {type(payload).__name__}.")
        if len(payload) > self.settings.limits.fields:
            raise MalformedBodyError(
                f"A request may have {self.settings.limits.fields} fields, got {len(payload)}: send fewer."
            )
        self._admission.check()  # an overloaded service does not validate first
        await self._runtime.refresh()
        run_id = job_id_of(origin, payload)
        try:
            request = await asyncio.to_thread(self._validated, kind, payload, run_id)
        except (TypeError, ValueError) as error:  # from a Python handle, a payload need not be JSON
            raise MalformedBodyError(
                f"The payload must hold JSON values: {without_paths(str(error))}"
            ) from None
        if isinstance(request, DistillRequest) and request.teacher.kind == "run_id":
            await self.get_run(request.teacher.name)  # the last step of the chain, which must hold no thread
        with self._admission.enter() as ticket:
            reports = self._dispatched(run_id, request, origin, ticket)
            async with contextlib.aclosing(reports):
                async for report in reports:
                    yield report

    def _validated(
        self, kind: JobKind, payload: Mapping[str, object], run_id: str
    ) -> TrainRequest | DistillRequest:
        lookups = self._world.lookups(self._runtime.error, None)
        validate = validate_train if kind == "train" else validate_distill
        try:
            return validate(payload, lookups)
        except ModelExistsError as error:
            if not self.models.is_of(str(error.details["model_id"]), run_id):
                raise
        request = validate({**payload, "overwrite": True}, lookups)
        assert request.saving is not None  # noqa: S101  # else no model were in its way
        return replace(request, saving=replace(request.saving, overwrite=False))

    async def _dispatched(
        self, run_id: str, request: TrainRequest | DistillRequest, origin: Origin, ticket: Ticket
    ) -> AsyncGenerator[Report]:
        """Runs a job on a trainer; leaving the iteration cancels it there.

        A trainer that is lost before it took the job is replaced by the next; one that is lost later may have
        trained, so that only the client may try again.
        """
        trainer = self.settings.trainer
        streams: list[Any] = []

        async def accepted() -> Report:
            streams.append(self._trainer.options(stream=True).run.remote(run_id, request, origin))
            try:
                report = await next_report(streams[-1])
            except StillhouseError:  # should that trainer live, it must not train beside the next one
                _cancel(streams)
                raise
            assert report is not None  # noqa: S101  # it says at least that it started
            return report

        try:
            first = await self._first(accepted, origin)
            ticket.start()
            yield first
            limit_s = trainer.job_timeout_s + CALL_TIMEOUT_S  # the trainer itself keeps the former
            late = TrainingTimeoutError(limit_s=trainer.job_timeout_s)
            while (report := await within(limit_s, next_report(streams[-1]), late)) is not None:
                yield report
        except StillhouseError as error:
            self.observer.training_failed(error)
            raise
        finally:
            _cancel(streams)

    async def _first(self, accepted: Callable[[], Awaitable[Report]], origin: Origin) -> Report:
        """The report of the trainer that takes a job. All may be busy for as long as they like: that is no
        failure of theirs, so the time in the queue is measured around the attempts.
        """
        limit_s = self.settings.trainer.queue_timeout_s
        late = TrainerUnreachableError(
            f"No trainer was free within {limit_s:g} s: try again later.", limit_s=limit_s
        )
        first = await within(limit_s, self._training.call(accepted, origin.log_fields()), late)
        assert first is not None  # noqa: S101  # trainers are critical
        return first

    # ── Predictions ─────────────────────────────────────────────────────────────────────────────────────

    async def run_predict(self, call: PredictCall) -> PredictAnswer:
        answer = await self._predicting.call(lambda: answer_of(self._predictor.predict.remote(call)))
        assert isinstance(answer, PredictAnswer)  # noqa: S101  # predictors are critical
        return answer

    async def export_model(self, model_id: str, format: str) -> bytes | memoryview:  # noqa: A002
        limit_s = CALL_TIMEOUT_S * 5
        file = await self._predicting.call(
            lambda: answer_of(self._predictor.export.remote(model_id, format), limit_s)
        )
        assert file is not None  # noqa: S101  # predictors are critical
        return memoryview(file)

    async def ping(self) -> None:
        await answer_of(self._predictor.ping.remote(), PROBE_TIMEOUT_S)

    # ── Runs ────────────────────────────────────────────────────────────────────────────────────────────

    async def list_runs(self, limit: int, cursor: str | None) -> Page[RunEntry]:
        return await self._registry.page(limit, cursor)

    async def get_run(self, run_id: str) -> RunEntry:
        return await self._registry.peek(run_id)

    async def delete_run(self, run_id: str) -> None:
        await self._registry.remove(run_id)

    async def save_run(self, run_id: str, model_id: str, overwrite: bool) -> str:
        return await self._registry.save(run_id, model_id, overwrite)

    async def read_bundle(self, run_id: str) -> bytes | memoryview:
        return await self._registry.read(run_id)

    # ── State ───────────────────────────────────────────────────────────────────────────────────────────

    async def health(self) -> tuple[bool, dict[str, object]]:
        """Asks each component, at most ``PROBE_TIMEOUT_S`` each."""
        registry, predictor = await asyncio.gather(probed(self._registry.status()), probed(self._pinged()))
        components: dict[str, object] = {
            "registry": {"status": "unavailable"}
            if registry is None
            else {"status": "ok", "items": registry.items, "bytes": registry.bytes},
            "predictor": {"status": "ok" if predictor else "unavailable"},
            "trainer": {"status": self._runtime.error or "ok", "queue": self.queue()},
        }
        return registry is not None and bool(predictor), components

    async def _pinged(self) -> bool:
        await self.ping()
        return True

    def queue(self) -> dict[str, int]:
        return {"capacity": self._admission.capacity, "free": self._admission.free}


def _cancel(streams: list[Any]) -> None:
    while streams:
        cancel(streams.pop())


def _as_json(payload: object) -> bytes:
    """Raises MalformedBodyError for what JSON cannot say."""
    try:
        return pydantic_core.to_json(payload, inf_nan_mode="constants")
    except ValueError as error:
        raise MalformedBodyError(f"The payload must hold JSON values: {str(error)[:200]}") from None


def _app_name() -> str:
    """Of the application that this replica belongs to; the usual one outside of Serve."""
    try:
        return serve.get_replica_context().app_name
    except RayServeException:
        return "stillhouse"
