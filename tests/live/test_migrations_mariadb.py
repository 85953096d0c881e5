"""A product's migrations on a real MariaDB, reached through a real SSH server: the whole way, and what a person does by hand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, Refused
from pipeline.workflow import deployments, migrations, rehearsals, schema_drift
from pipeline.workflow.deployments import PlanResult
from tests.flows import Flow, told
from tests.live.over_ssh import ready_path
from tests.servers.mariadb import MariaDbAddress, MariaDbServer, program
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

BASE = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT);\n"
PRICE = "ALTER TABLE item ADD COLUMN price INTEGER;\n"
TRIGGER = """CREATE TABLE log (id INTEGER AUTO_INCREMENT PRIMARY KEY, said VARCHAR(80));
DELIMITER $$
CREATE TRIGGER item_log AFTER INSERT ON item FOR EACH ROW
BEGIN
  INSERT INTO log (said) VALUES (CONCAT('new; ', NEW.name));
  INSERT INTO log (said) VALUES ('é');
END$$
DELIMITER ;
INSERT INTO item (id, name, price) VALUES (1, 'première', 2);
"""
FIVE = """CREATE TABLE first (id INTEGER);
INSERT INTO first VALUES (1);
INSERT INTO missing VALUES (3);
INSERT INTO first VALUES (4);
CREATE TABLE fifth (id INTEGER);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDbServer]:
    with MariaDbServer() as running:
        yield running


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    running = ThrowawaySshd(tmp_path_factory.mktemp("sshd"), environment=ready_path())
    try:
        yield running.start()
    finally:
        running.stop()


class Shop:
    """Acme's workspace with every environment behind SSH and a MariaDB database each."""

    def __init__(self, flow: Flow, server: MariaDbServer, host: ThrowawaySshd) -> None:
        self.flow = flow
        self.databases: dict[str, MariaDbAddress] = {}
        flow.write("ssh_config", host.ssh_config_text("server1"))
        flow.edit("environments/workspace.yaml", "work: var", "work: var\nssh_config: ssh_config")
        for environment in ("test", "production"):
            address = self.databases[environment] = server.create_database(scratch=True)
            flow.write(f"keys/{environment}", address.password + "\n")
            file = f"environments/acme/{environment}.yaml"
            flow.edit(file, "transport: local", "transport: ssh")
            flow.edit(file, "address: localhost", "address: server1")
            flow.edit(file, f"folder: hosts/{environment}1", f"folder: {flow.host(environment)}")
            flow.edit(
                file,
                "engine: sqlite\n  path: shared/app.sqlite",
                f"engine: mariadb\n  port: {address.port}\n  name: {address.name}\n  user: {address.user}\n"
                f"  password: file:keys/{environment}",
            )

    def query(self, statement: str, environment: str = "test") -> list[tuple[Any, ...]]:
        return self.databases[environment].query(statement)

    def rows(self, environment: str = "test") -> dict[str, str]:
        """Every script of the history with its state, oldest first."""
        found = self.query("SELECT script, state FROM tma_migration_history ORDER BY applied_at, script", environment)
        return {script.decode(): state.decode() for script, state in found}

    def plan(self) -> PlanResult:
        return deployments.plan(self.flow.session(), customer="acme", environment="test")

    def drift(self) -> schema_drift.SchemaDrift:
        return schema_drift.schema_drift(self.flow.session(), customer="acme", environment="test")

    def differences(self) -> list[str]:
        with pytest.raises(Refused) as refused:
            self.drift()
        return [str(reason) for reason in refused.value.reasons]

    def rehearse(self) -> rehearsals.RehearsalDone:
        return rehearsals.rehearse(self.flow.session(), customer="acme", environment="test")

    def baseline(self, **more: Any) -> migrations.Baselined:
        return migrations.baseline(self.flow.session(), customer="acme", environment="test", reason="by hand", **more)

    def repair(self, **more: Any) -> migrations.Repaired:
        named: dict[str, Any] = {"customer": "acme", "environment": "test", "script": "003_five.sql"}
        return migrations.repair(self.flow.session(), **named, reason="the table was missing", **more)

    def sql(self) -> Path:
        """The file for a database administrator."""
        file = self.flow.folder / "dba.sql"
        rehearsals.write_sql(self.flow.session(), customer="acme", environment="test", out=file)
        return file

    def client(self, file: Path) -> subprocess.CompletedProcess[str]:
        """The file run by the server's own client, as its first lines say, in a session that is not UTF-8."""
        address = self.databases["test"]
        options = self.flow.write(
            "my.cnf",
            f"[client]\nhost={address.host}\nport={address.port}\nuser={address.user}\npassword={address.password}\n"
            "default-character-set=latin1\n",
        )
        with file.open() as stdin:
            command = [program("mariadb"), f"--defaults-file={options}", address.name]
            return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)


