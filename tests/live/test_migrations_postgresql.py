"""The verbs about migrations, on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import Failed, PartlyDone, Refused
from pipeline.workflow import deployments, migrations, rehearsals, schema_drift
from pipeline.workflow.deployments import PlanResult
from tests.flows import Flow, told
from tests.servers.postgres import DatabaseAddress, PostgresServer, binaries

pytestmark = pytest.mark.live

HALF = """-- tma: transaction=no
CREATE TABLE half (id integer);
CREATE INDEX CONCURRENTLY half_id ON half (id);
INSERT INTO missing VALUES (1);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


@pytest.fixture
def shop(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: PostgresServer
) -> tuple[Flow, DatabaseAddress]:
    flow, address = told(tmp_path_factory, tmp_path, "released"), server.create_database()
    flow.write("keys/test", address.password + "\n")
    block = (
        f"engine: postgresql\n  port: {address.port}\n  name: {address.name}\n  user: {address.user}\n"
        "  password: file:keys/test"
    )
    flow.edit("environments/acme/test.yaml", "engine: sqlite\n  path: shared/app.sqlite", block)
    return flow, address


def plan(flow: Flow) -> PlanResult:
    return deployments.plan(flow.session(), customer="acme", environment="test")


def test_a_script_half_done_is_blocked_repaired_and_goes_on(shop: tuple[Flow, DatabaseAddress]) -> None:
    flow, address = shop
    flow.deploy()
    flow.make("1.2.0", {"migrations/003_half.sql": HALF})
    with pytest.raises((Failed, PartlyDone)) as failed:
        flow.deploy()
    assert any("script=003_half.sql resume-at=3" in command for command in failed.value.next_commands)
    assert {refusal["rule"] for refusal in plan(flow).refusals} == {"no_script_is_blocked"}
    with address.connect() as connection:
        connection.execute("CREATE TABLE missing (id integer)")
    named = {"customer": "acme", "environment": "test", "script": "003_half.sql", "reason": "the table was missing"}
    assert migrations.repair(flow.session(), **named, resume_at=3).changed
    flow.deploy()
    with address.connect() as connection:
        assert connection.execute("SELECT count(*) FROM missing").fetchall() == [(1,)]
        assert connection.execute(
            "SELECT state FROM tma_migration_history WHERE script = '003_half.sql'"
        ).fetchall() == [("done",)]
        assert schema_drift.schema_drift(flow.session(), customer="acme", environment="test").scripts == 3
        connection.execute("ALTER TABLE item ADD COLUMN secretly text")
    with pytest.raises(Refused) as refused:
        schema_drift.schema_drift(flow.session(), customer="acme", environment="test")
    assert any("secretly" in str(reason) for reason in refused.value.reasons)


def test_a_rehearsal_and_what_squawk_finds(shop: tuple[Flow, DatabaseAddress]) -> None:
    flow, address = shop
    flow.deploy()
    flow.make("1.2.0", {"migrations/003_index.sql": "CREATE INDEX item_name ON item (name);\n"})
    assert any("squawk:" in finding["rule"] for finding in plan(flow).findings)
    done = rehearsals.rehearse(flow.session(), customer="acme", environment="test")
    assert [row["outcome"] for row in done.scripts] == ["ok", "ok"]
    with address.connect() as connection:
        assert connection.execute("SELECT script FROM tma_migration_history").fetchall() == [("001_base.sql",)]


