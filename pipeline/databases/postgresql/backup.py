"""PostgreSQL's backups: ``pg_dump`` in custom format on the host, proven by reading them back or by a trial restore.

What a backup was made from (the catalogue, and the rows of each table where there is a scratch database) is asked in the
very snapshot that ``pg_dump`` reads, by a ``psql`` that exports it and stays open as long.

A trial restore runs in one transaction of the scratch database that is rolled back: whatever happens, the scratch database
stays empty. A restore is one transaction as well, and goes through ``psql`` because what is there now has to go in it too:
``pg_restore --clean`` only drops what the dump knows, and fails where something newer hangs on that. Everything else keeps
its owner; extensions, the schema ``public`` and schemas with extensions in them stay where they are.

Host programs that are older than the server are refused: ``pg_dump`` would be, and an old ``pg_restore`` is not right either.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.databases import BackupFound, BackupTaken, Catalogue
from pipeline.databases.backup_files import BackupFile, BackupFiles, Program
from pipeline.databases.catalogues import differences
from pipeline.databases.postgresql.catalogue import CATALOGUE_QUERY, catalogue_of, loosened
from pipeline.databases.postgresql.programs import REACH, Reach
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed, PartlyDone, PipelineError, Reason, Refused
from pipeline.model import DatabaseSettings
from pipeline.transports import Transport

_SHELL = (
    REACH
    + r"""
