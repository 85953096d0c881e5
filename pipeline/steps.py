"""The step kinds of a playbook, a closed vocabulary: what people write, and the operations that each is made of. Pure.

A new step kind is one class here, made of the operations that the runner already knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.errors import ConfigurationError, Reason
from pipeline.model import Customer, Environment, Host, Noun, PlainPath, Script
from pipeline.operations import Backup, Command, Http, Migrate, Operation, Probe, Render, Switch, Upload

Phase = Literal["expand", "contract"]
"""When a migration runs: before the switch to the new code, or after it."""

Unproven = Literal["irreversible", "unknown"]
"""Why the old code may not run on the schema after a migration: the playbook says so, or nothing says that it may."""


class Target(Noun):
    """What a plan is made for: one release on one environment, with the migrations that its database has not had.

    ``ran`` are those that earlier attempts of the same run have applied; ``unproven`` are those of both after which the
    old code is not known to run, ``half_unproven`` those after a part of which it is not. ``switched``: the step that is
    asked comes after the switch.
    """

    customer: Customer
    environment: Environment
    release: str
    version: str
    installed: str | None
    pending: tuple[Script, ...] = ()
    ran: tuple[Script, ...] = ()
    unproven: dict[str, Unproven] = Field(default_factory=dict)
    half_unproven: tuple[str, ...] = ()
    switched: bool = False

    def after(self, operation: Migrate) -> Target:
        """The target once these scripts are applied: a script that two steps match runs with the first of them."""
        left = tuple(script for script in self.pending if script.id not in operation.scripts)
        return self.model_copy(update={"pending": left})

    def past(self, steps: Iterable[AnyStep]) -> Target:
        """The target for what follows these steps."""
        switched = self.switched or any(step.kind == "switch" for step in steps)
        return self if switched == self.switched else self.model_copy(update={"switched": switched})

    def words(self, host: Host) -> dict[str, Any]:
        """What ``{{ … }}`` in a playbook and in templates may name, secrets apart."""
        return {
            "customer": self.customer.key,
            "environment": self.environment.key,
            "release": self.release,
            "version": self.version,
            "host": host.name,
            "folder": host.folder,
            "language": self.customer.language,
            "time_zone": self.customer.time_zone,
            "url": self.environment.url,
            "values": {**self.environment.values, **host.values},
        }

    def render(self, text: str, host: Host) -> str:
        """``text`` with its ``{{ … }}`` filled in; an unknown name is a ConfigurationError."""
        if "{" not in text:
            return text
        from jinja2 import TemplateError

        try:
            return str(_template(text).render(self.words(host)))
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            TypeError,
            ValueError,
        ) as error:
            raise ConfigurationError(
                f"the playbook of {self.customer.product} cannot be filled in for {self.customer.key}",
                reasons=[
                    Reason(
                        f"{text!r}: {error}",
                        f"environments/{self.customer.key}/{self.environment.key}.yaml, host {host.name}",
                    )
                ],
            ) from None

    def render_all(self, texts: Iterable[str], host: Host) -> tuple[str, ...]:
        """Each of ``texts`` filled in."""
        return tuple(self.render(text, host) for text in texts)


@cache
def _template(text: str) -> Any:
    """The template, built once: a plan for many hosts fills the same few texts in for each of them."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined).from_string(text)


Argv = Annotated[tuple[str, ...], Field(min_length=1, description="a program and its arguments; never a shell line")]


class Step(Noun):
    """Base of the step kinds; ``name`` is shown instead of the kind's own words."""

    name: str | None = None

    def once(self) -> bool:
        """Whether it is done from the first host only."""
        return False

    def operation(self, target: Target, host: Host) -> Operation | None:
        """What the runner does on this host, None when there is nothing to do."""
        raise NotImplementedError

    def title(self, target: Target, operation: Any) -> str:
        """The action in words."""
        raise NotImplementedError

    def undone_by(self, target: Target, operation: Any) -> str | None:
        """What takes it back, in words; None where nothing has to."""
        return None


