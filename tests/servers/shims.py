"""Programs that stand first on a host's PATH: one call among them can be made the moment of a fault.

Each appends to a list of its own that it was called, and does what the program does. Which call of which program is the
moment, and what happens then, is written into the file ``plan``: so a server needs no restart between two faults.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

PROGRAMS = [
    "awk",
    "cat",
    "chmod",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "find",
    "flock",
    "head",
    "id",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "nohup",
    "od",
    "python3",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tar",
    "timeout",
    "touch",
    "tr",
    "xargs",
]
"""What the host's scripts call, and what the tests' product does."""

WRAPPER = """#!/bin/sh
at='{folder}'
echo $$ >>"$at/called/{name}"
read -r name count action more <"$at/plan"
[ "$name" = '{name}' ] || exec '{real}' "$@"
number=0 mine=0
while read -r caller; do
    number=$((number + 1))
    [ "$caller" != $$ ] || mine=$number
done <"$at/called/{name}"
[ "$mine" = "$count" ] || exec '{real}' "$@"
echo "$*" >"$at/fired"
case $action in
before) kill -9 $PPID; exit 137 ;;
after) '{real}' "$@"; code=$?; kill -9 $PPID; exit $code ;;
orphan) kill -9 $PPID; '{sleep}' 0.4; exec '{real}' "$@" ;;
all-before) kill -9 0 ;;
all-after) '{real}' "$@"; kill -9 0 ;;
fill-*)
    if [ "$action" = fill-inodes ]; then
        number=0
        while (: >"$more/many.$number") 2>/dev/null; do number=$((number + 1)); done
    else
        '{dd}' if=/dev/zero of="$more/spare" bs=4096 count="${{action#fill-}}" 2>/dev/null
        '{dd}' if=/dev/zero of="$more/ballast" bs=4096 2>/dev/null
        '{rm}' -f "$more/spare"
    fi
    exec '{real}' "$@" ;;
esac
"""

KILLS = ("before", "after", "orphan", "all-before", "all-after")
"""The caller is killed before, after, or before a program that runs nevertheless; or all of its process group is."""

FILLS = ("fill-0", "fill-2", "fill-16", "fill-inodes")
"""The disk is full from then on, but for so many pages of 4 KiB; or it takes no more files."""

ITS_OWN = ("sleep", "dd", "rm")


class Shims:
    """The programs in a folder; ``path`` is what stands on the host's PATH."""

    def __init__(self, folder: Path, *, path: str | None = None, programs: Iterable[str] = PROGRAMS) -> None:
        self.folder = folder
        self._bin, self._called = folder / "bin", folder / "called"
        self._bin.mkdir(parents=True)
        self._called.mkdir()
        there = path or os.environ["PATH"]
        self.path = f"{self._bin}{os.pathsep}{there}"
        real = {name: found for name in {*programs, *ITS_OWN} if (found := shutil.which(name, path=there))}
        for name in programs:
            if name in real:
                text = WRAPPER.format(folder=folder, name=name, real=real[name], **{own: real[own] for own in ITS_OWN})
                (self._bin / name).write_text(text)
                (self._bin / name).chmod(0o755)
        self.arm()

    def arm(self, name: str = "-", count: int = 0, action: str = "-", more: str | Path = "-") -> None:
        """The ``count``-th call of ``name`` from now on is the moment of ``action``; by default there is none."""
        (self.folder / "fired").unlink(missing_ok=True)
        for file in self._called.iterdir():
            file.unlink()
        (self.folder / "plan.new").write_text(f"{name} {count} {action} {more}\n")
        (self.folder / "plan.new").replace(self.folder / "plan")

    def fired(self) -> str | None:
        """The arguments of the call that was the moment, None when it has not come."""
        file = self.folder / "fired"
        return file.read_text().strip() if file.exists() else None

    def calls(self) -> dict[str, int]:
        """How often each program was called since :meth:`arm`."""
        return {file.name: len(file.read_text().splitlines()) for file in sorted(self._called.iterdir())}
