"""Who runs what, now and then; who waits for whom; what happened; what stands on a ticket.

What is marked slow takes more time than ``make quick`` has.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NotKnown, Refused
from pipeline.model import Customer
from pipeline.state import EnvironmentState, SignOff, State
from pipeline.workflow import deployments, overview, tickets
from pipeline.workflow.overview import waits_for
from tests.flows import Flow, told

ACME = Customer(
    key="acme", name="Acme", language="fr", time_zone="Europe/Paris", product="depot", approvers=("claire",)
)


@pytest.fixture
def waiting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "waiting")


def rows(result: overview.StatusResult) -> dict[str, str | None]:
    return {row["environment"]: row["release"] for row in result.rows}


def test_status_now_and_then(waiting: Flow) -> None:
    now = overview.status(waiting.session())
    assert rows(now) == {"production": "1.0.0+1", "test": "1.1.0+1"}
    assert now.waiting == {"acme": "the sign-off of 1.1.0+1 by claire by 2026-03-12"}
    assert "hunter2" not in "\n".join(now.lines())

    finished = waiting.records("deployment-finished")
    for record, expected in zip(
        finished,
        (
            {"production": None, "test": "1.0.0+1"},
            {"production": "1.0.0+1", "test": "1.0.0+1"},
            {"production": "1.0.0+1", "test": "1.1.0+1"},
        ),
        strict=True,
    ):
        assert rows(overview.status(waiting.session(), customer="acme", at=record.at)) == expected
    before = overview.status(waiting.session(), at=datetime(2026, 3, 2, 8, 0, tzinfo=UTC))
    assert rows(before) == {"production": None, "test": None}
    assert before.waiting == {"acme": "its line to be started (line.start)"}
    # A day is over when the customer's clock says so.
    assert rows(overview.status(waiting.session(), at=date(2026, 3, 1)))["test"] is None
    day = overview.status(waiting.session(), at=date(2026, 3, 2))
    assert rows(day) == rows(now)
    assert day.lines()[0] == "as of 2026-03-02"
    local = datetime(2026, 3, 2, 9, 30)
    assert rows(overview.status(waiting.session(), at=local))["test"] is None
    with pytest.raises(NotKnown):
        overview.status(waiting.session(), customer="acmee")


def test_status_reads_git_and_imports_no_heavy_library(waiting: Flow) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from pipeline.workflow import overview\n"
        "from pipeline.workflow.session import Session\n"
        "overview.status(Session.open(Path(sys.argv[1])))\n"
        "print(sorted({'git', 'paramiko', 'fabric', 'psycopg', 'jinja2', 'cryptography'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(waiting.folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.strip() == "[]"


def test_history_and_tickets_tell_the_same_story(waiting: Flow) -> None:
    waiting.decide()
    told = overview.history(waiting.session(), customer="acme")
    assert [record["number"] for record in told.records] == list(range(len(told.records), 0, -1))
    assert told.records[0]["what"] == "claire decided on 1.1.0+1: approved (entered by eve)"
    assert told.records[-1]["what"] == "eve started the line from depot 1.0.0"
    assert "deployment 0002 (promote) of 1.0.0+1 on production: done" in [record["what"] for record in told.records]

    ticket = tickets.show_ticket(waiting.session(), customer="acme", ticket="ACME-1")
    assert (ticket.state, ticket.title, ticket.text, ticket.changed_text, ticket.how_to_test) == (
        *("new", "Prix manquant", "le texte", "une colonne", "regarder"),
    )
    named = [record["id"] for record in reversed(told.records) if "ACME-1" in record["tickets"]]
    assert [event["record"] for event in ticket.events] == named
    kinds = {record["kind"] for record in told.records if "ACME-1" in record["tickets"]}
    assert {"deployment-started", "deployment-finished", "sign-off-recorded", "release-made"} <= kinds

    with pytest.raises(NotKnown, match="did you mean"):
        tickets.show_ticket(waiting.session(), customer="acme", ticket="ACME-11")
    before = waiting.refs()
    assert tickets.close_ticket(waiting.session(), customer="acme", ticket="ACME-1", dry_run=True).changed is False
    assert waiting.refs() == before
    assert tickets.close_ticket(waiting.session(), customer="acme", ticket="ACME-1").state == "closed"
    assert tickets.close_ticket(waiting.session(), customer="acme", ticket="ACME-1").changed is False
    assert waiting.ticket("Autre") == "ACME-2"


@pytest.mark.slow
def test_a_ticket_is_not_closed_under_a_deployment(waiting: Flow) -> None:
    def close(line: str) -> None:
        if "back up" in line:
            with pytest.raises(Refused, match="deployment 0004 on test names it"):
                tickets.close_ticket(waiting.session(), customer="acme", ticket="ACME-1")
            raise KeyboardInterrupt

    waiting.make("1.2.0", {})
    session = waiting.session()
    session.progress = close
    with pytest.raises(Exception, match="was interrupted"):
        deployments.deploy(session, customer="acme")


# --- who waits for whom ------------------------------------------------------------------------------------------------


def sign_off(**more: Any) -> SignOff:
    base: dict[str, Any] = {
        "request": "r", "release": "1.0.0+1", "content": "0" * 64, "settings": "0" * 64, "deployment": "0001",
        "requested_at": "2026-03-02T09:00:00Z", "requested_by": "eve", "due": "2026-03-12T22:59:00Z",
    }  # fmt: skip
    return SignOff.model_validate(base | more)


def deployed(release: str) -> EnvironmentState:
    return EnvironmentState.model_validate(
        {
            "installed": {
                "release": release, "content": "0" * 64, "deployment": "0001", "purpose": "deploy", "record": "r",
                "at": "2026-03-02T09:00:00Z", "by": "eve",
            }
        }
    )  # fmt: skip


def released(*names: str) -> dict[str, Any]:
    return {
        name: {
            "name": name, "version": name.split("+")[0], "commit": "0" * 40, "made_by": "eve", "record": "r",
            "made_at": "2026-03-02T09:00:00Z", "number": number,
        }
        for number, name in enumerate(names)
    }  # fmt: skip


ON_TEST = {"test": deployed("1.0.0+1")}
BOTH = ON_TEST | {"production": deployed("1.0.0+1")}
YES = {"status": "approved", "by": "claire"}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, "its line to be started (line.start)"),
        ({"version": "1.0.0"}, "a first release (release)"),
        ({"version": "1.0.0", "releases": released("1.0.0+1")}, "1.0.0+1 to be deployed to test (deploy)"),
        ({"sign_offs": (sign_off(),)}, "the sign-off of 1.0.0+1 by claire by 2026-03-12"),
        ({"sign_offs": (sign_off(due=None),)}, "the sign-off of 1.0.0+1 by claire"),
        ({"sign_offs": (sign_off(status="rejected", by="claire"),)}, "a new release: claire rejected 1.0.0+1"),
        (
            {"sign_offs": (sign_off(**YES, blocking=True),)},
            "a new release: claire approved 1.0.0+1 with a blocking reservation",
        ),
        ({"sign_offs": (sign_off(**YES),)}, "the promotion of 1.0.0+1, signed off by claire (promote)"),
        ({"sign_offs": (sign_off(status="superseded"),)}, "a release to be deployed to test (deploy)"),
        ({"sign_offs": (sign_off(**YES),), "environments": BOTH}, "nothing"),
        (
            {
                "sign_offs": (sign_off(**YES),),
                "environments": BOTH,
                "releases": released("1.0.0+1", "1.1.0+1"),
            },
            "1.1.0+1 to be deployed to test (deploy)",
        ),
    ],
)
def test_who_waits_for_whom(state: dict[str, Any], expected: str) -> None:
    base: dict[str, Any] = {"customer": "acme"}
    if "sign_offs" in state:
        base |= {"version": "1.0.0", "releases": released("1.0.0+1"), "environments": ON_TEST}
    assert waits_for(ACME, State.model_validate(base | state)) == expected
