"""What a person says of a database's migrations, what is looked at before they run, and what is kept of the schema."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, NotKnown, PartlyDone, PipelineError, Refused, UsageError
from pipeline.workflow import deployments, doctor, migrations, rehearsals, schema_drift, sign_offs
from pipeline.workflow.deployments import PlanResult
from tests.flows import Flow, told

HALF = """-- tma: transaction=no
CREATE TABLE half (id INTEGER);
INSERT INTO half VALUES (1);
INSERT INTO missing VALUES (1);
"""
"""A script that commits statement by statement, of which the third does not run."""


@pytest.fixture
def released(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "released")


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def live(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "live")


def database(flow: Flow, environment: str = "test") -> Path:
    apart = flow.folder / f"{environment}.sqlite"
    return apart if apart.exists() else flow.host(environment) / "shared" / "app.sqlite"


def existing(flow: Flow, script: str, environment: str = "test") -> None:
    """The environment's database is one that was there before, and lies apart from the host's folder."""
    apart = flow.folder / f"{environment}.sqlite"
    apart.touch()
    flow.edit(f"environments/acme/{environment}.yaml", "path: shared/app.sqlite", f"path: {apart}")
    execute(flow, script, environment)


def migrated(flow: Flow, environment: str = "test") -> list[str]:
    with closing(sqlite3.connect(database(flow, environment))) as connection:
        return [row[0] for row in connection.execute("SELECT script FROM tma_migration_history ORDER BY rowid")]


def execute(flow: Flow, script: str, environment: str = "test") -> None:
    """What somebody does to the database beside the pipeline."""
    with closing(sqlite3.connect(database(flow, environment))) as connection, connection:
        connection.executescript(script)


def plan(flow: Flow, environment: str = "test", **more: Any) -> PlanResult:
    return deployments.plan(flow.session(), customer="acme", environment=environment, **more)


def refused_by(found: PlanResult) -> dict[str, list[str]]:
    rules: dict[str, list[str]] = {}
    for refusal in found.refusals:
        rules.setdefault(refusal["rule"], []).append(refusal["text"])
    return rules


def baseline(flow: Flow, environment: str = "test", **more: Any) -> migrations.Baselined:
    more.setdefault("reason", "taken over")
    return migrations.baseline(flow.session(), customer="acme", environment=environment, **more)


def repair(flow: Flow, script: str = "003_half.sql", environment: str = "test", **more: Any) -> migrations.Repaired:
    more.setdefault("reason", "looked at it")
    return migrations.repair(flow.session(), customer="acme", environment=environment, script=script, **more)


def drift(flow: Flow, environment: str = "test", **more: Any) -> schema_drift.SchemaDrift:
    return schema_drift.schema_drift(flow.session(), customer="acme", environment=environment, **more)


def differences(flow: Flow, environment: str = "test", **more: Any) -> list[str]:
    with pytest.raises(Refused) as refused:
        drift(flow, environment, **more)
    return [str(reason) for reason in refused.value.reasons]


def half_done(flow: Flow) -> PipelineError:
    """1.2.0 is deployed to test, and its script stops in the middle."""
    flow.make("1.2.0", {"migrations/003_half.sql": HALF})
    with pytest.raises((Failed, PartlyDone)) as failed:
        flow.deploy()
    return failed.value


# --- a script that is half done ------------------------------------------------------------------------------------------


def test_a_script_that_stopped_in_the_middle_blocks_until_it_is_repaired(tested: Flow) -> None:
    error = half_done(tested)
    assert any(
        command.startswith("invoke migrate.repair customer=acme env=test script=003_half.sql resume-at=3")
        for command in error.next_commands
    )
    # Nothing was stopped, so the old code serves again; nothing is deployed on top of half a script.
    assert tested.served("test") == "depot 1.0.0"
    finished = tested.records("deployment-finished")[-1]
    assert finished.details["half_done"] == ["003_half.sql"]
    assert "003_half.sql" not in finished.details["scripts"]
    found = plan(tested)
    assert set(refused_by(found)) == {"no_script_is_blocked"}
    assert "2 of 3 statements are known to be committed" in refused_by(found)["no_script_is_blocked"][0]
    with pytest.raises(Refused) as refused:
        tested.deploy()
    assert refused.value.next_commands[0].startswith("invoke migrate.repair customer=acme env=test script=003_half.sql")
    with pytest.raises(PipelineError) as diagnosed:
        doctor.doctor(tested.session(), customer="acme", environment="test")
    assert any("003_half.sql was begun and not finished" in str(reason) for reason in diagnosed.value.reasons)
    assert any("003_half.sql was begun and not finished" in line for line in differences(tested))


def test_a_repaired_script_goes_on_where_it_is_told_to(tested: Flow) -> None:
    half_done(tested)
    execute(tested, "CREATE TABLE missing (id INTEGER)")
    would = repair(tested, resume_at=3, dry_run=True)
    assert (would.changed, would.what) == (False, "would be recorded: 003_half.sql goes on with statement 3 of 3")
    assert tested.records("migration-repaired") == []
    done = repair(tested, resume_at=3)
    assert done.changed is True
    record = tested.records("migration-repaired")[0]
    assert (record.id, record.details["what"], record.details["resume_at"]) == (done.record, "resume", 3)
    assert refused_by(plan(tested)) == {}
    tested.deploy()
    assert tested.sql("test", "SELECT id FROM half") == tested.sql("test", "SELECT id FROM missing") == [(1,)]
    assert migrated(tested)[-1] == "003_half.sql"
    tested.check_sound()


@pytest.mark.parametrize("what", ["done", "reverted"])
def test_a_script_that_was_finished_or_taken_back_by_hand(tested: Flow, what: str) -> None:
    half_done(tested)
    execute(
        tested,
        "CREATE TABLE missing (id INTEGER)" if what == "done" else "DROP TABLE half; CREATE TABLE missing (id INTEGER)",
    )
    assert repair(tested, **{what: True}).found == what
    assert ("003_half.sql" in tested.state().environment("test").applied) == (what == "done")
    tested.deploy()
    assert tested.state().environment("test").applied.keys() >= {"003_half.sql"}
    assert tested.sql("test", "SELECT count(*) FROM missing") == [(0 if what == "done" else 1,)]
    tested.check_sound()


def test_what_cannot_be_repaired(tested: Flow) -> None:
    half_done(tested)
    for wrong, said in (
        (dict[str, Any](), "say what was found"),
        ({"done": True, "reverted": True}, "say what was found"),
    ):
        with pytest.raises(UsageError, match=said):
            repair(tested, **wrong)
    with pytest.raises(UsageError, match="resume-at= is one of 1 to 3"):
        repair(tested, resume_at=4)
    with pytest.raises(UsageError, match="needs a reason"):
        repair(tested, done=True, reason=" ")
    with pytest.raises(Refused, match="is not blocked on test of acme: it is done"):
        repair(tested, "001_base.sql", done=True)
    with pytest.raises(NotKnown, match=r"did you mean '003_half\.sql'"):
        repair(tested, "003_hlf.sql", done=True)
    assert tested.records("migration-repaired") == []


def test_what_depends_on_its_session_does_not_go_on_in_the_middle(tested: Flow) -> None:
    tested.make("1.2.0", {"migrations/003_half.sql": HALF.replace("transaction=no", "transaction=no, session=yes")})
    with pytest.raises((Failed, PartlyDone)):
        tested.deploy()
    with pytest.raises(Refused, match="depends on the state of its session"):
        repair(tested, resume_at=3)
    assert tested.records("migration-repaired") == []
    assert repair(tested, reverted=True).changed


def test_what_the_database_would_not_take_is_not_recorded(tested: Flow) -> None:
    sql = "-- tma: transaction=no\nCREATE TEMPORARY TABLE t (n INTEGER);\nINSERT INTO missing VALUES (1);\n"
    tested.make("1.2.0", {"migrations/003_half.sql": sql})
    with pytest.raises((Failed, PartlyDone)):
        tested.deploy()
    with pytest.raises(Refused, match="depends on the state of its session"):
        repair(tested, resume_at=2)
    execute(
        tested, "UPDATE tma_migration_history SET statements = 0, statement = 0, session = 0 WHERE state = 'running'"
    )
    with pytest.raises(UsageError, match="has 0 statement"):
        repair(tested, resume_at=1)
    assert tested.records("migration-repaired") == []


# --- baseline --------------------------------------------------------------------------------------------------------------

FLYWAY = """
CREATE TABLE flyway_schema_history (installed_rank INT, version TEXT, description TEXT, type TEXT, script TEXT,
    checksum INT, installed_by TEXT, installed_on TEXT, execution_time INT, success INT);
