"""Wires the application: the only place that names deployments, their resources and their scaling."""

from typing import Final

import ray
from ray import serve

from deployments.ingress import Ingress
from deployments.predictor import Predictor
from deployments.settings import Settings
from deployments.trainer import Trainer

APP_NAME: Final = "stillhouse"
GRACE_S: Final = 60


def build(args: Settings) -> serve.Application:
    """Builds the application for ``serve run deployments.app:build`` and ``serve_config.yaml``.

    Raises:
        pydantic.ValidationError: before this is called, for misspelt or impossible arguments.
    """
    settings = args
    trainer = serve.deployment(
        name="Trainer",
        max_ongoing_requests=1,
        # The ingress counts for itself, and lets go earlier than Serve: this is for what it does not know.
        max_queued_requests=2 * settings.trainer.queue_capacity,
        # Downscaling ignores load: only the grace period protects a training that runs.
        graceful_shutdown_timeout_s=settings.trainer.job_timeout_s + GRACE_S,
        autoscaling_config={
            "min_replicas": settings.trainer.min_replicas,
            "max_replicas": settings.trainer.max_replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": settings.trainer.upscale_delay_s,
            "downscale_delay_s": settings.trainer.downscale_delay_s,
        },
        ray_actor_options={
            "num_cpus": settings.trainer.cpus_per_trainer,
            "num_gpus": gpus_per_trainer(settings, ray.cluster_resources().get("GPU", 0)),
            "runtime_env": settings.trainer.runtime_env,
        },
    )(Trainer).bind(settings)
    predictor = serve.deployment(
        name="Predictor",
        max_ongoing_requests=256,
        graceful_shutdown_timeout_s=GRACE_S,
        autoscaling_config={
            "min_replicas": settings.predictor.min_replicas,
            "max_replicas": settings.predictor.max_replicas,
            "target_ongoing_requests": 32,
        },
        ray_actor_options={"num_cpus": settings.predictor.cpus_per_predictor},
    )(Predictor).bind(settings)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=settings.ingress.replicas,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=settings.trainer.job_timeout_s + GRACE_S,
        ray_actor_options={"num_cpus": settings.ingress.cpus_per_ingress},
    )(serve.ingress()(Ingress))
    return ingress.bind(settings, trainer, predictor)


def gpus_per_trainer(settings: Settings, gpus_in_cluster: float) -> float:
    """The configured number; ``auto`` is 1 where the cluster has a GPU now, else 0."""
    wanted = settings.trainer.gpus_per_trainer
    return float(gpus_in_cluster >= 1) if wanted == "auto" else wanted
