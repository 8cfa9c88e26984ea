"""Idempotency keys: which request came when, and what it was answered (contract, section 8)."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from core.errors import IdempotencyInProgressError
from core.storage import Storage

log = logging.getLogger(__name__)

FOLDER: Final = "idempotency"
LIFETIME_S: Final = 24 * 3600
LEASE_S: Final = 30.0
"""A claim that is not renewed for so long is nobody's: whoever held it is gone."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A successful answer, for replay.

    Attributes:
        request_sha256: Of the body of the request, in hex.
        answered_at: Unix seconds of the clock that decides how long it lives; set when it is kept.
    """

    request_sha256: str
    status: int
    headers: Mapping[str, str]
    body: str
    answered_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Claim:
    holder: str
    until: float


class IdempotencyKeys:
    """Claims in memory, answers in storage, in a folder for each day, for ``LIFETIME_S``.

    One object serves all ingresses, so that of two at once one is first. A claim does not survive a restart
    of the process that holds this object; who claimed it renews it then. Blocking, and safe in threads.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage, self._clock = storage, clock
        self._claims: dict[str, _Claim] = {}
        self._swept_on = ""
        self._lock = threading.Lock()

    def claim(self, name: str, holder: str = "") -> StoredAnswer | None:
        """The answer that was given already, or None: the caller may do the work, and must release the name.

        Args:
            holder: Who claims, one name for each request. It may claim again, should it not have heard the
                answer; nobody else can release or renew what it holds. Empty is nobody in particular.

        Raises:
            IdempotencyInProgressError: while another holds it.
        """
        now = self._clock()
        with self._lock:
            held = self._claims.get(name)
            if held is not None and held.until > now and not (holder and held.holder == holder):
                raise IdempotencyInProgressError(
                    "The first request with this Idempotency-Key is still at work: try again shortly."
                )
            self._claims[name] = _Claim(holder, now + LEASE_S)
        try:
            answer = self._find(name, now)
        except BaseException:
            self.release(name, holder)
            raise
        if answer is not None:
            self.release(name, holder)
        return answer

    def renew(self, name: str, holder: str = "") -> None:
        """Also restores a claim that was lost with its process."""
        with self._lock:
            if self._is_free_for(name, holder):
                self._claims[name] = _Claim(holder, self._clock() + LEASE_S)

    def complete(self, name: str, answer: StoredAnswer, holder: str = "") -> None:
        """Keeps the answer, then releases the name; the first of a day sweeps."""
        try:
            answer = replace(answer, answered_at=self._clock())
            self._storage.write(_path(name, answer.answered_at), json.dumps(asdict(answer)).encode())
        finally:
            self.release(name, holder)
        if self._swept_on != _day(answer.answered_at):
            self.sweep()

    def release(self, name: str, holder: str = "") -> None:
        """Without an answer the key is as good as new: a refused request does not use it up."""
        with self._lock:
            if self._is_free_for(name, holder):
                self._claims.pop(name, None)

    def _is_free_for(self, name: str, holder: str) -> bool:
        held = self._claims.get(name)
        return held is None or not holder or held.holder == holder

    def sweep(self) -> None:
        """Forgets what is older than ``LIFETIME_S``, by the day, and claims that lapsed."""
        now = self._clock()
        self._swept_on = _day(now)
        with self._lock:
            self._claims = {name: claim for name, claim in self._claims.items() if claim.until > now}
        kept = {_day(now), _day(now - LIFETIME_S)}
        days = {name.split("/")[1] for name in self._storage.names(FOLDER)}
        for day in days - kept:
            self._storage.delete_folder(f"{FOLDER}/{day}")

    def _find(self, name: str, now: float) -> StoredAnswer | None:
        for at in {_day(now): now, _day(now - LIFETIME_S): now - LIFETIME_S}.values():
            try:
                answer = StoredAnswer(**json.loads(self._storage.read(_path(name, at))))
            except FileNotFoundError:
                continue
            except (TypeError, ValueError):
                log.exception("the answer kept under %s is damaged and is passed over", name)
                continue
            if answer.answered_at > now - LIFETIME_S:
                return answer
        return None


def key_name(client: str, method: str, path: str, key: str) -> str:
    """One name for a key of a client on a route, which tells neither."""
    return hashlib.sha256("\n".join((client, method, path, key)).encode()).hexdigest()


def _day(at: float) -> str:
    return str(int(at // LIFETIME_S))


def _path(name: str, at: float) -> str:
    return f"{FOLDER}/{_day(at)}/{name}.json"
