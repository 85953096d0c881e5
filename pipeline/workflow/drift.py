"""What was changed on the hosts since the deployment: found by content, and brought into the customer's line."""

from __future__ import annotations

import io
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline import rules, wiring
from pipeline.errors import Failed, Locked, NotKnown, PipelineError, Reason, Refused
from pipeline.host import Host, HostFacts
from pipeline.model import RefMove
from pipeline.paths import path_bytes, path_text
from pipeline.repository import Raced, with_trailers
from pipeline.state import EnvironmentState, ReleaseState, State
from pipeline.suggest import did_you_mean
from pipeline.workflow.gathering import closing, hosts_of, manifests
from pipeline.workflow.hosts import at_once, drift_of, journal_disagreements
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Dossier, Result, Session

LARGEST_ADOPTED = 20 * 1024 * 1024
MOST_ADOPTED = 1000
"""Bytes and files that ``drift.adopt`` takes at once: more than that is no correction by hand, but another release."""

SHORTEST_SECRET = 6
"""Characters; a shorter one is found in files by chance."""

_SENTENCES = re.compile(
    r"(?P<path>.+?) (?:(?P<gone>is missing)|(?P<unreadable>cannot be read by us)"
    r"|was changed|does not belong to the release|has another mode than \d+|is another kind of file or points elsewhere)"
)


class DriftResult(Result):
    """That every host holds exactly what was deployed, with what was compared: per host the files and the release."""

    customer: str
    environment: str
    release: str | None
    seconds: float
    hosts: tuple[dict[str, Any], ...]

    def lines(self) -> list[str]:
        return [self.what, *(line for host in self.hosts for line in _host_lines(host))]


def _host_lines(host: Mapping[str, Any]) -> list[str]:
    compared = (
        f"{host['files']} file(s) of {host['current']} compared by content" if host["current"] else "holds nothing"
    )
    shared = ", and the configuration in shared/" if host["shared_compared"] else ""
    return [f"  {host['host']}: {compared}{shared}", *(f"    note: {note}" for note in host["notes"])]


def drift(session: Session, *, customer: str, environment: str) -> DriftResult:
    """That no host of the environment differs from what was deployed; Refused (exit 4) with every difference.

    Compared is each file of the release that serves by content, mode and link target, what lies there beside them,
    ``current``, the folders of releases, the configuration in ``shared/``, and the journal. Changes nothing.
    """
    dossier = session.dossier(customer, deciding=False)
    dossier.repository.fetch()
    state = dossier.state()
    here = state.environment(environment)
    hosts = hosts_of(dossier, dossier.environment(environment))
    manifest = manifests(dossier, state)
    started = time.monotonic()
    with closing(hosts):
        session.progress(f"comparing every file on {', '.join(hosts)}")
        seen = at_once(hosts, lambda host: host.inspect())
        differing = drift_of(hosts, seen, state, "content", manifest)
        ours = {name: host for name, host in hosts.items() if seen[name].ours and not seen[name].foreign}
        shared = at_once(ours, _shared)
        journals = at_once(ours, partial(_journal, here))
    rows: tuple[dict[str, Any], ...] = tuple(
        {
            "host": name,
            "current": facts.current,
            "files": len(manifest(facts.current).files) if facts.current in state.releases and not facts.foreign else 0,
            "shared_compared": name in shared,
            "differences": [
                *_astray(state, here, facts),
                *differing.get(name, ()),
                *shared.get(name, ()),
                *journal_disagreements(dossier, environment, facts),
                *journals.get(name, ()),
            ],
            "notes": list(_notes(environment, here, facts)),
        }
        for name, facts in seen.items()
    )
    seconds = round(time.monotonic() - started, 2)
    release = here.installed.release if here.installed else None
    compared = f"{sum(row['files'] for row in rows)} file(s) on {len(rows)} host(s) compared in {seconds} s"
    found = sum(len(row["differences"]) for row in rows)
    if found:
        raise _found(customer, environment, release, compared, found, rows)
    what, after = f"{environment} of {customer} holds exactly {release or 'nothing'}: {compared}", []
    if (running := here.running) is not None:
        held = ", ".join(f"{row['host']} holds {row['current'] or 'nothing'}" for row in rows)
        what = f"deployment {running.deployment} of {running.release} on {environment} of {customer} is open: {held}; "
        what += f"of these releases nothing differs, {release or 'nothing'} is recorded as installed: {compared}"
        back = f"invoke rollback customer={customer} env={environment}"
        after = list(dict.fromkeys([*resume_commands(customer, environment, running), back]))
    return DriftResult(
        changed=False,
        what=what,
        next_commands=tuple(after),
        customer=customer,
        environment=environment,
        release=release,
        seconds=seconds,
        hosts=rows,
    )


