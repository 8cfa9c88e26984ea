"""The error tree: every failure that Stillhouse names, and nothing about how it is shown.

Raise an error where the fact is known and translate it once, at the border. ``core.catalogue`` says of each
``code`` its type, severity and status, whether to retry, what to say and what to do.

The branches are the twelve classes of seed 001; their leaves carry the codes:

    StillhouseError
    ├── NetworkError, ServiceUnavailableError, TimeoutError                        transient
    ├── ConfigurationError, ResourceNotFoundError, InsufficientPermissionsError    permanent
    ├── ValidationError, QuotaExceededError, DatasetValidationError                the user's
    ├── DatabaseError, StorageError, UnexpectedError                               the system's
    └── TrainingError, BundleError, CheckpointError

A leaf whose code says otherwise than its branch keeps to its code.
"""

from core.errors.base import StillhouseError as StillhouseError
from core.errors.base import class_of as class_of
from core.errors.base import without_paths as without_paths
from core.errors.forecasting import *  # noqa: F403
from core.errors.platform import *  # noqa: F403
from core.errors.spectra import *  # noqa: F403
