"""Backups as files on the host, whatever the engine: a name, sealed or not, whole or not there, read back before it counts.

An engine gives a :class:`Program`: a piece of ``sh`` with two functions, and what they need. This module wraps it into the
one script that a host is sent::

    dump "$@"        writes the clear backup to standard output, as a stream; what it writes into "$private/facts" is kept
                     beside the backup (for instance what the backup was made from)
    read_back "$@"   reads the clear backup from standard input, to its end; what it prints comes back as ``said``

``"$@"`` are the program's ``arguments``: values never become part of the script. ``"$private"`` is a folder (0700, in
memory where the host has /dev/shm) with the program's ``files``, each 0600; it goes when the script ends. Credentials are
such a file: they travel over standard input, and no argument and no environment variable holds them. In it the functions
may put what they like. ``clear`` writes the clear backup to standard output, for a function that has to look at it
twice. A function that finds a program missing says so on standard error and does ``return 86``; any other exit code but 0
means that it did not work, and standard error says why.

In ``<folder>/`` a backup is ``<label>.<ending>``, sealed ``<label>.<ending>.enc``, and beside it ``….facts``, which holds the
backup's SHA-256 and size in its first line, then the engine's facts; it is sealed like the backup. Sealed means
``openssl enc -aes-256-cbc -pbkdf2 -iter 200000``: with the passphrase anybody opens it without us. While it is being
written a backup has ``.part.`` and a process number at its end.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.databases import BackupFound
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import NotKnown, PipelineError, Reason, Refused, UsageError
from pipeline.transports import LineCut, Result, Transport

TIMEOUT = 6 * 3600.0
"""Seconds that a backup, or its restore, may take."""

KDF_ROUNDS = "200000"

_UNREADABLE = 82
_CHANGED = 83
_NOT_THAT_ONE = 84
_NOT_THERE = 85
_MISSING = 86

_FRAME = r"""
umask 077
export LC_ALL=C
IFS= read -r passphrase || :
folder=$1 label=$2 ending=$3 wanted=$4 rounds=$5
shift 5
private= part=
trap 'rm -rf ${private:+"$private"} ${part:+"$part" "$part.facts"}' EXIT
trap 'exit 143' HUP INT TERM
for old in /dev/shm/tma.[0-9]*.* "${TMPDIR:-/tmp}"/tma.[0-9]*.*; do
  # Left by a process of this user's that was killed; there may be a password in it.
  number=${old##*/tma.} number=${number%%.*}
  case $number in *[!0-9]*) continue ;; esac
  if [ -d "$old" ] && [ ! -h "$old" ] && [ -O "$old" ]; then kill -0 "$number" 2>/dev/null || rm -rf "$old"; fi
done
private=$(mktemp -d "/dev/shm/tma.$$.XXXXXX" 2>/dev/null || mktemp -d "${TMPDIR:-/tmp}/tma.$$.XXXXXX") || exit 1
tar -xof - -C "$private" || exit 1
for tool in sha256sum ${passphrase:+openssl}; do
  command -v "$tool" >/dev/null 2>&1 || { echo "$tool is not installed" >&2; exit 86; }
done
# The passphrase goes through a pipe to descriptor 3: printf is the shell's own, so no process has it as an argument.
cipher() {
  { printf '%s\n' "$passphrase" |
    openssl enc "$@" -aes-256-cbc -md sha256 -pbkdf2 -iter "$rounds" -pass fd:3 3<&0 <&4 4<&-; } 4<&0
}
seal() { if [ -n "$passphrase" ]; then cipher -salt; else cat; fi; }
unseal() {
  case $file in
  *.enc) [ -n "$passphrase" ] || { echo "$file is encrypted, and there is no passphrase for it" >&2; return 1; }
    cipher -d ;;
  *) cat ;;
  esac
}
clear() { unseal < "${part:-$file}"; }
digest() { set -- $(sha256sum) && printf '%s' "$1"; }
stop_if_full() {
  free=$(df -Pk "$folder" 2>/dev/null | awk 'NR == 2 { print $4 }')
  [ "${free:-1025}" -gt 1024 ] || echo "the disk with $folder is full: $free KiB are free" >&2
}
# $1 | $2, and both must have worked. The first's exit code comes over descriptor 3; descriptor 5 is our own output.
joined() {
  first=$1 second=$2
  shift 2
  code=$( { { "$first" "$@" 3>&- 5>&-; echo $? >&3; } | "$second" "$@" 3>&- >&5 5>&-; } 3>&1 ) || {
    second_code=$?
    # What was cut off because the other one stopped is not the cause.
    [ "$code" = 86 ] || code=$second_code
  }
  return "${code:-1}"
} 5>&1
file=$folder/$label.$ending
if [ ! -e "$file" ] && [ -e "$file.enc" ]; then file=$file.enc; fi
# Before anything is read: the file is what was written, and what is asked for.
check_bytes() {
  sum=$(digest < "$file")
  [ -z "$wanted" ] || [ "$wanted" = "$sum" ] || { echo "its SHA-256 is $sum, not $wanted" >&2; exit 84; }
  if [ -e "$file.facts" ]; then
    unseal < "$file.facts" > "$private/all" || exit 82
    read -r written _ < "$private/all"
    [ "$written" = "$sum" ] || { echo "its SHA-256 was $written when it was written, and is $sum now" >&2; exit 83; }
    tail -n +2 "$private/all" > "$private/facts"
  fi
}
"""

_TAKE = r"""
made=lay
if [ -e "$file" ]; then
  check_bytes
