"""Backups by hand: made, listed, proven, restored, and what of it is recorded."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, NotKnown, PartlyDone, Refused, UsageError
from pipeline.verbs import main
from pipeline.workflow import backups, deployments, overview, restores, schema_drift
from pipeline.workflow import doctor as doctors
from tests.flows import Flow, told
from tests.test_ledger_concurrency import ended, in_child
from tests.test_workflow_quarantine import MIGRATE, STOP
from tests.test_workflow_restore import BACKUP, dump, stopped

pytestmark = pytest.mark.slow

__all__ = ["stopped"]

SHARED = "  - backup: {shared: true}\n"


@pytest.fixture
def live(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """1.0.0+1 is on test and on production, both with data; the playbook stops and starts, and backs up ``shared/``."""
    flow = told(tmp_path_factory, tmp_path, "released")
    flow.edit("playbooks/depot.yaml", BACKUP, "")
    flow.edit("playbooks/depot.yaml", MIGRATE, STOP + SHARED + MIGRATE)
    flow.deploy()
    flow.decide()
    flow.promote()
    for key in ("test", "production"):
        flow.sql(key, "INSERT INTO item (id, name) VALUES (1, 'kept')")
        (flow.host(key) / "shared" / "upload").write_text("then")
    return flow


def make(flow: Flow, environment: str = "test", **more: Any) -> backups.BackupsMade:
    return backups.make(flow.session(), customer="acme", environment=environment, reason="before the fair", **more)


def rows(flow: Flow, environment: str = "test") -> dict[tuple[str, str], dict[str, object]]:
    listed = backups.listed(flow.session(), customer="acme", environment=environment)
    assert listed.lines()
    return {(row["what"], row["label"]): row for row in listed.backups}


def restore(flow: Flow, backup: str, environment: str = "test", **more: bool) -> restores.BackupRestored:
    return restores.restore(
        flow.session(), customer="acme", environment=environment, backup=backup, reason="an incident", **more
    )


def spoil(flow: Flow, environment: str = "test") -> None:
    """What an incident does."""
    flow.sql(environment, "DELETE FROM item")
    flow.sql(environment, "CREATE TABLE other (id INTEGER)")
    (flow.host(environment) / "shared" / "upload").write_text("now")
    (flow.host(environment) / "shared" / "more").write_text("new")


def test_a_backup_is_made_listed_and_proven(live: Flow) -> None:
    before, refs = live.refs(), len(rows(live))
    would = make(live, label="fair", dry_run=True)
    assert (would.changed, live.refs(), len(rows(live))) == (False, before, refs)
    made = make(live, label="fair")
    assert [backup["what"] for backup in made.backups] == ["database", "shared"]
    [record] = live.records("backup-made")
    assert record.details["backups"] == [dict(backup) for backup in made.backups]
    row = rows(live)["database", "fair"]
    assert (row["release"], row["schema"]) == ("1.0.0+1", "1 migration(s), the last one 001_base.sql")
    assert "integrity_check" in str(row["proven_by"]) and row["trouble"] is None
    with pytest.raises(Refused, match="already"):
        make(live, label="fair")
    with pytest.raises(UsageError):
        make(live, label="../fair")
    proven = backups.prove(live.session(), customer="acme", environment="test", backup="fair")
    [record] = live.records("backup-proven")
    assert record.id == proven.record
    row = rows(live)["database", "fair"]
    assert "trial restore" in str(row["proven_by"]) and str(row["proven_at"]) == f"{record.at:%Y-%m-%dT%H:%M:%SZ}"
    with pytest.raises(NotKnown, match="did you mean 'fair'"):
        backups.prove(live.session(), customer="acme", environment="test", backup="fare")
    live.check_sound()


def test_the_backup_of_a_deployment_is_listed_too(live: Flow) -> None:
    [deployment] = [r for r in live.records("deployment-finished") if r.environment == "test"]
    row = rows(live)["database", deployment.run]
    assert (row["record"], row["trouble"], row["schema"]) == (deployment.id, None, "before 001_base.sql")


def test_a_backup_that_the_ledger_does_not_know_or_has_otherwise_is_said_so_and_never_restored(live: Flow) -> None:
    make(live, label="fair")
    folder = live.host("test") / "backups"
    (folder / "by-hand.sqlite").write_bytes((folder / "fair.sqlite").read_bytes())
    whole = (folder / "fair.shared.tar.gz").read_bytes()
    (folder / "fair.shared.tar.gz").chmod(0o600)
    (folder / "fair.shared.tar.gz").write_bytes(whole + b"x")
    seen = rows(live)
    assert "the ledger does not know it" in str(seen["database", "by-hand"]["trouble"])
    assert "it was changed" in str(seen["shared", "fair"]["trouble"])
    assert seen["database", "fair"]["trouble"] is None
    with pytest.raises(Refused, match="is not in the ledger") as refused:
        restore(live, "by-hand")
    assert refused.value.next_commands == ("invoke backup.prove customer=acme env=test backup=by-hand",)
    assert live.records("backup-restored") == []
    backups.prove(live.session(), customer="acme", environment="test", backup="by-hand")
    assert rows(live)["database", "by-hand"]["trouble"] is None
    (folder / "fair.sqlite").chmod(0o600)
    (folder / "fair.sqlite").write_bytes((folder / "fair.sqlite").read_bytes()[:-1] + b"x")
    before = dump(live)
    with pytest.raises(Refused, match="was not restored"):
        restore(live, "fair")
    assert dump(live) == before
    # What was stopped for it goes on, and deployments too.
    assert live.served("test") == "depot 1.0.0"
    assert live.state().environment("test").restoring is None
    live.check_sound()


@pytest.mark.parametrize("environment", ["test", "production"])
def test_a_restore_brings_everything_back_and_keeps_what_was_there_on_production(live: Flow, environment: str) -> None:
    make(live, environment, label="fair")
    before = dump(live, environment)
    spoil(live, environment)
    spoilt = dump(live, environment)
    would = restore(live, "fair", environment, dry_run=True)
    assert would.changed is False and any("restore the database" in line for line in would.lines())
    assert dump(live, environment) == spoilt
    done = restore(live, "fair", environment)
    assert dump(live, environment) == before
    shared = live.host(environment) / "shared"
    assert (shared / "upload").read_text() == "then" and not (shared / "more").exists()
    assert live.served(environment) == "depot 1.0.0"
    assert [check["outcome"] for check in done.checks] == ["ok"]
    told = "\n".join(overview.history(live.session(), customer="acme").lines())
    assert f"restored backup fair on {environment}" in told
    began, ended_ = live.records("backup-restored")
    assert (began.outcome, ended_.outcome, ended_.id) == (None, "ok", done.record)
    assert (done.kept is not None) == (environment == "production")
    if done.kept is not None:
        # Nothing is lost for good: what lay there can be had back.
        restore(live, done.kept, environment)
        assert dump(live, environment) == spoilt
        assert (shared / "more").exists()
    live.check_sound()


def test_what_was_applied_since_counts_as_not_applied(live: Flow) -> None:
    """Else every later deployment would be refused: the database lacks what was applied here."""
    make(live, label="fair")
    live.make("1.2.0", {"migrations/003_more.sql": "ALTER TABLE item ADD COLUMN more INTEGER;\n"})
    live.deploy()
    assert len(live.state().environment("test").applied) == 3
    done = restore(live, "fair")
    assert done.migrations == ("001_base.sql",)
    assert list(live.state().environment("test").applied) == ["001_base.sql"]
    # The schema that the ledger has is that of the backup again.
    drift = schema_drift.schema_drift(live.session(), customer="acme", environment="test")
    assert drift.what and drift.changed is False
    assert deployments.plan(live.session(), customer="acme", release="1.2.0+1").refusals == ()
    assert live.deploy("1.2.0+1").changed is True
    assert live.migrated("test") == ["001_base.sql", "002_price.sql", "003_more.sql"]
    live.check_sound()


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_the_middle_the_same_command_goes_on(live: Flow, when: str) -> None:
    made = make(live, label="fair")
    before = dump(live)
    spoil(live)

    def work() -> None:
        from pipeline.databases.sqlite.database import SqliteDatabase

        act = SqliteDatabase.restore

        def dying(self: SqliteDatabase, *arguments: object, **named: object) -> None:
            if when == "after":
                act(self, *arguments, **named)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)

        SqliteDatabase.restore = dying  # type: ignore[method-assign]
        restore(live, "fair")

    assert ended(in_child(work)) == -signal.SIGKILL
    assert live.state().environment("test").restoring == "fair"
    with pytest.raises(Refused) as refused:
        live.deploy()
    [reason] = [one for one in refused.value.reasons if one.rule == "no_restore_is_unfinished"]
    assert "invoke backup.restore customer=acme env=test backup=fair reason=…" in reason.text
    if when == "after":
        live.sql("test", "INSERT INTO item (id, name) VALUES (2, 'written since')")
        before = dump(live)
    assert restore(live, made.label).changed is True
    assert dump(live) == before
    assert live.state().environment("test").restoring is None
    assert live.served("test") == "depot 1.0.0"
    live.check_sound()


def test_one_that_fails_is_said_so_and_nothing_is_deployed_until_one_succeeds(live: Flow) -> None:
    made = make(live, label="fair")
    before = dump(live)
    spoil(live)
    path = Path(next(one["path"] for one in made.backups if one["what"] == "database"))
    facts = path.with_name(path.name + ".facts")
    kept = facts.read_bytes()
    facts.chmod(0o600)
    facts.write_bytes(b"0" * 64 + kept[64:])
    with pytest.raises(PartlyDone, match="was not restored whole"):
        restore(live, "fair")
    assert live.state().environment("test").restoring == "fair"
    assert not (live.host("test") / "shared" / "served").exists()
    facts.write_bytes(kept)
    assert restore(live, "fair").changed is True
    assert dump(live) == before
    live.check_sound()


def test_where_the_application_does_not_come_back_that_is_said(live: Flow) -> None:
    make(live, label="fair")
    (live.host("test") / "current" / "bin" / "restart").write_text("exit 5\n")
    with pytest.raises(Failed, match="is restored on test of acme, and the application does not serve"):
        restore(live, "fair")
    assert live.state().environment("test").restoring is None


def test_not_while_a_deployment_is_open(live: Flow) -> None:
    make(live, label="fair")
    live.make("1.2.0", {})

    def stop(line: str) -> None:
        if "switch current" in line:
            raise KeyboardInterrupt

    session = live.session()
    session.progress = stop
    with pytest.raises(BaseException):  # noqa: B017
        deployments.deploy(session, customer="acme")
    with pytest.raises(Refused, match="has no outcome yet") as refused:
        restore(live, "fair")
    assert refused.value.next_commands == (
        "invoke deploy customer=acme release=1.2.0+1 env=test",
        "invoke rollback customer=acme env=test",
    )
    running = [row for row in rows(live).values() if row["trouble"]]
    assert [row["what"] for row in running] == ["database", "shared"]
    assert all("which has no outcome yet" in str(row["trouble"]) for row in running)


def test_it_is_the_way_out_of_a_quarantine(stopped: Flow) -> None:
    """Backed up before the application was stopped: nothing is restored by itself, a person does."""
    stopped.edit("playbooks/depot.yaml", STOP + BACKUP, BACKUP + STOP)
    before = dump(stopped)
    with pytest.raises(PartlyDone) as partly:
        stopped.deploy()
    command = partly.value.next_commands[0]
    label = command.split("backup=")[1].split()[0]
    with pytest.raises(Refused) as refused:
        stopped.rollback("test")
    assert f"invoke backup.restore customer=acme env=test backup={label} reason=…" in refused.value.reasons[0].text
    done = restore(stopped, label)
    assert done.next_commands[0] == "invoke rollback customer=acme env=test"
    assert dump(stopped) == before
    # It still is the new release that is current: it is not started on the old data.
    assert not (stopped.host("test") / "shared" / "served").exists()
    assert stopped.rollback("test").changed is True
    assert stopped.served("test") == "depot 1.0.0"
    assert stopped.state().environment("test").quarantined is None
    stopped.check_sound()


def test_the_verbs_speak_json_and_ask_before_what_cannot_be_taken_back(
    live: Flow, capsys: pytest.CaptureFixture[str]
) -> None:
    def typed(*words: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(["tma", f"--workspace={live.folder}", *words, "--json"])
        return int(exited.value.code or 0), json.loads(capsys.readouterr().out)

    here = ("customer=acme", "env=test")
    code, made = typed("backup.run", *here, "label=fair", "reason=before the fair")
    assert (code, made["changed"], made["label"], len(made["backups"])) == (0, True, "fair", 2)
    code, found = typed("backup.list", *here)
    assert code == 0 and "fair" in {row["label"] for row in found["backups"]}
    code, proven = typed("backup.prove", *here, "backup=fair")
    assert code == 0 and [line.endswith("backup.list customer=acme env=test") for line in proven["next"]] == [True]
    code, refused = typed("backup.restore", *here, "backup=fair", "reason=an incident")
    assert code == 2 and "cannot be taken back" in refused["error"]["what"]
    assert live.records("backup-restored") == []
    code, restored = typed("backup.restore", *here, "backup=fair", "reason=an incident", "--yes")
    assert (code, restored["changed"], restored["label"]) == (0, True, "fair")


@pytest.mark.parametrize("applied", [True, False])
def test_there_is_no_backup_by_hand_of_a_database_that_is_not_there(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, applied: bool
) -> None:
    flow = told(tmp_path_factory, tmp_path, "tested" if applied else "released")
    file = flow.host("test") / "shared" / "app.sqlite"
    if applied:
        make(flow, label="there")
        file.rename(file.with_name("away"))
    before = flow.refs()
    with pytest.raises(Failed, match=f"there is no database at {file}"):
        make(flow, label="gone")
    assert flow.refs() == before and ("database", "gone") not in rows(flow)
    if applied:
        with pytest.raises(Refused) as refused:
            doctors.doctor(flow.session(), customer="acme", environment="test")
        assert f"there is no database at {file}, where the ledger knows migrations as applied" in refused.value.render()
    else:
        # A deployment's own backup, before its first script makes the database, is one of nothing, and says so.
        assert flow.deploy().changed is True
        assert len([label for _, label in rows(flow)]) == 1


@pytest.mark.parametrize("when", ["before", "once it is stopped"])
def test_nothing_is_stopped_for_a_backup_that_was_changed(live: Flow, when: str) -> None:
    make(live, label="fair")
    file = live.host("test") / "backups" / "fair.sqlite"
    session, lines = live.session(), list[str]()

    def change(line: str) -> None:
        lines.append(line)
        if when == "before" or "stop" in line:
            file.chmod(0o600)
            file.write_bytes(file.read_bytes()[:-1] + b"x")

    session.progress = change
    if when == "before":
        change("")
    with pytest.raises(Refused, match="was not restored"):
        restores.restore(session, customer="acme", environment="test", backup="fair", reason="an incident")
    assert any("stop" in line for line in lines) == (when != "before")
    assert len(live.records("backup-restored")) == (0 if when == "before" else 2)
    # What was stopped for it goes on.
    assert live.served("test") == "depot 1.0.0"
    assert live.state().environment("test").restoring is None
    if when == "before":
        with pytest.raises(Refused, match="was not restored"):
            restore(live, "fair", dry_run=True)
