"""What records add up to: each kind by itself, then the stories that the rules rely on."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content import canonical
from pipeline.model import Record, RecordKind, RefMove, TicketRef
from pipeline.state import EnvironmentState, State, apply, fold
from tests.nouns import TICKETS, Story, oid, sha


@pytest.fixture
def story() -> Story:
    return Story()


def statuses(story: Story) -> dict[str, str]:
    return {sign_off.release: sign_off.status for sign_off in story.state.sign_offs}


def ran(*scripts: str) -> dict[str, str]:
    """These scripts with their checksums, as a record of an outcome lists what was applied."""
    return {script: sha(script) for script in scripts}


# --- each kind of record -----------------------------------------------------------------------------------------------


def test_nothing_yet() -> None:
    state = fold("acme", [])
    assert state == State(customer="acme")
    assert (state.number, state.head, state.sign_off, state.newest_release()) == (0, None, None, None)
    assert state.environment("test") == EnvironmentState()


@pytest.mark.parametrize("kind", get_args(RecordKind))
def test_every_kind_of_record_is_the_new_head(kind: RecordKind) -> None:
    """Also of kinds that change nothing else: the chain goes on."""
    told = every_kind()
    assert {record.kind for record, _ in told.pairs} == set(get_args(RecordKind))
    number = next(n for n, (record, _) in enumerate(told.pairs, 1) if record.kind == kind)
    state = fold("acme", told.pairs[:number])
    record, digest = told.pairs[number - 1]
    assert (state.number, state.head, state.product) == (record.number, digest, "shop")


def test_a_line_started_holds_its_version(story: Story) -> None:
    story.add("line-started", details={"version": "2.3.0"})
    assert story.state.version == "2.3.0"


def test_refs_move_and_go(story: Story) -> None:
    one, two = RefMove(ref="refs/a", old=None, new=oid("1")), RefMove(ref="refs/b", old=None, new=oid("2"))
    story.add("line-started", details={"version": "1"}, moves=(one, two))
    assert story.state.refs == {"refs/a": oid("1"), "refs/b": oid("2")}
    later = (RefMove(ref="refs/a", old=oid("1"), new=oid("3")), RefMove(ref="refs/b", old=oid("2"), new=None))
    story.add("erased", moves=later)
    assert story.state.refs == {"refs/a": oid("3")}


def test_a_release_made(story: Story) -> None:
    record = story.release("2.4.0+1", patches=["CVE-1"])
    made = story.state.releases["2.4.0+1"]
    assert made.model_dump() == {
        "name": "2.4.0+1",
        "version": "2.4.0",
        "commit": oid("2.4.0+1"),
        "made_at": "2026-11-22T20:01:00Z",
        "made_by": "eve",
        "record": record.id,
        "tickets": ({"tracker": "ledger", "id": "ACME-1"},),
        "patches": ("CVE-1",),
        "number": 1,
    }
    assert story.state.version == "2.4.0"
    assert story.state.newest_release() == made


def test_the_newest_release_is_the_one_recorded_last_whatever_the_clocks_say(story: Story) -> None:
    first = story.release("2.4.0+1")
    story.release("2.3.0+9")
    early = story.pairs[-1][0].model_copy(update={"at": first.at.replace(year=2020), "id": "a"})
    state = fold("acme", [story.pairs[0], (early, sha("early"))])
    newest = state.newest_release()
    assert newest is not None
    assert newest.name == "2.3.0+9"


def test_a_patch_is_a_release_too_and_does_not_change_the_version_of_the_line(story: Story) -> None:
    story.release("2.5.0+1")
    record = story.patch("2.4.0+2", "CVE-1", "2.4.0+1")
    [patch] = story.state.patches
    assert (patch.id, patch.commit, patch.release, patch.base) == ("CVE-1", oid("2.4.0+2"), "2.4.0+2", "2.4.0+1")
    assert patch.record == record.id
    assert story.state.releases["2.4.0+2"].patches == ("CVE-1",)
    assert story.state.version == "2.5.0"


def test_a_ticket_is_opened_and_closed(story: Story) -> None:
    opened = story.ticket()
    ticket = story.state.tickets["ACME-1"]
    assert (ticket.state, ticket.opened_by, ticket.record) == ("new", "eve", opened.id)
    assert ticket.texts == {"title": sha("ACME-1")}
    story.ticket("ACME-2")
    story.add("ticket-closed", tickets=TICKETS)
    assert {id: ticket.state for id, ticket in story.state.tickets.items()} == {"ACME-1": "closed", "ACME-2": "new"}


def test_a_ticket_that_nobody_opened_cannot_be_closed(story: Story) -> None:
    with pytest.raises(KeyError, match="ACME-9"):
        story.add("ticket-closed", tickets=(TicketRef(tracker="ledger", id="ACME-9"),))


def test_a_deployment_runs_from_its_start_to_its_outcome(story: Story) -> None:
    story.release("2.4.0+1")
    started = story.started("2.4.0+1")
    here = story.state.environment("test")
    assert here.installed is None
    assert here.running is not None
    assert (here.running.run, here.running.deployment, here.running.purpose) == (started.run, "0001", "deploy")
    assert (here.running.release, here.running.content, here.running.by) == ("2.4.0+1", sha("2.4.0+1"), "eve")
    assert story.state.deployments == 1

    finished = story.finished(started, scripts=ran("001.sql", "002.sql"), checks=[{"title": "c", "outcome": "ok"}])
    here = story.state.environment("test")
    assert here.running is None
    assert here.installed is not None
    assert here.installed.commit == finished.moves[0].new
    assert (here.installed.release, here.installed.deployment, here.installed.by) == ("2.4.0+1", "0001", "eve")
    assert here.installed.settings == sha("settings")
    assert here.installed.checks == ({"title": "c", "outcome": "ok"},)
    assert (here.applied, here.earlier, here.left) == (ran("001.sql", "002.sql"), (), ())
    assert story.state.environment("production") == EnvironmentState()


def test_what_was_installed_before_is_kept_oldest_first(story: Story) -> None:
    for name in ("1.0+1", "1.1+1", "1.2+1"):
        story.release(name)
        story.deployed(name)
    here = story.state.environment("test")
    assert here.installed is not None
    assert here.installed.release == "1.2+1"
    assert [earlier.release for earlier in here.earlier] == ["1.0+1", "1.1+1"]
    assert story.state.deployments == 3


def test_a_failed_deployment_changes_nothing_but_what_it_migrated(story: Story) -> None:
    story.deployed("1.0+1", scripts=ran("001.sql"))
    story.deployed("1.1+1", outcome="failed", scripts=ran("002.sql"), quarantined=False)
    here = story.state.environment("test")
    assert here.installed is not None
    assert here.installed.release == "1.0+1"
    assert (here.running, here.earlier, here.quarantined) == (None, (), None)
    assert here.applied == ran("001.sql", "002.sql")


def test_a_migration_that_ran_is_kept_with_the_text_that_ran_last(story: Story) -> None:
    story.deployed("1.1+1", outcome="failed", scripts=ran("001.sql"))
    story.deployed("1.1+1", scripts={"001.sql": sha("edited"), "002.sql": sha("002.sql")})
    assert story.state.environment("test").applied == {"001.sql": sha("edited"), "002.sql": sha("002.sql")}


def test_a_way_back_that_failed_quarantines_until_the_lock_is_released(story: Story) -> None:
    story.deployed("1.0+1", "production")
    story.deployed("1.1+1", "production", outcome="failed", quarantined=True)
    assert story.state.environment("production").quarantined == "0002"
    assert story.state.environment("test").quarantined is None
    story.add("lock-released", environment="production", details={"ends": "lease"})
    assert story.state.environment("production").quarantined == "0002"
    story.add("lock-released", environment="production", details={"ends": "quarantine"})
    assert story.state.environment("production").quarantined is None


@pytest.mark.parametrize("ends", ["lease", "quarantine"])
def test_a_released_lock_leaves_an_open_deployment_open(story: Story, ends: str) -> None:
    story.deployed("1.0+1")
    story.started("1.1+1")
    before = story.state.environment("test")
    story.add("lock-released", environment="test", details={"ends": ends})
    assert story.state.environment("test") == before


def test_an_open_deployment_that_is_kept_as_found_is_installed(story: Story) -> None:
    """Only with the move of the environment's branch; without it what was installed before still is."""
    story.deployed("1.0+1", scripts=ran("001.sql"))
    started = story.started("1.1+1")
    fields: dict[str, Any] = {
        "environment": "test",
        "release": "1.1+1",
        "content": sha("1.1+1"),
        "tickets": TICKETS,
    }
    details = {"ends": "deployment", "deployment": "0002", "purpose": "kept as found", "scripts": ran("002.sql")}
    move = RefMove(ref="refs/heads/acme/env/test", old=None, new=oid("kept"))
    without = apply(
        story.state, started.model_copy(update=fields | {"kind": "lock-released", "details": details}), "0" * 64
    )
    assert without.environment("test").running is None
    assert without.environment("test").installed == story.state.environment("test").installed
    record = story.add("lock-released", moves=(move,), details=details, **fields)
    here = story.state.environment("test")
    assert here.running is None
    assert here.installed is not None
    assert (here.installed.release, here.installed.deployment, here.installed.record) == ("1.1+1", "0002", record.id)
    assert (here.installed.commit, here.installed.settings) == (oid("kept"), None)
    assert [earlier.release for earlier in here.earlier] == ["1.0+1"]
    assert here.applied == ran("001.sql", "002.sql")


