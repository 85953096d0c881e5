"""PostgreSQL's own programs on the host: found there, and told whom to connect to without a password in sight.

libpq is told by its environment variables, all of them, so that nothing of the host's user (a service file, a ``.pgpass``,
``PGOPTIONS``) has a say. The password is in a password file (0600) that came over standard input; see
:mod:`pipeline.databases.backup_files` for ``"$private"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigurationError, Reason
from pipeline.model import DatabaseSettings

REACH = r"""
# $1 address, $2 port, $3 user, $4 database, $5 sslmode
reach() {
  unset PGSERVICE PGOPTIONS PGHOSTADDR PGPASSWORD PGREQUIRESSL PGSSLCERT PGSSLKEY PGSSLCRL PGCHANNELBINDING PGREQUIREPEER
  unset PGDATESTYLE PGTZ PGGEQO PGCLIENTENCODING PGTARGETSESSIONATTRS PGLOCALEDIR PSQL_HISTORY PSQL_EDITOR PAGER PSQL_PAGER
  export PGHOST="$1" PGPORT="$2" PGUSER="$3" PGDATABASE="$4" PGSSLMODE="$5" PGSSLROOTCERT=system
  [ ! -e "$private/ca" ] || PGSSLROOTCERT=$private/ca
  export PGPASSFILE="$private/password" PGSERVICEFILE=/dev/null PGSYSCONFDIR=/nonexistent PGAPPNAME="${6:-tma-pipeline}"
  export PGCONNECT_TIMEOUT=15 PGCLIENTENCODING=UTF8 PSQLRC=/dev/null
}
# The programs named; where PATH has not all of them, those of the newest PostgreSQL that a distribution put aside.
need() {
  for tool in "$@"; do
    command -v "$tool" >/dev/null 2>&1 && continue
    for aside in $(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -V); do
      [ ! -x "$aside/$tool" ] || PATH=$aside:$PATH
    done
    export PATH
    command -v "$tool" >/dev/null 2>&1 || {
      echo "$tool is not installed: install PostgreSQL's client programs there" >&2
      return 86
    }
  done
}
# The major version of a program: 15, or 9.6 as 9.
major() { "$1" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/'; }
# $1 program, $2 server_version_num: a program older than the server cannot be relied on.
young_enough() {
  [ "$(major "$1")" -ge "$(($2 / 10000))" ] || {
    echo "$1 is of version $(major "$1") and older than the server, which has $(($2 / 10000)): install the programs of" \
      "PostgreSQL $(($2 / 10000)) there" >&2
    return 86
  }
}
"""
"""Shell functions for :class:`pipeline.databases.backup_files.Program` and for the client: ``need``, ``reach``, …"""

REACH_ARGUMENTS = 5
"""How many of the arguments ``reach`` takes."""


@dataclass(frozen=True)
class Reach:
    """How the programs reach a database. ``ca`` is the certificate that vouches for the server; without it the file of this
    machine that ``settings.tls_ca`` names is read."""

    settings: DatabaseSettings
    password: str | None = None
    ca: bytes | None = None

    def arguments(self, database: str | None = None) -> tuple[str, ...]:
        """Those of ``reach``; ``database`` is another one on the same server."""
        settings = self.settings
        mode = "verify-full" if settings.tls == "verify-full" else "prefer"
        return settings.host, str(settings.reached_at), settings.user or "", database or settings.name or "", mode

    def files(self) -> dict[str, bytes]:
        """``password``, a libpq password file, and ``ca`` where there is one; ConfigurationError when it cannot be read."""
        password = (self.password or "").replace("\\", "\\\\").replace(":", "\\:")
        files = {"password": f"*:*:*:*:{password}\n".encode() if password else b""}
        if self.ca is not None:
            return files | {"ca": self.ca}
        if self.settings.tls == "off" or self.settings.tls_ca is None:
            return files
        try:
            return files | {"ca": Path(self.settings.tls_ca).read_bytes()}
        except OSError as error:
            raise ConfigurationError(
                "the certificate for the database's server cannot be read.",
                reasons=[Reason(f"tls_ca: {error.strerror}", self.settings.tls_ca)],
            ) from None
