"""What every database adapter keeps: one suite, run on SQLite and, live, on a real PostgreSQL."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from pipeline.databases import HISTORY_FORMAT, OWN_TABLES, Database
from pipeline.errors import (
    Failed,
    Locked,
    NotKnown,
    PartlyDone,
    PipelineError,
    Refused,
    Unreachable,
    UsageError,
    overtaken,
)
from pipeline.transports import LineCut, Result
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import (
    HOST_PATH,
    MISSING_TABLE,
    SECRET,
    Engine,
    Postgres,
    Sqlite,
    apply,
    history_of,
    script,
)

pytestmark = pytest.mark.slow


def needs_transactional_ddl(engine: Engine) -> None:
    """Left out where DDL commits by itself: what such an engine keeps instead is in a module of its own (``test_mysql.py``)."""
    if not engine.transactional_ddl:
        pytest.skip("DDL commits by itself on this engine")


# --- applying ----------------------------------------------------------------------------------------------------------


def test_history_of_an_untouched_database_is_empty_and_changes_nothing(engine: Engine) -> None:
    database = engine.open()
    assert database.history() == []
    database.close()
    if isinstance(engine, Sqlite):
        assert not engine.path.exists()
    else:
        assert engine.tables() == set()


def test_applied_once_with_its_row(engine: Engine) -> None:
    database = engine.open()
    before = datetime.now(UTC) - timedelta(seconds=2)
    made, data = script("01_a.sql", "CREATE TABLE a (n integer);\nINSERT INTO a VALUES (1);\n")
    assert database.apply(made, data, fence=7, run="run-1", release="2.4.0+1") is True
    assert database.apply(made, data, fence=7, run="run-2", release="2.4.0+1") is False
    (row,) = database.history()
    assert (row.script, row.checksum, row.algorithm) == ("01_a.sql", made.checksum, "sha256-bom-eol")
    assert (row.fence, row.run, row.release) == (7, "run-1", "2.4.0+1")
    assert before <= row.at <= datetime.now(UTC)
    database.close()
    database.close()
    assert engine.query("SELECT n FROM a") == [(1,)]


def test_rows_come_in_the_order_of_application(engine: Engine) -> None:
    database = engine.open()
    for name in ("b.sql", "a.sql", "c.sql"):
        assert apply(database, name, f"CREATE TABLE {name[0]} (n integer)")
    assert history_of(database) == ["b.sql", "a.sql", "c.sql"]
    database.close()


def test_byte_order_mark_and_line_ends_are_no_edit(engine: Engine) -> None:
    database = engine.open()
    text = "CREATE TABLE a (n text);\nINSERT INTO a VALUES ('é');\n"
    assert apply(database, "a.sql", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) is True
    assert apply(database, "a.sql", text) is False
    assert engine.query("SELECT n FROM a") == [("é",)]
    database.close()


def test_edited_script_is_refused_and_not_run(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(Refused) as refused:
        apply(database, "a.sql", "CREATE TABLE b (n integer)")
    assert "edited" in refused.value.what
    assert refused.value.next_commands[0].startswith("invoke migrate.accept customer=acme script=a.sql")
    assert "b" not in engine.tables()
    database.close()


def test_bytes_other_than_declared_are_refused(engine: Engine) -> None:
    database = engine.open()
    declared, _ = script("a.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(Refused, match="checksum"):
        database.apply(declared, b"DROP TABLE everything", fence=1, run="r", release="1+1")
    assert database.history() == []
    database.close()


@pytest.mark.parametrize("sql", ["", "-- only a comment\n", " ;; /* nothing */ ;"])
def test_script_without_a_statement_is_applied(engine: Engine, sql: str) -> None:
    database = engine.open()
    assert apply(database, "a.sql", sql) is True
    assert history_of(database) == ["a.sql"]
    database.close()


@pytest.mark.parametrize("sql", [b"CREATE TABLE a (n text);\nINSERT INTO a VALUES ('\xe9');", b"SELECT 1;\n\0"])
def test_what_is_not_text_fails_with_its_line(engine: Engine, sql: bytes) -> None:
    database = engine.open()
    with pytest.raises(Failed) as failed:
        apply(database, "a.sql", sql)
    assert failed.value.reasons[0].source == "a.sql:2"
    database.close()


# --- failing -----------------------------------------------------------------------------------------------------------


def test_script_failing_half_way_leaves_nothing(engine: Engine) -> None:
    needs_transactional_ddl(engine)
    database = engine.open()
    apply(database, "00.sql", "CREATE TABLE base (n integer)")
    sql = f"CREATE TABLE a (n integer);\n\n-- then\nINSERT INTO base VALUES (1);\n{MISSING_TABLE};\nCREATE TABLE b (n text);"
    with pytest.raises(Failed) as failed:
        apply(database, "01.sql", sql)
    (reason, *_) = failed.value.reasons
    assert reason.source == "01.sql:5"
    assert "statement 3 (INSERT INTO nowhere VALUES (1))" in reason.text
    assert "nowhere" in reason.text
    assert failed.value.next_commands == ("invoke plan customer=acme env=test",)
    assert "Nothing of this script was committed" in failed.value.state
    assert {"a", "b"}.isdisjoint(engine.tables())
    assert engine.query("SELECT count(*) FROM base") == [(0,)]
    assert history_of(database) == ["00.sql"]
    # The same connection goes on.
    assert apply(database, "01.sql", "CREATE TABLE a (n integer)") is True
    database.close()


def test_syntax_error_names_its_place(engine: Engine) -> None:
    needs_transactional_ddl(engine)
    database = engine.open()
    with pytest.raises(Failed) as failed:
        apply(database, "a.sql", "CREATE TABLE a (n integer);\nCREATE TABLE b (n integer);\nCREAT TABLE c;\n")
    assert failed.value.reasons[0].source == "a.sql:3"
    assert "statement 3 (CREAT TABLE c)" in failed.value.reasons[0].text
    assert engine.tables() <= OWN_TABLES
    database.close()


@pytest.mark.parametrize(
    "ending",
    ["COMMIT;", "commit work;", "END;", "end transaction ;", "/* x */ ROLLBACK;", "COMMIT", "ABORT;"],
    ids=lambda ending: ending.replace(" ", "-"),
)
def test_own_commit_is_caught_and_leaves_nothing(engine: Engine, ending: str) -> None:
    database = engine.open()
    after = "\nCREATE TABLE b (n integer);" if ending.endswith(";") else ""
    with pytest.raises(Failed) as failed:
        apply(database, "a.sql", f"CREATE TABLE a (n integer);\n{ending}{after}")
    # SQLite knows no ABORT: a syntax error.
    if ending != "ABORT;" or isinstance(engine, Postgres):
        assert "ends the transaction itself" in failed.value.what
    assert {"a", "b"}.isdisjoint(engine.tables())
    assert database.history() == []
    assert apply(database, "a.sql", "CREATE TABLE a (n integer)") is True
    database.close()


def test_a_savepoint_is_not_a_commit(engine: Engine) -> None:
    needs_transactional_ddl(engine)
    database = engine.open()
    sql = "CREATE TABLE a (n integer); SAVEPOINT s; INSERT INTO a VALUES (1); ROLLBACK TO SAVEPOINT s; RELEASE SAVEPOINT s;"
    assert apply(database, "a.sql", sql) is True
    assert engine.query("SELECT count(*) FROM a") == [(0,)]
    database.close()


def test_semicolons_in_strings_comments_and_bodies(engine: Engine) -> None:
    database = engine.open()
    body = (
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN UPDATE a SET n = 'x; COMMIT;'; END;"
        if isinstance(engine, Sqlite)
        else "DELIMITER //\nCREATE PROCEDURE p() BEGIN SELECT 1; COMMIT; END//\nDELIMITER ;"
        if engine.name == "mariadb"
        else "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $body$ BEGIN PERFORM 1; COMMIT; END; $body$;"
    )
    sql = f"CREATE TABLE a (n text); -- ; COMMIT;\nINSERT INTO a VALUES ('a;b''; ROLLBACK;'); /* ; COMMIT; */\n{body}\n"
    assert apply(database, "a.sql", sql) is True
    assert engine.query("SELECT n FROM a") == [("a;b'; ROLLBACK;",)]
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO tma_migration_history (script, checksum, algorithm, fence, run, release, applied_at)"
        " VALUES ('b.sql', 'x', 'x', 1, 'r', 'r', '2026-01-01T00:00:00Z')",
        "UPDATE TMA_migration_history SET checksum = 'x'",
        "UPDATE tma_migration_history SET checksum = checksum",
        "DELETE FROM tma_migration_history",
        "DROP TABLE tma_migration_history",
        "ALTER TABLE tma_migration_history RENAME TO other",
        "UPDATE tma_migration_fence SET highest = 0",
        "DELETE FROM tma_migration_fence",
        "DROP TABLE tma_migration_fence",
    ],
)
def test_a_script_cannot_write_the_history_or_the_fence(engine: Engine, statement: str) -> None:
    database = engine.open()
    apply(database, "00.sql", "CREATE TABLE base (n integer)", fence=5)
    before = database.history()
    # PostgreSQL's own rules stop some of them; nothing of them stays in any case.
    with pytest.raises(Failed) as failed:
        apply(database, "a.sql", f"CREATE TABLE a (n integer);\n{statement};", fence=6)
    if isinstance(engine, Sqlite):
        assert "changes the migration history itself" in failed.value.what
        assert failed.value.reasons[0].source == "a.sql:2"
    assert "a" not in engine.tables()
    assert database.history() == before
    with pytest.raises(Refused, match="no longer the one"):
        apply(database, "b.sql", "SELECT 1", fence=5)
    assert apply(database, "a.sql", "SELECT count(*) FROM tma_migration_history", fence=6) is True
    database.close()


# --- the history and its events --------------------------------------------------------------------------------------------


def test_every_script_has_its_event(engine: Engine) -> None:
    database = engine.open()
    assert database.events() == []
    apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=3, run="run-1")
    with pytest.raises((Failed, PartlyDone)):
        apply(database, "b.sql", MISSING_TABLE, fence=3)
    events = [event for event in database.events() if event.script == "a.sql" and event.what != "started"]
    (event,) = events
    assert (event.what, event.fence, event.run, event.release) == ("applied", 3, "run-1", "1.0+1")
    assert event.checksum == script("a.sql", "CREATE TABLE a (n integer)")[0].checksum
    numbers = [event.number for event in database.events()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [event.script for event in database.events() if event.what == "applied"] == ["a.sql"]
    database.close()


def test_baseline_counts_as_applied_and_runs_nothing(engine: Engine) -> None:
    database = engine.open()
    apply(database, "b.sql", "CREATE TABLE b (n integer)")
    scripts = [script(name, f"CREATE TABLE {name[0]} (n integer)")[0] for name in ("c.sql", "b.sql", "a.sql")]
    assert database.baseline(scripts, fence=2, run="r2", release="1.0+1") == ["c.sql", "a.sql"]
    assert database.baseline(scripts, fence=2, run="r2", release="1.0+1") == []
    assert {"a", "c"}.isdisjoint(engine.tables())
    assert {row.script: row.state for row in database.history()} == {
        "a.sql": "baseline",
        "b.sql": "done",
        "c.sql": "baseline",
    }
    told = [event.script for event in database.events() if event.what == "baselined"]
    assert told == ["c.sql", "a.sql"]
    assert apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=2) is False
    with pytest.raises(Refused):
        database.baseline(scripts, fence=1, run="r1", release="1.0+1")
    database.close()


def test_a_full_schema_covers_the_scripts_of_its_release(engine: Engine) -> None:
    database = engine.open()
    covered = [script(name, f"CREATE TABLE {name[0]} (n integer)")[0] for name in ("a.sql", "b.sql")]
    schema, data = script("schema.sql", "CREATE TABLE a (n integer); CREATE TABLE b (n integer);")
    initial = schema.model_copy(update={"kind": "initial"})
    assert database.apply(initial, data, fence=1, run="r1", release="1.0+1", covers=covered) is True
    assert {row.script: row.state for row in database.history()} == {
        "a.sql": "baseline",
        "b.sql": "baseline",
        "schema.sql": "done",
    }
    assert apply(database, "b.sql", "CREATE TABLE b (n integer)") is False
    database.close()


def test_covered_scripts_have_no_row_when_the_schema_fails(engine: Engine) -> None:
    database = engine.open()
    covered = [script("a.sql", "CREATE TABLE a (n integer)")[0]]
    schema, data = script("schema.sql", f"{MISSING_TABLE};")
    with pytest.raises((Failed, PartlyDone)):
        database.apply(schema, data, fence=1, run="r1", release="1.0+1", covers=covered)
    assert "a.sql" not in history_of(database)
    database.close()


def test_repeatable_runs_again_when_it_is_another(engine: Engine) -> None:
    database = engine.open()

    def again(sql: str) -> bool:
        made, data = script("R__fill.sql", sql)
        repeatable = made.model_copy(update={"kind": "repeatable"})
        return database.apply(repeatable, data, fence=1, run="r1", release="1.0+1")

    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    assert again("INSERT INTO a VALUES (1)") is True
    assert again("INSERT INTO a VALUES (1)") is False
    assert again("INSERT INTO a VALUES (2)") is True
    assert engine.query("SELECT n FROM a ORDER BY n") == [(1,), (2,)]
    (row,) = [row for row in database.history() if row.script == "R__fill.sql"]
    assert row.checksum == script("R__fill.sql", "INSERT INTO a VALUES (2)")[0].checksum
    told = [event.what for event in database.events() if event.script == "R__fill.sql" and event.what != "started"]
    assert told == ["applied", "reapplied"]
    database.close()


def test_a_failing_verify_fails_the_script(engine: Engine) -> None:
    database = engine.open()
    made, data = script("a.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(Failed, match="verify"):
        database.apply(made, data, fence=1, run="r1", release="1.0+1", verify=b"SELECT nothing FROM a")
    if engine.transactional_ddl:
        assert "a" not in engine.tables()
        assert database.history() == []
    database.close()


def test_a_verify_runs_after_the_script_and_leaves_nothing(engine: Engine) -> None:
    database = engine.open()
    made, data = script("a.sql", "CREATE TABLE a (n integer)")
    verify = b"-- Verify\nINSERT INTO a VALUES (1);\nSELECT n FROM a;\n"
    assert database.apply(made, data, fence=1, run="r1", release="1.0+1", verify=verify) is True
    assert engine.query("SELECT count(*) FROM a") == [(0,)]
    assert history_of(database) == ["a.sql"]
    database.close()


def test_only_the_lines_that_run_are_run(engine: Engine) -> None:
    database = engine.open()
    made, data = script("a.sql", "-- migrate:up\nCREATE TABLE a (n integer);\n-- migrate:down\nDROP TABLE a;\n")
    assert database.apply(made.model_copy(update={"lines": (2, 2)}), data, fence=1, run="r1", release="1+1") is True
    assert "a" in engine.tables()
    wrong, data = script("b.sql", f"-- migrate:up\n{MISSING_TABLE};\n-- migrate:down\nDROP TABLE a;\n")
    with pytest.raises((Failed, PartlyDone)) as failed:
        database.apply(wrong.model_copy(update={"lines": (2, 2)}), data, fence=1, run="r1", release="1+1")
    assert failed.value.reasons[0].source == "b.sql:2"
    database.close()


def test_an_outer_begin_and_commit_are_the_pipelines(engine: Engine) -> None:
    database = engine.open()
    sql = "-- Deploy a\n\nBEGIN;\n\nCREATE TABLE a (n integer);\nINSERT INTO a VALUES (1);\n\nCOMMIT;\n"
    assert apply(database, "a.sql", sql) is True
    assert engine.query("SELECT n FROM a") == [(1,)]
    database.close()


# --- statement by statement, and repairing ---------------------------------------------------------------------------------


def stepwise(database: Database, name: str, sql: str, *, fence: int = 1, run: str = "r1") -> bool:
    made, data = script(name, sql)
    return database.apply(made.model_copy(update={"transactional": False}), data, fence=fence, run=run, release="1.0+1")


BROKEN_STEPS = (
    "INSERT INTO a VALUES (1);\nINSERT INTO a VALUES (2);\nINSERT INTO nowhere VALUES (3);\nINSERT INTO a VALUES (4);\n"
)


def test_a_script_without_a_transaction_stops_in_the_middle_and_is_blocked(engine: Engine) -> None:
    needs_steps(engine)
    database = engine.open()
    apply(database, "00.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(PartlyDone) as partly:
        stepwise(database, "a.sql", BROKEN_STEPS)
    assert partly.value.reasons[0].source == "a.sql:3"
    assert partly.value.state == "Statements 1 to 2 are committed, the others are not."
    repair = "invoke migrate.repair customer=acme env=test script=a.sql"
    assert [command.startswith(repair) for command in partly.value.next_commands] == [True] * 3
    assert engine.query("SELECT n FROM a ORDER BY n") == [(1,), (2,)]
    with pytest.raises(Refused, match="blocked"):
        stepwise(database, "a.sql", BROKEN_STEPS)
    assert engine.query("SELECT n FROM a ORDER BY n") == [(1,), (2,)]
    (_, row) = database.history()
    assert (row.state, row.statement, row.statements) == ("running", 2, 4)
    database.close()


def needs_steps(engine: Engine) -> None:
    """Left out where every script is one transaction."""
    if engine.name == "sqlite":
        pytest.skip("a script outside a transaction is refused or run in one on this engine")


def test_resume_goes_on_once_with_the_statement_that_somebody_names(engine: Engine) -> None:
    needs_steps(engine)
    database = engine.open()
    apply(database, "00.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(PartlyDone):
        stepwise(database, "a.sql", BROKEN_STEPS)
    for number in (0, 5, None):
        with pytest.raises(UsageError, match="cannot go on with statement"):
            database.repair("a.sql", "resume", fence=1, run="r2", release="1.0+1", resume_at=number)
    database.repair("a.sql", "resume", fence=1, run="r2", release="1.0+1", resume_at=3)
    engine.query("CREATE TABLE nowhere (n integer)")
    assert stepwise(database, "a.sql", BROKEN_STEPS, run="r2") is True
    assert engine.query("SELECT n FROM a ORDER BY n") == [(1,), (2,), (4,)]
    assert engine.query("SELECT n FROM nowhere") == [(3,)]
    assert stepwise(database, "a.sql", BROKEN_STEPS, run="r2") is False
    told = [event.what for event in database.events() if event.script == "a.sql"]
    assert [what for what in told if what != "started"] == ["resumed", "applied"]
    database.close()


@pytest.mark.parametrize(("what", "event"), [("done", "marked-done"), ("reverted", "marked-reverted")])
def test_a_blocked_script_is_marked(engine: Engine, what: Any, event: str) -> None:
    needs_steps(engine)
    database = engine.open()
    apply(database, "00.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(PartlyDone):
        stepwise(database, "a.sql", BROKEN_STEPS)
    database.repair("a.sql", what, fence=1, run="r2", release="1.0+1")
    assert history_of(database) == (["00.sql", "a.sql"] if what == "done" else ["00.sql"])
    assert database.events()[-1].what == event
    if what == "done":
        assert stepwise(database, "a.sql", BROKEN_STEPS) is False
    database.close()


def test_only_what_is_blocked_is_repaired(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    with pytest.raises(Refused, match="is not blocked"):
        database.repair("a.sql", "done", fence=1, run="r1", release="1.0+1")
    with pytest.raises(NotKnown):
        database.repair("b.sql", "done", fence=1, run="r1", release="1.0+1")
    database.close()


# --- on trial, and looking -------------------------------------------------------------------------------------------------


def test_a_rehearsal_leaves_nothing_and_stops_at_the_first_that_fails(engine: Engine) -> None:
    where = {} if engine.transactional_ddl else {"scratch": f"{cast(Any, engine).address.name}_scratch"}
    database = engine.open(**where)
    apply(database, "00.sql", "CREATE TABLE base (n integer)")
    before = database.history()
    scripts = [
        script("a.sql", "CREATE TABLE a (n integer)"),
        script("b.sql", "INSERT INTO a VALUES (1); INSERT INTO base VALUES (1);"),
        script("c.sql", f"SELECT 1;\n{MISSING_TABLE};"),
        script("d.sql", "CREATE TABLE d (n integer)"),
    ]
    told = database.rehearse(scripts, run="r2")
    assert [(one.script, one.outcome) for one in told] == [("a.sql", "ok"), ("b.sql", "ok"), ("c.sql", "failed")]
    assert "nowhere" in told[-1].said
    assert {"a", "d"}.isdisjoint(engine.tables())
    assert engine.query("SELECT count(*) FROM base") == [(0,)]
    assert database.history() == before
    assert apply(database, "a.sql", "CREATE TABLE a (n integer)") is True
    database.close()


def test_a_query_changes_nothing(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1), (2)")
    assert database.query("SELECT n FROM a ORDER BY n") == [(1,), (2,)]
    with pytest.raises(Failed):
        database.query("INSERT INTO a VALUES (3)")
    with pytest.raises(Failed):
        database.query("SELECT * FROM nowhere")
    assert database.query("SELECT count(*) FROM a") == [(2,)]
    database.close()


def test_the_same_schema_has_the_same_catalogue(engine: Engine) -> None:
    database = engine.open()
    empty = database.catalogue()
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    one = database.catalogue()
    assert one != empty
    assert not any("tma_migration" in json.dumps(part) for part in (empty, one))
    apply(database, "b.sql", "CREATE TABLE b (n integer)")
    assert database.catalogue() != one
    apply(database, "c.sql", "DROP TABLE b")
    assert database.catalogue() == one
    database.close()


def test_the_server_is_named(engine: Engine) -> None:
    database = engine.open()
    found = database.server()
    assert found.version
    assert found.refusals == ()
    database.close()


# --- fence and runners --------------------------------------------------------------------------------------------------


def test_stale_fence_is_refused_and_only_rises(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=5)
    with pytest.raises(Refused) as refused:
        apply(database, "b.sql", "CREATE TABLE b (n integer)", fence=4)
    assert refused.value.details == {"fence": 4, "highest": 5}
    assert "b" not in engine.tables()
    assert apply(database, "b.sql", "CREATE TABLE b (n integer)", fence=5) is True
    database.close()


def test_runner_overtaken_between_two_scripts_is_refused(engine: Engine) -> None:
    old, new = engine.open(), engine.open()
    apply(old, "a.sql", "CREATE TABLE a (n integer)", fence=1)
    # Its session is over, and it does not know: it was thought dead.
    old.close()
    # A run that finds nothing to do, or whose script fails, shuts the older one out all the same.
    apply(new, "a.sql", "CREATE TABLE a (n integer)", fence=2)
    new.close()
    with pytest.raises(Refused):
        apply(old, "b.sql", "CREATE TABLE b (n integer)", fence=1)
    with pytest.raises(Failed):
        apply(new, "b.sql", MISSING_TABLE, fence=3)
    new.close()
    with pytest.raises(Refused):
        apply(old, "b.sql", "CREATE TABLE b (n integer)", fence=2)
    assert "b" not in engine.tables()
    old.close()
    new.close()


def test_a_fence_that_is_raised_under_a_runner_refuses_its_next_script(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=5)
    engine.query("UPDATE tma_migration_fence SET highest = 9")
    with pytest.raises(Refused) as refused:
        apply(database, "b.sql", "CREATE TABLE b (n integer)", fence=5)
    assert overtaken(refused.value)
    assert "b" not in engine.tables()
    database.close()


def test_a_claimed_fence_shuts_out_every_run_below_it(engine: Engine) -> None:
    """As when a lock is released: nothing is applied, and the run that held it is refused from then on."""
    old, release = engine.open(), engine.open()
    apply(old, "a.sql", "CREATE TABLE a (n integer)", fence=3)
    old.close()
    release.claim(7, "release-1")
    release.claim(7, "release-1")
    release.close()
    with pytest.raises(Refused) as refused:
        apply(old, "b.sql", "CREATE TABLE b (n integer)", fence=3)
    assert overtaken(refused.value)
    assert "b" not in engine.tables()
    old.close()
    with pytest.raises(Refused) as refused:
        release.claim(6, "release-2")
    assert overtaken(refused.value)
    assert refused.value.details == {"fence": 6, "highest": 7}
    # It ended its transaction: the same connection and the next run go on.
    assert engine.query("SELECT highest FROM tma_migration_fence") == [(7,)]
    assert apply(release, "b.sql", "CREATE TABLE b (n integer)", fence=8) is True
    assert history_of(release) == ["a.sql", "b.sql"]
    old.close()
    release.close()


def test_a_fence_is_claimed_where_nothing_was_ever_applied(engine: Engine) -> None:
    database = engine.open()
    database.claim(4, "release-1")
    database.close()
    assert engine.query("SELECT highest FROM tma_migration_fence") == [(4,)]
    assert database.history() == []
    with pytest.raises(Refused):
        apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=3)
    assert "a" not in engine.tables()
    database.close()


def test_a_fence_is_not_claimed_while_a_script_runs_nor_in_what_is_no_database(engine: Engine) -> None:
    first = engine.open()
    apply(first, "00.sql", "CREATE TABLE base (n integer)", fence=1)
    first.close()
    holder = engine.hold()
    with pytest.raises(Locked):
        engine.open(patience=0.3).claim(2, "release-1")
    holder.close()
    assert engine.query("SELECT highest FROM tma_migration_fence") == [(1,)]
    with pytest.raises((Failed, Unreachable)):
        engine.unreadable().claim(2, "release-1")


def test_a_line_that_is_cut_while_the_fence_is_claimed_is_said(engine: Engine) -> None:
    class Cut(LocalTransport):
        def run(self, *_: Any, **__: Any) -> Result:
            raise LineCut("the line was cut")

        def forward(self, *_: Any) -> Any:
            raise Unreachable("the line was cut")

    with pytest.raises(Unreachable, match=r"was lost while its fence was raised|the line was cut"):
        engine.open(transport=Cut()).claim(2, "release-1")


@pytest.mark.live
def test_a_connection_that_the_server_ended_is_said_and_the_fence_can_be_claimed_again(postgres: Postgres) -> None:
    database = postgres.open()
    assert database.history() == []
    postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tma-pipeline'")
    with pytest.raises(Unreachable, match="was lost while its fence was raised"):
        database.claim(2, "release-1")
    database.claim(2, "release-1")
    assert postgres.query("SELECT highest FROM tma_migration_fence") == [(2,)]


def test_history_of_a_newer_format_is_not_written(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    database.close()
    engine.query(f"UPDATE tma_migration_fence SET format = {HISTORY_FORMAT + 1}")
    with pytest.raises(Refused, match="newer format"):
        apply(database, "b.sql", "CREATE TABLE b (n integer)")
    assert history_of(database) == ["a.sql"]
    database.close()


@pytest.mark.slow
def test_two_runners_at_once_apply_each_script_once(engine: Engine) -> None:
    names = [f"{number:02}.sql" for number in range(6)]
    applied: list[str] = []
    trouble: list[BaseException] = []

    def runner(run: str) -> None:
        database = engine.open()
        try:
            for name in names:
                sql = f"CREATE TABLE t{name[:2]} (n integer); INSERT INTO t{name[:2]} VALUES (1);"
                if apply(database, name, sql, run=run):
                    applied.append(name)
        except BaseException as error:
            trouble.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=runner, args=(f"r{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
    assert sorted(applied) == names
    assert [engine.query(f"SELECT count(*) FROM t{name[:2]}") for name in names] == [[(1,)]] * len(names)


def test_held_database_is_locked_after_patience(engine: Engine) -> None:
    database = engine.open(patience=0.3)
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    database.close()
    holder = engine.hold()
    with pytest.raises(Locked):
        apply(database, "b.sql", "CREATE TABLE b (n integer)")
    holder.close()
    assert apply(database, "b.sql", "CREATE TABLE b (n integer)") is True
    database.close()


RUNNER = """
import json, sys
from tests.contracts.engines import HOST_PATH, LocalTransport, PostgresqlDatabase, SqliteDatabase, DatabaseSettings, apply
what = json.loads(sys.argv[1])
transport = LocalTransport("app1", environment={"PATH": HOST_PATH})
if what["settings"]:
    settings = DatabaseSettings.model_validate(what["settings"])
    database = PostgresqlDatabase(transport, settings, what["password"], backups="/nonexistent")
