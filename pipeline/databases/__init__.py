"""The port to a customer's database: migration history, one script at a time, catalogue, proven backups and restores.

Adapters are the packages ``postgresql``, ``mysql`` and ``sqlite``, each with its port in ``database.py``; a new engine is one
package here, and only :mod:`pipeline.wiring` imports it. All of them pass ``tests/contracts/test_databases.py``. What an
adapter must keep:

- A transactional script and its row of the history commit together or not at all; a script cannot commit by itself.
- A script that commits statement by statement (non-transactional ones, and every one on an engine whose DDL commits) has
  a *running* row before its first statement, and a counter after each; it is *done* only when all of it is. Begun and not
  finished it is blocked: only :meth:`Database.repair` goes on.
- One runner at a time: a lock of the session that the server lets go of with the connection, polled, never a lock row.
- A fence that is lower than the highest one ever seen in this database is refused inside the script's own transaction,
  so a runner that was thought dead cannot write after its successor.
- Two runners at once apply each script once. A lost connection is never reported as a guess: the history is asked.
- SQL never reaches a shell; no error, argument or process list holds a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline.model import Applied, HistoryEvent, Script

HISTORY_TABLE = "tma_migration_history"
"""One row a script: script (primary key), checksum, algorithm, fence, run, release, applied_at (UTC), state, statement,
statements (:class:`pipeline.model.Applied`)."""

EVENTS_TABLE = "tma_migration_events"
"""Only ever added to: number, what, script, checksum, fence, run, release, at (UTC), details (JSON)."""

FENCE_TABLE = "tma_migration_fence"
"""One row: the highest fence seen, the script in hand, and the format of the tables."""

OWN_TABLES = frozenset({HISTORY_TABLE, EVENTS_TABLE, FENCE_TABLE})

HISTORY_FORMAT = 2
"""Format of the tables that this version writes. Format 1 had no events and no state: it is read, and brought up to date by
the first claim. A database with a newer format is only read, never written."""

Catalogue = dict[str, Any]
"""What a schema is made of, as plain JSON with every list sorted: the same schema gives the same catalogue, whatever the
order in which it came about. ``{"tables": {"public.orders": {"columns": […], "constraints": […], …}, …}, "views": …}``;
the tables of :data:`OWN_TABLES` are no part of it."""


@dataclass(frozen=True)
class BackupTaken:
    """A backup on the host that was read back: ``path`` there, SHA-256, ``size`` in bytes, and what proved it.

    ``restored`` says that the proof was a trial restore.
    """

    path: str
    sha256: str
    size: int
    proven_by: str
    restored: bool = False


@dataclass(frozen=True)
class BackupFound:
    """A backup that lies on the host: ``label`` is its name, ``path`` and ``size`` in bytes; ``at`` is UTC, RFC 3339."""

    label: str
    path: str
    size: int
    at: str


@dataclass(frozen=True)
class Rehearsed:
    """What became of one script when all were run on trial: ``outcome`` and, where it did not run, ``said`` why."""

    script: str
    outcome: Literal["ok", "failed", "skipped"]
    said: str = ""


@dataclass(frozen=True)
class Server:
    """The database's server: its version in its own words, and what it lacks.

    ``substitutes`` names each protection that is missing with what is done instead; ``refusals`` are the reasons for which
    no migration may run here (a transaction-pooling proxy, a version that is too old).
    """

    version: str
    substitutes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


Repair = Literal["resume", "done", "reverted"]
"""What somebody found about a blocked script: it goes on from a statement, all of it is done, or none of it is there."""


class Database(Protocol):
    """One customer's database, reached through the host's own network."""

    engine: str

    # --- looking: nothing of it changes the database ------------------------------------------------------------------

    def history(self) -> list[Applied]:
        """Every script that counts as applied or is blocked, oldest first; empty when there is no history yet.

        Unreachable when the database cannot be reached or does not let us in; Failed when it cannot be read.
        """
        ...

    def events(self) -> list[HistoryEvent]:
        """Every event of the history, oldest first; empty when there is none yet."""
        ...

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of one statement, run in a read-only transaction that is rolled back. Failed when it does not run."""
        ...

    def catalogue(self) -> Catalogue:
        """What the schema is made of now."""
        ...

    def server(self) -> Server:
        """What the server is and lacks. Unreachable when it cannot be asked."""
        ...

    # --- migrating ----------------------------------------------------------------------------------------------------

    def apply(
        self,
        script: Script,
        sql: bytes,
        *,
        fence: int,
        run: str,
        release: str,
        verify: bytes | None = None,
        covers: Sequence[Script] = (),
    ) -> bool:
        """True when the script was applied now, False when it already was with the same checksum.

        ``sql`` is the whole file, of which ``script.lines`` run; ``verify`` must run after it without an error (rolled
        back). ``covers`` get their rows, as baseline, together with the script's own. A repeatable script with another
        checksum is applied again. Failed when the script does not run, or ends the transaction itself: nothing of it is
        left. PartlyDone when a script that commits statement by statement stopped in the middle (the error says which
        statements are committed), and when the outcome could not be asked. Refused when it is blocked by an earlier
        attempt, the fence is stale, the script was edited since, or the history is of a newer format. Locked when another
        runner is at work; the error names it.
        """
        ...

    def claim(self, fence: int, run: str) -> None:
        """Raises the fence, so that every run with a lower one is refused from now on; makes the tables when missing.

        Refused (:func:`pipeline.errors.overtaken`) when a higher one was seen; the same one again changes nothing.
        Locked when a script of another run is at work, Unreachable when the database cannot be reached or the
        connection was lost: it is safe to do again.
        """
        ...

    def baseline(self, scripts: Sequence[Script], *, fence: int, run: str, release: str) -> list[str]:
        """The ids of those that had no row: they count as applied from now on, and nothing of them was run. All or none."""
        ...

    def repair(
        self, script: str, what: Repair, *, fence: int, run: str, release: str, resume_at: int | None = None
    ) -> None:
        """Ends the blocked state of ``script``: *done*; *reverted* (its row goes); *resume*: :meth:`apply` goes on with
        statement ``resume_at`` (from 1) the next time.

        Refused when it is not blocked, NotKnown when it has no row, UsageError for a statement that it does not have.
        """
        ...

    def rehearse(self, scripts: Sequence[tuple[Script, bytes]], *, run: str) -> list[Rehearsed]:
        """What would become of these scripts, in order, up to the first that fails; nothing of it stays.

        In one transaction that is rolled back, where the engine can do that (a script that runs outside a transaction is
        skipped, and said so); otherwise on a copy in the scratch database. Refused where that is missing.
        """
        ...

    # --- backups --------------------------------------------------------------------------------------------------------

    def backup(self, label: str) -> BackupTaken:
        """A backup named ``label`` on the host, read back before it counts, as the settings' ``backup`` say.

        The first one of a label stays: a run that is repeated gets it again, proven again, since its later state
        may have been changed by the run itself. Failed when it cannot be taken or read back.
        """
        ...

    def backups(self) -> list[BackupFound]:
        """The backups of this database that lie on the host, oldest first; none of what was not finished."""
        ...

    def prove(self, label: str) -> BackupTaken:
        """The backup with this label, proven now (trial restore where there is a scratch database). NotKnown without one."""
        ...

    def restore(self, label: str, *, sha256: str | None, fence: int, run: str) -> None:
        """The whole database as it was when this backup was made, its history too (then with an event *restored*).

        What was put into the database since is lost. Refused when the backup's bytes are not ``sha256`` (where given), when
        the fence is stale; Failed when it did not work, and the error says what state the database is in. As far as the
        engine lets it, all or nothing. The restored database remembers the highest fence seen before.
        """
        ...

    def close(self) -> None:
        """Ends the connection; safe to call twice."""
        ...


__all__: Sequence[str] = (
    "EVENTS_TABLE",
    "FENCE_TABLE",
    "HISTORY_FORMAT",
    "HISTORY_TABLE",
    "OWN_TABLES",
    "BackupFound",
    "BackupTaken",
    "Catalogue",
    "Database",
    "Rehearsed",
    "Repair",
    "Server",
)
