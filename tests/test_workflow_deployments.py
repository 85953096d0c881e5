"""The main job on the local transport with SQLite: what goes through, what is refused, what is brought back.

What needs many deployments is marked slow: it takes more time than ``make quick`` has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError, Failed, Locked, NotKnown, PartlyDone, Refused, UsageError
from pipeline.workflow import deployments, overview, releases, upkeep
from pipeline.workflow.deployments import PlanResult
from tests.flows import BROKEN, Flow, customise, told

pytestmark = pytest.mark.slow

LINES = "line two\nline three\nline four\nline five\n"
INSERT = "INSERT INTO item (name) VALUES ('once');\n"


@pytest.fixture
def released(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "released")


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def live(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "live")


@pytest.fixture
def waiting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "waiting")


# --- it goes through ---------------------------------------------------------------------------------------------------


def test_signed_off_and_promoted(waiting: Flow) -> None:
    """From the customer's yes to production; every place that must agree agrees."""
    before = waiting.refs()
    with pytest.raises(Refused, match="has no sign-off") as refused:
        waiting.promote()
    assert refused.value.next_commands == ("invoke signoff.page customer=acme",)
    assert waiting.refs() == before
    assert waiting.current("production") == "releases/1.0.0+1"

    waiting.decide()
    done = waiting.promote()
    assert (done.changed, done.installed_before, done.migrations) == (True, "1.0.0+1", ("002_price.sql",))
    assert waiting.served("production") == "depot 1.1.0"
    assert waiting.migrated("production") == ["001_base.sql", "002_price.sql"]
    config = (waiting.host("production") / "shared" / "app.conf").read_text()
    assert config == "title=Acme production\npassword=hunter2-canary-secret\nrelease=1.1.0+1\n"
    waiting.check_sound()

    env = "refs/heads/acme/env/production"
    commit = waiting.repository.commit_info(waiting.refs()[env])
    assert commit.trailers["Record-Id"] == done.record
    assert commit.trailers["Ticket"] == "ACME-1"
    assert commit.trailers["Content-SHA256"] == done.content
    assert commit.parents[1] == waiting.state().releases["1.1.0+1"].commit
    installed = waiting.state().environment("production").installed
    assert installed is not None
    assert installed.commit == waiting.refs()[env]
    journal = sorted((waiting.host("production") / "journal").iterdir())
    last = json.loads(journal[-1].read_text())
    started = waiting.records("deployment-started")[-1]
    assert (last["what"], last["outcome"], last["record"]) == ("deployment-finished", "ok", started.id)
    assert last["record_sha256"] == waiting.ledger.record_sha256(started.id)

    count = len(waiting.records())
    again = waiting.promote()
    assert (again.changed, again.deployment) == (False, None)
    assert waiting.deploy().changed is False
    assert len(waiting.records()) == count


def test_a_plan_and_a_dry_run_write_nothing(tested: Flow) -> None:
    tested.decide()
    before, files = tested.refs(), sorted(tested.folder.glob("hosts/**/*"))
    seen = deployments.plan(tested.session(), customer="acme", environment="production")
    dry = deployments.promote(tested.session(), customer="acme", dry_run=True)
    assert isinstance(dry, PlanResult)
    assert seen.actions == dry.actions
    assert dry.migrations == ("001_base.sql",)
    assert [action["operation"] for action in dry.actions] == [
        *("backup", "upload", "render", "migrate", "switch", "command", "probe")
    ]
    assert dry.refusals == ()
    assert {"what": "values.title", "test": "Acme test", "production": "Acme production"} in dry.differences
    assert tested.refs() == before
    assert sorted(tested.folder.glob("hosts/**/*")) == files


def test_what_cannot_be_asked_for(tested: Flow) -> None:
    with pytest.raises(Refused, match="deploy does not touch production"):
        tested.deploy(environment="production")
    with pytest.raises(NotKnown, match=r"9\.9"):
        tested.deploy("9.9.9+1")
    with pytest.raises((NotKnown, UsageError)):
        tested.deploy(environment="integration")
    with pytest.raises(Refused, match="no release before"):
        tested.rollback("test")
    tested.release("1.1.0")
    with pytest.raises(Refused, match="ticket ACME-9 is not known"):
        tested.deploy(tickets=("ACME-9",))


