"""Scripts on trial: all of them in one transaction that is rolled back, each in a session as the real run would have it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.databases import Rehearsed
from pipeline.databases.postgresql.history import BEGIN, Tables
from pipeline.databases.postgresql.hold import Hold
from pipeline.databases.postgresql.scripts import Waited, fail, groups, prepared
from pipeline.databases.postgresql.session import Lost, Session
from pipeline.errors import PipelineError
from pipeline.model import Script


def rehearse(hold: Hold, scripts: Sequence[tuple[Script, bytes]], run: str) -> list[Rehearsed]:
    """See :meth:`pipeline.databases.Database.rehearse`."""
    known = hold.lock_only(run) is not None
    session, tables = hold.session(), hold.tables if known else Tables()
    told: list[Rehearsed] = []
    make = "" if known else f"{tables.create()};"
    begin = f"{BEGIN}; {make} {tables.on_trial()}"
    try:
        trouble = session.exchange(begin, rows=False)[-1].trouble
        if trouble is not None:
            raise hold.unreadable(trouble)
        for script, sql in scripts:
            told.append(_rehearsed(hold, session, script, sql))
            if told[-1].outcome == "failed":
                break
        return told
    except Lost:
        raise hold.errors.not_let_in("the server ended the connection during the rehearsal") from None
    finally:
        # What a script has set stays in the session otherwise.
        hold.close()


def _rehearsed(hold: Hold, session: Session, script: Script, sql: bytes) -> Rehearsed:
    if not script.transactional:
        return Rehearsed(script.id, "skipped", "it runs outside a transaction, which cannot be taken back")
    if script.client and hold.way != "client":
        return Rehearsed(script.id, "skipped", "it needs its own client")
    try:
        work = prepared(script, sql, hold.errors)
        pieces = [(1, 0, len(work.text))] if not work.large else groups(work.text)
        for first, start, end in pieces:
            answers = session.exchange(work.text[start:end], rows=False)
            if answers and answers[-1].trouble:
                fail(
                    hold.errors,
                    work,
                    answers[-1].trouble,
                    None if len(answers) == 1 else first + len(answers) - 1,
                    -start,
                )
            if session.idle:
                raise hold.errors.escaped(script)
        # As between two scripts of a run; what is deferred would be checked at its commit.
        answers = session.exchange(f"{hold.settled()} {Tables.deferred()}", rows=False)
        if answers[-1].trouble:
            fail(hold.errors, work, answers[-1].trouble, None, None)
    except Waited as waited:
        return Rehearsed(script.id, "failed", str(waited.failure.reasons[0]))
    except PipelineError as error:
        return Rehearsed(script.id, "failed", str(error.reasons[0]) if error.reasons else error.what)
    return Rehearsed(script.id, "ok")
