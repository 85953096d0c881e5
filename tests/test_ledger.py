"""The ledger: what append keeps, what decisions see, what verify finds, and what erase leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.content import canonical
from pipeline.errors import Failed, NotKnown, PartlyDone, Refused, Unreachable
from pipeline.ledger import Ledger
from pipeline.model import Draft, People, RefMove
from pipeline.repository import NewCommit, Raced, Repository
from pipeline.signing import RECORD_CONTEXT, Signer
from pipeline.state import STATE_SCHEMA, State
from tests.ledgers import (
    CUSTOMER,
    LEDGER,
    LINE,
    NOW,
    TEST,
    TEXTS,
    commit,
    line_started,
    open_ledger,
    people_with_keys,
    ticket,
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[People, dict[str, Signer]]:
    return people_with_keys(tmp_path_factory.mktemp("keys"), "jane", "john", "eve")


@pytest.fixture
def people(known: tuple[People, dict[str, Signer]]) -> People:
    return known[0]


@pytest.fixture
def jane(known: tuple[People, dict[str, Signer]]) -> Signer:
    return known[1]["jane"]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path / "installations.git")


def all_object_bytes(repository: Repository) -> bytes:
    """Every object of the repository, unpacked, and every file of its folder as it is."""
    batch = ["git", f"--git-dir={repository.path}", "cat-file", "--batch", "--batch-all-objects"]
    objects = subprocess.run(batch, check=True, capture_output=True).stdout
    parts = [objects]
    for path in repository.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            parts.append(data)
            try:
                parts.append(zlib.decompress(data))
            except zlib.error:
                continue
    return b"\0".join(parts)


# --- append


def test_an_append_starts_git_to_move_refs_and_once_to_read(
    ledger: Ledger, jane: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append(jane, line_started(ledger.repository))
    again, started = open_ledger(ledger.repository.path), list[list[str]]()

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, words: list[str], *rest: Any, **named: Any) -> None:
            started.append([word for word in words if word in ("cat-file", "update-ref") or word == words[-1]])
            super().__init__(words, *rest, **named)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    again.complete()
    again.state()
    for number in (1, 2):
        [record] = again.append(jane, lambda state, number=number: [ticket(number)])
        assert again.state().head == again.record_sha256(record.id)
    assert [words[0] for words in started] == ["cat-file", "update-ref", "update-ref"]


def test_the_state_after_an_append_is_the_one_that_is_read(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, lambda state: [*line_started(ledger.repository)(state), ticket(1)])
    assert ledger.state() == Ledger(ledger.repository, CUSTOMER).state()
    other = open_ledger(ledger.repository.path)
    other.append(jane, lambda state: [ticket(2)])
    assert ledger.state() == other.state()
    assert ledger.state().number == 3


def test_an_empty_ledger_has_an_empty_state(ledger: Ledger) -> None:
    assert ledger.state() == State(customer=CUSTOMER)
    assert ledger.records() == []
    assert ledger.record("any") is None
    assert ledger.text("0" * 64) is None
    assert ledger.configuration("0" * 64) is None
    assert ledger.verify() == []
    assert ledger.complete() == []


def test_a_record_is_kept_signed_and_folded(ledger: Ledger, jane: Signer, people: People) -> None:
    [record] = ledger.append(jane, lambda state: [ticket(1)])
    assert (record.number, record.previous, record.actor.key) == (1, None, "jane")
    assert ledger.record(record.id) == record
    assert ledger.text(record.texts["title"]) == "title of 1"
    assert ledger.configuration(record.configuration["customer.yaml"]) == b"name: Acme\n"
    data = ledger.repository.read(f"{LEDGER}:records/{record.id}.json")
    assert data == canonical(record.model_dump(mode="json"))
    assert ledger.record_sha256(record.id) == hashlib.sha256(data).hexdigest() == ledger.state().head
    assert ledger.state().tickets["ACME-1"].texts == record.texts
    assert ledger.verify(people) == []
    info = ledger.repository.commit_info(LEDGER)
    assert info.author == "jane <jane@people.invalid>"
    assert info.at == NOW
    assert info.trailers["Record-Id"] == record.id
    assert info.trailers["Kind"] == "ticket-opened"
    assert info.trailers["Ticket"] == "ledger:ACME-1"


def test_several_drafts_are_one_transaction_and_a_commit_each(ledger: Ledger, jane: Signer, people: People) -> None:
    records = ledger.append(jane, lambda state: [ticket(1), ticket(2), *line_started(ledger.repository)(state)])
    assert [record.number for record in records] == [1, 2, 3]
    assert [record.number for record in ledger.records()] == [3, 2, 1]
    assert len(list(ledger.repository.first_parents(LEDGER))) == 3
    assert ledger.repository.ref(LINE) == records[2].moves[0].new
    assert ledger.state().version == "1.0"
    assert ledger.verify(people) == []


def test_texts_never_enter_the_ledger_and_have_no_history(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, lambda state: [ticket(1, texts={"people.yaml": b"mail: jane@example.org\n"})])
    ledger.append(jane, lambda state: [ticket(2)])
    for entry in ledger.repository.entries(LEDGER):
        assert b"jane@example.org" not in (ledger.repository.read(entry.oid) or b"")
    assert ledger.repository.commit_info(TEXTS).parents == ()
    assert len(ledger.repository.entries(TEXTS)) == 2
    [record] = [record for record in ledger.records() if "people.yaml" in record.texts]
    assert ledger.text_bytes(record.texts["people.yaml"]) == b"mail: jane@example.org\n"


def test_equal_texts_have_different_hashes(ledger: Ledger, jane: Signer) -> None:
    first, second = ledger.append(jane, lambda state: [ticket(i, texts={"title": "yes"}) for i in (1, 2)])
    assert first.texts["title"] != second.texts["title"]


def test_people_in_the_configuration_are_a_bug_of_the_caller(ledger: Ledger, jane: Signer) -> None:
    with pytest.raises(ValueError, match=r"people\.yaml"):
        ledger.append(jane, lambda state: [ticket(1, configuration={"environments/people.yaml": b""})])
    assert ledger.repository.ref(LEDGER) is None


@pytest.mark.parametrize("ref", ["refs/heads/other/main", LEDGER, TEXTS, "refs/heads/acmes/main"])
def test_a_record_moves_only_its_customers_refs(ledger: Ledger, jane: Signer, ref: str) -> None:
    move = RefMove(ref=ref, old=None, new=commit(ledger.repository, None, "x"))
    with pytest.raises(ValueError, match="cannot move"):
        ledger.append(jane, lambda state: [ticket(1, moves=(move,))])
    assert ledger.repository.refs() == {}


def test_no_draft_means_no_record(ledger: Ledger, jane: Signer) -> None:
    assert ledger.append(jane, lambda state: []) == []
    assert ledger.repository.refs() == {}


def test_a_decision_may_refuse_and_nothing_is_written(ledger: Ledger, jane: Signer) -> None:
    def decide(state: State) -> list[Draft]:
        raise Refused("no")

    with pytest.raises(Refused):
        ledger.append(jane, decide)
    assert ledger.repository.refs() == {}


def test_an_adopted_run_writes_the_same_records_once(ledger: Ledger, jane: Signer, people: People) -> None:
    [first] = ledger.append(jane, lambda state: [ticket(1)])
    refs = ledger.repository.refs()
    assert ledger.append(jane, lambda state: [ticket(1, at=NOW + timedelta(hours=1))]) == [first]
    assert ledger.repository.refs() == refs
    again = ledger.append(jane, lambda state: [ticket(1), ticket(2)])
    assert [record.number for record in again] == [1, 2]
    assert ledger.append(jane, lambda state: [ticket(2), ticket(1)]) == again[::-1]
    assert len(ledger.records()) == 2
    assert ledger.verify(people) == []


def test_an_id_that_says_something_else_is_refused(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, lambda state: [ticket(1)])
    with pytest.raises(Refused, match="says something else"):
        ledger.append(jane, lambda state: [ticket(1, run="other")])


def test_the_loser_of_a_race_decides_again_on_the_newer_state(
    ledger: Ledger, jane: Signer, people: People, tmp_path: Path
) -> None:
    other = open_ledger(tmp_path / "installations.git")
    seen = []

    def decide(state: State) -> list[Draft]:
        seen.append(state.number)
        if len(seen) == 1:
            other.append(jane, lambda state: [ticket("other")])
        return [ticket(f"mine-{state.number}")]

    [record] = ledger.append(jane, decide)
    assert seen == [0, 1]
    assert record.number == 2
    assert ledger.verify(people) == []


def test_a_ref_that_a_draft_expects_elsewhere_is_never_moved(
    ledger: Ledger, jane: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ledger.ATTEMPTS", 3)
    ledger.append(jane, line_started(ledger.repository))
    stale = RefMove(ref=TEST, old=None, new=commit(ledger.repository, None, "stale"))
    before = ledger.repository.refs()
    with pytest.raises(Failed, match="other runs were faster"):
        ledger.append(jane, lambda state: [ticket(1, moves=(stale,))])
    assert ledger.repository.refs() == before


# --- state


def test_the_state_of_an_earlier_instant_is_the_fold_until_then(ledger: Ledger, jane: Signer) -> None:
    for number in (1, 2, 3):
        at = NOW + timedelta(hours=number)
        ledger.append(jane, lambda state, number=number, at=at: [ticket(number, at=at)])
    assert ledger.state_at(NOW).number == 0
    assert sorted(ledger.state_at(NOW + timedelta(hours=2)).tickets) == ["ACME-1", "ACME-2"]
    assert ledger.state_at(NOW + timedelta(days=1)) == ledger.state()


def test_a_state_of_an_older_schema_is_folded_anew(
    ledger: Ledger, jane: Signer, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append(jane, lambda state: [ticket(1)])
    old = json.loads(ledger.repository.read(f"{LEDGER}:state.json") or b"")
    rewrite(ledger, {"state.json": canonical({**old, "schema_version": 0, "tickets": {}, "gone": 1})})
    assert list(ledger.state().tickets) == ["ACME-1"]
    assert ledger.verify(people) == []
    ledger.append(jane, lambda state: [ticket(2)])
    assert json.loads(ledger.repository.read(f"{LEDGER}:state.json") or b"")["schema_version"] == STATE_SCHEMA


@pytest.mark.parametrize("kept", [True, False])
def test_a_ledger_that_was_cut_short_is_refused_by_who_has_seen_more(ledger: Ledger, jane: Signer, kept: bool) -> None:
    repository = ledger.repository
    ledger.append(jane, lambda state: [ticket(1)])
    ledger.append(jane, lambda state: [ticket(2)])
    tip = repository.ref(LEDGER)
    assert tip is not None
    before = repository.commit_info(tip).parents[0]
    repository.move([RefMove(ref=LEDGER, old=tip, new=before if kept else None)])
    for decision in (ledger.complete, lambda: ledger.append(jane, lambda state: pytest.fail("decided"))):
        with pytest.raises(Refused, match="cut short or rewritten") as refused:
            decision()
        assert tip in str(refused.value)
    repository.move([RefMove(ref=LEDGER, old=before if kept else None, new=tip)])
    assert ledger.complete() == []


@pytest.mark.parametrize("noun", ["state", "record"])
def test_nothing_is_decided_on_a_newer_schema(ledger: Ledger, jane: Signer, noun: str) -> None:
    [record] = ledger.append(jane, lambda state: [ticket(1)])
    path = "state.json" if noun == "state" else f"records/{record.id}.json"
    document = json.loads(ledger.repository.read(f"{LEDGER}:{path}") or b"")
    rewrite(ledger, {path: canonical(document | {"schema_version": 99, "unheard-of": True})})
    with pytest.raises(Refused, match=f"{noun} schema 99 is needed"):
        ledger.append(jane, lambda state: pytest.fail("decided"))
    with pytest.raises(Refused, match=f"{noun} schema 99 is needed"):
        ledger.state() if noun == "state" else ledger.records()
    assert ledger.verify() != []


def test_nothing_is_written_after_a_state_that_is_not_the_records(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, lambda state: [ticket(1)])
    state = ledger.state().model_copy(update={"head": "0" * 64})
    rewrite(ledger, {"state.json": canonical(state.model_dump(mode="json"))})
    with pytest.raises(Failed, match="damaged"):
        ledger.append(jane, lambda state: [ticket(2)])


# --- completing refs


def test_lagging_refs_are_completed_before_the_next_decision(ledger: Ledger, jane: Signer, people: People) -> None:
    repository = ledger.repository
    ledger.append(jane, line_started(repository, 1))
    first = repository.refs()
    ledger.append(jane, lambda state: [*line_started(repository, 2)(state), ticket(1)])
    second = repository.refs()
    behind = [RefMove(ref=ref, old=second[ref], new=first[ref]) for ref in (LINE, TEST)]
    repository.move([*behind, RefMove(ref=TEXTS, old=second[TEXTS], new=None)])
    assert {reason.source for reason in ledger.verify(people)} >= {LINE, TEST}

    def decide(state: State) -> list[Draft]:
        assert repository.refs() == second
        return []

    ledger.append(jane, decide)
    assert ledger.verify(people) == []
    assert ledger.complete() == []


def test_an_environment_that_is_ahead_goes_back_to_what_was_recorded(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, line_started(ledger.repository))
    recorded = ledger.repository.ref(TEST)
    ahead = commit(ledger.repository, recorded, "unrecorded")
    ledger.repository.move([RefMove(ref=TEST, old=recorded, new=ahead)])
    assert ledger.complete() == [RefMove(ref=TEST, old=ahead, new=recorded)]
    assert ledger.repository.ref(TEST) == recorded


def test_the_line_may_be_ahead_and_is_left_alone(ledger: Ledger, jane: Signer, people: People) -> None:
    ledger.append(jane, line_started(ledger.repository))
    recorded = ledger.repository.ref(LINE)
    ahead = commit(ledger.repository, recorded, "a customisation")
    ledger.repository.move([RefMove(ref=LINE, old=recorded, new=ahead)])
    ledger.append(jane, lambda state: [ticket(1)])
    assert ledger.repository.ref(LINE) == ahead
    assert ledger.verify(people) == []


def test_a_rewritten_line_is_refused(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, line_started(ledger.repository))
    recorded = ledger.repository.ref(LINE)
    other = commit(ledger.repository, None, "rewritten")
    ledger.repository.move([RefMove(ref=LINE, old=recorded, new=other)])
    with pytest.raises(Refused, match="rewritten"):
        ledger.append(jane, lambda state: [ticket(1)])
    assert ledger.repository.ref(LINE) == other
    assert [reason.source for reason in ledger.verify()] == [LINE]


# --- verify


def rewrite(ledger: Ledger, changes: dict[str, bytes | None], ref: str = LEDGER) -> None:
    """Another tree under the tip, as an attacker with write access would put it: same parents, same message.

    Seen from a machine that has not seen the ledger before: one that has refuses whatever is in it.
    """
    shutil.rmtree(ledger.repository.path / "seen", ignore_errors=True)
    info = ledger.repository.commit_info(ref)
    new = ledger.repository.write_commits(
        [
            NewCommit(
                base=info.tree,
                changes=dict(changes),
                parents=info.parents,
                message=info.message,
                author=info.author.split(" ")[0],
                at=info.at,
            )
        ]
    )
    ledger.repository.move([RefMove(ref=ref, old=info.oid, new=new[0])])


@pytest.fixture
def three(ledger: Ledger, jane: Signer, people: People) -> Ledger:
    for number in (1, 2, 3):
        ledger.append(jane, lambda state, number=number: [ticket(number, at=NOW + timedelta(hours=number))])
    assert ledger.verify(people) == []
    return ledger


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_changed_record_is_found(three: Ledger, people: People, number: int) -> None:
    path = f"records/run-{number}-ticket-opened-1.json"
    data = three.repository.read(f"{LEDGER}:{path}") or b""
    for changed in (data.replace(b"shop", b"shot"), data + b"\n", data.replace(b":", b": ", 1), data[:-1], b""):
        rewrite(three, {path: changed})
        assert path.removesuffix(".json") in " ".join(str(reason) for reason in three.verify(people))
        rewrite(three, {path: data})
    assert three.verify(people) == []


def test_every_single_flipped_bit_of_a_record_is_found(three: Ledger, people: People) -> None:
    path = "records/run-3-ticket-opened-1.json"
    data = three.repository.read(f"{LEDGER}:{path}") or b""
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] ^= 1
        rewrite(three, {path: bytes(changed)})
        assert three.verify(people) != [], position


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_dropped_record_is_found(three: Ledger, people: People, number: int) -> None:
    id = f"run-{number}-ticket-opened-1"
    rewrite(three, {f"records/{id}.json": None, f"records/{id}.sig": None})
    assert three.verify(people) != []


def test_a_ledger_cut_short_leaves_refs_that_no_record_explains(three: Ledger, people: People) -> None:
    tip = three.repository.commit_info(LEDGER)
    three.repository.move([RefMove(ref=LEDGER, old=tip.oid, new=tip.parents[0])])
    assert TEXTS in {reason.source for reason in three.verify(people)}


def test_reordered_commits_are_found(three: Ledger, people: People) -> None:
    commits = list(three.repository.first_parents(LEDGER))[::-1]
    parents: list[str] = []
    for position in (1, 0, 2):
        info = commits[position]
        parents = [
            three.repository.write_commit(info.tree, parents, info.message, author="jane", at=info.at),
        ]
    three.repository.move([RefMove(ref=LEDGER, old=commits[-1].oid, new=parents[0])])
    assert LEDGER in {reason.source for reason in three.verify(people)}


def test_swapped_numbers_are_found_even_when_signed_again(three: Ledger, people: People, jane: Signer) -> None:
    changes: dict[str, bytes | None] = {}
    for number, other in ((2, 3), (3, 2)):
        path = f"records/run-{number}-ticket-opened-1"
        document = json.loads(three.repository.read(f"{LEDGER}:{path}.json") or b"")
        data = canonical(document | {"number": other})
        changes[f"{path}.json"] = data
        changes[f"{path}.sig"] = base64.b64encode(jane.sign(RECORD_CONTEXT + data)) + b"\n"
    rewrite(three, changes)
    assert three.verify(people) != []


def test_a_record_changed_by_its_own_signer_breaks_the_chain(three: Ledger, people: People, jane: Signer) -> None:
    path = "records/run-2-ticket-opened-1"
    document = json.loads(three.repository.read(f"{LEDGER}:{path}.json") or b"")
    data = canonical(document | {"details": {"changed": "afterwards"}})
    signature = base64.b64encode(jane.sign(RECORD_CONTEXT + data)) + b"\n"
    rewrite(three, {f"{path}.json": data, f"{path}.sig": signature})
    # The attacker makes state.json fit too: only the hash in the next record tells.
    rewrite(three, {"state.json": canonical(three.state_at(NOW + timedelta(days=1)).model_dump(mode="json"))})
    [finding] = three.verify(people)
    assert finding.source == f"{LEDGER}:records/run-3-ticket-opened-1.json"
    assert "the record before" in finding.text


def test_a_signature_by_another_key_is_found(
    three: Ledger, known: tuple[People, dict[str, Signer]], people: People
) -> None:
    path = "records/run-3-ticket-opened-1"
    data = three.repository.read(f"{LEDGER}:{path}.json") or b""
    signature = three.repository.read(f"{LEDGER}:{path}.sig") or b""
    eve = known[1]["eve"]
    for forged in (
        base64.b64encode(eve.sign(RECORD_CONTEXT + data)) + b"\n",
        base64.b64encode(eve.sign(data)) + b"\n",
        signature.strip(),
        signature + b"\n",
        b"",
        None,
    ):
        rewrite(three, {f"{path}.sig": forged})
        assert {reason.source for reason in three.verify(people)} == {f"{LEDGER}:{path}.sig"}, forged
    # The whole record in another name: the last one's bytes change, and the state names the old ones.
    document = json.loads(data)
    data = canonical(document | {"actor": eve.actor.model_dump()})
    rewrite(three, {f"{path}.json": data, f"{path}.sig": base64.b64encode(eve.sign(RECORD_CONTEXT + data)) + b"\n"})
    assert three.verify(people) != []


def test_keys_are_checked_against_people_and_their_dates(three: Ledger, people: People) -> None:
    assert len(three.verify(People(people=()))) == 3
    jane = people.find("jane")
    assert jane is not None
    expired = jane.model_copy(
        update={"keys": (jane.keys[0].model_copy(update={"valid_until": (NOW + timedelta(hours=2)).date()}),)}
    )
    assert three.verify(People(people=(expired,))) == []
    expired = jane.model_copy(
        update={"keys": (jane.keys[0].model_copy(update={"valid_until": (NOW - timedelta(days=1)).date()}),)}
    )
    assert len(three.verify(People(people=(expired,)))) == 3


@pytest.mark.parametrize(
    ("ref", "change"),
    [
        (LEDGER, {"state.json": b"{}"}),
        (LEDGER, {"state.json": None}),
        (LEDGER, {"stray": b"x"}),
        (LEDGER, {"configuration/" + "0" * 64: b"x"}),
        (LEDGER, {"records/deeper/x.json": b"{}"}),
        (TEXTS, {"0" * 64: b"x"}),
        (TEXTS, {"stray": b"x"}),
    ],
)
def test_other_files_are_found(three: Ledger, people: People, ref: str, change: dict[str, bytes | None]) -> None:
    rewrite(three, change, ref)
    [path] = change
    assert f"{ref}:{path}" in {reason.source for reason in three.verify(people)}


def test_a_changed_or_missing_text_or_configuration_is_found(three: Ledger, people: People) -> None:
    record = three.records()[0]
    text, file = record.texts["title"], f"configuration/{record.configuration['customer.yaml']}"
    for ref, path in ((TEXTS, text), (LEDGER, file)):
        data = three.repository.read(f"{ref}:{path}") or b""
        for changed in (data.replace(b"e", b"E", 1), None):
            rewrite(three, {path: changed}, ref)
            assert f"{ref}:{path}" in {reason.source for reason in three.verify(people)}
            assert three.text(text) is None or ref == LEDGER


def test_a_tag_or_environment_that_no_record_made_is_found(three: Ledger) -> None:
    new = commit(three.repository, None, "x")
    refs = ["refs/heads/acme/env/production", "refs/tags/acme/1.0+1"]
    three.repository.move([RefMove(ref=ref, old=None, new=new) for ref in refs])
    assert [reason.source for reason in three.verify()] == refs


# --- erase


def test_erase_takes_the_bytes_out_of_the_repository(ledger: Ledger, jane: Signer, people: People) -> None:
    secret = "Marie Curie, marie@example.org"
    [record, kept] = ledger.append(jane, lambda state: [ticket(1, texts={"title": secret}), ticket(2)])
    subprocess.run(["git", f"--git-dir={ledger.repository.path}", "gc", "--quiet"], check=True)
    assert secret.encode() in all_object_bytes(ledger.repository)
    hash = record.texts["title"]
    erased = ledger.erase(jane, [hash], run="run-9", at=NOW, product="shop", texts={"reason": "asked for"})
    assert (erased.kind, erased.details["hashes"]) == ("erased", [hash])
    assert ledger.text(hash) is None
    assert ledger.text(kept.texts["title"]) == "title of 2"
    assert ledger.text(erased.texts["reason"]) == "asked for"
    assert secret.encode() not in all_object_bytes(ledger.repository)
    assert ledger.verify(people) == []
    # Again, as an adopted run does: the same record, and nothing else.
    assert ledger.erase(jane, [hash], run="run-9", at=NOW, product="shop", texts={"reason": "asked for"}) == erased
    subprocess.run(["git", f"--git-dir={ledger.repository.path}", "gc", "--quiet"], check=True)
    subprocess.run(["git", f"--git-dir={ledger.repository.path}", "fsck", "--strict", "--no-dangling"], check=True)
    assert ledger.verify(people) == []


def test_erase_finds_copies_that_killed_runs_left(
    ledger: Ledger, jane: Signer, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(moves: object) -> None:
        raise KeyboardInterrupt

    draft = ticket(1, texts={"title": "a name to forget"})
    with monkeypatch.context() as patch:
        patch.setattr(ledger.repository, "move", lambda moves: killed(moves) if moves else None)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                ledger.append(jane, lambda state: [draft])
    [record] = ledger.append(jane, lambda state: [draft])
    assert all_object_bytes(ledger.repository).count(b"a name to forget") > 1
    ledger.erase(jane, [record.texts["title"]], run="run-9", at=NOW, product="shop")
    assert b"a name to forget" not in all_object_bytes(ledger.repository)
    assert ledger.verify(people) == []


def test_erase_refuses_hashes_that_no_record_names(ledger: Ledger, jane: Signer) -> None:
    ledger.append(jane, lambda state: [ticket(1)])
    before = ledger.repository.refs()
    with pytest.raises(NotKnown):
        ledger.erase(jane, ["0" * 64], run="run-9", at=NOW, product="shop")
    assert ledger.repository.refs() == before


def test_erase_reaches_a_remote_in_a_folder(tmp_path: Path, jane: Signer, people: People) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    ledger = open_ledger(tmp_path / "mirror.git", remote.path)
    [record] = ledger.append(jane, lambda state: [ticket(1, texts={"title": "a name to forget"})])
    assert b"a name to forget" in all_object_bytes(remote)
    ledger.erase(jane, [record.texts["title"]], run="run-9", at=NOW, product="shop")
    for repository in (remote, ledger.repository):
        assert b"a name to forget" not in all_object_bytes(repository)
        assert Ledger(repository, CUSTOMER).verify(people) == []


# --- a remote


def test_a_remote_that_is_away_changes_nothing(tmp_path: Path, jane: Signer) -> None:
    ledger = open_ledger(tmp_path / "mirror.git", tmp_path / "absent.git")
    with pytest.raises(Unreachable):
        ledger.append(jane, lambda state: [ticket(1)])


def test_a_push_whose_answer_was_lost_is_not_written_twice(
    tmp_path: Path, jane: Signer, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    ledger = open_ledger(tmp_path / "mirror.git", remote.path)
    other = open_ledger(tmp_path / "other.git", remote.path)
    move = ledger.repository.move

    def cut(moves: list[RefMove]) -> None:
        move(moves)
        if moves:
            monkeypatch.setattr(ledger.repository, "move", move)
            other.append(jane, lambda state: [ticket("other")])
            raise Raced

    monkeypatch.setattr(ledger.repository, "move", cut)
    [record] = ledger.append(jane, lambda state: [ticket(f"mine-{state.number}")])
    assert record.number == 1
    assert [found.number for found in other.records()] == [2, 1]
    assert other.verify(people) == []


def test_a_connection_lost_while_writing_is_an_unknown_outcome(
    tmp_path: Path, jane: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    ledger = open_ledger(tmp_path / "mirror.git", remote.path)

    def cut(moves: list[RefMove]) -> None:
        if moves:
            remote.path.rename(tmp_path / "gone.git")
            raise Unreachable("the remote is away")

    monkeypatch.setattr(ledger.repository, "move", cut)
    with pytest.raises(PartlyDone, match="not known"):
        ledger.append(jane, lambda state: [ticket(1)])
