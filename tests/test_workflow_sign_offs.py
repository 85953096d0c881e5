"""The page and the decision: who may decide what, on what, and what is kept of it.

What is marked slow takes more time than ``make quick`` has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NotKnown, Refused, UsageError
from pipeline.workflow import sign_offs
from tests.flows import Flow, told

pytestmark = pytest.mark.slow


@pytest.fixture
def waiting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "waiting")


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def released(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "released")


def page(flow: Flow, **more: Any) -> sign_offs.PageWritten:
    return sign_offs.write_page(flow.session(), customer="acme", **more)


# --- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_written_once_for_each_content(waiting: Flow) -> None:
    before = waiting.refs()
    would = page(waiting, dry_run=True)
    assert would.changed is False
    assert not Path(would.path).exists()
    assert waiting.refs() == before

    done = page(waiting)
    assert (done.changed, done.release, done.approvers) == (True, "1.1.0+1", ("claire",))
    data = Path(done.path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == done.sha256 == would.sha256
    [record] = waiting.records("sign-off-page-written")[-1:]
    assert waiting.ledger.text_bytes(record.texts["page"]) == data
    for shown in ("1.1.0", done.content, "002_price.sql", "ACME-1", "the clock is slow", "une colonne"):
        assert shown in data.decode()
    # Production has had the first script.
    assert "001_base.sql" not in data.decode()
    assert "hunter2-canary-secret" not in data.decode()

    count = len(waiting.records())
    assert page(waiting).changed is False
    assert len(waiting.records()) == count
    # Lost from the disk: written again, and not recorded again.
    Path(done.path).unlink()
    assert page(waiting).changed is True
    assert len(waiting.records()) == count

    later = page(waiting, due=date(2026, 4, 1), planned=datetime(2026, 4, 2, 6, 0))
    assert (later.changed, later.due) == (True, "2026-04-01 23:59 CEST")
    assert later.planned == "2026-04-02T04:00:00Z"
    assert len(waiting.records()) == count + 1
    sign_off = waiting.state().sign_off
    assert sign_off is not None
    assert (sign_off.page, sign_off.status) == (later.sha256, "open")
    assert f"{sign_off.planned:%Y-%m-%dT%H:%M}" == "2026-04-02T04:00"
    # What was said stands until something else is said.
    assert page(waiting).sha256 == later.sha256
    assert waiting.ledger.verify(waiting.session().workspace.people) == []


@pytest.mark.slow
def test_there_is_no_page_for_what_is_not_on_test(released: Flow) -> None:
    with pytest.raises(Refused, match="nothing is on test"):
        page(released)
    with pytest.raises(Refused, match="nothing is on test of acme to be signed off"):
        released.decide()
    released.deploy()
    released.make("1.2.0", {})
    released.deploy()
    released.rollback("test")
    for asked in (lambda: page(released), released.decide):
        with pytest.raises(Refused, match=r"no longer holds 1\.2\.0\+1|test holds 1\.0\.0\+1 now"):
            asked()


# --- the decision ------------------------------------------------------------------------------------------------------


def test_what_comes_next_is_the_page_then_the_decision(waiting: Flow) -> None:
    def after_promote() -> tuple[str, ...]:
        with pytest.raises(Refused) as caught:
            waiting.promote()
        return caught.value.next_commands

    def after_decision(by: str, *, paged: bool) -> tuple[str, ...]:
        with pytest.raises(Refused) as caught:
            waiting.decide(by=by, paged=paged)
        return caught.value.next_commands

    write = ("invoke signoff.page customer=acme",)
    decide = "invoke signoff.record customer=acme release=1.1.0+1 decision=… by=claire evidence=…"
    assert after_promote() == after_decision("claire", paged=False) == write
    page(waiting)
    assert after_promote() == (decide,)
    assert after_decision("clare", paged=False) == (decide,)
    assert after_decision("nobody", paged=False) == ("invoke status customer=acme",)


def test_a_decision_is_kept_with_its_evidence_and_recorded_once(waiting: Flow) -> None:
    shown = page(waiting).sha256
    evidence = waiting.write("answers/signé.eml", "Bon pour la mise en production. Claire\n")
    given: dict[str, Any] = {
        "decision": "approved-with-reservations",
        "evidence": evidence,
        "verdicts": {"ACME-1": "works-with-remark"},
        "remarks": {"ACME-1": "un peu lent"},
        "reservations": ({"severity": "minor", "date": "2026-05-01", "text": "la police"},),
    }
    before = waiting.refs()
    assert waiting.decide(**given, dry_run=True).changed is False
    assert waiting.refs() == before
    done = waiting.decide(**given)
    assert (done.changed, done.release, done.by) == (True, "1.1.0+1", "claire")
    [record] = waiting.records("sign-off-recorded")[-1:]
    assert record.id == done.record
    assert record.content == waiting.state().environment("test").installed.content  # type: ignore[union-attr]
    assert record.details["evidence_sha256"] == hashlib.sha256(evidence.read_bytes()).hexdigest()
    assert record.details["page"] == shown
    assert record.details["verdicts"] == {"ACME-1": "works-with-remark"}
    assert waiting.ledger.text_bytes(record.texts["evidence"]) == evidence.read_bytes()
    assert waiting.ledger.text(record.texts["evidence_name"]) == "signé.eml"
    assert waiting.ledger.text(record.texts["remark-ACME-1"]) == "un peu lent"
    assert waiting.ledger.text(record.texts["reservation-1"]) == "la police"
    # Nothing of it is in the ledger itself, where it could not be erased.
    assert "police" not in record.model_dump_json()

    count = len(waiting.records())
    again = waiting.decide(**given)
    assert (again.changed, again.record) == (False, done.record)
    assert len(waiting.records()) == count
    assert waiting.refusals() == {}

    # Decided anew: another record, and the newest counts.
    anew = waiting.decide("rejected", evidence=evidence, reasons="tout compte fait, non")
    assert (anew.changed, len(waiting.records())) == (True, count + 1)
    assert "claire rejected 1.1.0+1" in waiting.refusals()["signed_off"][0]
    assert waiting.ledger.verify(waiting.session().workspace.people) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"decision": "aproved"}, r"'aproved' is no decision; did you mean 'approved'|'aproved' is no decision"),
        ({"decision": "approved", "reservations": "minor"}, "approved has no reservations"),
        ({"decision": "approved", "verdicts": {"ACME-1": "does-not-work"}}, "while a ticket does not work"),
        ({"decision": "approved", "verdicts": {"ACME-1": "fine"}}, "'fine' is no verdict"),
        ({"decision": "approved-with-reservations"}, "needs reservations="),
        ({"decision": "approved-with-reservations", "reservations": "bad"}, "the severity is one of blocking, major"),
        ({"decision": "approved-with-reservations", "reservations": "no-date"}, "'1.5.' is no date"),
        ({"decision": "approved-with-reservations", "reservations": "no-text"}, "reservation 1 has no text"),
        ({"decision": "rejected", "reasons": " "}, "rejected needs reasons="),
        ({"decision": "approved", "evidence": Path("nowhere.eml")}, r"the evidence nowhere\.eml cannot be read"),
    ],
)
def test_a_decision_that_contradicts_itself_is_no_decision(tested: Flow, given: dict[str, Any], problem: str) -> None:
    whole = {"severity": "minor", "date": "2026-05-01", "text": "x"}
    reservations = {
        "minor": whole,
        "bad": whole | {"severity": "small"},
        "no-date": whole | {"date": "1.5."},
        "no-text": whole | {"text": " "},
    }
    if "reservations" in given:
        given = given | {"reservations": (reservations[given["reservations"]],)}
    with pytest.raises(UsageError, match=problem):
        tested.decide(**given, paged=False)
    assert tested.records("sign-off-recorded") == []


def test_a_verdict_on_what_was_not_asked(tested: Flow) -> None:
    with pytest.raises(NotKnown, match="ACME-2 is not part of what was put before the customer"):
        tested.decide(verdicts={"ACME-2": "works"})


def test_a_blocking_reservation_promotes_nothing(tested: Flow) -> None:
    reservations: Any = ({"severity": "blocking", "date": "2026-05-01", "text": "les prix sont faux"},)
    tested.decide("approved-with-reservations", reservations=reservations)
    with pytest.raises(Refused, match=r"claire approved 1\.0\.0\+1 with a blocking reservation"):
        tested.promote()


def not_an_approver(flow: Flow) -> dict[str, Any]:
    flow.person("carl", "approver")
    return {"by": "carl"}


def nobody(flow: Flow) -> dict[str, Any]:
    return {"by": "nobody"}


def the_actor_decides(flow: Flow) -> dict[str, Any]:
    flow.edit("environments/people.yaml", "roles: [approver]", "roles: [approver, engineer]")
    return {"session": flow.session(signing_key=flow.person("claire", "approver"))}


def the_deployer_decides(flow: Flow) -> dict[str, Any]:
    """Eve, who deployed it to test, is also an approver now, and somebody else enters her decision."""
    flow.edit("environments/people.yaml", "roles: [engineer]", "roles: [engineer, approver]")
    flow.edit("environments/acme/customer.yaml", "approvers: [claire]", "approvers: [claire, eve]")
    return {"by": "eve", "session": flow.session(signing_key=flow.person("otto", "engineer"))}


@pytest.mark.parametrize(
    ("arrange", "problem"),
    [
        (not_an_approver, "carl is not an approver of acme; approvers are claire"),
        (nobody, "nobody is not an approver of acme"),
        (the_actor_decides, "claire cannot both decide for the customer and enter the decision"),
        (the_deployer_decides, r"eve deployed 1\.0\.0\+1 to test and cannot sign it off"),
    ],
)
def test_who_may_not_decide(tested: Flow, arrange: Callable[[Flow], dict[str, Any]], problem: str) -> None:
    given = arrange(tested)
    before = tested.refs()
    for dry_run in (True, False):
        with pytest.raises(Refused, match=problem):
            tested.decide(**given, dry_run=dry_run, paged=False)
    assert tested.refs() == before


def test_who_signed_it_off_does_not_promote_it(tested: Flow) -> None:
    tested.edit("environments/people.yaml", "roles: [approver]", "roles: [approver, lead]")
    key = tested.person("claire", "approver")
    tested.decide()
    from pipeline.workflow import deployments

    with pytest.raises(Refused, match=r"claire signed 1\.0\.0\+1 off and cannot deploy it"):
        deployments.promote(tested.session(signing_key=key), customer="acme")


@pytest.mark.slow
def test_a_superseded_request_is_decided_no_more(tested: Flow) -> None:
    tested.decide()
    tested.release("1.1.0")
    tested.deploy()
    with pytest.raises(Refused, match=r"deployment 0002 put 1\.1\.0\+1 on test"):
        tested.promote("1.0.0+1")
    tested.edit("environments/acme/test.yaml", "title: Acme test", "title: Acme Test")
    # The settings of test are part of what is asked: the same release again is another question.
    assert tested.deploy().sign_off_requested is True
    assert [sign_off.status for sign_off in tested.state().sign_offs] == ["superseded", "superseded", "open"]
    tested.check_sound()
