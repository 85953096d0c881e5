"""How one script runs on PostgreSQL: as a whole, in one message with its history; or statement by statement.

A script and its ``COMMIT`` travel together: if the runner dies, either all of it is there with its row of the history, or
none. Only a large script is sent in groups of statements, inside one transaction as well.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import NoReturn

from pipeline.databases import EVENTS_TABLE, FENCE_TABLE, HISTORY_TABLE
from pipeline.databases.postgresql.client import statements_of
from pipeline.databases.postgresql.history import BEGIN, OWN_COMMIT, Kind, Objection, objection, rows_of
from pipeline.databases.postgresql.hold import Hold
from pipeline.databases.postgresql.session import Answer, Lost, Session, Trouble
from pipeline.databases.postgresql.statements import Statement, line_at, scan
from pipeline.databases.script_errors import ScriptErrors, without_outer_transaction
from pipeline.errors import Failed, PipelineError, Reason
from pipeline.model import Script

LARGE = 1_000_000
"""Characters of a script that are sent at once."""

RETRIES = 5
"""How often a script that waited too long for a lock is run again."""

_WAITED = {"55P03", "40P01"}  # lock_not_available, deadlock_detected
_IN_TRANSACTION = "25001"
_NOT_IN_TRANSACTION = "-- tma: transaction=no"
_BY_CLIENT = "-- tma: client=psql"
_ADVISORY = re.compile("advisory", re.IGNORECASE)
_OWN_TABLES = re.compile(f"{HISTORY_TABLE}|{EVENTS_TABLE}|{FENCE_TABLE}", re.IGNORECASE)


class Waited(Exception):
    """It was rolled back because it waited too long for a lock; ``failure`` is what to say when it stays like this."""

    def __init__(self, failure: Failed) -> None:
        super().__init__()
        self.failure = failure


class _Applied(Exception):
    """The history has it already."""


@dataclass(frozen=True)
class Work:
    """A script to be applied: its text, how many statements it has, and for whom.

    ``parts`` are missing where the text is large, or is its client's to split.
    """

    script: Script
    text: str
    count: int
    parts: tuple[Statement, ...]
    fence: int
    run: str
    release: str
    verify: str | None = None
    covers: tuple[Script, ...] = ()

    @property
    def large(self) -> bool:
        return len(self.text) > LARGE and not self.script.client


def prepared(
    script: Script,
    sql: bytes,
    errors: ScriptErrors,
    *,
    fence: int = 0,
    run: str = "",
    release: str = "",
    verify: bytes | None = None,
    covers: Sequence[Script] = (),
) -> Work:
    """The script, looked at before anything is sent; raises what can be known to be wrong with it."""
    text = errors.text(script, sql, in_transaction=script.transactional)
    keep = len(text) <= LARGE or not script.transactional
    parts: list[Statement] = []
    count = 0
    if script.client and not script.transactional:
        why = "one of client=psql and transaction=no can be had: psql is given a script as a whole"
        raise errors.unfit_statement(script, "its header", why, "make two scripts of it, each with one of them")
    for part in statements_of(text) if script.client else scan(text):
        _look(script, text, part, errors)
        count += 1
        if keep and not script.client:
            parts.append(part)
    after = None
    if verify is not None:
        after = errors.verify_text(script, verify)
        after = without_outer_transaction(without_outer_transaction(after, rollback=True))
        for part in scan(after):
            if part.of_a_transaction or "TMA_VERIFY" in part.keywords:
                said = f"{part.first_words}: a verify runs inside of a transaction that is rolled back"
                raise errors.unfit_statement(script, "its verify", said, "take it out of the verify", line=part.line)
    return Work(script, text, count, tuple(parts), fence, run, release, after, tuple(covers))


def _look(script: Script, text: str, part: Statement, errors: ScriptErrors) -> None:
    if part.unclosed is not None:
        what, line = part.unclosed
        raise errors.failed(script, f"a {what} that is opened here is never closed", line=line)
    if part.client is not None:
        words, line = part.client
        raise errors.needs_header(script, words, "only psql understands it", _BY_CLIENT, line=line)
    words, line = part.first_words, part.line
    if part.encoding(text):
        raise errors.unfit_statement(script, words, "every script is UTF-8", "take the statement out", line=line)
    if script.transactional:
        if part.ends_transaction:
            raise errors.own_commit(script, part.first_words, line=part.line)
        if part.outside_transactions:
            why = "it cannot run inside a transaction"
            raise errors.needs_header(script, part.first_words, why, _NOT_IN_TRANSACTION, line=part.line)
        return
    if part.of_a_transaction:
        why = "a script that runs statement by statement cannot have a transaction of its own"
        instead = "make a script of its own of what belongs into one transaction, without transaction=no"
        raise errors.unfit_statement(script, words, why, instead, line=line)
    if part.lets_locks_go(text):
        why = "it lets the lock of the run go"
        raise errors.unfit_statement(script, words, why, "write RESET ALL, or unlock each lock by its key", line=line)
    if part.keywords[:1] not in {("SELECT",), ("TABLE",)}:
        table = _OWN_TABLES.search(text, part.start, part.end)
        if table is not None:
            raise errors.own_history(script, table[0].lower(), line=part.line)


def apply(hold: Hold, work: Work) -> bool:
    """See :meth:`pipeline.databases.Database.apply`."""
    try:
        if work.script.transactional:
            return _patiently(hold, work)
        return _stepwise(hold, work)
    except _Applied:
        return False
    except Lost:
        return _ask_again(hold, work)
    except PipelineError:
        hold.tidy(failed=not work.script.transactional)
        raise
    finally:
        hold.tidy()


# --- as a whole ---------------------------------------------------------------------------------------------------------


def _patiently(hold: Hold, work: Work) -> bool:
    """As :func:`_whole`; again when it waited too long for a lock, and the last time it is asked who holds it."""
    for attempt in range(RETRIES + 1):
        session = hold.lock(work.fence, work.run)
        last = attempt == RETRIES
        unwatched: AbstractContextManager[list[str]] = nullcontext([])
        with hold.watched(session) if last else unwatched as holders:
            try:
                _whole(hold, session, work)
                return True
            except Waited as waited:
                hold.tidy()
                failure = waited.failure
        if last:
            raise _and(failure, holders, attempt + 1)
        # Not a secret: two runners should not come back at the same moment.
        time.sleep(random.uniform(0.1, 0.5) * (attempt + 1))  # noqa: S311
    raise AssertionError("unreachable")


def _whole(hold: Hold, session: Session, work: Work) -> None:
    script, tables = work.script, hold.tables
    again = script.kind == "repeatable"
    before = f"{BEGIN};\n{tables.guard(script, work.fence, 'again' if again else 'whole')};\n"
    verify = f"SAVEPOINT tma_verify;\n{work.verify}\n;\nROLLBACK TO SAVEPOINT tma_verify;" if work.verify else ""
    record = tables.record(script, work.fence, work.run, work.release, statements=work.count)
    covers = tables.baseline(work.covers, work.fence, work.run, work.release) + ";" if work.covers else ""
    settled = hold.settled(locks=_ADVISORY.search(work.text) is not None)
    checks = f"{tables.check(script)};\n{tables.settle_deferred(script, work.fence)}"
    after = f"\n;\n{checks};\n{verify}\n{record};{covers}COMMIT;{settled}"
    if not work.large:
        answers = session.exchange(before + work.text + after, rows=False)
        _judge(hold, session, work, answers, before)
        return
    _judge(hold, session, work, session.exchange(before, rows=False), before)
    for first, start, end in groups(work.text):
        answers = session.exchange(work.text[start:end], rows=False)
        if answers[-1].trouble:
            fail(hold.errors, work, answers[-1].trouble, first + len(answers) - 1, start)
        if session.idle:
            _escaped(hold, session, work)
    answers = session.exchange(after, rows=False)
    # As if the script had stood before it.
    _judge(hold, session, work, [Answer(columns=("tma_guard",)), *[Answer()] * work.count, *answers], before)


def groups(text: str) -> Iterator[tuple[int, int, int]]:
    """The number of the first statement, the beginning and the end of groups of about :data:`LARGE` characters."""
    first, start, number, end = 1, 0, 0, 0
    for part in scan(text):
        if number >= first and part.end - start > LARGE:
            yield first, start, part.start
            first, start = part.number, part.start
        number, end = part.number, len(text)
    if number:
        yield first, start, end


def _judge(hold: Hold, session: Session, work: Work, answers: Sequence[Answer], before: str) -> None:
    """Nothing when the message went through; otherwise raises what its last answer means, by where it stands."""
    trouble = answers[-1].trouble
    if trouble is None:
        return
    columns = [answer.columns for answer in answers]
    deferred = columns.index(("tma_deferred",)) if ("tma_deferred",) in columns else None
    if deferred is not None and any(answer.tag == "COMMIT" for answer in answers[deferred:]):
        # Committed, and it is our own; only the session is not as it was.
        hold.close()
        return
    guard = columns.index(("tma_guard",)) if ("tma_guard",) in columns else None
    if guard is None:
        _object(hold, work, objection(trouble))
        # Nothing ran at all: the message was not understood. What the guard has to say goes first.
        if trouble.position and len(answers) == 1:
            said = session.exchange(f"{before} ROLLBACK", rows=False)[-1].trouble
            _object(hold, work, objection(said))
            fail(hold.errors, work, trouble, None, -len(before))
        fail(hold.errors, work, _written(trouble), None, None)
    elif ("tma_check",) not in columns:
        number = len(answers) - guard - 1
        if number > work.count:
            _object(hold, work, objection(trouble))
            if not work.script.client:
                fail(hold.errors, work, _written(trouble), None, None)
        fail(hold.errors, work, trouble, number if not work.script.client else None, -len(before))
    elif deferred is None:
        # Something that the script has put off to the commit.
        _object(hold, work, objection(trouble))
        fail(hold.errors, work, trouble, None, None)
    else:
        told = [answer.tag for answer in answers[deferred:]]
        if work.verify is not None and "ROLLBACK" not in told:
            raise hold.errors.not_verified(work.script, trouble.message, code=trouble.code)
        fail(hold.errors, work, trouble, None, None)


def _written(trouble: Trouble) -> Trouble:
    return Trouble(f"its row of the history cannot be written: {trouble.message}", trouble.code)


def fail(errors: ScriptErrors, work: Work, trouble: Trouble, number: int | None, offset: int | None) -> None:
    """Raises what a failing statement of the script means; ``offset``: of the script's text against the message."""
    script = work.script
    if trouble.constraint == OWN_COMMIT:
        raise errors.own_commit(script, "COMMIT (as END), or SET CONSTRAINTS ALL IMMEDIATE,")
    position = trouble.position + offset if trouble.position and offset is not None else None
    if position is not None and not 0 < position <= len(work.text) + 1:
        position = None
    if number is None and position is not None:
        number = max((part.number for part in work.parts if part.start < position), default=None)
    part = work.parts[number - 1] if number is not None and number <= len(work.parts) else None
    if part is None and number is not None and work.large:
        part = next((one for one in scan(work.text) if one.number == number), None)
    line = line_at(work.text, position) if position is not None else part.line if part else None
    if trouble.copied:
        why = "COPY with the client's own data can only be run by the client"
        raise errors.needs_header(script, part.first_words if part else "COPY", why, _BY_CLIENT, line=line or 1)
    hint = trouble.hint
    if trouble.code == _IN_TRANSACTION and script.transactional:
        hint = f"a script that cannot run inside a transaction says so in a line of its own: {_NOT_IN_TRANSACTION}"
    words = part.first_words if part else None
    failure = errors.failed(
        script, trouble.message, number=number, line=line, words=words, code=trouble.code, hint=hint
    )
    raise Waited(failure) if trouble.code in _WAITED else failure


