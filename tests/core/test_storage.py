import errno
import io
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Literal
from uuid import uuid4

import botocore.exceptions
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from core.errors import CircuitOpenError, DataTargetError, RequestError, StorageError
from core.paths import is_name, resolve_within
from core.storage import Storage

SECRET = "not-to-be-seen"  # noqa: S105
MOTO_BEGIN = datetime(2010, 11, 10, 20, 48, 33, tzinfo=UTC).timestamp()  # of every upload that moto lists


class S3Server:
    """moto over HTTP, one request at a time, with troubles to order.

    S3 decides If-None-Match in one step; moto looks and writes in two, and another thread may write between.
    """

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._moto = self._server._server.app
        self._server._server.app = self._answer
        self._lock = threading.Lock()
        self.refuse_all = False
        self.cut_next: str | None = None  # a method whose next answer breaks off with its connection
        self.at_next_put: Literal["lose the answer", "collide"] | None = None
        host, port = self._server.get_host_and_port()
        self.options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": SECRET}
        self.client = fsspec.filesystem("s3", **self.options, use_listings_cache=False)

    def stop(self) -> None:
        self._server.stop()

    @contextmanager
    def refusing(self):
        self.refuse_all = True
        try:
            yield
        finally:
            self.refuse_all = False

    def _answer(self, environ, start_response):
        with self._lock:
            if self.refuse_all:
                return answer(start_response, "403 Forbidden")
            if self.cut_next == environ["REQUEST_METHOD"]:
                self.cut_next = None
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("206 Partial Content", [("Content-Length", "1000")])
                return [b"x"]
            if self.at_next_put is None or environ["REQUEST_METHOD"] != "PUT":
                return self._moto(environ, start_response)
            trouble, self.at_next_put = self.at_next_put, None
            if trouble == "lose the answer":
                list(self._moto(environ, lambda status, headers, *rest: None))
                return answer(start_response, "500 Internal Server Error")
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            return answer(
                start_response, "409 Conflict", b"<Error><Code>ConditionalRequestConflict</Code></Error>"
            )


def answer(start_response, status: str, body: bytes = b"") -> list[bytes]:
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture(scope="module")
def s3():
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3):
    name = f"b{uuid4().hex}"
    s3.client.mkdir(name)
    return name


@pytest.fixture
def s3_storage(s3, bucket):
    return Storage(f"s3://{bucket}/some/prefix/", s3.options)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def file_storage(root):
    return Storage(f"file://{root}")


@pytest.fixture(params=["file_storage", "s3_storage"])
def storage(request) -> Storage:
    return request.getfixturevalue(request.param)


# ---- the same behaviour on both backends


@pytest.mark.parametrize("data", [b"", b"one", b"\0" * 100_000], ids=["empty", "small", "large"])
def test_written_content_is_read_back(storage, data):
    storage.write("folder/object.bin", data)
    assert storage.read("folder/object.bin") == data
    assert storage.stat("folder/object.bin").size_bytes == len(data)


def test_memoryviews_are_written_as_their_bytes(storage):
    storage.write("a", memoryview(b"xabcx")[1:4])
    with storage.writer("b") as writer:
        assert writer.write(memoryview(b"xabcx")[1:4]) == 3
    assert storage.read("a") == storage.read("b") == b"abc"


def test_write_replaces(storage):
    storage.write("a", b"a longer first")
    storage.write("a", b"second")
    assert storage.read("a") == b"second"


@pytest.mark.parametrize(
    "read",
    [
        lambda storage, name: storage.read(name),
        lambda storage, name: storage.read_range(name, 0, 1),
        lambda storage, name: storage.read_range(name, 0, 0),
        lambda storage, name: storage.stat(name),
        lambda storage, name: storage.open_native(name),
        lambda storage, name: storage.copy(name, "target"),
        lambda storage, name: storage.copy(name, name),
        lambda storage, name: storage.move(name, "target"),
        lambda storage, name: storage.move(name, name),
    ],
    ids=[
        "read",
        "range",
        "empty range",
        "stat",
        "native",
        "copy",
        "copy to itself",
        "move",
        "move to itself",
    ],
)
@pytest.mark.parametrize("name", ["absent", "folder", "folder/a/below-an-object"])
def test_absent_object_is_file_not_found_without_a_server_path(storage, read, name):
    storage.write("folder/a", b"x")
    with pytest.raises(FileNotFoundError) as caught:
        read(storage, name)
    assert str(caught.value) == f"{name} is not in storage"
    assert not storage.exists(name)
    assert storage.names("") == ["folder/a"]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 3, b"012"), (4, 6, b"45"), (8, 99, b"89"), (9, 10, b"9"), (10, 11, b""), (50, 60, b""), (4, 4, b"")],
)
def test_range_is_half_open_and_cut_at_the_end(storage, start, end, expected):
    storage.write("digits", b"0123456789")
    assert storage.read_range("digits", start, end) == expected


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (-3, -1)])
def test_range_that_is_none_is_refused(storage, start, end):
    storage.write("digits", b"0123456789")
    with pytest.raises(RequestError, match="0 <= start <= end"):
        storage.read_range("digits", start, end)


