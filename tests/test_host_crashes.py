"""A host on which everything is killed, at each program that a job starts: doing it again is always right."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.errors import Failed
from pipeline.host import Host
from pipeline.job import Job
from pipeline.transports import LineCut
from pipeline.transports.local import LocalTransport
from tests.jobs import do, entry, installed, payload_of, release_of, render, switch, upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "srv" / "acme app"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["upload", "patch", "switch", "render", "append", "clean"])
def test_ended_before_any_program_of_a_job_it_can_be_done_again(what: str, tmp_path: Path, folder: Path) -> None:
    """Each program that a job starts is, in turn, the one from which on all of its processes are killed."""
    clean = Host(LocalTransport(), "app1", str(folder))
    first = {b"v": ("100644", b"1"), b"old": ("100644", b"1"), b"s": ("100644", b"1")}
    second = {b"v": ("100644", b"2"), b"s": ("100644", b"1"), b"new": ("100644", b"2")}
    installed(clean, "1.0+1", first)
    do(clean, render(), run="shared-0", fence=2, files={"4/a": b"1"})
    shims = tmp_path / "shims"
    shims.mkdir()
    for tool in ("mv", "ln", "rm", "mkdir", "tar", "cp", "chmod", "sync", "sha256sum", "sort"):
        (shims / tool).write_text(
            f'#!/bin/sh\nn=$(($(/bin/cat "$COUNT") - 1)); echo $n >"$COUNT"\n'
            f'[ $n -gt 0 ] || kill -9 0\nexec {shutil.which(tool)} "$@"\n'
        )
        (shims / tool).chmod(0o755)
    count = tmp_path / "count"
    environment = {"PATH": f"{shims}:{os.environ['PATH']}", "COUNT": str(count)}
    killed = Host(LocalTransport(environment=environment), "app1", str(folder))
    patch = payload_of(tmp_path / "p", second, first if what != "upload" else None)

    def act(host: Host, turn: int) -> None:
        name, fence = f"2.{turn}", turn + 2
        jobs = {
            "upload": lambda: Job(entry(f"run-{turn}", fence), (upload(name, patch),), payload=patch),
            "patch": lambda: Job(entry(f"run-{turn}", fence), (upload(name, patch, "1.0+1"),), payload=patch),
            "switch": lambda: Job(entry(f"run-{turn}", fence), (switch(name),)),
            "render": lambda: Job(
                entry(f"run-{turn}", fence), (render(),), files={"4/a": b"2", f"4/sub/new-{turn}": b"2"}
            ),
            "clean": lambda: Job(entry(f"run-{turn}", fence), (), clean=(name, "1.0+1")),
        }
        if what == "append":
            host.append_journal(entry(f"run-{turn}", fence))
        else:
            told = host.carry(jobs[what](), patience=0)
            assert told.failed() is None, told

    for turn in range(1, 90):
        if what in ("switch", "clean"):
            shutil.copytree(folder / "releases/1.0+1", folder / f"releases/2.{turn}")
        count.write_text(f"{turn}\n")
        try:
            act(killed, turn)
        except (Failed, LineCut, AssertionError):
            pass
        else:
            break
        assert (folder / "current").exists()
        act(clean, turn)
        assert all(entry.run != "" for entry in clean.journal())
        if what in ("upload", "patch"):
            assert clean.verify(f"2.{turn}", release_of(second)[0]) == []
            assert clean.verify("1.0+1", release_of(first)[0]) == []
        elif what == "switch":
            assert clean.inspect().current == f"2.{turn}"
        elif what == "render":
            assert (folder / "shared/a").read_bytes() == b"2"
            do(clean, render(act="restore"), run=f"run-{turn}", fence=turn + 2, direction="back")
            assert (folder / "shared/a").read_bytes() == b"1"
            assert not (folder / f"shared/sub/new-{turn}").exists()
        elif what == "clean":
            assert not (folder / f"releases/2.{turn}").exists()
            assert (folder / "releases/1.0+1").exists()
        else:
            assert clean.journal()[-1].run == f"run-{turn}"
    assert 2 < turn < 89
    assert clean.inspect().foreign == ()
    # A process that was killed may be counted as running until somebody has asked how it ended.
    left = ["not looked yet"]
    for again in range(40):
        do(clean, run=f"last-{again}", fence=200 + again)
        left = [path.name for path in (folder / "incoming").iterdir() if path.is_dir()]
        if not left:
            break
        time.sleep(0.25)
    assert left == []
