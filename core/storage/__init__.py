"""One artefact store, a folder (``file://``) or a bucket (``s3://``): objects appear whole or not at all.

An object is never changed in place, only replaced, so whoever opened it goes on reading what was there.
"""

from core.storage.objects import ObjectStat, Writer
from core.storage.store import Storage

__all__ = ["ObjectStat", "Storage", "Writer"]