def test_exclusive_write_keeps_what_is_there(storage):
    storage.write("a", b"first", exclusive=True)
    with pytest.raises(FileExistsError, match="a is already in storage"):
        storage.write("a", b"second", exclusive=True)
    assert storage.read("a") == b"first"
    storage.delete("a")
    storage.write("a", b"third", exclusive=True)
    assert storage.read("a") == b"third"


@pytest.mark.parametrize("way", ["write", "copy"])
def test_one_of_many_exclusive_writers_wins(storage, way):
    writers = 8
    start = threading.Barrier(writers)
    for number in range(writers):
        storage.write(f"sources/{number}", b"%d" % number)

    def attempt(number):
        start.wait()
        try:
            if way == "write":
                storage.write("races/prize", b"%d" % number, exclusive=True)
            else:
                storage.copy(f"sources/{number}", "races/prize", exclusive=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(writers) as threads:
        won = list(threads.map(attempt, range(writers)))
    assert sum(won) == 1
    assert storage.read("races/prize") == b"%d" % won.index(True)


def test_readers_never_see_half_of_a_replacement(storage):
    versions = [bytes([digit]) * 300_000 for digit in b"01"]
    storage.write("a", versions[0])

    def replace_often():
        for turn in range(12):
            storage.write("a", versions[turn % 2])

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(replace_often)
        while not writing.done():
            assert storage.read("a") in versions
        writing.result()


def test_writer_shows_nothing_before_its_block_ends(storage):
    with storage.writer("folder/a") as writer:
        writer.write(b"one ")
        assert not storage.exists("folder/a")
        assert storage.names("") == []
        writer.write(b"two")
    assert storage.read("folder/a") == b"one two"


def test_writer_that_writes_nothing_makes_an_empty_object(storage):
    with storage.writer("a"):
        pass
    assert storage.read("a") == b""


def break_off(storage, name, error, content=b"half"):
    with storage.writer(name) as writer:
        writer.write(content)
        raise error


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, OSError, KeyboardInterrupt, GeneratorExit])
def test_exception_in_a_writer_leaves_what_was_there(storage, error, root):
    storage.write("kept", b"before")
    for name in ("kept", "new"):
        with pytest.raises(error, match="mine"):
            break_off(storage, name, error("mine"))
    assert storage.read("kept") == b"before"
    assert storage.names("") == ["kept"]
    assert not list(root.glob(".tmp/*"))


def test_large_content_streams_in_parts(storage):
    chunk = bytes(range(256)) * 4096
    with storage.writer("large") as writer:
        for _ in range(20):
            writer.write(chunk)
    assert storage.stat("large").size_bytes == 20 * len(chunk)
    assert storage.read_range("large", 17 * len(chunk) - 1, 17 * len(chunk) + 2) == b"\xff\0\1"


def test_stat_tells_size_time_and_a_tag_that_follows_the_content(storage):
    storage.write("a", b"12345")
    first = storage.stat("a")
    assert (first.name, first.size_bytes) == ("a", 5)
    assert first.modified_at.utcoffset() == timedelta(0)
    assert abs((datetime.now(UTC) - first.modified_at).total_seconds()) < 60
    assert storage.stat("a").etag == first.etag
    storage.write("a", b"54321")
    assert storage.stat("a").etag != first.etag


def test_names_are_sorted_and_complete(storage):
    for name in ["d/b.json", "d/a.bin", "d/e/f/c.json", "dd/x.json", "d.json"]:
        storage.write(name, b"")
    assert storage.names("d") == ["d/a.bin", "d/b.json", "d/e/f/c.json"]
    assert storage.names("d", ".json") == ["d/b.json", "d/e/f/c.json"]
    assert storage.names("", ".json") == ["d.json", "d/b.json", "d/e/f/c.json", "dd/x.json"]
    assert storage.names("absent") == storage.names("d.json") == storage.names("d.json/x") == []


