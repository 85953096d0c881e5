"""The runner on several hosts: waves at the same time, one that fails, one that is cut off, one that was overtaken."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import Ground, Report
from pipeline.errors import OVERTAKEN, Failed, Locked, PartlyDone, Reason, Refused, Unreachable, overtaken
from pipeline.host import Host
from pipeline.host_journal import JournalEntry
from pipeline.operations import Command, Migrate, Operation, Probe, Switch, Upload
from pipeline.payload import Payload, Payloads
from pipeline.playbook import Action, Plan
from pipeline.runner import bring_back, run
from pipeline.transports import LineCut
from pipeline.transports.local import LocalTransport
from tests.jobs import Files, entry, installed, release_of
from tests.test_runner import SECRET, ground_on

OLD: Files = {b"app.py": ("100644", b"old\n"), b"same": ("100644", b"same\n"), b"gone": ("100644", b"")}
NEW: Files = {b"app.py": ("100644", b"new\n"), b"same": ("100644", b"same\n")}

TAKEN = Refused("the lease was taken away", reasons=[Reason("by run-9", None, OVERTAKEN)])

Step = tuple[str, int, Operation]


def sh(script: str, **more: Any) -> Command:
    return Command(argv=("sh", "-c", script), **more)


def plan_of(*steps: Step, installed: str | None = None, release: str = "2.0+1", **more: Any) -> Plan:
    """A plan of (host, wave, operation); what comes after the upload rolls from host to host."""
    actions = tuple(
        Action(
            number=number,
            title=f"{what.operation} {number}",
            host=host,
            what=what,
            wave=wave,
            rolling=not isinstance(what, Upload),
        )
        for number, (host, wave, what) in enumerate(steps, 1)
    )
    return Plan(customer="acme", environment="test", release=release, installed=installed, actions=actions, **more)


def ground_of(folder: Path, hosts: Sequence[str] = ("app1", "app2"), **more: Any) -> Ground:
    manifest, read = release_of(NEW)
    fields: dict[str, Any] = {
        "hosts": {name: Host(LocalTransport(), name, str(folder / name)) for name in hosts},
        "manifest": manifest,
        "payloads": Payloads(folder / "cache", read),
        "fence": 3,
    }
    return ground_on(folder, **fields | more)


def current(folder: Path, name: str) -> str | None:
    link = folder / name / "current"
    return str(link.readlink()).removeprefix("releases/") if link.is_symlink() else None


def said(ground: Ground, name: str) -> list[tuple[str, str | None]]:
    """How the journal of a host tells of deployments."""
    return [(one.what, one.outcome) for one in ground.hosts[name].journal() if one.what.startswith("deployment")]


def upload_and_switch(*hosts: str, waves: bool = True) -> list[Step]:
    first: list[Step] = [(name, 1, Upload()) for name in hosts]
    return first + [(name, 2 + (number if waves else 0), Switch()) for number, name in enumerate(hosts)]


# --- waves ------------------------------------------------------------------------------------------------------------------


def test_the_hosts_of_a_wave_work_at_the_same_time_and_waves_one_after_another(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    here = str(tmp_path)
    meet = (
        f"touch {here}/$0.came; n=0; until [ -e {here}/a.came ] && [ -e {here}/b.came ] || [ $n -gt 300 ];"
        " do n=$((n+1)); sleep 0.1; done; [ $n -le 300 ]"
    )
    after = f"[ -e {here}/a.came ] && [ -e {here}/b.came ] && [ -e {here}/a.done ]"
    plan = plan_of(
        *[(name, 1, Upload()) for name in ("a", "b", "c")],
        ("a", 2, Command(argv=("sh", "-c", meet, "a"), folder="release")),
        ("a", 2, sh(f"touch {here}/a.done", folder="release")),
        ("b", 2, Command(argv=("sh", "-c", meet, "b"), folder="release")),
        ("c", 3, sh(after, folder="release")),
    )
    ground = ground_of(tmp_path, ("a", "b", "c"))
    report = run(plan, ground, None)
    assert report.outcome == "ok", report.error and report.error.render()
    assert sorted(action.number for action in report.done) == list(range(1, 8))
    assert all(said(ground, name)[-1] == ("deployment-finished", "ok") for name in ("a", "b", "c"))


def test_one_payload_serves_all_hosts(tmp_path: Path) -> None:
    asked: list[str] = []
    manifest, read = release_of(NEW)

    def reading(names: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        asked.extend(names)
        return read(names)

    ground = ground_of(tmp_path, ("a", "b", "c"), payloads=Payloads(tmp_path / "cache", reading))
    report = run(plan_of(*upload_and_switch("a", "b", "c", waves=False)), ground, None)
    assert report.outcome == "ok"
    assert sorted(asked) == sorted({file.blob for file in manifest.files})
    assert len(list((tmp_path / "cache").iterdir())) == 1


# --- a failure --------------------------------------------------------------------------------------------------------------


def both_on_old(folder: Path, names: Sequence[str] = ("app1", "app2")) -> Plan:
    """Both hosts hold the release 1.0+1; gives its plan."""
    for name in names:
        installed(Host(LocalTransport(), name, str(folder / name)), "1.0+1", OLD)
    return plan_of(*upload_and_switch(*names), release="1.0+1")


def test_one_host_fails_and_the_finished_ones_go_back_too(tmp_path: Path) -> None:
    before = both_on_old(tmp_path)
    bad = sh("case $PWD in */app2/*) exit 5;; esac", folder="release")
    steps = [*upload_and_switch("app1", "app2"), ("app2", 3, bad)]
    ground = ground_of(tmp_path)
    report = run(plan_of(*steps, installed="1.0+1"), ground, before)
    assert (report.outcome, report.trouble, report.left) == ("failed", None, ())
    assert report.failed is not None and report.failed.host == "app2"
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["1.0+1", "1.0+1"]
    assert said(ground, "app1")[-3:] == [
        ("deployment-started", None),
        ("deployment-finished", "ok"),
        ("deployment-finished", "failed"),
    ]
    assert said(ground, "app2")[-2:] == [("deployment-started", None), ("deployment-finished", "failed")]


def test_of_two_that_fail_in_a_wave_both_go_back_and_a_later_wave_never_begins(tmp_path: Path) -> None:
    before = both_on_old(tmp_path, ("a", "b", "c"))
    steps: list[Step] = [(name, 1, Upload()) for name in ("a", "b", "c")]
    for name in ("a", "b"):
        steps += [(name, 2, Switch()), (name, 2, sh("exit 5"))]
    steps += [("c", 3, Switch())]
    report = run(plan_of(*steps, installed="1.0+1"), ground_of(tmp_path, ("a", "b", "c")), before)
    assert report.failed is not None and report.failed.host == "a"
    assert [current(tmp_path, name) for name in ("a", "b", "c")] == ["1.0+1"] * 3
    assert not any(action.host == "c" and action.number == len(steps) for action in report.done)


def test_a_playbook_may_leave_the_finished_hosts(tmp_path: Path) -> None:
    before = both_on_old(tmp_path)
    bad = sh("case $PWD in */app2/*) exit 5;; esac", folder="release")
    steps = [*upload_and_switch("app1", "app2"), ("app2", 3, bad)]
    ground = ground_of(tmp_path)
    report = run(plan_of(*steps, installed="1.0+1", on_failure="leave"), ground, before)
    assert (report.outcome, report.trouble, report.left) == ("failed", None, ("app1",))
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["2.0+1", "1.0+1"]
    assert said(ground, "app1")[-1] == ("deployment-finished", "ok")
    assert said(ground, "app2")[-1] == ("deployment-finished", "failed")


class Applying:
    """A database that applies what it is given, or ends in an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def catalogue(self) -> dict[str, Any]:
        return {"tables": {}}

    def apply(self, *_: Any, **__: Any) -> bool:
        if self.error is not None:
            raise self.error
        return True

    def close(self) -> None:
        pass


