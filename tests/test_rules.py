"""Every reason to refuse: facts that may go, then one change each and exactly the reason expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest

from pipeline import migration_rules, preflight, rules
from pipeline.calendar import in_freeze, in_window
from pipeline.errors import Reason
from pipeline.model import Customer, Environment, Freeze, Person, Window
from pipeline.preflight import MARGIN_BYTES, MARGIN_INODES, DatabaseFacts, HostFacts
from pipeline.rules import Facts, Purpose, decision_refusals, refusals
from pipeline.state import State
from tests.nouns import CLAIRE, EVE, NOW, Story, customer, environment, sha

PLACES = {
    "approvers": "environments/acme/customer.yaml:6:1",
    "team": "environments/acme/customer.yaml:7:1",
    "people": "environments/people.yaml",
    "environment": "environments/acme/production.yaml:1:1",
    "windows": "environments/acme/production.yaml:9:1",
    "freezes.0": "environments/acme/production.yaml:21:5",
    "freezes.1": "environments/acme/production.yaml:24:5",
    "playbook": "playbooks/shop.yaml:8:1",
}
LATE = Window(days=("mon",), start=time(20), until=time(23))
FREEZE = Freeze(start=datetime(2026, 11, 23, tzinfo=UTC), until=datetime(2026, 12, 2, 5, tzinfo=UTC), reason="year-end")
JANE = EVE.model_copy(update={"key": "jane"})
POSTGRESQL = {"engine": "postgresql", "host": "db.acme.example", "name": "shop", "user": "shop"}


def elsewhere(key: str, **more: Any) -> Environment:
    """The same environment on another machine."""
    same = environment(key, **more)
    return same.model_copy(update={"hosts": (same.hosts[0].model_copy(update={"address": "10.0.9.1"}),)})


def told(*, decision: str | None = "approved", **details: Any) -> Story:
    """Everything held 2.3.0+1; now 2.4.0+1 is on test, and the customer has decided on it."""
    story = Story()
    story.ticket()
    story.decided(story.tested("2.3.0+1"))
    story.deployed("2.3.0+1", "production", "promote")
    story.deployed("2.3.0+1", "integration")
    request = story.tested("2.4.0+1")
    if decision is not None:
        story.decided(request, decision, **details)
    return story


def may_go(purpose: Purpose = "promote", state: State | None = None) -> Facts:
    """The facts of a deployment that nothing speaks against."""
    state = state or told().state
    target = {"promote": "2.4.0+1", "deploy": "2.4.0+1", "rollback": "2.3.0+1"}[purpose]
    key = "production" if purpose == "promote" else "integration"
    installed = state.environment(key).installed
    assert installed is not None
    return Facts(
        purpose=purpose,
        now=NOW,
        actor=EVE,
        customer=customer(),
        environment=environment(key),
        state=state,
        release=state.releases[target],
        content=sha(target),
        settings=sha("settings"),
        entered_by=EVE,
        hosts=(HostFacts("app1", installed.release),),
        test_hosts=(HostFacts("test1", "2.4.0+1"),) if purpose == "promote" else (),
        contains={"CVE-1": True},
        tickets=("ACME-1",),
        places=PLACES,
    )


@pytest.mark.parametrize("purpose", get_args(Purpose))
def test_nothing_speaks_against_the_baseline(purpose: Purpose) -> None:
    assert refusals(may_go(purpose)) == ()


Change = Callable[[Facts], Facts]
Expected = tuple[str, str, str | None]
"""Rule, text, source."""


def having(**changes: Any) -> Change:
    return lambda facts: replace(facts, **changes)


def actor(**changes: Any) -> Change:
    return having(actor=Person.model_validate(EVE.model_dump() | changes))


def customer_with(**changes: Any) -> Change:
    return having(customer=customer(**changes))


def environment_with(**changes: Any) -> Change:
    return lambda facts: replace(facts, environment=environment(facts.environment.key, **changes))


def host(**changes: Any) -> Change:
    return lambda facts: replace(facts, hosts=(facts.hosts[0], replace(facts.hosts[0], name="app2", **changes)))


def after(tell: Callable[[Story], Any], **options: Any) -> Change:
    """The state after something more has happened."""

    def change(facts: Facts) -> Facts:
        story = told(**options)
        tell(story)
        return replace(facts, state=story.state)

    return change


def without(state: State, key: str) -> State:
    """The state, had nothing ever been deployed to this environment."""
    others = {name: here for name, here in state.environments.items() if name != key}
    return state.model_copy(update={"environments": others})


def having_applied(state: State, key: str, count: int) -> State:
    """The state, had deployments to this environment applied so many migrations."""
    applied = {f"{number}.sql": sha(str(number)) for number in range(count)}
    here = state.environment(key).model_copy(update={"applied": applied})
    return state.model_copy(update={"environments": {**state.environments, key: here}})


def request_of(release: str) -> str:
    return next(sign_off.request for sign_off in told().state.sign_offs if sign_off.release == release)


ASKED, DECIDED = request_of("2.4.0+1"), "r15-sign-off-recorded-1"
EVERY: tuple[Purpose, ...] = ("deploy", "promote", "rollback")
FORWARD: tuple[Purpose, ...] = ("deploy", "promote")
PROMOTE: tuple[Purpose, ...] = ("promote",)
RESERVED = "approved-with-reservations"


@dataclass(frozen=True)
class Row:
    """One change to the facts, the purposes for which it refuses, and what is said then. For all others it may go."""

    id: str
    purposes: tuple[Purpose, ...]
    change: Change
    expected: tuple[Expected, ...]


def row(id: str, purposes: tuple[Purpose, ...], change: Change, *expected: Expected) -> Row:
    return Row(id, purposes, change, expected)


TABLE = [
    # may_act
    row(
        "auditor",
        EVERY,
        actor(roles=["auditor"]),
        ("may_act", "eve has none of the roles engineer, lead, service", PLACES["people"]),
    ),
    row(
        "approver",
        EVERY,
        actor(roles=["approver"]),
        ("may_act", "eve has none of the roles engineer, lead, service", PLACES["people"]),
    ),
    row("lead", (), actor(roles=["lead"])),
    row("service", (), actor(roles=["auditor", "service"], kind="service")),
    row(
        "other customers", EVERY, actor(customers=["brandt"]), ("may_act", "eve does not serve acme", PLACES["people"])
    ),
    row("this customer", (), actor(customers=["brandt", "acme"])),
    row(
        "other team",
        EVERY,
        lambda facts: replace(facts, customer=customer(team=("jane",)), entered_by=JANE),
        ("may_act", "eve is not in the team of acme", PLACES["team"]),
    ),
    row("this team", (), customer_with(team=("jane", "eve"))),
    row(
        "neither role nor customer",
        EVERY,
        actor(roles=["auditor"], customers=["brandt"]),
        ("may_act", "eve has none of the roles engineer, lead, service", PLACES["people"]),
        ("may_act", "eve does not serve acme", PLACES["people"]),
    ),
    # has_a_ticket
    row(
        "no ticket",
        EVERY,
        having(tickets=()),
        ("has_a_ticket", "no ticket: every deployment names one that exists", None),
    ),
    row(
        "unknown tickets",
        EVERY,
        having(tickets=("ACME-8", "ACME-9"), unknown_tickets=("ACME-8", "ACME-9")),
        ("has_a_ticket", "ticket ACME-8 is not known to the tracker ledger", None),
        ("has_a_ticket", "ticket ACME-9 is not known to the tracker ledger", None),
    ),
    # ledger_is_sound
    *[
        row(
            f"{count} findings",
            PROMOTE,
            having(findings=[Reason(f"finding {n}", f"record {n}") for n in range(count)]),
            *[
                ("ledger_is_sound", f"the ledger does not verify: finding {n}", f"record {n}")
                for n in range(min(count, 5))
            ],
            *rest,
        )
        for count, rest in (
            (1, ()),
            (5, ()),
            (7, (("ledger_is_sound", "and 2 more findings: invoke ledger.verify customer=acme", None),)),
        )
    ],
    # signed_off
    row(
        "open",
        PROMOTE,
        after(lambda story: None, decision=None),
        ("signed_off", "deployment 0004 on test has no sign-off (ticket ACME-1)", ASKED),
    ),
    row(
        "rejected",
        PROMOTE,
        after(lambda story: None, decision="rejected"),
        ("signed_off", "claire rejected 2.4.0+1 on 22 Nov 2026 20:15 UTC", DECIDED),
    ),
    row("reservations", (), after(lambda story: None, decision=RESERVED, reservations=[{"severity": "major"}])),
    row(
        "blocking",
        PROMOTE,
        after(lambda story: None, decision=RESERVED, reservations=[{"severity": "minor"}, {"severity": "blocking"}]),
        ("signed_off", "claire approved 2.4.0+1 with a blocking reservation", DECIDED),
    ),
    row(
        "superseded by a patch",
        PROMOTE,
        after(lambda story: story.patch("2.3.0+2", "CVE-9", "2.3.0+1")),
        ("signed_off", "the sign-off of 2.4.0+1 is superseded: patch CVE-9 (2.3.0+2) is not in it", ASKED),
    ),
    row(
        "rolled back from",
        PROMOTE,
        after(
            lambda story: [
                story.deployed("2.4.0+1", "production", "promote"),
                story.deployed("2.3.0+1", "production", "rollback"),
            ]
        ),
        ("signed_off", "the sign-off of 2.4.0+1 is superseded: production was rolled back from it", ASKED),
    ),
    row(
        "asked again",
        PROMOTE,
        after(lambda story: [story.deployed("2.4.0+1"), story.asked("2.4.0+1")]),
        ("signed_off", "deployment 0005 on test has no sign-off (ticket ACME-1)", "r18-sign-off-requested-1"),
    ),
    row(
        "never asked",
        PROMOTE,
        lambda facts: replace(facts, state=facts.state.model_copy(update={"sign_offs": ()})),
        ("signed_off", "2.4.0+1 was never on test of acme, so nobody was asked to sign it off", None),
    ),
    row(
        "other content",
        PROMOTE,
        having(content=sha("one byte more")),
        (
            "signed_off",
            f"the content of 2.4.0+1 is not the content that was put before the customer: {sha('one byte more')[:12]} now, "
            f"{sha('2.4.0+1')[:12]} then (the tree or the playbook was changed)",
            ASKED,
        ),
        ("test_still_holds_it", f"test was given 2.4.0+1 with other content: {sha('2.4.0+1')[:12]}", None),
    ),
    row(
        "other settings",
        PROMOTE,
        having(settings=sha("another host")),
        (
            "signed_off",
            "the settings of test or production of acme were changed since the sign-off was asked for",
            PLACES["environment"],
        ),
    ),
    row(
        "no longer an approver",
        PROMOTE,
        customer_with(approvers=("paul",)),
        ("signed_off", "claire, who decided, is not an approver of acme", PLACES["approvers"]),
    ),
    row(
        "entered by nobody known",
        PROMOTE,
        having(entered_by=None),
        ("signed_off", "eve, who entered the decision, is not in people.yaml", DECIDED),
    ),
    row(
        "entered by an auditor of another customer",
        PROMOTE,
        having(entered_by=EVE.model_copy(update={"roles": ("auditor",), "customers": ("brandt",)})),
        (
            "signed_off",
            "the decision was entered by somebody who may not: eve has none of the roles engineer, lead, service",
            DECIDED,
        ),
        ("signed_off", "the decision was entered by somebody who may not: eve does not serve acme", DECIDED),
    ),
    # test_still_holds_it
    row(
        "another release on test",
        PROMOTE,
        after(lambda story: story.deployed("2.3.0+1", purpose="rollback")),
        ("test_still_holds_it", "test holds 2.3.0+1, not 2.4.0+1", None),
    ),
    row(
        "nothing on test",
        PROMOTE,
        lambda facts: replace(facts, state=without(facts.state, "test")),
        ("test_still_holds_it", "test holds nothing, not 2.4.0+1", None),
    ),
    row(
        "test is being deployed to",
        PROMOTE,
        after(lambda story: story.started("2.4.0+1")),
        ("test_still_holds_it", "deployment 0005 on test has no outcome yet", "r16-deployment-started-1"),
    ),
    row(
        "current on test",
        PROMOTE,
        having(test_hosts=(HostFacts("test1", "2.4.0+1"), HostFacts("test2", None), HostFacts("test3", "2.3.0+1"))),
        ("test_still_holds_it", "current on test is nothing, not 2.4.0+1", "test2"),
        ("test_still_holds_it", "current on test is 2.3.0+1, not 2.4.0+1", "test3"),
    ),
    row(
        "drift on test",
        PROMOTE,
        having(test_hosts=(HostFacts("test1", "2.4.0+1", drift=("changed app.py", "extra x")),)),
        ("test_still_holds_it", "changed on the test server since the deployment: changed app.py", "test1"),
        ("test_still_holds_it", "changed on the test server since the deployment: extra x", "test1"),
    ),
    # approver_is_not_the_deployer
    row(
        "approver deploys",
        PROMOTE,
        actor(key="claire", roles=["engineer", "approver"]),
        ("approver_is_not_the_deployer", "claire signed 2.4.0+1 off and cannot deploy it", DECIDED),
    ),
    # keeps_every_patch
    row(
        "loses a patch",
        PROMOTE,
        having(contains={"CVE-1": True, "CVE-2": False}),
        ("keeps_every_patch", "patch CVE-2 is installed on production and is not in 2.4.0+1", None),
    ),
    # rehearsed_on_test
    row(
        "not rehearsed",
        PROMOTE,
        having(unrehearsed={"004.sql": "has not run on test as it is in 2.4.0+1"}),
        ("rehearsed_on_test", "migration 004.sql has not run on test as it is in 2.4.0+1", None),
    ),
    # not_quarantined: below, its words name the environment
    # not_frozen, inside_a_window
    row(
        "frozen",
        FORWARD,
        environment_with(freezes=(FREEZE,)),
        ("not_frozen", "frozen until 02 Dec 2026 06:00 CET: year-end", PLACES["freezes.0"]),
    ),
    row(
        "the second freeze",
        FORWARD,
        environment_with(freezes=(FREEZE.model_copy(update={"until": NOW}), FREEZE)),
        ("not_frozen", "frozen until 02 Dec 2026 06:00 CET: year-end", PLACES["freezes.1"]),
    ),
    row("in the window", (), environment_with(windows=(LATE,))),
    row(
        "outside the windows",
        FORWARD,
        environment_with(
            windows=(LATE.model_copy(update={"days": ("sun", "tue")}), LATE.model_copy(update={"start": time(22)}))
        ),
        (
            "inside_a_window",
            "Mon 23 Nov 21:00 CET is outside the agreed maintenance windows (sun,tue 20:00–23:00; mon 22:00–23:00)",
            PLACES["windows"],
        ),
    ),
    row(
        "a freeze beats a window",
        FORWARD,
        environment_with(windows=(LATE,), freezes=(FREEZE,)),
        ("not_frozen", "frozen until 02 Dec 2026 06:00 CET: year-end", PLACES["freezes.0"]),
    ),
    # hosts_are_ours
    row(
        "foreign",
        EVERY,
        host(current=None, foreign=("current (a folder)", "index.php")),
        (
            "hosts_are_ours",
            "the folder holds what this pipeline did not put there: current (a folder), index.php",
            "app2",
        ),
    ),
    row(
        "missing programs",
        EVERY,
        host(missing_tools=("tar", "sha256sum")),
        ("hosts_are_ours", "programs are missing on the host: tar, sha256sum", "app2"),
    ),
    # hosts_can_be_written
    row(
        "not writable",
        EVERY,
        host(writable=False, user="deploy"),
        ("hosts_can_be_written", "deploy may not write to the folder", "app2"),
    ),
    # hosts_have_room
    row(
        "too few bytes",
        FORWARD,
        lambda facts: host(free_bytes=MARGIN_BYTES + 1_999_999)(replace(facts, size=1_000_000)),
        ("hosts_have_room", "18.8 MB are free, and 2.4.0+1 needs 18.8 MB", "app2"),
    ),
    row("just enough bytes", (), lambda facts: host(free_bytes=MARGIN_BYTES + 2000)(replace(facts, size=1000))),
    row(
        "too few inodes",
        FORWARD,
        lambda facts: host(free_inodes=MARGIN_INODES + 5)(replace(facts, files=3)),
        ("hosts_have_room", "205 inodes are free, and 2.4.0+1 needs 206", "app2"),
    ),
    row("just enough inodes", (), lambda facts: host(free_inodes=MARGIN_INODES + 6)(replace(facts, files=3))),
    row(
        "the release is there already, and needs no room but the margin",
        (),
        lambda facts: host(free_bytes=MARGIN_BYTES, free_inodes=MARGIN_INODES, releases=("2.4.0+1", "2.3.0+1"))(
            replace(facts, size=1000, files=3)
        ),
    ),
    row(
        "a full disk",
        FORWARD,
        host(free_bytes=0, free_inodes=0, releases=("2.4.0+1",)),
        ("hosts_have_room", "0 bytes are free, and 2.4.0+1 needs 16.8 MB", "app2"),
        ("hosts_have_room", "0 inodes are free, and 2.4.0+1 needs 200", "app2"),
    ),
    # clocks_agree
    row(
        "a clock five minutes ahead",
        FORWARD,
        host(clock_offset_seconds=300.0),
        ("clocks_agree", "its clock is 5 minutes ahead of ours; set the wrong one of the two right", "app2"),
    ),
    row(
        "a clock an hour behind",
        FORWARD,
        host(clock_offset_seconds=-3600.0),
        ("clocks_agree", "its clock is 60 minutes behind ours; set the wrong one of the two right", "app2"),
    ),
    row("a clock that warns", (), host(clock_offset_seconds=-299.0)),
    # resumes_the_same: its other reason below names the environment
    row(
        "resumed with other settings",
        PROMOTE,
        lambda facts: replace(
            after(
                lambda story: story.started(
                    "2.4.0+1",
                    facts.environment.key,
                    details={"deployment": "0005", "purpose": facts.purpose, "settings": sha("settings then")},
                )
            )(facts),
            resumes=True,
        ),
        (
            "resumes_the_same",
            "deployment 0005 began with other settings of test or production than there are now",
            "r16-deployment-started-1",
        ),
    ),
    # environments_are_apart
    row(
        "one folder for two environments",
        EVERY,
        having(other_environments=[environment("test"), elsewhere("integration")]),
        ("environments_are_apart", "/srv/shop on 10.0.0.1 is a folder of test too", PLACES["environment"]),
    ),
    row(
        "one database for two environments",
        EVERY,
        lambda facts: replace(
            environment_with(database=POSTGRESQL)(facts),
            other_environments=[elsewhere("test", database=POSTGRESQL)],
        ),
        ("environments_are_apart", "its database is that of test too", PLACES["environment"]),
    ),
    row(
        "databases of the same name, each on its own machine",
        (),
        lambda facts: replace(
            environment_with(database=POSTGRESQL | {"host": "localhost"})(facts),
            other_environments=[elsewhere("test", database=POSTGRESQL | {"host": "localhost"})],
        ),
    ),
    # journals_agree
    row(
        "journal",
        EVERY,
        host(journal=("its deployment journal is damaged: 000002 is missing",)),
        ("journals_agree", "its deployment journal is damaged: 000002 is missing", "app2"),
    ),
    row(
        "journal on test",
        PROMOTE,
        # For the others nothing of test is looked at.
        lambda facts: replace(
            facts,
            test_hosts=tuple(
                replace(seen, journal=("the folder is that of test of brandt",)) for seen in facts.test_hosts
            ),
        ),
        ("journals_agree", "the folder is that of test of brandt", "test1"),
    ),
    # hosts_hold_what_was_recorded
    row(
        "drift",
        EVERY,
        host(drift=("changed app.py",)),
        ("hosts_hold_what_was_recorded", "changed on the server since the deployment: changed app.py", "app2"),
    ),
    row(
        "much drift",
        EVERY,
        host(drift=tuple(f"file {n}" for n in range(25))),
        *[
            ("hosts_hold_what_was_recorded", f"changed on the server since the deployment: {what}", "app2")
            for what in (*(f"file {n}" for n in range(20)), "5 more")
        ],
    ),
    row(
        "accepted drift, but not of the release that is to go there",
        ("rollback",),
        lambda facts: host(drift=("changed app.py",))(replace(facts, accept_drift="the vendor's own fix")),
        ("hosts_hold_what_was_recorded", "changed on the server since the deployment: changed app.py", "app2"),
        (
            "hosts_hold_what_was_recorded",
            "2.3.0+1 itself serves and is never overwritten in place: accept-drift cannot help",
            "app2",
        ),
    ),
    row(
        "accepted drift excuses no other release",
        EVERY,
        lambda facts: host(current="2.0.0+1", drift=("changed app.py",))(replace(facts, accept_drift="a fix")),
        (
            "hosts_hold_what_was_recorded",
            "current is 2.0.0+1, but the record says 2.3.0+1 is installed",
            "app2",
        ),
    ),
    row(
        "accepted drift does not excuse drift on test",
        PROMOTE,
        having(accept_drift="a fix", test_hosts=(HostFacts("test1", "2.4.0+1", drift=("changed app.py",)),)),
        ("test_still_holds_it", "changed on the test server since the deployment: changed app.py", "test1"),
    ),
    # migrations_are_as_they_ran
    # every_migration_has_a_step
    row(
        "unmatched",
        FORWARD,
        having(unmatched={"post_3.sql": "is matched by no migrate step of the playbook"}),
        (
            "every_migration_has_a_step",
            "migration post_3.sql is matched by no migrate step of the playbook",
            PLACES["playbook"],
        ),
    ),
    # unproven_scripts_need_a_backup
    row(
        "a script that only a restore takes back, and no backup",
        FORWARD,
        having(without_backup={"2.sql": "irreversible"}),
        (
            "unproven_scripts_need_a_backup",
            "migration 2.sql is irreversible, and the playbook backs the database up nowhere before it: write '- backup' "
            "before the migrate step, after stop where the application is stopped; or, if the old code runs on the schema "
            "that it leaves, name it under migrations: additive:",
            PLACES["playbook"],
        ),
    ),
    # no_script_is_blocked, schema_is_known, no_restore_is_unfinished, migrations_have_a_database: in ON_ENVIRONMENT
    # database_can_be_migrated
    row(
        "a server that cannot be migrated",
        FORWARD,
        having(pending=("2.sql",), database=DatabaseFacts("8.1", ("no lock_timeout",), ("it is behind a pooler",))),
        (
            "database_can_be_migrated",
            "the database cannot be migrated: it is behind a pooler",
            PLACES["environment"],
        ),
    ),
    row(
        "a server that cannot be migrated, where nothing is to run",
        EVERY,
        having(database=DatabaseFacts("8.1", refusals=("it is behind a pooler",))),
    ),
    # lint_has_nothing_to_refuse
    row(
        "a finding that the playbook refuses",
        FORWARD,
        having(refused_findings=(Reason("without-where: every row is changed", "2.sql:3"),)),
        ("lint_has_nothing_to_refuse", "without-where: every row is changed", "2.sql:3"),
    ),
]


def said(facts: Facts) -> list[Expected]:
    return [(reason.rule or "", reason.text, reason.source) for reason in refusals(facts)]


@pytest.mark.parametrize("purpose", get_args(Purpose))
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)
def test_one_change_is_refused_for_exactly_this_reason(case: Row, purpose: Purpose) -> None:
    found = said(case.change(may_go(purpose)))
    assert found == (list(case.expected) if purpose in case.purposes else [])


ON_ENVIRONMENT: list[tuple[str, tuple[Purpose, ...], Callable[[str], Change], Callable[[str], Expected]]] = [
    (
        "a script that is half done",
        FORWARD,
        lambda env: having(blocked={"2.sql": "2 of 5 statements are known to be committed"}),
        lambda env: (
            "no_script_is_blocked",
            "migration 2.sql was begun here and not finished (2 of 5 statements are known to be committed); look at the "
            f"database, then: invoke migrate.repair customer=acme env={env} script=2.sql reason=… with resume-at=N, "
            "--mark-done or --mark-reverted",
            None,
        ),
    ),
    (
        "a restore by hand that was begun",
        EVERY,
        lambda env: after(lambda story: story.add("backup-restored", environment=env, details={"label": "fair"})),
        lambda env: (
            "no_restore_is_unfinished",
            f"the restore of backup fair on {env} has no outcome yet, or has failed; finish it: "
            f"invoke backup.restore customer=acme env={env} backup=fair reason=…",
            None,
        ),
    ),
    (
        "tables and no history",
        FORWARD,
        lambda env: having(unknown_schema=True),
        lambda env: (
            "schema_is_known",
            f"the database of {env} has tables and no migration history: which scripts have run there is not known; say it "
            f"with: invoke migrate.baseline customer=acme env={env} upto=… reason=…",
            PLACES["environment"],
        ),
    ),
    (
        "migrations and no database to apply them to",
        FORWARD,
        lambda env: (
            lambda facts: replace(
                facts, pending=("2.sql",), environment=facts.environment.model_copy(update={"database": None})
            )
        ),
        lambda env: (
            "migrations_have_a_database",
            f"2.4.0+1 has 1 migration(s), and {env} of acme has no database:",
            PLACES["environment"],
        ),
    ),
    (
        "another run",
        EVERY,
        lambda env: after(lambda story: story.started("2.3.0+1", env, "rollback")),
        lambda env: (
            "nobody_else_is_deploying",
            f"deployment 0005 of 2.3.0+1 (rollback) on {env} has no outcome yet; started 22 Nov 2026 20:16 UTC by eve; "
            "the same command again resumes it, rollback brings it back",
            "r16-deployment-started-1",
        ),
    ),
    (
        "quarantined, and another release to go back to",
        ("rollback",),
        lambda env: (
            lambda facts: (
                replace(
                    after(lambda story: story.deployed("2.4.0+1", env, outcome="failed", quarantined=True))(facts),
                    release=facts.state.releases["2.4.0+1"],
                )
                if facts.purpose == "rollback"
                else facts
            )
        ),
        lambda env: (
            "not_quarantined",
            f"{env} is quarantined: the way back of deployment 0005 failed; look at the hosts, then: invoke rollback "
            f"customer=acme env={env} brings every host to 2.3.0+1; invoke lock.release customer=acme env={env} "
            "installed=… reason=… keeps what every host holds",
            None,
        ),
    ),
    (
        "quarantined",
        FORWARD,
        lambda env: after(lambda story: story.deployed("2.4.0+1", env, outcome="failed", quarantined=True)),
        lambda env: (
            "not_quarantined",
            f"{env} is quarantined: the way back of deployment 0005 failed; look at the hosts, then: invoke rollback "
            f"customer=acme env={env} brings every host to 2.3.0+1; invoke lock.release customer=acme env={env} "
            "installed=… reason=… keeps what every host holds",
            None,
        ),
    ),
    (
        "resumed with another playbook",
        FORWARD,
        lambda env: (
            lambda facts: replace(
                after(lambda story: story.started("2.4.0+1", env, content=sha("another playbook")))(facts), resumes=True
            )
        ),
        lambda env: (
            "resumes_the_same",
            f"deployment 0005 began with content {sha('another playbook')[:12]}, which is {sha('2.4.0+1')[:12]} now (the "
            "playbook was changed)",
            "r16-deployment-started-1",
        ),
    ),
    (
        "edited",
        FORWARD,
        lambda env: having(edited=("002.sql",)),
        lambda env: (
            "migrations_are_as_they_ran",
            "migration 002.sql was edited after it ran here; if the edit is harmless: invoke migrate.accept customer=acme "
            f"script=002.sql env={env} reason=…",
            None,
        ),
    ),
    (
        "vanished",
        FORWARD,
        lambda env: having(vanished={"002.sql": "2.3.0+1"}),
        lambda env: (
            "migrations_are_as_they_ran",
            "migration 002.sql ran here with 2.3.0+1, and 2.4.0+1 does not hold it; if it was removed or renamed on "
            f"purpose: invoke migrate.accept customer=acme script=002.sql env={env} release=2.4.0+1 reason=…",
            None,
        ),
    ),
    (
        "vanished, of nobody's release",
        FORWARD,
        lambda env: having(vanished={"002.sql": "9.9.9+9"}),
        lambda env: (
            "migrations_are_as_they_ran",
            "migration 002.sql ran here with 9.9.9+9 (which is no release of acme), and 2.4.0+1 does not hold it; if it was "
            "removed or renamed on purpose: invoke migrate.accept customer=acme script=002.sql "
            f"env={env} release=2.4.0+1 reason=…",
            None,
        ),
    ),
    (
        "another database",
        FORWARD,
        lambda env: lambda facts: replace(facts, state=having_applied(facts.state, env, 7), lost=list("abcdef")),
        lambda env: (
            "database_is_the_one",
            f"the database lacks 6 of the 7 migration(s) that were applied on {env} (a, b, c, d, e, …): it is another "
            "database, or an older copy; restore it, or look at its settings. If it was replaced on purpose: invoke "
            f"migrate.accept customer=acme script='*' env={env} reason=…",
            PLACES["environment"],
        ),
    ),
]


@pytest.mark.parametrize("purpose", get_args(Purpose))
@pytest.mark.parametrize(
    ("id", "purposes", "change", "expected"), ON_ENVIRONMENT, ids=[row[0] for row in ON_ENVIRONMENT]
)
def test_reasons_that_name_the_environment(
    purpose: Purpose,
    id: str,
    purposes: tuple[Purpose, ...],
    change: Callable[[str], Change],
    expected: Callable[[str], Expected],
) -> None:
    facts = may_go(purpose)
    env = facts.environment.key
    assert said(change(env)(facts)) == ([expected(env)] if purpose in purposes else [])


def test_of_a_quarantined_environment_only_what_is_installed_may_go_back_wherever_the_hosts_are() -> None:
    """The way back may have stopped anywhere, but on releases of ours."""
    facts = after(lambda story: story.deployed("2.4.0+1", "integration", outcome="failed", quarantined=True))(
        may_go("rollback")
    )
    releases = list(facts.state.releases)
    hosts = [HostFacts(f"app{n}", release) for n, release in enumerate([*releases, None])]
    assert refusals(replace(facts, hosts=hosts)) == ()
    [reason] = refusals(replace(facts, hosts=[HostFacts("app1", "9.9.9+9")]))
    assert reason.rule == "hosts_hold_what_was_recorded"
    other = next(release for name, release in facts.state.releases.items() if name != facts.release.name)
    assert "not_quarantined" in {reason.rule for reason in refusals(replace(facts, release=other))}


def test_every_rule_has_a_row_that_it_refuses_for_every_purpose_that_it_is_asked_for() -> None:
    """And none for a purpose that it is not asked for: the table is the whole of RULES."""
    refused = {(expected[0], purpose) for case in TABLE for expected in case.expected for purpose in case.purposes}
    refused |= {
        (expected("integration")[0], purpose) for _, purposes, _, expected in ON_ENVIRONMENT for purpose in purposes
    }
    assert refused == {(rule.__name__, purpose) for rule, purposes in rules.RULES.items() for purpose in purposes}


def test_a_host_is_judged_alone_too_and_warned_about() -> None:
    fine = HostFacts("app1", "2.4.0+1", substitutes=("no flock: a lock folder is used",), clock_offset_seconds=4.9)
    assert preflight.objections(fine, preflight.Need("2.5.0+1", 10**12, 10**6)) == ()
    assert preflight.warnings(fine) == ("app1: no flock: a lock folder is used",)
    slow = replace(fine, substitutes=(), clock_offset_seconds=-5.0)
    assert preflight.warnings(slow) == ("app1: its clock is 5 seconds behind ours",)
    bad = HostFacts(
        "app1",
        None,
        foreign=("index.php",),
        missing_tools=("tar",),
        journal=("it is damaged",),
        writable=False,
        free_bytes=1,
        clock_offset_seconds=301.0,
    )
    assert preflight.warnings(bad) == ()
    assert len(preflight.objections(bad, None)) == 5
    assert len(preflight.objections(bad, preflight.Need("2.5.0+1"))) == 6


def test_every_rule_of_the_module_is_asked() -> None:
    written = {
        name
        for name, found in {**vars(migration_rules), **vars(rules)}.items()
        if callable(found) and getattr(found, "__annotations__", {}) == {"facts": "Facts", "return": "Iterator[Reason]"}
    }
    assert written == {rule.__name__ for rule in rules.RULES}


def test_all_reasons_are_given_at_once_in_the_order_of_the_rules() -> None:
    facts = replace(may_go(), tickets=(), settings=sha("x"), unmatched={"9.sql": "x"}, contains={"CVE-1": False})
    facts = actor(roles=["auditor"])(facts)
    order = [rule.__name__ for rule in rules.RULES]
    found = [reason.rule for reason in refusals(facts)]
    assert found == ["may_act", "has_a_ticket", "signed_off", "keeps_every_patch", "every_migration_has_a_step"]
    assert [name for name in order if name in found] == found


# --- what is recorded and what the hosts hold ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "resumes", "running", "expected"),
    [
        ("2.3.0+1", False, False, None),
        ("2.4.0+1", False, False, "current is 2.4.0+1, but the record says 2.3.0+1 is installed"),
        (None, False, False, "current is nothing, but the record says 2.3.0+1 is installed"),
        ("2.3.0+1", True, True, None),
        ("2.4.0+1", True, True, None),  # the interrupted run has switched this host already
        ("2.2.0+1", True, True, "current is 2.2.0+1, but the record says 2.3.0+1 is installed"),
    ],
)
def test_a_host_holds_what_is_recorded_or_what_the_interrupted_run_put_there(
    current: str | None, resumes: bool, running: bool, expected: str | None
) -> None:
    story = told()
    if running:
        story.started("2.4.0+1", "production", "promote")
    facts = replace(may_go(state=story.state), hosts=(HostFacts("app1", current),), resumes=resumes)
    assert said(facts) == ([("hosts_hold_what_was_recorded", expected, "app1")] if expected else [])


def test_a_first_deployment_finds_nothing_installed() -> None:
    facts = may_go()
    state = without(facts.state, "production")
    assert said(replace(facts, state=state, hosts=(HostFacts("app1", None),))) == []
    assert said(replace(facts, state=state)) == [
        ("hosts_hold_what_was_recorded", "current is 2.3.0+1, but the record says nothing is installed", "app1")
    ]


def test_an_interrupted_run_is_resumed_and_not_in_its_own_way() -> None:
    story = told()
    story.started("2.4.0+1", "production", "promote")
    assert [reason.rule for reason in refusals(may_go(state=story.state))] == ["nobody_else_is_deploying"]
    assert refusals(replace(may_go(state=story.state), resumes=True)) == ()


def underway(current: str, **changes: Any) -> Facts:
    """A promotion was interrupted; since then another release came to test, a freeze began, and a window is closed."""
    story = told()
    story.started("2.4.0+1", "production", "promote")
    story.tested("2.5.0+1")
    closed = environment(windows=(LATE.model_copy(update={"start": time(22)}),), freezes=(FREEZE,))
    facts = replace(may_go(state=story.state), hosts=(HostFacts("app1", current),), environment=closed, resumes=True)
    return replace(facts, test_hosts=(HostFacts("test1", "2.5.0+1"),), **changes)


def test_once_a_host_has_switched_what_is_asked_to_begin_is_not_asked_again() -> None:
    assert refusals(underway("2.4.0+1")) == ()
    begin = ["signed_off", "test_still_holds_it", "test_still_holds_it", "not_frozen", "inside_a_window"]
    assert [reason.rule for reason in refusals(underway("2.3.0+1"))] == begin
    # Who does not resume begins, whatever the hosts hold.
    found = [reason.rule for reason in refusals(underway("2.4.0+1", resumes=False))]
    assert set(found) == {*begin, "nobody_else_is_deploying", "hosts_hold_what_was_recorded"}
    # And everything else is asked as ever.
    findings = [Reason("is not what the records add up to", "state.json")]
    still: dict[str, dict[str, Any]] = {
        "approver_is_not_the_deployer": {"actor": EVE.model_copy(update={"key": "claire"})},
        "may_act": {"actor": EVE.model_copy(update={"roles": ("auditor",)})},
        "has_a_ticket": {"tickets": ()},
        "ledger_is_sound": {"findings": findings},
        "resumes_the_same": {"content": sha("another playbook")},
        "keeps_every_patch": {"contains": {"CVE-1": False}},
        "rehearsed_on_test": {"unrehearsed": {"4.sql": "x"}},
        "migrations_are_as_they_ran": {"edited": ("4.sql",)},
        "every_migration_has_a_step": {"unmatched": {"4.sql": "x"}},
        "no_script_is_blocked": {"blocked": {"4.sql": "x"}},
        "schema_is_known": {"unknown_schema": True},
        "unproven_scripts_need_a_backup": {"without_backup": {"4.sql": "unknown"}},
        "database_can_be_migrated": {"pending": ("4.sql",), "database": DatabaseFacts("8", refusals=("too old",))},
        "lint_has_nothing_to_refuse": {"refused_findings": findings},
    }
    for rule, change in still.items():
        assert [reason.rule for reason in refusals(underway("2.4.0+1", **change))] == [rule]


# --- the decision itself ---------------------------------------------------------------------------------------------------

PAUL = CLAIRE.model_copy(update={"key": "paul"})


@pytest.mark.parametrize(
    ("story", "by", "approver", "entered_by", "approvers", "expected"),
    [
        (told(decision=None).paged(), "claire", CLAIRE, EVE, ("claire",), []),
        (told(decision="rejected").paged(), "claire", CLAIRE, EVE, ("claire",), []),
        (
            told(decision="rejected").paged(),
            "paul",
            PAUL,
            EVE,
            ("claire", "paul"),
            [
                (
                    "claire rejected 2.4.0+1: only claire may decide anew, or a new deployment to test asks anew",
                    DECIDED,
                )
            ],
        ),
        (told(decision="approved").paged(), "paul", PAUL, EVE, ("claire", "paul"), []),
        (
            told(decision=None),
            "claire",
            CLAIRE,
            EVE,
            ("claire",),
            [
                (
                    "no page of 2.4.0+1 was put before acme yet: invoke signoff.page customer=acme",
                    ASKED,
                )
            ],
        ),
        (
            told(decision=None).paged(),
            "claire",
            CLAIRE,
            EVE.model_copy(update={"roles": ("auditor",), "customers": ("brandt",)}),
            ("claire",),
            [
                ("eve has none of the roles engineer, lead, service", PLACES["people"]),
                ("eve does not serve acme", PLACES["people"]),
            ],
        ),
        (
            told(decision=None).paged(),
            "paul",
            PAUL,
            EVE,
            ("claire", "jane"),
            [("paul is not an approver of acme; approvers are claire, jane", PLACES["approvers"])],
        ),
        (told(decision=None).paged(), "paul", None, EVE, ("paul",), [("paul is not in people.yaml", PLACES["people"])]),
        (
            told(decision=None).paged(),
            "claire",
            CLAIRE,
            CLAIRE.model_copy(update={"roles": ("approver", "lead")}),
            ("claire",),
            [("claire cannot both decide for the customer and enter the decision", None)],
        ),
        (
            Story(),
            "claire",
            CLAIRE,
            EVE,
            ("claire",),
            [("nothing was put before acme yet: nothing was deployed to test", None)],
        ),
        (
            told(decision=None).paged(),
            "eve",
            EVE,
            JANE,
            ("eve",),
            [("eve deployed 2.4.0+1 to test and cannot sign it off", "r13-deployment-finished-1")],
        ),
    ],
)
def test_who_may_decide(
    story: Story,
    by: str,
    approver: Person | None,
    entered_by: Person,
    approvers: tuple[str, ...],
    expected: list[tuple[str, str | None]],
) -> None:
    who: Customer = customer(approvers=approvers)
    found = list(decision_refusals(story.state, who, approver, by, entered_by, PLACES))
    assert found == [Reason(text, source) for text, source in expected]


def test_a_superseded_request_is_decided_no_more() -> None:
    story = told(decision=None)
    story.patch("2.3.0+2", "CVE-9", "2.3.0+1")
    [reason] = decision_refusals(story.state, customer(), CLAIRE, "claire", EVE, PLACES)
    assert reason == Reason("the request for 2.4.0+1 is superseded: patch CVE-9 (2.3.0+2) is not in it", ASKED)


def test_what_test_no_longer_holds_is_not_decided() -> None:
    story = told(decision=None).paged()
    record = story.deployed("2.3.0+1", purpose="rollback")
    [reason] = decision_refusals(story.state, customer(), CLAIRE, "claire", EVE, PLACES)
    assert reason == Reason("test holds 2.3.0+1 now, not 2.4.0+1", record.id)


# --- the calendar ----------------------------------------------------------------------------------------------------------

PARIS = "Europe/Paris"


def window(days: str, start: str, until: str) -> Window:
    return Window.model_validate({"days": days.split(","), "start": start, "until": until})


def at(text: str, zone: str = PARIS, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


@pytest.mark.parametrize(
    ("agreed", "local", "inside"),
    [
        # half-open, on the agreed days only; 23 November 2026 is a Monday
        (window("mon", "20:00", "22:00"), "2026-11-23 19:59:59", False),
        (window("mon", "20:00", "22:00"), "2026-11-23 20:00:00", True),
        (window("mon", "20:00", "22:00"), "2026-11-23 21:59:59", True),
        (window("mon", "20:00", "22:00"), "2026-11-23 22:00:00", False),
        (window("mon", "20:00", "22:00"), "2026-11-24 21:00:00", False),
        (window("mon,tue", "20:00", "22:00"), "2026-11-24 21:00:00", True),
        # past midnight, it belongs to the day on which it started
        (window("mon", "22:00", "02:00"), "2026-11-23 21:59:59", False),
        (window("mon", "22:00", "02:00"), "2026-11-23 22:00:00", True),
        (window("mon", "22:00", "02:00"), "2026-11-24 01:59:59", True),
        (window("mon", "22:00", "02:00"), "2026-11-24 02:00:00", False),
        (window("mon", "22:00", "02:00"), "2026-11-23 01:00:00", False),
        (window("mon", "22:00", "02:00"), "2026-11-24 22:00:00", False),
        (window("sun", "22:00", "02:00"), "2026-11-23 01:00:00", True),
        # until midnight; a whole day
        (window("mon", "20:00", "00:00"), "2026-11-23 23:59:59", True),
        (window("mon", "20:00", "00:00"), "2026-11-24 00:00:00", False),
        (window("mon", "00:00", "00:00"), "2026-11-23 00:00:00", True),
        (window("mon", "00:00", "00:00"), "2026-11-23 23:59:59", True),
        (window("mon", "00:00", "00:00"), "2026-11-24 00:00:00", False),
        # the clock goes forward on 29 March 2026: 02:00 becomes 03:00
        (window("sun", "01:00", "03:00"), "2026-03-29 01:59:59", True),
        (window("sun", "01:00", "03:00"), "2026-03-29 03:00:00", False),
        (window("sat", "22:00", "04:00"), "2026-03-29 03:30:00", True),
        (window("sat", "22:00", "04:00"), "2026-03-29 04:00:00", False),
    ],
)
def test_a_window_is_on_the_customers_clock(agreed: Window, local: str, inside: bool) -> None:
    assert in_window(agreed, at(local).astimezone(UTC), PARIS) is inside


@pytest.mark.parametrize(("fold", "utc"), [(0, "00:30"), (1, "01:30")])
def test_the_hour_that_comes_twice_is_inside_both_times(fold: int, utc: str) -> None:
    """The clock goes back on 25 October 2026: 03:00 becomes 02:00."""
    twice = at("2026-10-25 02:30:00", fold=fold).astimezone(UTC)
    assert f"{twice:%H:%M}" == utc
    assert in_window(window("sun", "02:00", "03:00"), twice, PARIS)
    assert not in_window(window("sun", "03:00", "04:00"), twice, PARIS)


@pytest.mark.parametrize(
    ("zone", "instant", "inside"),
    [
        (PARIS, "2026-07-01T18:00:00", True),  # CEST: 20:00
        (PARIS, "2026-12-02T18:00:00", False),  # CET: 19:00
        (PARIS, "2026-12-02T19:00:00", True),
        ("America/Montreal", "2026-07-02T00:00:00", True),  # still Wednesday there
        ("Asia/Tokyo", "2026-07-01T20:00:00", False),  # already Thursday there
    ],
)
def test_a_window_keeps_its_local_time_through_the_year_and_the_zones(zone: str, instant: str, inside: bool) -> None:
    agreed = window("wed", "20:00", "22:00")
    assert in_window(agreed, datetime.fromisoformat(instant).replace(tzinfo=UTC), zone) is inside


@pytest.mark.parametrize(
    ("instant", "frozen"),
    [
        ("2026-11-22T23:59:59", False),
        ("2026-11-23T00:00:00", True),
        ("2026-12-02T04:59:59", True),
        ("2026-12-02T05:00:00", False),
    ],
)
def test_a_freeze_is_half_open(instant: str, frozen: bool) -> None:
    assert in_freeze(FREEZE, datetime.fromisoformat(instant).replace(tzinfo=UTC)) is frozen
