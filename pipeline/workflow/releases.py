"""Releases and patches: a product's version, or a fix, becomes something that can be tested and signed off."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from pipeline.errors import Failed, NotKnown, Reason, Refused, Unreachable, UsageError
from pipeline.model import Draft, RefMove
from pipeline.state import ReleaseState, State
from pipeline.versions import order, split_release
from pipeline.workflow import databases, gathering
from pipeline.workflow.products import source_url
from pipeline.workflow.session import Dossier, Result, Session


class ReleaseMade(Result):
    """A release and what it changes against the release before on this line: files, migrations, customisations."""

    customer: str
    release: str
    version: str
    commit: str
    tickets: tuple[str, ...]
    since: str | None
    files: tuple[tuple[str, str], ...]
    migrations: tuple[str, ...]
    customisations: tuple[str, ...]
    patches: tuple[str, ...] = ()
    base: str | None = Field(None, description="what a patch is built on")
    left_out: tuple[tuple[str, str], ...] = Field((), description="patches that are not in it, and why not")
    superseded: str | None = None

    def lines(self) -> list[str]:
        lines = [self.what, f"  tickets {', '.join(self.tickets)}"]
        if self.base:
            lines.append(f"  built on {self.base}")
        lines += [f"  NOT in it: patch {patch}, {why}" for patch, why in self.left_out]
        if self.since:
            lines.append(f"  against {self.since}: {len(self.files)} file(s) changed")
            lines += [f"    {status} {path}" for status, path in self.files[:30]]
            if len(self.files) > 30:
                lines.append(f"    … and {len(self.files) - 30} more (all with --json)")
        lines.append(f"  new migrations: {', '.join(self.migrations) or 'none'}")
        lines.append(f"  differs from the product as delivered: {', '.join(self.customisations) or 'nowhere'}")
        if self.patches:
            lines.append(f"  patches contained: {', '.join(self.patches)}")
        if self.superseded:
            lines.append(f"  the request for sign-off of {self.superseded} is superseded: it lacks this patch")
        return lines


def make_release(
    session: Session,
    *,
    customer: str,
    version: str,
    tickets: tuple[str, ...],
    merged: str | None = None,
    dry_run: bool = False,
) -> ReleaseMade:
    """The product's version merged into the customer's line, and tagged ``<version>+<build>``.

    Where the line holds the version already, the release is the line as it is now (customisations and patches since).
    The same line again gives the release that there is. Failed, with each file's base, ours and theirs, on a conflict.
    """
    dossier = session.dossier(customer)
    _need_tickets(dossier, dossier.state(), tickets)
    product, kind = dossier.customer.product, dossier.playbook.playbook.versions
    run = session.new_run()
    made: list[ReleaseMade] = []

    def decide(state: State) -> list[Draft]:
        installation = dossier.installation
        held, _ = installation.held_version()
        if order(kind, version) < order(kind, held):
            raise Refused(
                f"the line of {customer} holds {product} {held}, which is newer than {version}",
                reasons=["a line only goes forward; to go back on an environment: rollback"],
                next_commands=[f"invoke rollback customer={customer} env=…"],
            )
        again = f"invoke release customer={customer} version={version} ticket={','.join(tickets)}"
        prepared = installation.merge_version(
            product, version, author=session.signer.key, at=session.now(), merged=merged, again=again
        )
        same = next((r for r in state.releases.values() if r.commit == prepared.commit), None)
        if same is not None:
            made[:] = [_told(dossier, state, same, _before(state, same), changed=False)]
            return []
        name = next_release(dossier, state, version)
        patches = tuple(p.id for p in state.patches if installation.contains(prepared.commit, p.commit))
        record_id = f"{run}-release-made-1"
        release, tag = _tagged(dossier, name, version, prepared.commit, tickets, patches, record_id, "evolutive")
        made[:] = [_told(dossier, state, release, state.newest_release(), changed=True)]
        return [
            Draft(
                id=record_id,
                run=run,
                kind="release-made",
                at=session.now(),
                product=product,
                release=name,
                tickets=release.tickets,
                moves=(*prepared.moves, tag),
                configuration=dossier.configuration(),
                texts={"people": dossier.people_used(session.actor.key)},
                details={
                    "version": version,
                    "commit": prepared.commit,
                    "tag": tag.new,
                    "patches": list(patches),
                    "maintenance_type": "evolutive",
                    "files": len(made[0].files),
                    "migrations": list(made[0].migrations),
                    "customisations": list(made[0].customisations),
                },
            )
        ]

    return _write(session, dossier, decide, made, dry_run=dry_run)


def make_patch(
    session: Session,
    *,
    customer: str,
    tickets: tuple[str, ...],
    commit: str | None = None,
    file: Path | None = None,
    environment: str = "production",
    id: str | None = None,
    merged: str | None = None,
    dry_run: bool = False,
) -> ReleaseMade:
    """A fix on the release that is installed on ``environment``, and in the same move merged into the line.

    ``commit`` is one commit of the product's own repository or of the installations repository, ``file`` a diff. Patches
    made since, and not installed yet, stay in it: it is built on the newest of them (:func:`_ground_of`). The same fix
    again gives the release that there is. Requests for sign-off of releases without the fix are superseded.
    """
    dossier = session.dossier(customer)
    state = dossier.state()
    _need_tickets(dossier, state, tickets)
    if (commit is None) == (file is None):
        raise UsageError("a patch comes either as commit= or as file=")
    if id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", id):
        raise UsageError(
            f"{id!r} cannot name a patch", reasons=["letters, digits, '.', '_' and '-', for instance CVE-2026-1234"]
        )
    dossier.environment(environment)
    installed = dossier.installed(environment, state).release
    diff = _bytes_of(session, file) if file is not None else None
    if commit is not None:
        _bring(session, dossier, commit, keep=not dry_run)
    run = session.new_run()
    made: list[ReleaseMade] = []

    def decide(state: State) -> list[Draft]:
        now = dossier.installed(environment, state)
        if now.release != installed:
            raise Refused(
                f"{environment} of {customer} has been given {now.release} meanwhile",
                next_commands=[f"invoke status customer={customer}"],
            )
        base, left_out = _ground_of(state, environment, installed)
        there = _patched_already(dossier, state, base, commit, diff)
        if there is not None:
            made[:] = [_told(dossier, state, there, _before(state, there), changed=False)]
            return []
        version, _ = split_release(base.name)
        name = next_release(dossier, state, version)
        patch_id = id or f"{customer}-{len(state.patches) + 1}"
        if any(patch.id == patch_id for patch in state.patches):
            raise Refused(
                f"{customer} has a patch {patch_id} already",
                reasons=[Reason(f"made as {p.release}", p.record) for p in state.patches if p.id == patch_id],
            )
        source = f"commit={commit}" if commit else f"file={file}"
        again = f"invoke patch customer={customer} {source} ticket={','.join(tickets)} env={environment}" + (
            f" id={id}" if id else ""
        )
        record_id = f"{run}-patch-made-1"
        prepared = dossier.installation.patch(
            base.name,
            patch_id=patch_id,
            author=session.signer.key,
            at=session.now(),
            commit=commit,
            diff=diff,
            trailers={"Ticket": ", ".join(tickets), "Maintenance-Type": "corrective"},
            merged=merged,
            again=again,
        )
        patches = (*base.patches, patch_id)
        release, tag = _tagged(dossier, name, version, prepared.commit, tickets, patches, record_id, "corrective")
        sign_off = state.sign_off
        superseded = sign_off.release if sign_off and sign_off.status not in {"rejected", "superseded"} else None
        told = _told(dossier, state, release, base, changed=True)
        made[:] = [told.model_copy(update={"superseded": superseded, "base": base.name, "left_out": left_out})]
        return [
            Draft(
                id=record_id,
                run=run,
                kind="patch-made",
                at=session.now(),
                product=dossier.customer.product,
                environment=environment,
                release=name,
                tickets=release.tickets,
                moves=(*prepared.moves, tag),
                configuration=dossier.configuration(),
                texts={"people": dossier.people_used(session.actor.key)},
                details={
                    "patch": patch_id,
                    "version": version,
                    "commit": prepared.commit,
                    "base": base.name,
                    "installed": installed,
                    "left_out": [patch for patch, _ in left_out],
                    "line": prepared.line,
                    "tag": tag.new,
                    "patches": list(patches),
                    "maintenance_type": "corrective",
                    "migrations": list(told.migrations),
                },
            )
        ]

    return _write(session, dossier, decide, made, dry_run=dry_run)


def _ground_of(state: State, environment: str, installed: str) -> tuple[ReleaseState, tuple[tuple[str, str], ...]]:
    """What the next patch is built on, and the patches since the installed release that are not in that, with why.

    It is the newest release that was made from the installed one by patches alone. One that the customer rejected, or that
    this environment was rolled back from, and what was built on it, is passed over.
    """
    decided = {sign_off.release: sign_off.status for sign_off in state.sign_offs}
    left = state.environment(environment).left
    good, passed = [installed], dict[str, str]()
    for patch in state.patches:
        if patch.base in passed:
            passed[patch.release] = f"it was built on {patch.base}"
        elif patch.base in good and decided.get(patch.release) == "rejected":
            passed[patch.release] = f"the customer rejected {patch.release}"
        elif patch.base in good and patch.release in left:
            passed[patch.release] = f"{environment} was rolled back from {patch.release}"
        elif patch.base in good:
            good.append(patch.release)
    base = state.releases[good[-1]]
    since = [patch for patch in state.patches if patch.release in passed or patch.release in good[1:]]
    return base, tuple(
        (patch.id, passed.get(patch.release, f"{base.name} was built without {patch.release}"))
        for patch in since
        if patch.id not in base.patches
    )


def _patched_already(
    dossier: Dossier, state: State, base: ReleaseState, commit: str | None, diff: bytes | None
) -> ReleaseState | None:
    """The release that this fix made already, on what the next patch is built on or on the way there."""
    tree_of = dossier.repository.tree_of
    made_by = {patch.release: patch for patch in state.patches}
    on_the_way, name = [base.name], base.name
    while name in made_by:
        name = made_by[name].base
        on_the_way.append(name)
    for ground in on_the_way:
        try:
            tree = dossier.installation.fixed(ground, commit=commit, diff=diff)
        except Failed:
            continue
        if ground == base.name and tree == tree_of(base.commit):
            return base
        for patch in state.patches:
            counts = patch.base == base.name or patch.release in on_the_way
            if patch.base == ground and counts and tree == tree_of(patch.commit):
                return state.releases[patch.release]
    return None


def _tagged(
    dossier: Dossier,
    name: str,
    version: str,
    commit: str,
    tickets: tuple[str, ...],
    patches: tuple[str, ...],
    record: str,
    maintenance: str,
) -> tuple[ReleaseState, RefMove]:
    """The release and its annotated tag, written and not yet moved; Refused when its tree cannot be a release's."""
    session = dossier.session
    tag = dossier.installation.release_tag(
        name,
        commit,
        author=session.signer.key,
        at=session.now(),
        trailers={
            "Product": dossier.customer.product,
            "Product-Version": version,
            "Patch-Ids": ", ".join(patches) or None,
            "Maintenance-Type": maintenance,
            "Ticket": ", ".join(tickets),
            "Record-Id": record,
        },
    )
    release = ReleaseState(
        name=name,
        version=version,
        commit=commit,
        made_at=session.now(),
        made_by=session.signer.key,
        record=record,
        tickets=dossier.tickets(tickets),
        patches=patches,
    )
    gathering.release_manifest(dossier, release)
    return release, tag


