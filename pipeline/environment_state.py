"""What the records add up to for one environment: what is installed and under way there, and its database. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from pipeline.model import Instant, Noun, ObjectId, Record, Sha256, TicketRef


class Deployed(Noun):
    """One release as it was installed on an environment. ``commit`` is the environment's commit in Git."""

    release: str
    content: Sha256
    settings: Sha256 | None = None
    deployment: str
    purpose: str
    record: str
    at: Instant
    by: str
    commit: ObjectId | None = None
    tickets: tuple[TicketRef, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()


class Running(Noun):
    """A deployment that was started and has no outcome yet: it runs, or it was interrupted and can be adopted."""

    run: str
    deployment: str
    purpose: str
    release: str
    content: Sha256
    settings: Sha256 | None = Field(None, description="the digest of the settings that its first attempt began with")
    record: str
    at: Instant
    by: str
    tickets: tuple[TicketRef, ...] = ()
    partly: dict[str, str | None] = Field(
        default_factory=dict,
        description="where some hosts were left on the new release: the release that serves on each host, None for none",
    )
    restoring: tuple[dict[str, Any], ...] = Field(
        (), description="the backups that its way back has begun to restore: it is only ever brought back from then on"
    )


class EnvironmentState(Noun):
    """What is installed on one environment now, and before (oldest first)."""

    installed: Deployed | None = None
    earlier: tuple[Deployed, ...] = ()
    running: Running | None = None
    failed: str | None = Field(None, description="the newest deployment, where it failed: its number and release")
    quarantined: str | None = Field(None, description="the deployment whose way back failed")
    restoring: str | None = Field(None, description="the backup whose restore by hand was begun, and has not succeeded")
    left: tuple[str, ...] = Field((), description="releases that this environment was rolled back from")
    applied: dict[str, str] = Field(
        default_factory=dict, description="migrations that count as applied here, with their checksums"
    )
    covered: tuple[str, ...] = Field(
        (), description="those of them that never ran here: the full schema of a new database stands for them"
    )
    asserted: tuple[str, ...] = Field(
        (), description="those of them that no deployment has run here: somebody said that they count as applied"
    )
    catalogue: Sha256 | None = Field(
        None, description="the database's catalogue after the last run that migrated, kept in the ledger"
    )

    def with_applied(
        self, scripts: dict[str, str], covered: Sequence[str] = (), asserted: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The fields of this state that change when these scripts are applied.

        Those in ``covered`` and in ``asserted`` have not run.
        """
        ran = set(scripts) - {*covered, *asserted}
        return {
            "applied": {**self.applied, **scripts},
            "covered": tuple(sorted({*self.covered, *covered} - ran)),
            "asserted": tuple(sorted({*self.asserted, *asserted} - ran)),
        }

    def with_restored(self, record: Record) -> dict[str, Any]:
        """The fields of this state that change with a record about a restore.

        Of a deployment's way back it says that it begins; of a restore by hand that (no outcome), and what became of it.
        """
        details = record.details
        if self.running is not None and self.running.run == record.run:
            return {"running": self.running.model_copy(update={"restoring": tuple(details["backups"])})}
        if record.outcome is None:
            return {"restoring": details["label"]}
        if record.outcome != "ok" and not details.get("unchanged"):
            return {}
        changed: dict[str, Any] = {"restoring": None}
        if "scripts" in details:
            # The database's history went back with it.
            changed |= {"applied": details["scripts"], "covered": tuple(details.get("covered", ()))}
            changed["asserted"] = tuple(script for script in self.asserted if script in details["scripts"])
        if after := details.get("catalogue", {}).get("after"):
            changed["catalogue"] = after
        return changed

    def left_after(self, release: str, purpose: str) -> tuple[str, ...]:
        """What this environment was rolled back from, once it holds ``release`` for this purpose."""
        left = set(self.left)
        if purpose != "rollback":
            left.discard(release)
        # A rollback that ends a quarantine leads to what is installed: nothing is left then.
        elif self.installed is not None and self.installed.release != release:
            left.add(self.installed.release)
        return tuple(sorted(left))
