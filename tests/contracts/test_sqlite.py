"""SQLite's own: what the one suite of all engines does not ask, on real files through the host's python3."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.databases import HISTORY_FORMAT, Database
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
from pipeline.model import Script
from pipeline.transports import LineCut, Result
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import HOST_PATH, Sqlite, apply, history_of, script

pytestmark = pytest.mark.slow

PASSPHRASE = "canary pa55phrase"
RELEASE = "1.0+1"


def stepwise(name: str, sql: str, **more: Any) -> tuple[Script, bytes]:
    """A script that says that it runs outside a transaction."""
    made, data = script(name, sql)
    return made.model_copy(update={"transactional": False, **more}), data


def run(database: Database, made: tuple[Script, bytes], *, fence: int = 1, by: str = "r1", **more: Any) -> bool:
    return database.apply(*made, fence=fence, run=by, release=RELEASE, **more)


def row_of(database: Database, name: str) -> tuple[str, int, int] | None:
    return next(((row.state, row.statement, row.statements) for row in database.history() if row.script == name), None)


def told(database: Database) -> list[tuple[str, str | None]]:
    return [(event.what, event.script) for event in database.events()]


# --- the host's python3, watched ------------------------------------------------------------------------------------------

WATCHED = """
import os, resource, sqlite3, sys
step, when, report = int(sys.argv[1]), sys.argv[2], sys.argv[3]
connect, counts = sqlite3.connect, {"before": 0, "within": 0, "after": 0}

def at(moment):
    counts[moment] += 1
    if counts[moment] == step and when == moment:
        os.kill(os.getpid(), 9)

class Watched(sqlite3.Connection):
    def execute(self, *words):
        at("before")
        try:
            return super().execute(*words)
        finally:
            at("after")

    def backup(self, target, **more):
        at("before")
        try:
            if when == "within":
                more = {"pages": 1, "progress": lambda *_: at("within")}
            return super().backup(target, **more)
        finally:
            at("after")

sqlite3.connect = lambda *words, **more: connect(*words, factory=Watched, **more)
words = sys.argv[6:]
program = words[1] if words[0] == "-c" else open(words[0]).read()
sys.argv = ["-c", *words[2 if words[0] == "-c" else 1:]]
if program.startswith("import sys, sqlite3"):
    # Asks for the version only, after another has ended.
    exec(program)
exec(program)
open(report, "w").write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


class WatchedHost(LocalTransport):
    """A host on which the next python3 is killed before or after its ``step``-th statement, or after it copied so many
    pages; with step 0 it is only measured. ``ended`` says whether it got through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "host"
        self.folder.mkdir(exist_ok=True)
        self.report = self.folder / "report"
        (self.folder / "watched.py").write_text(WATCHED)
        super().__init__("app1", environment={"PATH": f"{self.folder}:{HOST_PATH}"})

    def watch(self, step: int = 0, when: str = "before") -> None:
        self.report.unlink(missing_ok=True)
        python = self.folder / "python3"
        python.write_text(
            f'#!/bin/sh\nexec {sys.executable} -I {self.folder}/watched.py {step} {when} {self.report} "$@"\n'
        )
        python.chmod(0o755)

    def run(self, *words: Any, **more: Any) -> Result:
        try:
            return super().run(*words, **more)
        finally:
            (self.folder / "python3").unlink(missing_ok=True)

    @property
    def ended(self) -> bool:
        return self.report.exists()


@pytest.fixture
def host(tmp_path: Path) -> WatchedHost:
    return WatchedHost(tmp_path)


HELD = """
import sqlite3, sys
path, words, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
connect, holding, met = sqlite3.connect, [], [0]

class Held(sqlite3.Connection):
    def execute(self, statement, *more):
        if holding and statement.startswith("UPDATE main.tma_migration_history"):
            met[0] += 1
            if met[0] == times:
                holding.pop().close()
        found = super().execute(statement, *more)
        if statement.startswith(words):
            other = connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            holding.append(other)
        return found

sqlite3.connect = lambda *given, **more: connect(*given, factory=Held, **more)
program = sys.argv[5]
sys.argv = ["-c"]
exec(program)
"""


class HeldAfter(LocalTransport):
    """A host on which another connection takes the write lock as soon as a statement that begins so has run, until the
    counter was tried so many times."""

    def __init__(self, engine: Sqlite, words: str, times: int = 0) -> None:
        folder = engine.folder / "held"
        folder.mkdir(exist_ok=True)
        (folder / "held.py").write_text(HELD)
        python = folder / "python3"
        python.write_text(
            f'#!/bin/sh\nshift 2\nexec {sys.executable} -I {folder}/held.py "{engine.path}" "{words}" {times} "$@"\n'
        )
        python.chmod(0o755)
        super().__init__("app1", environment={"PATH": f"{folder}:{HOST_PATH}"})


# --- the history's format -------------------------------------------------------------------------------------------------

FORMAT_1 = """
CREATE TABLE tma_migration_history (script TEXT PRIMARY KEY, checksum TEXT NOT NULL, algorithm TEXT NOT NULL,
 fence INTEGER NOT NULL, run TEXT NOT NULL, release TEXT NOT NULL, applied_at TEXT NOT NULL);