def _found(
    customer: str, environment: str, release: str | None, compared: str, found: int, rows: Sequence[dict[str, Any]]
) -> Refused:
    reasons: list[Reason] = []
    for row in rows:
        lines = row["differences"]
        reasons += [Reason(line, row["host"]) for line in lines[: rules.DRIFT_SHOWN]]
        if len(lines) > rules.DRIFT_SHOWN:
            reasons.append(Reason(f"and {len(lines) - rules.DRIFT_SHOWN} more, which --json lists", row["host"]))
    adopt = [
        f"invoke drift.adopt customer={customer} env={environment} host={row['host']} ticket=…"
        for row in rows
        if row["current"] == release and row["differences"]
    ]
    onto = "promote" if environment == "production" else "deploy"
    env = "" if onto == "promote" else f" env={environment}"
    if adopt:
        adopt.append(f"invoke {onto} customer={customer}{env} accept-drift=…")
    return Refused(
        f"{environment} of {customer} is not as it was deployed: {found} difference(s) from {release or 'nothing'}.",
        reasons=reasons,
        state=f"Nothing was changed. {compared}.",
        next_commands=adopt or [f"invoke status customer={customer}"],
        details={"environment": environment, "release": release, "hosts": list(rows)},
    )


def _astray(state: State, here: EnvironmentState, facts: HostFacts) -> Iterator[str]:
    """What is not where it should be, files of the release aside."""
    recorded = here.installed.release if here.installed else None
    expected = {recorded, here.running.release} if here.running else {recorded}
    if facts.current not in expected:
        yield f"current is {facts.current or 'nothing'}, but the record says {recorded or 'nothing'} is installed"
    yield from facts.foreign
    for release in facts.releases:
        if release not in state.releases and release != facts.current:
            yield f"releases/{release} is no release of {state.customer}"


def _notes(environment: str, here: EnvironmentState, facts: HostFacts) -> Iterator[str]:
    if here.quarantined is not None:
        yield f"{environment} is quarantined since deployment {here.quarantined}"
    if here.running is not None:
        yield f"deployment {here.running.deployment} of {here.running.release} has no outcome yet"
    before = next((one.release for one in reversed(here.earlier) if one.release not in here.left), None)
    if before is not None and before not in facts.releases:
        yield f"{before}, to which a rollback would return, is no longer on this host: it would be sent anew"


def _shared(host: Host) -> list[str]:
    """How the configuration in ``shared/`` differs from what was written there."""
    return [line if line.startswith("shared/") else f"shared/{line}" for line in host.verify_shared()]


def _journal(here: EnvironmentState, host: Host) -> list[str]:
    """What is wrong with the whole journal, of which an ordinary look reads the last two entries."""
    try:
        entries = host.journal()
    except (Failed, Refused) as error:
        return [f"its deployment journal: {reason}" for reason in error.reasons]
    # A way back that was cut off ends nowhere, and the quarantine says so already.
    ended = here.running is None and here.quarantined is None
    if entries and ended and entries[-1].what not in {"deployment-finished", "lock-released"}:
        return [f"its deployment journal ends with {entries[-1].what}, and no deployment is open: entries are missing"]
    return []


# --- into the line ------------------------------------------------------------------------------------------------------


class Adopted(Result):
    """The commit that holds what one host has: on its branch, for a patch. ``left_out``: what Git cannot hold."""

    customer: str
    environment: str
    host: str
    release: str
    commit: str | None
    branch: str
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    diffstat: str

    def lines(self) -> list[str]:
        left = [f"  left out: {sentence}" for sentence in self.left_out]
        return [self.what, *(f"  {line}" for line in self.diffstat.splitlines() or self.files), *left]