def next_release(dossier: Dossier, state: State, version: str) -> str:
    """The name of the next build of a version; the ledger is asked beside the tags, since tags may lag behind it."""
    builds = [split_release(name)[1] for name in state.releases if split_release(name)[0] == version]
    return max(dossier.installation.next_release(version), f"{version}+{max(builds, default=0) + 1}", key=split_release)


def _need_tickets(dossier: Dossier, state: State, tickets: tuple[str, ...]) -> None:
    if not tickets:
        raise UsageError(
            "a release names its ticket: ticket=A,B",
            next_commands=[f"invoke ticket.open customer={dossier.key} title=…"],
        )
    from pipeline.suggest import did_you_mean

    unknown = [ticket for ticket in tickets if ticket not in state.tickets]
    if unknown:
        raise NotKnown(
            f"{dossier.key} has no ticket {', '.join(unknown)}{did_you_mean(unknown[0], state.tickets)}",
            reasons=[Reason(f"tickets are {', '.join(state.tickets) or 'none'}")],
            next_commands=[f"invoke ticket.open customer={dossier.key} title=…"],
        )


def _bytes_of(session: Session, file: Path) -> bytes:
    path = session.workspace.path(str(file))
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read", reasons=[Reason(error.strerror or "unreadable", str(path))]
        ) from None


