"""No dead end: whatever a deployment was left in, it can be finished, or brought back, or kept, and the error says how.

A run is interrupted at a line of its progress; then the world changes. What is marked slow takes more time than
``make quick`` has.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Failed, Interrupted, PartlyDone, Refused
from pipeline.workflow import deployments, upkeep
from pipeline.workflow.deployments import PlanResult
from pipeline.workflow.session import Session
from tests.flows import BROKEN, Flow, told
from tests.test_ledger_concurrency import ended, in_child

pytestmark = pytest.mark.slow

SWITCHED = "check it serves this release"
"""The first line of progress after the switch: the new release serves, and nobody has checked it."""
CLOSED = (
    "windows:\n  - days: [sun]\n    start: '02:00'\n    until: '04:00'\n"
    "freezes:\n  - start: 2026-01-01T00:00:00Z\n    until: 2026-12-24T00:00:00Z\n    reason: year-end\n"
)
DROP = "INSERT INTO item (name) VALUES ('once');\nALTER TABLE item DROP COLUMN price;\n"
UNIQUE = "CREATE UNIQUE INDEX item_name ON item (name);\n"


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def waiting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "waiting")


def interrupted(flow: Flow, act: Callable[..., object], at: str, **more: object) -> Interrupted:
    """What a person who presses Ctrl-C at this line of progress is told."""

    def stop(line: str) -> None:
        if at in line:
            raise KeyboardInterrupt

    session = flow.session()
    session.progress = stop
    with pytest.raises(Interrupted) as caught:
        act(session, customer="acme", **more)
    return caught.value


def close_production(flow: Flow) -> None:
    """The maintenance window is over, and a freeze begins."""
    file = flow.folder / "environments/acme/production.yaml"
    file.write_text(file.read_text() + CLOSED)


# --- finished ----------------------------------------------------------------------------------------------------------


def test_half_done_when_the_window_closes_it_is_finished(waiting: Flow) -> None:
    waiting.decide()
    told_what = interrupted(waiting, deployments.promote, SWITCHED)
    assert told_what.next_commands == (
        "invoke promote customer=acme release=1.1.0+1",
        "invoke rollback customer=acme env=production",
    )
    assert waiting.current("production") == "releases/1.1.0+1"
    close_production(waiting)
    done = waiting.promote()
    assert (done.changed, done.deployment) == (True, "0004")
    assert waiting.served("production") == "depot 1.1.0"
    waiting.check_sound()


@pytest.mark.slow
def test_not_begun_when_the_window_closes_it_does_not_begin(waiting: Flow) -> None:
    """Nothing has switched yet: the old release serves, and may go on serving."""
    waiting.decide()
    interrupted(waiting, deployments.promote, "apply 1 migration")
    close_production(waiting)
    with pytest.raises(Refused) as refused:
        waiting.promote()
    assert {reason.rule for reason in refused.value.reasons} == {"not_frozen", "inside_a_window"}
    assert waiting.current("production") == "releases/1.0.0+1"
    # Even now it can be brought back, and is no longer open.
    assert waiting.rollback("production").changed is True
    waiting.check_sound()


@pytest.mark.slow
def test_half_done_when_test_gets_another_release_it_is_finished_all_the_same(waiting: Flow) -> None:
    waiting.decide()
    interrupted(waiting, deployments.promote, SWITCHED)
    waiting.make("1.2.0", {})
    waiting.deploy()
    assert waiting.state().sign_offs[-2].status == "superseded"
    # Without a name it is the newer one that is meant, and the open one is in its way.
    with pytest.raises(Refused, match="has no outcome yet") as refused:
        waiting.promote()
    assert refused.value.next_commands[:2] == (
        "invoke promote customer=acme release=1.1.0+1",
        "invoke rollback customer=acme env=production",
    )
    assert waiting.promote("1.1.0+1").changed is True
    assert waiting.served("production") == "depot 1.1.0"
    waiting.check_sound()


@pytest.mark.slow
def test_a_promotion_is_finished_with_what_was_signed_off(waiting: Flow) -> None:
    """Neither another playbook nor other settings get in while it is half done; put back, it goes on."""
    waiting.decide()
    interrupted(waiting, deployments.promote, SWITCHED)
    for path, old, new in (
        ("playbooks/depot.yaml", "name: Depot", "name: Depots"),
        ("environments/acme/production.yaml", "title: Acme production", "title: nobody signed this"),
    ):
        waiting.edit(path, old, new)
        before = waiting.refs()
        with pytest.raises(Refused) as refused:
            waiting.promote()
        assert {reason.rule for reason in refused.value.reasons} == {"resumes_the_same"}
        assert waiting.refs() == before
        assert "title=Acme production\n" in (waiting.host("production") / "shared" / "app.conf").read_text()
        waiting.edit(path, new, old)
    assert waiting.promote().changed is True
    waiting.check_sound()


# --- brought back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        SWITCHED,
        *(pytest.param(at, marks=pytest.mark.slow) for at in ("back up", "upload", "apply", "switch current")),
    ],
)
def test_left_open_it_is_brought_back_by_rollback(waiting: Flow, at: str) -> None:
    waiting.decide()
    interrupted(waiting, deployments.promote, at)
    config = waiting.host("production") / "shared" / "app.conf"
    before = waiting.refs()
    planned = deployments.rollback(waiting.session(), customer="acme", environment="production", dry_run=True)
    assert isinstance(planned, PlanResult)
    assert waiting.refs() == before
    # What it would do is the way back, not what the open deployment would go on with.
    assert planned.what == "plan: bring back deployment 0004 of 1.1.0+1 on production of acme (to 1.0.0+1)"
    titles = [action["title"] for action in planned.actions]
    assert titles[:2] == ["switch back to 1.0.0+1", "put back the earlier files of shared/"]
    assert not any("upload" in title or "apply" in title for title in titles)
    assert (planned.refusals, planned.next_commands) == ((), ("invoke rollback customer=acme env=production",))
    done = waiting.rollback("production")
    assert (done.changed, done.release, done.deployment) == (True, "1.0.0+1", "0004")
    assert done.what == ("deployment 0004 of 1.1.0+1 on production of acme is brought back: 1.0.0+1 serves again")
    assert waiting.served("production") == "depot 1.0.0"
    assert "release=1.0.0+1" in config.read_text()
    record = waiting.records("deployment-finished")[-1]
    assert (record.outcome, record.release, record.details["back_to"]) == ("failed", "1.1.0+1", "1.0.0+1")
    waiting.check_sound()
    # The decision was on the release, and stands; what was migrated stays, and is known.
    assert waiting.promote().changed is True
    assert waiting.migrated("production") == ["001_base.sql", "002_price.sql"]
    waiting.check_sound()


@pytest.mark.slow
def test_brought_back_when_playbook_and_settings_have_changed_since(waiting: Flow) -> None:
    """With what it began with, which may no longer be what is in the files; also when that was interrupted itself."""
    waiting.decide()
    interrupted(waiting, deployments.promote, SWITCHED)
    waiting.edit("playbooks/depot.yaml", "bin/restart", "bin/no-such-program")
    waiting.edit("environments/acme/production.yaml", "title: Acme production", "title: other")
    close_production(waiting)
    interrupted(waiting, deployments.rollback, "switch back", environment="production")
    attempts = [record for record in waiting.records("deployment-started") if record.details["deployment"] == "0004"]
    assert len(attempts) == 2
    assert attempts[1].configuration == attempts[0].configuration
    assert attempts[1].details["settings"] == attempts[0].details["settings"]
    done = waiting.rollback("production")
    assert (done.changed, done.release) == (True, "1.0.0+1")
    assert waiting.served("production") == "depot 1.0.0"
    assert (waiting.host("production") / "shared" / "app.conf").read_text().startswith("title=Acme production\n")
    waiting.check_sound()


@pytest.mark.slow
def test_a_first_deployment_is_brought_back_to_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flow = told(tmp_path_factory, tmp_path, "released")
    interrupted(flow, deployments.deploy, SWITCHED)
    assert flow.rollback("test").what.endswith("is brought back: nothing is installed, as before")
    assert flow.current("test") is None
    here = flow.state().environment("test")
    assert (here.installed, here.running) == (None, None)
    assert flow.deploy().changed is True
    flow.check_sound()


@pytest.mark.slow
def test_a_way_back_that_fails_when_it_is_asked_for_quarantines(waiting: Flow) -> None:
    waiting.decide()
    interrupted(waiting, deployments.promote, SWITCHED)
    restart = waiting.host("production") / "releases" / "1.0.0+1" / "bin" / "restart"
    kept = restart.read_text()
    restart.write_text("echo no >&2; exit 1\n")
    with pytest.raises(PartlyDone, match="the way back") as partly:
        waiting.rollback("production")
    assert "is quarantined" in partly.value.state
    assert waiting.state().environment("production").quarantined == "0004"
    restart.write_text(kept)
    assert deployments.release_lock(
        waiting.session(), customer="acme", environment="production", reason="restarted by hand"
    ).changed
    assert waiting.promote().changed is True
    waiting.check_sound()


# --- a rollback is what was there --------------------------------------------------------------------------------------


def test_a_rollback_fills_in_the_values_of_then(waiting: Flow) -> None:
    waiting.edit("environments/acme/test.yaml", "title: Acme test", "title: Acme tomorrow")
    waiting.write("keys/later", "another-secret\n")
    waiting.edit("environments/acme/test.yaml", "password: file:keys/password", "password: file:keys/later")
    assert waiting.rollback("test").release == "1.0.0+1"
    config = (waiting.host("test") / "shared" / "app.conf").read_text()
    assert config == "title=Acme test\npassword=hunter2-canary-secret\nrelease=1.0.0+1\n"
    waiting.check_sound()


@pytest.mark.slow
def test_a_broken_release_with_new_settings_is_brought_back_to_the_old_ones(waiting: Flow) -> None:
    waiting.make("1.2.0", {"app.txt": BROKEN})
    waiting.edit("environments/acme/test.yaml", "title: Acme test", "title: Acme tomorrow")
    with pytest.raises(Failed, match="it serves this release"):
        waiting.deploy()
    config = (waiting.host("test") / "shared" / "app.conf").read_text()
    assert config.startswith("title=Acme test\n")
    waiting.check_sound()


# --- past the point of no return ---------------------------------------------------------------------------------------


def past_the_point(flow: Flow) -> None:
    """Deployment 0002 of 1.2.0+1 has dropped a column that the old code reads, and cannot go on."""
    flow.make("1.2.0", {"migrations/003_post_drop.sql": DROP, "migrations/004_post_unique.sql": UNIQUE})
    flow.sql("test", "INSERT INTO item (name) VALUES ('double'), ('double')")
    with pytest.raises(PartlyDone, match="failed after the point of no return"):
        flow.deploy()


def keep(flow: Flow, installed: str | None, **more: bool) -> deployments.LockReleased:
    return deployments.release_lock(
        flow.session(), customer="acme", environment="test", reason="agreed with Claire", installed=installed, **more
    )


@pytest.mark.slow
def test_past_the_point_of_no_return_there_are_two_ways_out_and_both_are_named(tested: Flow) -> None:
    past_the_point(tested)
    before = tested.refs()
    with pytest.raises(Refused, match="cannot be brought back") as refused:
        tested.rollback("test")
    assert "past the point of no return was applied by deployment 0002" in refused.value.reasons[0].text
    assert refused.value.next_commands == (
        "invoke deploy customer=acme release=1.2.0+1 env=test",
        "invoke lock.release customer=acme env=test installed=1.2.0+1 reason=…",
    )
    assert tested.refs() == before
    assert tested.served("test") == "depot 1.2.0"

    # The second way: what the hosts hold is kept, but only if every file of it is there.
    with pytest.raises(Refused, match="deployment 0002 is open"):
        keep(tested, None)
    with pytest.raises(Refused, match=r"only 1\.2\.0\+1 can be kept"):
        keep(tested, "1.0.0+1")
    file = tested.host("test") / "releases" / "1.2.0+1" / "app.txt"
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    with pytest.raises(Refused, match=r"not every host holds 1\.2\.0\+1") as refused:
        keep(tested, "1.2.0+1")
    assert [str(reason.source) for reason in refused.value.reasons] == ["app1"]
    assert "app.txt" in refused.value.reasons[0].text
    file.write_bytes(data)
    assert keep(tested, "1.2.0+1", dry_run=True).changed is False
    assert tested.refs() == before

    done = keep(tested, "1.2.0+1")
    assert (done.changed, done.deployment) == (True, "0002")
    here = tested.state().environment("test")
    assert here.running is None
    assert here.installed is not None
    assert (here.installed.release, here.installed.purpose) == ("1.2.0+1", "kept as found")
    assert set(here.applied) == {"001_base.sql", "002_price.sql", "003_post_drop.sql"}
    tested.check_sound()
    assert upkeep.verify_ledger(tested.session(), customer="acme").findings == ()
    # Nobody was asked about it: what is promoted is what a whole deployment put before the customer.
    with pytest.raises(Refused, match="was never on test of acme, so nobody was asked"):
        tested.promote("1.2.0+1")
    tested.sql("test", "DELETE FROM item WHERE id = 1")
    again = tested.deploy()
    assert (again.changed, again.migrations, again.sign_off_requested) == (True, ("004_post_unique.sql",), True)
    tested.check_sound()


@pytest.mark.slow
def test_the_first_way_out_is_to_mend_the_cause(tested: Flow) -> None:
    past_the_point(tested)
    tested.sql("test", "DELETE FROM item WHERE id = 1")
    assert tested.deploy().deployment == "0002"
    tested.check_sound()


# --- locks -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dead_runs_lease_is_let_go_and_its_deployment_stays_open(waiting: Flow) -> None:
    waiting.decide()

    def work() -> None:
        def progress(line: str) -> None:
            if SWITCHED in line:
                os.kill(os.getpid(), signal.SIGKILL)

        session: Session = waiting.session()
        session.progress = progress
        deployments.promote(session, customer="acme")

    assert ended(in_child(work)) == -signal.SIGKILL
    assert list(waiting.repository.refs("refs/leases/")) == ["refs/leases/acme/production"]
    open_before = waiting.state().environment("production")
    assert open_before.running is not None

    def let_go() -> deployments.LockReleased:
        return deployments.release_lock(
            waiting.session(), customer="acme", environment="production", reason="the machine is gone"
        )

    assert let_go().changed is True
    assert waiting.repository.refs("refs/leases/") == {}
    assert waiting.state().environment("production") == open_before
    with pytest.raises(Refused, match="held by nobody: deployment 0004 is open") as refused:
        let_go()
    assert refused.value.next_commands == (
        "invoke promote customer=acme release=1.1.0+1",
        "invoke rollback customer=acme env=production",
    )
    assert waiting.promote().changed is True
    waiting.check_sound()
