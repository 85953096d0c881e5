"""The SQL of the history's tables in PostgreSQL: everything that is decided inside the server, in the script's own message.

A message holds a script from ``BEGIN`` to ``COMMIT``, so nobody but the server can refuse in the middle of it. Its *guard*,
the first statement that writes, and its *check*, after the script, raise an error that carries a word of
:class:`Objection`, by turning that word into a number.

A script cannot commit by itself: the guard makes the fence's row point, by a foreign key that is checked at commit, to a row
of the history that is written only after the script. Nor can it change our tables unseen: the fence's row must be the
version that the transaction's first command wrote (``cmin``), and of the other tables no row may be of this
transaction (``age(xmin)`` is above zero for all before it, savepoints included), nor may one be missing.
"""

# The names are our own constants or quoted, the values are quoted; a message of many statements takes no parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.databases import EVENTS_TABLE, FENCE_TABLE, HISTORY_FORMAT, HISTORY_TABLE
from pipeline.databases.postgresql.session import Answer, Trouble
from pipeline.model import Applied, HistoryEvent, Script

LOCK_KEY = 0x746D6131
"""Key of the advisory lock (``tma1``); PostgreSQL keeps advisory locks apart by database."""

OWN_COMMIT = "tma_migration_own_commit"
"""Name of the foreign key that a script's own ``COMMIT`` breaks."""

Kind = Literal["whole", "again", "stepwise", "stepwise again"]
"""How a script is begun: in one transaction; the same for a repeatable one; statement by statement; again."""

# Made of chance, so that no error of a script can look like one of ours.
_MARK = f"tma-says:{secrets.token_hex(8)}:"

TRY_LOCK = f"SELECT pg_catalog.pg_try_advisory_lock({LOCK_KEY}) AS tma_lock"
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

_UTC = "pg_catalog.to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
_NEW_COLUMNS = (
    "state text NOT NULL DEFAULT 'done'",
    "statement integer NOT NULL DEFAULT 0",
    "statements integer NOT NULL DEFAULT 0",
    # Ours alone: whether a repair may let it go on in the middle, and with which statement one said that it may.
    "session boolean NOT NULL DEFAULT false",
    "resume integer",
)
# Of the script in hand: how many rows there were before it, the transaction that it must stay in, whether it ran before.
_FENCE_COLUMNS = ("counts text", "transaction bigint", "again boolean")


@dataclass(frozen=True)
class Objection:
    """What the guard or the check of a message says: *stale*, *newer*, *locked*, *applied*, *edited*, *blocked*, *missing*,
    *escaped*, *history*, *events* or *fence*, with what belongs to it."""

    word: str
    values: tuple[str, ...] = ()


def objection(trouble: Trouble | None) -> Objection | None:
    """What our own statement objects to, if this is its error."""
    return objection_in(trouble.message) if trouble and trouble.code == "22P02" else None


def objection_in(words: str) -> Objection | None:
    """What our own statement objects to, by the words of its error."""
    found = re.search(_MARK + r"([a-z]+):([^\"»“”]*)", words)
    return Objection(found[1], tuple(found[2].split(":"))) if found else None


