"""Many writers at once lose no record, and a writer killed anywhere leaves a ledger that the next one continues."""

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import loose_objects
from pipeline.ledger import Ledger
from pipeline.model import Draft, People, RefMove
from pipeline.repository import Repository
from pipeline.signing import Signer
from pipeline.state import State
from tests.ledgers import CUSTOMER, LEDGER, LINE, NOW, TEST, commit, line_started, open_ledger, people_with_keys, ticket
from tests.test_ledger import all_object_bytes

pytestmark = pytest.mark.slow

# Stands first on PATH: counts the git commands of its parent, and kills it at the n-th, before or after running it.
SHIM = """\
#!/bin/sh
count=$(( $(cat "$SHIM_COUNT" 2>/dev/null || echo 0) + 1 ))
echo $count > "$SHIM_COUNT"
if [ "$count" = "$SHIM_AT" ] && [ "$SHIM_WHEN" = before ]; then kill -9 $PPID; exit 1; fi
"$SHIM_GIT" "$@"
code=$?
if [ "$count" = "$SHIM_AT" ] && [ "$SHIM_WHEN" = after ]; then kill -9 $PPID; fi
exit $code
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[People, dict[str, Signer]]:
    return people_with_keys(tmp_path_factory.mktemp("keys"), "jane")


@pytest.fixture
def people(known: tuple[People, dict[str, Signer]]) -> People:
    return known[0]


@pytest.fixture
def jane(known: tuple[People, dict[str, Signer]]) -> Signer:
    return known[1]["jane"]


def kill_at_objects(count: Path, at: int, when: str) -> None:
    """In this process: every object that is written counts on as the shim's commands do, and so does its way to the disk."""
    for name in ("_put", "_synchronise"):
        plain = getattr(loose_objects, name)

        def counted(*words: Any, plain: Callable[..., None] = plain) -> None:
            number = int(count.read_text() if count.exists() else 0) + 1
            count.write_text(str(number))
            if number == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            plain(*words)
            if number == at and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(loose_objects, name, counted)


def in_child(work: Callable[[], None]) -> int:
    """Starts ``work`` in a process of its own, and returns its id."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """The exit code of the child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write(folder: Path, remote: Path | None, signer: Signer, name: str, count: int) -> None:
    """Appends records, each of which also moves the test environment one commit on from where it is."""
    ledger = open_ledger(folder, remote)
    for number in range(count):

        def decide(state: State, number: int = number) -> list[Draft]:
            old = state.refs.get(TEST)
            new = commit(ledger.repository, old, f"{name}-{number} after {state.number}")
            return [ticket(f"{name}-{number}", moves=(RefMove(ref=TEST, old=old, new=new),))]

        ledger.append(signer, decide)


def check_all_there(ledger: Ledger, runs: list[str], people: People) -> None:
    assert sorted(record.run for record in ledger.records()) == sorted(runs)
    assert ledger.verify(people) == []
    # Each record moved the environment from where the record before had put it: no move was lost either.
    assert len(list(ledger.repository.first_parents(TEST))) == len(runs)


def test_eight_processes_lose_and_double_nothing(tmp_path: Path, jane: Signer, people: People) -> None:
    folder = tmp_path / "installations.git"
    open_ledger(folder)
    writers = [in_child(lambda name=f"w{number}": write(folder, None, jane, name, 4)) for number in range(8)]  # type: ignore[misc]
    assert [ended(writer) for writer in writers] == [0] * 8
    check_all_there(open_ledger(folder), [f"run-w{number}-{i}" for number in range(8) for i in range(4)], people)


def test_two_clones_of_one_remote_lose_and_double_nothing(tmp_path: Path, jane: Signer, people: People) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    clones = [tmp_path / f"clone-{clone}.git" for clone in range(2)]
    for clone in clones:
        open_ledger(clone, remote.path)
    writers = [
        in_child(lambda clone=clone, name=f"{clone.stem}-{number}": write(clone, remote.path, jane, name, 3))  # type: ignore[misc]
        for clone in clones
        for number in range(2)
    ]
    assert [ended(writer) for writer in writers] == [0] * 4
    runs = [f"run-{clone.stem}-{number}-{i}" for clone in clones for number in range(2) for i in range(3)]
    check_all_there(Ledger(remote, CUSTOMER), runs, people)


