"""What lets an external trainer speak for one attempt at one job: a JSON Web Token (RFC 7519, HS256)."""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, insert, select

from core.errors import AuthenticationError, CallbackForeignError
from core.jobs import tables as t
from core.jobs.database import Database

LIFE_S: Final = 48 * 3600.0
_HEADER: Final = {"alg": "HS256", "typ": "JWT"}
_TYPE: Final = "callback"


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose word a token is."""

    job_id: str
    attempt: int


class CallbackTokens:
    """Args:
    secret: Kept by the ledger's database, see ``kept_secret``.
    clock: Unix seconds.
    """

    def __init__(self, secret: str, clock: Callable[[], float]) -> None:
        self._secret, self._clock = secret.encode(), clock

    def issue(self, bearer: Bearer, life_s: float = LIFE_S) -> str:
        expires = int(self._clock() + life_s)
        claims = {"sub": bearer.job_id, "attempt": bearer.attempt, "type": _TYPE, "exp": expires}
        signed = f"{_encoded(_HEADER)}.{_encoded(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def check(self, token: str, job_id: str) -> Bearer:
        """Raises AuthenticationError for a token that is none or has expired, CallbackForeignError for that
        of another job.
        """
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(signed).encode(), signature.encode()):
            raise AuthenticationError("The callback token of the job must come as bearer token.")
        claims = _decoded(signed.partition(".")[2])
        if claims["exp"] < self._clock():  # type: ignore[operator]  # we signed it
            raise AuthenticationError("The callback token has expired.")
        if claims["type"] != _TYPE or claims["sub"] != job_id:
            raise CallbackForeignError("The callback token must be that of this job.")
        return Bearer(job_id, int(claims["attempt"]))  # type: ignore[call-overload]

    def _signature(self, signed: str) -> str:
        return _text(hmac.digest(self._secret, signed.encode(), hashlib.sha256))


def kept_secret(database: Database, name: str) -> str:
    """A secret that is made when it is first asked for and stays the same from then on."""

    def work(connection: Connection) -> str:
        there: str | None = connection.scalar(select(t.secrets.c.value).where(t.secrets.c.name == name))
        if there is not None:
            return there
        made = secrets.token_urlsafe(32)
        connection.execute(insert(t.secrets).values(name=name, value=made))
        return made

    return database.run("secret", work)


def _encoded(value: Mapping[str, object]) -> str:
    return _text(json.dumps(value, separators=(",", ":")).encode())


def _decoded(part: str) -> dict[str, object]:
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
