"""A small world for the tests of the ledger: keys, people, drafts, and commits that records can move refs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.ledger import Ledger
from pipeline.model import Draft, People, Person, RefMove, SigningKey, TicketRef
from pipeline.repository import NewCommit, Repository
from pipeline.signing import Signer, load_signer, make_key
from pipeline.state import State

NOW = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
CUSTOMER = "acme"
LEDGER = "refs/heads/acme/ledger"
TEXTS = "refs/heads/acme/texts"
LINE = "refs/heads/acme/main"
TEST = "refs/heads/acme/env/test"


def people_with_keys(folder: Path, *keys: str) -> tuple[People, dict[str, Signer]]:
    publics = {key: make_key(folder / key) for key in keys}
    people = People(
        people=tuple(
            Person(key=key, name=key.title(), roles=("engineer",), keys=(SigningKey(public=public),))
            for key, public in publics.items()
        )
    )
    return people, {key: load_signer(folder / key, people, NOW.date()) for key in keys}


def commit(repository: Repository, parent: str | None, content: str) -> str:
    change = NewCommit(
        base=parent,
        changes={"file.txt": content.encode()},
        parents=[parent] if parent else [],
        message=f"{content}\n",
        author="jane",
        at=NOW,
    )
    return repository.write_commits([change])[0]


def ticket(number: int | str, **more: Any) -> Draft:
    """A draft that opens a ticket; its title is a text."""
    fields: dict[str, Any] = {
        "id": f"run-{number}-ticket-opened-1",
        "run": f"run-{number}",
        "kind": "ticket-opened",
        "at": NOW,
        "product": "shop",
        "tickets": (TicketRef(tracker="ledger", id=f"ACME-{number}"),),
        "texts": {"title": f"title of {number}"},
        "configuration": {"customer.yaml": b"name: Acme\n"},
    }
    return Draft(**fields | more)


def line_started(repository: Repository, number: int = 1) -> Callable[[State], Sequence[Draft]]:
    """A decision that moves the line and the test environment one commit on."""

    def decide(state: State) -> list[Draft]:
        moves = []
        for ref in (LINE, TEST):
            old = repository.ref(ref)
            moves.append(RefMove(ref=ref, old=old, new=commit(repository, old, f"{ref} {number}")))
        return [
            Draft(
                id=f"run-{number}-line-started-1",
                run=f"run-{number}",
                kind="line-started",
                at=NOW,
                product="shop",
                details={"version": "1.0"},
                moves=tuple(moves),
            )
        ]

    return decide


def open_ledger(folder: Path, remote: Path | None = None) -> Ledger:
    return Ledger(Repository.open(folder, remote=str(remote) if remote else None), CUSTOMER)