else:
    database = SqliteDatabase(transport, what["path"], backups="/nonexistent")
print("begins", flush=True)
apply(database, "kill.sql", what["sql"], fence=1, run="killed")
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.6])
def test_killed_runner_leaves_the_history_true(engine: Engine, after: float) -> None:
    needs_transactional_ddl(engine)
    database = engine.open()
    apply(database, "00.sql", "CREATE TABLE effects (n integer)")
    sql = f"INSERT INTO effects VALUES (1); {engine.slow} INSERT INTO effects VALUES (2);"
    what = {
        "settings": engine.settings().model_dump() if isinstance(engine, Postgres) else None,
        "password": SECRET,
        "path": str(engine.path) if isinstance(engine, Sqlite) else None,
        "sql": sql,
    }
    root = Path(__file__).parents[2]
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, json.dumps(what)], cwd=root, stdout=subprocess.PIPE, start_new_session=True
    )
    assert runner.stdout is not None
    with runner.stdout:
        assert runner.stdout.readline() == b"begins\n"
        time.sleep(after)
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    # Whether the killed one got through is its business; row and effect agree, and the next run completes it.
    apply(database, "kill.sql", sql, fence=2, run="next")
    assert history_of(database) == ["00.sql", "kill.sql"]
    assert sorted(engine.query("SELECT n FROM effects")) == [(1,), (2,)]
    database.close()


