"""The nouns of the pipeline: frozen Pydantic models that refuse every unknown field.

Configuration first (what people write in YAML), then the nouns of a release, then records (what the ledger keeps).
Instants are aware ``datetime`` in UTC; content hashes are SHA-256 in lower-case hexadecimal (64 characters); Git object
ids are SHA-1 in hexadecimal (40 characters). This module imports no Git, SSH, SQL or HTTP.
"""

# No annotations from __future__ here: Pydantic would compile each from its text, which takes a third of this import.

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

from pipeline.paths import is_plain, path_bytes

RESERVED_NAMES = frozenset({"product"})
"""Keys that no customer can have: ``refs/tags/product/`` holds the products' versions."""

Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
"""Name of a customer, person, product or environment: lower-case letters, digits and inner hyphens."""

VersionText = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z](?:[0-9A-Za-z._-]{0,98}[0-9A-Za-z])?$")]
"""A product's version as written; without ``+``, which separates the build for one customer."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ObjectId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
SecretReference = Annotated[str, StringConstraints(pattern=r"^(env|file):.+$")]
"""Where a secret is, never the secret: ``env:NAME`` or ``file:PATH`` (relative to the workspace)."""


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs a time zone, for instance 2026-11-22T20:00:00Z")
    return value.astimezone(UTC).replace(microsecond=0)


Instant = Annotated[
    datetime, AfterValidator(_utc), PlainSerializer(lambda value: value.strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str)
]
"""An instant to the second, always in UTC; written as ``2026-11-22T20:00:00Z`` (RFC 3339)."""


class Noun(BaseModel):
    """Base of every model here: frozen, no unknown fields."""

    # Built when first used: most commands use a few of them. Safe with threads from Pydantic 2.14 on.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def _plain(value: str) -> str:
    if not is_plain(value):
        raise ValueError(
            "a file named here has no control character, no backslash and only UTF-8 in its name; rename it"
        )
    return value


PlainPath = Annotated[str, AfterValidator(_plain)]
"""A file or folder of a release as a playbook names it: without anything that :mod:`pipeline.paths` would escape."""


# --- configuration: the workspace and its people ---------------------------------------------------------------------


class InstallationsRepository(Noun):
    """One repository of installations: a local bare folder, or a Git remote mirrored under ``work``."""

    name: Key = "main"
    path: str | None = Field(None, description="folder of a local bare repository, relative to the workspace")
    remote: str | None = Field(None, description="URL or path of a shared bare repository; mirrored locally")


class WorkspaceSettings(Noun):
    """``environments/workspace.yaml``: where things are, and defaults."""

    installations: tuple[InstallationsRepository, ...] = Field(min_length=1)
    ssh_config: str | None = None
    known_hosts: str | None = None
    signing_key: SecretReference | None = None
    work: str = "var"
    hint_unreachable: str | None = Field(None, description="added to an error about a host that cannot be reached")
    local_while: str | None = Field(
        None, description="while this file exists, hosts whose folder is relative are this machine (transport local)"
    )


class SigningKey(Noun):
    """An Ed25519 public key in OpenSSH form (``ssh-ed25519 AAAA…``), or ``file:PATH`` of such a file."""

    public: str = Field(pattern=r"^(ssh-ed25519 [A-Za-z0-9+/=]+.*|file:.+)$")
    valid_from: date | None = None
    valid_until: date | None = None


Role = Literal["engineer", "lead", "approver", "auditor", "service"]


class Person(Noun):
    """Somebody, or a service, who acts: ``customers`` lists keys, or ``*`` for all."""

    key: Key
    name: str
    mail: str | None = None
    kind: Literal["person", "service"] = "person"
    roles: tuple[Role, ...] = Field(min_length=1)
    customers: tuple[str, ...] = ("*",)
    keys: tuple[SigningKey, ...] = ()

    def serves(self, customer: str) -> bool:
        """Whether this person works for or at this customer."""
        return "*" in self.customers or customer in self.customers


class People(Noun):
    """``environments/people.yaml``."""

    people: tuple[Person, ...]

    def find(self, key: str) -> Person | None:
        """The person with this key, or None."""
        return next((person for person in self.people if person.key == key), None)


# --- configuration: a customer and its environments ------------------------------------------------------------------

Language = Literal["fr", "de", "en"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Customer(Noun):
    """``environments/<customer>/customer.yaml``; the folder's name is the key."""

    key: Key
    name: str
    language: Language
    time_zone: str = Field(description="IANA name, for instance Europe/Paris")
    product: Key
    party: str | None = None
    installations: Key | None = Field(None, description="name of the installations repository; the first by default")
    approvers: tuple[Key, ...] = Field(min_length=1)
    team: tuple[Key, ...] = Field((), description="engineers; everyone who serves the customer when empty")
    sign_off_days: int = Field(10, ge=1, le=365, description="calendar days to decide, unless due= says otherwise")
    ticket_prefix: str | None = Field(None, pattern=r"^[A-Z][A-Z0-9]{0,15}$")
    tracker: Literal["ledger"] = "ledger"


