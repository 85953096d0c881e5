"""Checks a whole ledger against itself, the people, the texts and the refs; changes nothing, and reports everything.

What a ledger cannot show alone is that its newest records were cut off together with the refs that they moved: the
journal on each host is the second source for that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Collection, Mapping

from pipeline.content import canonical
from pipeline.errors import PipelineError, Reason
from pipeline.git_objects import with_trailers
from pipeline.ledger import Ledger
from pipeline.model import People, Record
from pipeline.record_format import parse_record
from pipeline.repository import Repository
from pipeline.signing import RECORD_CONTEXT, doubts, verify
from pipeline.standing import parsed, standing, trailers
from pipeline.state import STATE_SCHEMA, State, apply
from pipeline.texts import HASH, decode


def findings(repository: Repository, customer: str, people: People | None) -> list[Reason]:
    """Every finding, each with its place (a file of a branch, a commit, or a ref); [] when all is well."""
    return _Check(repository, customer, people).run()


class _Check:
    def __init__(self, repository: Repository, customer: str, people: People | None) -> None:
        self.repository = repository
        self.ledger = Ledger(repository, customer)
        self.customer = customer
        self.people = people
        self.found: list[Reason] = []

    def run(self) -> list[Reason]:
        refs = self.repository.refs(f"refs/heads/{self.customer}/", f"refs/tags/{self.customer}/")
        tip = refs.get(self.ledger.ref)
        state: State | None = State(customer=self.customer)
        records: list[tuple[Record, bytes]] = []
        if tip is not None:
            files = self._files(tip, self.ledger.ref)
            records = self._records(files)
            self._chain(records)
            self._commits(tip, records)
            self._configuration(files, records)
            state = self._state(files.get("state.json"), records)
            self._standing(tip, state)
        self._texts(refs, records)
        if state is not None:
            self._refs(refs, state)
        return self.found

    def _report(self, text: str, place: str) -> None:
        self.found.append(Reason(text, place))

    def _place(self, path: str) -> str:
        return f"{self.ledger.ref}:{path}"

    def _files(self, tip: str, ref: str) -> dict[str, bytes]:
        entries = self.repository.entries(tip)
        contents = self.repository.read_many(entry.oid for entry in entries)
        files = {}
        for entry in entries:
            data = contents[entry.oid]
            if data is None or entry.mode != "100644":
                self._report(
                    "is not a plain file" if data is not None else "its bytes are missing", f"{ref}:{entry.path}"
                )
            else:
                files[entry.path] = data
        return files

    def _records(self, files: Mapping[str, bytes]) -> list[tuple[Record, bytes]]:
        """The readable records in the order of their numbers; each one's form and signature checked."""
        records = []
        for path, data in files.items():
            folder, _, name = path.rpartition("/")
            id, _, ending = name.rpartition(".")
            if folder == "records" and ending == "json":
                place = self._place(path)
                try:
                    record = parse_record(data, place, self.customer)
                except PipelineError as error:
                    self.found += [Reason(f"{error.what}: {reason.text}", place) for reason in error.reasons]
                    continue
                records.append((record, data))
                self._record(record, data, id, place)
                self._signature(record, data, files.get(f"records/{id}.sig"), self._place(f"records/{id}.sig"))
            elif folder == "records" and ending == "sig":
                if f"records/{id}.json" not in files:
                    self._report("a signature without its record", self._place(path))
            elif folder != "configuration" and path != "state.json":
                self._report("does not belong into a ledger", self._place(path))
        return sorted(records, key=lambda pair: pair[0].number)

    def _record(self, record: Record, data: bytes, id: str, place: str) -> None:
        if canonical(json.loads(data)) != data:
            self._report("its bytes are not the canonical form (RFC 8785)", place)
        if record.id != id:
            self._report(f"holds the record {record.id}", place)
        if record.customer != self.customer:
            self._report(f"is a record of {record.customer}", place)

    def _signature(self, record: Record, data: bytes, signature: bytes | None, place: str) -> None:
        if signature is None:
            self._report("there is no signature", place)
            return
        try:
            raw = base64.b64decode(signature.removesuffix(b"\n"), validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if base64.b64encode(raw) + b"\n" != signature:
            self._report("its bytes are not base64 with a final newline", place)
        if not verify(record.actor.public_key, RECORD_CONTEXT + data, raw):
            self._report(f"is not the signature of this record by the key of {record.actor.key}", place)
        elif self.people is not None:
            for doubt in doubts(self.people, record.actor, record.at.date()):
                self._report(doubt, place)

    def _chain(self, records: list[tuple[Record, bytes]]) -> None:
        before: str | None = None
        for number, (record, data) in enumerate(records, start=1):
            place = self._place(f"records/{record.id}.json")
            if record.number != number:
                self._report(f"has the number {record.number} where {number} is due", place)
            if record.previous != before:
                self._report(f"names {record.previous} as the record before, which is {before}", place)
            before = hashlib.sha256(data).hexdigest()

    def _commits(self, tip: str, records: list[tuple[Record, bytes]]) -> None:
        """One commit a record, in the same order, each only adding to the one before."""
        commits = list(self.repository.first_parents(tip))[::-1]
        named = [commit.trailers.get("Record-Id") for commit in commits]
        if named != [record.id for record, _ in records]:
            self._report("the commits are not those of the records, one each and in their order", self.ledger.ref)
        for commit, (record, _) in zip(commits, records, strict=False):
            if len(commit.parents) > 1:
                self._report("a commit of a ledger has one parent", commit.oid)
            if commit.author != f"{record.actor.key} <{record.actor.key}@people.invalid>":
                self._report(f"its author is {commit.author}, its record is by {record.actor.key}", commit.oid)

    def _configuration(self, files: Mapping[str, bytes], records: list[tuple[Record, bytes]]) -> None:
        named = {sha256 for record, _ in records for sha256 in record.configuration.values()}
        there = {path.removeprefix("configuration/"): data for path, data in files.items() if "configuration/" in path}
        self._hashed(named, there, lambda data: hashlib.sha256(data).hexdigest(), self._place("configuration/"))

    def _hashed(
        self, named: Collection[str], there: Mapping[str, bytes], hash: Callable[[bytes], str | None], place: str
    ) -> None:
        for name, data in there.items():
            if hash(data) != name:
                self._report("its bytes do not have the hash that is its name", place + name)
            if name not in named:
                self._report("no record names it", place + name)
        for name in sorted(set(named) - set(there)):
            self._report("a record names it, and it is missing", place + name)

    def _state(self, data: bytes | None, records: list[tuple[Record, bytes]]) -> State | None:
        """The state that the records add up to, compared with state.json; None when they do not add up."""
        state = State(customer=self.customer)
        for record, content in records:
            try:
                state = apply(state, record, hashlib.sha256(content).hexdigest())
            except (AssertionError, KeyError, IndexError, TypeError, ValueError) as error:
                self._report(
                    f"does not fit what came before: {type(error).__name__} {error}",
                    self._place(f"records/{record.id}.json"),
                )
                return None
        if data is None:
            self._report("is missing", self._place("state.json"))
        elif self._is_current(data) and data != canonical(state.model_dump(mode="json")):
            self._report("is not what the records add up to", self._place("state.json"))
        return state

    def _standing(self, tip: str, state: State | None) -> None:
        """The newest commit's trailers, which ``status`` believes; an older pipeline's commit has none."""
        told = parsed(self.repository.commit_info(tip).message)
        if told is not None and state is not None and told != parsed(with_trailers("", trailers(standing(state)))):
            self._report("its trailers do not say where the records lead", tip)

    @staticmethod
    def _is_current(data: bytes) -> bool:
        """Whether state.json is of our own schema; an older one is folded anew before it is used, so it decides nothing."""
        try:
            return bool(json.loads(data)["schema_version"] >= STATE_SCHEMA)
        except (ValueError, KeyError, TypeError):
            return True

    def _texts(self, refs: Mapping[str, str], records: list[tuple[Record, bytes]]) -> None:
        named = {hash for record, _ in records for hash in record.texts.values()}
        erased = {hash for record, _ in records if record.kind == "erased" for hash in record.details.get("hashes", ())}
        tip = refs.get(self.ledger.texts_ref)
        there = self._files(tip, self.ledger.texts_ref) if tip is not None else {}
        if tip is not None and self.repository.commit_info(tip).parents:
            self._report("has a history, so that erased texts could be read", self.ledger.texts_ref)
        for name in sorted(erased & set(there)):
            self._report("was erased, and is there", f"{self.ledger.texts_ref}:{name}")

        def hash_of(data: bytes) -> str | None:
            text = decode(data)
            return text.hash if text is not None and text.customer == self.customer else None

        for name in [name for name in there if not HASH.fullmatch(name)]:
            self._report("does not belong among the texts", f"{self.ledger.texts_ref}:{name}")
        self._hashed(
            named - erased, {k: v for k, v in there.items() if k not in erased}, hash_of, f"{self.ledger.texts_ref}:"
        )

    def _refs(self, refs: Mapping[str, str], state: State) -> None:
        for ref, recorded in state.refs.items():
            now = refs.get(ref)
            if now == recorded or (
                ref == self.ledger.line_ref and now is not None and self.repository.is_ancestor(recorded, now)
            ):
                continue
            self._report(f"is at {now or 'nothing'}, and was recorded at {recorded}", ref)
        ours = (f"refs/heads/{self.customer}/env/", f"refs/tags/{self.customer}/", self.ledger.texts_ref)
        for ref in refs:
            if ref.startswith(ours) and ref not in state.refs:
                self._report("no record made it", ref)
