"""Everything that can be configured, typed; the only place that reads the environment."""

import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote

import limits
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

TOKENS_VARIABLE = "STILLHOUSE_TOKENS"
SENTRY_VARIABLE = "SENTRY_DSN"
CALLBACK_VARIABLE = "STILLHOUSE_CALLBACK_SECRET"
INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
"""What an external trainer finds in its environment, beside what it is given: nothing that is secret."""
SPANS_VARIABLE = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"
SPANS_SHARE_VARIABLE = "RAY_SERVE_TRACING_SAMPLING_RATIO"


class Section(BaseModel):
    """A part of the settings: a misspelt key is an error, not a default."""

    # Serve logs what refuses its start, which pydantic would quote
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RegistrySettings(Section):
    """The TTL registry of runs."""

    name: str = "stillhouse-registry"
    namespace: str = "stillhouse"
    ttl_seconds: PositiveFloat = 900
    max_items: PositiveInt = 128
    max_bytes: PositiveInt = 1 << 30


class TrainerSettings(Section):
    """Trainer replicas.

    Attributes:
        gpus_per_trainer: ``auto`` takes a GPU where the cluster has one when the application is deployed.
        job_timeout_s: Longest training; then 400 TRAINING_TIMEOUT.
        queue_timeout_s: Longest wait for a free trainer; then 503 TRAINER_UNREACHABLE.
        queue_capacity: Requests for trainers in all ingresses, those at work included; each ingress has an
            equal share, rounded up, and answers more than that 503 QUEUE_FULL at once.
        runtime_env: Of the trainers alone, as Ray takes it.
    """

    min_replicas: int = Field(1, ge=0)
    max_replicas: PositiveInt = 4
    cpus_per_trainer: PositiveFloat = 1
    gpus_per_trainer: Literal["auto"] | float = "auto"
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(600, ge=0)
    job_timeout_s: PositiveFloat = 3600
    queue_timeout_s: PositiveFloat = 600
    queue_capacity: PositiveInt = 64
    runtime_env: dict[str, object] = {}


class JobSettings(Section):
    """Training jobs.

    Attributes:
        database_url: The ledger: ``sqlite:///file``, on the head node, or ``postgresql+psycopg://…``.
        running_per_user, active_per_user, queue_capacity: How many run at once, have not ended, or wait.
        losses: Trainers that a job may lose before it fails.
        lost_after_s: Without a heartbeat a trainer is taken for lost.
        warn_after_s, stale_after_s: A training that does not go on is warned of, and then ended.
        time_limit_s: Of one attempt; a job may ask for less.
        checkpoint_every_s: Between two checkpoints of a training.
        stop_within_s: A trainer that a cancel does not stop in this time is killed.
        callback_secret: Signs what is sent to the ``callback_url`` of jobs, which are refused without;
            ``STILLHOUSE_CALLBACK_SECRET`` else.
        callback_private: Whether a ``callback_url`` may lead to private and loopback addresses.
        external_command: Program and arguments of external trainers; jobs that ask for one are refused
            without. Runs on the head node, in a folder for each attempt below ``external_folder``.
        external_processes: How many of them run at once.
        external_url: Where they reach this service.
    """

    name: str = "stillhouse-jobs"
    database_url: str = Field("sqlite:///~/.stillhouse/jobs.db", repr=False)
    running_per_user: PositiveInt = 4
    active_per_user: PositiveInt = 2000
    queue_capacity: PositiveInt = 10_000
    losses: int = Field(3, ge=0)
    lost_after_s: PositiveFloat = 15
    warn_after_s: PositiveFloat = 600
    stale_after_s: PositiveFloat = 1800
    time_limit_s: PositiveFloat = 86_400
    checkpoint_every_s: PositiveFloat = 10
    stop_within_s: PositiveFloat = 10
    callback_secret: str | None = Field(None, repr=False)
    callback_private: bool = False
    external_command: tuple[str, ...] = ()
    external_folder: str = "~/.stillhouse/external"
    external_processes: PositiveInt = 2
    external_url: str = "http://127.0.0.1:8000"

    def secret(self) -> str | None:
        return self.callback_secret or os.environ.get(CALLBACK_VARIABLE) or None


class PredictorSettings(Section):
    """Predictor replicas.

    Attributes:
        cache_bytes: Bundle files kept ready per replica, least recently used first out.
        batch_rows: Rows of different requests that are computed together at most.
    """

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 4
    cpus_per_predictor: PositiveFloat = 0.5
    cache_bytes: PositiveInt = 1 << 30
    batch_rows: PositiveInt = 65_536


class IngressSettings(Section):
    replicas: PositiveInt = 1
    cpus_per_ingress: float = Field(0.25, ge=0)


class RateSettings(Section):
    """Requests of one client, as the limits library writes them; null is no limit.

    Attributes:
        denied: Of one address with wrong tokens.
    """

    read: str | None = "12000/minute"
    predict: str | None = "60000/minute"
    train: str | None = "600/minute"
    write: str | None = "1200/minute"
    denied: str | None = "60/minute"

    @field_validator("*")
    @classmethod
    def _is_a_rate(cls, rate: str | None) -> str | None:
        if rate is not None:
            limits.parse(rate)
        return rate


