"""From a playbook to a plan, and the way back: golden plans in ``tests/golden``, and playbooks that are refused.

``TMA_GOLDEN=write`` writes the golden files anew; read the difference before it is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from pipeline import operations
from pipeline.errors import ConfigurationError
from pipeline.model import Script
from pipeline.playbook import (
    Action,
    Plan,
    Playbook,
    Target,
    half_unproven,
    plan,
    restore_needed,
    unmatched,
    waves,
    without_backup,
)
from pipeline.steps import AnyStep
from pipeline.strict_yaml import parse
from pipeline.way_back import finished, way_back
from tests.nouns import customer, environment, oid, sha

GOLDEN = Path(__file__).parent / "golden"

RESTARTED = """
product: shop
name: Shop
migrations: {folder: migrations}
steps:
  - backup
  - upload
  - configure:
      templates: {config/shop.conf.j2: shop.conf, config/log.conf.j2: etc/log.conf}
  - migrate: {name: expand, except: "*post_*"}
  - switch
  - restart: {command: [bin/restart, --port, "{{ values.port }}"], undo: [bin/halt], seconds: 30}
  - check:
      name: it answers with this release
      http: "http://127.0.0.1:{{ values.port }}/health"
      contains: "{{ release }}"
      within: 20
  - migrate: {name: contract, only: "*post_*"}
"""

STOPPED = """
product: shop
name: Shop
migrations: {folder: migrations}
steps:
  - upload
  - stop: {command: [bin/stop]}
  - backup
  - migrate
  - run: {command: [bin/load, "{{ version }}"], undo: [bin/unload], on: first}
  - run: {command: [bin/warm, "{{ host }}"], undo: [bin/cool]}
  - configure: {templates: {shop.conf.j2: shop.conf}}
  - switch
  - start: {command: [bin/start]}
  - check: {command: [bin/answers], within: 5}
"""

CONFIGURE = """  - configure:
      templates: {config/shop.conf.j2: shop.conf, config/log.conf.j2: etc/log.conf}
"""

BALANCED = RESTARTED.replace(
    "  - switch\n",
    """  - drain: {command: [bin/balancer, out, "{{ host }}"], seconds: 90}
  - switch
""",
).replace(
    """  - migrate: {name: contract, only: "*post_*"}
""",
    """  - undrain: {command: [bin/balancer, in, "{{ host }}"], undo: [bin/balancer, out, "{{ host }}"]}
  - migrate: {name: contract, only: "*post_*"}
rolling: {at_a_time: 2, keep_serving: 1}
""",
)


def playbook(text: str, **more: Any) -> Playbook:
    return Playbook.model_validate(parse("playbooks/shop.yaml", text.encode()).value | more)


def script(name: str) -> Script:
    return Script(id=name, checksum=sha(name), blob=oid(name))


PENDING = tuple(map(script, ("007_colour.sql", "008_fill_colour.sql", "009_post_drop_tint.sql")))


def target(release: str = "2.4.0+1", installed: str | None = "2.3.0+1", hosts: int = 2, **more: Any) -> Target:
    fields: dict[str, Any] = {
        "customer": customer(),
        "environment": environment("production", hosts=hosts),
        "release": release,
        "version": release.rpartition("+")[0],
        "installed": installed,
        "pending": PENDING,
    }
    return Target(**fields | more)


def old_plan(text: str = RESTARTED, hosts: int = 2) -> Plan:
    """The plan of the release that is installed, as the workflow makes it for the way back."""
    return plan(playbook(text), target("2.3.0+1", None, hosts, pending=()), rollback=True)


def shown(actions: Sequence[Action], head: str, point_of_no_return: int | None = None) -> str:
    lines = [head]
    wave = 0
    for action in actions:
        if action.wave != wave:
            wave = action.wave
            lines.append(f"wave {wave}")
        if action.number == point_of_no_return:
            lines.append("--- point of no return ---")
        what = action.what.model_dump(exclude={"operation"}, exclude_defaults=True)
        marks = [mark for mark, set_ in (("rolling", action.rolling), ("old", action.old)) if set_]
        lines.append(
            f"{action.number:>2}. {action.host}: {action.title}" + (f"  [{', '.join(marks)}]" if marks else "")
        )
        lines.append(f"      {action.what.operation} {what or ''}".rstrip())
        if action.undo:
            lines.append(f"      undo: {action.undo}")
    return "\n".join(lines) + "\n"


def shown_plan(made: Plan) -> str:
    head = f"{made.release} on {made.environment} of {made.customer}, now {made.installed or 'nothing'}"
    tail = [f"restore needed: {script} ({kind})\n" for script, kind in made.restore_needed.items()]
    return shown(made.actions, head, made.point_of_no_return) + "".join(tail)


def golden(name: str, text: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("TMA_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


# --- plans ---------------------------------------------------------------------------------------------------------------

PLANS: dict[str, tuple[str, Target, bool]] = {
    "first_deployment": (RESTARTED, target(installed=None, hosts=1), False),
    "expand_and_contract_on_two_hosts": (RESTARTED, target(), False),
    "patch_without_scripts": (RESTARTED, target("2.3.0+2", hosts=1, pending=()), False),
    "stop_and_start_on_two_hosts": (STOPPED, target(), False),
    "rollback": (RESTARTED, target("2.3.0+1", "2.4.0+1"), True),
    "drained_two_at_a_time_of_three": (BALANCED, target(hosts=3), False),
    "drained_first_deployment": (BALANCED, target(installed=None, hosts=1), False),
    "all_at_once": (RESTARTED + "rolling: {at_a_time: 9}\n", target(hosts=3, pending=()), False),
    "stopped_for_a_migration_that_cannot_be_undone": (
        STOPPED,
        target(hosts=1, unproven={"008_fill_colour.sql": "unknown", "009_post_drop_tint.sql": "irreversible"}),
        False,
    ),
    "no_database": (STOPPED, target(environment=environment("test", hosts=1, database=None), pending=()), False),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan(name: str) -> None:
    text, made_for, rollback = PLANS[name]
    golden(f"plan_{name}", shown_plan(plan(playbook(text), made_for, rollback=rollback)))


def test_a_plan_is_the_same_each_time_and_can_be_written_and_read() -> None:
    made = plan(playbook(RESTARTED), target())
    assert plan(playbook(RESTARTED), target()) == made
    assert Plan.model_validate_json(made.model_dump_json()) == made
    assert [action.number for action in made.actions] == list(range(1, len(made.actions) + 1))


def test_one_host_after_the_other_and_never_both_out_of_service() -> None:
    """Between the switch of the first host and that of the second lies the first one's check."""
    made = plan(playbook(RESTARTED), target())
    after = [(action.host, action.what.operation) for action in made.actions]
    assert after.index(("app1", "http")) < after.index(("app2", "switch"))
    assert [host for host, operation in after if operation == "migrate"] == ["app1", "app1"]