INSERT INTO flyway_schema_history (installed_rank, version, type, script, success)
    VALUES (1, '1', 'SQL', 'V1__base.sql', 1), (2, '9', 'SQL', 'V9__gone.sql', 1);
"""
GOLANG = "CREATE TABLE schema_migrations (version BIGINT, dirty BOOLEAN); INSERT INTO schema_migrations VALUES (1, {});"
EXISTING = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT);"


def test_an_existing_database_is_taken_over_up_to_a_script(released: Flow) -> None:
    released.release("1.1.0")
    existing(released, EXISTING)
    with pytest.raises(UsageError, match="not known by itself") as unknown:
        baseline(released)
    assert unknown.value.next_commands == ("invoke migrate.baseline customer=acme env=test upto=… reason=…",)
    would = baseline(released, upto="001_base.sql", dry_run=True)
    assert (would.changed, would.applied, would.pending) == (False, ("001_base.sql",), ("002_price.sql",))
    assert released.state().environment("test").applied == {}
    done = baseline(released, upto="001_base.sql")
    assert done.changed is True
    assert set(released.state().environment("test").applied) == {"001_base.sql"}
    assert baseline(released, upto="001_base.sql").changed is False
    with pytest.raises(NotKnown, match=r"did you mean '001_base\.sql'"):
        baseline(released, upto="001_bse.sql")
    released.deploy()
    assert migrated(released) == ["001_base.sql", "002_price.sql"]
    assert drift(released).scripts == 2
    released.check_sound()


def test_another_tools_history_says_what_has_run(released: Flow) -> None:
    released.edit("playbooks/depot.yaml", "folder: migrations", "folder: db\n  layout: flyway")
    released.make(
        "1.2.0", {"db/V1__base.sql": EXISTING, "db/V2__price.sql": "ALTER TABLE item ADD COLUMN price INTEGER;"}
    )
    existing(released, EXISTING + FLYWAY)
    done = baseline(released)
    assert (done.tool, done.applied, done.strange) == ("flyway", ("V1__base.sql",), ("V9__gone.sql",))
    assert "  would run next: V2__price.sql" in done.lines()
    released.deploy()
    assert migrated(released) == ["V1__base.sql", "V2__price.sql"]
    with pytest.raises(UsageError, match="did you mean 'flyway'"):
        baseline(released, tool="flyaway")
    with pytest.raises(NotKnown, match="has no history of diesel"):
        baseline(released, tool="diesel")
    with pytest.raises(UsageError, match="one of them"):
        baseline(released, tool="flyway", upto="V1__base.sql")


def test_what_another_tool_left_half_done_is_finished_with_that_tool(released: Flow) -> None:
    existing(released, EXISTING + GOLANG.format(1))
    with pytest.raises(Refused, match="golang-migrate has begun what it did not finish"):
        baseline(released)
    execute(released, "UPDATE schema_migrations SET dirty = 0")
    assert baseline(released).applied == ("001_base.sql",)


def test_of_two_tools_histories_one_is_named(released: Flow) -> None:
    existing(released, EXISTING + GOLANG.format(0) + FLYWAY)
    with pytest.raises(UsageError, match="not known by itself") as unknown:
        baseline(released)
    assert [command.split("from=")[1].split()[0] for command in unknown.value.next_commands] == [
        "flyway",
        "golang-migrate",
    ]
    assert baseline(released, tool="golang-migrate").applied == ("001_base.sql",)


def test_a_baseline_waits_for_an_open_deployment_and_for_the_lease(
    tested: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested.release("1.1.0")
    from pipeline.databases.sqlite.database import SqliteDatabase

    def cut(*_: Any, **__: Any) -> None:
        raise Failed("the disk is full")

    before = tested.refs()
    with monkeypatch.context() as patched:
        patched.setattr(SqliteDatabase, "baseline", cut)
        with pytest.raises(PartlyDone, match="did not take it") as partly:
            baseline(tested, release="1.1.0+1", upto="002_price.sql")
    assert "the same command again" in partly.value.next_commands
    assert tested.refs() != before
    # The ledger is ahead: nothing is deployed on it, and the same command again does the rest.
    assert "database_is_the_one" in refused_by(plan(tested))
    assert baseline(tested, release="1.1.0+1", upto="002_price.sql").changed
    assert refused_by(plan(tested)) == {}


# --- the schema, before and after -----------------------------------------------------------------------------------------


def test_a_schema_that_somebody_changed_is_found(live: Flow) -> None:
    assert drift(live).compared is not None
    execute(live, "ALTER TABLE item ADD COLUMN secretly TEXT; CREATE INDEX quick ON item (name);")
    found = differences(live)
    assert any("secretly" in line for line in found)
    assert any("quick" in line for line in found)
    assert drift(live, "production").scripts == 1
    # Of the other environment's recorded schema.
    assert any("secretly" in line for line in differences(live, against="production"))
    assert drift(live, "production", against="test").compared == "as recorded of test"


def test_a_history_that_the_ledger_does_not_know_is_found_and_taken_in(tested: Flow) -> None:
    execute(tested, "DELETE FROM tma_migration_events")
    assert any(
        "event 1 (applied 001_base.sql): the database's history lacks it" in line for line in differences(tested)
    )
    columns = "script, checksum, algorithm, fence, run, release, applied_at"
    execute(
        tested,
        f"INSERT INTO tma_migration_history ({columns}) SELECT 'x.sql', checksum, algorithm, fence, 'hand', release,"
        " applied_at FROM tma_migration_history",
    )
    assert any(
        "x.sql is in the database's history (1.0.0+1, done), and the ledger does not know" in line
        for line in differences(tested)
    )
    done = baseline(tested)
    assert (done.applied, done.known) == ((), ("x.sql",))
    assert set(tested.state().environment("test").applied) == {"001_base.sql", "x.sql"}
    execute(tested, "DELETE FROM tma_migration_history WHERE script = 'x.sql'")
    assert any(
        "x.sql was applied as the ledger says, and is not in the database's history" in line
        for line in differences(tested)
    )


def test_the_record_keeps_the_schema_before_and_after(live: Flow) -> None:
    live.deploy()
    record = live.records("deployment-finished")[-1]
    assert set(record.details["catalogue"]) == {"before", "after"}
    assert live.state().environment("test").catalogue == record.details["catalogue"]["after"]
    for when, name in (("before", "catalogue-before.json"), ("after", "catalogue.json")):
        sha256 = record.details["catalogue"][when]
        assert record.configuration[name] == sha256
        assert (b"price" in (live.ledger.configuration(sha256) or b"")) == (when == "after")
    assert [event["what"] for event in record.details["events"]] == ["applied"]
    live.check_sound()


def test_the_page_says_what_changes_in_the_database(live: Flow) -> None:
    live.deploy()
    written = sign_offs.write_page(live.session(), customer="acme")
    page = Path(written.path).read_text()
    assert "Ce qui change dans la base de données" in page
    assert "price" in page.split("Ce qui change dans la base de données")[1]


# --- a new database ---------------------------------------------------------------------------------------------------------


def with_full_schema(flow: Flow) -> None:
    flow.edit("playbooks/depot.yaml", "folder: migrations", "folder: migrations\n  initial: schema.sql")
    flow.make(
        "1.2.0",
        {
            "schema.sql": "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER);",
            "migrations/900_view.sql": "CREATE VIEW names AS SELECT name FROM item;",
        },
    )


def test_a_new_database_gets_the_full_schema_and_production_only_what_ran_on_test(released: Flow) -> None:
    with_full_schema(released)
    found = plan(released)
    assert found.migrations == ("schema.sql",)
    assert found.scripts[0]["covers"] == ["001_base.sql", "002_price.sql", "900_view.sql"]
    assert any("after which 3 script(s) count as applied" in line for line in found.lines())
    released.deploy()
    here = released.state().environment("test")
    assert set(here.applied) == {"001_base.sql", "002_price.sql", "900_view.sql", "schema.sql"}
    assert here.covered == ("001_base.sql", "002_price.sql", "900_view.sql")
    released.decide()
    # An older production would get scripts that never ran on this test.
    existing(released, EXISTING, "production")
    baseline(released, "production", upto="001_base.sql", release="1.2.0+1")
    texts = refused_by(plan(released, "production"))["rehearsed_on_test"]
    assert texts == [
        f"migration {name} has not run on test, where the full schema of a new database stands for it"
        for name in ("002_price.sql", "900_view.sql")
    ], refused_by(plan(released, "production"))


def test_a_database_with_tables_and_no_history_is_not_taken_for_a_new_one(released: Flow) -> None:
    with_full_schema(released)
    existing(released, EXISTING)
    assert set(refused_by(plan(released))) == {"schema_is_known"}
    baseline(released, upto="001_base.sql", release="1.2.0+1")
    found = plan(released)
    assert (refused_by(found), found.migrations) == ({}, ("002_price.sql", "900_view.sql"))


def test_a_repeatable_script_runs_again_when_it_was_changed_and_is_rehearsed_too(released: Flow) -> None:
    released.edit("playbooks/depot.yaml", "folder: migrations", "folder: db\n  layout: flyway")
    released.make(
        "1.2.0", {"db/V1__base.sql": EXISTING, "db/R__names.sql": "CREATE VIEW names AS SELECT name FROM item;"}
    )
    released.deploy()
    released.decide()
    released.promote()
    released.make("1.3.0", {"db/R__names.sql": "DROP VIEW names; CREATE VIEW names AS SELECT id FROM item;"})
    assert "rehearsed_on_test" in refused_by(plan(released, "production", release="1.3.0+1"))
    assert any("repeatable" in line for line in plan(released).lines())
    assert plan(released).migrations == ("R__names.sql",)
    released.deploy()
    released.decide()
    assert refused_by(plan(released, "production")) == {}
    released.promote()
    assert migrated(released, "production")[-1] == "R__names.sql"
    released.check_sound()


def test_what_was_only_said_to_have_run_on_test_does_not_go_to_production(live: Flow) -> None:
    live.make("1.2.0", {"migrations/003_half.sql": HALF, "migrations/004_new.sql": "CREATE TABLE new (id INTEGER);"})
    with pytest.raises((Failed, PartlyDone)):
        live.deploy()
    repair(live, done=True)
    baseline(live, upto="004_new.sql", release="1.2.0+1")
    assert live.state().environment("test").asserted == ("003_half.sql", "004_new.sql")
    live.deploy()
    live.decide()
    texts = refused_by(plan(live, "production"))["rehearsed_on_test"]
    assert [text.split(":")[0] for text in texts] == [
        f"migration {name} has not run on test" for name in ("003_half.sql", "004_new.sql")
    ]
    assert "invoke backup.restore customer=acme env=test" in texts[0]
    # Of a production that has it likewise nothing runs that did not run on test.
    baseline(live, "production", upto="004_new.sql", release="1.2.0+1")
    assert refused_by(plan(live, "production")) == {}


def test_what_a_dba_ran_on_test_has_run_there(live: Flow) -> None:
    live.release("1.1.0")
    file = live.folder / "dba.sql"
    rehearsals.write_sql(live.session(), customer="acme", environment="test", out=file)
    with closing(sqlite3.connect(database(live))) as connection:
        connection.executescript("\n".join(line for line in file.read_text().split("\n") if not line.startswith(".")))
    assert baseline(live).known == ("002_price.sql",)
    assert live.state().environment("test").asserted == ()


def test_tables_without_a_history_are_never_migrated_from_the_beginning(released: Flow) -> None:
    released.release("1.1.0")
    existing(released, EXISTING)
    assert refused_by(plan(released)).keys() == {"schema_is_known"}
    with pytest.raises(Refused) as refused:
        released.deploy()
    assert any(
        "invoke migrate.baseline customer=acme env=test upto=" in command for command in refused.value.next_commands
    )
    execute(released, GOLANG.format(0))
    [text] = refused_by(plan(released))["schema_is_known"]
    assert "golang-migrate" in text
    assert "invoke migrate.baseline customer=acme env=test from=golang-migrate reason=…" in text
    baseline(released)
    released.deploy()
    assert migrated(released) == ["001_base.sql", "002_price.sql"]


# --- lint and plan ----------------------------------------------------------------------------------------------------------


def test_what_the_lint_finds_is_shown_and_refused_only_where_the_playbook_says_so(tested: Flow) -> None:
    tested.make(
        "1.2.0", {"migrations/003_empty.sql": "UPDATE item SET name = '';\n", "bin/report": "select name from item"}
    )
    found = plan(tested)
    assert refused_by(found) == {}
    assert any("003_empty.sql:1: update-without-where" in line for line in found.lines())
    tested.edit("playbooks/depot.yaml", "folder: migrations", "folder: migrations\n  refuse: [update-without-where]")
    assert set(refused_by(plan(tested))) == {"lint_has_nothing_to_refuse"}
    accepted = "-- tma: accept=update-without-where \"the table is small\"\nUPDATE item SET name = '';\n"
    tested.make("1.3.0", {"migrations/003_empty.sql": accepted})
    found = plan(tested)
    assert refused_by(found) == {}
    assert any("(accepted: the table is small)" in line for line in found.lines())


def test_a_column_that_the_installed_code_still_reads_is_named(tested: Flow) -> None:
    tested.make("1.2.0", {"bin/report": "#!/bin/sh\necho 'select name from item'\n"})
    tested.deploy()
    tested.make("1.3.0", {"migrations/004_drop.sql": "ALTER TABLE item DROP COLUMN name;\n"})
    assert any("bin/report:2" in line for line in plan(tested).lines())


def test_a_plan_says_what_each_script_is(tested: Flow) -> None:
    scripts = {
        "migrations/003_add.sql": "CREATE TABLE more (id INTEGER);",
        "migrations/004_alone.sql": "-- tma: transaction=no\nCREATE TABLE alone (id INTEGER);",
        "migrations/005_late.sql": "-- tma: phase=contract\nDELETE FROM item WHERE id = 0;",
    }
    tested.make("1.2.0", scripts)
    tested.edit("playbooks/depot.yaml", '      only: "*post_*"', '      only: "*"')
    listed = {script["script"]: script["notes"] for script in plan(tested).scripts}
    assert listed["003_add.sql"] == []
    assert listed["004_alone.sql"] == ["not in a transaction"]
    assert listed["005_late.sql"] == ["contract: after the switch", "unknown"]
    tested.deploy()
    assert migrated(tested)[-1] == "005_late.sql"


# --- before they run ----------------------------------------------------------------------------------------------------------


def rehearse(flow: Flow, **more: Any) -> rehearsals.RehearsalDone:
    return rehearsals.rehearse(flow.session(), customer="acme", environment="test", **more)


def test_a_rehearsal_changes_nothing_and_names_what_fails(tested: Flow) -> None:
    assert rehearse(tested).what == "nothing is pending on test of acme"
    tested.release("1.1.0")
    refs = tested.refs()
    assert [row["outcome"] for row in rehearse(tested).scripts] == ["ok"]
    assert migrated(tested) == ["001_base.sql"]
    assert tested.refs() == refs
    tested.make("1.2.0", {"migrations/003_bad.sql": "INSERT INTO missing VALUES (1);\n"})
    with pytest.raises(Failed) as failed:
        rehearse(tested)
    assert [str(reason).split(" (")[0] for reason in failed.value.reasons] == [
        "002_price.sql: ok",
        "003_bad.sql: failed",
    ]
    assert "missing" in failed.value.render()
    assert [column[1] for column in tested.sql("test", "PRAGMA table_info(item)")] == ["id", "name"]


def by_hand(flow: Flow, file: Path, environment: str = "test") -> subprocess.CompletedProcess[str]:
    with file.open() as stdin:
        command = ["sqlite3", "-bail", str(database(flow, environment))]
        return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)


def test_what_a_dba_runs_by_hand_is_in_the_history(tested: Flow) -> None:
    import shutil

    if shutil.which("sqlite3") is None:
        pytest.skip("no sqlite3 client here")
    tested.make("1.2.0", {"migrations/003_more.sql": "CREATE TABLE more (note TEXT DEFAULT 'it''s; so')"})
    file = tested.folder / "dba.sql"
    written = rehearsals.write_sql(tested.session(), customer="acme", environment="test", out=file)
    assert written.migrations == ("002_price.sql", "003_more.sql")
    assert "release 1.2.0+1 for the database shared/app.sqlite of test of acme" in file.read_text()
    assert migrated(tested) == ["001_base.sql"]
    done = by_hand(tested, file)
    assert (done.returncode, done.stderr) == (0, "")
    assert migrated(tested) == ["001_base.sql", "002_price.sql", "003_more.sql"]
    assert any("the ledger does not know" in line for line in differences(tested))
    assert baseline(tested).known == ("002_price.sql", "003_more.sql")
    assert plan(tested).migrations == ()
    tested.deploy()
    # Written before a later run was there: the database refuses it as a whole.
    late = by_hand(tested, file)
    assert late.returncode != 0
    assert tested.sql("test", "SELECT count(*) FROM more") == [(0,)]
    tested.check_sound()


def test_a_file_for_a_dba_needs_a_database_of_which_something_is_known(tested: Flow) -> None:
    half_done(tested)
    with pytest.raises(Refused, match="what is pending on test of acme is not known"):
        rehearsals.write_sql(tested.session(), customer="acme", environment="test")
