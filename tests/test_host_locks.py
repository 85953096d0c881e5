"""One step at a time on a host, and only of the newest run: the lock, its substitute without flock, and the fence."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import Failed, Locked, Refused, overtaken
from pipeline.host import Host
from pipeline.job import Job, JobStep, Told, library
from pipeline.transports.local import LocalTransport
from tests.jobs import FILES, command, do, entry, outcomes, payload_of, tools_without, upload, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acme app"


@pytest.fixture(params=["flock", "links"])
def host(request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> Host:
    """With the kernel's lock, and without the program for it."""
    if request.param == "flock":
        return Host(LocalTransport(), "app1", str(folder))
    path = tools_without(tmp_path / "tools", "flock")
    return Host(LocalTransport(environment={"PATH": path}), "app1", str(folder))


@pytest.fixture
def flocked(folder: Path) -> Host:
    return Host(LocalTransport(), "app1", str(folder))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that lets what waits for it go on; made at the end of the test in any case."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


def until(what: Path) -> None:
    """Waits for a file."""
    for _ in range(600):
        if what.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what} never came")


def waiting(gate: Path, name: str, *, number: int = 3) -> JobStep:
    """A step that writes ``NAME.began``, waits for the gate, and writes ``NAME.ended``."""
    script = f'touch "$0/{name}.began"; until [ -e "$0/{gate.name}" ]; do sleep 0.1; done; touch "$0/{name}.ended"'
    return command("sh", "-c", script, str(gate.parent), number=number)


class Running:
    """A job that is carried in a thread."""

    def __init__(self, host: Host, job: Job) -> None:
        self.told: Told | None = None
        self.error: Exception | None = None
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._carry, args=(host, job), daemon=True)
        self._thread.start()

    def _carry(self, host: Host, job: Job) -> None:
        try:
            self.told = host.carry(job, on_trouble=self.said.append)
        except Exception as error:
            self.error = error

    def result(self) -> Told:
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.told is not None
        return self.told


# --- the lock -------------------------------------------------------------------------------------------------------------


def test_of_two_jobs_at_once_one_waits(host: Host, gate: Path) -> None:
    first = Running(host, Job(entry("run-1", 1), (waiting(gate, "one"),)))
    until(gate.parent / "one.began")
    second = Running(host, Job(entry("run-2", 2), (waiting(gate, "two"),)))
    for _ in range(200):
        if second.said:
            break
        time.sleep(0.05)
    assert "waiting for a step that still runs there" in second.said[0]
    assert not (gate.parent / "two.began").exists()
    gate.touch()
    assert outcomes(first.result()) == {3: "ok"}
    assert outcomes(second.result()) == {3: "ok"}
    assert [(one.run, one.what) for one in host.journal()] == [
        (run, what) for run in ("run-1", "run-2") for what in ("deployment-started", "step-started", "step-finished")
    ]


def test_the_same_job_sent_again_waits_for_the_first_and_tells_what_became_of_it(host: Host, gate: Path) -> None:
    job = Job(entry(), (waiting(gate, "one"),))
    first = Running(host, job)
    until(gate.parent / "one.began")
    again = [Running(host, job) for _ in range(3)]
    while not all(one.said for one in again):
        time.sleep(0.05)
    gate.touch()
    assert outcomes(first.result()) == {3: "ok"}
    assert [outcomes(one.result()) for one in again] == [{3: "again"}] * 3
    assert len(written(host)) == 3


