"""The example product: Comptoir, an order book, as a Git repository with three tagged versions.

The versions lie in ``comptoir/<version>``: the first whole, the others as what they change. Author and dates are fixed,
so every machine makes the same commits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

VERSIONS = {
    "2.3.0": ("The order book", "2026-03-02T09:00:00+01:00"),
    "2.4.0": ("Orders have a delivery day", "2026-06-15T09:00:00+02:00"),
    "2.5.0": ("Orders have a remark for the driver", "2026-10-05T09:00:00+02:00"),
}
"""Each version with its commit's subject and date, oldest first."""

_SOURCES = Path(__file__).parent / "comptoir"


def make_product(folder: Path) -> Path:
    """The repository at ``folder``, made anew: a branch ``main``, a tag ``vX.Y.Z`` for each of :data:`VERSIONS`."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _git(folder, "init", "-q", "-b", "main")
    for version, (subject, date) in VERSIONS.items():
        for source in sorted(_SOURCES.joinpath(version).rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                target = folder / source.relative_to(_SOURCES / version)
                target.parent.mkdir(parents=True, exist_ok=True)
                # Content only: an installed package may have lost the executable bit.
                target.write_bytes(source.read_bytes())
                target.chmod(0o755 if target.parent.name == "bin" else 0o644)
        _git(folder, "add", "--all")
        _git(folder, "commit", "-q", "-m", subject, date=date)
        _git(folder, "tag", f"v{version}")
    return folder


def _git(folder: Path, *words: str, date: str = "") -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "Comptoir",
        "GIT_AUTHOR_EMAIL": "comptoir@vendor.example",
        "GIT_COMMITTER_NAME": "Comptoir",
        "GIT_COMMITTER_EMAIL": "comptoir@vendor.example",
        **({"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}),
    }
    subprocess.run(["git", "-C", str(folder), *words], env=environment, check=True, stdin=subprocess.DEVNULL)
