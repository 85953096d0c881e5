"""Workspaces in which the story has been told up to some point, each told once a test run and copied for every test.

``released``: depot 1.0.0 is on acme's line and released as 1.0.0+1, for ACME-1. ``tested``: that is on test.
``live``: signed off and on production, and 1.1.0+1 is released. ``waiting``: 1.1.0+1 is on test, not signed off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.errors import Refused
from pipeline.host import Host
from pipeline.installation import Installation
from pipeline.ledger import Ledger
from pipeline.model import Record
from pipeline.repository import Repository
from pipeline.state import State
from pipeline.transports.local import LocalTransport
from pipeline.workflow import deployments, lines, products, releases, sign_offs, tickets
from pipeline.workflow.deployments import DeploymentResult, PlanResult
from pipeline.workflow.session import Session
from tests.workspaces import Clock, Sample

Point = Literal["released", "tested", "live", "waiting"]
BROKEN = "depot broken\nline two\nline three\nline four\nline five\n"


class Flow(Sample):
    """The sample workspace with the verbs of the story."""

    @classmethod
    def at(cls, folder: Path, now: datetime) -> Flow:
        """The workspace that lies in ``folder`` already."""
        flow = cls.__new__(cls)
        flow.folder, flow.product, flow.lines, flow.clock = folder, folder / "product", [], Clock(now)
        return flow

    # --- the story

    def start(self) -> None:
        products.import_product(self.session(), product="depot")
        lines.start_line(self.session(), customer="acme", version="1.0.0")
        self.ticket()
        self.release("1.0.0")

    def ticket(self, title: str = "Prix manquant") -> str:
        return tickets.open_ticket(
            self.session(), customer="acme", title=title, text="le texte", changed="une colonne", test="regarder"
        ).ticket

    def release(self, version: str, *named: str, **more: Any) -> releases.ReleaseMade:
        return releases.make_release(
            self.session(), customer="acme", version=version, tickets=named or ("ACME-1",), **more
        )

    def make(self, version: str, files: dict[str, str]) -> str:
        """A new version of the product, imported and released; the release's name."""
        self.version(version, files)
        products.import_product(self.session(), product="depot", version=version)
        return self.release(version).release

    def deploy(self, release: str | None = None, **more: Any) -> DeploymentResult:
        done = deployments.deploy(self.session(), customer="acme", release=release, **more)
        assert isinstance(done, DeploymentResult)
        return done

    def decide(self, decision: str = "approved", by: str = "claire", **more: Any) -> sign_offs.DecisionRecorded:
        """The decision, after the page was written (``paged`` False: as it is)."""
        evidence = more.pop("evidence", None) or self.write("mail.eml", "Bonjour, c'est bon. Claire\n")
        session = more.pop("session", None) or self.session()
        request = Ledger(self.session().repository(), "acme").state().sign_off
        if more.pop("paged", True) and (request is None or request.page is None):
            with contextlib.suppress(Refused):
                sign_offs.write_page(self.session(), customer="acme")
        return sign_offs.record_decision(session, customer="acme", decision=decision, by=by, evidence=evidence, **more)

    def promote(self, release: str | None = None) -> DeploymentResult:
        done = deployments.promote(self.session(), customer="acme", release=release)
        assert isinstance(done, DeploymentResult)
        return done

    def rollback(self, environment: str) -> DeploymentResult:
        done = deployments.rollback(self.session(), customer="acme", environment=environment)
        assert isinstance(done, DeploymentResult)
        return done

    def refusals(self, **more: Any) -> dict[str, list[str]]:
        """What speaks against the promotion: for each rule its reasons with their sources."""
        planned = deployments.promote(self.session(), customer="acme", dry_run=True, **more)
        assert isinstance(planned, PlanResult)
        found: dict[str, list[str]] = {}
        for refusal in planned.refusals:
            found.setdefault(refusal["rule"], []).append(f"{refusal['text']} ({refusal['source']})")
        return found

    # --- people

    def person(self, key: str, roles: str) -> str:
        """A person with a signing key; the reference to the private key."""
        from pipeline.signing import make_key

        make_key(self.folder / "keys" / key)
        people = self.folder / "environments" / "people.yaml"
        text = people.read_text()
        added = f"keys:\n      - public: file:keys/{key}.pub\n"
        if f"- key: {key}\n" in text:
            before, _, after = text.partition(f"- key: {key}\n")
            people.write_text(f"{before}- key: {key}\n    {added}{after}")
        else:
            people.write_text(f"{text}  - key: {key}\n    name: {key.title()}\n    roles: [{roles}]\n    {added}")
        return f"file:keys/{key}"

    def edit(self, path: str, old: str, new: str) -> None:
        file = self.folder / path
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    # --- looking

    @property
    def repository(self) -> Repository:
        return Repository.open(self.folder / "installations.git", create=False)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.repository, "acme")

    @property
    def installation(self) -> Installation:
        return Installation(self.repository, "acme")

    def state(self) -> State:
        return self.ledger.state()

    def records(self, kind: str | None = None) -> list[Record]:
        """The records of a kind, oldest first."""
        return [record for record in reversed(self.ledger.records()) if kind in (None, record.kind)]

    def refs(self) -> dict[str, str]:
        return self.repository.refs()

    def current(self, environment: str, number: int = 1) -> str | None:
        link = self.host(environment, number) / "current"
        return str(link.readlink()) if link.is_symlink() else None

    def sql(self, environment: str, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.host(environment) / "shared" / "app.sqlite")) as connection, connection:
            return connection.execute(statement).fetchall()

    def migrated(self, environment: str) -> list[str]:
        """The scripts in the database's history, in the order in which they ran."""
        rows = self.sql(environment, "SELECT script FROM tma_migration_history ORDER BY rowid")
        return [script for (script,) in rows]

    def check_sound(self) -> None:
        """The ledger verifies, no deployment is open, no lease is left, and hosts hold exactly what is recorded."""
        people = self.session().workspace.people
        assert self.ledger.verify(people) == []
        assert self.repository.refs("refs/leases/") == {}
        for key, here in self.state().environments.items():
            assert here.running is None
            assert here.installed is not None
            assert self.current(key) == f"releases/{here.installed.release}"
            host = Host(LocalTransport(), "app1", str(self.host(key)))
            commit = self.state().releases[here.installed.release].commit
            assert host.verify(here.installed.release, self.installation.manifest(commit)) == []
            assert self.repository.tree_of(here.installed.commit or "") == self.repository.tree_of(commit)
            finished = [r for r in self.records("deployment-finished") if r.environment == key]
            assert len({r.run for r in finished}) == len(finished)