def literal(value: str | int | bool | None) -> str:
    """The value as SQL, whatever ``standard_conforming_strings`` says."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value).lower()
    quoted = value.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in value else f"'{quoted}'"


def identifier(name: str) -> str:
    """The name, quoted."""
    return '"' + name.replace('"', '""') + '"'


class Tables:
    """The statements about the history's tables in ``schema``; None: where the search path finds them."""

    def __init__(self, schema: str | None = None) -> None:
        prefix = f"{identifier(schema)}." if schema is not None else ""
        self.schema = schema
        self.history = prefix + HISTORY_TABLE
        self.events = prefix + EVENTS_TABLE
        self.fence = prefix + FENCE_TABLE

    # --- the tables themselves ------------------------------------------------------------------------------------------

    def create(self) -> str:
        """Makes them, empty."""
        history = ", ".join(_NEW_COLUMNS)
        fence = ", ".join(_FENCE_COLUMNS)
        return (
            f"CREATE TABLE {self.history} (script text PRIMARY KEY, checksum text NOT NULL, algorithm text NOT NULL,"
            f" fence bigint NOT NULL, run text NOT NULL, release text NOT NULL, applied_at timestamptz NOT NULL, {history});"
            f"{self._create_events()};"
            f"CREATE TABLE {self.fence} (id smallint PRIMARY KEY CHECK (id = 1), highest bigint NOT NULL,"
            f" format integer NOT NULL, script text CONSTRAINT {OWN_COMMIT} REFERENCES {self.history} (script)"
            f" DEFERRABLE INITIALLY DEFERRED, {fence});"
            f"INSERT INTO {self.fence} (id, highest, format) VALUES (1, 0, {HISTORY_FORMAT})"
        )

    def upgrade(self) -> str:
        """Brings tables of format 1 up to date."""
        history = ", ".join(f"ADD COLUMN {column}" for column in _NEW_COLUMNS)
        fence = ", ".join(f"ADD COLUMN {column}" for column in _FENCE_COLUMNS)
        return (
            f"ALTER TABLE {self.history} {history}; ALTER TABLE {self.fence} {fence}; {self._create_events()};"
            f"UPDATE {self.fence} SET format = {HISTORY_FORMAT}"
        )

    def _create_events(self) -> str:
        return (
            f"CREATE TABLE {self.events} (number bigint PRIMARY KEY, what text NOT NULL, script text, checksum text,"
            " fence bigint NOT NULL, run text NOT NULL, release text NOT NULL, at timestamptz NOT NULL,"
            " details text NOT NULL DEFAULT '{}')"
        )

    def restored(self, label: str, fence: int, run: str) -> str:
        """What a restored database needs, whatever its history was: tables of this format, the fence, and the event."""
        made = self.create().replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
        made, _, first = made.rpartition(";")
        first = first.replace(f"VALUES (1, 0, {HISTORY_FORMAT})", f"SELECT 1, 0, {HISTORY_FORMAT}")
        history = ", ".join(f"ADD COLUMN IF NOT EXISTS {column}" for column in _NEW_COLUMNS)
        columns = ", ".join(f"ADD COLUMN IF NOT EXISTS {column}" for column in _FENCE_COLUMNS)
        return (
            f"{made}; {first} WHERE NOT EXISTS (SELECT 1 FROM {self.fence});"
            f"ALTER TABLE {self.history} {history}; ALTER TABLE {self.fence} {columns};"
            f"UPDATE {self.fence} SET highest = GREATEST(highest, {fence}), format = {HISTORY_FORMAT};"
            + self.event("restored", None, fence, run, "", {"label": label})
        )

    # --- reading --------------------------------------------------------------------------------------------------------

    def read_history(self) -> str:
        """Every row, oldest first, whatever the format."""
        return (
            f"SELECT h.*, {_UTC.format('h.applied_at')} AS at_utc FROM {self.history} h ORDER BY h.applied_at, h.script"
        )

    def read_events(self) -> str:
        """Every event, oldest first."""
        return f"SELECT e.*, {_UTC.format('e.at')} AS at_utc FROM {self.events} e ORDER BY e.number"

    def read_row(self, script: str) -> str:
        """The row of one script."""
        return f"SELECT h.* FROM {self.history} h WHERE h.script = {literal(script)}"

    # --- the fence ------------------------------------------------------------------------------------------------------

    def raise_fence(self, fence: int) -> str:
        """Raises it where that is a change and the lock is ours; nothing objects."""
        return (
            f"UPDATE {self.fence} SET highest = {fence} WHERE highest < {fence} AND format = {HISTORY_FORMAT}"
            f" AND pg_catalog.pg_try_advisory_xact_lock({LOCK_KEY})"
        )

    def read_fence(self) -> str:
        """The fence's row, its schema, and what tells a pooling proxy: the process, and whether it holds the lock."""
        return (
            "SELECT n.nspname AS schema, f.highest, f.format, pg_catalog.pg_backend_pid() AS process"
            f" FROM {self.fence} f JOIN pg_catalog.pg_class c ON c.oid = f.tableoid"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        )

    def fenced(self, fence: int) -> str:
        """Objects when this fence is stale or the lock is another's; keeps the row until the transaction ends."""
        return f"SELECT {self._objections(fence)} AS tma_guard FROM {self.fence} f FOR UPDATE"

    def guard(self, script: Script, fence: int, kind: Kind) -> str:
        """The first command of a script's transaction; its answer has the column ``tma_guard``."""
        name, checksum = literal(script.id), literal(script.checksum)
        row = f"FROM {self.history} h WHERE h.script = {name}"
        edited = f"h.state <> 'running' AND h.checksum <> {checksum}"
        resumed = f"h.state = 'running' AND h.resume IS NOT NULL AND h.checksum = {checksum}"
        free = {"whole": resumed, "again": f"({edited} OR {resumed})"}
        free |= {"stepwise": resumed, "stepwise again": free["again"]}
        # The row that stands in the way says it itself.
        says = (
            "CASE WHEN h.state = 'running' THEN 'blocked:' || h.statement || ':' || h.statements"
            f" WHEN h.checksum = {checksum} THEN 'applied:' ELSE 'edited:' || h.checksum END"
        )
        standing = f"(SELECT {says} {row} AND NOT ({free[kind]}))"
        # Gone until the script has run, so that its own COMMIT breaks the foreign key this time too.
        gone = f"WITH gone AS (DELETE {row} AND {free[kind]} RETURNING h.state) " if not kind.startswith("step") else ""
        again = (
            "EXISTS (SELECT 1 FROM gone WHERE state <> 'running')" if gone else f"EXISTS (SELECT 1 {row} AND {edited})"
        )
        return (
            f"{gone}UPDATE {self.fence} f SET highest = GREATEST(f.highest, {fence}), script = {name},"
            f" counts = {self._counts(script.id)}, transaction = pg_catalog.txid_current(), again = {again}"
            f" RETURNING {self._objections(fence, standing)} AS tma_guard"
        )

    def on_trial(self) -> str:
        """For a transaction that will be rolled back: no script's own COMMIT can satisfy this row's foreign key."""
        return f"UPDATE {self.fence} SET script = 'tma rehearsal'"

    @staticmethod
    def deferred() -> str:
        """Runs what is deferred to the commit, of all but our own key, and defers the same again."""
        return (
            "DO $tma$ DECLARE names text; BEGIN"
            " SELECT pg_catalog.string_agg(DISTINCT pg_catalog.format('%I.%I', n.nspname, c.conname), ', ') INTO names"
            " FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace"
            f" WHERE c.condeferrable AND c.condeferred AND c.conname <> '{OWN_COMMIT}';"
            " IF names IS NOT NULL THEN EXECUTE 'SET CONSTRAINTS ' || names || ' IMMEDIATE';"
            " EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED'; END IF; END $tma$"
        )

    def check(self, script: Script) -> str:
        """What must still be true after the script; its answer has the column ``tma_check``."""
        return (
            "RESET SESSION AUTHORIZATION; RESET ROLE; SELECT CASE"
            f" WHEN f.id IS NULL THEN {_says(literal('fence:'))}"
            f" WHEN f.transaction IS DISTINCT FROM pg_catalog.txid_current() THEN {_says(literal('escaped:'))}"
            f" WHEN f.cmin::pg_catalog.text <> '0' THEN {_says(literal('fence:'))}"
            f" WHEN {self._others(self.history, script)} > 0 THEN {_says(literal('history:'))}"
            f" WHEN {self._others(self.events, script)} > 0 THEN {_says(literal('events:'))}"
            f" WHEN f.counts <> {self._counts(script.id)} THEN {_says(literal('history:'))}"
            f" ELSE 0 END AS tma_check FROM (SELECT 1) AS one LEFT JOIN {self.fence} f ON true"
        )

    def settle_deferred(self, script: Script, fence: int) -> str:
        """Everything that is deferred to the commit runs now, and is looked at; its answer has the column ``tma_deferred``.

        The fence's row points nowhere meanwhile, or our own key would be broken; :meth:`record` points it back.
        """
        return (
            f"UPDATE {self.fence} SET script = NULL; SET CONSTRAINTS ALL IMMEDIATE; SELECT CASE"
            f" WHEN f.id IS NULL OR f.highest <> {fence} OR f.script IS NOT NULL THEN {_says(literal('fence:'))}"
            f" WHEN f.transaction IS DISTINCT FROM pg_catalog.txid_current() THEN {_says(literal('escaped:'))}"
            f" WHEN {self._others(self.history, script)} > 0 THEN {_says(literal('history:'))}"
            f" WHEN {self._others(self.events, script)} > 0 THEN {_says(literal('events:'))}"
            f" WHEN f.counts <> {self._counts(script.id)} THEN {_says(literal('history:'))}"
            f" ELSE 0 END AS tma_deferred FROM (SELECT 1) AS one LEFT JOIN {self.fence} f ON true"
        )

    def _others(self, table: str, script: Script) -> str:
        """How many rows this transaction wrote that are not the script's own."""
        others = f"pg_catalog.age(xmin) <= 0 AND script IS DISTINCT FROM {literal(script.id)}"
        return f"(SELECT pg_catalog.count(*) FROM {table} WHERE {others})"

    def _kept(self, script: Script, fence: int) -> str:
        """Objects when a script that commits statement by statement has changed our tables since it began."""
        mine = f"(SELECT 1 FROM {self.history} WHERE script = {literal(script.id)} AND state = 'running')"
        return (
            f"SELECT CASE WHEN f.id IS NULL OR f.highest <> {fence} THEN {_says(literal('fence:'))}"
            f" WHEN f.counts IS DISTINCT FROM {self._counts(script.id)} OR NOT EXISTS {mine}"
            f" THEN {_says(literal('history:'))}"
            f" ELSE 0 END AS tma_kept FROM (SELECT 1) AS one LEFT JOIN {self.fence} f ON true"
        )

    def restorable(self, fence: int, process: str) -> str:
        """Objects when a later run was here, or the lock is not that of the server's ``process`` any more."""
        held = (
            "EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 0"
            f" AND l.objid = {LOCK_KEY} AND l.objsubid = 1 AND l.granted AND l.pid = {int(process)} AND l.database ="
            " (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))"
        )
        return (
            f"SELECT CASE WHEN f.highest > {fence} THEN {_says(literal('stale:') + ' || f.highest')}"
            f" WHEN NOT {held} THEN {_says(literal('locked:'))} ELSE 0 END AS tma_guard FROM {self.fence} f FOR UPDATE"
        )

    def _counts(self, script: str) -> str:
        """How many rows the others' scripts have, and how many events there are."""
        rows = f"(SELECT pg_catalog.count(*)::pg_catalog.text FROM {self.history} WHERE script <> {literal(script)})"
        return f"{rows} || ' ' || (SELECT pg_catalog.count(*)::pg_catalog.text FROM {self.events})"

    def _objections(self, fence: int, standing: str = "NULL") -> str:
        return (
            f"CASE WHEN f.format <> {HISTORY_FORMAT} THEN {_says(literal('newer:') + ' || f.format')}"
            f" WHEN f.highest > {fence} THEN {_says(literal('stale:') + ' || f.highest')}"
            f" WHEN NOT pg_catalog.pg_try_advisory_xact_lock({LOCK_KEY}) THEN {_says(literal('locked:'))}"
            f" WHEN {standing} IS NOT NULL THEN {_says(standing)} ELSE 0 END"
        )

    # --- writing --------------------------------------------------------------------------------------------------------

    def record(self, script: Script, fence: int, run: str, release: str, *, statements: int) -> str:
        """The row and the event of a script that ran."""
        common = f"{fence}, {literal(run)}, {literal(release)}, pg_catalog.clock_timestamp()"
        head = f"{literal(script.id)}, {literal(script.checksum)}, {literal(script.algorithm)}"
        return (
            f"INSERT INTO {self.history} (script, checksum, algorithm, fence, run, release, applied_at, state, statement,"
            f" statements) VALUES ({head}, {common}, 'done', {statements}, {statements});"
            f"UPDATE {self.fence} SET script = {literal(script.id)};"
            + self._event(self._applied(), script.id, script.checksum, fence, run, release)
        )

    def _applied(self) -> str:
        """The word for what became of the script in hand."""
        return f"(SELECT CASE WHEN again THEN 'reapplied' ELSE 'applied' END FROM {self.fence})"

    def start(self, script: Script, fence: int, run: str, release: str, *, statements: int, session: bool) -> str:
        """The row of a script that commits statement by statement, before its first one or when it goes on.

        Answers the number of the statement to begin with in the column ``tma_first``.
        """
        head = f"{literal(script.id)}, {literal(script.checksum)}, {literal(script.algorithm)}, {fence}, {literal(run)}"
        row = f"FROM {self.history} WHERE script = {literal(script.id)}"
        return (
            f"SELECT COALESCE((SELECT resume {row}), 1) AS tma_first;"
            f"INSERT INTO {self.history} (script, checksum, algorithm, fence, run, release, applied_at, state, statement,"
            f" statements, session) SELECT {head}, {literal(release)}, pg_catalog.clock_timestamp(), 'running', 0,"
            f" {statements}, {literal(session)} WHERE NOT EXISTS (SELECT 1 {row});"
            # Of a repeatable one that was edited.
            f"UPDATE {self.history} SET state = 'running', checksum = {literal(script.checksum)}, statement = 0,"
            f" statements = {statements}, session = {literal(session)}"
            f" WHERE script = {literal(script.id)} AND state <> 'running';"
            f"UPDATE {self.history} SET resume = NULL, fence = {fence}, run = {literal(run)}, release = {literal(release)}"
            f" WHERE script = {literal(script.id)};"
            + self.event("started", script, fence, run, release)
            + f";UPDATE {self.fence} SET counts = {self._counts(script.id)}"
        )

    def escaped(self, script: Script, fence: int, run: str, release: str, *, statements: int) -> str:
        """A row that blocks a script which got out of its transaction, so that nobody applies it a second time."""
        return (
            f"{BEGIN}; {self.fenced(fence)}; {self.start(script, fence, run, release, statements=statements, session=True)};"
            " COMMIT"
        )

    def count(self, script: Script, fence: int, number: int) -> str:
        """Statement ``number`` is committed; objects when the fence is stale, or our tables are not as they were.

        Whoever the script has become, the session's own user counts. The lock is taken again: a function may have let it go.
        """
        return (
            f"{BEGIN}; SET LOCAL ROLE NONE; {TRY_LOCK}; {self.fenced(fence)}; {self._kept(script, fence)};"
            f" UPDATE {self.history} SET statement = {number} WHERE script = {literal(script.id)}"
        )

    def finish(self, script: Script, fence: int, run: str, release: str, *, statements: int) -> str:
        """All statements are committed; objects when our tables are not as they were."""
        return (
            f"{self._kept(script, fence)};UPDATE {self.history} SET state = 'done', statement = {statements},"
            f" applied_at = pg_catalog.clock_timestamp() WHERE script = {literal(script.id)};"
            + self._event(self._applied(), script.id, script.checksum, fence, run, release)
        )

    def baseline(self, scripts: Sequence[Script], fence: int, run: str, release: str) -> str:
        """Rows for those that have none, and their events; answers the ids of those, in order, in ``tma_added``."""
        values = ", ".join(
            f"({number}, {literal(script.id)}, {literal(script.checksum)}, {literal(script.algorithm)})"
            for number, script in enumerate(scripts, 1)
        )
        common = f"{fence}, {literal(run)}, {literal(release)}"
        return (
            f"WITH given (n, script, checksum, algorithm) AS (VALUES {values}), added AS ("
            f"INSERT INTO {self.history} (script, checksum, algorithm, fence, run, release, applied_at, state)"
            f" SELECT g.script, g.checksum, g.algorithm, {common},"
            " pg_catalog.now() + g.n * '1 microsecond'::pg_catalog.interval, 'baseline' FROM given g"
            f" WHERE NOT EXISTS (SELECT 1 FROM {self.history} h WHERE h.script = g.script)"
            " RETURNING script), told AS ("
            f"INSERT INTO {self.events} (number, what, script, checksum, fence, run, release, at)"
            f" SELECT (SELECT COALESCE(pg_catalog.max(number), 0) FROM {self.events})"
            " + pg_catalog.row_number() OVER (ORDER BY g.n),"
            f" 'baselined', g.script, g.checksum, {common}, pg_catalog.clock_timestamp()"
            " FROM added a JOIN given g ON g.script = a.script)"
            " SELECT g.script AS tma_added FROM added a JOIN given g ON g.script = a.script ORDER BY g.n"
        )

    def repaired(self, script: str, what: str, resume_at: int | None) -> str:
        """The row of a blocked script as somebody found it."""
        name = literal(script)
        if what == "resume":
            return f"UPDATE {self.history} SET resume = {resume_at}, statement = {(resume_at or 1) - 1} WHERE script = {name}"
        if what == "done":
            return (
                f"UPDATE {self.history} SET state = 'done', statement = statements, resume = NULL,"
                f" applied_at = pg_catalog.clock_timestamp() WHERE script = {name}"
            )
        return (
            f"UPDATE {self.fence} SET script = NULL WHERE script = {name};"
            f"DELETE FROM {self.history} WHERE script = {name}"
        )

    def event(
        self,
        what: str,
        script: Script | None,
        fence: int,
        run: str,
        release: str,
        details: Mapping[str, Any] | None = None,
        *,
        named: tuple[str, str] | None = None,
    ) -> str:
        """One more event; ``named`` is the script's id and checksum where there is no :class:`Script`."""
        name, checksum = (script.id, script.checksum) if script is not None else named or (None, None)
        return self._event(literal(what), name, checksum, fence, run, release, details)

    def _event(
        self,
        what: str,
        script: str | None,
        checksum: str | None,
        fence: int,
        run: str,
        release: str,
        details: Mapping[str, Any] | None = None,
    ) -> str:
        """As :meth:`event`; ``what`` is an expression."""
        return (
            f"INSERT INTO {self.events} SELECT COALESCE(pg_catalog.max(number), 0) + 1, {what}, {literal(script)},"
            f" {literal(checksum)}, {fence}, {literal(run)}, {literal(release)}, pg_catalog.clock_timestamp(),"
            f" {literal(json.dumps(dict(details or {}), sort_keys=True))} FROM {self.events}"
        )