# --- promote, refused --------------------------------------------------------------------------------------------------


def test_every_byte_that_was_signed_off_counts(waiting: Flow) -> None:
    """Each thing changed after the sign-off is a reason, with its source; put back, nothing speaks against it."""
    waiting.decide()
    assert waiting.refusals() == {}

    waiting.edit("playbooks/depot.yaml", "name: Depot", "name: Depots")
    found = waiting.refusals()
    assert set(found) == {"signed_off", "test_still_holds_it"}
    assert "the tree or the playbook was changed" in found["signed_off"][0]
    with pytest.raises(Refused):
        waiting.promote()
    waiting.edit("playbooks/depot.yaml", "name: Depots", "name: Depot")

    file = waiting.host("test") / "releases" / "1.1.0+1" / "app.txt"
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    assert waiting.refusals() == {
        "test_still_holds_it": ["changed on the test server since the deployment: app.txt was changed (app1)"]
    }
    file.write_bytes(data)

    production = waiting.host("production") / "releases" / "1.0.0+1" / "extra.txt"
    production.write_text("somebody was here\n")
    assert set(waiting.refusals()) == {"hosts_hold_what_was_recorded"}
    production.unlink()
    stray = waiting.host("production") / "notes.txt"
    stray.write_text("somebody was here\n")
    assert "notes.txt" in waiting.refusals()["hosts_are_ours"][0]
    stray.unlink()

    settings = "environments/acme/production.yaml"
    waiting.edit(settings, "title: Acme production", "title: Acme Production")
    waiting.write(
        settings,
        (waiting.folder / settings).read_text()
        + "windows:\n  - days: [sun]\n    start: '02:00'\n    until: '04:00'\n"
        + "freezes:\n  - start: 2026-01-01T00:00:00Z\n    until: 2026-12-24T00:00:00Z\n    reason: year-end\n",
    )
    found = waiting.refusals()
    assert set(found) == {"signed_off", "inside_a_window", "not_frozen"}
    assert "settings of test or production" in found["signed_off"][0]
    assert "year-end (environments/acme/production.yaml:" in found["not_frozen"][0]
    before = waiting.refs()
    with pytest.raises(Refused) as refused:
        waiting.promote()
    assert len(refused.value.reasons) == 3
    assert waiting.refs() == before
    assert waiting.current("production") == "releases/1.0.0+1"


@pytest.mark.slow
def test_who_and_where_count_as_well(waiting: Flow) -> None:
    waiting.decide()
    people = "environments/people.yaml"
    waiting.edit(people, "roles: [engineer]", "roles: [auditor]")
    with pytest.raises(Refused, match="none of the roles"):
        waiting.promote()
    waiting.edit(people, "roles: [auditor]", "roles: [engineer]\n    customers: [other]")
    with pytest.raises(Refused, match="does not serve acme"):
        waiting.promote()
    waiting.edit(people, "\n    customers: [other]", "")
    waiting.person("carl", "approver")
    waiting.edit("environments/acme/customer.yaml", "approvers: [claire]", "approvers: [carl]")
    assert "claire, who decided, is not an approver of acme" in waiting.refusals()["signed_off"][0]
    waiting.edit("environments/acme/customer.yaml", "approvers: [carl]", "approvers: [claire]")

    waiting.sql("production", "UPDATE tma_migration_history SET checksum = '" + "0" * 64 + "'")
    assert "001_base.sql was edited" in waiting.refusals()["migrations_are_as_they_ran"][0]
    with pytest.raises(Refused) as refused:
        waiting.promote()
    assert "invoke migrate.accept customer=acme script=001_base.sql env=production reason=…" in (
        refused.value.next_commands
    )
    waiting.deploy("1.0.0+1")
    found = waiting.refusals(release="1.1.0+1")
    assert {"signed_off", "test_still_holds_it"} <= set(found)
    assert "deployment 0004 put 1.0.0+1 on test" in found["signed_off"][0]


