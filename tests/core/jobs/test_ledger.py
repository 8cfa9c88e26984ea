"""The ledger: states, attempts, fencing and queues."""

import threading

import pytest

from core.errors import (
    CheckpointMissingError,
    CudaOutOfMemoryError,
    JobBusyError,
    JobNotFoundError,
    JobStateConflictError,
    QueueFullError,
    QuotaExceededError,
    TrainerUnreachableError,
    TrainingError,
    TrainingStoppedError,
)
from core.jobs.inquiries import Wanted
from core.jobs.moves import Rules
from core.jobs.records import Checkpoint, EpochMetrics, LogLine, Report
from core.jobs.rows import LOG_LINES
from core.jobs.states import TRANSITIONS, JobState, check_transition


def checkpoint(job_id: str, epoch: int, attempt: int = 1, *, is_best: bool = False) -> Checkpoint:
    name = f"{job_id}-{attempt}-{epoch}"
    return Checkpoint(name, job_id, attempt, epoch, is_best, {}, 10, "00", 1e6 + epoch, f"jobs/{name}")


def epoch(number: int, loss: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 10, {"train_loss": loss, "validation_loss": loss})


def test_job_goes_from_pending_over_running_to_completed(office):
    job = office.file()
    assignment = office.ledger.claim("w1")
    assert (assignment.job_id, assignment.attempt, assignment.checkpoint) == (job.job_id, 1, None)
    assert office.ledger.complete(job.job_id, 1, {"run_id": "r"}).applied
    done = office.job(job.job_id)
    assert (done.state, done.result, done.error) == (JobState.COMPLETED, {"run_id": "r"}, None)
    assert office.states(job.job_id) == ["pending", "running", "completed"]
    assert [event.seq for event in office.ask.events(job.job_id, None, 0)] == [1, 2, 3, 4]
    assert office.changed == [job.job_id] * 3


def test_nothing_waits_is_claimed_as_nothing(office):
    assert office.ledger.claim("w1") is None


def test_higher_priority_goes_first_and_then_who_waited_longest(office):
    for priority in (0, 5, 0, 5):
        office.file(priority=priority)
        office.clock.now += 1
    claimed = [office.ledger.claim(f"w{n}").job_id for n in range(4)]
    assert claimed == ["job-2", "job-4", "job-1", "job-3"]


def test_worker_that_did_not_hear_its_answer_gets_the_same_job_again(office):
    office.file()
    office.file()
    first = office.ledger.claim("w1")
    assert office.ledger.claim("w1") == first
    office.ledger.complete("job-1", 1, {})
    assert office.ledger.claim("w1").job_id == "job-2"


def test_many_workers_that_claim_at_once_get_different_jobs(office, rules):
    for number in range(20):
        office.file(owner=f"owner {number}")
    got: list[str] = []

    def work(worker: int) -> None:
        for number in range(20):
            assignment = office.ledger.claim(f"w{worker}-{number}")
            if assignment is not None:
                got.append(assignment.job_id)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(f"job-{n}" for n in range(1, 21))


class TestLimits:
    @pytest.fixture
    def rules(self) -> Rules:
        return Rules(running_per_owner=1, active_per_owner=2, waiting=3)

    def test_owner_at_the_limit_is_passed_over(self, office):
        office.file("ada")
        office.file("ada")
        office.file("bob")
        assert [office.ledger.claim("w1").job_id, office.ledger.claim("w2").job_id] == ["job-1", "job-3"]
        assert office.ledger.claim("w3") is None
        assert "limit" in office.ask.turn(office.job("job-2")).reason

    def test_owner_with_too_many_jobs_is_refused_without_a_time_to_come_back(self, office):
        office.file("ada")
        office.file("ada")
        with pytest.raises(QuotaExceededError) as caught:
            office.file("ada")
        assert caught.value.retry_after_s is None
        office.ledger.cancel("job-1")
        office.file("ada")

    def test_full_queue_is_refused(self, office):
        for owner in "abc":
            office.file(owner)
        for _ in range(5):
            with pytest.raises(QueueFullError):
                office.file("d")
        office.job("job-1")  # the database answered all the time, so its breaker is closed