class Cutting(LocalTransport):
    """Loses the line: SQLite's answer is thrown away, before the script ran or after."""

    def __init__(self, when: Sequence[str]) -> None:
        super().__init__("app1", environment={"PATH": HOST_PATH})
        self.when = list(when)

    def run(self, script: str, arguments: Sequence[str] = (), *, stdin: Any = b"", **more: Any) -> Result:
        when = self.when.pop(0) if self.when else "never"
        if when == "before":
            raise LineCut("cut before")
        result = super().run(script, arguments, stdin=stdin, **more)
        if when == "after":
            raise LineCut("cut after")
        return result


def test_cut_line_is_settled_by_the_history(tmp_path: Path) -> None:
    engine = Sqlite(tmp_path)
    applied = engine.open(transport=Cutting(["after"]))
    assert apply(applied, "a.sql", "CREATE TABLE a (n integer)") is True
    lost = engine.open(transport=Cutting(["before"]))
    with pytest.raises(Unreachable, match="does not list"):
        apply(lost, "b.sql", "CREATE TABLE b (n integer)")
    unknown = engine.open(transport=Cutting(["after", "before"]))
    with pytest.raises(PartlyDone):
        apply(unknown, "c.sql", "CREATE TABLE c (n integer)")
    assert history_of(engine.open()) == ["a.sql", "c.sql"]