else
  mkdir -p "$folder" || exit 1
  [ -z "$passphrase" ] || file=$file.enc
  for old in "$folder"/*.part.*; do
    # Left by a process that was killed, whatever its backup was called; no label holds ".part.".
    number=${old##*.part.} number=${number%.facts}
    case $number in '' | *[!0-9]*) continue ;; esac
    if [ -e "$old" ]; then
      # One that has ended, and that only nobody has asked how, is dead as well.
      if ! kill -0 "$number" 2>/dev/null || grep -qs '^State:.*Z' "/proc/$number/status"; then rm -f "$old"; fi
    fi
  done
  part=$file.part.$$ made=made
  store() { seal > "$part"; }
  joined dump store "$@" || { code=$?; stop_if_full; exit "$code"; }
  sum=$(digest < "$part")
fi
joined clear read_back "$@" || { code=$?; [ "$code" = 86 ] || code=82; exit "$code"; }
size=$(wc -c < "${part:-$file}")
if [ -n "$part" ]; then
  { printf '%s %s\n' "$sum" "$((size))"; [ ! -e "$private/facts" ] || cat "$private/facts"; } | seal > "$part.facts" ||
    { stop_if_full; exit 1; }
  sync "$part" "$part.facts" 2>/dev/null || sync
  mv -f "$part.facts" "$file.facts" && mv -f "$part" "$file" || exit 1
  part=
  sync "$folder" 2>/dev/null || :
fi
printf '\n%s %s %s %s\n' "$sum" "$((size))" "$made" "${file##*/}"
"""

_READ = r"""
[ -e "$file" ] || exit 85
check_bytes
joined clear read_back "$@" || exit
printf '\n%s %s lay %s\n' "$sum" "$(($(wc -c < "$file")))" "${file##*/}"
"""

_LIST = r"""
cd "$1" 2>/dev/null || exit 0
for name in *."$2" *."$2".enc; do
  [ -f "$name" ] && stat -c '%s %Y %n' "./$name"
