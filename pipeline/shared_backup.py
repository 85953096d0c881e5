"""Backups of a host's ``shared/``: what belongs to the environment and not to a release, made and restored on the host.

One is a tar, compressed with gzip and sealed where there is a passphrase, beside the database's backups and kept like them
(:mod:`pipeline.databases.backup_files`). It counts once it was laid out again and every file in it, compared by type,
permissions, link target and SHA-256, was what lay in ``shared/`` when it was made. Whatever in ``shared/`` is a database of
its own is left out, and stays when the rest is restored. Files are restored under the user that we are there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Protocol

from pipeline.databases import BackupFound, BackupTaken
from pipeline.databases.backup_files import BackupFile, BackupFiles, Program
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed, PipelineError, Reason
from pipeline.transports import Transport

ENDING = "shared.tar.gz"

BESIDE_SQLITE = ("", "-journal", "-wal", "-shm")
"""What a SQLite database is made of: the endings of its files' names."""

# "$1" is shared/, the rest are patterns of names in it that are left out. Names are compared as the host's own tools print
# them, both times in the same way, so that it does not matter how they print odd ones.
_SHELL = r"""
content() {
  (
    cd "$1" || exit 1
    shift
    for pattern do
      set -- "$@" ! -path "$pattern"
      shift
    done
    { find . "$@" \( -type f -o -type d -o -type l \) -exec stat -c '%f %N' {} + &&
      find . "$@" -type f -exec sha256sum {} +; } | sort
  )
}
packed() {
  (
    cd "$1" || exit 1
    shift
    for pattern do
      set -- "$@" "--exclude=$pattern"
      shift
    done
    tar -cf - "$@" .
  )
}
compressed() { gzip -c; }
opened() { gzip -dc; }
laid_out() { tar -xpf - -C "$trial"; }
dump() {
  for tool in tar gzip; do
    command -v "$tool" >/dev/null 2>&1 || { echo "$tool is not installed" >&2; return 86; }
  done
  (umask 022 && mkdir -p "$1") || return 1
  content "$@" > "$private/facts" || return 1
  joined packed compressed "$@"
}
# Folders in which nothing may be written too.
clear_away() {
  [ ! -d "$1" ] || find "$1" -type d ! -perm -700 -exec chmod u+rwx {} \;
  rm -rf "$1"
}
lay_out() {
  for old in "$folder"/.tma-trial.*; do
    if [ -e "$old" ]; then kill -0 "${old##*.}" 2>/dev/null || clear_away "$old"; fi
  done
  trial=$folder/.tma-trial.$$
  clear_away "$trial"
  mkdir -p "$trial" || return 1
  joined opened laid_out || return 1
  content "$trial" > "$private/found" || return 1
  cmp -s "$private/facts" "$private/found" || {
    echo 'what it holds is not what lay in shared/ (or it was changed meanwhile):' >&2
    diff "$private/facts" "$private/found" 2>/dev/null | grep '^[<>]' | head -n 5 >&2
    return 1
  }
  files=$(find "$trial" -type f | wc -l)
}
read_back() {
  lay_out
  code=$?
  clear_away "$trial"
  [ "$code" = 0 ] || return "$code"
  printf '%s\n' "$((files))"
}
"""

# What is left out stays where it is, and so do the folders that lead to it.
_RESTORE = r"""
read_back() {
  run=$(cat "$private/run")
  if [ "$(cat "$file.restored" 2>/dev/null)" = "$run" ]; then
    cat > /dev/null
    echo again
    return 0
  fi
  lay_out && put_back "$@"
  code=$?
  clear_away "$trial"
  return "$code"
}
put_back() {
  (
    umask 022
    mkdir -p "$1" && cd "$1" || exit 1
    shift
    for pattern do
      set -- "$@" ! -path "$pattern"
      shift
    done
    # What is made in a folder that hands its group on would be given the same mark.
    find . -type d -exec chmod u+rwx,g-s {} \;
    find . "$@" ! -type d -exec rm -f {} + &&
      find . -depth -type d ! -name . -exec rmdir {} \; 2>/dev/null
    cp -a "$trial/." . || exit 1
  ) || return 1
  sync -f "$1" 2>/dev/null || sync
  content "$@" > "$private/found" || return 1
  cmp -s "$private/facts" "$private/found" || {
    echo 'shared/ is not as the backup has it:' >&2
    diff "$private/facts" "$private/found" 2>/dev/null | grep '^[<>]' | head -n 5 >&2
    return 1
  }
  printf '%s' "$run" > "$file.restored.new" && mv -f "$file.restored.new" "$file.restored" || return 1
  echo restored
}
"""


