"""What the rules ask about one deployment, gathered before they are asked. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pipeline.errors import Reason
from pipeline.model import Customer, Environment, Person
from pipeline.preflight import DatabaseFacts, HostFacts
from pipeline.state import ReleaseState, State

Purpose = Literal["deploy", "promote", "rollback"]


@dataclass(frozen=True)
class Facts:
    """Everything that the rules ask, gathered before they are asked.

    ``places`` leads from a name (``windows``, ``freezes.0``, ``approvers``…) to ``file:line:column``.
    ``findings`` are what the verification of the whole ledger found; ``content`` and ``settings`` are the digests computed
    now; ``contains`` says for each patch id installed on this environment whether the release has it. ``vanished`` leads
    from a script that the release lacks to the release that it ran here with; ``lost`` are scripts that were applied here
    and that the database's history lacks. ``test_hosts`` is filled for a promotion only; ``entered_by`` is who signed the
    record of the customer's decision. ``pending`` are the migrations that would run, ``unmatched`` those that would not,
    with the reason; ``without_backup`` says of each script that only a restore takes back, and that no backup comes before,
    what it is; ``blocked`` and ``refused_findings`` are sentences; ``unknown_schema``: the database has tables, and no
    history of them but those of the tools in ``foreign``. ``accept_drift`` is the reason given for going over what was
    changed on the hosts; ``size`` (bytes) and ``files`` are the release's.
    """

    purpose: Purpose
    now: datetime
    actor: Person
    customer: Customer
    environment: Environment
    state: State
    release: ReleaseState
    content: str
    settings: str
    resumes: bool = False
    entered_by: Person | None = None
    other_environments: Sequence[Environment] = ()
    hosts: Sequence[HostFacts] = ()
    test_hosts: Sequence[HostFacts] = ()
    contains: Mapping[str, bool] = field(default_factory=dict)
    findings: Sequence[Reason] = ()
    unknown_tickets: Sequence[str] = ()
    tickets: Sequence[str] = ()
    edited: Sequence[str] = ()
    vanished: Mapping[str, str] = field(default_factory=dict)
    lost: Sequence[str] = ()
    pending: Sequence[str] = ()
    unmatched: Mapping[str, str] = field(default_factory=dict)
    unrehearsed: Mapping[str, str] = field(default_factory=dict)
    blocked: Mapping[str, str] = field(default_factory=dict)
    without_backup: Mapping[str, str] = field(default_factory=dict)
    refused_findings: Sequence[Reason] = ()
    database: DatabaseFacts | None = None
    unknown_schema: bool = False
    foreign: Sequence[str] = ()
    accept_drift: str | None = None
    size: int = 0
    files: int = 0
    places: Mapping[str, str] = field(default_factory=dict)


Rule = Callable[[Facts], Iterator[Reason]]
