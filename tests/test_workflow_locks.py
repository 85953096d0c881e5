"""Locks between machines: who holds an environment, who queues for it, and what a released lock's owner can still do."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, Interrupted, Locked, PipelineError, Refused, overtaken
from pipeline.host import Host
from pipeline.host_journal import JournalEntry
from pipeline.lease import hold
from pipeline.ledger import Ledger
from pipeline.model import Draft, Record
from pipeline.repository import Repository
from pipeline.state import State
from pipeline.transports.local import LocalTransport
from pipeline.workflow import deployments, lock_status, locks, waiting
from pipeline.workflow.deployments import LockReleased, LockStatus
from pipeline.workflow.session import Session
from tests.flows import Flow, told
from tests.ledgers import NOW, ticket
from tests.test_ledger_concurrency import ended, in_child
from tests.test_workflow_ways_out import SWITCHED, interrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def two(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Flow, Flow, Repository]:
    """The workspaces of two engineers with one remote and the same hosts; 1.1.0+1 is released, 1.0.0+1 on test."""
    first = told(tmp_path_factory, tmp_path, "tested")
    remote = tmp_path / "remote.git"
    (first.folder / "installations.git").rename(remote)
    hosts = tmp_path / "hosts"
    (first.folder / "hosts").rename(hosts)
    first.edit("environments/workspace.yaml", "path: installations.git", f"remote: {remote}")
    for key in ("test", "production"):
        first.edit(f"environments/acme/{key}.yaml", "folder: hosts/", f"folder: {hosts}/")
    second = Flow.at(tmp_path / "second", first.clock.now)
    shutil.copytree(first.folder, second.folder, symlinks=True)
    first.release("1.1.0")
    return first, second, Repository.open(remote, create=False)


def elsewhere(flow: Flow) -> Callable[[], None]:
    """Makes ``flow``'s machine another one: nobody sees its lock file. Gives back what undoes it."""
    there = flow.folder / "var" / "locks"
    away = flow.folder / "var" / "unseen"
    there.rename(away)

    def back() -> None:
        away.rename(there)

    return back


def at(flow: Flow, line: str, do: Callable[[], object]) -> Session:
    """A session that does this once, at a line of its progress."""
    session = flow.session()
    met: list[str] = []

    def progress(said: str) -> None:
        flow.lines.append(said)
        if line in said and not met:
            met.append(said)
            do()

    session.progress = progress
    return session


def status_of(flow: Flow, environment: str | None = "test") -> LockStatus:
    return deployments.lock_status(flow.session(), customer="acme", environment=environment)


def let_go(flow: Flow, reason: str = "the machine is gone", **more: Any) -> LockReleased:
    return deployments.release_lock(flow.session(), customer="acme", environment="test", reason=reason, **more)


def journal(folder: Path) -> list[JournalEntry]:
    return Host(LocalTransport(), "app1", str(folder)).journal()


def killed(flow: Flow, line: str, release: str | None = None) -> None:
    """A deployment whose machine loses its power at this line of progress."""

    def work() -> None:
        session = at(flow, line, lambda: os.kill(os.getpid(), signal.SIGKILL))
        deployments.deploy(session, customer="acme", release=release)

    assert ended(in_child(work)) == -signal.SIGKILL


# --- who holds it ------------------------------------------------------------------------------------------------------