@pytest.mark.parametrize("env", ["test", "production"])
def test_a_rollback_that_is_kept_as_found_leaves_what_it_was_from(story: Story, env: str) -> None:
    story.deployed("1.0+1")
    story.deployed("1.0+1", env, "promote")
    story.deployed("1.1+1")
    story.asked("1.1+1")
    story.deployed("1.1+1", env, "promote")
    story.deployed("1.2+1", env, outcome="failed")
    story.started("1.0+1", env, "rollback")
    details = {"ends": "deployment", "deployment": "0006", "purpose": "kept as found", "scripts": {}}
    move = RefMove(ref=f"refs/heads/acme/env/{env}", old=None, new=oid("kept"))
    fields: dict[str, Any] = {"environment": env, "release": "1.0+1", "content": sha("1.0+1")}
    story.add("lock-released", moves=(move,), details=details, **fields)
    here = story.state.environment(env)
    assert here.installed is not None
    assert (here.installed.release, here.left, here.failed) == ("1.0+1", ("1.1+1",), None)
    assert statuses(story)["1.1+1"] == ("superseded" if env == "production" else "open")
    # A deployment of it that is kept brings it back.
    story.started("1.1+1", env, "deploy")
    story.add("lock-released", moves=(move,), details=details, **(fields | {"release": "1.1+1"}))
    assert story.state.environment(env).left == ()