class BackupStep(Step):
    """``backup``: the database, before anything changes; with ``shared`` what lies in ``shared/`` on each host as well."""

    kind: Literal["backup"] = "backup"
    database: bool = True
    shared: bool = False
    proof: Literal["archive", "restore"] | None = None

    @model_validator(mode="after")
    def _of_something(self) -> BackupStep:
        if not self.database and not self.shared:
            raise ValueError("a backup is of the database, of shared/, or of both")
        if self.proof is not None and not self.database:
            raise ValueError("proof: is of the database's backup; that of shared/ is always compared file by file")
        return self

    def once(self) -> bool:
        return not self.shared

    def operation(self, target: Target, host: Host) -> Operation | None:
        first = host.name == target.environment.hosts[0].name
        database = self.database and first and target.environment.database is not None
        if not database and not self.shared:
            return None
        return Backup(database=database, shared=self.shared, proof=self.proof if database else None)

    def title(self, target: Target, operation: Any) -> str:
        what = " and ".join(["the database"] * operation.database + ["shared/"] * operation.shared)
        trial = ", restored on trial" if operation.proof == "restore" else ""
        return f"back up {what} and read the backup back{trial}"


class UploadStep(Step):
    """``upload``: the release's files beside the old release, verified there."""

    kind: Literal["upload"] = "upload"

    def operation(self, target: Target, host: Host) -> Operation | None:
        return Upload()

    def title(self, target: Target, operation: Any) -> str:
        return f"upload {target.release} beside the old release and verify every file"

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return "nothing to undo: the old release is untouched"


class ConfigureStep(Step):
    """``configure``: render the release's templates with the environment's values into ``shared/``."""

    kind: Literal["configure"] = "configure"
    templates: dict[PlainPath, PlainPath] = Field(min_length=1)

    @model_validator(mode="after")
    def _inside(self) -> ConfigureStep:
        for path in self.templates.values():
            if {"", ".", ".."} & set(path.split("/")):
                raise ValueError(f"{path!r} is not a file below shared/")
        if len(set(self.templates.values())) < len(self.templates):
            raise ValueError("two templates are rendered into the same file of shared/")
        return self

    def operation(self, target: Target, host: Host) -> Operation | None:
        return Render(templates=self.templates)

    def title(self, target: Target, operation: Any) -> str:
        return "render " + ", ".join(f"shared/{path}" for path in self.templates.values())

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return "the earlier files of shared/ are put back"


class MigrateStep(Step):
    """``migrate``: pending migrations whose file name matches ``only`` and not ``except``.

    A script that says of itself that it is of the phase *contract* is never applied before the switch, one of *expand*
    never after it. A step of the phase *contract* applies only what says so of itself. The full schema of a new database
    is applied by the first step, whatever its name is.
    """

    kind: Literal["migrate"] = "migrate"
    only: str = "*"
    except_: str | None = Field(None, alias="except")
    phase: Phase | None = None

    def once(self) -> bool:
        return True

    def takes(self, script: Script, *, switched: bool) -> bool:
        """Whether this step, before or after the switch, applies this script."""
        from pipeline.migrations import named

        now = "contract" if switched else "expand"
        if script.phase != now and (script.phase is not None or self.phase == "contract"):
            return False
        return script.kind == "initial" or named(script.id, self.only, self.except_)

    def operation(self, target: Target, host: Host) -> Operation | None:
        scripts = tuple(script.id for script in target.pending if self.takes(script, switched=target.switched))
        return Migrate(scripts=scripts) if scripts else None

    def title(self, target: Target, operation: Any) -> str:
        return f"apply {len(operation.scripts)} migration(s): " + ", ".join(operation.scripts)

    def undone_by(self, target: Target, operation: Any) -> str | None:
        kinds = {target.unproven[script] for script in operation.scripts if script in target.unproven}
        if "irreversible" in kinds:
            return "irreversible: nothing takes it back; the old code goes on on the changed schema"
        if kinds:
            return "nothing takes it back: not known to add only; the old code goes on on the changed schema"
        return "each script is one transaction; applied ones stay, the old code runs on the expanded schema"


class SwitchStep(Step):
    """``switch``: the new release becomes the current one."""

    kind: Literal["switch"] = "switch"

    def operation(self, target: Target, host: Host) -> Operation | None:
        return Switch()

    def title(self, target: Target, operation: Any) -> str:
        return f"switch current to {target.release}"

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return f"switch back to {target.installed}" if target.installed else "remove current (nothing was installed)"


class CommandStep(Step):
    """Base of the steps that run a program of the product's own."""

    command: Argv
    undo: tuple[str, ...] = ()
    seconds: int = Field(120, ge=1, le=86400)
    serving: ClassVar[Literal["stop", "start", "restart"] | None] = None
    traffic: ClassVar[Literal["drain", "undrain"] | None] = None

    def operation(self, target: Target, host: Host) -> Operation | None:
        return Command(
            argv=target.render_all(self.command, host),
            undo=target.render_all(self.undo, host),
            serving=self.serving,
            traffic=self.traffic,
            folder="current" if self.serving else "release",
            seconds=self.seconds,
        )

    def title(self, target: Target, operation: Any) -> str:
        return f"{self.kind}: {' '.join(operation.argv)}"  # type: ignore[attr-defined]

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return "done again with the old release" if target.installed else " ".join(operation.undo) or None