def test_position_counts_those_ahead(office):
    for _ in range(3):
        office.file()
    assert [office.ask.turn(office.job(f"job-{n}")).position for n in (1, 2, 3)] == [1, 2, 3]
    assert "2 jobs are ahead" in office.ask.turn(office.job("job-3")).reason


def test_same_id_again_is_the_same_job(office):
    first = office.file(job_id="same")
    office.ledger.claim("w1")
    assert office.file(job_id="same").state is JobState.RUNNING
    assert first.job_id == "same"


class TestCancelling:
    def test_waiting_job_is_cancelled_at_once_and_again_is_no_error(self, office):
        office.file()
        assert office.ledger.cancel("job-1").state is JobState.CANCELLED
        assert office.ledger.cancel("job-1").state is JobState.CANCELLED
        assert office.job("job-1").error["code"] == "JOB_CANCELLED"
        assert office.ledger.claim("w1") is None

    def test_running_job_is_told_by_its_next_heartbeat(self, office):
        office.file()
        office.ledger.claim("w1")
        assert not office.ledger.report("job-1", 1, Report()).cancel
        assert office.ledger.cancel("job-1").state is JobState.CANCELLING
        verdict = office.ledger.report("job-1", 1, Report())
        assert verdict.cancel
        assert verdict.applied
        office.ledger.fail("job-1", 1, TrainingStoppedError())
        assert office.states("job-1") == ["pending", "running", "cancelling", "cancelled"]

    def test_trainer_that_is_done_first_wins(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.cancel("job-1")
        assert office.ledger.complete("job-1", 1, {}).applied
        assert office.job("job-1").state is JobState.COMPLETED

    @pytest.mark.parametrize("state", ["completed", "failed"])
    def test_job_that_has_ended_is_a_conflict(self, office, state):
        office.file()
        office.ledger.claim("w1")
        end = {"completed": lambda: office.ledger.complete("job-1", 1, {})}
        end.get(state, lambda: office.ledger.fail("job-1", 1, TrainingError()))()
        with pytest.raises(JobStateConflictError) as caught:
            office.ledger.cancel("job-1")
        assert caught.value.details["state"] == state


class TestFencing:
    def test_words_of_an_old_attempt_change_nothing(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.lost("w1")
        office.ledger.claim("w2")
        before = office.job("job-1")
        assert not office.ledger.report("job-1", 1, Report(epochs=(epoch(3),))).applied
        assert not office.ledger.complete("job-1", 1, {"run_id": "old"}).applied
        assert not office.ledger.fail("job-1", 1, TrainingError()).applied
        assert office.ledger.report("job-1", 1, Report()).cancel
        assert office.job("job-1") == before

    def test_late_report_does_not_revive_a_cancelled_job(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.cancel("job-1")
        office.ledger.fail("job-1", 1, TrainingStoppedError())
        assert not office.ledger.report("job-1", 1, Report(epochs=(epoch(3),))).applied
        assert office.job("job-1").state is JobState.CANCELLED

    def test_same_epochs_told_twice_are_kept_once(self, office):
        office.file()
        office.ledger.claim("w1")
        for _ in range(2):
            office.ledger.report("job-1", 1, Report(epochs=(epoch(1), epoch(2, 0.25))))
        assert [row["epoch"] for row in office.ask.epochs("job-1", 1, 100, None)] == [1, 2]
        assert office.job("job-1").best["epoch"] == 2

    def test_nothing_follows_a_terminal_state_but_a_retry(self):
        for state in ("completed", "failed", "cancelled"):
            assert TRANSITIONS[JobState(state)] == {JobState.PENDING}
        with pytest.raises(JobStateConflictError):
            check_transition(JobState.CANCELLED, JobState.RUNNING)


class TestLoss:
    def test_lost_job_goes_on_from_its_last_checkpoint(self, office):
        office.file()
        office.ledger.claim("w1")
        kept = checkpoint("job-1", 2), checkpoint("job-1", 5)
        office.ledger.report("job-1", 1, Report(checkpoints=kept))
        [job] = office.ledger.lost("w1")
        assert (job.state, job.attempt, job.losses) == (JobState.QUEUED, 2, 1)
        assignment = office.ledger.claim("w2")
        assert (assignment.attempt, assignment.checkpoint) == (2, "jobs/job-1-1-5")

    def test_budget_that_is_spent_fails_the_job(self, office, rules):
        office.file()
        for number in range(rules.losses + 1):
            office.ledger.claim(f"w{number}")
            office.ledger.lost(f"w{number}")
        job = office.job("job-1")
        assert (job.state, job.error["code"], job.attempt) == (JobState.FAILED, "WORKER_DIED", 4)
        assert [row["outcome"] for row in office.ask.attempts("job-1")] == ["lost"] * 3 + ["failed"]

    def test_silent_worker_is_lost_and_one_that_beats_is_not(self, office, rules):
        office.file()
        office.file()
        office.ledger.claim("w1")
        office.ledger.claim("w2")
        office.clock.now += rules.lost_after_s - 1
        office.ledger.report("job-2", 1, Report())
        office.clock.now += 2
        assert [job.worker for job in office.ledger.watch()] == ["w1"]
        assert (office.job("job-1").state, office.job("job-2").state) == (JobState.QUEUED, JobState.RUNNING)

    def test_training_that_stands_still_is_warned_of_and_then_ended(self, office, rules):
        office.file()
        office.ledger.claim("w1")
        for silent_s in (rules.warn_after_s + 1, rules.warn_after_s + 9):
            office.clock.now = office.job("job-1").active_at + silent_s
            office.ledger.report("job-1", 1, Report(silent_s=silent_s))
            assert office.ledger.watch() == []
        warnings = [e for e in office.ask.events("job-1", None, 0) if e.data.get("code") == "JOB_STALE"]
        assert len(warnings) == 1
        office.clock.now = office.job("job-1").active_at + rules.stale_after_s + 1
        office.ledger.report("job-1", 1, Report(silent_s=rules.stale_after_s + 1))
        assert len(office.ledger.watch()) == 1
        assert office.job("job-1").error["code"] == "JOB_STALE"

    def test_wall_clock_limit_ends_a_job_whose_trainer_does_not_keep_it(self, office):
        office.file(options={"time_limit_s": 60})
        assert office.ledger.claim("w1").remaining_s == 60
        office.clock.now += 100
        office.ledger.report("job-1", 1, Report())
        office.ledger.watch()
        assert office.job("job-1").error["code"] == "TRAINING_TIMEOUT"

    def test_passing_failure_is_tried_again_after_its_wait(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.fail("job-1", 1, TrainerUnreachableError(retry_after=30))
        assert office.ledger.claim("w2") is None
        assert "starts in 30 s" in office.ask.turn(office.job("job-1")).reason
        office.clock.now += 30
        assert office.ledger.claim("w2").attempt == 2

    def test_memory_error_halves_the_batch_only_where_asked(self, office):
        office.file(options={"on_oom": "reduce_batch"})
        office.file()
        office.ledger.claim("w1")
        office.ledger.claim("w2")
        for job_id in ("job-1", "job-2"):
            office.ledger.fail(job_id, 1, CudaOutOfMemoryError(batch_size=512))
        assert office.ledger.claim("w3").payload["batch_size"] == 256
        assert office.job("job-2").state is JobState.FAILED


class TestRetry:
    def test_retry_is_a_new_attempt_and_keeps_the_history(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.report("job-1", 1, Report(epochs=(epoch(1),), checkpoints=(checkpoint("job-1", 1),)))
        office.ledger.fail("job-1", 1, TrainingError("broken"))
        job = office.ledger.retry("job-1", {"epochs": 5}, {"epochs": 5}, "last")
        assert (job.state, job.attempt, job.error, job.payload) == (JobState.PENDING, 2, None, {"epochs": 5})
        first, second = office.ask.attempts("job-1")
        assert (first["outcome"], first["error"]["message"]) == ("failed", "broken")
        assert (second["reason"], second["changes"]) == ("retry", {"epochs": 5})
        assert office.ask.epochs("job-1", 1, 10, None)
        assert office.ledger.claim("w2").checkpoint == "jobs/job-1-1-1"

    def test_loss_after_a_retry_does_not_go_back_before_it(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.report("job-1", 1, Report(checkpoints=(checkpoint("job-1", 9),)))
        office.ledger.fail("job-1", 1, TrainingError())
        office.ledger.retry("job-1", {}, {}, "none")
        office.ledger.claim("w2")
        office.ledger.lost("w2")
        assert office.ledger.claim("w3").checkpoint is None

    def test_running_job_is_busy_and_may_be_asked_later(self, office):
        office.file()
        office.ledger.claim("w1")
        with pytest.raises(JobBusyError) as caught:
            office.ledger.retry("job-1", {}, {}, "none")
        assert (caught.value.status, caught.value.retryable) == (409, True)

    @pytest.mark.parametrize("wanted", ["best", "last", "no-such"])
    def test_resume_without_a_checkpoint_is_a_conflict(self, office, wanted):
        office.file()
        office.ledger.cancel("job-1")
        with pytest.raises(CheckpointMissingError) as caught:
            office.ledger.retry("job-1", {}, {}, wanted)
        assert caught.value.status == 409
        assert office.job("job-1").state is JobState.CANCELLED


class TestReading:
    def test_pages_go_through_all_jobs_newest_first(self, office):
        for _ in range(7):
            office.file()
        seen, cursor = [], None
        while True:
            page, total = office.ask.page(Wanted("ada"), 3, cursor)
            seen += [job.job_id for job in page.data]
            assert total == 7
            if (cursor := page.next_cursor) is None:
                break
        assert seen == [f"job-{n}" for n in (7, 6, 5, 4, 3, 2, 1)]

    def test_others_jobs_are_not_there(self, office):
        office.file("ada")
        assert office.ask.page(Wanted("bob"), 10, None)[0].data == []
        with pytest.raises(JobNotFoundError):
            office.ask.get("job-1", "bob")
        with pytest.raises(JobNotFoundError):
            office.ask.events("job-1", "bob", 0)

    def test_filters_narrow_the_list(self, office):
        office.file(project_id="p")
        office.clock.now += 10
        office.file()
        office.ledger.claim("w1")
        running = Wanted(None, states=frozenset({JobState.RUNNING}))
        assert [job.job_id for job in office.ask.page(running, 10, None)[0].data] == ["job-1"]
        late = Wanted(None, created_after=1_000_005)
        assert [job.job_id for job in office.ask.page(late, 10, None)[0].data] == ["job-2"]
        assert office.ask.page(Wanted(None, project_id="p"), 10, None)[1] == 1

    def test_default_metrics_are_the_latest(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.report("job-1", 1, Report(epochs=tuple(epoch(n) for n in range(1, 301))))
        assert [row["epoch"] for row in office.ask.epochs("job-1", 1, 3, None)] == [298, 299, 300]
        assert [row["epoch"] for row in office.ask.epochs("job-1", 1, 3, 10)] == [10, 11, 12]

    def test_oldest_log_lines_go_when_there_are_too_many(self, office):
        office.file()
        office.ledger.claim("w1")
        lines = tuple(LogLine(float(n), "info", f"line {n}") for n in range(1, LOG_LINES + 11))
        office.ledger.report("job-1", 1, Report(logs=lines))
        kept = office.ask.logs("job-1", LOG_LINES * 2)
        assert (kept[0]["message"], kept[-1]["message"]) == ("line 11", f"line {LOG_LINES + 10}")
        assert [row["message"] for row in office.ask.logs("job-1", 1, after=LOG_LINES)] == ["line 2001"]

    def test_zero_is_a_metric_and_not_nothing(self, office):
        office.file()
        office.ledger.claim("w1")
        office.ledger.report("job-1", 1, Report(epochs=(epoch(1, 0.0), epoch(2, 0.5))))
        assert office.job("job-1").best["validation_loss"] == 0.0
