"""Gather, then decide: everything that a deployment's rules and plan need, read before anything is written.

``gather`` looks at Git, the ledger, every host and the database, asks the rules, and gives a :class:`Case`. ``plan``
prints it; ``deploy``, ``promote`` and ``rollback`` act on the very same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline import preflight, rules, wiring
from pipeline.content import content_hash
from pipeline.databases import Database
from pipeline.differences import Difference, differences, settings_hash
from pipeline.errors import ConfigurationError, Reason, Refused
from pipeline.host import Host
from pipeline.migrations import Comparison
from pipeline.model import Applied, Environment, Manifest, Person, Script
from pipeline.payload import Payloads
from pipeline.playbook import (
    Action,
    ConfigureStep,
    Plan,
    Playbook,
    Target,
    half_unproven,
    plan,
    restore_needed,
    unmatched,
    without_backup,
)
from pipeline.preflight import HostFacts
from pipeline.settings import DATED_KEYS
from pipeline.shared_backup import SharedBackups
from pipeline.state import Deployed, EnvironmentState, ReleaseState, Running, State
from pipeline.steps import Unproven
from pipeline.strict_yaml import Source, parse, wrong
from pipeline.validation import validated
from pipeline.way_back import leaves_stopped, starts, with_starter
from pipeline.workflow.ahead import Ahead, Meanwhile
from pipeline.workflow.databases import (
    Look,
    Proof,
    look_at,
    migrates,
    open_database,
    running_bytes,
    unrehearsed,
    vanished_scripts,
)
from pipeline.workflow.hosts import Depth, looked_at_hosts
from pipeline.workflow.linting import Finding, findings_of
from pipeline.workflow.session import Dossier

DRIFT_KEPT = 100
"""Sentences about accepted drift that a record keeps for one host."""


@dataclass
class Case:
    """One release, one environment, one purpose: the facts, the refusals and the plan."""

    dossier: Dossier
    state: State
    environment: Environment
    purpose: rules.Purpose
    release: ReleaseState
    playbook: Playbook
    manifest: Manifest
    content: str
    settings: str
    tickets: tuple[str, ...]
    resumes: bool
    facts: rules.Facts
    refusals: tuple[Reason, ...]
    plan: Plan
    before: Plan | None
    look: Look
    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...]
    ahead: Ahead
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def customer(self) -> str:
        """The customer's key."""
        return self.dossier.key

    @property
    def scripts(self) -> Mapping[str, tuple[Script, bytes]]:
        """The release's migrations with their bytes, in order."""
        return self.look.scripts

    @property
    def comparison(self) -> Comparison:
        """How they stand to the database's history."""
        return self.look.comparison

    @property
    def history(self) -> list[Applied]:
        """The database's history; empty where it was not asked."""
        return self.look.history

    @property
    def accepted_drift(self) -> dict[str, list[str]]:
        """For the record: of each host what was changed there and is gone over; empty where nothing was."""
        if self.facts.accept_drift is None:
            return {}
        return {host.name: drift_listed(host) for host in self.facts.hosts if host.drift}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What refuses nothing: a protection that a host or database lacks with its substitute, a clock a little wrong."""
        server = self.look.server
        lacks = (
            [f"the database ({server.version}): {substitute}" for substitute in server.substitutes] if server else []
        )
        folder = self.playbook.migrations.folder if self.playbook.migrations else None
        if folder is not None and not self.look.scripts and migrates(self.facts.environment, self.playbook):
            # A product may have none yet; a folder that is misspelt looks the same.
            lacks.append(f"{self.release.name} has no migration in {folder}, where the playbook looks for them")
        return (*(warning for host in self.facts.hosts for warning in preflight.warnings(host)), *lacks)

    def leaves_stopped(self, began: Iterable[Action] | None = None) -> bool:
        """Whether the way back from what was begun (by default all of the plan) leaves the application stopped.

        Of a rollback that ends a quarantine: whether it leaves it so itself, since no playbook says how it is started.
        """
        if began is None and rules.ends_quarantine(self.facts):
            now = self.dossier.playbook.playbook.steps
            return any(step.kind == "stop" for step in now) and not starts(self.playbook.steps)
        return leaves_stopped(self.plan.actions if began is None else began, self.before)

    def plan_has_migrations(self) -> bool:
        """Whether scripts of the release are still to be applied here."""
        return bool(self.comparison.pending)

    def database(self, host: Host, proof: Proof | None = None) -> Database:
        """The environment's database as seen from ``host``; ``proof`` takes the place of what its file says of backups."""
        return open_database(self.dossier, self.environment, host, proof)

    def shared(self, host: Host) -> SharedBackups:
        """The backups of the host's ``shared/``."""
        dossier = self.dossier
        return wiring.shared_backups_for(self.environment, dossier.customer, host, dossier.session.resolve)

    def render(self, host: str, template: str) -> bytes:
        """One template of the release filled in for one host, secrets resolved."""
        blob = next((file.blob for file in self.manifest.files if file.path == template), None)
        place = f"playbooks/{self.dossier.customer.product}.yaml"
        if blob is None:
            raise ConfigurationError(
                f"template {template} is not in release {self.release.name}",
                reasons=[Reason("configure names it", place)],
            )
        from jinja2 import StrictUndefined
        from jinja2.sandbox import SandboxedEnvironment

        target = _target(self.dossier, self.environment, self.release, None, ())
        configured = next(entry for entry in self.environment.hosts if entry.name == host)
        words = target.words(configured) | {
            "secrets": {name: self.dossier.session.resolve(ref) for name, ref in self.environment.secrets.items()}
        }
        data = self.dossier.repository.read(blob)
        assert data is not None
        try:
            source = data.decode("utf-8")
            text = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(source)
            return text.render(words).encode()
        except Exception as error:  # a template may raise anything: a TypeError, a MemoryError
            line = getattr(error, "lineno", None)
            where = f"{template}:{line} of {self.release.name}" if line else f"{template} of {self.release.name}"
            raise ConfigurationError(
                f"template {template} cannot be filled in for {self.customer} {self.environment.key} {host}",
                reasons=[Reason(self.dossier.session.conceal(str(error)), where)],
            ) from None