def test_a_script_that_two_steps_match_runs_with_the_first() -> None:
    text = RESTARTED.replace('{name: expand, except: "*post_*"}', "{name: all}")
    made = plan(playbook(text), target())
    scripts = [action.what.scripts for action in made.actions if isinstance(action.what, operations.Migrate)]
    assert scripts == [tuple(script.id for script in PENDING)]
    assert made.point_of_no_return is None


def test_every_operation_is_in_a_golden_plan() -> None:
    used = {
        action.what.operation
        for text, made_for, rollback in PLANS.values()
        for action in plan(playbook(text), made_for, rollback=rollback).actions
    }
    used |= {action.what.operation for actions in BACK.values() for action in actions}
    [union, _] = get_args(operations.Operation)
    assert used == {operation.model_fields["operation"].default for operation in get_args(union)}


@pytest.mark.parametrize(
    ("steps", "pending", "expected"),
    [
        (RESTARTED, ("1.sql", "post_1.sql"), ()),
        (RESTARTED.replace('only: "*post_*"', 'only: "*contract_*"'), ("1.sql", "x/post_1.sql"), ("x/post_1.sql",)),
        (RESTARTED.replace('"*post_*"', '"*.sql"'), ("1.sql",), ()),
        (STOPPED, (), ()),
        (STOPPED.replace("  - migrate\n", ""), ("1.sql", "2.sql"), ("1.sql", "2.sql")),
    ],
)
def test_scripts_that_no_step_would_apply(steps: str, pending: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert tuple(unmatched(playbook(steps), [script(name) for name in pending])) == expected


CONTRACT = script("a_late.sql").model_copy(update={"phase": "contract"})
EXPAND = script("a_post_x.sql").model_copy(update={"phase": "expand"})
SCHEMA = script("whole/post_schema.sql").model_copy(update={"kind": "initial"})
BARE = "product: shop\nname: Shop\nmigrations: {folder: db}\nsteps:\n  - upload\n"
AFTER_ONLY = f"{BARE}  - switch\n  - migrate\n"
PHASED = f"{BARE}  - migrate: {{phase: expand}}\n  - switch\n  - migrate: {{phase: contract}}\n"


def applied_by(text: str, *pending: Script) -> list[tuple[str, ...]]:
    """What each migration action of the plan applies, those after the switch after a '|'."""
    made = plan(playbook(text), target(hosts=1, pending=pending))
    found: list[tuple[str, ...]] = []
    for action in made.actions:
        if isinstance(action.what, operations.Migrate):
            late = made.point_of_no_return is not None and action.number >= made.point_of_no_return
            found.append(("|", *action.what.scripts) if late else action.what.scripts)
    return found


def test_the_phase_of_a_script_decides_on_which_side_of_the_switch_it_runs() -> None:
    plain, post = script("b.sql"), script("b_post_c.sql")
    assert applied_by(PHASED, CONTRACT, plain, post) == [("b.sql", "b_post_c.sql"), ("|", "a_late.sql")]
    # A name alone is not asked where the step names a phase; where it does not, both are.
    assert applied_by(RESTARTED, plain, post) == [("b.sql",), ("|", "b_post_c.sql")]
    assert applied_by(RESTARTED, CONTRACT, EXPAND) == []
    assert applied_by(AFTER_ONLY, EXPAND, plain, CONTRACT) == [("|", "b.sql", "a_late.sql")]
    assert applied_by(RESTARTED, SCHEMA) == [("whole/post_schema.sql",)]


def test_a_script_whose_phase_no_step_serves_is_named_with_the_reason() -> None:
    assert unmatched(playbook(RESTARTED), [CONTRACT, EXPAND, script("b.sql")]) == {
        "a_late.sql": "is of the phase contract, and no migrate step after switch of the playbook takes it",
        "a_post_x.sql": "is of the phase expand, and no migrate step before switch of the playbook takes it",
    }
    assert unmatched(playbook(PHASED.replace("{phase: expand}", "{only: x}")), [script("b.sql")]) == {
        "b.sql": "is matched by no migrate step of the playbook"
    }


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("phase: expand", "phase: contract", "a migrate step of the phase contract comes after switch"),
        ("phase: contract", "phase: expand", "a migrate step of the phase expand comes before switch"),
    ],
)
def test_a_step_of_a_phase_stands_on_its_side_of_the_switch(written: str, instead: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        playbook(PHASED.replace(written, instead, 1))


def test_a_half_of_what_is_declared_additive_needs_a_restore() -> None:
    made = plan(playbook(STOPPED), target(hosts=1, half_unproven=("007_colour.sql", "x.sql")))
    assert made.restore_if_half == ("007_colour.sql",)
    assert plan(playbook(RESTARTED), target(hosts=1, half_unproven=("007_colour.sql",))).restore_if_half == ()
    assert half_unproven({"1.sql": b"CREATE TABLE x (id int);", "2.sql": b"DROP TABLE y"}) == ("2.sql",)


def test_the_waves_of_a_plan() -> None:
    made = plan(playbook(BALANCED), target(hosts=3))
    found = waves(made.actions)
    assert [list(wave) for wave in found] == [
        ["app1"],
        ["app1", "app2", "app3"],
        ["app1", "app2"],
        ["app3"],
        ["app1"],
        ["app1", "app2"],
        ["app3"],
        ["app1"],
    ]
    assert sorted(action.number for wave in found for host in wave.values() for action in host) == list(
        range(1, len(made.actions) + 1)
    )
    assert [action.what.operation for action in found[5]["app2"]] == ["command", "switch", "command", "http", "command"]
    assert waves([]) == []


@pytest.mark.parametrize(
    ("rolling", "hosts", "sizes"),
    [
        ("{}", 3, [1, 1, 1]),
        ("{at_a_time: 2}", 3, [2, 1]),
        ("{at_a_time: 9}", 3, [3]),
        ("{at_a_time: 9, keep_serving: 1}", 3, [2, 1]),
        ("{at_a_time: 9, keep_serving: 2}", 3, [1, 1, 1]),
        ("{at_a_time: 9, keep_serving: 9}", 1, [1]),
    ],
)
def test_so_many_hosts_at_a_time_and_so_many_left_serving(rolling: str, hosts: int, sizes: list[int]) -> None:
    made = plan(playbook(f"{RESTARTED}rolling: {rolling}\n"), target(hosts=hosts))
    switching = [
        wave for wave in waves(made.actions) if "switch" in {a.what.operation for does in wave.values() for a in does}
    ]
    assert [len(wave) for wave in switching] == sizes


def test_an_environment_that_cannot_spare_a_host_is_refused_with_both_places() -> None:
    kept = playbook(f"{RESTARTED}rolling: {{keep_serving: 2}}\n")
    with pytest.raises(ConfigurationError) as raised:
        plan(kept, target(hosts=2))
    assert raised.value.what == "the playbook of shop leaves no host of production of acme to deploy to"
    assert [(reason.text, reason.source) for reason in raised.value.reasons] == [
        ("rolling.keep_serving is 2", "playbooks/shop.yaml"),
        ("there are 2 hosts", "environments/acme/production.yaml"),
    ]
    # The playbook of a rollback is frozen: nobody could mend it.
    back = plan(kept, target("2.3.0+1", "2.4.0+1"), rollback=True)
    assert [list(wave) for wave in waves(back.actions)] == [["app1", "app2"], ["app1"], ["app2"]]


def test_a_plan_says_what_the_playbook_wants_of_failures_and_old_releases() -> None:
    made = plan(playbook(RESTARTED), target())
    assert (made.on_failure, made.keep_releases) == ("bring-back", 5)
    made = plan(playbook(RESTARTED + "rolling: {on_failure: leave}\nkeep_releases: 2\n"), target())
    assert (made.on_failure, made.keep_releases) == ("leave", 2)


UNPROVEN = {"007_colour.sql": "unknown", "009_post_drop_tint.sql": "irreversible"}


@pytest.mark.parametrize(
    ("unproven", "expected"),
    [
        ({}, "each script is one transaction; applied ones stay, the old code runs on the expanded schema"),
        ({"007_colour.sql": "unknown"}, "nothing takes it back: not known to add only; the old code goes on"),
        (
            {"007_colour.sql": "irreversible", "008_fill_colour.sql": "unknown"},
            "irreversible: nothing takes it back; the old code goes on on the changed schema",
        ),
    ],
)
def test_what_runs_beside_the_serving_old_code_says_that_nothing_takes_it_back(
    unproven: dict[str, Any], expected: str
) -> None:
    made = plan(playbook(RESTARTED), target(hosts=1, unproven=unproven))
    first = next(action for action in made.actions if isinstance(action.what, operations.Migrate))
    assert (first.undo or "").startswith(expected)


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        (STOPPED, {}, {"007_colour.sql": "unknown"}),
        (STOPPED, {"installed": None}, {}),
        (STOPPED, {"unproven": {}}, {}),
        (RESTARTED, {}, {}),
    ],
)
def test_what_an_earlier_attempt_applied_while_it_was_stopped_needs_a_restore_too(
    text: str, more: dict[str, Any], expected: dict[str, str]
) -> None:
    fields: dict[str, Any] = {"unproven": UNPROVEN, "ran": PENDING[:1], "pending": (), "hosts": 1} | more
    assert plan(playbook(text), target(**fields)).restore_needed == expected


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        (STOPPED, {}, UNPROVEN),
        (STOPPED, {"unproven": {"007_colour.sql": "unknown"}}, {"007_colour.sql": "unknown"}),
        (STOPPED, {"unproven": {}}, {}),
        (STOPPED, {"installed": None}, {}),
        (STOPPED, {"environment": environment("test", database=None)}, {}),
        (RESTARTED, {}, {}),
        # Between the stop and the start only: the contract step comes when the application serves again.
        (
            RESTARTED.replace(
                "  - migrate: {name: expand", "  - stop: {command: [bin/halt]}\n  - migrate: {name: expand"
            ),
            {},
            {"007_colour.sql": "unknown"},
        ),
    ],
)
def test_a_restore_is_needed_only_where_the_application_was_stopped(
    text: str, more: dict[str, Any], expected: dict[str, str]
) -> None:
    fields: dict[str, Any] = {"unproven": UNPROVEN, "hosts": 1} | more
    if "environment" in fields:
        fields["pending"] = ()
    made = plan(playbook(text), target(**fields))
    assert made.restore_needed == expected
    assert plan(playbook(text), target(**fields), rollback=True).restore_needed == {}


