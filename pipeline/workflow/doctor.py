"""Whether every host of a customer could be deployed to now, and what to do where it could not: in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import preflight
from pipeline.errors import PipelineError, Reason, Refused, Unreachable
from pipeline.host import Host
from pipeline.preflight import HostFacts, Need
from pipeline.state import State
from pipeline.transports import LineCut
from pipeline.workflow.backups import missing_file
from pipeline.workflow.databases import committed, open_database
from pipeline.workflow.gathering import closing, hosts_of, release_manifest
from pipeline.workflow.hosts import at_once, journal_disagreements
from pipeline.workflow.session import Dossier, Result, Session

if TYPE_CHECKING:
    from pipeline.transports.host_key import OfferedKey

Row = dict[str, Any]
"""What is known of one host or database, as JSON values; ``troubles`` are the sentences that speak against it."""


class Diagnosis(Result):
    """That all is well, with what was seen of each host and database."""

    customer: str
    hosts: tuple[Row, ...]
    databases: tuple[Row, ...]

    def lines(self) -> list[str]:
        return [self.what, *_report(self.hosts, self.databases)]


def doctor(session: Session, *, customer: str, environment: str | None = None) -> Diagnosis:
    """Looks at every host and database of the customer, or of one environment; writes nothing.

    Host keys are read also where they are not trusted yet, with the exact line that would make them known. Unreachable
    (exit 7) when a host or database does not answer or does not let us in, Refused (exit 4) when only a deployment would
    be refused; both with every trouble, after the whole report.
    """
    dossier = session.dossier(customer, deciding=False)
    keys = [environment] if environment else list(dossier.loaded.environments)
    for key in keys:
        dossier.environment(key)
    state = dossier.state()
    need = _need(dossier, state)
    hosts: list[Row] = []
    databases: list[Row] = []
    for key in keys:
        opened = hosts_of(dossier, dossier.environment(key))
        session.progress(f"looking at {key}: {', '.join(opened)}")
        with closing(opened):
            rows = at_once(opened, _look)
            for name, row in rows.items():
                _judge(dossier, key, state, name, row, need)
            hosts += [{"environment": key, **row} for row in rows.values()]
            if dossier.environment(key).database is not None:
                first = next(iter(opened.values()))
                databases.append({"environment": key, **_database(dossier, key, first, rows[first.name])})
    for row in hosts:
        row.pop("seen")
    troubles = [(row, Reason(text, _place(row))) for row in (*hosts, *databases) for text in row["troubles"]]
    if not troubles:
        return Diagnosis(
            changed=False,
            what=f"all is well with {len(hosts)} host(s) and {len(databases)} database(s) of {customer}",
            customer=customer,
            hosts=tuple(hosts),
            databases=tuple(databases),
        )
    for line in _report(hosts, databases):
        session.progress(line)
    closed = any(row["reached"] is False for row in (*hosts, *databases))
    family = Unreachable if closed else Refused
    raise family(
        f"not all is well with the hosts of {customer}: {len(troubles)} trouble(s).",
        reasons=[reason for _, reason in troubles],
        next_commands=list(dict.fromkeys(step for row in hosts for step in row["steps"])),
        details={"hosts": hosts, "databases": databases},
    )


def _need(dossier: Dossier, state: State) -> Need | None:
    """What the newest release takes; None before the first."""
    newest = state.newest_release()
    if newest is None:
        return None
    files = release_manifest(dossier, newest).files
    return Need(newest.name, sum(file.size for file in files), len(files))


def _look(host: Host) -> Row:
    """What one host says; never raises what it is asked to find out."""
    row: Row = {
        "host": host.name,
        "address": host.transport.name,
        "keys": [],
        "reached": False,
        "seen": None,
        "troubles": [],
        "warnings": [],
        "steps": [],
    }
    try:
        offered = getattr(host.transport, "offered_keys", None)
        for key in offered() if offered else ():
            row["keys"].append(_key(key))
            if key.objections:
                row["troubles"] += [str(reason) for reason in key.objections]
                row["steps"] += _to_trust(key)
                return row
        row["seen"] = host.inspect()
        row["reached"] = True
    except LineCut as error:
        row["troubles"].append(str(error))
    except PipelineError as error:
        row["reached"] = not isinstance(error, Unreachable)
        row["troubles"] += [error.what, *(str(reason) for reason in error.reasons)]
        row["steps"] += error.next_commands
    return row


def _key(offered: OfferedKey) -> Row:
    return {
        "server": offered.name,
        "kind": offered.key.kind,
        "fingerprint": offered.key.fingerprint,
        "trusted": not offered.objections,
        "known_hosts": offered.line,
        "host_key": offered.key.line,
    }


def _to_trust(offered: OfferedKey) -> Iterator[str]:
    """What to do for a key that nobody has named yet; nothing makes a wrong one right."""
    if offered.unknown:
        where = next((name.removesuffix(", which does not exist") for name in offered.files), "known_hosts")
        yield (
            f"compare {offered.key.fingerprint} with the fingerprint that the host's owner gives you, then add to {where}: "
            f"{offered.line}"
        )


def _judge(dossier: Dossier, environment: str, state: State, name: str, row: Row, need: Need | None) -> None:
    seen = row["seen"]
    if seen is None:
        return
    facts = HostFacts(
        name=name,
        current=seen.current,
        foreign=tuple(seen.foreign),
        missing_tools=tuple(seen.missing_tools),
        journal=tuple(journal_disagreements(dossier, environment, seen)),
        releases=tuple(seen.releases),
        user=seen.user,
        writable=seen.writable,
        free_bytes=seen.free_bytes,
        free_inodes=seen.free_inodes,
        clock_offset_seconds=seen.clock_offset_seconds,
        substitutes=seen.substitutes,
    )
    here = state.environment(environment)
    recorded = here.installed.release if here.installed else None
    expected = {recorded, here.running.release} if here.running else {recorded}
    row["troubles"] += [reason.text for reason in preflight.objections(facts, need)]
    if facts.current not in expected:
        row["troubles"].append(
            f"current is {facts.current or 'nothing'}, but the record says {recorded or 'nothing'} is installed"
        )
    row["warnings"] += [warning.removeprefix(f"{name}: ") for warning in preflight.warnings(facts)]
    row |= {
        "user": seen.user,
        "current": seen.current,
        "free_bytes": seen.free_bytes,
        "free_inodes": seen.free_inodes,
        "clock_offset_seconds": seen.clock_offset_seconds,
    }


def _database(dossier: Dossier, environment: str, host: Host, row: Row) -> Row:
    target = dossier.environment(environment)
    engine = target.database.engine if target.database else ""
    found: Row = {
        "engine": engine,
        "host": host.name,
        "reached": None,
        "migrations": None,
        "troubles": [],
        "warnings": [],
    }
    if not row["reached"] or row["seen"].foreign:
        return found
    try:
        gone = missing_file(target, host) if dossier.state().environment(environment).applied else None
        if gone is not None:
            found["troubles"].append(f"there is no database at {gone}, where the ledger knows migrations as applied")
        database = open_database(dossier, target, host)
        try:
            rows, server = database.history(), database.server()
            found |= {"reached": True, "migrations": len(rows), "version": server.version}
            found["warnings"] = list(server.substitutes)
            found["troubles"] += [f"the database cannot be migrated: {refusal}" for refusal in server.refusals]
            found["troubles"] += [
                f"migration {row.script} was begun and not finished ({committed(row)}): invoke migrate.repair "
                f"customer={dossier.key} env={environment} script={row.script} reason=…"
                for row in rows
                if row.state == "running"
            ]
        finally:
            database.close()
    except (PipelineError, LineCut) as error:
        found["reached"] = False
        what = [error.what, *map(str, error.reasons)] if isinstance(error, PipelineError) else [str(error)]
        found["troubles"] += [dossier.session.conceal(f"the database: {line}") for line in what]
    return found


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['environment']} {row['host']}"


def _report(hosts: Sequence[Row], databases: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for row in hosts:
        lines.append(f"{_place(row)}, {row['address']}")
        for key in row["keys"]:
            trust = "trusted" if key["trusted"] else "NOT TRUSTED"
            lines.append(f"  host key of {key['server']}: {key['kind']} {key['fingerprint']}, {trust}")
            if not key["trusted"]:
                lines.append(f"    its line in known_hosts: {key['known_hosts']}")
                lines.append(f"    or in {row['environment']}.yaml, for the host itself: host_key: {key['host_key']}")
        if "user" in row:
            room = [f"{preflight.in_words(row['free_bytes'])} free"] if row["free_bytes"] is not None else []
            room += [f"{row['free_inodes']} inodes free"] if row["free_inodes"] is not None else []
            lines.append(f"  let in as {row['user']}; {row['current'] or 'nothing'} serves; {', '.join(room)}")
            lines.append(f"  its clock is {row['clock_offset_seconds']:+g} s from ours")
        lines += [f"  note: {warning}" for warning in row["warnings"]]
        lines += [f"  trouble: {trouble}" for trouble in row["troubles"]]
    for row in databases:
        answer = {True: f"answers, {row['migrations']} migration(s) in its history", None: "was not asked"}
        lines.append(
            f"{row['environment']} database ({row.get('version') or row['engine']}): "
            + answer.get(row["reached"], "does not answer")
        )
        lines += [f"  note: {warning}" for warning in row["warnings"]]
        lines += [f"  trouble: {trouble}" for trouble in row["troubles"]]
    return lines
