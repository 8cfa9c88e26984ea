import itertools

import pytest

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


@pytest.fixture
def office(tmp_path, rules) -> Office:
    return Office(f"sqlite:///{tmp_path}/jobs.db", rules)
