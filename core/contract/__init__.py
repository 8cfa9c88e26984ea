"""What a train or distil request may say, and the order in which it is checked. Free of torch."""

from core.contract.requests import DataSource, DistillRequest, Lookups, Saving, TeacherSource, TrainRequest
from core.contract.sweeps import Sweep
from core.contract.validation import validate_distill, validate_train

__all__ = [
    "DataSource",
    "DistillRequest",
    "Lookups",
    "Saving",
    "Sweep",
    "TeacherSource",
    "TrainRequest",
    "validate_distill",
    "validate_train",
]
