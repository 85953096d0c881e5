"""The deployment journal: a chain of immutable files, whose turn it is, and what a look at the newest entry tells."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Failed, PipelineError, Refused
from pipeline.host import Host
from pipeline.host_journal import parse_entry
from pipeline.transports.local import LocalTransport
from tests.jobs import command, do, entry, snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acme app"


@pytest.fixture
def host(folder: Path) -> Host:
    return Host(LocalTransport(), "app1", str(folder))


# --- the chain ---------------------------------------------------------------------------------------------------------


def test_the_journal_is_a_chain_of_immutable_files(host: Host, folder: Path) -> None:
    first = host.append_journal(entry(release="2.4.0+1", content="a" * 64))
    second = host.append_journal(entry(what="deployment-finished", outcome="ok", record="r", record_sha256="b" * 64))
    names = ["000001-deployment-started.json", "000002-deployment-finished.json"]
    assert sorted(path.name for path in (folder / "journal").iterdir()) == names
    data = (folder / "journal" / names[0]).read_bytes()
    assert first.previous is None and first.data() == data
    assert second.previous == hashlib.sha256(data).hexdigest()
    assert host.journal() == [first, second]
    facts = host.inspect()
    assert facts.ours
    assert (facts.journal_number, facts.journal_sha256) == (2, hashlib.sha256(second.data()).hexdigest())


def test_an_entry_is_not_doubled_when_it_is_done_again(host: Host) -> None:
    first = host.append_journal(entry())
    assert host.append_journal(entry()) == first
    host.append_journal(entry(outcome="ok"))
    host.append_journal(entry(run="run-2"))
    assert host.append_journal(entry()) == first
    assert [known.number for known in host.journal()] == [1, 2, 3]


def test_a_run_that_was_overtaken_may_not_write(host: Host) -> None:
    host.append_journal(entry(fence=7))
    with pytest.raises(Refused, match="fence 7"):
        host.append_journal(entry(run="run-0", fence=6))
    assert len(host.journal()) == 1


@pytest.mark.parametrize("harm", ["change", "remove", "reorder", "insert", "reformat"])
def test_any_change_of_the_journal_is_found(harm: str, host: Host, folder: Path) -> None:
    for number in range(3):
        host.append_journal(entry(run=f"run-{number}"))
    names = sorted((folder / "journal").iterdir())
    if harm == "change":
        names[1].chmod(0o644)
        names[1].write_bytes(names[1].read_bytes().replace(b"acme", b"acne"))
    elif harm == "remove":
        names[0].unlink()
    elif harm == "reorder":
        data = [path.read_bytes() for path in names]
        for path, other in zip(names, (1, 0, 2), strict=True):
            path.unlink()
            path.write_bytes(data[other])
    elif harm == "insert":
        (folder / "journal" / "000004-deployment-started.json").write_bytes(entry().data())
    else:
        data_of_last = names[2].read_bytes()
        names[2].unlink()
        names[2].write_bytes(data_of_last + b"\n")
    with pytest.raises(Failed, match="not as it was written"):
        host.journal()


def test_a_newer_journal_is_not_written_to(host: Host, folder: Path) -> None:
    first = host.append_journal(entry())
    newer = first.data().replace(b'"schema_version":2', b'"schema_version":3,"unheard_of":1')
    (folder / "journal" / "000002-deployment-started.json").write_bytes(newer)
    before = snapshot(folder)
    with pytest.raises(Refused, match="schema 3 is needed"):
        host.append_journal(entry(run="run-2"))
    assert snapshot(folder) == before


def test_writers_at_once_lose_and_double_nothing(folder: Path) -> None:
    errors: list[PipelineError] = []

    def write(number: int) -> None:
        host = Host(LocalTransport(), "app1", str(folder))
        for turn in range(3):
            while True:
                try:
                    host.append_journal(entry(run=f"run-{number}-{turn}"))
                    break
                except Failed as error:
                    if "keeps writing" not in str(error):
                        errors.append(error)
                        return

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Host(LocalTransport(), "app1", str(folder)).journal()
    assert not errors
    assert len({known.run for known in entries}) == len(entries) == 12


SCHEMA_1 = (
    b'{"at":"2026-11-22T20:00:00Z","attested_by":null,"content":null,"customer":"acme","environment":"test","fence":1,'
    b'"number":1,"outcome":null,"previous":null,"record":"r-1","record_sha256":null,"release":"2.4.0+1","run":"run-1",'
    b'"schema_version":1,"what":"deployment-started"}'
)


def test_an_entry_of_schema_1_stays_readable_and_its_bytes_stay_as_they_were(host: Host, folder: Path) -> None:
    (folder / "journal").mkdir(parents=True)
    (folder / "journal/000001-deployment-started.json").write_bytes(SCHEMA_1)
    [known] = host.journal()
    assert (known.data(), known.step, known.inputs) == (SCHEMA_1, None, None)
    host.append_journal(entry("run-2", 2))
    do(host, command("true"), run="run-3", fence=3)
    assert [one.schema_version for one in host.journal()] == [1, 2, 2, 2, 2]
    assert host.inspect().journal_damage is None


def test_the_parts_of_an_entry_that_a_host_fills_in_make_its_canonical_bytes() -> None:
    whole = entry(environment='größe "q"', outcome="failed", step=7, inputs="a" * 64, content="b" * 64)
    head, tail = whole.common()
    made = (
        f'{{"at":"2026-11-22T20:00:00Z",{head},"inputs":"{"a" * 64}","number":0,"outcome":"failed","previous":null,'
        f'{tail},"step":7,"what":"deployment-started"}}'
    )
    assert made.encode() == whole.data()
    assert parse_entry(made.encode(), "here") == whole
    assert json.loads(made)["environment"] == whole.environment


# --- the fence ---------------------------------------------------------------------------------------------------------


def test_a_resumed_attempt_raises_the_fence_and_shuts_the_one_before_out(host: Host) -> None:
    first = entry(fence=4, record="run-1-deployment-started-4")
    host.append_journal(first)
    host.append_journal(entry(fence=9, record="run-1-deployment-started-9"))
    assert host.inspect().journal_fence == 9
    # Also for what it had written itself: it may not believe that it goes on.
    with pytest.raises(Refused, match="fence 9 is above this run's 4"):
        host.append_journal(first)
    with pytest.raises(Refused, match="fence 9"):
        host.append_journal(entry(fence=4, record="run-1-deployment-started-4", what="deployment-finished"))
    assert [known.fence for known in host.journal()] == [4, 9]


def test_each_announced_attempt_has_an_entry_of_its_own_and_only_one(host: Host) -> None:
    one = host.append_journal(entry(record="a", record_sha256="a" * 64))
    two = host.append_journal(entry(record="b", record_sha256="b" * 64))
    three = host.append_journal(entry(fence=2, record="b", record_sha256="b" * 64))
    assert (one.number, two.number, three.number) == (1, 2, 3)
    assert host.append_journal(entry(fence=2, record="b", record_sha256="b" * 64)) == three
    assert len(host.journal()) == 3


# --- the newest entry, by inspect -------------------------------------------------------------------------------------------


def test_inspect_tells_of_the_newest_entry_in_one_exec(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.append_journal(entry(customer="other"))
    written = host.append_journal(entry(fence=7, record="r-7", record_sha256="b" * 64, release="größe\u2028now 1"))
    scripts = 0
    run = LocalTransport.run

    def counting(*arguments: object, **named: object) -> object:
        nonlocal scripts
        scripts += 1
        return run(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTransport, "run", counting)
    facts = host.inspect()
    assert scripts == 1
    assert facts.journal_damage is None
    assert (facts.journal_customer, facts.journal_environment, facts.journal_fence) == ("acme", "test", 7)
    assert (facts.journal_record, facts.journal_record_sha256) == ("r-7", "b" * 64)
    assert (facts.journal_number, facts.journal_sha256) == (2, hashlib.sha256(written.data()).hexdigest())
    assert abs(facts.clock_offset_seconds) < 60


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _changed_before(journal: Path) -> None:
    path = journal / "000002-deployment-started.json"
    _write(path, path.read_bytes().replace(b"acme", b"acne"))


def _reformatted(journal: Path) -> None:
    path = journal / "000003-deployment-started.json"
    _write(path, path.read_bytes() + b"\n")


def _newer(journal: Path) -> None:
    path = journal / "000003-deployment-started.json"
    _write(path, path.read_bytes().replace(b'"schema_version":2', b'"schema_version":99'))


def _no_canonical_form(journal: Path) -> None:
    path = journal / "000003-deployment-started.json"
    _write(path, path.read_bytes().replace(b'"fence":1', b'"fence":99999999999999999999'))


def _not_a_file(journal: Path) -> None:
    (journal / "000004-x.json").mkdir()


def _a_link(journal: Path) -> None:
    path = journal / "000003-deployment-started.json"
    path.rename(journal.parent / "kept")
    path.symlink_to("../shared/kept")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "is no journal entry": lambda journal: _write(journal / "000003-deployment-started.json", b"{}"),
    "000004-x.json is no journal entry": lambda journal: _write(journal / "000004-x.json", b"\xff"),
    "holds entry 3, deployment-started": lambda journal: (journal / "000003-deployment-started.json").rename(
        journal / "000003-deployment-finished.json"
    ),
    "entry 2 was expected where journal/000003": lambda journal: (journal / "000002-deployment-started.json").unlink(),
    "entry 4 was expected where journal/000003-x.json": lambda journal: _write(journal / "000003-x.json", b"{}"),
    "was not written after the entry that now stands before it": _changed_before,
    "000003-deployment-started.json is no journal entry": _reformatted,
    "schema 99 is needed": _newer,
    "is no journal entry ": _no_canonical_form,
    "000004-x.json is not a file": _not_a_file,
    "000003-deployment-started.json is not a file": _a_link,
    "is too large": lambda journal: _write(journal / "000004-x.json", b"x" * 70_000),
}


@pytest.mark.parametrize("said", list(DAMAGE))
def test_what_is_wrong_with_the_newest_entry_is_said(said: str, host: Host, folder: Path) -> None:
    for number in range(3):
        host.append_journal(entry(run=f"run-{number}"))
    DAMAGE[said](folder / "journal")
    facts = host.inspect()
    assert facts.journal_damage is not None and said.strip() in facts.journal_damage
    assert facts.ours
    assert (facts.journal_customer, facts.journal_record, facts.journal_fence) == (None, None, None)


@pytest.mark.parametrize("name", ["x\u2028journal 000009-a.json " + "a" * 64, "x\x0bjournal_damage none"])
def test_a_file_s_name_cannot_pass_for_a_fact(name: str, host: Host, folder: Path) -> None:
    host.append_journal(entry())
    (folder / name).touch()
    facts = host.inspect()
    assert facts.foreign == (f"{name} was not put there by us",)
    assert (facts.journal_number, facts.journal_damage) == (1, None)
