"""What the pipeline promises whoever tries otherwise: only people who may, only what was shown, only what was signed.

Each test breaks one promise the way somebody with a push or an editor could. What is marked slow takes more time than
``make quick`` has.
"""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.content import canonical
from pipeline.errors import ConfigurationError, NotKnown, Refused, UsageError
from pipeline.model import Script
from pipeline.state import Acceptance, EnvironmentState, ReleaseState, State
from pipeline.workflow import (
    databases,
    deployments,
    lines,
    locks,
    overview,
    plans,
    products,
    releases,
    sign_offs,
    tickets,
    upkeep,
)
from pipeline.workflow.session import Session
from tests.flows import Flow, told
from tests.nouns import NOW, sha
from tests.test_ledger import all_object_bytes

pytestmark = pytest.mark.slow


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def live(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "live")


@pytest.fixture
def waiting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "waiting")


def refused_as_planned(flow: Flow, rules: set[str]) -> dict[str, list[str]]:
    """These rules speak against the promotion, the promotion is Refused, and nothing has moved."""
    found = flow.refusals()
    assert set(found) == rules
    before, current = flow.refs(), flow.current("production")
    with pytest.raises(Refused):
        flow.promote()
    assert (flow.refs(), flow.current("production")) == (before, current)
    return found


# --- the ledger is believed only as a whole ----------------------------------------------------------------------------


def forge_state(flow: Flow, change: Callable[[dict[str, Any]], None], *, amended: bool) -> None:
    """state.json rewritten by somebody who can push and has no key: the newest commit amended, or one more on top."""
    repository, ref = flow.repository, "refs/heads/acme/ledger"
    state = json.loads(repository.read(f"{ref}:state.json") or b"")
    change(state)
    tip = repository.commit_info(flow.refs()[ref])
    blob = repository.write_blob(canonical(state))
    tree = repository.write_tree(tip.tree, {"state.json": ("100644", blob)})
    commit = repository.write_commit(tree, tip.parents if amended else [tip.oid], tip.message, author="eve", at=tip.at)
    flow.git(repository.path, "update-ref", ref, commit)


@pytest.mark.parametrize("amended", [True, False])
def test_a_forged_approval_promotes_nothing(waiting: Flow, amended: bool) -> None:
    def approve(state: dict[str, Any]) -> None:
        decided = {"status": "approved", "by": "claire", "entered_by": "eve", "decided_at": "2026-03-02T10:00:00Z"}
        state["sign_offs"][-1] |= decided

    assert set(waiting.refusals()) == {"signed_off"}
    forge_state(waiting, approve, amended=amended)
    assert waiting.state().sign_offs[-1].approved
    if amended:
        # A machine that has seen the ledger as it was decides nothing on it; another machine finds out as well.
        with pytest.raises(Refused, match="was cut short or rewritten"):
            waiting.promote()
        (waiting.folder / "installations.git" / "seen" / "acme").unlink()
    found = refused_as_planned(waiting, {"ledger_is_sound"})
    finding = "the ledger does not verify: is not what the records add up to (refs/heads/acme/ledger:state.json)"
    assert finding in found["ledger_is_sound"]
    assert len(found["ledger_is_sound"]) == (1 if amended else 2)


@pytest.mark.parametrize(
    ("signs", "finding"),
    [
        ("mallory", "mallory is not in environments/people.yaml"),
        ("eve", "the key that signed is none of eve's keys in environments/people.yaml"),
    ],
)
def test_a_decision_signed_by_an_unknown_key_promotes_nothing(waiting: Flow, signs: str, finding: str) -> None:
    """Entered on a machine whose people.yaml names another key; the machine that promotes does not know it."""
    people = waiting.folder / "environments" / "people.yaml"
    kept = people.read_text()
    sign_offs.write_page(waiting.session(), customer="acme")
    if signs == "mallory":
        key = waiting.person("mallory", "engineer")
    else:
        key = waiting.person("other", "engineer")
        people.write_text(kept.replace("file:keys/eve.pub", "file:keys/other.pub"))
    waiting.decide(session=waiting.session(signing_key=key))
    if signs == "mallory":
        assert waiting.refusals() == {}
    people.write_text(kept)
    found = refused_as_planned(waiting, {"ledger_is_sound"} | ({"signed_off"} if signs == "mallory" else set()))
    assert f"the ledger does not verify: {finding}" in found["ledger_is_sound"][0]