def test_which_migrations_are_not_known_to_leave_the_old_code_running() -> None:
    kinds = "{folder: migrations, irreversible: ['*_drop_*', 'both.sql'], additive: ['*_fill.sql', 'both.sql']}"
    written = playbook(RESTARTED.replace("{folder: migrations}", kinds))
    scripts = {
        "001_new.sql": b"\xef\xbb\xbfCREATE TABLE new (id int);",
        "sub/002_fill.sql": b"UPDATE old SET name = ''",
        "003_drop_new.sql": b"CREATE TABLE newer (id int);",
        "004_update.sql": b"UPDATE old SET name = ''",
        "005_latin.sql": b"-- \xe9\nCREATE TABLE newest (id int);",
        "both.sql": b"",
    }
    assert restore_needed(written, scripts) == (
        ("003_drop_new.sql", "irreversible"),
        ("004_update.sql", "unknown"),
        ("005_latin.sql", "unknown"),
        ("both.sql", "irreversible"),
    )
    assert next(script for script, _ in restore_needed(playbook(MINIMAL), scripts)) == "sub/002_fill.sql"


# --- the way back ----------------------------------------------------------------------------------------------------------


def until(made: Plan, host: str, operation: str, number: int = 1) -> list[Action]:
    """The actions up to and with the ``number``-th of this kind on this host, which is the one that failed."""
    found = [action for action in made.actions if (action.host, action.what.operation) == (host, operation)]
    return list(made.actions[: found[number - 1].number])