class Become(Noun):
    """Another user of the host, as whom everything is run there, through ``sudo``."""

    user: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    password: SecretReference | None = Field(None, description="of the user who logs in, where sudo asks for it")


class Host(Noun):
    """An application host; connection details may come from the workspace's ``ssh_config`` under ``address``."""

    name: Key
    address: str
    port: int | None = Field(None, ge=1, le=65535)
    user: str | None = None
    host_key: str | None = Field(None, description="'ssh-ed25519 AAAA…', pinned; else known_hosts decides")
    become: Become | None = None
    folder: str = Field(
        pattern=r"^[^~].*[^/]$",
        description="absolute on the host; a relative one is in the workspace, for a host that is this machine",
    )
    values: dict[str, Any] = {}


Engine = Literal["postgresql", "mariadb", "mysql", "sqlite"]
"""A database engine; MariaDB and MySQL share an adapter."""


class BackupSettings(Noun):
    """How backups of a database are made and when one counts as proven.

    ``proof``: *archive* reads the whole backup back; *restore* restores it into the scratch database as well.
    ``encrypt`` refers to a passphrase: the backup is never on a disk in the clear then.
    """

    proof: Literal["archive", "restore"] = "archive"
    encrypt: SecretReference | None = None


class DatabaseSettings(Noun):
    """The environment's database. SQLite: ``path``, relative to the host's folder. Others: as seen from the host.

    ``way``: through a *tunnel* of the deployment's own connection, or by the engine's own *client* on the host where
    forwarding is forbidden. ``tls``: *verify-full* where the server demands TLS; ``tls_ca`` is a file of the workspace.
    ``scratch`` names a database of the same server that belongs to this tool alone: trial restores and rehearsals
    destroy what is in it. ``lock_timeout``: seconds that a statement may wait for a lock.
    """

    engine: Engine
    path: str | None = None
    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=1, le=65535, description="the engine's own port by default")
    name: str | None = None
    user: str | None = None
    password: SecretReference | None = None
    way: Literal["tunnel", "client"] = "tunnel"
    tls: Literal["off", "verify-full"] = "off"
    tls_ca: str | None = None
    scratch: str | None = None
    lock_timeout: int = Field(5, ge=1, le=3600)
    backup: BackupSettings = Field(default_factory=BackupSettings)

    @property
    def reached_at(self) -> int:
        """The server's port: the one that is given, or the engine's own."""
        return self.port or {"postgresql": 5432, "mariadb": 3306, "mysql": 3306, "sqlite": 0}[self.engine]


class Window(Noun):
    """A weekly maintenance window, local time in the customer's zone; ``until`` before ``start`` runs past midnight."""

    days: tuple[Weekday, ...] = Field(min_length=1)
    start: time
    until: time


class Freeze(Noun):
    """A time in which the environment must not be changed; half-open: ``start`` counts, ``until`` does not."""

    start: Instant
    until: Instant
    reason: str