# --- backup ------------------------------------------------------------------------------------------------------------


def test_backup_is_proven_and_the_first_of_a_label_stays(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (42);")
    taken = database.backup("run-1")
    data = Path(taken.path).read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (taken.sha256, taken.size)
    assert taken.proven_by
    assert Path(taken.path).stat().st_mode & 0o777 == 0o600
    apply(database, "b.sql", "INSERT INTO a VALUES (43)")
    assert database.backup("run-1") == taken
    assert database.backup("run-2").sha256 != taken.sha256
    assert engine.restore(taken.path, "SELECT n FROM a") == [(42,)]
    assert {path.name.split(".")[0] for path in Path(taken.path).parent.iterdir()} == {"run-1", "run-2"}
    database.close()


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_backup_that_cannot_be_read_back_is_no_backup(engine: Engine, damage: str) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n text)")
    for number in range(40):
        engine.query(f"INSERT INTO a VALUES ('{hashlib.sha512(str(number).encode()).hexdigest() * 20}')")
    path = Path(database.backup("run-1").path)
    data = path.read_bytes()
    at = len(data) * 3 // 4
    path.write_bytes(data[:at] + (b"\xff" * 4096 + data[at + 4096 :] if damage == "overwritten" else b""))
    with pytest.raises(Failed, match="no proven backup"):
        database.backup("run-1")
    database.close()


