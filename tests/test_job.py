"""A job: received whole or not at all, written down before and after each step, and never done twice."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, Unreachable, UsageError
from pipeline.host import Host
from pipeline.job import Job, JobStep, Told, library
from pipeline.transports import LineCut, Result
from pipeline.transports.local import LocalTransport
from tests.jobs import (
    FILES,
    command,
    do,
    entry,
    outcomes,
    payload_of,
    release_of,
    render,
    snapshot,
    switch,
    tools_without,
    upload,
    written,
)
from tests.nouns import sha


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acme app"


@pytest.fixture
def host(folder: Path) -> Host:
    return Host(LocalTransport(), "app1", str(folder))


def counting(number: int = 3, inputs: str = "once", **more: Any) -> JobStep:
    """A step that adds a line to ``shared/count`` each time that it is really done."""
    return JobStep(number, sha(inputs), "command", ("60", "shared", "sh", "-c", "echo x >>count"), **more)


def failing(number: int = 3, inputs: str = "once") -> JobStep:
    script = "echo x >>count; echo reason; exit 5"
    return JobStep(number, sha(inputs), "command", ("60", "shared", "sh", "-c", script))


def count(folder: Path) -> int:
    return (folder / "shared/count").read_text().count("x")


# --- replay ---------------------------------------------------------------------------------------------------------------


def test_what_a_run_has_done_is_not_done_again(host: Host, folder: Path) -> None:
    do(host, counting())
    assert outcomes(do(host, counting())) == {3: "again"}
    assert count(folder) == 1
    assert written(host) == [("deployment-started", None, None), ("step-started", 3, None), ("step-finished", 3, "ok")]


def test_the_next_attempt_of_a_run_goes_on_where_the_one_before_stopped(host: Host, folder: Path) -> None:
    assert outcomes(do(host, counting(1, "a"), failing(2, "b"), counting(3, "c"))) == {1: "ok", 2: "failed 5"}
    assert count(folder) == 2
    told = do(host, counting(1, "a"), counting(2, "b"), counting(3, "c"), fence=2)
    assert outcomes(told) == {1: "again", 2: "ok", 3: "ok"}
    assert count(folder) == 4


def test_a_plan_that_became_shorter_does_nothing_again(host: Host, folder: Path) -> None:
    """The number of an action is another when a migration before it is applied."""
    do(host, counting(5))
    assert outcomes(do(host, counting(4), fence=2)) == {4: "again"}
    assert count(folder) == 1


@pytest.mark.parametrize("change", ["inputs", "run", "direction"])
def test_other_inputs_another_run_or_the_way_back_are_done_for_themselves(
    change: str, host: Host, folder: Path
) -> None:
    do(host, counting())
    step = counting(inputs="other") if change == "inputs" else counting()
    run = "run-2" if change == "run" else "run-1"
    direction: Any = "back" if change == "direction" else "step"
    assert outcomes(do(host, step, run=run, fence=2, direction=direction)) == {step.number: "ok"}
    assert count(folder) == 2


def test_a_failure_is_told_again_to_the_same_attempt_and_tried_again_by_the_next(host: Host, folder: Path) -> None:
    assert outcomes(do(host, failing())) == {3: "failed 5"}
    told = do(host, failing())
    assert outcomes(told) == {3: "failed 1"}
    assert "it had failed" in told.steps[3].output[0]
    assert count(folder) == 1
    assert list((folder / "incoming").iterdir()) == []
    assert outcomes(do(host, failing(), fence=2)) == {3: "failed 5"}
    assert count(folder) == 2


def test_after_a_way_back_everything_is_done_again(host: Host, folder: Path) -> None:
    do(host, counting())
    assert outcomes(do(host, counting(1, "back"), direction="back")) == {1: "ok"}
    assert outcomes(do(host, counting(1, "back"), direction="back")) == {1: "again"}
    assert outcomes(do(host, counting(), fence=2)) == {3: "ok"}
    assert count(folder) == 3
    # And what the way back had done holds only until the run went forward again.
    assert outcomes(do(host, counting(1, "back"), fence=2, direction="back")) == {1: "ok"}


def test_a_run_that_comes_between_ends_the_replay(host: Host, folder: Path) -> None:
    do(host, counting())
    do(host, run="run-2", fence=2)
    assert outcomes(do(host, counting(4, "other"), fence=3)) == {4: "ok"}
    assert outcomes(do(host, counting(), fence=3)) == {3: "ok"}
    assert count(folder) == 3


def test_a_switch_or_an_upload_that_somebody_undid_is_done_again(host: Host, folder: Path, tmp_path: Path) -> None:
    payload = payload_of(tmp_path / "payloads", FILES)
    steps = (upload("1.0+1", payload), switch("1.0+1"))
    do(host, *steps, payload=payload)
    assert outcomes(do(host, *steps, payload=payload)) == {1: "again", 2: "again"}
    (folder / "current").unlink()
    assert outcomes(do(host, *steps, payload=payload)) == {1: "again", 2: "ok"}
    shutil.rmtree(folder / "releases/1.0+1")
    assert outcomes(do(host, *steps, payload=payload)) == {1: "ok", 2: "again"}
    assert host.verify("1.0+1", release_of(FILES)[0]) == []


def test_an_attempt_is_announced_once_and_concluded_as_it_ended_last(host: Host) -> None:
    do(host, counting(), finish="ok")
    do(host, counting(), finish="ok")
    do(host, counting(1, "back"), direction="back")
    do(host, direction="back", finish="failed")
    do(host, direction="back", finish="failed")
    assert written(host) == [
        ("deployment-started", None, None),
        ("step-started", 3, None),
        ("step-finished", 3, "ok"),
        ("deployment-finished", None, "ok"),
        ("back-started", 1, None),
        ("back-finished", 1, "ok"),
        ("deployment-finished", None, "failed"),
    ]
    do(host, counting(), fence=2, finish="ok")
    assert [what for what, _, _ in written(host)][7:] == [
        "deployment-started",
        "step-started",
        "step-finished",
        "deployment-finished",
    ]


def test_what_the_controller_does_is_written_down_around_it(host: Host) -> None:
    about = JobStep(7, sha("migrate"), of="controller")
    after = JobStep(7, sha("migrate"), of="controller", outcome="ok")
    do(host, counting(1), about)
    do(host, after, counting(8, "8"))
    do(host, after, counting(8, "8"), JobStep(9, sha("x"), of="controller", direction="back", outcome="failed"))
    assert written(host)[3:] == [
        ("step-started", 7, None),
        ("step-finished", 7, "ok"),
        ("step-started", 8, None),
        ("step-finished", 8, "ok"),
        ("back-finished", 9, "failed"),
    ]


# --- the journal around each step -------------------------------------------------------------------------------------------


def test_each_step_is_durable_in_the_journal_before_it_begins_and_after_it_ended(tmp_path: Path, folder: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    for name in ("sync", "mv"):
        (shims / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$LOG"\nexec {shutil.which(name)} "$@"\n')
        (shims / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": f"{shims}:{os.environ['PATH']}", "LOG": str(log)}
    host = Host(LocalTransport(environment=environment), "app1", str(folder))
    do(host)
    log.write_text("")
    step = "ls ../journal >seen; echo act >>" + str(log)
    told = do(host, command("sh", "-c", step, folder="shared"), fence=2, finish="ok")
    assert outcomes(told) == {3: "ok"}
    assert (folder / "shared/seen").read_text().split()[-1] == "000003-step-started.json"
    journal = str(folder / "journal")
    assert [line for line in log.read_text().splitlines() if "act" in line or "-step-" in line or journal in line] == [
        "sync 000002-deployment-started.json 000003-step-started.json",
        f"mv -f 000002-deployment-started.json 000003-step-started.json {journal}",
        f"sync {journal}",
        "act",
        "sync 000004-step-finished.json 000005-deployment-finished.json",
        f"mv -f 000004-step-finished.json 000005-deployment-finished.json {journal}",
        f"sync {journal}",
    ]


def test_entries_of_a_job_are_read_only_and_make_one_chain_with_those_of_the_controller(
    host: Host, folder: Path
) -> None:
    host.append_journal(entry("run-0", 0))
    do(host, counting())
    host.append_journal(entry("run-2", 3))
    assert [known.number for known in host.journal()] == [1, 2, 3, 4, 5]
    assert all(path.stat().st_mode & 0o222 == 0 for path in (folder / "journal").iterdir())
    assert host.inspect().journal_damage is None


def test_hard_words_in_an_entry_stay_words(host: Host, folder: Path) -> None:
    hard = 'gr\u00f6\u00dfe "q" \'a\' $(touch x) %s \\n {,} "run":"run-9","fence":99'
    base = entry("run-1", 4, record="r-4", environment=hard, content="a" * 64)
    host.carry(Job(base, (counting(),)))
    host.carry(Job(base, (counting(),)))
    journal = host.journal()
    assert [(one.what, one.environment, one.fence, one.run) for one in journal] == [
        (what, hard, 4, "run-1") for what in ("deployment-started", "step-started", "step-finished")
    ]
    assert count(folder) == 1


# --- a stream that is cut -------------------------------------------------------------------------------------------------


def receive(folder: Path, data: bytes, path: str | None = None) -> int:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    words = ["sh", "-c", library("receive"), "sh", str(folder), "run-1", "60"]
    return subprocess.run(words, input=data, env=environment, capture_output=True, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("tar", ["GNU", "busybox"])
def test_a_stream_that_is_cut_anywhere_changes_nothing(tar: str, host: Host, folder: Path, tmp_path: Path) -> None:
    do(host, fence=0)
    before = snapshot(folder)
    payload = payload_of(tmp_path / "payloads", {b"a" * 150: ("100644", b"1" * 700), b"l": ("120000", b"a")})
    steps = (counting(1, "first"), upload("1.0+1", payload, number=2), switch("1.0+1", 3), render())
    job = Job(entry(), steps, payload=payload, files={"4/x": b"1"}, finish="ok")
    data = b"".join(job.stream())
    tools = None
    if tar == "busybox":
        tools = tools_without(tmp_path / "tools", "tar")
        (tmp_path / "tools/tar").symlink_to(shutil.which("busybox") or "")
    whole = data.rindex(b"complete".ljust(100, b"\0")) + 512
    lengths = {0, 1, 100, whole - 1, *range(511, whole, 2560), *range(0, whole, 3072)}
    for place in range(whole - 8192, whole, 512):
        lengths |= {place, place + 7}
    for length in sorted(lengths):
        assert receive(folder, data[:length], tools) == 95, length
        assert snapshot(folder) == before, length
    assert receive(folder, data[:whole], tools) in (0, 95)
    assert receive(folder, data, tools) == 0
    assert host.inspect().current == "1.0+1"
    assert count(folder) == 1


class Cutting(LocalTransport):
    """A line that is cut, each time by the next of ``cuts``: after so many bytes sent, or so many lines heard."""

    def __init__(self, *cuts: tuple[str, int] | Exception) -> None:
        super().__init__()
        self.cuts = list(cuts)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def stream(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        on_line: Callable[[str], None],
        **more: Any,
    ) -> Result:
        if not self.cuts:
            return super().stream(script, arguments, stdin=stdin, on_line=on_line, **more)
        cut = self.cuts.pop(0)
        if isinstance(cut, Exception):
            raise cut
        what, number = cut
        data = stdin if isinstance(stdin, bytes) else b"".join(stdin)
        if what == "sent":
            super().stream(script, arguments, stdin=data[:number], on_line=lambda line: None, **more)
            raise LineCut(f"cut after {number} bytes")
        left = [number]

        def hear(line: str) -> None:
            if line.startswith("tma step"):
                left[0] -= 1
            if left[0] < 0:
                raise LineCut(f"cut after {number} lines")
            on_line(line)

        return super().stream(script, arguments, stdin=data, on_line=hear, **more)


@pytest.mark.parametrize("heard", [0, 1, 2, 3])
def test_after_a_cut_the_same_job_finds_what_is_done(heard: int, folder: Path) -> None:
    line = Cutting(("sent", 600), ("heard", heard), Unreachable("not back yet"))
    host = Host(line, "app1", str(folder))
    said: list[str] = []
    told = host.carry(Job(entry(), (counting(1, "a"), counting(2, "b")), finish="ok"), on_trouble=said.append)
    assert {number: one.outcome for number, one in told.steps.items()} == {1: "ok", 2: "ok"}
    assert count(folder) == 2
    assert [what for what, _, _ in written(host)].count("step-started") == 2
    assert written(host)[-1] == ("deployment-finished", None, "ok")
    assert len(said) >= 3 and line.closed == 3


def test_a_failure_behind_a_cut_line_is_a_failure(folder: Path) -> None:
    host = Host(Cutting(("heard", 0)), "app1", str(folder))
    assert outcomes(host.carry(Job(entry(), (failing(),)))) == {3: "failed 1"}
    assert count(folder) == 1


def test_a_host_that_stays_away_leaves_the_outcome_unknown(folder: Path) -> None:
    for last in (LineCut("cut again"), Unreachable("away")):
        host = Host(Cutting(("heard", 0), last), "app1", str(folder))
        with pytest.raises(LineCut):
            host.carry(Job(entry(), (counting(),)), patience=0)
    host = Host(Cutting(Unreachable("never there")), "app1", str(folder / "other"))
    with pytest.raises(Unreachable):
        host.carry(Job(entry(), (counting(),)))


def test_a_host_that_cannot_unpack_says_why_and_has_done_nothing(tmp_path: Path, folder: Path) -> None:
    tools_without(tmp_path / "tools", "tar")
    (tmp_path / "tools/tar").write_text("#!/bin/sh\ncat >/dev/null\necho 'tar: no space left' >&2\nexit 2\n")
    (tmp_path / "tools/tar").chmod(0o755)
    host = Host(LocalTransport(environment={"PATH": str(tmp_path / "tools")}), "app1", str(folder))
    with pytest.raises(Failed) as caught:
        host.carry(Job(entry(), (counting(),)), patience=0)
    assert "no space left" in caught.value.render()
    assert list((folder / "incoming").iterdir()) == []


# --- what a host tells ------------------------------------------------------------------------------------------------------


def test_lines_that_are_not_ours_are_passed_over() -> None:
    told = Told()
    for line in (
        "Welcome to app1",
        "tma-pipeline:begin",
        "tma",
        "tmastep 1 ok",
        " tma end",
        "tma steps 1 ok",
        "tma beat",
    ):
        told.line(line)
    assert (told.steps, told.ended, told.failed()) == ({}, False, None)
    told.line("tma step 4 started")
    told.line("tma out   two  blanks ")
    told.line("tma step 4 failed 7")
    told.line("tma end")
    assert told.failed() == (4, told.steps[4])
    assert (told.steps[4].code, told.steps[4].output, told.ended) == (7, ["  two  blanks "], True)


def test_what_a_program_prints_cannot_pass_for_what_the_host_tells(host: Host) -> None:
    script = r"printf '%s\n' 'one\ntma step 3 ok\ntma end\c' 'tma step 3 ok' '%s -n'; printf 'tail\357'; exit 9"
    told = do(host, command("sh", "-c", script))
    assert outcomes(told) == {3: "failed 9"}
    assert told.steps[3].output == [
        r"one\ntma step 3 ok\ntma end\c",
        "tma step 3 ok",
        "%s -n",
        "tail\udcef",
    ]


def test_names_of_variables_are_refused_without_their_values(host: Host, folder: Path) -> None:
    for name in ("", "A B", "A=B", "tma_x", "1A", "TMA_\nX", "folder", "PATH", "TMA_x"):
        with pytest.raises(UsageError) as caught:
            do(host, command("true", environment={name: "canary"}))
        assert "canary" not in caught.value.render()
    for place in ("", "/etc", "..", "releases/../..", "a//b", "shared/.."):
        with pytest.raises(UsageError):
            do(host, command("true", folder=place))
    assert not folder.exists()


def test_a_lock_that_was_let_go_does_not_make_a_run_forget(host: Host, folder: Path) -> None:
    do(host, counting())
    host.append_journal(entry("run-9", 5, "lock-released"))
    assert outcomes(do(host, counting(), fence=6)) == {3: "again"}
    assert count(folder) == 1


def test_a_line_that_is_no_step_of_ours_is_passed_over() -> None:
    told = Told()
    for line in ("tma step", "tma step x ok", "tma step 1 perhaps", "tma step 1 failed x"):
        told.line(line)
    assert told.steps == {}