def _bring(session: Session, dossier: Dossier, commit: str, *, keep: bool) -> None:
    """Brings the product's own branches here, so that a fix made there can be named by its commit; NotKnown without it.

    With ``keep`` False a commit named by its full id comes without any ref.
    """
    product = dossier.customer.product
    url = source_url(session, product)
    if dossier.installation.knows(commit):
        return
    if url is not None:
        _fetch_fix(dossier, url, commit, keep=keep)
    if not dossier.installation.knows(commit):
        where = f"in the repository of {product} nor " if url else ""
        theirs = f"git push   # the fix, to the repository of {product}; or, where it is one of {dossier.key}'s own:"
        raise NotKnown(
            f"there is no commit {commit!r} {'neither ' if url else ''}{where}in the installations repository",
            next_commands=[*([theirs] if url else []), f"git push origin HEAD:refs/heads/{dossier.key}/fix"],
        )


def _fetch_fix(dossier: Dossier, url: str, commit: str, *, keep: bool) -> None:
    product = dossier.customer.product
    # Under a name of their own: they are nobody's installation, and may be deleted.
    kept = f"refs/sources/{product}"
    every = [f"+refs/heads/*:{kept}/heads/*", f"+refs/tags/*:{kept}/tags/*"]
    alone = not keep and re.fullmatch(r"[0-9a-f]{40}", commit) is not None
    try:
        dossier.repository.fetch_objects(url, [commit] if alone else every)
    except Unreachable as error:
        # The other side answered: it has no such commit.
        if not alone or not any("not our ref" in reason.text for reason in error.reasons):
            raise