@pytest.mark.parametrize("attempt", ["this one applied it", "an earlier one did", "nobody knows"])
def test_what_only_a_restore_could_mend_is_not_taken_back(tmp_path: Path, attempt: str) -> None:
    before = both_on_old(tmp_path, ("app1",))
    mine = attempt != "an earlier one did"
    steps: list[Step] = [("app1", 1, Upload()), ("app1", 1, sh("touch ../../stopped"))]
    steps += [("app1", 2, Migrate(scripts=("1.sql",)))] if mine else []
    steps += [("app1", 3, Switch()), ("app1", 3, sh("exit 5"))]
    plan = plan_of(*steps, installed="1.0+1", restore_needed={"1.sql": "irreversible"})
    error = ZeroDivisionError() if attempt == "nobody knows" else None
    ground = ground_of(tmp_path, ("app1",), database=lambda host: Applying(error))
    report = run(plan, ground, before, applied=() if mine else ("1.sql",))
    assert report.outcome == "failed" and report.back == []
    assert isinstance(report.trouble, Failed)
    assert "1.sql is irreversible" in report.trouble.render()
    assert current(tmp_path, "app1") == ("1.0+1" if error else "2.0+1")


@pytest.mark.parametrize("half", [True, False])
def test_a_half_of_what_is_only_harmless_as_a_whole_is_not_taken_back(tmp_path: Path, half: bool) -> None:
    """A script that stopped in the middle, while the application was stopped; one that failed left nothing."""
    before = both_on_old(tmp_path, ("app1",))
    steps: list[Step] = [("app1", 1, Upload()), ("app1", 2, Migrate(scripts=("1.sql",))), ("app1", 3, Switch())]
    plan = plan_of(*steps, installed="1.0+1", restore_if_half=("1.sql",))
    error = PartlyDone("2 of 3 statements are committed") if half else Failed("nothing of it is left")
    report = run(plan, ground_of(tmp_path, ("app1",), database=lambda host: Applying(error)), before)
    assert report.outcome == "failed"
    assert report.half_done == (["1.sql"] if half else [])
    assert (report.trouble is not None) == half
    if report.trouble is not None:
        assert "of 1.sql a part may be applied" in report.trouble.render()
    assert report.catalogue == {"before": {"tables": {}}, "after": {"tables": {}}}


