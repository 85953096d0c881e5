"""The layouts of other tools through the whole flow: what of them runs, in which order, and what does not."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, PipelineError, Refused
from pipeline.workflow import (
    deployments,
    lines,
    migrations,
    products,
    rehearsals,
    releases,
    schema_drift,
    tickets,
    upkeep,
)
from pipeline.workflow.deployments import PlanResult
from tests.flows import Flow, told
from tests.servers.postgres import DatabaseAddress, PostgresServer, binaries

pytestmark = pytest.mark.live

BASE = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT);\n"
PRICE = "ALTER TABLE item ADD COLUMN price INTEGER;\n"


@pytest.fixture
def flow(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "released")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


def layout(flow: Flow, name: str, *more: str) -> None:
    """The playbook says that the migrations are in ``db``, in this layout."""
    flow.edit("playbooks/depot.yaml", "folder: migrations", "\n  ".join(["folder: db", f"layout: {name}", *more]))


def plan(flow: Flow, customer: str = "acme", **more: Any) -> PlanResult:
    return deployments.plan(flow.session(), customer=customer, environment="test", **more)


def columns(flow: Flow, table: str = "item") -> list[str]:
    return [row[1] for row in flow.sql("test", f"PRAGMA table_info({table})")]


# --- a layout each -------------------------------------------------------------------------------------------------------


def test_of_dbmates_files_only_the_part_that_goes_up_runs(flow: Flow) -> None:
    layout(flow, "dbmate")
    flow.make(
        "1.2.0",
        {
            "db/20240101000000_base.sql": f"-- migrate:up\n{BASE}\n-- migrate:down\nDROP TABLE item;\n",
            # Neither runs in a transaction.
            "db/20240102000000_shrink.sql": "-- migrate:up transaction:false\nVACUUM;\n-- migrate:down\nDROP TABLE item;\n",
            "db/20240103000000_price.sql": f"-- migrate:up\n{PRICE}-- migrate:down transaction:false\nDROP TABLE item;\n",
        },
    )
    notes = {script["script"]: script["notes"] for script in plan(flow).scripts}
    assert notes["20240102000000_shrink.sql"] == ["not in a transaction", "unknown"]
    flow.deploy()
    assert flow.migrated("test") == sorted(notes)
    assert columns(flow) == ["id", "name", "price"]
    # Without the word it is in a transaction, and so it does not run.
    flow.make("1.3.0", {"db/20240104000000_shrink.sql": "-- migrate:up\nVACUUM;\n-- migrate:down\nSELECT 1;\n"})
    with pytest.raises(Failed):
        flow.deploy()
    assert flow.migrated("test") == sorted(notes)
    flow.check_sound()


def test_dbmates_scripts_outside_a_transaction_on_postgresql(flow: Flow, server: PostgresServer) -> None:
    address = on_postgresql(flow, server)
    layout(flow, "dbmate")
    flow.make(
        "1.2.0",
        {
            "db/1_base.sql": f"-- migrate:up\n{BASE}\n-- migrate:down\nDROP TABLE item;\n",
            "db/2_index.sql": "-- migrate:up transaction:false\nCREATE INDEX CONCURRENTLY named ON item (name);\n"
            "-- migrate:down transaction:false\nDROP INDEX CONCURRENTLY named;\n",
        },
    )
    flow.deploy()
    with address.connect() as connection:
        assert connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'named'::regclass"
        ).fetchall() == [(True,)]
        states = connection.execute("SELECT script, state FROM tma_migration_history ORDER BY script").fetchall()
    assert states == [("1_base.sql", "done"), ("2_index.sql", "done")]


def on_postgresql(flow: Flow, server: PostgresServer) -> DatabaseAddress:
    address = server.create_database()
    flow.write("keys/test", address.password + "\n")
    flow.edit(
        "environments/acme/test.yaml",
        "engine: sqlite\n  path: shared/app.sqlite",
        f"engine: postgresql\n  port: {address.port}\n  name: {address.name}\n  user: {address.user}\n"
        "  password: file:keys/test",
    )
    return address


def test_flyways_versions_run_by_number_and_what_is_repeatable_after_them(flow: Flow) -> None:
    layout(flow, "flyway")
    view = "DROP VIEW IF EXISTS names;\nCREATE VIEW names AS SELECT name FROM item;\n"
    flow.make(
        "1.2.0",
        {
            "db/V1__base.sql": BASE,
            "db/V2__price.sql": PRICE,
            "db/V10__rename.sql": "ALTER TABLE item RENAME COLUMN price TO cost;\n",
            "db/V2_1__more.sql": "ALTER TABLE item ADD COLUMN note TEXT;\n",
            "db/U10__rename.sql": "DROP TABLE item;\n",
            "db/R__names.sql": view,
        },
    )
    flow.deploy()
    versions = ["V1__base.sql", "V2__price.sql", "V2_1__more.sql", "V10__rename.sql"]
    assert flow.migrated("test") == [*versions, "R__names.sql"]
    assert columns(flow) == ["id", "name", "cost", "note"]
    flow.make("1.3.0", {"db/V11__last.sql": PRICE, "db/R__names.sql": view.replace("name FROM", "name, price FROM")})
    assert flow.deploy().migrations == ("V11__last.sql", "R__names.sql")
    assert columns(flow, "names") == ["name", "price"]
    assert plan(flow).migrations == ()
    flow.check_sound()


SQITCH = """%syntax-version=1.0.0
%project=depot

