"""A PostgreSQL backup on the host: ``pg_dump`` in custom format, read back whole by ``pg_restore`` before it counts.

``pg_restore --list`` reads only the table of contents, and a dump cut in its data passes it; so the whole dump is turned
into SQL once, into nothing. The password goes over standard input, never onto a command line.
"""

from __future__ import annotations

from pipeline.databases import BackupTaken
from pipeline.databases.script_errors import ScriptErrors
from pipeline.model import DatabaseSettings
from pipeline.transports import LineCut, Transport

TIMEOUT = 6 * 3600.0

_MISSING = 86
_UNPROVEN = 87
_SCRIPT = r"""
set -eu
umask 077
folder=$1 file=$1/$2.dump address=$3 port=$4 user=$5 database=$6
export LC_ALL=C PGPASSFILE=/dev/null PGCONNECT_TIMEOUT=15
PGPASSWORD=$(cat); export PGPASSWORD
if ! command -v pg_dump >/dev/null 2>&1 || ! command -v pg_restore >/dev/null 2>&1; then
  newest=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
  PATH=$PATH:${newest:-/nonexistent}; export PATH
fi
for tool in pg_dump pg_restore sha256sum; do
  command -v "$tool" >/dev/null 2>&1 || { echo "$tool is not installed" >&2; exit 86; }
done
mkdir -p "$folder"
part=$file
if [ ! -e "$file" ]; then
  part=$file.part.$$
  trap 'rm -f "$part"' EXIT
  pg_dump --format=custom --no-password --lock-wait-timeout=60000 \
    --host="$address" --port="$port" --username="$user" --file="$part" "$database"
fi
entries=$(pg_restore --list "$part" | grep -c '^[0-9]') || entries=0
pg_restore --file=/dev/null "$part" || exit 87
sync "$part" 2>/dev/null || sync
if [ "$part" != "$file" ]; then mv -f "$part" "$file"; trap - EXIT; sync "$folder" 2>/dev/null || :; fi
set -- $(sha256sum < "$file")
printf '%s %s %s\n' "$1" "$(wc -c < "$file")" "$entries"
"""


def take_backup(
    transport: Transport,
    settings: DatabaseSettings,
    password: str | None,
    folder: str,
    label: str,
    errors: ScriptErrors,
) -> BackupTaken:
    """The proven backup ``<folder>/<label>.dump`` on the host; see :meth:`pipeline.databases.Database.backup`."""
    arguments = [folder, label, settings.host, str(settings.port), settings.user or "", settings.name or ""]
    try:
        result = transport.run(_SCRIPT, arguments, stdin=(password or "").encode(), timeout=TIMEOUT)
    except LineCut:
        raise errors.backup_failed("the connection to the host was lost while the backup was taken") from None
    if result.exit_code:
        message = result.stderr.decode(errors="replace").strip() or f"exit code {result.exit_code}"
        if result.exit_code == _MISSING:
            message = f"on {transport.name} {message}: install PostgreSQL's client programs there"
        if result.exit_code == _UNPROVEN:
            message = f"{folder}/{label}.dump cannot be read back: {message}"
        raise errors.backup_failed(message)
    sha256, size, entries = result.stdout.decode().split()
    proof = f"pg_restore read the whole dump back, {entries} entries"
    return BackupTaken(path=f"{folder}/{label}.dump", sha256=sha256, size=int(size), proven_by=proof)
