from __future__ import annotations

import ctypes
import multiprocessing
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError, Failed, NotKnown, Refused, Unreachable
from pipeline.model import RefMove
from pipeline.repository import (
    Merge,
    NewCommit,
    Raced,
    Repository,
    object_name,
    parse_trailers,
    ref_name,
    with_trailers,
    without_credentials,
)

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
LINE = "refs/heads/acme/main"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "installations.git")


def commit(repository: Repository, files: dict[str, bytes | tuple[str, str | bytes] | None], *parents: str) -> str:
    base = parents[0] if parents else None
    return repository.write_commits([NewCommit(base, files, parents, "test\n", "ana", AT)])[0]


def outside_git(repository: Repository, *arguments: str) -> str:
    return subprocess.run(
        ["git", f"--git-dir={repository.path}", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


# --- opening -------------------------------------------------------------------------------------------------------------


def test_open_makes_a_bare_repository_without_hooks_and_opens_it_again(tmp_path: Path) -> None:
    made = Repository.open(tmp_path / "a" / "b.git")
    assert outside_git(made, "rev-parse", "--is-bare-repository") == "true"
    assert not (made.path / "hooks").exists()
    assert Repository.open(made.path, create=False).refs() == {}


def test_open_refuses_what_is_not_a_bare_repository(tmp_path: Path) -> None:
    with pytest.raises(NotKnown):
        Repository.open(tmp_path / "none.git", create=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError):
        Repository.open(tmp_path)
    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", tmp_path / "b.git"], check=True)
    with pytest.raises(ConfigurationError, match="SHA-1"):
        Repository.open(tmp_path / "b.git")


@pytest.mark.parametrize("remote", ["--upload-pack=touch /tmp/x", "ext::sh -c true", "a\nb", ""])
def test_an_address_that_git_would_take_for_something_else_is_refused(tmp_path: Path, remote: str) -> None:
    with pytest.raises(ConfigurationError):
        Repository.open(tmp_path / "a.git", remote=remote)


@pytest.mark.parametrize(
    "name",
    [
        "refs/heads/a b/main",
        "refs/heads/a;b/main",
        "refs/heads/$(id)/main",
        "refs/heads/../../x",
        "refs/heads/a..b",
        "refs/heads/-x",
        "refs/heads/.x",
        "refs/heads/x.lock",
        "refs/heads/x.",
        "refs/heads/x@{1}",
        "refs/heads/x~1",
        "refs/heads/x^",
        "refs/heads/x:y",
        "refs/heads/x\n",
        "refs/heads//x",
        "refs/heads/x/",
        "refs/heads/é",
        "refs/heads/x*",
        "refs/heads/" + "a" * 240,
        "refs/heads",
        "heads/acme/main",
        "--all",
        "HEAD",
        "",
    ],
)
def test_a_name_that_a_ref_cannot_have_is_refused_everywhere(repository: Repository, name: str) -> None:
    oid = commit(repository, {"a": b"1"})
    with pytest.raises(Refused):
        ref_name(name)
    with pytest.raises(Refused):
        object_name(name)
    calls: list[Callable[[], object]] = [
        lambda: repository.ref(name),
        lambda: repository.read(f"{name.replace(':', ' ')}:a"),
        lambda: repository.tree_of(name),
        lambda: repository.entries(name),
        lambda: repository.is_ancestor(name, oid),
        lambda: repository.merge_trees(oid, name, oid),
        lambda: repository.move([RefMove(ref=name, old=None, new=oid)]),
    ]
    for call in calls:
        with pytest.raises(Refused):
            call()
    assert repository.refs() == {}


def test_the_names_that_we_use_are_accepted() -> None:
    for name in ("refs/tags/acme/2.4.0+1", "refs/tags/product/shop/3.0.0b1", "refs/leases/acme/production", LINE):
        assert ref_name(name) == name


# --- objects -------------------------------------------------------------------------------------------------------------


def test_many_commits_in_one_go_leave_no_ref(repository: Repository) -> None:
    first, second, third = repository.write_commits(
        [
            NewCommit(
                None,
                {"a/x": b"1", r'quo"te\x5cé\x0a\xff': ("100755", b"2"), "l": ("120000", b"a/x")},
                [],
                "one\n",
                "ana",
                AT,
            ),
            NewCommit(0, {"a/x": None, "b": b"3"}, [0], "two\n\nRecord-Id: 7\n", "ana", AT),
            NewCommit(None, {"other": b""}, [0, 1], "three\n", "ana", AT),
        ]
    )
    assert [(e.mode, e.path) for e in repository.entries(first)] == [
        ("100644", "a/x"),
        ("120000", "l"),
        ("100755", r'quo"te\x5cé\x0a\xff'),
    ]
    assert [e.path for e in repository.entries(second)] == ["b", "l", r'quo"te\x5cé\x0a\xff']
    info = repository.commit_info(second)
    assert (info.parents, info.trailers, info.at, info.author) == (
        (first,),
        {"Record-Id": "7"},
        AT,
        "ana <ana@people.invalid>",
    )
    assert repository.commit_info(third).parents == (first, second)
    assert [e.path for e in repository.entries(third)] == ["other"]
    assert repository.refs() == {}
    assert outside_git(repository, "for-each-ref") == ""
    assert "error" not in outside_git(repository, "fsck", "--strict", "--no-dangling")


def test_the_same_commit_written_in_two_ways_is_the_same_object(repository: Repository) -> None:
    blob = repository.write_blob(b"1")
    tree = repository.write_tree(None, {"d/a": ("100644", blob)})
    single = repository.write_commit(tree, [], "m\n", author="ana", at=AT)
    assert single == repository.write_commits([NewCommit(None, {"d/a": b"1"}, [], "m\n", "ana", AT)])[0]
    smaller = repository.write_tree(single, {"d/a": None, "d/a/b": ("100755", blob)})
    assert [(e.mode, e.path) for e in repository.entries(smaller)] == [("100755", "d/a/b")]
    assert repository.diff(tree, smaller) == [("D", "d/a"), ("A", "d/a/b")]


def test_a_tag_object_names_its_commit(repository: Repository) -> None:
    oid = commit(repository, {"a": b"1"})
    tag = repository.write_tag("acme/2.4.0+1", oid, "m\n\nRelease: 2.4.0+1\n", author="ana", at=AT)
    repository.move([RefMove(ref="refs/tags/acme/2.4.0+1", old=None, new=tag)])
    assert repository.ref("refs/tags/acme/2.4.0+1") == tag
    assert repository.commit_of("refs/tags/acme/2.4.0+1") == oid == repository.commit_of(tag)
    assert outside_git(repository, "tag", "-l", "--format=%(contents:trailers)", "acme/*") == "Release: 2.4.0+1"


@pytest.mark.parametrize("author", ["Ana", "a b", "a>b", "ana\n", ""])
def test_an_author_that_is_no_key_is_refused(repository: Repository, author: str) -> None:
    with pytest.raises(Refused):
        repository.write_commits([NewCommit(None, {"a": b"1"}, [], "m\n", author, AT)])


def test_reading_many_at_once_even_what_is_large_or_absent(repository: Repository) -> None:
    large = os.urandom(300_000)
    oid = commit(repository, {"large": large, "sp ace é": b"x\n", **{f"f{n}": b"%d" % n for n in range(500)}})
    names = [f"{oid}:f{n}" for n in range(500)] + [
        f"{oid}:large",
        f"{oid}:sp ace é",
        f"{oid}:none",
        "1" * 40,
        f"{LINE}:a",
    ]
    found = repository.read_many(names)
    assert [found[name] for name in names[:500]] == [b"%d" % n for n in range(500)]
    assert [found[name] for name in names[500:]] == [large, b"x\n", None, None, None]
    assert next(repository.read_stream(names))[1] == b"0"  # and the process ends though nobody reads on
    with pytest.raises(Refused):
        repository.read(f"{oid}:a\nb")


def test_first_parents_and_ancestry(repository: Repository) -> None:
    batch = [NewCommit(None, {"a": b"0"}, [], "0\n", "ana", AT)]
    batch += [NewCommit(n, {"a": b"%d" % n}, [n], f"{n}\n", "ana", AT) for n in range(70)]
    chain = repository.write_commits(batch)
    root = chain[0]
    side = commit(repository, {"b": b""}, root)
    merged = repository.write_commit(repository.tree_of(side), [chain[-1], side], "m\n", author="ana", at=AT)
    assert [info.oid for info in repository.first_parents(merged)] == [merged, *reversed(chain)]
    assert repository.is_ancestor(side, merged)
    assert not repository.is_ancestor(merged, side)
    assert not repository.is_ancestor("1" * 40, merged)


@pytest.mark.parametrize(
    ("message", "trailers"),
    [
        ("a\n\nKey: v\nOther-Key: w: x\n", {"Key": "v", "Other-Key": "w: x"}),
        ("a\n\nKey: v\nnot one\n", {}),
        ("a\n\nKey: v\n\nlater text\n", {}),
        ("a\n", {}),
    ],
)
def test_trailers(message: str, trailers: dict[str, str]) -> None:
    assert parse_trailers(message) == trailers


def test_a_value_cannot_add_a_trailer_of_its_own() -> None:
    message = with_trailers("a", {"Ticket": "A-1\nRecord-Id: forged", "Empty": None})
    assert parse_trailers(message) == {"Ticket": "A-1 Record-Id: forged"}


# --- merging -------------------------------------------------------------------------------------------------------------


def test_a_merge_has_the_base_that_is_named(repository: Repository) -> None:
    lines = [b"%d\n" % n for n in range(20)]
    base = commit(repository, {"f": b"".join(lines), "gone": b"1"})
    ours = commit(repository, {"f": b"ours\n" + b"".join(lines), "own": b"2"}, base)
    theirs = commit(repository, {"f": b"".join(lines) + b"theirs\n", "gone": None})
    merge = repository.merge_trees(base, ours, theirs)
    assert merge.tree is not None
    assert repository.read(f"{merge.tree}:f") == b"ours\n" + b"".join(lines) + b"theirs\n"
    assert [entry.path for entry in repository.entries(merge.tree)] == ["f", "own"]
    assert repository.refs() == {}


def test_a_side_that_is_the_base_gives_the_other(repository: Repository) -> None:
    one, two = commit(repository, {"f": b"1"}), commit(repository, {"f": b"2"})
    tree = repository.tree_of(two)
    assert repository.merge_trees(one, one, two) == repository.merge_trees(one, two, one) == Merge(tree)
    assert repository.merge_trees(one, two, two) == Merge(tree)


def test_conflicts_name_the_three_blobs(repository: Repository) -> None:
    base = commit(repository, {"both": b"0\n", "removed": b"a\nb\nc\n", "same": b"1"})
    ours = commit(repository, {"both": b"1\n", "removed": None, "added": b"1"}, base)
    theirs = commit(repository, {"both": b"2\n", "removed": b"a\nb\nd\n", "added": b"2"}, base)
    merge = repository.merge_trees(base, ours, theirs)
    assert merge.tree is None and merge.partial is not None
    assert any("CONFLICT (content)" in message for message in merge.messages)
    assert {
        c.path: tuple(None if oid is None else repository.read(oid) for oid in (c.base, c.ours, c.theirs))
        for c in merge.conflicts
    } == {
        "both": (b"0\n", b"1\n", b"2\n"),
        "removed": (b"a\nb\nc\n", None, b"a\nb\nd\n"),
        "added": (None, b"1", b"2"),
    }


def test_what_the_user_configured_does_not_change_a_merge(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = commit(repository, {"f": b"0\n"})
    ours, theirs = commit(repository, {"f": b"1\n"}, base), commit(repository, {"f": b"2\n"}, base)
    (tmp_path / "attributes").write_text("* merge=union\n")
    (tmp_path / "gitconfig").write_text(
        f"[core]\n\tattributesFile = {tmp_path}/attributes\n\thooksPath = {tmp_path}\n[merge]\n\tconflictStyle = diff3\n"
        "[i18n]\n\tcommitEncoding = latin1\n[commit]\n\tgpgSign = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nowhere")
    merge = repository.merge_trees(base, ours, theirs)
    assert merge.partial is not None
    assert b"|||||||" not in (repository.read(f"{merge.partial}:f") or b"|||||||")


# --- moving refs ---------------------------------------------------------------------------------------------------------


def test_all_refs_move_or_none(repository: Repository) -> None:
    one, two = commit(repository, {"f": b"1"}), commit(repository, {"f": b"2"})
    repository.move([RefMove(ref="refs/heads/acme/a", old=None, new=one), RefMove(ref=LINE, old=None, new=one)])
    stale = [
        [RefMove(ref="refs/heads/acme/a", old=one, new=two), RefMove(ref=LINE, old=two, new=two)],
        [RefMove(ref="refs/heads/acme/b", old=None, new=two), RefMove(ref=LINE, old=None, new=two)],
        [RefMove(ref="refs/heads/acme/a", old=one, new=None), RefMove(ref="refs/heads/acme/none", old=one, new=None)],
    ]
    for moves in stale:
        with pytest.raises(Raced):
            repository.move(moves)
        assert repository.refs() == {"refs/heads/acme/a": one, LINE: one}
    repository.move([RefMove(ref=LINE, old=one, new=two), RefMove(ref="refs/heads/acme/a", old=one, new=None)])
    assert repository.refs("refs/heads/acme") == {LINE: two}


def test_an_object_that_is_missing_is_an_error_and_not_a_race(repository: Repository) -> None:
    with pytest.raises(Failed):
        repository.move([RefMove(ref=LINE, old=None, new="1" * 40)])


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_refs_are_renamed_in_the_order_given(repository: Repository) -> None:
    """The ledger first: a process killed in between must leave it ahead of the other refs, never behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    one, two = commit(repository, {"f": b"1"}), commit(repository, {"f": b"2"})
    names = ["zulu", "alpha", "mike", "bravo"]
    repository.move([RefMove(ref=f"refs/heads/acme/{name}", old=None, new=one) for name in names])
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(repository.path / "refs/heads/acme"), 0x80) >= 0  # IN_MOVED_TO
    repository.move([RefMove(ref=f"refs/heads/acme/{name}", old=one, new=two) for name in names])
    data, seen = os.read(watch, 65536), []
    os.close(watch)
    while data:
        length = struct.unpack_from("iIII", data)[3]
        seen.append(data[16 : 16 + length].rstrip(b"\0").decode())
        data = data[16 + length :]
    assert seen == names


def test_a_lock_file_that_a_killed_process_left_is_removed(repository: Repository) -> None:
    one, two = commit(repository, {"f": b"1"}), commit(repository, {"f": b"2"})
    repository.move([RefMove(ref=LINE, old=None, new=one)])
    old = time.time() - 60
    for name in (f"{LINE}.lock", "packed-refs.lock"):
        (repository.path / name).write_text("")
        os.utime(repository.path / name, (old, old))
    repository.move([RefMove(ref=LINE, old=one, new=two)])
    repository.move([RefMove(ref=LINE, old=two, new=None)])
    assert repository.refs() == {}


def test_a_lock_file_that_somebody_holds_now_is_waited_for(repository: Repository) -> None:
    one = commit(repository, {"f": b"1"})
    lock = repository.path / f"{LINE}.lock"
    lock.parent.mkdir(parents=True)
    # A person's `git push` holds the ref's lock for a moment, and not our flock.
    holder = subprocess.Popen(
        ["sh", "-c", 'touch "$1"; echo; sleep .4; rm "$1"', "sh", str(lock)], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        repository.move([RefMove(ref=LINE, old=None, new=one)])
        assert not lock.exists()
    assert holder.returncode == 0
    assert repository.ref(LINE) == one


def test_exclusive_may_be_entered_again_and_keeps_others_out(repository: Repository) -> None:
    one = commit(repository, {"f": b"1"})
    probe = ["flock", "--nonblock", str(repository.path / "tma.lock"), "true"]
    with repository.exclusive():
        with repository.exclusive():
            repository.move([RefMove(ref=LINE, old=None, new=one)])
        assert subprocess.run(probe, check=False).returncode == 1
    assert subprocess.run(probe, check=False).returncode == 0


def _count(path: str, remote: str | None, times: int) -> None:
    repository = Repository.open(Path(path), remote=remote)
    for _ in range(times):
        while True:
            repository.fetch()
            tip = repository.ref(LINE)
            number = int(repository.read(f"{LINE}:n") or b"0") if tip else 0
            new = repository.write_commits(
                [NewCommit(tip, {"n": b"%d" % (number + 1)}, [tip] if tip else [], "n\n", f"p{os.getpid()}", AT)]
            )[0]
            try:
                repository.move([RefMove(ref=LINE, old=tip, new=new)])
            except Raced:
                continue
            break


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(repository: Repository) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_count, args=(str(repository.path), None, 8)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert repository.read(f"{LINE}:n") == b"32"
    assert len(list(repository.first_parents(LINE))) == 32


def test_forget_takes_the_bytes_away_and_nothing_else(repository: Repository) -> None:
    secret, kept = repository.write_blob(b"a person's name\n"), repository.write_blob(b"in flight\n")
    first = commit(repository, {"t": ("100644", secret), **{f"f{n}": b"%d" % n for n in range(150)}})
    repository.move([RefMove(ref=LINE, old=None, new=first)])
    with pytest.raises(Failed):
        repository.forget([secret])
    outside_git(repository, "repack", "-a", "-d", "-q")
    second = commit(repository, {"t": b"other"})
    repository.move([RefMove(ref=LINE, old=first, new=second)])
    repository.forget([secret])
    assert repository.read_many([secret, kept, f"{second}:t"]) == {
        secret: None,
        kept: b"in flight\n",
        f"{second}:t": b"other",
    }


# --- a shared remote -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clones(tmp_path: Path) -> tuple[Repository, Repository, Repository]:
    shared = Repository.open(tmp_path / "shared.git")
    one = Repository.open(tmp_path / "one.git", remote=str(shared.path))
    two = Repository.open(tmp_path / "two.git", remote=str(shared.path))
    return shared, one, two


def test_two_machines_that_share_a_remote_notice_each_other(clones: tuple[Repository, Repository, Repository]) -> None:
    shared, one, two = clones
    first = commit(one, {"f": b"1"})
    one.move([RefMove(ref=LINE, old=None, new=first)])
    assert shared.refs() == one.refs() == {LINE: first}
    assert two.refs() == {}
    other = commit(two, {"f": b"2"})
    with pytest.raises(Raced):
        two.move([RefMove(ref="refs/tags/acme/1+1", old=None, new=other), RefMove(ref=LINE, old=None, new=other)])
    assert shared.refs() == {LINE: first}
    two.fetch()
    assert two.refs() == {LINE: first}
    second = commit(two, {"f": b"2"}, first)
    lease = two.write_blob(b"{}")
    two.move(
        [RefMove(ref=LINE, old=first, new=second), RefMove(ref="refs/leases/acme/production", old=None, new=lease)]
    )
    with pytest.raises(Raced):
        one.move([RefMove(ref=LINE, old=first, new=commit(one, {"f": b"3"}, first))])
    one.fetch()
    assert one.refs() == two.refs() == shared.refs() == {LINE: second, "refs/leases/acme/production": lease}
    one.move([RefMove(ref="refs/leases/acme/production", old=lease, new=None)])
    two.fetch()
    assert two.refs() == {LINE: second}


def test_the_same_move_made_by_two_succeeds_once(clones: tuple[Repository, Repository, Repository]) -> None:
    _, one, two = clones
    oid = commit(one, {"f": b"1"})
    assert commit(two, {"f": b"1"}) == oid
    one.move([RefMove(ref=LINE, old=None, new=oid)])
    with pytest.raises(Raced):
        two.move([RefMove(ref=LINE, old=None, new=oid)])


@pytest.mark.slow
def test_processes_that_write_through_a_remote_lose_nothing(clones: tuple[Repository, Repository, Repository]) -> None:
    shared, one, two = clones
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_count, args=(str(r.path), r.remote, 5)) for r in (one, two)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert shared.read(f"{LINE}:n") == b"10"


def test_a_remote_that_is_away_is_unreachable_and_its_password_is_not_shown(tmp_path: Path) -> None:
    away = Repository.open(tmp_path / "m.git", remote="https://ana:canary@127.0.0.1:9/x.git")
    oid = commit(away, {"f": b"1"})
    for call in (away.fetch, lambda: away.move([RefMove(ref=LINE, old=None, new=oid)])):
        with pytest.raises(Unreachable) as caught:
            call()
        assert "canary" not in caught.value.render()
    assert away.refs() == {}
    assert without_credentials("ssh://a:b@h/x and https://t@h/y") == "ssh://h/x and https://h/y"


def test_what_the_remote_refuses_moves_nothing(clones: tuple[Repository, Repository, Repository]) -> None:
    shared, one, _ = clones
    hook = shared.path / "hooks" / "pre-receive"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\necho protected by the owner >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(Refused, match="hook declined"):
        one.move([RefMove(ref=LINE, old=None, new=commit(one, {"f": b"1"}))])
    assert one.refs() == shared.refs() == {}


def test_a_hook_in_our_own_repository_never_runs(repository: Repository, tmp_path: Path) -> None:
    hook = repository.path / "hooks" / "reference-transaction"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    repository.move([RefMove(ref=LINE, old=None, new=commit(repository, {"f": b"1"}))])
    assert not (tmp_path / "ran").exists()
