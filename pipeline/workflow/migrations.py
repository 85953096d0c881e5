"""A database's migration history set right by a person: what counts as applied, and what became of a script half done.

Both are recorded first, under the environment's lease: the record's number is the fence with which the database is then
changed. Where the database does not take it, the ledger is ahead, deployments are refused, and the same command again does
the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline import foreign_histories
from pipeline.databases import Database, Repair
from pipeline.errors import NotKnown, PartlyDone, PipelineError, Reason, Refused, UsageError
from pipeline.host import Host
from pipeline.lease import Held, hold
from pipeline.migrations import Comparison
from pipeline.model import Applied, Draft, Environment, Record, Script
from pipeline.state import ReleaseState, State
from pipeline.suggest import did_you_mean
from pipeline.transports import LineCut
from pipeline.workflow.databases import accepted_edits, committed, migrates, open_database, release_scripts
from pipeline.workflow.gathering import closing, hosts_of, release_manifest
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Dossier, Result, Session


class Baselined(Result):
    """What counts as applied from now on, and what would run next.

    ``tool`` is whose history was read, None where a person said it. ``known`` are scripts that the database's own history
    had and the ledger had not; ``strange`` what the tool had run that is none of the release's scripts.
    """

    customer: str
    environment: str
    release: str
    tool: str | None
    applied: tuple[str, ...]
    known: tuple[str, ...]
    strange: tuple[str, ...]
    pending: tuple[str, ...]
    record: str | None = None

    def lines(self) -> list[str]:
        lines = [self.what]
        lines += [f"  applied: {script}" for script in self.applied]
        lines += [f"  applied, and taken into the ledger: {script}" for script in self.known]
        lines += [f"  {self.tool} ran what this release does not hold: {name}" for name in self.strange]
        return [*lines, *(f"  would run next: {script}" for script in self.pending)]


class Repaired(Result):
    """What was found about a script that was begun and not finished."""

    customer: str
    environment: str
    script: str
    found: str
    resume_at: int | None
    record: str | None = None


@dataclass(frozen=True)
class Place:
    """One environment's database, opened, with what a release has for it."""

    dossier: Dossier
    state: State
    environment: Environment
    release: ReleaseState
    host: Host
    database: Database
    scripts: Mapping[str, tuple[Script, bytes]]
    history: Sequence[Applied]

    @property
    def named(self) -> str:
        """The options that name it, for a command."""
        return f"customer={self.dossier.key} env={self.environment.key}"

    @property
    def listed(self) -> list[Script]:
        """The release's scripts, in order."""
        return [script for script, _ in self.scripts.values()]

    def compared(self, history: Sequence[Applied]) -> Comparison:
        """How they stand to this history."""
        from pipeline.migrations import compare

        return compare(self.listed, history, accepted_edits(self.state))


@contextmanager
def opened(
    session: Session, customer: str, environment: str, release: str | None, *, deciding: bool, newest: bool = False
) -> Iterator[Place]:
    """The environment's database with the scripts of a release: by default the one that is installed, else the newest.

    ``newest``: by default the newest.

    Refused where the playbook migrates no database there.
    """
    dossier = session.dossier(customer, deciding=deciding)
    if not deciding:
        dossier.repository.fetch()
    state = dossier.state()
    target = dossier.environment(environment)
    playbook = dossier.playbook.playbook
    if not migrates(target, playbook):
        raise Refused(
            f"{environment} of {customer} has no database that deployments migrate",
            reasons=[Reason("it has no database:, or the playbook has no migrate step", f"environments/{customer}/")],
        )
    installed = state.environment(environment).installed
    by_default = installed.release if installed is not None and not newest else None
    chosen = dossier.release(release or by_default, state)
    scripts = release_scripts(dossier, playbook, release_manifest(dossier, chosen), target)
    hosts = hosts_of(dossier, target)
    with closing(hosts):
        host = hosts[target.hosts[0].name]
        database = open_database(dossier, target, host)
        try:
            yield Place(dossier, state, target, chosen, host, database, scripts, database.history())
        finally:
            database.close()


