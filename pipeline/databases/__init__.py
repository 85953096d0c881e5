"""The port to a customer's database: migration history, one script at a time, a proven backup.

Adapters are ``postgresql.py`` and ``sqlite.py``; a new engine is one file here, and only :mod:`pipeline.wiring` imports
it. All of them pass ``tests/contracts/test_databases.py``. What an adapter must keep:

- A script and its row of the history commit together or not at all; a script cannot commit by itself.
- A fence that is lower than the highest one ever seen in this database is refused inside the script's own transaction,
  so a runner that was thought dead cannot write after its successor.
- Two runners at once apply each script once. A lost connection is never reported as a guess: the history is asked.
- No error holds a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.model import Applied, Script

HISTORY_TABLE = "tma_migration_history"
"""One row a script that is applied: script (primary key), checksum, algorithm, fence, run, release, applied_at (UTC)."""

FENCE_TABLE = "tma_migration_fence"
"""One row: the highest fence seen, the script in hand, and the format of both tables."""

HISTORY_FORMAT = 1
"""Format of both tables that this version writes; a database with a newer one is only read, never written."""


@dataclass(frozen=True)
class BackupTaken:
    """A backup on the host that was read back: ``path`` there, SHA-256, ``size`` in bytes, and what proved it."""

    path: str
    sha256: str
    size: int
    proven_by: str


class Database(Protocol):
    """One customer's database, reached through the host's own network."""

    engine: str

    def history(self) -> list[Applied]:
        """Every applied script, oldest first; empty when there is no history yet. Changes nothing.

        Unreachable when the database cannot be reached or does not let us in; Failed when it cannot be read.
        """
        ...

    def apply(self, script: Script, sql: bytes, *, fence: int, run: str, release: str) -> bool:
        """True when the script was applied now, False when it already was with the same checksum.

        Failed when the script does not run, or ends the transaction itself: nothing of it is left. Refused when the
        fence is stale, the script was edited since, or the history is of a newer format. Locked when another runner
        is at work. PartlyDone only when the outcome could not be asked.
        """
        ...

    def claim(self, fence: int, run: str) -> None:
        """Raises the fence, so that every run with a lower one is refused from now on; makes the tables when missing.

        Refused (:func:`pipeline.errors.overtaken`) when a higher one was seen; the same one again changes nothing.
        Locked when a script of another run is at work, Unreachable when the database cannot be reached or the
        connection was lost: it is safe to do again.
        """
        ...

    def backup(self, label: str) -> BackupTaken:
        """A backup named ``label`` on the host, read back before it counts.

        The first one of a label stays: a run that is repeated gets it again, proven again, since its later state
        may have been changed by the run itself. Failed when it cannot be taken or read back.
        """
        ...

    def close(self) -> None:
        """Ends the connection; safe to call twice."""
        ...


__all__: Sequence[str] = ("FENCE_TABLE", "HISTORY_FORMAT", "HISTORY_TABLE", "BackupTaken", "Database")
