"""What only PostgreSQL has: the session's lock, one message a script, CONCURRENTLY, and what its server decides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.databases import Database
from pipeline.databases.postgresql import scripts as scripts_of
from pipeline.databases.postgresql.database import PostgresqlDatabase
from pipeline.databases.postgresql.session import Lost, TunnelSession
from pipeline.databases.postgresql.statements import Statement
from pipeline.errors import Failed, Locked, PartlyDone, Refused, Unreachable
from tests.contracts.engines import SECRET, Postgres, apply, history_of, script
from tests.servers.line import Line

pytestmark = [pytest.mark.slow, pytest.mark.live]


def stepwise(database: Database, name: str, sql: str, *, fence: int = 1, run: str = "r1", **more: Any) -> bool:
    made, data = script(name, sql)
    return database.apply(
        made.model_copy(update={"transactional": False} | more), data, fence=fence, run=run, release="1.0+1"
    )


# --- the session's lock -----------------------------------------------------------------------------------------------------


def test_a_run_holds_the_lock_between_its_scripts_and_the_waiter_names_it(postgres: Postgres) -> None:
    first, second = postgres.open(), postgres.open(patience=0.3)
    apply(first, "a.sql", "CREATE TABLE a (n integer)", run="run-7")
    with pytest.raises(Locked) as locked:
        apply(second, "b.sql", "CREATE TABLE b (n integer)", fence=2, run="run-8")
    said = locked.value.render()
    (pid,) = postgres.query("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")[0]
    assert "tma run-7 is at work here since" in said and f"process {pid} of the server" in said
    first.close()
    assert apply(second, "b.sql", "CREATE TABLE b (n integer)", fence=2, run="run-8") is True
    second.close()


def test_create_index_concurrently_passes_while_another_runner_waits(postgres: Postgres) -> None:
    """A waiter that blocked on the lock would hold a snapshot, and CONCURRENTLY would wait for it for ever."""
    first, second = postgres.open(), postgres.open()
    apply(first, "a.sql", "CREATE TABLE a (n integer)")
    waiter = threading.Thread(target=lambda: second.claim(2, "second"))
    waiter.start()
    time.sleep(0.5)
    assert stepwise(first, "b.sql", "CREATE INDEX CONCURRENTLY i ON a (n)") is True
    first.close()
    waiter.join(20)
    assert not waiter.is_alive()
    second.close()


def test_a_script_that_drops_all_advisory_locks_does_not_end_the_run(postgres: Postgres) -> None:
    first, second = postgres.open(), postgres.open(patience=0.3)
    assert apply(first, "a.sql", "SELECT pg_advisory_lock(5), pg_advisory_unlock_all()")
    with pytest.raises(Locked):
        second.claim(2, "second")
    assert postgres.query("SELECT objid::int FROM pg_locks WHERE locktype = 'advisory'") == [(0x746D6131,)]
    first.close()


# --- round trips -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(postgres: Postgres) -> Iterator[Line]:
    line = Line(postgres.address.port)
    yield line
    line.close()


def test_a_run_with_nothing_to_do_takes_five_round_trips(postgres: Postgres, line: Line) -> None:
    before = postgres.open()
    apply(before, "a.sql", "CREATE TABLE a (n integer)")
    before.close()
    database = postgres.open(port=line.port)
    assert history_of(database) == ["a.sql"]
    database.claim(2, "run-2")
    # The word with which a connection ends is not waited for.
    assert line.turns <= 5
    database.close()
    assert line.seen == 1


def test_a_script_takes_one_round_trip(postgres: Postgres, line: Line) -> None:
    database = postgres.open(port=line.port)
    database.claim(1, "r1")
    before = line.turns
    for number in range(10):
        assert apply(
            database, f"{number}.sql", f"CREATE TABLE t{number} (n integer); INSERT INTO t{number} VALUES (1);"
        )
    assert line.turns - before == 10
    database.close()


# --- as a whole --------------------------------------------------------------------------------------------------------------


def test_lock_timeout_is_tried_again_and_names_the_holder(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts_of, "RETRIES", 1)
    database = postgres.open(lock_timeout=1)
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    with postgres.address.connect(application_name="the application") as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE a")
        with pytest.raises(Failed) as failed:
            apply(database, "b.sql", "CREATE TABLE b (n integer);\nALTER TABLE a ADD COLUMN m integer;")
        assert failed.value.details["code"] == "55P03"
        assert failed.value.reasons[0].source == "b.sql:2"
        assert "the lock is held by the application of user" in failed.value.render()
        assert "it was tried 2 times" in failed.value.render()
        assert "b" not in postgres.tables()
        timer = threading.Timer(1.2, lambda: other.execute("ROLLBACK"))
        timer.start()
        assert apply(database, "b.sql", "ALTER TABLE a ADD COLUMN m integer") is True
        timer.join()
    database.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_that_ends_around_the_message_is_settled_by_the_history(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    database = postgres.open()
    database.claim(1, "r1")
    exchange = TunnelSession.exchange

    def cut(session: TunnelSession, message: str, *, rows: bool = True) -> Any:
        if "CREATE TABLE a" not in message:
            return exchange(session, message, rows=rows)
        if when == "after":
            exchange(session, message, rows=rows)
        postgres.query(f"SELECT pg_terminate_backend({session.process})")
        return exchange(session, message if when == "before" else "SELECT 1", rows=rows)

    monkeypatch.setattr(TunnelSession, "exchange", cut)
    if when == "after":
        assert apply(database, "a.sql", "CREATE TABLE a (n integer)") is True
    else:
        with pytest.raises(Unreachable, match="does not list"):
            apply(database, "a.sql", "CREATE TABLE a (n integer)")
    monkeypatch.undo()
    assert ("a" in postgres.tables()) is (when == "after")
    assert apply(database, "a.sql", "CREATE TABLE a (n integer)") is (when == "before")
    database.close()


def test_lost_and_overtaken_meanwhile_is_refused(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.open()
    database.claim(1, "r1")
    exchange = TunnelSession.exchange

    def cut(session: TunnelSession, message: str, *, rows: bool = True) -> Any:
        if "CREATE TABLE a" not in message:
            return exchange(session, message, rows=rows)
        session.close()
        other = postgres.open()
        other.claim(5, "later")
        other.close()
        raise Lost

    monkeypatch.setattr(TunnelSession, "exchange", cut)
    with pytest.raises(Refused, match="no longer the one"):
        apply(database, "a.sql", "CREATE TABLE a (n integer)")


def test_a_large_script_is_one_transaction_in_bounded_memory(postgres: Postgres) -> None:
    rows, filler = 5_000, "some; text " * 360
    data = b"CREATE TABLE a (n integer, t text);\n"
    data += "".join(f"INSERT INTO a VALUES ({n}, '{filler}');\n" for n in range(rows)).encode()
    assert len(data) > 18_000_000
    made, _ = script("big.sql", data)
    broken, broken_data = script("broken.sql", data + b"INSERT INTO nowhere VALUES (1);\n")
    database = postgres.open()
    with pytest.raises(Failed) as failed:
        database.apply(broken, broken_data, fence=1, run="r1", release="1.0+1")
    assert failed.value.details["statement"] == rows + 2
    assert failed.value.reasons[0].source == f"broken.sql:{rows + 2}"
    assert "a" not in postgres.tables()
    del broken, broken_data
    tracemalloc.start()
    try:
        assert database.apply(made, data, fence=1, run="r1", release="1.0+1") is True
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The text, and some groups of a megabyte.
    assert peak < 1.5 * len(data)
    assert postgres.query("SELECT count(*) FROM a") == [(rows,)]
    (row_of,) = database.history()
    assert row_of.statements == rows + 1
    database.close()


def test_own_commit_in_a_large_script_is_caught(postgres: Postgres) -> None:
    filler = "INSERT INTO a VALUES ('" + "x" * 1000 + "');\n"
    text = "CREATE TABLE a (t text);\n" + filler * 1100 + "END;\n" + filler * 1100
    with pytest.raises(Failed, match="ends the transaction itself"):
        apply(postgres.open(), "a.sql", text)
    assert "a" not in postgres.tables()


def test_own_commit_in_a_repeatable_script_is_caught_the_second_time_too(postgres: Postgres) -> None:
    database = postgres.open()

    def again(sql: str) -> bool:
        made, data = script("R__views.sql", sql)
        return database.apply(made.model_copy(update={"kind": "repeatable"}), data, fence=1, run="r1", release="1.0+1")

    assert again("CREATE OR REPLACE VIEW v AS SELECT 1 AS n") is True
    with pytest.raises(Failed, match="ends the transaction itself"):
        again("CREATE TABLE a (n integer); END; CREATE TABLE b (n integer)")
    assert {"a", "b"}.isdisjoint(postgres.tables())
    assert again("CREATE OR REPLACE VIEW v AS SELECT 1 AS n") is False
    assert again("CREATE OR REPLACE VIEW v AS SELECT 1 AS n -- once more") is True
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        *(
            "CREATE INDEX CONCURRENTLY i ON a (n)",
            "DROP INDEX CONCURRENTLY i",
            "REINDEX TABLE CONCURRENTLY a",
            "VACUUM a",
        ),
        *("ALTER SYSTEM SET work_mem = '5MB'", "CREATE DATABASE x", "drop /* x */ database x"),
    ],
)
def test_what_cannot_run_in_a_transaction_is_refused_before_the_first_statement(
    postgres: Postgres, statement: str
) -> None:
    with pytest.raises(Failed) as failed:
        apply(postgres.open(), "a.sql", f"CREATE TABLE a (n integer);\n{statement};")
    assert failed.value.reasons[0].source == "a.sql:2"
    assert "-- tma: transaction=no" in failed.value.render()
    assert postgres.tables() == set()


@pytest.mark.parametrize(
    ("text", "line"),
    [("\\set n 1\nSELECT 1;", 1), ("SELECT 1;\nSELECT :n;", 2), ("SELECT :'n';", 1), ("\n\\i x.sql", 2)],
)
def test_what_only_psql_understands_is_refused(postgres: Postgres, text: str, line: int) -> None:
    with pytest.raises(Failed) as failed:
        apply(postgres.open(), "a.sql", text)
    assert "-- tma: client=psql" in failed.value.render()
    assert failed.value.reasons[0].source == f"a.sql:{line}"


@pytest.mark.parametrize(
    "text", ["SELECT (ARRAY[1, 2, 3])[1:2], 1::text, '\\n', E'\\'', $$:x \\d$$", "SELECT 1 AS a -- :x \\d\n"]
)
def test_what_only_looks_like_psql_runs(postgres: Postgres, text: str) -> None:
    assert apply(postgres.open(), "a.sql", text) is True


@pytest.mark.parametrize("table", ["history", "events", "fence"])
def test_a_row_of_ours_that_is_written_and_written_back_is_seen(postgres: Postgres, table: str) -> None:
    database = postgres.open()
    apply(database, "00.sql", "CREATE TABLE base (n integer)")
    for sql in (
        f"SAVEPOINT s; UPDATE tma_migration_{table} SET script = script; RELEASE SAVEPOINT s",
        f"DO $$ BEGIN UPDATE tma_migration_{table} SET script = script; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
    ):
        with pytest.raises(Failed, match="changes the migration history itself"):
            apply(database, "a.sql", sql)
    assert apply(database, "a.sql", f"SELECT * FROM tma_migration_{table} FOR SHARE") is True
    database.close()


def test_a_verify_may_bring_its_own_transaction(postgres: Postgres) -> None:
    database = postgres.open()
    made, data = script("a.sql", "CREATE TABLE a (n integer)")
    verify = b"-- Verify\n\nBEGIN;\nINSERT INTO a VALUES (1);\nSELECT 1 / count(*) FROM a;\nROLLBACK;\n"
    assert database.apply(made, data, fence=1, run="r1", release="1.0+1", verify=verify) is True
    other, data = script("b.sql", "INSERT INTO a VALUES (2)")
    with pytest.raises(Failed, match="verify"):
        database.apply(other, data, fence=1, run="r1", release="1.0+1", verify=b"SELECT 1 / (count(*) - 1) FROM a")
    assert postgres.query("SELECT count(*) FROM a") == [(0,)]
    database.close()


# --- statement by statement --------------------------------------------------------------------------------------------------


def test_concurrently_waits_for_a_transaction_longer_than_the_lock_timeout(postgres: Postgres) -> None:
    database = postgres.open(lock_timeout=1)
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    with postgres.address.connect() as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO a VALUES (1)")
        timer = threading.Timer(2.0, lambda: other.execute("COMMIT"))
        timer.start()
        assert stepwise(database, "b.sql", "CREATE INDEX CONCURRENTLY i ON a (n); VACUUM a;") is True
        timer.join()
    assert postgres.query("SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass") == [(True,)]
    database.close()


def test_a_script_step_by_step_has_no_transaction_of_its_own(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody could say which of its statements are committed when one of them stops."""
    database = postgres.open()
    with pytest.raises(Failed, match="cannot run as it is declared"):
        stepwise(database, "a.sql", "BEGIN; CREATE TABLE a (n integer); INSERT INTO a VALUES (1); COMMIT; VACUUM a;")
    assert postgres.tables() == set()
    apply(database, "0.sql", "CREATE TABLE a (n integer)")
    monkeypatch.setattr(Statement, "of_a_transaction", False)
    with pytest.raises(PartlyDone, match="leaves its own transaction open"):
        raise_text(lambda: stepwise(database, "b.sql", "BEGIN; INSERT INTO a VALUES (2);"))
    assert postgres.query("SELECT n FROM a") == []
    database.close()


