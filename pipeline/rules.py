"""Every reason to refuse, each a pure function over facts that were gathered before.

A rule takes :class:`Facts` and yields a :class:`~pipeline.errors.Reason` for everything that it has against the
deployment. ``refusals`` asks all rules that belong to a purpose, so that a person sees every reason at once, and
``plan`` shows the same ones that ``deploy`` and ``promote`` stop at. A new rule is one function and its name in
:data:`RULES`; those about the database are in :mod:`pipeline.migration_rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from pipeline.calendar import in_freeze, in_window
from pipeline.errors import Reason
from pipeline.facts import Facts, Purpose, Rule
from pipeline.migration_rules import (
    database_can_be_migrated,
    database_is_the_one,
    every_migration_has_a_step,
    lint_has_nothing_to_refuse,
    migrations_are_as_they_ran,
    migrations_have_a_database,
    no_restore_is_unfinished,
    no_script_is_blocked,
    rehearsed_on_test,
    schema_is_known,
    unproven_scripts_need_a_backup,
)
from pipeline.model import Customer, Environment, Person
from pipeline.preflight import HostFacts, Need, clock_is_wrong, no_room, not_ours, not_writable
from pipeline.state import SignOff, State

__all__ = ["RULES", "Facts", "Purpose", "Rule", "decision_refusals", "ends_quarantine", "entitlement", "refusals"]

DRIFT_SHOWN = 20
"""Sentences about drift that a refusal names for one host; ``drift`` names all."""


def refusals(facts: Facts) -> tuple[Reason, ...]:
    """Every reason against this deployment, in the order of :data:`RULES`; empty means it may go."""
    found: list[Reason] = []
    underway = facts.resumes and _has_switched(facts)
    for rule, purposes in RULES.items():
        if facts.purpose in purposes and not (underway and rule in TO_BEGIN):
            found += [Reason(reason.text, reason.source, rule.__name__) for reason in rule(facts)]
    return tuple(found)


def entitlement(actor: Person, customer: Customer | None, places: Mapping[str, str]) -> Iterator[Reason]:
    """Every reason why this person may not change anything for this customer (None: for the products of all).

    Who acts is an engineer, a lead or a service, serves the customer, and belongs to its team if it names one.
    """
    if not {"engineer", "lead", "service"} & set(actor.roles):
        yield Reason(f"{actor.key} has none of the roles engineer, lead, service", places.get("people"))
    if customer is None:
        return
    if not actor.serves(customer.key):
        yield Reason(f"{actor.key} does not serve {customer.key}", places.get("people"))
    elif customer.team and actor.key not in customer.team:
        yield Reason(f"{actor.key} is not in the team of {customer.key}", places.get("team"))


def may_act(facts: Facts) -> Iterator[Reason]:
    """The actor may change something for this customer."""
    yield from entitlement(facts.actor, facts.customer, facts.places)


def has_a_ticket(facts: Facts) -> Iterator[Reason]:
    """No deployment without a ticket, and every ticket is known to the tracker."""
    if not facts.tickets:
        yield Reason("no ticket: every deployment names one that exists")
    for ticket in facts.unknown_tickets:
        yield Reason(f"ticket {ticket} is not known to the tracker {facts.customer.tracker}")


def nobody_else_is_deploying(facts: Facts) -> Iterator[Reason]:
    """An interrupted run of the same release is resumed; one of another release must be finished first."""
    running = facts.state.environment(facts.environment.key).running
    if running is not None and not facts.resumes:
        yield Reason(
            f"deployment {running.deployment} of {running.release} ({running.purpose}) on {facts.environment.key} "
            f"has no outcome yet; started {_at(running.at)} by {running.by}; the same command again resumes it, "
            "rollback brings it back",
            running.record,
        )


def resumes_the_same(facts: Facts) -> Iterator[Reason]:
    """An open deployment is finished with the content that it began with, a promotion with the settings too, or not at all."""
    running = facts.state.environment(facts.environment.key).running
    if running is not None and facts.resumes and running.content != facts.content:
        yield Reason(
            f"deployment {running.deployment} began with content {running.content[:12]}, which is {facts.content[:12]} now "
            "(the playbook was changed)",
            running.record,
        )
    began = running.settings if running is not None and facts.resumes and facts.purpose == "promote" else None
    if running is not None and began is not None and began != facts.settings:
        yield Reason(
            f"deployment {running.deployment} began with other settings of test or production than there are now",
            running.record,
        )


def ends_quarantine(facts: Facts) -> bool:
    """Whether this brings every host of a quarantined environment to the release that the record says is installed."""
    here = facts.state.environment(facts.environment.key)
    return (
        facts.purpose == "rollback"
        and here.quarantined is not None
        and here.installed is not None
        and here.installed.release == facts.release.name
    )


def not_quarantined(facts: Facts) -> Iterator[Reason]:
    """After a way back that failed nothing happens by itself; only a rollback to what is installed is let through."""
    here = facts.state.environment(facts.environment.key)
    if here.quarantined is not None and not ends_quarantine(facts):
        named = f"customer={facts.customer.key} env={facts.environment.key}"
        back = f"invoke rollback {named} brings every host to {here.installed.release}; " if here.installed else ""
        yield Reason(
            f"{facts.environment.key} is quarantined: the way back of deployment {here.quarantined} failed; look at the "
            f"hosts, then: {back}invoke lock.release {named} installed=… reason=… keeps what every host holds"
        )


def hosts_are_ours(facts: Facts) -> Iterator[Reason]:
    """A target that holds anything we did not put there is not touched."""
    for host in facts.hosts:
        yield from not_ours(host)


def hosts_can_be_written(facts: Facts) -> Iterator[Reason]:
    """Whom we log in as may write to the folder."""
    for host in facts.hosts:
        yield from not_writable(host)


def hosts_have_room(facts: Facts) -> Iterator[Reason]:
    """The release fits each host, with a margin, before the first byte is sent."""
    for host in facts.hosts:
        yield from no_room(host, Need(facts.release.name, facts.size, facts.files))


def clocks_agree(facts: Facts) -> Iterator[Reason]:
    """No host's clock is minutes away from ours."""
    for host in facts.hosts:
        yield from clock_is_wrong(host)