zeta 2024-01-01T00:00:00Z Ada <ada@example.org> # the first, whatever its name
alpha [zeta] 2024-01-02T00:00:00Z Ada <ada@example.org> # after it
"""


def test_sqitchs_changes_run_in_the_order_of_the_plan_each_with_its_verify(flow: Flow) -> None:
    layout(flow, "sqitch")
    wrapped = "-- a change\nBEGIN;\n{}COMMIT;\n"
    flow.make(
        "1.2.0",
        {
            "db/sqitch.plan": SQITCH,
            "db/deploy/zeta.sql": wrapped.format(BASE),
            "db/deploy/alpha.sql": wrapped.format(PRICE),
            "db/revert/zeta.sql": "BEGIN;\nDROP TABLE item;\nCOMMIT;\n",
            "db/revert/alpha.sql": "BEGIN;\nALTER TABLE item DROP COLUMN price;\nCOMMIT;\n",
            "db/verify/zeta.sql": "BEGIN;\nSELECT id, name FROM item;\nROLLBACK;\n",
        },
    )
    flow.deploy()
    assert flow.migrated("test") == ["zeta", "alpha"]
    assert columns(flow) == ["id", "name", "price"]
    # What its verify does not find is not there: the change is taken back as a whole.
    flow.make(
        "1.3.0",
        {
            "db/sqitch.plan": SQITCH + "beta 2024-01-03T00:00:00Z Ada <ada@example.org> # the last\n",
            "db/deploy/beta.sql": wrapped.format("CREATE TABLE beta (id INTEGER);\n"),
            "db/verify/beta.sql": "BEGIN;\nINSERT INTO item (id) VALUES (7);\nSELECT other FROM beta;\nROLLBACK;\n",
        },
    )
    with pytest.raises(Failed) as failed:
        flow.deploy()
    assert "its verify failed" in failed.value.render()
    assert flow.migrated("test") == ["zeta", "alpha"]
    assert columns(flow, "beta") == []
    # One that writes to look leaves nothing behind.
    flow.make(
        "1.4.0", {"db/verify/beta.sql": "BEGIN;\nINSERT INTO item (id) VALUES (7);\nSELECT id FROM beta;\nROLLBACK;\n"}
    )
    flow.deploy()
    assert (flow.migrated("test")[-1], flow.sql("test", "SELECT count(*) FROM item")) == ("beta", [(0,)])
    flow.check_sound()


def test_diesels_folders_go_up_and_never_down(flow: Flow) -> None:
    layout(flow, "up-down")
    flow.make(
        "1.2.0",
        {
            "db/2024-01-01-000000_base/up.sql": BASE,
            "db/2024-01-01-000000_base/down.sql": "DROP TABLE item;\n",
            "db/2024-01-02-000000_shrink/up.sql": "VACUUM;\n",
            "db/2024-01-02-000000_shrink/down.sql": "DROP TABLE item;\n",
            "db/2024-01-02-000000_shrink/metadata.toml": "run_in_transaction = false\n",
            # Contract: after the switch, by the name of its folder.
            "db/2024-01-03-000000_post_price/up.sql": PRICE,
            "db/2024-01-03-000000_post_price/down.sql": "DROP TABLE item;\n",
        },
    )
    notes = {script["script"]: script["notes"] for script in plan(flow).scripts}
    assert notes["2024-01-03-000000_post_price/up.sql"][0] == "contract: after the switch"
    flow.deploy()
    assert flow.migrated("test") == list(notes)
    assert columns(flow) == ["id", "name", "price"]
    flow.check_sound()


# --- releases and customers ----------------------------------------------------------------------------------------------


def test_a_new_customer_gets_the_full_schema_and_the_next_releases_scripts_on_top(flow: Flow) -> None:
    full = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER);\n"
    flow.edit("playbooks/depot.yaml", "folder: migrations", "folder: migrations\n  initial: schema.sql")
    flow.make("1.2.0", {"schema.sql": full})
    flow.deploy()
    assert set(flow.migrated("test")) == {"schema.sql", "001_base.sql", "002_price.sql"}
    # The next release has another full schema too: this database is no new one.
    flow.make(
        "1.3.0",
        {
            "schema.sql": full.replace("price", "cost") + "CREATE TABLE stock (id INTEGER PRIMARY KEY);\n",
            "migrations/003_stock.sql": "CREATE TABLE stock (id INTEGER PRIMARY KEY);\n",
            "migrations/004_post_cost.sql": "ALTER TABLE item RENAME COLUMN price TO cost;\n",
        },
    )
    assert plan(flow).migrations == ("003_stock.sql", "004_post_cost.sql")
    flow.deploy()
    assert flow.migrated("test")[-2:] == ["003_stock.sql", "004_post_cost.sql"]
    assert (columns(flow), columns(flow, "stock")) == (["id", "name", "cost"], ["id"])
    # Production is new. The schema that it would get is not the one that test had: somebody says that this is well.
    flow.decide()
    with pytest.raises(Refused, match="cannot go to production") as refused:
        flow.promote()
    accept = "invoke migrate.accept customer=acme script=schema.sql env=test release=1.3.0+1 reason=…"
    assert accept in refused.value.next_commands
    upkeep.accept_migration(flow.session(), customer="acme", script="schema.sql", reason="compared")
    flow.promote()
    # What it stands for is what test came to, script by script.
    drifted = schema_drift.schema_drift(flow.session(), customer="acme", environment="production", against="test")
    assert drifted.compared == "as recorded of test"
    assert set(flow.migrated("production")) == set(flow.migrated("test"))
    flow.check_sound()


DUMPED = """-- as pg_dump writes it
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
SET lock_timeout = 0;
CREATE TABLE public.item (id integer PRIMARY KEY, name text, price integer);
"""


@pytest.mark.parametrize("by", ["runner", "hand"])
def test_a_full_schema_that_is_a_dump_leaves_nothing_in_the_session(
    flow: Flow, server: PostgresServer, by: str
) -> None:
    address = on_postgresql(flow, server)
    flow.edit("playbooks/depot.yaml", "folder: migrations", "folder: migrations\n  initial: schema.sql")
    alone = (
        "-- tma: transaction=no\nSET search_path = pg_catalog;\nSET lock_timeout = 0;\n"
        "CREATE INDEX CONCURRENTLY named ON public.item (name);\n"
    )
    after = (
        "-- tma: phase=contract\nDO $$ BEGIN ASSERT current_setting('lock_timeout') = '5s'; END $$;\n"
        "INSERT INTO item (id, name) VALUES (1, 'é');\n"
    )
    flow.make("1.2.0", {"schema.sql": DUMPED})
    if by == "runner":
        flow.deploy()
    else:
        run_by_psql(flow, address)
    flow.edit("playbooks/depot.yaml", 'only: "*post_*"', 'only: "*"')
    flow.make("1.3.0", {"migrations/003_named.sql": alone, "migrations/004_after.sql": after})
    if by == "runner":
        flow.deploy()
    else:
        run_by_psql(flow, address)
    with address.connect() as connection:
        states = connection.execute("SELECT script, state FROM tma_migration_history ORDER BY script").fetchall()
        assert connection.execute("SELECT name FROM item").fetchall() == [("é",)]
    assert states == [
        ("001_base.sql", "baseline"),
        ("002_price.sql", "baseline"),
        ("003_named.sql", "done"),
        ("004_after.sql", "done"),
        ("schema.sql", "done"),
    ]
    assert plan(flow).migrations == ()


def run_by_psql(flow: Flow, address: DatabaseAddress) -> None:
    """What ``migrate.sql`` writes, run by its own client in a session that is not UTF-8, and taken into the ledger."""
    file = flow.folder / "dba.sql"
    named = {"customer": "acme", "environment": "test"}
    rehearsals.write_sql(flow.session(), **named, out=file)
    psql = shutil.which("psql") or str(binaries() / "psql")
    options = ["-h", address.host, "-p", str(address.port), "-U", address.user, address.name]
    ran = subprocess.run(
        [psql, "--no-psqlrc", "-q", f"--file={file}", *options],
        env={**os.environ, "PGPASSWORD": address.password, "PGCLIENTENCODING": "LATIN1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert migrations.baseline(flow.session(), **named, reason="by hand").changed  # type: ignore[arg-type]


class Customer:
    """One of two customers of the same product, each at its own pace."""

    def __init__(self, flow: Flow, key: str) -> None:
        self.flow, self.key = flow, key

    def release(self, version: str) -> str:
        named = {"customer": self.key, "version": version, "tickets": (f"{self.key.upper()}-1",)}
        return releases.make_release(self.flow.session(), **named).release  # type: ignore[arg-type]

    def take(self, version: str) -> tuple[str, ...]:
        """This version goes to its test; the migrations that ran for it."""
        done = deployments.deploy(self.flow.session(), customer=self.key, release=self.release(version))
        assert isinstance(done, deployments.DeploymentResult)
        return done.migrations

    def look(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The scripts in the order in which they ran, and the schema as it is."""
        found = schema_drift.schema_drift(self.flow.session(), customer=self.key, environment="test")
        file = self.flow.folder / "hosts" / ("test1" if self.key == "acme" else self.key) / "shared" / "app.sqlite"
        with closing(sqlite3.connect(file)) as connection:
            ran = connection.execute("SELECT script FROM tma_migration_history ORDER BY rowid").fetchall()
            schema = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE '%tma_%' ORDER BY name"
            )
            assert found.scripts == len(ran)
            return [name for (name,) in ran], schema.fetchall()