def test_a_rollback_to_what_is_installed_ends_the_quarantine_and_leaves_nothing(story: Story) -> None:
    story.deployed("1.0+1")
    story.asked("1.0+1")
    story.deployed("1.0+1", "production", "promote")
    story.deployed("1.1+1", "production", "promote", outcome="failed", quarantined=True)
    story.deployed("1.0+1", "production", "rollback", outcome="failed")
    assert story.state.environment("production").quarantined is not None
    story.deployed("1.0+1", "production", "rollback")
    here = story.state.environment("production")
    assert (here.quarantined, here.left) == (None, ())
    assert statuses(story) == {"1.0+1": "open"}


def test_an_accepted_edit_is_this_old_and_this_new_checksum(story: Story) -> None:
    details = {"script": "002.sql", "old": sha("old"), "new": sha("new")}
    record = story.add("migration-accepted", details=details, texts={"reason": sha("harmless")})
    [accepted] = story.state.accepted
    assert (accepted.script, accepted.old, accepted.new) == ("002.sql", sha("old"), sha("new"))
    assert (accepted.record, accepted.by, accepted.reason) == (record.id, "eve", sha("harmless"))


def test_a_database_that_was_replaced_has_not_had_what_it_lacks(story: Story) -> None:
    story.deployed("1.0+1", scripts=ran("001.sql", "002.sql"))
    story.add("migration-accepted", environment="test", details={"script": "*", "missing": ["002.sql"]})
    assert story.state.environment("test").applied == ran("001.sql")
    assert story.state.accepted == ()