def failing(
    text: str, host: str, operation: str, *, first: bool = False, hosts: int = 2, number: int = 1
) -> list[Action]:
    made = plan(playbook(text), target(installed=None if first else "2.3.0+1", hosts=hosts))
    done = until(made, host, operation, number)
    return list(way_back(made, done, None if first else old_plan(text, hosts), failed=[done[-1].number]))


HALTED = STOPPED.replace("start: {command: [bin/start]}", "start: {command: [bin/start], undo: [bin/halt]}")


def restored(text: str, hosts: int = 2) -> list[Action]:
    """The way back from a failed check, after a script that only a restore takes back."""
    unproven = {"008_fill_colour.sql": "irreversible"}
    made = plan(playbook(text), target(hosts=hosts, unproven=unproven))
    assert made.restore_from
    backups = {(min(made.restore_from.values()), "database"), *((number, "shared") for number in made.shared_from)}
    return list(way_back(made, made.actions, old_plan(text, hosts), failed=[len(made.actions)], backups=backups))


BACK: dict[str, list[Action]] = {
    "check_failed_on_host_2_of_2": failing(RESTARTED, "app2", "http"),
    "check_failed_on_host_1_of_2": failing(RESTARTED, "app1", "http"),
    "first_deployment_check_failed": failing(RESTARTED, "app1", "http", first=True, hosts=1),
    "first_deployment_started_by_a_step": failing(HALTED, "app1", "probe", first=True, hosts=1),
    "migrate_failed_after_stop": failing(STOPPED, "app1", "migrate"),
    "check_failed_after_stop_and_start": failing(STOPPED, "app1", "probe"),
    "check_failed_with_an_undo_of_start": failing(HALTED, "app1", "probe", hosts=1),
    "configure_failed": failing(RESTARTED, "app2", "render"),
    "upload_failed": failing(RESTARTED, "app2", "upload"),
    "run_failed": failing(STOPPED, "app2", "command", number=2),
    "drained_check_failed_in_the_second_wave_of_three": failing(BALANCED, "app3", "http", hosts=3),
    "drain_failed": failing(BALANCED, "app2", "command", hosts=2),
    "drain_failed_where_nothing_else_was_done": failing(BALANCED.replace(CONFIGURE, ""), "app1", "command", hosts=1),
    "undrain_failed": failing(BALANCED, "app1", "command", hosts=2, number=3),
    "undrained_first_deployment": list(
        way_back(
            plan(playbook(BALANCED), target(installed=None, hosts=1)),
            plan(playbook(BALANCED), target(installed=None, hosts=1)).actions,
            None,
        )
    ),
    "drained_with_a_playbook_before_that_did_not": list(
        way_back(
            plan(playbook(BALANCED), target(hosts=1, pending=())),
            plan(playbook(BALANCED), target(hosts=1, pending=())).actions,
            old_plan(RESTARTED, 1),
        )
    ),
    "restored_on_two_hosts": restored(STOPPED),
    "restored_with_shared_and_an_undo_of_start": restored(
        HALTED.replace("- backup", "- backup: {shared: true}\n  - backup"), hosts=2
    ),
    "restored_after_a_restart": restored(
        STOPPED.replace("start: {command: [bin/start]}", "restart: {command: [bin/restart]}"), hosts=1
    ),
    "other_playbook_before": list(
        way_back(
            plan(playbook(RESTARTED), target(hosts=1)),
            plan(playbook(RESTARTED), target(hosts=1)).actions,
            old_plan(STOPPED, 1),
        )
    ),
}


