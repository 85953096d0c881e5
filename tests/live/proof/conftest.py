"""What the proofs share: a server whose programs fail on demand, and controllers that can be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.over_ssh import ready_path
from tests.live.proof.driver import Controllers
from tests.servers.shims import Shims
from tests.servers.sshd import ThrowawaySshd


@pytest.fixture(scope="module")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Shims:
    return Shims(tmp_path_factory.mktemp("shims"), path=ready_path()["PATH"])


@pytest.fixture(scope="module")
def server(shims: Shims, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    """An OpenSSH server on which the shims stand first."""
    # bash reads its .bashrc for sshd unless it believes itself to be inside another shell; that could change PATH.
    environment = {"PATH": shims.path, "SHLVL": "2"}
    running = ThrowawaySshd(tmp_path_factory.mktemp("server"), environment=environment)
    yield running.start()
    running.stop()


@pytest.fixture(scope="module")
def controllers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controllers]:
    with Controllers(tmp_path_factory.mktemp("controllers")) as running:
        yield running


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path