def adopt(
    session: Session, *, customer: str, environment: str, host: str, tickets: tuple[str, ...], dry_run: bool = False
) -> Adopted:
    """A commit with what somebody changed in the release that serves on ``host``, on a branch of its own; no line moves.

    ``patch commit=…`` brings it into the line, where it is reviewed, tested and signed off like any fix. ``shared/`` is
    never read. Refused where the host is not at the installed release, for what no release can hold, and for a file
    with one of the environment's secrets in it.
    """
    dossier = session.dossier(customer)
    state = dossier.state()
    here = state.environment(environment)
    installed = dossier.release(dossier.installed(environment, state).release, state)
    _known(dossier, state, environment, host, tickets)
    if here.running is not None:
        raise Refused(
            f"deployment {here.running.deployment} on {environment} of {customer} has no outcome yet",
            next_commands=[f"invoke status customer={customer}"],
        )
    hosts = {name: one for name, one in hosts_of(dossier, dossier.environment(environment)).items() if name == host}
    with closing(hosts):
        [(changes, left_out)] = at_once(hosts, lambda one: _changed(dossier, state, installed, one)).values()
    _no_secrets(dossier, environment, host, changes)
    branch = f"{customer}/drift/{environment}"
    common: dict[str, Any] = {
        "customer": customer,
        "environment": environment,
        "host": host,
        "release": installed.name,
        "branch": branch,
        "files": tuple(f"{path}{'' if change else ' is removed'}" for path, change in sorted(changes.items())),
        "left_out": left_out,
    }
    if not changes or dry_run:
        what = f"{len(changes)} file(s) of {host} would be adopted on {branch}"
        if not changes:
            what = f"there is nothing to adopt: the files of {installed.name} on {host} are as they were deployed"
        return Adopted(changed=False, what=what, commit=None, diffstat="", **common)
    commit, moved = _committed(dossier, environment, host, installed, tickets, changes)
    number = ",".join(tickets)
    return Adopted(
        changed=moved,
        what=f"what {host} of {environment} has instead of {installed.name} is commit {commit[:12]} on {branch}",
        commit=commit,
        diffstat=_diffstat(dossier, installed.commit, commit),
        next_commands=(
            f"invoke patch customer={customer} commit={commit[:12]} ticket={number} env={environment}",
            f"invoke deploy customer={customer} accept-drift='adopted as {commit[:12]}'",
        ),
        in_order=True,
        **common,
    )


Changes = Mapping[str, tuple[str, bytes] | None]
"""Path to mode and bytes (a link: its target); None: removed."""


def _known(dossier: Dossier, state: State, environment: str, host: str, tickets: tuple[str, ...]) -> None:
    names = [one.name for one in dossier.environment(environment).hosts]
    if host not in names:
        raise NotKnown(
            f"{environment} of {dossier.key} has no host {host!r}{did_you_mean(host, names)}",
            reasons=[Reason(f"hosts are {', '.join(names)}", f"environments/{dossier.key}/{environment}.yaml")],
        )
    if unknown := wiring.tracker_for(dossier.customer).unknown(state, tickets):
        raise NotKnown(
            f"{dossier.key} has no ticket {', '.join(unknown)}{did_you_mean(unknown[0], state.tickets)}",
            next_commands=[f"invoke ticket.open customer={dossier.key} title=…"],
        )


def _changed(dossier: Dossier, state: State, installed: ReleaseState, host: Host) -> tuple[Changes, tuple[str, ...]]:
    """What the host has instead of the release's files, and sentences about what is left out."""
    seen = host.inspect()
    if seen.current != installed.name or seen.foreign:
        raise Refused(
            f"{host.name} is not at {installed.name}",
            reasons=[Reason(f"current is {seen.current or 'nothing'}", host.name)]
            + [Reason(found, host.name) for found in seen.foreign],
        )
    manifest = manifests(dossier, state)(installed.name)
    sentences = host.verify(installed.name, manifest)
    parts = {sentence: _SENTENCES.fullmatch(sentence) for sentence in sentences}
    if odd := [sentence for sentence, part in parts.items() if part is None or part["unreadable"]]:
        raise Refused(f"what {host.name} has cannot be adopted", reasons=[Reason(line, host.name) for line in odd])
    found = {part["path"]: (sentence, part) for sentence, part in parts.items() if part is not None}
    wanted = [path for path, (_, part) in found.items() if not part["gone"]]
    if len(found) > MOST_ADOPTED:
        raise Refused(
            f"{len(found)} files differ on {host.name}, more than the {MOST_ADOPTED} that are adopted at once",
            reasons=[Reason("this is another release, not a correction", host.name)],
        )
    names = "".join(f"{_for_printf(path_bytes(path))}\n" for path in wanted).encode()
    got = _unpacked(
        host.ask(
            "read_files",
            installed.name,
            str(LARGEST_ADOPTED),
            stdin=names,
            what="reading the changed files",
        ).stdout
        if wanted
        else b""
    )
    held = {file.path: file for file in manifest.files}
    changes: dict[str, tuple[str, bytes] | None] = {}
    left_out: list[str] = []
    for path, (sentence, part) in found.items():
        if part["gone"]:
            changes[path] = None
        elif path not in got:
            left_out.append(f"{path} is an empty folder, which Git does not know")
        elif path in held and sentence.startswith(f"{path} has another mode") and got[path][0] == held[path].mode:
            left_out.append(f"{sentence}, of which Git keeps only whether it is executable")
        else:
            changes[path] = got[path]
    return changes, tuple(left_out)