@pytest.mark.parametrize("name", BACK)
def test_the_way_back(name: str) -> None:
    golden(f"back_{name}", shown(BACK[name], name.replace("_", " ")))


def test_every_golden_file_belongs_to_a_test() -> None:
    names = {f"plan_{name}.txt" for name in PLANS} | {f"back_{name}.txt" for name in BACK}
    assert {file.name for file in GOLDEN.iterdir()} == names


def test_the_way_back_never_repeats_uploads_backups_or_migrations() -> None:
    for actions in BACK.values():
        assert not {action.what.operation for action in actions} & {"upload", "backup", "migrate"}
        assert [action.number for action in actions] == list(range(1, len(actions) + 1))


@pytest.mark.parametrize("text", [RESTARTED, STOPPED, HALTED])
@pytest.mark.parametrize("text_before", [RESTARTED, STOPPED, HALTED])
def test_wherever_it_fails_the_old_release_is_current_again_and_serves(text: str, text_before: str) -> None:
    """A small model of a host: what is current, and which release's application runs."""
    made, before = plan(playbook(text), target()), old_plan(text_before)
    for count in range(1, len(made.actions) + 1):
        current = dict.fromkeys(("app1", "app2"), "old")
        runs: dict[str, str | None] = dict.fromkeys(("app1", "app2"), "old")
        done = list(made.actions[:count])
        for back, actions in ((False, done), (True, list(way_back(made, done, before)))):
            for action in actions:
                if isinstance(action.what, operations.Switch):
                    current[action.host] = "old" if back else "new"
                elif isinstance(action.what, operations.Command) and action.what.folder == "current":
                    if action.what.serving == "restart":
                        runs[action.host] = current[action.host]
                    elif action.what.argv in {("bin/stop",), ("bin/halt",)}:
                        runs[action.host] = None
                    elif action.what.serving == "start":
                        assert runs[action.host] is None, "started twice"
                        runs[action.host] = current[action.host]
                elif action.what.operation in {"http", "probe"}:
                    assert runs[action.host] == current[action.host]
        assert set(current.values()) == {"old"}
        assert set(runs.values()) == {"old"}


def stops(made: Plan) -> Iterator[tuple[list[Action], Action]]:
    """Every way in which a plan can stop: the actions that were begun, and which of them failed."""
    before: list[Action] = []
    for wave in waves(made.actions):
        for counts in product(*(range(len(actions) + 1) for actions in wave.values())):
            begun = [actions[:count] for actions, count in zip(wave.values(), counts, strict=True)]
            for failed in [actions[-1] for actions in begun if actions]:
                yield [*before, *(action for actions in begun for action in actions)], failed
        before += [action for actions in wave.values() for action in actions]


