"""A workspace with thousands of customers, in which ``status`` is timed: ``python -m bench.many_customers OUT``.

The story of each kind of customer is told once, by the pipeline's own ledger; ``git fast-import`` then writes it for all the
others, with their own names, hashes and signatures, and their refs go straight into ``packed-refs``: seven a customer. Every
ledger verifies. What status does not read is shared: the line's commits, and a product of one file.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.ledger import Ledger
from pipeline.model import Draft, RefMove, TicketRef
from pipeline.repository import NewCommit, Repository
from pipeline.settings import load_workspace
from pipeline.signing import RECORD_CONTEXT, Signer, load_signer, make_key
from pipeline.state import State

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
VERSION = "1.0.0"
RELEASE = f"{VERSION}+1"
CONTENT, SETTINGS = hashlib.sha256(b"content").hexdigest(), hashlib.sha256(b"settings").hexdigest()

KINDS = ("released", "waiting", "approved", "live")
"""How far a customer has come; one after the other, so that each is a quarter of them."""

FAILED_EVERY, OPEN_EVERY = 500, 1000
"""One customer in so many has a deployment that failed, or that has no outcome yet."""

REFS = 7
"""Refs of each customer."""

_PLAYBOOK = """name: Depot
versions: semver
source:
  git: product
steps: [upload, switch]
"""
_ENVIRONMENT = """transport: local
hosts:
  - name: app1
    address: localhost
    folder: hosts/{customer}-{environment}
"""
_CUSTOMER = """name: {customer} SA
language: fr
time_zone: Europe/Paris
product: depot
approvers: [claire]
"""
_PEOPLE = """people:
  - key: eve
    name: Eve Engineer
    roles: [engineer]
    keys:
      - public: file:keys/eve.pub
  - key: claire
    name: Claire Client
    roles: [approver]
"""


@dataclass(frozen=True)
class Template:
    """One customer's ledger as the pipeline wrote it: the records' ids and bytes, the commits' messages, the state, the refs."""

    customer: str
    ids: tuple[str, ...]
    records: tuple[bytes, ...]
    messages: tuple[bytes, ...]
    state: bytes
    refs: dict[str, str]