def test_a_host_that_cannot_be_spoken_to_is_a_failed_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = both_on_old(tmp_path)
    ground = ground_of(tmp_path)

    def away(*_: Any, **__: Any) -> None:
        raise Unreachable("app2 is away")

    monkeypatch.setattr(ground.hosts["app2"].transport, "stream", away)
    report = run(plan_of(*upload_and_switch("app1", "app2"), installed="1.0+1"), ground, before)
    assert report.outcome == "failed" and isinstance(report.error, Unreachable)
    assert report.failed is not None and (report.failed.host, report.failed.number) == ("app2", 2)
    assert current(tmp_path, "app1") == "1.0+1"
    assert isinstance(report.trouble, Unreachable)  # its journal could not be written either


@pytest.mark.parametrize("error", [Locked("busy"), Failed("full"), KeyError("unheard of")])
def test_whatever_else_a_job_ends_in_is_a_failed_action_too(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = both_on_old(tmp_path)
    ground, carry = ground_of(tmp_path), Host.carry

    def broken(self: Host, job: Any, **more: Any) -> Any:
        if self.name == "app2" and job.direction == "step" and any(step.act == "switch" for step in job.steps):
            raise error
        return carry(self, job, **more)

    monkeypatch.setattr(Host, "carry", broken)
    report = run(plan_of(*upload_and_switch("app1", "app2"), installed="1.0+1"), ground, before)
    assert (report.outcome, report.trouble) == ("failed", None)
    assert report.failed is not None and report.failed.number == 4
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["1.0+1", "1.0+1"]


# --- what stops everything ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), LineCut("cut")])
def test_what_stops_one_host_of_a_wave_stops_the_run_and_nothing_goes_back(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = both_on_old(tmp_path)
    ground, carry = ground_of(tmp_path), Host.carry

    def broken(self: Host, job: Any, **more: Any) -> Any:
        if self.name == "app2" and threading.current_thread() is not threading.main_thread():
            raise error
        return carry(self, job, **more)

    monkeypatch.setattr(Host, "carry", broken)
    steps = upload_and_switch("app1", "app2", waves=False)
    with pytest.raises(type(error)):
        run(plan_of(*steps, installed="1.0+1"), ground, before)
    assert current(tmp_path, "app1") == "1.0+1"  # the wave after it never began
    assert ("deployment-finished", "failed") not in said(ground, "app1")


def test_a_run_that_was_overtaken_does_not_even_go_back(tmp_path: Path) -> None:
    before = both_on_old(tmp_path)
    ground = ground_of(tmp_path)
    later: JournalEntry = entry("run-9", 9, "lock-released")
    ground.hosts["app2"].append_journal(later)
    with pytest.raises(Refused) as caught:
        run(plan_of(*upload_and_switch("app1", "app2"), installed="1.0+1"), ground, before)
    assert overtaken(caught.value)
    assert ("deployment-finished", "failed") not in said(ground, "app1")
    assert ground.hosts["app2"].journal()[-1].run == "run-9"


def test_before_each_phase_the_lease_is_asked_for(tmp_path: Path) -> None:
    before = both_on_old(tmp_path)
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise TAKEN

    ground = ground_of(tmp_path, still_ours=check)
    with pytest.raises(Refused) as caught:
        run(plan_of(*upload_and_switch("app1", "app2"), installed="1.0+1"), ground, before)
    assert caught.value is TAKEN
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["1.0+1", "1.0+1"]
    assert ("deployment-finished", "failed") not in said(ground, "app1")


# --- an upload that cannot be built on what serves ------------------------------------------------------------------------------


def test_only_what_differs_is_sent_and_all_where_the_host_holds_something_else(tmp_path: Path) -> None:
    before = both_on_old(tmp_path)
    (tmp_path / "app2/releases/1.0+1/same").write_bytes(b"theirs")
    lines: list[str] = []
    manifest = release_of(OLD)[0]
    ground = ground_of(tmp_path, base=lambda host: ("1.0+1", manifest), progress=lines.append)
    sent: list[Payload] = []
    get = ground.payloads.get
    ground.payloads.get = lambda *pair: sent.append(get(*pair)) or sent[-1]  # type: ignore[method-assign, func-returns-value]
    report = run(plan_of(*upload_and_switch("app1", "app2"), installed="1.0+1"), ground, before)
    assert report.outcome == "ok", report.error and report.error.render()
    assert sorted(payload.whole for payload in sent) == [False, False, True]
    assert any(line.startswith("app2: nothing can be built on the release that serves") for line in lines)
    for name in ("app1", "app2"):
        assert ground.hosts[name].verify("2.0+1", ground.manifest) == []


def test_a_spoilt_payload_is_made_anew_once(tmp_path: Path) -> None:
    """The cache is only a cache: a disk that lost its power may hold anything under a good name."""
    ground = ground_of(tmp_path, ("app1",))
    payload = ground.payloads.get(ground.manifest, None)
    payload.members.write_bytes(payload.members.read_bytes().replace(b"new\n", b"nxw\n"))
    report = run(plan_of(*upload_and_switch("app1")), ground, None)
    assert report.outcome == "ok", report.error and report.error.render()
    assert ground.hosts["app1"].verify("2.0+1", ground.manifest) == []


# --- words ----------------------------------------------------------------------------------------------------------------------


def test_what_a_product_s_program_prints_holds_no_secret(tmp_path: Path) -> None:
    for step in (
        sh(f"echo {SECRET}; exit 3", folder="release"),
        Probe(argv=("sh", "-c", f"echo {SECRET}; exit 3"), within=0),
    ):
        steps: list[Step] = [("app1", 1, Upload()), ("app1", 1, Switch()), ("app1", 1, step)]
        report = run(plan_of(*steps), ground_of(tmp_path, ("app1",)), None)
        assert report.error is not None
        reasons = report.error.render().partition("\n")[2]
        assert "***" in reasons and SECRET not in reasons.replace(f"echo {SECRET}", "")


def test_a_time_limit_is_told_in_words(tmp_path: Path) -> None:
    steps: list[Step] = [("app1", 1, Upload()), ("app1", 1, sh("sleep 60", folder="release", seconds=1))]
    report = run(plan_of(*steps), ground_of(tmp_path, ("app1",)), None)
    assert report.error is not None and "it took longer than 1 seconds" in report.error.render()


def test_an_open_run_is_brought_back_as_if_all_of_it_had_been_done(tmp_path: Path) -> None:
    before = both_on_old(tmp_path)
    plan = plan_of(*upload_and_switch("app1", "app2"), installed="1.0+1")
    run(plan, ground_of(tmp_path), before)
    ground = ground_of(tmp_path, fence=4, record="record-2")
    report = bring_back(plan, ground, before)
    assert isinstance(report, Report) and (report.outcome, report.trouble) == ("failed", None)
    assert [current(tmp_path, name) for name in ("app1", "app2")] == ["1.0+1", "1.0+1"]
    assert said(ground, "app1")[-2:] == [("deployment-started", None), ("deployment-finished", "failed")]
