"""Backups of a real PostgreSQL: made in one snapshot, sealed, proven by a trial restore, restored whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.databases.catalogues import differences
from pipeline.databases.postgresql.backup import PostgresqlBackups
from pipeline.databases.postgresql.catalogue import catalogue, loosened
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed, NotKnown, PartlyDone, PipelineError, Refused, UsageError
from pipeline.model import BackupSettings, DatabaseSettings
from pipeline.transports import LineCut, Result
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import HOST_PATH
from tests.servers.postgres import DatabaseAddress, PostgresServer
from tests.servers.small_disk import needs_namespaces

pytestmark = [pytest.mark.slow, pytest.mark.live]

SECRET = f"canary-{secrets.token_hex(8)}"
"""Not another test's, which may show its own in its environment meanwhile."""

PASSPHRASE = f"canary {secrets.token_hex(8)} $(phrase) 'é'"

SCHEMA = """
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN app.positive AS integer CHECK (VALUE > 0);
CREATE TABLE orders (id serial PRIMARY KEY, note varchar(20) CHECK (note IN ('a', 'b')), m mood);
CREATE TABLE app.items (id bigint PRIMARY KEY, o integer REFERENCES orders, n app.positive, "we ird" text);
CREATE VIEW v AS SELECT * FROM orders WHERE note = 'a';
CREATE MATERIALIZED VIEW mv AS SELECT count(*) FROM orders;
CREATE FUNCTION f(a integer) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN a; END $$;
CREATE AGGREGATE total (integer) (sfunc = int4pl, stype = integer, initcond = '0');
CREATE PROCEDURE pr() LANGUAGE sql AS 'SELECT 1';
CREATE EXTENSION pgcrypto;
CREATE TABLE pt (d date, n integer) PARTITION BY RANGE (d);
CREATE TABLE pt1 PARTITION OF pt FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
INSERT INTO orders (note) SELECT 'a' FROM generate_series(1, 1000);
INSERT INTO pt VALUES ('2024-02-02', 1);
"""

SINCE = """
ALTER TABLE orders ADD x integer;
CREATE TABLE later (o integer REFERENCES orders);
CREATE SCHEMA more;
CREATE TYPE more.t AS ENUM ('x');
CREATE FUNCTION g(m mood) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION same(mood, mood) RETURNS boolean LANGUAGE sql AS 'SELECT $1 = $2';
CREATE OPERATOR === (leftarg = mood, rightarg = mood, function = same);
CREATE CAST (mood AS integer) WITH FUNCTION g(mood);
CREATE COLLATION other (locale = 'C');
DELETE FROM orders;
DROP MATERIALIZED VIEW mv;
DROP FUNCTION f;
DROP TABLE pt;
CREATE EXTENSION btree_gin;
"""