def test_names_follow_every_change(storage):
    storage.write("d/a", b"")
    other = Storage(*storage.__reduce__()[1])
    assert other.names("d") == ["d/a"]
    storage.write("d/b", b"")
    assert other.names("d") == ["d/a", "d/b"]
    assert other.exists("d/b")
    storage.delete("d/a")
    assert other.names("d") == ["d/b"]
    assert not other.exists("d/a")


def test_delete_tells_whether_there_was_something(storage):
    storage.write("d/a", b"x")
    assert not storage.delete("d")
    assert not storage.delete("d/a/b")
    assert storage.delete("d/a")
    assert not storage.delete("d/a")
    assert not storage.exists("d/a")


def test_deleted_folder_takes_everything_below_and_nothing_beside(storage, root):
    for name in ["d/a", "d/e/f", "dd/a", "d.json"]:
        storage.write(name, b"x")
    assert storage.delete_folder("d")
    assert not storage.delete_folder("d")
    assert not storage.delete_folder("d.json")
    assert storage.names("") == ["d.json", "dd/a"]
    assert not list(root.glob(".tmp/*"))
    storage.write("d/a", b"again")
    assert storage.read("d/a") == b"again"


@pytest.mark.parametrize("data", [b"", b"content"], ids=["empty", "full"])
def test_copy_and_move_keep_the_content(storage, data):
    storage.write("a", data)
    storage.write("x/c", b"replaced")
    storage.copy("a", "x/b")
    storage.move("x/b", "x/c")
    storage.copy("x/c", "y/d", exclusive=True)
    assert storage.names("") == ["a", "x/c", "y/d"]
    assert [storage.read(name) for name in storage.names("")] == [data] * 3


@pytest.mark.parametrize("data", [b"", b"content"], ids=["empty", "full"])
def test_exclusive_copy_keeps_what_is_there(storage, data):
    storage.write("a", data)
    storage.write("b", b"first")
    for target in ("b", "a"):
        with pytest.raises(FileExistsError, match=f"^{target} is already"):
            storage.copy("a", target, exclusive=True)
    assert (storage.read("a"), storage.read("b")) == (data, b"first")


def test_object_copied_or_moved_onto_itself_stays(storage):
    storage.write("a", b"x")
    storage.copy("a", "a")
    storage.move("a", "a")
    assert storage.read("a") == b"x"


def test_native_file_is_seekable_for_parquet(storage):
    table = pa.table({"n": range(1000)})
    with storage.writer("t.parquet") as writer:
        content = io.BytesIO()
        pq.write_table(table, content)
        writer.write(content.getbuffer())
    with storage.open_native("t.parquet") as file:
        assert file.seekable()
        assert file.size() == storage.stat("t.parquet").size_bytes
        assert pq.read_table(file).equals(table)
    with storage.open_native("t.parquet") as file:
        assert file.read(4) == b"PAR1"
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"PAR1"
        assert file.read(1) == b""


def test_copy_by_pickling_sees_the_same_objects(storage):
    storage.write("a", b"x")
    twin = ForkingPickler.loads(ForkingPickler.dumps(storage))
    assert twin.read("a") == b"x"
    assert SECRET not in repr(twin)


BAD_NAMES = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\\b",
    "a\0b",
    "a\n",
    "a b",
    ".hidden",
    "a/.tmp/b",
    "-a",
    "é",
    "a?versionId=1",
    "a*",
    "%2e%2e",
    "a" * 129,
    "/".join(["abcdefg"] * 65),
]

NAMED_CALLS = {
    "read": lambda storage, name: storage.read(name),
    "read_range": lambda storage, name: storage.read_range(name, 0, 1),
    "write": lambda storage, name: storage.write(name, b"x"),
    "write exclusive": lambda storage, name: storage.write(name, b"x", exclusive=True),
    "writer": lambda storage, name: storage.writer(name).__enter__(),
    "open_native": lambda storage, name: storage.open_native(name),
    "exists": lambda storage, name: storage.exists(name),
    "stat": lambda storage, name: storage.stat(name),
    "names": lambda storage, name: storage.names(name),
    "delete": lambda storage, name: storage.delete(name),
    "delete_folder": lambda storage, name: storage.delete_folder(name),
    "copy from": lambda storage, name: storage.copy(name, "b"),
    "copy to": lambda storage, name: storage.copy("kept", name),
    "move from": lambda storage, name: storage.move(name, "b"),
    "move to": lambda storage, name: storage.move("kept", name),
}


