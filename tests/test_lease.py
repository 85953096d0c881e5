"""One deployment per environment: who gets it, who is told off, and who takes over from the dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import lease as lease_module
from pipeline.content import canonical
from pipeline.errors import Locked, PartlyDone, Refused, Unreachable, overtaken
from pipeline.lease import SILENCE, Held, Lease, ci_job, hold, lease_ref, life, read_lease, release_lock
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


# --- signs of life -----------------------------------------------------------------------------------------------------


def until(met: Callable[[], bool]) -> None:
    """Returns once it is so; a run that never gives a sign of life must not hang the tests."""
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def seen_in(repository: Repository) -> Lease:
    lease = read_lease(repository, "acme", "test")
    assert lease is not None
    return lease


def ticking() -> Callable[[], Any]:
    times = iter(range(1, 1_000_000))
    return lambda: NOW + timedelta(seconds=next(times))


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Repository, Repository]:
    """The repository that a run works in, and the one that everybody sees: itself, or its remote."""
    shared = Repository.open(tmp_path / "shared.git")
    if request.param == "local":
        return shared, shared
    return Repository.open(tmp_path / "mirror.git", remote=str(shared.path)), shared


def test_while_it_is_held_it_gives_signs_of_life(place: tuple[Repository, Repository], tmp_path: Path) -> None:
    ours, shared = place
    with held(ours, tmp_path, beat=0.02, clock=ticking()) as lease:
        first = seen_in(shared)
        until(lambda: (seen_in(shared).seen or NOW) > NOW + timedelta(seconds=2))
        now = seen_in(shared)
        assert now.same_run(first)
        assert now != first
        lease.check()
        ours.fetch()
        lease.check()
    assert shared.refs() == {}
    # Nothing comes after the end, and none of it was a record.
    time.sleep(0.2)
    assert shared.refs() == ours.refs() == {}


def test_a_lease_that_goes_away_between_beats_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    for number in range(12):
        with held(repository, tmp_path, beat=0.0005 * number, clock=ticking()) as lease:
            time.sleep(0.004 * number)
            lease.check()
        assert repository.refs() == {}
    time.sleep(0.2)
    assert repository.refs() == {}


@pytest.mark.parametrize("beat", [0.02, 3600])
def test_whoever_has_lost_it_must_stop(place: tuple[Repository, Repository], tmp_path: Path, beat: float) -> None:
    """Between two beats only a look at the ref can tell, and a decision of the ledger fetches before it looks."""
    ours, shared = place
    with held(ours, tmp_path, beat=beat) as lease:
        lease.check()
        shared.move([RefMove(ref=REF, old=shared.ref(REF), new=None)])
        if beat < 1:
            until(lambda: lease.lost is not None)
        else:
            ours.fetch()
        with pytest.raises(Refused, match="must not change anything any more") as refused:
            lease.check()
        assert overtaken(refused.value)
        assert lease.lost == "it was taken away (lock.release)"
        assert refused.value.reasons[0].source == REF
        # It is lost for good, whatever becomes of the ref.
        with held(shared, tmp_path / "other", run="run-9", actor="john"):
            with pytest.raises(Refused, match="has lost its lock"):
                lease.check()
            assert seen_in(shared).run == "run-9"
    assert shared.refs() == {}


def test_it_is_told_who_holds_it_now(place: tuple[Repository, Repository], tmp_path: Path) -> None:
    ours, shared = place
    with held(ours, tmp_path, beat=0.02) as lease:
        theirs = lease.lease.model_copy(update={"actor": "john", "run": "run-9", "machine": "elsewhere"})
        # A beat may come between the look and the move.
        blob = shared.write_blob(canonical(theirs.model_dump(mode="json")))

        def taken() -> bool:
            shared.git("update-ref", REF, blob, shared.ref(REF) or "", accept=range(256))
            return shared.ref(REF) == blob

        until(taken)
        until(lambda: lease.lost is not None)
        assert "another run holds it now: john on elsewhere" in (lease.lost or "")
    # Theirs is left alone at the end.
    assert shared.ref(REF) == blob


def test_a_remote_that_is_away_for_some_beats_loses_nothing(tmp_path: Path) -> None:
    remote = Repository.open(tmp_path / "remote.git")
    mirror = Repository.open(tmp_path / "mirror.git", remote=str(remote.path))
    times = ticking()
    beats: list[None] = []

    def clock() -> Any:
        beats.append(None)
        return times()

    with held(mirror, tmp_path, beat=0.02, clock=clock) as lease:
        until(lambda: len(beats) > 2)
        remote.path.rename(tmp_path / "away.git")
        before = len(beats)
        until(lambda: len(beats) > before + 3)
        lease.check()
        (tmp_path / "away.git").rename(remote.path)
        seen = seen_in(remote).seen
        until(lambda: seen_in(remote).seen != seen)
        lease.check()
    assert remote.refs() == {}


def test_a_beat_whose_answer_was_lost_is_still_ours(
    place: tuple[Repository, Repository], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, shared = place
    overwrite, calls = lease_module._overwrite, []

    def unheard(*arguments: Any) -> bool:
        calls.append(overwrite(*arguments))
        return False

    monkeypatch.setattr(lease_module, "_overwrite", unheard)
    with held(ours, tmp_path, beat=0.02, clock=ticking()) as lease:
        until(lambda: len(calls) > 4)
        lease.check()
        assert calls[:4] == [True] * 4
    assert shared.refs() == {}


def test_life_is_proven_here_and_judged_by_signs_elsewhere(repository: Repository, tmp_path: Path) -> None:
    with held(repository, tmp_path) as lease:
        here = lease.lease
        assert life(here) == "alive"
        elsewhere = here.model_copy(update={"lock": str(tmp_path / "not" / "here"), "seen": NOW})
        assert life(elsewhere) == "unknown"
        for seconds, told in ((0, "alive"), (SILENCE, "alive"), (SILENCE + 1, "unknown"), (-SILENCE - 1, "unknown")):
            assert life(elsewhere, NOW + timedelta(seconds=seconds)) == told
        # A lease of before there were signs of life.
        silent = {
            name: value for name, value in elsewhere.model_dump(mode="json").items() if name not in ("seen", "job")
        }
        assert life(Lease.model_validate(silent), NOW) == "unknown"
    assert life(here, here.since) == "dead"


def test_only_the_run_that_was_looked_at_is_released(repository: Repository, tmp_path: Path) -> None:
    Holder(repository.path, tmp_path / "work").kill()
    dead = seen_in(repository)
    shutil.rmtree(tmp_path / "work")
    other = dead.model_copy(update={"run": "run-7"})
    assert release_lock(repository, "acme", "test", other) is None
    assert seen_in(repository) == dead
    # A sign of life between the look and the release is no other run.
    assert release_lock(repository, "acme", "test", dead.model_copy(update={"seen": NOW})) == dead
    assert repository.refs() == {}


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, None),
        ({"CI_JOB_URL": "https://git.example/a/b/-/jobs/7"}, "https://git.example/a/b/-/jobs/7"),
        ({"BUILD_URL": "https://jane:secret@ci.example/job/deploy/7/"}, "https://ci.example/job/deploy/7/"),
        (
            {"GITHUB_SERVER_URL": "https://git.example", "GITHUB_REPOSITORY": "a/b", "GITHUB_RUN_ID": "7"},
            "https://git.example/a/b/actions/runs/7",
        ),
        ({"GITHUB_SERVER_URL": "https://git.example"}, None),
        (
            {"SYSTEM_COLLECTIONURI": "https://ci.example/org/", "SYSTEM_TEAMPROJECT": "p", "BUILD_BUILDID": "7"},
            "https://ci.example/org/p/_build/results?buildId=7",
        ),
        ({"CI_JOB_URL": "https://ci.example/\x1b[2J"}, None),
    ],
)
def test_a_ci_job_is_named_by_its_address(variables: dict[str, str], job: str | None) -> None:
    assert ci_job(variables) == job


def test_the_holders_ci_job_is_told(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_JOB_URL", "https://ci.example/jobs/7")
    with held(repository, tmp_path), pytest.raises(Locked) as caught, held(repository, tmp_path / "other"):
        pytest.fail("held twice")
    assert "https://ci.example/jobs/7" in caught.value.render()
    assert caught.value.details["job"] == "https://ci.example/jobs/7"


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_of_eight_who_take_it_at_once_one_wins(tmp_path: Path, shared: bool) -> None:
    """Each on a machine of its own; the winner holds it until all the others have been told off."""
    remote = Repository.open(tmp_path / "remote.git")
    program = """
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from pipeline.errors import Locked
        from pipeline.lease import hold
        from pipeline.repository import Repository
        folder, name, shared = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
        remote = folder / "remote.git"
        repository = Repository.open(folder / f"{name}.git", remote=str(remote)) if shared else Repository.open(remote)
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            with hold(repository, "acme", "test", run=name, actor="john", purpose="deploy", beat=0.05,
                      at=datetime(2026, 11, 22, 20, tzinfo=UTC), work=folder / name) as held:
                print("won", flush=True)
                sys.stdin.readline()
                held.check()
        except Locked:
            print("lost", flush=True)
    """
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), f"run-{number}", str(shared)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.stdout.readline() for run in runs if run.stdout is not None]
    assert sorted(said) == ["lost\n"] * 7 + ["won\n"]
    for run in runs:
        run.communicate("end\n")
        assert run.returncode == 0
    assert remote.refs() == {}