def baseline(
    session: Session,
    *,
    customer: str,
    environment: str,
    reason: str,
    release: str | None = None,
    upto: str | None = None,
    tool: str | None = None,
    dry_run: bool = False,
) -> Baselined:
    """Scripts of a release count as applied from now on, and are not run: those that another tool has run, or up to one.

    Without ``tool`` and ``upto`` the tool is found by its table. Rows that the database's own history has and the ledger
    has not (somebody ran what ``migrate.sql`` wrote) are taken into the ledger.
    """
    if not reason.strip():
        raise UsageError("a baseline needs a reason")
    if upto is not None and tool is not None:
        raise UsageError("upto= and from= are two ways to say the same: give one of them")
    with opened(session, customer, environment, release, deciding=True) as place:
        _nothing_open(place)
        here = place.state.environment(environment)
        rows = [row for row in place.history if row.state != "running"]
        known = {row.script: row.checksum for row in rows if here.applied.get(row.script) != row.checksum}
        had = {row.script for row in place.history}
        chosen, told = _chosen(place, upto, tool, had, idle=bool(known))
        new = [script for script in place.listed if script.id in chosen and script.id not in had]
        after = [*place.history, *(_row(script, place) for script in new)]
        result = Baselined(
            changed=False,
            what=f"nothing more counts as applied on {environment} of {customer}; there is nothing to record",
            customer=customer,
            environment=environment,
            release=place.release.name,
            tool=told[0],
            applied=tuple(script.id for script in new),
            known=tuple(known),
            strange=told[1],
            pending=tuple(script.id for script in place.compared(after).pending),
            next_commands=(f"invoke plan customer={customer} env={environment}",),
        )
        if not new and not known:
            return result
        what = f"{len(new)} script(s) count as applied on {environment} of {customer} from now on"
        if dry_run:
            return result.model_copy(update={"what": what.replace(" count ", " would count ")})
        scripts = known | {script.id: script.checksum for script in new}
        not_run = {script.id for script in new} | {row.script for row in rows if row.state == "baseline"} & set(known)
        details = {"scripts": scripts, "tool": told[0], "known": sorted(known), "release": place.release.name}
        details["asserted"] = sorted(not_run)
        with _recorded(place, "migrations-baselined", "migrate.baseline", reason, details) as record:
            place.database.baseline(new, fence=record.number, run=record.run, release=place.release.name)
        return result.model_copy(update={"changed": True, "what": what, "record": record.id})


def repair(
    session: Session,
    *,
    customer: str,
    environment: str,
    script: str,
    reason: str,
    resume_at: int | None = None,
    done: bool = False,
    reverted: bool = False,
    dry_run: bool = False,
) -> Repaired:
    """Ends the blocked state of a script that was begun and not finished, by what a person has found in the database."""
    if not reason.strip():
        raise UsageError("a repair needs a reason")
    if (resume_at is not None) + done + reverted != 1:
        raise UsageError("say what was found: resume-at=N, --mark-done or --mark-reverted, one of them")
    what: Repair = "done" if done else "reverted" if reverted else "resume"
    with opened(session, customer, environment, None, deciding=True) as place:
        row = _blocked(place, script)
        if resume_at is not None:
            _resumable(place, row, resume_at)
        said = {
            "done": f"all of {script} counts as applied",
            "reverted": f"nothing of {script} counts as applied; it will run again from its beginning",
            "resume": f"{script} goes on with statement {resume_at} of {row.statements}",
        }[what]
        running = place.state.environment(environment).running
        again = resume_commands(customer, environment, running) if running is not None else []
        result = Repaired(
            changed=not dry_run,
            what=f"would be recorded: {said}" if dry_run else said,
            customer=customer,
            environment=environment,
            script=script,
            found=what,
            resume_at=resume_at,
            next_commands=tuple(again) or (f"invoke plan customer={customer} env={environment}",),
        )
        if dry_run:
            return result
        details: dict[str, Any] = {"script": script, "what": what, "checksum": row.checksum, "resume_at": resume_at}
        details |= {"statement": row.statement, "statements": row.statements, "of_run": row.run}
        with _recorded(place, "migration-repaired", "migrate.repair", reason, details) as record:
            place.database.repair(
                script, what, fence=record.number, run=record.run, release=row.release, resume_at=resume_at
            )
        return result.model_copy(update={"record": record.id})


