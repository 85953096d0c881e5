"""The way back restores the run's own backup: the application is stopped, then backed up, then migrated.

A deployment whose script cannot be undone, and whose check fails, leaves data, schema and files as they were before.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import Failed, PartlyDone, Refused
from pipeline.workflow import deployments, restores
from pipeline.workflow.deployments import PlanResult
from pipeline.workflow.session import Session
from tests.flows import BROKEN, Flow, told
from tests.test_ledger_concurrency import ended, in_child
from tests.test_workflow_quarantine import MIGRATE, STOP, interrupted

pytestmark = pytest.mark.slow

BACKUP = "  - backup\n"
DROP = "DROP TABLE item;\nCREATE TABLE thing (id INTEGER);\n"


def dump(flow: Flow, environment: str = "test") -> list[str]:
    """The whole database as SQL, without the fence and the events, which a restore adds to."""
    with closing(sqlite3.connect(flow.host(environment) / "shared" / "app.sqlite")) as database:
        ours = ("tma_migration_fence", "tma_migration_events")
        return [line for line in database.iterdump() if not any(name in line for name in ours)]


@pytest.fixture
def stopped(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """1.0.0+1 is on test, with data; the backup is made while the application is stopped; 1.3.0+1 destroys, and is broken."""
    flow = told(tmp_path_factory, tmp_path, "tested")
    flow.edit("playbooks/depot.yaml", BACKUP, "")
    flow.edit("playbooks/depot.yaml", MIGRATE, STOP + BACKUP + MIGRATE)
    flow.sql("test", "INSERT INTO item (id, name) VALUES (1, 'kept')")
    flow.make("1.3.0", {"migrations/003_drop.sql": DROP, "app.txt": BROKEN})
    return flow


def run_of(flow: Flow) -> str:
    return [record for record in flow.records("deployment-started") if record.release == "1.3.0+1"][-1].run


def check_as_before(flow: Flow, before: list[str]) -> None:
    assert dump(flow) == before
    assert flow.served("test") == "depot 1.0.0"
    assert flow.current("test") == "releases/1.0.0+1"
    here = flow.state().environment("test")
    assert (here.quarantined, here.running, sorted(here.applied)) == (None, None, ["001_base.sql"])
    flow.check_sound()


def test_a_failed_check_after_what_cannot_be_undone_brings_the_data_back(stopped: Flow) -> None:
    before = dump(stopped)
    planned = deployments.plan(stopped.session(), customer="acme")
    number = next(a["number"] for a in planned.actions if a["operation"] == "backup")
    said = f"If it fails after 003_drop.sql (unknown), the backup made in step {number} is restored."
    assert said in planned.lines()
    with pytest.raises(Failed) as failed:
        stopped.deploy()
    assert "1.0.0+1 serves again" in failed.value.state
    run = run_of(stopped)
    assert f"restored from the backup {run}" in failed.value.state
    check_as_before(stopped, before)
    [finished] = [r for r in stopped.records("deployment-finished") if r.run == run]
    assert finished.outcome == "failed" and finished.details["scripts"] == {}
    assert [backup["label"] for backup in finished.details["restored"]] == [run]
    [begun] = stopped.records("backup-restored")
    assert begun.details["backups"] == finished.details["restored"]
    # The next one is an ordinary deployment: nothing is lost, nothing is in the way.
    stopped.make("1.4.0", {"migrations/003_drop.sql": DROP, "app.txt": "depot 1.4.0\n"})
    assert stopped.deploy().release == "1.4.0+1"
    assert stopped.migrated("test")[-1] == "003_drop.sql"


def test_shared_comes_back_with_the_database(stopped: Flow) -> None:
    stopped.edit("playbooks/depot.yaml", STOP + BACKUP, STOP + "  - backup: {shared: true}\n")
    shared = stopped.host("test") / "shared"
    (shared / "upload").write_text("then")
    stopped.make(
        "1.5.0",
        {
            "bin/restart": 'set -eu\necho now > "$1/upload"\nrm -rf "$1/link"\ntouch "$1/more"\n',
            "migrations/003_drop.sql": DROP,
        },
    )
    (shared / "link").symlink_to("upload")
    before = dump(stopped)
    with pytest.raises(Failed):
        stopped.deploy()
    assert (shared / "upload").read_text() == "then"
    assert os.readlink(shared / "link") == "upload"
    assert not (shared / "more").exists()
    check_as_before(stopped, before)


def test_a_backup_that_was_changed_on_the_disk_restores_nothing(stopped: Flow) -> None:
    session = stopped.session()
    changed: list[str] = []

    def spoil(line: str) -> None:
        if "check it serves" in line and not changed:
            file = stopped.host("test") / "backups" / f"{run_of(stopped)}.sqlite"
            file.chmod(0o600)
            file.write_bytes(file.read_bytes()[:-1] + b"x")
            changed.append(file.name)

    session.progress = spoil
    with pytest.raises(PartlyDone) as partly:
        deployments.deploy(session, customer="acme")
    assert changed
    said = partly.value.render()
    assert "is not the one that was recorded" in said
    assert "is quarantined" in partly.value.state
    assert partly.value.next_commands[0].startswith("invoke backup.restore customer=acme env=test backup=")
    assert stopped.sql("test", "SELECT count(*) FROM thing") == [(0,)]
    assert not (stopped.host("test") / "shared" / "served").exists()
    assert stopped.state().environment("test").quarantined == "0002"


def test_where_something_may_have_been_written_since_it_is_quarantined(stopped: Flow) -> None:
    stopped.edit("playbooks/depot.yaml", STOP + BACKUP, BACKUP + STOP)
    planned = deployments.plan(stopped.session(), customer="acme")
    assert any("the deployment would be quarantined" in line for line in planned.lines())
    with pytest.raises(PartlyDone) as partly:
        stopped.deploy()
    assert "what was written after it would be lost" in partly.value.render()
    assert stopped.sql("test", "SELECT count(*) FROM thing") == [(0,)]


def test_unless_the_playbook_says_that_it_may_be_lost(stopped: Flow) -> None:
    stopped.edit("playbooks/depot.yaml", STOP + BACKUP, BACKUP + STOP)
    stopped.edit("playbooks/depot.yaml", "  folder: migrations\n", "  folder: migrations\n  restore: always\n")
    before = dump(stopped)
    with pytest.raises(Failed) as failed:
        stopped.deploy()
    assert "restored from the backup" in failed.value.state
    check_as_before(stopped, before)


def killed_at(flow: Flow, words: str) -> int:
    """The exit code of a child that deploys, and is killed when it tells of this."""

    def work() -> None:
        session: Session = flow.session()

        def progress(line: str) -> None:
            if words in line:
                os.kill(os.getpid(), signal.SIGKILL)

        session.progress = progress
        deployments.deploy(session, customer="acme")

    return ended(in_child(work))


def killed_after(flow: Flow, method: str, count: int = 1) -> int:
    """The same of one that is killed when the database has done this for the ``count``-th time, and nothing after it."""

    def work() -> None:
        from pipeline.databases.sqlite.database import SqliteDatabase

        done: list[object] = []
        act: Callable[..., object] = getattr(SqliteDatabase, method)

        def then_die(self: SqliteDatabase, *arguments: object, **named: object) -> object:
            done.append(act(self, *arguments, **named))
            if len(done) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return done[-1]

        setattr(SqliteDatabase, method, then_die)
        deployments.deploy(flow.session(), customer="acme")

    return ended(in_child(work))


POINTS = {
    "before the restore": "restore the database from the backup",
    "before the switch back": "switch back to",
    "before the old one is started": "[back 4/",
    "at its check": "[back 5/",
}


@pytest.mark.parametrize("by", ["deploy", "rollback"])
@pytest.mark.parametrize("point", [*POINTS, "after the restore"])
def test_killed_on_its_way_back_the_same_command_finishes_it(stopped: Flow, point: str, by: str) -> None:
    before = dump(stopped)
    code = killed_at(stopped, POINTS[point]) if point in POINTS else killed_after(stopped, "restore")
    assert code == -signal.SIGKILL
    running = stopped.state().environment("test").running
    assert running is not None and running.restoring
    if by == "deploy":
        would = deployments.deploy(stopped.session(), customer="acme", dry_run=True)
        assert isinstance(would, PlanResult) and would.refusals == ()
        assert any("restore the database from the backup" in a["title"] for a in would.actions)
        with pytest.raises(Failed, match="is brought back: ") as failed:
            stopped.deploy()
        assert failed.value.exit_code == 1
    else:
        assert stopped.rollback("test").changed is True
    check_as_before(stopped, before)
    [finished] = [r for r in stopped.records("deployment-finished") if r.run == running.run]
    assert finished.outcome == "failed" and finished.details["restored"]


def test_what_was_written_since_it_was_restored_is_not_lost_a_second_time(stopped: Flow) -> None:
    """The old release serves already, and nobody has checked it, when the controller dies."""
    assert killed_at(stopped, POINTS["at its check"]) == -signal.SIGKILL
    stopped.sql("test", "INSERT INTO item (id, name) VALUES (2, 'written since')")
    before = dump(stopped)
    with pytest.raises(Failed):
        stopped.deploy()
    check_as_before(stopped, before)


def test_an_attempt_before_any_script_is_not_what_is_restored(stopped: Flow) -> None:
    """Killed after its backup: somebody starts the application again, and the next attempt makes its own backup."""
    interrupted(stopped, "    002_price.sql")
    stopped.sql("test", "INSERT INTO item (id, name) VALUES (2, 'written since')")
    before = dump(stopped)
    with pytest.raises(Failed):
        stopped.deploy()
    check_as_before(stopped, before)


def test_where_an_earlier_attempt_had_started_it_nothing_is_restored(stopped: Flow) -> None:
    """It may have served for a day when the same command is given again."""
    interrupted(stopped, "check it serves this release")
    stopped.sql("test", "INSERT INTO thing (id) VALUES (1)")
    with pytest.raises(PartlyDone) as partly:
        stopped.deploy()
    assert "an earlier attempt had begun to start the application" in partly.value.render()
    assert stopped.sql("test", "SELECT id FROM thing") == [(1,)]


def test_killed_before_it_was_started_the_next_attempt_restores(stopped: Flow) -> None:
    before = dump(stopped)
    assert killed_after(stopped, "apply", 2) == -signal.SIGKILL
    assert "003_drop.sql" in stopped.migrated("test")
    with pytest.raises(Failed):
        stopped.deploy()
    check_as_before(stopped, before)


def test_without_a_backup_before_it_such_a_release_does_not_start(stopped: Flow) -> None:
    stopped.edit("playbooks/depot.yaml", BACKUP, "")
    before = stopped.refs()
    planned = deployments.plan(stopped.session(), customer="acme")
    [reason] = [r for r in planned.refusals if r["rule"] == "unproven_scripts_need_a_backup"]
    assert "003_drop.sql is unknown" in reason["text"] and "- backup" in reason["text"]
    assert reason["source"].startswith("playbooks/depot.yaml:")
    with pytest.raises(Refused, match="cannot go to test"):
        stopped.deploy()
    assert stopped.refs() == before
    stopped.edit("playbooks/depot.yaml", "  folder: migrations\n", "  folder: migrations\n  additive: ['003*']\n")
    assert deployments.plan(stopped.session(), customer="acme").refusals == ()


def test_a_backup_that_cannot_be_proven_stops_it_before_anything_changed(stopped: Flow) -> None:
    database = stopped.host("test") / "shared" / "app.sqlite"
    whole = database.read_bytes()
    database.write_bytes(whole[:4096] + b"\xff" * 200 + whole[4296:])
    with pytest.raises((Failed, PartlyDone)):
        stopped.deploy()
    database.write_bytes(whole)
    assert stopped.migrated("test") == ["001_base.sql"]


def test_after_a_restore_that_failed_half_way_the_old_code_does_not_run_until_one_has_succeeded(stopped: Flow) -> None:
    before = dump(stopped)
    session = stopped.session()
    kept: dict[Path, bytes] = {}

    def spoil(line: str) -> None:
        if "check it serves" in line and not kept:
            facts = stopped.host("test") / "backups" / f"{run_of(stopped)}.sqlite.facts"
            kept[facts] = facts.read_bytes()
            facts.chmod(0o600)
            facts.write_bytes(b"0" * 64 + kept[facts][64:])

    session.progress = spoil
    with pytest.raises(PartlyDone) as partly:
        deployments.deploy(session, customer="acme")
    [(facts, data)] = kept.items()
    label = run_of(stopped)
    assert partly.value.next_commands[0] == f"invoke backup.restore customer=acme env=test backup={label} reason=…"
    assert stopped.state().environment("test").restoring == label
    # Even if the database looks as if no script had ever been applied.
    stopped.sql("test", "DELETE FROM tma_migration_history WHERE script <> '001_base.sql'")
    with pytest.raises(Refused) as refused:
        stopped.rollback("test")
    assert "no_restore_is_unfinished" in {reason.rule for reason in refused.value.reasons}
    facts.write_bytes(data)
    restores.restore(stopped.session(), customer="acme", environment="test", backup=label, reason="an incident")
    assert stopped.rollback("test").changed is True
    check_as_before(stopped, before)


# --- the old release's playbook names no step that starts the application -------------------------------------------------

RESTART = '  - restart:\n      command: [sh, bin/restart, "../../shared"]\n'
CHECK = (
    "  - check:\n      name: it serves this release\n"
    '      command: [grep, -q, "{{ version }}", "../../shared/served"]\n      within: 1\n'
)
WAYS_TO_START = {
    "restart": STOP + BACKUP + MIGRATE + "  - switch\n" + RESTART + CHECK,
    "start": STOP + BACKUP + MIGRATE + "  - switch\n" + RESTART.replace("- restart", "- start") + CHECK,
    "undo of stop": STOP
    + '      undo: [sh, bin/restart, "../../shared"]\n'
    + BACKUP
    + MIGRATE
    + "  - switch\n"
    + CHECK,
    "none": STOP + BACKUP + MIGRATE + "  - switch\n" + CHECK,
}


def came_later(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, way: str) -> Flow:
    """1.0.0+1 is on test by a playbook that neither stops nor starts, and runs; that of now stops it; 1.3.0+1 is broken."""
    flow = told(tmp_path_factory, tmp_path, "released")
    book = "playbooks/depot.yaml"
    for step in (BACKUP, RESTART, CHECK):
        flow.edit(book, step, "")
    flow.deploy()
    (flow.host("test") / "shared" / "served").write_text("depot 1.0.0\nas before\n")
    flow.sql("test", "INSERT INTO item (id, name) VALUES (1, 'kept')")
    flow.edit(book, MIGRATE + "  - switch\n", WAYS_TO_START[way])
    flow.make("1.3.0", {"migrations/003_drop.sql": DROP, "app.txt": BROKEN})
    return flow


@pytest.mark.parametrize("way", ["restart", "start", "undo of stop"])
def test_what_the_new_playbook_stopped_it_starts_again_with_the_old_release(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, way: str
) -> None:
    flow = came_later(tmp_path, tmp_path_factory, way)
    before = dump(flow)
    planned = deployments.plan(flow.session(), customer="acme")
    assert not any("left stopped" in line for line in planned.lines())
    with pytest.raises(Failed) as failed:
        flow.deploy()
    assert "1.0.0+1 serves again" in failed.value.state
    check_as_before(flow, before)


def test_where_no_playbook_starts_it_nobody_says_that_it_serves(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flow = came_later(tmp_path, tmp_path_factory, "none")
    planned = deployments.plan(flow.session(), customer="acme")
    assert sum("left stopped" in line for line in planned.lines()) == 2
    with pytest.raises(Failed) as failed:
        flow.deploy()
    assert "serves again" not in failed.value.state
    assert "1.0.0+1 is installed again, and left stopped" in failed.value.state
    assert not (flow.host("test") / "shared" / "served").exists()


@pytest.mark.parametrize("way", ["start", "none"])
def test_a_rollback_out_of_a_quarantine_starts_what_a_restore_by_hand_has_stopped(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, way: str
) -> None:
    flow = came_later(tmp_path, tmp_path_factory, way)
    flow.edit("playbooks/depot.yaml", STOP, "")
    flow.edit("playbooks/depot.yaml", BACKUP, BACKUP + STOP)
    with pytest.raises(PartlyDone) as partly:
        flow.deploy()
    assert "is quarantined" in partly.value.state
    run = run_of(flow)
    restores.restore(flow.session(), customer="acme", environment="test", backup=run, reason="an incident")
    assert not (flow.host("test") / "shared" / "served").exists()
    would = deployments.rollback(flow.session(), customer="acme", environment="test", dry_run=True)
    assert isinstance(would, PlanResult)
    done = flow.rollback("test")
    assert "the quarantine is over" in done.what
    if way == "start":
        assert flow.served("test") == "depot 1.0.0"
        assert "left stopped" not in done.what and not any("left stopped" in line for line in would.lines())
    else:
        assert "left stopped" in done.what and any("left stopped" in line for line in would.lines())


def test_a_rollback_past_what_the_old_code_may_not_run_on_says_so(stopped: Flow) -> None:
    stopped.make("1.4.0", {"migrations/003_drop.sql": DROP, "app.txt": "depot 1.4.0\n"})
    stopped.deploy("1.4.0+1")
    [run] = [record.run for record in stopped.records("deployment-finished") if record.release == "1.4.0+1"]
    would = deployments.rollback(stopped.session(), customer="acme", environment="test", dry_run=True)
    assert isinstance(would, PlanResult)
    [warning] = [one for one in would.warnings if one.startswith("003_drop.sql is applied and unknown")]
    assert f"invoke backup.restore customer=acme env=test backup={run} reason=…" in warning
    session = stopped.session()
    told_: list[str] = []
    session.progress = told_.append
    deployments.rollback(session, customer="acme", environment="test")
    assert f"note: {warning}" in told_
