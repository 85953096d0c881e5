"""PostgreSQL scripts and backups that would get round the history, the lock or the proof: each is refused or told as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.databases import Database
from pipeline.databases.postgresql.backup import PostgresqlBackups
from pipeline.databases.postgresql.statements import Statement
from pipeline.errors import ConfigurationError, Failed, Locked, PartlyDone, Refused
from pipeline.model import BackupSettings
from tests.contracts.engines import Postgres, apply, history_of, script

pytestmark = [pytest.mark.slow, pytest.mark.live]


def run(database: Database, name: str, sql: str, *, fence: int = 1, verify: bytes | None = None, **more: Any) -> bool:
    made, data = script(name, sql)
    return database.apply(
        made.model_copy(update=more), data, fence=fence, run=f"r{fence}", release="1.0+1", verify=verify
    )


def stepwise(database: Database, name: str, sql: str, **more: Any) -> bool:
    return run(database, name, sql, transactional=False, **more)


def resume(database: Database, name: str, at: int, *, fence: int = 2) -> None:
    database.repair(name, "resume", fence=fence, run=f"r{fence}", release="1.0+1", resume_at=at)


def states(database: Database) -> list[tuple[str, str, int]]:
    return [(row.script, row.state, row.statement) for row in database.history()]


@pytest.fixture
def database(postgres: Postgres) -> Database:
    return postgres.open()


def by_dba(postgres: Postgres, *statements: str) -> None:
    with postgres.server.superuser(postgres.address.name).connect() as connection:
        for statement in statements:
            connection.execute(statement.encode())


# --- refused before anything is sent ---------------------------------------------------------------------------------------


def test_a_script_for_the_client_cannot_run_statement_by_statement(postgres: Postgres, database: Database) -> None:
    with pytest.raises(Failed, match="cannot run as it is declared") as failed:
        stepwise(database, "a.sql", "CREATE TABLE b (n integer);\nCREATE INDEX CONCURRENTLY i ON b (n);", client=True)
    assert "transaction=no" in failed.value.render() and "client=psql" in failed.value.render()
    assert postgres.tables() == set()


@pytest.mark.parametrize("word", ["ROLLBACK", "COMMIT", "PREPARE TRANSACTION 'x'"])
def test_a_script_for_the_client_cannot_end_its_transaction(postgres: Postgres, database: Database, word: str) -> None:
    sql = f"CREATE TABLE x (n integer);\nCOPY x FROM stdin;\n1; COMMIT\n\\.\n{word};\nCREATE TABLE y (n integer);"
    with pytest.raises(Failed, match="ends the transaction itself") as failed:
        run(database, "a.sql", f"{sql}\nBEGIN; CREATE TABLE z (n integer); COMMIT; SELECT 1;", client=True)
    assert failed.value.reasons[0].source == "a.sql:5"
    assert postgres.tables() == set()


@pytest.mark.parametrize("client", [False, True])
def test_what_got_out_of_the_transaction_all_the_same_is_blocked_and_told(
    postgres: Postgres, database: Database, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(database, "0.sql", "CREATE TABLE base (n integer)")
    monkeypatch.setattr(Statement, "ends_transaction", property(lambda _: False))
    sql = (
        "CREATE TABLE x (n integer);\nROLLBACK;\nBEGIN; CREATE TABLE y (n integer); COMMIT; CREATE TABLE z (n integer);"
    )
    with pytest.raises(PartlyDone, match="left the transaction"):
        run(database, "a.sql", sql, client=client)
    assert "y" in postgres.tables() and "x" not in postgres.tables()
    with pytest.raises(Refused, match="blocked"):
        run(database, "a.sql", sql, client=client)
    database.repair("a.sql", "reverted", fence=2, run="r2", release="1.0+1")
    assert history_of(database) == ["0.sql"]


def test_resume_of_what_got_out_runs_all_of_it(
    postgres: Postgres, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(database, "0.sql", "CREATE TABLE base (n integer)")
    sql = "ROLLBACK; BEGIN; CREATE TABLE IF NOT EXISTS y (n integer); COMMIT; SELECT 1;"
    with monkeypatch.context() as patch:
        patch.setattr(Statement, "ends_transaction", property(lambda _: False))
        with pytest.raises(PartlyDone):
            run(database, "a.sql", sql)
    resume(database, "a.sql", 1)
    with pytest.raises(Failed, match="ends the transaction itself"):
        run(database, "a.sql", sql, fence=2)


@pytest.mark.parametrize("way", ["tunnel", "client"])
def test_a_carriage_return_ends_a_comment(postgres: Postgres, way: str) -> None:
    database = postgres.open(way=way)
    run(
        database, "a.sql", "CREATE TABLE x (n integer);\n-- c\rCREATE TABLE y (n integer);\nCREATE TABLE z (n integer);"
    )
    assert {"x", "y", "z"} <= postgres.tables()
    with pytest.raises(Failed, match="ends the transaction itself"):
        run(database, "b.sql", "SELECT 1;\n-- c\rROLLBACK; CREATE TABLE w (n integer); END; SELECT 2;")
    if way == "tunnel":
        sql = "CREATE INDEX CONCURRENTLY i ON x (n);\n-- and\rCREATE INDEX CONCURRENTLY j ON x (n);\n"
        stepwise(database, "c.sql", sql)
        assert postgres.query("SELECT count(*) FROM pg_indexes WHERE tablename = 'x'") == [(2,)]


@pytest.mark.parametrize("block", ["BEGIN; {} COMMIT;", "START TRANSACTION; {} END;", "BEGIN; {} ROLLBACK;"])
def test_a_transaction_of_its_own_step_by_step_is_refused(postgres: Postgres, database: Database, block: str) -> None:
    sql = f"CREATE TABLE a (n integer);\n{block.format('CREATE TABLE b (n integer);')}\nVACUUM a;"
    with pytest.raises(Failed, match="cannot run as it is declared") as failed:
        stepwise(database, "a.sql", sql)
    assert failed.value.reasons[0].source == "a.sql:2"
    assert "a script of its own" in failed.value.render()
    assert postgres.tables() == set()


@pytest.mark.parametrize("statement", ["DISCARD ALL", "SELECT pg_catalog.pg_advisory_unlock_all()"])
def test_the_run_s_lock_cannot_be_let_go_step_by_step(postgres: Postgres, database: Database, statement: str) -> None:
    with pytest.raises(Failed, match="cannot run as it is declared"):
        stepwise(database, "a.sql", f"CREATE TABLE a (n integer);\n{statement};\nVACUUM;")
    assert postgres.tables() == set()


def test_a_lock_that_was_let_go_by_a_function_is_taken_again(postgres: Postgres, database: Database) -> None:
    sql = "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT pg_advisory'||'_unlock_all()'; END $$;"
    stepwise(database, "a.sql", f"{sql}\nSELECT f();\nVACUUM;")
    with pytest.raises(Locked):
        postgres.open(patience=0.3).claim(2, "other")


@pytest.mark.parametrize("statement", ["SET client_encoding = 'LATIN1'", "SET NAMES 'LATIN1'"])
def test_another_encoding_is_refused(database: Database, statement: str) -> None:
    for transactional in (True, False):
        with pytest.raises(Failed, match="cannot run as it is declared") as failed:
            run(database, "a.sql", f"SELECT 1;\n{statement};", transactional=transactional)
        assert failed.value.reasons[0].source == "a.sql:2"
    assert run(database, "b.sql", "SET client_encoding = 'UTF8'; SET client_encoding TO utf8;") is True


@pytest.mark.parametrize("verify", [b"CREATE TABLE v (n integer); COMMIT; SELECT 1", b"RELEASE SAVEPOINT tma_verify"])
def test_a_verify_cannot_commit(postgres: Postgres, database: Database, verify: bytes) -> None:
    for transactional in (True, False):
        with pytest.raises(Failed, match="cannot run as it is declared") as failed:
            run(database, "a.sql", "CREATE TABLE a (n integer);", verify=verify, transactional=transactional)
        assert "its verify" in failed.value.render()
    assert postgres.tables() == set()


# --- statement by statement ------------------------------------------------------------------------------------------------


def test_what_commits_inside_is_not_told_as_nothing(postgres: Postgres, database: Database) -> None:
    apply(database, "0.sql", "CREATE TABLE z (n integer)")
    sql = "SELECT 1;\nDO $$ BEGIN INSERT INTO z VALUES (1); COMMIT; INSERT INTO nowhere VALUES (1); END $$;\nVACUUM z;"
    with pytest.raises(PartlyDone) as partly:
        stepwise(database, "a.sql", sql)
    assert "a part of statement 2 itself may be" in (partly.value.state or "")
    assert "the others are not" not in partly.value.render()
    assert postgres.query("SELECT n FROM z") == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "DO $$ DECLARE t text; BEGIN FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP"
        " EXECUTE 'TRUNCATE ' || t || ' CASCADE'; END LOOP; END $$;",
        "DO $$ BEGIN EXECUTE 'DELETE FROM tma_migration'||'_history WHERE script = ''0.sql'''; END $$;",
        "DO $$ BEGIN EXECUTE 'UPDATE tma_migration'||'_fence SET highest = 0'; END $$;",
        "DO $$ BEGIN EXECUTE 'UPDATE tma_migration'||'_history SET state = ''done'''; END $$;",
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_the_history_changed_step_by_step_is_told(postgres: Postgres, database: Database, sql: str, last: bool) -> None:
    apply(database, "0.sql", "CREATE TABLE z (n integer)")
    apply(database, "1.sql", "CREATE TABLE y (n integer)")
    with pytest.raises(PartlyDone, match="changed the migration history itself"):
        stepwise(database, "a.sql", sql if last else f"{sql}\nVACUUM z;")


def test_a_deferred_trigger_cannot_change_the_history(postgres: Postgres, database: Database) -> None:
    apply(database, "0.sql", "CREATE TABLE p (n integer)")
    sql = (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN"
        " {}; RETURN NULL; END $f$;"
        "CREATE CONSTRAINT TRIGGER c AFTER INSERT ON p DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f();"
        "INSERT INTO p VALUES (1);"
    )
    for what in (
        "DELETE FROM tma_migration_history WHERE script = '0.sql'",
        "UPDATE tma_migration_history SET checksum = 'x'",
        "UPDATE tma_migration_fence SET highest = 0",
    ):
        with pytest.raises(Failed, match="changes the migration history itself"):
            run(database, "1.sql", sql.format(what))
    assert history_of(database) == ["0.sql"]
    assert run(
        database,
        "1.sql",
        sql.format("INSERT INTO q VALUES (1)").replace("CREATE F", "CREATE TABLE q (n integer); CREATE F", 1),
    )
    assert postgres.query("SELECT n FROM q") == [(1,)]


def test_an_edited_repeatable_script_runs_again_step_by_step(database: Database) -> None:
    assert stepwise(database, "R.sql", "VACUUM;", kind="repeatable") is True
    assert stepwise(database, "R.sql", "VACUUM ANALYZE; SELECT 1;", kind="repeatable", fence=2) is True
    assert stepwise(database, "R.sql", "VACUUM ANALYZE; SELECT 1;", kind="repeatable", fence=2) is False
    assert [(row.state, row.statement, row.statements) for row in database.history()] == [("done", 2, 2)]
    assert [event.what for event in database.events()] == ["started", "applied", "started", "reapplied"]
    with pytest.raises(PartlyDone):
        stepwise(database, "R.sql", "SELECT 1; SELECT nothing;", kind="repeatable", fence=2)
    assert states(database) == [("R.sql", "running", 1)]
    with pytest.raises(Refused, match="blocked"):
        stepwise(database, "R.sql", "SELECT 1; SELECT 3;", kind="repeatable", fence=2)
    resume(database, "R.sql", 2)


def test_an_invalid_index_is_not_done(postgres: Postgres, database: Database) -> None:
    apply(database, "0.sql", "CREATE TABLE a (n integer); INSERT INTO a VALUES (1), (1)")
    sql = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON a (n);"
    with pytest.raises(PartlyDone) as partly:
        stepwise(database, "a.sql", sql)
    assert "DROP INDEX" in partly.value.render()
    resume(database, "a.sql", 1)
    with pytest.raises(PartlyDone) as partly:
        stepwise(database, "a.sql", sql, fence=2)
    assert "public.i is invalid" in partly.value.render() and "DROP INDEX" in partly.value.render()
    postgres.query("DROP INDEX i; DELETE FROM a")
    resume(database, "a.sql", 1, fence=2)
    assert stepwise(database, "a.sql", sql, fence=2) is True


@pytest.mark.parametrize(
    "statement", ["SELECT pg_catalog.set_config('search_path', 'app', false)", "SELECT 1 AS n INTO TEMP x"]
)
def test_what_a_select_leaves_in_the_session_binds_the_script_to_it(database: Database, statement: str) -> None:
    with pytest.raises(PartlyDone):
        stepwise(database, "a.sql", f"CREATE SCHEMA app;\n{statement};\nSELECT nothing;")
    with pytest.raises(Refused, match="cannot go on in the middle"):
        resume(database, "a.sql", 3)


@pytest.mark.parametrize("way", ["tunnel", "client"])
def test_a_script_that_sets_its_role_is_counted(postgres: Postgres, way: str) -> None:
    database = postgres.open(way=way)
    role = f"owner_{postgres.address.name}"
    by_dba(
        postgres,
        f"CREATE ROLE {role}",
        f"GRANT {role} TO {postgres.address.user}",
        f"GRANT ALL ON SCHEMA public TO {role}",
    )
    sql = f"SET ROLE {role};\nCREATE TABLE a (n integer);\nCREATE INDEX CONCURRENTLY i ON a (n);"
    assert stepwise(database, "a.sql", sql) is True
    assert postgres.query("SELECT tableowner FROM pg_tables WHERE tablename = 'a'") == [(role,)]


def test_a_failed_one_leaves_nothing_in_the_session(database: Database) -> None:
    apply(database, "0.sql", "CREATE SCHEMA rep")
    asked = "SELECT current_setting('search_path'), current_setting('lock_timeout')"
    before = database.query(asked)
    with pytest.raises(PartlyDone):
        stepwise(database, "a.sql", "SET search_path = rep;\nSET lock_timeout = 0;\nSELECT 1/0;")
    assert database.query(asked) == before


# --- the session -----------------------------------------------------------------------------------------------------------


def test_libpq_s_environment_has_no_say(postgres: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = tmp_path / "service"
    service.write_text("[x]\noptions=-c search_path=pg_catalog\nhostaddr=10.0.0.1\n")
    for name, value in {
        "PGHOSTADDR": "10.0.0.1",
        "PGOPTIONS": "-c search_path=pg_catalog -c datestyle=German",
        "PGSERVICE": "x",
        "PGSERVICEFILE": str(service),
        "PGSSLMODE": "require",
        "PGTARGETSESSIONATTRS": "read-only",
        "PGREQUIREAUTH": "none",
        "PGAPPNAME": "x",
        "PGCONNECT_TIMEOUT": "1",
        "PGCLIENTENCODING": "LATIN1",
        "PGSSLCERTMODE": "require",
    }.items():
        monkeypatch.setenv(name, value)
    database = postgres.open()
    asked = "SELECT current_setting('search_path'), current_setting('datestyle'), current_setting('client_encoding')"
    assert database.query(asked) == [('"$user", public', "ISO, MDY", "UTF8")]


@pytest.mark.parametrize("name", ["PGDATESTYLE", "PGTZ", "PGGEQO"])
def test_what_cannot_be_kept_from_the_server_is_refused(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "on")
    with pytest.raises(ConfigurationError) as refused:
        postgres.open().query("SELECT 1")
    assert f"unset {name}" in refused.value.render()
    monkeypatch.setenv(name, "default")
    assert postgres.open().query("SELECT 1") == [(1,)]


def test_a_message_of_ours_cannot_be_forged(postgres: Postgres, database: Database) -> None:
    sql = "CREATE TABLE b (n integer);\nDO $$ BEGIN RAISE EXCEPTION 'tma-says:applied:' USING ERRCODE = '22P02'; END $$;\n"
    with pytest.raises(Failed):
        run(database, "a.sql", sql, client=True)
    assert history_of(database) == []


def test_values_do_not_stand_in_an_error(database: Database) -> None:
    with pytest.raises(Failed) as failed:
        run(database, "a.sql", "ALTER ROLE nobody_here PASSWORD 'hunter2-secret';")
    assert "hunter2" not in failed.value.render()
    assert "ALTER ROLE nobody_here PASSWORD" in failed.value.render()


def test_a_session_that_waits_between_scripts_is_not_ended(postgres: Postgres) -> None:
    by_dba(postgres, f"ALTER ROLE {postgres.address.user} SET idle_session_timeout = '300ms'")
    database = postgres.open()
    apply(database, "0.sql", "CREATE TABLE z (n integer)")
    assert database.query("SELECT current_setting('idle_session_timeout')") == [("0",)]


# --- on trial --------------------------------------------------------------------------------------------------------------


def test_a_rehearsal_settles_between_scripts_and_checks_what_is_deferred(database: Database) -> None:
    path = [script("a.sql", "CREATE SCHEMA app; SET search_path = app"), script("b.sql", "CREATE TABLE t (n integer)")]
    third = script("c.sql", "INSERT INTO app.t VALUES (1)")
    assert [one.outcome for one in database.rehearse([*path, third], run="x")] == ["ok", "ok", "failed"]
    sql = (
        "CREATE TABLE p (n integer PRIMARY KEY); CREATE TABLE q (n integer REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
    )
    (one,) = database.rehearse([script("d.sql", f"{sql} INSERT INTO q VALUES (7);")], run="x")
    assert one.outcome == "failed"
    both = [
        script("d.sql", f"{sql} INSERT INTO q VALUES (7); INSERT INTO p VALUES (7);"),
        script("e.sql", "ALTER TABLE q ADD x integer; INSERT INTO q VALUES (8); INSERT INTO p VALUES (8);"),
    ]
    assert [one.outcome for one in database.rehearse(both, run="x")] == ["ok", "ok"]


def test_a_rehearsal_of_a_client_script_cannot_commit(postgres: Postgres) -> None:
    database = postgres.open(way="client")
    made, data = script(
        "a.sql", "BEGIN;\nCREATE TABLE x (n integer);\nROLLBACK;\nCREATE TABLE y (n integer);\nSELECT 1;\n"
    )
    (one,) = database.rehearse([(made.model_copy(update={"client": True}), data)], run="x")
    assert one.outcome == "failed"
    assert postgres.tables() == set()


# --- backups ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proving(postgres: Postgres) -> Iterator[Database]:
    scratch = f"scratch_{postgres.address.name}"
    with postgres.server.superuser().connect() as connection:
        connection.execute(f"CREATE DATABASE {scratch} OWNER {postgres.address.user}".encode())
    yield postgres.open(scratch=scratch, backup=BackupSettings(proof="restore"))


def test_a_restore_of_a_runner_that_was_overtaken_is_refused(
    postgres: Postgres, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    taken = database.backup("one")
    other = postgres.open()
    look = PostgresqlBackups._look

    def slow(self: PostgresqlBackups, *arguments: Any) -> Any:
        found = look(self, *arguments)
        with postgres.server.superuser().connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'tma r3%%' AND datname = %s",
                [postgres.address.name],
            )
        apply(other, "b.sql", "CREATE TABLE b (n integer)", fence=9, run="r9")
        return found

    monkeypatch.setattr(PostgresqlBackups, "_look", slow)
    with pytest.raises(Refused, match="no longer the one"):
        database.restore("one", sha256=taken.sha256, fence=3, run="r3")
    assert history_of(other) == ["a.sql", "b.sql"]
    assert postgres.query("SELECT highest FROM tma_migration_fence") == [(9,)]


def test_a_restore_whose_lock_is_gone_does_nothing(
    postgres: Postgres, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    database.backup("one")
    apply(database, "b.sql", "CREATE TABLE b (n integer)")
    look = PostgresqlBackups._look

    def slow(self: PostgresqlBackups, *arguments: Any) -> Any:
        found = look(self, *arguments)
        with postgres.server.superuser().connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'tma r3%%' AND datname = %s",
                [postgres.address.name],
            )
        return found

    monkeypatch.setattr(PostgresqlBackups, "_look", slow)
    with pytest.raises(Locked):
        database.restore("one", sha256=None, fence=3, run="r3")
    assert "b" in postgres.tables()


def test_large_objects_are_counted_and_restored(postgres: Postgres, proving: Database) -> None:
    apply(proving, "a.sql", "CREATE TABLE a (n integer); SELECT lo_from_bytea(424242, 'hello')")
    taken = proving.backup("one")
    assert taken.restored and "1 large object" in taken.proven_by
    apply(proving, "b.sql", "SELECT lo_from_bytea(4243, 'since'), lo_put(424242, 0, 'other')", fence=2, run="r2")
    proving.restore("one", sha256=taken.sha256, fence=3, run="r3")
    assert postgres.query("SELECT oid::int, convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata") == [
        (424242, "hello")
    ]


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (("CREATE TABLE bydba (n integer)", "GRANT SELECT ON bydba TO {user}"), "public.bydba"),
        (
            (
                "CREATE FUNCTION ef() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
                "CREATE EVENT TRIGGER et ON ddl_command_end EXECUTE FUNCTION ef()",
            ),
            "event trigger et",
        ),
        (("CREATE PUBLICATION pub FOR ALL TABLES",), "publication pub"),
        (
            (
                "CREATE SCHEMA audit",
                "GRANT USAGE ON SCHEMA audit TO {user}",
            ),
            "schema audit",
        ),
    ],
    ids=["table", "event trigger", "publication", "schema"],
)
def test_what_this_user_cannot_restore_is_not_proven(
    postgres: Postgres, proving: Database, statements: tuple[str, ...], named: str
) -> None:
    apply(proving, "a.sql", "CREATE TABLE a (n integer)")
    by_dba(postgres, *(statement.format(user=postgres.address.user) for statement in statements))
    taken = proving.backup("one")
    assert taken.restored is False
    assert named in taken.proven_by and "cannot be restored" in taken.proven_by
    assert proving.prove("one").restored is False


def test_a_time_limit_of_the_role_does_not_end_a_restore(postgres: Postgres, database: Database) -> None:
    apply(
        database,
        "a.sql",
        "CREATE TABLE a (n integer); CREATE FUNCTION slow(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.005); RETURN $1; END'; INSERT INTO a SELECT generate_series(1, 400);"
        " CREATE INDEX i ON a (slow(n))",
    )
    taken = database.backup("one")
    database.close()
    by_dba(postgres, f"ALTER ROLE {postgres.address.user} SET statement_timeout = '1000ms'")
    postgres.open().restore("one", sha256=taken.sha256, fence=3, run="r3")


def test_a_backup_of_another_database_is_not_restored(postgres: Postgres, database: Database) -> None:
    apply(database, "a.sql", "CREATE TABLE a (n integer)")
    taken = database.backup("one")
    other = f"other_{postgres.address.name}"
    with postgres.server.superuser().connect() as connection:
        connection.execute(f"CREATE DATABASE {other} OWNER {postgres.address.user}".encode())
    second = postgres.open(name=other)
    apply(second, "other.sql", "CREATE TABLE other (n integer)")
    with pytest.raises(Refused, match="another database") as refused:
        second.restore("one", sha256=taken.sha256, fence=3, run="r3")
    assert postgres.address.name in refused.value.render()
    assert history_of(second) == ["other.sql"]


def test_without_what_it_was_made_from_it_is_not_proven(postgres: Postgres, proving: Database) -> None:
    apply(proving, "a.sql", "CREATE TABLE a (n integer)")
    proving.backup("one")
    (facts,) = (postgres.folder / "backups").glob("*.facts")
    facts.unlink()
    proven = proving.prove("one")
    assert proven.restored is False and "is not known" in proven.proven_by