class Place:
    """A database with things in it, an empty scratch database of the same owner, and its backups."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server, self.folder = server, folder / "the backups"
        self.address = server.create_database(password=SECRET)
        scratch = server.create_database(password=SECRET)
        self.scratch = replace(scratch, user=self.address.user)
        with server.superuser().connect() as connection:
            connection.execute(f"ALTER DATABASE {scratch.name} OWNER TO {self.address.user}".encode())
        self.transport = LocalTransport("app1", environment={"PATH": HOST_PATH})
        self.run(SCHEMA)

    def run(self, statements: str, address: DatabaseAddress | None = None) -> None:
        with (address or self.address).connect() as connection:
            connection.execute(statements.encode())

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.address.connect() as connection:
            return connection.execute(statement.encode()).fetchall()

    def catalogue(self) -> Any:
        with self.address.connect() as connection:
            return loosened(catalogue(lambda statement: connection.execute(statement.encode()).fetchall()))

    def backups(self, *, proof: str = "archive", transport: Any = None, **changes: Any) -> PostgresqlBackups:
        names: dict[str, Any] = {
            name: changes.pop(name) for name in ("scratch", "lock_timeout", "port") if name in changes
        }
        settings = DatabaseSettings(
            engine="postgresql",
            host=self.address.host,
            port=self.address.port,
            name=self.address.name,
            user=self.address.user,
            scratch=self.scratch.name,
            backup=BackupSettings(proof=proof),
        ).model_copy(update=names)
        errors = ScriptErrors("database x", "acme", "test", SECRET)
        options: dict[str, Any] = {"password": SECRET, "folder": str(self.folder), "errors": errors} | changes
        return PostgresqlBackups(transport or self.transport, settings, **options)


@pytest.fixture
def place(server: PostgresServer, tmp_path: Path) -> Place:
    return Place(server, tmp_path)


@pytest.fixture
def shimmed(tmp_path: Path) -> Iterator[Any]:
    """A host on which some programs are others: their text is that of a shell script."""

    def made(**programs: str) -> LocalTransport:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return LocalTransport("app1", environment={"PATH": f"{folder}:{HOST_PATH}"})

    yield made


# --- made and proven ---------------------------------------------------------------------------------------------------


def test_a_trial_restore_proves_it_and_leaves_the_scratch_database_empty(place: Place) -> None:
    taken = place.backups(proof="restore").take("one")
    assert taken.restored
    assert f"restored into {place.scratch.name}: the same catalogue" in taken.proven_by
    assert "3 tables with 1001 rows" in taken.proven_by
    with place.scratch.connect() as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'app')"
        ).fetchall() == [(0,)]
    assert place.backups().prove("one") == taken


def test_the_archive_is_read_back_where_there_is_no_scratch_database(place: Place) -> None:
    taken = place.backups(scratch=None).take("one")
    assert not taken.restored
    assert "read the whole dump back" in taken.proven_by
    assert place.backups(scratch=None).prove("one").proven_by == taken.proven_by
    # Its rows were not counted; the catalogue is compared all the same.
    assert place.backups().prove("one").proven_by.endswith("the same catalogue, rows not counted")


def test_what_it_was_made_from_is_of_the_dump_s_own_snapshot(place: Place, shimmed: Any) -> None:
    """Rows that come after the snapshot are neither in the dump nor in the count, however long the dump takes."""
    real = place.server.bin / "pg_dump"
    marker = place.folder.parent / "began"
    wait = f'case $1 in --version) ;; *) touch "{marker}"; sleep 2 ;; esac; exec {real} "$@"'
    backups = place.backups(proof="restore", transport=shimmed(pg_dump=wait))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(backups.take("one")))
    thread.start()
    while not marker.exists():
        time.sleep(0.02)
    place.run("INSERT INTO orders (note) SELECT 'b' FROM generate_series(1, 50); CREATE TABLE late (n integer)")
    thread.join()
    assert "3 tables with 1001 rows" in found[0].proven_by


def test_rows_that_a_restore_does_not_bring_back_are_noticed(place: Place, shimmed: Any) -> None:
    real = place.server.bin / "pg_dump"
    short = f'case $1 in --version) exec {real} "$@" ;; *) exec {real} --exclude-table-data=orders "$@" ;; esac'
    with pytest.raises(Failed, match="no proven backup") as failed:
        place.backups(proof="restore", transport=shimmed(pg_dump=short)).take("one")
    assert "table public.orders: 1000 rows when it was made, 0 restored" in failed.value.reasons[0].text
    assert place.backups().found() == []
    assert list(place.folder.iterdir()) == []


def test_objects_that_a_restore_does_not_bring_back_are_noticed(place: Place, shimmed: Any) -> None:
    real = place.server.bin / "pg_dump"
    short = f'case $1 in --version) exec {real} "$@" ;; *) exec {real} --exclude-table=pt1 "$@" ;; esac'
    with pytest.raises(Failed) as failed:
        place.backups(proof="restore", transport=shimmed(pg_dump=short)).take("one")
    assert "table public.pt1: removed" in failed.value.reasons[0].text


def test_a_scratch_database_with_somebody_s_table_is_not_touched(place: Place) -> None:
    place.run("CREATE TABLE theirs (n integer); INSERT INTO theirs VALUES (1)", place.scratch)
    with pytest.raises(Failed, match="no proven backup") as failed:
        place.backups(proof="restore").take("one")
    assert "is not empty: it holds public.theirs" in failed.value.reasons[0].text
    with place.scratch.connect() as connection:
        assert connection.execute("SELECT n FROM theirs").fetchall() == [(1,)]


@pytest.mark.parametrize("scratch", [None, "itself"])
def test_a_trial_restore_needs_a_database_of_its_own(place: Place, scratch: str | None) -> None:
    with pytest.raises(Failed, match="no proven backup") as failed:
        place.backups(proof="restore", scratch=place.address.name if scratch else None).take("one")
    assert "scratch:" in failed.value.reasons[0].text
    assert place.rows("SELECT count(*) FROM orders") == [(1000,)]


def test_listed_oldest_first_without_what_was_not_finished(place: Place) -> None:
    backups = place.backups()
    for label in ("b", "a"):
        backups.take(label)
    (place.folder / "c.dump.part.1").write_bytes(b"half")
    (place.folder / "somebody's.txt").write_bytes(b"x")
    one = place.folder / "b.dump"
    os.utime(one, (1_700_000_000, 1_700_000_000))
    found = backups.found()
    assert [each.label for each in found] == ["b", "a"]
    assert (found[0].at, found[0].path, found[0].size) == ("2023-11-14T22:13:20Z", str(one), one.stat().st_size)
    assert place.backups(folder=str(place.folder / "none")).found() == []


def test_what_a_killed_one_left_goes(place: Place) -> None:
    place.folder.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = place.folder / f"one.dump.part.{ended.pid}"
    left.write_bytes(b"half")
    place.backups().take("one")
    assert sorted(path.name for path in place.folder.iterdir()) == ["one.dump", "one.dump.facts"]


def test_no_name_no_backup(place: Place) -> None:
    with pytest.raises(NotKnown, match="no backup none"):
        place.backups().prove("none")
    with pytest.raises(UsageError):
        place.backups().prove("../x")


# --- sealed ------------------------------------------------------------------------------------------------------------


def test_a_sealed_backup_is_never_on_the_disk_in_the_clear(place: Place) -> None:
    place.run("CREATE TABLE secret (t text); INSERT INTO secret SELECT 'canary in a row'")
    backups = place.backups(proof="restore", passphrase=PASSPHRASE)
    taken = backups.take("one")
    data = Path(taken.path).read_bytes()
    assert taken.path.endswith("one.dump.enc")
    assert hashlib.sha256(data).hexdigest() == taken.sha256
    for path in place.folder.iterdir():
        sealed = path.read_bytes()
        assert sealed.startswith(b"Salted__")
        assert b"PGDMP" not in sealed
        assert b"orders" not in sealed
    assert [each.label for each in backups.found()] == ["one"]
    opened = subprocess.run(
        [
            "openssl",
            "enc",
            "-d",
            "-aes-256-cbc",
            "-md",
            "sha256",
            "-pbkdf2",
            "-iter",
            "200000",
            "-pass",
            "stdin",
            "-in",
            taken.path,
        ],
        input=PASSPHRASE.encode() + b"\n",
        capture_output=True,
        check=True,
    )
    assert opened.stdout.startswith(b"PGDMP")
    place.run(SINCE)
    backups.restore("one", sha256=taken.sha256)
    assert place.rows("SELECT t FROM secret") == [("canary in a row",)]


@pytest.mark.parametrize("other", [None, "another"])
def test_a_sealed_backup_without_its_passphrase_is_an_error(place: Place, other: str | None) -> None:
    place.backups(passphrase=PASSPHRASE).take("one")
    with pytest.raises(Failed) as failed:
        place.backups(passphrase=other).restore("one")
    assert "passphrase" in failed.value.render() or "decrypt" in failed.value.render()
    assert PASSPHRASE not in failed.value.render()
    assert place.rows("SELECT count(*) FROM orders") == [(1000,)]


def test_no_argument_and_no_environment_holds_a_secret(place: Place, shimmed: Any) -> None:
    seen = place.folder.parent / "seen"
    spy = 'for n in /proc/[0-9]*; do cat "$n/cmdline" "$n/environ" 2>/dev/null; done >> "{seen}"; exec {real} "$@"'
    programs = {
        name: spy.format(seen=seen, real=real)
        for name, real in {
            "pg_dump": place.server.bin / "pg_dump",
            "pg_restore": place.server.bin / "pg_restore",
            "psql": place.server.bin / "psql",
            "openssl": "/usr/bin/openssl",
        }.items()
    }
    backups = place.backups(proof="restore", passphrase=PASSPHRASE, transport=shimmed(**programs))
    backups.take("one")
    backups.restore("one")
    everything = seen.read_bytes()
    assert b"--format=custom" in everything
    assert SECRET.encode() not in everything
    assert PASSPHRASE.encode() not in everything


# --- restored ----------------------------------------------------------------------------------------------------------


def test_a_restore_has_exactly_the_objects_and_rows_of_the_backup(place: Place) -> None:
    before = place.catalogue()
    taken = place.backups().take("one")
    place.run(SINCE)
    assert differences(before, place.catalogue())
    place.backups().restore("one", sha256=taken.sha256)
    assert differences(before, place.catalogue()) == []
    assert place.rows("SELECT count(*), max(id), nextval('orders_id_seq') FROM orders") == [(1000, 1000, 1001)]
    assert place.rows("SELECT count FROM mv") == [(1000,)]
    assert place.rows("SELECT count(*) FROM pg_operator WHERE oprname = '==='") == [(0,)]
    # And once more, on top of itself.
    place.backups().restore("one")
    assert differences(before, place.catalogue()) == []


def test_first_and_last_are_of_the_same_transaction(place: Place) -> None:
    place.run("CREATE TABLE fence (highest integer); INSERT INTO fence VALUES (3)")
    place.backups().take("one")
    place.run(SINCE)
    before = place.catalogue()
    with pytest.raises(Failed, match="not restored") as failed:
        place.backups().restore("one", last="INSERT INTO nowhere VALUES (1)")
    assert 'relation "nowhere" does not exist' in failed.value.reasons[0].text
    assert "is as it was before" in failed.value.state
    with pytest.raises(Failed, match="not restored"):
        place.backups().restore("one", first="SELECT 1 / (highest - 3) FROM fence")
    assert place.catalogue() == before
    assert place.rows("SELECT count(*) FROM orders") == [(0,)]
    place.backups().restore("one", last="UPDATE fence SET highest = 9; CREATE TABLE event (n integer)")
    assert place.rows("SELECT highest FROM fence") == [(9,)]
    assert place.rows("SELECT count(*) FROM event") == [(0,)]


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_backup_is_not_restored(place: Place, damage: str) -> None:
    path = Path(place.backups().take("one").path)
    data = path.read_bytes()
    at = len(data) * 3 // 4
    path.write_bytes(data[:at] + (b"\xff" * 64 + data[at + 64 :] if damage == "overwritten" else b""))
    with pytest.raises(Failed) as failed:
        place.backups().restore("one")
    assert "its SHA-256 was" in failed.value.reasons[0].text
    with pytest.raises(Refused, match="is not the one that was recorded"):
        place.backups().restore("one", sha256=hashlib.sha256(data).hexdigest())
    # Without what was noted when it was made, pg_restore itself finds that its end is missing, and nothing was changed.
    (place.folder / "one.dump.facts").unlink()
    with pytest.raises(Failed):
        place.backups().restore("one")
    assert place.rows("SELECT count(*) FROM orders") == [(1000,)]


def test_a_restore_that_stops_half_way_changes_nothing(place: Place, shimmed: Any) -> None:
    """Between two statements, where psql sees nothing wrong with what came."""
    real = place.server.bin / "pg_restore"
    half = f'case "$*" in *--use-list*) {real} --section=pre-data "$@"; exit 1 ;; *) exec {real} "$@" ;; esac'
    place.backups().take("one")
    place.run("DELETE FROM orders")
    with pytest.raises(Failed, match="not restored") as failed:
        place.backups(transport=shimmed(pg_restore=half)).restore("one")
    assert "pg_restore could not read the backup to its end" in failed.value.reasons[0].text
    assert place.rows("SELECT count(*) FROM orders") == [(0,)]
    assert place.rows("SELECT count(*) FROM pt") == [(1,)]


def test_a_restore_that_waits_for_the_application_gives_up(place: Place) -> None:
    place.backups().take("one")
    with place.address.connect() as holding:
        holding.execute("BEGIN; SELECT * FROM orders LIMIT 1")
        with pytest.raises(Failed, match="not restored") as failed:
            place.backups(lock_timeout=1).restore("one")
    assert "lock timeout" in failed.value.reasons[0].text
    assert place.rows("SELECT count(*) FROM orders") == [(1000,)]


def test_a_restore_whose_line_is_cut_is_not_guessed_about(place: Place) -> None:
    class Cut(LocalTransport):
        calls = 0

        def run(self, script: str, arguments: Sequence[str] = (), **options: Any) -> Result:
            result = super().run(script, arguments, **options)
            self.calls += 1
            if self.calls == 2:
                raise LineCut("cut")
            return result

    place.backups().take("one")
    with pytest.raises(PartlyDone, match="not known whether") as raised:
        place.backups(transport=Cut("app1", environment={"PATH": HOST_PATH})).restore("one")
    assert "as a whole, or as it was before" in raised.value.state


# --- the host ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["pg_dump", "pg_restore", "psql"])
def test_programs_older_than_the_server_are_refused(place: Place, shimmed: Any, program: str) -> None:
    place.backups().take("one")
    real = place.server.bin / program
    old = f'case $1 in --version) echo "{program} (PostgreSQL) 9.6.24" ;; *) exec {real} "$@" ;; esac'
    host = shimmed(**{program: old})
    with pytest.raises(Failed) as failed:
        if program == "pg_dump":
            place.backups(transport=host).take("two")
        else:
            place.backups(transport=host).restore("one")
    assert f"{program} is of version 9 and older than the server" in failed.value.reasons[0].text


def test_a_missing_program_is_named(place: Place, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for tool in (
        "sh",
        "mktemp",
        "tar",
        "rm",
        "mkdir",
        "ls",
        "cat",
        "sed",
        "sort",
        "sha256sum",
        "df",
        "awk",
        "wc",
        "mkfifo",
    ):
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (bare / tool).symlink_to(found)
    host = LocalTransport("app1", environment={"PATH": str(bare)})
    with pytest.raises(Failed) as failed:
        place.backups(transport=host, passphrase="x").take("one")
    assert "on app1 openssl is not installed" in failed.value.reasons[0].text


class SmallDisk(LocalTransport):
    """A host that has a disk of 1 MiB at ``disk``, empty for each script."""

    disk = ""

    def run(self, script: str, arguments: Sequence[str] = (), **options: Any) -> Result:
        inner = 'mount -t tmpfs -o size=1m tmpfs "$1" && script=$2 && shift 2 && exec sh -c "$script" sh "$@"'
        outer = 'inner=$1 && shift && exec unshare -m --propagation private sh -c "$inner" sh "$@"'
        return super().run(outer, [inner, self.disk, script, *arguments], **options)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["clear", "sealed"])
def test_a_full_disk_is_named(place: Place, tmp_path: Path, passphrase: str | None) -> None:
    needs_namespaces()
    place.run("CREATE TABLE big AS SELECT md5(n::text) || md5((n + 1)::text) AS t FROM generate_series(1, 60000) n")
    host = SmallDisk("app1", environment={"PATH": f"{HOST_PATH}:/usr/sbin:/sbin"})
    host.disk = str(tmp_path / "disk")
    Path(host.disk).mkdir()
    with pytest.raises(Failed) as failed:
        place.backups(folder=f"{host.disk}/backups", transport=host, passphrase=passphrase).take("one")
    assert f"the disk with {host.disk}/backups is full" in failed.value.reasons[0].text


def test_a_wrong_password_is_said_and_not_shown(place: Place) -> None:
    with pytest.raises(PipelineError) as raised:
        place.backups(password="wrong-" + SECRET).take("one")
    assert "password authentication failed" in raised.value.render()
    assert SECRET not in raised.value.render()
