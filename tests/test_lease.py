"""One deployment per environment: who gets it, who is told off, and who takes over from the dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Locked, PartlyDone, Refused, Unreachable
from pipeline.lease import Held, hold, lease_ref, read_lease, release_lock
from pipeline.model import RefMove
from pipeline.repository import Repository
from tests.ledgers import NOW

REF = "refs/leases/acme/test"

HOLDER = """
    import sys, time
    from datetime import UTC, datetime
    from pathlib import Path
    from pipeline.lease import hold
    from pipeline.repository import Repository
    repository = Repository.open(Path(sys.argv[1]), remote=sys.argv[3] if len(sys.argv) > 3 else None)
    with hold(repository, "acme", "test", run="run-1", actor="john", at=datetime(2026, 11, 22, 20, tzinfo=UTC),
              purpose="deploy", release="1.0+1", work=Path(sys.argv[2])):
        print("held", flush=True)
        sys.stdin.read()
"""


class Holder:
    """Another process that holds the lease until it is let go, or killed."""

    def __init__(self, repository: Path, work: Path, *remote: str) -> None:
        command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(repository), str(work), *remote]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def let_go(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "installations.git")


def held(repository: Repository, work: Path, **more: Any) -> Any:
    fields: dict[str, Any] = {"run": "run-2", "actor": "jane", "at": NOW, "purpose": "deploy", "release": "1.0+2"}
    return hold(repository, "acme", "test", work=work, **fields | more)


def test_a_lease_is_seen_while_held_and_gone_after(repository: Repository, tmp_path: Path) -> None:
    with held(repository, tmp_path) as lease:
        seen = read_lease(repository, "acme", "test")
        assert seen == lease.lease
        assert seen is not None
        assert (lease.run, lease.adopted, seen.actor, seen.pid, seen.since) == ("run-2", None, "jane", os.getpid(), NOW)
        assert lease_ref("acme", "test") == REF
    assert repository.refs() == {}
    with pytest.raises(RuntimeError), held(repository, tmp_path):
        raise RuntimeError
    assert repository.refs() == {}


def test_environments_do_not_hinder_each_other(repository: Repository, tmp_path: Path) -> None:
    with (
        held(repository, tmp_path),
        hold(repository, "acme", "production", run="r", actor="jane", at=NOW, purpose="deploy", work=tmp_path),
    ):
        assert len(repository.refs("refs/leases/")) == 2


def test_a_living_holder_is_named(repository: Repository, tmp_path: Path) -> None:
    holder = Holder(repository.path, tmp_path / "work")
    with pytest.raises(Locked) as caught, held(repository, tmp_path / "work"):
        pytest.fail("held twice")
    text = caught.value.render()
    assert "john" in text
    assert "2026-11-22 20:00:00 UTC" in text
    assert "invoke lock.release customer=acme env=test reason=" in text
    assert caught.value.details["run"] == "run-1"
    # From another workspace of this machine too: the lease says which file proves that it lives.
    with pytest.raises(Locked), held(repository, tmp_path / "other"):
        pytest.fail("held twice")
    with pytest.raises(Refused, match="alive"):
        release_lock(repository, "acme", "test")
    holder.let_go()
    with held(repository, tmp_path / "work") as lease:
        assert lease.adopted is None


@pytest.mark.parametrize("work", ["work", "other"])
def test_a_dead_run_is_adopted(repository: Repository, tmp_path: Path, work: str) -> None:
    Holder(repository.path, tmp_path / "work").kill()
    with held(repository, tmp_path / work) as lease:
        assert lease.run == "run-1"
        assert lease.adopted is not None
        assert lease.adopted.actor == "john"
        seen = read_lease(repository, "acme", "test")
        assert seen is not None
        assert (seen.run, seen.actor, seen.pid) == ("run-1", "jane", os.getpid())
    assert repository.refs() == {}


@pytest.mark.parametrize("lost", ["removed", "copied"])
def test_a_run_that_may_live_elsewhere_is_not_adopted(repository: Repository, tmp_path: Path, lost: str) -> None:
    Holder(repository.path, tmp_path / "work").kill()
    if lost == "removed":
        shutil.rmtree(tmp_path / "work")
    else:
        # As on another machine that has a copy of the workspace at the same path.
        shutil.copytree(tmp_path / "work", tmp_path / "copy")
        (tmp_path / "work").rename(tmp_path / "elsewhere")
        (tmp_path / "copy").rename(tmp_path / "work")
    for workspace in ("work", "other"):
        with pytest.raises(Locked), held(repository, tmp_path / workspace):
            pytest.fail("adopted")
    released = release_lock(repository, "acme", "test")
    assert released is not None
    assert released.run == "run-1"
    assert release_lock(repository, "acme", "test") is None
    with held(repository, tmp_path / "work") as lease:
        assert lease.run == "run-2"


def test_a_kept_lease_stays_and_is_adopted_from_here(repository: Repository, tmp_path: Path) -> None:
    with held(repository, tmp_path) as lease:
        lease.keep()
    assert read_lease(repository, "acme", "test") == lease.lease
    with held(repository, tmp_path, run="run-3") as again:
        assert again.run == "run-2"


def test_a_lease_that_somebody_released_is_left_alone_at_the_end(repository: Repository, tmp_path: Path) -> None:
    with held(repository, tmp_path):
        ours = repository.ref(REF)
        theirs = repository.write_blob(b"{}")
        repository.move([RefMove(ref=REF, old=ours, new=theirs)])
    assert repository.ref(REF) == theirs
    with pytest.raises(Locked, match="another version"):
        read_lease(repository, "acme", "test")


def test_two_machines_share_a_lease_through_the_remote(tmp_path: Path) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    mirror = Repository.open(tmp_path / "mirror.git", remote=str(remote.path))
    holder = Holder(tmp_path / "theirs.git", tmp_path / "theirs", str(remote.path))
    with pytest.raises(Locked, match="john"), held(mirror, tmp_path / "ours"):
        pytest.fail("held twice")
    holder.let_go()
    with held(mirror, tmp_path / "ours"):
        assert read_lease(remote, "acme", "test") is not None
    assert remote.refs() == {}


@pytest.mark.slow
def test_of_many_at_once_one_holds_at_a_time(repository: Repository, tmp_path: Path) -> None:
    program = """
        import sys, time
        from datetime import UTC, datetime
        from pathlib import Path
        from pipeline.errors import Locked
        from pipeline.lease import hold
        from pipeline.repository import Repository
        repository = Repository.open(Path(sys.argv[1]))
        marker, mine, done = Path(sys.argv[3]), Path(sys.argv[2]) / sys.argv[4], 0
        while done < 3:
            try:
                with hold(repository, "acme", "test", run=sys.argv[4], actor="john", purpose="deploy",
                          at=datetime(2026, 11, 22, 20, tzinfo=UTC), work=mine) as lease:
                    assert lease.run == sys.argv[4], lease
                    marker.open("x").close()
                    time.sleep(0.01)
                    marker.unlink()
                    done += 1
            except Locked:
                time.sleep(0.02)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(repository.path), str(tmp_path), str(tmp_path / "m")]
    runs = [
        subprocess.Popen([*command, f"run-{number}"], cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors.decode()
    assert repository.refs() == {}


def test_a_lease_that_cannot_be_given_back_says_so(tmp_path: Path) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    mirror = Repository.open(tmp_path / "mirror.git", remote=str(remote.path))

    def work(lease: Held) -> None:
        remote.path.rename(tmp_path / "gone.git")

    with pytest.raises(PartlyDone, match="could not be given back"), held(mirror, tmp_path) as lease:
        work(lease)
    (tmp_path / "gone.git").rename(remote.path)
    with pytest.raises(RuntimeError), held(mirror, tmp_path) as lease:
        assert lease.run == "run-2"
        work(lease)
        raise RuntimeError
    with pytest.raises(Unreachable), held(mirror, tmp_path):
        pytest.fail("held without asking")
