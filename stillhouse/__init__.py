"""Stillhouse from Python and from the command line: a typed client of the HTTP service.

    import stillhouse

    with stillhouse.Client() as client:
        wine = client.datasets.upload("wine.csv")
        run = client.train(dataset_id=wine.dataset_id, target_column="target")
        print(client.predict(frame, run_id=run.run_id))

Free of Ray, torch and the service itself; ``stillhouse.errors`` is the tree of errors that it raises.
"""

from core import errors
from stillhouse.answers import (
    Column,
    Dataset,
    Distilled,
    EpochReport,
    ErrorEntry,
    Health,
    Limits,
    Member,
    Metrics,
    Model,
    ModelDetails,
    PredictedTable,
    Predictions,
    Preview,
    Run,
    RunDetails,
    Saved,
    Trained,
)
from stillhouse.client import AsyncClient, Client
from stillhouse.failures import Failure, failure_of
from stillhouse.job_answers import (
    CheckpointKept,
    FieldError,
    Job,
    JobAttempt,
    JobCheckpoint,
    JobEnded,
    JobEpoch,
    JobEvent,
    JobFailure,
    JobMetrics,
    JobProgress,
    LogLine,
    StatusChange,
    Turn,
    Validation,
)
from stillhouse.retries import Patience

__all__ = [
    "AsyncClient",
    "CheckpointKept",
    "Client",
    "Column",
    "Dataset",
    "Distilled",
    "EpochReport",
    "ErrorEntry",
    "Failure",
    "FieldError",
    "Health",
    "Job",
    "JobAttempt",
    "JobCheckpoint",
    "JobEnded",
    "JobEpoch",
    "JobEvent",
    "JobFailure",
    "JobMetrics",
    "JobProgress",
    "Limits",
    "LogLine",
    "Member",
    "Metrics",
    "Model",
    "ModelDetails",
    "Patience",
    "PredictedTable",
    "Predictions",
    "Preview",
    "Run",
    "RunDetails",
    "Saved",
    "StatusChange",
    "Trained",
    "Turn",
    "Validation",
    "errors",
    "failure_of",
]