class Environment(Noun):
    """``environments/<customer>/<environment>.yaml``: test, integration or production of one customer."""

    key: Literal["test", "integration", "production"]
    transport: Literal["ssh", "local"] = "ssh"
    hosts: tuple[Host, ...] = Field(min_length=1)
    url: str | None = Field(None, description="address at which the customer finds it")
    database: DatabaseSettings | None = None
    values: dict[str, Any] = {}
    secrets: dict[str, SecretReference] = {}
    windows: tuple[Window, ...] = ()
    freezes: tuple[Freeze, ...] = ()


# --- configuration: a product's migrations ----------------------------------------------------------------------------

Layout = Literal["ordered", "flyway", "dbmate", "up-down", "sqitch"]
"""How a product keeps its migrations: as the tools of these names do; *ordered* is a file a script, in order of names."""


class Migrations(Noun):
    """Where a release keeps its migrations; patterns are matched against the file's name.

    ``folder`` may hold ``{engine}``, a folder an engine. ``initial`` is the full schema for a new database, a file of the
    release. ``additive`` ones leave a schema on which the old code can run, which is not asked of their text then;
    ``irreversible`` ones do not, whatever else is said of them. What the lint's rules in ``refuse`` find refuses a
    deployment; what others find is only shown. ``restore``: a failure after a script that the code alone does not bring
    back from restores the backup *when-stopped*, if nobody can have written to the database between the two; or *always*,
    even if what was written since is lost.
    """

    folder: PlainPath
    layout: Layout = "ordered"
    pattern: str = "*.sql"
    initial: PlainPath | None = None
    irreversible: tuple[str, ...] = ()
    additive: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    restore: Literal["when-stopped", "always"] = "when-stopped"


# --- a release ---------------------------------------------------------------------------------------------------------

Mode = Literal["100644", "100755", "120000"]
"""Git's modes of what a release may hold: file, executable file, symbolic link."""


def _file_name(value: str) -> str:
    path_bytes(value)
    return value


class TreeFile(Noun):
    """One file of a release's tree. ``path`` is relative, ``/``-separated, as :func:`pipeline.paths.path_text` gives it."""

    path: Annotated[str, AfterValidator(_file_name)]
    mode: Mode
    blob: ObjectId
    sha256: Sha256
    size: int


class Manifest(Noun):
    """Every file of a release with its SHA-256, sorted by the bytes of the path."""

    tree: ObjectId
    files: tuple[TreeFile, ...]


class Script(Noun):
    """A migration: one ordered, checksummed SQL script of a release.

    ``id`` is its path below the migrations folder (sqitch: the change's name); ``checksum`` is SHA-256 over the whole
    file's bytes normalised by ``algorithm``: ``sha256-bom-eol`` drops a leading UTF-8 BOM and turns CRLF and CR into LF.

    ``kind``: *versioned* runs once, *repeatable* after all others whenever its text is another, *initial* is the full
    schema of a new database, after which the release's versioned scripts count as applied. ``phase``: before (*expand*)
    or after (*contract*) the code is switched; None leaves it to the playbook's steps. ``lines`` are the first and the last
    line (from 1) of the part that runs, None for all. ``transactional``: False where the script says that it runs outside
    a transaction. ``client``: it needs the engine's own client. ``session``: it depends on the session's state, so that it
    cannot be resumed in the middle. ``verify`` is the blob of a script that must run after it without an error.
    ``accepted`` are lint rules that its author has judged harmless here, each with the reason.
    """

    id: str
    checksum: Sha256
    algorithm: Literal["sha256-bom-eol"] = "sha256-bom-eol"
    blob: ObjectId
    kind: Literal["versioned", "repeatable", "initial"] = "versioned"
    phase: Literal["expand", "contract"] | None = None
    lines: tuple[int, int] | None = None
    transactional: bool = True
    client: bool = False
    session: bool = False
    verify: ObjectId | None = None
    accepted: dict[str, str] = {}


class Applied(Noun):
    """One row of the migration history in the customer's database.

    ``state``: *done*; *running* where a script that commits statement by statement was begun and not finished, with
    ``statement`` of its ``statements`` known to be committed: it is blocked until somebody repairs it; *baseline* counts
    as applied, and was not run by us. ``session``: it depends on what its earlier statements did to the session, so it
    cannot go on in the middle.
    """

    script: str
    checksum: str
    algorithm: str
    fence: int
    run: str
    release: str
    at: Instant
    state: Literal["done", "running", "baseline"] = "done"
    statement: int = 0
    statements: int = 0
    session: bool = False


