"""The demo's story: the verbs that an engineer would type, each printed before its output.

A fresh start every time: the servers of an earlier run are ended, ``var/demo`` is made anew. Signing keys under
``var/keys`` stay, since other repositories may hold records signed with them.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

from pipeline.demo import servers
from pipeline.demo.product import make_product
from pipeline.errors import Failed, Locked, Reason, UsageError
from pipeline.settings import Workspace, load_workspace
from pipeline.workflow import Result

ENGINEER = "camille"
CUSTOMERS = ("vosges", "rosenberg")
PAGE = "var/demo/sign-off-{customer}.html"
EVIDENCE = "var/demo/evidence/{customer}-{version}.eml"

CUSTOMISATIONS = {
    "vosges": (
        "Commandes à partir de six colis",
        (
            ("app/orders.py", "SMALLEST_ORDER = 1\n", "SMALLEST_ORDER = 6\n"),
            ("app/words.json", '"orders": "Commandes"', '"orders": "Carnet de commandes"'),
        ),
    ),
    "rosenberg": (
        "Beträge in Franken, auf fünf Rappen gerundet",
        (
            (
                "app/orders.py",
                '    return f"{cents / 100:.2f} EUR"\n',
                '    rounded = 5 * round(cents / 5)\n    return f"CHF {rounded / 100:,.2f}".replace(",", "’")\n',
            ),
        ),
    ),
}
"""Each customer's own change: the commit's subject, and (file, what stands there, what shall)."""

ANSWERS = {
    "vosges": ("Hélène Ferry <helene.ferry@vosges.example>", "Tout fonctionne, vous pouvez mettre en production."),
    "rosenberg": ("Urs Baumgartner <urs.baumgartner@rosenberg.example>", "Getestet, in Ordnung. Bitte einspielen."),
}

FIRST = {
    "vosges": ("Mise en service de Comptoir", "Le carnet de commandes.", "Ouvrez la page : trois commandes."),
    "rosenberg": ("Comptoir einführen", "Das Bestellbuch.", "Seite öffnen: drei Bestellungen."),
}
SECOND = {
    "vosges": (
        "Afficher le jour de livraison",
        "Chaque commande a un jour de livraison, trois jours après la commande.",
        "Ouvrez la page : la colonne « Livraison » est remplie. Commandez 5 colis : c’est refusé, 6 : accepté.",
    ),
    "rosenberg": (
        "Liefertag anzeigen",
        "Jede Bestellung hat einen Liefertag, drei Tage nach der Bestellung.",
        "Seite öffnen: Die Spalte «Lieferung» ist ausgefüllt, Beträge enden auf 0 oder 5 Rappen.",
    ),
}
"""Tickets of each customer's two releases: title, what changed, how to test it."""


class Told(Result):
    """Where things are, once the story is told."""

    pages: dict[str, str]
    seconds: float

    def lines(self) -> list[str]:
        """For a person."""
        return [self.what, *(f"  sign-off page, {customer}: {page}" for customer, page in self.pages.items())]


def run(folder: Path, program: str = "invoke") -> Told:
    """Tells the whole story in the workspace ``folder``; ``program`` is ``invoke``, or ``tma`` with its options.

    Raises UsageError where a port is taken or the demo's repository holds somebody else's records, Locked where the
    story is being told already, Failed at the first command that ends with anything but 0.
    """
    began = time.monotonic()
    workspace = load_workspace(folder)
    for customer in CUSTOMERS:
        if customer not in workspace.customers:
            raise UsageError(
                "the demo runs in a checkout of the pipeline only",
                reasons=[Reason(f"there is no customer {customer} here", "environments/")],
            )
    with _alone(workspace.folder):
        _fresh_start(workspace)
        story = _Story(workspace.folder, program)
        _tell(story)
    _evidence(workspace.folder, "rosenberg", "2.4.0")
    seconds = round(time.monotonic() - began, 1)
    return Told(
        changed=True,
        what=f"the demo took {seconds:.0f} s; its applications go on running, Getränke Rosenberg is to decide on 2.4.0",
        pages={customer: str(workspace.folder / PAGE.format(customer=customer)) for customer in CUSTOMERS},
        seconds=seconds,
        next_commands=(
            ". .venv/bin/activate",
            "invoke status",
            _typed("invoke", *_decision("rosenberg", "2.4.0", 2)),
            "invoke promote rosenberg",
            "invoke rollback vosges env=production",
            'invoke ticket.open vosges title="Remarque pour le livreur"',
            "invoke release vosges version=2.5.0 ticket=VOS-3",
            "invoke demo.stop",
        ),
        in_order=True,
    )


