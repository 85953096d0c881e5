"""Backups of a MariaDB or MySQL database: ``mariadb-dump`` on the host, gzip, read back whole before they count.

A dump ends with a line that says so, and gzip's check sum covers all of it: with both, a backup that was cut short or damaged is
noticed. A trial restore goes into the scratch database and compares its catalogue, and the rows of each table with what they
were just before and just after the dump (the program cannot count in its own snapshot). The programs read nothing of the
host's own option files; the password is in a file (0600) that came over standard input. A dump is loaded by the client with
its own commands off, so that nothing in it reaches a shell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.databases import BackupFound, BackupTaken
from pipeline.databases.backup_files import BackupFile, BackupFiles, Program
from pipeline.databases.catalogues import differences
from pipeline.databases.mysql.catalogue import SCRATCH_MARK, catalogue
from pipeline.databases.mysql.foreign import beyond
from pipeline.databases.mysql.history import RESTORE_TABLE
from pipeline.databases.mysql.rehearsal import Scratch, empty, held, same, seen, take_over
from pipeline.databases.mysql.session import Command, Lost, Session, Trouble, name, sql
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed, PipelineError
from pipeline.model import DatabaseSettings
from pipeline.transports import Transport

_SHELL = r"""
# $1 database, $2 off or verify-full. An older installation has the programs under MySQL's names.
find_program() {
  for tool in "$@"; do command -v "$tool" >/dev/null 2>&1 && { program=$tool; return 0; }; done
  echo "$1 is not installed: install MariaDB's (or MySQL's) client programs there" >&2
  return 86
}
has() { "$program" --no-defaults --help 2>/dev/null | grep -q -e "^ *$1\b"; }
options() {
  set -- "$2"
  printf '%s\n' '[client]'
  cat "$private/login"
  if "$program" --version | grep -q MariaDB; then
    if [ "$1" = off ]; then printf 'skip-ssl\n'; else
      printf 'ssl\nssl-verify-server-cert\nssl-ca=%s\n' "$private/ca"
    fi
  elif [ "$1" = off ]; then printf 'ssl-mode=DISABLED\nget-server-public-key\n'; else
    printf 'ssl-mode=VERIFY_IDENTITY\nssl-ca=%s\n' "$private/ca"
  fi
}
prepare() {
  [ -s "$private/ca" ] || for ca in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
    [ ! -e "$ca" ] || { cat "$ca" > "$private/ca"; break; }
  done
  options "$@" > "$private/options"
}
client() {
  find_program mariadb mysql || return
  prepare "$@" || return
  set -- "$1"
  if has --sandbox; then set -- --sandbox "$@"; fi
  if has --system-command; then set -- --system-command=OFF "$@"; fi
  # Binary mode takes no command of the client's own but DELIMITER.
  "$program" --defaults-file="$private/options" --batch --binary-mode --skip-column-names \
    --default-character-set=utf8mb4 --max-allowed-packet=1G "$@"
}
count() { if [ -s "$private/counts.sql" ]; then client "$@" < "$private/counts.sql"; fi; }
dumped() {
  find_program mariadb-dump mysqldump || return
  prepare "$@" || return
  set -- "$1"
  if has --column-statistics; then set -- --column-statistics=0 "$@"; fi
  if has --set-gtid-purged; then set -- --set-gtid-purged=OFF "$@"; fi
  if has --no-tablespaces; then set -- --no-tablespaces "$@"; fi
  "$program" --defaults-file="$private/options" --single-transaction --quick --routines --triggers --events \
    --hex-blob --default-character-set=utf8mb4 --max-allowed-packet=1G "$@"
}
packed() { gzip -n; }
unpacked() { gzip -dc; }
dump() {
  { cat "$private/catalogue" && count "$@" && echo && joined dumped packed "$@" >&9 && count "$@"; } 9>&1 > "$private/facts"
}
"""

# Rows are let through as they are: from INSERT INTO at the beginning of a line, outside of a body, to a line's last semicolon.
_AWK = r"""
data { if (rows) print; if (/;$/) data = 0; next }
/^DELIMITER ;;/ { body = 1 }
/^DELIMITER ;$/ { body = 0 }
!body && /^INSERT INTO `/ { if (rows) print; data = !/;$/; next }
events && body && /^\/\*![0-9]+ CREATE\*\/ .* EVENT `/ {
  if (match($0, / (ENABLE|DISABLE|DISABLE ON SLAVE) (DO|COMMENT)/) && substr($0, RSTART, 8) == " ENABLE ")
    $0 = substr($0, 1, RSTART) "DISABLE" substr($0, RSTART + 7)
}
definers && !body && /^\/\*![0-9]+ DEFINER=/ { sub(/DEFINER=`[^`]*`@`[^`]*`/, "") }
definers && body && /^(\/\*![0-9]+ CREATE\*\/ \/\*![0-9]+ |CREATE )DEFINER=/ { sub(/DEFINER=`[^`]*`@`[^`]*`/, "") }
{ print }
"""

_LOOK = r"""
definitions() { awk -f "$private/awk"; }
read_back() { joined unpacked definitions "$@"; }
"""

_ARCHIVE = r"""
whole() { tail -c 300 | grep -q -e '^-- Dump completed' || { echo 'the dump does not end as a whole one does' >&2; return 1; }; }
read_back() {
  joined unpacked whole "$@" || return
  [ ! -e "$private/facts" ] || cat "$private/facts"
}
"""

_LOAD = r"""
# $3 what is edited on the way: settings of the awk program above.
edited() {
  if [ -n "$3" ]; then awk -v rows=1 $(printf ' -v %s=1' $3) -f "$private/awk"; else cat; fi
}
opened() { joined unpacked edited "$@"; }
read_back() {
  joined opened client "$@" || return
  [ ! -e "$private/facts" ] || cat "$private/facts"
}
"""


@dataclass(frozen=True)
class MysqlBackups:
    """The backups of one database. ``passphrase`` seals new ones."""

    transport: Transport
    settings: DatabaseSettings
    password: str | None
    folder: str
    errors: ScriptErrors
    passphrase: str | None = None

    def take(self, label: str, session: Callable[[], Session], scratch: Scratch | None) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`."""
        trial = self.settings.backup.proof == "restore"
        if trial and scratch is None:
            raise self.errors.backup_failed("a trial restore needs scratch: in the environment's file")
        try:
            file = self._files.take(label, self._program(_ARCHIVE, facts_of=session()))
        except (Lost, Trouble) as error:
            raise self.errors.backup_failed(str(error)) from None
        if not trial or scratch is None:
            return _taken(file, _ARCHIVE_PROOF)
        try:
            return self._trial(label, scratch)
        except PipelineError:
            if file.made:
                self._files.remove(label)
            raise

    def found(self) -> list[BackupFound]:
        """See :meth:`pipeline.databases.Database.backups`."""
        return self._files.found()

    def prove(self, label: str, scratch: Scratch | None) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.prove`."""
        if scratch is not None:
            return self._trial(label, scratch)
        return _taken(self._files.read(label, self._program(_ARCHIVE)), _ARCHIVE_PROOF)

    def restore(
        self, label: str, sha256: str | None, session: Session, mark: Sequence[Command]
    ) -> tuple[BackupFile, dict[str, Any]]:
        """Everything in the database goes, and the backup is loaded; the caller holds the lock of the session.

        The file is proven first; then ``mark`` is sent, whose table stays. Gives the file, and what was changed on the way.
        Failed when it did not work, and the error says in what state the database is.
        """
        definitions, file = self._definitions(label, sha256)
        try:
            edits, strangers = self._edits(definitions, session)
            session.send(mark)
        except (Lost, Trouble) as error:
            raise self.errors.unreadable(str(error)) from None
        try:
            empty(session, self.settings.name or "", {RESTORE_TABLE})
        except Trouble as trouble:
            raise self.not_finished(label, f"it could not be emptied: {trouble.message} [{trouble.number}]") from None
        except Lost as lost:
            raise self.not_finished(label, f"the connection was lost while it was emptied: {lost}") from None
        try:
            # The bytes that were proven, and no others.
            loaded = self._files.read(label, self._program(_LOAD, edits=edits), sha256=file.sha256)
            return loaded, {"definers": strangers} if strangers else {}
        except PipelineError as error:
            said = "; ".join(str(reason) for reason in error.reasons) or error.what
            raise self.not_finished(label, said) from None

    def _definitions(self, label: str, sha256: str | None) -> tuple[str, BackupFile]:
        """The dump without its rows, read to its end. Failed when it is not whole."""
        file = self._files.read(label, self._program(_LOOK), sha256=sha256)
        if "-- Dump completed" not in file.said[-300:]:
            raise self.errors.backup_failed(f"the dump {label} does not end as a whole one does")
        return file.said, file

    def _edits(self, definitions: str, session: Session) -> tuple[str, list[str]]:
        """What is edited as the dump is loaded, and the definers that this user may not set.

        What they had defined becomes this user's own, since the server takes it from nobody else.
        """
        user = str(session.ask("SELECT CURRENT_USER()")[0][0])
        grants = " ".join(str(row[0]) for row in session.ask("SHOW GRANTS"))
        strangers = sorted({f"{who}@{where}" for who, where in _DEFINER.findall(definitions)} - {user})
        if not strangers or _MAY_DEFINE.search(grants):
            return "", []
        return "definers", strangers

    def not_finished(self, label: str, said: str) -> Failed:
        """A restore that was begun and did not come to its end."""
        customer, environment = self.errors.customer, self.errors.environment
        return Failed(
            f"the backup {label} was not restored into {self.errors.place}.",
            reasons=[self.errors.clean(said)],
            state="The database was emptied, and holds nothing or a part of the backup: it must not be used as it is."
            " The backup itself was read back whole just before, and lies where it lay.",
            next_commands=[f"invoke backup.restore customer={customer} env={environment} backup={label} reason=…"],
            details={"label": label},
        )

    # --- pieces --------------------------------------------------------------------------------------------------------

    @property
    def _files(self) -> BackupFiles:
        return BackupFiles(self.transport, self.folder, "sql.gz", self.errors, self.passphrase)

    def _authority(self) -> bytes:
        if self.settings.tls == "off" or self.settings.tls_ca is None:
            return b""
        return Path(self.settings.tls_ca).read_bytes()

    def _program(
        self, shell: str, *, database: str | None = None, facts_of: Session | None = None, edits: str = ""
    ) -> Program:
        settings = self.settings
        login = {
            "host": settings.host,
            "port": str(settings.reached_at),
            "protocol": "tcp",
            "user": settings.user or "",
        }
        login["password"] = self.password or ""
        files = {
            "login": "".join(f"{key}={_quoted(value)}\n" for key, value in login.items()).encode(),
            "ca": self._authority(),
            "awk": _AWK.encode(),
        }
        if facts_of is not None:
            schema = catalogue(facts_of.ask, settings.name or "")
            files["catalogue"] = json.dumps(schema, sort_keys=True).encode() + b"\n"
            files["counts.sql"] = _counting(list(schema["tables"]))
        return Program(_SHELL + shell, (database or settings.name or "", settings.tls, edits), files)

    def _trial(self, label: str, scratch: Scratch) -> BackupTaken:
        target, session = self.settings.scratch or "", scratch.session
        if same(target, self.settings.name or ""):
            raise self.errors.backup_failed("the scratch database is the database itself")
        definitions, first = self._definitions(label, None)
        try:
            session.connection()
            if why := _not_inside(definitions, {*seen(session), self.settings.name or ""}):
                raise self.errors.backup_failed(f"{label} cannot be restored on trial: it {why}")
            edits, strangers = self._edits(definitions, session)
            with held(session, target, self.errors):
                take_over(session, target, self.errors)
                try:
                    program = self._program(_LOAD, database=target, edits=f"events {edits}")
                    file = self._files.read(label, program, sha256=first.sha256)
                    schema = catalogue(session.ask, target)
                    tables = session.ask(f"SELECT {_columns(list(schema['tables']))}")[0] if schema["tables"] else ()
                    counts = dict(zip(schema["tables"], tables, strict=True))
                finally:
                    empty(session, target)
        except (Lost, Trouble) as error:
            raise self.errors.backup_failed(f"the trial restore of {label} did not work: {error}") from None
        finally:
            scratch.close()
        line, _, rest = file.said.partition("\n")
        before, _, after = rest.partition("\n\n")
        if not line:
            raise self.errors.backup_failed(f"what {label} was made from is not there: its .facts are missing")
        made_from = json.loads(_without(line, self.settings.name or ""))
        for event, there in schema["events"].items():
            # They were loaded so that none of them runs.
            there["status"] = made_from["events"].get(event, {}).get("status")
        found = differences(made_from, json.loads(_without(json.dumps(schema), self.settings.name or "")))
        was, became = _counted(before), _counted(after)
        for table, rows in sorted(counts.items()):
            counts_then: list[int] = [counted.get(table, int(rows)) for counted in (was, became)]
            least, most = min(counts_then), max(counts_then)
            if not least <= rows <= most:
                found.append(f"table {table}: {least} to {most} rows when it was made, {rows} restored")
        if found:
            raise self.errors.backup_failed(
                f"restored into {target}, {label} is not what it was made from: {'; '.join(found)}"
            )
        moved = sum(was.get(table) != became.get(table) for table in counts)
        said = f"{len(counts)} tables with {sum(counts.values())} rows"
        said += f", {moved} of which were being written: compared loosely" if moved else ""
        said += f"; defined by {', '.join(strangers)}, and in the copy by this user" if strangers else ""
        return _taken(file, f"restored into {target}: the same catalogue, {said}", restored=True)


_DEFINER = re.compile(r"DEFINER=`([^`]*)`@`([^`]*)`")
_MAY_DEFINE = re.compile(r"\b(?:SUPER|SET USER|SET_USER_ID|SET_ANY_DEFINER)\b|ALL PRIVILEGES ON \*\.\*")
_EVENT_LINE = re.compile(r"^/\*!\d+ CREATE\*/ .* EVENT `", re.MULTILINE)
_EVENT_HEAD = re.compile(
    r"^/\*!\d+ CREATE\*/ .* EVENT `[^\n]*? (?:ENABLE|DISABLE|DISABLE ON SLAVE) (?:DO|COMMENT)", re.MULTILINE
)


