"""What both engines say about a script: the same words for the same trouble, and the checks before anything is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.content import script_checksum
from pipeline.databases import HISTORY_FORMAT
from pipeline.errors import (
    OVERTAKEN,
    Failed,
    Locked,
    PartlyDone,
    PipelineError,
    Reason,
    Refused,
    Unreachable,
    UsageError,
)
from pipeline.model import Script

ROLLED_BACK = "Nothing of this script was committed; the scripts before it stay applied, as the history says."

_LABEL = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,199}")


@dataclass(frozen=True)
class ScriptErrors:
    """The errors of one database. ``place`` names it without a password; ``secret`` is blotted out of server messages."""

    place: str
    customer: str
    environment: str
    secret: str | None = None

    @property
    def plan(self) -> str:
        """The command that shows what is pending here."""
        return f"invoke plan customer={self.customer} env={self.environment}"

    @property
    def history(self) -> str:
        """The command that shows what was done here."""
        return f"invoke history customer={self.customer}"

    def clean(self, message: str) -> str:
        """The message on one line and without the password, whatever the server or a library put into it."""
        if self.secret:
            message = message.replace(self.secret, "***")
        return " ".join(message.split())

    def text(self, script: Script, sql: bytes) -> str:
        """The script's text without a byte order mark, which must be what the release declares (Refused) and UTF-8 (Failed)."""
        if script_checksum(sql) != script.checksum:
            raise Refused(
                f"migration {script.id} is not the one that the release declares.",
                reasons=[Reason("its bytes have another checksum than the release's manifest", script.id)],
                next_commands=[self.plan],
            )
        try:
            text = sql.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = sql.count(b"\n", 0, error.start) + 1
            raise self.failed(script, "it is not UTF-8", line=line) from None
        if "\0" in text:
            raise self.failed(script, "it holds a NUL character", line=text.count("\n", 0, text.index("\0")) + 1)
        return text

    def label(self, label: str) -> str:
        """The label of a backup, checked: it becomes a file's name on the host."""
        if not _LABEL.fullmatch(label):
            raise UsageError(
                f"{label!r} cannot name a backup.",
                reasons=["letters, digits, dot, underscore, plus and hyphen are allowed, 200 at most"],
            )
        return label

    def failed(
        self,
        script: Script,
        message: str,
        *,
        number: int | None = None,
        line: int | None = None,
        words: str | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> Failed:
        """A script that did not run: where in the file, its first words, what the server says with its code."""
        source = f"{script.id}:{line}" if line else script.id
        said = self.clean(message) + (f" [{code}]" if code else "")
        reasons = [Reason(f"statement {number} ({self.clean(words)}): {said}" if number and words else said, source)]
        reasons += [Reason(self.clean(hint))] if hint else []
        return Failed(
            f"migration {script.id} failed on {self.place}.",
            reasons=reasons,
            state=ROLLED_BACK,
            next_commands=[self.plan],
            details={"script": script.id, "statement": number, "line": line, "code": code},
        )

    def own_commit(self, script: Script, word: str, *, line: int | None = None) -> Failed:
        """A script that would end the transaction, seen before it could."""
        return Failed(
            f"migration {script.id} ends the transaction itself.",
            reasons=[
                Reason(f"{word} stands in the script; the script and its row of the history commit together", script.id)
                if line is None
                else Reason(f"{word}: the script and its row of the history commit together", f"{script.id}:{line}")
            ],
            state=ROLLED_BACK,
            next_commands=[self.plan],
            details={"script": script.id, "line": line},
        )

    def own_history(self, script: Script, table: str, *, line: int | None = None) -> Failed:
        """A script that writes to the tables in which the pipeline keeps what was applied."""
        source = script.id if line is None else f"{script.id}:{line}"
        return Failed(
            f"migration {script.id} changes the migration history itself.",
            reasons=[Reason(f"{table} is written by the pipeline only, a row with each script", source)],
            state=ROLLED_BACK,
            next_commands=[self.plan],
            details={"script": script.id, "line": line},
        )

    def escaped(self, script: Script) -> PartlyDone:
        """A script that got out of the transaction all the same, so that a part of it may be committed."""
        return PartlyDone(
            f"migration {script.id} left the transaction that it was given.",
            reasons=[Reason("after the script the transaction was another than before it", script.id)],
            state=f"What the script did on {self.place} may be committed, and the history does not list it.",
            next_commands=[self.history, self.plan],
            details={"script": script.id},
        )

    def edited(self, script: Script, checksum: str) -> Refused:
        """A script that is in the history with another checksum."""
        return Refused(
            f"migration {script.id} was edited after it was applied on {self.place}.",
            reasons=[Reason(f"applied with {checksum[:12]}…, the release has {script.checksum[:12]}…", script.id)],
            next_commands=[f"invoke migrate.accept customer={self.customer} script={script.id} reason="],
            details={"script": script.id, "applied": checksum, "release": script.checksum},
        )

    def stale(self, fence: int, highest: int) -> Refused:
        """A runner that a later one has overtaken."""
        return Refused(
            f"this run is no longer the one that may change {self.place}.",
            reasons=[Reason(f"its fence is {fence}, and {highest} was seen here since", self.place, OVERTAKEN)],
            next_commands=[self.history],
            details={"fence": fence, "highest": highest},
        )

    def not_claimed(self, message: str) -> Unreachable:
        """The connection broke while the fence was being raised; whether it was is not known, and it may be done again."""
        return Unreachable(
            f"the connection to {self.place} was lost while its fence was raised.",
            reasons=[Reason(self.clean(message), self.place)],
            state="The fence is raised or it is not; raising it again is safe.",
            next_commands=["the same command again"],
        )

    def newer(self, found: int) -> Refused:
        """A history that a later version of this program writes."""
        return Refused(
            f"the migration history on {self.place} is of a newer format.",
            reasons=[Reason(f"format {found}, and this version writes format {HISTORY_FORMAT}", self.place)],
            next_commands=["install the newer tma-pipeline, then the same command again"],
            details={"found": found, "known": HISTORY_FORMAT},
        )

    def locked(self, holder: str, seconds: float) -> Locked:
        """Another runner, or the application itself, holds the database."""
        return Locked(
            f"{self.place} is held by another run.",
            reasons=[Reason(f"{holder}; waited {seconds:.0f} s", self.place)],
            next_commands=["wait for it, then the same command again", "invoke status"],
        )

    def not_let_in(self, message: str, *, reasons: tuple[str, ...] = ()) -> Unreachable:
        """The database could not be reached, or refused the user."""
        return Unreachable(
            f"{self.place} cannot be opened.",
            reasons=[Reason(self.clean(message), self.place), *(Reason(reason) for reason in reasons)],
            next_commands=[
                f"correct environments/{self.customer}/{self.environment}.yaml, then the same command again"
            ],
        )

    def unreadable(self, message: str, *, code: str | None = None) -> Failed:
        """The database answers, and not with what a history can be read from."""
        return Failed(
            f"{self.place} cannot be read.",
            reasons=[Reason(self.clean(message) + (f" [{code}]" if code else ""), self.place)],
            next_commands=[
                f"correct environments/{self.customer}/{self.environment}.yaml, then the same command again"
            ],
        )

    def not_applied(self, script: Script) -> Unreachable:
        """The connection was lost, and the history says that the script is not in."""
        return Unreachable(
            f"the connection to {self.place} was lost during migration {script.id}.",
            reasons=[Reason("asked again: the history does not list the script", self.place)],
            state=ROLLED_BACK,
            next_commands=["the same command again"],
            details={"script": script.id},
        )

    def unknown(self, script: Script, cause: PipelineError) -> PartlyDone:
        """The connection was lost, and the history could not be asked."""
        return PartlyDone(
            f"the outcome of migration {script.id} is not known.",
            reasons=[
                Reason(f"the connection to {self.place} was lost while it ran", script.id),
                Reason(cause.what),
                *cause.reasons,
            ],
            state="It is applied as a whole or not at all; the next run asks the history first.",
            next_commands=["the same command again", self.plan],
            details={"script": script.id},
        )

    def backup_failed(self, message: str) -> Failed:
        """No backup, or one that could not be read back."""
        return Failed(
            f"no proven backup of {self.place}.",
            reasons=[Reason(self.clean(message), self.place)],
            state="The database was not changed.",
            next_commands=["the same command again"],
        )
