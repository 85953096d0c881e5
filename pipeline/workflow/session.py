"""Who acts, in which workspace, on which customer: what every function of the workflow is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigurationError, NotKnown, Reason, Refused, UsageError
from pipeline.repository import Repository
from pipeline.suggest import did_you_mean

# `status` does without the models and Pydantic, whose import costs more than all that it does: they are imported where
# they are used.
if TYPE_CHECKING:
    from pipeline.concealing import Concealer
    from pipeline.installation import Installation, Products
    from pipeline.ledger import Ledger
    from pipeline.model import Customer, Environment, Person, TicketRef
    from pipeline.settings import LoadedCustomer, LoadedPlaybook, Workspace
    from pipeline.signing import Signer
    from pipeline.state import Deployed, ReleaseState, State
    from pipeline.workflow.result import Result

__all__ = ["Dossier", "Result", "Session", "end_of_day"]


def __getattr__(name: str) -> Any:
    if name != "Result":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.workflow.result import Result

    return Result


@dataclass
class Session:
    """One workspace, one actor, one clock.

    ``progress`` gets one line at a time. ``signing_key`` overrides the workspace's ``signing_key``. A run id names
    everything that one command does; :meth:`new_run` makes one.
    """

    folder: Path
    signing_key: str | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    progress: Callable[[str], None] = lambda text: None
    _repositories: dict[str, Repository] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        signing_key: str | None = None,
        clock: Callable[[], datetime] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Session:
        """The session for the workspace in ``folder``, whose files are read when they are first needed."""
        # Not resolve(): it would follow links that people put on purpose.
        session = cls(folder=Path(os.path.abspath(folder)), signing_key=signing_key)  # noqa: PTH100
        if clock is not None:
            session.clock = clock
        if progress is not None:
            session.progress = progress
        return session

    @cached_property
    def workspace(self) -> Workspace:
        """The workspace's files; ConfigurationError when they are wrong."""
        from pipeline.settings import load_workspace

        return load_workspace(self.folder)

    @cached_property
    def _concealer(self) -> Concealer:
        from pipeline.concealing import Concealer

        return Concealer()

    @property
    def work(self) -> Path:
        """Where mirrors, caches, pages and reports lie; may be deleted."""
        return self.folder / self.workspace.settings.work

    def now(self) -> datetime:
        """The instant, UTC, to the second."""
        return self.clock().astimezone(UTC).replace(microsecond=0)

    def new_run(self) -> str:
        """A fresh run id: the instant and six random hexadecimal digits."""
        from secrets import token_hex

        return f"{self.now():%Y%m%dT%H%M%SZ}-{token_hex(3)}"

    @cached_property
    def signer(self) -> Signer:
        """Whoever's private key signs; UsageError (exit 2) with the command that makes one when there is none.

        The key file is ``signing_key`` of this session (the command line takes it from ``TMA_SIGNING_KEY``), else of
        workspace.yaml.
        """
        from pipeline.signing import MAKE_KEY, load_signer

        reference = self.signing_key or self.workspace.settings.signing_key
        if reference is None:
            raise UsageError(
                "there is no signing key, and every record is signed",
                reasons=[Reason("no signing_key: in workspace.yaml, and TMA_SIGNING_KEY is not set")],
                next_commands=[MAKE_KEY],
            )
        kind, _, rest = reference.partition(":")
        if kind == "env":
            rest = self.workspace.resolve(reference)
        elif kind != "file":
            rest = reference
        return load_signer(self.workspace.path(rest), self.workspace.people, self.now().date())

    @property
    def actor(self) -> Person:
        """The person in people.yaml whose key signs."""
        person = self.workspace.people.find(self.signer.key)
        assert person is not None
        return person

    def require(self, reasons: Iterable[Reason]) -> None:
        """Refused unless there is no reason against the actor."""
        found = tuple(Reason(reason.text, reason.source, "may_act") for reason in reasons)
        if found:
            raise Refused(f"{self.actor.key} may not do this.", reasons=found)

    def resolve(self, reference: str) -> str:
        """What a reference to a secret leads to; remembered so that :meth:`conceal` can take it out of texts."""
        value = self.workspace.resolve(reference)
        self._concealer.add(value)
        return value

    def conceal(self, text: str) -> str:
        """``text`` without any secret that this session has resolved, in the forms in which programs print them too."""
        return self._concealer.conceal(text)

    def repository(self, name: str | None = None) -> Repository:
        """The installations repository of this name (the first by default), opened once."""
        known = self.workspace.settings.installations
        chosen = next((entry for entry in known if entry.name == name), None) if name else known[0]
        if chosen is None:
            raise ConfigurationError(f"workspace.yaml names no installations repository {name!r}")
        return self.open_repository(chosen.name, chosen.path, chosen.remote, self.workspace.settings.work)

    def open_repository(self, name: str, path: str | None, remote: str | None, work: str) -> Repository:
        """The installations repository that workspace.yaml describes so, opened once."""
        if name not in self._repositories:
            place = self.folder / Path(path or f"{work}/installations/{name}.git").expanduser()
            if remote is not None and "://" not in remote and ":" not in remote.split("/")[0]:
                remote = str(self.folder / Path(remote).expanduser())
            self._repositories[name] = Repository.open(place, remote=remote)
        return self._repositories[name]

    def dossier(self, customer: str, *, deciding: bool = True) -> Dossier:
        """Everything about one customer; ``deciding`` is for what will change something.

        Then the actor must be entitled to (Refused), and the remote is fetched and lagging refs are completed first.
        """
        from pipeline import rules

        loaded = self.workspace.customer(customer)
        repository = self.repository(loaded.customer.installations)
        dossier = Dossier(session=self, loaded=loaded, repository=repository)
        if deciding:
            places = {"people": "environments/people.yaml", "team": f"environments/{customer}/customer.yaml"}
            self.require(rules.entitlement(self.actor, loaded.customer, places))
            repository.fetch()
            dossier.ledger.complete()
        return dossier


