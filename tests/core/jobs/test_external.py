"""External jobs in the ledger: silence, tokens, exits."""

import json

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from core.catalogue import CATALOGUE
from core.errors import AuthenticationError, CallbackForeignError, TrainingError
from core.jobs.callbacks import error_of
from core.jobs.exits import EXITS, error_of_exit, terminal_line, told_by_line
from core.jobs.migrations import migrate
from core.jobs.records import EpochMetrics, Report
from core.jobs.states import JobState
from core.jobs.tables import metadata
from core.jobs.tokens import Bearer, CallbackTokens, kept_secret


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 10, {"train_loss": 1 / number})


class TestSilence:
    """Rows 46 and 47: external trainers have no heartbeat but their callbacks."""

    @pytest.fixture
    def job_id(self, office) -> str:
        job = office.file(executor="external")
        assert office.ledger.claim("w1") is None  # trainers of ours do not take it
        assert office.ledger.claim("e1", "external").job_id == job.job_id
        return job.job_id

    def test_short_silence_is_nothing(self, office, job_id):
        office.clock.now += 500
        assert office.ledger.watch() == []
        assert office.job(job_id).state is JobState.RUNNING

    def test_ten_minutes_are_warned_of_once_and_half_an_hour_ends_the_job(self, office, job_id):
        office.clock.now += 700
        office.ledger.watch()
        office.ledger.watch()
        codes = [e.data.get("code") for e in office.ask.events(job_id, None, 0) if e.type == "event"]
        assert codes == ["JOB_STALE"]
        office.clock.now += 1200
        assert [job.job_id for job in office.ledger.watch()] == [job_id]
        assert office.job(job_id).error["code"] == "JOB_STALE"

    def test_any_callback_breaks_the_silence(self, office, job_id):
        for number in range(1, 5):
            office.clock.now += 500
            report = Report() if number % 2 else Report(epochs=(epoch(number),), message=("epoch", number))
            assert office.ledger.report(job_id, 1, report).applied
            assert office.ledger.watch() == []


class TestRepeatedMessages:
    def test_message_is_known_by_its_kind_and_number_and_attempt(self, office):
        job_id = office.file().job_id
        office.ledger.claim("w1")
        first = Report(epochs=(epoch(3),), message=("epoch", 3))
        assert office.ledger.report(job_id, 1, first).applied
        again = office.ledger.report(job_id, 1, first)
        assert (again.applied, again.cancel) == (False, False)
        assert office.ledger.report(job_id, 1, Report(message=("logs seq", 3))).applied

    def test_epoch_that_was_overtaken_is_kept_without_going_back(self, office):
        job_id = office.file().job_id
        office.ledger.claim("w1")
        for number in (1, 4, 2, 3):
            office.ledger.report(job_id, 1, Report(epochs=(epoch(number),)))
        assert [row["epoch"] for row in office.ask.epochs(job_id, 1, 10, None)] == [1, 2, 3, 4]
        job = office.job(job_id)
        assert (job.epoch, job.metrics, job.best["epoch"]) == (4, {"train_loss": 0.25}, 4)


class TestTokens:
    def test_secret_is_made_once(self, office):
        made = kept_secret(office.database, "callback tokens")
        assert len(made) >= 32
        assert kept_secret(office.database, "callback tokens") == made
        assert kept_secret(office.database, "another") != made

    def test_token_speaks_for_one_attempt_at_one_job_for_its_life(self, office):
        tokens = CallbackTokens("s", office.clock)
        token = tokens.issue(Bearer("job-1", 2), life_s=100)
        assert tokens.check(token, "job-1") == Bearer("job-1", 2)
        with pytest.raises(CallbackForeignError):
            tokens.check(token, "job-2")
        office.clock.now += 101
        with pytest.raises(AuthenticationError):
            tokens.check(token, "job-1")

    def test_token_of_another_secret_is_none(self, office):
        token = CallbackTokens("s", office.clock).issue(Bearer("job-1", 1))
        with pytest.raises(AuthenticationError):
            CallbackTokens("t", office.clock).check(token, "job-1")


@pytest.mark.parametrize("exit_code", range(-20, 256))
def test_every_exit_code_is_an_error_of_the_catalogue(exit_code):
    error = error_of_exit(exit_code)
    assert error.code in CATALOGUE
    assert error.user_message
    code = 128 - exit_code if exit_code < 0 else exit_code
    assert type(error) is EXITS.get(code, TrainingError)
    assert error.details["exit_code"] == code


def test_last_line_of_stderr_tells_the_error():
    line = {"level": "error", "message": "No space", "code": "DISK_FULL", "context": {"free": 0}}
    stderr = f"{json.dumps({'level': 'info', 'message': 'x'})}\n{json.dumps(line)}\n\n"
    error = error_of(told_by_line(terminal_line(stderr)), 1)
    assert (error.code, error.message, error.details) == ("DISK_FULL", "No space", {"free": 0})


@pytest.mark.parametrize("stderr", ["", "Traceback …", "[1]", '{"level": "info", "message": "epoch 3"}'])
def test_last_line_that_tells_no_error_is_passed_over(stderr):
    assert terminal_line(stderr) is None


def test_database_of_the_first_version_is_brought_to_the_tables(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/jobs.db")
    with engine.begin() as connection:
        migrate(connection, "0001")
        columns = {column["name"] for column in inspect(connection).get_columns("deliveries")}
        assert "host" not in columns
    with engine.begin() as connection:
        migrate(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