def hosts_of(dossier: Dossier, environment: Environment) -> dict[str, Host]:
    """The environment's hosts by key, not connected yet."""
    session = dossier.session
    return {
        host.name: wiring.host_for(host, environment, session.workspace.settings, session.folder, session.resolve)
        for host in environment.hosts
    }


@contextmanager
def closing(*groups: dict[str, Host]) -> Iterator[None]:
    """Closes every connection at the end, whatever happened."""
    try:
        yield
    finally:
        for group in groups:
            for host in group.values():
                host.transport.close()


def release_manifest(dossier: Dossier, release: ReleaseState, *, afresh: bool = False) -> Manifest:
    """Every file of the release with its SHA-256; computed once per tree, or ``afresh`` where a cache must not be believed."""
    cache = None if afresh else dossier.session.work / "cache" / "manifests"
    return dossier.installation.manifest(release.commit, cache=cache)


def frozen_playbook(dossier: Dossier, deployed: Deployed | Running) -> Playbook:
    """The playbook that a release was deployed with, from the ledger."""
    source = _frozen(dossier, deployed, f"playbooks/{dossier.customer.product}.yaml")
    playbook, reasons = validated(Playbook, source, {"product": dossier.customer.product}, written_short=True)
    if playbook is None:
        raise wrong(source, reasons)
    return playbook


def frozen_environment(dossier: Dossier, deployed: Deployed | Running, now: Environment) -> Environment:
    """The environment as it is reached now, with the values and secrets' references of that deployment."""
    source = _frozen(dossier, deployed, f"{now.key}.yaml", dated=DATED_KEYS)
    then, reasons = validated(Environment, source, {"key": now.key})
    if then is None:
        raise wrong(source, reasons)
    values = {host.name: host.values for host in then.hosts}
    hosts = tuple(host.model_copy(update={"values": values.get(host.name, host.values)}) for host in now.hosts)
    return now.model_copy(update={"values": then.values, "secrets": then.secrets, "hosts": hosts})


def _frozen(dossier: Dossier, deployed: Deployed | Running, name: str, *, dated: Iterable[str] = ()) -> Source:
    record = dossier.ledger.record(deployed.record)
    data = dossier.ledger.configuration(record.configuration[name]) if record else None
    if data is None:
        raise Refused(f"{name} of deployment {deployed.deployment} is not in the ledger of {dossier.key}")
    return parse(f"{name} of deployment {deployed.deployment}", data, dated=dated)


def current_settings(dossier: Dossier) -> str:
    """The digest of what differs between test and production, as configured now."""
    environments = dossier.loaded.environments
    return settings_hash(dossier.customer, environments.get("test"), environments.get("production"))


