"""The deployment journal: whose turn it is, and what a look at the newest entry tells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.host import Host
from pipeline.transports.local import LocalTransport
from tests.test_host import entry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acme app"


@pytest.fixture
def host(folder: Path) -> Host:
    host = Host(LocalTransport(), "app1", str(folder))
    host.prepare()
    return host


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
    _write(path, path.read_bytes().replace(b'"schema_version":1', b'"schema_version":2'))


def _no_canonical_form(journal: Path) -> None:
    path = journal / "000003-deployment-started.json"
    _write(path, path.read_bytes().replace(b'"fence":1', b'"fence":99999999999999999999'))


def _not_a_file(journal: Path) -> None:
    (journal / "000004-x.json").mkdir()


def _a_link(journal: Path) -> None:
    path = journal / "000003-deployment-started.json"
    path.rename(journal.parent / "shared" / "kept")
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
    "schema 2 is needed": _newer,
    "is no journal entry ": _no_canonical_form,
    "000004-x.json is not a file": _not_a_file,
    "000003-deployment-started.json is not a file": _a_link,
    "is too large": lambda journal: _write(journal / "000004-x.json", b"x" * 70_000),
}


@pytest.mark.parametrize("said", list(DAMAGE))
def test_what_is_wrong_with_the_newest_entry_is_said_and_refused(said: str, host: Host, folder: Path) -> None:
    for number in range(3):
        host.append_journal(entry(run=f"run-{number}"))
    DAMAGE[said](folder / "journal")
    facts = host.inspect()
    assert facts.journal_damage is not None and said.strip() in facts.journal_damage
    assert facts.ours
    assert (facts.journal_customer, facts.journal_record, facts.journal_fence) == (None, None, None)
    with pytest.raises(Refused, match="journal is damaged"):
        host.prepare()


@pytest.mark.parametrize("name", ["x\u2028journal 000009-a.json " + "a" * 64, "x\x0bjournal_damage none"])
def test_a_file_s_name_cannot_pass_for_a_fact(name: str, host: Host, folder: Path) -> None:
    host.append_journal(entry())
    (folder / name).touch()
    facts = host.inspect()
    assert facts.foreign == (f"{name} was not put there by us",)
    assert (facts.journal_number, facts.journal_damage) == (1, None)
