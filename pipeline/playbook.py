"""How one product is deployed: its playbook, and the plan that it makes. Pure.

A playbook is a list of steps of a closed vocabulary (:mod:`pipeline.steps`). ``plan`` turns it, one release and one
environment into numbered actions; the ``plan`` verb prints them and the runner performs the same ones.

Steps that work on a host and follow one another form a group, which is done by so many hosts at a time as the playbook
says: a *wave*. Steps marked *once* are done from the first host, in a wave of their own, and divide the groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal

from pydantic import Field, model_validator

from pipeline.additive import is_additive
from pipeline.errors import ConfigurationError, Reason
from pipeline.model import Host, Key, Noun, PlainPath, Script
from pipeline.operations import Command, Migrate, Operation
from pipeline.steps import AnyStep, CommandStep, ConfigureStep, MigrateStep, Target, Unproven

__all__ = [
    "Action",
    "ConfigureStep",
    "MigrateStep",
    "Migrations",
    "Plan",
    "Playbook",
    "Rolling",
    "Source",
    "Target",
    "contract_scripts",
    "plan",
    "restore_needed",
    "unmatched",
    "waves",
]

OnFailure = Literal["bring-back", "leave"]
"""What becomes of the hosts that are finished when another one fails."""

KEPT_RELEASES = 5
"""How many releases stay on a host unless the playbook says otherwise."""

# --- the plan's parts -------------------------------------------------------------------------------------------------


class Action(Noun):
    """One numbered action of a plan. ``host`` is the host's key; ``undo`` says in words what takes it back."""

    number: int
    title: str
    host: Key
    what: Operation
    undo: str | None = None
    wave: int = Field(
        1, ge=1, description="hosts of one wave act at the same time; the next wave begins when all are done"
    )
    rolling: bool = Field(False, description="done on each of several hosts")
    old: bool = Field(False, description="on the way back: a command or check of the release that was installed before")


class Plan(Noun):
    """The ordered actions for one release on one environment.

    ``point_of_no_return`` is the number of the first action after which the old code cannot simply be switched back to
    (a migration that runs after the switch), or None. ``restore_needed`` names the migrations that run while the
    application is stopped, in this attempt or in an earlier one of the same run, and are not known to leave a schema on
    which the old code can run: a failure after one of them is not brought back by the code alone. ``keep_releases`` is how
    many releases stay on each host.
    """

    customer: Key
    environment: str
    release: str
    installed: str | None
    actions: tuple[Action, ...]
    point_of_no_return: int | None = None
    restore_needed: dict[str, Unproven] = Field(default_factory=dict)
    on_failure: OnFailure = "bring-back"
    keep_releases: int = KEPT_RELEASES


def waves(actions: Iterable[Action]) -> list[dict[str, list[Action]]]:
    """The actions wave by wave: of each wave its hosts, and what each host does, in order."""
    found: list[dict[str, list[Action]]] = []
    for _, wave in groupby(actions, key=lambda action: action.wave):
        hosts: dict[str, list[Action]] = {}
        for action in wave:
            hosts.setdefault(action.host, []).append(action)
        found.append(hosts)
    return found


# --- what people write ------------------------------------------------------------------------------------------------


class Source(Noun):
    """Where the product's versions come from: a Git repository, whose tag is named after the version."""

    git: str = Field(description="URL, or a path relative to the workspace")
    tag: str = Field("v{version}", pattern=r"\{version\}")


class Migrations(Noun):
    """Where a release keeps its migrations; patterns are matched against the file's name.

    ``additive`` ones leave a schema on which the old code can run, which is not asked of their text then;
    ``irreversible`` ones do not, whatever else is said of them.
    """

    folder: PlainPath
    pattern: str = "*.sql"
    irreversible: tuple[str, ...] = ()
    additive: tuple[str, ...] = ()


class Rolling(Noun):
    """How the hosts of an environment follow one another: so many at a time, so many left serving at the least."""

    at_a_time: int = Field(1, ge=1)
    keep_serving: int = Field(0, ge=0)
    on_failure: OnFailure = "bring-back"