def raise_text(call: Any) -> None:
    """The error again, with all that it says as its first line, so that a test can match any of it."""
    try:
        call()
    except PartlyDone as error:
        raise PartlyDone(error.render()) from None


KILLED = """
import json, sys
from tests.contracts.engines import *
from tests.contracts.test_postgresql import stepwise
what = json.loads(sys.argv[1])
transport = LocalTransport("app1", environment={"PATH": HOST_PATH})
database = PostgresqlDatabase(transport, DatabaseSettings.model_validate(what["settings"]), what["password"], backups="/x")
database.claim(1, "killed")
print("begins", flush=True)
stepwise(database, "kill.sql", what["sql"], run="killed")
"""


def test_a_runner_killed_in_the_middle_leaves_it_blocked_and_resume_ends_it_once(postgres: Postgres) -> None:
    database = postgres.open()
    apply(database, "00.sql", "CREATE TABLE effects (n integer)")
    database.close()
    sql = (
        "INSERT INTO effects VALUES (1);\nINSERT INTO effects VALUES (2);\nSELECT pg_sleep(60);\n"
        "INSERT INTO effects VALUES (3);\nVACUUM effects;\n"
    )
    what = {"settings": postgres.settings().model_dump(), "password": SECRET, "sql": sql}
    runner = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(what)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert runner.stdout is not None
    with runner.stdout:
        assert runner.stdout.readline() == b"begins\n"
        sleeping = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60%' AND pid <> pg_backend_pid()"
        )
        deadline = time.monotonic() + 30
        while postgres.query(sleeping) == [(0,)] and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    with pytest.raises(Refused, match="blocked") as refused:
        stepwise(database, "kill.sql", sql, fence=2, run="next")
    assert refused.value.details["statement"] == 2
    assert "resume-at=3" in refused.value.next_commands[0]
    (_, row) = database.history()
    assert (row.state, row.statement, row.statements) == ("running", 2, 5)
    assert sorted(postgres.query("SELECT n FROM effects")) == [(1,), (2,)]
    # pg_sleep did nothing: somebody decides to go on after it.
    database.repair("kill.sql", "resume", fence=2, run="next", release="1.0+1", resume_at=4)
    assert stepwise(database, "kill.sql", sql, fence=2, run="next") is True
    assert stepwise(database, "kill.sql", sql, fence=2, run="next") is False
    assert sorted(postgres.query("SELECT n FROM effects")) == [(1,), (2,), (3,)]
    assert [event.what for event in database.events()] == ["applied", "started", "resumed", "started", "applied"]
    database.close()