# --- rolling back ------------------------------------------------------------------------------------------------------


def test_a_rollback_is_a_step_forward_and_names_what_was_left(story: Story) -> None:
    for name in ("1.0+1", "1.1+1", "1.2+1"):
        story.deployed(name)
    story.deployed("1.1+1", purpose="rollback")
    here = story.state.environment("test")
    assert here.installed is not None
    assert (here.installed.release, here.left) == ("1.1+1", ("1.2+1",))
    assert [earlier.release for earlier in here.earlier] == ["1.0+1", "1.1+1", "1.2+1"]
    story.deployed("1.0+1", purpose="rollback")
    assert story.state.environment("test").left == ("1.1+1", "1.2+1")


def test_what_was_left_and_is_deployed_again_is_no_longer_left(story: Story) -> None:
    for name in ("1.0+1", "1.1+1"):
        story.deployed(name)
    story.deployed("1.0+1", purpose="rollback")
    story.deployed("1.1+1")
    assert story.state.environment("test").left == ()


def test_a_rollback_that_failed_leaves_nothing(story: Story) -> None:
    story.deployed("1.0+1")
    story.deployed("1.1+1")
    story.deployed("1.0+1", purpose="rollback", outcome="failed")
    assert story.state.environment("test").left == ()


def test_what_production_was_rolled_back_from_needs_a_new_sign_off(story: Story) -> None:
    story.decided(story.tested("1.0+1"))
    story.deployed("1.0+1", "production", "promote")
    request = story.tested("1.1+1")
    story.decided(request)
    story.deployed("1.1+1", "production", "promote")
    story.deployed("1.0+1", "production", "rollback")
    sign_off = story.state.sign_off
    assert sign_off is not None
    assert (sign_off.release, sign_off.status) == ("1.1+1", "superseded")
    assert sign_off.reason == "production was rolled back from it"
    assert not sign_off.approved


@pytest.mark.parametrize(("env", "outcome"), [("test", "ok"), ("production", "failed")])
def test_no_other_rollback_touches_the_sign_off(story: Story, env: str, outcome: str) -> None:
    story.deployed("1.0+1", env)
    story.deployed("1.1+1", env)
    story.decided(story.asked("1.1+1"))
    story.deployed("1.0+1", env, "rollback", outcome=outcome)
    assert statuses(story) == {"1.1+1": "approved"}


# --- sign-off ----------------------------------------------------------------------------------------------------------


def test_a_request_is_open(story: Story) -> None:
    record = story.tested("1.0+1")
    sign_off = story.state.sign_off
    assert sign_off is not None
    assert (sign_off.request, sign_off.status, sign_off.by) == (record.id, "open", None)
    assert (sign_off.content, sign_off.settings) == (sha("1.0+1"), sha("settings"))
    assert f"{sign_off.due:%Y-%m-%dT%H:%M:%SZ}" == "2026-12-02T22:59:59Z"
    assert not sign_off.approved


RESERVED = "approved-with-reservations"


@pytest.mark.parametrize(
    ("decision", "severities", "approved"),
    [
        ("approved", [], True),
        (RESERVED, ["minor"], True),
        (RESERVED, ["major", "minor"], True),
        (RESERVED, ["minor", "blocking"], False),
        ("rejected", [], False),
    ],
)
def test_a_decision(story: Story, decision: str, severities: list[str], approved: bool) -> None:
    request = story.tested("1.0+1")
    record = story.decided(request, decision, reservations=[{"severity": severity} for severity in severities])
    sign_off = story.state.sign_off
    assert sign_off is not None
    assert (sign_off.status, sign_off.approved) == (decision, approved)
    assert (sign_off.by, sign_off.entered_by, sign_off.record) == ("claire", "eve", record.id)
    assert sign_off.decided_at == record.at