@pytest.mark.slow
def test_a_release_without_the_installed_fix_does_not_follow_it(waiting: Flow) -> None:
    """The hotfix story: 1.1.0+1 waits, production is fixed, and 1.1.0 comes again with the fix."""
    waiting.decide()
    waiting.write("fix.diff", "--- a/app.txt\n+++ b/app.txt\n@@ -5 +5 @@\n-line five\n+line 5\n")
    fixed = releases.make_patch(
        waiting.session(), customer="acme", tickets=("ACME-1",), file=Path("fix.diff"), id="FIX"
    ).release
    with pytest.raises(Refused, match="superseded: patch FIX"):
        waiting.promote()
    assert waiting.deploy().release == fixed
    waiting.decide()
    assert waiting.promote().release == fixed
    assert waiting.migrated("production") == ["001_base.sql"]
    assert "patch FIX is installed on production" in waiting.refusals(release="1.1.0+1")["keeps_every_patch"][0]
    newer = waiting.release("1.1.0").release
    assert newer == "1.1.0+2"
    assert waiting.deploy().release == newer
    waiting.decide()
    done = waiting.promote()
    assert (done.release, done.migrations) == (newer, ("002_price.sql",))
    assert (waiting.host("production") / "current" / "app.txt").read_text().endswith("line 5\n")
    # Back to what lacks the fix, as a rollback may.
    assert waiting.rollback("production").release == fixed
    assert "production was rolled back from it" in waiting.refusals()["signed_off"][0]
    waiting.check_sound()


# --- brought back ------------------------------------------------------------------------------------------------------


def test_a_broken_release_is_brought_back(tested: Flow) -> None:
    name = tested.make("1.2.0", {"app.txt": BROKEN, "migrations/003_more.sql": INSERT})
    with pytest.raises(Failed, match="it serves this release") as failed:
        tested.deploy()
    assert "1.0.0+1 serves again" in failed.value.state
    assert "003_more.sql" in failed.value.state
    assert tested.served("test") == "depot 1.0.0"
    assert "release=1.0.0+1" in (tested.host("test") / "shared" / "app.conf").read_text()
    tested.check_sound()
    record = tested.records("deployment-finished")[-1]
    assert (record.outcome, record.release, record.moves[0].ref) == ("failed", name, "refs/heads/acme/texts")
    assert record.details["back_to"] == "1.0.0+1"
    assert tested.state().environment("test").applied.keys() == {"001_base.sql", "002_price.sql", "003_more.sql"}
    # What it was asked for before is on test as before; the mended release finds its scripts applied.
    assert tested.state().sign_offs[-1].status == "open"
    tested.make("1.2.1", {"app.txt": "depot 1.2.1\n" + LINES})
    assert tested.deploy().migrations == ()
    assert tested.sql("test", "SELECT count(*) FROM item") == [(1,)]
    tested.check_sound()


@pytest.mark.slow
def test_a_broken_first_deployment_leaves_nothing(released: Flow) -> None:
    released.make("1.2.0", {"app.txt": BROKEN})
    with pytest.raises(Failed, match="it serves this release") as failed:
        released.deploy()
    assert "nothing was installed before, and nothing is now" in failed.value.state
    assert released.current("test") is None
    assert not (released.host("test") / "shared" / "app.conf").exists()
    here = released.state().environment("test")
    assert (here.installed, here.running, here.quarantined) == (None, None, None)
    assert "refs/heads/acme/env/test" not in released.refs()
    assert released.deploy("1.0.0+1").installed_before is None
    released.check_sound()


@pytest.mark.slow
def test_a_failing_migration_stops_it_and_the_old_release_serves(tested: Flow) -> None:
    script = "CREATE TABLE half (id INTEGER);\nALTER TABLE nowhere ADD COLUMN x INTEGER;\n"
    tested.make("1.2.0", {"migrations/003_more.sql": script})
    with pytest.raises(Failed, match="apply 2 migration") as failed:
        tested.deploy()
    assert any("003_more.sql" in str(reason) for reason in failed.value.reasons)
    assert tested.served("test") == "depot 1.0.0"
    assert tested.migrated("test") == ["001_base.sql", "002_price.sql"]
    assert tested.sql("test", "SELECT name FROM sqlite_master WHERE name = 'half'") == []
    tested.check_sound()


