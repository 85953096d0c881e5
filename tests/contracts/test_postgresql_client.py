"""psql on the host as the way to a real PostgreSQL: the same outcome as through a tunnel, and no SQL ever in a shell."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.databases.postgresql.client import ClientSession
from pipeline.databases.postgresql.database import PostgresqlDatabase
from pipeline.databases.postgresql.session import Answer, Lost, StatementFailed, TunnelSession
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed, Locked, PipelineError, Refused, Unreachable
from pipeline.model import DatabaseSettings
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import HOST_PATH, script
from tests.servers.postgres import DatabaseAddress, PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.live]

SECRET = f"canary-{secrets.token_hex(8)}"
"""Not another test's, which may show its own in its environment meanwhile."""


class Place:
    """A database, and sessions and adapters that reach it through the client."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.address: DatabaseAddress = server.create_database(password=SECRET)
        self.transport = LocalTransport("app1", environment={"PATH": HOST_PATH})
        self.errors = ScriptErrors("database x", "acme", "test", SECRET)
        self._open: list[Any] = []

    def settings(self, **changes: Any) -> DatabaseSettings:
        there = self.address
        return DatabaseSettings(
            engine="postgresql", host=there.host, port=there.port, name=there.name, user=there.user, way="client"
        ).model_copy(update=changes)

    def session(self, *, transport: Any = None, password: str = SECRET, **changes: Any) -> ClientSession:
        session = ClientSession(transport or self.transport, self.settings(**changes), password, self.errors)
        self._open.append(session)
        return session

    def tunnel(self) -> TunnelSession:
        session = TunnelSession(self.transport, self.settings(), SECRET, self.errors)
        self._open.append(session)
        return session

    def database(self, *, transport: Any = None, **changes: Any) -> PostgresqlDatabase:
        database = PostgresqlDatabase(
            transport or self.transport,
            self.settings(**changes),
            SECRET,
            backups=str(self.folder / "backups"),
            customer="acme",
            environment="test",
            patience=2,
        )
        self._open.append(database)
        return database

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.address.connect() as connection:
            return connection.execute(statement.encode()).fetchall()

    def shimmed(self, program: str) -> LocalTransport:
        """A host whose psql is this shell script; ``$real`` is the real one."""
        folder = self.folder / "bin"
        folder.mkdir()
        (folder / "psql").write_text(f"#!/bin/sh\nreal={self.server.bin}/psql\n{program}\n")
        (folder / "psql").chmod(0o755)
        return LocalTransport("app1", environment={"PATH": f"{folder}:{HOST_PATH}"})

    def old(self) -> LocalTransport:
        """A host with a psql that does not know ``\\restrict``."""
        return self.shimmed(
            "case $1 in --version) exec $real --version ;; esac\n"
            r"""sed -u 's/^\\\(un\)\{0,1\}restrict .*/\\nonsense/' | "$real" "$@" """
        )

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture
def place(server: PostgresServer, tmp_path: Path) -> Iterator[Place]:
    made = Place(server, tmp_path)
    yield made
    made.close()


# --- a session ---------------------------------------------------------------------------------------------------------

MESSAGES = (
    "SELECT 1 AS a, NULL AS b, 'x\ny\n' AS c; SELECT '' AS \"e |\", '\t\x1f' AS f",
    "BEGIN; CREATE TEMPORARY TABLE t (n integer PRIMARY KEY); INSERT INTO t VALUES (1) RETURNING n",
    "SELECT n FROM t WHERE false; INSERT INTO t VALUES (1); SELECT 2",
    "SELECT 1",
    "ROLLBACK; SELECT count(*) FROM pg_tables WHERE tablename = 't'",
    "DO $$ BEGIN RAISE NOTICE 'psql:<stdin>:1: ERROR:  42601: %', E'\\nx'; END $$; SELECT 5 AS five",
    "SELECT E'\\\\ \\'', $a$;'$a$, 'it''s', 1 /* ; /* nested ; */ ' */ -- ; '\n; SELECT 2",
    "BEGIN; CREATE FUNCTION pg_temp.f() RETURNS integer LANGUAGE sql BEGIN ATOMIC"
    " SELECT 1; SELECT 2; END; SELECT pg_temp.f(); ROLLBACK",
    "",
    "SELECT 'psql:<stdin>:1: error: no'",
    "SELECT\n\n  nope\n; SELECT 3",
)


def test_a_session_answers_as_the_tunnel_s_does(place: Place) -> None:
    client, tunnel = place.session(), place.tunnel()
    assert client.version == tunnel.version
    for message in MESSAGES:
        found, expected = client.exchange(message), tunnel.exchange(message)
        for one in (found, expected):
            assert one
        assert [(a.columns, a.rows) for a in found] == [(a.columns, a.rows) for a in expected], message
        assert [_said(a) for a in found] == [_said(a) for a in expected], message
        assert client.idle == tunnel.idle, message
    assert not client.closed


def _said(answer: Answer) -> tuple[Any, ...] | None:
    trouble = answer.trouble
    return (trouble.message, trouble.code, trouble.constraint) if trouble else None


def test_nothing_of_a_message_runs_after_what_failed(place: Place) -> None:
    session = place.session()
    answers = session.exchange("CREATE TABLE a (n integer); SELECT nope; CREATE TABLE b (n integer)", rows=False)
    assert [answer.trouble is None for answer in answers] == [True, False]
    assert session.exchange("SELECT to_regclass('a'), to_regclass('b')")[0].rows == (("a", None),)


def test_values_come_as_the_tunnel_gives_them(place: Place) -> None:
    query = (
        "SELECT 1::smallint, 2.50::numeric(5, 2), timestamptz '2024-01-02 03:04:05Z', true, NULL, 'a'::varchar(3),"
        " ARRAY[1, 2], '{\"a\": 1}'::jsonb, date '2024-01-02', 1.5::float8, ''::text"
    )
    assert place.session().fetch(query) == place.tunnel().fetch(query)
    with pytest.raises(StatementFailed):
        place.session().fetch("SELECT 1; SELECT 2")
    with pytest.raises(StatementFailed) as failed:
        place.session().fetch("SELECT nope")
    assert failed.value.trouble.code == "42703"


@pytest.mark.parametrize(
    "message", ["SELECT 'a", "SELECT (1", 'SELECT "a', "SELECT $$ a", "SELECT 1 /* a", "SELECT E'a\\'"]
)
def test_what_has_no_end_is_an_error_and_not_waited_for(place: Place, message: str) -> None:
    session = place.session()
    assert session.exchange(f"SELECT 1; {message}")[-1].trouble is not None
    assert session.exchange("SELECT 2")[0].rows == (("2",),)


def test_copy_with_its_data_in_the_message(place: Place) -> None:
    session = place.session()
    text = "CREATE TABLE c (n integer, t text);\nCOPY c (n, t) FROM stdin;\n1\tit's; \\\\! x\n2\t\\N\n\\.\nSELECT n, t FROM c"
    assert session.exchange(text)[-1].rows == (("1", "it's; \\! x"), ("2", None))
    (answer,) = session.exchange("COPY c FROM stdin")
    assert answer.trouble is not None
    assert answer.trouble.copied
    assert session.exchange("SELECT 1")[0].rows == (("1",),)


def test_a_session_whose_server_ends_it_is_lost(place: Place) -> None:
    session = place.session()
    with pytest.raises(Lost):
        session.exchange("SELECT pg_terminate_backend(pg_backend_pid())")
    assert session.closed
    with pytest.raises(Lost):
        session.exchange("SELECT 1")


def test_closing_ends_psql_and_rolls_back(place: Place) -> None:
    session = place.session()
    session.exchange("BEGIN; CREATE TABLE a (n integer); SELECT pg_advisory_lock(7)")
    session.close()
    session.close()
    deadline = time.monotonic() + 20
    while place.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert place.rows("SELECT to_regclass('a')") == [(None,)]


def test_not_let_in(place: Place) -> None:
    with pytest.raises(Unreachable) as raised:
        place.session(password="wrong-" + SECRET)
    assert "the user or the password is wrong" in raised.value.render()
    assert SECRET not in raised.value.render()
    with pytest.raises(Unreachable, match="cannot be opened"):
        place.session(port=1)
    with pytest.raises(Unreachable, match="psql is of version 9, and 11 is the oldest"):
        place.session(transport=place.shimmed("echo 'psql (PostgreSQL) 9.2.24'"))


# --- no shell ----------------------------------------------------------------------------------------------------------

HOSTILE = (
    "\\! touch {mark}",
    "SELECT 1 \\! touch {mark}",
    "SELECT 1 \\g |touch {mark}",
    "\\o |touch {mark}\nSELECT 1;",
    "\\copy (SELECT 1) TO PROGRAM 'touch {mark}'",
    "\\set x `touch {mark}`",
    "\\setenv PAGER 'touch {mark}'\nSELECT 1;",
    "\\w {mark}",
    "SELECT 'touch {mark}' AS c \\gset\n\\! :c",
    "SELECT '\\! touch {mark}' \\gexec",
    "\\unrestrict x\n\\! touch {mark}",
    "SELECT 1; -- \\\n\\! touch {mark}\n",
    "COPY (SELECT 1) TO PROGRAM 'touch {mark}'",
    "COPY (SELECT 1) TO '{mark}'",
    # What psql's lexer and ours might see in two ways.
    "SET standard_conforming_strings = off; SELECT '\\'' \\! touch {mark} '",
    "DO $$ BEGIN EXECUTE 'SET standard_' || 'conforming_strings = off'; END $$;\nSELECT '\\'' \\! touch {mark}\n'; SELECT ''",
    "DO $$ BEGIN EXECUTE 'SET client_' || 'encoding = sjis'; END $$;\nSELECT 'ア' E' \\! touch {mark} \n' ''",
    "COPY nowhere FROM stdin;\n1\n\\.\n\\! touch {mark}\n",
)


@pytest.mark.parametrize("old", [False, True], ids=["restrict", "older"])
@pytest.mark.parametrize("text", HOSTILE)
def test_sql_never_reaches_a_shell(place: Place, text: str, old: bool) -> None:
    mark = place.folder / "mark"
    session = place.session(transport=place.old() if old else None)
    for rows in (True, False):
        if session.closed:
            session = place.session(transport=None if not old else session_transport(place))
        # Where the two lexers differ psql may wait for a quote's end: the session is closed then, as by somebody's Ctrl-C.
        watch = threading.Timer(8, session.close)
        watch.start()
        with suppress(Lost):
            session.exchange(f"SELECT 1;\n{text.format(mark=mark)}\n", rows=rows)
        watch.cancel()
    session.close()
    assert not mark.exists()


def session_transport(place: Place) -> LocalTransport:
    return LocalTransport("app1", environment={"PATH": f"{place.folder / 'bin'}:{HOST_PATH}"})


def test_where_psql_knows_no_restrict_a_backslash_is_refused_and_the_rest_runs(place: Place) -> None:
    session = place.session(transport=place.old())
    assert session.exchange("SELECT 1; SELECT 2")[-1].rows == (("2",),)
    (answer,) = session.exchange("SELECT E'\\n'")
    assert answer.trouble is not None
    assert "psql on the host is too old" in answer.trouble.message


def test_names_never_reach_a_shell(place: Place) -> None:
    mark = place.folder / "mark"
    for name in (f"$(touch {mark})", f"'; touch {mark}; '", f"x' options='-c x=`touch {mark}`"):
        with pytest.raises(Unreachable):
            place.session(name=name)
        with pytest.raises(Unreachable):
            place.session(user=name)
    assert not mark.exists()


def test_nobody_sees_the_password_and_no_file_of_it_stays(place: Place) -> None:
    seen = place.folder / "seen"
    spy = place.shimmed(
        f'for n in /proc/[0-9]*; do cat "$n/cmdline" "$n/environ" 2>/dev/null; done >> "{seen}"; exec $real "$@"'
    )
    session = place.session(transport=spy)
    assert b"VERBOSITY=verbose" in seen.read_bytes()
    assert SECRET.encode() not in seen.read_bytes()
    deadline = time.monotonic() + 20
    while left := [path for path in Path("/dev/shm").glob("tma.*/password") if SECRET in _text(path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert session.exchange("SELECT 1")[0].rows == (("1",),)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_nothing_of_the_host_s_user_has_a_say(place: Place) -> None:
    home = place.folder / "home"
    home.mkdir()
    mark = place.folder / "mark"
    (home / ".psqlrc").write_text(f"\\! touch {mark}\n")
    (home / ".pg_service.conf").write_text("[x]\nhost=/nonexistent\n")
    (home / ".pgpass").write_text("*:*:*:*:wrong\n")
    host = LocalTransport(
        "app1",
        environment={
            "PATH": HOST_PATH,
            "HOME": str(home),
            "PGSERVICE": "x",
            "PGOPTIONS": "-c nope=1",
            "PGHOSTADDR": "10.0.0.1",
        },
    )
    assert place.session(transport=host).exchange("SELECT 1")[0].rows == (("1",),)
    assert not mark.exists()


# --- the whole adapter -------------------------------------------------------------------------------------------------


def test_a_script_and_its_history_are_the_same_by_either_way(place: Place) -> None:
    made, data = script("a.sql", "CREATE TABLE a (n integer);\nINSERT INTO a VALUES (1);\n")
    other, more = script("b.sql", "INSERT INTO a VALUES (2)")
    client, tunnel = place.database(), place.database(way="tunnel")
    assert client.apply(made, data, fence=1, run="r1", release="1+1") is True
    assert client.apply(made, data, fence=1, run="r1", release="1+1") is False
    client.close()
    assert tunnel.apply(made, data, fence=2, run="r2", release="1+1") is False
    assert tunnel.apply(other, more, fence=2, run="r2", release="1+1") is True
    tunnel.close()
    again = place.database()
    assert [(row.script, row.run, row.fence) for row in again.history()] == [("a.sql", "r1", 1), ("b.sql", "r2", 2)]
    assert [(event.what, event.script) for event in again.events()] == [("applied", "a.sql"), ("applied", "b.sql")]
    assert again.catalogue() == place.database(way="tunnel").catalogue()
    with pytest.raises(Refused):
        again.apply(*script("c.sql", "SELECT 1"), fence=1, run="r1", release="1+1")


def test_a_script_that_fails_leaves_nothing_and_names_its_place(place: Place) -> None:
    database = place.database()
    text = "CREATE TABLE a (n integer);\n\n-- then\nINSERT INTO nowhere VALUES (1);\nCREATE TABLE b (n text);"
    with pytest.raises(Failed) as failed:
        database.apply(*script("a.sql", text), fence=1, run="r", release="1+1")
    assert failed.value.reasons[0].source == "a.sql:4"
    assert "statement 2 (INSERT INTO nowhere VALUES (1))" in failed.value.reasons[0].text
    assert "[42P01]" in failed.value.reasons[0].text
    assert place.rows("SELECT to_regclass('a'), to_regclass('b')") == [(None, None)]
    assert database.history() == []
    assert database.apply(*script("a.sql", "CREATE TABLE a (n integer)"), fence=1, run="r", release="1+1") is True


@pytest.mark.parametrize("ending", ["END;", "SET CONSTRAINTS ALL IMMEDIATE;"])
def test_a_script_cannot_commit_by_itself(place: Place, ending: str) -> None:
    database = place.database()
    with pytest.raises(PipelineError):
        database.apply(
            *script("a.sql", f"CREATE TABLE a (n integer);\n{ending}\nCREATE TABLE b (n integer); SELECT x"),
            fence=1,
            run="r",
            release="1+1",
        )
    assert place.rows("SELECT to_regclass('a'), to_regclass('b')") == [(None, None)]
    assert database.history() == []


def test_a_script_declared_for_the_client_runs_there_on_a_database_reached_by_tunnel(place: Place) -> None:
    made, data = script("a.sql", "CREATE TABLE a (n integer);\nCOPY a FROM stdin;\n1\n2\n\\.\n")
    database = place.database(way="tunnel")
    assert database.apply(made.model_copy(update={"client": True}), data, fence=1, run="r", release="1+1") is True
    assert place.rows("SELECT n FROM a ORDER BY n") == [(1,), (2,)]
    assert [row.script for row in database.history()] == ["a.sql"]


def test_two_runners_by_two_ways_shut_each_other_out(place: Place) -> None:
    first, second = place.database(way="tunnel"), place.database()
    first.claim(1, "run-1")
    with pytest.raises(Locked) as locked:
        second.apply(*script("a.sql", "SELECT 1"), fence=2, run="run-2", release="1+1")
    assert "tma run-1" in locked.value.render()
    first.close()
    assert second.apply(*script("a.sql", "SELECT 1"), fence=2, run="run-2", release="1+1") is True


def test_psql_killed_in_the_middle_is_no_guess(place: Place) -> None:
    pids = place.folder / "pids"
    host = place.shimmed(f'case $1 in --version) ;; *) echo $$ >> "{pids}" ;; esac; exec $real "$@"')
    database = place.database(transport=host)
    database.claim(1, "r")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            database.apply(
                *script("a.sql", "CREATE TABLE a (n integer); SELECT pg_sleep(3)"), fence=1, run="r", release="1+1"
            )
        except PipelineError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 30
    while place.rows(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3)%' AND pid <> pg_backend_pid()"
    ) == [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for pid in pids.read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    thread.join(60)
    assert "connection" in raised[0].render() if raised else False  # type: ignore[attr-defined]
    assert place.rows("SELECT to_regclass('a')") == [(None,)]
    assert database.history() == []