BEGUN, FEATURE, FIX = "001_base.sql", "002_price.sql", "001_fix.sql"


def two_customers(flow: Flow) -> tuple[Customer, Customer]:
    """One is at 1.0.0. There are 1.0.1 with a fix, 1.1.0 with a feature and without the fix, and 1.1.1 with both."""
    fix = {f"migrations/{FIX}": "CREATE INDEX item_name ON item (name);\n"}
    flow.git(flow.product, "checkout", "-q", "-b", "maintenance", "v1.0.0")
    flow.version("1.0.1", fix)
    flow.git(flow.product, "checkout", "-q", "main")
    flow.git(flow.product, "merge", "-q", "-s", "ours", "maintenance")
    flow.version("1.1.1", fix)
    for name in ("customer", "test", "production"):
        text = (flow.folder / f"environments/acme/{name}.yaml").read_text()
        text = text.replace("Acme", "Other").replace("ACME", "OTHER")
        if name != "customer":
            host = "other" if name == "test" else "other-production"
            text = text.replace("acme", "other").replace(f"hosts/{name}1", f"hosts/{host}")
        flow.write(f"environments/other/{name}.yaml", text)
    flow.edit("environments/people.yaml", "customers: [acme]", "customers: [acme, other]")
    products.import_product(flow.session(), product="depot")
    lines.start_line(flow.session(), customer="other", version="1.1.0")
    tickets.open_ticket(flow.session(), customer="other", title="Version", text="", changed="everything", test="look")
    return Customer(flow, "acme"), Customer(flow, "other")


