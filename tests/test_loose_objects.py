"""Objects written without git: the same ids as git's, on the disk before they have a name, nothing half written."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import loose_objects
from pipeline.errors import Failed, NotKnown
from pipeline.repository import NewCommit, Repository

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
PARTS = ("a", "a.b", "a0", "a b", "b", "-x", "\\x0a", "é", "z" * 200)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "installations.git")


def some_commits(chance: random.Random, blob: str) -> list[NewCommit]:
    commits: list[NewCommit] = []
    for position in range(4):
        changes: dict[str, bytes | tuple[str, str | bytes] | None] = {}
        for _ in range(chance.randrange(8)):
            path = "/".join(chance.choices(PARTS, k=chance.choice((1, 2, 3))))
            changes[path] = chance.choice(
                [b"text", b"other", ("100755", b"run"), ("120000", b"a"), ("100644", blob), None, None]
            )
        before = position - 1 if position else None
        commits.append(NewCommit(before, changes, [] if before is None else [before], f"m{position}\n", "ana", AT))
    return commits


@pytest.mark.parametrize("seed", range(12))
def test_the_commits_are_those_that_git_would_write(tmp_path: Path, seed: int) -> None:
    ours, gits = (Repository.open(tmp_path / f"{name}.git") for name in ("ours", "gits"))
    blob = ours.write_blob(b"known")
    assert gits.git("hash-object", "-w", "--stdin", stdin=b"known").stdout.decode().strip() == blob
    first = [NewCommit(None, {"a/b/c": b"1", "a/d": b"2", "b": b"3"}, [], "first\n", "ana", AT)]
    tip = ours._written_loose(first)
    assert tip == gits._imported(first)
    assert tip is not None
    for commits in (some_commits(random.Random(seed * 100 + turn), blob) for turn in range(3)):
        commits[0] = NewCommit(tip[-1], commits[0].changes, [tip[-1]], "next\n", "ana", AT)
        tip = ours.write_commits(commits)
        assert tip == gits._imported(commits)
    subprocess.run(["git", f"--git-dir={ours.path}", "fsck", "--strict", "--no-dangling"], check=True)
    assert not list((ours.path / "objects").glob("pack/*"))


def test_what_git_would_refuse_is_left_to_git(repository: Repository) -> None:
    blob = repository.write_blob(b"x")
    tree = repository.write_tree(None, {"f": ("100644", blob)})
    refused = [
        NewCommit(None, {"f": ("100644", "1" * 40)}, [], "m\n", "ana", AT),
        NewCommit(None, {"f": ("100644", tree)}, [], "m\n", "ana", AT),
        NewCommit(None, {"a//b": b"1"}, [], "m\n", "ana", AT),
        NewCommit(None, {"f": b"1"}, [blob], "m\n", "ana", AT),
        NewCommit(None, {"f": b"1"}, ["1" * 40], "m\n", "ana", AT),
    ]
    for commit in refused:
        assert repository._written_loose([commit]) is None
        with pytest.raises(Failed):
            repository.write_commits([commit])
    with pytest.raises(NotKnown):
        repository.write_commits([NewCommit("1" * 40, {"f": b"1"}, [], "m\n", "ana", AT)])


def test_an_object_is_on_the_disk_before_it_has_its_name(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    plain = os.fsync

    def synchronised(handle: int) -> None:
        [beside] = (repository.path / "objects").glob("??/tmp_obj_*")
        # All of its bytes were with the system, none was kept back by Python.
        events.append(f"{len([*(repository.path / 'objects').glob('??/??????*')]) - 1} named")
        assert beside.stat().st_size == os.fstat(handle).st_size > 0
        plain(handle)

    monkeypatch.setattr(os, "fsync", synchronised)
    repository.write_commits([NewCommit(None, {"f": b"1"}, [], "m\n", "ana", AT)])
    assert events == ["0 named", "1 named", "2 named"]


def test_a_full_disk_is_an_error_and_leaves_nothing(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed) as caught:
        repository.write_blob(b"x")
    assert "No space left" in caught.value.render()
    assert list((repository.path / "objects").glob("??/*")) == []


def test_an_object_that_is_there_is_made_young_and_not_written_again(repository: Repository) -> None:
    oid = repository.write_blob(b"x")
    place = repository.path / "objects" / oid[:2] / oid[2:]
    os.utime(place, (1, 1))
    before = place.stat().st_ino
    assert repository.write_blob(b"x") == oid
    assert place.stat().st_ino == before
    assert place.stat().st_mtime > 1
    assert place.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("setting", ["core.sharedRepository=group", "include.path=elsewhere"])
def test_a_repository_with_settings_of_its_own_is_written_by_git(
    repository: Repository, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _, value = setting.partition("=")
    repository.git("config", key, value)
    monkeypatch.setattr(loose_objects, "_put", None)
    assert Repository.open(repository.path).write_blob(b"x")
    made = Repository.open(repository.path).write_commits([NewCommit(None, {"f": b"1"}, [], "m\n", "ana", AT)])
    assert repository.read(f"{made[0]}:f") == b"1"