def test_a_connection_lost_in_the_middle_says_what_is_certain(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = postgres.open()
    apply(database, "00.sql", "CREATE TABLE effects (n integer)")
    exchange = TunnelSession.exchange

    def cut(session: TunnelSession, message: str, *, rows: bool = True) -> Any:
        answers = exchange(session, message, rows=rows)
        if message.startswith("INSERT INTO effects VALUES (2)"):
            postgres.query(f"SELECT pg_terminate_backend({session.process})")
            exchange(session, "SELECT 1")
        return answers

    monkeypatch.setattr(TunnelSession, "exchange", cut)
    sql = "INSERT INTO effects VALUES (1);\nINSERT INTO effects VALUES (2);\nVACUUM effects;"
    with pytest.raises(PartlyDone) as partly:
        stepwise(database, "a.sql", sql)
    assert partly.value.state == "Statement 1 is committed, statement 2 may be."
    assert partly.value.reasons[0].source == "a.sql:2"
    database.close()


def test_what_depends_on_the_session_cannot_go_on_in_the_middle(postgres: Postgres) -> None:
    database = postgres.open()
    sql = "CREATE TEMP TABLE x (n integer);\nINSERT INTO x VALUES (1);\nINSERT INTO nowhere SELECT n FROM x;"
    with pytest.raises(PartlyDone):
        stepwise(database, "a.sql", sql)
    with pytest.raises(Refused, match="cannot go on in the middle"):
        database.repair("a.sql", "resume", fence=1, run="r1", release="1.0+1", resume_at=3)
    database.repair("a.sql", "reverted", fence=1, run="r1", release="1.0+1")
    assert history_of(database) == []
    database.close()


def test_a_statement_step_by_step_cannot_write_our_tables(postgres: Postgres) -> None:
    database = postgres.open()
    apply(database, "00.sql", "CREATE TABLE base (n integer)")
    with pytest.raises(Failed, match="changes the migration history itself"):
        stepwise(database, "a.sql", "CREATE TABLE a (n integer); DELETE FROM tma_migration_history;")
    assert "a" not in postgres.tables()
    database.close()


# --- formats and ways --------------------------------------------------------------------------------------------------------


def test_a_history_of_format_1_is_read_and_brought_up_to_date(postgres: Postgres) -> None:
    postgres.query(
        "CREATE TABLE tma_migration_history (script text PRIMARY KEY, checksum text NOT NULL, algorithm text NOT NULL,"
        " fence bigint NOT NULL, run text NOT NULL, release text NOT NULL, applied_at timestamptz NOT NULL);"
        "CREATE TABLE tma_migration_fence (id smallint PRIMARY KEY CHECK (id = 1), highest bigint NOT NULL,"
        " format integer NOT NULL, script text CONSTRAINT tma_migration_own_commit REFERENCES tma_migration_history (script)"
        " DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO tma_migration_history VALUES ('old.sql', 'x', 'sha256-bom-eol', 3, 'r', '1.0', now());"
        "INSERT INTO tma_migration_fence VALUES (1, 3, 1, 'old.sql')"
    )
    database = postgres.open()
    (row,) = database.history()
    assert (row.script, row.state) == ("old.sql", "done")
    assert database.events() == []
    assert postgres.query("SELECT format FROM tma_migration_fence") == [(1,)]
    assert apply(database, "a.sql", "CREATE TABLE a (n integer)", fence=4) is True
    assert history_of(database) == ["old.sql", "a.sql"]
    assert [event.what for event in database.events()] == ["applied"]
    assert postgres.query("SELECT highest, format FROM tma_migration_fence") == [(4, 2)]
    database.close()


def test_a_query_is_one_statement_that_changes_nothing(postgres: Postgres) -> None:
    database = postgres.open()
    apply(database, "a.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1), (2)")
    assert database.query("SELECT n, n::text FROM a ORDER BY 1") == [(1, "1"), (2, "2")]
    for statement in ("INSERT INTO a VALUES (3)", "COMMIT; DROP TABLE a", "SELECT nothing"):
        with pytest.raises(Failed):
            database.query(statement)
    assert database.query("SELECT count(*) FROM a") == [(2,)]
    database.close()


def test_the_server_is_named_and_an_old_one_is_refused(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.open()
    assert isinstance(database, PostgresqlDatabase)
    found = database.server()
    assert found.version.startswith("PostgreSQL ")
    assert found.refusals == ()
    session = database._hold.session()
    monkeypatch.setattr(session, "version", 90100)
    old = database.server()
    assert "lock_timeout" in old.refusals[0]
    assert any("client_connection_check_interval" in substitute for substitute in old.substitutes)
    database.close()


def test_the_lock_goes_with_the_connection(postgres: Postgres) -> None:
    database = postgres.open()
    database.claim(1, "r1")
    count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert postgres.query(count) == [(1,)]
    database.close()
    deadline = time.monotonic() + 20
    while postgres.query(count) != [(0,)] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert postgres.query(count) == [(0,)]


def superuser(postgres: Postgres) -> dict[str, Any]:
    address = postgres.server.superuser()
    return {"host": address.host, "port": address.port, "user": address.user, "password": address.password}


def test_a_superuser_who_switches_foreign_keys_off_cannot_commit_either(postgres: Postgres) -> None:
    """The guard's own check is under way by then."""
    address = postgres.server.superuser()
    with psycopg.connect(autocommit=True, dbname="postgres", **superuser(postgres)) as connection:
        connection.execute(f"CREATE DATABASE own_{postgres.address.name}".encode())
    database = postgres.open(name=f"own_{postgres.address.name}", user=address.user, password=address.password)
    apply(database, "00.sql", "CREATE TABLE base (n integer)")
    with pytest.raises(Failed, match="ends the transaction itself"):
        apply(database, "a.sql", "SET session_replication_role = replica; CREATE TABLE a (n integer); END; SELECT 1;")
    assert history_of(database) == ["00.sql"]
    assert database.query("SELECT to_regclass('a')") == [(None,)]
    database.close()
