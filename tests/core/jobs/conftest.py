import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from core.jobs.database import Database
from core.jobs.inquiries import Inquiries
from core.jobs.ledger import Ledger
from core.jobs.moves import Rules
from core.jobs.records import NewJob
from core.resilience import POLICIES, Caller, Integration


class Clock:
    """Unix seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Office:
    """A ledger with its clock, and what is asked of both."""

    def __init__(self, url: str, rules: Rules) -> None:
        self.clock, self.changed = Clock(), []
        self.database = Database(url, Caller("database", POLICIES[Integration.DATABASE]))
        self.ledger = Ledger(self.database, rules, self.clock, self.changed.append)
        self.ask = Inquiries(self.database, rules, self.clock)
        self._ids = itertools.count(1)

    def file(self, owner: str = "ada", **changes: object):
        plain = {
            "job_id": f"job-{next(self._ids)}",
            "owner": owner,
            "kind": "train",
            "payload": {"dataset_id": "csv-1", "target_column": "kind", "epochs": 10},
            "options": {},
            "trace_id": "0" * 32,
        }
        return self.ledger.create(NewJob(**plain | changes))

    def job(self, job_id: str):
        return self.ask.get(job_id, None)

    def states(self, job_id: str) -> list[str]:
        moves = [event for event in self.ask.events(job_id, None, 0) if event.type == "status_change"]
        return [event.data["new"] for event in moves]


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory) -> Iterator[str]:
    """The address of a server of its own, without the database's name."""
    if shutil.which("initdb") is None:
        pytest.skip("PostgreSQL's initdb is not on the path")
    folder = Path(tempfile.mkdtemp(prefix="ledger-"))  # its socket's path must be short
    user = {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses to run as root
    if user:
        shutil.chown(folder, "nobody")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)

    run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "stillhouse")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", str(folder / "data"), "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql+psycopg://stillhouse@127.0.0.1:{port}"
    run("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def office(request, tmp_path, rules) -> Iterator[Office]:
    """On a new database, of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/jobs.db"
    else:
        server, name = request.getfixturevalue("postgresql"), f"ledger_{uuid.uuid4().hex}"
        engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        url = f"{server}/{name}"
    office = Office(url, rules)
    yield office
    office.database.close()
