"""A customer's records: append-only, each signed, moved by compare-and-swap together with the refs that it names.

The branch ``refs/heads/<customer>/ledger`` has a commit a record. Its tree holds ``records/<id>.json`` (RFC 8785 bytes),
``records/<id>.sig`` (base64 of the Ed25519 signature), ``configuration/<sha256>`` and ``state.json``, the fold of all
records. Names, mails and other texts lie on ``refs/heads/<customer>/texts`` (:mod:`pipeline.texts`), never here.

The ledger is the truth: a record names every ref that moves with it, the ledger's own ref is moved first, and whoever
decides next completes the refs that a killed process left behind.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.content import canonical
from pipeline.errors import Failed, NotKnown, PartlyDone, Reason, Refused, Unreachable
from pipeline.model import Draft, People, Record, RefMove, TicketRef
from pipeline.record_format import damaged, message, parse_record, parse_state, summary
from pipeline.repository import NewCommit, Raced, Repository, TreeEntry
from pipeline.signing import RECORD_CONTEXT, Signer
from pipeline.state import State, apply, fold
from pipeline.texts import HASH, Text, copies_of, decode, new_text, remove_leftover_packs

ATTEMPTS = 40
"""How often a decision is taken again after it lost the race."""

ALONE_AFTER = 1
"""Lost races after which this machine's other writers wait while we decide: one loss then is enough on one machine.
Not at once, since a decision can take long (a merge), and most have no rival."""

_RECORD_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,199}")
_FILE = "100644"


@dataclass(frozen=True)
class _Batch:
    """What one decision comes to: its records, those already there included, and the refs to move (none: nothing).

    ``tip`` is the ledger's commit after them with the state there, None where it stays.
    """

    records: list[Record]
    moves: tuple[RefMove, ...] = ()
    tip: tuple[str, State] | None = None


class Ledger:
    """The ledger of one customer in one repository.

    Reading uses the repository as it is here; :meth:`append`, :meth:`complete` and :meth:`erase` fetch first.
    """

    def __init__(self, repository: Repository, customer: str) -> None:
        self.repository = repository
        self.customer = customer
        self.ref = f"refs/heads/{customer}/ledger"
        self.texts_ref = f"refs/heads/{customer}/texts"
        self.line_ref = f"refs/heads/{customer}/main"
        # A commit never changes, so neither does the state at it: (commit, state), and the commit found to be sound.
        self._known: tuple[str, State] | None = None
        self._sound: str | None = None

    # --- reading

    def state(self) -> State:
        """The state at the tip, empty when there is no record. Refused when a newer pipeline wrote it."""
        tip = self.repository.ref(self.ref)
        return State(customer=self.customer) if tip is None else self._state_of(tip)

    def state_at(self, at: datetime) -> State:
        """The state as it was at this instant, that second included: the fold up to the last record made until then.

        Machines' clocks differ, so an earlier record may bear a later instant: what counts is the order of the ledger.
        """
        records = self._digested(self.ref)
        until = max((number for number, (record, _) in enumerate(records, 1) if record.at <= at), default=0)
        past = records[:until]
        return fold(self.customer, past)

    def records(self) -> list[Record]:
        """Every record, newest first. Refused when one is of a newer schema; Failed when one cannot be read."""
        return [record for record, _ in reversed(self._digested(self.ref))]

    def record(self, id: str) -> Record | None:
        """The record with this id, or None."""
        if not _RECORD_ID.fullmatch(id):
            return None
        data = self.repository.read(f"{self.ref}:records/{id}.json")
        return None if data is None else self._parse(data, id)

    def record_sha256(self, id: str) -> str | None:
        """The SHA-256 of the record's bytes, for a host's journal; None when there is no such record."""
        data = self.repository.read(f"{self.ref}:records/{id}.json") if _RECORD_ID.fullmatch(id) else None
        return None if data is None else hashlib.sha256(data).hexdigest()

    def text(self, hash: str) -> str | None:
        """The text with this salted hash, or None when it was erased (or never was); bytes are read as UTF-8."""
        data = self.text_bytes(hash)
        return None if data is None else data.decode("utf-8", "replace")

    def text_bytes(self, hash: str) -> bytes | None:
        """The bytes with this salted hash, or None when they were erased (or never were)."""
        text = self._texts([hash]).get(hash)
        return None if text is None else text.data

    def configuration(self, sha256: str) -> bytes | None:
        """The bytes of a configuration file that a decision used, or None."""
        return self.repository.read(f"{self.ref}:configuration/{sha256}") if HASH.fullmatch(sha256) else None

    # --- deciding

    def append(self, signer: Signer, decide: Callable[[State], Sequence[Draft]]) -> list[Record]:
        """Records what ``decide`` wants, given the fresh state; a record per draft, in order.

        A draft whose id is in the ledger already is not written again: its record is returned as it was written, and
        its moves were made. All new records, and all refs that they move, go in as one transaction or not at all.
        ``decide`` may raise to refuse, and is called again with the newer state when another process was faster; so it
        must read refs inside, and act on nothing.

        Raises Refused when the ledger is of a newer schema or the line was rewritten, Unreachable when the remote
        cannot be read, PartlyDone when the connection was lost while writing.
        """
        return self._append(signer, decide, frozenset())

    def complete(self) -> list[RefMove]:
        """Moves forward the refs that lag behind the records, and returns those moves; every decision does it first.

        The customer's line may be ahead of the ledger by ordinary commits; Refused when it was rewritten instead.
        """
        for _ in range(ATTEMPTS):
            with contextlib.suppress(Raced):
                return self._settle()[2]
        raise _contended(self.ref)

    def erase(
        self,
        signer: Signer,
        hashes: Iterable[str],
        *,
        run: str,
        at: datetime,
        product: str,
        tickets: tuple[TicketRef, ...] = (),
        texts: Mapping[str, str | bytes] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Record:
        """Takes the texts with these hashes out of the repository for good; the record ``erased`` lists the hashes.

        The chain stays verifiable, since records hold hashes only. May be run again after a crash. With a remote, the
        bytes leave this mirror, and the remote where that is a folder of this machine; a remote elsewhere and other
        mirrors drop them with ``git gc --prune=now`` there. Raises NotKnown for a hash that no record names.
        """
        wanted = frozenset(hashes)
        draft = Draft(
            id=f"{run}-erased-1",
            run=run,
            kind="erased",
            at=at,
            product=product,
            tickets=tickets,
            texts=dict(texts or {}),
            details={**(details or {}), "hashes": sorted(wanted)},
        )

        def decide(state: State) -> list[Draft]:
            known = {hash for record in self.records() for hash in record.texts.values()}
            if unknown := sorted(wanted - known):
                raise NotKnown(
                    f"no record of {self.customer} names a text with this hash", reasons=[Reason(h) for h in unknown]
                )
            return [draft]

        self.repository.fetch()
        done_before = self.record(draft.id) is not None
        # On a second run the refs have moved already, so equal bytes may be a text that is being written right now.
        known = [] if done_before else list(self._texts(wanted).values())
        blobs = [entry.oid for entry in self._text_entries() if entry.path in wanted]
        places = [self.repository]
        if self.repository.remote is not None and Path(self.repository.remote).is_dir():
            places.append(Repository.open(Path(self.repository.remote), create=False))
        copies = [copies_of(place, self.customer, wanted, known) for place in places]
        [record] = self._append(signer, decide, wanted)
        for place, found in zip(places, copies, strict=True):
            with place.exclusive():
                remove_leftover_packs(place)
                place.forget([*blobs, *found])
        return record

    def verify(self, people: People | None = None) -> list[Reason]:
        """Everything that is wrong with this ledger, each with its place; [] when nothing is.

        With ``people``, also whether each record's key was known, and in its dates.
        """
        from pipeline.ledger_verify import findings

        return findings(self.repository, self.customer, people)

    # --- how

    def _append(
        self, signer: Signer, decide: Callable[[State], Sequence[Draft]], erased: Collection[str]
    ) -> list[Record]:
        sent: _Batch | None = None
        lost: Unreachable | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, min(1.0, 0.01 * 2**attempt)))  # noqa: S311 (spreads writers, no secret)
            try:
                with self.repository.exclusive() if attempt >= ALONE_AFTER else contextlib.nullcontext():
                    tip, state, _ = self._settle()
                    # A push can arrive although its answer did not.
                    if sent is not None and sent.tip and tip and self.repository.is_ancestor(sent.tip[0], tip):
                        return sent.records
                    batch = self._prepare(signer, tip, state, decide(state), erased)
                    sent = batch
                    self.repository.move(batch.moves)
                    if batch.tip is not None:
                        self._note(batch.tip[0])
                        self._known, self._sound = batch.tip, batch.tip[0]
                    return batch.records
            except Raced:
                continue
            except Unreachable as error:
                if lost is not None or sent is None:
                    raise _unsure(self.ref, lost) if lost is not None else error from None
                lost = error
        raise _unsure(self.ref, lost) if lost is not None else _contended(self.ref)

    def _settle(self) -> tuple[str | None, State, list[RefMove]]:
        """The ledger's tip and state, after fetching and after completing the refs that lag, with those moves."""
        # Within the flock, so that no other process of ours fetches or moves refs between our looks at them.
        with self.repository.exclusive():
            self.repository.fetch()
            refs = self.repository.refs(f"refs/heads/{self.customer}/", f"refs/tags/{self.customer}/")
            tip = refs.get(self.ref)
            self._refuse_shorter(tip)
            if tip is None:
                return None, State(customer=self.customer), []
            state = self._state_of(tip)
            self._check_tip(tip, state)
            moves = self._lagging(refs, state)
            self.repository.move(moves)
            return tip, state, moves

    def _refuse_shorter(self, tip: str | None) -> None:
        """Refuses a ledger that does not continue the one that this machine saw last: it was cut short or rewritten.

        A record that somebody cut off with a push leaves no trace in the ledger itself. What was seen is kept beside the
        refs, where no fetch overwrites it.
        """
        mark = self.repository.path / "seen" / self.customer
        seen = mark.read_text(encoding="ascii").strip() if mark.is_file() else None
        if seen is not None and seen != tip and (tip is None or not self.repository.is_ancestor(seen, tip)):
            raise Refused(
                f"the ledger of {self.customer} was cut short or rewritten",
                reasons=[Reason(f"this machine has seen {seen}, and it is at {tip or 'nothing'} now", self.ref)],
                next_commands=[f"git push INSTALLATIONS {seen}:{self.ref}   # once you know why"],
            )
        if tip is not None and tip != seen:
            self._note(tip)

    def _note(self, tip: str) -> None:
        mark = self.repository.path / "seen" / self.customer
        mark.parent.mkdir(exist_ok=True)
        fresh = mark.with_name(f".{mark.name}.{os.getpid()}.{threading.get_ident()}")
        fresh.write_text(tip, encoding="ascii")
        fresh.replace(mark)

    def _check_tip(self, tip: str, state: State) -> None:
        """Refuses to write after a record that we cannot read, or that ``state.json`` is not the state of."""
        if self._sound == tip:
            return
        id = self.repository.commit_info(tip).trailers.get("Record-Id", "")
        data = self.repository.read(f"{tip}:records/{id}.json") if _RECORD_ID.fullmatch(id) else None
        if data is not None:
            self._parse(data, id)
        if data is None or hashlib.sha256(data).hexdigest() != state.head:
            raise damaged(f"{tip}:state.json", self.customer, "it is not the state after the last record")
        self._sound = tip

    def _lagging(self, refs: Mapping[str, str], state: State) -> list[RefMove]:
        moves = []
        for ref, recorded in state.refs.items():
            now = refs.get(ref)
            if now == recorded:
                continue
            if ref == self.line_ref and now is not None:
                if self.repository.is_ancestor(recorded, now):
                    continue
                if not self.repository.is_ancestor(now, recorded):
                    raise Refused(
                        f"the line of {self.customer} was rewritten: it no longer holds what the ledger recorded",
                        reasons=[Reason(f"recorded at {recorded}, now at {now}", ref)],
                        next_commands=[f"git push --force INSTALLATIONS {recorded}:{ref}"],
                    )
            moves.append(RefMove(ref=ref, old=now, new=recorded))
        return moves

    def _prepare(
        self, signer: Signer, tip: str | None, state: State, drafts: Sequence[Draft], erased: Collection[str]
    ) -> _Batch:
        """The objects of the records, written; no ref moves yet."""
        there = self._already(tip, drafts)
        records: list[Record] = []
        commits: list[NewCommit] = []
        moves: dict[str, RefMove] = {}
        # A fresh salt at every attempt: a text that lost a race may be being erased with its salt.
        texts = {
            draft.id: {name: new_text(self.customer, value) for name, value in draft.texts.items()} for draft in drafts
        }
        new_texts = [text for draft in drafts if draft.id not in there for text in texts[draft.id].values()]
        texts_moves = self._write_texts(signer, state, new_texts, erased, drafts[0].at) if drafts else ()
        for draft in drafts:
            if draft.id in there:
                records.append(there[draft.id])
                continue
            self._check_moves(draft)
            record = Record(
                **draft.model_dump(exclude={"texts", "configuration", "moves"}),
                number=state.number + 1,
                actor=signer.actor,
                customer=self.customer,
                previous=state.head,
                moves=(*draft.moves, *texts_moves),
                configuration={name: hashlib.sha256(data).hexdigest() for name, data in draft.configuration.items()},
                texts={name: text.hash for name, text in texts[draft.id].items()},
            )
            for move in record.moves:
                first = moves.get(move.ref, move)
                moves[move.ref] = RefMove(ref=move.ref, old=first.old, new=move.new)
            texts_moves = ()  # the first record names the move for all
            data = canonical(record.model_dump(mode="json"))
            state = apply(state, record, hashlib.sha256(data).hexdigest())
            changes: dict[str, bytes | tuple[str, str | bytes] | None] = {
                f"records/{record.id}.json": data,
                f"records/{record.id}.sig": base64.b64encode(signer.sign(RECORD_CONTEXT + data)) + b"\n",
                "state.json": canonical(state.model_dump(mode="json")),
            }
            for name, sha256 in record.configuration.items():
                changes[f"configuration/{sha256}"] = draft.configuration[name]
            before: str | int | None = len(commits) - 1 if commits else tip
            commits.append(
                NewCommit(
                    base=before,
                    changes=changes,
                    parents=[] if before is None else [before],
                    message=message(record, state),
                    author=signer.key,
                    at=record.at,
                )
            )
            records.append(record)
        if not commits:
            return _Batch(records)
        new_tip = self.repository.write_commits(commits)[-1]
        return _Batch(records, (RefMove(ref=self.ref, old=tip, new=new_tip), *moves.values()), (new_tip, state))

    def _already(self, tip: str | None, drafts: Sequence[Draft]) -> dict[str, Record]:
        ids = [draft.id for draft in drafts]
        if len(set(ids)) != len(ids) or not all(_RECORD_ID.fullmatch(id) for id in ids):
            raise ValueError(f"record ids are unique and fit a file name: {ids}")
        if tip is None:
            return {}
        names = {f"{tip}:records/{id}.json": id for id in ids}
        found = self.repository.read_many(names)
        there = {id: self._parse(data, id) for name, id in names.items() if (data := found[name]) is not None}
        for draft in drafts:
            record = there.get(draft.id)
            if record is not None and (record.kind, record.run, record.environment, record.release) != (
                draft.kind,
                draft.run,
                draft.environment,
                draft.release,
            ):
                raise Refused(
                    f"the record {draft.id} is in the ledger already, and says something else",
                    reasons=[
                        Reason(f"it is {summary(record)}, run {record.run}", f"{self.ref}:records/{draft.id}.json")
                    ],
                )
        return there

    def _check_moves(self, draft: Draft) -> None:
        ours = (f"refs/heads/{self.customer}/", f"refs/tags/{self.customer}/")
        for move in draft.moves:
            if not move.ref.startswith(ours) or move.ref in (self.ref, self.texts_ref):
                raise ValueError(f"a record of {self.customer} cannot move {move.ref}")
        for name in draft.configuration:
            if name.rsplit("/", 1)[-1] == "people.yaml":
                # Names and mails must stay erasable.
                raise ValueError("entries of people.yaml belong to the texts of a record, never to its configuration")

    def _write_texts(
        self, signer: Signer, state: State, new: Sequence[Text], erased: Collection[str], at: datetime
    ) -> tuple[RefMove, ...]:
        """The move of the texts branch to a commit with the new texts and without the erased ones."""
        old = state.refs.get(self.texts_ref)
        gone = [entry.path for entry in self._text_entries() if entry.path in erased] if erased else []
        if not new and not gone:
            return ()
        changes: dict[str, bytes | tuple[str, str | bytes] | None] = {text.hash: text.encode() for text in new}
        changes |= dict.fromkeys(gone)
        # No parent: the texts of yesterday must not be reachable.
        commit = NewCommit(base=old, changes=changes, parents=[], message="texts\n", author=signer.key, at=at)
        return (RefMove(ref=self.texts_ref, old=old, new=self.repository.write_commits([commit])[0]),)

    # --- reading, inside

    def _state_of(self, tip: str) -> State:
        known = self._known
        if known is None or known[0] != tip:
            data = self.repository.read(f"{tip}:state.json")
            # A state is a cache of the records: an older form is folded anew, and written with the next record.
            state = State(customer=self.customer) if data is None else parse_state(data, self.customer)
            known = self._known = tip, state or fold(self.customer, self._digested(tip))
        return known[1]

    def _parse(self, data: bytes, id: str) -> Record:
        return parse_record(data, f"{self.ref}:records/{id}.json", self.customer)

    def _digested(self, treeish: str) -> list[tuple[Record, str]]:
        """Every record with the SHA-256 of its bytes, oldest first."""
        if self.repository.ref(self.ref) is None:
            return []
        ids = {
            entry.oid: entry.path.removeprefix("records/").removesuffix(".json")
            for entry in self.repository.entries(treeish)
            if entry.path.startswith("records/") and entry.path.endswith(".json")
        }
        found = [
            (self._parse(data, ids[oid]), hashlib.sha256(data).hexdigest())
            for oid, data in self.repository.read_stream(ids)
            if data is not None
        ]
        return sorted(found, key=lambda pair: pair[0].number)

    def _text_entries(self) -> list[TreeEntry]:
        return self.repository.entries(self.texts_ref) if self.repository.ref(self.texts_ref) is not None else []

    def _texts(self, hashes: Iterable[str]) -> dict[str, Text]:
        names = {f"{self.texts_ref}:{hash}": hash for hash in hashes if HASH.fullmatch(hash)}
        texts = {}
        for name, data in self.repository.read_stream(names):
            text = decode(data) if data is not None else None
            if text is not None and text.hash == names[name]:
                texts[text.hash] = text
        return texts


def _contended(ref: str) -> Failed:
    return Failed(
        f"other runs were faster {ATTEMPTS} times",
        reasons=[Reason("every attempt to write found that somebody had written first", ref)],
        next_commands=["run the same command again"],
    )


def _unsure(ref: str, lost: Unreachable) -> PartlyDone:
    return PartlyDone(
        "the connection to the installations repository was lost while the records were written",
        reasons=lost.reasons,
        state=f"Whether they are in {ref} is not known. Running it again finds out, and writes nothing twice.",
        next_commands=["run the same command again"],
    )
