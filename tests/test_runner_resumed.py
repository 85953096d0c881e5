"""A run that is resumed: what an earlier attempt did is taken back too, and nothing is believed that could have changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.acts import Ground
from pipeline.errors import Failed
from pipeline.host import Host
from pipeline.operations import Command, Probe, Switch, Upload
from pipeline.runner import run
from tests.jobs import installed, release_of
from tests.test_runner_hosts import NEW, OLD, current, ground_of, plan_of, sh


def with_old(folder: Path, *names: str) -> Ground:
    """Hosts on which 1.0+1 serves."""
    ground = ground_of(folder, names)
    for name in names:
        installed(ground.hosts[name], "1.0+1", OLD)
    return ground


def next_attempt(ground: Ground) -> Ground:
    return replace(ground, fence=ground.fence + 1, record="record-2")


def stop_at(monkeypatch: pytest.MonkeyPatch, host: str, act: str) -> None:
    """From now on this host cannot do a job with such a step; it fails before anything is begun."""
    carry = Host.carry

    def broken(self: Host, job, **more):  # type: ignore[no-untyped-def]
        if self.name == host and job.direction == "step" and any(step.act == act for step in job.steps):
            raise Failed("no")
        return carry(self, job, **more)

    monkeypatch.setattr(Host, "carry", broken)


def test_what_an_earlier_attempt_switched_is_switched_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = with_old(tmp_path, "app1")
    plan = plan_of(("app1", 1, Upload()), ("app1", 2, Switch()), installed="1.0+1")
    assert run(plan, ground, None).outcome == "ok"
    stop_at(monkeypatch, "app1", "upload")
    report = run(plan, next_attempt(ground), None, resumed=True)
    assert (report.outcome, report.trouble) == ("failed", None)
    assert current(tmp_path, "app1") == "1.0+1"


def test_so_is_the_other_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = with_old(tmp_path, "app1", "app2")
    steps = [("app1", 1, Upload()), ("app2", 1, Upload()), ("app1", 2, Switch()), ("app2", 3, Switch())]
    plan = plan_of(*steps, installed="1.0+1")
    assert run(plan, ground, None).outcome == "ok"
    stop_at(monkeypatch, "app1", "upload")
    assert run(plan, next_attempt(ground), None, resumed=True).trouble is None
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["1.0+1", "1.0+1"]


def test_a_host_that_was_left_finished_stays_so(tmp_path: Path) -> None:
    ground = with_old(tmp_path, "app1", "app2")
    steps = [
        ("app1", 1, Switch()),
        ("app2", 2, Probe(argv=("false",), within=0)),
        ("app2", 2, Switch()),
    ]
    plan = plan_of(("app1", 1, Upload()), ("app2", 1, Upload()), *steps, installed="1.0+1", on_failure="leave")
    assert run(plan, ground, None).left == ("app1",)
    # The next attempt does not even come to the first host.
    away = plan_of(
        ("app2", 1, Probe(argv=("false",), within=0)), *plan_steps(plan), installed="1.0+1", on_failure="leave"
    )
    report = run(away, next_attempt(ground), None, resumed=True, kept=("app1",))
    assert (report.left, report.trouble) == (("app1",), None)
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["2.0+1", "1.0+1"]


def plan_steps(plan):  # type: ignore[no-untyped-def]
    return [(action.host, action.wave + 1, action.what) for action in plan.actions]


def test_a_release_that_was_changed_before_it_served_is_sent_anew(tmp_path: Path) -> None:
    ground = with_old(tmp_path, "app1")
    plan = plan_of(("app1", 1, Upload()), installed="1.0+1")
    assert run(plan, ground, None).outcome == "ok"
    file = tmp_path / "app1" / "releases" / "2.0+1" / "app.py"
    before = file.stat()
    file.write_bytes(b"bad\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for attempt in (next_attempt(ground), replace(next_attempt(ground), run="run-2", fence=9)):
        assert run(plan, attempt, None, resumed=attempt.run == ground.run).outcome == "ok"
        assert ground.hosts["app1"].verify("2.0+1", release_of(NEW)[0]) == []


def test_what_serves_is_told_again_by_each_attempt_and_the_rest_is_done_once(tmp_path: Path) -> None:
    """The configuration is rendered anew by each attempt, so the application must be restarted with it."""
    ground = with_old(tmp_path, "app1")
    count = tmp_path / "count"
    plan = plan_of(
        ("app1", 1, Upload()),
        ("app1", 1, Switch()),
        ("app1", 1, Command(argv=("sh", "-c", f"echo restarted >>{count}"), serving="restart")),
        ("app1", 1, sh(f"echo once >>{count}")),
        ("app1", 1, sh(f"echo once >>{count}")),
        installed="1.0+1",
    )
    assert run(plan, ground, None).outcome == "ok"
    assert run(plan, next_attempt(ground), None, resumed=True).outcome == "ok"
    assert sorted(count.read_text().split()) == ["once", "once", "restarted", "restarted"]


def test_a_program_that_writes_into_the_new_release_does_not_write_into_the_old_one(tmp_path: Path) -> None:
    ground = with_old(tmp_path, "app1")
    ground = replace(ground, base=lambda host: ("1.0+1", release_of(OLD)[0]))
    plan = plan_of(
        ("app1", 1, Upload()),
        ("app1", 1, sh("echo more >>same; exit 3", folder="release")),
        installed="1.0+1",
    )
    assert run(plan, ground, None).trouble is None
    assert ground.hosts["app1"].verify("1.0+1", release_of(OLD)[0]) == []