def test_a_fix_and_a_feature_in_another_order_at_two_customers(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    acme, other = two_customers(told(tmp_path_factory, tmp_path, "tested"))
    assert acme.take("1.0.1") == (FIX,)
    assert other.take("1.1.0") == (BEGUN, FEATURE)
    # The feature without the fix would be a step back for who has the fix.
    release = acme.release("1.1.0")
    refused = {refusal["rule"] for refusal in plan(acme.flow, "acme", release=release).refusals}
    assert "migrations_are_as_they_ran" in refused, refused
    assert acme.take("1.1.1") == (FEATURE,)
    assert other.take("1.1.1") == (FIX,)
    (ran_acme, schema_acme), (ran_other, schema_other) = acme.look(), other.look()
    assert (ran_acme, ran_other) == ([BEGUN, FIX, FEATURE], [BEGUN, FEATURE, FIX])
    assert schema_acme == schema_other
    assert len(schema_acme) == 2
    assert plan(acme.flow, "acme").migrations == plan(acme.flow, "other").migrations == ()


def test_a_script_that_is_named_twice_stops_before_anything_runs(flow: Flow) -> None:
    layout(flow, "flyway")
    flow.version("1.2.0", {"db/V1__base.sql": BASE, "db/V1__other.sql": PRICE})
    products.import_product(flow.session(), product="depot", version="1.2.0")
    with pytest.raises(PipelineError) as refused:
        flow.deploy(flow.release("1.2.0").release)
    assert "has the same version as db/V1__base.sql" in refused.value.render()
    assert not (flow.host("test") / "shared" / "app.sqlite").exists()