def _says(words: str) -> str:
    """An expression that fails with these words; they must depend on a row, or the planner would fail for every row."""
    return f"('{_MARK}' || {words} || COALESCE(pg_catalog.left(f.tableoid::pg_catalog.text, 0), ''))::pg_catalog.int4"


def rows_of(answer: Answer) -> Iterable[dict[str, str | None]]:
    """The rows by the names of their columns."""
    return (dict(zip(answer.columns, row, strict=True)) for row in answer.rows)


def applied_of(row: Mapping[str, str | None]) -> Applied:
    """A row of the history; a table of format 1 lacks what came later."""
    return Applied(
        script=row["script"] or "",
        checksum=row["checksum"] or "",
        algorithm=row["algorithm"] or "",
        fence=int(row["fence"] or 0),
        run=row["run"] or "",
        release=row["release"] or "",
        at=_instant(row["at_utc"]),
        state=row.get("state") or "done",
        statement=int(row.get("statement") or 0),
        statements=int(row.get("statements") or 0),
        session=row.get("session") == "t",
    )


def event_of(row: Mapping[str, str | None]) -> HistoryEvent:
    """A row of the events."""
    return HistoryEvent(
        number=int(row["number"] or 0),
        what=row["what"] or "",
        script=row["script"],
        checksum=row["checksum"],
        fence=int(row["fence"] or 0),
        run=row["run"] or "",
        release=row["release"] or "",
        at=_instant(row["at_utc"]),
        details=json.loads(row["details"] or "{}"),
    )


def _instant(text: str | None) -> datetime:
    return datetime.strptime(text or "", "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