class SharedBackups(Protocol):
    """The backups of one host's ``shared/``."""

    def take(self, label: str) -> BackupTaken:
        """The backup of this label, made unless it is there, and read back either way. Failed when it does not work."""
        ...

    def found(self) -> list[BackupFound]:
        """Those that lie there, oldest first."""
        ...

    def prove(self, label: str) -> BackupTaken:
        """The backup with this label, read back now. NotKnown when there is none."""
        ...

    def restore(self, label: str, *, sha256: str | None, run: str) -> None:
        """``shared/`` exactly as it was, extra files removed; once a run. Refused when its bytes are not ``sha256``."""
        ...


class SharedFolder:
    """The backups of ``<folder>/shared`` in ``<folder>/backups`` of one host; ``passphrase`` seals new ones.

    ``sqlite`` is the absolute path of the environment's SQLite database, which may lie in ``shared/``.
    """

    def __init__(
        self,
        transport: Transport,
        folder: str,
        *,
        customer: str,
        environment: str,
        passphrase: str | None = None,
        sqlite: str | None = None,
    ) -> None:
        self._name = transport.name
        self._shared = f"{folder}/shared"
        self._errors = ScriptErrors(f"shared/ on {transport.name}", customer, environment, passphrase)
        self._files = BackupFiles(transport, f"{folder}/backups", ENDING, self._errors, passphrase)
        self._left_out = left_out(self._shared, sqlite)

    def take(self, label: str) -> BackupTaken:
        """See :meth:`SharedBackups.take`."""
        return _taken(self._files.take(label, self._program()))

    def found(self) -> list[BackupFound]:
        """See :meth:`SharedBackups.found`."""
        return self._files.found()

    def prove(self, label: str) -> BackupTaken:
        """See :meth:`SharedBackups.prove`."""
        return _taken(self._files.read(label, self._program()))

    def restore(self, label: str, *, sha256: str | None, run: str) -> None:
        """See :meth:`SharedBackups.restore`. Failed with the state when it did not work: doing it again is safe."""
        program = Program(_SHELL + _RESTORE, (self._shared, *self._left_out), {"run": run.encode()})
        self._files.read(label, program, sha256=sha256, failed=self._not_restored)

    def _not_restored(self, message: str, _: str | None) -> PipelineError:
        return Failed(
            f"the backup of shared/ on {self._name} was not restored.",
            reasons=[Reason(self._errors.clean(message), self._name)],
            state="shared/ may hold a part of it; doing it again is safe.",
        )

    def _program(self) -> Program:
        return Program(_SHELL, (self._shared, *self._left_out))


def left_out(shared: str, sqlite: str | None) -> tuple[str, ...]:
    """Patterns, as ``find -path`` and ``tar --exclude`` take them, of what is no part of a backup of ``shared/``."""
    if sqlite is None or not posixpath.normpath(sqlite).startswith(f"{shared}/"):
        return ()
    inside = "./" + posixpath.relpath(posixpath.normpath(sqlite), shared)
    quoted = re.sub(r"([\\*?\[])", r"\\\1", inside)
    return tuple(quoted + ending for ending in BESIDE_SQLITE)


def _taken(file: BackupFile) -> BackupTaken:
    said = file.said.strip().splitlines()[-1:] or ["0"]
    return BackupTaken(file.path, file.sha256, file.size, f"laid out again, {said[0]} files compared by SHA-256")


__all__: Sequence[str] = ("ENDING", "SharedBackups", "SharedFolder", "left_out")