def traffic(action: Action) -> str | None:
    return action.what.traffic if isinstance(action.what, operations.Command) else None


@pytest.mark.parametrize("worked", [True, False], ids=["it had worked", "it had not worked"])
@pytest.mark.parametrize("text_before", [BALANCED, RESTARTED])
def test_on_the_way_back_the_load_balancer_never_sends_to_a_host_that_changes(text_before: str, worked: bool) -> None:
    """And at the end every host is back in; of three hosts one at the least is in all the time."""
    made, before, tried = plan(playbook(BALANCED), target(hosts=3)), old_plan(text_before, 3), 0
    hosts = {"app1", "app2", "app3"}
    for done, failed in stops(made):
        tried += 1
        is_in = set(hosts)
        for action in done:
            if traffic(action) and (action != failed or worked):
                is_in = is_in - {action.host} if traffic(action) == "drain" else is_in | {action.host}
        drained = {action.host for action in done if traffic(action)} - ({failed.host} if traffic(failed) else set())
        answered: set[str] = set()
        for wave in waves(way_back(made, done, before, failed=[failed.number])):
            assert is_in - set(wave) or len(is_in) == 3, "nobody serves"
            for host, actions in wave.items():
                for action in actions:
                    if traffic(action):
                        is_in = is_in - {host} if traffic(action) == "drain" else is_in | {host}
                        assert traffic(action) == "drain" or host in answered, "in before it has answered"
                    elif action.what.operation == "http":
                        answered.add(host)
                    elif host in drained:
                        assert host not in is_in, action
        assert is_in == hosts
    assert tried > 80


def test_hosts_of_one_wave_go_back_at_the_same_time_and_the_failed_wave_first() -> None:
    made = plan(playbook(BALANCED), target(hosts=3))
    back = way_back(made, until(made, "app3", "http"), old_plan(BALANCED, 3))
    assert [list(wave) for wave in waves(back)] == [["app3"], ["app1", "app2"]]
    assert [action.number for action in back] == list(range(1, len(back) + 1))


@pytest.mark.parametrize(
    ("host", "operation", "left"),
    [
        ("app1", "http", ()),
        ("app3", "render", ()),
        ("app2", "switch", ("app1",)),
        ("app3", "http", ("app1", "app2")),
    ],
)
def test_finished_hosts_can_be_left(host: str, operation: str, left: tuple[str, ...]) -> None:
    made = plan(playbook(RESTARTED), target(hosts=3))
    done = until(made, host, operation)
    assert finished(made, done[:-1]) == left
    back = way_back(made, done, old_plan(RESTARTED, 3), leave=left)
    assert {action.host for action in back} == {"app1", "app2", "app3"} - set(left)


def test_when_every_host_is_finished_none_is_left() -> None:
    """The step after them has failed, which was done once for all of them."""
    made = plan(playbook(RESTARTED), target(hosts=2))
    assert finished(made, made.actions[:-1]) == ()


# --- playbooks that are refused --------------------------------------------------------------------------------------------

MINIMAL = "product: shop\nname: Shop\nsteps: [upload, switch]\n"


OUT = {"drain": {"command": ["out"]}}
IN = {"undrain": {"command": ["in"]}}
KEPT = "rolling: {keep_serving: 1}\n"


def steps(*written: Any) -> str:
    return yaml.safe_dump({"product": "shop", "name": "Shop", "steps": list(written)})