def gather(
    dossier: Dossier,
    state: State,
    *,
    environment: str,
    purpose: rules.Purpose,
    release: ReleaseState,
    tickets: tuple[str, ...],
    hosts: dict[str, Host],
    test_hosts: dict[str, Host] | None = None,
    frozen: Deployed | Running | None = None,
    accept_drift: str | None = None,
) -> Case:
    """Everything about this deployment; changes nothing.

    ``accept_drift`` is the reason for going over what was changed on its hosts; an open deployment that was given one
    goes on without.
    ``frozen`` is the deployment whose playbook and values count: the one that a rollback returns to, or the open one that
    is to be brought back.
    """
    session = dossier.session
    target_environment = dossier.environment(environment)
    here = state.environment(environment)
    manifest = release_manifest(dossier, release, afresh=purpose == "promote")
    if frozen is None:
        playbook, content = dossier.playbook.playbook, content_hash(manifest, dossier.playbook.raw)
    else:
        playbook, content = frozen_playbook(dossier, frozen), frozen.content
        target_environment = frozen_environment(dossier, frozen, target_environment)
        if purpose == "rollback" and here.quarantined is not None:
            # What was stopped, by the failed deployment or for a restore by hand, was so by the playbook of now.
            playbook = with_starter(playbook, dossier.playbook.playbook, stops=True)
    _templates_exist(dossier, playbook, manifest, release)
    resumes = here.running is not None and (here.running.release, here.running.purpose) == (release.name, purpose)

    promotes = purpose == "promote" and frozen is None
    again = here.installed is not None and here.installed.release == release.name
    # What is left behind need not be as it was: rolling back is the way out of drift.
    depth: Depth = "content" if promotes or (again and frozen is None) else "quick" if frozen is None else "none"
    files = manifests(dossier, state)
    payloads = Payloads(session.work / "cache" / "payloads", dossier.repository.read_stream)
    ahead = Ahead(payloads, lambda name: release_manifest(dossier, state.releases[name]))
    if here.installed is not None and frozen is None:
        ahead.prepare(here.installed.release, manifest)
    before = Meanwhile(lambda: _plan_before(dossier, state, environment, here.installed, playbook))
    seen = looked_at_hosts(dossier, environment, state, hosts, depth, files)
    seen_test = looked_at_hosts(dossier, "test", state, test_hosts or {}, "content", files)
    if resumes and accept_drift is None:
        accept_drift = _accepted(dossier, here, seen)
    first = hosts[target_environment.hosts[0].name]
    ours = not any(facts.foreign for facts in seen)
    asked = ours and purpose != "rollback" and migrates(target_environment, playbook)
    look = look_at(dossier, state, target_environment, first, playbook, manifest, ask=asked)
    had, pending = {row.script for row in look.history}, look.comparison.pending
    running = here.running.run if resumes and here.running is not None else None
    ran = [look.scripts[row.script][0] for row in look.history if row.run == running and row.script in look.scripts]
    texts = running_bytes(look, (*pending, *ran))
    unproven = dict(restore_needed(playbook, texts))
    target = _target(dossier, target_environment, release, here.installed, pending, unproven, ran)
    target = target.model_copy(update={"half_unproven": half_unproven(texts)})
    findings = findings_of(dossier, state, target_environment, playbook, look)
    settings = current_settings(dossier)
    facts = rules.Facts(
        purpose=purpose,
        now=session.now(),
        actor=session.actor,
        customer=dossier.customer,
        environment=target_environment,
        other_environments=[other for key, other in dossier.loaded.environments.items() if key != environment],
        state=state,
        release=release,
        content=content,
        settings=settings,
        resumes=resumes,
        hosts=seen,
        test_hosts=seen_test,
        contains=_patches_contained(dossier, state, here.installed, release),
        entered_by=_entered_by(dossier, state, release),
        findings=dossier.ledger.verify(session.workspace.people) if promotes else (),
        tickets=tickets,
        unknown_tickets=wiring.tracker_for(dossier.customer).unknown(state, tickets),
        edited=[edit.applied.script for edit in look.comparison.edited],
        vanished=vanished_scripts(state, look.comparison, release, playbook.versions),
        lost=[script for script in sorted(here.applied) if asked and script not in had],
        pending=[script.id for script in pending],
        unmatched=unmatched(playbook, pending),
        without_backup=without_backup(playbook, pending, unproven) if asked else {},
        unrehearsed=unrehearsed(state, pending, release),
        blocked=look.blocked,
        refused_findings=[finding.reason for finding in findings if finding.refuses],
        database=look.server,
        unknown_schema=look.unknown_schema,
        foreign=look.foreign,
        accept_drift=accept_drift,
        size=sum(file.size for file in manifest.files),
        files=len(manifest.files),
        places=_places(dossier, environment),
    )
    both = dossier.loaded.environments
    return Case(
        dossier=dossier,
        state=state,
        environment=target_environment,
        purpose=purpose,
        release=release,
        playbook=playbook,
        manifest=manifest,
        content=content,
        settings=settings,
        tickets=tickets,
        resumes=resumes,
        facts=facts,
        refusals=rules.refusals(facts),
        plan=plan(playbook, target, rollback=purpose == "rollback"),
        before=before.result(),
        look=look,
        findings=findings,
        differences=differences(both["test"], both["production"]) if {"test", "production"} <= both.keys() else (),
        ahead=ahead,
        hosts=hosts,
    )


