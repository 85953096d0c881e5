"""The workspace's YAML files as models: ``environments/``, ``playbooks/``; every error as ``file:line:column``.

A file is read when it is asked for, so that ``status`` reads of each customer its ``customer.yaml`` only. All errors of
one file come as one ConfigurationError. Secrets stay references until :meth:`Workspace.resolve`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.cross_checks import (
    check_customer,
    check_environment,
    check_people,
    check_workspace,
    public_key,
    small_text,
)
from pipeline.errors import ConfigurationError, NotKnown, Reason
from pipeline.model import (
    Customer,
    Environment,
    InstallationsRepository,
    Key,
    People,
    Person,
    WorkspaceSettings,
)
from pipeline.strict_yaml import MAX_BYTES, Source, parse, wrong
from pipeline.suggest import did_you_mean
from pipeline.validation import Model, validated

if TYPE_CHECKING:
    from pipeline.playbook import Playbook

__all__ = ["LoadedCustomer", "LoadedPlaybook", "Source", "Workspace", "load_workspace"]

ENVIRONMENTS = ("test", "integration", "production")
DATED_KEYS = frozenset({"start", "until", "valid_from", "valid_until"})
"""Fields that hold a date, an instant or a time of day, which there need no quotes."""

_KEY = re.compile(get_args(Key)[1].pattern)


class LoadedCustomer:
    """One customer: ``customer.yaml`` read and checked; its environments are read at the first use."""

    def __init__(self, workspace: Workspace, customer: Customer, source: Source) -> None:
        self.customer = customer
        self._workspace = workspace
        self._source = source

    @cached_property
    def _loaded(self) -> dict[str, tuple[Environment, Source]]:
        return dict(_environments(self._workspace, self.customer))

    @property
    def environments(self) -> dict[str, Environment]:
        """Its environments by key, in the order test, integration, production; ConfigurationError where one is wrong."""
        return {key: environment for key, (environment, _) in self._loaded.items()}

    @property
    def sources(self) -> dict[str, Source]:
        """The files read: ``customer`` and each environment's key."""
        return {"customer": self._source} | {key: source for key, (_, source) in self._loaded.items()}

    def environment(self, key: str) -> Environment:
        """The environment ``key``; NotKnown with the nearest one that this customer has."""
        found = self._loaded.get(key)
        if found is None:
            raise NotKnown(
                f"{self.customer.key} has no environment '{key}'{did_you_mean(key, self._loaded)}.",
                reasons=[Reason("an environment is a file of this folder", f"environments/{self.customer.key}/")],
            )
        return found[0]


class LoadedPlaybook:
    """A product's playbook; ``raw`` is the YAML as written, without defaults, which is what the content hash binds."""

    def __init__(self, playbook: Playbook, source: Source) -> None:
        self.playbook = playbook
        self.source = source
        self.raw: Any = source.value