def _tell(story: _Story) -> None:
    story.chapter("A product with three versions, and two customers whose lines begin at 2.3.0")
    story.verb("product.import", "product=comptoir")
    for customer in CUSTOMERS:
        story.verb("line.start", customer, "version=2.3.0")

    story.chapter("Each customer has a customisation: an ordinary commit on its line")
    for customer in CUSTOMERS:
        _customise(story, customer)

    story.chapter("2.3.0 goes live for both; nothing reaches production without the customer's recorded decision")
    for number, customer in enumerate(CUSTOMERS):
        _to_test(story, customer, "2.3.0", FIRST[customer], 1)
        _page(story, customer)
        _decide(story, customer, "2.3.0", 1)
        if number:
            story.say("Two hosts, one after the other, so that one always serves:")
        story.verb("promote", customer, "--yes")

    story.chapter("2.4.0 for Boissons des Vosges, step by step")
    _to_test(story, "vosges", "2.4.0", SECOND["vosges"], 2, planned=True)
    _page(story, "vosges")
    story.say("Before the customer has decided, production is refused:")
    story.verb("promote", "vosges", "--yes", refused=True)
    _decide(story, "vosges", "2.4.0", 2)
    story.verb("promote", "vosges", "--yes")

    story.chapter("2.4.0 for Getränke Rosenberg waits on test for the customer's decision")
    _to_test(story, "rosenberg", "2.4.0", SECOND["rosenberg"], 2)
    _page(story, "rosenberg")

    story.chapter("Who runs what, and how it came about")
    story.verb("status")
    story.verb("history", "vosges")


def _customise(story: _Story, customer: str) -> None:
    subject, changes = CUSTOMISATIONS[customer]
    line = f"var/demo/lines/{customer}"
    story.verb("line.checkout", customer, f"folder={line}")
    for name, there, wanted in changes:
        path = story.folder / line / name
        text = path.read_text(encoding="utf-8")
        if text.count(there) != 1:
            raise Failed(
                f"the customisation of {customer} does not fit {name}", reasons=[Reason(f"expected {there!r}", name)]
            )
        path.write_text(text.replace(there, wanted), encoding="utf-8")
    story.git(line, "diff", "-U0")
    story.git(line, "commit", "-q", "-a", "-m", subject)
    story.git(line, "push", "-q")


def _to_test(
    story: _Story, customer: str, version: str, ticket: tuple[str, str, str], number: int, *, planned: bool = False
) -> None:
    title, changed, test = ticket
    story.verb("ticket.open", customer, f"title={title}", f"changed={changed}", f"test={test}")
    story.verb("release", customer, f"version={version}", f"ticket={_ticket(customer, number)}")
    if planned:
        story.verb("plan", customer)
    story.verb("deploy", customer)


def _page(story: _Story, customer: str) -> None:
    planned = date.today() + timedelta(days=14)
    story.verb(
        "signoff.page", customer, f"planned={planned.isoformat()} 20:00", f"out={PAGE.format(customer=customer)}"
    )


def _decide(story: _Story, customer: str, version: str, number: int) -> None:
    _evidence(story.folder, customer, version)
    story.verb(*_decision(customer, version, number))


def _decision(customer: str, version: str, number: int) -> tuple[str, ...]:
    return (
        "signoff.record",
        customer,
        f"release={version}+1",
        "decision=approved",
        f"by={'helene' if customer == 'vosges' else 'urs'}",
        f"verdicts={_ticket(customer, number)}:works",
        f"evidence={EVIDENCE.format(customer=customer, version=version)}",
    )


def _ticket(customer: str, number: int) -> str:
    return f"{'VOS' if customer == 'vosges' else 'ROS'}-{number}"


def _evidence(folder: Path, customer: str, version: str) -> None:
    """The customer's answer by mail, as it would be saved from the engineer's mail program."""
    sender, text = ANSWERS[customer]
    path = folder / EVIDENCE.format(customer=customer, version=version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"From: {sender}\nTo: camille.roche@maintenance.example\nSubject: Re: Comptoir {version}\n\n{text}\n",
        encoding="utf-8",
    )