@dataclass
class Dossier:
    """One customer: configuration, installation in Git, ledger, and the product's playbook."""

    session: Session
    loaded: LoadedCustomer
    repository: Repository

    @property
    def customer(self) -> Customer:
        """The customer as configured."""
        return self.loaded.customer

    @property
    def key(self) -> str:
        """The customer's key."""
        return self.loaded.customer.key

    @cached_property
    def installation(self) -> Installation:
        """The customer's refs."""
        from pipeline.installation import Installation

        return Installation(self.repository, self.key)

    @cached_property
    def products(self) -> Products:
        """The product versions in the same repository."""
        from pipeline.installation import Products

        return Products(self.repository)

    @cached_property
    def ledger(self) -> Ledger:
        """The customer's records."""
        from pipeline.ledger import Ledger

        return Ledger(self.repository, self.key)

    @cached_property
    def playbook(self) -> LoadedPlaybook:
        """The product's playbook as it is now."""
        return self.session.workspace.playbook(self.customer.product)

    def state(self) -> State:
        """What the records add up to."""
        return self.ledger.state()

    def environment(self, key: str) -> Environment:
        """One environment; NotKnown when the customer has no such file."""
        return self.loaded.environment(key)

    def release(self, name: str | None, state: State) -> ReleaseState:
        """A release by name, the newest when None; NotKnown with the nearest match."""
        if name is None:
            newest = state.newest_release()
            if newest is None:
                raise NotKnown(
                    f"{self.key} has no release yet",
                    next_commands=[f"invoke release customer={self.key} version=… ticket=…"],
                )
            return newest
        found = state.releases.get(name)
        if found is None:
            raise NotKnown(
                f"{self.key} has no release {name!r}{did_you_mean(name, state.releases)}",
                reasons=[Reason(f"releases are {', '.join(state.releases) or 'none'}")],
            )
        return found

    def installed(self, environment: str, state: State) -> Deployed:
        """What is installed on an environment; NotKnown when nothing is."""
        found = state.environment(environment).installed
        if found is None:
            verb = "promote" if environment == "production" else "deploy"
            raise NotKnown(
                f"nothing is installed on {environment} of {self.key}",
                next_commands=[f"invoke {verb} customer={self.key}"],
            )
        return found

    def decision_command(self, release: str, by: str | None = None) -> str:
        """What to type once the customer has answered; ``by`` is the first approver unless given."""
        return (
            f"invoke signoff.record customer={self.key} release={release} decision=… "
            f"by={by or self.customer.approvers[0]} evidence=…"
        )

    def tickets(self, ids: Sequence[str]) -> tuple[TicketRef, ...]:
        """References to tickets in the customer's tracker."""
        from pipeline.model import TicketRef

        return tuple(TicketRef(tracker=self.customer.tracker, id=id) for id in ids)

    def configuration(self, *environments: str) -> dict[str, bytes]:
        """The bytes of the files that a decision uses, to be kept with its record."""
        sources = self.loaded.sources
        files = {f"{name}.yaml": sources[name].data for name in ("customer", *environments) if name in sources}
        return files | {f"playbooks/{self.customer.product}.yaml": self.playbook.source.data}

    def people_used(self, *keys: str) -> str:
        """The entries of people.yaml for these keys, as canonical JSON: kept outside the ledger, since they name people."""
        from pipeline.content import canonical

        entries: list[Mapping[str, Any]] = []
        for key in sorted(set(keys)):
            person = self.session.workspace.people.find(key)
            if person is not None:
                entries.append(person.model_dump(mode="json"))
        return canonical(entries).decode()


def end_of_day(day: date, customer: Customer) -> datetime:
    """The last minute of a calendar day on the customer's clock, as an instant in UTC."""
    from zoneinfo import ZoneInfo

    return datetime.combine(day, time(23, 59), ZoneInfo(customer.time_zone)).astimezone(UTC)