class Playbook(Noun):
    """``playbooks/<product>.yaml``: how one product is deployed."""

    product: Key
    name: str
    versions: Literal["semver", "pep440"] = "semver"
    source: Source | None = None
    migrations: Migrations | None = None
    known_issues: PlainPath | None = Field(
        None, description="a text file of the release; its lines '- …' go on the page"
    )
    rolling: Rolling = Field(default_factory=Rolling)
    keep_releases: int = Field(
        KEPT_RELEASES, ge=2, description="the one that serves and the one before it at the least"
    )
    steps: tuple[AnyStep, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Playbook:
        kinds = [step.kind for step in self.steps]
        for needed in ("upload", "switch"):
            if kinds.count(needed) != 1:
                raise ValueError(f"a playbook has exactly one {needed} step, this one has {kinds.count(needed)}")
        if kinds.index("upload") > kinds.index("switch"):
            raise ValueError("upload comes before switch")
        if "migrate" in kinds and self.migrations is None:
            raise ValueError("a migrate step needs migrations: with the folder of the scripts")
        for kind in ("drain", "undrain"):
            if kind in kinds and kinds.index(kind) < kinds.index("upload"):
                raise ValueError(f"upload comes before {kind}, which runs in the new release's folder")
        if ("drain" in kinds) != ("undrain" in kinds) or kinds.count("drain") > 1 or kinds.count("undrain") > 1:
            raise ValueError("a playbook has one drain step and one undrain step, or neither")
        if "drain" in kinds and not kinds.index("drain") < kinds.index("switch") < kinds.index("undrain"):
            raise ValueError("drain comes before switch, and undrain after it")
        return self

    @model_validator(mode="after")
    def _kept_serving(self) -> Playbook:
        """A step that waits for every host, while one is out of service, would take them all out."""
        if not self.rolling.keep_serving:
            return self
        out: AnyStep | None = None
        for step in self.steps:
            if step.kind in {"drain", "stop"}:
                out = out or step
            elif step.kind == "undrain" or (step.kind in {"start", "restart"} and out and out.kind == "stop"):
                out = None
            elif out and step.once():
                raise ValueError(
                    f"rolling.keep_serving cannot hold: {step.kind} is done once, between {out.kind} and what takes it "
                    "back, so that every host would be out of service by then"
                )
        return self


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan(playbook: Playbook, target: Target, *, rollback: bool = False) -> Plan:
    """The ordered actions; a rollback leaves out backup and migrations, since the schema stays expanded.

    ConfigurationError where the playbook would keep more hosts serving than the environment can spare; a rollback, whose
    playbook is frozen, then goes one host at a time.
    """
    actions: list[Action] = []
    point_of_no_return: int | None = None
    at_a_time = _at_a_time(playbook, target, rollback=rollback)
    steps = _to_do([s for s in playbook.steps if not (rollback and s.kind in {"backup", "migrate"})], target)
    several = len(target.environment.hosts) > 1
    switched = False
    for group in _groups(steps):
        for portion, hosts in _portions(group, target.environment.hosts, at_a_time):
            wave = actions[-1].wave + 1 if actions else 1
            for host in hosts:
                for step in portion:
                    operation = step.operation(target, host)
                    if operation is None:
                        continue
                    number = len(actions) + 1
                    undo = step.undone_by(target, operation)
                    if isinstance(operation, Migrate):
                        target = target.after(operation)
                        if switched:
                            point_of_no_return = point_of_no_return or number
                            undo = "nothing takes it back: the old code may not run on the schema afterwards"
                    actions.append(
                        Action(
                            number=number,
                            title=step.title(target, operation),
                            host=host.name,
                            what=operation,
                            undo=undo,
                            wave=wave,
                            rolling=several and not step.once(),
                        )
                    )
        switched = switched or any(step.kind == "switch" for step in group)
    needed = {**dict(_ran_while_stopped(playbook, target)), **dict(_while_stopped(actions, target))}
    return Plan(
        customer=target.customer.key,
        environment=target.environment.key,
        release=target.release,
        installed=target.installed,
        actions=tuple(_restored(action, needed) for action in actions),
        point_of_no_return=point_of_no_return,
        restore_needed=needed,
        on_failure=playbook.rolling.on_failure,
        keep_releases=playbook.keep_releases,
    )


def _at_a_time(playbook: Playbook, target: Target, *, rollback: bool) -> int:
    """How many hosts a wave has at the most."""
    hosts, rolling = len(target.environment.hosts), playbook.rolling
    if hosts == 1:
        return 1
    size = min(rolling.at_a_time, hosts - rolling.keep_serving)
    if size < 1 and not rollback:
        place = f"environments/{target.customer.key}/{target.environment.key}.yaml"
        raise ConfigurationError(
            f"the playbook of {playbook.product} leaves no host of {target.environment.key} of {target.customer.key} to "
            "deploy to",
            reasons=[
                Reason(f"rolling.keep_serving is {rolling.keep_serving}", f"playbooks/{playbook.product}.yaml"),
                Reason(f"there are {hosts} hosts", place),
            ],
        )
    return max(size, 1)


def _to_do(steps: Sequence[AnyStep], target: Target) -> list[AnyStep]:
    """The steps without those done once that have nothing to do, which would divide a group for nothing."""
    kept: list[AnyStep] = []
    for step in steps:
        operation = step.operation(target, target.environment.hosts[0]) if step.once() else None
        if isinstance(operation, Migrate):
            target = target.after(operation)
        if operation is not None or not step.once():
            kept.append(step)
    return kept


def _groups(steps: Sequence[AnyStep]) -> list[list[AnyStep]]:
    """Steps on each host that follow one another, together; each once-only step alone."""
    groups: list[list[AnyStep]] = []
    for step in steps:
        if groups and not step.once() and not groups[-1][0].once():
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _portions(
    group: Sequence[AnyStep], hosts: Sequence[Host], at_a_time: int
) -> list[tuple[Sequence[AnyStep], Sequence[Host]]]:
    """Which steps of a group which hosts do at the same time.

    An upload touches nothing that serves: where the hosts follow one another, all of them take it first, at once.
    """
    if group[0].once():
        return [(group, hosts[:1])]
    if len(hosts) <= at_a_time:
        return [(group, hosts)]
    uploads = [step for step in group if step.kind == "upload"]
    others = [step for step in group if step.kind != "upload"]
    rolled = [(others, hosts[first : first + at_a_time]) for first in range(0, len(hosts), at_a_time)]
    return [(uploads, hosts), *rolled]


def _while_stopped(actions: Sequence[Action], target: Target) -> Iterator[tuple[str, Unproven]]:
    """The unproven scripts that run between a stop of the installed application and the next start."""
    stopped = False
    for action in actions:
        if isinstance(action.what, Command) and action.what.serving:
            stopped = action.what.serving == "stop"
        elif stopped and isinstance(action.what, Migrate):
            yield from (
                (script, target.unproven[script]) for script in action.what.scripts if script in target.unproven
            )


def _ran_while_stopped(playbook: Playbook, target: Target) -> Iterator[tuple[str, Unproven]]:
    """The same of those that earlier attempts of this run have applied, for which the plan has no action any more."""
    from pipeline.migrations import named

    for script in target.ran:
        stopped = False
        for step in playbook.steps:
            if isinstance(step, CommandStep) and step.serving:
                stopped = step.serving == "stop" and target.installed is not None
            elif isinstance(step, MigrateStep) and named(script, step.only, step.except_):
                if stopped and script in target.unproven:
                    yield script, target.unproven[script]
                break


def _restored(action: Action, needed: Mapping[str, Unproven]) -> Action:
    if not isinstance(action.what, Migrate) or needed.keys().isdisjoint(action.what.scripts):
        return action
    return action.model_copy(
        update={"undo": "a restore of the backup: the old code may not run on the schema afterwards"}
    )


def restore_needed(playbook: Playbook, scripts: Mapping[str, bytes]) -> tuple[tuple[str, Unproven], ...]:
    """Those of these migrations (text by id) after which the old code is not known to run, each with the reason.

    ``irreversible`` where the playbook says so; ``unknown`` where it says nothing and the text is not proven to add only.
    """
    from pipeline.migrations import named

    kinds = playbook.migrations or Migrations(folder="")
    found: list[tuple[str, Unproven]] = []
    for script, text in scripts.items():
        if named(script, kinds.irreversible):
            found.append((script, "irreversible"))
        elif not named(script, kinds.additive) and not _only_adds(text):
            found.append((script, "unknown"))
    return tuple(found)


def _only_adds(text: bytes) -> bool:
    try:
        return is_additive(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return False


def contract_scripts(playbook: Playbook, scripts: Iterable[str]) -> tuple[str, ...]:
    """Those of these migrations (by id) that the playbook applies after the switch."""
    from pipeline.migrations import named

    after: list[str] = []
    for script in scripts:
        switched = False
        for step in playbook.steps:
            switched = switched or step.kind == "switch"
            if isinstance(step, MigrateStep) and named(script, step.only, step.except_):
                # The first step that names it applies it.
                after += [script] if switched else []
                break
    return tuple(after)


def unmatched(playbook: Playbook, pending: Sequence[Script]) -> tuple[str, ...]:
    """Pending migrations that no migrate step of the playbook would ever apply."""
    from pipeline.migrations import select

    matched: set[str] = set()
    for step in playbook.steps:
        if isinstance(step, MigrateStep):
            matched |= {script.id for script in select(pending, step.only, step.except_)}
    return tuple(script.id for script in pending if script.id not in matched)
