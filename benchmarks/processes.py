"""Memory of other processes, from /proc, and the service's own processes among those of the machine."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
EVERY_S: Final = 0.01


class MissingProcessError(Exception):
    """No such process runs below this one."""


def resident_bytes(pid: int) -> int:
    """Resident set size now."""
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int) -> int:
    """What the process holds for itself now, without files and without Ray's shared object store."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise MissingProcessError(f"process {pid} says nothing of its memory")


def peak_bytes(pid: int) -> int:
    """The largest resident set size that the process ever had."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MissingProcessError(f"process {pid} says nothing of its memory")


@contextmanager
def sampled_peak(pid: int, read: Callable[[int], int]) -> Iterator[Callable[[], int]]:
    """The largest that ``read`` gives during the block, sampled every 10 ms."""
    peak, done = read(pid), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY_S):
            peak = max(peak, read(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        done.set()
        thread.join()


def find_replica(deployment: str) -> int:
    """The process of a replica of the application ``stillhouse`` that this process started.

    Raises:
        MissingProcessError
    """
    title = f"ray::ServeReplica:stillhouse:{deployment}"
    for pid in _descendants(os.getpid()):
        if _command(pid).startswith(title):
            return pid
    raise MissingProcessError(f"no {title} runs below this process")


def _descendants(root: int) -> list[int]:
    parents = {int(entry.name): _parent(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit()}
    found = [root]
    for pid in found:  # grows while it is read: children of children
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _parent(pid: int) -> int:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:  # it ended meanwhile
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def ports_open_to_others(command: str) -> list[int]:
    """TCP ports on which processes of that name below this one listen for every address."""
    listening = {}
    for line in (PROC / "net" / "tcp").read_text().splitlines()[1:]:
        local, state, inode = (line.split()[index] for index in (1, 3, 9))
        address, port = local.split(":")
        if state == "0A" and address == "00000000":
            listening[f"socket:[{inode}]"] = int(port, 16)
    pids = [pid for pid in _descendants(os.getpid()) if Path(_command(pid).split(" ")[0]).name == command]
    links = {str(link.readlink()) for pid in pids for link in (PROC / str(pid) / "fd").iterdir()}
    return sorted(port for socket, port in listening.items() if socket in links)