# --- who may write -----------------------------------------------------------------------------------------------------

MODULES: list[ModuleType] = [deployments, lines, locks, plans, products, releases, sign_offs, tickets, upkeep]
ACME = {"customer": "acme"}
WRITING: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "import_product": (products.import_product, {"product": "depot"}),
    "start_line": (lines.start_line, ACME | {"version": "1.0.0"}),
    "checkout_line": (lines.checkout_line, ACME),
    "open_ticket": (tickets.open_ticket, ACME | {"title": "x"}),
    "close_ticket": (tickets.close_ticket, ACME | {"ticket": "ACME-1"}),
    "make_release": (releases.make_release, ACME | {"version": "1.1.0", "tickets": ("ACME-1",)}),
    "make_patch": (
        releases.make_patch,
        ACME | {"tickets": ("ACME-1",), "file": Path("mail.eml"), "environment": "test"},
    ),
    "deploy": (deployments.deploy, ACME),
    "promote": (deployments.promote, ACME),
    "rollback": (deployments.rollback, ACME | {"environment": "test"}),
    "release_lock": (deployments.release_lock, ACME | {"environment": "test", "reason": "x"}),
    "write_page": (sign_offs.write_page, ACME),
    "record_decision": (
        sign_offs.record_decision,
        ACME | {"decision": "approved", "by": "claire", "evidence": Path("mail.eml")},
    ),
    "accept_migration": (upkeep.accept_migration, ACME | {"script": "001_base.sql", "reason": "x"}),
    "erase": (upkeep.erase, ACME | {"ticket": "ACME-1", "reason": "x"}),
}
MAY_NOT = {
    "aude": "aude has none of the roles engineer, lead, service",
    "bob": "bob does not serve acme",
    "tim": "tim is not in the team of acme",
}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """One workspace for all: nobody here changes anything. An auditor, an engineer of others, one of another team."""
    flow = told(tmp_path_factory, tmp_path_factory.mktemp("strangers"), "tested")
    flow.write("mail.eml", "Bonjour, c'est bon. Claire\n")
    for key, role in (("aude", "auditor"), ("bob", "engineer"), ("tim", "engineer")):
        flow.person(key, role)
    flow.edit("environments/people.yaml", "- key: bob\n", "- key: bob\n    customers: [brandt]\n")
    flow.write(
        "environments/acme/customer.yaml",
        (flow.folder / "environments/acme/customer.yaml").read_text() + "team: [eve, aude]\n",
    )
    return flow


def seen(flow: Flow) -> list[str]:
    return sorted(str(path) for path in flow.folder.rglob("*") if "installations.git" not in path.parts)


@pytest.mark.parametrize("who", MAY_NOT)
@pytest.mark.parametrize("verb", WRITING)
def test_who_may_not_act_changes_nothing(strangers: Flow, verb: str, who: str) -> None:
    act, given = WRITING[verb]
    if verb == "import_product" and who != "aude":
        pytest.skip("a product is no customer's")
    before, files = strangers.refs(), seen(strangers)
    for dry_run in (True, False):
        with pytest.raises(Refused) as refused:
            act(strangers.session(signing_key=f"file:keys/{who}"), **given, dry_run=dry_run)
        assert [(reason.text, reason.rule) for reason in refused.value.reasons] == [(MAY_NOT[who], "may_act")]
    assert strangers.refs() == before
    assert seen(strangers) == files


def test_every_writing_function_is_asked_who_acts() -> None:
    """Whatever has a dry run writes; a key pair for oneself is the one thing that everybody makes."""
    writing = {
        name
        for module in MODULES
        for name, found in vars(module).items()
        if inspect.isfunction(found)
        and not name.startswith("_")
        and {"session", "dry_run"} <= set(inspect.signature(found).parameters)
    }
    assert writing == {*WRITING, "create_key"}