def _object(hold: Hold, work: Work, said: Objection | None) -> None:
    """Raises what our own statement in a message objects to; nothing when it does not."""
    errors, script = hold.errors, work.script
    if said is None:
        return
    values = said.values
    if said.word == "applied":
        raise _Applied
    if said.word == "stale":
        hold.close()
        raise errors.stale(work.fence, int(values[0]))
    if said.word == "newer":
        raise errors.newer(int(values[0]))
    if said.word == "edited":
        raise errors.edited(script, values[0])
    if said.word == "blocked":
        raise errors.blocked(script, int(values[0]), int(values[1]))
    if said.word == "locked":
        hold.tidy()
        raise errors.locked("another run took its place", 0)
    if said.word == "escaped":
        _escaped(hold, hold.session(), work)
    raise errors.own_history(script, {"history": HISTORY_TABLE, "events": EVENTS_TABLE}.get(said.word, FENCE_TABLE))


def _escaped(hold: Hold, session: Session, work: Work) -> NoReturn:
    """A script that got out of its transaction is blocked: nobody can say what of it is committed."""
    hold.tidy()
    row = hold.tables.escaped(work.script, work.fence, work.run, work.release, statements=max(work.count, 1))
    with suppress(Lost):
        session.exchange(row, rows=False)
    raise hold.errors.escaped(work.script)


