"""The main job on something that no one here wrote: procrastinate's wheels, PostgreSQL and sshd, two customers.

The application that serves is a small program which was on the customers' servers before us: it reads the queries of
whatever ``current`` is and runs them on the customer's database, so old code on a newer schema is really tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.sshd import free_port
from pipeline.errors import Failed, Refused
from pipeline.signing import make_key
from pipeline.workflow import Session, deployments, lines, overview, products, releases, sign_offs, tickets, upkeep
from tests.live.catalogue import catalogue, differences
from tests.live.over_ssh import ask, snapshot
from tests.servers.postgres import DatabaseAddress, PostgresServer
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

PINS = Path(__file__).with_name("procrastinate-wheels.txt")
PINNED = dict(re.findall(r"^procrastinate==(\S+) --hash=sha256:([0-9a-f]{64})$", PINS.read_text(), re.MULTILINE))
VERSIONS = list(PINNED)
FAILS, LAST = "3.0.0", VERSIONS[-1]
FAILING = "03.00.00_01_pre_cancel_notification.sql"
EDITED, EDITED_IN = "03.04.00_50_post_add_retry_failed_job_procedure.sql", "3.5.3"
CUSTOM = "procrastinate/sql/queries.sql"
CUSTOM_QUERY = """-- sud_waiting --
-- Jobs that wait, as the control room of Sud shows them
SELECT count(*) AS id FROM procrastinate_jobs;

"""

# Every difference between what the migrations built and what schema.sql builds, with its reason. Nothing else may
# differ, and nothing here may be without use. (The order of a table's columns is not compared: see catalogue.py.)
EXPLAINED = {
    r"^- \S+( type)?: (\w \| )?_?tma_migration_(history|fence|events)": "the own tables of the pipeline, in no product's schema",
}

PLAYBOOK = """
name: Procrastinate
versions: pep440
migrations:
  folder: procrastinate/sql/migrations
steps:
  - backup
  - upload
  - migrate:
      name: expand
      except: "*_post_*"
  - switch
  - restart:
      command: ["{{ values.service }}/restart", "{{ folder }}"]
  - check:
      name: the release's own queries answer
      http: "http://127.0.0.1:{{ values.port }}/query/check_connection"
      contains: '"release": "{{ release }}", "value": "procrastinate_jobs", "version": "{{ version }}"'
      within: 15
  - migrate:
      name: contract
      only: "*_post_*"
"""

# On the customers' servers before us, and outside of the deployment's folder.
RESTART = """#!/bin/sh
exec {python} "$(dirname "$0")/restart.py" "$@"
"""
RESTART_PY = """
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
place, folder = Path(__file__).parent, sys.argv[1]
settings = json.loads((place / "settings.json").read_text())
def answers():
    try:
        with socket.create_connection(("127.0.0.1", settings["port"]), timeout=5) as asked:
            asked.sendall(b"GET /pid HTTP/1.0\\r\\n\\r\\n")
            with asked.makefile() as answer:
                return json.loads(answer.read().splitlines()[-1])["value"]
    except OSError:
        return None
old = answers()
if old is not None:
    os.kill(old, signal.SIGKILL)
with open(place / "log", "ab") as log:
    started = subprocess.Popen([sys.executable, str(place / "serve.py"), folder], stdin=subprocess.DEVNULL, stdout=log,
                               stderr=log, start_new_session=True)
for _ in range(200):
    if answers() == started.pid:
        break
    if started.poll() is not None:
        sys.exit("the application ended: " + (place / "log").read_text()[-500:])
    time.sleep(0.05)
else:
    sys.exit("the application does not answer")
"""
SERVE_PY = """
import json, os, re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import psycopg
place, release = Path(__file__).parent, (Path(sys.argv[1]) / "current").resolve()
settings = json.loads((place / "settings.json").read_text())
[metadata] = release.glob("procrastinate-*.dist-info/METADATA")
version = re.search(r"^Version: (.+)$", metadata.read_text(), re.MULTILINE)[1]
text = (release / "procrastinate/sql/queries.sql").read_text()
queries = {m[1]: m[2] for m in re.finditer(r"^-- (\\w+) --\\n((?:.+\\n)+)", text, re.MULTILINE)}
words = dict(queue="default", task_name="story", priority=0, lock=None, queueing_lock=None, args="{}",
             scheduled_at=None, jobs='{"(default,story,0,,,{},)"}')
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        name, value, status = self.path.removeprefix("/query/"), None, 200
        if self.path == "/pid":
            value = os.getpid()
        elif name in queries:
            with psycopg.connect(**settings["database"], cursor_factory=psycopg.ClientCursor) as connection:
                value = connection.execute(queries[name], words).fetchone()[0]
        else:
            status = 404
        body = json.dumps({"release": release.name, "version": version, "value": value}, sort_keys=True).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", settings["port"]), Answer).serve_forever()