question() { psql -X -q -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=terse "$@"; }
dump() {
  need psql pg_dump pg_restore || return
  reach "$@"
  mkfifo "$private/ask" "$private/answer" || return 1
  trap '' PIPE
  question -v facts="$private/facts" < "$private/ask" > "$private/answer" &
  holder=$!
  exec 7> "$private/ask" 8< "$private/answer"
  cat "$private/begin.sql" >&7
  IFS='|' read -r snapshot version <&8 || { wait $holder; return 1; }
  young_enough pg_dump "$version" || { exec 7>&-; wait $holder; return 86; }
  cat "$private/facts.sql" >&7
  printf "\\\\o\nSELECT 'told';\n" >&7
  pg_dump --format=custom --no-password --lock-wait-timeout=60000 --snapshot="$snapshot" 7>&- 8<&- || {
    code=$?
    exec 7>&-
    kill $holder 2>/dev/null
    wait $holder
    return $code
  }
  IFS= read -r told <&8 || told=
  exec 7>&- 8<&-
  wait $holder && [ "$told" = told ]
}
"""
)

_ARCHIVE = r"""
read_back() {
  need pg_restore || return
  pg_restore --file=/dev/null || return
  cat > /dev/null
  clear 2>/dev/null | pg_restore --list 2>/dev/null | grep -c '^[0-9]' || :
}
"""

# What a restore has to know before it begins; the dump is read by pg_restore only as far as its table of contents.
_LOOK = r"""
read_back() {
  need psql pg_restore || return
  reach "$@"
  version=$(question -c "SHOW server_version_num") || return
  young_enough psql "$version" && young_enough pg_restore "$version" || return
  question -f "$private/look.sql" || return
  [ ! -e "$private/facts" ] || cat "$private/facts"
  echo contents
  pg_restore --list && cat > /dev/null
}
"""

# Without after.sql, which commits, everything is rolled back: so it comes only when pg_restore has worked to its end.
_RESTORE = r"""
script() {
  cat "$private/before.sql"
  shift 5
  set -- "$@" --use-list="$private/list"
  [ "$(major pg_restore)" -lt 12 ] || set -- "$@" --file=-
  pg_restore "$@" || { echo "pg_restore could not read the backup to its end" >&2; return 1; }
  # What the list leaves out at the end was not read, and whoever writes it must not fail over that.
  cat > /dev/null
  cat "$private/after.sql"
}
say() { question -f -; }
read_back() {
  need psql pg_restore || return
  reach "$@"
  # What the connection begins with is what RESET ALL goes back to, instead of the role's own limits.
  PGOPTIONS='-c client_min_messages=warning -c statement_timeout=0'; export PGOPTIONS
  joined script say "$@"
}
"""

_BEGIN = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
    "SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true) \\g /dev/null\n"
    "SELECT pg_catalog.set_config('statement_timeout', '0', true) \\g /dev/null\n"
    "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.current_setting('server_version_num');\n"
    "\\o :facts\n"
)

# Not the parents of partitions, which have no rows of their own, nor an extension's tables, which its script fills.
_COUNTS = r"""
SELECT pg_catalog.format('SELECT pg_catalog.json_build_array(''rows'', %L, pg_catalog.count(*)) FROM ONLY %I.%I',
  n.nspname || '.' || c.relname, n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
  AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1
\gexec
"""

# Of which database it is, how many large objects there are, and what its user could not drop or make again in a restore.
_ABOUT = r"""
SELECT pg_catalog.json_build_array('database', pg_catalog.current_database());
SELECT pg_catalog.json_build_array('large objects', pg_catalog.count(*)) FROM pg_catalog.pg_largeobject_metadata;
WITH member AS (SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype IN ('e', 'i')),
space AS (SELECT * FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
thing AS (
  SELECT 'event trigger ' || evtname AS what, oid, 'pg_event_trigger' AS catalog, NULL::pg_catalog.oid AS owner
    FROM pg_catalog.pg_event_trigger
  UNION ALL SELECT 'publication ' || pubname, oid, 'pg_publication',
    CASE WHEN puballtables THEN NULL ELSE pubowner END FROM pg_catalog.pg_publication
  UNION ALL SELECT 'foreign data wrapper ' || fdwname, oid, 'pg_foreign_data_wrapper', NULL
    FROM pg_catalog.pg_foreign_data_wrapper
  UNION ALL SELECT 'foreign server ' || srvname, oid, 'pg_foreign_server', srvowner FROM pg_catalog.pg_foreign_server
  UNION ALL SELECT 'schema ' || nspname, oid, 'pg_namespace', nspowner FROM space
    WHERE nspname <> 'public' AND oid NOT IN (SELECT extnamespace FROM pg_catalog.pg_extension)
  UNION ALL SELECT 'relation ' || s.nspname || '.' || c.relname, c.oid, 'pg_class', c.relowner
    FROM pg_catalog.pg_class c JOIN space s ON s.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
  UNION ALL SELECT 'function ' || s.nspname || '.' || p.proname, p.oid, 'pg_proc', p.proowner
    FROM pg_catalog.pg_proc p JOIN space s ON s.oid = p.pronamespace
  UNION ALL SELECT 'type ' || s.nspname || '.' || t.typname, t.oid, 'pg_type', t.typowner
    FROM pg_catalog.pg_type t JOIN space s ON s.oid = t.typnamespace WHERE t.typtype IN ('d', 'e', 'r', 'b')
  UNION ALL SELECT 'large object ' || oid, oid, 'pg_largeobject', lomowner FROM pg_catalog.pg_largeobject_metadata)
SELECT pg_catalog.json_build_array('foreign', what || COALESCE(' of ' || pg_catalog.pg_get_userbyid(owner), ''))
FROM thing WHERE NOT EXISTS (
  SELECT FROM member m WHERE m.objid = thing.oid AND m.classid = ('pg_catalog.' || thing.catalog)::pg_catalog.regclass)
AND CASE WHEN owner IS NULL THEN
  NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
  ELSE NOT pg_catalog.pg_has_role(owner, 'USAGE') END
ORDER BY owner IS NOT NULL, what LIMIT 5;
"""

# What stays, and what must not be in a scratch database. A relation of an extension is nobody's data.
_LOOK_SQL = r"""
SELECT pg_catalog.json_build_array('kept', n.nspname) FROM pg_catalog.pg_namespace n
WHERE n.nspname = 'public' OR (n.nspname !~ '^pg_' AND n.oid IN (SELECT extnamespace FROM pg_catalog.pg_extension));
SELECT pg_catalog.json_build_array('extension', extname) FROM pg_catalog.pg_extension
WHERE oid >= 16384 AND pg_catalog.pg_has_role(extowner, 'USAGE');
SELECT pg_catalog.json_build_array('relation', n.nspname || '.' || c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
  AND d.objid = c.oid AND d.deptype = 'e') ORDER BY n.nspname, c.relname LIMIT 3;
SELECT pg_catalog.json_build_array('relation', 'large object ' || oid) FROM pg_catalog.pg_largeobject_metadata LIMIT 1;
"""

# Large objects stand in no schema.
_DROP_FIRST = r"""
SELECT pg_catalog.count(pg_catalog.lo_unlink(oid)) FROM pg_catalog.pg_largeobject_metadata \g /dev/null
"""

# Everything of ours: not what comes with the server, with an extension, or with another object ('i').
_DROP = r"""
WITH kept AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname IN ({kept}))
SELECT pg_catalog.format('DROP %s IF EXISTS %s CASCADE',
  pg_catalog.replace(pg_catalog.replace(o.type, 'composite type', 'type'), '-', ' '), o.identity)
FROM (
  SELECT 1 AS turn, 'pg_namespace' AS catalog, oid FROM pg_catalog.pg_namespace
    WHERE oid >= 16384 AND nspname !~ '^pg_' AND nspname NOT IN ({kept})
  UNION ALL SELECT 0, 'pg_publication', oid FROM pg_catalog.pg_publication
  UNION ALL SELECT 0, 'pg_event_trigger', oid FROM pg_catalog.pg_event_trigger
  UNION ALL SELECT 0, 'pg_cast', oid FROM pg_catalog.pg_cast WHERE oid >= 16384
  UNION ALL SELECT 2, 'pg_class', oid FROM pg_catalog.pg_class
    WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 3, 'pg_proc', oid FROM pg_catalog.pg_proc WHERE pronamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 4, 'pg_operator', oid FROM pg_catalog.pg_operator WHERE oprnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 4, 'pg_opfamily', oid FROM pg_catalog.pg_opfamily WHERE opfnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 5, 'pg_type', t.oid FROM pg_catalog.pg_type t
    LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
    WHERE t.typnamespace IN (SELECT oid FROM kept) AND (t.typrelid = 0 OR c.relkind = 'c') AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_type element WHERE element.typarray = t.oid)
  UNION ALL SELECT 6, 'pg_collation', oid FROM pg_catalog.pg_collation WHERE collnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 6, 'pg_conversion', oid FROM pg_catalog.pg_conversion WHERE connamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 6, 'pg_ts_config', oid FROM pg_catalog.pg_ts_config WHERE cfgnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 7, 'pg_ts_dict', oid FROM pg_catalog.pg_ts_dict WHERE dictnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 8, 'pg_ts_parser', oid FROM pg_catalog.pg_ts_parser WHERE prsnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 8, 'pg_ts_template', oid FROM pg_catalog.pg_ts_template
    WHERE tmplnamespace IN (SELECT oid FROM kept)
  UNION ALL SELECT 9, 'pg_foreign_server', oid FROM pg_catalog.pg_foreign_server
  UNION ALL SELECT 10, 'pg_foreign_data_wrapper', oid FROM pg_catalog.pg_foreign_data_wrapper
) thing,
LATERAL (SELECT ('pg_catalog.' || thing.catalog)::pg_catalog.regclass::pg_catalog.oid AS id) c,
LATERAL pg_catalog.pg_identify_object(c.id, thing.oid, 0) o
WHERE NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = c.id AND d.objid = thing.oid AND d.objsubid = 0
  AND d.deptype IN ('e', 'i'))