def _and(failure: Failed, holders: Sequence[str], times: int) -> Failed:
    """The failure of a script that waited for a lock, with who holds it."""
    said: list[Reason | str] = [*failure.reasons, *holders, f"it was tried {times} times"]
    return Failed(
        failure.what,
        reasons=said,
        state=failure.state,
        next_commands=["end what holds the lock, then the same command again"],
        details=failure.details,
    )


# --- statement by statement ---------------------------------------------------------------------------------------------


def _stepwise(hold: Hold, work: Work) -> bool:
    script, errors = work.script, hold.errors
    session, tables = hold.lock(work.fence, work.run), hold.tables
    bound = script.session or any(part.of_the_session for part in work.parts)
    kind: Kind = "stepwise again" if script.kind == "repeatable" else "stepwise"
    start = tables.start(script, work.fence, work.run, work.release, statements=work.count, session=bound)
    answers = session.exchange(f"{BEGIN}; {tables.guard(script, work.fence, kind)}; {start}; COMMIT")
    _ours(hold, work, answers, 0)
    first = next(int(answer.rows[0][0] or 1) for answer in answers if answer.columns == ("tma_first",))
    for part in work.parts[first - 1 :]:
        _statement(hold, session, work, part)
        if part.number < work.count and session.idle:
            answers = session.exchange(f"{tables.count(script, work.fence, part.number)}; COMMIT", rows=False)
            _ours(hold, work, answers, part.number)
    if not session.idle:
        hold.tidy()
        raise errors.stopped(
            script, "it leaves its own transaction open", number=work.count, statements=work.count, words="its end"
        )
    if work.verify is not None:
        trouble = session.exchange(f"{BEGIN};\n{work.verify}\n;\nROLLBACK", rows=False)[-1].trouble
        if trouble:
            raise errors.not_verified(script, trouble.message, code=trouble.code, statements=work.count)
    _valid(session, work, errors)
    covers = tables.baseline(work.covers, work.fence, work.run, work.release) + ";" if work.covers else ""
    done = tables.finish(script, work.fence, work.run, work.release, statements=work.count)
    answers = session.exchange(
        f"{hold.settled(locks=True)} {BEGIN}; {tables.fenced(work.fence)}; {done}; {covers} COMMIT"
    )
    _ours(hold, work, answers, work.count)
    return True


