#!/usr/bin/env python3
"""Installs the servers that the tests start: where it may (root, or sudo without a password), else it says what is missing.

Exit code 0 when everything is there, 2 with the exact command when not. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"


def has_program(*names: str) -> bool:
    """Whether one of these programs is on PATH or in a system folder."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM.split(":")])
    return any(shutil.which(name, path=path) for name in names)


def has_postgresql() -> bool:
    """Whether PostgreSQL's server and its dump programs are here, on PATH or where Debian puts them."""
    needed = ("initdb", "postgres", "pg_dump", "pg_restore")
    if all(shutil.which(name) for name in needed):
        return True
    return any(all((folder / name).exists() for name in needed) for folder in Path("/usr/lib/postgresql").glob("*/bin"))


NEEDED: dict[str, Callable[[], bool]] = {
    "git": lambda: has_program("git"),
    "openssh-server": lambda: has_program("sshd"),
    "openssh-client": lambda: has_program("ssh") and has_program("ssh-keygen"),
    "postgresql": has_postgresql,
    "mariadb-server": lambda: has_program("mariadbd") and has_program("mariadb-dump", "mysqldump"),
    "chromium": lambda: has_program("chromium", "chromium-browser", "google-chrome"),
    "busybox": lambda: has_program("busybox"),
    "sudo": lambda: has_program("sudo"),
}
"""Debian package → whether what the tests need of it is here."""


def missing() -> list[str]:
    """The Debian packages that are not here."""
    return [package for package, is_here in NEEDED.items() if not is_here()]


def may_install() -> list[str] | None:
    """The words before ``apt-get`` with which packages can be installed without asking; None when they cannot."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and _ends_well("sudo", "-n", "true"):
        return ["sudo", "-n"]
    return None


def main() -> int:
    """Installs what is missing."""
    wanted = missing()
    if not wanted:
        return 0
    before = may_install()
    if before is not None:
        print(f"installing what the tests need: {' '.join(wanted)}", flush=True)
        environment = [*before, "env", "DEBIAN_FRONTEND=noninteractive"]
        # The tests start servers of their own: a package must not start one here.
        with_policy = _without_services(before)
        try:
            install = [*environment, "apt-get", "install", "-y", "-q", "--no-install-recommends"]
            if not _ends_well(*install, *wanted):
                _ends_well(*environment, "apt-get", "update", "-q")
                # One by one: a package that this system does not know must not keep the others away.
                for package in wanted:
                    _ends_well(*install, package, shown=True)
        finally:
            if with_policy:
                _ends_well(*before, "rm", "-f", POLICY)
        wanted = missing()
        if not wanted:
            return 0
    sudo = "" if os.geteuid() == 0 else "sudo "
    print(f"The tests need Debian packages that are not here: {' '.join(wanted)}", file=sys.stderr)
    print(f"Next: {sudo}apt-get install {' '.join(wanted)}", file=sys.stderr)
    print("  or: make quick (the part without servers)", file=sys.stderr)
    return 2


POLICY = "/usr/sbin/policy-rc.d"


def _without_services(before: list[str]) -> bool:
    """Tells Debian's packages to start no service (invoke-rc.d, policy-rc.d); False where there is such a policy already."""
    if Path(POLICY).exists():
        return False
    script = f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"
    return _ends_well(*before, "sh", "-c", script)


def _ends_well(*command: str, shown: bool = False) -> bool:
    where = None if shown else subprocess.DEVNULL
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=where, stderr=where, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
