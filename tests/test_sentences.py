"""What a person reads of a record (a ticket's history, ``history``) and of a plan."""

from __future__ import annotations

from pipeline.trackers.ledger import sentence
from pipeline.workflow.plans import PlanResult
from tests.nouns import Story


def test_what_runs_where_when_a_deployment_is_partly_done() -> None:
    story = Story()
    story.started("1.1+1")
    details = {"deployment": "0001", "purpose": "deploy", "hosts": {"app1": "1.1+1", "app2": "1.0+1", "app3": None}}
    record = story.add("deployment-partly-done", environment="test", release="1.1+1", details=details)
    assert sentence(record) == (
        "deployment 0001 (deploy) of 1.1+1 on test: partly done; app1 runs 1.1+1, app2 runs 1.0+1, app3 runs nothing"
    )


def test_a_plan_says_after_which_migration_the_code_alone_does_not_help() -> None:
    fields = {"point_of_no_return": None, "stays_applied": (), "accepted_edits": (), "differences": (), "refusals": ()}
    plan = PlanResult(
        what="plan",
        customer="acme",
        environment="test",
        release="1.1+1",
        installed="1.0+1",
        content="c",
        tickets=(),
        actions=(),
        migrations=("1.sql", "2.sql"),
        restore_needed={"1.sql": "unknown", "2.sql": "irreversible"},
        changed=False,
        **fields,
    )
    says = "a restore of the backup would be needed; the deployment would be quarantined."
    assert [line for line in plan.lines() if "restore" in line] == [
        f"If it fails after 1.sql (unknown), {says}",
        f"If it fails after 2.sql (irreversible), {says}",
    ]
    restored = plan.model_copy(update={"restore_from": {"2.sql": 4}})
    assert [line for line in restored.lines() if "restore" in line] == [
        f"If it fails after 1.sql (unknown), {says}",
        "If it fails after 2.sql (irreversible), the backup made in step 4 is restored.",
    ]
    quiet = plan.model_copy(update={"restore_needed": {}})
    assert "restore" not in "".join(quiet.lines())