@pytest.mark.parametrize("text", ["{{ values.nothing }}\n", "{% if %}\n", "{{ values.title + 1 }}\n", "{{ 1 / 0 }}\n"])
def test_a_template_that_cannot_be_filled_in_is_found_before_anything_is_announced(tested: Flow, text: str) -> None:
    tested.make("1.2.0", {"config/app.conf.j2": "first\n" + text})
    before, count = tested.refs(), len(tested.records())
    with pytest.raises(ConfigurationError, match=r"config/app\.conf\.j2"):
        tested.deploy()
    assert tested.refs() == before
    assert len(tested.records()) == count
    assert tested.current("test") == "releases/1.0.0+1"


@pytest.mark.slow
def test_past_the_point_of_no_return_there_is_no_way_back_but_a_way_on(tested: Flow) -> None:
    tested.make(
        "1.2.0",
        {
            "migrations/003_post_drop.sql": INSERT + "ALTER TABLE item DROP COLUMN price;\n",
            "migrations/004_post_unique.sql": "CREATE UNIQUE INDEX item_name ON item (name);\n",
        },
    )
    tested.sql("test", "INSERT INTO item (name) VALUES ('double'), ('double')")
    with pytest.raises(PartlyDone, match="failed after the point of no return") as partly:
        tested.deploy()
    assert partly.value.next_commands[0] == "invoke deploy customer=acme release=1.2.0+1 env=test"
    assert "003_post_drop.sql" in partly.value.state
    assert tested.served("test") == "depot 1.2.0"
    assert tested.state().environment("test").running is not None
    assert overview.status(tested.session()).rows[0]["note"] == "deployment 0002 of 1.2.0+1 has no outcome yet"
    with pytest.raises(Refused, match="has no outcome yet"):
        tested.deploy("1.0.0+1")
    with pytest.raises(Refused, match="deployment 0002 is open"):
        deployments.release_lock(tested.session(), customer="acme", environment="test", reason="I want to")
    with pytest.raises(PartlyDone, match="failed after the point of no return"):
        tested.deploy()

    tested.sql("test", "DELETE FROM item WHERE id = 1")
    done = tested.deploy()
    assert done.deployment == "0002"
    assert done.migrations == ("002_price.sql", "003_post_drop.sql", "004_post_unique.sql")
    assert tested.sql("test", "SELECT count(*) FROM item WHERE name = 'once'") == [(1,)]
    assert [record.outcome for record in tested.records("deployment-finished")] == ["ok", "ok"]
    tested.check_sound()


@pytest.mark.slow
def test_a_first_contract_script_that_fails_is_before_the_point_of_no_return(tested: Flow) -> None:
    tested.make("1.2.0", {"migrations/003_post_x.sql": "ALTER TABLE nowhere ADD COLUMN x INTEGER;\n"})
    with pytest.raises(Failed, match="apply 1 migration"):
        tested.deploy()
    assert tested.served("test") == "depot 1.0.0"
    tested.check_sound()


@pytest.mark.slow
def test_a_way_back_that_fails_quarantines(live: Flow) -> None:
    """The old release's own restart fails on the way back: nothing happens by itself until a person has looked."""
    live.make("1.2.0", {"app.txt": BROKEN})
    restart = live.host("test") / "releases" / "1.0.0+1" / "bin" / "restart"
    kept = restart.read_text()
    restart.write_text("echo no >&2; exit 1\n")
    with pytest.raises(PartlyDone, match="it serves this release") as partly:
        live.deploy(accept_drift="seen, and looked into")
    assert "is quarantined" in partly.value.state
    assert any("the way back failed" in str(reason) for reason in partly.value.reasons)
    assert live.state().environment("test").quarantined == "0003"
    assert [row["note"] for row in overview.status(live.session()).rows if row["environment"] == "test"] == [
        "quarantined since deployment 0003"
    ]
    restart.write_text(kept)
    attempts: list[Callable[[], object]] = [live.deploy, lambda: live.deploy("1.0.0+1")]
    for attempt in attempts:
        with pytest.raises(Refused, match="quarantined"):
            attempt()

    # A host that holds something else is looked at first.
    link = live.host("test") / "current"
    link.unlink()
    link.symlink_to("releases/1.2.0+1")
    with pytest.raises(Refused, match="not every host holds") as refused:
        deployments.release_lock(live.session(), customer="acme", environment="test", reason="looked")
    assert [reason.source for reason in refused.value.reasons] == ["app1"]
    assert live.state().environment("test").quarantined == "0003"
    link.unlink()
    link.symlink_to("releases/1.0.0+1")
    would = deployments.release_lock(live.session(), customer="acme", environment="test", reason="x", dry_run=True)
    assert (would.changed, live.state().environment("test").quarantined) == (False, "0003")
    done = deployments.release_lock(live.session(), customer="acme", environment="test", reason="restarted by hand")
    assert (done.changed, done.deployment) == (True, "0003")
    assert (
        deployments.release_lock(live.session(), customer="acme", environment="test", reason="again").changed is False
    )
    assert live.deploy("1.1.0+1").changed is True
    live.check_sound()


