"""Teacher files that a request names by path."""

from collections.abc import Sequence
from pathlib import Path

from core.bundles import header_length, read_header
from core.errors import BundleError, DataTargetError, ModelNotFoundError, RequestError, TeacherSourceError
from core.paths import resolve_within
from core.saved_models import ModelStore
from core.storage import Storage


def read_teacher_path(path: str, storage: Storage, roots: Sequence[Path]) -> bytes:
    """The file that ``teacher_model_path`` means: inside the artefact store, else below a data root.

    Raises:
        TeacherSourceError: if there is none.
    """
    try:
        return storage.read(path)
    except (FileNotFoundError, RequestError):
        pass
    try:
        return resolve_within(path, roots).read_bytes()
    except DataTargetError:
        raise TeacherSourceError(
            "teacher_model_path must name a model file inside the artefact store or a data root"
        ) from None


def check_teacher_model(kind: str, name: str, storage: Storage, roots: Sequence[Path]) -> None:
    """Reads the header of a saved model or of a file by path.

    Raises:
        TeacherSourceError: if it is absent or no bundle (contract, section 3, step 10: 400).
    """
    try:
        if kind == "model_id":
            ModelStore(storage).get(name)
        else:
            file = read_teacher_path(name, storage, roots)
            read_header(file[: 8 + header_length(file)])
    except (ModelNotFoundError, BundleError) as error:
        raise TeacherSourceError(f"The teacher model cannot be used. {error.message}") from None