@pytest.mark.parametrize(("shared", "when"), [(False, "before"), (False, "after"), (True, "after")])
def test_a_writer_killed_at_any_git_command_or_object_leaves_a_ledger_to_go_on_with(
    tmp_path: Path, people: People, jane: Signer, when: str, shared: bool
) -> None:
    remote = Repository.open(tmp_path / "remote.git") if shared else None
    folder = tmp_path / "installations.git"
    ledger = open_ledger(folder, remote.path if remote else None)
    ledger.append(jane, line_started(ledger.repository))
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "git"
    shim.write_text(SHIM)
    shim.chmod(0o755)
    git = shutil.which("git")
    assert git is not None
    deaths = 0
    outcomes: set[bool] = set()
    for position in range(1, 100):
        count = tmp_path / f"count-{position}"
        environment = {
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "SHIM_GIT": git,
            "SHIM_COUNT": str(count),
            "SHIM_AT": str(position),
            "SHIM_WHEN": when,
        }
        before = ledger.state().number

        def killed(environment: dict[str, str] = environment, name: str = f"k{position}") -> None:
            os.environ.update(environment)
            kill_at_objects(Path(environment["SHIM_COUNT"]), int(environment["SHIM_AT"]), when)
            write(folder, remote.path if remote else None, jane, name, 1)

        code = ended(in_child(killed))
        if int(count.read_text()) < position:
            break
        # The cat-file that stays is killed, so that its shim cannot kill any more.
        assert code == -signal.SIGKILL or (when == "after" and code == 0)
        deaths += 1
        # The next command of anybody: the run is adopted, so the same record is there, once.
        draft = ticket(f"k{position}-0")
        [record] = ledger.append(jane, lambda state, draft=draft: [draft])
        outcomes.add(bool(record.moves and record.moves[0].ref == TEST))
        assert record.number == before + 1
        assert ledger.verify(people) == []
        if remote is not None:
            assert Ledger(remote, CUSTOMER).verify(people) == []
    else:
        pytest.fail("the writer never came to its end")
    assert deaths >= 16
    # Some were killed before their record was in, and some after.
    assert outcomes == ({True, False} if when == "after" else outcomes)
    [record] = ledger.append(jane, lambda state: [ticket("last", texts={"title": "the last name"})])
    if when == "after":
        assert b"title of k" in all_object_bytes(ledger.repository)
    ledger.erase(jane, [record.texts["title"]], run="end", at=NOW, product="shop")
    assert b"the last name" not in all_object_bytes(ledger.repository)
    assert ledger.verify(people) == []


@pytest.mark.parametrize("name", [LEDGER, LINE, TEST])
def test_a_lock_file_that_a_killed_process_left_does_not_stop_the_next(
    tmp_path: Path, jane: Signer, people: People, name: str
) -> None:
    ledger = open_ledger(tmp_path / "installations.git")
    ledger.append(jane, line_started(ledger.repository))
    lock = ledger.repository.path / f"{name}.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    ledger.append(jane, line_started(ledger.repository, 2))
    assert not lock.exists()
    assert ledger.verify(people) == []


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_transaction_cut_anywhere_is_completed(tmp_path: Path, jane: Signer, people: People, kept: int) -> None:
    """Killed between two renames of one transaction: the first ``kept`` refs have moved, the others have not."""
    ledger = open_ledger(tmp_path / "installations.git")
    ledger.append(jane, line_started(ledger.repository))
    before = ledger.repository.refs()
    ledger.append(jane, lambda state: [ticket(1), *line_started(ledger.repository, 2)(state)])
    after = ledger.repository.refs()
    moved = sorted(after, key=lambda ref: ref != LEDGER)
    ledger.repository.move([RefMove(ref=ref, old=after[ref], new=before.get(ref)) for ref in moved[kept:]])
    [record] = ledger.append(jane, lambda state: [ticket(2)])
    assert {ref for ref in (LINE, TEST) if ledger.repository.ref(ref) != after[ref]} == set()
    assert record.number == 4
    assert ledger.verify(people) == []