def journals_agree(facts: Facts) -> Iterator[Reason]:
    """The host's journal is whole, is this environment's own, and its newest entry names a record that the ledger has."""
    for host in (*facts.hosts, *facts.test_hosts):
        for line in host.journal:
            yield Reason(line, host.name)


def environments_are_apart(facts: Facts) -> Iterator[Reason]:
    """No folder and no database serves two environments: a deployment to test would be one to production."""
    mine = facts.environment
    for other in facts.other_environments:
        for host in mine.hosts:
            for theirs in other.hosts:
                if (host.address, host.port, host.folder) == (theirs.address, theirs.port, theirs.folder):
                    yield Reason(
                        f"{host.folder} on {host.address} is a folder of {other.key} too",
                        facts.places.get("environment"),
                    )
        shared = {host.address for host in mine.hosts} & {host.address for host in other.hosts}
        if _database(mine) is not None and _database(mine) == _database(other):
            assert mine.database is not None
            local = mine.database.host in {"127.0.0.1", "localhost", "::1"} or mine.database.engine == "sqlite"
            if shared or not local:
                yield Reason(f"its database is that of {other.key} too", facts.places.get("environment"))


def _database(environment: Environment) -> tuple[object, ...] | None:
    database = environment.database
    if database is None or (database.engine == "sqlite" and not (database.path or "").startswith("/")):
        return None
    return (database.engine, database.path, database.host, database.reached_at, database.name)


def hosts_hold_what_was_recorded(facts: Facts) -> Iterator[Reason]:
    """``current`` is the release that Git says is installed, with exactly its files; half-done runs resume.

    Changed files may be gone over for a reason that is recorded, but not where the release itself serves: it is never
    overwritten in place.
    """
    environment = facts.state.environment(facts.environment.key)
    recorded = environment.installed.release if environment.installed else None
    expected = {recorded}
    if facts.resumes and environment.running is not None:
        expected.add(environment.running.release)
    if ends_quarantine(facts):
        # The way back stopped anywhere: any release of ours may serve, or none.
        expected |= {None, *facts.state.releases}
    for host in facts.hosts:
        if host.foreign:
            continue
        if host.current not in expected:
            yield Reason(
                f"current is {host.current or 'nothing'}, but the record says {recorded or 'nothing'} is installed",
                host.name,
            )
        if facts.accept_drift is not None and host.current != facts.release.name:
            continue
        yield from _changed(host, "the server")
        if host.drift and facts.accept_drift is not None:
            yield Reason(
                f"{facts.release.name} itself serves and is never overwritten in place: accept-drift cannot help",
                host.name,
            )


def _changed(host: HostFacts, where: str) -> Iterator[Reason]:
    for line in host.drift[:DRIFT_SHOWN]:
        yield Reason(f"changed on {where} since the deployment: {line}", host.name)
    if len(host.drift) > DRIFT_SHOWN:
        yield Reason(f"changed on {where} since the deployment: {len(host.drift) - DRIFT_SHOWN} more", host.name)


def inside_a_window(facts: Facts) -> Iterator[Reason]:
    """Where windows are agreed, the instant lies in one of them, in the customer's own time."""
    windows = facts.environment.windows
    if windows and not any(in_window(window, facts.now, facts.customer.time_zone) for window in windows):
        local = facts.now.astimezone(ZoneInfo(facts.customer.time_zone))
        listed = "; ".join(f"{','.join(w.days)} {w.start:%H:%M}–{w.until:%H:%M}" for w in windows)
        yield Reason(
            f"{local:%a %d %b %H:%M %Z} is outside the agreed maintenance windows ({listed})",
            facts.places.get("windows"),
        )