# --- back --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rollback_skips_what_was_rolled_back_from(waiting: Flow) -> None:
    waiting.decide()
    waiting.promote()
    waiting.make("1.2.0", {"migrations/003_more.sql": INSERT})
    waiting.deploy()
    before = waiting.refs()
    dry = deployments.rollback(waiting.session(), customer="acme", environment="test", dry_run=True)
    assert isinstance(dry, PlanResult)
    assert (dry.release, dry.migrations, dry.stays_applied) == ("1.1.0+1", (), ("003_more.sql",))
    assert {action["operation"] for action in dry.actions}.isdisjoint({"migrate", "backup"})
    assert waiting.refs() == before

    back = waiting.rollback("test")
    assert (back.release, back.installed_before) == ("1.1.0+1", "1.2.0+1")
    assert waiting.served("test") == "depot 1.1.0"
    assert waiting.migrated("test")[-1] == "003_more.sql"
    # The page and the decision are about what is on test, and that is another release now.
    with pytest.raises(Refused, match=r"test (of acme no longer holds 1\.2\.0\+1|holds 1\.1\.0\+1 now)"):
        waiting.decide()
    assert waiting.rollback("test").release == "1.0.0+1"
    with pytest.raises(Refused, match="no release before") as refused:
        waiting.rollback("test")
    assert {reason.text for reason in refused.value.reasons} == {
        "rolled back from before: 1.1.0+1",
        "rolled back from before: 1.2.0+1",
    }
    # An older release on a newer schema is ahead of nothing: its scripts are all there.
    assert waiting.rollback("production").release == "1.0.0+1"
    waiting.check_sound()
    # What production was rolled back from needs a new sign-off.
    waiting.deploy("1.1.0+1")
    with pytest.raises(Refused, match="has no sign-off"):
        waiting.promote("1.1.0+1")
    assert waiting.state().environment("test").left == ("1.2.0+1",)


@pytest.mark.slow
def test_a_rollback_uses_the_playbook_frozen_with_its_release(waiting: Flow) -> None:
    waiting.edit("playbooks/depot.yaml", "bin/restart", "bin/no-such-program")
    assert waiting.rollback("test").release == "1.0.0+1"
    assert waiting.served("test") == "depot 1.0.0"
    waiting.check_sound()


# --- hosts -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_hosts_one_after_the_other_and_both_back(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    flow = told(tmp_path_factory, tmp_path, "tested", hosts=2)
    assert [flow.served("test", number) for number in (1, 2)] == ["depot 1.0.0"] * 2
    # The application refuses to serve on the second host only.
    restart = 'set -eu\ncase $PWD in *test2*) echo nothing > "$1/served";; *) cp app.txt "$1/served";; esac\n'
    flow.make("1.2.0", {"bin/restart": restart})
    flow.lines.clear()
    with pytest.raises(Failed, match="it serves this release") as failed:
        flow.deploy()
    assert failed.value.reasons[0].source == "app2"
    seen = [line for line in flow.lines if "switch" in line or "check" in line]
    assert [line.split("] ")[-1].split(":")[0] for line in seen if not line.startswith(("failed", "[back"))] == [
        *("app1", "app1", "app2", "app2")
    ]
    back = [line.split("] ")[-1].split(":")[0] for line in seen if line.startswith("[back")]
    assert back == sorted(back, reverse=True)
    assert set(back) == {"app1", "app2"}
    assert [flow.served("test", number) for number in (1, 2)] == ["depot 1.0.0"] * 2
    assert [flow.current("test", number) for number in (1, 2)] == ["releases/1.0.0+1"] * 2
    flow.check_sound()


