import dataclasses
import hashlib
import json
import os
import threading

import pytest

from core.datasets import Dataset, DatasetCatalogue
from core.errors import DatasetError, DatasetNotFoundError, DatasetTooLargeError
from core.storage import Storage
from core.table import read_table

CSV = b"name,age,city\nAda,36,London\nLinus,,Helsinki\n"


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"))


@pytest.fixture
def catalogue(storage):
    return DatasetCatalogue(storage, max_rows=100, max_columns=5)


def upload(catalogue, content, kind="csv", name=None):
    with catalogue.incoming() as incoming:
        incoming.write(content[:10])
        incoming.write(content[10:])
    return catalogue.add(incoming, kind, name)


def files(storage, tmp_path):
    """All regular files below the store, unfinished ones too."""
    return [name for _, _, names in os.walk(tmp_path / "store") for name in names]


def test_an_upload_is_described_and_kept_to_the_byte(catalogue, storage):
    dataset, created = upload(catalogue, CSV, name="people.csv")
    assert created
    digest = hashlib.sha256(CSV).hexdigest()
    assert (dataset.sha256, dataset.bytes, dataset.rows) == (digest, len(CSV), 2)
    assert (dataset.dataset_id, dataset.name, dataset.format) == (f"csv-{digest[:32]}", "people.csv", "csv")
    assert [(c["name"], c["dtype"], c["null_count"]) for c in dataset.columns] == [
        ("name", "string", 0),
        ("age", "integer", 1),
        ("city", "string", 0),
    ]
    source = catalogue.source(dataset.dataset_id)
    assert storage.read(source.location) == CSV
    assert (source.kind, source.format, source.label) == ("dataset", "csv", dataset.dataset_id)


def test_the_same_content_is_the_same_dataset(catalogue, storage):
    first, created = upload(catalogue, CSV, name="one")
    again, created_again = upload(catalogue, CSV, name="two")
    assert (created, created_again) == (True, False)
    assert again == first
    assert len(storage.names("")) == 2


def test_the_same_bytes_in_another_format_are_another_dataset(catalogue):
    content = b"a\tb\n1\t2\n"
    ids = {upload(catalogue, content, kind)[0].dataset_id for kind in ("csv", "tsv")}
    assert len(ids) == 2


def test_uploads_of_the_same_content_at_once_give_one_dataset(catalogue, storage):
    barrier, results = threading.Barrier(6), []

    def work():
        with catalogue.incoming() as incoming:
            incoming.write(CSV)
            barrier.wait()
        results.append(catalogue.add(incoming, "csv", None)[0].dataset_id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len(set(results)) == 1
    assert len(storage.names("")) == 2
    assert catalogue.preview(results[0], 5).num_rows == 2


@pytest.mark.parametrize(
    ("content", "kind", "error"),
    [
        (b"a,b\n1,2,3\n", "csv", DatasetError),
        (b"", "csv", DatasetError),
        (b"a,a\n1,2\n", "csv", DatasetError),
        (b"not parquet", "parquet", DatasetError),
        (b"not arrow", "arrow", DatasetError),
        (b"not xlsx", "xlsx", DatasetError),
        (b"{]", "jsonl", DatasetError),
        (b"a\n" + b"1\n" * 101, "csv", DatasetTooLargeError),
        (b"a,b,c,d,e,f\n1,2,3,4,5,6\n", "csv", DatasetTooLargeError),
    ],
)
def test_a_table_that_is_refused_leaves_no_file_behind(catalogue, storage, tmp_path, content, kind, error):
    with pytest.raises(error):
        upload(catalogue, content, kind)
    assert files(storage, tmp_path) == []


def test_an_upload_that_breaks_off_leaves_no_file_behind(catalogue, storage, tmp_path):
    def receive():
        with catalogue.incoming() as incoming:
            incoming.write(CSV)
            raise ConnectionResetError("the client left")

    with pytest.raises(ConnectionResetError):
        receive()
    assert files(storage, tmp_path) == []


def test_datasets_are_listed_by_id_page_by_page(catalogue):
    ids = [upload(catalogue, b"a,b\n1,%d\n" % number)[0].dataset_id for number in range(5)]
    first = catalogue.page(3, None)
    second = catalogue.page(3, first.next_cursor)
    assert [dataset.dataset_id for dataset in first.data + second.data] == sorted(ids)
    assert second.next_cursor is None


class Hasty(Storage):
    """Another process that deletes the first object right after the names were listed."""

    def names(self, folder, suffix=""):
        found = super().names(folder, suffix)
        self.delete(found[0])
        return found


def test_a_dataset_deleted_while_a_page_is_read_is_left_out(storage):
    catalogue = DatasetCatalogue(storage, max_rows=100, max_columns=5)
    ids = sorted(upload(catalogue, b"a,b\n1,%d\n" % number)[0].dataset_id for number in range(3))
    hasty = DatasetCatalogue(Hasty(*storage.__reduce__()[1]), max_rows=100, max_columns=5)
    assert [dataset.dataset_id for dataset in hasty.page(10, None).data] == ids[1:]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"columns": 1}'])