def test_who_may_not_act_may_still_look(strangers: Flow) -> None:
    session = strangers.session(signing_key="file:keys/aude")
    looks: list[Callable[[Session], Any]] = [
        overview.status,
        lambda session: overview.history(session, customer="acme"),
        lambda session: upkeep.verify_ledger(session, customer="acme"),
        lambda session: tickets.show_ticket(session, customer="acme", ticket="ACME-1"),
    ]
    for look in looks:
        assert look(session).changed is False
    planned = deployments.plan(session, customer="acme", environment="production")
    assert {refusal["rule"] for refusal in planned.refusals} >= {"may_act", "signed_off"}


# --- the decision is on what was shown ---------------------------------------------------------------------------------


def test_a_decision_is_on_the_release_whose_page_was_shown(waiting: Flow) -> None:
    """Claire answers on 1.0.0+1; a colleague has put 1.1.0+1 on test since."""
    with pytest.raises(Refused, match="cannot be recorded") as refused:
        waiting.decide(paged=False)
    assert [reason.text for reason in refused.value.reasons] == [
        "no page of 1.1.0+1 was put before acme yet: invoke signoff.page customer=acme"
    ]
    # And with the colleague's page written it is still not what she answered.
    sign_offs.write_page(waiting.session(), customer="acme")
    before = waiting.refs()
    for dry_run in (True, False):
        with pytest.raises(Refused, match=r"the decision is on 1\.0\.0\+1, and test of acme holds 1\.1\.0\+1 by now"):
            waiting.decide(release="1.0.0+1", dry_run=dry_run)
    with pytest.raises(NotKnown, match=r"no release '1\.1\.0\+9'"):
        waiting.decide(release="1.1.0+9")
    assert waiting.refs() == before
    assert waiting.decide(release="1.1.0+1").release == "1.1.0+1"
    assert waiting.refusals() == {}


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_empty_evidence_is_no_evidence(tested: Flow, text: str) -> None:
    with pytest.raises(UsageError, match=r"the evidence .*empty\.eml is empty"):
        tested.decide(evidence=tested.write("empty.eml", text))
    assert tested.records("sign-off-recorded") == []


def test_a_rejection_stands_until_who_rejected_decides_anew(tested: Flow) -> None:
    tested.person("carl", "approver")
    tested.edit("environments/acme/customer.yaml", "approvers: [claire]", "approvers: [claire, carl]")
    tested.decide("rejected", reasons="les prix sont faux")
    with pytest.raises(Refused) as refused:
        tested.decide("approved", by="carl")
    assert "claire rejected 1.0.0+1: only claire may decide anew" in refused.value.reasons[0].text
    assert tested.state().sign_offs[-1].status == "rejected"
    refused_as_planned(tested, {"signed_off"})
    tested.decide("approved", evidence=tested.write("other.eml", "finalement oui\n"))
    assert tested.refusals() == {}
    # The other way round, a second approver may still say no.
    tested.decide("rejected", by="carl", reasons="non")
    assert "carl rejected 1.0.0+1" in tested.refusals()["signed_off"][0]


# --- settings are signed off with the release --------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("language: fr", "language: de"), ("Europe/Paris", "Europe/Berlin")])
def test_the_customers_language_and_time_zone_are_signed_off_too(tested: Flow, old: str, new: str) -> None:
    tested.decide()
    assert tested.refusals() == {}
    tested.edit("environments/acme/customer.yaml", old, new)
    found = refused_as_planned(tested, {"signed_off"})
    assert "settings of test or production of acme were changed" in found["signed_off"][0]
    tested.edit("environments/acme/customer.yaml", new, old)
    assert tested.refusals() == {}


@pytest.mark.slow
def test_settings_changed_after_the_promotion_are_another_question(live: Flow) -> None:
    """Production holds the release, and not these settings: promote says so, and brings them once they are signed off."""
    assert live.promote("1.0.0+1").changed is False
    live.edit("environments/acme/production.yaml", "title: Acme production", "title: Acme Production")
    with pytest.raises(Refused, match="settings of test or production of acme were changed"):
        live.promote("1.0.0+1")
    assert live.deploy("1.0.0+1").sign_off_requested is True
    live.decide()
    done = live.promote("1.0.0+1")
    assert (done.changed, done.installed_before) == (True, "1.0.0+1")
    assert (live.host("production") / "shared" / "app.conf").read_text().startswith("title=Acme Production\n")
    assert live.promote("1.0.0+1").changed is False
    live.check_sound()