class Workspace:
    """A folder with ``environments/`` and ``playbooks/``; made by :func:`load_workspace`.

    In ``people`` each ``public: file:PATH`` is replaced by the key in that file; one whose file does not exist yet stays
    as it is written, and :meth:`missing_keys` names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: dict[str, Source] = {}
        self._customers: dict[str, LoadedCustomer] = {}
        self._playbooks: dict[str, LoadedPlaybook] = {}
        self.settings = self.load("environments/workspace.yaml", WorkspaceSettings, check_workspace)
        as_written = self.load(
            "environments/people.yaml", People, lambda people, source: check_people(people, source, folder)
        )
        self.people = People(people=tuple(self._with_keys(person) for person in as_written.people))

    def path(self, written: str) -> Path:
        """A path of the configuration: absolute, or relative to the workspace; ``~`` is the user's folder."""
        return self.folder / Path(written).expanduser()

    @cached_property
    def customers(self) -> tuple[str, ...]:
        """The keys of all customers: folders of ``environments/`` with a ``customer.yaml``."""
        with os.scandir(self.folder / "environments") as entries:
            return tuple(sorted(e.name for e in entries if os.path.isfile(f"{e.path}/customer.yaml")))  # noqa: PTH113

    @cached_property
    def products(self) -> tuple[str, ...]:
        """The keys of all products that have a playbook."""
        return tuple(sorted(path.stem for path in (self.folder / "playbooks").glob("*.yaml")))

    def customer(self, key: str) -> LoadedCustomer:
        """The customer ``key``; NotKnown with the nearest, ConfigurationError where its ``customer.yaml`` is wrong."""
        if key not in self._customers:
            if key not in self.customers:
                raise NotKnown(
                    f"there is no customer '{key}'{did_you_mean(key, self.customers)}.",
                    reasons=[Reason("a customer is a folder with a customer.yaml", "environments/")],
                    next_commands=["invoke status"],
                )
            name = f"environments/{key}/customer.yaml"

            def check(customer: Customer, source: Source) -> Iterable[Reason]:
                return check_customer(
                    customer, source, people=self.people, settings=self.settings, products=self.products
                )

            customer = self.load(name, Customer, check, {"key": key})
            self._customers[key] = LoadedCustomer(self, customer, self.sources[name])
        return self._customers[key]

    def playbook(self, product: str) -> LoadedPlaybook:
        """The playbook of ``product``; NotKnown with the nearest, ConfigurationError where it is wrong."""
        from pipeline.playbook import Playbook

        if product not in self._playbooks:
            if product not in self.products:
                raise NotKnown(
                    f"there is no product '{product}'{did_you_mean(product, self.products)}.",
                    reasons=[Reason("a product is a file here", "playbooks/")],
                )
            name = f"playbooks/{product}.yaml"
            playbook = self.load(name, Playbook, fixed={"product": product}, written_short=True)
            self._playbooks[product] = LoadedPlaybook(playbook, self.sources[name])
        return self._playbooks[product]

    def installations(self, customer: Customer) -> InstallationsRepository:
        """The repository that holds this customer's installation: the one it names, else the first."""
        named = customer.installations
        return next(r for r in self.settings.installations if named is None or r.name == named)

    def missing_keys(self, person: Person) -> tuple[Reason, ...]:
        """The key files that people.yaml names for this person and that do not exist, each with its place."""
        source = self.sources["environments/people.yaml"]
        number = next((n for n, other in enumerate(self.people.people) if other.key == person.key), -1)
        return tuple(
            Reason(
                f"{key.public.removeprefix('file:')} does not exist",
                source.position("people", number, "keys", n, "public"),
            )
            for n, key in enumerate(person.keys)
            if key.public.startswith("file:")
        )

    def resolve(self, reference: str, *, source: str | None = None) -> str:
        """The secret that ``env:NAME`` or ``file:PATH`` refers to, a file's final line end dropped.

        To be called by adapters only, at the moment of use. ConfigurationError names the reference and ``source``, its
        place, never the value.
        """
        kind, _, name = reference.partition(":")
        reason: str | None = None
        value = ""
        if kind == "env":
            value = os.environ.get(name, "")
            reason = None if value else "the environment variable is not set, or empty"
        elif kind == "file":
            value, reason = small_text(self.path(name))
            value = value.removesuffix("\n").removesuffix("\r")
            reason = reason or (None if value else "the file is empty")
        else:
            # A reference of no known kind may be the secret itself, written in the wrong place.
            reference, reason = "a reference", "it is neither env:NAME nor file:PATH"
        if reason:
            raise ConfigurationError(
                f"the secret {reference} cannot be read.",
                reasons=[Reason(reason, source)],
                next_commands=[f"export {name}=…"] if kind == "env" else (),
            )
        return value

    def load(
        self,
        name: str,
        model: type[Model],
        check: Callable[[Model, Source], Iterable[Reason]] | None = None,
        fixed: Mapping[str, str] | None = None,
        *,
        written_short: bool = False,
    ) -> Model:
        """The file as ``model``; every problem of the file, ``check``'s included, in one ConfigurationError."""
        for word in (fixed or {}).values():
            if not _KEY.fullmatch(word):
                raise ConfigurationError(
                    f"the name {word!r} is not right.",
                    reasons=[Reason("a name has lower-case letters, digits and inner hyphens, at most 63", name)],
                )
        source = parse(name, _bytes(self.folder, name), dated=DATED_KEYS)
        loaded, reasons = validated(model, source, fixed, written_short=written_short)
        if loaded is not None and check is not None:
            reasons += check(loaded, source)
        if loaded is None or reasons or source.problems:
            raise wrong(source, reasons)
        self.sources[name] = source
        return loaded

    def _with_keys(self, person: Person) -> Person:
        keys = []
        for key in person.keys:
            public = public_key(self.path(key.public[5:])) if key.public.startswith("file:") else key.public
            keys.append(key.model_copy(update={"public": public or key.public}))
        return person.model_copy(update={"keys": tuple(keys)})


def load_workspace(folder: Path) -> Workspace:
    """The workspace in ``folder``; ConfigurationError where ``workspace.yaml`` or ``people.yaml`` is wrong or missing."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links that people put on purpose
    if not (folder / "environments" / "workspace.yaml").exists():
        raise ConfigurationError(
            f"{folder} is no workspace.",
            reasons=["environments/workspace.yaml does not exist there"],
            next_commands=["cd to the folder that holds environments/ and playbooks/"],
        )
    return Workspace(folder)


def _environments(workspace: Workspace, customer: Customer) -> Iterator[tuple[str, tuple[Environment, Source]]]:
    folder = f"environments/{customer.key}"
    names = {path.name for path in (workspace.folder / folder).iterdir() if path.suffix in {".yaml", ".yml"}}
    known = [f"{key}.yaml" for key in ENVIRONMENTS]
    strange = sorted(names - {"customer.yaml", *known})
    if strange:
        # A file that is passed over in silence (prod.yaml) may hold the freeze that somebody relies on.
        raise ConfigurationError(
            f"{folder} holds a file that is no environment.",
            reasons=[Reason(f"{name} is not read{did_you_mean(name, known)}", f"{folder}/{name}") for name in strange],
        )

    def check(environment: Environment, source: Source) -> Iterable[Reason]:
        return check_environment(environment, source, relative=workspace.settings.local_while is not None)

    for key in ENVIRONMENTS:
        name = f"{folder}/{key}.yaml"
        if f"{key}.yaml" in names:
            environment = workspace.load(name, Environment, check, {"key": key})
            yield key, (environment, workspace.sources[name])


def _bytes(folder: Path, name: str) -> bytes:
    path = folder / name
    fault = "is not a plain file"
    try:
        if path.is_file():
            with path.open("rb") as file:
                # read(n) sets n bytes aside first, which for a small file costs more than all the rest.
                large = os.fstat(file.fileno()).st_size > MAX_BYTES
                return file.read(MAX_BYTES + 1) if large else file.read()
        if not os.path.lexists(path):
            fault = "does not exist"
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    raise ConfigurationError(f"{name} {fault}.", reasons=[Reason(f"looked in {folder}", f"{name}:1:1")])