"""

CUSTOMERS = {"nord": ("fr", "Europe/Paris", "nina"), "sud": ("de", "Europe/Zurich", "samuel")}


# --- what it stands on -------------------------------------------------------------------------------------------------


def _wheel(version: str, cache: Path) -> Path:
    """The delivered wheel, from the cache or from PyPI; whatever its origin, its SHA-256 is the pinned one."""
    wheel = cache / f"procrastinate-{version}-py3-none-any.whl"
    if not (wheel.is_file() and hashlib.sha256(wheel.read_bytes()).hexdigest() == PINNED[version]):
        with tempfile.TemporaryDirectory() as folder:
            pin = Path(folder, "pin.txt")
            pin.write_text(f"procrastinate=={version} --hash=sha256:{PINNED[version]}\n")
            options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.12", "-q"]
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", *options, "-d", folder, "-r", pin],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                pytest.fail(
                    f"procrastinate {version} cannot be fetched from PyPI, and this test runs on the wheels as delivered "
                    f"(they are not vendored; the cache is {cache}):\n{done.stderr[-2000:]}",
                    pytrace=False,
                )
            shutil.copy(Path(folder, wheel.name), wheel)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == PINNED[version]
    return wheel


@pytest.fixture(scope="module")
def wheels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    known = getattr(request.config, "cache", None)
    cache = known.mkdir("procrastinate-wheels") if known is not None else tmp_path_factory.mktemp("wheels")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(VERSIONS, pool.map(lambda version: _wheel(version, cache), VERSIONS), strict=True))


@dataclass
class Estate:
    """The workspace of a maintenance team with two customers, each with a database for test and for production."""

    folder: Path
    postgres: PostgresServer
    databases: dict[tuple[str, str], DatabaseAddress]
    wheels: dict[str, Path]
    progress: list[str]

    def session(self) -> Session:
        return Session.open(self.folder, progress=self.progress.append)

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def host(self, customer: str, environment: str) -> Path:
        return self.folder / "hosts" / f"{customer}-{environment}"

    def serves(self, customer: str, environment: str) -> str:
        status, answer = ask(self.session(), customer, environment, "/query/check_connection")
        assert (status, answer["value"]) == (200, "procrastinate_jobs")
        return str(answer["release"])

    def defer(self, customer: str, environment: str) -> int:
        """A job deferred with the very query of the release that serves: the new job's id."""
        for name in ("defer_jobs", "defer_job"):
            status, answer = ask(self.session(), customer, environment, f"/query/{name}")
            if status == 200:
                return int(answer["value"])
        raise AssertionError("the release has no query that defers")

    def ran(self, customer: str, environment: str) -> list[tuple[Any, ...]]:
        with self.databases[customer, environment].connect() as connection:
            return connection.execute(
                "SELECT script, checksum, release FROM tma_migration_history ORDER BY script"
            ).fetchall()

    def set_up(self, sshd: ThrowawaySshd) -> None:
        self.write("playbooks/procrastinate.yaml", PLAYBOOK)
        self.write("ssh_config", sshd.ssh_config_text("server"))
        self.write(
            "environments/workspace.yaml",
            "installations:\n  - path: installations.git\nsigning_key: file:keys/eve\nwork: var\nssh_config: ssh_config\n",
        )
        self.write("keys/README", "keys\n")
        make_key(self.folder / "keys" / "eve")
        people = "people:\n  - key: eve\n    name: Eve\n    roles: [engineer]\n    keys:\n      - public: file:keys/eve.pub\n"
        for key, (language, zone, approver) in CUSTOMERS.items():
            people += (
                f"  - key: {approver}\n    name: {approver.title()}\n    roles: [approver]\n    customers: [{key}]\n"
            )
            self.write(
                f"environments/{key}/customer.yaml",
                f"name: {key.title()} SA\nlanguage: {language}\ntime_zone: {zone}\nproduct: procrastinate\n"
                f"approvers: [{approver}]\n",
            )
            for environment in ("test", "production"):
                self._environment(key, environment)
        self.write("environments/people.yaml", people)

    def _environment(self, key: str, environment: str) -> None:
        database = self.databases[key, environment]
        port, service = free_port(), self.folder / "services" / f"{key}-{environment}"
        self.write(f"keys/{key}-{environment}", database.password + "\n")
        self.write(
            f"environments/{key}/{environment}.yaml",
            f"transport: ssh\nurl: http://127.0.0.1:{port}/\nhosts:\n  - name: app\n    address: server\n"
            f"    folder: {self.host(key, environment)}\n    values:\n      port: {port}\n      service: {service}\n"
            f"database:\n  engine: postgresql\n  port: {database.port}\n  name: {database.name}\n"
            f"  user: {database.user}\n  password: file:keys/{key}-{environment}\n",
        )
        address = {"host": database.host, "port": database.port, "dbname": database.name, "user": database.user}
        settings = {"port": port, "database": address | {"password": database.password}}
        self.write(f"services/{service.name}/settings.json", json.dumps(settings))
        self.write(f"services/{service.name}/restart.py", RESTART_PY)
        self.write(f"services/{service.name}/serve.py", SERVE_PY)
        self.write(f"services/{service.name}/restart", RESTART.format(python=sys.executable)).chmod(0o755)

    def end_services(self) -> None:
        for customer in CUSTOMERS:
            for environment in ("test", "production"):
                try:
                    _, answer = ask(self.session(), customer, environment, "/pid")
                except OSError:
                    continue
                os.kill(answer["value"], signal.SIGKILL)


