"""What the engineer is told around a deployment: nothing to do, what cannot be taken back, what failed, what next."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pytest

from pipeline.errors import Failed, Refused, UsageError
from pipeline.workflow import deployments, overview, sign_offs
from pipeline.workflow.deployments import PlanResult
from tests.flows import BROKEN, Flow, told

CONTRACT = {"migrations/003_post_drop.sql": "DROP TABLE IF EXISTS old_item;\n"}


@pytest.fixture
def live(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "live")


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


def test_a_plan_for_what_is_installed_says_so_as_deploy_does(tested: Flow) -> None:
    planned = deployments.plan(tested.session(), customer="acme")
    assert (planned.nothing_to_do, planned.actions, planned.next_commands) == (True, (), ())
    assert planned.lines()[-1] == "Installed already: there is nothing to do."
    assert tested.deploy().changed is False


@pytest.mark.slow
def test_a_rollback_past_a_contract_script_warns_and_names_the_backup(live: Flow) -> None:
    live.deploy(live.make("1.2.0", CONTRACT))
    planned = deployments.rollback(live.session(), customer="acme", environment="test", dry_run=True)
    assert isinstance(planned, PlanResult)
    [warning] = planned.warnings
    assert warning.startswith("003_post_drop.sql ran after the switch to 1.2.0+1: the code of 1.0.0+1 may not run")
    assert "/backups/" in warning
    assert f"Warning: {warning}" in planned.lines()
    assert planned.stays_applied == ("002_price.sql", "003_post_drop.sql")


@pytest.mark.slow
def test_drift_on_test_names_the_way_that_works(live: Flow) -> None:
    live.deploy()
    live.decide()
    served = live.host("test") / "releases" / "1.1.0+1" / "app.txt"
    served.write_text(served.read_text() + "!")
    with pytest.raises(Refused) as refused:
        live.promote()
    assert refused.value.next_commands == (
        "invoke rollback customer=acme env=test",
        "invoke deploy customer=acme release=1.1.0+1 env=test",
    )
    live.rollback("test")
    live.deploy("1.1.0+1")
    live.decide()
    assert live.promote().changed
    live.check_sound()


@pytest.mark.parametrize("moment", [{"due": date(2026, 1, 1)}, {"planned": datetime(2026, 1, 1, 20, 0)}])
def test_nobody_is_asked_to_answer_in_the_past(tested: Flow, moment: dict[str, date]) -> None:
    with pytest.raises(UsageError, match="is in the past"):
        sign_offs.write_page(tested.session(), customer="acme", **moment)  # type: ignore[arg-type]
    assert tested.records("sign-off-page-written") == []


def test_what_production_runs_needs_no_page(live: Flow) -> None:
    with pytest.raises(Refused, match=r"1\.0\.0\+1 is in production of acme already"):
        sign_offs.write_page(live.session(), customer="acme")


def test_the_status_says_that_the_last_deployment_failed_until_one_succeeds(tested: Flow) -> None:
    broken = tested.make("1.2.0", {"app.txt": BROKEN})
    with pytest.raises(Failed):
        tested.deploy(broken)
    [row] = [r for r in overview.status(tested.session()).rows if r["environment"] == "test"]
    assert (row["release"], row["note"]) == ("1.0.0+1", "deployment 0002 of 1.2.0+1 failed")
    tested.deploy(tested.make("1.3.0", {"app.txt": "depot 1.3.0\n"}))
    [row] = [r for r in overview.status(tested.session()).rows if r["environment"] == "test"]
    assert (row["release"], row["note"]) == ("1.3.0+1", "")


def test_a_release_that_was_rolled_back_from_is_not_recommended_again(live: Flow) -> None:
    live.deploy()
    live.rollback("test")
    assert overview.status(live.session()).waiting["acme"] == "a new release: 1.1.0+1 was rolled back from"