def test_a_decision_made_anew_replaces_the_earlier_one(story: Story) -> None:
    request = story.tested("1.0+1")
    story.decided(request, RESERVED, reservations=[{"severity": "blocking"}])
    story.decided(request, "approved")
    assert story.state.sign_off is not None
    assert story.state.sign_off.approved
    story.decided(request, "rejected")
    assert not story.state.sign_off.approved


def test_a_page_is_the_requests_own(story: Story) -> None:
    first, second = story.tested("1.0+1"), story.tested("1.1+1")
    due, planned = "2026-12-09T22:59:59Z", "2026-12-10T19:00:00Z"
    story.add(
        "sign-off-page-written",
        details={"request": second.id, "page": sha("page"), "due": due, "planned": planned},
    )
    old, new = story.state.sign_offs
    assert (old.request, old.page, old.planned) == (first.id, None, None)
    assert new.page == sha("page")
    assert new.due is not None
    assert new.planned is not None
    assert (new.due.isoformat(), new.planned.isoformat()) == ("2026-12-09T22:59:59+00:00", "2026-12-10T19:00:00+00:00")
    assert new.status == "open"


@pytest.mark.parametrize(
    ("decision", "expected"),
    [(None, "superseded"), ("approved", "superseded"), (RESERVED, "superseded"), ("rejected", "rejected")],
)
def test_another_release_on_test_supersedes(story: Story, decision: str | None, expected: str) -> None:
    request = story.tested("1.0+1")
    if decision:
        story.decided(request, decision)
    story.tested("1.1+1")
    assert statuses(story) == {"1.0+1": expected, "1.1+1": "open"}
    if expected == "superseded":
        assert story.state.sign_offs[0].reason == "deployment 0002 put 1.1+1 on test"


def test_the_same_release_deployed_to_test_again_asks_again(story: Story) -> None:
    story.decided(story.tested("1.0+1"))
    story.deployed("1.0+1")
    story.asked("1.0+1")
    assert [sign_off.status for sign_off in story.state.sign_offs] == ["superseded", "open"]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [(None, "superseded"), ("approved", "superseded"), (RESERVED, "superseded"), ("rejected", "rejected")],
)
def test_a_hotfix_supersedes_what_does_not_have_it(story: Story, decision: str | None, expected: str) -> None:
    request = story.tested("2.5.0+1")
    if decision:
        story.decided(request, decision)
    story.patch("2.4.0+2", "CVE-1", "2.4.0+1")
    assert statuses(story) == {"2.5.0+1": expected}
    if expected == "superseded":
        assert story.state.sign_offs[0].reason == "patch CVE-1 (2.4.0+2) is not in it"


def test_a_hotfix_is_signed_off_like_any_release(story: Story) -> None:
    story.tested("2.5.0+1")
    story.patch("2.4.0+2", "CVE-1", "2.4.0+1")
    story.deployed("2.4.0+2")
    story.decided(story.asked("2.4.0+2"))
    assert statuses(story) == {"2.5.0+1": "superseded", "2.4.0+2": "approved"}
    story.patch("2.4.0+3", "CVE-2", "2.4.0+2")
    assert statuses(story) == {"2.5.0+1": "superseded", "2.4.0+2": "superseded"}


def test_superseded_stays_superseded(story: Story) -> None:
    """A decision that comes too late, or is recorded by force, revives nothing."""
    request = story.tested("2.5.0+1")
    story.patch("2.4.0+2", "CVE-1", "2.4.0+1")
    story.decided(request, "approved")
    assert statuses(story) == {"2.5.0+1": "superseded"}
    assert story.state.sign_offs[0].reason == "patch CVE-1 (2.4.0+2) is not in it"


def test_a_rejected_request_that_is_not_the_newest_is_decided_no_more(story: Story) -> None:
    request = story.tested("1.0+1")
    story.decided(request, "rejected")
    story.tested("1.1+1")
    story.decided(request, "approved")
    assert statuses(story) == {"1.0+1": "rejected", "1.1+1": "open"}


def test_scripts_of_a_deployment_whose_lock_was_released_have_run(story: Story) -> None:
    story.deployed("1.0+1", scripts=ran("001.sql"))
    story.started("1.1+1")
    details = {"ends": "deployment", "scripts": ran("001.sql", "002.sql")}
    story.add("lock-released", environment="test", details=details)
    assert story.state.environment("test").applied == ran("001.sql", "002.sql")