class _Story:
    """Prints commands and runs them. All of it goes to standard error: the story is the way, not the result."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self._typed = program.split(" ", maxsplit=1)[0]
        entry = "import sys; from pipeline.verbs import main; main(sys.argv)"
        self._program = [sys.executable, *(["-m", "invoke"] if self._typed == "invoke" else ["-c", entry])]
        self._chapters = 0

    def chapter(self, title: str) -> None:
        self._chapters += 1
        self.say("", f"── {self._chapters}. {title} " + "─" * max(3, 110 - len(title)), "")

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", file=sys.stderr, flush=True)

    def verb(self, *words: str, refused: bool = False) -> None:
        """Runs one verb; ``refused``: it must be refused by a rule (exit 4)."""
        self._run(_typed(self._typed, *words), [*self._program, *words], expected=4 if refused else 0)

    def git(self, work_tree: str, *words: str) -> None:
        environment = {
            "GIT_AUTHOR_NAME": "Camille Roche",
            "GIT_AUTHOR_EMAIL": "camille.roche@maintenance.example",
            "GIT_COMMITTER_NAME": "Camille Roche",
            "GIT_COMMITTER_EMAIL": "camille.roche@maintenance.example",
            "GIT_PAGER": "cat",
        }
        command = ["git", "-C", work_tree, *words]
        self._run(_typed(*command), command, environment=environment)

    def _run(
        self, typed: str, command: list[str], *, expected: int = 0, environment: dict[str, str] | None = None
    ) -> None:
        self.say(f"$ {typed}")
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )
        if ended.returncode != expected:
            raise Failed(
                f"the demo stopped: a command ended with {ended.returncode}, not {expected}",
                reasons=[Reason(typed)],
                state="What was done until here stays, the demo's servers run.",
                next_commands=["invoke status", "invoke demo.run"],
            )
        self.say("")


def _typed(*words: str) -> str:
    """The command as one would type it: ``key="two words"``."""
    typed = []
    for word in words:
        key, equals, value = word.partition("=")
        quoted = shlex.quote(value) if equals and key.isidentifier() else shlex.quote(word)
        typed.append(f"{key}={quoted}" if equals and key.isidentifier() else quoted)
    return " ".join(typed)


def _fresh_start(workspace: Workspace) -> None:
    folder = workspace.folder
    _refuse_other_records(folder)
    servers.stop(folder)
    hosts = list(servers.demo_hosts(workspace))
    servers.check_ports(hosts)
    demo = folder / servers.FOLDER
    if demo.exists():
        shutil.rmtree(demo)
    demo.mkdir(parents=True)
    make_product(demo / "comptoir")
    key = folder / "var" / "keys" / ENGINEER
    if not key.exists():
        from pipeline.signing import make_key

        make_key(key, comment=ENGINEER)
    secrets_folder = demo / "secrets"
    secrets_folder.mkdir(mode=0o700)
    for name in dict.fromkeys(f"{host.customer}-{host.environment}" for host in hosts):
        (secrets_folder / name).write_text(os.urandom(24).hex() + "\n")
        (secrets_folder / name).chmod(0o600)
    print(*servers.start(folder).lines(), sep="\n", file=sys.stderr, flush=True)


def _refuse_other_records(folder: Path) -> None:
    """The demo's repository is thrown away at a fresh start, so nobody else's records may be in it."""
    repository = folder / servers.FOLDER / "installations.git"
    if not repository.exists():
        return
    listed = subprocess.run(
        ["git", "-C", str(repository), "for-each-ref", "--format=%(refname)", "refs/heads/"],
        capture_output=True,
        text=True,
        check=False,
    )
    others = sorted({ref.split("/")[2] for ref in listed.stdout.split() if ref.endswith("/ledger")} - set(CUSTOMERS))
    if others:
        raise UsageError(
            "the demo would throw away records of other customers",
            reasons=[
                Reason(f"{name} is in the demo's repository", f"{servers.FOLDER}/installations.git") for name in others
            ],
            next_commands=["name another installations repository in environments/workspace.yaml and customer.yaml"],
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One demo at a time in a workspace."""
    lock = folder / "var" / "demo.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Locked(
                "another demo.run is under way in this workspace", reasons=[Reason("its lock is held", str(lock))]
            ) from None
        yield
