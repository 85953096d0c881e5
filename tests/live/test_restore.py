"""The way back restores the database, on real servers over real SSH: PostgreSQL and MariaDB.

The application answers from whatever ``current`` is, and asks its database; a release whose script cannot be undone fails
its check. Then the old release answers again, on the data of the moment before.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from pipeline.errors import Failed, PartlyDone
from pipeline.workflow import backups, deployments, lines, products, releases, restores, tickets
from tests.live.over_ssh import SshSample, ready_path
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer
from tests.servers.sshd import ThrowawaySshd
from tests.test_ledger_concurrency import ended, in_child
from tests.workspaces import PLAYBOOK

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

MIGRATE = '  - migrate:\n      except: "*post_*"\n'
STOP = '  - stop:\n      command: [rm, -f, "../../shared/served"]\n  - backup: {shared: true}\n'
STEPS = PLAYBOOK.replace("  - backup\n", "").replace(MIGRATE, STOP + MIGRATE).replace("  - restart:\n", "  - start:\n")
DESTROYS = "DROP TABLE item;\nCREATE TABLE thing (id INTEGER);\nINSERT INTO thing VALUES (1);\n"


class Engine(Protocol):
    """A server with one database for test and one for production."""

    block: dict[str, str]

    def query(self, statement: str) -> list[tuple[Any, ...]]: ...

    def dump(self) -> str: ...


class Postgres:
    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server = server
        self.address = server.create_database(password="restore-secret")
        other = server.create_database(password="restore-secret")
        self.block = {
            key: f"  engine: postgresql\n  port: {one.port}\n  name: {one.name}\n  user: {one.user}\n"
            "  password: file:keys/database\n"
            for key, one in (("test", self.address), ("production", other))
        }

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self.address.connect() as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def dump(self) -> str:
        command = [str(self.server.bin / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.address.port)]
        command += ["-U", self.address.user, "-T", "tma_migration_fence", "-T", "tma_migration_events*"]
        environment = {"PGPASSWORD": self.address.password, "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [*command, self.address.name], env=environment, check=True, capture_output=True, text=True
        )
        return "\n".join(
            line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
        )


class MariaDb:
    def __init__(self, server: MariaDbServer, folder: Path) -> None:
        self.address = server.create_database(password="restore-secret")
        other = server.create_database(password="restore-secret")
        self.block = {
            key: f"  engine: mariadb\n  port: {one.port}\n  name: {one.name}\n  user: {one.user}\n"
            "  password: file:keys/database\n"
            for key, one in (("test", self.address), ("production", other))
        }

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self.address.query(statement)

    def dump(self) -> str:
        command = ["mariadb-dump", "--skip-dump-date", "-h", "127.0.0.1", "-P", str(self.address.port)]
        command += ["-u", self.address.user, f"-p{self.address.password}", "--protocol=tcp"]
        command += [
            f"--ignore-table={self.address.name}.{name}" for name in ("tma_migration_fence", "tma_migration_events")
        ]
        return subprocess.run([*command, self.address.name], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    server = ThrowawaySshd(tmp_path_factory.mktemp("sshd"), environment=ready_path()).start()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer | MariaDbServer]:
    with PostgresServer() if request.param == "postgresql" else MariaDbServer() as server:
        yield server


@pytest.fixture
def engine(server: PostgresServer | MariaDbServer, tmp_path: Path) -> Engine:
    return Postgres(server, tmp_path) if isinstance(server, PostgresServer) else MariaDb(server, tmp_path)


@pytest.fixture
def sample(sshd: ThrowawaySshd, engine: Engine, tmp_path: Path) -> SshSample:
    """1.0.0+1 serves test over SSH, with data; 1.3.0+1, which destroys it and is broken, is released."""
    made = SshSample(tmp_path / "work", {"test": [sshd], "production": [sshd]}, engine.block)
    made.write("playbooks/depot.yaml", STEPS)
    made.write("keys/database", "restore-secret\n")
    products.import_product(made.session(), product="depot", version="1.0.0")
    lines.start_line(made.session(), customer="acme", version="1.0.0")
    tickets.open_ticket(made.session(), customer="acme", title="t", text="t", changed="c", test="t")
    releases.make_release(made.session(), customer="acme", version="1.0.0", tickets=("ACME-1",))
    deployments.deploy(made.session(), customer="acme")
    engine.query("INSERT INTO item (id, name) VALUES (1, 'kept'), (2, 'häß''lich')")
    (made.host("test") / "shared" / "upload").write_text("then")
    made.version("1.3.0", {"migrations/003_destroy.sql": DESTROYS, "app.txt": "depot broken\n"})
    products.import_product(made.session(), product="depot", version="1.3.0")
    releases.make_release(made.session(), customer="acme", version="1.3.0", tickets=("ACME-1",))
    return made


def check_as_before(sample: SshSample, engine: Engine, before: str) -> None:
    assert engine.dump() == before
    assert sample.served("test") == "depot 1.0.0"
    assert sample.current("test") == "releases/1.0.0+1"
    assert (sample.host("test") / "shared" / "upload").read_text() == "then"


def test_data_schema_and_application_are_as_they_were(sample: SshSample, engine: Engine) -> None:
    before = engine.dump()
    with pytest.raises(Failed) as failed:
        deployments.deploy(sample.session(), customer="acme")
    assert "1.0.0+1 serves again. The data is as it was before" in failed.value.state
    check_as_before(sample, engine, before)
    assert engine.query("SELECT count(*) FROM tma_migration_events WHERE what = 'restored'") == [(1,)]
    # The next one finds nothing in its way.
    sample.version("1.4.0", {"migrations/003_destroy.sql": DESTROYS, "app.txt": "depot 1.4.0\n"})
    products.import_product(sample.session(), product="depot", version="1.4.0")
    releases.make_release(sample.session(), customer="acme", version="1.4.0", tickets=("ACME-1",))
    assert deployments.deploy(sample.session(), customer="acme").changed is True
    assert engine.query("SELECT id FROM thing") == [(1,)]


@pytest.mark.parametrize("when", ["before", "in the middle", "after"])
def test_killed_in_the_restore_the_same_command_finishes_it(sample: SshSample, engine: Engine, when: str) -> None:
    """In the middle: PostgreSQL restores in one transaction, MariaDB empties the database first."""
    if when == "in the middle" and isinstance(engine, Postgres):
        pytest.skip("PostgreSQL's restore has no middle")
    before = engine.dump()

    def work() -> None:
        from pipeline import acts
        from pipeline.databases.mysql import backup as mysql_backup

        restore = acts.restore_database

        def dying(*arguments: Any) -> None:
            if when == "in the middle":
                empty = getattr(mysql_backup, "empty")  # noqa: B009

                def then_die(*named: Any) -> None:
                    empty(*named)
                    os.kill(os.getpid(), signal.SIGKILL)

                setattr(mysql_backup, "empty", then_die)  # noqa: B010
            if when != "before":
                restore(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(acts, "restore_database", dying)  # noqa: B010 (the type is not the same)
        deployments.deploy(sample.session(), customer="acme")

    assert ended(in_child(work)) == -signal.SIGKILL
    with pytest.raises(Failed, match="is brought back"):
        deployments.deploy(sample.session(), customer="acme")
    check_as_before(sample, engine, before)


def test_a_backup_whose_bytes_were_changed_restores_nothing(sample: SshSample, engine: Engine) -> None:
    session = sample.session()
    kept: dict[Path, bytes] = {}

    def spoil(line: str) -> None:
        if "check it serves" not in line or kept:
            return
        [file] = [file for file in (sample.host("test") / "backups").glob("*") if file.is_file() and mine(file)]
        kept[file] = file.read_bytes()
        file.chmod(0o600)
        file.write_bytes(kept[file][:-1] + bytes([kept[file][-1] ^ 1]))

    def mine(file: Path) -> bool:
        return file not in there and file.suffix in {".dump", ".gz"} and ".shared." not in file.name

    there = set((sample.host("test") / "backups").glob("*"))
    session.progress = spoil
    with pytest.raises(PartlyDone) as partly:
        deployments.deploy(session, customer="acme")
    assert kept
    assert "is not the one that was recorded" in partly.value.render()
    assert "is quarantined" in partly.value.state
    assert engine.query("SELECT id FROM thing") == [(1,)]
    # Its bytes put back, a person restores it, and the environment comes out of its quarantine.
    for file, data in kept.items():
        file.write_bytes(data)
    label = partly.value.next_commands[0].split("backup=")[1].split()[0]
    restores.restore(sample.session(), customer="acme", environment="test", backup=label, reason="an incident")
    assert engine.query("SELECT id FROM item ORDER BY id") == [(1,), (2,)]
    assert deployments.rollback(sample.session(), customer="acme", environment="test").changed is True
    assert sample.served("test") == "depot 1.0.0"


def test_a_backup_by_hand_comes_back(sample: SshSample, engine: Engine) -> None:
    backups.make(sample.session(), customer="acme", environment="test", reason="before", label="fair")
    before = engine.dump()
    engine.query("DELETE FROM item")
    engine.query("CREATE TABLE other (id INTEGER)")
    [*_, row] = backups.listed(sample.session(), customer="acme", environment="test").backups
    assert (row["label"], row["trouble"]) == ("fair", None)
    restores.restore(sample.session(), customer="acme", environment="test", backup="fair", reason="an incident")
    check_as_before(sample, engine, before)