def test_the_least_that_a_playbook_can_be() -> None:
    assert [step.kind for step in playbook(MINIMAL).steps] == ["upload", "switch"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("product: shop\nname: Shop\nsteps: []\n", "at least 1 item"),
        ("product: Shop\nname: Shop\nsteps: [upload, switch]\n", "product"),
        (MINIMAL + "versions: calver\n", "'semver' or 'pep440'"),
        (MINIMAL + "stpes: []\n", "stpes"),
        (MINIMAL + "source: {git: x, tag: release}\n", "source.tag"),
        (steps("switch"), "a playbook has exactly one upload step, this one has 0"),
        (steps("upload"), "a playbook has exactly one switch step, this one has 0"),
        (steps("upload", "upload", "switch"), "a playbook has exactly one upload step, this one has 2"),
        (steps("switch", "upload"), "upload comes before switch"),
        (steps("upload", "switch", "migrate"), "a migrate step needs migrations: with the folder of the scripts"),
        (steps("upload", "switch", "reboot"), "'reboot' found using 'kind' does not match"),
        (steps("upload", "switch", "restart"), "steps.2.restart.command"),
        (steps("upload", "switch", {"restart": {"command": []}}), "at least 1 item"),
        (steps("upload", "switch", {"restart": {"command": "systemctl restart shop"}}), "valid tuple"),
        (steps("upload", "switch", {"restart": {"command": ["x"], "seconds": 0}}), "greater than or equal to 1"),
        (steps("upload", "switch", {"restart": {"command": ["x"], "shell": True}}), "shell"),
        (steps("upload", "switch", {"run": {"command": ["x"], "on": "last"}}), "'each' or 'first'"),
        (steps("upload", "switch", {"check": {"within": 5}}), "a check has either http: or command:"),
        (steps("upload", "switch", {"check": {"http": "http://x", "command": ["y"]}}), "a check has either http: or"),
        (steps("upload", "switch", {"check": {"http": "https://x"}}), "http: is asked from the host itself"),
        (steps("upload", "switch", {"check": {"http": "http://x", "status": 99}}), "greater than or equal to 100"),
        (steps("upload", "switch", {"check": {"command": []}}), "at least 1 item"),
        (steps("upload", "switch", {"check": {"command": ["x"], "contains": "y"}}), "belong to a check with http:"),
        (steps("upload", "switch", {"check": {"command": ["x"], "status": 200}}), "belong to a check with http:"),
        (steps("upload", {"configure": {"templates": {}}}, "switch"), "at least 1 item"),
        *[
            (steps("upload", {"configure": {"templates": {"a": path}}}, "switch"), "is not a file below shared/")
            for path in ("/etc/passwd", "../x", "a/../../x", "", ".", "a/", "a//b", "./a")
        ],
        (
            steps("upload", {"configure": {"templates": {"a": "x", "b": "x"}}}, "switch"),
            "two templates are rendered into the same file of shared/",
        ),
        (MINIMAL + 'migrations: {folder: "a\\nb"}\n', "no control character, no backslash"),
        (MINIMAL + "known_issues: a\\b\n", "no control character, no backslash"),
        (steps("upload", {"configure": {"templates": {"a\\b": "x"}}}, "switch"), "no control character, no backslash"),
        (MINIMAL + "rolling: {at_a_time: 0}\n", "greater than or equal to 1"),
        (MINIMAL + "rolling: {keep_serving: -1}\n", "greater than or equal to 0"),
        (MINIMAL + "rolling: {on_failure: shrug}\n", "'bring-back' or 'leave'"),
        (MINIMAL + "rolling: {at_once: 2}\n", "at_once"),
        (MINIMAL + "keep_releases: 1\n", "greater than or equal to 2"),
        (steps(OUT, "upload", "switch", IN), "upload comes before drain, which runs in the new release's folder"),
        (steps("upload", "switch", IN), "a playbook has one drain step and one undrain step, or neither"),
        (steps("upload", OUT, "switch"), "a playbook has one drain step and one undrain step, or neither"),
        (
            steps("upload", OUT, {"drain": {"command": ["x"]}}, "switch", IN),
            "a playbook has one drain step and one undrain step, or neither",
        ),
        (steps("upload", OUT, IN, "switch"), "drain comes before switch, and undrain after it"),
        (steps("upload", "switch", OUT, IN), "drain comes before switch, and undrain after it"),
        (
            KEPT + steps("upload", OUT, "backup", "switch", IN),
            "rolling.keep_serving cannot hold: backup is done once, between drain and what takes it back",
        ),
        (
            KEPT + steps("upload", {"stop": {"command": ["x"]}}, "backup", "switch", {"start": {"command": ["y"]}}),
            "rolling.keep_serving cannot hold: backup is done once, between stop and what takes it back",
        ),
        (steps({"upload": {"kind": "x"}}, "switch"), "does not match"),
        (steps({"upload": None, "switch": None}), "kind"),
    ],
)
def test_a_playbook_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        playbook(text)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{ release }}/{{ version }}", "2.4.0+1/2.4.0"),
        ("{{ customer }}-{{ environment }}-{{ host }}", "acme-production-app1"),
        ("{{ folder }} {{ language }} {{ time_zone }} {{ url }}", "/srv/shop fr Europe/Paris None"),
        ("{{ values.port }}", "8001"),
        ("${HOME} {x}", "${HOME} {x}"),
    ],
)
def test_what_a_playbook_may_name(text: str, expected: str) -> None:
    made_for = target()
    assert made_for.render(text, made_for.environment.hosts[0]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ prot }}",
        "{{ values.prot }}",
        "{{ secrets.password }}",
        "{{",
        "{% include 'x' %}",
        "{{ 1 // 0 }}",
        "{{ values.port + 'x' }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ range(1000000000) | list }}",
    ],
)
def test_what_cannot_be_filled_in_says_where(text: str) -> None:
    made_for = target()
    with pytest.raises(ConfigurationError) as raised:
        made_for.render(text, made_for.environment.hosts[0])
    [reason] = raised.value.reasons
    assert raised.value.what == "the playbook of shop cannot be filled in for acme"
    assert reason.source == "environments/acme/production.yaml, host app1"
    assert repr(text) in reason.text


def test_a_playbook_that_keeps_hosts_serving() -> None:
    stop, start = {"stop": {"command": ["x"]}}, {"start": {"command": ["y"]}}
    playbook(
        KEPT + steps("backup", "upload", OUT, stop, "switch", start, IN, {"run": {"command": ["z"], "on": "first"}})
    )
    playbook(KEPT + steps("upload", stop, "switch", start, "backup"))