# --- migrations are rehearsed as they are ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ran", "accepted", "rehearsed"),
    [
        (None, [], False),
        ("new", [], True),
        ("old", [], False),
        ("old", [("002.sql", "old", "new")], True),
        ("old", [("002.sql", "older", "new"), ("002.sql", "old", "newer"), ("001.sql", "old", "new")], False),
        (None, [("002.sql", "old", "new")], False),
    ],
)
def test_an_edited_script_is_rehearsed_only_by_its_acceptance(
    ran: str | None, accepted: list[tuple[str, str, str]], rehearsed: bool
) -> None:
    state = State(
        customer="acme",
        environments={"test": EnvironmentState(applied={"002.sql": sha(ran)} if ran else {})},
        accepted=tuple(
            Acceptance(script=script, old=sha(old), new=sha(new), record="r", at=NOW, by="eve")
            for script, old, new in accepted
        ),
    )
    release = ReleaseState(name="1.0+1", version="1.0", commit="0" * 40, made_at=NOW, made_by="eve", record="r")
    script = Script(id="002.sql", checksum=sha("new"), blob="0" * 40)
    assert databases.unrehearsed(state, [script], release) == (
        {} if rehearsed else {"002.sql": "has not run on test as it is in 1.0+1"}
    )


def test_what_the_full_schema_stands_for_on_test_has_not_run_there() -> None:
    here = EnvironmentState(applied={"002.sql": sha("new")}, covered=("002.sql",))
    state = State(customer="acme", environments={"test": here})
    release = ReleaseState(name="1.0+1", version="1.0", commit="0" * 40, made_at=NOW, made_by="eve", record="r")
    script = Script(id="002.sql", checksum=sha("new"), blob="0" * 40)
    assert databases.unrehearsed(state, [script], release) == {
        "002.sql": "has not run on test, where the full schema of a new database stands for it"
    }


EDITED = "ALTER TABLE item ADD COLUMN price INTEGER;\n-- a comment\n"


@pytest.mark.slow
@pytest.mark.parametrize("accepted", [True, False])
def test_production_gets_an_edited_script_only_when_the_edit_was_accepted(waiting: Flow, accepted: bool) -> None:
    """002_price.sql ran on test as it was; production, which has not had it, would get another text."""
    waiting.make("1.2.0", {"migrations/002_price.sql": EDITED})
    if accepted:
        upkeep.accept_migration(waiting.session(), customer="acme", script="002_price.sql", reason="only a comment")
    else:
        # Somebody set the history in test's database right by hand, and nobody was asked.
        manifest = waiting.installation.manifest(waiting.state().releases["1.2.0+1"].commit)
        playbook = waiting.session().workspace.playbook("depot").playbook
        dossier = waiting.session().dossier("acme")
        checksum = databases.release_scripts(dossier, playbook, manifest)["002_price.sql"][0].checksum
        waiting.sql("test", f"UPDATE tma_migration_history SET checksum = '{checksum}' WHERE script = '002_price.sql'")
    waiting.deploy()
    waiting.decide()
    if accepted:
        assert waiting.promote().migrations == ("002_price.sql",)
        waiting.check_sound()
    else:
        found = refused_as_planned(waiting, {"rehearsed_on_test"})
        assert "002_price.sql has not run on test as it is in 1.2.0+1" in found["rehearsed_on_test"][0]


# --- looking back, and forgetting --------------------------------------------------------------------------------------


def test_a_clock_that_was_ahead_does_not_break_the_past(tested: Flow) -> None:
    """The release is made on a machine whose clock is a day ahead, and deployed on one whose clock is right."""
    noon = tested.clock.now
    tested.clock.now = noon + timedelta(days=1)
    tested.make("1.2.0", {})
    tested.clock.now = noon
    tested.deploy()
    records = tested.records()
    assert records[-1].at < next(r for r in reversed(records) if r.kind == "release-made").at
    now = overview.status(tested.session(), at=records[-1].at)
    assert {row["environment"]: row["release"] for row in now.rows}["test"] == "1.2.0+1"
    for record in records:
        past = tested.ledger.state_at(record.at)
        assert past == tested.ledger.state_at(record.at + timedelta(milliseconds=1))
        assert past.number >= record.number
        overview.status(tested.session(), at=record.at)
    # Before the first deployment nothing was on test, whatever the clocks said later.
    earlier = overview.status(tested.session(), at=records[0].at)
    assert {row["release"] for row in earlier.rows} == {None}