def not_frozen(facts: Facts) -> Iterator[Reason]:
    """A freeze beats a window."""
    zone = ZoneInfo(facts.customer.time_zone)
    for number, freeze in enumerate(facts.environment.freezes):
        if in_freeze(freeze, facts.now):
            yield Reason(
                f"frozen until {freeze.until.astimezone(zone):%d %b %Y %H:%M %Z}: {freeze.reason}",
                facts.places.get(f"freezes.{number}"),
            )


def keeps_every_patch(facts: Facts) -> Iterator[Reason]:
    """A release without a patch that is installed here would take the fix away."""
    for patch, contained in facts.contains.items():
        if not contained:
            yield Reason(f"patch {patch} is installed on {facts.environment.key} and is not in {facts.release.name}")


def ledger_is_sound(facts: Facts) -> Iterator[Reason]:
    """Every record is as it was signed, by a key of people.yaml: a decision is believed only then."""
    for finding in facts.findings[:5]:
        yield Reason(f"the ledger does not verify: {finding.text}", finding.source)
    if len(facts.findings) > 5:
        yield Reason(f"and {len(facts.findings) - 5} more findings: invoke ledger.verify customer={facts.customer.key}")


def signed_off(facts: Facts) -> Iterator[Reason]:
    """The customer's decision on exactly this release and content stands."""
    customer, release = facts.customer.key, facts.release.name
    sign_off = _sign_off_of(facts.state, release)
    if sign_off is None:
        yield Reason(f"{release} was never on test of {customer}, so nobody was asked to sign it off")
        return
    if sign_off.status == "superseded":
        yield Reason(f"the sign-off of {release} is superseded: {sign_off.reason}", sign_off.request)
    elif sign_off.status == "rejected":
        yield Reason(f"{sign_off.by} rejected {release} on {_at(sign_off.decided_at)}", sign_off.record)
    elif sign_off.status == "open":
        tickets = ", ".join(ticket.id for ticket in sign_off.tickets)
        yield Reason(f"deployment {sign_off.deployment} on test has no sign-off (ticket {tickets})", sign_off.request)
    elif sign_off.blocking:
        yield Reason(f"{sign_off.by} approved {release} with a blocking reservation", sign_off.record)
    if sign_off.content != facts.content:
        yield Reason(
            f"the content of {release} is not the content that was put before the customer: "
            f"{facts.content[:12]} now, {sign_off.content[:12]} then (the tree or the playbook was changed)",
            sign_off.request,
        )
    if sign_off.settings != facts.settings:
        yield Reason(
            f"the settings of test or production of {customer} were changed since the sign-off was asked for",
            facts.places.get("environment"),
        )
    if sign_off.by is not None and sign_off.by not in facts.customer.approvers:
        yield Reason(f"{sign_off.by}, who decided, is not an approver of {customer}", facts.places.get("approvers"))
    if sign_off.entered_by is not None:
        if facts.entered_by is None:
            yield Reason(f"{sign_off.entered_by}, who entered the decision, is not in people.yaml", sign_off.record)
        else:
            for reason in entitlement(facts.entered_by, facts.customer, facts.places):
                yield Reason(f"the decision was entered by somebody who may not: {reason.text}", sign_off.record)


def test_still_holds_it(facts: Facts) -> Iterator[Reason]:
    """What was tested is still there, byte for byte."""
    installed = facts.state.environment("test").installed
    if installed is None or installed.release != facts.release.name:
        yield Reason(f"test holds {installed.release if installed else 'nothing'}, not {facts.release.name}")
    elif installed.content != facts.content:
        yield Reason(f"test was given {facts.release.name} with other content: {installed.content[:12]}")
    running = facts.state.environment("test").running
    if running is not None:
        yield Reason(f"deployment {running.deployment} on test has no outcome yet", running.record)
    for host in facts.test_hosts:
        if host.current != facts.release.name:
            yield Reason(f"current on test is {host.current or 'nothing'}, not {facts.release.name}", host.name)
        yield from _changed(host, "the test server")


def approver_is_not_the_deployer(facts: Facts) -> Iterator[Reason]:
    """Who decided for the customer is not who deploys."""
    sign_off = _sign_off_of(facts.state, facts.release.name)
    if sign_off is not None and sign_off.by is not None and sign_off.by == facts.actor.key:
        yield Reason(f"{facts.actor.key} signed {facts.release.name} off and cannot deploy it", sign_off.record)