def _for_printf(name: bytes) -> str:
    """A name for printf's ``%b``: every byte but the plainest as ``\\0`` and its octal number."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/+-"
    return "".join(chr(byte) if byte in plain else f"\\0{byte:03o}" for byte in name)


def _unpacked(tar: bytes) -> dict[str, tuple[str, bytes]]:
    """Mode and bytes of each file of a tar, by the escaped form of its name."""
    found: dict[str, tuple[str, bytes]] = {}
    if not tar:
        return found
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            for member in archive:
                name = path_text(member.name.encode("utf-8", "surrogateescape").removeprefix(b"./"))
                if member.issym():
                    found[name] = ("120000", member.linkname.encode("utf-8", "surrogateescape"))
                elif (file := archive.extractfile(member)) is not None:
                    found[name] = ("100755" if member.mode & 0o100 else "100644", file.read())
    except tarfile.TarError as error:
        raise Failed("what the host sent cannot be read.", reasons=[str(error)]) from error
    return found


def _no_secrets(dossier: Dossier, environment: str, host: str, changes: Changes) -> None:
    """Refused for a file that holds a secret of the environment: in Git it would be for good, and for everybody."""
    session, target = dossier.session, dossier.environment(environment)
    references = dict(target.secrets)
    if target.database is not None and target.database.password is not None:
        references["the database's password"] = target.database.password
    found: list[Reason] = []
    for name, reference in references.items():
        try:
            secret = session.resolve(reference).encode()
        except PipelineError:
            continue  # it is not known here, so it cannot be looked for
        found += [
            Reason(f"{path} holds the secret {name}", host)
            for path, change in changes.items()
            if change is not None and len(secret) >= SHORTEST_SECRET and secret in change[1]
        ]
    if found:
        raise Refused(
            f"what {host} has is not adopted: Git would keep a secret for good",
            reasons=found,
            next_commands=[f"invoke plan customer={dossier.key} env={environment}"],
        )


def _committed(
    dossier: Dossier,
    environment: str,
    host: str,
    installed: ReleaseState,
    tickets: tuple[str, ...],
    changes: Changes,
) -> tuple[str, bool]:
    """The commit, and whether it is new: the same files on the same release again make no second one."""
    repository, session = dossier.repository, dossier.session
    blobs = {
        path: (change[0], repository.write_blob(change[1])) if change else None for path, change in changes.items()
    }
    tree = repository.write_tree(installed.commit, blobs)
    ref = f"refs/heads/{dossier.key}/drift/{environment}"
    tip = repository.ref(ref)
    if (
        tip is not None
        and repository.tree_of(tip) == tree
        and repository.commit_info(tip).parents == (installed.commit,)
    ):
        return tip, False
    message = with_trailers(
        f"What {host} of {environment} has instead of {installed.name}",
        {"Environment": environment, "Host": host, "Release": installed.name, "Ticket": ", ".join(tickets)},
    )
    commit = repository.write_commit(tree, [installed.commit], message, author=session.signer.key, at=session.now())
    # Refused, with every file, for what a release cannot hold: before any ref leads to it.
    dossier.installation.manifest(commit)
    try:
        repository.move([RefMove(ref=ref, old=tip, new=commit)])
    except Raced as error:
        raise Locked(
            f"somebody else adopts from {environment} of {dossier.key} at this moment",
            reasons=[str(error)],
            next_commands=["the same command again"],
        ) from error
    return commit, True


def _diffstat(dossier: Dossier, old: str, new: str) -> str:
    done = dossier.repository.git("diff", "--stat=100", "--no-renames", "--end-of-options", old, new)
    return done.stdout.decode("utf-8", "replace").rstrip()
