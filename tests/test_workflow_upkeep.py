"""Erasure, verification, keys; accepted migrations are in ``test_workflow_deployments.py``, where they matter."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NotKnown, PipelineError, Refused, UsageError
from pipeline.workflow import tickets, upkeep
from tests.flows import Flow, told
from tests.test_ledger import all_object_bytes


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def released(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "released")


def test_a_ticket_is_erased_and_the_records_verify_as_before(released: Flow) -> None:
    second = released.ticket("Madame Dupont, 12 rue des Lilas")
    secret = b"Madame Dupont"
    assert secret in all_object_bytes(released.repository)
    before, records = released.refs(), [record.model_dump() for record in released.records()]
    would = upkeep.erase(released.session(), customer="acme", ticket=second, reason="asked", dry_run=True)
    assert (would.changed, would.count) == (False, 4)
    opened = next(record for record in released.records("ticket-opened") if record.tickets[0].id == second)
    assert would.lines()[1:] == [
        f"  {opened.id}  ticket-opened  {name}" for name in sorted(opened.texts) if name != "people"
    ]
    assert would.next_commands == (f"invoke erase customer=acme ticket={second} reason=asked",)
    assert released.refs() == before

    done = upkeep.erase(released.session(), customer="acme", ticket=second, reason="asked for it")
    assert (done.changed, done.count) == (True, 4)
    assert secret not in all_object_bytes(released.repository)
    assert [record.model_dump() for record in released.records()][:-1] == records
    assert upkeep.verify_ledger(released.session(), customer="acme").findings == ()
    shown = tickets.show_ticket(released.session(), customer="acme", ticket=second)
    assert (shown.title, shown.text) == (None, None)
    assert "(erased)" in shown.lines()[0]
    assert tickets.show_ticket(released.session(), customer="acme", ticket="ACME-1").title == "Prix manquant"
    again = upkeep.erase(released.session(), customer="acme", ticket=second, reason="asked for it")
    assert (again.changed, again.count) == (False, 0)
    # The erased ticket can still be released for, and the pipeline goes on.
    assert released.release("1.1.0", second).changed is True
    assert upkeep.verify_ledger(released.session(), customer="acme").records == len(released.records())


def test_a_person_is_erased_wherever_she_is_named(tested: Flow) -> None:
    evidence = tested.write("mail.eml", "de: claire@acme.example, portable 06 11 22 33 44\n")
    tested.decide(evidence=evidence)
    held = base64.b64encode(evidence.read_bytes())
    assert held in all_object_bytes(tested.repository)
    upkeep.erase(tested.session(), customer="acme", person="claire", reason="left the company")
    kept = all_object_bytes(tested.repository)
    for gone in (held, b"Claire Client", b"claire@acme.example"):
        assert gone not in kept
    assert upkeep.verify_ledger(tested.session(), customer="acme").findings == ()
    # The decision stands: it was about a release, and its evidence's hash is in the record.
    assert tested.refusals() == {}
    with pytest.raises(NotKnown):
        upkeep.erase(tested.session(), customer="acme", person="nobody", reason="x")
    wrongs: list[dict[str, Any]] = [{}, {"ticket": "ACME-1", "person": "claire"}]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="say what to erase"):
            upkeep.erase(tested.session(), customer="acme", reason="x", **wrong)


def test_nothing_is_asked_about_an_erasure_that_says_nothing(tested: Flow) -> None:
    """Without a terminal the missing option is named, and not the terminal; then the terminal is."""
    from pipeline.command_line.output import Output
    from pipeline.command_line.verb import Command
    from pipeline.verbs.upkeep import erase

    command = Command(erase, {"workspace": str(tested.folder)}, Output(), {})
    with pytest.raises(UsageError, match="say what to erase"):
        erase.body(command, customer="acme", reason="x")
    with pytest.raises(NotKnown, match="no record of acme is about 'ACME-9'"):
        erase.body(command, customer="acme", reason="x", ticket="ACME-9")
    before = tested.refs()
    with pytest.raises(UsageError, match="no terminal to ask on"):
        erase.body(command, customer="acme", reason="x", ticket="ACME-1")
    assert tested.refs() == before


def test_tickets_say_what_was_done(released: Flow) -> None:
    def close(**more: Any) -> list[str]:
        return tickets.close_ticket(released.session(), customer="acme", ticket="ACME-1", **more).lines()

    would = tickets.open_ticket(released.session(), customer="acme", title="Neu", dry_run=True)
    assert would.lines()[0] == "ticket ACME-2 would be opened for acme"
    assert close(dry_run=True)[0] == "ticket ACME-1 would be closed"
    assert close()[0] == "ticket ACME-1 is closed"
    assert close()[0] == close(dry_run=True)[0] == "ticket ACME-1 is closed already"
    shown = tickets.show_ticket(released.session(), customer="acme", ticket="ACME-1")
    assert shown.lines()[0] == "ACME-1  closed  Prix manquant"


def test_an_import_leads_on(released: Flow) -> None:
    from pipeline.workflow import products

    released.session().repository()
    released.version("1.4.0", {"note.txt": "neu\n"})
    told_of: list[str] = []
    session = released.session()
    session.progress = told_of.append
    would = products.import_product(session, product="depot", dry_run=True)
    assert would.next_commands == ("invoke product.import product=depot",)
    done = products.import_product(session, product="depot")
    assert done.imported == ("1.4.0",)
    assert "invoke release customer=acme version=1.4.0 ticket=…" in done.next_commands
    assert [text for text in told_of if "importing" in text] == ["importing depot 1.4.0"]


def test_a_ledger_that_was_tampered_with_does_not_verify(released: Flow) -> None:
    """A record rewritten by somebody who can push, its chain and state left as they were."""
    repository = released.repository
    record = released.records("release-made")[0]
    path = f"records/{record.id}.json"
    data = (repository.read(f"refs/heads/acme/ledger:{path}") or b"").replace(b'"eve"', b'"bob"')
    tree = repository.write_tree("refs/heads/acme/ledger", {path: ("100644", repository.write_blob(data))})
    tip = released.refs()["refs/heads/acme/ledger"]
    forged = repository.write_commit(tree, [tip], "x\n", author="eve", at=record.at)
    released.git(repository.path, "update-ref", "refs/heads/acme/ledger", forged)
    with pytest.raises(Refused, match="does not verify") as refused:
        upkeep.verify_ledger(released.session(), customer="acme")
    assert any(record.id in str(reason) for reason in refused.value.reasons)
    # And nothing is decided on it.
    before = released.refs()
    with pytest.raises(PipelineError):
        released.ticket("another")
    assert released.refs() == before


def test_a_key_is_made_where_the_workspace_expects_it(released: Flow) -> None:
    with pytest.raises(NotKnown, match="did you mean 'eve'"):
        upkeep.create_key(released.session(), person="evee")
    with pytest.raises(PipelineError):
        upkeep.create_key(released.session(), person="eve")  # hers is there, and is not overwritten
    made = upkeep.create_key(released.session(), person="claire", out=Path("keys/claire"))
    path = Path(made.path)
    assert path == released.folder / "keys" / "claire"
    assert path.stat().st_mode & 0o077 == 0
    assert path.with_name("claire.pub").read_text().split()[:2] == made.public_key.split()[:2]
    released.edit(
        "environments/people.yaml",
        "    customers: [acme]\n",
        f"    customers: [acme]\n    keys:\n      - public: {made.public_key}\n",
    )
    assert released.session(signing_key="file:keys/claire").actor.key == "claire"
