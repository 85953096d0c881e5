"""Backups of ``shared/`` on this machine: everything comes back as it was, and nothing else stays."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import Failed, NotKnown, PipelineError, Refused
from pipeline.shared_backup import SharedFolder, left_out
from pipeline.transports.local import LocalTransport
from tests.jobs import snapshot

ODD = ["-n", "two words", "new\nline", "back\\slash", "größe", "*", "[a]", "$(touch injected)", "'q\"", "x" * 200]


def backups(folder: Path, **more: str) -> SharedFolder:
    return SharedFolder(LocalTransport(), str(folder), customer="acme", environment="test", **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host's folder whose ``shared/`` holds whatever an application may put there."""
    shared = tmp_path / "host" / "shared"
    (shared / "uploads" / "deep").mkdir(parents=True)
    (shared / "empty").mkdir()
    for number, name in enumerate(ODD):
        (shared / name).write_text(f"file {number}")
        (shared / "uploads" / "deep" / name).write_bytes(os.urandom(100))
    (shared / "bin").write_bytes(bytes(range(256)) * 1000)
    (shared / "secret").write_text("canary")
    (shared / "secret").chmod(0o600)
    (shared / "program").write_text("#!/bin/sh\n")
    (shared / "program").chmod(0o750)
    (shared / "link").symlink_to("uploads/deep")
    (shared / "dangling").symlink_to("/nowhere\nat all")
    (shared / "readonly").mkdir()
    (shared / "readonly" / "file").write_text("r")
    (shared / "readonly").chmod(0o555)
    shared.chmod(0o2770)
    return tmp_path / "host"


def change(shared: Path) -> None:
    """What an application may do: change, remove, add, put one kind of thing in the place of another."""
    (shared / "bin").write_bytes(b"other")
    (shared / "secret").chmod(0o644)
    (shared / "uploads" / "deep" / "two words").unlink()
    (shared / "program").unlink()
    (shared / "program").mkdir()
    (shared / "program" / "inside").write_text("x")
    (shared / "link").unlink()
    (shared / "link").write_text("no link any more")
    (shared / "empty").rmdir()
    (shared / "empty").write_text("a file now")
    (shared / "added").mkdir()
    (shared / "added" / "a\nfile").write_text("new")
    (shared / "added" / "link").symlink_to("..")


@pytest.mark.parametrize("passphrase", [None, "correct horse $HOME 'battery'"])
def test_exactly_the_files_as_they_were(folder: Path, passphrase: str | None) -> None:
    mine = backups(folder, **({"passphrase": passphrase} if passphrase else {}))
    before = snapshot(folder / "shared")
    taken = mine.take("run-1")
    assert snapshot(folder / "shared") == before
    assert taken.proven_by.startswith("laid out again, ")
    ending = "shared.tar.gz.enc" if passphrase else "shared.tar.gz"
    assert taken.path == str(folder / "backups" / f"run-1.{ending}")
    assert [found.label for found in mine.found()] == ["run-1"]
    assert mine.prove("run-1") == taken
    change(folder / "shared")
    mine.restore("run-1", sha256=taken.sha256, run="run-1")
    assert snapshot(folder / "shared") == before
    assert not list(folder.glob("**/injected"))
    # Nothing but the backup, what is known of it, and that it was restored.
    names = sorted(path.name for path in (folder / "backups").iterdir())
    assert names == [f"run-1.{ending}", f"run-1.{ending}.facts", f"run-1.{ending}.restored"]
    if passphrase:
        assert all(b"canary" not in path.read_bytes() for path in (folder / "backups").iterdir())


def test_the_first_backup_of_a_label_stays(folder: Path) -> None:
    mine = backups(folder)
    taken = mine.take("run-1")
    change(folder / "shared")
    assert mine.take("run-1") == taken


def test_it_is_restored_once_a_run(folder: Path) -> None:
    mine = backups(folder)
    taken = mine.take("run-1")
    mine.restore("run-1", sha256=taken.sha256, run="run-1")
    (folder / "shared" / "since").write_text("the application has written this since")
    mine.restore("run-1", sha256=taken.sha256, run="run-1")
    assert (folder / "shared" / "since").exists()
    mine.restore("run-1", sha256=taken.sha256, run="run-2")
    assert not (folder / "shared" / "since").exists()


