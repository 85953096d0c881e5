"""The main job over real SSH with two production hosts: what is refused, what is brought back, what never leaks.

Test is one host, production two on different servers. Version 2.1.0 needs a newer runtime than the second server has, so
it passes on test and breaks on the second host of production only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, PipelineError, Refused
from pipeline.host_journal import JournalEntry
from pipeline.workflow import (
    Result,
    deployments,
    lines,
    overview,
    products,
    releases,
    sign_offs,
    tickets,
    upkeep,
)
from tests.live.over_ssh import SshSample, every_object, ready_path, snapshot
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

CANARY = "hunter2-canary-secret"

RESTART = """set -eu
wanted=$(cat runtime 2>/dev/null || echo 1)
if [ "$(cat "$DEPOT_RUNTIME")" -ge "$wanted" ]; then cp app.txt "$1/served"; else echo nothing > "$1/served"; fi
"""

# A check of the product's own that is careless with what it prints.
CHECK = """grep -q "$1" "$2/served" || { cat "$2/app.conf" >&2; exit 1; }
"""


class Depot(SshSample):
    """The workspace, and everything that a person would have read of what was done in it."""

    def __init__(self, folder: Path, servers: list[ThrowawaySshd]) -> None:
        super().__init__(folder, {"test": servers[:1], "production": servers})
        self.servers = servers
        self.shown: list[str] = []
        playbook = folder / "playbooks/depot.yaml"
        old, new = (
            '[grep, -q, "{{ version }}", "../../shared/served"]',
            '[sh, bin/check, "{{ version }}", "../../shared"]',
        )
        assert old in playbook.read_text()
        playbook.write_text(playbook.read_text().replace(old, new))
        common = {"bin/restart": RESTART, "bin/check": CHECK}
        self.version("2.0.0", common)
        stock = "ALTER TABLE item ADD COLUMN stock INTEGER;\n"
        self.version("2.1.0", common | {"runtime": "2\n", "migrations/003_stock.sql": stock})

    def do(self, verb: Callable[..., Result], **words: Any) -> Any:
        """What a verb gives; its text and its JSON are kept, an error's as well."""
        try:
            result = verb(self.session(), **words)
        except PipelineError as error:
            self.shown += [error.render(), json.dumps(error.as_json())]
            raise
        self.shown += [*result.lines(), *result.next_commands, json.dumps(result.model_dump(mode="json"))]
        return result

    def begin(self) -> None:
        self.do(products.import_product, product="depot")
        self.do(lines.start_line, customer="acme", version="2.0.0")
        self.do(tickets.open_ticket, customer="acme", title="Stock", changed="a column", test="look")
        self.do(releases.make_release, customer="acme", version="2.0.0", tickets=("ACME-1",))

    def signed_off_on_test(self, version: str) -> None:
        self.do(releases.make_release, customer="acme", version=version, tickets=("ACME-1",))
        self.do(deployments.deploy, customer="acme")
        self.do(sign_offs.write_page, customer="acme")
        mail = self.write("evidence.eml", f"{version}: approved\n")
        self.do(sign_offs.record_decision, customer="acme", decision="approved", by="claire", evidence=mail)

    def production(self) -> list[dict[str, Any]]:
        return [snapshot(self.host("production", number)) for number in (1, 2)]

    def journal(self, number: int) -> list[JournalEntry]:
        files = sorted((self.host("production", number) / "journal").iterdir())
        return [JournalEntry.model_validate_json(file.read_bytes()) for file in files]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ThrowawaySshd]]:
    """Two OpenSSH servers with host keys of their own; the second has the older runtime."""
    running: list[ThrowawaySshd] = []
    try:
        for runtime in ("2\n", "1\n"):
            folder = tmp_path_factory.mktemp("server")
            (folder / "runtime").write_text(runtime)
            environment = ready_path() | {"DEPOT_RUNTIME": str(folder / "runtime")}
            running.append(ThrowawaySshd(folder, environment=environment).start())
        yield running
    finally:
        for server in running:
            server.stop()


@pytest.fixture(scope="module")
def depot(servers: list[ThrowawaySshd], tmp_path_factory: pytest.TempPathFactory) -> Depot:
    """2.0.0 in production, 2.1.0 on test and signed off."""
    depot = Depot(tmp_path_factory.mktemp("depot"), servers)
    depot.begin()
    depot.signed_off_on_test("2.0.0")
    depot.do(deployments.promote, customer="acme")
    depot.signed_off_on_test("2.1.0")
    assert depot.do(deployments.plan, customer="acme", environment="production").refusals == ()
    return depot


def test_foreign_content_is_listed_and_refused_before_the_first_write(
    servers: list[ThrowawaySshd], tmp_path: Path
) -> None:
    depot = Depot(tmp_path, servers)
    depot.begin()
    target = depot.host("test")
    (target / "current").mkdir(parents=True)
    (target / "current" / "index.php").write_text("<?php\n")
    (target / "dump.sql").write_text("-- somebody's only copy\n")
    before, records = snapshot(target), len(depot.do(overview.history, customer="acme").records)
    with pytest.raises(Refused) as caught:
        depot.do(deployments.deploy, customer="acme")
    told = caught.value.render()
    assert "current is not a symbolic link" in told
    assert "dump.sql was not put there by us" in told
    assert "Nothing was changed." in told
    assert snapshot(target) == before
    assert len(depot.do(overview.history, customer="acme").records) == records


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)