class _Story:
    """Tells the ledger how far a customer has come; its commits are those of all customers."""

    def __init__(self, repository: Repository, signer: Signer) -> None:
        self.repository = repository
        self.signer = signer
        self.minutes = 0
        self.line = self._commit(None, "depot 1.0.0\n")
        self.installed = self._commit(self.line, f"{RELEASE} is installed\n")
        self.tag = repository.write_tag("release", self.line, f"Release {RELEASE}\n", author="eve", at=START)

    def _commit(self, parent: str | None, message: str) -> str:
        change = NewCommit(
            base=parent,
            changes={"app.txt": message.encode()},
            parents=[parent] if parent else [],
            message=message,
            author="eve",
            at=START,
        )
        return self.repository.write_commits([change])[0]

    def tell(self, customer: str, kind: str, ending: str | None) -> Template:
        """The ledger of a new customer; ``ending`` is the outcome of a last deployment to test, or ``open``."""
        ledger = Ledger(self.repository, customer)
        append = self._appender(ledger)
        far = KINDS.index(kind)
        append("line-started", {"version": VERSION}, moves=[("heads", "main", self.line)])
        made = {"version": VERSION, "commit": self.line, "patches": []}
        append("release-made", made, moves=[("tags", RELEASE, self.tag)])
        if far >= 1:
            self._deploy(append, "0001", "deploy", "test")
            append("sign-off-requested", {"settings": SETTINGS, "deployment": "0001", "due": "2026-03-12T22:59:00Z"})
        if far >= 2:
            request = ledger.state().sign_off
            assert request is not None
            decided = {"request": request.request, "by": "claire", "decision": "approved", "reservations": []}
            append("sign-off-recorded", decided)
        if far >= 3:
            self._deploy(append, "0002", "promote", "production")
        if ending is not None:
            number = f"{ledger.state().deployments + 1:04}"
            self._deploy(append, number, "deploy", "test", outcome=None if ending == "open" else ending)
        return self._read(ledger)

    def _deploy(
        self, append: Callable[..., None], number: str, purpose: str, environment: str, *, outcome: str | None = "ok"
    ) -> None:
        details = {"deployment": number, "purpose": purpose, "settings": SETTINGS}
        append("deployment-started", details, environment=environment)
        if outcome is not None:
            moves = [("heads", f"env/{environment}", self.installed)] if outcome == "ok" else []
            append("deployment-finished", details, environment=environment, outcome=outcome, moves=moves)

    def _appender(self, ledger: Ledger) -> Callable[..., None]:
        def append(
            kind: str, details: dict[str, Any], *, moves: Sequence[tuple[str, str, str]] = (), **more: Any
        ) -> None:
            self.minutes += 1
            at = START + timedelta(minutes=self.minutes)
            run = f"{at:%Y%m%dT%H%M%SZ}-bench1"
            moved = [
                RefMove(ref=f"refs/{where}/{ledger.customer}/{name}", old=None, new=new) for where, name, new in moves
            ]
            draft = Draft.model_validate(
                {
                    "id": f"{run}-{kind}-1",
                    "run": run,
                    "kind": kind,
                    "at": at,
                    "product": "depot",
                    "release": RELEASE if kind != "line-started" else None,
                    "content": CONTENT if kind != "line-started" else None,
                    "tickets": [TicketRef(tracker="ledger", id="DEPOT-1")],
                    "moves": moved,
                    "details": details,
                    **more,
                }
            )

            def decide(state: State) -> list[Draft]:
                return [draft]

            ledger.append(self.signer, decide)

        return append

    def _read(self, ledger: Ledger) -> Template:
        records = list(reversed(ledger.records()))
        data = [self.repository.read(f"{ledger.ref}:records/{record.id}.json") for record in records]
        tip = self.repository.ref(ledger.ref)
        assert tip is not None
        return Template(
            customer=ledger.customer,
            ids=tuple(record.id for record in records),
            records=tuple(found for found in data if found is not None),
            messages=tuple(c.message.encode() for c in reversed(list(self.repository.first_parents(tip)))),
            state=self.repository.read(f"{ledger.ref}:state.json") or b"",
            refs=dict(ledger.state().refs),
        )


def _ledger_of(template: Template, customer: str, signer: Signer, mark: int) -> Iterator[bytes]:
    """The fast-import commands for one customer's ledger; the last commit has the mark."""
    names = template.customer.encode(), customer.encode()
    before: tuple[bytes, bytes] | None = None
    yield b"reset refs/writing/ledger\n\n"
    for number, (id, record, message) in enumerate(zip(template.ids, template.records, template.messages, strict=True)):
        data = record.replace(*names)
        if before is not None:
            data = data.replace(*before)
        last = number == len(template.ids) - 1
        before = tuple(hashlib.sha256(bytes_).hexdigest().encode() for bytes_ in (record, data))  # type: ignore[assignment]
        files = {
            f"records/{id}.json": data,
            f"records/{id}.sig": base64.b64encode(signer.sign(RECORD_CONTEXT + data)) + b"\n",
        }
        if last:
            assert before is not None
            files["state.json"] = template.state.replace(*names).replace(*before)
        who = b"eve <eve@people.invalid> %d +0000" % int((START + timedelta(minutes=number)).timestamp())
        yield b"commit refs/writing/ledger\n" + (b"mark :%d\n" % mark if last else b"")
        yield b"author %s\ncommitter %s\ndata %d\n%s\n" % (who, who, len(message), message)
        for path, content in files.items():
            yield b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(content), content)
        yield b"\n"