# --- how --------------------------------------------------------------------------------------------------------------


def _nothing_open(place: Place) -> None:
    running = place.state.environment(place.environment.key).running
    if running is not None:
        raise Refused(
            f"deployment {running.deployment} on {place.environment.key} of {place.dossier.key} has no outcome yet",
            reasons=[Reason("what it applied is not recorded yet", running.record)],
            next_commands=resume_commands(place.dossier.key, place.environment.key, running),
        )


def _chosen(
    place: Place, upto: str | None, tool: str | None, had: set[str], *, idle: bool
) -> tuple[set[str], tuple[str | None, tuple[str, ...]]]:
    """The scripts that count as applied; whose history says so, and what that tool has run beside them.

    ``idle``: there is something to do also where nobody says anything.
    """
    if upto is not None:
        versioned = [script.id for script in place.listed if script.kind == "versioned"]
        if upto not in versioned:
            raise NotKnown(
                f"release {place.release.name} has no migration {upto!r}{did_you_mean(upto, versioned)}",
                reasons=[Reason("its migrations are " + (", ".join(versioned) or "none"))],
            )
        return set(versioned[: versioned.index(upto) + 1]), (None, ())
    if tool is not None and tool not in foreign_histories.TOOLS:
        raise UsageError(
            f"{tool!r} is no tool whose history can be read{did_you_mean(tool, foreign_histories.TOOLS)}",
            reasons=[Reason("known: " + ", ".join(foreign_histories.TOOLS))],
        )
    tables = foreign_histories.found(place.database.catalogue().get("tables", {}))
    if tool is not None and tool not in tables:
        raise NotKnown(
            f"the database of {place.environment.key} of {place.dossier.key} has no history of {tool}",
            reasons=[Reason(f"there is no table {foreign_histories.TOOLS[tool].table} with the columns that it has")],
            next_commands=[f"invoke migrate.baseline {place.named} upto=… reason=…"],
        )
    if tool is None and len(tables) != 1:
        if idle or (had and not tables):
            return set(), (None, ())
        found = f"it holds histories of {', '.join(tables)}" if tables else "it holds no other tool's history"
        raise UsageError(
            f"which scripts have run on {place.environment.key} of {place.dossier.key} is not known by itself",
            reasons=[Reason(found)],
            next_commands=[f"invoke migrate.baseline {place.named} from={one} reason=…" for one in tables]
            or [f"invoke migrate.baseline {place.named} upto=… reason=…"],
        )
    tool = tool or next(iter(tables))
    assert place.environment.database is not None
    query = foreign_histories.statement(tool, tables[tool], place.environment.database.engine)
    texts = {id: data.decode("utf-8", "replace") for id, (_, data) in place.scripts.items()}
    read = foreign_histories.reading(tool, place.database.query(query), place.listed, texts)
    if read.unfinished:
        raise Refused(
            f"{tool} has begun what it did not finish on {place.environment.key} of {place.dossier.key}",
            reasons=[Reason(f"not finished, or failed: {name}", tables[tool]) for name in read.unfinished],
            state="Nothing was changed. Finish it or take it back with that tool first.",
        )
    if read.unclear:
        raise Refused(
            f"the history of {tool} does not say which scripts have run on {place.environment.key} of {place.dossier.key}",
            reasons=[Reason(one, tables[tool]) for one in read.unclear],
            next_commands=[f"invoke migrate.baseline {place.named} upto=… reason=…"],
        )
    return set(read.applied), (tool, read.unknown)