def _before(state: State, release: ReleaseState) -> ReleaseState | None:
    """What a release was told against when it was made: a patch's base, else the release made before it."""
    base = next((patch.base for patch in state.patches if patch.release == release.name), None)
    if base is not None:
        return state.releases[base]
    earlier = [one for one in state.releases.values() if one.number < release.number]
    return max(earlier, key=lambda one: one.number, default=None)


def _told(
    dossier: Dossier, state: State, release: ReleaseState, since: ReleaseState | None, *, changed: bool
) -> ReleaseMade:
    installation = dossier.installation
    files = tuple(installation.changes(since.commit, release.commit)) if since else ()
    playbook = dossier.playbook.playbook
    now = databases.release_scripts(dossier, playbook, gathering.release_manifest(dossier, release))
    then: Collection[str] = ()
    # The playbook of now need not fit an older release: then all of the new one's scripts are listed.
    with suppress(Refused):
        then = databases.release_scripts(dossier, playbook, gathering.release_manifest(dossier, since)) if since else ()
    return ReleaseMade(
        changed=changed,
        what=f"release {release.name} of {dossier.key}" + ("" if changed else " is there already"),
        customer=dossier.key,
        release=release.name,
        version=release.version,
        commit=release.commit,
        tickets=tuple(ticket.id for ticket in release.tickets),
        since=since.name if since else None,
        files=files,
        migrations=tuple(script for script in now if script not in then),
        customisations=tuple(installation.customisations(release.commit)),
        patches=release.patches,
        next_commands=(
            f"invoke plan customer={dossier.key} release={release.name}",
            f"invoke deploy customer={dossier.key} release={release.name}",
        ),
    )


def _write(
    session: Session,
    dossier: Dossier,
    decide: Callable[[State], list[Draft]],
    made: list[ReleaseMade],
    *,
    dry_run: bool,
) -> ReleaseMade:
    if dry_run:
        decide(dossier.state())
        told = made[0]
        if not told.changed:
            return told
        return told.model_copy(
            update={"changed": False, "what": told.what.replace("release ", "would make release ", 1)}
        )
    dossier.ledger.append(session.signer, decide)
    return made[0]
