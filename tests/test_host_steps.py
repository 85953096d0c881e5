"""What the other steps of a job do on a host: configuration, the product's own programs, old releases that go."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.host import Host
from pipeline.job import JobStep
from pipeline.transports import Transport
from pipeline.transports.local import LocalTransport
from tests.jobs import FILES, command, do, installed, outcomes, put, render, snapshot, switch
from tests.nouns import sha
from tests.test_host import on_both, transport

__all__ = ["transport"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "srv" / "acme app"


@pytest.fixture
def host(transport: Transport, folder: Path) -> Iterator[Host]:
    yield Host(transport, "app1", str(folder))


def rendered(host: Host, files: dict[str, bytes], run: str, fence: int) -> dict[int, str]:
    """What becomes of a render step for these files."""
    return outcomes(do(host, render(), run=run, fence=fence, files={f"4/{name}": data for name, data in files.items()}))


def restored(host: Host, run: str, fence: int) -> dict[int, str]:
    return outcomes(do(host, render(act="restore"), run=run, fence=fence, direction="back"))


# --- configuration --------------------------------------------------------------------------------------------------------


@on_both
def test_configuration_is_private_and_undone_to_the_byte(host: Host, folder: Path) -> None:
    do(host)
    (folder / "shared/app.ini").write_bytes(b"old\xff")
    (folder / "shared/app.ini").chmod(0o640)
    (folder / "shared/data").mkdir()
    (folder / "shared/data/app.sqlite").write_text("data")
    before = snapshot(folder / "shared")
    names = {"app.ini": b"new", "conf.d/x y $(id).conf": b"password=\x00\xff", "conf.d/-n": b"", "-rf": b"x"}
    assert rendered(host, names, "run-2", 2) == {4: "ok"}
    for name, data in names.items():
        assert (folder / "shared" / name).read_bytes() == data
        assert stat.S_IMODE((folder / "shared" / name).stat().st_mode) == 0o600
    assert host.verify_shared() == []
    # Done again by another attempt with other content: what was there first is still what is kept.
    assert rendered(host, {**names, "app.ini": b"newer"}, "run-2", 3) == {4: "again"}
    (folder / "shared/app.ini").write_bytes(b"newer")
    assert restored(host, "run-2", 3) == {4: "ok"}
    assert restored(host, "run-2", 4) == {4: "again"}
    (folder / "shared/conf.d").rmdir()
    assert snapshot(folder / "shared") == before


def test_a_second_rendering_in_a_run_keeps_what_was_there_first(host: Host, folder: Path) -> None:
    do(host)
    (folder / "shared/a").write_bytes(b"first")
    rendered(host, {"a": b"1", "b": b"1"}, "run-2", 2)
    other = JobStep(5, sha("again"), "render", ("5",))
    assert outcomes(do(host, other, run="run-2", fence=2, files={"5/a": b"2", "5/b": b"2"})) == {5: "ok"}
    restored(host, "run-2", 2)
    assert (folder / "shared/a").read_bytes() == b"first"
    assert not (folder / "shared/b").exists()


def test_the_next_run_has_its_own_way_back(host: Host, folder: Path) -> None:
    rendered(host, {"a": b"1"}, "run-1", 1)
    rendered(host, {"a": b"2"}, "run-2", 2)
    restored(host, "run-2", 2)
    assert (folder / "shared/a").read_bytes() == b"1"
    restored(host, "run-1", 3)
    assert not (folder / "shared/a").exists()


def test_nothing_to_put_back_is_no_trouble(host: Host, folder: Path) -> None:
    assert restored(host, "run-1", 1) == {4: "ok"}
    assert host.verify_shared() == []


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../b", "", "a//b", "a\nb", "x.tma-new", "./a"])
def test_names_that_leave_shared_are_a_usage_error(path: str, host: Host, folder: Path) -> None:
    with pytest.raises(UsageError):
        rendered(host, {path: b""}, "run-1", 1)
    assert not folder.exists()


def test_a_link_in_the_way_is_refused_before_anything_is_written(host: Host, folder: Path, tmp_path: Path) -> None:
    do(host)
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "shared/out").symlink_to(outside)
    (folder / "shared/file").symlink_to(outside / "file")
    (folder / "shared/dir").mkdir()
    (folder / "shared/plain").touch()
    before = snapshot(folder / "shared")
    for fence, path in enumerate(("out/x", "file", "dir", "plain/x"), 2):
        assert rendered(host, {"a": b"first", path: b"x"}, f"run-{fence}", fence) == {4: "failed 91"}
    assert snapshot(folder / "shared") == before
    assert list(outside.iterdir()) == []


def test_what_was_changed_in_the_configuration_is_told(host: Host, folder: Path) -> None:
    rendered(host, {"a": b"1", "sub/b c": b"2", "back\\name": b"3", "d": b"4"}, "run-1", 1)
    (folder / "shared/of the application").touch()
    assert host.verify_shared() == []
    (folder / "shared/a").write_bytes(b"x")
    (folder / "shared/sub/b c").unlink()
    (folder / "shared/back\\name").write_bytes(b"x")
    (folder / "shared/d").unlink()
    (folder / "shared/d").symlink_to("a")
    assert sorted(host.verify_shared()) == [
        "shared/a was changed",
        "shared/back\\name was changed",
        "shared/d is missing",
        "shared/sub/b c is missing",
    ]
    assert stat.S_IMODE((folder / "lists/.shared").parent.stat().st_mode) == 0o700


# --- commands -------------------------------------------------------------------------------------------------------------


@on_both
def test_a_command_gets_words_a_folder_and_an_environment(host: Host, folder: Path, tmp_path: Path) -> None:
    installed(host)
    environment = {"TMA_ODD": "  line 1\n\\n $(id) 'q'\n\n", "TMA_EMPTY": "", "TMA_UMLAUT": "ü"}
    program = (
        "import json,os,signal,sys; json.dump({'argv': sys.argv[2:], 'environ': dict(os.environ), 'cwd': os.getcwd(),"
        " 'stdin': sys.stdin.read(), 'held': [os.readlink(f'/proc/self/fd/{n}') for n in '0123456789'"
        " if os.path.islink(f'/proc/self/fd/{n}')]}, open(sys.argv[1], 'w'))"
    )
    seen_in = tmp_path / "seen"
    words = ("$(id)", "", "a b", "*", "-n", "q'uote", "line\nbreak")
    step = command("python3", "-c", program, str(seen_in), *words, folder="current", environment=environment)
    told = do(host, step)
    assert outcomes(told) == {3: "ok"}, told
    seen: dict[str, Any] = json.loads(seen_in.read_text())
    assert seen["argv"] == list(words)
    assert {name: seen["environ"][name] for name in environment} == environment
    assert seen["cwd"] == str(folder.resolve() / "releases/2.4.0+1")
    assert seen["stdin"] == ""
    assert not any(name.startswith("tma_") or name in ("run", "fence", "folder") for name in seen["environ"])
    assert seen["environ"].get("LC_ALL") != "C"
    assert not [one for one in seen["held"] if "tma-lock" in one or "journal" in one]


def test_a_program_of_the_product_ends_when_its_reader_is_gone(host: Host) -> None:
    told = do(host, command("sh", "-c", "sh -c 'kill -s PIPE $$; exit 0'; test $? -eq 141"))
    assert outcomes(told) == {3: "ok"}, "SIGPIPE was ignored"


@on_both
def test_values_of_a_command_are_not_in_the_process_list(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "seen"
    script = 'cat /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" " " >"$0"; echo "$TMA_SECRET" | rev >>"$0"'
    told = do(host, command("sh", "-c", script, str(out), environment={"TMA_SECRET": "canary-in-a-job"}))
    assert outcomes(told) == {3: "ok"}
    seen = out.read_bytes()
    assert b"boj-a-ni-yranac" in seen
    assert b"canary-in-a-job" not in seen


@on_both
def test_a_command_s_exit_code_and_time_limit(host: Host, folder: Path) -> None:
    assert outcomes(do(host, command("sh", "-c", "cat; exit 9"))) == {3: "failed 9"}
    assert outcomes(do(host, command("no-such-program"), fence=2)) == {3: "failed 127"}
    assert outcomes(do(host, command("/"), fence=3)) == {3: "failed 126"}
    assert outcomes(do(host, command("sleep", "60", seconds=1), fence=4)) == {3: "failed 124"}
    assert outcomes(do(host, command("sh", "-c", "kill -9 $$"), fence=5)) == {3: "failed 137"}
    assert outcomes(do(host, command("true", folder="releases/none"), fence=6)) == {3: "failed 1"}


def test_of_what_a_command_prints_the_end_is_told(host: Host) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; for n in $(seq 40); do echo line $n >&2; done; printf end; exit 3"
    told = do(host, command("sh", "-c", script))
    assert told.steps[3].output == [*(f"line {n}" for n in range(30, 41)), "end"]


def test_a_probe_is_asked_until_it_answers_and_not_longer(host: Host, folder: Path) -> None:
    installed(host)
    script = 'echo x >>"$0"; [ "$(wc -l <"$0")" -ge 3 ]'
    words = ("30", "current", "sh", "-c", script, str(folder.parent / "asked"))
    assert outcomes(do(host, JobStep(5, sha("probe"), "probe", words, 60))) == {5: "ok"}
    assert (folder.parent / "asked").read_text() == "x\n" * 3
    never = ("1", "current", "sh", "-c", "echo why; exit 6")
    told = do(host, JobStep(6, sha("probe 2"), "probe", never, 60))
    assert outcomes(told) == {6: "failed 6"} and told.steps[6].output == ["why"]


def test_a_failed_step_is_the_last_one(host: Host, folder: Path) -> None:
    told = do(host, command("false", number=1), command("touch", "../harm", number=2), finish="ok", clean=("1.0",))
    assert outcomes(told) == {1: "failed 1"}
    assert not (folder.parent / "harm").exists()
    assert [one.what for one in host.journal()][-1] == "step-finished"


# --- old releases that go ---------------------------------------------------------------------------------------------------


def test_old_releases_go_but_never_what_something_points_to(host: Host, folder: Path) -> None:
    installed(host, "1.0+1", FILES)
    for number in (2, 3, 4, 5):
        put(host, f"{number}.0+1", {b"v": ("100644", str(number).encode())}, fence=number)
    do(host, switch("5.0+1"), run="run-6", fence=6)
    (folder / "stable").symlink_to("releases/3.0+1")
    (folder / "absolute").symlink_to(folder / "releases/4.0+1/")
    names = tuple(f"{number}.0+1" for number in range(1, 7))
    told = do(host, run="run-7", fence=7, finish="ok", clean=names)
    assert told.ended
    kept = ["3.0+1", "4.0+1", "5.0+1"]
    assert sorted(os.listdir(folder / "releases")) == sorted(os.listdir(folder / "lists")) == kept
    assert host.journal()[-1].what == "deployment-finished"
    assert list((folder / "incoming").iterdir()) == []


def test_a_release_that_will_not_go_is_no_failure(host: Host, folder: Path) -> None:
    installed(host, "1.0+1")
    put(host, "2.0+1", {b"v": ("100644", b"2")}, fence=2)
    (folder / "releases/3.0+1").write_text("no folder")
    told = do(host, run="run-3", fence=3, finish="ok", clean=("3.0+1", "2.0+1"))
    assert told.ended
    assert sorted(os.listdir(folder / "releases")) == ["1.0+1", "3.0+1"]


def shimmed(folder: Path, place: Path, **programs: str) -> Host:
    """A host on which these programs (their shell text) stand before the others."""
    place.mkdir()
    for name, text in programs.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)
    return Host(LocalTransport(environment={"PATH": f"{place}:{os.environ['PATH']}"}), "app1", str(folder))


def test_the_way_back_takes_the_room_that_was_kept_for_it(folder: Path, tmp_path: Path) -> None:
    host = Host(LocalTransport(), "app1", str(folder))
    installed(host, "2.4.0+1")
    put(host, "2.5.0+1", FILES, fence=2)
    do(host, switch("2.5.0+1"), run="run-2", fence=2)
    # No inode is free but those of the reserve: neither a link nor a file can be made.
    full = f'[ ! -e "{folder}/.tma-reserve" ] || {{ echo "No space left on device" >&2; exit 1; }}\n'
    programs = {name: f'{full}exec {shutil.which(name)} "$@"' for name in ("ln", "dd")}
    crowded = shimmed(folder, tmp_path / "shims", **programs)
    assert outcomes(do(crowded, switch("2.4.0+1"), run="run-3", fence=3)) == {2: "failed 1"}
    assert os.readlink(folder / "current") == "releases/2.5.0+1"
    assert (folder / ".tma-reserve/room").stat().st_size == 131072
    assert outcomes(do(crowded, switch("2.4.0+1"), run="run-3", fence=3, direction="back")) == {2: "ok"}
    assert os.readlink(folder / "current") == "releases/2.4.0+1"


def test_a_reserve_that_was_left_half_made_is_made_anew(host: Host, folder: Path) -> None:
    installed(host, "2.4.0+1")
    for name in ("room", "7"):
        (folder / ".tma-reserve" / name).unlink()
    do(host, command("true"), run="run-2", fence=2)
    assert len(list((folder / ".tma-reserve").iterdir())) == 17
