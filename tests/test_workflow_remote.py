"""Two workspaces, each with its own mirror of one bare remote: what one does the other sees, and nothing is lost.

What is marked slow takes more time than ``make quick`` has.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Locked, PipelineError, Refused, Unreachable
from pipeline.ledger import Ledger
from pipeline.repository import Repository
from pipeline.workflow import deployments, overview
from tests.flows import Flow, told
from tests.test_ledger_concurrency import ended, in_child

pytestmark = pytest.mark.slow


@pytest.fixture
def two(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Flow, Flow, Repository]:
    """The workspaces of two engineers; both reach the same hosts and the same remote."""
    first = told(tmp_path_factory, tmp_path, "tested")
    remote = tmp_path / "remote.git"
    (first.folder / "installations.git").rename(remote)
    hosts = tmp_path / "hosts"
    (first.folder / "hosts").rename(hosts)
    first.edit("environments/workspace.yaml", "path: installations.git", f"remote: {remote}")
    for key in ("test", "production"):
        first.edit(f"environments/acme/{key}.yaml", "folder: hosts/", f"folder: {hosts}/")
    second = Flow.at(tmp_path / "second", first.clock.now)
    shutil.copytree(first.folder, second.folder, symlinks=True)
    # The settings are part of what is signed off, and the hosts' folders have just been changed in them.
    first.deploy()
    return first, second, Repository.open(remote, create=False)


def rows(flow: Flow) -> list[str | None]:
    overview_of = overview.status(flow.session())
    return [row["release"] for row in overview_of.rows]


def test_what_one_does_the_other_sees(two: tuple[Flow, Flow, Repository]) -> None:
    first, second, remote = two
    second.decide()
    assert first.refusals() == {}
    assert second.ticket("Autre") == "ACME-2"
    assert first.ticket("Encore") == "ACME-3"
    done = first.promote()
    assert done.changed is True
    assert second.promote().changed is False
    assert rows(second) == rows(first) == ["1.0.0+1", "1.0.0+1"]
    ledger = Ledger(remote, "acme")
    assert ledger.verify(first.session().workspace.people) == []
    assert ledger.state().environment("production").installed is not None
    mirrors = [flow.session().repository() for flow in two[:2]]
    for mirror in mirrors:
        mirror.fetch()
    assert mirrors[0].refs() == mirrors[1].refs() == remote.refs()
    assert remote.refs("refs/leases/") == {}


@pytest.mark.slow
def test_a_lease_is_seen_on_the_other_machine(two: tuple[Flow, Flow, Repository]) -> None:
    first, second, _ = two
    first.release("1.1.0")
    met: list[str] = []

    def meanwhile(line: str) -> None:
        if "back up" in line:
            met.append(line)
            with pytest.raises((Locked, Refused)) as refused:
                second.deploy()
            assert "test of acme" in refused.value.what
            assert second.ticket("Pendant ce temps") == "ACME-2"

    session = first.session()
    session.progress = meanwhile
    deployments.deploy(session, customer="acme")
    assert len(met) == 1
    assert second.deploy().changed is False
    records = Ledger(second.session().repository(), "acme").records()
    assert [record.outcome for record in records if record.kind == "deployment-finished"] == ["ok"] * 3


@pytest.mark.slow
def test_both_at_once_on_one_customer_lose_nothing(two: tuple[Flow, Flow, Repository]) -> None:
    first, second, remote = two
    first.release("1.1.0")

    def work(flow: Flow, name: str) -> Callable[[], None]:
        def run() -> None:
            for number in range(3):
                flow.ticket(f"{name} {number}")
            for _ in range(40):
                try:
                    flow.deploy()
                except (Locked, Refused):
                    continue  # the other one is at it
                except PipelineError as error:
                    raise AssertionError(error.render()) from None
                break
            for number in range(2):
                flow.ticket(f"{name} again {number}")

        return run

    children = [in_child(work(first, "first")), in_child(work(second, "second"))]
    assert [ended(child) for child in children] == [0, 0]
    ledger = Ledger(remote, "acme")
    assert ledger.verify(first.session().workspace.people) == []
    titles = sorted(
        ledger.text(ticket.texts["title"]) or "" for id, ticket in ledger.state().tickets.items() if id != "ACME-1"
    )
    assert titles == sorted(
        f"{name} {number}" for name in ("first", "second") for number in ("0", "1", "2", "again 0", "again 1")
    )
    state = ledger.state()
    assert state.environment("test").running is None
    installed = state.environment("test").installed
    assert installed is not None
    assert installed.release == "1.1.0+1"
    finished = [r for r in ledger.records() if r.kind == "deployment-finished" and r.release == "1.1.0+1"]
    assert [record.outcome for record in finished] == ["ok"]
    assert remote.refs("refs/leases/") == {}


def told_by_status(flow: Flow) -> tuple[list[str | None], list[str]]:
    """The releases in the overview, and what was said along the way."""
    flow.lines.clear()
    return rows(flow), list(flow.lines)


def test_the_overview_is_the_remotes_and_without_it_says_how_old_it_is(
    two: tuple[Flow, Flow, Repository], tmp_path: Path
) -> None:
    first, second, remote = two
    # A machine that was never here before sees what there is, before anything is decided on it.
    shutil.rmtree(second.folder / "var")
    assert told_by_status(second) == (["1.0.0+1", None], [])
    first.release("1.1.0")
    first.deploy()
    assert told_by_status(second) == (["1.1.0+1", None], [])
    past = overview.status(second.session(), at=Ledger(remote, "acme").records()[0].at)
    assert [row["release"] for row in past.rows] == ["1.1.0+1", None]

    remote.path.rename(tmp_path / "away.git")
    for look in (rows, lambda flow: overview.history(flow.session(), customer="acme").records):
        second.lines.clear()
        assert look(second)
        [note] = second.lines
        assert "this is the mirror of this machine, last fetched: 20" in note
    assert rows(second) == ["1.1.0+1", None]
    # What decides does not go by a mirror.
    with pytest.raises(Unreachable):
        second.ticket("Perdu")
    (tmp_path / "away.git").rename(remote.path)
    assert second.ticket("Retrouvé") == "ACME-2"