class StopStep(CommandStep):
    """``stop``: the application stops serving; nothing to do where nothing was installed."""

    kind: Literal["stop"] = "stop"
    serving = "stop"

    def operation(self, target: Target, host: Host) -> Operation | None:
        return super().operation(target, host) if target.installed else None


class StartStep(CommandStep):
    """``start``: the application serves."""

    kind: Literal["start"] = "start"
    serving = "start"


class RestartStep(CommandStep):
    """``restart``: the application serves from what ``current`` now is."""

    kind: Literal["restart"] = "restart"
    serving = "restart"


class RunStep(CommandStep):
    """``run``: a command of the product's own, in the new release's folder, on each host or (``on: first``) once."""

    kind: Literal["run"] = "run"
    on: Literal["each", "first"] = "each"

    def once(self) -> bool:
        return self.on == "first"

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return " ".join(operation.undo) or None


class DrainStep(CommandStep):
    """``drain``: the load balancer sends this host nothing more; nothing to do where nothing was installed."""

    kind: Literal["drain"] = "drain"
    traffic = "drain"

    def operation(self, target: Target, host: Host) -> Operation | None:
        return super().operation(target, host) if target.installed else None

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return "undrained once the old release answers"


class UndrainStep(CommandStep):
    """``undrain``: the load balancer sends this host its share again; where it fails, no other host is begun."""

    kind: Literal["undrain"] = "undrain"
    traffic = "undrain"

    def undone_by(self, target: Target, operation: Any) -> str | None:
        return (
            "drained, and undrained once the old release answers"
            if target.installed
            else super().undone_by(target, operation)
        )


class CheckStep(Step):
    """``check``: the running system answers; either ``http`` or ``command``."""

    kind: Literal["check"] = "check"
    http: str | None = None
    status: int = Field(200, ge=100, le=599)
    contains: str | None = None
    command: Argv | None = None
    within: int = Field(30, ge=1, le=3600, description="seconds until it must have answered as expected")

    @model_validator(mode="after")
    def _one_way(self) -> CheckStep:
        if (self.http is None) == (self.command is None):
            raise ValueError("a check has either http: or command:")
        if self.http is not None and not self.http.startswith("http://"):
            raise ValueError("http: is asked from the host itself, for instance http://127.0.0.1:8080/health")
        if self.command is not None and {"status", "contains"} & self.model_fields_set:
            raise ValueError("status: and contains: belong to a check with http:")
        return self

    def operation(self, target: Target, host: Host) -> Operation | None:
        if self.http is not None:
            contains = target.render(self.contains, host) if self.contains is not None else None
            url = target.render(self.http, host)
            _check_url(url, target, host)
            return Http(url=url, status=self.status, contains=contains, within=self.within)
        return Probe(argv=target.render_all(self.command or (), host), within=self.within)

    def title(self, target: Target, operation: Any) -> str:
        asked = operation.url if operation.operation == "http" else " ".join(operation.argv)
        return f"check {self.name or 'that it answers'}: {asked}"


_ADDRESS = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:(?P<port>[0-9]{1,6}))?([/?][!-~]*)?")


def _check_url(url: str, target: Target, host: Host) -> None:
    """ConfigurationError for an address that cannot be asked, before anything is done."""
    asked = _ADDRESS.fullmatch(url)
    if asked is None or not 0 < int(asked["port"] or 80) < 65536:
        raise ConfigurationError(
            f"a check of {target.customer.product} asks an address that cannot be",
            reasons=[
                Reason(repr(url), f"environments/{target.customer.key}/{target.environment.key}.yaml, host {host.name}")
            ],
        )


def _written_short(value: Any) -> Any:
    """``- upload`` and ``- check: {…}`` as ``{kind: …}``."""
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, Mapping) and len(value) == 1 and "kind" not in value:
        kind, options = next(iter(value.items()))
        if options is None:
            return {"kind": kind}
        if isinstance(options, Mapping):
            return {"kind": kind, **options}
    return value


AnyStep = Annotated[
    Annotated[
        BackupStep
        | StopStep
        | UploadStep
        | ConfigureStep
        | MigrateStep
        | SwitchStep
        | StartStep
        | RestartStep
        | CheckStep
        | DrainStep
        | UndrainStep
        | RunStep,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_written_short),
]