def told(factory: pytest.TempPathFactory, tmp_path: Path, point: Point, hosts: int = 1) -> Flow:
    """A workspace of the test's own, in which the story has come to ``point``."""
    base = factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with (shared / "told.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = _tell(shared / f"told-{hosts}", point, hosts)
    target = tmp_path / "workspace"
    shutil.copytree(source.folder, target, symlinks=True)
    return Flow.at(target, source.clock.now)


def _tell(base: Path, point: Point, hosts: int) -> Flow:
    folder, ready = base / point, base / f"{point}.ready"
    if ready.exists():
        return Flow.at(folder, datetime.fromisoformat(ready.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    points: list[Point] = ["released", "tested", "live", "waiting"]
    if point == "released":
        base.mkdir(exist_ok=True)
        folder.mkdir()
        flow = Flow(folder, hosts)
        flow.start()
    else:
        before = _tell(base, points[points.index(point) - 1], hosts)
        shutil.copytree(before.folder, folder, symlinks=True)
        flow = Flow.at(folder, before.clock.now)
    if point == "live":
        flow.decide()
        flow.promote()
        flow.release("1.1.0")
    elif point != "released":
        flow.deploy()
    ready.write_text(flow.clock.now.isoformat())
    return flow


def open_session(flow: Flow, key: str) -> Session:
    """A session of somebody else."""
    return flow.session(signing_key=key)


def customise(flow: Flow, path: str, text: str | None) -> str:
    """An engineer's ordinary commit on the line, pushed, that writes or (None) removes a file; its id."""
    made = lines.checkout_line(flow.session(), customer="acme", folder=Path(f"tree-{len(list(flow.folder.iterdir()))}"))
    assert made.folder is not None
    tree = Path(made.folder)
    if text is None:
        (tree / path).unlink()
    else:
        (tree / path).write_text(text)
    flow.git(tree, "add", "-A")
    flow.git(tree, "commit", "-q", "-m", "a customisation")
    flow.git(tree, "push", "-q")
    return flow.git(tree, "rev-parse", "HEAD")