def test_a_hosts_own_value_goes_before_the_environments() -> None:
    here = environment("production", values={"port": 80, "title": "Shop"})
    assert target(environment=here).words(here.hosts[0])["values"] == {"port": 8001, "title": "Shop"}


def test_a_step_kind_is_written_short_or_in_full() -> None:
    full = playbook("product: shop\nname: Shop\nsteps: [{kind: upload}, {switch: }]\n")
    assert full == playbook(MINIMAL)
    assert {step.model_fields["kind"].default for step in get_args(get_args(AnyStep)[0])} == {
        "backup",
        "stop",
        "upload",
        "configure",
        "migrate",
        "switch",
        "start",
        "restart",
        "check",
        "drain",
        "undrain",
        "run",
    }


# --- backups and what is restored from them -----------------------------------------------------------------------------

STOP, BACKUP, MIGRATE_ALL, START = (
    "  - stop: {command: [s]}\n",
    "  - backup\n",
    "  - migrate\n",
    "  - start: {command: [s]}\n",
)
ENDS = "  - upload\n  - switch\n"


@pytest.mark.parametrize(
    ("steps", "more", "expected"),
    [
        ([STOP, BACKUP, MIGRATE_ALL, ENDS, START], {}, 2),
        ([BACKUP, STOP, MIGRATE_ALL, ENDS, START], {}, None),
        ([BACKUP, STOP, MIGRATE_ALL, ENDS, START], {"restore": "always"}, 1),
        ([STOP, MIGRATE_ALL, BACKUP, ENDS, START], {"restore": "always"}, None),
        ([STOP, BACKUP, START, STOP, MIGRATE_ALL, ENDS, START], {}, None),
        ([BACKUP, STOP, BACKUP, MIGRATE_ALL, ENDS, START], {}, 3),
        ([BACKUP, MIGRATE_ALL, ENDS, START], {}, None),
        ([STOP, "  - backup: {database: false, shared: true}\n", MIGRATE_ALL, ENDS, START], {}, None),
        ([STOP, "  - backup: {shared: true}\n", MIGRATE_ALL, ENDS, START], {}, 2),
    ],
)
def test_what_is_restored_was_backed_up_while_nobody_could_write(
    steps: list[str], more: dict[str, str], expected: int | None
) -> None:
    settings = "".join(f", {name}: {value}" for name, value in more.items())
    text = f"product: shop\nname: Shop\nmigrations: {{folder: migrations{settings}}}\nsteps:\n{''.join(steps)}"
    script = PENDING[0].id
    pending = target(hosts=1, unproven={script: "irreversible"})
    assert plan(playbook(text), pending).restore_from.get(script) == expected
    # The same of a script that an earlier attempt has applied.
    ran = pending.model_copy(update={"ran": pending.pending, "pending": ()})
    assert plan(playbook(text), ran).restore_from.get(script) == expected
    assert plan(playbook(text), pending, rollback=True).restore_from == {}


def test_on_several_hosts_a_backup_on_each_is_not_made_when_all_have_stopped() -> None:
    text = STOPPED.replace("- backup", "- backup: {shared: true}")
    unproven = {"008_fill_colour.sql": "irreversible"}
    assert plan(playbook(text), target(hosts=2, unproven=unproven)).restore_from == {}
    made = plan(playbook(text + "rolling: {at_a_time: 2}\n"), target(hosts=2, unproven=unproven))
    assert made.restore_from == {} and len(made.shared_from) == 2
    [one, other] = [a.what for a in made.actions if isinstance(a.what, operations.Backup)]
    assert (one.database, other.database, one.shared, other.shared) == (True, False, True, True)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([BACKUP, MIGRATE_ALL, ENDS], {}),
        ([MIGRATE_ALL, BACKUP, ENDS], {"2.sql": "unknown"}),
        ([MIGRATE_ALL, ENDS], {"2.sql": "unknown"}),
        (["  - migrate: {only: '1*'}\n", BACKUP, MIGRATE_ALL, ENDS], {}),
        (["  - backup: {database: false, shared: true}\n", MIGRATE_ALL, ENDS], {"2.sql": "unknown"}),
    ],
)
def test_what_only_a_restore_takes_back_wants_a_backup_before_it(steps: list[str], expected: dict[str, str]) -> None:
    text = f"product: shop\nname: Shop\nmigrations: {{folder: migrations}}\nsteps:\n{''.join(steps)}"
    pending = [Script(id=id, checksum=sha(id), blob=oid(id)) for id in ("1.sql", "2.sql")]
    assert without_backup(playbook(text), pending, {"2.sql": "unknown"}) == expected


@pytest.mark.parametrize("options", ["{database: false}", "{database: false, shared: true, proof: restore}"])
def test_a_backup_of_nothing_or_with_a_proof_that_it_cannot_have_is_refused(options: str) -> None:
    with pytest.raises(ValidationError):
        playbook(STOPPED.replace("- backup", f"- backup: {options}"))
