"""Two hosts of which one fails: the playbook leaves the finished one, it is said everywhere, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import PartlyDone
from pipeline.workflow import overview, tickets
from tests.flows import Flow, told
from tests.workspaces import RESTART

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """1.0.0+1 serves on two hosts of test; on the second one the next one does not start."""
    flow = told(tmp_path_factory, tmp_path, "tested", hosts=2)
    playbook = flow.folder / "playbooks" / "depot.yaml"
    playbook.write_text(playbook.read_text() + "rolling:\n  on_failure: leave\n")
    restart = '[ ! -e "$1/too-old" ] || exit 3\n' + RESTART
    flow.make("1.2.0", {"app.txt": "depot 1.2.0\n", "bin/restart": restart})
    hindrance(flow).touch()
    return flow


def hindrance(flow: Flow) -> Path:
    return flow.folder / "hosts" / "test2" / "shared" / "too-old"


def current(flow: Flow) -> list[str]:
    return [str((flow.folder / "hosts" / f"test{n}" / "current").readlink()) for n in (1, 2)]


def partly(flow: Flow) -> PartlyDone:
    with pytest.raises(PartlyDone) as caught:
        flow.deploy()
    return caught.value


def test_what_is_finished_stays_and_everybody_is_told(broken: Flow) -> None:
    error = partly(broken)
    assert "is partly done" in error.what
    assert "app1: 1.2.0+1; app2: 1.0.0+1" in error.state
    assert current(broken) == ["releases/1.2.0+1", "releases/1.0.0+1"]
    [row] = [row for row in overview.status(broken.session(), customer="acme").rows if row["environment"] == "test"]
    assert (row["release"], "app1 runs 1.2.0+1" in row["note"]) == ("1.0.0+1", True)
    assert overview.history(broken.session(), customer="acme").lines()
    assert tickets.show_ticket(broken.session(), customer="acme", ticket="ACME-1").lines()
    # The cause is mended, and the same command does the rest.
    hindrance(broken).unlink()
    done = broken.deploy()
    assert done.changed
    assert current(broken) == ["releases/1.2.0+1"] * 2