def test_backup_of_an_empty_database(engine: Engine) -> None:
    database = engine.open()
    assert database.backup("run-1").size >= 0
    assert Path(database.backup("run-1").path).exists()
    database.close()


@pytest.mark.parametrize("label", ["../x", "a b", "", "-rf", "a\nb"])
def test_label_that_is_no_file_name_is_refused(engine: Engine, label: str) -> None:
    with pytest.raises(UsageError):
        engine.open().backup(label)


def test_backups_are_listed_and_proven_again(engine: Engine) -> None:
    database = engine.open()
    assert database.backups() == []
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    first = database.backup("run-1")
    database.backup("run-2")
    assert sorted(found.label for found in database.backups()) == ["run-1", "run-2"]
    (found,) = [found for found in database.backups() if found.label == "run-1"]
    assert (found.path, found.size) == (first.path, first.size)
    assert database.prove("run-1").sha256 == first.sha256
    with pytest.raises(NotKnown):
        database.prove("run-3")
    database.close()


def test_a_restore_brings_back_data_and_history_and_keeps_the_fence(engine: Engine) -> None:
    database = engine.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1);", fence=3)
    taken = database.backup("run-1")
    apply(database, "b.sql", "INSERT INTO a VALUES (2)", fence=4)
    apply(database, "c.sql", "CREATE TABLE c (n integer)", fence=4)
    with pytest.raises(Refused):
        database.restore("run-1", sha256="0" * 64, fence=5, run="r5")
    assert engine.query("SELECT count(*) FROM a") == [(2,)]
    database.restore("run-1", sha256=taken.sha256, fence=6, run="r6")
    assert engine.query("SELECT n FROM a") == [(1,)]
    assert "c" not in engine.tables()
    assert history_of(database) == ["a.sql"]
    assert database.events()[-1].what == "restored"
    assert engine.query("SELECT highest FROM tma_migration_fence") == [(6,)]
    with pytest.raises(Refused, match="no longer the one"):
        database.restore("run-1", sha256=taken.sha256, fence=5, run="r5")
    assert apply(database, "b.sql", "INSERT INTO a VALUES (2)", fence=6) is True
    database.close()


