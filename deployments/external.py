"""Jobs that run as processes of their own: started, watched and ended here, told of over HTTP by themselves.

A process outlives whoever watches over it: what is to be known of it lies in its folder, for the next one.

    pid, exit_code      written by the shell around the trainer
    job.json            what it is to do; the environment has the rest
    stderr.jsonl        whose last line says why it ended badly
    completion.json     its last word, where it could not be delivered
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from core.errors import (
    CallbackRejectedError,
    JobNotFoundError,
    RuntimeUnavailableError,
    StillhouseError,
    TrainingTimeoutError,
    WorkerDiedError,
)
from core.jobs.callbacks import Callback, error_of, parse_callback
from core.jobs.exits import error_of_exit, terminal_line, told_by_line
from core.jobs.records import Assignment, Job
from core.jobs.states import JobState

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
CLAIM_EVERY_S: Final = 2.0
GRACE_S: Final = 5.0
_UNREAPED: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT
_TAIL_BYTES: Final = 64 << 10
_WRAPPED: Final = 'echo $$ > pid; trap : TERM INT; "$@" >> stdout.log 2>> stderr.jsonl; echo $? > exit_code'
"""The trap lets the shell outlive the signal that its trainer gets, to write down how that ended."""


@dataclass(frozen=True, slots=True)
class ExternalCommand:
    """How external trainers are run here.

    Attributes:
        command: Program and arguments; nothing runs without.
        folder: Holds a folder for each attempt.
        url: Where they reach this service.
        at_once: Processes.
        environment: What they inherit, which has no secrets.
    """

    command: tuple[str, ...]
    folder: Path
    url: str
    at_once: int
    environment: Mapping[str, str]


class Office(Protocol):
    """The ledger, as it is asked here; see ``deployments.dispatcher``."""

    async def claim_external(self, worker: str) -> Assignment | None: ...
    async def external_jobs(self) -> list[Job]: ...
    async def current(self, job_id: str) -> Job: ...
    async def take(self, job_id: str, attempt: int, callback: Callback) -> object: ...
    async def fail(self, job_id: str, attempt: int, error: StillhouseError) -> object: ...
    def limit_of(self, job: Job) -> float: ...
    def token_of(self, assignment: Assignment) -> str: ...


class Process:
    """A trainer and the shell around it, of this or an earlier watcher."""

    def __init__(self, folder: Path, popen: "subprocess.Popen[bytes] | None" = None) -> None:
        self.folder, self._popen = folder, popen

    def exit_code(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "exit_code").read_text())
        return None

    def ended(self) -> bool:
        return not self._lives() or (self._popen is None and self.exit_code() is not None)

    def clear(self) -> None:
        """Leaves nothing of one that has ended: what it started ends too, before its number is free again."""
        if self._popen is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def send(self, number: signal.Signals) -> None:
        """To the trainer, the shell around it and all that they started."""
        pid = self._pid()
        if pid is not None and self._lives():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def failure(self) -> StillhouseError:
        """Why it ended: what its last line says, else what its exit code means."""
        code, line = self.exit_code(), terminal_line(self._tail())
        if line is not None and code != 0:
            return error_of(told_by_line(line), code)
        if code == 0:
            return error_of({"message": "The trainer ended well but told no result."}, None)
        if code is None:  # killed with the shell around it, or this machine went down
            return WorkerDiedError("The process of this job is gone.")
        return error_of_exit(1 if code == 2 else code)  # 2 without a word: its command line was wrong

    def last_word(self) -> Callback | None:
        """A completion that it could not deliver."""
        try:
            file = self.folder / "completion.json"
            told = json.loads(file.read_bytes())
            return (
                parse_callback("completion", told, file.stat().st_mtime) if isinstance(told, dict) else None
            )
        except (OSError, ValueError, CallbackRejectedError):
            return None

    def _tail(self) -> str:
        try:
            with (self.folder / "stderr.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _pid(self) -> int | None:
        if self._popen is not None:
            return self._popen.pid
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "pid").read_text())
        return None

    def _lives(self) -> bool:
        pid = self._pid()
        try:
            if self._popen is not None:
                return os.waitid(os.P_PID, self._popen.pid, _UNREAPED) is None
            if pid is None:
                return False
            os.kill(pid, 0)
            own = Path(f"/proc/{pid}/cwd")  # a number is used again by others
            return not Path("/proc/self").exists() or own.resolve() == self.folder.resolve()
        except OSError:
            return False


class Externals:
    """Not thread-safe: for one event loop. A folder that is there is a job's that may still run."""

    def __init__(self, command: ExternalCommand, office: Office) -> None:
        self._command, self._office = command, office
        self._watched: dict[str, asyncio.Task[None]] = {}
        self._changed: set[str] = set()
        self._woken = asyncio.Event()

    @property
    def full(self) -> bool:
        return len(self._watched) >= self._command.at_once

    def changed(self, job_id: str) -> None:
        """A job may wait, or be to end."""
        if job_id in self._watched:
            self._changed.add(job_id)
        self._woken.set()

    async def run(self) -> None:
        """For ever; processes go on when it is cancelled, for whoever comes next."""
        try:
            await self._adopt()
            while True:
                self._woken.clear()
                await self._claim()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLAIM_EVERY_S):
                        await self._woken.wait()
        finally:
            for task in self._watched.values():
                task.cancel()
            await asyncio.gather(*self._watched.values(), return_exceptions=True)

    async def _adopt(self) -> None:
        """Watches over what an earlier one started; what is gone is failed by that."""
        while True:
            try:
                jobs = await self._office.external_jobs()
                break
            except StillhouseError:
                log.warning("the ledger does not say which external jobs run; it is asked again")
                await asyncio.sleep(CLAIM_EVERY_S)
        for job in jobs:
            process = Process(self._folder(job.job_id, job.attempt))
            self._watch(job.job_id, job.attempt, process, self._office.limit_of(job))

    async def _claim(self) -> None:
        try:
            while not self.full:
                worker = f"external {os.urandom(8).hex()}"
                assignment = await self._office.claim_external(worker)
                if assignment is None:
                    return
                await self._begin(assignment)
        except StillhouseError:
            log.warning("the ledger does not give out external jobs; it is asked again")

    async def _begin(self, job: Assignment) -> None:
        try:
            process = await asyncio.to_thread(self._spawn, job)
        except OSError as error:
            log.warning("the trainer of job %s cannot be started: %s", job.job_id, error.strerror)
            failure = RuntimeUnavailableError("The external trainer could not be started.")
            await self._office.fail(job.job_id, job.attempt, failure)
            return
        self._watch(job.job_id, job.attempt, process, job.remaining_s)

    def _watch(self, job_id: str, attempt: int, process: Process, limit_s: float) -> None:
        task = asyncio.create_task(self._guard(job_id, attempt, process, limit_s))
        self._watched[job_id] = task
        task.add_done_callback(lambda _: self._leave(job_id))

    def _leave(self, job_id: str) -> None:
        del self._watched[job_id]
        self._woken.set()

    async def _guard(self, job_id: str, attempt: int, process: Process, limit_s: float) -> None:
        """Until the process has ended and the ledger knows how."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        self._changed.add(job_id)  # it may have been cancelled since it was given out
        while not process.ended():
            if loop.time() >= until:  # told first, for its own last word would be that it was ended
                until = math.inf
                await self._insist(job_id, attempt, TrainingTimeoutError(limit_s=limit_s))
            if job_id in self._changed and not await self._is_wanted(job_id, attempt):
                await _stop(process)
                break
            await asyncio.sleep(LOOK_EVERY_S)
        process.clear()
        if (told := process.last_word()) is not None:
            await self._insist(job_id, attempt, told)
        await self._insist(job_id, attempt, process.failure())

    async def _is_wanted(self, job_id: str, attempt: int) -> bool:
        self._changed.discard(job_id)
        try:
            job = await self._office.current(job_id)
        except StillhouseError:
            self._changed.add(job_id)
            return True  # a ledger that fails ends nothing
        return job.attempt == attempt and job.state is JobState.RUNNING

    async def _insist(self, job_id: str, attempt: int, told: StillhouseError | Callback) -> None:
        """The ledger drops what it knew already: the callbacks of a process come before its end."""
        while True:
            try:
                if isinstance(told, Callback):
                    await self._office.take(job_id, attempt, told)
                else:
                    await self._office.fail(job_id, attempt, told)
                return
            except JobNotFoundError:
                return
            except StillhouseError:
                log.warning("the ledger does not take the end of job %s; it is told again", job_id)
                await asyncio.sleep(CLAIM_EVERY_S)

    def _spawn(self, job: Assignment) -> Process:
        """Raises OSError."""
        folder = self._folder(job.job_id, job.attempt)
        folder.mkdir(parents=True)
        callback = f"{self._command.url.rstrip('/')}/api/v1/training-jobs/{job.job_id}"
        described = {
            "job_id": job.job_id,
            "attempt": job.attempt,
            "kind": job.kind,
            "request": dict(job.payload),
            "trace_id": job.trace_id,
            "callback_url": f"{callback}/callback",
            "data_url": f"{callback}/data",
            "time_limit_s": job.remaining_s,
        }
        (folder / "job.json").write_text(json.dumps(described))
        environment = {
            **self._command.environment,
            "HOME": str(folder),  # the operator's has credentials
            "STILLHOUSE_JOB": str(folder / "job.json"),
            "STILLHOUSE_JOB_ID": job.job_id,
            "STILLHOUSE_ATTEMPT": str(job.attempt),
            "STILLHOUSE_TRACE_ID": job.trace_id,
            "STILLHOUSE_CALLBACK_URL": f"{callback}/callback",
            "STILLHOUSE_CALLBACK_TOKEN": self._office.token_of(job),
            "STILLHOUSE_DATA_URL": f"{callback}/data",
            "MAX_TRAINING_TIME_SECONDS": str(int(job.remaining_s)),
        }
        popen = subprocess.Popen(  # noqa: S603  # the operator's command
            ["/bin/sh", "-c", _WRAPPED, "sh", *self._command.command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return Process(folder, popen)

    def _folder(self, job_id: str, attempt: int) -> Path:
        return self._command.folder / job_id / f"{attempt:04d}"


async def _stop(process: Process) -> None:
    """Asks it to end, and kills it after ``GRACE_S``."""
    process.send(signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await _ended(process)
    process.send(signal.SIGKILL)


async def _ended(process: Process) -> None:
    while True:
        if process.ended():
            return
        await asyncio.sleep(LOOK_EVERY_S / 4)
