"""A store in a bucket of S3, or of a server that speaks like it."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa

from core.errors import StorageError
from core.resilience import POLICIES, Breaker, Caller, Integration
from core.storage.failures import is_passing, s3_code, s3_failures
from core.storage.objects import ATTEMPTS, Guard, ObjectStat
from core.storage.streams import ObjectUpload, RemoteFile

_UPLOAD_PART_BYTES = 16 * 2**20  # times the 10 000 parts that S3 allows: objects up to 156 GiB
_COPY_PART_BYTES = 512 * 2**20
_READ_BLOCK_BYTES = 8 * 2**20
_WRITE_ID = "stillhouse-write-id"

_Answer = Mapping[str, Any]


class Bucket:
    """Through s3fs for sessions and the event loop; by S3's own calls, whose meaning is documented.

    Calls are retried by the policy of ``core.resilience`` alone: botocore and s3fs would multiply attempts.
    Uploads of parts are sent from within s3fs, which alone can repeat one: there its retries stay.
    s3fs's path methods also answer for prefixes ("directories"), ignore errors of bulk deletes and read large
    objects in parts that may belong to different versions.
    """

    def __init__(self, location: str, options: dict[str, object]) -> None:
        self._arguments = location, options
        self._bucket, _, prefix = location.rstrip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        if not self._bucket:
            raise StorageError("an s3:// storage URL must name a bucket: s3://bucket/prefix")
        try:
            self._fs = fsspec.filesystem("s3", **_without_retries(options))
            uncached = {**options, "use_listings_cache": False, "skip_instance_cache": True}
            self._uploading_fs = fsspec.filesystem("s3", **uncached)  # never the instance changed below
        except ImportError as error:
            raise StorageError("s3:// storage needs s3fs: pip install 'stillhouse[s3]'") from error
        self._fs.retries = 1
        self.failures = s3_failures()
        self._caller = Caller("storage", POLICIES[Integration.S3], is_retryable=is_passing, counts=is_passing)

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str, dict[str, object]]]:
        return Bucket, self._arguments  # anew: a copy of the file system would have its own retries again

    @property
    def breaker(self) -> Breaker | None:
        return self._caller.breaker

    def read(self, name: str) -> bytes:
        return self._read(name, max_concurrency=1)  # one request, one version

    def read_range(self, name: str, start: int, end: int) -> bytes:
        if start == end:
            self._head(name)
            return b""
        try:
            return self._read(name, start=start, end=end)
        except OSError as error:
            if s3_code(error) != "InvalidRange":  # S3 refuses to begin behind the end
                raise
            return b""

    def open_native(self, name: str, guard: Guard) -> pa.NativeFile:
        with _checking_bucket():
            path, block_bytes = self._path(name), _READ_BLOCK_BYTES
            file = self._caller.call_blocking(lambda: self._fs.open(path, "rb", block_size=block_bytes))
        if file.details["type"] != "file":
            raise FileNotFoundError(name)
        return pa.PythonFile(RemoteFile(file, guard, self._caller.call_blocking), mode="r")

    def write(self, name: str, data: bytes | memoryview, exclusive: bool) -> None:
        path, body = self._path(name), bytes(data)  # botocore takes no memoryview
        if exclusive:
            self._create(name, lambda mark: self._fs.pipe_file(path, body, mode="create", Metadata=mark))
        else:
            self._caller.call_blocking(lambda: self._fs.pipe_file(path, body))

    def upload(self, name: str) -> ObjectUpload:
        return ObjectUpload(self._uploading_fs.open(self._path(name), "wb", block_size=_UPLOAD_PART_BYTES))

    def stat(self, name: str) -> ObjectStat:
        head = self._head(name)
        etag = head["ETag"].strip('"')
        return ObjectStat(name, head["ContentLength"], head["LastModified"].astimezone(UTC), etag)

    def names(self, folder: str) -> list[str]:
        return [key.removeprefix(self._prefix) for key in self._keys(folder)]

    def delete(self, name: str) -> bool:
        try:
            self._head(name)
        except FileNotFoundError:
            return False
        self._call("delete_object", Key=self._key(name))
        return True

    def delete_folder(self, folder: str) -> bool:
        keys = self._keys(folder)
        for start in range(0, len(keys), 1000):  # as many as one request may name
            objects = [{"Key": key} for key in keys[start : start + 1000]]
            answer = self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
            if answer.get("Errors"):
                raise OSError(errno.EIO, "some objects were not deleted")
        return bool(keys)

    def copy(self, source: str, target: str, exclusive: bool) -> None:
        if exclusive:
            self._create(target, lambda mark: self._copy(source, target, mark))
        else:
            self._copy(source, target)

    def move(self, source: str, target: str) -> None:
        self._copy(source, target)
        self._call("delete_object", Key=self._key(source))

    def sweep(self, oldest_kept: float) -> int:
        found = self._listed(
            "list_multipart_uploads", self._prefix, "Uploads", ["KeyMarker", "UploadIdMarker"]
        )
        abandoned = [upload for upload in found if upload["Initiated"].timestamp() < oldest_kept]
        for upload in abandoned:
            self._abort(upload["Key"], upload["UploadId"])
        return len(abandoned)

    def _create(self, name: str, put: Callable[[Mapping[str, str]], None]) -> None:
        """Runs a conditional put, whose ``mark`` tells our own object from another writer's.

        When the answer to a put is lost, the retry below us finds the object there and is refused: without
        the mark the winner would be told that it lost. S3 answers 409 when two puts collide, to be retried.
        """
        mark = {_WRITE_ID: uuid4().hex}
        for _ in range(ATTEMPTS):
            try:
                return self._caller.call_blocking(lambda: put(mark))
            except OSError as error:
                code = s3_code(error)
                if code == "ConditionalRequestConflict":
                    continue
                if code not in ("PreconditionFailed", "412"):
                    raise
            with suppress(FileNotFoundError):  # deleted again meanwhile: try once more
                if self._head(name).get("Metadata", {}).get(_WRITE_ID) == mark[_WRITE_ID]:
                    return None
                raise FileExistsError(name)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _copy(self, source: str, target: str, mark: Mapping[str, str] | None = None) -> None:
        """With a mark, for ``_create``, only where nothing is yet.

        That condition goes through a multipart upload: other servers than AWS ignore it at CopyObject.
        """
        head = self._head(source)
        key = self._key(target)
        metadata = {"Metadata": mark or {}}
        condition = {"IfNoneMatch": "*"} if mark else {}
        origin = {
            "CopySource": {"Bucket": self._bucket, "Key": self._key(source)},
            "CopySourceIfMatch": head["ETag"],
        }
        size_bytes: int = head["ContentLength"]
        if size_bytes > _COPY_PART_BYTES or (condition and size_bytes):
            self._copy_parts(key, origin, size_bytes, metadata, condition)
        elif condition:  # a part cannot be empty
            self._call("put_object", Key=key, Body=b"", **metadata, **condition)
        else:
            self._call("copy_object", Key=key, **origin)

    def _copy_parts(
        self,
        key: str,
        origin: Mapping[str, object],
        size_bytes: int,
        metadata: Mapping[str, object],
        condition: Mapping[str, str],
    ) -> None:
        upload_id = self._call("create_multipart_upload", Key=key, **metadata)["UploadId"]
        upload = {"Key": key, "UploadId": upload_id}
        try:
            parts = []
            for number, start in enumerate(range(0, size_bytes, _COPY_PART_BYTES), start=1):
                span = f"bytes={start}-{min(start + _COPY_PART_BYTES, size_bytes) - 1}"
                part = {"PartNumber": number}
                answer = self._call("upload_part_copy", **upload, **origin, **part, CopySourceRange=span)
                parts.append({**part, "ETag": answer["CopyPartResult"]["ETag"]})
            whole = {"Parts": parts}
            self._call("complete_multipart_upload", **upload, MultipartUpload=whole, **condition)
        except BaseException:
            with suppress(*self.failures):
                self._abort(key, upload_id)
            raise

    def _abort(self, key: str, upload_id: str) -> None:
        with suppress(FileNotFoundError):  # NoSuchUpload
            self._call("abort_multipart_upload", Key=key, UploadId=upload_id)

    def _head(self, name: str) -> _Answer:
        return self._call("head_object", Key=self._key(name))

    def _keys(self, folder: str) -> list[str]:
        prefix = self._key(f"{folder}/") if folder else self._prefix
        found = self._listed("list_objects_v2", prefix, "Contents", ["ContinuationToken"])
        return [entry["Key"] for entry in found]

    def _listed(self, method: str, prefix: str, entries: str, markers: Sequence[str]) -> Iterator[_Answer]:
        """``markers``: what says where the next page begins; the page before has them with ``Next``."""
        asked = {"Prefix": prefix}
        while True:
            answer = self._call(method, **asked)
            yield from answer.get(entries, [])
            if not answer.get("IsTruncated"):
                return
            asked |= {marker: answer[f"Next{marker}"] for marker in markers}

    def _read(self, name: str, **how: int) -> bytes:
        with _checking_bucket():
            content: bytes = self._caller.call_blocking(lambda: self._fs.cat_file(self._path(name), **how))
            return content

    def _call(self, method: str, **arguments: object) -> _Answer:
        with _checking_bucket():
            answer: _Answer = self._caller.call_blocking(
                lambda: self._fs.call_s3(method, Bucket=self._bucket, **arguments)
            )
            return answer

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _path(self, name: str) -> str:
        return f"{self._bucket}/{self._key(name)}"


def _without_retries(options: Mapping[str, object]) -> dict[str, object]:
    config = options.get("config_kwargs")
    given = dict(config) if isinstance(config, Mapping) else {}
    return {
        **options,
        "use_listings_cache": False,
        "config_kwargs": {"retries": {"max_attempts": 0}, **given},
    }


@contextmanager
def _checking_bucket() -> Iterator[None]:
    """A missing bucket is a fault of the installation, not the answer that an object is absent."""
    try:
        yield
    except FileNotFoundError as error:
        if s3_code(error) == "NoSuchBucket":
            raise OSError(errno.ENXIO, "no such bucket") from error
        raise