def test_who_holds_it_is_told_on_the_other_machine(
    two: tuple[Flow, Flow, Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = two
    monkeypatch.setenv("CI_JOB_URL", "https://ci.example/jobs/7")
    told_what: list[LockStatus] = []

    def look() -> None:
        told_what.append(status_of(second))
        back = elsewhere(first)
        told_what.append(status_of(second))
        # Long after its last sign of life.
        for _ in range(200):
            second.clock()
        told_what.append(status_of(second))
        back()

    deployments.deploy(at(first, "back up", look), customer="acme")
    for told_then, life in zip(told_what, ("alive", "alive", "unknown"), strict=True):
        [row] = told_then.locks
        assert (row["held"], row["life"], row["environment"], row["owner"]) == (True, life, "test", "eve")
        assert (row["purpose"], row["release"], row["process"]) == ("deploy", "1.1.0+1", os.getpid())
        assert row["job"] == "https://ci.example/jobs/7"
        assert row["deployment"] == "0002"
        assert told_then.changed is False
    silent = told_what[2].locks[0]
    assert 150 < silent["silent_seconds"] <= silent["age_seconds"]
    text = "\n".join(told_what[2].lines())
    assert "nobody here can tell whether its run lives; deployment 0002 is open" in text
    assert "CI job https://ci.example/jobs/7" in text
    assert "if it is dead for certain, release the lock" in text
    assert told_what[2].next_commands == ("invoke lock.release customer=acme env=test reason=…",)
    assert "Wait for it" in "\n".join(told_what[0].lines())
    assert told_what[0].next_commands == ("invoke status customer=acme",)
    after = status_of(second, None)
    assert [(row["environment"], row["held"]) for row in after.locks] == [("test", False), ("production", False)]
    assert "test of acme: not locked" in after.lines()


def test_what_is_left_behind_is_told_with_what_to_do(tested: Flow) -> None:
    tested.release("1.1.0")
    killed(tested, SWITCHED)
    dead = status_of(tested)
    assert dead.locks[0]["life"] == "dead"
    assert dead.next_commands == (
        "invoke deploy customer=acme release=1.1.0+1 env=test",
        "invoke rollback customer=acme env=test",
    )
    assert let_go(tested).changed is True
    free = status_of(tested)
    assert free.locks[0]["held"] is False
    assert "held by nobody; deployment 0002 is open" in free.lines()[0]
    assert free.next_commands == dead.next_commands


def test_spans_of_time_are_spoken() -> None:
    spans = [lock_status.spoken(seconds) for seconds in (0, 119, 120, 7199, 7200, 172_799, 172_800, None)]
    assert spans == ["0 s", "119 s", "2 min", "119 min", "2 h 0 min", "47 h 59 min", "2 d 0 h", "not known how long"]


# --- a lock that was taken away ----------------------------------------------------------------------------------------


def stolen(first: Flow, second: Flow) -> LockReleased:
    """The first's machine was thought dead, and wakes up before it has migrated: what the release of its lock said."""
    released: list[LockReleased] = []

    def steal() -> None:
        back = elsewhere(first)
        released.append(let_go(second))
        back()

    with pytest.raises(PipelineError):
        deployments.deploy(at(first, "back up", steal), customer="acme")
    return released[0]


def test_a_stolen_locks_owner_is_refused_by_the_host_and_the_database(two: tuple[Flow, Flow, Repository]) -> None:
    first, second, remote = two
    host = first.folder.parent / "hosts" / "test1"
    done = stolen(first, second)
    assert done.changed is True
    assert done.fenced == ("app1", "the database")
    assert done.unfenced == ()
    newest = journal(host)[-1]
    assert (newest.what, newest.fence, newest.release) == ("lock-released", done.fence, "1.0.0+1")
    ledger = Ledger(remote, "acme")
    record = ledger.record(newest.record or "")
    assert record is not None
    assert (record.number, record.kind) == (done.fence, "lock-released")
    assert ledger.text(record.texts["reason"]) == "the machine is gone"
    assert [row.script for row in applied(second)] == ["001_base.sql"]
    assert (host / "current").readlink().name == "1.0.0+1"


def test_a_stolen_locks_owner_writes_nothing_into_the_ledger(two: tuple[Flow, Flow, Repository]) -> None:
    """The deployment stays open, and whoever took the lock finishes it."""
    first, second, remote = two
    done = stolen(first, second)
    ledger = Ledger(remote, "acme")
    assert ledger.state().number == done.fence
    again = second.deploy()
    assert (again.changed, again.deployment) == (True, "0002")
    assert ledger.verify(second.session().workspace.people) == []
    assert journal(first.folder.parent / "hosts" / "test1")[-1].fence > (done.fence or 0)


def test_a_decision_of_the_ledger_sees_that_the_lease_is_gone(two: tuple[Flow, Flow, Repository]) -> None:
    """The decision fetches first, so that no beat has to come between."""
    first, second, remote = two
    repository = first.session().repository()
    with hold(
        *(repository, "acme", "test"), run="run-9", actor="eve", at=NOW, purpose="deploy", work=first.folder / "x"
    ) as held:
        shutil.rmtree(first.folder / "x")
        done = let_go(second)
        asked: list[int] = []

        def decide(state: State) -> list[Draft]:
            asked.append(state.number)
            held.check()
            return [ticket("late")]

        session = first.session()
        with pytest.raises(Refused, match="has lost its lock") as refused:
            Ledger(repository, "acme").append(session.signer, decide)
        assert overtaken(refused.value)
        assert asked == [done.fence]
    assert Ledger(remote, "acme").state().number == done.fence


def applied(flow: Flow) -> list[Any]:
    from pipeline.workflow.databases import history_of
    from pipeline.workflow.gathering import closing, hosts_of

    dossier = flow.session().dossier("acme")
    environment = dossier.environment("test")
    hosts = hosts_of(dossier, environment)
    with closing(hosts):
        return history_of(dossier, environment, hosts["app1"], dossier.playbook.playbook)


def test_a_released_locks_fence_is_above_the_old_owners(two: tuple[Flow, Flow, Repository]) -> None:
    """Each witness by itself, without the help of the lease."""
    first, second, _ = two
    hosts = first.folder.parent / "hosts"
    killed(first, SWITCHED)
    old = journal(hosts / "test1")[-1]
    elsewhere(first)
    done = let_go(second)
    assert done.fence is not None
    assert done.fence > old.fence
    host = Host(LocalTransport(), "app1", str(hosts / "test1"))
    with pytest.raises(Refused, match="overtaken"):
        host.append_journal(old.model_copy(update={"what": "deployment-finished", "outcome": "ok"}))
    from pipeline.workflow.databases import open_database

    dossier = second.session().dossier("acme")
    database = open_database(dossier, dossier.environment("test"), host)
    with pytest.raises(Refused) as refused:
        database.claim(old.fence, old.run)
    assert overtaken(refused.value)
    # And the run that resumes is above both.
    assert second.deploy().changed is True


def test_what_cannot_be_told_of_the_fence_is_named_and_told_later(tested: Flow) -> None:
    tested.release("1.1.0")
    tested.deploy()
    with hold(
        tested.repository, "acme", "test", run="run-9", actor="john", at=NOW, purpose="deploy", work=tested.folder / "x"
    ) as held:
        held.keep()
    shutil.rmtree(tested.folder / "x")
    host = tested.host("test")
    strange = host / "journal" / "000099-strange.json"
    strange.write_text("{}")
    database = host / "shared" / "app.sqlite"
    kept = database.read_bytes()
    database.write_bytes(b"this is a text, not a database\n" * 100)

    done = let_go(tested)
    assert (done.changed, done.fenced) == (True, ())
    assert [place["where"] for place in done.unfenced] == ["app1", "the database"]
    text = "\n".join(done.lines())
    assert "make sure that the run is dead" in text
    assert "app1: " in text
    assert done.next_commands[1] == "invoke lock.release customer=acme env=test reason=…"
    # It holds all the same, and is recorded.
    assert tested.repository.refs("refs/leases/") == {}
    [record] = tested.records("lock-released")
    assert record.number == done.fence

    strange.unlink()
    database.write_bytes(kept)
    for _ in range(2):
        again = let_go(tested)
        assert (again.changed, again.fence, again.fenced) == (False, done.fence, ("app1", "the database"))
    assert [entry.fence for entry in journal(host) if entry.what == "lock-released"] == [done.fence]
    assert tested.sql("test", "SELECT highest FROM tma_migration_fence") == [(done.fence,)]
    assert len(tested.records("lock-released")) == 1
    # Once somebody has deployed since, there is nothing left to tell.
    tested.make("1.2.0", {})
    tested.deploy()
    assert let_go(tested).fence is None
    tested.check_sound()


def test_a_host_that_has_nothing_yet_is_told_too_but_never_in_somebody_elses_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flow = told(tmp_path_factory, tmp_path, "released")
    host = flow.host("test")
    host.mkdir(parents=True)
    (host / "theirs.txt").write_text("not ours\n")
    Holding(flow).keep()
    done = let_go(flow)
    assert [place["where"] for place in done.unfenced][:1] == ["app1"]
    assert "theirs.txt" in done.unfenced[0]["why"]
    assert [path.name for path in host.iterdir() if path.name != "shared"] == ["theirs.txt"]
    (host / "theirs.txt").unlink()
    shutil.rmtree(host)
    assert "app1" in let_go(flow).fenced
    assert [(entry.what, entry.fence) for entry in journal(host)] == [("lock-released", done.fence)]
    assert flow.deploy().changed is True
    flow.check_sound()


def test_a_release_that_was_interrupted_is_recorded_and_told_later(
    tested: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record comes before anything else: no lock goes away that nobody could look up."""
    Holding(tested).keep()
    real = locks.release_lease  # type: ignore[attr-defined]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(locks, "release_lease", stop)
    with pytest.raises(KeyboardInterrupt):
        let_go(tested)
    assert len(tested.records("lock-released")) == 1
    assert list(tested.repository.refs("refs/leases/")) == ["refs/leases/acme/test"]
    monkeypatch.setattr(locks, "release_lease", real)
    done = let_go(tested)
    assert (done.changed, done.fenced) == (True, ("app1", "the database"))
    assert tested.repository.refs("refs/leases/") == {}


def test_a_lock_is_not_taken_from_who_came_meanwhile(tested: Flow) -> None:
    """Between the look and the record another run has taken the dead one's place."""
    Holding(tested).keep()
    shutil.rmtree(tested.folder / "x")
    session = tested.session()
    ledger = session.dossier("acme").ledger
    append = type(ledger).append
    came: list[Any] = []

    def meanwhile(self: Ledger, *arguments: Any) -> list[Record]:
        from pipeline.lease import release_lock as release

        assert release(tested.repository, "acme", "test") is not None
        other = hold(
            tested.repository,
            "acme",
            "test",
            run="run-8",
            actor="john",
            at=NOW,
            purpose="deploy",
            work=tested.folder / "y",
        )
        came.append(other)
        other.__enter__()
        return append(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", meanwhile)
        with pytest.raises(Refused, match="another run has taken test of acme"):
            deployments.release_lock(session, customer="acme", environment="test", reason="gone")
    assert tested.records("lock-released") == []
    assert list(tested.repository.refs("refs/leases/")) == ["refs/leases/acme/test"]
    came[0].__exit__(None, None, None)


class Holding:
    """Another workspace of this machine that holds acme's test."""

    def __init__(self, flow: Flow) -> None:
        self.manager = hold(
            flow.repository, "acme", "test", run="run-9", actor="john", at=NOW, purpose="deploy", work=flow.folder / "x"
        )
        self.held = self.manager.__enter__()

    def keep(self) -> None:
        self.held.keep()
        self.end()

    def end(self) -> None:
        self.manager.__exit__(None, None, None)


# --- queueing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL", 0.05)


def test_who_waits_decides_on_what_there_is_then(two: tuple[Flow, Flow, Repository], quick: None) -> None:
    """Two machines, two releases: the second queues behind the first, and both get what they asked for."""
    first, second, remote = two
    begun, waits = first.folder / "begun", first.folder / "waits"

    def queue() -> None:
        until(begun.exists)
        session = at(second, "waiting for test", waits.touch)
        done = deployments.deploy(session, customer="acme", release="1.1.0+1", wait=True)
        assert isinstance(done, deployments.DeploymentResult)
        assert (done.changed, done.installed_before) == (True, "1.2.0+1")
        [line] = [line for line in second.lines if line.startswith("waiting for")]
        assert "eve on" in line
        assert "deploy of 1.2.0+1" in line

    first.make("1.2.0", {})

    def go() -> None:
        begun.touch()
        until(waits.exists)
        # Without waiting it is told off at once.
        with pytest.raises((Locked, Refused)):
            second.deploy("1.1.0+1")

    child = in_child(queue)
    assert deployments.deploy(at(first, "back up", go), customer="acme").changed is True
    assert ended(child) == 0
    ledger = Ledger(remote, "acme")
    finished = [r for r in reversed(ledger.records()) if r.kind == "deployment-finished"]
    assert [(r.release, r.outcome, r.details["from"]) for r in finished[1:]] == [
        ("1.2.0+1", "ok", "1.0.0+1"),
        ("1.1.0+1", "ok", "1.2.0+1"),
    ]
    assert remote.refs("refs/leases/") == {}


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_after_waiting_the_files_are_read_anew(tested: Flow, quick: None) -> None:
    """While one waits, a freeze is agreed: it counts."""
    tested.release("1.1.0")
    holding = Holding(tested)

    def freeze() -> None:
        file = tested.folder / "environments/acme/test.yaml"
        file.write_text(
            file.read_text() + "freezes:\n  - start: 2026-01-01T00:00:00Z\n    until: 2026-12-24T00:00:00Z\n"
            "    reason: year-end\n"
        )
        holding.end()

    with pytest.raises(Refused) as refused:
        deployments.deploy(at(tested, "waiting for test", freeze), customer="acme", wait=True)
    assert {reason.rule for reason in refused.value.reasons} == {"not_frozen"}


def test_who_comes_between_is_waited_for_too(tested: Flow, quick: None) -> None:
    """The environment was free when it was looked at, and held when it was to be taken."""
    tested.release("1.1.0")
    holding: list[Holding] = []
    session = tested.session()

    def progress(line: str) -> None:
        if line.startswith("looking at") and not holding:
            holding.append(Holding(tested))
        if line.startswith("waiting for"):
            holding[0].end()

    session.progress = progress
    done = deployments.deploy(session, customer="acme", wait=True)
    assert done.changed is True
    tested.check_sound()


def test_what_another_run_changed_between_look_and_decision_is_decided_anew(tested: Flow, quick: None) -> None:
    """The whole other deployment fits between our look and our lock: that is no reason to refuse who is ready to wait."""
    tested.release("1.1.0")
    tested.make("1.2.0", {})
    came: list[object] = []

    def other() -> None:
        came.append(tested.deploy("1.2.0+1"))

    # The last line of progress before the lock is taken.
    done = deployments.deploy(at(tested, "looking at app1", other), customer="acme", release="1.1.0+1", wait=True)
    assert len(came) == 1
    assert isinstance(done, deployments.DeploymentResult)
    assert (done.changed, done.installed_before) == (True, "1.2.0+1")
    tested.check_sound()


def test_waiting_is_stopped_without_harm(tested: Flow, quick: None) -> None:
    tested.release("1.1.0")
    holding = Holding(tested)
    before = tested.refs()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="waiting for test of acme was stopped") as stopped:
        deployments.deploy(at(tested, "waiting for test", stop), customer="acme", wait=True)
    assert "Nothing was changed" in stopped.value.state
    assert stopped.value.next_commands == ("invoke lock.status customer=acme env=test",)
    assert tested.refs() == before
    holding.end()


def test_nobody_waits_for_the_dead_nor_for_what_nobody_will_finish(tested: Flow, quick: None) -> None:
    tested.release("1.1.0")
    killed(tested, SWITCHED)
    assert deployments.deploy(tested.session(), customer="acme", wait=True).changed is True
    # Open, and nobody is at it: a person has to say what becomes of it.
    tested.make("1.2.0", {})
    interrupted(tested, deployments.deploy, SWITCHED)
    with pytest.raises(Refused, match="has no outcome yet"):
        deployments.deploy(tested.session(), customer="acme", release="1.1.0+1", wait=True)
    assert deployments.rollback(tested.session(), customer="acme", environment="test", wait=True).changed is True
    tested.check_sound()


def test_who_may_not_deploy_does_not_wait_to_be_told(tested: Flow, quick: None) -> None:
    stranger = tested.person("aude", "auditor")
    holding = Holding(tested)
    with pytest.raises(Refused, match="may not do this"):
        deployments.deploy(tested.session(signing_key=stranger), customer="acme", wait=True)
    holding.end()


def test_what_is_refused_for_good_is_refused_after_waiting(tested: Flow, quick: None) -> None:
    holding = Holding(tested)
    session = at(tested, "waiting for production", pytest.fail)
    with pytest.raises(Refused, match="cannot go to production"):
        deployments.promote(session, customer="acme", wait=True)
    holding.end()


def test_a_line_that_fails_while_waiting_is_waited_out(two: tuple[Flow, Flow, Repository], quick: None) -> None:
    first, _, remote = two
    holding = hold(remote, "acme", "test", run="run-9", actor="john", at=NOW, purpose="deploy", work=first.folder / "x")
    holding.__enter__()
    away = remote.path.with_name("away.git")
    session = first.session()

    def progress(line: str) -> None:
        if line.startswith("waiting for") and remote.path.exists():
            remote.path.rename(away)
        if line.endswith("still waiting"):
            away.rename(remote.path)
            holding.__exit__(None, None, None)

    session.progress = progress
    assert deployments.deploy(session, customer="acme", wait=True).changed is True


def test_failed_is_not_tried_again(tested: Flow, quick: None) -> None:
    tested.make("1.2.0", {"migrations/003_x.sql": "ALTER TABLE nowhere ADD COLUMN x INTEGER;\n"})
    with pytest.raises(Failed, match="apply"):
        deployments.deploy(tested.session(), customer="acme", wait=True)
    assert len(tested.records("deployment-started")) == 2
