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
from pipeline.model import Host, Key, Migrations, Noun, PlainPath, Script
from pipeline.operations import Backup, Command, Migrate, Operation
from pipeline.steps import AnyStep, BackupStep, CommandStep, ConfigureStep, MigrateStep, Target, Unproven
from pipeline.suggest import did_you_mean

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
    "half_unproven",
    "plan",
    "restore_needed",
    "unmatched",
    "waves",
    "without_backup",
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
    which the old code can run: a failure after one of them is not brought back by the code alone. ``restore_if_half`` names
    those of which only the whole leaves such a schema: none of it is known of a half of one. ``restore_from`` leads from
    those of both to the number of the action whose backup is restored then; without one nothing is restored by itself.
    ``shared_from`` are the numbers of the actions whose backup of ``shared/`` is put back with it. ``keep_releases`` is how
    many releases stay on each host.
    """

    customer: Key
    environment: str
    release: str
    installed: str | None
    actions: tuple[Action, ...]
    point_of_no_return: int | None = None
    restore_needed: dict[str, Unproven] = Field(default_factory=dict)
    restore_if_half: tuple[str, ...] = ()
    restore_from: dict[str, int] = Field(default_factory=dict)
    shared_from: tuple[int, ...] = ()
    restore_always: bool = Field(False, description="a restore may lose what was written after the backup")
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
        for step, switched in _with_switched(self.steps):
            if isinstance(step, MigrateStep) and step.phase == ("expand" if switched else "contract"):
                where = "before switch" if switched else "after switch"
                raise ValueError(f"a migrate step of the phase {step.phase} comes {where}")
        for kind in ("drain", "undrain"):
            if kind in kinds and kinds.index(kind) < kinds.index("upload"):
                raise ValueError(f"upload comes before {kind}, which runs in the new release's folder")
        if ("drain" in kinds) != ("undrain" in kinds) or kinds.count("drain") > 1 or kinds.count("undrain") > 1:
            raise ValueError("a playbook has one drain step and one undrain step, or neither")
        if "drain" in kinds and not kinds.index("drain") < kinds.index("switch") < kinds.index("undrain"):
            raise ValueError("drain comes before switch, and undrain after it")
        return self

    @model_validator(mode="after")
    def _rules_are_known(self) -> Playbook:
        from pipeline.lint.rules import RULES

        for rule in self.migrations.refuse if self.migrations is not None else ():
            if rule not in RULES and not rule.startswith("squawk:"):
                raise ValueError(f"refuse: the lint has no rule {rule!r}{did_you_mean(rule, RULES)}")
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
    asked = target
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
                        if target.switched:
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
        target = target.past(group)
    needed = {**dict(_ran_while_stopped(playbook, asked)), **dict(_while_stopped(actions, target))}
    backups = {} if rollback else _restored_from(playbook, asked, actions)
    return Plan(
        customer=target.customer.key,
        environment=target.environment.key,
        release=target.release,
        installed=target.installed,
        actions=tuple(_restored(action, needed, backups) for action in actions),
        point_of_no_return=point_of_no_return,
        restore_needed=needed,
        restore_if_half=tuple(s for s in _run_while_stopped(actions) if s in target.half_unproven),
        restore_from=backups,
        shared_from=_shared_from(actions),
        restore_always=playbook.migrations is not None and playbook.migrations.restore == "always",
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
        target = target.past([step])
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
    for script in _run_while_stopped(actions):
        if script in target.unproven:
            yield script, target.unproven[script]


def _run_while_stopped(actions: Sequence[Action]) -> Iterator[str]:
    stopped = False
    for action in actions:
        if isinstance(action.what, Command) and action.what.serving:
            stopped = action.what.serving == "stop"
        elif stopped and isinstance(action.what, Migrate):
            yield from action.what.scripts


def _ran_while_stopped(playbook: Playbook, target: Target) -> Iterator[tuple[str, Unproven]]:
    """The same of those that earlier attempts of this run have applied, for which the plan has no action any more."""
    for script in target.ran:
        stopped = False
        for step, switched in _with_switched(playbook.steps):
            if isinstance(step, CommandStep) and step.serving:
                stopped = step.serving == "stop" and target.installed is not None
            elif isinstance(step, MigrateStep) and step.takes(script, switched=switched):
                if stopped and script.id in target.unproven:
                    yield script.id, target.unproven[script.id]
                break


def _with_switched(steps: Iterable[AnyStep]) -> Iterator[tuple[AnyStep, bool]]:
    """Each step, with whether it comes after the switch."""
    switched = False
    for step in steps:
        yield step, switched
        switched = switched or step.kind == "switch"


def _restored(action: Action, needed: Mapping[str, Unproven], backups: Mapping[str, int]) -> Action:
    if not isinstance(action.what, Migrate) or needed.keys().isdisjoint(action.what.scripts):
        return action
    numbers = [backups[script] for script in action.what.scripts if script in needed and script in backups]
    back = f"the backup made in step {min(numbers)} is restored" if numbers else "a restore of the backup"
    return action.model_copy(update={"undo": f"{back}: the old code may not run on the schema afterwards"})


def _restored_from(playbook: Playbook, target: Target, actions: Sequence[Action]) -> dict[str, int]:
    """Of each script of this run that runs while the application is stopped, the number of the action whose backup is good.

    It is the last one before it; and made while the application was stopped, which it then stayed, unless the playbook
    says that what was written since may be lost.
    """
    anyway = playbook.migrations is not None and playbook.migrations.restore == "always"
    alone = len(target.environment.hosts) == 1
    numbers = iter([a.number for a in actions if isinstance(a.what, Backup) and a.what.database])
    open_scripts = {script.id: script for script in (*target.ran, *target.pending)}
    found: dict[str, int] = {}
    stopped, good, number = False, False, 0
    for step, switched in _with_switched(playbook.steps):
        if isinstance(step, CommandStep) and step.serving:
            stopped = step.serving == "stop" and target.installed is not None
            good = good and stopped
        elif isinstance(step, BackupStep) and step.database and target.environment.database is not None:
            number = next(numbers)
            # What is done on each host is not done when all of them have stopped.
            good = stopped and (alone or step.once())
        elif isinstance(step, MigrateStep):
            taken = [script for script in open_scripts.values() if step.takes(script, switched=switched)]
            for script in taken:
                del open_scripts[script.id]
                if stopped and number and (good or anyway):
                    found[script.id] = number
    return {script: backup for script, backup in found.items() if script in {*target.unproven, *target.half_unproven}}


def _shared_from(actions: Sequence[Action]) -> tuple[int, ...]:
    """The numbers of the actions that back up ``shared/`` of a host while its application is stopped."""
    stopped: dict[str, bool] = {}
    found: dict[str, int] = {}
    for action in actions:
        if isinstance(action.what, Command) and action.what.serving:
            stopped[action.host] = action.what.serving == "stop"
        elif isinstance(action.what, Backup) and action.what.shared and stopped.get(action.host):
            found[action.host] = action.number
    return tuple(found.values())


def without_backup(
    playbook: Playbook, pending: Iterable[Script], unproven: Mapping[str, Unproven]
) -> dict[str, Unproven]:
    """Those of these migrations that no backup of the database comes before, and that nothing but one would take back."""
    left = {script.id: script for script in pending if script.id in unproven}
    found: dict[str, Unproven] = {}
    for step, switched in _with_switched(playbook.steps):
        if isinstance(step, BackupStep) and step.database:
            break
        if isinstance(step, MigrateStep):
            found |= {id: unproven[id] for id, script in left.items() if step.takes(script, switched=switched)}
    return found


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


def half_unproven(scripts: Mapping[str, bytes]) -> tuple[str, ...]:
    """Those of these migrations (text by id) of which a part alone is not proven to leave a schema for the old code.

    What the playbook declares ``additive`` is so as a whole.
    """
    return tuple(script for script, text in scripts.items() if not _only_adds(text))


def contract_scripts(playbook: Playbook, scripts: Iterable[Script]) -> tuple[str, ...]:
    """The ids of those of these migrations that the playbook applies after the switch."""
    after: list[str] = []
    for script in scripts:
        for step, switched in _with_switched(playbook.steps):
            if isinstance(step, MigrateStep) and step.takes(script, switched=switched):
                # The first step that names it applies it.
                after += [script.id] if switched else []
                break
    return tuple(after)


def unmatched(playbook: Playbook, pending: Sequence[Script]) -> dict[str, str]:
    """Pending migrations that no migrate step of the playbook would ever apply, each with the reason in words."""
    steps = [(step, switched) for step, switched in _with_switched(playbook.steps) if isinstance(step, MigrateStep)]
    found: dict[str, str] = {}
    for script in pending:
        if any(step.takes(script, switched=switched) for step, switched in steps):
            continue
        anyhow = script.model_copy(update={"phase": None})
        found[script.id] = "is matched by no migrate step of the playbook"
        if any(step.takes(anyhow, switched=switched) for step, switched in steps):
            where = {"expand": "before", "contract": "after"}[script.phase or "expand"]
            found[script.id] = (
                f"is of the phase {script.phase}, and no migrate step {where} switch of the playbook takes it"
            )
    return found