def _row(script: Script, place: Place) -> Applied:
    """The row that this script will have, to see what would be pending then."""
    now = place.dossier.session.now()
    return Applied(
        script=script.id,
        checksum=script.checksum,
        algorithm=script.algorithm,
        fence=0,
        run="baseline",
        release=place.release.name,
        at=now,
        state="baseline",
    )


def _blocked(place: Place, script: str) -> Applied:
    row = next((row for row in place.history if row.script == script), None)
    begun = [row.script for row in place.history if row.state == "running"]
    if row is None:
        raise NotKnown(
            f"nothing of migration {script!r} was begun on {place.environment.key} of {place.dossier.key}"
            f"{did_you_mean(script, begun)}",
            next_commands=[f"invoke plan {place.named}"],
        )
    if row.state != "running":
        raise Refused(
            f"migration {script} is not blocked on {place.environment.key} of {place.dossier.key}: it is {row.state}",
            reasons=[Reason(f"blocked: {', '.join(begun) or 'nothing'}")],
            next_commands=[f"invoke plan {place.named}"],
        )
    return row


def _resumable(place: Place, row: Applied, resume_at: int) -> None:
    if row.session:
        raise Refused(
            f"migration {row.script} depends on the state of its session, and cannot go on in the middle",
            reasons=[Reason(committed(row), row.script)],
            state="Nothing was changed. Finish it or take it back by hand, then say which.",
            next_commands=[
                f"invoke migrate.repair {place.named} script={row.script} --mark-done reason=…",
                f"invoke migrate.repair {place.named} script={row.script} --mark-reverted reason=…",
            ],
        )
    if not 1 <= resume_at <= row.statements:
        raise UsageError(f"{row.script} has {row.statements} statement(s): resume-at= is one of 1 to {row.statements}")


@contextmanager
def _recorded(place: Place, kind: Any, verb: str, reason: str, details: dict[str, Any]) -> Iterator[Record]:
    """The record, under the environment's lease, for the change to the database that is made in the block."""
    dossier, session, key = place.dossier, place.dossier.session, place.environment.key
    run = session.new_run()
    with hold(
        dossier.repository,
        dossier.key,
        key,
        run=run,
        actor=session.signer.key,
        at=session.now(),
        purpose=verb,
        work=session.work,
        release=place.release.name,
        clock=session.now,
    ) as held:
        [record] = dossier.ledger.append(
            session.signer, lambda state: [_draft(place, state, held, run, kind, reason, details)]
        )
        try:
            yield record
        except (PipelineError, LineCut) as error:
            said = [Reason(error.what), *error.reasons] if isinstance(error, PipelineError) else [Reason(str(error))]
            raise PartlyDone(
                f"it is recorded, and the database of {key} of {dossier.key} did not take it",
                reasons=[Reason(session.conceal(reason.text), reason.source) for reason in said],
                state=f"Record {record.number} says it; deployments are refused as long as the database differs.",
                next_commands=["the same command again", f"invoke migrate.drift {place.named}"],
            ) from None


def _draft(place: Place, state: State, held: Held, run: str, kind: Any, reason: str, details: dict[str, Any]) -> Draft:
    dossier, key = place.dossier, place.environment.key
    held.check()
    if state.environment(key) != place.state.environment(key):
        raise Refused(
            f"{key} of {dossier.key} has changed while this was being looked at",
            next_commands=[f"invoke status customer={dossier.key}"],
        )
    return Draft(
        id=f"{run}-{kind}-1",
        run=run,
        kind=kind,
        at=dossier.session.now(),
        product=dossier.customer.product,
        environment=key,
        release=place.release.name,
        configuration=dossier.configuration(key),
        texts={"reason": reason, "people": dossier.people_used(dossier.session.actor.key)},
        details=details,
    )