# --- not reached, not readable --------------------------------------------------------------------------------------------


def every_call(database: Database) -> list[Callable[[], object]]:
    return [
        database.history,
        lambda: apply(database, "a.sql", "CREATE TABLE a (n integer)"),
        lambda: database.backup("run-1"),
    ]


def test_unreadable_database_is_an_error_of_ours(engine: Engine) -> None:
    database = engine.unreadable()
    for call in every_call(database):
        with pytest.raises(PipelineError) as raised:
            call()
        assert raised.value.exit_code in {1, 7}
        assert "database" in raised.value.render()
    database.close()


@pytest.mark.live
def test_wrong_password_is_unreachable_and_names_no_password(postgres: Postgres) -> None:
    with pytest.raises(Unreachable) as raised:
        postgres.open(password="wrong-" + SECRET).history()
    assert "password" in raised.value.render()
    for error in (raised.value, raised.value.__cause__, raised.value.__context__):
        assert SECRET not in repr(error) and SECRET not in str(error)
    with pytest.raises(Failed) as failed:
        postgres.open(password="wrong-" + SECRET).backup("run-1")
    assert "password authentication failed" in failed.value.render()
    assert SECRET not in failed.value.render()


@pytest.mark.live
def test_password_quoted_by_the_server_is_blotted_out(postgres: Postgres) -> None:
    with pytest.raises(Failed) as failed:
        apply(postgres.open(), "a.sql", f"DO $$ BEGIN RAISE EXCEPTION 'it is {SECRET}'; END $$")
    assert "it is ***" in failed.value.render()
    assert SECRET not in failed.value.render()


@pytest.mark.live
def test_nothing_listening_is_unreachable(postgres: Postgres) -> None:
    with pytest.raises(Unreachable):
        postgres.open(port=1).history()


def test_host_without_python3_is_said(tmp_path: Path) -> None:
    engine = Sqlite(tmp_path)
    bare = LocalTransport("app1", environment={"PATH": str(tmp_path)})
    with pytest.raises(Failed, match="python3 is not installed on app1"):
        engine.open(transport=bare).history()