class EdgeSettings(Section):
    """What stands before the routes.

    Attributes:
        rates_storage: ``memory://`` counts in each ingress for itself; ``redis://…`` counts for all.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed. Uvicorn believes this machine's too
            unless the variable FORWARDED_ALLOW_IPS is set and empty, as ``make up`` and the image have it.
        body_idle_s: Longest pause within a body, and the time that its rate is not looked at.
        body_bytes_per_s: Lowest mean rate of a body.
    """

    rates: RateSettings = RateSettings()
    rates_storage: str = "memory://"
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    body_idle_s: PositiveFloat = 30
    body_bytes_per_s: PositiveFloat = 1000


class TelemetrySettings(Section):
    """What is told to operators beside logs and metrics.

    Attributes:
        sentry_dsn: Where faults are reported; needs the extra ``sentry``. ``SENTRY_DSN`` else.
        environment, release: As Sentry shows them.
        sentry_sample_rate, sentry_traces_sample_rate: Shares of faults and of requests that are sent.
    """

    sentry_dsn: str | None = Field(None, repr=False)
    environment: str = "local"
    release: str = "stillhouse"
    sentry_sample_rate: float = Field(1, ge=0, le=1)
    sentry_traces_sample_rate: float = Field(0.1, ge=0, le=1)

    def dsn(self) -> str | None:
        return self.sentry_dsn or os.environ.get(SENTRY_VARIABLE) or None


class Limits(Section):
    """What one request may ask.

    Attributes:
        body_bytes: Of an upload or a table to predict; compressed ones count inflated.
        json_bytes: Of any JSON body.
        header_bytes: Of names and values together.
        fields: Of a train or distil request.
        predict_rows: Of one predict request.
    """

    body_bytes: PositiveInt = 2 << 30
    json_bytes: PositiveInt = 32 << 20
    header_bytes: PositiveInt = 64 << 10
    fields: PositiveInt = 1000
    predict_rows: PositiveInt = 10_000_000
    rows: PositiveInt = 50_000_000
    columns: PositiveInt = 10_000


class Settings(Section):
    """Arguments of ``deployments.app:build``.

    Attributes:
        storage_url: Where datasets, models and runs lie: ``file://…`` or ``s3://bucket/prefix``. With more
            than one node it must be reachable from all of them.
        storage_options: For the fsspec file system of that URL (``endpoint_url`` …).
        data_roots: Folders below which ``data_path`` may point.
        allow_no_auth: Run without tokens. The service refuses to start with neither tokens nor this.
        tokens_file: One accepted bearer token a line, and behind it ``read``, ``train`` or ``admin`` (which
            it is without); read again when it changes. ``STILLHOUSE_TOKENS`` (comma-separated) adds to it.
    """

    storage_url: str = "file://~/.stillhouse/storage"
    storage_options: dict[str, object] = {}
    data_roots: tuple[str, ...] = ("~/.stillhouse/data",)
    allow_no_auth: bool = False
    tokens_file: str | None = None
    registry: RegistrySettings = RegistrySettings()
    trainer: TrainerSettings = TrainerSettings()
    predictor: PredictorSettings = PredictorSettings()
    jobs: JobSettings = JobSettings()
    ingress: IngressSettings = IngressSettings()
    edge: EdgeSettings = EdgeSettings()
    limits: Limits = Limits()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _needs_auth(self) -> Self:
        if not self.allow_no_auth and self.tokens_file is None and not environment_tokens():
            raise ValueError(
                f"no bearer token is configured: set tokens_file or {TOKENS_VARIABLE}, "
                "or allow_no_auth: true to run open"
            )
        return self

    @model_validator(mode="after")
    def _has_a_place_for_each_ingress(self) -> Self:
        if self.trainer.queue_capacity < self.ingress.replicas:
            raise ValueError(
                f"trainer.queue_capacity must be at least ingress.replicas: "
                f"{self.trainer.queue_capacity} < {self.ingress.replicas}"
            )
        return self

    def expanded_storage_url(self) -> str:
        """The URL with ``~`` resolved on this machine."""
        scheme, separator, path = self.storage_url.rpartition("://")
        if scheme in ("", "file"):
            return f"file://{Path(unquote(path)).expanduser().resolve()}"
        return f"{scheme}{separator}{path}"

    def roots(self) -> list[Path]:
        return [Path(root).expanduser() for root in self.data_roots]


def environment_tokens() -> list[str]:
    """Tokens given in ``STILLHOUSE_TOKENS``, each perhaps with a scope behind it."""
    return [part.strip() for part in os.environ.get(TOKENS_VARIABLE, "").split(",") if part.strip()]


def inherited_environment() -> dict[str, str]:
    """Of external trainers."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def traced_share() -> float:
    """The share of requests whose spans Serve exports, from 0 to 1."""
    return float(os.environ.get(SPANS_SHARE_VARIABLE, "0.01")) if os.environ.get(SPANS_VARIABLE) else 0.0