def test_every_method_that_takes_a_name_is_among_the_named_calls():
    public = {name for name in vars(Storage) if not name.startswith("_")} - {"sweep", "breaker"}
    assert {call.split()[0] for call in NAMED_CALLS} == public


@pytest.mark.parametrize("call", NAMED_CALLS)
def test_bad_names_are_refused_before_anything_is_touched(file_storage, root, call):
    file_storage.write("kept", b"x")
    before = sorted(root.rglob("*"))
    for name in BAD_NAMES:
        if (call, name) == ("names", ""):
            continue
        with pytest.raises(RequestError, match="a stored name must be"):
            NAMED_CALLS[call](file_storage, name)
    assert sorted(root.rglob("*")) == before


@given(st.text(max_size=40))
def test_accepted_names_stay_below_any_root(text):
    if is_name(text):
        path = Path(os.path.normpath(f"/root/{text}"))
        assert path.as_posix() == f"/root/{text}"
        assert path.is_relative_to("/root")


# ---- a folder


@pytest.mark.parametrize("call", NAMED_CALLS)
def test_names_that_leave_through_links_are_refused(file_storage, root, tmp_path, call):
    file_storage.write("kept", b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "out").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "loop").symlink_to(root / "loop")
    (root / "dangling").symlink_to(outside / "absent")
    for name in ["out/secret", "file", "out/new", "dangling", "loop", "loop/x"]:
        with pytest.raises(RequestError, match="must not lead out of the store"):
            NAMED_CALLS[call](file_storage, name)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert file_storage.names("") == ["kept"]