def _not_inside(definitions: str, databases: Collection[str]) -> str | None:
    """How loading the dump would reach beyond the database it is loaded into, as words behind "it"."""
    if len(_EVENT_LINE.findall(definitions)) != len(_EVENT_HEAD.findall(definitions)):
        return "has an event of which it is not clear how to keep it from running"
    # Its routines are made there, and not run.
    return beyond(definitions, databases, events=False, dynamic=False, sequences=True)


def _without(catalogued: str, database: str) -> str:
    """A catalogue as JSON without the name of the database that it was made from."""
    return catalogued.replace(json.dumps(name(database) + ".")[1:-1], "") if database else catalogued


_ARCHIVE_PROOF = "gzip's check sum, and the dump's last line says that it is complete"


def _taken(file: BackupFile, proof: str, *, restored: bool = False) -> BackupTaken:
    return BackupTaken(path=file.path, sha256=file.sha256, size=file.size, proven_by=proof, restored=restored)


def _quoted(value: str) -> str:
    """A value for an option file: the programs take escapes and quotes out again."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        value = value.replace(plain, escaped)
    return f'"{value}"'


def _counting(tables: list[str]) -> bytes:
    """A statement whose rows are a table's name as JSON and its rows, for each table."""
    template = "SELECT {text}, COUNT(*) FROM {table};\n"
    return "".join(sql(template, text=_text(json.dumps(each)), table=name(each)) for each in tables).encode()


def _columns(tables: list[str]) -> str:
    return ", ".join(sql("(SELECT COUNT(*) FROM {table})", table=name(each)) for each in tables)


def _text(value: str) -> str:
    return f"CONVERT(X'{value.encode().hex()}' USING utf8mb4)"


def _counted(lines: str) -> dict[str, int]:
    found = {}
    for line in lines.strip("\n").splitlines():
        table, _, rows = line.rpartition("\t")
        # The client doubles the backslashes of what it prints.
        found[str(json.loads(table.replace("\\\\", "\\")))] = int(rows)
    return {table: rows for table, rows in found.items() if table != SCRATCH_MARK}