done
:
"""

_REMOVE = r"""
for name in "$1/$2.$3" "$1/$2.$3.enc"; do rm -f "$name" "$name.facts"; done
"""


@dataclass(frozen=True)
class Program:
    """What an engine does for a backup: ``shell`` with ``dump`` and ``read_back``, their arguments, and files for them."""

    shell: str
    arguments: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class BackupFile:
    """A backup as it lies on the host: SHA-256 and size of the file itself; ``made`` when it was not there before.

    ``said`` is what ``read_back`` printed.
    """

    path: str
    sha256: str
    size: int
    made: bool
    said: str


@dataclass(frozen=True)
class BackupFiles:
    """The backups of one database in a folder on its host. ``ending`` tells their format (*dump*, *sql.gz*).

    With a ``passphrase`` new ones are sealed; those that lie there are read as they are.
    """

    transport: Transport
    folder: str
    ending: str
    errors: ScriptErrors
    passphrase: str | None = None

    def take(self, label: str, program: Program) -> BackupFile:
        """The backup of this label, made unless it is there; ``read_back`` has read it either way.

        One that cannot be read back does not get its name. Failed when it did not work; UsageError for a bad label.
        """
        result = self._run(_TAKE, label, program)
        if result.exit_code:
            raise self.errors.backup_failed(self._words(label, result))
        return self._file(result)

    def read(
        self,
        label: str,
        program: Program,
        *,
        sha256: str | None = None,
        failed: Callable[[str, str | None], PipelineError] | None = None,
    ) -> BackupFile:
        """What ``read_back`` said of the backup that lies there.

        NotKnown when there is none; Refused when its bytes are not ``sha256``. When it did not work: Failed, or what
        ``failed`` makes of the trouble's words and of what ``read_back`` had printed (None: the line was cut).
        """
        failed = failed or (lambda message, _: self.errors.backup_failed(message))
        result = self._run(_READ, label, program, sha256, failed)
        if result.exit_code == _NOT_THERE:
            raise NotKnown(
                f"there is no backup {label} of {self.errors.place}.",
                reasons=[Reason(f"{self.folder} holds none of that name", self.transport.name)],
            )
        if result.exit_code == _NOT_THAT_ONE:
            raise Refused(
                f"the backup {label} of {self.errors.place} is not the one that was recorded.",
                reasons=[Reason(self.errors.clean(result.stderr.decode(errors="replace")), self.transport.name)],
                state="The database was not changed.",
            )
        if result.exit_code:
            raise failed(self._words(label, result), result.stdout.decode(errors="replace"))
        return self._file(result)

    def found(self) -> list[BackupFound]:
        """The backups that lie there, oldest first; neither what is still being written nor other people's files."""
        result = self.transport.run(_LIST, [self.folder, self.ending])
        found = []
        name = re.compile(rf"\./([0-9A-Za-z][0-9A-Za-z._+-]{{0,199}})\.{re.escape(self.ending)}(?:\.enc)?")
        for line in result.stdout.decode(errors="replace").splitlines():
            size, at, path = line.split(" ", 2)
            if match := name.fullmatch(path):
                when = datetime.fromtimestamp(int(at), UTC)
                found.append((when, BackupFound(match[1], f"{self.folder}/{path[2:]}", int(size), f"{when:%FT%TZ}")))
        return [each for _, each in sorted(found, key=lambda pair: (pair[0], pair[1].label))]

    def remove(self, label: str) -> None:
        """The backup goes: one that was made just now and whose proof failed. Nothing when there is none."""
        self.transport.run(_REMOVE, [self.folder, self.errors.label(label), self.ending])

    def _run(
        self,
        work: str,
        label: str,
        program: Program,
        wanted: str | None = None,
        failed: Callable[[str, str | None], PipelineError] | None = None,
    ) -> Result:
        passphrase = self.passphrase or ""
        if "\n" in passphrase or "\0" in passphrase or len(passphrase.encode()) > 1000:
            raise UsageError("the passphrase for backups must be one line of at most 1000 bytes.")
        arguments = [self.folder, self.errors.label(label), self.ending, wanted or "", KDF_ROUNDS, *program.arguments]
        stdin = passphrase.encode() + b"\n" + _packed(program.files)
        try:
            return self.transport.run(_FRAME + program.shell + work, arguments, stdin=stdin, timeout=TIMEOUT)
        except LineCut:
            message = "the connection to the host was lost meanwhile"
            raise failed(message, None) if failed else self.errors.backup_failed(message) from None

    def _file(self, result: Result) -> BackupFile:
        said, _, line = result.stdout.decode(errors="replace").rstrip("\n").rpartition("\n")
        sha256, size, made, name = line.split(" ", 3)
        return BackupFile(f"{self.folder}/{name}", sha256, int(size), made == "made", said.rstrip("\n"))

    def _words(self, label: str, result: Result) -> str:
        """Why it did not work, without the passphrase."""
        message = result.stderr.decode(errors="replace").strip() or f"exit code {result.exit_code}"
        if self.passphrase:
            message = message.replace(self.passphrase, "***")
        if result.timed_out:
            return f"it took longer than {TIMEOUT / 3600:g} hours: {message}"
        if result.exit_code == _MISSING:
            return f"on {self.transport.name} {message}"
        if result.exit_code in {_UNREADABLE, _CHANGED}:
            return f"the backup {label} in {self.folder} cannot be read back: {message}"
        return message


def _packed(files: Mapping[str, bytes]) -> bytes:
    """The files as a tar."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


__all__: Sequence[str] = ("TIMEOUT", "BackupFile", "BackupFiles", "Program")