def test_a_job_does_not_wait_longer_than_its_own_limit(host: Host, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.job.RECEIVING", 1.0)
    first = Running(host, Job(entry("run-1", 1), (waiting(gate, "one"),)))
    until(gate.parent / "one.began")
    with pytest.raises(Locked, match="still works on app1"):
        held = Host(Busy(host.transport), "app1", host.folder)
        do(held, command("true", seconds=1), run="run-2", fence=2)
    gate.touch()
    first.result()
    assert [one.run for one in host.journal()] == ["run-1"] * 3


class Busy(LocalTransport):
    """A transport whose jobs wait only for a second; the time that bounds them on the host is left alone."""

    def __init__(self, transport: object) -> None:
        super().__init__(environment=transport._environment)  # type: ignore[attr-defined]

    def stream(self, script, arguments=(), **more):  # type: ignore[no-untyped-def]
        folder, run, _ = arguments
        return super().stream(script, (folder, run, "60"), **more)


def test_a_daemon_that_a_step_starts_does_not_hold_the_lock(host: Host, gate: Path, tmp_path: Path) -> None:
    descriptors = tmp_path / "descriptors"
    script = f'(trap "" HUP; ls -l /proc/self/fd >"$0"; until [ -e "{gate}" ]; do sleep 0.1; done) & echo started'
    assert outcomes(do(host, command("sh", "-c", script, str(descriptors)))) == {3: "ok"}
    assert outcomes(do(host, command("true"), run="run-2", fence=2)) == {3: "ok"}
    assert not gate.exists()
    held = [line.rpartition(" -> ")[2] for line in descriptors.read_text().splitlines() if " -> " in line]
    assert not any("journal" in one or "tma-lock" in one for one in held)


def test_what_a_killed_job_has_left_running_still_holds_the_lock(flocked: Host, gate: Path) -> None:
    first = Running(flocked, Job(entry("run-1", 1), (waiting(gate, "one"),)))
    until(gate.parent / "one.began")
    [spool] = Path(flocked.folder, "incoming").iterdir()
    (gate.parent / "one.began").unlink()
    os.kill(int((spool / "pid").read_text()), signal.SIGKILL)
    second = Running(flocked, Job(entry("run-1", 1), (waiting(gate, "one"),)))
    for _ in range(600):
        if second.said:
            break
        time.sleep(0.05)
    assert any("waiting for a step that still runs there" in line for line in second.said)
    assert not (gate.parent / "one.began").exists() and not (gate.parent / "one.ended").exists()
    gate.touch()
    assert outcomes(second.result())[3] in ("ok", "again")
    # Only now it was done again: nothing told how it had ended.
    assert (gate.parent / "one.began").exists() and (gate.parent / "one.ended").exists()
    with contextlib.suppress(Failed):
        first.result()


def test_a_job_that_waits_keeps_what_it_was_sent(host: Host, folder: Path, gate: Path, tmp_path: Path) -> None:
    """Whoever begins takes away what killed jobs have left behind, and only that."""
    payload = payload_of(tmp_path / "payloads", FILES)
    first = Running(host, Job(entry("run-1", 1), (waiting(gate, "one"),)))
    until(gate.parent / "one.began")
    others = [Running(host, Job(entry("run-2", 2), (command("true", str(n), number=n),))) for n in (5, 6, 7, 8)]
    sent = Running(host, Job(entry("run-2", 2), (upload("1.0+1", payload),), payload=payload))
    while not all(one.said for one in (*others, sent)):
        time.sleep(0.05)
    gate.touch()
    assert outcomes(first.result()) == {3: "ok"}
    assert outcomes(sent.result()) == {1: "ok"}
    assert [set(outcomes(one.result()).values()) for one in others] == [{"ok"}] * 4
    assert list((folder / "incoming").iterdir()) == []


def test_a_job_goes_on_when_whoever_sent_it_is_gone(tmp_path: Path, folder: Path, gate: Path) -> None:
    # Without timeout, which would make a process group of its own as well.
    host = Host(
        LocalTransport(environment={"PATH": tools_without(tmp_path / "no timeout", "timeout")}), "a", str(folder)
    )
    data = b"".join(Job(entry(), (waiting(gate, "one"), command("true", number=4)), finish="ok").stream())
    words = ["sh", "-c", library("receive"), "sh", str(folder), "run-1", "60"]
    environment = host.transport._environment  # type: ignore[attr-defined]
    sender = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert sender.stdin is not None and sender.stdout is not None
    sender.stdin.write(data)
    sender.stdin.close()
    until(gate.parent / "one.began")
    sender.stdout.close()
    os.killpg(sender.pid, signal.SIGHUP)
    os.killpg(sender.pid, signal.SIGKILL)
    sender.wait()
    gate.touch()
    told = do(host, waiting(gate, "one"), command("true", number=4), finish="ok")
    assert outcomes(told) == {3: "again", 4: "again"}
    assert written(host)[-1] == ("deployment-finished", None, "ok")


# --- the substitute -------------------------------------------------------------------------------------------------------


def contender(folder: Path, path: str, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", library("locks") + "\n" + script, "sh", str(folder)],
        env={**os.environ, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.parametrize("tools", ["flock", "links"])
def test_of_eight_contenders_one_holds_it_at_a_time(tools: str, tmp_path: Path) -> None:
    path = tools_without(tmp_path / "tools", *(["flock"] if tools == "links" else []))
    held = tmp_path / "held"
    held.mkdir()
    # mkdir is what finds out that two hold it; each takes it three times, some die with it in their hands.
    script = """
        for turn in 1 2 3; do
            lock_steps 300
            mkdir "$folder/in" || { echo 'two hold it' >&2; exit 9; }
            echo x >>"$folder/turns"
            rmdir "$folder/in"
            if [ "$turn" = 3 ] && [ "$(($$ % 2))" = 0 ]; then kill -9 $$; fi
            unlock_steps
            [ -z "$tma_flock" ] || exec 9>&-
        done"""
    processes = [contender(held, path, script) for _ in range(8)]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert not any(b"two hold it" in error for error in errors), errors
    assert all(process.returncode in (0, -signal.SIGKILL) for process in processes), errors
    assert (held / "turns").read_text().count("x") == 24
    assert len(list(held.glob(".tma-lock.steps.*"))) == (1 if tools == "links" else 0)


def test_a_link_of_whoever_is_gone_is_taken_over_and_one_of_a_living_process_is_not(tmp_path: Path) -> None:
    path = tools_without(tmp_path / "tools", "flock")
    held = tmp_path / "held"
    held.mkdir()
    link = held / ".tma-lock.steps.7"
    started = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    for holder, code in {
        f"{os.getpid()}.{started}": 7,
        f"{os.getpid()}.{int(started) + 1}": 0,  # the number is used again by another process
        "4194304999.1": 0,
        "free": 0,
    }.items():
        link.unlink(missing_ok=True)
        (held / ".tma-lock.steps.8").unlink(missing_ok=True)
        link.symlink_to(holder)
        process = contender(held, path, "lock_steps 0 || exit 7")
        process.communicate(timeout=60)
        assert process.returncode == code, holder
        assert sorted(one.name for one in held.iterdir()) == [".tma-lock.steps." + ("7" if code else "8")]


# --- the fence --------------------------------------------------------------------------------------------------------------


def test_a_job_with_a_lower_fence_is_refused_and_leaves_nothing(host: Host, folder: Path) -> None:
    do(host, fence=5)
    with pytest.raises(Refused) as caught:
        do(host, command("touch", "../harm"), run="run-0", fence=4)
    assert overtaken(caught.value)
    assert "5" in caught.value.render()
    assert not (folder.parent / "harm").exists()
    assert list((folder / "incoming").iterdir()) == []
    assert len(host.journal()) == 1
    # Whoever has the same fence goes on: it is the same attempt.
    assert outcomes(do(host, command("true"), fence=5)) == {3: "ok"}


def test_a_job_that_is_overtaken_while_it_runs_begins_no_further_step(host: Host, folder: Path, gate: Path) -> None:
    last = command("touch", str(gate.parent / "harm"), number=4)
    running = Running(host, Job(entry("run-1", 1), (waiting(gate, "one"), last), finish="ok"))
    until(gate.parent / "one.began")
    host.append_journal(entry("run-2", 2, "lock-released"))
    gate.touch()
    with pytest.raises(Refused) as caught:
        running.result()
    assert overtaken(caught.value)
    assert not (gate.parent / "harm").exists()
    assert [(one.what, one.fence) for one in host.journal()] == [
        ("deployment-started", 1),
        ("step-started", 1),
        ("lock-released", 2),
    ]
    assert host.inspect().journal_damage is None
    assert list((folder / "incoming").iterdir()) == []


def test_an_entry_of_somebody_else_with_no_higher_fence_joins_the_chain(host: Host, gate: Path) -> None:
    running = Running(host, Job(entry("run-1", 2), (waiting(gate, "one"),)))
    until(gate.parent / "one.began")
    host.append_journal(entry("run-1", 2, "note-made"))
    gate.touch()
    assert outcomes(running.result()) == {3: "ok"}
    assert [one.what for one in host.journal()] == ["deployment-started", "step-started", "note-made", "step-finished"]


def test_without_flock_and_the_rest_a_job_is_done_all_the_same(tmp_path: Path, folder: Path) -> None:
    path = tools_without(tmp_path / "tools", "flock", "setsid", "timeout")
    host = Host(LocalTransport(environment={"PATH": path}), "app1", str(folder))
    assert len(host.inspect().substitutes) == 3
    assert outcomes(do(host, command("sh", "-c", "exit 3", seconds=1))) == {3: "failed 3"}
    assert outcomes(do(host, command("true", number=4), fence=2)) == {4: "ok"}
    assert shutil.which("flock", path=path) is None


def test_nobody_else_can_open_what_is_locked(host: Host, folder: Path) -> None:
    """Whoever could read a file could hold its lock, and with it every deployment."""
    do(host, command("true"))
    if not (folder / ".tma-lock").exists():
        return  # links: there is nothing to open
    assert {one.name: one.stat().st_mode & 0o777 for one in folder.glob(".tma-*") if one.is_file()} == {
        ".tma-lock": 0o600,
        ".tma-journal": 0o600,
    }