TAMPERED: dict[str, tuple[str, str, str, str]] = {
    # what was changed: (its path, the rule, what the reason names, the reason's source)
    "a byte on test": ("hosts/test1/releases/2.1.0+1/app.txt", "test_still_holds_it", "app.txt was changed", "app1"),
    "a byte on production's second host": (
        "hosts/production2/releases/2.0.0+1/app.txt",
        "hosts_hold_what_was_recorded",
        "app.txt was changed",
        "app2",
    ),
    "the playbook": ("playbooks/depot.yaml", "signed_off", "the playbook was changed", "-sign-off-requested-1"),
    "production's settings": (
        "environments/acme/production.yaml",
        "signed_off",
        "the settings of test or production",
        "environments/acme/production.yaml",
    ),
}


@pytest.mark.parametrize("what", list(TAMPERED))
def test_one_change_after_the_sign_off_refuses_the_promotion(depot: Depot, what: str) -> None:
    path, rule, named, source = TAMPERED[what]
    file = depot.folder / path
    original = file.read_text()
    try:
        if path.startswith("hosts/"):
            _flip(file)
        elif path.startswith("playbooks/"):
            file.write_text(original.replace("within: 1", "within: 2"))
        else:
            file.write_text(original.replace("title: Acme production", "title: Acme Production"))
        assert file.read_text() != original
        production = depot.production()
        with pytest.raises(Refused) as caught:
            depot.do(deployments.promote, customer="acme")
        assert caught.value.exit_code == 4
        assert depot.production() == production
    finally:
        file.write_text(original)
    found = [reason for reason in caught.value.reasons if reason.rule == rule and named in reason.text]
    assert found, caught.value.render()
    assert source in str(found[0].source)


def test_a_release_that_breaks_on_the_second_host_brings_both_back_and_no_secret_leaks(depot: Depot) -> None:
    assert [depot.current("production", number) for number in (1, 2)] == ["releases/2.0.0+1"] * 2
    before = len(depot.journal(2))
    depot.lines.clear()
    with pytest.raises(Failed) as caught:
        depot.do(deployments.promote, customer="acme")
    told = caught.value.render()
    assert caught.value.exit_code == 1
    assert "2.0.0+1 serves again" in told
    assert "app2" in told
    switched = [line.split(": ", 1)[0].split("] ")[1] for line in depot.lines if "switch current to" in line]
    assert switched == ["app1", "app2"], "one host after the other, and the first had switched"
    for number in (1, 2):
        assert depot.current("production", number) == "releases/2.0.0+1"
        assert depot.served("production", number) == "depot 2.0.0"
        assert "release=2.0.0+1" in (depot.host("production", number) / "shared" / "app.conf").read_text()
        last = depot.journal(number)[-1]
        assert (last.release, last.what, last.outcome) == ("2.1.0+1", "deployment-finished", "failed")
    since = [entry.what for entry in depot.journal(2)[before:] if entry.what.startswith("deployment")]
    assert since == ["deployment-started", "deployment-finished"]
    newest = depot.do(overview.history, customer="acme").records[0]
    assert (newest["kind"], newest["outcome"], newest["environment"]) == ("deployment-finished", "failed", "production")
    events = depot.do(tickets.show_ticket, customer="acme", ticket="ACME-1").events
    assert events[-1]["what"].endswith("failed; 2.0.0+1 serves again")

    # The cause is mended on the server; the customer's sign-off of 2.1.0 still stands.
    (depot.servers[1].folder / "runtime").write_text("2\n")
    promoted = depot.do(deployments.promote, customer="acme")
    assert promoted.migrations == (), "the expanded schema had stayed"
    for number in (1, 2):
        assert (depot.current("production", number), depot.served("production", number)) == (
            "releases/2.1.0+1",
            "depot 2.1.0",
        )
    depot.do(deployments.rollback, customer="acme", environment="production")
    depot.do(upkeep.verify_ledger, customer="acme")
    depot.do(overview.status)
    _no_secret_is_found(depot)


def _no_secret_is_found(depot: Depot) -> None:
    canary = CANARY.encode()
    configured = depot.host("production", 2) / "shared" / "app.conf"
    assert canary in configured.read_bytes(), "the application itself was given it"
    assert configured.stat().st_mode & 0o077 == 0
    shown = "\n".join(depot.shown + depot.lines)
    assert "•••" in shown, "the careless check printed it, and it was taken out"
    assert CANARY not in shown
    held = dict(every_object(depot.folder / "installations.git"))
    assert len(held) > 20
    assert [name for name, data in held.items() if canary in data] == []
    places = [depot.folder / "var", depot.folder / "installations.git", *(server.folder for server in depot.servers)]
    places += [depot.host(*where) / "journal" for where in (("test", 1), ("production", 1), ("production", 2))]
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    assert any(file.suffix == ".html" for file in files), "a sign-off page is among them"
    assert [file for file in files if canary in file.read_bytes()] == []