# --- PostgreSQL's own -----------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_session_left_behind_by_a_script_does_not_matter(postgres: Postgres) -> None:
    database = postgres.open()
    assert apply(database, "a.sql", "SELECT set_config('search_path', '', false); SET lock_timeout = 0;")
    assert apply(
        database, "b.sql", "CREATE TEMP TABLE x (n int); CREATE TABLE b (n integer); SELECT pg_advisory_lock(1)"
    )
    assert apply(database, "c.sql", "CREATE TEMP TABLE x (n int); SET datestyle = 'German, DMY'; CREATE SCHEMA s;")
    assert apply(database, "d.sql", "SET search_path = s; CREATE TABLE b (n integer);")
    assert postgres.query("SELECT schemaname FROM pg_tables WHERE tablename = 'b' ORDER BY 1") == [("public",), ("s",)]
    assert history_of(database) == ["a.sql", "b.sql", "c.sql", "d.sql"]
    database.close()


@pytest.mark.live
def test_end_of_a_begin_atomic_body_is_not_a_commit(postgres: Postgres) -> None:
    database = postgres.open()
    sql = "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC\n SELECT 1;\n SELECT 2;\nEND;\nCREATE TABLE a (n int);"
    assert apply(database, "a.sql", sql) is True
    assert postgres.query("SELECT f()") == [(2,)]
    database.close()


@pytest.mark.live
def test_copy_from_the_client_is_refused(postgres: Postgres) -> None:
    database = postgres.open()
    with pytest.raises(Failed, match="COPY"):
        apply(database, "a.sql", "CREATE TABLE a (n integer); COPY a FROM STDIN; CREATE TABLE b (n integer);")
    assert {"a", "b"}.isdisjoint(postgres.tables())
    assert apply(database, "a.sql", "CREATE TABLE a (n integer)") is True
    database.close()


@pytest.mark.live
def test_deferred_constraint_that_fails_at_commit_fails_the_script(postgres: Postgres) -> None:
    database = postgres.open()
    sql = "CREATE TABLE p (n int PRIMARY KEY); CREATE TABLE c (n int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
    apply(database, "a.sql", sql)
    with pytest.raises(Failed) as failed:
        apply(database, "b.sql", "INSERT INTO c VALUES (9)")
    assert failed.value.details["code"] == "23503"
    assert postgres.query("SELECT count(*) FROM c") == [(0,)]
    assert history_of(database) == ["a.sql"]
    database.close()


@pytest.mark.live
def test_customers_data_in_the_servers_detail_stays_out(postgres: Postgres) -> None:
    with pytest.raises(Failed) as failed:
        apply(
            postgres.open(),
            "a.sql",
            "CREATE TABLE a (mail text);\nINSERT INTO a SELECT 'marie@example.invalid' FROM generate_series(1, 2);\n"
            "CREATE UNIQUE INDEX u ON a (mail);",
        )
    assert "marie" not in failed.value.render()
    assert failed.value.reasons[0].source == "a.sql:3"
    assert failed.value.details["code"] == "23505"


@pytest.mark.live
def test_history_is_found_in_the_users_schema(postgres: Postgres) -> None:
    name = postgres.address.user
    postgres.query(f'CREATE SCHEMA "{name}"')
    database = postgres.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    database.close()
    rows = postgres.query("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'tma%'")
    assert rows == [(name,)]
    assert history_of(database) == ["a.sql"]
    with psycopg.connect(dbname=postgres.address.name, **_superuser(postgres)) as connection:
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)
    database.close()


def _superuser(postgres: Postgres) -> dict[str, Any]:
    address = postgres.server.superuser()
    return {"host": address.host, "port": address.port, "user": address.user, "password": address.password}


# --- SQLite's own ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["ATTACH 'other' AS o", "DETACH main", "BEGIN"])
def test_sqlite_script_stays_in_its_file_and_transaction(tmp_path: Path, word: str) -> None:
    engine = Sqlite(tmp_path)
    with pytest.raises(Failed):
        apply(engine.open(), "a.sql", f"CREATE TABLE a (n integer); {word};")
    assert "a" not in engine.tables()


@pytest.mark.parametrize("statement", ["INSERT OR ROLLBACK INTO a VALUES (1)", "INSERT INTO g VALUES (1)"])
def test_sqlite_conflict_that_rolls_back_leaves_nothing(tmp_path: Path, statement: str) -> None:
    engine = Sqlite(tmp_path)
    setup = (
        "CREATE TABLE a (n integer PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE g (n integer);"
        "CREATE TRIGGER t BEFORE INSERT ON g BEGIN SELECT RAISE(ROLLBACK, 'no'); END;"
    )
    apply(engine.open(), "a.sql", setup)
    with pytest.raises(Failed):
        apply(engine.open(), "b.sql", f"CREATE TABLE b (n integer); {statement}; CREATE TABLE c (n integer);")
    assert {"b", "c"}.isdisjoint(engine.tables())
    assert history_of(engine.open()) == ["a.sql"]


