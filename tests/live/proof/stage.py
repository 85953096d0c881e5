"""A workspace over real SSH that a fault strikes again and again, and what must be true of it afterwards.

Version 1.0.0 serves; 1.2.0 (good) and 1.3.0 (its check fails) are released. Each leaves traces that can be counted: its
migrations add to the table ``times``, its restart copies what serves, and two of its files must always agree.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.host import Host
from pipeline.installation import Installation
from pipeline.ledger import Ledger
from pipeline.transports.local import LocalTransport
from pipeline.workflow import deployments, lines, products, releases, tickets
from tests.flows import Flow
from tests.live.over_ssh import SshSample
from tests.live.proof.driver import Controllers, Outcome
from tests.servers.faulty_line import FaultyLine
from tests.servers.sshd import ThrowawaySshd

OLD, NEW, BROKEN = "1.0.0+1", "1.2.0+1", "1.3.0+1"
MIGRATED = {
    OLD: ["001_base.sql"],
    NEW: ["001_base.sql", "003_more.sql", "004_post_more.sql"],
    BROKEN: ["001_base.sql", "003_more.sql", "005_even_more.sql"],
}
TIMES = "INSERT INTO times (script) VALUES ('{}');\n"


class Stage(Flow, SshSample):
    """The workspace; ``servers`` are those of the environment ``test``, one a host.

    ``seen``: where the hosts' folder is seen from here, when the server has file systems of its own.
    """

    seen: Path | None = None

    def __init__(
        self,
        folder: Path,
        servers: Sequence[ThrowawaySshd],
        playbook: str | None = None,
        customers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.customers = customers or {"acme": ("test",)}
        SshSample.__init__(self, folder, dict.fromkeys(self.customers["acme"], servers))
        self.hosts = len(servers)
        for customer, environments in self.customers.items():
            self._another(customer, environments)
        if playbook is not None:
            self.write("playbooks/depot.yaml", playbook)
        base = {"migrations/001_base.sql": "CREATE TABLE times (id INTEGER PRIMARY KEY, script TEXT);\n"}
        more = {"migrations/003_more.sql": TIMES.format("003_more.sql")}
        post = {"migrations/004_post_more.sql": TIMES.format("004_post_more.sql")}
        self._version("1.0.0", base)
        self._version("1.2.0", more | post | {"only new/größe.txt": "new\n"})
        (self.product / "migrations/004_post_more.sql").unlink()
        self._version(
            "1.3.0", {"migrations/005_even_more.sql": TIMES.format("005_even_more.sql"), "app.txt": "broken\n"}
        )

    def version(self, version: str, files: dict[str, str]) -> None:
        """The versions of the common sample are not needed here."""

    def _version(self, version: str, files: dict[str, str]) -> None:
        for name in ("gone in/the next.txt", "only new/größe.txt"):
            (self.product / name).unlink(missing_ok=True)
        agree = {"a.txt": f"{version}\n", "static/deep/b.txt": f"{version}\n", f"names/{version}.txt": "x\n"}
        same = {f"same/{number}.txt": f"{number}\n" * 50 for number in range(6)}
        gone = {"gone in/the next.txt": "old\n"} if version == "1.0.0" else {}
        if not (self.product / "link").is_symlink():
            (self.product / "link").symlink_to("a.txt")
        SshSample.version(self, version, agree | same | gone | files)

    def _another(self, customer: str, environments: Sequence[str]) -> None:
        """A customer's settings, made of those of the first."""
        if customer == "acme":
            return
        theirs = self.folder / "environments" / customer
        theirs.mkdir()
        for name in ("customer", *environments):
            text = (self.folder / "environments/acme" / f"{name}.yaml").read_text()
            text = text.replace("ACME", customer.upper()).replace("/hosts/", f"/hosts/{customer}-")
            (theirs / f"{name}.yaml").write_text(text)
        people = self.folder / "environments/people.yaml"
        people.write_text(people.read_text().replace("customers: [acme", f"customers: [acme, {customer}"))

    def over(self, server: ThrowawaySshd, line: FaultyLine) -> Stage:
        """The server is reached over this line."""
        config = self.folder / "ssh_config"
        config.write_text(config.read_text().replace(f"Port {server.port}", f"Port {line.port}"))
        with server.known_hosts_file.open("a") as known:
            known.write(f"[127.0.0.1]:{line.port} {server.host_key}\n")
        return self

    def ready(self) -> Stage:
        """1.0.0 serves, the others are released."""

        def session() -> Any:
            return self.session(clock=None)

        products.import_product(session(), product="depot")
        for customer, environments in self.customers.items():
            lines.start_line(session(), customer=customer, version="1.0.0")
            named = tickets.open_ticket(
                session(), customer=customer, title="t", text="t", changed="c", test="look"
            ).ticket
            releases.make_release(session(), customer=customer, version="1.0.0", tickets=(named,))
            for environment in environments:
                deployments.deploy(session(), customer=customer, environment=environment)
            for version in ("1.2.0", "1.3.0"):
                releases.make_release(session(), customer=customer, version=version, tickets=(named,))
        self.keep()
        return self

    # --- again and again

    def host(self, environment: str, number: int = 1, customer: str = "acme") -> Path:
        """Where a host's folder is seen from here."""
        theirs = "" if customer == "acme" else f"{customer}-"
        return (self.seen or self.folder / "hosts") / f"{theirs}{environment}{number}"

    def _parts(self) -> dict[str, Path]:
        parts = {"hosts": self.seen or self.folder / "hosts"}
        return parts | {name: self.folder / name for name in ("installations.git", "var")}

    def keep(self) -> None:
        """Remembers how everything is now."""
        shutil.rmtree(self.folder / "kept", ignore_errors=True)
        for name, place in self._parts().items():
            (self.folder / "kept" / name).mkdir(parents=True)
            subprocess.run(["cp", "-a", f"{place}/.", self.folder / "kept" / name], check=True)

    def restore(self) -> None:
        """Everything as it was when :meth:`keep` was called."""
        for name, place in self._parts().items():
            subprocess.run(["find", place, "-mindepth", "1", "-delete"], check=True)
            subprocess.run(["cp", "-a", f"{self.folder}/kept/{name}/.", place], check=True)

    # --- what is true

    def truth(self, environment: str = "test", customer: str = "acme") -> Truth:
        return Truth(self, environment, customer)