def partly(story: Story, run: str, **hosts: str | None) -> Record:
    details = {"deployment": "0002", "purpose": "deploy", "hosts": hosts}
    return story.add("deployment-partly-done", run=run, environment="test", release="1.1+1", details=details)


def test_a_deployment_that_is_partly_done_says_what_runs_where_until_it_ends(story: Story) -> None:
    story.deployed("1.0+1")
    started = story.started("1.1+1")
    partly(story, started.run, app1="1.1+1", app2="1.0+1")
    here = story.state.environment("test")
    assert here.running is not None
    assert here.running.partly == {"app1": "1.1+1", "app2": "1.0+1"}
    assert here.installed is not None
    assert (here.installed.release, here.running.release) == ("1.0+1", "1.1+1")
    # The next attempt of the same run has not changed anything yet.
    story.started("1.1+1", run=started.run, details=started.details)
    running = story.state.environment("test").running
    assert running is not None
    assert running.partly == {"app1": "1.1+1", "app2": "1.0+1"}
    story.finished(started)
    assert (story.state.environment("test").running, story.state.environment("test").failed) == (None, None)
    story.started("1.2+1")
    running = story.state.environment("test").running
    assert running is not None
    assert running.partly == {}


def test_what_is_partly_done_is_said_of_the_open_deployment_only(story: Story) -> None:
    story.deployed("1.0+1")
    partly(story, "r2", app1="1.1+1")
    assert story.state.environment("test").running is None
    story.started("1.1+1")
    partly(story, "another", app1="1.0+1", app2=None)
    running = story.state.environment("test").running
    assert running is not None
    assert running.partly == {}
    partly(story, running.run, app1="1.1+1", app2=None)
    story.started("1.2+1")
    running = story.state.environment("test").running
    assert running is not None
    assert running.partly == {}


def test_the_commit_of_a_deployment_is_that_of_its_environment(story: Story) -> None:
    """Whatever other refs the same record moves."""
    started = story.started("1.0+1")
    main = RefMove(ref="refs/heads/acme/main", old=None, new=oid("main"))
    env = RefMove(ref="refs/heads/acme/env/test", old=None, new=oid("env"))
    fields = {"environment": "test", "release": "1.0+1", "content": sha("1.0+1"), "outcome": "ok"}
    story.add("deployment-finished", moves=(main, env), details=started.details, **fields)
    installed = story.state.environment("test").installed
    assert installed is not None
    assert installed.commit == oid("env")


def test_a_decision_on_one_request_leaves_the_others(story: Story) -> None:
    story.tested("1.0+1")
    story.decided(story.tested("1.1+1"))
    assert statuses(story) == {"1.0+1": "superseded", "1.1+1": "approved"}
    assert story.state.sign_offs[0].by is None


# --- the fold as a whole -----------------------------------------------------------------------------------------------


# --- what counts as applied -----------------------------------------------------------------------------------------------


def repaired(story: Story, script: str, what: str) -> None:
    details = {"script": script, "what": what, "checksum": sha(script), "resume_at": 2 if what == "resume" else None}
    story.add("migration-repaired", environment="test", details=details)


def test_a_baseline_counts_as_applied(story: Story) -> None:
    story.deployed("1.0+1", "test", scripts=ran("002.sql"))
    story.add("migrations-baselined", environment="test", details={"scripts": ran("001.sql")})
    assert story.state.environment("test").applied == ran("001.sql", "002.sql")
    assert story.state.environment("production").applied == {}


def test_a_repair_says_what_became_of_a_script(story: Story) -> None:
    story.deployed("1.0+1", "test", scripts=ran("001.sql", "002.sql"))
    repaired(story, "003.sql", "done")
    assert story.state.environment("test").applied == ran("001.sql", "002.sql", "003.sql")
    repaired(story, "002.sql", "reverted")
    repaired(story, "004.sql", "reverted")
    repaired(story, "005.sql", "resume")
    assert story.state.environment("test").applied == ran("001.sql", "003.sql")


