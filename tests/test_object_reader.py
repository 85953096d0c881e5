"""The cat-file process that stays: always the newest answer, whoever moves refs, adds or removes packs, kills or forks."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pytest

from pipeline import git_objects, object_reader
from pipeline.errors import Failed
from pipeline.model import RefMove
from pipeline.repository import NewCommit, Repository

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
LINE = "refs/heads/acme/main"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "installations.git")


def outside_git(repository: Repository, *arguments: str) -> str:
    return subprocess.run(
        ["git", f"--git-dir={repository.path}", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(repository: Repository, data: bytes) -> str:
    return repository.write_commits([NewCommit(None, {"f": data}, [], "test\n", "ana", AT)])[0]


def pid_of(repository: Repository) -> int:
    process = repository._reader._process
    assert process is not None
    return process.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_process_answers_everything_and_sees_every_move_of_a_ref(repository: Repository) -> None:
    one, two = commit(repository, b"1"), commit(repository, b"2")
    other = Repository.open(repository.path)
    assert repository.read(f"{LINE}:f") is None
    pid = pid_of(repository)
    other.move([RefMove(ref=LINE, old=None, new=one)])
    assert repository.read(f"{LINE}:f") == b"1"
    outside_git(repository, "pack-refs", "--all")
    assert (repository.read(f"{LINE}:f"), repository.commit_of(LINE)) == (b"1", one)
    other.move([RefMove(ref=LINE, old=one, new=two)])
    assert (repository.read(f"{LINE}:f"), repository.tree_of(LINE)) == (b"2", other.tree_of(two))
    outside_git(repository, "pack-refs", "--all")
    assert repository.read(f"{LINE}:f") == b"2"
    other.move([RefMove(ref=LINE, old=two, new=None)])
    assert (repository.read(f"{LINE}:f"), repository.commit_of(LINE)) == (None, None)
    assert pid_of(repository) == pid


def test_objects_that_others_bring_pack_or_drop_are_seen_as_they_are(tmp_path: Path, repository: Repository) -> None:
    first = commit(repository, b"old")
    repository.move([RefMove(ref=LINE, old=None, new=first)])
    assert repository.read(f"{LINE}:f") == b"old"
    pid = pid_of(repository)
    elsewhere = Repository.open(tmp_path / "elsewhere.git")
    newer = [commit(elsewhere, b"%d" % number) for number in range(150)]
    assert repository.read(f"{newer[0]}:f") is None
    for number, oid in enumerate(newer):
        elsewhere.move([RefMove(ref=f"refs/heads/other/b{number}", old=None, new=oid)])
    outside_git(elsewhere, "repack", "-a", "-d", "-q")
    outside_git(repository, "fetch", "-q", str(elsewhere.path), "refs/heads/other/*:refs/heads/other/*")
    assert list((repository.path / "objects" / "pack").glob("*.pack"))
    assert [repository.read(f"{oid}:f") for oid in newer[:3]] == [b"0", b"1", b"2"]
    outside_git(repository, "gc", "-q", "--prune=now")
    assert repository.read(f"{LINE}:f") == b"old"
    assert repository.read("refs/heads/other/b7:f") == b"7"
    assert pid_of(repository) == pid


def test_a_process_that_was_killed_is_started_again(repository: Repository) -> None:
    oid = commit(repository, b"x")
    assert repository.read(f"{oid}:f") == b"x"
    first = pid_of(repository)
    os.kill(first, signal.SIGKILL)
    assert repository.read(f"{oid}:f") == b"x"
    assert pid_of(repository) != first


def test_an_answer_that_was_interrupted_is_not_taken_for_the_next_one(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = repository.write_blob(b"one"), repository.write_blob(b"two")
    assert repository.read(two) == b"two"

    def interrupted(stdout: IO[bytes], *_: Any, **__: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(object_reader, "_answers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            repository.read(one)
    assert repository.read(two) == b"two"


def test_many_threads_get_each_its_own_answer(repository: Repository) -> None:
    blobs = {repository.write_blob(b"%d" % number * 5000): b"%d" % number * 5000 for number in range(8)}
    wrong: list[str] = []

    def read(oid: str) -> None:
        for _ in range(40):
            try:
                if repository.read(oid) != blobs[oid]:
                    wrong.append(oid)
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=read, args=(oid,)) for oid in blobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_has_a_process_of_its_own_and_leaves_the_parents_alone(repository: Repository) -> None:
    oid = commit(repository, b"x")
    assert repository.read(f"{oid}:f") == b"x"
    pid = pid_of(repository)
    with repository._reader._lock:  # as another thread may hold it at that moment
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)
                fine = repository.read(f"{oid}:f") == b"x" and pid_of(repository) != pid
                repository._reader.close()
            except BaseException:
                fine = False
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert repository.read(f"{oid}:f") == b"x"
    assert pid_of(repository) == pid


def test_the_process_ends_with_its_repository(repository: Repository) -> None:
    mine = Repository.open(repository.path)
    mine.read("1" * 40)
    pid = pid_of(mine)
    assert alive(pid)
    del mine
    gc.collect()
    assert not alive(pid)


@pytest.mark.parametrize("how", ["pass", "os.kill(os.getpid(), 9)"])
def test_the_process_ends_with_python_however_that_ends(repository: Repository, how: str) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pipeline.repository import Repository\n"
        "mine = Repository.open(Path(sys.argv[1])); mine.read('1' * 40)\n"
        f"print(mine._reader._process.pid, flush=True)\n{how}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(repository.path)], capture_output=True, check=False)
    assert done.stderr == b""
    pid, deadline = int(done.stdout), time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_large_and_many_objects_go_through_a_process_of_their_own(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = repository.write_blob(b"x" * ((1 << 20) + 1))
    many = [repository.write_blob(b"%d" % number) for number in range(git_objects._FEW + 1)]
    started: list[str] = []

    def noted(*words: Any) -> Iterator[object_reader.Found | None]:
        started.append("own")
        return object_reader.stream(*words)

    monkeypatch.setattr(git_objects, "stream", noted)
    assert repository.read(many[0]) == b"0"
    assert started == []
    assert len(repository.read(large) or b"") == (1 << 20) + 1
    assert repository.read_many(many)[many[-1]] == b"%d" % git_objects._FEW
    assert started == ["own", "own"]


def test_erased_bytes_are_not_read_from_a_pack_that_is_gone(repository: Repository) -> None:
    secret = repository.write_blob(b"a person's name\n" * 20)
    tip = repository.write_commits([NewCommit(None, {"t": ("100644", secret)}, [], "t\n", "ana", AT)])[0]
    repository.move([RefMove(ref=LINE, old=None, new=tip)])
    outside_git(repository, "repack", "-a", "-d", "-q")
    assert repository.read(secret)
    new = commit(repository, b"other")
    repository.move([RefMove(ref=LINE, old=tip, new=new)])
    repository.forget([secret])
    assert repository.read(secret) is None


def test_an_object_that_is_damaged_is_an_error(repository: Repository) -> None:
    oid = repository.write_blob(b"some bytes that matter" * 10)
    place = repository.path / "objects" / oid[:2] / oid[2:]
    place.chmod(0o644)
    place.write_bytes(place.read_bytes()[:12])
    with pytest.raises(Failed, match="cat-file"):
        repository.read(oid)