CREATE TABLE tma_migration_fence (id INTEGER PRIMARY KEY CHECK (id = 1), highest INTEGER NOT NULL, format INTEGER NOT NULL);
INSERT INTO tma_migration_fence VALUES (1, 4, 1);
"""


def in_format_1(engine: Sqlite, made: Script) -> None:
    connection = sqlite3.connect(engine.path)
    connection.executescript(FORMAT_1)
    values = (made.id, made.checksum, made.algorithm, 4, "old", "0.9+1", "2026-01-02T03:04:05.000000Z")
    connection.execute("INSERT INTO tma_migration_history VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()


def test_a_history_of_format_1_is_read_as_it_is_and_brought_up_to_date_by_the_first_claim(sqlite: Sqlite) -> None:
    made, data = script("00.sql", "CREATE TABLE a (n integer)")
    in_format_1(sqlite, made)
    before = sqlite.path.read_bytes()
    database = sqlite.open()
    (row,) = database.history()
    assert (row.script, row.state, row.fence, row.statements) == ("00.sql", "done", 4, 0)
    assert database.events() == []
    assert sqlite.path.read_bytes() == before
    with pytest.raises(Refused):
        database.claim(3, "r0")
    database.claim(5, "r1")
    assert sqlite.query("SELECT highest, format FROM tma_migration_fence") == [(5, HISTORY_FORMAT)]
    assert database.history() == [row]
    assert run(database, (made, data), fence=5) is False
    assert apply(database, "01.sql", "CREATE TABLE b (n integer)", fence=5)
    assert told(database) == [("applied", "01.sql")]


def test_killed_while_the_history_is_brought_up_to_date(sqlite: Sqlite, host: WatchedHost) -> None:
    made, _ = script("00.sql", "CREATE TABLE a (n integer)")
    for _ in attempts(host):
        sqlite.path.unlink(missing_ok=True)
        in_format_1(sqlite, made)
        try:
            sqlite.open(transport=host).claim(5, "r1")
        except PipelineError:
            assert not host.ended
        assert sqlite.query("SELECT highest, format FROM tma_migration_fence") in ([(4, 1)], [(5, HISTORY_FORMAT)])
        sqlite.open().claim(5, "r2")
        assert sqlite.query("SELECT script, state FROM tma_migration_history") == [("00.sql", "done")]
        assert sqlite.query("SELECT count(*) FROM tma_migration_events") == [(0,)]


# --- events, baseline, covers, repeatable, verify --------------------------------------------------------------------------


def test_events_tell_what_happened_in_order(sqlite: Sqlite) -> None:
    database = sqlite.open()
    assert database.events() == []
    first, _ = made = script("a.sql", "CREATE TABLE a (n integer)")
    run(database, made, fence=3, by="run-1")
    with pytest.raises(Failed):
        apply(database, "b.sql", "SELECT nothing", fence=3)
    run(database, made, fence=3)
    (event,) = database.events()
    assert (event.number, event.what, event.script, event.checksum) == (1, "applied", "a.sql", first.checksum)
    assert (event.fence, event.run, event.release, event.details) == (3, "run-1", RELEASE, {})


def test_baseline_counts_scripts_without_running_them_all_or_none(sqlite: Sqlite) -> None:
    database = sqlite.open()
    apply(database, "b.sql", "CREATE TABLE b (n integer)")
    made = [script(f"{name}.sql", f"CREATE TABLE {name} (n integer)") for name in "abc"]
    told_of = [each for each, _ in made]
    assert database.baseline(told_of, fence=1, run="r1", release=RELEASE) == ["a.sql", "c.sql"]
    assert database.baseline(told_of, fence=1, run="r1", release=RELEASE) == []
    assert {row.script: row.state for row in database.history()} == {
        "b.sql": "done",
        "a.sql": "baseline",
        "c.sql": "baseline",
    }
    assert "a" not in sqlite.tables()
    assert run(database, made[0]) is False
    with pytest.raises(Refused):
        apply(database, "a.sql", "CREATE TABLE other (n integer)")
    with pytest.raises(Refused):
        database.baseline(told_of, fence=0, run="r0", release=RELEASE)
    assert told(database) == [("applied", "b.sql"), ("baselined", "a.sql"), ("baselined", "c.sql")]


def test_what_a_script_covers_gets_its_row_with_it(sqlite: Sqlite) -> None:
    database = sqlite.open()
    covered = [script(name, "SELECT 1")[0] for name in ("01.sql", "02.sql")]
    with pytest.raises(Failed):
        run(database, script("all.sql", "CREATE TABLE a (n integer); SELECT nothing"), covers=covered)
    assert database.history() == []
    assert run(database, script("all.sql", "CREATE TABLE a (n integer)"), covers=covered)
    assert [(row.script, row.state) for row in database.history()] == [
        ("all.sql", "done"),
        ("01.sql", "baseline"),
        ("02.sql", "baseline"),
    ]


def test_a_repeatable_script_runs_again_when_it_is_another(sqlite: Sqlite) -> None:
    database = sqlite.open()
    for number, expected in ((1, True), (1, False), (2, True)):
        made, data = script("view.sql", f"DROP VIEW IF EXISTS v; CREATE VIEW v AS SELECT {number} AS n")
        assert run(database, (made.model_copy(update={"kind": "repeatable"}), data)) is expected
    assert sqlite.query("SELECT n FROM v") == [(2,)]
    assert history_of(database) == ["view.sql"]
    assert told(database) == [("applied", "view.sql"), ("reapplied", "view.sql")]


@pytest.mark.parametrize("transactional", [True, False])
def test_verify_is_run_and_rolled_back(sqlite: Sqlite, transactional: bool) -> None:
    database = sqlite.open()
    made, data = script("a.sql", "CREATE TABLE a (n integer);\nINSERT INTO a VALUES (1);")
    made = made.model_copy(update={"transactional": transactional})
    verify = b"\xef\xbb\xbf-- checked\nBEGIN;\nINSERT INTO a VALUES (2);\nSELECT 1 / n FROM a;\nROLLBACK;\n"
    assert run(database, (made, data), verify=verify)
    assert sqlite.query("SELECT n FROM a") == [(1,)]
    assert row_of(database, "a.sql") == ("done", *((0, 0) if transactional else (2, 2)))


def test_failing_verify_takes_a_transactional_script_back(sqlite: Sqlite) -> None:
    database = sqlite.open()
    with pytest.raises(Failed, match="its verify failed") as failed:
        run(database, script("a.sql", "CREATE TABLE a (n integer)"), verify=b"SELECT 1;\nSELECT n FROM b;")
    assert "line 2: statement 2 (SELECT n FROM b)" in failed.value.reasons[0].text
    assert "a" not in sqlite.tables()
    assert database.history() == []


def test_failing_verify_blocks_what_is_committed(sqlite: Sqlite) -> None:
    database = sqlite.open()
    made = stepwise("a.sql", "CREATE TABLE a (n integer); VACUUM;")
    with pytest.raises(Failed, match="its verify failed") as failed:
        run(database, made, verify=b"SELECT n FROM b;")
    assert "committed" in failed.value.state
    assert row_of(database, "a.sql") == ("running", 2, 2)
    with pytest.raises(Refused, match="blocked"):
        run(database, made)
    database.repair("a.sql", "done", fence=1, run="r1", release=RELEASE)
    assert run(database, made) is False


# --- scripts that commit statement by statement ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    ["VACUUM", "PRAGMA journal_mode = WAL", "pragma /* x */ main.foreign_keys=on", "PRAGMA wal_checkpoint(TRUNCATE)"],
)
def test_what_needs_no_transaction_is_refused_beforehand_with_the_header_to_write(
    sqlite: Sqlite, statement: str
) -> None:
    database = sqlite.open()
    sql = f"CREATE TABLE a (n integer);\n\n{statement};\n"
    with pytest.raises(Failed, match="as it is declared") as failed:
        apply(database, "a.sql", sql)
    assert failed.value.reasons[0].source == "a.sql:3"
    assert "-- tma: transaction=no" in failed.value.next_commands[0]
    assert "a" not in sqlite.tables()
    assert run(database, stepwise("a.sql", sql))
    assert row_of(database, "a.sql") == ("done", 2, 2)
    assert told(database) == [("started", "a.sql"), ("applied", "a.sql")]


def test_stopped_script_is_blocked_until_somebody_says_what_is_true(sqlite: Sqlite) -> None:
    database = sqlite.open()
    sql = "CREATE TABLE a (n integer);\nINSERT INTO a VALUES (1);\nINSERT INTO b VALUES (1);\nVACUUM;"
    made = stepwise("a.sql", sql)
    with pytest.raises(PartlyDone, match="stopped at statement 3 of 4") as stopped:
        run(database, made)
    assert stopped.value.reasons[0].source == "a.sql:3"
    assert "INSERT INTO b VALUES (1)" in stopped.value.reasons[0].text
    assert "Statements 1 to 2 are committed" in stopped.value.state
    assert any("resume-at=3" in command for command in stopped.value.next_commands)
    assert row_of(database, "a.sql") == ("running", 2, 4)
    with pytest.raises(Refused, match="blocked"):
        run(database, made, fence=2)
    for at in (None, 0, 5):
        with pytest.raises(UsageError):
            database.repair("a.sql", "resume", fence=2, run="r2", release=RELEASE, resume_at=at)
    sqlite.query("CREATE TABLE b (n integer)")
    database.repair("a.sql", "resume", fence=2, run="r2", release=RELEASE, resume_at=3)
    assert row_of(database, "a.sql") == ("running", 2, 4)
    assert run(database, made, fence=2, by="r2") is True
    assert sqlite.query("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)") == [(1, 1)]
    assert row_of(database, "a.sql") == ("done", 4, 4)
    assert [what for what, _ in told(database)] == ["started", "resumed", "applied"]
    with pytest.raises(Refused, match="not blocked"):
        database.repair("a.sql", "done", fence=2, run="r2", release=RELEASE)
    with pytest.raises(NotKnown):
        database.repair("z.sql", "done", fence=2, run="r2", release=RELEASE)


def test_a_resumed_script_that_stops_again_is_blocked_again(sqlite: Sqlite) -> None:
    database = sqlite.open()
    made = stepwise("a.sql", "CREATE TABLE a (n integer); SELECT nothing; VACUUM;")
    for _ in range(2):
        with pytest.raises(PartlyDone):
            run(database, made)
        with pytest.raises(Refused, match="blocked"):
            run(database, made)
        database.repair("a.sql", "resume", fence=1, run="r1", release=RELEASE, resume_at=2)
    database.repair("a.sql", "reverted", fence=1, run="r1", release=RELEASE)
    assert database.history() == []
    sqlite.query("DROP TABLE a")
    assert run(database, stepwise("a.sql", "CREATE TABLE a (n integer); VACUUM;"))
    assert told(database)[-3][0] == "marked-reverted"


def test_an_edited_script_does_not_go_on_where_the_old_one_stopped(sqlite: Sqlite) -> None:
    database = sqlite.open()
    with pytest.raises(PartlyDone):
        run(database, stepwise("a.sql", "CREATE TABLE a (n integer); SELECT nothing;"))
    database.repair("a.sql", "resume", fence=1, run="r1", release=RELEASE, resume_at=2)
    with pytest.raises(Refused, match="edited"):
        run(database, stepwise("a.sql", "CREATE TABLE a (n integer); SELECT 1;"))
    assert row_of(database, "a.sql") == ("running", 1, 2)


@pytest.mark.parametrize("sql", ["CREATE TEMP TABLE t (n integer); SELECT x FROM t;", "SELECT 1; SELECT nothing;"])
def test_what_depends_on_its_session_is_not_resumed(sqlite: Sqlite, sql: str) -> None:
    database = sqlite.open()
    with pytest.raises(PartlyDone):
        run(database, stepwise("a.sql", sql, session="TEMP" not in sql))
    with pytest.raises(Refused, match="cannot go on in the middle"):
        database.repair("a.sql", "resume", fence=1, run="r1", release=RELEASE, resume_at=2)
    database.repair("a.sql", "done", fence=1, run="r1", release=RELEASE)
    assert row_of(database, "a.sql") == ("done", 2, 2)


REBUILT = """PRAGMA foreign_keys = ON;
CREATE TABLE p (n integer PRIMARY KEY);
CREATE TABLE c (n integer REFERENCES p);
BEGIN;
INSERT INTO p VALUES (1);
INSERT INTO {table} VALUES (1);
COMMIT;
INSERT INTO c VALUES ({last});
"""


def test_a_transaction_of_the_scripts_own_is_taken_back_as_a_whole_and_settings_are_made_again(sqlite: Sqlite) -> None:
    database = sqlite.open()
    made = stepwise("a.sql", REBUILT.format(table="later", last=7))
    with pytest.raises(PartlyDone) as stopped:
        run(database, made)
    assert "its own transaction was rolled back" in stopped.value.reasons[0].text
    assert stopped.value.reasons[0].source == "a.sql:6"
    assert any("resume-at=4" in command for command in stopped.value.next_commands)
    assert row_of(database, "a.sql") == ("running", 3, 8)
    assert sqlite.query("SELECT count(*) FROM p") == [(0,)]
    sqlite.query("CREATE TABLE later (n integer)")
    database.repair("a.sql", "resume", fence=1, run="r1", release=RELEASE, resume_at=4)
    # 7 is in no p: had PRAGMA foreign_keys not been set again, the last statement would go through.
    with pytest.raises(PartlyDone, match="statement 8 of 8") as stopped:
        run(database, made)
    assert "FOREIGN KEY" in stopped.value.reasons[0].text
    assert sqlite.query("SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM c)") == [(1, 0)]


def test_a_transaction_that_is_left_open_is_taken_back(sqlite: Sqlite) -> None:
    database = sqlite.open()
    with pytest.raises(PartlyDone, match="statement 2 of 3") as stopped:
        run(database, stepwise("a.sql", "CREATE TABLE a (n integer); BEGIN; INSERT INTO a VALUES (1);"))
    assert "without ending the transaction" in stopped.value.reasons[0].text
    assert sqlite.query("SELECT count(*) FROM a") == [(0,)]


@pytest.mark.parametrize(
    ("opening", "closing"), [("BEGIN", "COMMIT"), ("BEGIN IMMEDIATE TRANSACTION", "end transaction"), ("begin", "END")]
)
def test_the_outer_pair_of_a_transactional_script_is_ours(sqlite: Sqlite, opening: str, closing: str) -> None:
    database = sqlite.open()
    trigger = "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n SELECT 1;\nEND;"
    sql = f"-- first\n{opening};\nCREATE TABLE a (n integer);\n{trigger}\n{closing}; -- last\n"
    assert apply(database, "a.sql", sql)
    with pytest.raises(Failed) as failed:
        apply(database, "b.sql", f"{opening};\nSELECT 1;\nSELECT nothing;\n{closing};")
    assert failed.value.reasons[0].source == "b.sql:3"
    assert history_of(database) == ["a.sql"]


def test_only_the_scripts_lines_run(sqlite: Sqlite) -> None:
    database = sqlite.open()
    made, data = script(
        "a.sql", "-- migrate:up\nCREATE TABLE a (n integer);\nSELECT x;\n-- migrate:down\nDROP TABLE a;\n"
    )
    with pytest.raises(Failed) as failed:
        run(database, (made.model_copy(update={"lines": (2, 3)}), data))
    assert failed.value.reasons[0].source == "a.sql:3"
    assert run(database, (made.model_copy(update={"lines": (2, 2)}), data))
    assert "a" in sqlite.tables()


# --- a script stays where it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '{other}' AS o",
        "VACUUM INTO '{other}'",
        "SELECT load_extension('{other}')",
        "SELECT writefile('{other}', 'x')",
        "SELECT readfile('/etc/hostname')",
        ".read {other}",
        "PRAGMA temp_store_directory = '/'",
    ],
)
def test_no_statement_reaches_another_file(sqlite: Sqlite, statement: str, transactional: bool) -> None:
    database = sqlite.open()
    other = sqlite.folder / "other"
    made, data = script("a.sql", f"CREATE TABLE a (n integer);\n{statement.format(other=other)};")
    with pytest.raises(PipelineError) as raised:
        run(database, (made.model_copy(update={"transactional": transactional}), data))
    assert isinstance(raised.value, Failed | PartlyDone)
    assert raised.value.reasons[0].source == "a.sql:2"
    assert not other.exists()


def test_a_stepwise_script_cannot_write_the_history(sqlite: Sqlite) -> None:
    database = sqlite.open()
    with pytest.raises(PartlyDone) as stopped:
        run(database, stepwise("a.sql", "SELECT 1;\nDELETE FROM tma_migration_events;"))
    assert "tma_migration_events is written by the pipeline only" in stopped.value.reasons[0].text
    assert told(database) == [("started", "a.sql")]
    with pytest.raises(Failed, match="changes the migration history itself"):
        apply(database, "b.sql", "UPDATE tma_migration_events SET number = 7")


def test_a_script_for_the_client_is_refused(sqlite: Sqlite) -> None:
    made, data = script("a.sql", "SELECT 1")
    with pytest.raises(Refused, match="cannot run"):
        run(sqlite.open(), (made.model_copy(update={"client": True}), data))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_ends_as_its_checksum_sees_it(sqlite: Sqlite, end: str) -> None:
    database = sqlite.open()
    text = "-- one\n-- two\nCREATE TABLE a (n integer);\nCREATE TABLE b (n integer);\nDROP TABLE a;\n".replace(
        "\n", end
    )
    made, data = script("a.sql", text)
    assert run(database, (made.model_copy(update={"lines": (3, 4)}), data))
    assert {"a", "b"} <= sqlite.tables()
    assert apply(database, "b.sql", f"-- all of it{end}CREATE TABLE c (n integer);{end}-- end{end}")
    assert "c" in sqlite.tables()
    with pytest.raises(Failed) as failed:
        apply(database, "c.sql", f"-- one{end}-- two{end}SELECT nothing;{end}")
    assert failed.value.reasons[0].source == "c.sql:3"
    with pytest.raises(Failed) as failed:
        apply(database, "d.sql", f"-- one{end}SELECT '".encode() + b"\xff';")
    assert failed.value.reasons[0].source == "d.sql:2"
    made, data = stepwise("e.sql", "SELECT 1;")
    assert run(database, (made, data), verify=f"-- x{end}SELECT 1;{end}".encode())
    with pytest.raises(PipelineError, match="its verify failed") as raised:
        run(database, stepwise("f.sql", "SELECT 1;"), verify=f"-- x{end}SELECT nothing;{end}".encode())
    assert "line 2" in raised.value.reasons[0].text


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("rest", ["/* now the rest * /", "SELECT 'x", 'SELECT "x', "SELECT `x", "SELECT [x"])
def test_what_is_never_closed_is_refused_with_its_line(sqlite: Sqlite, rest: str, transactional: bool) -> None:
    database = sqlite.open()
    made, data = script("a.sql", f"CREATE TABLE a (n integer);\n{rest}\nCREATE TABLE b (n integer);\n")
    with pytest.raises(Failed) as failed:
        run(database, (made.model_copy(update={"transactional": transactional}), data))
    assert "never closed" in failed.value.reasons[0].text
    assert failed.value.reasons[0].source == "a.sql:2"
    assert "a" not in sqlite.tables()
    assert database.history() == []


def test_an_outer_pair_contradicts_a_script_outside_a_transaction(sqlite: Sqlite) -> None:
    database = sqlite.open()
    pair = "-- tma: transaction=no\nBEGIN;\nCREATE TABLE a (n integer);\nINSERT INTO nowhere VALUES (1);\nCOMMIT;\n"
    with pytest.raises(Refused, match="contradicts") as refused:
        run(database, stepwise("a.sql", pair))
    assert refused.value.reasons[0].source == "a.sql:2"
    assert "transaction=no" in str(refused.value)
    assert "a" not in sqlite.tables()
    assert database.history() == []
    two = "BEGIN; CREATE TABLE a (n integer); COMMIT; VACUUM; BEGIN; CREATE TABLE b (n integer); COMMIT;"
    assert run(database, stepwise("b.sql", two))
    assert {"a", "b"} <= sqlite.tables()


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA writable_schema=ON",
        "PRAGMA main.writable_schema(1)",
        "CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM tma_migration_history; END",
        "CREATE TEMP TRIGGER g AFTER INSERT ON t BEGIN\n  /* x */ DELETE FROM [TMA_migration_events]; END",
    ],
)
def test_no_way_round_to_the_history(sqlite: Sqlite, statement: str, transactional: bool) -> None:
    database = sqlite.open()
    apply(database, "0.sql", "CREATE TABLE t (n integer);")
    made, data = script("a.sql", f"SELECT 1;\n{statement};")
    with pytest.raises((Failed, PartlyDone)) as raised:
        run(database, (made.model_copy(update={"transactional": transactional}), data))
    assert raised.value.reasons[0].source == "a.sql:2"
    assert sqlite.query("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'") == [(0,)]
    assert apply(database, "b.sql", "-- tma_migration_history\nCREATE TRIGGER h AFTER INSERT ON t BEGIN SELECT 1; END;")


@pytest.mark.parametrize("filler", ["/*" + "x" * 500 + "*/", " " * 500, "--" + "x" * 500 + "\n"])
def test_a_long_filler_hides_no_other_file(sqlite: Sqlite, filler: str) -> None:
    database = sqlite.open()
    other = sqlite.folder / "other"
    with pytest.raises(PartlyDone):
        run(database, stepwise("a.sql", f"SELECT 1;\nVACUUM {filler} INTO '{other}';"))
    assert not other.exists()
    assert run(database, stepwise("b.sql", f"VACUUM {filler};"))


def test_a_lost_counter_is_said_as_what_it_is(sqlite: Sqlite) -> None:
    """The counter finds a lock that never ends: the statement before it is committed, and is said to be."""
    database = sqlite.open(lock_timeout=0, patience=1)
    apply(database, "0.sql", "CREATE TABLE t (n integer);")
    for name, statements, words in (
        ("a.sql", "INSERT INTO t VALUES (1);\nSELECT 2;", "resume-at=2"),
        ("b.sql", "SELECT 1;\nINSERT INTO t VALUES (2);", "--mark-done"),
    ):
        host = HeldAfter(sqlite, "INSERT INTO t")
        with pytest.raises(PartlyDone) as stopped:
            run(sqlite.open(transport=host, lock_timeout=0, patience=1), stepwise(name, statements))
        number = 1 if name == "a.sql" else 2
        assert f"statement {number}" in stopped.value.state.lower() or f"1 to {number} are" in stopped.value.state
        assert f"{number} are committed" in stopped.value.state or "1 is committed" in stopped.value.state
        assert words in stopped.value.next_commands[0]
        assert not any(f"resume-at={number} " in command for command in stopped.value.next_commands)
    assert sqlite.query("SELECT n FROM t") == [(1,), (2,)]


def test_a_counter_waits_for_a_lock_that_ends(sqlite: Sqlite) -> None:
    apply(sqlite.open(), "0.sql", "CREATE TABLE t (n integer);")
    host = HeldAfter(sqlite, "INSERT INTO t", times=12)
    database = sqlite.open(transport=host, lock_timeout=0)
    assert run(database, stepwise("a.sql", "INSERT INTO t VALUES (1);\nSELECT 2;"))
    assert row_of(database, "a.sql") == ("done", 2, 2)


def test_a_line_cut_before_the_host_began_is_no_guess(sqlite: Sqlite) -> None:
    """What was sent arrives after the question: by then it is too late for it."""
    late: list[Callable[[], Result]] = []

    class Cut(LocalTransport):
        def run(self, script: str, arguments: Any = (), *, stdin: Any = b"", **more: Any) -> Result:
            if b'"operation": "apply"' in stdin[0]:
                late.append(partial(super().run, script, arguments, stdin=stdin, **more))
                raise LineCut("cut")
            return super().run(script, arguments, stdin=stdin, **more)

    cut = sqlite.open(transport=Cut("app1", environment={"PATH": HOST_PATH}))
    sqlite.open().claim(1, "r0")
    for name, made in (("a.sql", script), ("b.sql", stepwise)):
        with pytest.raises(Unreachable) as lost:
            run(cut, made(name, f"CREATE TABLE {name[0]} (n integer);"))
        assert lost.value.state.startswith("Nothing of this script was committed")
    for arrives in late:
        assert b'"ok": false' in arrives().stdout
    assert history_of(cut) == []
    assert not {"a", "b"} & sqlite.tables()
    assert run(sqlite.open(), script("a.sql", "CREATE TABLE a (n integer);"))


def test_a_line_cut_while_the_host_is_still_at_it_is_not_known(sqlite: Sqlite) -> None:
    class Cut(LocalTransport):
        def run(self, script: str, arguments: Any = (), *, stdin: Any = b"", **more: Any) -> Result:
            if b'"operation": "apply"' in stdin[0]:
                raise LineCut("cut")
            return super().run(script, arguments, stdin=stdin, **more)

    sqlite.open().claim(1, "r0")
    with sqlite.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PartlyDone, match="not known"):
            apply(
                sqlite.open(transport=Cut("app1", environment={"PATH": HOST_PATH}), patience=0.2), "a.sql", "SELECT 1;"
            )


def test_a_script_is_not_resumed_in_the_middle_of_its_own_transaction(sqlite: Sqlite) -> None:
    database = sqlite.open()
    made = stepwise(
        "a.sql", "SELECT 1; BEGIN; CREATE TABLE a (n integer); INSERT INTO nowhere VALUES (1); COMMIT; SELECT 2;"
    )
    with pytest.raises(PartlyDone):
        run(database, made)
    database.repair("a.sql", "resume", fence=1, run="r2", release=RELEASE, resume_at=4)
    with pytest.raises(PartlyDone) as stopped:
        run(database, made, by="r2")
    assert "middle of a transaction of its own" in stopped.value.reasons[0].text
    assert "resume-at=2 " in stopped.value.next_commands[0]
    assert row_of(database, "a.sql") == ("running", 1, 6)


def test_a_backup_through_a_link_has_the_log(sqlite: Sqlite) -> None:
    """SQLite keeps its log beside the file, not beside the link to it."""
    writer = sqlite3.connect(sqlite.path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE a (n integer)")
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = sqlite.folder / "current"
    folder.mkdir()
    link = folder / "link.sqlite"
    link.symlink_to(sqlite.path)
    reader = sqlite3.connect(sqlite.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM a").fetchall()
    writer.executemany("INSERT INTO a VALUES (?)", [(number,) for number in range(100)])
    database = sqlite.open(path=link, patience=0.5)
    with pytest.raises(Failed) as failed:
        database.backup("held")
    assert "write-ahead log" in str(failed.value)
    reader.close()
    taken = database.backup("free")
    assert sqlite.restore(taken.path, "SELECT count(*) FROM a") == [(100,)]
    writer.execute("DELETE FROM a")
    writer.close()
    database.restore("free", sha256=taken.sha256, fence=1, run="r1")
    assert sqlite.query("SELECT count(*) FROM a") == [(100,)]
    assert link.is_symlink()
    assert [path.name for path in folder.iterdir()] == ["link.sqlite"]


# --- killed at every step -------------------------------------------------------------------------------------------------


def attempts(host: WatchedHost) -> Iterator[None]:
    """One after the other, each killed a statement later than the one before, until one gets through."""
    for step in itertools.count(1):
        host.watch(step)
        yield
        if host.ended:
            assert step > 5
            return


def test_killed_at_every_step_a_transactional_script_is_there_with_its_row_or_not_at_all(
    sqlite: Sqlite, host: WatchedHost
) -> None:
    sql = "CREATE TABLE a (n integer); INSERT INTO a VALUES (1); CREATE INDEX i ON a (n);"
    for _ in attempts(host):
        sqlite.path.unlink(missing_ok=True)
        killed = sqlite.open(transport=host)
        try:
            apply(killed, "a.sql", sql, run="killed")
        except PipelineError:
            assert not host.ended
        database = sqlite.open()
        done = "a" in sqlite.tables()
        for table in ("history", "events"):
            if f"tma_migration_{table}" in sqlite.tables():
                assert sqlite.query(f"SELECT script FROM tma_migration_{table}") == [("a.sql",)] * done
            else:
                assert not done
        assert apply(database, "a.sql", sql, run="next") is not done
        assert sqlite.query("SELECT count(*) FROM a") == [(1,)]


def test_killed_at_every_step_a_stepwise_script_is_blocked_and_uncertain_by_one_statement(
    sqlite: Sqlite, host: WatchedHost
) -> None:
    made = stepwise("a.sql", "".join(f"INSERT INTO effects VALUES ({number});\n" for number in (1, 2, 3)) + "VACUUM;")
    blocked = 0
    for _ in attempts(host):
        sqlite.path.unlink(missing_ok=True)
        sqlite.query("CREATE TABLE effects (n integer)")
        try:
            run(sqlite.open(transport=host), made, by="killed")
        except PipelineError:
            assert not host.ended
        database = sqlite.open()
        (effects,) = sqlite.query("SELECT count(*) FROM effects")[0]
        row = None
        if "tma_migration_history" in sqlite.tables():
            row = next(iter(sqlite.query("SELECT state, statement FROM tma_migration_history")), None)
        if row is None:
            assert effects == 0
        elif row[0] == "running":
            blocked += 1
            assert effects in {min(row[1], 3), min(row[1] + 1, 3)}
            with pytest.raises(Refused, match="blocked"):
                run(database, made)
            if row[1] == 4:
                database.repair("a.sql", "done", fence=1, run="next", release=RELEASE)
            else:
                at = max(row[1], effects) + 1
                database.repair("a.sql", "resume", fence=1, run="next", release=RELEASE, resume_at=at)
        finished = row is not None and (row[0] == "done" or row[1] == 4)
        assert run(database, made, by="next") is not finished
        assert sqlite.query("SELECT n FROM effects ORDER BY n") == [(1,), (2,), (3,)]
        assert sqlite.query("SELECT state, statement FROM tma_migration_history") == [("done", 4)]
    assert blocked > 8


def test_a_cut_line_in_a_stepwise_script_says_what_is_known(sqlite: Sqlite, host: WatchedHost) -> None:
    made = stepwise("a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1); VACUUM;")

    found = set()
    for _ in attempts(host):
        sqlite.path.unlink(missing_ok=True)
        try:
            run(sqlite.open(transport=host), made)
        except PartlyDone as error:
            assert "may be" in error.state
            found.add(error.what.partition(" on database")[0])
        except PipelineError as error:
            found.add(type(error).__name__)
    assert {f"migration a.sql stopped at statement {number} of 3" for number in (1, 2, 3)} <= found
    assert "Unreachable" in found


# --- locks ----------------------------------------------------------------------------------------------------------------


def test_one_runner_at_a_time_even_between_the_statements_of_a_stepwise_script(sqlite: Sqlite) -> None:
    database = sqlite.open(patience=0.3)
    apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=7, run="run-7")
    held = os.open(sqlite.path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    for call in (
        lambda: apply(database, "b.sql", "SELECT 1", fence=8),
        lambda: run(database, stepwise("b.sql", "VACUUM"), fence=8),
        lambda: database.claim(8, "run-8"),
        lambda: database.baseline([script("b.sql", "x")[0]], fence=8, run="run-8", release=RELEASE),
        lambda: database.repair("a.sql", "done", fence=8, run="run-8", release=RELEASE),
    ):
        with pytest.raises(Locked) as locked:
            call()
        assert "the last to begin was run-7 with the fence 7" in locked.value.reasons[0].text
    assert history_of(database) == ["a.sql"]
    assert database.backup("run-8").size > 0
    os.close(held)
    assert apply(database, "b.sql", "SELECT 1", fence=8)


def test_a_lock_of_the_application_is_waited_for_and_the_script_is_tried_again(sqlite: Sqlite) -> None:
    database = sqlite.open(lock_timeout=0)
    apply(database, "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1);")
    reader = sqlite3.connect(sqlite.path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT n FROM a").fetchall()
    with pytest.raises(Failed, match=r"b\.sql failed") as failed:
        apply(database, "b.sql", "INSERT INTO a VALUES (2)")
    assert "in the way 5 times" in failed.value.reasons[0].text
    assert history_of(database) == ["a.sql"]
    timer = threading.Timer(0.7, reader.execute, ["COMMIT"])
    timer.start()
    assert apply(database, "b.sql", "INSERT INTO a VALUES (2)")
    timer.join()
    reader.close()
    assert sqlite.query("SELECT n FROM a") == [(1,), (2,)]


# --- looking --------------------------------------------------------------------------------------------------------------


def test_a_query_can_only_read(sqlite: Sqlite) -> None:
    database = sqlite.open()
    with pytest.raises(Failed):
        database.query("SELECT 1")
    apply(database, "a.sql", "CREATE TABLE a (n integer, b blob); INSERT INTO a VALUES (1, x'00ff')")
    assert database.query("SELECT n, b, 'é', NULL, 1.5 FROM a") == [(1, b"\x00\xff", "é", None, 1.5)]
    assert [row[1] for row in database.query("PRAGMA table_info(a)")] == ["n", "b"]
    before = sqlite.path.read_bytes()
    for statement in (
        "DELETE FROM a",
        "INSERT INTO a VALUES (2, 3)",
        "CREATE TEMP TABLE t (n integer)",
        "PRAGMA user_version = 7",
        "PRAGMA query_only = OFF",
        "ATTACH '/tmp/x' AS x",
        "COMMIT",
        "SELECT 1; DELETE FROM a",
        "SELECT load_extension('x')",
        "SELECT nothing",
    ):
        with pytest.raises(Failed):
            database.query(statement)
    assert sqlite.path.read_bytes() == before


def test_the_catalogue_does_not_depend_on_how_the_schema_came_about(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, other = Sqlite(tmp_path / "1"), Sqlite(tmp_path / "2")
    assert one.open().catalogue() == {"tables": {}, "views": {}}
    apply(
        one.open(),
        "a.sql",
        "CREATE TABLE p (id integer PRIMARY KEY, name text NOT NULL COLLATE NOCASE, UNIQUE (name));\n"
        "CREATE TABLE c (p integer REFERENCES p ON DELETE CASCADE, n int DEFAULT 1 CHECK (n > 0));\n"
        "CREATE INDEX i ON c (n DESC, p) WHERE n > 5; CREATE VIEW v AS SELECT n FROM c;\n"
        "CREATE TRIGGER t AFTER INSERT ON c BEGIN SELECT 1; END;",
    )
    for number, sql in enumerate(
        (
            'create table "c" ( n INT default 1 check(n>0) /* positive */ ); CREATE VIEW v AS SELECT n  FROM c;',
            "CREATE TABLE q (id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE nocase, UNIQUE (name));",
            "ALTER TABLE q RENAME TO p; ALTER TABLE c ADD COLUMN p integer REFERENCES p ON DELETE CASCADE;",
            "CREATE TRIGGER t AFTER INSERT ON c BEGIN\n SELECT 1;\nEND;",
            "CREATE INDEX i ON c (n DESC, p) WHERE n > 5;",
        )
    ):
        apply(other.open(), f"{number}.sql", sql)
    assert json.dumps(one.open().catalogue(), sort_keys=True) == json.dumps(other.open().catalogue(), sort_keys=True)
    assert set(one.open().catalogue()["tables"]) == {"p", "c"}


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE other (n integer)",
        "ALTER TABLE a ADD COLUMN c",
        "DROP INDEX i",
        "CREATE UNIQUE INDEX j ON a (n)",
        "DROP INDEX i; CREATE INDEX i ON a (n) WHERE n > 2",
        "DROP INDEX i; CREATE INDEX i ON a (n DESC)",
        "DROP INDEX i; CREATE INDEX i ON a (abs(n))",
        "DROP TRIGGER t; CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 2; END",
        "DROP VIEW v",
        "DROP TABLE a; CREATE TABLE a (n integer CHECK (n > 2), b text)",
        "DROP TABLE a; CREATE TABLE a (n integer CHECK (n > 1), b text DEFAULT 'x')",
        "DROP TABLE a; CREATE TABLE a (n integer CHECK (n > 1), b text NOT NULL)",
        "DROP TABLE a; CREATE TABLE a (n integer CHECK (n > 1) PRIMARY KEY, b text)",
        "DROP TABLE a; CREATE TABLE a (n integer CHECK (n > 1), b text COLLATE NOCASE)",
        "DROP TABLE a; CREATE TABLE a (n integer CHECK (n > 1), b text AS (n || 'x'))",
        "DROP TABLE g; CREATE TABLE g (x AS (y + 2), y)",
        "DROP TABLE g; CREATE TABLE g (x AS (y + 1), y REFERENCES a (n))",
    ],
)
def test_the_catalogue_sees_every_change(sqlite: Sqlite, change: str) -> None:
    database = sqlite.open()
    apply(
        database,
        "a.sql",
        "CREATE TABLE a (n integer CHECK (n > 1), b text); CREATE INDEX i ON a (n); CREATE VIEW v AS SELECT 1;"
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END; CREATE TABLE g (x AS (y + 1), y);",
    )
    before = database.catalogue()
    apply(database, "b.sql", change)
    assert database.catalogue() != before


def test_the_server_says_what_it_is(sqlite: Sqlite) -> None:
    server = sqlite.open().server()
    assert server.version.startswith("SQLite 3.")
    assert "Python 3." in server.version
    assert server.refusals == ()


def test_rehearsed_on_a_copy_and_nothing_stays(sqlite: Sqlite) -> None:
    database = sqlite.open()
    assert [each.outcome for each in database.rehearse([script("0.sql", "CREATE TABLE z (n integer)")], run="r1")] == [
        "ok"
    ]
    assert not sqlite.path.exists()
    apply(database, "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1);")
    before = sqlite.path.read_bytes()
    scripts = [
        script("a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1);"),
        script("b.sql", "UPDATE a SET n = 2; CREATE TABLE b AS SELECT n FROM a;"),
        stepwise("c.sql", "DELETE FROM a; VACUUM; SELECT 1 FROM b;"),
        script("d.sql", "SELECT 1;\nSELECT nothing;"),
        script("e.sql", "SELECT 1"),
    ]
    rehearsed = database.rehearse(scripts, run="r1")
    assert [(each.script, each.outcome) for each in rehearsed] == [
        ("a.sql", "ok"),
        ("b.sql", "ok"),
        ("c.sql", "ok"),
        ("d.sql", "failed"),
    ]
    assert "statement 2 (SELECT nothing)" in rehearsed[-1].said
    assert "d.sql:2" in rehearsed[-1].said
    assert sqlite.path.read_bytes() == before
    assert [path.name for path in sqlite.folder.iterdir()] == [sqlite.path.name]


def test_a_script_of_20_megabytes_takes_little_more_than_itself(sqlite: Sqlite, host: WatchedHost) -> None:
    host.watch()
    database = sqlite.open(transport=host)
    apply(database, "a.sql", "CREATE TABLE a (n integer, b text)")
    small = int(host.report.read_text())
    host.watch()
    row = "INSERT INTO a VALUES (1, '" + "x" * 200 + "');\n"
    sql = row * (20_000_000 // len(row))
    assert apply(database, "b.sql", sql)
    # In kilobytes: the bytes that came, the text that they are, and what SQLite keeps of the pages.
    assert int(host.report.read_text()) - small < 3 * len(sql) / 1000
    assert sqlite.query("SELECT count(*) FROM a") == [(sql.count(";"),)]


def test_what_does_not_arrive_whole_is_not_begun(sqlite: Sqlite) -> None:
    class Short(LocalTransport):
        def run(self, script: str, arguments: Any = (), *, stdin: Any = b"", **more: Any) -> Any:
            return super().run(script, arguments, stdin=b"".join(stdin)[:-3], **more)

    with pytest.raises(Failed, match="cannot be read") as failed:
        apply(
            sqlite.open(transport=Short("app1", environment={"PATH": HOST_PATH})), "a.sql", "CREATE TABLE a (n integer)"
        )
    assert "did not arrive whole" in failed.value.reasons[0].text
    assert not sqlite.path.exists()


# --- backups --------------------------------------------------------------------------------------------------------------


def filled(sqlite: Sqlite, **options: Any) -> Database:
    database = sqlite.open(**options)
    rows = "INSERT INTO a WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    apply(
        database,
        "a.sql",
        f"CREATE TABLE a (n integer, b text); {rows} SELECT i, 'needle in the clear' FROM n;",
        fence=3,
    )
    return database


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_backup_is_proven_listed_and_restored(sqlite: Sqlite, mode: str, passphrase: str | None) -> None:
    database = filled(sqlite, passphrase=passphrase, proof="restore")
    run(database, stepwise("mode.sql", f"PRAGMA journal_mode = {mode}"), fence=3)
    reader = sqlite3.connect(sqlite.path, isolation_level=None)
    taken = database.backup("run-1")
    assert taken.restored
    assert "the same rows" in taken.proven_by
    assert (b"needle" in Path(taken.path).read_bytes()) is (passphrase is None)
    assert [each.label for each in database.backups()] == ["run-1"]
    apply(database, "b.sql", "DELETE FROM a; CREATE TABLE b (n integer)", fence=4)
    assert database.prove("run-1") == taken
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM a").fetchone() == (0,)
    reader.execute("COMMIT")
    with pytest.raises(Refused) as refused:
        database.restore("run-1", sha256=taken.sha256, fence=3, run="old")
    assert overtaken(refused.value)
    with pytest.raises(Refused):
        database.restore("run-1", sha256="0" * 64, fence=5, run="run-5")
    assert "b" in sqlite.tables()
    database.restore("run-1", sha256=taken.sha256, fence=5, run="run-5")
    # The connection that was open all the time sees the restored database.
    assert reader.execute("SELECT count(*) FROM a").fetchone() == (500,)
    assert reader.execute("PRAGMA journal_mode").fetchone() == (mode,)
    assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    reader.close()
    assert "b" not in sqlite.tables()
    assert history_of(database) == ["a.sql", "mode.sql"]
    *_, event = database.events()
    assert (event.what, event.fence, event.run, event.details) == ("restored", 5, "run-5", {"backup": "run-1"})
    with pytest.raises(Refused):
        database.claim(4, "old")
    assert sorted(path.name for path in sqlite.folder.glob(".*")) == []


def test_a_backup_of_nothing_is_restored_as_nothing_and_a_missing_one_is_not_known(sqlite: Sqlite) -> None:
    database = sqlite.open()
    database.backup("run-0")
    apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=2)
    with pytest.raises(NotKnown):
        database.restore("run-9", sha256=None, fence=3, run="r3")
    with pytest.raises(NotKnown):
        database.prove("run-9")
    database.restore("run-0", sha256=None, fence=3, run="r3")
    assert history_of(database) == []
    assert "a" not in sqlite.tables()
    with pytest.raises(Refused):
        apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=2)
    sqlite.path.unlink()
    database.restore("run-0", sha256=None, fence=3, run="r3")
    assert sqlite.query("SELECT highest FROM tma_migration_fence") == [(3,)]


def test_a_restore_brings_a_history_of_format_1_up_to_date(sqlite: Sqlite) -> None:
    in_format_1(sqlite, script("00.sql", "SELECT 1")[0])
    database = sqlite.open()
    taken = database.backup("run-1")
    database.restore("run-1", sha256=taken.sha256, fence=9, run="r9")
    assert history_of(database) == ["00.sql"]
    assert told(database) == [("restored", None)]


def test_a_restore_waits_for_no_reader_for_ever_and_for_no_other_runner(sqlite: Sqlite) -> None:
    database = filled(sqlite, patience=0.5)
    database.backup("run-1")
    apply(database, "b.sql", "DELETE FROM a", fence=3)
    reader = sqlite3.connect(sqlite.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM a").fetchone()
    with pytest.raises(Locked):
        database.restore("run-1", sha256=None, fence=4, run="r4")
    reader.close()
    held = os.open(sqlite.path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Locked):
        database.restore("run-1", sha256=None, fence=4, run="r4")
    os.close(held)
    assert sqlite.query("SELECT count(*) FROM a") == [(0,)]
    database.restore("run-1", sha256=None, fence=4, run="r4")
    assert sqlite.query("SELECT count(*) FROM a") == [(500,)]


@pytest.mark.parametrize("when", ["before", "within"])
def test_killed_at_every_step_of_a_restore_the_database_is_the_old_or_the_new(
    sqlite: Sqlite, host: WatchedHost, when: str
) -> None:
    database = filled(sqlite)
    # More than SQLite keeps in memory, so that pages are in the file before the last one is copied.
    pad = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    apply(
        database, "0.sql", f"CREATE TABLE pad (b blob); {pad} INSERT INTO pad SELECT randomblob(8000) FROM n;", fence=3
    )
    database.backup("run-1")
    apply(
        database,
        "b.sql",
        "UPDATE a SET b = 'another'; UPDATE pad SET b = randomblob(8000); CREATE TABLE b (n integer);",
        fence=3,
    )
    before = sqlite.path.read_bytes()
    seen = set()
    for step in itertools.count(1, 140 if when == "within" else 1):
        sqlite.path.write_bytes(before)
        host.watch(step, when)
        try:
            sqlite.open(transport=host).restore("run-1", sha256=None, fence=4, run="r4")
        except Failed as error:
            assert not host.ended
            assert "never in between" in error.state
        (counts,) = sqlite.query("SELECT count(*), sum(b = 'another') FROM a")
        restored = counts == (500, 0)
        assert restored or counts == (500, 500)
        seen.add(restored)
        assert ("b" not in sqlite.tables()) is restored
        assert sqlite.query("PRAGMA integrity_check") == [("ok",)]
        if host.ended:
            break
    assert seen == {True, False}
    assert step > 10
    assert sqlite.query("SELECT highest FROM tma_migration_fence") == [(4,)]


@pytest.mark.parametrize(
    "damage",
    ["UPDATE a SET n = 7 WHERE n = 8", "DELETE FROM a WHERE n = 8", "CREATE TABLE more (n integer)"],
)
@pytest.mark.parametrize("proof", ["archive", "restore"])
def test_a_backup_that_is_another_database_is_no_backup(sqlite: Sqlite, damage: str, proof: str) -> None:
    database = filled(sqlite, proof=proof)
    taken = database.backup("run-1")
    other = sqlite3.connect(taken.path)
    other.execute(damage)
    other.commit()
    other.close()
    for call in (lambda: database.backup("run-1"), lambda: database.prove("run-1")):
        with pytest.raises(Failed, match="no proven backup"):
            call()
    assert history_of(database) == ["a.sql"]


@pytest.mark.parametrize("facts", ["counts", "catalogue", "broken_keys", "clear"])
def test_a_trial_restore_is_compared_with_what_was_noted(sqlite: Sqlite, facts: str) -> None:
    database = filled(sqlite, proof="restore")
    taken = database.backup("run-1")
    path = Path(taken.path + ".facts")
    first, _, noted = path.read_text().partition("\n")
    known = json.loads(noted)
    known[facts] = {"counts": {"a": 499}, "catalogue": {}, "broken_keys": 1, "clear": "0" * 64}[facts]
    path.write_text(f"{first}\n{json.dumps(known)}\n")
    with pytest.raises(Failed, match="no proven backup"):
        database.prove("run-1")


def test_a_sealed_backup_needs_its_passphrase_and_no_process_or_error_shows_it(sqlite: Sqlite) -> None:
    database = filled(sqlite, passphrase=PASSPHRASE)
    taken = database.backup("run-1")
    assert taken.path.endswith(".enc")
    assert "are those of the database" in taken.proven_by
    for wrong in (None, "another"):
        with pytest.raises(Failed) as failed:
            sqlite.open(passphrase=wrong).prove("run-1")
        assert PASSPHRASE not in failed.value.render()
        with pytest.raises(Failed):
            sqlite.open(passphrase=wrong).restore("run-1", sha256=taken.sha256, fence=4, run="r4")
    assert sqlite.query("SELECT count(*) FROM a") == [(500,)]


def test_what_a_killed_trial_restore_left_is_swept_up(sqlite: Sqlite) -> None:
    database = filled(sqlite)
    database.backup("run-1")
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    left = sqlite.path.with_name(f".{sqlite.path.name}.tma-trial.{gone}")
    left.write_bytes(b"x")
    database.prove("run-1")
    assert not left.exists()


def test_a_write_in_the_middle_of_a_backup_waits(sqlite: Sqlite) -> None:
    """The file is read as it lies: while that goes on, nobody writes to it, whatever the journal."""
    from pipeline.databases.sqlite.host_backups import keep_still

    for mode in ("delete", "wal"):
        sqlite.query(f"PRAGMA journal_mode = {mode}")
        sqlite.query("CREATE TABLE IF NOT EXISTS a (n integer)")
        reading = sqlite3.connect(sqlite.path, isolation_level=None)
        keep_still(reading, str(sqlite.path), 1.0)
        before = sqlite.path.read_bytes()
        writer = sqlite3.connect(sqlite.path, isolation_level=None, timeout=0.1)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("INSERT INTO a VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("VACUUM")
        writer.close()
        assert sqlite.path.read_bytes() == before
        reading.close()


def test_a_full_disk_is_named_where_sqlite_only_cannot_open_a_file(
    sqlite: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.databases.sqlite import host

    def disk(**changes: int) -> None:
        usual = {"f_bavail": 1000, "f_frsize": 4096, "f_files": 1000, "f_favail": 1000}
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**usual | changes))

    error = sqlite3.OperationalError("unable to open database file")
    disk()
    assert host.said_of(error, str(sqlite.path)) == "unable to open database file"
    for changes in ({"f_favail": 0}, {"f_bavail": 15}):
        disk(**changes)
        assert "file: No space left on the disk of " in host.said_of(error, str(sqlite.path))
    disk(f_files=0, f_favail=0)  # a file system without a fixed number of inodes
    assert "No space" not in host.said_of(error, str(sqlite.path))