def test_sqlite_journal_of_a_killed_writer_does_not_hide_the_history(tmp_path: Path) -> None:
    engine = Sqlite(tmp_path)
    apply(engine.open(), "a.sql", "CREATE TABLE a (n text)")
    code = (
        "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\nc.execute('BEGIN')\n"
        "c.executemany('INSERT INTO a VALUES (?)', [('x' * 3000,)] * 200)\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(engine.path)], check=False)
    assert Path(f"{engine.path}-journal").stat().st_size > 0
    assert history_of(engine.open()) == ["a.sql"]
    assert engine.query("SELECT count(*) FROM a") == [(0,)]


def test_sqlite_backup_that_fails_its_integrity_check_is_no_backup(tmp_path: Path) -> None:
    engine = Sqlite(tmp_path)
    apply(engine.open(), "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (NULL);")
    connection = sqlite3.connect(engine.path, isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE a (n integer NOT NULL)' WHERE name = 'a'")
    connection.close()
    with pytest.raises(Failed, match="integrity_check"):
        engine.open().backup("run-1")
    assert list((tmp_path / "backups").iterdir()) == []


def test_sqlite_many_semicolons_in_one_text(tmp_path: Path) -> None:
    engine = Sqlite(tmp_path)
    rows = "\n".join(f"INSERT INTO a VALUES ({number}); -- {number};" for number in range(300))
    assert apply(engine.open(), "a.sql", f"CREATE TABLE a (n integer);\n{rows}") is True
    assert engine.query("SELECT count(*) FROM a") == [(300,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON tma_migration_history BEGIN SELECT 1; END",
        "CREATE TEMP TRIGGER t AFTER INSERT ON tma_migration_history BEGIN SELECT 1; END",
        "CREATE UNIQUE INDEX i ON tma_migration_history (run)",
        "ALTER TABLE main.tma_migration_fence ADD COLUMN x",
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM tma_migration_fence; END; INSERT INTO a VALUES (1)",
        "REPLACE INTO tma_migration_fence VALUES (1, 0, 1)",
        "WITH x AS (SELECT 1) DELETE FROM main.[tma_migration_history]",
    ],
)
def test_sqlite_script_cannot_reach_the_history_by_a_detour(tmp_path: Path, statement: str) -> None:
    engine = Sqlite(tmp_path)
    with pytest.raises(Failed, match="changes the migration history itself"):
        apply(engine.open(), "a.sql", f"CREATE TABLE a (n integer); {statement};")
    assert "a" not in engine.tables()


@pytest.mark.live
@pytest.mark.parametrize(
    "sql",
    [
        "DO $$ BEGIN UPDATE tma_migration_history SET run = run; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
        "SAVEPOINT s; DELETE FROM tma_migration_history; RELEASE SAVEPOINT s",
        "SET TimeZone = 'Asia/Tokyo'; UPDATE tma_migration_fence SET highest = highest",
        "INSERT INTO tma_migration_history SELECT 'b.sql', checksum, algorithm, fence, run, release, applied_at"
        " FROM tma_migration_history",
    ],
)
def test_postgresql_script_cannot_write_the_history_by_a_detour(postgres: Postgres, sql: str) -> None:
    database = postgres.open()
    apply(database, "00.sql", "CREATE TABLE base (n integer)")
    with pytest.raises(Failed, match="changes the migration history itself"):
        apply(database, "a.sql", sql)
    assert history_of(database) == ["00.sql"]
    # What only reads it, or changes how values are printed, is let through.
    assert apply(
        database, "a.sql", "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'; TABLE tma_migration_history"
    )
    assert apply(database, "b.sql", "SELECT 1") is True
    database.close()


def plainly(text: str) -> list[str]:
    """The statements as SQLite itself sees them, asked at every semicolon."""
    found, start = [], 0
    for end in [number + 1 for number, character in enumerate(text) if character == ";"]:
        if sqlite3.complete_statement(text[start:end]):
            found.append(text[start:end])
            start = end
    return [*found, text[start:]]


PIECES = [
    *("'", '"', "`", "[", "]", "--", "\n", "/*", "*/", ";", ";", ";", " ", "x", "end", "END", "weekend", "begin"),
    *("create trigger t after insert on a begin ", "create temp trigger ", "explain ", "explain query plan ", "a;b"),
    *("select case when 1 then 2 end", "--;\n", "/*;*/", "';'", "end;", ";end;", "; end /* x */ ;", "(", "é"),
]


def test_sqlite_statements_are_split_where_sqlite_would() -> None:
    from pipeline.databases.sqlite.host import beginning, statements

    chance = random.Random(20261122)
    for _ in range(20_000):
        text = "".join(chance.choices(PIECES, k=chance.randint(1, 14)))
        expected = [piece[beginning(piece) :] for piece in plainly(text)]
        assert [piece for _, piece in statements(text)] == [piece for piece in expected if piece not in {"", ";"}], text
        for line, piece in statements(text):
            assert piece.split("\n")[0] in text.split("\n")[line - 1], text


@pytest.mark.parametrize("shape", ["one statement", "many statements", "never closed", "trigger never closed"])
def test_sqlite_script_of_megabytes_is_split_in_time(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: what SQLite is given to look at is at most the script once or twice over."""
    from pipeline.databases.sqlite import host as sqlite_host

    row = "('one; two; three; four; five; six; seven; eight', 1)"
    text = {
        "one statement": "INSERT INTO a VALUES\n" + ",\n".join([row] * 100_000) + ";",
        "many statements": f"INSERT INTO a VALUES {row};\n" * 70_000,
        "never closed": "INSERT INTO a VALUES (1);\nINSERT INTO a VALUES ('" + "a;b;" * 1_250_000,
        "trigger never closed": "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n"
        + f"INSERT INTO a VALUES {row};\n" * 70_000,
    }[shape]
    assert len(text) > 5_000_000
    looked_at = 0
    complete = sqlite3.complete_statement

    def counting(piece: str) -> bool:
        nonlocal looked_at
        looked_at += len(piece)
        assert looked_at <= 2 * len(text)
        return complete(piece)

    monkeypatch.setattr(sqlite_host.sqlite3, "complete_statement", counting)
    found = sqlite_host.statements(text)
    assert len(found) == {"one statement": 1, "many statements": 70_000, "never closed": 2}.get(shape, 1)
    assert found[-1][0] == {"many statements": 70_000, "never closed": 2}.get(shape, 1)


def test_every_word_that_ends_a_transaction_is_known() -> None:
    from pipeline.databases.postgresql.statements import statements

    for words, ends in itertools.chain(
        (
            (text, True)
            for text in ("COMMIT", "Commit Work", "ROLLBACK", "ROLLBACK WORK", "abort", "PREPARE TRANSACTION 'x'")
        ),
        ((text, True) for text in ("commit prepared 'x'", "/* a /* b */ c */ COMMIT", "-- x\nROLLBACK AND CHAIN")),
        ((text, False) for text in ("ROLLBACK TO s", "ROLLBACK WORK TO SAVEPOINT s", "END", "PREPARE p AS SELECT 1")),
        (
            (text, False)
            for text in ("SELECT 'COMMIT'", "SELECT $x$;COMMIT;$x$", 'COMMENT ON TABLE "COMMIT;" IS $$a;$$')
        ),
    ):
        (statement,) = statements(words + ";")
        assert statement.ends_transaction is ends, words
