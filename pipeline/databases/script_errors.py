"""What every engine says about a script: the same words for the same trouble, and the checks before anything is sent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.content import script_checksum
from pipeline.databases import HISTORY_FORMAT
from pipeline.errors import (
    OVERTAKEN,
    Failed,
    Locked,
    NotKnown,
    PartlyDone,
    PipelineError,
    Reason,
    Refused,
    Unreachable,
    UsageError,
)
from pipeline.model import Script
from pipeline.script_text import script_bytes

ROLLED_BACK = "Nothing of this script was committed; the scripts before it stay applied, as the history says."

_LABEL = re.compile(r"(?!.*\.part\.)[0-9A-Za-z][0-9A-Za-z._+-]{0,199}")


# Comments, then BEGIN with nothing more to say.
_BEGINS = re.compile(
    r"\A(?P<before>(?:\s++|--[^\n]*+|/\*(?:[^*/]|\*(?!/)|/(?!\*))*+\*/)*+)"
    r"(?P<word>(?:BEGIN(?:\s+(?:WORK|TRANSACTION))?|START\s+TRANSACTION)\s*;)",
    re.IGNORECASE,
)
# On a line of its own, or on the one line of a script that quotes nothing; only comments come after it.
_ENDS = re.compile(
    r"(?:^[ \t]*|;[ \t]*)(?P<word>(?P<which>COMMIT|END|ROLLBACK)(?:\s+(?:WORK|TRANSACTION))?\s*(?:;|\Z))(?:\s|--[^\n]*)*\Z",
    re.IGNORECASE | re.MULTILINE,
)


def without_outer_transaction(text: str, *, rollback: bool = False) -> str:
    """The text with blanks for ``BEGIN`` at its beginning and ``COMMIT`` (``ROLLBACK`` where asked for) at its end.

    Only both together, so that everything else stays at its place. Other words of this kind are left to the engine.
    """
    begin = _BEGINS.match(text)
    if begin is None:
        return text
    end = _ENDS.search(text, max(begin.end(), len(text) - 2000))
    if end is None or (end["which"].upper() == "ROLLBACK") is not rollback:
        return text
    line = text[text.rfind("\n", 0, end.start("word")) + 1 : end.start("word")]
    if any(mark in line for mark in ("--", "/*", "'", '"', "#", "$")):
        return text
    blank = " " * len(end["word"])
    middle = text[begin.end() : end.start("word")]
    return f"{text[: begin.start('word')]}{_blank(begin['word'])}{middle}{blank}{text[end.end('word') :]}"


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _only(text: str, first: int, last: int) -> str:
    """The lines ``first`` to ``last`` (from 1) at their place, the others empty."""
    lines = text.split("\n")
    return "\n" * (first - 1) + "\n".join(lines[first - 1 : last]) + "\n"


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

    def text(self, script: Script, sql: bytes, *, in_transaction: bool = True) -> str:
        """The part of the script that runs, at its place: what stands around ``script.lines`` are empty lines.

        Without a byte order mark, and where it runs ``in_transaction`` without an outer pair of ``BEGIN`` and ``COMMIT``,
        which scripts for other tools carry. Refused when the bytes are not what the release declares, Failed when not UTF-8.
        """
        if script_checksum(sql) != script.checksum:
            raise Refused(
                f"migration {script.id} is not the one that the release declares.",
                reasons=[Reason("its bytes have another checksum than the release's manifest", script.id)],
                next_commands=[self.plan],
            )
        text = self._readable(script, sql, "it")
        if script.lines is not None:
            text = _only(text, *script.lines)
        return without_outer_transaction(text) if in_transaction else text

    def verify_text(self, script: Script, verify: bytes) -> str:
        """The text that verifies the script, its lines as those of a script. Failed when it is not UTF-8."""
        return self._readable(script, verify, "its verify")

    def _readable(self, script: Script, data: bytes, what: str) -> str:
        # Lines as the checksum sees them: the same bytes are the same statements, whatever system or editor ended them.
        data = script_bytes(data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self.failed(script, f"{what} is not UTF-8", line=line) from None
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise self.failed(script, f"{what} holds a NUL character", line=line)
        return text

    def label(self, label: str) -> str:
        """The label of a backup, checked: it becomes a file's name on the host."""
        if not _LABEL.fullmatch(label):
            raise UsageError(
                f"{label!r} cannot name a backup.",
                reasons=[
                    "letters, digits, dot, underscore, plus and hyphen are allowed, 200 at most, and not '.part.'"
                ],
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

    def unknown(self, script: Script, cause: PipelineError, *, stepwise: bool = False) -> PartlyDone:
        """The connection was lost, and the history could not be asked; ``stepwise``: it commits statement by statement."""
        return PartlyDone(
            f"the outcome of migration {script.id} is not known.",
            reasons=[
                Reason(f"the connection to {self.place} was lost while it ran", script.id),
                Reason(cause.what),
                *cause.reasons,
            ],
            state="Some of its statements may be committed; the history says which."
            if stepwise
            else "It is applied as a whole or not at all; the next run asks the history first.",
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

    # --- a script that commits statement by statement -------------------------------------------------------------------

    def stopped(
        self,
        script: Script,
        message: str,
        *,
        number: int,
        statements: int,
        line: int | None = None,
        words: str | None = None,
        code: str | None = None,
        hint: str | None = None,
        uncertain: bool = False,
        inside: bool = False,
    ) -> PartlyDone:
        """Statement ``number`` of a script that commits each by itself did not end well; those before it are committed.

        ``uncertain``: the connection was lost, so that statement ``number`` may be committed as well. ``inside``: a part of
        it may be, since it commits by itself.
        """
        said = self.clean(message) + (f" [{code}]" if code else "")
        source = f"{script.id}:{line}" if line else script.id
        reasons = [Reason(f"statement {number} ({self.clean(words)}): {said}" if words else said, source)]
        reasons += [Reason(self.clean(hint))] if hint else []
        return PartlyDone(
            f"migration {script.id} stopped at statement {number} of {statements} on {self.place}.",
            reasons=reasons,
            state=_committed(number - 1, number if uncertain or inside else None, a_part=inside and not uncertain),
            next_commands=self.repairs(script.id, number),
            details={"script": script.id, "statement": number, "statements": statements, "line": line, "code": code},
        )

    def blocked(self, script: Script, statement: int, statements: int) -> Refused:
        """A script that was begun and not finished, of which ``statement`` statements are known to be committed."""
        return Refused(
            f"migration {script.id} is blocked on {self.place}: it was begun and not finished.",
            reasons=[Reason(f"{statement} of its {statements} statements are known to be committed", script.id)],
            state=_committed(statement, statement + 1 if statement < statements else None),
            next_commands=self.repairs(script.id, statement + 1),
            details={"script": script.id, "statement": statement, "statements": statements},
        )

    def repairs(self, script: str, number: int) -> list[str]:
        """The commands that end the blocked state of ``script``: to go on with statement ``number``, or to say what is true."""
        command = f"invoke migrate.repair customer={self.customer} env={self.environment} script={shlex.quote(script)}"
        return [
            f"{command} resume-at={number} reason=",
            f"{command} --mark-done reason=",
            f"{command} --mark-reverted reason=",
        ]

    def not_blocked(self, script: str) -> Refused:
        """A repair of what needs none."""
        return Refused(
            f"migration {script} is not blocked on {self.place}.",
            reasons=[Reason("only a script that was begun and not finished can be repaired", script)],
            next_commands=[self.history],
        )

    def no_row(self, script: str) -> NotKnown:
        """A repair of what the history does not know."""
        return NotKnown(
            f"the history of {self.place} does not list migration {script}.",
            reasons=[Reason("nothing of it was begun there", script)],
            next_commands=[self.history, self.plan],
        )

    def no_statement(self, script: str, number: int | None, statements: int) -> UsageError:
        """A repair that would go on with a statement that the script does not have."""
        return UsageError(
            f"migration {script} cannot go on with statement {number}.",
            reasons=[Reason(f"its statements are 1 to {statements}", script)],
            next_commands=self.repairs(script, 1)[:1],
        )

    def not_resumable(self, script: str) -> Refused:
        """A script whose later statements need what the earlier ones left in the session."""
        return Refused(
            f"migration {script} cannot go on in the middle.",
            reasons=[Reason("its statements depend on the session (temporary tables, settings, locks)", script)],
            next_commands=self.repairs(script, 1)[1:],
        )

    # --- a script that needs something else -----------------------------------------------------------------------------

    def needs_header(self, script: Script, words: str, why: str, header: str, *, line: int) -> Failed:
        """A script of which a statement cannot run the way the script is declared; ``header`` is the line to add to it."""
        return Failed(
            f"migration {script.id} cannot run as it is declared.",
            reasons=[Reason(f"{self.clean(words)}: {why}", f"{script.id}:{line}")],
            state=ROLLED_BACK,
            next_commands=[f"add the line `{header}` to {script.id}, then {self.plan}"],
            details={"script": script.id, "line": line, "header": header},
        )

    def unfit_statement(self, script: Script, words: str, why: str, instead: str, *, line: int | None = None) -> Failed:
        """A statement that cannot be in a script that is declared like this one; ``instead`` is what to do."""
        return Failed(
            f"migration {script.id} cannot run as it is declared.",
            reasons=[Reason(f"{self.clean(words)}: {why}", f"{script.id}:{line}" if line else script.id)],
            state=ROLLED_BACK,
            next_commands=[instead, self.plan],
            details={"script": script.id, "line": line},
        )

    def history_changed(self, script: Script, number: int, statements: int) -> PartlyDone:
        """A script that commits statement by statement has changed our tables, at the latest with statement ``number``."""
        return PartlyDone(
            f"migration {script.id} changed the migration history itself on {self.place}.",
            reasons=[Reason(f"after statement {number} of {statements} its tables are not as they were", script.id)],
            state=f"Its statements up to {number} are committed, and what the history said is lost or wrong.",
            next_commands=[
                f"invoke backup.restore customer={self.customer} env={self.environment} backup= reason=",
                self.history,
            ],
            details={"script": script.id, "statement": number, "statements": statements},
        )

    def not_verified(
        self, script: Script, message: str, *, code: str | None = None, statements: int | None = None
    ) -> Failed:
        """A script after which its verify does not run; ``statements`` where they are all committed."""
        return Failed(
            f"migration {script.id} ran, and its verify failed on {self.place}.",
            reasons=[Reason(self.clean(message) + (f" [{code}]" if code else ""), script.id)],
            state=ROLLED_BACK if statements is None else f"All of its {statements} statements are committed.",
            next_commands=[self.plan] if statements is None else self.repairs(script.id, statements)[1:],
            details={"script": script.id, "code": code},
        )

    def contradicts(self, script: Script, *, line: int) -> Refused:
        """A script outside a transaction, all of which stands between a ``BEGIN`` and a ``COMMIT`` of its own."""
        return Refused(
            f"migration {script.id} contradicts itself.",
            reasons=[
                Reason(
                    "BEGIN … COMMIT make it one transaction, and it is declared with transaction=no to run outside of one",
                    f"{script.id}:{line}",
                )
            ],
            state=ROLLED_BACK,
            next_commands=[
                f"take transaction=no out of {script.id}, or its BEGIN and COMMIT; in a new release, then {self.plan}"
            ],
            details={"script": script.id, "line": line},
        )

    def uncounted(
        self, script: Script, message: str, *, number: int, statements: int, code: str | None = None
    ) -> PartlyDone:
        """Statements 1 to ``number`` of a script that commits each are committed, and its row of the history says less."""
        said = self.clean(message) + (f" [{code}]" if code else "")
        whole = number >= statements
        known = "Statement 1 is committed" if number == 1 else f"Statements 1 to {number} are committed"
        return PartlyDone(
            f"migration {script.id} stopped after statement {number} of {statements} on {self.place}.",
            reasons=[Reason(f"statement {number} ran, and the history cannot be told: {said}", script.id)],
            state=f"{known}: all of it." if whole else f"{known}, the others are not.",
            next_commands=self.repairs(script.id, number + 1)[1 if whole else 0 :],
            details={"script": script.id, "statement": number, "statements": statements, "code": code},
        )

    def unfit(self, reasons: Sequence[str]) -> Refused:
        """A server on which no migration may run."""
        return Refused(
            f"no migration may run on {self.place}.",
            reasons=[Reason(reason, self.place) for reason in reasons],
            next_commands=[
                f"correct environments/{self.customer}/{self.environment}.yaml, then the same command again"
            ],
        )


def only_by_hand(error: PipelineError) -> PipelineError:
    """The error of a script that cannot go on in the middle: without the command that says that it does."""
    error.next_commands = tuple(command for command in error.next_commands if " resume-at=" not in command)
    return error


def _committed(certain: int, perhaps: int | None, *, a_part: bool = False) -> str:
    """What is known to be committed of a script, as a sentence."""
    known = {0: "No statement is known to be committed", 1: "Statement 1 is committed"}
    said = known.get(certain, f"Statements 1 to {certain} are committed")
    if a_part:
        return f"{said}, a part of statement {perhaps} itself may be."
    return f"{said}, statement {perhaps} may be." if perhaps is not None else f"{said}, the others are not."