def test_a_target_that_holds_what_we_did_not_put_there_is_not_touched(released: Flow) -> None:
    folder = released.host("test")
    (folder / "current").mkdir(parents=True)
    (folder / "current" / "index.php").write_text("<?php\n")
    before = released.refs()
    with pytest.raises(Refused, match="did not put there") as refused:
        released.deploy()
    assert "current is not a symbolic link" in str(refused.value.reasons[0])
    assert released.refs() == before
    assert sorted(path.name for path in folder.rglob("*")) == ["current", "index.php"]


@pytest.mark.slow
def test_a_host_that_was_changed_by_hand(tested: Flow) -> None:
    link = tested.host("test") / "current"
    shutil.copytree(tested.host("test") / "releases" / "1.0.0+1", tested.host("test") / "releases" / "0.9.0+1")
    link.unlink()
    link.symlink_to("releases/0.9.0+1")
    tested.release("1.1.0")
    with pytest.raises(Refused, match=r"current is 0\.9\.0\+1, but the record says 1\.0\.0\+1"):
        tested.deploy()
    link.unlink()
    link.symlink_to("releases/1.0.0+1")
    tested.deploy()
    (tested.host("test") / "releases" / "1.1.0+1" / "app.txt").write_text("patched by hand\n")
    tested.decide()
    with pytest.raises(Refused, match="changed on the test server"):
        tested.promote()
    # What production gets is what Git holds, and so is what test gets again.
    tested.rollback("test")
    tested.deploy("1.1.0+1")
    tested.check_sound()


# --- migrations --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_edited_migration_stops_everything_until_this_very_edit_is_accepted(live: Flow) -> None:
    base = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT);\n"
    live.make("1.2.0", {"migrations/001_base.sql": base + "-- a comment\n"})
    with pytest.raises(Refused, match=r"001_base\.sql was edited after it ran here") as refused:
        live.deploy()
    wanted = "invoke migrate.accept customer=acme script=001_base.sql env=test reason=…"
    assert wanted in refused.value.next_commands
    before = live.refs()
    with pytest.raises(UsageError, match="needs a reason"):
        upkeep.accept_migration(live.session(), customer="acme", script="001_base.sql", reason=" ")
    with pytest.raises(NotKnown, match="did you mean"):
        upkeep.accept_migration(live.session(), customer="acme", script="001_bass.sql", reason="x")
    would = upkeep.accept_migration(
        live.session(), customer="acme", script="001_base.sql", reason="only a comment", dry_run=True
    )
    assert would.changed is False
    assert live.refs() == before
    for expected in (True, False):
        accepted = upkeep.accept_migration(
            live.session(), customer="acme", script="001_base.sql", reason="only a comment"
        )
        assert accepted.changed is expected
    assert len(live.records("migration-accepted")) == 1
    live.deploy()
    assert live.records("sign-off-requested")[-1].details["accepted_edits"] == ["001_base.sql"]
    live.make("1.3.0", {"migrations/001_base.sql": base + "-- another\n"})
    with pytest.raises(Refused, match=r"001_base\.sql was edited"):
        live.deploy()
    live.check_sound()


def test_a_migration_of_a_later_build_is_ahead_of_an_older_one(tested: Flow) -> None:
    """It is known, and in a release; the older build runs on the expanded schema."""
    customise(tested, "migrations/005_own.sql", "ALTER TABLE item ADD COLUMN own TEXT;\n")
    tested.release("1.0.0")
    tested.deploy("1.0.0+2")
    planned = deployments.plan(tested.session(), customer="acme", release="1.0.0+1")
    assert (planned.stays_applied, planned.refusals) == (("005_own.sql",), ())
    assert tested.deploy("1.0.0+1").changed is True
    # The same script missing from a later build is another matter.
    customise(tested, "migrations/005_own.sql", None)
    tested.release("1.0.0")
    with pytest.raises(Refused, match=r"005_own\.sql ran here with 1\.0\.0\+2, and 1\.0\.0\+3 does not") as refused:
        tested.deploy("1.0.0+3")
    accept = "invoke migrate.accept customer=acme script=005_own.sql env=test release=1.0.0+3 reason=…"
    assert refused.value.next_commands == (accept,)