def test_a_database_in_shared_is_left_out_and_stays(folder: Path) -> None:
    data = folder / "shared" / "uploads" / "app[1].sqlite"
    for ending in ("", "-wal"):
        Path(f"{data}{ending}").write_text("then")
    (folder / "shared" / "app[1].sqlite").write_text("another file of that name")
    mine = backups(folder, sqlite=str(data))
    taken = mine.take("run-1")
    before = snapshot(folder / "shared")
    for ending in ("", "-wal", "-shm"):
        Path(f"{data}{ending}").write_text("now")
    (folder / "shared" / "app[1].sqlite").unlink()
    mine.restore("run-1", sha256=taken.sha256, run="run-1")
    assert [Path(f"{data}{ending}").read_text() for ending in ("", "-wal", "-shm")] == ["now"] * 3
    for ending in ("", "-wal"):
        Path(f"{data}{ending}").write_text("then")
    Path(f"{data}-shm").unlink()
    assert snapshot(folder / "shared") == before


def test_where_there_is_nothing_yet_it_is_empty_again(tmp_path: Path) -> None:
    mine = backups(tmp_path)
    taken = mine.take("run-1")
    (tmp_path / "shared" / "file").write_text("x")
    mine.restore("run-1", sha256=taken.sha256, run="run-1")
    assert list((tmp_path / "shared").iterdir()) == []


def test_another_file_than_was_recorded_restores_nothing(folder: Path) -> None:
    mine = backups(folder)
    taken = mine.take("run-1")
    change(folder / "shared")
    before = snapshot(folder / "shared")
    whole = Path(taken.path).read_bytes()
    Path(taken.path).write_bytes(whole[:-1] + b"x")
    with pytest.raises(Refused, match="is not the one that was recorded"):
        mine.restore("run-1", sha256=taken.sha256, run="run-1")
    for damaged in (whole[:-1] + b"x", whole[: len(whole) // 2], b""):
        Path(taken.path).write_bytes(damaged)
        for attempt in (lambda: mine.prove("run-1"), lambda: mine.restore("run-1", sha256=None, run="run-1")):
            with pytest.raises(PipelineError):
                attempt()
    assert snapshot(folder / "shared") == before
    with pytest.raises(NotKnown):
        mine.prove("run-2")


def test_what_changes_while_it_is_backed_up_is_no_backup(folder: Path, tmp_path: Path) -> None:
    """The tar of this host is slow, and the application goes on writing."""
    shims = tmp_path / "bin"
    shims.mkdir()
    (shims / "tar").write_text(
        f"#!/bin/sh\ncase $* in *-cf*) echo more >>'{folder}/shared/bin' ;; esac\nPATH=${{PATH#*:}}\nexec tar \"$@\"\n"
    )
    (shims / "tar").chmod(0o755)
    path, os.environ["PATH"] = os.environ["PATH"], f"{shims}:{os.environ['PATH']}"
    try:
        with pytest.raises(Failed, match="no proven backup") as failed:
            backups(folder).take("run-1")
    finally:
        os.environ["PATH"] = path
    assert "changed meanwhile" in failed.value.render()
    assert backups(folder).found() == []


def test_a_socket_of_the_application_is_no_trouble(folder: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    os.chdir(folder / "shared")
    listening.bind("socket")
    taken = backups(folder).take("run-1")
    listening.close()
    backups(folder).restore("run-1", sha256=taken.sha256, run="run-1")
    assert not (folder / "shared" / "socket").exists()


def test_what_is_left_out() -> None:
    assert left_out("/srv/shared", None) == ()
    assert left_out("/srv/shared", "/srv/other/a.sqlite") == ()
    assert left_out("/srv/shared", "/srv/shared2/a.sqlite") == ()
    assert left_out("/srv/shared", "/srv/shared/../shared/a?.sqlite")[:2] == ("./a\\?.sqlite", "./a\\?.sqlite-journal")