def test_what_the_full_schema_stands_for_has_not_run(story: Story) -> None:
    details = {"covered": ["001.sql", "002.sql"], "catalogue": {"before": sha("empty"), "after": sha("new")}}
    story.deployed("1.0+1", "test", scripts=ran("schema.sql", "001.sql", "002.sql"), **details)
    here = story.state.environment("test")
    assert (here.applied, here.covered) == (ran("schema.sql", "001.sql", "002.sql"), ("001.sql", "002.sql"))
    assert here.catalogue == sha("new")
    # A repeatable one of them ran later, and a run without migrations leaves the catalogue as it is.
    story.deployed("1.0+2", "test", scripts=ran("002.sql"))
    here = story.state.environment("test")
    assert (here.covered, here.catalogue) == (("001.sql",), sha("new"))
    details = {"script": "*", "missing": ["001.sql"]}
    story.add("migration-accepted", environment="test", details=details)
    assert story.state.environment("test").covered == ()


def test_a_restore_by_hand_is_open_until_it_has_succeeded(story: Story) -> None:
    story.deployed("1.0+1", "test", scripts=ran("001.sql", "002.sql"))

    def restored(outcome: str | None = None, **details: object) -> str | None:
        details |= {"label": "fair"}
        story.add("backup-restored", environment="test", outcome=outcome, details=details)
        return story.state.environment("test").restoring

    assert restored() == "fair"
    assert restored("failed", unchanged=False) == "fair"
    assert story.state.environment("test").applied == ran("001.sql", "002.sql")
    assert restored("failed", unchanged=True) is None
    assert restored() == "fair"
    # Its history went back with the database; a restore of shared/ alone leaves it as it is.
    assert restored("ok", scripts=ran("001.sql")) is None
    assert story.state.environment("test").applied == ran("001.sql")
    assert restored("ok") is None
    assert story.state.environment("test").applied == ran("001.sql")
    story.add("backup-made", environment="test", details={"label": "fair", "backups": []})
    assert story.state == story.folded()


def test_a_way_back_that_restores_belongs_to_its_deployment(story: Story) -> None:
    story.tested("1.0+1")
    started = story.started("1.1+1")
    backups = [{"label": started.run, "what": "database"}]
    details = {**started.details, "backups": backups}
    story.add("backup-restored", run=started.run, environment="test", release="1.1+1", details=details)
    here = story.state.environment("test")
    assert here.running is not None and here.running.restoring == tuple(backups) and here.restoring is None
    # The next attempt of the same run goes on with it; the outcome ends it.
    again = story.add(
        "deployment-started",
        run=started.run,
        environment="test",
        release="1.1+1",
        content=started.content,
        tickets=TICKETS,
        details=started.details,
    )
    running = story.state.environment("test").running
    assert running is not None and running.restoring == tuple(backups)
    story.finished(again, "failed")
    assert story.state.environment("test").running is None
    assert story.state.environment("test").restoring is None


def test_a_way_back_that_did_not_come_through_its_restore_leaves_it_to_be_done_by_hand(story: Story) -> None:
    story.tested("1.0+1")
    story.finished(story.started("1.1+1"), "failed", quarantined=True, restore_unfinished="r9")
    assert story.state.environment("test").restoring == "r9"
    story.add("lock-released", environment="test", details={"ends": "quarantine"})
    assert story.state.environment("test").restoring is None


def every_kind() -> Story:
    """One story with each kind of record at least once."""
    story = Story()
    story.add("line-started", details={"version": "1.0"})
    story.ticket()
    request = story.tested("1.0+1")
    details = {"request": request.id, "page": sha("page"), "due": "2026-12-02T22:59:59Z"}
    story.add("sign-off-page-written", details=details)
    story.decided(request)
    story.deployed("1.0+1", "production", "promote", scripts=ran("001.sql"))
    story.patch("1.0+2", "CVE-1", "1.0+1")
    story.add("migration-accepted", details={"script": "001.sql", "old": sha("a"), "new": sha("b")})
    story.add("migrations-baselined", environment="test", details={"scripts": ran("000.sql")})
    repaired = {"script": "002.sql", "what": "done", "checksum": sha("002.sql"), "resume_at": None}
    story.add("migration-repaired", environment="test", details=repaired)
    for kind in ("backup-made", "backup-proven", "backup-restored"):
        story.add(kind, environment="test", details={"label": "fair", "backups": []})
    started = story.started("1.0+2")
    partly(story, started.run, app1="1.0+2", app2="1.0+1")
    story.add("lock-released", environment="test", details={"ends": "deployment"})
    story.add("erased", details={"count": 1})
    story.add("ticket-closed", tickets=TICKETS)
    return story


