"""Refs read from their files are those that git reads, packed or not; what is unusual is left to git."""

from __future__ import annotations

import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.model import RefMove
from pipeline.ref_files import RefFiles
from pipeline.repository import NewCommit, Repository

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
CUSTOMERS = ("acme", "acme-2", "acme.b", "acme0", "b", "zz")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "installations.git")


def outside_git(repository: Repository, *arguments: str) -> str:
    return subprocess.run(
        ["git", f"--git-dir={repository.path}", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(repository: Repository, number: int) -> str:
    return repository.write_commits([NewCommit(None, {"f": b"%d" % number}, [], "m\n", "ana", AT)])[0]


def refs_of_git(repository: Repository, *prefixes: str) -> list[tuple[str, str]]:
    lines = outside_git(repository, "for-each-ref", "--format=%(refname) %(objectname)", *prefixes).splitlines()
    return [(line.split(" ")[0], line.split(" ")[1]) for line in lines]


def check_all(repository: Repository) -> None:
    everything = refs_of_git(repository)
    assert list(repository.refs().items()) == everything
    for name, oid in everything:
        assert repository.ref(name) == oid
    for customer in (*CUSTOMERS, "none", "a"):
        prefixes = [f"refs/heads/{customer}", f"refs/tags/{customer}"]
        assert list(repository.refs(*prefixes).items()) == refs_of_git(repository, *prefixes)
        assert repository.ref(f"refs/heads/{customer}/none") is None
        assert repository.ref(f"refs/heads/{customer}") is None
    assert repository.ref("refs/zzz/zzz") is repository.ref("refs/a/a") is None


@pytest.mark.parametrize("seed", range(6))
def test_loose_packed_and_removed_refs_are_those_of_git(
    repository: Repository, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    oids = [commit(repository, number) for number in range(3)]
    names = [f"refs/heads/{key}/{name}" for key in CUSTOMERS for name in ("main", "env/test", "ledger", "env/test-2")]
    for key in CUSTOMERS:
        tag = repository.write_tag(f"{key}/1.0+1", oids[0], "t\n", author="ana", at=AT)
        repository.move([RefMove(ref=f"refs/tags/{key}/1.0+1", old=None, new=tag)])
    for _ in range(4):
        for name in chance.sample(names, 9):
            old, new = repository.ref(name), chance.choice([None, *oids])
            if old != new:
                repository.move([RefMove(ref=name, old=old, new=new)])
        if chance.random() < 0.7:
            outside_git(repository, "pack-refs", *chance.choice((["--all"], ["--all", "--no-prune"], [])))
        check_all(repository)
    (repository.path / "refs/heads/acme.lock").write_text("")
    (repository.path / "refs/heads/empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "git", None)
        assert repository.refs()
    check_all(repository)


def test_a_packed_file_without_order_is_read_all_the_same(repository: Repository) -> None:
    oids = [commit(repository, number) for number in range(3)]
    outside_git(repository, "update-ref", "refs/heads/z/main", oids[0])
    outside_git(repository, "pack-refs", "--all")
    (repository.path / "packed-refs").write_text(
        f"{oids[1]} refs/heads/z/main\n{oids[2]} refs/heads/acme/main\n{oids[0]} refs/heads/m/main\n"
    )
    check_all(repository)
    assert RefFiles(repository.path).one("refs/heads/acme/main") == oids[2]


def test_a_ref_that_moves_to_the_packed_file_is_never_missed(repository: Repository) -> None:
    oid = commit(repository, 1)
    files, looks = RefFiles(repository.path), 0
    plain = files._loose

    def packed_meanwhile(name: str) -> str | None:
        nonlocal looks
        looks += 1
        found = plain(name)
        if looks == 1:
            # Just after this look at the file, which is not there yet: git writes the line, then removes the file.
            outside_git(repository, "update-ref", name, oid)
            outside_git(repository, "pack-refs", "--all")
        return found

    files._loose = packed_meanwhile  # type: ignore[method-assign]
    assert files.one("refs/heads/acme/main") == oid


def test_symbolic_and_broken_refs_are_asked_of_git(repository: Repository) -> None:
    oid = commit(repository, 1)
    outside_git(repository, "update-ref", "refs/heads/acme/main", oid)
    outside_git(repository, "symbolic-ref", "refs/heads/acme/same", "refs/heads/acme/main")
    assert repository.ref("refs/heads/acme/same") == oid
    assert repository.refs() == {"refs/heads/acme/main": oid, "refs/heads/acme/same": oid}
    (repository.path / "refs/heads/acme/main").write_text("")
    assert repository.ref("refs/heads/acme/main") is None
    (repository.path / "packed-refs").write_text("damaged\n")
    with pytest.raises(Exception, match="git rev-parse failed"):
        repository.ref("refs/heads/acme/none")