@pytest.fixture(scope="module")
def estate(sshd: ThrowawaySshd, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    with PostgresServer() as postgres:
        databases = {
            (customer, environment): postgres.create_database(f"{customer}_{environment}")
            for customer in CUSTOMERS
            for environment in ("test", "production")
        }
        estate = Estate(tmp_path_factory.mktemp("estate"), postgres, databases, wheels, [])
        estate.set_up(sshd)
        for version, wheel in wheels.items():
            done = products.import_product(estate.session(), product="procrastinate", version=version, archive=wheel)
            assert done.imported == (version,)
        try:
            yield estate
        finally:
            estate.end_services()


# --- the tests ---------------------------------------------------------------------------------------------------------


def test_a_delivery_is_imported_once_and_never_with_other_bytes(estate: Estate, tmp_path: Path) -> None:
    again = products.import_product(
        estate.session(), product="procrastinate", version=LAST, archive=estate.wheels[LAST]
    )
    assert (again.changed, again.present) == (False, tuple(VERSIONS))
    tampered = tmp_path / estate.wheels[LAST].name
    shutil.copy(estate.wheels[LAST], tampered)
    with zipfile.ZipFile(tampered, "a") as archive:
        archive.writestr("procrastinate/backdoor.py", "")
    with pytest.raises(Refused):
        products.import_product(estate.session(), product="procrastinate", version=LAST, archive=tampered)


def test_what_compares_catalogues_sees_each_kind_of_difference(estate: Estate) -> None:
    address = _scratch(estate, LAST)
    before = catalogue(address)
    changes = {
        "relation": "CREATE TABLE more ()",
        "column": "ALTER TABLE procrastinate_jobs ALTER COLUMN attempts SET DEFAULT 7",
        "constraint": "ALTER TABLE procrastinate_jobs DROP CONSTRAINT check_not_todo_abort_requested",
        "index": "DROP INDEX procrastinate_jobs_priority_idx_v1",
        "trigger": "ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER",
        "enum": "ALTER TYPE procrastinate_job_status ADD VALUE 'lost'",
        "composite type": "ALTER TYPE procrastinate_job_to_defer_v1 ADD ATTRIBUTE more text",
        "sequence": "ALTER SEQUENCE procrastinate_jobs_id_seq INCREMENT 2",
        "function": "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    }
    for kind, change in changes.items():
        with address.connect() as connection:
            connection.execute(change.encode())
        after = catalogue(address)
        assert any(line[2:].startswith(f"{kind}: ") for line in differences(before, after)), kind
        before = after


@pytest.mark.parametrize("customer", list(CUSTOMERS))
def test_every_version_from_delivery_to_production(estate: Estate, customer: str) -> None:
    approver = CUSTOMERS[customer][2]
    lines.start_line(estate.session(), customer=customer, version=VERSIONS[0])
    customised = _customise(estate, customer) if customer == "sud" else ()
    jobs = 0
    good: str | None = None
    for version in VERSIONS:
        ticket = tickets.open_ticket(
            estate.session(),
            customer=customer,
            title=f"Nach {version}",
            changed="siehe CHANGELOG",
            test="Auftrag anlegen",
        ).ticket
        made = releases.make_release(estate.session(), customer=customer, version=version, tickets=(ticket,))
        assert made.customisations == customised
        if version == FAILS:
            _stops_on_test_and_the_old_one_serves(estate, customer, made.release, ticket, good)
            continue
        if version == EDITED_IN:
            _is_refused_until_the_edit_is_accepted(estate, customer, made.release, "test")
        deployed = deployments.deploy(estate.session(), customer=customer)
        assert isinstance(deployed, deployments.DeploymentResult)
        assert deployed.release == made.release == estate.serves(customer, "test")
        assert good is None or estate.serves(customer, "production") == good
        page = Path(sign_offs.write_page(estate.session(), customer=customer).path).read_text()
        assert ticket in page
        assert deployed.content in page
        assert (EDITED in page and "dropped" in page) == (VERSIONS.index(version) >= VERSIONS.index(EDITED_IN))
        evidence = estate.write(f"evidence/{customer}-{version}.eml", f"{approver}: {version} is good\n")
        sign_offs.record_decision(
            estate.session(), customer=customer, decision="approved", by=approver, evidence=evidence
        )
        promoted = deployments.promote(estate.session(), customer=customer)
        assert isinstance(promoted, deployments.DeploymentResult)
        assert (promoted.content, promoted.installed_before) == (deployed.content, good)
        good = made.release
        assert estate.serves(customer, "production") == good
        assert _link(estate, customer, "production") == f"releases/{good}"
        jobs += 1
        assert estate.defer(customer, "production") == jobs
    assert good is not None
    _the_target_holds_the_delivery(estate, customer, good)
    status, answer = ask(estate.session(), customer, "production", "/query/sud_waiting")
    assert (status, answer["value"]) == ((200, jobs) if customised else (404, None))
    for environment in ("test", "production"):
        _the_schema_is_the_vendors(estate, customer, environment)
    _everything_is_provable(estate, customer)


def _customise(estate: Estate, customer: str) -> tuple[str, ...]:
    """An ordinary commit on the line, as an engineer makes it."""
    work = Path(str(lines.checkout_line(estate.session(), customer=customer).folder))
    file = work / CUSTOM
    file.write_text(file.read_text().replace("-- check_connection --", CUSTOM_QUERY + "-- check_connection --"))
    identity = ["-c", "user.name=Eve", "-c", "user.email=eve@example.org", "-c", "commit.gpgsign=false"]
    for words in (["add", "-A"], [*identity, "commit", "-q", "-m", "What waits, for the control room"], ["push", "-q"]):
        subprocess.run(["git", *words], cwd=work, check=True, capture_output=True)
    return (CUSTOM,)


def _link(estate: Estate, customer: str, environment: str) -> str:
    return str((estate.host(customer, environment) / "current").readlink())


def _stops_on_test_and_the_old_one_serves(
    estate: Estate, customer: str, release: str, ticket: str, good: str | None
) -> None:
    ran, production = estate.ran(customer, "test"), snapshot(estate.host(customer, "production"))
    pid = ask(estate.session(), customer, "test", "/pid")
    with pytest.raises(Failed) as caught:
        deployments.deploy(estate.session(), customer=customer)
    told = caught.value.render()
    assert caught.value.exit_code == 1
    assert FAILING in told
    assert "42601" in told
    assert f"{good} serves again" in told
    assert _link(estate, customer, "test") == f"releases/{good}"
    assert estate.serves(customer, "test") == good
    assert ask(estate.session(), customer, "test", "/pid") == pid, "the old release was never stopped"
    assert estate.defer(customer, "test")
    assert estate.ran(customer, "test") == ran
    assert snapshot(estate.host(customer, "production")) == production
    newest = overview.history(estate.session(), customer=customer).records[0]
    assert (newest["kind"], newest["outcome"], newest["release"]) == ("deployment-finished", "failed", release)
    shown = tickets.show_ticket(estate.session(), customer=customer, ticket=ticket)
    assert shown.events[-1]["what"].endswith(f"failed; {good} serves again")
    rows = {row["environment"]: row["release"] for row in _status(estate, customer)}
    assert rows == {"test": good, "production": good}
    with pytest.raises(Refused):
        deployments.promote(estate.session(), customer=customer, release=release)


def _status(estate: Estate, customer: str) -> list[dict[str, Any]]:
    shown: dict[str, Any] = overview.status(estate.session(), customer=customer).model_dump(mode="json")
    return list(shown["rows"])


def _is_refused_until_the_edit_is_accepted(estate: Estate, customer: str, release: str, environment: str) -> None:
    ran, files = estate.ran(customer, environment), snapshot(estate.host(customer, environment))
    with pytest.raises(Refused) as caught:
        deployments.deploy(estate.session(), customer=customer)
    assert [reason.rule for reason in caught.value.reasons] == ["migrations_are_as_they_ran"]
    assert EDITED in caught.value.reasons[0].text
    assert any(command.startswith("invoke migrate.accept") for command in caught.value.next_commands)
    assert (estate.ran(customer, environment), snapshot(estate.host(customer, environment))) == (ran, files)
    accepted = upkeep.accept_migration(
        estate.session(), customer=customer, script=EDITED, reason="only the schema's name was dropped from two names"
    )
    before = {script: checksum for script, checksum, _ in ran}
    assert accepted.changed
    assert (accepted.old, accepted.new) == (before[EDITED], _checksum(estate.wheels[EDITED_IN], EDITED))
    planned = deployments.plan(estate.session(), customer=customer, release=release)
    assert (planned.refusals, planned.accepted_edits, planned.migrations) == ((), (EDITED,), ())


def _checksum(wheel: Path, script: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return hashlib.sha256(archive.read(f"procrastinate/sql/migrations/{script}")).hexdigest()


def _the_target_holds_the_delivery(estate: Estate, customer: str, release: str) -> None:
    """The files that serve, read from the disk, against the vendor's archive itself."""
    serving = estate.host(customer, "production") / "current"
    assert serving.resolve().name == release
    on_disk = {
        str(p.relative_to(serving)): p.read_bytes()
        for p in serving.resolve().rglob("*")
        for p in [serving / p.relative_to(serving.resolve())]
        if p.is_file()
    }
    with zipfile.ZipFile(estate.wheels[LAST]) as archive:
        delivered = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    differing = [name for name in on_disk.keys() | delivered.keys() if on_disk.get(name) != delivered.get(name)]
    if customer == "sud":
        expected = delivered[CUSTOM].replace(
            b"-- check_connection --", CUSTOM_QUERY.encode() + b"-- check_connection --"
        )
        assert (differing, on_disk[CUSTOM]) == ([CUSTOM], expected)
    else:
        assert differing == []


def _scratch(estate: Estate, version: str) -> DatabaseAddress:
    """An empty database with the wheel's own ``schema.sql`` run in it."""
    address = estate.postgres.create_database()
    with zipfile.ZipFile(estate.wheels[version]) as archive, address.connect() as connection:
        connection.execute(archive.read("procrastinate/sql/schema.sql"))
    return address


def _the_schema_is_the_vendors(estate: Estate, customer: str, environment: str) -> None:
    found = differences(catalogue(estate.databases[customer, environment]), catalogue(_scratch(estate, LAST)))
    assert [line for line in found if not any(re.search(pattern, line) for pattern in EXPLAINED)] == []
    for pattern, reason in EXPLAINED.items():
        assert any(re.search(pattern, line) for line in found), f"explains nothing any more: {reason}"
    with zipfile.ZipFile(estate.wheels[LAST]) as archive:
        start = "procrastinate/sql/migrations/"
        shipped = sorted(
            n.removeprefix(start) for n in archive.namelist() if n.startswith(start) and n.endswith(".sql")
        )
    assert [row[0] for row in estate.ran(customer, environment)] == shipped


def _everything_is_provable(estate: Estate, customer: str) -> None:
    assert upkeep.verify_ledger(estate.session(), customer=customer).findings == ()
    installed = len(VERSIONS) - 1
    for environment in ("test", "production"):
        branch = f"{customer}/env/{environment}"
        shown = subprocess.run(
            [*("git", "log", "--first-parent", "--format=%(trailers:key=Release,valueonly,separator=)"), branch],
            cwd=estate.folder / "installations.git",
            check=True,
            capture_output=True,
            text=True,
        )
        versions = [line.partition("+")[0] for line in shown.stdout.split()]
        assert versions[:installed] == [v for v in reversed(VERSIONS) if v != FAILS]