def _statement(hold: Hold, session: Session, work: Work, part: Statement) -> None:
    """Runs one statement, as a message of its own: some cannot share one."""
    if part.waits_for_all:
        session.exchange("SET lock_timeout = 0")
    answers = session.exchange(work.text[part.start : part.end], rows=False)
    trouble = answers[-1].trouble if answers else None
    if trouble is not None:
        hold.tidy()
        position = part.start + trouble.position if trouble.position else None
        hint = trouble.hint
        if part.waits_for_all and "INDEX" in part.keywords:
            hint = "it may have left an invalid index, which DROP INDEX CONCURRENTLY IF EXISTS takes away; then go on"
        raise hold.errors.stopped(
            work.script,
            trouble.message,
            number=part.number,
            statements=work.count,
            line=line_at(work.text, position) if position else part.line,
            words=part.first_words,
            code=trouble.code,
            hint=hint,
            inside=part.commits_inside,
        )
    if part.waits_for_all:
        session.exchange(f"SET lock_timeout = '{hold.settings.lock_timeout}s'")


def _valid(session: Session, work: Work, errors: ScriptErrors) -> None:
    """PartlyDone when an index that the script names is not valid: one that stopped half-way, which IF NOT EXISTS skips."""
    last = next((part for part in reversed(work.parts) if part.waits_for_all), None)
    if last is None:
        return
    answers = session.exchange(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relkind = 'i'"
    )
    for schema, name in answers[-1].rows:
        if re.search(rf"(?<!\w){re.escape(name or '')}(?!\w)", work.text, re.IGNORECASE):
            raise errors.stopped(
                work.script,
                f"the index {schema}.{name} is invalid, and nobody uses it: one that could not be finished before",
                number=next((part.number for part in work.parts if part.waits_for_all), last.number),
                statements=work.count,
                line=last.line,
                words=last.first_words,
                hint=f"DROP INDEX CONCURRENTLY {schema}.{name}, then go on with the statement that makes it",
                inside=True,
            )