class Truth:
    """What hosts, database and ledger themselves say, not asked through the pipeline's verbs."""

    def __init__(self, stage: Stage, environment: str, customer: str) -> None:
        self.stage, self.environment, self.customer = stage, environment, customer
        self.ledger = Ledger(stage.repository, customer)
        self.installation = Installation(stage.repository, customer)
        self.state = self.ledger.state()
        self.here = self.state.environment(environment)
        self.folders = [stage.host(environment, number, customer) for number in range(1, stage.hosts + 1)]
        self.hosts = [Host(LocalTransport(), folder.name, str(folder)) for folder in self.folders]

    def serving(self) -> list[str]:
        """What serves on each host, by ``current`` and by every file of it; in words where it is not whole."""
        found = []
        for folder, host in zip(self.folders, self.hosts, strict=True):
            link = folder / "current"
            name = link.readlink().name if link.is_symlink() else "nothing"
            if name in self.state.releases:
                wrong = host.verify(name, self.installation.manifest(self.state.releases[name].commit))
                name = f"{name} but {wrong}" if wrong else name
            found.append(name)
        return found

    def complaints(self, release: str, *, idle: bool = True) -> list[str]:
        """Everything that is not as it must be when ``release`` is what serves and (``idle``) nobody works on it."""
        said = [f"serves {one}" for one in self.serving() if one != release]
        said += self._database(release)
        for host, folder in zip(self.hosts, self.folders, strict=True):
            said += [f"{host.name}: {line}" for line in self._journal(host)]
            said += [f"{host.name}: {line}" for line in self._remains(folder)] if idle else []
            served = (folder / "shared" / "served").read_text().splitlines()[0]
            if served != f"depot {release.partition('+')[0]}":
                said.append(f"{host.name}: what runs is {served!r}")
            if host.verify_shared():
                said.append(f"{host.name}: {host.verify_shared()}")
        people = self.stage.session().workspace.people
        said += [f"ledger: {reason.text} ({reason.source})" for reason in self.ledger.verify(people)]
        if idle:
            said += [f"lease left: {ref}" for ref in self.stage.repository.refs(f"refs/leases/{self.customer}/")]
            if self.here.running is not None:
                said.append(f"the ledger says that {self.here.running.release} is under way")
        installed = self.here.installed.release if self.here.installed else None
        if installed != release:
            said.append(f"the ledger says {installed}")
        return said

    def _database(self, release: str) -> list[str]:
        # A copy: SQLite would look for a file behind /proc/…/root elsewhere.
        copied = self.stage.folder / "looked-at"
        shutil.rmtree(copied, ignore_errors=True)
        copied.mkdir()
        for file in (self.folders[0] / "shared").glob("app.sqlite*"):
            shutil.copy(file, copied)
        with closing(sqlite3.connect(copied / "app.sqlite")) as connection:
            history = [row[0] for row in connection.execute("SELECT script FROM tma_migration_history ORDER BY rowid")]
            times = Counter(row[0] for row in connection.execute("SELECT script FROM times"))
            sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
        said = [] if sound == "ok" else [sound]
        said += [f"{script} has {count} effects" for script, count in times.items() if count != 1]
        if Counter(history) != Counter({*times, "001_base.sql"}):
            said.append(f"history {history} against effects {dict(times)}")
        missing = [script for script in MIGRATED[release] if script not in history]
        return said + [f"{script} is not applied" for script in missing]

    def _journal(self, host: Host) -> list[str]:
        """The journal verifies, its fence only rises, and tells no step done again that was not undone in between."""
        entries = host.journal()
        said: list[str] = []
        done: set[tuple[Any, ...]] = set()
        highest = 0
        whose: dict[int, str] = {}
        for entry in entries:
            if whose.setdefault(entry.fence, entry.run) != entry.run:
                said.append(f"entry {entry.number}: two runs have the fence {entry.fence}")
            if entry.fence < highest:
                said.append(f"entry {entry.number}: fence {entry.fence} after {highest}")
            highest = max(highest, entry.fence)
            if entry.what.startswith("back-"):
                done = {one for one in done if one[0] != entry.run}
            elif entry.what == "step-finished" and entry.outcome == "ok":
                one = (entry.run, entry.step, entry.inputs)
                if one in done:
                    said.append(f"entry {entry.number}: step {entry.step} was done again")
                done.add(one)
        known = {record.id for record in self.ledger.records()}
        said += [f"entry {e.number}: no record {e.record}" for e in entries if e.record and e.record not in known]
        return said

    def _remains(self, folder: Path) -> list[str]:
        allowed = {
            ".tma-lock",
            ".tma-journal",
            ".tma-reserve",
            "releases",
            "shared",
            "journal",
            "backups",
            "incoming",
            "lists",
            "current",
        }
        said = [f"left behind: {name}" for name in sorted(os.listdir(folder)) if name not in allowed]
        said += [f"left behind: incoming/{name}" for name in os.listdir(folder / "incoming")]
        said += [
            f"left behind: lists/{n}"
            for n in os.listdir(folder / "lists")
            if n not in {*self.state.releases, ".shared"}
        ]
        strange = [name for name in os.listdir(folder / "releases") if name not in self.state.releases]
        said += [f"left behind: releases/{name}" for name in strange]
        said += [f"left behind: {path.relative_to(folder)}" for path in folder.rglob("*.part.*")]
        said += [f"left behind: {path.relative_to(folder)}" for path in (folder / "shared").rglob("*.tma-new")]
        copies = Counter(path.stem for path in (folder / "backups").rglob("*.sqlite"))
        return said + [f"{count} backups of {run}" for run, count in copies.items() if count > 1]


