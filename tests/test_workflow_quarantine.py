"""What only a restore brings back is not brought back by code, and a quarantined environment has a way out.

In these workspaces the application is stopped while the migrations before the switch run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.errors import Interrupted, Locked, PartlyDone, Refused
from pipeline.lease import hold
from pipeline.workflow import deployments, drift
from tests.flows import BROKEN, Flow, told

pytestmark = pytest.mark.slow

STOP = '  - stop:\n      command: [rm, -f, "../../shared/served"]\n'
MIGRATE = '  - migrate:\n      except: "*post_*"\n'
FILL = "UPDATE item SET name = 'filled';\n"


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def stopped(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """1.0.0+1 is on test; 1.2.0+1 is next, with a migration that is not known to leave what the old code needs."""
    flow = told(tmp_path_factory, tmp_path, "tested")
    flow.edit("playbooks/depot.yaml", MIGRATE, STOP + MIGRATE)
    flow.make("1.2.0", {"migrations/003_fill.sql": FILL})
    return flow


def interrupted(flow: Flow, at: str, act: Callable[..., object] = deployments.deploy, **more: object) -> None:
    def stop(line: str) -> None:
        if at in line:
            raise KeyboardInterrupt

    session = flow.session()
    session.progress = stop
    with pytest.raises(Interrupted):
        act(session, customer="acme", **more)


# --- only a restore brings the old release back ------------------------------------------------------------------------


def test_what_was_applied_while_it_was_stopped_is_not_brought_back_by_rollback(stopped: Flow) -> None:
    interrupted(stopped, "switch current")
    assert "003_fill.sql" in stopped.migrated("test")
    before = stopped.refs()
    would = deployments.rollback(stopped.session(), customer="acme", environment="test", dry_run=True)
    assert isinstance(would, deployments.PlanResult)
    assert any("only a restore" in reason["text"] for reason in would.refusals)
    with pytest.raises(Refused, match="cannot be brought back") as refused:
        stopped.rollback("test")
    [reason] = [one.text for one in refused.value.reasons if "003_fill.sql" in one.text]
    assert "only a restore of the backup brings the old release back" in reason
    assert refused.value.next_commands == (
        "invoke deploy customer=acme release=1.2.0+1 env=test",
        "invoke lock.release customer=acme env=test installed=1.2.0+1 reason=…",
    )
    assert stopped.refs() == before
    assert stopped.deploy().deployment == "0002"
    stopped.check_sound()


def test_a_resumed_one_that_fails_after_it_is_quarantined(stopped: Flow) -> None:
    stopped.make("1.3.0", {"app.txt": BROKEN})
    interrupted(stopped, "switch current")
    with pytest.raises(PartlyDone) as partly:
        stopped.deploy()
    assert "is quarantined" in partly.value.state
    assert any("003_fill.sql is unknown" in reason.text for reason in partly.value.reasons)
    assert stopped.current("test") == "releases/1.3.0+1"


# --- kept only as drift would have it ----------------------------------------------------------------------------------


def quarantined(flow: Flow) -> None:
    """Deployment 0002 of a broken 1.3.0+1 could not be brought back, since the old release could not be started."""
    flow.make("1.3.0", {"app.txt": BROKEN})
    restart = flow.host("test") / "releases" / "1.0.0+1" / "bin" / "restart"
    kept = restart.read_bytes()
    restart.write_text("exit 1\n")
    with pytest.raises(PartlyDone) as partly:
        flow.deploy("1.3.0+1", accept_drift="seen")
    assert "is quarantined" in partly.value.state
    restart.write_bytes(kept)


def test_a_quarantine_ends_only_where_drift_finds_nothing(tested: Flow) -> None:
    quarantined(tested)

    def let_go() -> deployments.LockReleased:
        return deployments.release_lock(tested.session(), customer="acme", environment="test", reason="looked")

    config = tested.host("test") / "shared" / "app.conf"
    rendered = config.read_text()
    config.write_text("by hand\n")
    (tested.host("test") / "theirs").write_text("x")
    with pytest.raises(Refused, match="not every host holds") as refused:
        let_go()
    assert any("theirs" in reason.text for reason in refused.value.reasons)
    (tested.host("test") / "theirs").unlink()
    with pytest.raises(Refused, match="not every host holds") as refused:
        let_go()
    assert [reason.text for reason in refused.value.reasons] == ["shared/app.conf was changed"]
    config.write_text(rendered)
    journal = tested.host("test") / "journal"
    aside = tested.folder / "aside"
    entry = sorted(journal.glob("0*.json"))[-1]
    entry.rename(aside)
    entry.write_text("{}")
    with pytest.raises(Refused, match="not every host holds") as refused:
        let_go()
    assert any("journal" in reason.text for reason in refused.value.reasons)
    aside.rename(entry)
    assert let_go().changed is True


# --- the way out of a quarantine ---------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """1.0.0+1 is installed on two hosts; a way back has failed, and app2 is still on 1.3.0+1 with its configuration."""
    flow = told(tmp_path_factory, tmp_path, "tested", hosts=2)
    quarantined(flow)
    folder = flow.host("test", 2)
    if not (folder / "releases" / "1.3.0+1").exists():
        shutil.copytree(flow.host("test") / "releases" / "1.3.0+1", folder / "releases" / "1.3.0+1", symlinks=True)
    (folder / "current").unlink()
    (folder / "current").symlink_to("releases/1.3.0+1")
    (folder / "shared" / "app.conf").write_text("of 1.3.0+1\n")
    return flow


def test_a_rollback_brings_every_host_of_a_quarantined_environment_to_what_is_installed(mixed: Flow) -> None:
    back = "invoke rollback customer=acme env=test"
    release = "invoke lock.release customer=acme env=test installed=… reason=…"
    with pytest.raises(Refused, match="is quarantined") as refused:
        mixed.deploy("1.0.0+1")
    assert refused.value.next_commands == (back, release)
    for kept in (None, "1.0.0+1", "1.3.0+1"):
        with pytest.raises(Refused, match="not every host holds") as refused:
            deployments.release_lock(
                mixed.session(), customer="acme", environment="test", reason="looked", installed=kept
            )
        assert refused.value.next_commands == (back, release)
    assert deployments.lock_status(mixed.session(), customer="acme", environment="test").next_commands[0] == back
    before = mixed.refs()
    would = deployments.rollback(mixed.session(), customer="acme", environment="test", dry_run=True)
    assert isinstance(would, deployments.PlanResult)
    assert (would.release, would.refusals, mixed.refs()) == ("1.0.0+1", (), before)

    done = mixed.rollback("test")
    assert (done.changed, done.release, done.deployment) == (True, "1.0.0+1", "0003")
    assert done.what == "every host of test of acme is on 1.0.0+1 again; the quarantine is over"
    for number in (1, 2):
        assert mixed.current("test", number) == "releases/1.0.0+1"
        assert mixed.served("test", number) == "depot 1.0.0"
        assert "release=1.0.0+1" in (mixed.host("test", number) / "shared" / "app.conf").read_text()
    here = mixed.state().environment("test")
    assert (here.quarantined, here.left) == (None, ())
    mixed.check_sound()
    assert drift.drift(mixed.session(), customer="acme", environment="test").release == "1.0.0+1"


def test_where_that_fails_it_stays_quarantined_and_can_be_done_again(mixed: Flow) -> None:
    served = mixed.host("test", 2) / "shared" / "served.new"
    served.mkdir()
    with pytest.raises(PartlyDone) as partly:
        mixed.rollback("test")
    assert "is quarantined" in partly.value.state
    assert partly.value.next_commands[0] == "invoke rollback customer=acme env=test"
    here = mixed.state().environment("test")
    assert (here.running, here.quarantined is not None) == (None, True)
    # What was given up half-way ends nowhere in the journal, which is no sign of missing entries.
    said = drift.drift(mixed.session(), customer="acme", environment="test")
    assert [host["notes"][0] for host in said.hosts] == ["test is quarantined since deployment 0003"] * 2
    shutil.rmtree(served)
    assert mixed.rollback("test").deployment == "0004"
    assert mixed.state().environment("test").quarantined is None
    mixed.check_sound()


def test_an_interrupted_one_is_resumed(mixed: Flow) -> None:
    interrupted(mixed, "switch current", deployments.rollback, environment="test")
    assert mixed.state().environment("test").running is not None
    assert mixed.rollback("test").deployment == "0003"
    mixed.check_sound()


def test_what_only_a_restore_brings_back_is_restored_first(stopped: Flow) -> None:
    stopped.make("1.3.0", {"app.txt": BROKEN})
    with pytest.raises(PartlyDone):
        stopped.deploy()
    with pytest.raises(Refused) as refused:
        stopped.rollback("test")
    assert "only a restore of the backup" in refused.value.reasons[0].text
    assert refused.value.next_commands == ("invoke lock.release customer=acme env=test installed=… reason=…",)
    stopped.sql("test", "DELETE FROM tma_migration_history WHERE script = '003_fill.sql'")
    assert stopped.rollback("test").changed is True
    assert stopped.served("test") == "depot 1.0.0"
    stopped.check_sound()


# --- what is told meanwhile --------------------------------------------------------------------------------------------


def test_drift_does_not_call_a_half_done_deployment_exact(stopped: Flow) -> None:
    interrupted(stopped, "check it serves this release")
    said = drift.drift(stopped.session(), customer="acme", environment="test")
    assert "holds exactly" not in said.what
    assert said.what.startswith("deployment 0002 of 1.2.0+1 on test of acme is open: app1 holds 1.2.0+1;")
    assert said.next_commands == (
        "invoke deploy customer=acme release=1.2.0+1 env=test",
        "invoke rollback customer=acme env=test",
    )


def held(flow: Flow) -> AbstractContextManager[object]:
    """Another run of this machine holds it."""
    return hold(
        flow.repository,
        "acme",
        "test",
        run="run-9",
        actor="john",
        at=flow.clock(),
        purpose="deploy",
        work=flow.folder / "x",
    )


def test_who_finds_it_locked_is_told_of_the_same_command_with_wait(stopped: Flow) -> None:
    with held(stopped), pytest.raises(Locked) as locked:
        stopped.deploy()
    assert locked.value.next_commands[0] == "invoke deploy customer=acme release=1.2.0+1 env=test --wait"
    interrupted(stopped, "upload")
    with held(stopped), pytest.raises(Locked) as locked:
        stopped.rollback("test")
    assert locked.value.next_commands[0] == "invoke rollback customer=acme env=test --wait"