def by_hand(flow: Flow, server: PostgresServer, name: str) -> subprocess.CompletedProcess[str]:
    """What is pending, run by a database administrator in the database with this name."""
    file, superuser = flow.folder / "dba.sql", server.superuser(name)
    rehearsals.write_sql(flow.session(), customer="acme", environment="test", out=file)
    psql = shutil.which("psql") or str(binaries() / "psql")
    command = [psql, "--no-psqlrc", "-q", f"--file={file}", "-h", superuser.host, "-p", str(superuser.port)]
    return subprocess.run(
        [*command, "-U", superuser.user, name],
        env={**os.environ, "PGPASSWORD": superuser.password},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_for_a_dba_works_as_the_runner_would(shop: tuple[Flow, DatabaseAddress], server: PostgresServer) -> None:
    flow, address = shop
    with server.superuser(address.name).connect() as connection:
        connection.execute(f"CREATE SCHEMA app AUTHORIZATION {address.user}")
        connection.execute(f"ALTER ROLE {address.user} SET search_path = app")
    flow.deploy()
    flow.make("1.2.0", {"migrations/003_more.sql": "SET search_path = '';\nCREATE TABLE app.more (id integer);\n"})
    other = by_hand(flow, server, server.create_database().name)
    assert other.returncode != 0
    assert f"is not {address.name}" in other.stderr
    ran = by_hand(flow, server, address.name)
    assert (ran.returncode, ran.stderr) == (0, "")
    with address.connect() as connection:
        assert (
            connection.execute(
                "SELECT schemaname, tableowner FROM pg_catalog.pg_tables WHERE tablename IN ('more', 'tma_migration_history')"
            ).fetchall()
            == [("app", address.user)] * 2
        )
        assert connection.execute("SELECT count(*) FROM tma_migration_history WHERE state = 'done'").fetchall() == [
            (3,)
        ]


def test_a_file_for_a_dba_refuses_what_the_runner_refuses(
    shop: tuple[Flow, DatabaseAddress], server: PostgresServer
) -> None:
    flow, address = shop
    flow.release("1.1.0")
    flow.deploy()
    for version, text, said in (
        ("1.2.0", "CREATE TABLE one (id integer);\nCOMMIT;\nCREATE TABLE two (id integer);\n", "ends the transaction"),
        ("1.3.0", "\\! touch /tmp/never\nCREATE TABLE one (id integer);\n", "cannot run as it is declared"),
        ("1.4.0", "VACUUM item;\n", "cannot run as it is declared"),
    ):
        flow.make(version, {"migrations/003_bad.sql": text})
        with pytest.raises(Failed, match=said):
            rehearsals.write_sql(flow.session(), customer="acme", environment="test", out=flow.folder / "dba.sql")
    # What only the server sees is undone as a whole.
    flow.make(
        "1.5.0", {"migrations/003_bad.sql": "CREATE TABLE one (id integer);\nEND;\nCREATE TABLE two (id integer);\n"}
    )
    assert by_hand(flow, server, address.name).returncode != 0
    with address.connect() as connection:
        assert connection.execute("SELECT to_regclass('one'), to_regclass('two')").fetchall() == [(None, None)]
        assert connection.execute("SELECT count(*) FROM tma_migration_history").fetchall() == [(2,)]


def test_an_existing_database_is_taken_over_and_a_dba_runs_the_rest(shop: tuple[Flow, DatabaseAddress]) -> None:
    flow, address = shop
    psql = shutil.which("psql") or str(binaries() / "psql")
    flow.make(
        "1.2.0", {"migrations/003_note.sql": "BEGIN;\nALTER TABLE item ADD COLUMN note text DEFAULT 'a;b';\nCOMMIT;\n"}
    )
    with address.connect() as connection:
        connection.execute("CREATE TABLE item (id integer PRIMARY KEY, name text)")
        connection.execute("CREATE TABLE schema_migrations (version bigint, dirty boolean)")
        connection.execute("INSERT INTO schema_migrations VALUES (1, false)")
    done = migrations.baseline(flow.session(), customer="acme", environment="test", reason="taken over")
    assert (done.tool, done.applied) == ("golang-migrate", ("001_base.sql",))
    file = flow.folder / "dba.sql"
    rehearsals.write_sql(flow.session(), customer="acme", environment="test", out=file)
    command = [
        psql,
        "--no-psqlrc",
        "-q",
        f"--file={file}",
        "-h",
        address.host,
        "-p",
        str(address.port),
        "-U",
        address.user,
    ]
    environment = {**os.environ, "PGPASSWORD": address.password}
    ran = subprocess.run([*command, address.name], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    known = migrations.baseline(flow.session(), customer="acme", environment="test", reason="by hand").known
    assert known == ("002_price.sql", "003_note.sql")
    assert plan(flow).migrations == ()
    flow.deploy()
    late = subprocess.run([*command, address.name], env=environment, capture_output=True, text=True, check=False)
    assert late.returncode == 3
    assert "tma_migration_history" in late.stderr
    with address.connect() as connection:
        connection.execute("UPDATE tma_migration_fence SET highest = 10000")
    late = subprocess.run([*command, address.name], env=environment, capture_output=True, text=True, check=False)
    assert "a later run was here" in late.stderr
