"""The stopwatch: one process and everything that it starts, from its start to its end."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Failed

EVERY = 0.1
"""Seconds between two looks at the memory; a look at 100 processes takes 5 ms, which is nobody's but the stopwatch's."""
LONGEST = 900.0


@dataclass(frozen=True)
class Sample:
    """What one run took: ``wall`` seconds, ``cpu`` seconds of user and system time, ``memory`` bytes at its peak.

    CPU and memory are those of the controller: the process and all its children (git, ssh, rsync), not the servers'.
    Memory counts what processes share once. ``output`` is what it printed.
    """

    wall: float
    cpu: float
    memory: int
    output: str = ""


@dataclass(frozen=True)
class Spread:
    """The median of several runs, the fastest and the slowest, and how many they were."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there is no value."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Spread | None:
    """Ours divided by theirs, round by round: what slows the machine for a while slows both of a round."""
    pairs = zip(ours, theirs, strict=False)
    return Spread.of([a / b for a, b in pairs if a is not None and b is not None and b > 0])


def measure(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Sample:
    """Runs a program once; Failed with its last words when it does not end with 0."""
    words = [str(word) for word in argv]
    # Files: a pipe that nobody reads could stop the program that is measured.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=None if environment is None else {**os.environ, **environment},
            stdin=given,
            stdout=out,
            stderr=err,
        )
        watch = _Watch(process.pid)
        timer = threading.Timer(LONGEST, process.kill)
        timer.daemon = True
        watch.start()
        timer.start()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.cancel()
        watch.end()
        out.seek(0)
        err.seek(0)
        printed, complaints = out.read().decode("utf-8", "replace"), err.read().decode("utf-8", "replace")
    if process.returncode != 0:
        raise Failed(
            f"{' '.join(words)[:200]} ended with {process.returncode}",
            reasons=(complaints or printed).splitlines()[-12:],
            state="The bench stopped.",
        )
    return Sample(wall, used.ru_utime + used.ru_stime, watch.peak, printed)


class _Watch(threading.Thread):
    """Looks at the memory of a process and its descendants now and then."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0
        self._ended = threading.Event()

    def run(self) -> None:
        # Not ru_maxrss: a new process begins with that of the one that started it, which is this bench.
        while not self._ended.is_set():
            self.peak = max(self.peak, tree_memory(self.pid), _highest(self.pid))
            self._ended.wait(EVERY)

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()
        self.join()


def _highest(pid: int) -> int:
    """Bytes that a process has held at most since it began to run its program; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def tree_memory(pid: int) -> int:
    """Bytes of memory of a process and its descendants: each one's own, and the largest of what they share."""
    page = os.sysconf("SC_PAGE_SIZE")
    own = shared = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            resident, common = map(int, Path(f"/proc/{one}/statm").read_text().split()[1:3])
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, ValueError):
            continue
        own += resident - common
        shared = max(shared, common)
    return (own + shared) * page