CONFIGURATION = re.compile(r"title=.+\npassword=.+\nrelease=[0-9.+]+\n?")
"""What ``config/app.conf.j2`` of the sample is rendered to."""


class Reader:
    """Looks at what ``current`` serves all the while; ``wrong`` is every time that it was missing or mixed.

    So is a rendered file in ``shared/`` that is not whole.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.wrong: list[str] = []
        self.looks = 0
        self.seen: list[tuple[str, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        last: dict[Path, str] = {}
        while not self._over.is_set():
            for folder in self._folders:
                try:
                    target = os.readlink(folder / "current")
                    one = (folder / target / "a.txt").read_text().strip()
                    other = (folder / target / "static/deep/b.txt").read_text().strip()
                    configuration = (folder / "shared/app.conf").read_text()
                except OSError as error:
                    self.wrong.append(f"{folder.name}: {error}")
                    continue
                self.looks += 1
                if not one == other == target.removeprefix("releases/").partition("+")[0]:
                    self.wrong.append(f"{folder.name}: {target} holds {one!r} and {other!r}")
                if not CONFIGURATION.fullmatch(configuration):
                    self.wrong.append(f"{folder.name}: shared/app.conf is {configuration!r}")
                if last.get(folder) != target:
                    last[folder] = target
                    self.seen.append((folder.name, Path(target).name))
            time.sleep(0.0005)


SPOOL = "left behind: incoming/"
"""Where the last job is killed as it cleans up after itself, all is done; the next job takes away what is left."""


def verdict_is_wrong(outcome: Outcome, truth: Truth, before: str, wanted: str) -> str | None:
    """Why what the command said does not agree with what is there, None when it agrees.

    ``before`` served until now; a command that was ended said nothing, so it cannot be wrong.
    """
    if outcome.killed:
        return None
    if outcome.error is not None and outcome.error.startswith("!"):
        return f"no error of ours: {outcome.error}"
    serving, running = set(truth.serving()), truth.here.running
    if outcome.ok:
        wrong = [one for one in truth.complaints(wanted) if SPOOL not in one]
        return f"it said that it worked, but {wrong}" if wrong else None
    if outcome.error in ("Failed", "Refused", "Unreachable", "Locked"):
        if serving != {before}:
            return f"it said {outcome.error}, but {serving} serves"
        if outcome.error == "Failed" and running is not None:
            return "it said that it failed, but the ledger says that it is under way"
        return None
    if outcome.error == "PartlyDone":
        if running is None and not truth.here.quarantined:
            return "it said that the outcome is unknown, but the ledger has one"
        return None
    return f"{outcome.error} is no verdict"


def again(stage: Stage, controllers: Controllers, verb: str, times: int = 3, **words: Any) -> list[Outcome]:
    """Gives the same command again, as an engineer would, until it has nothing more to do."""
    outcomes: list[Outcome] = []
    for _ in range(times):
        outcomes.append(controllers.do(stage.folder, verb, **words))
        if outcomes[-1].ok:
            break
    return outcomes


def told_wrong(point: str, said: Sequence[str], first: Outcome) -> list[str]:
    """What was wrong after one fault, as one text; nothing when nothing was."""
    indented = [f"    {line}" for line in first.words.splitlines()]
    return ["\n".join([point, *(f"  - {one}" for one in said), "  it had said:", *indented])] if said else []
