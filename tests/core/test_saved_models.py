import threading

import pytest

from core.bundles import Bundle
from core.errors import BundleError, ModelExistsError, ModelNotFoundError, RequestError, TeacherSourceError
from core.saved_models import ModelStore, model_path
from core.storage import Storage
from core.teachers import check_teacher_model, read_teacher_path


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"))


@pytest.fixture
def models(storage):
    return ModelStore(storage)


@pytest.fixture(scope="module")
def file(engine):
    return engine.trained("five").outcome.file


@pytest.fixture(scope="module")
def other(engine):
    return engine.trained("value").outcome.file


def test_a_saved_model_is_read_back_to_the_byte(models, file):
    path = models.save("iris", file, overwrite=False)
    assert path == model_path("iris")
    assert models.read("iris") == file
    assert models.exists("iris")


def test_a_model_s_record_is_its_header(models, file):
    models.save("iris", file, overwrite=False)
    found = models.get("iris")
    assert (found.model_id, found.size_bytes) == ("iris", len(file))
    assert found.header["metrics"] == Bundle.from_bytes(file).metrics
    assert found.version == models.version("iris")
    assert found.created_at.utcoffset().total_seconds() == 0


def test_a_name_is_taken_once_unless_it_may_be_overwritten(models, file, other):
    models.save("iris", file, overwrite=False)
    version = models.version("iris")
    with pytest.raises(ModelExistsError, match="'iris' already exists") as caught:
        models.save("iris", other, overwrite=False)
    assert caught.value.details == {"model_id": "iris"}
    assert models.read("iris") == file
    models.save("iris", other, overwrite=True)
    assert models.read("iris") == other
    assert models.version("iris") != version


def test_a_run_that_is_made_again_may_replace_its_own_model_and_no_other(models, file, other):
    models.save("iris", file, overwrite=False, run_id="one")
    assert (models.is_of("iris", "one"), models.is_of("iris", "two")) == (True, False)
    models.save("iris", other, overwrite=False, run_id="one")
    assert models.read("iris") == other
    for stranger in ("two", None):
        with pytest.raises(ModelExistsError):
            models.save("iris", file, overwrite=False, run_id=stranger)
    assert models.is_of("iris", "one")


@pytest.mark.parametrize("run_id", ["two", None])
def test_a_model_that_another_replaced_is_the_run_s_no_longer(models, file, other, run_id):
    models.save("iris", file, overwrite=False, run_id="one")
    models.save("iris", other, overwrite=True, run_id=run_id)
    assert not models.is_of("iris", "one")
    with pytest.raises(ModelExistsError):
        models.save("iris", file, overwrite=False, run_id="one")


def test_a_deleted_model_leaves_nothing_behind(models, file, storage):
    models.save("iris", file, overwrite=False, run_id="one")
    models.delete("iris")
    assert storage.names("") == []
    assert not models.is_of("iris", "one")
    models.save("iris", file, overwrite=False)
    assert not models.is_of("iris", None)


def test_of_many_writers_at_once_one_succeeds_and_its_file_is_whole(models, file, other):
    files = [file, other] * 4
    barrier, results = threading.Barrier(len(files)), []

    def save(content):
        barrier.wait()
        try:
            models.save("race", content, overwrite=False)
            results.append(content)
        except ModelExistsError:
            results.append(None)

    threads = [threading.Thread(target=save, args=(content,)) for content in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [content for content in results if content is not None]
    assert len(results) == len(files)
    assert models.read("race") == winner


def test_the_longest_model_id_can_be_saved(models, file):
    longest = "m" * 128
    assert not models.exists(longest)
    models.save(longest, file, overwrite=False)
    assert [model.model_id for model in models.page(10, None).data] == [longest]
    models.delete(longest)


def test_models_are_listed_by_name_page_by_page(models, file):
    names = ["a", "a-b", "a.b", "a0", "B", "z"]
    for name in reversed(names):
        models.save(name, file, overwrite=False)
    found, cursor = [], None
    while True:
        page = models.page(2, cursor)
        found += [model.model_id for model in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == sorted(names)


def test_what_is_no_model_is_passed_over_in_the_listing(models, storage, file):
    models.save("good", file, overwrite=False)
    storage.write(model_path("empty"), b"")
    storage.write(model_path("torn"), file[:1000])
    storage.write(model_path("alien"), b"\x80\x04 a pickle")
    storage.write("models/notes.txt", b"hello")
    storage.write("models/a/b/bundle.safetensors", file)
    assert [model.model_id for model in models.page(10, None).data] == ["good"]
    with pytest.raises(BundleError):
        models.get("torn")


def test_a_model_whose_tensors_are_damaged_is_listed_but_not_loaded(models, storage, file):
    """The listing reads headers alone."""
    storage.write(model_path("bad"), file[:-1] + bytes([file[-1] ^ 1]))
    assert models.get("bad").header["task"] == "classification"
    with pytest.raises(BundleError):
        Bundle.from_bytes(models.read("bad"))


def test_a_deleted_model_is_gone(models, file):
    models.save("iris", file, overwrite=False)
    models.delete("iris")
    assert not models.exists("iris")
    assert models.page(10, None).data == []
    models.save("iris", file, overwrite=False)


@pytest.mark.parametrize(
    "name", ["absent", "", "..", "../x", "a/b", "/etc/passwd", "x" * 129, "a\0b", ".hidden"]
)
@pytest.mark.parametrize("use", ["read", "get", "version", "delete"])
def test_names_that_no_model_has_are_not_found(models, use, name):
    with pytest.raises(ModelNotFoundError):
        getattr(models, use)(name)


@pytest.mark.parametrize("name", ["..", "../x", "/etc/passwd", ""])
def test_nothing_is_saved_under_a_name_that_leaves_the_folder(models, storage, file, name):
    with pytest.raises(RequestError):
        models.save(name, file, overwrite=True)
    assert storage.names("") == []


@pytest.fixture
def root(tmp_path, file):
    root = tmp_path / "data"
    root.mkdir()
    (root / "teacher.safetensors").write_bytes(file)
    (root / "table.csv").write_text("a,b\n1,2\n")
    return root


def test_a_teacher_path_means_the_store_first_and_a_data_root_second(storage, models, root, file, other):
    models.save("iris", other, overwrite=False)
    assert read_teacher_path(model_path("iris"), storage, [root]) == other
    assert read_teacher_path("teacher.safetensors", storage, [root]) == file
    assert read_teacher_path(str(root / "teacher.safetensors"), storage, [root]) == file
    storage.write("teacher.safetensors", other)
    assert read_teacher_path("teacher.safetensors", storage, [root]) == other


@pytest.mark.parametrize("path", ["absent", "../store", "/etc/passwd", "../../etc/passwd", "", "."])
def test_a_teacher_path_that_leaves_store_and_roots_is_refused(storage, root, path):
    with pytest.raises(TeacherSourceError, match="artefact store or a data root"):
        read_teacher_path(path, storage, [root])
    with pytest.raises(TeacherSourceError):
        check_teacher_model("model_path", path, storage, [root])


def test_a_teacher_is_checked_by_its_header(storage, models, root, file):
    models.save("iris", file, overwrite=False)
    check_teacher_model("model_id", "iris", storage, [])
    check_teacher_model("model_path", "teacher.safetensors", storage, [root])
    storage.write(model_path("torn"), file[:100])
    cases = [("model_id", "absent"), ("model_id", "torn"), ("model_id", "../x"), ("model_path", "table.csv")]
    for kind, name in cases:
        with pytest.raises(TeacherSourceError, match="teacher model cannot be used"):
            check_teacher_model(kind, name, storage, [root])
