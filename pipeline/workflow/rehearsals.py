"""The pending scripts before they run: on trial, and as a file that somebody else runs. Changes no database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.databases import FENCE_TABLE
from pipeline.databases.by_hand import PROGRAMS, ByHand
from pipeline.errors import Failed, Reason, Refused
from pipeline.workflow.databases import Look, committed, look_at
from pipeline.workflow.gathering import release_manifest
from pipeline.workflow.migrations import Place, opened
from pipeline.workflow.session import Result, Session

# The name is our own constant.
_WHERE = f"""
SELECT pg_catalog.current_setting('search_path'), COALESCE(
  (SELECT n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE c.oid = pg_catalog.to_regclass('{FENCE_TABLE}')), pg_catalog.current_schema()::text)
"""  # noqa: S608
"""What the runner's own session has on PostgreSQL, so that a file that somebody else runs works there as well."""


class RehearsalDone(Result):
    """What became of each script on trial."""

    customer: str
    environment: str
    release: str
    scripts: tuple[dict[str, str], ...]

    def lines(self) -> list[str]:
        return [self.what, *(f"  {_told(one)}" for one in self.scripts)]


class SqlWritten(Result):
    """The file's text, and where it was written; ``sql`` is printed where no file was asked for."""

    customer: str
    environment: str
    release: str
    migrations: tuple[str, ...]
    path: str | None
    sql: str

    def lines(self) -> list[str]:
        return [self.what] if self.path or not self.sql else [self.sql]


def _told(row: dict[str, str]) -> str:
    return f"{row['script']}: {row['outcome']}" + (f" ({row['said']})" if row["said"] else "")


@dataclass(frozen=True)
class _Pending:
    place: Place
    look: Look


def rehearse(session: Session, *, customer: str, environment: str, release: str | None = None) -> RehearsalDone:
    """Runs the pending scripts of a release (the newest by default) on trial; Failed (exit 1) when one does not run."""
    with _pending(session, customer, environment, release) as pending:
        look, place = pending.look, pending.place
        scripts = [look.scripts[script.id] for script in look.comparison.pending]
        told = place.database.rehearse(scripts, run=session.new_run()) if scripts else []
        name = place.release.name
    rows = tuple({"script": one.script, "outcome": one.outcome, "said": session.conceal(one.said)} for one in told)
    failed = [row for row in rows if row["outcome"] == "failed"]
    where = f"{environment} of {customer}"
    if failed:
        raise Failed(
            f"the migrations of {name} do not run on {where}: {len(failed)} failed on trial",
            reasons=[Reason(_told(row)) for row in rows],
            state="Nothing of it stays.",
            next_commands=[f"invoke plan customer={customer} env={environment} release={name}"],
            details={"scripts": list(rows)},
        )
    skipped = sum(row["outcome"] == "skipped" for row in rows)
    ran = f"{len(rows) - skipped} migration(s) of {name} ran on trial on {where}, and nothing of it stays"
    return RehearsalDone(
        changed=False,
        what=(ran + (f"; {skipped} could not be tried" if skipped else ""))
        if rows
        else f"nothing is pending on {where}",
        customer=customer,
        environment=environment,
        release=name,
        scripts=rows,
        next_commands=(f"invoke plan customer={customer} env={environment} release={name}",),
    )


def write_sql(
    session: Session, *, customer: str, environment: str, release: str | None = None, out: Path | None = None
) -> SqlWritten:
    """The pending scripts of a release (the newest by default) as one file of SQL, written to ``out`` where given."""
    with _pending(session, customer, environment, release) as pending:
        place, look = pending.place, pending.look
        settings = place.environment.database
        assert settings is not None
        scripts = [look.scripts[script.id] for script in look.comparison.pending]
        where: tuple[str | None, str | None] = (None, None)
        if settings.engine == "postgresql" and scripts:
            [(search_path, schema)] = place.database.query(_WHERE)
            where = (search_path, schema)
        by_hand = ByHand(
            customer=customer,
            environment=environment,
            release=place.release.name,
            settings=settings,
            fence=place.state.number,
            run=f"{session.new_run()}-by-hand",
            at=f"{session.now():%Y-%m-%dT%H:%M:%SZ}",
            search_path=where[0],
            schema=where[1],
            known=bool(look.history),
        )
        text = by_hand.file(scripts, look.comparison.covers, look.verify) if scripts else ""
    path = session.folder / out if out is not None and scripts else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    what = f"{len(scripts)} migration(s) of {place.release.name} for {environment} of {customer}"
    after: tuple[str, ...] = ()
    if scripts:
        file = str(path) if path else "FILE"
        after = (
            PROGRAMS[settings.engine].replace("FILE", file).replace("DATABASE", settings.path or settings.name or ""),
            f"invoke migrate.baseline customer={customer} env={environment} reason=…",
        )
    return SqlWritten(
        changed=False,
        what=f"{what}: {path or 'as SQL'}" if scripts else f"nothing is pending on {environment} of {customer}",
        customer=customer,
        environment=environment,
        release=place.release.name,
        migrations=tuple(script.id for script, _ in scripts),
        path=str(path) if path else None,
        sql=text,
        next_commands=after,
        in_order=True,
    )


@contextmanager
def _pending(session: Session, customer: str, environment: str, release: str | None) -> Iterator[_Pending]:
    """What is pending; Refused where nothing can be said of it before somebody has looked at the database."""
    with opened(session, customer, environment, release, deciding=False, newest=True) as place:
        manifest = release_manifest(place.dossier, place.release)
        playbook = place.dossier.playbook.playbook
        look = look_at(place.dossier, place.state, place.environment, place.host, playbook, manifest, ask=True)
        # One that somebody has found fit to go on too: from its beginning it is no longer to be run.
        reasons = [
            Reason(f"{row.script} was begun and not finished ({committed(row)})") for row in look.comparison.blocked
        ]
        reasons += [Reason(f"{edit.applied.script} was edited after it ran") for edit in look.comparison.edited]
        if look.unknown_schema:
            reasons.append(Reason("the database has tables and no migration history: invoke migrate.baseline"))
        if reasons:
            raise Refused(
                f"what is pending on {environment} of {customer} is not known.",
                reasons=reasons,
                next_commands=[f"invoke plan customer={customer} env={environment}"],
            )
        yield _Pending(place, look)
