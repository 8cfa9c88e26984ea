"""The ledger's database: one URL, its errors as ours."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote

from sqlalchemy import Connection, Engine, create_engine, event, exc

from core.errors import DatabaseError, DatabaseTimeoutError, DatabaseUnavailableError, StillhouseError
from core.jobs.migrations import migrate
from core.resilience import Caller

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CONNECT_S: Final = 10
STATEMENT_S: Final = 30
SQLITE: Final = "sqlite:///"


class Database:
    """Transactions on SQLite or PostgreSQL.

    Args:
        url: ``sqlite:///~/.stillhouse/jobs.db`` or ``postgresql+psycopg://…``; ``~`` is this machine's.
        caller: Repeats a transaction whose connection failed before it did anything, and spares a database
            that keeps failing.

    Raises:
        DatabaseError: from the constructor, if the database cannot be brought to its shape.
    """

    def __init__(self, url: str, caller: Caller) -> None:
        self.url, self._caller = url, caller
        self._engine = _engine(url)
        with _translated("migrate"), self._engine.begin() as connection:
            migrate(connection)

    def run(self, operation: str, work: Callable[[Connection], Result]) -> Result:
        """The result of ``work`` in a transaction of its own, which fails or succeeds as one.

        Args:
            operation: For errors and the log.

        Raises:
            DatabaseError, CircuitOpenError: and what ``work`` raises.
        """

        def attempt() -> Result | StillhouseError:
            """What the ledger itself refuses is returned: the database answered."""
            try:
                with _translated(operation), self._engine.begin() as connection:
                    return work(connection)
            except DatabaseError:
                raise
            except StillhouseError as error:
                return error

        result = self._caller.call_blocking(attempt)
        if isinstance(result, StillhouseError):
            raise result
        return result

    def close(self) -> None:
        self._engine.dispose()


def _engine(url: str) -> Engine:
    if not url.startswith(SQLITE):
        options = f"-c statement_timeout={STATEMENT_S * 1000}"
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_recycle=3600,
            connect_args={"connect_timeout": CONNECT_S, "options": options},
        )
    file = Path(unquote(url.removeprefix(SQLITE))).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"{SQLITE}{file}", connect_args={"timeout": STATEMENT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _prepare_sqlite(connection: object, _: object) -> None:
    """Durable, readers beside the writer, and transactions that begin where SQLAlchemy says so."""
    connection.isolation_level = None  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Errors of the driver as ours; their words stay in the log, for they hold statements and rows."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseUnavailableError(
            "No connection to the database is free.", operation=operation
        ) from error
    except exc.DBAPIError as error:
        raise _error_of(error, operation) from error
    except exc.SQLAlchemyError as error:
        raise DatabaseError("The database failed.", operation=operation) from error


def _error_of(error: exc.DBAPIError, operation: str) -> DatabaseError:
    reason = str(error.orig).lower()
    if "statement timeout" in reason:
        return DatabaseTimeoutError("A statement took too long.", operation=operation)
    lost = isinstance(error, exc.OperationalError | exc.InterfaceError) and "no such" not in reason
    if lost or error.connection_invalidated:
        return DatabaseUnavailableError("The database does not answer.", operation=operation)
    return DatabaseError("The database failed.", operation=operation)