def _ours(hold: Hold, work: Work, answers: Sequence[Answer], number: int) -> None:
    """Raises what went wrong with a message of ours after statement ``number`` of a script that runs stepwise."""
    trouble = answers[-1].trouble
    if trouble is None:
        return
    hold.tidy()
    said = objection(trouble)
    if number and said is not None and said.word in {"history", "events", "fence"}:
        raise hold.errors.history_changed(work.script, number, work.count)
    _object(hold, work, said)
    if number == 0:
        fail(hold.errors, work, _written(trouble), None, None)
    raise hold.errors.stopped(
        work.script,
        f"the history cannot be written: {trouble.message}",
        number=min(number + 1, work.count),
        statements=work.count,
        words="the history",
        code=trouble.code,
    )


# --- after a lost connection --------------------------------------------------------------------------------------------


def _ask_again(hold: Hold, work: Work) -> bool:
    """What the history says after the connection broke: once the lock is free, the old session is over."""
    script, errors = work.script, hold.errors
    stepwise = not script.transactional
    row = None
    try:
        highest = hold.lock_only(work.run)
        if highest is not None:
            answers = hold.session().exchange(hold.tables.read_row(script.id))
            row = next(iter(rows_of(answers[-1])), None)
    except Lost:
        hold.close()
        lost = errors.not_let_in("the connection was lost again")
        raise errors.unknown(script, lost, stepwise=stepwise) from None
    except PipelineError as error:
        raise errors.unknown(script, error, stepwise=stepwise) from None
    if row is not None and row["state"] == "running":
        number, statements = int(row["statement"] or 0) + 1, int(row["statements"] or 0)
        part = work.parts[number - 1] if number <= len(work.parts) else None
        raise errors.stopped(
            script,
            "the connection was lost while it ran",
            number=min(number, max(statements, 1)),
            statements=statements,
            line=part.line if part else None,
            words=part.first_words if part else None,
            uncertain=True,
            inside=part is not None and part.commits_inside,
        )
    if row is None or (script.kind == "repeatable" and row["checksum"] != script.checksum):
        if highest is not None and highest > work.fence:
            hold.close()
            raise errors.stale(work.fence, highest)
        raise errors.not_applied(script)
    if row["checksum"] != script.checksum:
        raise errors.edited(script, row["checksum"] or "")
    return row["run"] == work.run