def test_a_database_that_was_replaced_is_not_migrated_anew_unless_that_is_said(tested: Flow) -> None:
    tested.release("1.1.0")
    database = tested.host("test") / "shared" / "app.sqlite"
    database.rename(database.with_name("elsewhere.sqlite"))
    with pytest.raises(Refused, match=r"lacks 1 of the 1 migration\(s\) that were applied on test \(001_base\.sql\)"):
        tested.deploy()
    assert not database.exists()
    database.with_name("elsewhere.sqlite").rename(database)
    assert deployments.plan(tested.session(), customer="acme").refusals == ()
    kept = upkeep.accept_migration(tested.session(), customer="acme", script="*", reason="x")
    assert (kept.changed, kept.missing) == (False, ())

    database.unlink()
    would = upkeep.accept_migration(tested.session(), customer="acme", script="*", reason="x", dry_run=True)
    assert (would.changed, would.missing) == (False, ("001_base.sql",))
    assert tested.records("migration-accepted") == []
    done = upkeep.accept_migration(tested.session(), customer="acme", script="*", reason="a fresh one for the trial")
    assert (done.changed, done.missing) == (True, ("001_base.sql",))
    assert tested.state().environment("test").applied == {}
    assert tested.deploy().migrations == ("001_base.sql", "002_price.sql")
    assert set(tested.state().environment("test").applied) == {"001_base.sql", "002_price.sql"}
    tested.check_sound()


@pytest.mark.slow
def test_a_migration_that_vanished_and_one_that_no_step_runs(waiting: Flow) -> None:
    waiting.git(waiting.product, "mv", "migrations/002_price.sql", "migrations/002_prix.sql")
    waiting.make("1.2.0", {"migrations/002_prix.sql": "SELECT 1;\n"})
    with pytest.raises(Refused, match=r"002_price\.sql ran here with 1\.1\.0\+1, and 1\.2\.0\+1 does not hold it"):
        waiting.deploy()
    # An older release does not know it yet: it is ahead, which is no reason.
    planned = deployments.plan(waiting.session(), customer="acme", release="1.0.0+1")
    assert (planned.stays_applied, planned.refusals) == (("002_price.sql",), ())
    accepted = upkeep.accept_migration(waiting.session(), customer="acme", script="002_price.sql", reason="renamed")
    assert (accepted.changed, accepted.new) == (True, "removed")
    assert deployments.plan(waiting.session(), customer="acme").refusals == ()

    waiting.edit("playbooks/depot.yaml", 'except: "*post_*"', 'except: "*pri*"')
    with pytest.raises(Refused, match="matched by no migrate step of the playbook"):
        waiting.deploy()


@pytest.mark.slow
def test_what_an_abandoned_run_applied_counts_as_rehearsed(live: Flow) -> None:
    """Its scripts stay in test's database, and the next run finds nothing to apply: production must get them."""

    def stop(line: str) -> None:
        if "switch current" in line:
            raise KeyboardInterrupt

    session = live.session()
    session.progress = stop
    with pytest.raises(Exception, match="was interrupted"):
        deployments.deploy(session, customer="acme")
    with pytest.raises(Refused):
        live.deploy("1.0.0+1")
    deployments.rollback(live.session(), customer="acme", environment="test")
    assert live.deploy().migrations == ()
    live.decide()
    assert live.promote().migrations == ("002_price.sql",)
    live.check_sound()


@pytest.mark.slow
def test_a_lock_of_a_live_run_is_not_released(tested: Flow) -> None:
    tested.release("1.1.0")

    def second(line: str) -> None:
        if "back up" in line:
            with pytest.raises(Locked, match="another run holds test of acme"):
                tested.deploy()
            with pytest.raises(Refused, match="is alive on this machine"):
                deployments.release_lock(tested.session(), customer="acme", environment="test", reason="hurry")

    session = tested.session()
    session.progress = second
    deployments.deploy(session, customer="acme")
    assert len(tested.records("deployment-started")) == 2
    tested.check_sound()