def test_a_dataset_with_a_damaged_record_is_left_out_of_the_listing(catalogue, storage, damage):
    good, bad = (upload(catalogue, b"a,b\n1,%d\n" % number)[0].dataset_id for number in range(2))
    storage.write(f"datasets/{bad}/info.json", damage)
    assert [dataset.dataset_id for dataset in catalogue.page(10, None).data] == [good]


@pytest.mark.parametrize(("later_s", "kept"), [(50, 1), (200, 0)])
def test_uploads_that_nobody_finished_are_swept_when_they_are_old(catalogue, storage, later_s, kept):
    upload(catalogue, CSV)
    with catalogue.incoming() as incoming:
        incoming.write(CSV)
    written_at = storage.stat(incoming.name).modified_at.timestamp()
    catalogue.sweep(older_than_s=100, now=written_at + later_s)
    assert len(storage.names("uploads")) == kept
    assert len(catalogue.page(10, None).data) == 1


def test_an_upload_that_is_filed_during_a_sweep_disturbs_nothing(catalogue, storage):
    with catalogue.incoming() as incoming:
        incoming.write(CSV)
    hasty = DatasetCatalogue(Hasty(*storage.__reduce__()[1]), max_rows=100, max_columns=5)
    hasty.sweep(older_than_s=0, now=2e9)
    assert not storage.exists(incoming.name)


def test_a_preview_shows_the_first_rows(catalogue):
    dataset, _ = upload(catalogue, CSV)
    preview = catalogue.preview(dataset.dataset_id, 1)
    assert preview.to_pylist() == [{"name": "Ada", "age": 36, "city": "London"}]


def test_a_deleted_dataset_is_gone_and_can_come_again(catalogue, storage, tmp_path):
    dataset, _ = upload(catalogue, CSV)
    catalogue.delete(dataset.dataset_id)
    assert files(storage, tmp_path) == []
    with pytest.raises(DatasetNotFoundError):
        catalogue.get(dataset.dataset_id)
    assert upload(catalogue, CSV)[1]


@pytest.mark.parametrize("name", ["absent", "", "..", "../x", "/etc/passwd", "a/b", "x" * 1000, "a\0b"])
@pytest.mark.parametrize("use", ["get", "source", "delete"])
def test_ids_that_no_dataset_has_are_not_found(catalogue, use, name):
    with pytest.raises(DatasetNotFoundError, match="upload it"):
        getattr(catalogue, use)(name)


def test_a_record_survives_json(catalogue):
    dataset, _ = upload(catalogue, CSV)
    assert Dataset.from_json(json.dumps(dataset.to_dict())) == dataset
    assert {field.name for field in dataclasses.fields(Dataset)} == dataset.to_dict().keys()


def test_the_source_of_a_dataset_is_what_the_table_reader_opens(catalogue, storage):
    source = catalogue.source(upload(catalogue, CSV)[0].dataset_id)
    table = read_table(lambda: storage.open_native(source.location), source.format)
    assert table["age"].to_pylist() == [36, None]
