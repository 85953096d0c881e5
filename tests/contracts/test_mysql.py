"""What MariaDB keeps although its DDL commits by itself: scripts unit by unit, with a counter, blocked and repaired."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.databases.mysql import session as mysql_session
from pipeline.databases.mysql.database import MysqlDatabase
from pipeline.databases.mysql.session import Command, Session
from pipeline.errors import Failed, NotKnown, PartlyDone, PipelineError, Refused, Unreachable, UsageError, overtaken
from tests.contracts.engines import SECRET, MariaDb, apply, history_of, script

pytestmark = [pytest.mark.slow, pytest.mark.live]

ROOT = Path(__file__).parents[2]

STEPS = """
CREATE TABLE t1 (n int PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO effects VALUES (2);
START TRANSACTION;
INSERT INTO effects VALUES (4);
INSERT INTO effects VALUES (5);
COMMIT;
ALTER TABLE t1 ADD COLUMN a7 int;
UPDATE effects SET n = 8 WHERE n = 5;
DROP TABLE IF EXISTS gone;
INSERT INTO effects VALUES (10);
"""


def state_of(database: MysqlDatabase, name: str) -> tuple[str, int, int]:
    (row,) = [row for row in database.history() if row.script == name]
    return row.state, row.statement, row.statements


# --- failing half-way --------------------------------------------------------------------------------------------------


def test_script_failing_half_way_names_what_is_committed_and_is_blocked_until_repaired(mariadb: MariaDb) -> None:
    database = mariadb.open()
    sql = "CREATE TABLE a (n int);\n\n-- then\nINSERT INTO a VALUES (1);\nINSERT INTO nowhere VALUES (1);\nCREATE TABLE b (n int)"
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", sql)
    assert partly.value.reasons[0].source == "01.sql:5"
    assert "statement 3 (INSERT INTO nowhere VALUES (1))" in partly.value.reasons[0].text
    assert "[1146]" in partly.value.reasons[0].text
    assert partly.value.state == "Statements 1 to 2 are committed, the others are not."
    resume = "invoke migrate.repair customer=acme env=test script=01.sql resume-at=3 reason="
    assert partly.value.next_commands[0] == resume
    assert state_of(database, "01.sql") == ("running", 2, 4)
    with pytest.raises(Refused, match="blocked") as refused:
        apply(database, "01.sql", sql)
    assert refused.value.next_commands[0] == resume
    # Nobody else passes it by either.
    with pytest.raises(Refused, match="blocked"):
        apply(mariadb.open(), "01.sql", sql, fence=2, run="other")
    mariadb.query("CREATE TABLE nowhere (n int)")
    database.repair("01.sql", "resume", fence=3, run="fix", release="1", resume_at=3)
    assert apply(database, "01.sql", sql, fence=3, run="again") is True
    assert mariadb.query("SELECT (SELECT COUNT(*) FROM a), (SELECT COUNT(*) FROM nowhere)") == [(1, 1)]
    assert state_of(database, "01.sql") == ("done", 4, 4)
    assert [event.what for event in database.events()] == ["started", "resumed", "applied"]


@pytest.mark.parametrize("sql", ["CREAT TABLE b (n int)", "INSERT INTO nowhere VALUES (1)", "CREATE TABLE a (n int)"])
def test_script_failing_at_its_first_statement_leaves_nothing_and_is_not_blocked(mariadb: MariaDb, sql: str) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    with pytest.raises(Failed) as failed:
        apply(database, "01.sql", f"{sql};\nCREATE TABLE c (n int);")
    assert failed.value.reasons[0].source == "01.sql:1"
    assert "Nothing of this script was committed" in failed.value.state
    assert history_of(database) == ["00.sql"]
    assert apply(database, "01.sql", "CREATE TABLE c (n int)") is True


def test_transaction_of_the_scripts_own_is_one_unit(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int PRIMARY KEY); INSERT INTO a VALUES (9)")
    sql = "INSERT INTO a VALUES (1); START TRANSACTION; INSERT INTO a VALUES (2);\nINSERT INTO a VALUES (9); COMMIT;"
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", sql)
    assert partly.value.state == "Statement 1 is committed, the others are not."
    assert partly.value.reasons[0].source == "01.sql:2"
    assert partly.value.next_commands[0].endswith("resume-at=2 reason=")
    assert mariadb.query("SELECT n FROM a ORDER BY n") == [(1,), (9,)]
    mariadb.query("DELETE FROM a WHERE n = 9")
    database.repair("01.sql", "resume", fence=2, run="r", release="1", resume_at=4)
    with pytest.raises(Refused, match="statements 2 to 5 are done as a whole"):
        apply(database, "01.sql", sql, fence=2)
    database.repair("01.sql", "resume", fence=2, run="r", release="1", resume_at=2)
    assert apply(database, "01.sql", sql, fence=2) is True
    assert mariadb.query("SELECT n FROM a ORDER BY n") == [(1,), (2,), (9,)]
    assert apply(database, "02.sql", "BEGIN; SAVEPOINT s; DELETE FROM a; ROLLBACK TO SAVEPOINT s; COMMIT;", fence=2)
    assert mariadb.query("SELECT COUNT(*) FROM a") == [(3,)]


def test_block_in_which_a_statement_commits_counts_statement_by_statement(mariadb: MariaDb) -> None:
    database = mariadb.open()
    sql = "START TRANSACTION;\nCREATE TABLE a (n int);\nINSERT INTO a VALUES (1);\nINSERT INTO nowhere VALUES (1);\nCOMMIT;"
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", sql)
    assert partly.value.state == "Statements 1 to 3 are committed, the others are not."
    assert mariadb.query("SELECT n FROM a") == [(1,)]


def test_rows_that_cannot_be_rolled_back_are_not_called_rolled_back(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int PRIMARY KEY) ENGINE=MyISAM")
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", "INSERT INTO a VALUES (1), (2), (1)")
    assert "statement 1 may be" in partly.value.state
    assert mariadb.query("SELECT COUNT(*) FROM a") == [(2,)]


# --- killed --------------------------------------------------------------------------------------------------------------

RUNNER = """
import json, os, signal, sys
from pipeline.databases.mysql import session as mysql_session
from pipeline.databases.mysql.database import MysqlDatabase
from pipeline.model import DatabaseSettings
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import apply
what = json.loads(sys.argv[1])
mysql_session.COMMANDS = 1  # a command a message
left = [what["at"]]
send = mysql_session.Session.send
def counting(self, commands):
    left[0] -= 1
    if left[0] == 0 and what["before"]:
        os.kill(os.getpid(), signal.SIGKILL)
    found = send(self, commands)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
mysql_session.Session.send = counting
database = MysqlDatabase(
    LocalTransport("app1"), DatabaseSettings.model_validate(what["settings"]), what["password"], backups="/nonexistent"
)
apply(database, "kill.sql", what["sql"], fence=1, run="killed")
print(left[0])
"""


def killed_at(mariadb: MariaDb, sql: str, at: int, *, before: bool) -> int:
    what = {
        **{"settings": mariadb.settings().model_dump(), "password": SECRET},
        **{"sql": sql, "at": at, "before": before},
    }
    ran = subprocess.run([sys.executable, "-c", RUNNER, json.dumps(what)], cwd=ROOT, capture_output=True, check=False)
    if ran.returncode == 0:
        return int(ran.stdout)
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    return 0


def effects(mariadb: MariaDb) -> set[int]:
    """The numbers of the statements of STEPS whose effect is there."""
    numbers = {row[0] for row in mariadb.query("SELECT n FROM effects")}
    columns = {row[0] for row in mariadb.query("SHOW COLUMNS FROM t1")} if "t1" in mariadb.tables() else set()
    found = (numbers - {8}) | ({5, 8} if 8 in numbers else set())
    return found | ({1} if columns else set()) | ({7} if "a7" in columns else set())


CHANCE = random.Random(20261122)


@pytest.mark.parametrize("at", sorted(CHANCE.sample(range(5, 48), 12)))
def test_runner_killed_anywhere_leaves_a_history_that_is_true_and_can_be_repaired(mariadb: MariaDb, at: int) -> None:
    """Each command is a message of its own here, so that the runner dies before or after any of them."""
    before = CHANCE.random() < 0.5
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE effects (n int PRIMARY KEY)")
    killed_at(mariadb, STEPS, at, before=before)
    next_one = {"fence": 2, "run": "next"}
    rows = [row for row in database.history() if row.script == "kill.sql"]
    if rows and rows[0].state == "running":
        with pytest.raises(Refused, match="blocked"):
            apply(database, "kill.sql", STEPS, fence=2, run="next")
        known, there = state_of(database, "kill.sql")[1], effects(mariadb)
        with_effect = {1, 2, 4, 5, 7, 8, 10}
        assert {number for number in with_effect if number <= known} <= there
        # Uncertain by at most one, and by none where it and its counter commit together.
        assert there <= {number for number in with_effect if number <= known + 1}
        if known + 1 not in {1, 7}:
            assert known + 1 not in there
        resume_at = known + 2 if known + 1 in there else known + 1
        if known == 10:  # all but the word that it is done
            database.repair("kill.sql", "done", fence=2, run="next", release="1")
        else:
            database.repair("kill.sql", "resume", fence=2, run="next", release="1", resume_at=resume_at)
            assert apply(database, "kill.sql", STEPS, **next_one) is True  # type: ignore[arg-type]
    elif rows:
        assert apply(database, "kill.sql", STEPS, **next_one) is False  # type: ignore[arg-type]
    else:
        assert effects(mariadb) == set()
        assert apply(database, "kill.sql", STEPS, **next_one) is True  # type: ignore[arg-type]
    assert effects(mariadb) == {1, 2, 4, 5, 7, 8, 10}
    assert mariadb.query("SELECT n FROM effects ORDER BY n") == [(2,), (4,), (8,), (10,)]
    assert state_of(database, "kill.sql") == ("done", 10, 10)


@pytest.mark.parametrize("kill", ["KILL CONNECTION_ID()", "DO SLEEP(0.1); KILL CONNECTION CONNECTION_ID()"])
def test_connection_killed_by_a_statement_is_settled_by_the_history(mariadb: MariaDb, kill: str) -> None:
    database = mariadb.open()
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", f"CREATE TABLE a (n int);\n{kill};\nCREATE TABLE b (n int);")
    known = state_of(database, "01.sql")[1]
    assert f"statement {known + 1} may be" in partly.value.state
    assert partly.value.reasons[0].source == "01.sql:2"
    assert "b" not in mariadb.tables()


def test_connection_lost_before_anything_ran_is_said(mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch) -> None:
    database = mariadb.open()
    assert database.history() == []
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    mariadb.server.superuser().query(f"KILL {database.session.ask('SELECT CONNECTION_ID()')[0][0]}")
    with pytest.raises(Unreachable, match="does not list"):
        apply(database, "01.sql", "CREATE TABLE b (n int)")
    assert "b" not in mariadb.tables()
    assert apply(database, "01.sql", "CREATE TABLE b (n int)") is True


def test_server_killed_in_the_middle_is_settled_by_the_history(tmp_path: Path) -> None:
    from tests.servers.mariadb import MariaDbServer

    with MariaDbServer("--innodb-flush-log-at-trx-commit=1") as server:
        engine = MariaDb(server, tmp_path)
        database = engine.open(patience=2)
        apply(database, "00.sql", "CREATE TABLE effects (n int)")
        trouble: list[BaseException] = []

        def run() -> None:
            try:
                apply(
                    database,
                    "01.sql",
                    "INSERT INTO effects VALUES (1); CREATE TABLE t2 (n int); DO SLEEP(60); DROP TABLE t2",
                )
            except BaseException as error:
                trouble.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not engine.query("SELECT 1 FROM information_schema.processlist WHERE info LIKE 'DO SLEEP%'"):
            pass
        server.kill()
        thread.join()
        assert isinstance(trouble[0], PartlyDone)
        server.start()
        assert state_of(database, "01.sql") == ("running", 2, 4)
        assert engine.tables() >= {"effects", "t2"}
        database.close()


# --- one runner, one fence -------------------------------------------------------------------------------------------------


def at_statement(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
    """Just before the statement with this number is sent, as a message of its own, ``do`` is called."""
    monkeypatch.setattr(mysql_session, "COMMANDS", 1)
    send = Session.send

    def watching(self: Session, commands: list[Command]) -> Any:
        if any(command.role == "statement" and command.number == number for command in commands):
            do()
        return send(self, commands)

    monkeypatch.setattr(Session, "send", watching)


@pytest.mark.parametrize("second", ["CREATE TABLE b (n int)", "INSERT INTO a VALUES (2)"])
def test_runner_overtaken_in_the_middle_of_a_script_goes_no_further(
    mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    at_statement(monkeypatch, 1, lambda: mariadb.query("UPDATE tma_migration_fence SET highest = 9"))
    with pytest.raises(Refused) as refused:
        apply(database, "01.sql", f"DO 1; {second};")
    assert overtaken(refused.value)
    assert "Statement 1 is committed" in refused.value.state or "Statements 1 to 1" in refused.value.state
    assert "b" not in mariadb.tables()
    assert mariadb.query("SELECT n FROM a") == []


def test_lock_that_was_lost_stops_the_script(mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    with pytest.raises(Failed, match="failed"):
        apply(database, "01.sql", "DO RELEASE_ALL_LOCKS(); CREATE TABLE b (n int);")
    release = database.session.release
    at_statement(monkeypatch, 1, lambda: database.session._open.cursor().execute(release.sql))  # type: ignore[union-attr]
    with pytest.raises(PartlyDone):
        apply(database, "01.sql", "DO 1; CREATE TABLE b (n int);")
    assert "b" not in mariadb.tables()


def test_waiter_is_told_who_holds_the_database(mariadb: MariaDb) -> None:
    apply(mariadb.open(), "00.sql", "CREATE TABLE a (n int)")
    holder = mariadb.hold()
    with pytest.raises(PipelineError, match=rf"connection \d+ of {mariadb.address.user}"):
        apply(mariadb.open(patience=0.2), "01.sql", "SELECT 1")
    holder.close()


def test_lock_is_one_databases_own_and_long_names_have_one(mariadb: MariaDb) -> None:
    names = ["a" * 64, "a" * 63 + "b", "é" * 40, "shop"]
    assert len({mysql_session.lock_name(name) for name in names}) == 4
    assert all(len(mysql_session.lock_name(name)) <= 64 for name in names)
    assert mysql_session.lock_name("shop") == "tma:shop"


@pytest.mark.parametrize("statement", ["ALTER TABLE a ADD COLUMN m int", "UPDATE a SET n = 2"])
def test_statement_that_another_ones_lock_keeps_out_is_tried_again_and_then_named(
    mariadb: MariaDb, statement: str
) -> None:
    apply(mariadb.open(), "00.sql", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)")
    holder = mariadb.address.connect()
    holder.begin()
    holder.cursor().execute("UPDATE a SET n = 1")
    holder.cursor().execute("UPDATE a SET n = 3")
    database = mariadb.open(lock_timeout=1)
    with pytest.raises(Failed) as failed:
        apply(database, "01.sql", f"{statement};\nINSERT INTO a (n) VALUES (7)")
    assert "[1205]" in failed.value.reasons[0].text
    assert history_of(database) == ["00.sql"]
    threading.Timer(1.5, holder.rollback).start()
    assert apply(database, "01.sql", f"{statement};\nINSERT INTO a (n) VALUES (7)") is True
    assert mariadb.query("SELECT COUNT(*) FROM a") == [(2,)]
    holder.close()


# --- scripts of every kind ------------------------------------------------------------------------------------------------


def test_script_that_locks_tables_runs_without_counting_inside_and_is_not_resumed(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int PRIMARY KEY)")
    sql = "DO 1; LOCK TABLES a WRITE; INSERT INTO a VALUES (1); INSERT INTO a VALUES ({n}); UNLOCK TABLES; DO 2;"
    assert apply(database, "01.sql", sql.format(n=2)) is True
    with pytest.raises(PartlyDone) as partly:
        apply(database, "02.sql", sql.format(n=1))
    assert "Statement 1 is committed, statements 2 to 3 may be." in partly.value.state
    assert state_of(database, "02.sql")[:2] == ("running", 1)
    with pytest.raises(Refused, match="cannot go on in the middle"):
        database.repair("02.sql", "resume", fence=2, run="r", release="1", resume_at=2)
    database.repair("02.sql", "done", fence=2, run="r", release="1")
    assert state_of(database, "02.sql")[0] == "done"


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMPORARY TABLE x (n int); INSERT INTO nowhere SELECT n FROM x",
        "SET @x = 1; INSERT INTO nowhere VALUES (@x)",
        "PREPARE p FROM 'SELECT 1'; INSERT INTO nowhere VALUES (1)",
        "INSERT INTO a VALUES (1); INSERT INTO nowhere VALUES (LAST_INSERT_ID())",
    ],
)
def test_script_that_depends_on_the_session_is_not_resumed(mariadb: MariaDb, sql: str) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", sql)
    with pytest.raises(Refused, match="is blocked") as blocked:
        apply(database, "01.sql", sql, fence=2)
    for error in (partly.value, blocked.value):
        assert [command.split()[-2] for command in error.next_commands] == ["--mark-done", "--mark-reverted"]
    assert [row.session for row in database.history()] == [False, True]
    with pytest.raises(Refused, match="cannot go on in the middle"):
        database.repair("01.sql", "resume", fence=2, run="r", release="1", resume_at=2)
    database.repair("01.sql", "reverted", fence=2, run="r", release="1")
    assert history_of(database) == ["00.sql"]


def test_settings_before_the_statement_that_a_script_goes_on_with_hold_again(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(
        database,
        "00.sql",
        "CREATE TABLE p (n int PRIMARY KEY); CREATE TABLE c (n int, FOREIGN KEY (n) REFERENCES p (n))",
    )
    sql = "SET foreign_key_checks = 0; INSERT INTO c VALUES (1); INSERT INTO later VALUES (1); INSERT INTO c VALUES (2)"
    with pytest.raises(PartlyDone):
        apply(database, "01.sql", sql)
    mariadb.query("CREATE TABLE later (n int)")
    database.repair("01.sql", "resume", fence=2, run="r", release="1", resume_at=3)
    assert apply(database, "01.sql", sql, fence=2) is True
    assert mariadb.query("SELECT n FROM c ORDER BY n") == [(1,), (2,)]
    # And the next script has a session without them.
    with pytest.raises(Failed, match="foreign key"):
        apply(database, "02.sql", "INSERT INTO c VALUES (3)", fence=2)


def test_procedures_triggers_and_executable_comments(mariadb: MariaDb) -> None:
    database = mariadb.open()
    sql = """CREATE TABLE a (n int); CREATE TABLE log (n int);
/*!40101 SET NAMES utf8mb4 */;
/*!999999 CREATE TABLE never (n int) */;
DELIMITER //
CREATE PROCEDURE p(IN x int)
BEGIN
  INSERT INTO a VALUES (x); -- one; two
  INSERT INTO a VALUES (x + 1);
END//
CREATE TRIGGER t AFTER INSERT ON a FOR EACH ROW BEGIN INSERT INTO log VALUES (NEW.n); END;
//
DELIMITER ;
CALL p(1);
/*!50003 INSERT INTO a VALUES (9) */;
"""
    assert apply(database, "01.sql", sql) is True
    assert (
        mariadb.query("SELECT n FROM a ORDER BY n")
        == mariadb.query("SELECT n FROM log ORDER BY n")
        == [(1,), (2,), (9,)]
    )
    assert "never" not in mariadb.tables()
    assert apply(
        database, "02.sql", f"USE {mariadb.address.name}\nINSERT INTO a VALUES (5) RETURNING n; SELECT 1; SHOW TABLES"
    )


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT 1;\n\\! touch /tmp/x\n", "client's own"),
        ("SELECT 1;\nsystem touch /tmp/x\n", "SYSTEM is a command"),
        ("SELECT 1;\nsource other.sql;\n", "SOURCE is a command"),
        ("SELECT 1;\n\\. other.sql\n", "client's own"),
        ("SELECT 1;\nUSE mysql;\n", "migrate it as an environment of its own"),
        ("SELECT 1;\nSET autocommit = 0;\n", "START TRANSACTION and COMMIT"),
        ("SELECT 1;\nCOMMIT;\n", "no START TRANSACTION"),
        ("SELECT 1;\nSTART TRANSACTION; INSERT INTO a VALUES (1);\n", "never committed"),
        ("SELECT 1;\nSET sql_mode = 'NO_BACKSLASH_ESCAPES';\n", "how quotes are read"),
        ("SELECT 1;\nSELECT ROW_COUNT();\n", "the runner's own"),
        ("SELECT 1;\nXA START 'x';\n", "XA"),
        ("SELECT 1;\nDELIMITER //\nSELECT 1; XA START 'x'//\n", "XA"),
        ("SELECT 1;\nDELIMITER //\nSELECT 1; USE other//\n", "migrate it as an environment of its own"),
        ("SELECT 1;\nDELIMITER //\nDO 1; SET sql_mode = 'NO_BACKSLASH_ESCAPES'//\n", "how quotes are read"),
        ("SELECT 1;\nINSERT INTO a VALUES ('x;\n", "never closed"),
        ("SELECT 1;\nDELETE FROM `tma_migration_events`;\n", "tma_migration_events"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_ran(mariadb: MariaDb, sql: str, says: str) -> None:
    database = mariadb.open()
    with pytest.raises(Failed) as failed:
        apply(database, "01.sql", "CREATE TABLE a (n int); " + sql)
    assert says in failed.value.render()
    assert failed.value.reasons[0].source == f"01.sql:{3 if 'DELIMITER' in sql else 2}"
    assert "a" not in mariadb.tables()
    assert history_of(database) == []


def test_script_that_reaches_the_history_by_a_detour_is_found_out(mariadb: MariaDb) -> None:
    sql = (
        "SET @q = CONCAT('DELETE FROM tma_migra', 'tion_history'); PREPARE p FROM @q; EXECUTE p; CREATE TABLE b (n int)"
    )
    with pytest.raises(PartlyDone, match="does not list it"):
        apply(mariadb.open(), "01.sql", sql)
    assert "b" not in mariadb.tables()


def test_name_of_the_history_is_let_through_in_comments_only(mariadb: MariaDb) -> None:
    sql = "CREATE TABLE a (n text); -- tma_migration_fence\nINSERT INTO a /* tma_migration_history */ VALUES ('-- x')"
    database = mariadb.open()
    assert apply(database, "01.sql", sql) is True
    for number, statement in enumerate(REACHING):
        with pytest.raises(Failed, match="changes the migration history itself"):
            apply(database, f"{number}.sql", f"CREATE TABLE b (n int);\n{statement}")
    assert history_of(database) == ["01.sql"]
    assert mariadb.query("SELECT highest FROM tma_migration_fence") == [(1,)]


REACHING = [
    "ANALYZE UPDATE tma_migration_fence SET highest = 0",
    "DELIMITER //\nSELECT 1; UPDATE tma_migration_fence SET highest = -7//",
    "EXECUTE IMMEDIATE 'UPDATE tma_migration_fence SET highest = -7'",
    "UPDATE `it's`, tma_migration_fence SET highest = -6 WHERE 'x' = 'x'",
    "CREATE TRIGGER g AFTER INSERT ON a FOR EACH ROW DELETE FROM tma_migration_history",
]


def test_statement_longer_than_the_server_takes_is_found_before_anything_ran(mariadb: MariaDb) -> None:
    mariadb.server.superuser().query("SET GLOBAL max_allowed_packet = 1048576")
    try:
        database = mariadb.open()
        with pytest.raises(Failed, match="max_allowed_packet is 1048576") as failed:
            apply(database, "01.sql", f"CREATE TABLE a (n longtext);\nINSERT INTO a VALUES ('{'x' * 1_100_000}')")
        assert failed.value.reasons[0].source == "01.sql:2"
        assert "a" not in mariadb.tables()
    finally:
        mariadb.server.superuser().query("SET GLOBAL max_allowed_packet = 16777216")


def test_repeatable_covers_verify_and_lines(mariadb: MariaDb) -> None:
    database = mariadb.open()
    first, data = script("R__view.sql", "CREATE OR REPLACE VIEW v AS SELECT 1 AS n")
    repeatable = first.model_copy(update={"kind": "repeatable"})
    about: dict[str, Any] = {"fence": 1, "run": "r", "release": "1"}
    assert database.apply(repeatable, data, **about) is True
    assert database.apply(repeatable, data, **about) is False
    for text, outcome in (("CREATE OR REPLACE VIEW v AS SELECT 2 AS n", None), ("CREAT VIEW", Failed)):
        changed, data = script("R__view.sql", text)
        changed = changed.model_copy(update={"kind": "repeatable"})
        if outcome is None:
            assert database.apply(changed, data, **about) is True
        else:
            with pytest.raises(outcome):
                database.apply(changed, data, **about)
    assert mariadb.query("SELECT n FROM v") == [(2,)]
    assert state_of(database, "R__view.sql")[0] == "done"
    assert [event.what for event in database.events()].count("reapplied") == 1
    whole, data = script("schema.sql", "CREATE TABLE s (n int)")
    others = [script(f"{number}.sql", "x")[0] for number in (1, 2)]
    assert database.apply(whole, data, covers=others, **about) is True
    states = {row.script: row.state for row in database.history()}
    assert (states["1.sql"], states["schema.sql"]) == ("baseline", "done")
    verified, data = script("v.sql", "CREATE TABLE w (n int)")
    with pytest.raises(Failed, match="verify failed") as failed:
        database.apply(verified, data, verify=b"SELECT nothing FROM w", **about)
    assert "--mark-done" in "".join(failed.value.next_commands)
    assert state_of(database, "v.sql") == ("running", 1, 1)
    good, data = script("w.sql", "CREATE TABLE x (n int);\nCREATE TABLE y (n int);\nDROP TABLE x;\n")
    good = good.model_copy(update={"lines": (1, 2)})
    assert database.apply(good, data, verify=b"INSERT INTO x VALUES (1); SELECT * FROM y", **about) is True
    assert {"x", "y"} <= mariadb.tables()
    assert mariadb.query("SELECT COUNT(*) FROM x") == [(0,)]


def test_repairs_of_what_needs_none(mariadb: MariaDb) -> None:
    database = mariadb.open()
    about: dict[str, Any] = {"fence": 1, "run": "r", "release": "1"}
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    with pytest.raises(NotKnown):
        database.repair("x.sql", "done", **about)
    with pytest.raises(Refused, match="not blocked"):
        database.repair("00.sql", "done", **about)
    with pytest.raises(PartlyDone):
        apply(database, "01.sql", "CREATE TABLE b (n int); DROP TABLE nowhere")
    for number in (None, 0, 3):
        with pytest.raises(UsageError):
            database.repair("01.sql", "resume", resume_at=number, **about)
    assert database.baseline([script("00.sql", "x")[0], script("09.sql", "x")[0]], **about) == ["09.sql"]


def test_megabytes_of_inserts_run_in_little_memory(mariadb: MariaDb) -> None:
    """Counted in the process: the script itself, its text, and little more."""
    code = """
import json, resource, sys
from pipeline.databases.mysql.database import MysqlDatabase
from pipeline.model import DatabaseSettings
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import apply
what = json.loads(sys.argv[1])
database = MysqlDatabase(
    LocalTransport("app1"), DatabaseSettings.model_validate(what["settings"]), what["password"], backups="/nonexistent"
)
apply(database, "00.sql", "CREATE TABLE a (n longtext)")
rows = ", ".join(["('one; two; three')"] * 50)
sql = (f"INSERT INTO a VALUES {rows};\\n" * 21000).encode()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
apply(database, "01.sql", sql)
print(len(sql), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""
    what = json.dumps({"settings": mariadb.settings().model_dump(), "password": SECRET})
    ran = subprocess.run([sys.executable, "-c", code, what], cwd=ROOT, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    size, more = map(int, ran.stdout.split())
    assert size > 20_000_000
    # The text and the checksum's normalised copies of it, and a few messages of a megabyte.
    assert more < 3.5 * size
    assert mariadb.query("SELECT COUNT(*) FROM a") == [(21000 * 50,)]


def test_question_reads_only_and_is_one_statement(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)")
    mariadb.query("CREATE FUNCTION f() RETURNS int MODIFIES SQL DATA BEGIN DELETE FROM a; RETURN 1; END")
    assert database.query("SELECT n FROM a") == [(1,)]
    for statement in (
        "DELETE FROM a",
        "SELECT 1; DELETE FROM a",
        "SELECT f()",
        "SELECT 1 /*! ; DELETE FROM a */",
        "",
        "SELECT x",
    ):
        with pytest.raises(Failed):
            database.query(statement)
    assert mariadb.query("SELECT n FROM a") == [(1,)]


def test_small_script_costs_two_messages(mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE a (n int)")
    sent: list[int] = []
    send = Session.send
    monkeypatch.setattr(Session, "send", lambda self, commands: sent.append(len(commands)) or send(self, commands))
    apply(database, "01.sql", "CREATE TABLE b (n int); INSERT INTO b VALUES (1); INSERT INTO b VALUES (2);")
    assert len(sent) == 2


def test_way_client_is_refused_clearly(mariadb: MariaDb) -> None:
    with pytest.raises(Refused, match="client"):
        apply(mariadb.open(way="client"), "00.sql", "SELECT 1")


def test_server_names_what_it_lacks(mariadb: MariaDb) -> None:
    server = mariadb.open().server()
    assert "MariaDB" in server.version
    assert any("innodb_flush_log_at_trx_commit" in each for each in server.substitutes)
    assert server.refusals == ()
