"""The dispatcher of jobs as a detached actor, its client, and the trainers as Serve has them."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from core.errors import StillhouseError, TrainerUnreachableError
from core.jobs.callbacks import CallbackKind
from core.jobs.inquiries import Wanted
from core.jobs.moves import Rules
from core.jobs.records import Assignment, Checkpoint, Event, Job, NewJob, Report, Verdict
from core.paging import Page
from core.resilience import POLICIES, Caller, Integration
from deployments.addresses import checked_transport
from deployments.detached import Detached
from deployments.dispatcher import Dispatcher, Filed, News
from deployments.external import ExternalCommand
from deployments.instruments import telemetry
from deployments.settings import JobSettings, Settings, TelemetrySettings, inherited_environment
from deployments.webhooks import Courier

log = logging.getLogger(__name__)

PROTOCOL_VERSION: Final = 2
SERVE_NAMESPACE: Final = "serve"
CHECKED_FOR_S: Final = 1.0
HEAD: Final = {"node:__internal_head__": 0.001}


@dataclass(frozen=True, slots=True)
class JobsConfiguration:
    """What a dispatcher was started with; two that differ cannot serve the same application."""

    settings: JobSettings
    telemetry: TelemetrySettings
    app: str
    trainers: int
    may_scale_to_zero: bool
    protocol_version: int = PROTOCOL_VERSION

    def rules(self) -> Rules:
        jobs = self.settings
        return Rules(
            running_per_owner=jobs.running_per_user,
            active_per_owner=jobs.active_per_user,
            waiting=jobs.queue_capacity,
            losses=jobs.losses,
            lost_after_s=jobs.lost_after_s,
            warn_after_s=jobs.warn_after_s,
            stale_after_s=jobs.stale_after_s,
            time_limit_s=jobs.time_limit_s,
        )


class DispatcherActor(Dispatcher):
    """The dispatcher as it runs."""

    def __init__(self, configuration: JobsConfiguration) -> None:
        self._configuration = configuration
        self.observer = telemetry(configuration.telemetry, "jobs")
        super().__init__(
            configuration.settings.database_url,
            configuration.rules(),
            ServePool(configuration),
            stop_within_s=configuration.settings.stop_within_s,
            courier=courier_of(configuration.settings),
            external=external_of(configuration.settings),
            failed=self.observer.training_failed,
        )

    async def configuration(self) -> JobsConfiguration:
        return self._configuration


def courier_of(jobs: JobSettings) -> Courier | None:
    """None where nothing could be signed."""
    secret = jobs.secret()
    return None if secret is None else Courier(secret, checked_transport(private=jobs.callback_private))


def external_of(jobs: JobSettings) -> ExternalCommand | None:
    """None where no command is configured."""
    if not jobs.external_command:
        return None
    return ExternalCommand(
        jobs.external_command,
        Path(jobs.external_folder).expanduser(),
        jobs.external_url,
        jobs.external_processes,
        inherited_environment(),
    )


class ServePool:
    """The trainer deployment."""

    def __init__(self, configuration: JobsConfiguration) -> None:
        self._configuration = configuration
        self._handle: Any = None  # Serve is untyped
        self._checked_at = float("-inf")

    def capacity(self) -> int:
        return self._configuration.trainers

    async def check(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._configuration.may_scale_to_zero or now - self._checked_at < CHECKED_FOR_S:
            return
        if not await asyncio.to_thread(self._running):
            raise TrainerUnreachableError("No trainer runs at this time: try again in half a minute.")
        self._checked_at = now

    async def work(self, wake: str) -> int:
        if self._handle is None:
            self._handle = await asyncio.to_thread(
                serve.get_deployment_handle, "Trainer", self._configuration.app
            )
        try:
            took: int = await self._handle.work.remote(wake)
        except BackPressureError:  # enough wait for trainers as it is
            return 0
        except (RayError, RayServeException):
            self._handle = None  # of an application that may be gone
            raise
        return took

    async def kill(self, worker: str) -> None:
        await asyncio.to_thread(_kill, worker)

    def _running(self) -> int:
        """How many trainers run; -1 where Serve does not say."""
        try:
            app = serve.status().applications[self._configuration.app]
            states = app.deployments["Trainer"].replica_states
        except (RayError, RayServeException, KeyError):
            return 0
        return sum(number for state, number in states.items() if state == "RUNNING")


def _kill(worker: str) -> None:
    try:
        ray.kill(ray.get_actor(worker, SERVE_NAMESPACE))
    except ValueError:
        log.info("the trainer %s is gone already", worker)


class JobsClient:
    """The dispatcher as replicas see it. Every method may raise ServiceUnavailableError."""

    def __init__(self, settings: Settings, app: str) -> None:
        jobs, trainer = settings.jobs, settings.trainer
        wanted = JobsConfiguration(
            jobs, settings.telemetry, app, trainer.max_replicas, trainer.min_replicas == 0
        )
        stays = jobs.database_url.startswith("sqlite") or jobs.external_command  # files lie there
        on_head = {"resources": HEAD} if stays else {}
        self._detached: Detached[DispatcherActor] = Detached(
            DispatcherActor,
            jobs.name,
            settings.registry.namespace,
            wanted,
            {"num_cpus": 0, **on_head},
            Caller("dispatcher of jobs", replace(POLICIES[Integration.REGISTRY], breaker=None)),
            _configuration_of,
        )

    async def create(self, new: NewJob) -> Filed:
        return await self._detached.call(lambda actor: actor.create.remote(new))

    async def get(self, job_id: str, owner: str | None) -> Filed:
        return await self._detached.call(lambda actor: actor.get.remote(job_id, owner))

    async def page(self, wanted: Wanted, limit: int, cursor: str | None) -> tuple[Page[Job], int]:
        return await self._detached.call(lambda actor: actor.page.remote(wanted, limit, cursor))

    async def cancel(self, job_id: str) -> Job:
        return await self._detached.call(lambda actor: actor.cancel.remote(job_id))

    async def retry(
        self, job_id: str, payload: Mapping[str, object], changes: Mapping[str, object], resume_from: str
    ) -> Filed:
        return await self._detached.call(
            lambda actor: actor.retry.remote(job_id, payload, changes, resume_from)
        )

    async def events(self, job_id: str, owner: str | None, after: int, limit: int) -> list[Event]:
        return await self._detached.call(lambda actor: actor.events.remote(job_id, owner, after, limit))

    async def follow(self, job_id: str, owner: str | None, after: int, version: int) -> News:
        return await self._detached.call(lambda actor: actor.follow.remote(job_id, owner, after, version))

    async def attempts(self, job_id: str) -> list[dict[str, object]]:
        return await self._detached.call(lambda actor: actor.attempts.remote(job_id))

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        return await self._detached.call(lambda actor: actor.checkpoints.remote(job_id))

    async def epochs(
        self, job_id: str, attempt: int, limit: int, from_epoch: int | None
    ) -> list[dict[str, object]]:
        return await self._detached.call(
            lambda actor: actor.epochs.remote(job_id, attempt, limit, from_epoch)
        )

    async def logs(
        self,
        job_id: str,
        limit: int,
        after: int | None,
        level: str | None,
        attempt: int | None,
        since: float | None,
    ) -> list[dict[str, object]]:
        return await self._detached.call(
            lambda actor: actor.logs.remote(job_id, limit, after, level, attempt, since)
        )

    async def counts(self) -> Mapping[str, int]:
        return await self._detached.call(lambda actor: actor.counts.remote())

    async def hear(self, job_id: str, token: str, kind: CallbackKind, body: Mapping[str, object]) -> Verdict:
        return await self._detached.call(lambda actor: actor.hear.remote(job_id, token, kind, body))

    async def bearer(self, job_id: str, token: str) -> Job:
        return await self._detached.call(lambda actor: actor.bearer.remote(job_id, token))

    async def claim(self, worker: str, wake: str) -> Assignment | None:
        return await self._detached.call(lambda actor: actor.claim.remote(worker, wake))

    async def report(self, job_id: str, attempt: int, report: Report) -> Verdict:
        return await self._detached.call(lambda actor: actor.report.remote(job_id, attempt, report))

    async def complete(self, job_id: str, attempt: int, result: Mapping[str, object]) -> Verdict:
        return await self._detached.call(lambda actor: actor.complete.remote(job_id, attempt, result))

    async def fail(self, job_id: str, attempt: int, error: StillhouseError) -> Verdict:
        return await self._detached.call(lambda actor: actor.fail.remote(job_id, attempt, error))


async def _configuration_of(actor: "ActorHandle[DispatcherActor]") -> JobsConfiguration:
    configuration: JobsConfiguration = await actor.configuration.remote()
    return configuration
