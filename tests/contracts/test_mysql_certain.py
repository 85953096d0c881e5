"""What is said of a MariaDB script that failed is true, and nothing of it is done twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pipeline.databases.mysql import session as mysql_session
from pipeline.errors import Failed, PartlyDone, Refused
from tests.contracts.engines import MariaDb, apply, history_of, script

pytestmark = [pytest.mark.slow, pytest.mark.live]


def repair(database: Any, name: str, at: int) -> None:
    database.repair(name, "resume", fence=2, run="fix", release="1", resume_at=at)


@pytest.mark.parametrize(
    "commits",
    [
        "LOCK TABLES t WRITE; INSERT INTO t VALUES (2); UNLOCK TABLES",
        "SET STATEMENT max_statement_time = 100 FOR ALTER TABLE t ADD COLUMN x int DEFAULT 0 INVISIBLE",
        "CREATE TABLE temporary (id int)",
        "/*!999999 x */ ALTER TABLE t COMMENT = 'x'",
    ],
)
def test_block_that_commits_in_the_middle_is_not_called_undone(mariadb: MariaDb, commits: str) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE t (n int)")
    sql = f"START TRANSACTION; INSERT INTO t VALUES (1); {commits}; INSERT INTO nowhere VALUES (1); COMMIT;"
    with pytest.raises(PartlyDone):
        apply(database, "01.sql", sql)
    assert (1,) in mariadb.query("SELECT n FROM t")
    with pytest.raises(Refused, match="blocked"):
        apply(database, "01.sql", sql)


@pytest.mark.parametrize(
    "statement",
    ["CALL p()", "EXECUTE IMMEDIATE 'CALL p()'", "SET STATEMENT max_statement_time = 100 FOR CALL p()"],
)
def test_error_of_the_parser_from_inside_a_procedure_is_not_called_undone(mariadb: MariaDb, statement: str) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE t (n int)")
    mariadb.query("CREATE PROCEDURE p() BEGIN INSERT INTO t VALUES (1); EXECUTE IMMEDIATE 'no SQL'; END")
    with pytest.raises(PartlyDone) as partly:
        apply(database, "01.sql", statement)
    assert "may be" in partly.value.state
    assert mariadb.query("SELECT n FROM t") == [(1,)]


def test_table_that_was_replaced_and_could_not_be_is_not_called_undone(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE t (n int)")
    with pytest.raises(PartlyDone):
        apply(database, "01.sql", "CREATE OR REPLACE TABLE t (a int PRIMARY KEY) AS SELECT 1 AS a UNION ALL SELECT 1")
    assert "t" not in mariadb.tables()


@pytest.mark.parametrize("statement", ["ALTER TABLE t ADD INDEX (n)", "CREATE TABLE u AS SELECT n FROM t"])
def test_statement_whose_counter_must_wait_runs_once(mariadb: MariaDb, statement: str, monkeypatch: Any) -> None:
    database = mariadb.open(lock_timeout=1)
    apply(database, "00.sql", "CREATE TABLE t (n int)")
    monkeypatch.setattr(mysql_session, "COMMANDS", 1)
    holder = mariadb.address.connect()
    send = mysql_session.Session.send
    held: list[bool] = []

    def holding(self: Any, commands: Any) -> Any:
        if not held and any(command.role == "statement" for command in commands):
            found = send(self, commands)
            holder.begin()
            holder.cursor().execute("SELECT * FROM tma_migration_history FOR UPDATE")
            threading.Timer(1.5, holder.rollback).start()
            held.append(True)
            return found
        return send(self, commands)

    monkeypatch.setattr(mysql_session.Session, "send", holding)
    assert apply(database, "01.sql", statement) is True
    assert held
    assert len({row[2] for row in mariadb.query("SHOW INDEX FROM t")}) <= 1
    holder.close()


def test_resumed_script_changes_nothing_twice_and_has_its_settings(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE t (n int)")
    sql = "SET STATEMENT max_statement_time = 100 FOR INSERT INTO t VALUES (1); INSERT INTO later VALUES (2);"
    with pytest.raises(PartlyDone):
        apply(database, "01.sql", sql)
    mariadb.query("CREATE TABLE later (n int)")
    repair(database, "01.sql", 2)
    assert apply(database, "01.sql", sql, fence=2) is True
    assert mariadb.query("SELECT n FROM t") == [(1,)]
    mariadb.query("DROP TABLE later")
    apply(
        database,
        "02.sql",
        "CREATE TABLE p (n int PRIMARY KEY); CREATE TABLE c (n int, FOREIGN KEY (n) REFERENCES p (n) ON DELETE CASCADE);"
        " INSERT INTO p VALUES (1); INSERT INTO c VALUES (1);",
        fence=2,
    )
    sql = "/*!40014 SET FOREIGN_KEY_CHECKS=0 */; INSERT INTO later VALUES (1); DELETE FROM p; INSERT INTO p VALUES (1);"
    with pytest.raises(PartlyDone):
        apply(database, "03.sql", sql, fence=2)
    mariadb.query("CREATE TABLE later (n int)")
    repair(database, "03.sql", 2)
    assert apply(database, "03.sql", sql, fence=2) is True
    assert mariadb.query("SELECT n FROM c") == [(1,)]


@pytest.mark.parametrize(
    "setting",
    [
        "SET SESSION sql_mode = CONCAT(@@sql_mode, '')",
        "SET GLOBAL max_connections = 60",
        "DELIMITER //\nDO 1; SET sort_buffer_size = 100000//\nDELIMITER ;\nDO 1",
    ],
)
def test_setting_that_cannot_be_made_again_keeps_a_script_from_going_on(mariadb: MariaDb, setting: str) -> None:
    from pipeline.databases.lexer import mysql_statements
    from pipeline.databases.mysql.units import read

    assert read(mysql_statements(f"{setting};\nDO 2;"), "x").session


def test_block_with_answers_of_its_own_is_counted_right(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "00.sql", "CREATE TABLE t (n int)")
    block = "DELIMITER //\nBEGIN NOT ATOMIC SELECT 1 UNION SELECT 2; SELECT 3 UNION SELECT 4; INSERT INTO t VALUES (1); END//\n"
    assert apply(database, "01.sql", block + "DELIMITER ;\nINSERT INTO t VALUES (2);") is True
    assert database.history()[-1].statement == 2
    with pytest.raises(PartlyDone) as partly:
        apply(database, "02.sql", block + "DELIMITER ;\nINSERT INTO nowhere VALUES (2);")
    assert "[1146]" in partly.value.reasons[0].text


def test_verify_is_looked_at_first_and_may_be_sqitchs(mariadb: MariaDb) -> None:
    database = mariadb.open()
    about: dict[str, Any] = {"fence": 1, "run": "r", "release": "1"}
    one, data = script("1.sql", "CREATE TABLE v (n int)")
    assert database.apply(one, data, verify=b"-- Verify\nBEGIN;\nSELECT n FROM v WHERE 0;\nROLLBACK;\n", **about)
    two, data = script("2.sql", "CREATE TABLE w (n int)")
    for verify in (b"SELECT '\xff'", b"SELECT 1; COMMIT; SELECT 2", b"SELECT 'x"):
        with pytest.raises(Failed, match="cannot run"):
            database.apply(two, data, verify=verify, **about)
    assert "w" not in mariadb.tables()
    assert history_of(database) == ["1.sql"]


def test_messages_keep_to_what_the_server_takes(mariadb: MariaDb) -> None:
    mariadb.server.superuser().query("SET GLOBAL max_allowed_packet = 1048576")
    try:
        database = mariadb.open()
        rows = "".join(f"INSERT INTO a VALUES ('{'漢' * 20_000}');\n" for _ in range(25))
        sql = f"CREATE TABLE a (n longtext);\n{rows}INSERT INTO a VALUES ('{'x' * 1_040_000}')"
        assert apply(database, "01.sql", sql) is True
        assert mariadb.query("SELECT COUNT(*) FROM a") == [(26,)]
    finally:
        mariadb.server.superuser().query("SET GLOBAL max_allowed_packet = 16777216")