def test_apply_one_by_one_is_the_fold_and_every_prefix_is_a_past_state() -> None:
    told = every_kind()
    state = State(customer="acme")
    for count, (record, digest) in enumerate(told.pairs, start=1):
        state = apply(state, record, digest)
        assert state == fold("acme", told.pairs[:count])
    assert state == told.state == told.folded()


def test_apply_leaves_the_state_before_as_it_was() -> None:
    told = every_kind()
    state = State(customer="acme")
    for record, digest in told.pairs:
        before = state.model_dump_json()
        after = apply(state, record, digest)
        assert state.model_dump_json() == before
        state = after


def test_a_state_can_be_written_and_read_at_every_point() -> None:
    """``state.json`` is its RFC 8785 form; reading it and going on is the same as folding everything."""
    told = every_kind()
    for count in range(len(told.pairs) + 1):
        state = fold("acme", told.pairs[:count])
        state = State.model_validate_json(canonical(state.model_dump(mode="json")))
        for record, digest in told.pairs[count:]:
            state = apply(state, record, digest)
        assert canonical(state.model_dump(mode="json")) == canonical(told.state.model_dump(mode="json"))


def test_a_rollback_from_nothing_does_not_fit_what_came_before(story: Story) -> None:
    """The chain itself (numbers, hashes, order) is not asked here but by ``ledger.verify``."""
    with pytest.raises(AssertionError):
        story.deployed("1.0+1", "production", "rollback")


RELEASES = ("1.0+1", "1.1+1", "1.2+1")
MOVES = st.one_of(
    st.tuples(st.just("test"), st.sampled_from(RELEASES)),
    st.tuples(st.just("production"), st.sampled_from(RELEASES)),
    st.tuples(st.just("rollback"), st.sampled_from(RELEASES)),
    st.tuples(st.just("failed"), st.sampled_from(RELEASES)),
    st.tuples(st.just("decide"), st.sampled_from(["approved", RESERVED, "rejected"])),
    st.tuples(st.just("patch"), st.sampled_from(RELEASES)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MOVES, max_size=12))
def test_whatever_happens_at_most_one_sign_off_lets_through_and_it_is_the_newest(moves: list[tuple[str, str]]) -> None:
    story = Story()
    story.tested("1.0+1")
    for what, word in moves:
        installed = story.state.environment("production").installed
        if what == "test":
            story.deployed(word)
            story.asked(word)
        elif what == "production":
            story.deployed(word, "production", "promote")
        elif what == "rollback" and installed is not None:
            story.deployed(word, "production", "rollback")
        elif what == "failed":
            story.deployed(word, "production", "promote", outcome="failed")
        elif what == "decide":
            request = story.pairs[[r.kind for r, _ in story.pairs].index("sign-off-requested")][0]
            newest = story.state.sign_off
            assert newest is not None
            story.decided(next(r for r, _ in story.pairs if r.id == newest.request), word)
            story.decided(request, "rejected" if request.id == newest.request else word)
        elif what == "patch":
            story.patch(f"{word}{len(story.pairs)}", f"FIX-{len(story.pairs)}", word)
    assert all(s.status in {"superseded", "rejected"} for s in story.state.sign_offs[:-1])
    for key in ("test", "production"):
        here = story.state.environment(key)
        finished = [r for r, _ in story.pairs if r.kind == "deployment-finished" and r.environment == key]
        good = [r.release for r in finished if r.outcome == "ok"]
        held = [*here.earlier, here.installed] if here.installed else []
        assert [deployed.release for deployed in held] == good
        assert here.running is None
    assert story.state == story.folded()
