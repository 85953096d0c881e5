"""An OpenSSH server that sees a small disk of its own: a tmpfs in a mount namespace, which ends with the server."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.demo import sshd as demo_sshd
from tests.servers.sshd import ThrowawaySshd


def needs_namespaces() -> None:
    """Skips the test where nobody may make a mount namespace."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a disk of its own needs root on Linux")
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("a disk of its own needs mount namespaces, which this machine does not allow")


def on_small_disk(server: ThrowawaySshd, place: Path, *, size: str, inodes: int) -> Path:
    """Starts ``server`` with an empty disk at ``place``; where that disk is seen from outside of the server."""
    program = demo_sshd.sshd_program()
    assert program is not None
    place.mkdir(parents=True, exist_ok=True)
    wrapper = server.folder / "sshd-with-a-disk"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size={size},nr_inodes={inodes},mode=755 tmpfs {shlex.quote(str(place))}"
    inner = f'{mount} && exec {shlex.quote(program)} "$@"'
    wrapper.write_text(f'#!/bin/sh\nexec unshare -m --propagation private sh -c {shlex.quote(inner)} sh "$@"\n')
    wrapper.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo_sshd, "sshd_program", lambda: str(wrapper))
        server.start()
    pid = (server.folder / "sshd.pid").read_text().strip()
    return Path(f"/proc/{pid}/root") / place.relative_to("/")