RULES: dict[Rule, frozenset[Purpose]] = {
    may_act: frozenset({"deploy", "promote", "rollback"}),
    has_a_ticket: frozenset({"deploy", "promote", "rollback"}),
    ledger_is_sound: frozenset({"promote"}),
    signed_off: frozenset({"promote"}),
    test_still_holds_it: frozenset({"promote"}),
    approver_is_not_the_deployer: frozenset({"promote"}),
    keeps_every_patch: frozenset({"promote"}),
    rehearsed_on_test: frozenset({"promote"}),
    nobody_else_is_deploying: frozenset({"deploy", "promote", "rollback"}),
    resumes_the_same: frozenset({"deploy", "promote"}),
    not_quarantined: frozenset({"deploy", "promote", "rollback"}),
    no_restore_is_unfinished: frozenset({"deploy", "promote", "rollback"}),
    not_frozen: frozenset({"deploy", "promote"}),
    inside_a_window: frozenset({"deploy", "promote"}),
    environments_are_apart: frozenset({"deploy", "promote", "rollback"}),
    hosts_are_ours: frozenset({"deploy", "promote", "rollback"}),
    hosts_can_be_written: frozenset({"deploy", "promote", "rollback"}),
    hosts_have_room: frozenset({"deploy", "promote"}),
    clocks_agree: frozenset({"deploy", "promote"}),
    journals_agree: frozenset({"deploy", "promote", "rollback"}),
    hosts_hold_what_was_recorded: frozenset({"deploy", "promote", "rollback"}),
    database_is_the_one: frozenset({"deploy", "promote"}),
    migrations_are_as_they_ran: frozenset({"deploy", "promote"}),
    no_script_is_blocked: frozenset({"deploy", "promote"}),
    schema_is_known: frozenset({"deploy", "promote"}),
    database_can_be_migrated: frozenset({"deploy", "promote"}),
    migrations_have_a_database: frozenset({"deploy", "promote"}),
    every_migration_has_a_step: frozenset({"deploy", "promote"}),
    unproven_scripts_need_a_backup: frozenset({"deploy", "promote"}),
    lint_has_nothing_to_refuse: frozenset({"deploy", "promote"}),
}

TO_BEGIN: frozenset[Rule] = frozenset(
    {
        signed_off,
        test_still_holds_it,
        not_frozen,
        inside_a_window,
        hosts_have_room,
        clocks_agree,
    }
)
"""What is asked to begin, and not again once a host has switched: a deployment that is half done is finished as it was
signed off (:func:`resumes_the_same`), or brought back by ``rollback``, but never left half done because a window closed."""


def _has_switched(facts: Facts) -> bool:
    running = facts.state.environment(facts.environment.key).running
    return running is not None and any(host.current == running.release for host in facts.hosts)


# --- the decision itself ---------------------------------------------------------------------------------------------


def decision_refusals(
    state: State,
    customer: Customer,
    approver: Person | None,
    by: str,
    actor: Person,
    places: Mapping[str, str],
) -> Iterable[Reason]:
    """Every reason against recording this decision by this approver, entered by this actor."""
    sign_off = state.sign_off
    if by not in customer.approvers:
        yield Reason(
            f"{by} is not an approver of {customer.key}; approvers are {', '.join(customer.approvers)}",
            places.get("approvers"),
        )
    elif approver is None:
        yield Reason(f"{by} is not in people.yaml", places.get("people"))
    if by == actor.key:
        yield Reason(f"{by} cannot both decide for the customer and enter the decision")
    yield from entitlement(actor, customer, places)
    if sign_off is None:
        yield Reason(f"nothing was put before {customer.key} yet: nothing was deployed to test")
    elif sign_off.status == "superseded":
        yield Reason(f"the request for {sign_off.release} is superseded: {sign_off.reason}", sign_off.request)
    else:
        if sign_off.page is None:
            yield Reason(
                f"no page of {sign_off.release} was put before {customer.key} yet: invoke signoff.page "
                f"customer={customer.key}",
                sign_off.request,
            )
        if sign_off.status == "rejected" and sign_off.by != by:
            yield Reason(
                f"{sign_off.by} rejected {sign_off.release}: only {sign_off.by} may decide anew, or a new deployment to "
                "test asks anew",
                sign_off.record,
            )
        installed = state.environment("test").installed
        if installed is not None and installed.release != sign_off.release:
            yield Reason(f"test holds {installed.release} now, not {sign_off.release}", installed.record)
        elif installed is not None and by == installed.by:
            yield Reason(f"{by} deployed {installed.release} to test and cannot sign it off", installed.record)


def _sign_off_of(state: State, release: str) -> SignOff | None:
    return next((sign_off for sign_off in reversed(state.sign_offs) if sign_off.release == release), None)


def _at(instant: datetime | None) -> str:
    return instant.astimezone(UTC).strftime("%d %b %Y %H:%M UTC") if instant else "an unknown day"
