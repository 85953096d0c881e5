"""Who holds which environment of a customer, whether that run lives, and what to do about it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pipeline.errors import Unreachable
from pipeline.lease import Lease, Life, life, read_lease
from pipeline.state import EnvironmentState
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Result, Session


class LockStatus(Result):
    """A row an environment: the lease (every field None where nobody holds it), ``life`` of its run, and what to do.

    ``age_seconds`` since the lease was taken, ``silent_seconds`` since the last sign of life. ``deployment`` is the one
    that is open, ``quarantined`` the one whose way back failed.
    """

    customer: str
    locks: tuple[dict[str, Any], ...]

    def lines(self) -> list[str]:
        lines: list[str] = []
        for row in self.locks:
            lines.append(f"{row['environment']} of {self.customer}: {_headline(row)}")
            if row["held"]:
                release = f" of {row['release']}" if row["release"] else ""
                lines.append(
                    f"  {row['purpose']}{release} by {row['owner']} on {row['machine']}, process {row['process']}"
                )
                if row["job"]:
                    lines.append(f"  CI job {row['job']}")
                lines.append(f"  run {row['run']}, since {row['since']} ({spoken(row['age_seconds'])})")
                lines.append(f"  last sign of life {row['seen']} ({spoken(row['silent_seconds'])} ago)")
            lines.append(f"  {row['advice']}")
        return lines


def lock_status(session: Session, *, customer: str, environment: str | None = None) -> LockStatus:
    """Who holds ``environment`` (all of the customer's by default); changes nothing.

    Without the remote it tells what this machine's mirror knew, and says so. NotKnown for an environment that is none.
    """
    dossier = session.dossier(customer, deciding=False)
    keys = [dossier.environment(environment).key] if environment else list(dossier.loaded.environments)
    try:
        dossier.repository.fetch()
    except Unreachable as error:
        fetched = dossier.repository.fetched_at()
        if fetched is None:
            raise
        session.progress(
            f"{error.what}; this is the mirror of this machine, last fetched: {fetched:%Y-%m-%d %H:%M:%S}Z"
        )
    state = dossier.state()
    rows: list[dict[str, Any]] = []
    following: list[str] = []
    for key in keys:
        here = state.environment(key)
        lease = read_lease(dossier.repository, customer, key)
        lives = life(lease, session.now()) if lease else None
        advice, commands = _advice(customer, key, lease, lives, here)
        rows.append(_row(key, lease, lives, here, session.now()) | {"advice": advice})
        following += commands
    held = [row["environment"] for row in rows if row["held"]]
    return LockStatus(
        changed=False,
        what=f"{', '.join(held)} of {customer} held" if held else f"nothing of {customer} is locked",
        customer=customer,
        locks=tuple(rows),
        next_commands=tuple(dict.fromkeys(following)) or (f"invoke status customer={customer}",),
    )


def spoken(seconds: int | None) -> str:
    """A span of time for a person: ``40 s``, ``7 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds is None:
        return "not known how long"
    if seconds < 120:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def silence(lease: Lease, now: datetime) -> int:
    """Seconds since the lease's last sign of life, by the clocks of both machines; 0 where they disagree about it."""
    return max(0, int((now - (lease.seen or lease.since)).total_seconds()))


def _row(key: str, lease: Lease | None, lives: Life | None, here: EnvironmentState, now: datetime) -> dict[str, Any]:
    seen = lease and (lease.seen or lease.since)
    return {
        "environment": key,
        "held": lease is not None,
        "life": lives,
        "owner": lease.actor if lease else None,
        "machine": lease.machine if lease else None,
        "process": lease.pid if lease else None,
        "job": lease.job if lease else None,
        "run": lease.run if lease else None,
        "release": lease.release if lease else None,
        "purpose": lease.purpose if lease else None,
        "since": f"{lease.since:%Y-%m-%dT%H:%M:%SZ}" if lease else None,
        "age_seconds": max(0, int((now - lease.since).total_seconds())) if lease else None,
        "seen": f"{seen:%Y-%m-%dT%H:%M:%SZ}" if seen else None,
        "silent_seconds": silence(lease, now) if lease else None,
        "deployment": here.running.deployment if here.running else None,
        "quarantined": here.quarantined,
    }


def _headline(row: dict[str, Any]) -> str:
    if row["held"]:
        said = {
            "alive": "held, and its run is alive",
            "dead": "held by a run that is dead",
            "unknown": "held, and nobody here can tell whether its run lives",
        }[row["life"]]
        return said + (f"; deployment {row['deployment']} is open" if row["deployment"] else "")
    if row["quarantined"]:
        return f"held by nobody, quarantined since deployment {row['quarantined']}"
    return f"held by nobody; deployment {row['deployment']} is open" if row["deployment"] else "not locked"


def _advice(
    customer: str, key: str, lease: Lease | None, lives: Life | None, here: EnvironmentState
) -> tuple[str, list[str]]:
    """What to do about one environment, in a sentence, and as commands (alternatives)."""
    release = f"invoke lock.release customer={customer} env={key} reason=…"
    again = resume_commands(customer, key, here.running) if here.running else []
    back = [f"invoke rollback customer={customer} env={key}"] if here.running else []
    if lives == "alive":
        return "Wait for it (deploy, promote and rollback take --wait), or stop it where it runs.", []
    if lives == "dead":
        return "The next run on this machine takes it over by itself.", [
            *again,
            *back,
            *([] if here.running else [release]),
        ]
    if lives == "unknown" and lease is not None:
        where = lease.job or f"process {lease.pid} on {lease.machine}"
        return f"Look whether it still runs ({where}); if it is dead for certain, release the lock.", [release]
    if here.quarantined:
        mends = [f"invoke rollback customer={customer} env={key}"] if here.installed else []
        return (
            "Look at the hosts; rollback brings all of them to what is recorded as installed. Where they hold what is to "
            "stay, release it.",
            [*mends, release],
        )
    if here.running:
        return "Nobody is at it: the same command resumes it, rollback brings it back.", [*again, *back]
    return "Nothing to do.", []
