"""The throwaway OpenSSH server as a fixture; the class itself is the demo's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo.sshd import ThrowawaySshd

__all__ = ["ThrowawaySshd", "sshd"]


@pytest.fixture(scope="session")
def sshd() -> Iterator[ThrowawaySshd]:
    """One OpenSSH server for the whole session, as the user who runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="tma-sshd-"))
    # What somebody's shell profile does at each login is not what is tested, and may take longer than all the rest.
    home = folder / "home"
    home.mkdir()
    server = ThrowawaySshd(folder, environment={"HOME": str(home)})
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