@pytest.fixture
def shop(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: MariaDbServer, host: ThrowawaySshd) -> Shop:
    return Shop(told(tmp_path_factory, tmp_path, "released"), server, host)


def test_a_release_with_migrations_of_every_kind_reaches_production(shop: Shop) -> None:
    flow = shop.flow
    flow.edit("playbooks/depot.yaml", "folder: migrations", "folder: db\n  layout: flyway")
    flow.make(
        "1.2.0",
        {
            "db/V1__base.sql": BASE,
            "db/V2__pre_price.sql": PRICE,
            "db/V3__log.sql": TRIGGER,
            "db/V4__post_names.sql": "ALTER TABLE item DROP COLUMN name;\nALTER TABLE item ADD CHECK (price > 0);\n",
            "db/U4__post_names.sql": "DROP TABLE item;\n",
            "db/R__prices.sql": "CREATE OR REPLACE VIEW prices AS SELECT id, price FROM item;\n",
        },
    )
    ran = ["V1__base.sql", "V2__pre_price.sql", "V3__log.sql", "R__prices.sql", "V4__post_names.sql"]
    assert list(flow.deploy().migrations) == ran
    flow.decide()
    assert list(flow.promote().migrations) == ran
    for environment in ("test", "production"):
        assert shop.rows(environment) == dict.fromkeys(ran, "done")
        assert shop.query("SELECT id, price FROM prices", environment) == [(1, 2)]
        assert shop.query("SELECT said FROM log ORDER BY id", environment) == [("new; première",), ("é",)]
    flow.make("1.3.0", {"db/R__prices.sql": "CREATE OR REPLACE VIEW prices AS SELECT price FROM item;\n"})
    assert flow.deploy().migrations == ("R__prices.sql",)
    assert shop.query("SELECT * FROM prices") == [(2,)]
    assert shop.drift().scripts == 5
    flow.check_sound()


def test_a_script_that_stops_in_the_middle_is_tried_first_then_repaired(shop: Shop) -> None:
    flow, address = shop.flow, shop.databases["test"]
    flow.deploy()
    flow.make("1.2.0", {"migrations/003_five.sql": FIVE})
    # Tried on a copy of the schema, where there is a database for that.
    with pytest.raises(Refused, match="needs a scratch database"):
        shop.rehearse()
    flow.edit("environments/acme/test.yaml", "user:", f"scratch: {address.name}_scratch\n  user:")
    with pytest.raises(Failed, match="1 failed on trial") as tried:
        shop.rehearse()
    assert [str(reason).split(" (")[0] for reason in tried.value.reasons] == [
        "002_price.sql: ok",
        "003_five.sql: failed",
    ]
    assert "statement 3" in tried.value.render()
    assert shop.rows() == {"001_base.sql": "done"}
    assert address.query(f"SHOW TABLES FROM `{address.name}_scratch`") == []
    # Run all the same, it says how far it came, and blocks until somebody has looked.
    with pytest.raises(Failed) as stopped:
        flow.deploy()
    said = stopped.value.render()
    assert re.search(r"statement 3 \(INSERT INTO missing VALUES \(3\)\): .* \[1146\] \(003_five\.sql:3\)", said), said
    assert "Statements 1 to 2 are committed, the others are not." in said
    repair = "invoke migrate.repair customer=acme env=test script=003_five.sql resume-at=3 reason="
    assert any(command.startswith(repair) for command in stopped.value.next_commands)
    refused = shop.plan()
    assert {refusal["rule"] for refusal in refused.refusals} == {"no_script_is_blocked"}
    assert any(command.startswith(repair) for command in refused.next_commands)
    with pytest.raises(Refused) as again:
        flow.deploy()
    assert again.value.next_commands[0].startswith(repair)
    with pytest.raises(Refused, match="is not known"):
        shop.sql()
    address.query("CREATE TABLE missing (id INTEGER)")
    assert shop.repair(resume_at=3).changed
    # Half of it is there: neither a trial nor a file from its beginning would be right.
    for beginning in (shop.rehearse, shop.sql):
        with pytest.raises(Refused, match="is not known"):
            beginning()
    flow.deploy()
    assert shop.query("SELECT id FROM first ORDER BY id") == [(1,), (4,)]
    assert shop.query("SELECT id FROM missing") == [(3,)]
    assert shop.query("SELECT * FROM fifth") == []
    assert set(shop.rows().values()) == {"done"}
    assert shop.plan().migrations == ()
    # What somebody does beside the pipeline is found.
    assert shop.drift().scripts == 3
    address.query("ALTER TABLE item ADD COLUMN secretly TEXT")
    assert any("secretly" in line for line in shop.differences())
    flow.check_sound()


