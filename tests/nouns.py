"""Nouns for the tests of the pure rooms: one customer, its environments, and records that follow one another."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.model import Actor, Customer, Environment, Person, Record, RefMove, TicketRef
from pipeline.state import State, apply, fold

NOW = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
"""A Monday, 21:00 in Paris."""

TICKETS = (TicketRef(tracker="ledger", id="ACME-1"),)
EVE = Person(key="eve", name="Eve Engineer", roles=("engineer",))
CLAIRE = Person(key="claire", name="Claire Client", roles=("approver",), customers=("acme",))


def sha(text: str) -> str:
    """A SHA-256 that stands for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def oid(text: str) -> str:
    """A Git object id that stands for ``text``."""
    return hashlib.sha1(text.encode()).hexdigest()


def customer(**more: Any) -> Customer:
    fields: dict[str, Any] = {
        "key": "acme",
        "name": "Acme SA",
        "language": "fr",
        "time_zone": "Europe/Paris",
        "product": "shop",
        "approvers": ("claire",),
    }
    return Customer(**fields | more)


def environment(key: str = "production", hosts: int = 1, **more: Any) -> Environment:
    fields: dict[str, Any] = {
        "key": key,
        "hosts": [
            {"name": f"app{n}", "address": f"10.0.0.{n}", "folder": "/srv/shop", "values": {"port": 8000 + n}}
            for n in range(1, hosts + 1)
        ],
        "database": {"engine": "sqlite", "path": "shared/shop.sqlite"},
    }
    return Environment.model_validate(fields | more)


class Story:
    """Records that follow one another, a minute apart, and the state that they add up to."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Record, str]] = []
        self.state = State(customer="acme")

    def add(self, kind: str, *, by: str = "eve", **more: Any) -> Record:
        """One more record, of a run of its own."""
        number = len(self.pairs) + 1
        fields: dict[str, Any] = {
            "id": f"r{number}-{kind}-1",
            "run": f"r{number}",
            "number": number,
            "kind": kind,
            "at": NOW - timedelta(days=1) + timedelta(minutes=number),
            "actor": Actor(key=by, kind="person", public_key="ssh-ed25519 AAAA"),
            "customer": "acme",
            "product": "shop",
            "previous": self.pairs[-1][1] if self.pairs else None,
        }
        record = Record(**fields | more)
        digest = sha(record.model_dump_json())
        self.pairs.append((record, digest))
        self.state = apply(self.state, record, digest)
        return record

    def folded(self) -> State:
        return fold("acme", self.pairs)

    def ticket(self, id: str = "ACME-1") -> Record:
        return self.add("ticket-opened", tickets=(TicketRef(tracker="ledger", id=id),), texts={"title": sha(id)})

    def release(self, name: str, *, kind: str = "release-made", **details: Any) -> Record:
        version = name.rpartition("+")[0]
        return self.add(
            kind,
            release=name,
            tickets=TICKETS,
            moves=(RefMove(ref=f"refs/tags/acme/{name}", old=None, new=oid(f"tag {name}")),),
            details={"version": version, "commit": oid(name), **details},
        )

    def patch(self, name: str, patch: str, base: str) -> Record:
        return self.release(name, kind="patch-made", patch=patch, base=base, patches=[patch])

    def started(self, name: str, env: str = "test", purpose: str = "deploy", **more: Any) -> Record:
        details = {"deployment": f"{self.state.deployments + 1:04d}", "purpose": purpose}
        fields = {"environment": env, "release": name, "content": sha(name), "tickets": TICKETS, "details": details}
        return self.add("deployment-started", **fields | more)

    def finished(self, started: Record, outcome: str = "ok", *, by: str = "eve", **details: Any) -> Record:
        env = started.environment
        moves = (RefMove(ref=f"refs/heads/acme/env/{env}", old=None, new=oid(f"{env} {started.id}")),)
        return self.add(
            "deployment-finished",
            by=by,
            run=started.run,
            environment=env,
            release=started.release,
            content=started.content,
            outcome=outcome,
            tickets=started.tickets,
            moves=moves if outcome == "ok" else (),
            details={**started.details, "settings": sha("settings"), **details},
        )

    def deployed(self, name: str, env: str = "test", purpose: str = "deploy", **details: Any) -> Record:
        return self.finished(self.started(name, env, purpose), **details)

    def asked(self, name: str, **more: Any) -> Record:
        """The sign-off request for what was deployed last."""
        details = {
            "settings": sha("settings"),
            "deployment": f"{self.state.deployments:04d}",
            "due": "2026-12-02T22:59:59Z",
        }
        fields = {"environment": "test", "release": name, "content": sha(name), "tickets": TICKETS, "details": details}
        return self.add("sign-off-requested", **fields | more)

    def tested(self, name: str) -> Record:
        """Made, deployed to test, and put before the customer."""
        self.release(name)
        self.deployed(name)
        return self.asked(name)

    def paged(self) -> Story:
        """The page of the newest request, put before the customer."""
        request = self.state.sign_off
        assert request is not None
        details = {"request": request.request, "page": sha("page"), "due": "2026-12-02T22:59:59Z"}
        self.add("sign-off-page-written", environment="test", release=request.release, details=details)
        return self

    def decided(self, request: Record, decision: str = "approved", *, by: str = "claire", **details: Any) -> Record:
        details = {"request": request.id, "decision": decision, "by": by, **details}
        return self.add("sign-off-recorded", environment="test", release=request.release, details=details)