class HistoryEvent(Noun):
    """One event of a database's migration history, which is only ever added to; ``number`` counts from 1 in its database.

    ``what``: *started* (a script that commits statement by statement), *applied*, *reapplied* (a repeatable one),
    *baselined*, *resumed*, *marked-done*, *marked-reverted*, *restored*.
    """

    number: int
    what: str
    script: str | None
    checksum: str | None
    fence: int
    run: str
    release: str
    at: Instant
    details: dict[str, Any] = {}


# --- records -----------------------------------------------------------------------------------------------------------

RECORD_SCHEMA = 1

RecordKind = Literal[
    "line-started",
    "release-made",
    "patch-made",
    "ticket-opened",
    "ticket-closed",
    "deployment-started",
    "deployment-partly-done",
    "deployment-finished",
    "sign-off-requested",
    "sign-off-page-written",
    "sign-off-recorded",
    "migration-accepted",
    "migrations-baselined",
    "migration-repaired",
    "backup-made",
    "backup-proven",
    "backup-restored",
    "lock-released",
    "erased",
]

Outcome = Literal["ok", "failed", "unknown"]


class TicketRef(Noun):
    """Where a ticket is: the tracker's name and the ticket's id in it."""

    tracker: str
    id: str


class RefMove(Noun):
    """One ref that a record moves: ``old`` None makes it, ``new`` None removes it."""

    ref: str
    old: ObjectId | None
    new: ObjectId | None


class Actor(Noun):
    """Who signed the record: the key in people.yaml, and the Ed25519 public key (OpenSSH form) that verifies it."""

    key: Key
    kind: Literal["person", "service"]
    public_key: str


class Record(Noun):
    """One entry of a customer's ledger; its bytes are the RFC 8785 form of :meth:`pydantic.BaseModel.model_dump`.

    ``previous`` is the SHA-256 of the bytes of the record before (None for the first), ``number`` counts from 1.
    ``texts`` maps a name to the salted hash of a text kept outside the ledger; ``configuration`` maps a file's name to
    the SHA-256 of its bytes, kept in the ledger's tree. ``effects`` and ``campaign`` are for trackers and campaigns to come.
    """

    schema_version: int = RECORD_SCHEMA
    id: str
    run: str
    number: int
    kind: RecordKind
    at: Instant
    actor: Actor
    customer: Key
    product: Key
    previous: Sha256 | None
    environment: str | None = None
    release: str | None = None
    content: Sha256 | None = None
    outcome: Outcome | None = None
    tickets: tuple[TicketRef, ...] = ()
    moves: tuple[RefMove, ...] = ()
    effects: tuple[dict[str, Any], ...] = ()
    campaign: str | None = None
    configuration: dict[str, Sha256] = {}
    texts: dict[str, Sha256] = {}
    details: dict[str, Any] = {}


class Draft(Noun):
    """What a decision wants recorded; the ledger fills in number, previous, actor and the texts' hashes.

    ``id`` makes it idempotent: a draft whose id is in the ledger already is not written again. ``texts`` are plain texts
    or bytes; ``configuration`` the bytes of files. ``moves`` are the refs that move with the record.
    """

    id: str
    run: str
    kind: RecordKind
    at: Instant
    product: Key
    environment: str | None = None
    release: str | None = None
    content: Sha256 | None = None
    outcome: Outcome | None = None
    tickets: tuple[TicketRef, ...] = ()
    moves: tuple[RefMove, ...] = ()
    configuration: dict[str, bytes] = {}
    texts: dict[str, str | bytes] = {}
    details: dict[str, Any] = {}


# --- decisions ---------------------------------------------------------------------------------------------------------

Decision = Literal["approved", "approved-with-reservations", "rejected"]
Verdict = Literal["works", "works-with-remark", "does-not-work", "not-tested"]
Severity = Literal["blocking", "major", "minor"]