def test_an_erased_ticket_is_gone_from_the_page_and_the_remarks_too(tested: Flow) -> None:
    shown = sign_offs.write_page(tested.session(), customer="acme")
    data = Path(shown.path).read_bytes()
    assert b"Prix manquant" in data
    tested.decide(verdicts={"ACME-1": "works-with-remark"}, remarks={"ACME-1": "Madame Dupont le voit"})
    gone = [b"Prix manquant", b"Madame Dupont", base64.b64encode(data)]
    held = all_object_bytes(tested.repository)
    # The page is kept as text or as bytes.
    assert gone[1] in held
    assert gone[2] in held or b"Prix manquant" in held
    done = upkeep.erase(tested.session(), customer="acme", ticket="ACME-1", reason="asked for it")
    assert done.changed is True
    held = all_object_bytes(tested.repository)
    for text in gone:
        assert text not in held
    for record in tested.records():
        for name, hash in record.texts.items():
            kept = tested.ledger.text_bytes(hash)
            assert kept is None or b"Prix manquant" not in kept
            assert kept is None or name not in {"page", "remark-ACME-1", "title"}
    assert not (tested.folder / "var" / "sign-off" / "acme").exists()
    assert upkeep.verify_ledger(tested.session(), customer="acme").findings == ()
    # The page can be written anew, without what was erased.
    again = sign_offs.write_page(tested.session(), customer="acme")
    assert "Prix manquant" not in Path(again.path).read_text()


# --- what is wrong is said before anything begins ----------------------------------------------------------------------


@pytest.mark.parametrize("port", ["http", "0", "99999", "80 80"])
def test_a_check_that_asks_no_address_is_found_by_the_plan(tested: Flow, port: str) -> None:
    tested.edit(
        "playbooks/depot.yaml",
        "  - switch\n",
        "  - switch\n  - check:\n      http: http://127.0.0.1:{{ values.port }}/\n",
    )
    tested.edit("environments/acme/test.yaml", "values:\n", f"values:\n  port: '{port}'\n")
    before = tested.refs()
    for look in (lambda: deployments.plan(tested.session(), customer="acme"), tested.deploy):
        with pytest.raises(ConfigurationError, match="asks an address that cannot be") as refused:
            look()
        assert port in refused.value.reasons[0].text
        assert refused.value.reasons[0].source == "environments/acme/test.yaml, host app1"
    assert tested.refs() == before


@pytest.mark.parametrize("id", ["a b", "../x", "-x", "FIX\nTicket: ACME-9", "é", "x" * 101, "a/b", "~1", ""])
def test_a_patch_has_a_plain_name(tested: Flow, id: str) -> None:
    tested.write("fix.diff", "--- a/app.txt\n+++ b/app.txt\n@@ -5 +5 @@\n-line five\n+line 5\n")
    before = tested.refs()
    with pytest.raises(UsageError, match="cannot name a patch"):
        releases.make_patch(
            tested.session(), customer="acme", tickets=("ACME-1",), file=Path("fix.diff"), environment="test", id=id
        )
    assert tested.refs() == before


def test_a_patch_is_named_by_the_beginning_of_its_commit(live: Flow) -> None:
    live.git(live.product, "checkout", "-q", "-B", "hotfix", "v1.0.0")
    (live.product / "app.txt").write_text("depot 1.0.0\nline two\nline three\nline four\nline 5\n")
    live.git(live.product, "commit", "-q", "-a", "-m", "fix")
    commit = live.git(live.product, "rev-parse", "HEAD")
    live.git(live.product, "checkout", "-q", "main")
    made = releases.make_patch(
        live.session(), customer="acme", tickets=("ACME-1",), commit=commit[:10], id="CVE-2026-1.a_b"
    )
    assert (made.release, made.patches) == ("1.0.0+2", ("CVE-2026-1.a_b",))
    assert (live.repository.read(f"{made.commit}:app.txt") or b"").endswith(b"line 5\n")
    with pytest.raises((NotKnown, UsageError, Refused)):
        releases.make_patch(live.session(), customer="acme", tickets=("ACME-1",), commit="0123456789")
