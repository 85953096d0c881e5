"""Killed anywhere, interrupted, or not alone: the same command finds out what is done, and does the rest.

A child process deploys or promotes, and is ended by SIGKILL at a line of progress, before or after a git command, before
or after a script on the host. Then the same command is given again. What is marked slow takes more
time than ``make quick`` has.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Interrupted, Locked, Refused
from pipeline.transports import Result
from pipeline.transports.local import LocalTransport
from pipeline.workflow import deployments
from pipeline.workflow.session import Session
from tests.flows import Flow, told
from tests.test_ledger_concurrency import SHIM, ended, in_child, kill_at_objects

pytestmark = pytest.mark.slow

SEED = 20261122
SAMPLED = 5
VERB = ("deploy", "promote")


@pytest.fixture
def ready(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "live")


def prepare(flow: Flow, verb: str) -> None:
    """1.2.0+1, whose scripts can be told to have run twice, is next for test, or for production."""
    flow.make(
        "1.2.0",
        {
            "migrations/003_more.sql": "INSERT INTO item (name) VALUES ('expand');\n",
            "migrations/004_post_more.sql": "INSERT INTO item (name) VALUES ('contract');\n",
        },
    )
    if verb == "promote":
        flow.deploy()
        flow.decide()


def act(session: Session, verb: str) -> object:
    return getattr(deployments, verb)(session, customer="acme")


def check_done(flow: Flow, verb: str) -> None:
    """It is done, exactly once, and the records, Git, the host and the database agree."""
    key = "test" if verb == "deploy" else "production"
    flow.check_sound()
    assert flow.current(key) == "releases/1.2.0+1"
    assert flow.served(key) == "depot 1.2.0"
    assert flow.migrated(key) == ["001_base.sql", "002_price.sql", "003_more.sql", "004_post_more.sql"]
    assert flow.sql(key, "SELECT name FROM item ORDER BY id") == [("expand",), ("contract",)]
    finished = [r for r in flow.records("deployment-finished") if (r.environment, r.release) == (key, "1.2.0+1")]
    assert [record.outcome for record in finished] == ["ok"]
    started = [r for r in flow.records("deployment-started") if (r.environment, r.release) == (key, "1.2.0+1")]
    # Every attempt is announced, all under one run and one number.
    assert {record.run for record in started} == {finished[0].run}
    assert {record.details["deployment"] for record in started} == {finished[0].details["deployment"]}
    assert sorted(finished[0].details["scripts"]) == ["002_price.sql", "003_more.sql", "004_post_more.sql"]
    requests = [r for r in flow.records("sign-off-requested") if r.release == "1.2.0+1"]
    assert len(requests) == 1
    names = [path.name for path in (flow.host(key) / "releases").iterdir()]
    assert sorted(names) == (["1.0.0+1", "1.2.0+1"])
    assert list((flow.host(key) / "incoming").iterdir()) == []


def copied(flow: Flow, target: Path) -> Flow:
    shutil.copytree(flow.folder, target, symlinks=True)
    return Flow.at(target, flow.clock.now)


def killed(flow: Flow, verb: str, arrange: Callable[[Session], None]) -> int:
    """The exit code of a child that does it and is killed as ``arrange`` says."""

    def work() -> None:
        session = flow.session()
        arrange(session)
        act(session, verb)

    return ended(in_child(work))


def at_progress(count: int, log: Path | None = None) -> Callable[[Session], None]:
    def arrange(session: Session) -> None:
        seen: list[str] = []

        def progress(line: str) -> None:
            seen.append(line)
            if log is not None:
                log.write_text("\n".join(seen))
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)

        session.progress = progress

    return arrange


def at_git(count: int, when: str, shim: Path, log: Path) -> Callable[[Session], None]:
    def arrange(session: Session) -> None:
        git = shutil.which("git")
        assert git is not None
        os.environ |= {
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "SHIM_GIT": git,
            "SHIM_COUNT": str(log),
            "SHIM_AT": str(count),
            "SHIM_WHEN": when,
        }
        # What used to be git's: the objects that are written without it.
        kill_at_objects(log, count, when)

    return arrange


def at_script(count: int, when: str, log: Path) -> Callable[[Session], None]:
    def arrange(session: Session) -> None:
        run, seen = LocalTransport.run, 0

        def counting(self: LocalTransport, *arguments: object, **named: object) -> Result:
            nonlocal seen
            seen += 1
            log.write_text(str(seen))
            if (seen, when) == (count, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            result = run(self, *arguments, **named)  # type: ignore[arg-type]
            if (seen, when) == (count, "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        LocalTransport.run = counting  # type: ignore[method-assign]

    return arrange


def test_killed_after_the_switch_it_is_finished_by_the_same_command(ready: Flow) -> None:
    """One point of the sweeps below: the new release serves, and nobody has checked it."""
    prepare(ready, "deploy")

    def arrange(session: Session) -> None:
        def progress(line: str) -> None:
            if "check it serves this release" in line:
                os.kill(os.getpid(), signal.SIGKILL)

        session.progress = progress

    assert killed(ready, "deploy", arrange) == -signal.SIGKILL
    assert ready.current("test") == "releases/1.2.0+1"
    here = ready.state().environment("test")
    assert here.running is not None
    assert here.installed is not None
    assert here.installed.release == "1.0.0+1"
    with pytest.raises(Refused, match="has no outcome yet"):
        ready.deploy("1.1.0+1")
    assert ready.deploy().changed is True
    check_done(ready, "deploy")


@pytest.mark.slow
def test_ctrl_c_leaves_it_open_and_the_same_command_resumes(ready: Flow) -> None:
    prepare(ready, "deploy")

    def stop(line: str) -> None:
        if "apply" in line:
            raise KeyboardInterrupt

    session = ready.session()
    session.progress = stop
    with pytest.raises(Interrupted) as interrupted:
        deployments.deploy(session, customer="acme")
    assert interrupted.value.exit_code == 130
    assert interrupted.value.next_commands[0] == "invoke deploy customer=acme release=1.2.0+1 env=test"
    assert ready.repository.refs("refs/leases/") == {}
    assert ready.state().environment("test").running is not None
    assert ready.served("test") == "depot 1.0.0"
    assert ready.deploy().deployment == "0003"
    check_done(ready, "deploy")


@pytest.mark.slow
def test_killed_when_all_was_recorded_the_next_command_takes_the_lease_away(ready: Flow) -> None:
    prepare(ready, "deploy")

    def arrange(session: Session) -> None:
        from pipeline import lease

        lease._give_back = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)

    assert killed(ready, "deploy", arrange) == -signal.SIGKILL
    assert list(ready.repository.refs("refs/leases/")) == ["refs/leases/acme/test"]
    assert ready.deploy().changed is False
    check_done(ready, "deploy")


@pytest.mark.slow
def test_of_two_deployers_at_once_one_gets_it(ready: Flow, tmp_path: Path) -> None:
    prepare(ready, "deploy")
    outcome = tmp_path / "outcomes"
    outcome.mkdir()

    def work(name: str) -> None:
        try:
            text = "done" if ready.deploy().changed else "nothing to do"
        except (Locked, Refused) as error:
            text = error.word
        (outcome / name).write_text(text)

    children = [in_child(lambda name=str(number): work(name)) for number in range(3)]  # type: ignore[misc]
    assert [ended(child) for child in children] == [0] * 3
    said = sorted(file.read_text() for file in outcome.iterdir())
    assert said.count("done") == 1
    assert set(said) <= {"done", "nothing to do", "locked", "refused"}
    assert len([r for r in ready.records("deployment-started") if r.release == "1.2.0+1"]) == 1
    check_done(ready, "deploy")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", VERB)
@pytest.mark.parametrize("what", ["progress", "git before", "git after", "script before", "script after"])
def test_killed_anywhere_the_same_command_finishes_it(ready: Flow, tmp_path: Path, verb: str, what: str) -> None:
    prepare(ready, verb)
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "git"
    shim.write_text(SHIM)
    shim.chmod(0o755)

    def arranged(count: int, log: Path) -> Callable[[Session], None]:
        kind, _, when = what.partition(" ")
        if kind == "progress":
            return at_progress(count, log)
        return at_git(count, when, shim, log) if kind == "git" else at_script(count, when, log)

    # Once undisturbed, to count the points.
    whole, log = copied(ready, tmp_path / "whole"), tmp_path / "points"
    assert killed(whole, verb, arranged(0, log)) == 0
    check_done(whole, verb)
    points = len(log.read_text().splitlines()) if what == "progress" else int(log.read_text())
    assert points > SAMPLED
    deaths, resumed = 0, 0
    for count in sorted(random.Random(f"{SEED} {verb} {what}").sample(range(1, points + 1), SAMPLED)):
        flow = copied(ready, tmp_path / f"killed-{count}")
        log.unlink()
        code = killed(flow, verb, arranged(count, log))
        # The cat-file that stays is killed, so that its shim cannot kill any more.
        assert code == -signal.SIGKILL or (what == "git after" and code == 0)
        deaths += code != 0
        again = act(flow.session(), verb)
        resumed += bool(getattr(again, "changed"))  # noqa: B009
        check_done(flow, verb)
        shutil.rmtree(flow.folder)
    assert deaths >= SAMPLED // 2
    assert resumed >= 1