DBMATE = {
    "db/20240101000000_base.sql": f"-- migrate:up\n{BASE}-- migrate:down\nDROP TABLE item;\n",
    "db/20240102000000_price.sql": f"-- migrate:up\n{PRICE}\n-- migrate:down\nALTER TABLE item DROP COLUMN price;\n",
    # The delimiter stays another one, and the last statement has no end.
    "db/20240103000000_log.sql": "-- migrate:up\n"
    + TRIGGER.replace("DELIMITER ;\n", "").replace(", 2);\n", ", 2) -- ;"),
    "db/20240104000000_more.sql": "-- migrate:up\nSET @left = 1;\nCREATE TABLE more (id INTEGER); -- the last one\n",
    "db/20240105000000_clean.sql": "-- migrate:up\nINSERT INTO more SELECT COALESCE(@left, 7)",
}


def test_an_existing_database_is_taken_over_and_a_dba_runs_the_rest(shop: Shop) -> None:
    flow, address = shop.flow, shop.databases["test"]
    flow.edit("playbooks/depot.yaml", "folder: migrations", "folder: db\n  layout: dbmate")
    flow.make("1.2.0", DBMATE)
    names = [Path(path).name for path in DBMATE]
    address.query(BASE)
    address.query("CREATE TABLE schema_migrations (version VARCHAR(128) PRIMARY KEY)")
    address.query("INSERT INTO schema_migrations VALUES ('20240101000000')")
    done = shop.baseline()
    assert (done.tool, list(done.applied), list(done.pending)) == ("dbmate", names[:1], names[1:])

    file = shop.sql()
    with address.connect() as other, other.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", [f"tma:{address.name}"])
        assert "ERROR 1690" in shop.client(file).stderr
    assert list(shop.rows()) == names[:1]
    ran = shop.client(file)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert shop.query("SELECT HEX(name) FROM item") == [("première".encode().hex().upper(),)]
    assert shop.query("SELECT said FROM log ORDER BY id") == [("new; première",), ("é",)]
    # What the script before it left in the session is gone.
    assert shop.query("SELECT id FROM more") == [(7,)]
    assert shop.rows() == {names[0]: "baseline", **dict.fromkeys(names[1:], "done")}
    assert sum("the ledger does not know" in line for line in shop.differences()) == 4
    late = shop.client(file)
    assert (late.returncode, "Duplicate entry" in late.stderr) == (1, True), late.stderr
    assert list(shop.baseline().known) == names[1:]
    assert shop.plan().migrations == ()
    flow.deploy()
    late = shop.client(file)
    assert (late.returncode, "1690" in late.stderr) == (1, True), late.stderr
    assert shop.query("SELECT count(*) FROM log") == [(2,)]
    flow.check_sound()


def test_a_file_that_stopped_at_the_dbas_blocks_its_script(shop: Shop) -> None:
    flow = shop.flow
    flow.make("1.2.0", {"migrations/003_five.sql": FIVE})
    stopped = shop.client(shop.sql())
    assert (stopped.returncode, "missing" in stopped.stderr) == (1, True)
    assert shop.rows() == {"001_base.sql": "done", "002_price.sql": "done", "003_five.sql": "running"}
    assert "no_script_is_blocked" in {refusal["rule"] for refusal in shop.plan().refusals}
    shop.baseline()
    shop.query("CREATE TABLE missing (id INTEGER)")
    shop.repair(resume_at=3)
    flow.deploy()
    assert shop.query("SELECT id FROM first ORDER BY id") == [(1,), (4,)]
    assert set(shop.rows().values()) == {"done"}


def test_what_was_found_to_depend_on_its_session_is_not_recorded_as_going_on(shop: Shop) -> None:
    flow = shop.flow
    flow.make("1.2.0", {"migrations/003_five.sql": "SET @n = 1;\n" + FIVE.replace("(4)", "(@n)")})
    with pytest.raises(Failed) as stopped:
        flow.deploy()
    for commands in (stopped.value.next_commands, shop.plan().next_commands):
        assert [command.split()[5] for command in commands if "migrate.repair" in command] == [
            "--mark-done",
            "--mark-reverted",
        ]
    with pytest.raises(Refused, match="depends on the state of its session"):
        shop.repair(resume_at=4)
    assert flow.records("migration-repaired") == []
    assert shop.repair(reverted=True).changed
    shop.query("DROP TABLE first")
    # The same by somebody's hand: the row says it too.
    assert shop.client(shop.sql()).returncode == 1
    with pytest.raises(Refused, match="depends on the state of its session"):
        shop.repair(resume_at=4)


@pytest.mark.parametrize(
    "wrong", ["USE mysql;", "SELECT 'not closed;", "COMMIT;", "DELETE FROM tma_migration_history;"]
)
def test_a_file_for_a_dba_refuses_what_a_runner_refuses(shop: Shop, wrong: str) -> None:
    shop.flow.make("1.2.0", {"migrations/003_wrong.sql": wrong})
    with pytest.raises(Failed) as failed:
        shop.sql()
    assert "003_wrong.sql:1" in failed.value.render()