ORDER BY thing.turn, o.identity
\gexec
"""

_ENTRY = re.compile(r"\d+; \d+ \d+ (.*)")
_NOT_ON_TRIAL = ("ACL ", "DEFAULT ACL ", "PUBLICATION", "SUBSCRIPTION", "EVENT TRIGGER ", "COMMENT - EVENT TRIGGER ")
_ABOUT_KINDS = {"database", "large objects", "foreign"}
_EXTENSION = re.compile(r"EXTENSION - (.*) \S*")


@dataclass(frozen=True)
class PostgresqlBackups:
    """The backups of one database. ``passphrase`` seals new ones."""

    transport: Transport
    settings: DatabaseSettings
    password: str | None
    folder: str
    errors: ScriptErrors
    passphrase: str | None = None
    ca: bytes | None = None

    def take(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`. Failed when the trial restore is asked for and has no database."""
        trial = self.settings.backup.proof == "restore"
        if trial:
            self._scratch()
        file = self._files.take(label, self._archive())
        if not trial:
            return _taken(file, f"pg_restore read the whole dump back, {file.said.strip()} entries")
        try:
            return self._trial(label)
        except PipelineError:
            if file.made:
                self._files.remove(label)
            raise

    def found(self) -> list[BackupFound]:
        """See :meth:`pipeline.databases.Database.backups`."""
        return self._files.found()

    def prove(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.prove`."""
        if self.settings.scratch is not None:
            return self._trial(label)
        file = self._files.read(label, self._archive())
        return _taken(file, f"pg_restore read the whole dump back, {file.said.strip()} entries")

    def restore(self, label: str, *, sha256: str | None = None, first: str = "", last: str = "") -> None:
        """The database as the backup has it, in one transaction: ``first``, drop, restore, ``last``.

        ``first`` and ``last`` are SQL of ours, for the fence and the history; an error in them takes everything back.
        The caller holds the lock of the session, and no transaction. See :meth:`pipeline.databases.Database.restore`.
        """
        look = self._look(label, None, sha256)
        if look.database not in {None, self.settings.name}:
            raise Refused(
                f"the backup {label} is one of another database than {self.errors.place}.",
                reasons=[Reason(f"it was made of {look.database}, and a restore would replace {self.settings.name}")],
                state="The database was not changed.",
                next_commands=["give the label of a backup of this database"],
            )
        nonce = secrets.token_hex(16)
        drops = [f"DROP EXTENSION IF EXISTS {_name(name)} CASCADE;" for name in look.extensions - look.dumped]
        kept = ", ".join(map(_literal, sorted(look.kept)))
        before = (
            f"BEGIN;\nSET LOCAL lock_timeout = {_literal(f'{self.settings.lock_timeout}s')};\n"
            f"SET LOCAL statement_timeout = 0;\n{first}\n;"
            f"\n{chr(10).join(sorted(drops))}\n{_DROP_FIRST}"
            f"{_DROP.format(kept=kept)}"
        )
        after = (
            "\nRESET ALL;\nSET client_min_messages = error;\nANALYZE;\nRESET client_min_messages;\n"
            f"{last}\n;SELECT 'ready {nonce}';\nCOMMIT;\nSELECT 'restored {nonce}';\n"
        )

        def not_restored(message: str, said: str | None) -> PipelineError:
            unknown = said is None or f"ready {nonce}" in said
            kind = PartlyDone if unknown else Failed
            what = "it is not known whether" if unknown else "not restored:"
            return kind(
                f"{what} the backup {label} of {self.errors.place}{' was restored' if unknown else ''}.",
                reasons=[self.errors.clean(message)],
                state="The database is the backup's as a whole, or as it was before."
                if unknown
                else "The database is as it was before: a restore is one transaction, and it was rolled back.",
                next_commands=["the same command again"],
            )

        program = self._program(
            _RESTORE,
            {"list": "\n".join(look.entries(on_trial=False)), "before.sql": before, "after.sql": after},
        )
        file = self._files.read(label, program, sha256=sha256, failed=not_restored)
        if f"restored {nonce}" not in file.said:
            raise not_restored("psql ended without saying that it committed", file.said)

    # --- pieces --------------------------------------------------------------------------------------------------------

    @property
    def _files(self) -> BackupFiles:
        return BackupFiles(self.transport, self.folder, "dump", self.errors, self.passphrase)

    def _program(self, shell: str, files: dict[str, str], database: str | None = None, *more: str) -> Program:
        reach = Reach(self.settings, self.password, self.ca)
        contents = reach.files() | {name: text.encode() for name, text in files.items()}
        return Program(_SHELL + shell, (*reach.arguments(database), *more), contents)

    def _archive(self) -> Program:
        counts = _COUNTS if self.settings.scratch is not None else ""
        return self._program(_ARCHIVE, {"begin.sql": _BEGIN, "facts.sql": f"{_ABOUT}\n{CATALOGUE_QUERY};\n{counts}"})

    def _scratch(self) -> str:
        scratch, name = self.settings.scratch, self.settings.name
        if scratch is None or scratch == name:
            said = "is the database itself" if scratch else "is missing"
            raise self.errors.backup_failed(
                f"a trial restore needs a database of its own, and scratch: {said} in the environment's file"
            )
        return scratch

    def _look(self, label: str, database: str | None, sha256: str | None) -> _Look:
        program = self._program(_LOOK, {"look.sql": _LOOK_SQL}, database)
        return _Look(self._files.read(label, program, sha256=sha256).said)

    def _trial(self, label: str) -> BackupTaken:
        scratch = self._scratch()
        look = self._look(label, scratch, None)
        if look.relations:
            raise self.errors.backup_failed(
                f"the scratch database {scratch} is not empty: it holds {', '.join(sorted(look.relations))}; a trial"
                " restore leaves nothing behind, so this is somebody's, and it is not touched"
            )
        counts = _COUNTS if look.counts else ""
        files = {
            "list": "\n".join(look.entries(on_trial=True)),
            "before.sql": "BEGIN;\n",
            "after.sql": f"\nRESET ALL;\nSELECT 'facts';\n{_ABOUT}\n{CATALOGUE_QUERY};\n{counts}\nSELECT 'end of facts';"
            "\nROLLBACK;\n",
        }
        file = self._files.read(label, self._program(_RESTORE, files, scratch, "--no-owner"))
        _, begun, facts = file.said.partition("facts\n")
        facts, ended, _ = facts.partition("end of facts")
        if not begun or not ended:
            raise self.errors.backup_failed(f"the trial restore of {label} did not come to its end: {file.said[-300:]}")
        schema, counts_there = _facts(facts.splitlines())
        if look.catalogue is None:
            return _taken(file, f"restored into {scratch}; what it was made from is not known, so it is not compared")
        found = differences(loosened(look.catalogue), loosened(schema))
        for table in sorted({*look.counts, *counts_there} if look.counts else ()):
            was, now = look.counts.get(table), counts_there.get(table)
            if was != now:
                found.append(f"table {table}: {was} rows when it was made, {now} restored")
        large = _large(facts.splitlines())
        if large != look.large:
            found.append(f"large objects: {look.large} when it was made, {large} restored")
        if found:
            raise self.errors.backup_failed(
                f"restored into {scratch}, {label} is not what it was made from: {'; '.join(found)}"
            )
        rows = f"{len(look.counts)} tables with {sum(look.counts.values())} rows" if look.counts else "rows not counted"
        if look.large:
            rows += f", {look.large} large object{'s' if look.large > 1 else ''}"
        proof = f"restored into {scratch}: the same catalogue, {rows}"
        if look.foreign:
            proof += f"; over the database itself it cannot be restored by {self.settings.user}, who must own"
            return _taken(file, f"{proof} {', '.join(look.foreign)}")
        return _taken(file, proof, restored=True)


class _Look:
    """What was seen before a restore: of the database that it goes to, and of the backup."""

    def __init__(self, said: str) -> None:
        facts, _, contents = f"\n{said}".partition("\ncontents\n")
        lines = facts.strip("\n").splitlines()
        seen = [(row[0], row[1]) for row in map(json.loads, lines) if row[0] in {"kept", "extension", "relation"}]
        self.kept = {name for kind, name in seen if kind == "kept"}
        self.extensions = {name for kind, name in seen if kind == "extension"}
        self.relations = {name for kind, name in seen if kind == "relation"}
        rest = lines[len(seen) :]
        schema, self.counts = _facts(rest)
        about = [(row[0], row[1]) for row in map(json.loads, rest) if row[0] in _ABOUT_KINDS]
        self.database: str | None = next((value for kind, value in about if kind == "database"), None)
        self.foreign = [value for kind, value in about if kind == "foreign"]
        self.large = _large(rest)
        self.catalogue: Catalogue | None = schema if rest else None
        self.contents = contents.splitlines()
        entries = [match[1] for match in map(_ENTRY.match, self.contents) if match]
        self.dumped = {match[1] for match in map(_EXTENSION.fullmatch, entries) if match}

    def entries(self, *, on_trial: bool) -> list[str]:
        """The table of contents without what is there anyway, and without what reaches beyond a database on trial."""
        left_out = ["COMMENT - EXTENSION ", *(_NOT_ON_TRIAL if on_trial else ())]
        for schema in self.kept:
            left_out += [f"SCHEMA - {schema} ", f"COMMENT - SCHEMA {schema} ", f"ACL - SCHEMA {schema} "]
        return [
            line for line in self.contents if (match := _ENTRY.match(line)) and not match[1].startswith(tuple(left_out))
        ]


def _facts(lines: Sequence[str]) -> tuple[Catalogue, dict[str, int]]:
    rows = [json.loads(line) for line in lines if line]
    counts = {row[1]: row[2] for row in rows if row[0] == "rows"}
    return catalogue_of(row for row in rows if row[0] not in {"rows", *_ABOUT_KINDS}), counts


def _large(lines: Sequence[str]) -> int:
    return next((row[1] for row in map(json.loads, filter(None, lines)) if row[0] == "large objects"), 0)


def _taken(file: BackupFile, proof: str, *, restored: bool = False) -> BackupTaken:
    return BackupTaken(file.path, file.sha256, file.size, proof, restored)


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f" E'{quoted}'".replace("\\", "\\\\") if "\\" in text else f"'{quoted}'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