def _plan_before(
    dossier: Dossier, state: State, environment: str, installed: Deployed | None, new: Playbook
) -> Plan | None:
    """The plan of what is installed, for the way back to it from a deployment by ``new``; None where nothing is."""
    if installed is None:
        return None
    release = dossier.release(installed.release, state)
    target = _target(
        dossier, frozen_environment(dossier, installed, dossier.environment(environment)), release, None, ()
    )
    return plan(with_starter(frozen_playbook(dossier, installed), new), target, rollback=True)


def manifests(dossier: Dossier, state: State) -> Callable[[str], Manifest]:
    """Every file of a release by the release's name, computed once for all hosts, and not from a cache."""
    return cache(lambda name: release_manifest(dossier, state.releases[name], afresh=True))


def _accepted(dossier: Dossier, here: EnvironmentState, seen: Sequence[HostFacts]) -> str | None:
    """Why drift is accepted that an open deployment began with; None when there is more of it now, or other."""
    record = dossier.ledger.record(here.running.record) if here.running is not None else None
    accepted = record.details.get("accepted_drift") if record is not None else None
    if not accepted or any(host.drift and drift_listed(host) != accepted.get(host.name) for host in seen):
        return None
    return f"accepted when deployment {record.details['deployment']} began" if record is not None else None


def drift_listed(host: HostFacts) -> list[str]:
    """The drift of one host as a record keeps it: the first sentences, and how many more there are."""
    more = len(host.drift) - DRIFT_KEPT
    return [*host.drift[:DRIFT_KEPT], *([f"and {more} more"] if more > 0 else [])]


def _target(
    dossier: Dossier,
    environment: Environment,
    release: ReleaseState,
    installed: Deployed | None,
    pending: Any,
    unproven: dict[str, Unproven] | None = None,
    ran: Sequence[Script] = (),
) -> Target:
    return Target(
        customer=dossier.customer,
        environment=environment,
        release=release.name,
        version=release.version,
        installed=installed.release if installed else None,
        pending=tuple(pending),
        unproven=unproven or {},
        ran=tuple(ran),
    )


def _entered_by(dossier: Dossier, state: State, release: ReleaseState) -> Person | None:
    sign_off = next((one for one in reversed(state.sign_offs) if one.release == release.name), None)
    key = sign_off.entered_by if sign_off else None
    return dossier.session.workspace.people.find(key) if key else None


def _patches_contained(
    dossier: Dossier, state: State, installed: Deployed | None, release: ReleaseState
) -> dict[str, bool]:
    if installed is None:
        return {}
    now = state.releases[installed.release].commit
    contains = dossier.installation.contains
    here = [patch for patch in state.patches if contains(now, patch.commit)]
    return {patch.id: contains(release.commit, patch.commit) for patch in here}


def _templates_exist(dossier: Dossier, playbook: Playbook, manifest: Manifest, release: ReleaseState) -> None:
    paths = {file.path for file in manifest.files}
    missing = [
        template
        for step in playbook.steps
        if isinstance(step, ConfigureStep)
        for template in step.templates
        if template not in paths
    ]
    if missing:
        raise ConfigurationError(
            f"the playbook of {dossier.customer.product} configures what {release.name} does not hold",
            reasons=[Reason(f"no file {path}", f"playbooks/{dossier.customer.product}.yaml") for path in missing],
        )


def _places(dossier: Dossier, environment: str) -> dict[str, str]:
    """Where in the workspace's files each thing that a rule names stands."""
    sources = dossier.loaded.sources
    customer, here = sources["customer"], sources[environment]
    freezes = len(dossier.environment(environment).freezes)
    return {
        "approvers": customer.position("approvers"),
        "team": customer.position("team"),
        "people": "environments/people.yaml",
        "environment": here.position(),
        "windows": here.position("windows"),
        "playbook": dossier.playbook.source.position("steps"),
        **{f"freezes.{number}": here.position("freezes", number) for number in range(freezes)},
    }