def test_root_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Storage(f"file://{tmp_path}/link").write("a", b"x")
    assert (tmp_path / "real" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("url", ["file://var/storage", "var/storage"])
def test_relative_folder_is_that_of_the_construction(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage(url)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.write("a", b"x")
    twin = ForkingPickler.loads(ForkingPickler.dumps(storage))
    assert twin.read("a") == (tmp_path / "var" / "storage" / "a").read_bytes() == b"x"


def test_nothing_is_created_before_the_first_write(file_storage, root):
    assert file_storage.names("") == []
    assert file_storage.sweep(0, time.time()) == 0
    assert not file_storage.delete_folder("d")
    assert not root.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_failed_write_names_the_operation_and_hides_the_path(file_storage, root, error, monkeypatch):
    file_storage.write("kept", b"before")

    def fail(_descriptor):
        raise OSError(error, os.strerror(error), str(root))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        file_storage.write("kept", b"after")
    assert caught.value.details == {"operation": "write", "name": "kept", "reason": errno.errorcode[error]}
    assert ("full" in caught.value.message) == (error == errno.ENOSPC)
    assert str(root) not in f"{caught.value.message}{caught.value.details}"
    assert len(caught.value.message) < 100
    monkeypatch.undo()
    assert file_storage.read("kept") == b"before"
    assert not list(root.glob(".tmp/*"))


def test_object_where_a_folder_is_needed_is_a_failure_not_an_answer(file_storage):
    file_storage.write("a", b"x")
    for exclusive in (False, True):
        with pytest.raises(StorageError):
            file_storage.write("a/b", b"x", exclusive=exclusive)


def test_new_objects_are_readable_as_the_umask_says(file_storage, root):
    (root / "d").mkdir(parents=True)
    (root / "d" / "plain").touch()
    file_storage.write("d/a", b"x")
    assert (root / "d" / "a").stat().st_mode == (root / "d" / "plain").stat().st_mode


def test_sweep_removes_old_leftovers_only(file_storage, root):
    file_storage.write("kept", b"x")
    abandoned = file_storage.writer("new")
    writer = abandoned.__enter__()
    writer.write(b"half")
    (root / ".tmp" / "trash").mkdir()
    (root / ".tmp" / "trash" / "a").touch()
    now = time.time()
    assert file_storage.sweep(60, now) == 0
    assert len(list((root / ".tmp").iterdir())) == 2
    assert file_storage.sweep(60, now + 120) == 2
    assert list((root / ".tmp").iterdir()) == []
    assert file_storage.names("") == ["kept"]
    with pytest.raises(StorageError):
        abandoned.__exit__(None, None, None)


def test_writers_survive_the_deletion_of_their_folder(file_storage):
    """mkdir and rename are two steps: a folder deleted in between must not fail the write."""
    stop = threading.Event()

    def delete_often():
        while not stop.is_set():
            file_storage.delete_folder("d")

    with ThreadPoolExecutor(1) as threads:
        deleting = threads.submit(delete_often)
        try:
            for _ in range(100):
                file_storage.write("d/e/a", b"x")
        finally:
            stop.set()
        deleting.result()


# ---- a bucket


def test_objects_lie_below_the_prefix(s3, bucket, s3_storage):
    s3_storage.write("d/a", b"x")
    s3.client.pipe_file(f"{bucket}/some/prefix-of-others", b"")
    s3.client.pipe_file(f"{bucket}/some/prefix/d/not a name", b"")
    s3.client.touch(f"{bucket}/some/prefix/d/placeholder/")
    assert s3_storage.names("") == ["d/a"]
    assert f"{bucket}/some/prefix/d/a" in s3.client.find(bucket)


def test_bucket_without_a_prefix_is_a_store_too(s3, bucket):
    storage = Storage(f"s3://{bucket}", s3.options)
    storage.write("d/a", b"x")
    assert storage.names("") == storage.names("d") == ["d/a"]


def test_listing_spans_pages(s3_storage, monkeypatch):
    for number in range(5):
        s3_storage.write(f"d/{number}", b"")
    call = s3_storage._backend._fs.call_s3
    pages = []

    def two_a_page(method, **arguments):
        pages.append(method)
        return call(method, **arguments, MaxKeys=2)

    monkeypatch.setattr(s3_storage._backend._fs, "call_s3", two_a_page)
    assert s3_storage.names("d") == [f"d/{number}" for number in range(5)]
    assert len(pages) == 3


@pytest.mark.parametrize("trouble", ["lose the answer", "collide"])
def test_sole_exclusive_writer_wins_in_spite_of(trouble, s3, s3_storage):
    s3.at_next_put = trouble
    s3_storage.write("prize", b"mine", exclusive=True)
    assert s3.at_next_put is None
    assert s3_storage.read("prize") == b"mine"
    with pytest.raises(FileExistsError):
        s3_storage.write("prize", b"mine", exclusive=True)


def test_large_objects_are_copied_in_parts(s3_storage, monkeypatch):
    part_bytes = 5 * 2**20  # S3 allows none that is smaller
    monkeypatch.setattr("core.storage.bucket._COPY_PART_BYTES", part_bytes)
    content = bytes(range(250)) * (2 * part_bytes // 250 + 1)
    s3_storage.write("a", content)
    s3_storage.copy("a", "b")
    s3_storage.move("b", "c")
    s3_storage.copy("c", "d", exclusive=True)
    assert s3_storage.read("d") == content
    assert s3_storage.names("") == ["a", "c", "d"]


def test_refused_exclusive_copy_leaves_no_upload(s3, bucket, s3_storage):
    s3_storage.write("a", b"x")
    with pytest.raises(FileExistsError):
        s3_storage.copy("a", "a", exclusive=True)
    assert s3.client.list_multipart_uploads(bucket) == []


def test_exception_in_a_writer_aborts_its_upload(s3, bucket, s3_storage):
    with pytest.raises(KeyboardInterrupt):
        break_off(s3_storage, "a", KeyboardInterrupt(), content=bytes(17 * 2**20))
    assert s3.client.list_multipart_uploads(bucket) == []
    assert s3_storage.names("") == []


def test_sweep_aborts_old_uploads_below_the_prefix(s3, bucket, s3_storage):
    for key in ["some/prefix/a", "some/prefix/d/b", "elsewhere/c"]:
        s3.client.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert s3_storage.sweep(60, MOTO_BEGIN + 59) == 0
    assert s3_storage.sweep(60, MOTO_BEGIN + 61) == 2
    assert [upload["Key"] for upload in s3.client.list_multipart_uploads(bucket)] == ["elsewhere/c"]


S3_CALLS = NAMED_CALLS | {
    "writer": lambda storage, name: write_one_chunk(storage, name),
    "sweep": lambda storage, name: storage.sweep(1, 1),
}


def write_one_chunk(storage, name):
    with storage.writer(name) as writer:
        writer.write(b"x")


@pytest.mark.parametrize("call", S3_CALLS)
def test_refusal_of_the_server_is_a_storage_error_without_secrets(s3, s3_storage, call):
    with s3.refusing(), pytest.raises(StorageError) as caught:
        S3_CALLS[call](s3_storage, "a")
    told = f"{caught.value.message}{caught.value.details}"
    assert SECRET not in told
    assert "127.0.0.1" not in told
    assert "operation" in caught.value.details


def test_failure_while_pyarrow_reads_is_a_storage_error(s3, s3_storage):
    s3_storage.write("a", bytes(100))
    with s3_storage.open_native("a") as file, s3.refusing(), pytest.raises(StorageError):
        file.read(10)


@pytest.mark.parametrize("call", ["read", "write", "write exclusive", "writer", "names", "copy to"])
def test_missing_bucket_is_a_storage_error(s3, call):
    storage = Storage(f"s3://b{uuid4().hex}/p", s3.options)
    with pytest.raises((StorageError, FileNotFoundError) if call == "copy to" else StorageError):
        S3_CALLS[call](storage, "kept")


def test_server_that_does_not_answer_is_a_storage_error():
    once = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    options = {"endpoint_url": "http://127.0.0.1:1", "key": "k", "secret": SECRET, "config_kwargs": once}
    with pytest.raises(StorageError) as caught:
        Storage("s3://bucket", options).read("a")
    assert caught.value.details["operation"] == "read"


# ---- configuration


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://bucket", {}),
        ("s3://", {}),
        ("s3:///prefix", {}),
        ("http://host/x", {}),
        ("var/x", {"key": "k"}),
    ],
)
def test_unusable_storage_is_refused_at_once(url, options):
    with pytest.raises(StorageError, match="must"):
        Storage(url, options)


# ---- files that a request points at


@pytest.fixture
def roots(tmp_path):
    for name in ("one", "two", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.csv").write_text(name)
    return [tmp_path / "one", tmp_path / "two"]


def test_file_inside_a_root_is_found_by_both_kinds_of_path(roots):
    one, two = roots
    assert resolve_within("one.csv", roots) == (one / "one.csv").resolve()
    assert resolve_within("two.csv", roots) == (two / "two.csv").resolve()
    assert resolve_within(str(two / "two.csv"), roots) == (two / "two.csv").resolve()
    assert resolve_within("../two/two.csv", roots) == (two / "two.csv").resolve()


def test_links_are_followed_inside_the_roots_only(roots, tmp_path):
    one, two = roots
    (one / "inner.csv").symlink_to(two / "two.csv")
    (one / "outer.csv").symlink_to(tmp_path / "outside" / "outside.csv")
    assert resolve_within("inner.csv", roots) == (two / "two.csv").resolve()
    with pytest.raises(DataTargetError):
        resolve_within("outer.csv", roots)


def test_absent_and_outside_are_told_alike(roots, tmp_path):
    one, _ = roots
    (one / "loop").symlink_to(one / "loop")
    (one / "link-out").symlink_to(tmp_path / "outside")
    os.mkfifo(one / "pipe")
    paths = [
        "",
        ".",
        "..",
        "absent.csv",
        "../outside/outside.csv",
        "../outside/absent.csv",
        str(tmp_path / "outside" / "outside.csv"),
        str(one),
        "/etc/passwd",
        "link-out/outside.csv",
        "one.csv/x",
        "loop",
        "pipe",
        "a\0b",
        "\ud800",
        "a" * 5000,
        "a/" * 5000,
    ]
    told = set()
    for path in paths:
        with pytest.raises(DataTargetError) as caught:
            resolve_within(path, roots)
        told.add((caught.value.message, str(caught.value.details)))
    assert len(told) == 1
    with pytest.raises(DataTargetError):
        resolve_within("one.csv", [])


class Failing:
    """An S3 that fails so often before it works, in one way."""

    def __init__(self, error, times: int, call) -> None:
        self.calls, self._error, self._times, self._call = 0, error, times, call

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return self._call(*arguments, **options)


def refused_with(code):
    cause = botocore.exceptions.ClientError({"Error": {"Code": code}}, "GetObject")
    error = OSError(errno.EIO, code)
    error.__cause__ = cause
    return error


@pytest.fixture
def no_waiting(s3_storage, monkeypatch):
    """Storage whose retries wait in a list."""
    waits = []
    call = s3_storage._backend._caller.call_blocking
    monkeypatch.setattr(
        s3_storage._backend._caller, "call_blocking", lambda attempt: call(attempt, sleep=waits.append)
    )
    return waits


@pytest.mark.parametrize("times", [1, 2])
def test_s3_that_asks_to_come_back_is_asked_again_by_its_policy(times, s3_storage, no_waiting, monkeypatch):
    s3_storage.write("a", b"x")
    failing = Failing(refused_with("SlowDown"), times, s3_storage._backend._fs.cat_file)
    monkeypatch.setattr(s3_storage._backend._fs, "cat_file", failing)
    assert s3_storage.read("a") == b"x"
    assert failing.calls == times + 1
    assert len(no_waiting) == times
    assert all(2 <= wait_s <= 10 for wait_s in no_waiting)


def test_connection_lost_in_a_streamed_read_costs_another_request_and_nothing_else(
    s3, s3_storage, no_waiting
):
    content = bytes(range(250)) * 4
    s3_storage.write("a", content)
    with s3_storage.open_native("a") as file:
        s3.cut_next = "GET"
        file.seek(3)
        assert file.read(7) == content[3:10]
        assert file.tell() == 10
    assert s3.cut_next is None
    assert len(no_waiting) == 1


def test_connection_lost_in_an_upload_of_parts_costs_another_request_and_nothing_else(s3, s3_storage):
    content = bytes(range(250)) * (17 * 2**20 // 250)
    with s3_storage.writer("a") as writer:
        s3.cut_next = "PUT"
        writer.write(content)
    assert s3.cut_next is None
    assert s3_storage.read("a") == content


@pytest.mark.parametrize(("code", "calls"), [("SlowDown", 3), ("InternalError", 3), ("AccessDenied", 1)])
def test_s3_is_asked_three_times_at_most_and_once_where_that_cannot_help(
    code, calls, s3_storage, no_waiting, monkeypatch
):
    failing = Failing(refused_with(code), 9, s3_storage._backend._fs.call_s3)
    monkeypatch.setattr(s3_storage._backend._fs, "call_s3", failing)
    with pytest.raises(StorageError):
        s3_storage.stat("a")
    assert failing.calls == calls


def test_bucket_that_keeps_failing_is_spared_and_says_for_how_long(s3_storage, no_waiting, monkeypatch):
    fs = s3_storage._backend._fs
    monkeypatch.setattr(fs, "call_s3", failing := Failing(refused_with("SlowDown"), 5, fs.call_s3))
    for _ in range(2):
        with pytest.raises(StorageError):
            s3_storage.stat("a")
    assert (failing.calls, s3_storage.breaker.state) == (5, "open")
    with pytest.raises(CircuitOpenError) as caught:
        s3_storage.write("a", b"x")
    assert caught.value.details["service"] == "storage"
    assert 100 < caught.value.details["retry_after"] <= 120
    s3_storage.breaker.reset()
    s3_storage.write("a", b"x")
    assert s3_storage.read("a") == b"x"


def test_answers_of_a_bucket_are_no_failures_of_it(s3_storage):
    s3_storage.write("a", b"x")
    for _ in range(6):
        with pytest.raises(FileNotFoundError):
            s3_storage.read("b")
        with pytest.raises(FileExistsError):
            s3_storage.write("a", b"y", exclusive=True)
    assert s3_storage.breaker.state == "closed"


def test_server_of_a_bucket_that_is_gone_is_asked_again_and_then_spared():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "k", "secret": "s"}
        storage, waits = Storage("s3://bucket/prefix", options), []
        call = storage._backend._caller.call_blocking
        storage._backend._caller.call_blocking = lambda attempt: call(attempt, sleep=waits.append)
        for _ in range(2):
            with pytest.raises(StorageError):
                storage.read("a")
    assert len(waits) == 3
    assert storage.breaker.state == "open"


def test_copy_of_a_bucket_has_no_retries_but_ours(s3_storage):
    bucket = s3_storage._backend
    bucket._fs.clear_instance_cache()
    copied = ForkingPickler.loads(ForkingPickler.dumps(bucket))
    assert copied._fs is not bucket._fs
    assert copied._fs.retries == 1


def test_folder_has_no_breaker(tmp_path):
    assert Storage(f"file://{tmp_path}").breaker is None