def make(folder: Path, customers: int, say: Callable[[str], None] = lambda text: None) -> None:
    """The workspace in ``folder``, which must not be there or be empty."""
    keys = [f"customer-{number:05}" for number in range(1, customers + 1)]
    (folder / "keys").mkdir(parents=True)
    (folder / "playbooks").mkdir()
    (folder / "environments").mkdir()
    make_key(folder / "keys" / "eve")
    (folder / "playbooks" / "depot.yaml").write_text(_PLAYBOOK)
    (folder / "environments" / "people.yaml").write_text(_PEOPLE)
    (folder / "environments" / "workspace.yaml").write_text(
        "installations:\n  - path: installations.git\nsigning_key: file:keys/eve\n"
    )
    for key in keys:
        place = folder / "environments" / key
        place.mkdir()
        (place / "customer.yaml").write_text(_CUSTOMER.format(customer=key))
        for environment in ("test", "production"):
            (place / f"{environment}.yaml").write_text(_ENVIRONMENT.format(customer=key, environment=environment))
    say(f"{customers} customers in {folder / 'environments'}")

    people = load_workspace(folder).people
    signer = load_signer(folder / "keys" / "eve", people, START.date())
    repository = Repository.open(folder / "installations.git")
    story = _Story(repository, signer)
    templates: dict[tuple[str, str | None], Template] = {}
    chosen = []
    for number, key in enumerate(keys, 1):
        ending = "open" if number % OPEN_EVERY == 0 else "failed" if number % FAILED_EVERY == 0 else None
        kind = KINDS[-1] if ending else KINDS[number % len(KINDS)]
        if (kind, ending) not in templates:
            templates[kind, ending] = story.tell(f"template-{len(templates)}", kind, ending)
        chosen.append((key, templates[kind, ending]))
    tips = _import(repository, chosen, signer, folder / "marks")
    refs = _pack_refs(repository, story, chosen, tips)
    say(f"{refs} refs in {repository.path}")


def _import(repository: Repository, chosen: Sequence[tuple[str, Template]], signer: Signer, marks: Path) -> list[str]:
    command = ["git", f"--git-dir={repository.path}", "fast-import", "--quiet", "--force", f"--export-marks={marks}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=repository.environment()) as process:
        assert process.stdin is not None
        for mark, (key, template) in enumerate(chosen, 1):
            process.stdin.write(b"".join(_ledger_of(template, key, signer, mark)))
        process.stdin.close()
        if process.wait() != 0:
            raise SystemExit(f"git fast-import ended with {process.returncode}")
    found = dict(line.split() for line in marks.read_text().splitlines())
    marks.unlink()
    return [found[f":{mark}"] for mark in range(1, len(chosen) + 1)]


def _pack_refs(
    repository: Repository, story: _Story, chosen: Sequence[tuple[str, Template]], tips: Sequence[str]
) -> int:
    """Every ref in one file, the templates' own and the one that fast-import wrote left out; how many there are."""
    lines: dict[str, str] = {}
    for (key, template), tip in zip(chosen, tips, strict=True):
        refs = {name.replace(template.customer, key): oid for name, oid in template.refs.items()}
        refs[f"refs/heads/{key}/ledger"] = tip
        # Engineers' branches make it seven, however far the customer has come.
        for number in range(REFS - len(refs)):
            refs[f"refs/heads/{key}/work-{number}"] = story.line
        lines |= refs
    packed = ["# pack-refs with: peeled fully-peeled sorted \n"]
    for name in sorted(lines):
        packed.append(f"{lines[name]} {name}\n")
        if lines[name] == story.tag:
            packed.append(f"^{story.line}\n")
    for loose in ("heads", "tags", "writing"):
        subprocess.run(["rm", "-rf", str(repository.path / "refs" / loose)], check=True)
    (repository.path / "refs" / "heads").mkdir()
    (repository.path / "refs" / "tags").mkdir()
    (repository.path / "packed-refs").write_text("".join(packed))
    return len(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.many_customers", description=__doc__)
    parser.add_argument("--customers", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("folder", type=Path, help="where the workspace is made")
    given = parser.parse_args()
    make(given.folder.absolute(), given.customers, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    main()
