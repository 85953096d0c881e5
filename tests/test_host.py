"""A host's folder, on this machine and over real SSH: what is refused, what is exact, what may be done again."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import Failed, Locked, Refused, UsageError, overtaken
from pipeline.host import Host, HostFacts
from pipeline.model import Host as HostSettings
from pipeline.transports import Transport
from pipeline.transports.local import LocalTransport
from pipeline.transports.ssh import SshTransport
from tests.jobs import (
    FILES,
    busybox_tools,
    command,
    do,
    entry,
    installed,
    outcomes,
    payload_of,
    put,
    release_of,
    render,
    snapshot,
    switch,
    upload,
)

on_both = pytest.mark.parametrize("transport", ["local", pytest.param("ssh", marks=pytest.mark.live)], indirect=True)
"""For what depends on the way to the host; the scripts are the same for both, so the rest runs on this machine."""


@pytest.fixture(scope="module")
def transport(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transport]:
    if getattr(request, "param", "local") == "local":
        yield LocalTransport()
        return
    server = request.getfixturevalue("sshd")
    config = tmp_path_factory.mktemp("ssh") / "config"
    config.write_text(server.ssh_config_text("app1"))
    ssh = SshTransport(HostSettings(name="app1", address="app1", folder="/srv/app"), ssh_config=config)
    yield ssh
    ssh.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "srv" / "acme app"


@pytest.fixture
def host(transport: Transport, folder: Path) -> Host:
    return Host(transport, "app1", str(folder))


# --- inspect --------------------------------------------------------------------------------------------------------------


@on_both
def test_a_new_target_is_empty_and_nothing_is_made_by_looking(host: Host, folder: Path) -> None:
    facts = host.inspect()
    assert facts == HostFacts(
        exists=False,
        ours=False,
        current=None,
        releases=(),
        foreign=(),
        writable=True,
        user=facts.user,
        free_bytes=facts.free_bytes,
        free_inodes=facts.free_inodes,
        missing_tools=(),
        clock_offset_seconds=facts.clock_offset_seconds,
        journal_number=0,
        journal_sha256=None,
    )
    assert facts.free_bytes is not None and facts.free_bytes > 0
    assert abs(facts.clock_offset_seconds) < 60
    assert not folder.parent.exists()
    assert host.journal() == []
    assert host.verify("2.4.0+1", release_of(FILES)[0]) == ["the release is not there"]
    assert host.verify_shared() == []
    assert not folder.parent.exists()


@on_both
def test_a_job_makes_the_folders_and_may_be_done_again(host: Host, folder: Path) -> None:
    do(host)
    do(host)
    made = {path.name for path in folder.iterdir() if not path.name.startswith(".tma-")}
    assert made == {"backups", "incoming", "journal", "lists", "releases", "shared"}
    for private in ("backups", "incoming", "lists"):
        assert stat.S_IMODE((folder / private).stat().st_mode) == 0o700
    assert list((folder / "incoming").iterdir()) == []
    facts = host.inspect()
    assert facts.exists and facts.ours and facts.foreign == () and facts.journal_number == 1


def _real_current(folder: Path) -> None:
    (folder / "current").mkdir(parents=True)


def _stray_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "index.php").write_text("theirs")


def _hidden_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".env").write_text("theirs")


def _link_elsewhere(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "current").symlink_to("/srv/other")


def _releases_without_journal(folder: Path) -> None:
    (folder / "releases" / "1.0").mkdir(parents=True)


def _shared_without_journal(folder: Path) -> None:
    (folder / "shared").mkdir(parents=True)
    (folder / "shared" / "settings.ini").write_text("theirs")


def _shared_is_a_link(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "shared").symlink_to("/srv")


def _a_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("theirs")


def _journal_of_something_else(folder: Path) -> None:
    (folder / "journal").mkdir(parents=True)
    (folder / "journal" / "notes.txt").write_text("theirs")


def _name_with_a_line_break(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "x\njournal 000001-a.json abc").write_text("theirs")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_real_current, "current is not a symbolic link"),
        (_stray_file, "index.php"),
        (_hidden_file, ".env"),
        (_link_elsewhere, "/srv/other"),
        (_releases_without_journal, "releases"),
        (_shared_without_journal, "settings.ini"),
        (_shared_is_a_link, "shared is not a folder"),
        (_a_file, "is not a folder"),
        (_journal_of_something_else, "notes.txt"),
        (_name_with_a_line_break, "x?journal"),
    ],
)
def test_what_is_not_ours_is_told_in_a_sentence_and_left_alone(
    make: Callable[[Path], None], named: str, host: Host, folder: Path
) -> None:
    make(folder)
    before = snapshot(folder.parent)
    facts = host.inspect()
    assert not facts.ours
    assert named in " ".join(facts.foreign)
    assert snapshot(folder.parent) == before


@on_both
def test_all_that_is_foreign_is_listed(host: Host, folder: Path) -> None:
    _real_current(folder)
    (folder / "one").touch()
    (folder / "two").touch()
    assert len(host.inspect().foreign) == 3


@pytest.mark.parametrize("make", [_real_current, _link_elsewhere, _releases_without_journal])
def test_a_job_too_refuses_releases_that_it_did_not_make(
    make: Callable[[Path], None], host: Host, folder: Path
) -> None:
    """Somebody may have put them there since the look at the folder."""
    make(folder)
    before = snapshot(folder)
    with pytest.raises(Refused, match="no deployment journal"):
        do(host, switch(""))
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    assert host.journal() == [] and list((folder / "incoming").iterdir()) == []


def test_a_file_in_the_place_of_the_folder_stops_a_job(host: Host, folder: Path) -> None:
    _a_file(folder)
    with pytest.raises(Failed):
        do(host, switch(""))
    assert folder.read_text() == "theirs"


def test_a_stray_file_beside_our_own_is_told_too_but_not_the_application_s_data(
    transport: Transport, host: Host, folder: Path
) -> None:
    installed(host)
    (folder / "shared" / "app.sqlite").write_text("data")
    (folder / "data").mkdir()
    assert host.inspect().foreign == ("data was not put there by us",)
    assert Host(transport, "app1", str(folder), data=["data"]).inspect().foreign == ()


def test_missing_programs_are_named(tmp_path: Path, folder: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for tool in ("find", "sort", "sed", "df", "date", "dirname", "grep", "id", "tr", "mv", "ls"):
        (few / tool).symlink_to(shutil.which(tool) or "")
    facts = Host(LocalTransport(environment={"PATH": str(few)}), "app1", str(folder)).inspect()
    assert set(facts.missing_tools) >= {"tar", "sha256sum", "awk", "od", "stat", "xargs"}
    for program in ("flock", "setsid", "timeout"):
        assert program not in facts.missing_tools
        assert any(f"no {program}:" in sentence for sentence in facts.substitutes)
    assert not folder.parent.exists()


def test_an_mv_without_t_is_found_out(tmp_path: Path, folder: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "mv").write_text("#!/bin/sh\necho \"mv: invalid option -- 'T'\" >&2\nexit 1\n")
    (old / "mv").chmod(0o755)
    host = Host(LocalTransport(environment={"PATH": f"{old}:{os.environ['PATH']}"}), "app1", str(folder))
    assert host.inspect().missing_tools == ("mv -T",)


@pytest.mark.parametrize("folder_name", ["relative", "/srv/../etc", "/srv//app", "/srv/app/", "/"])
def test_a_folder_that_is_not_plainly_absolute_is_a_usage_error(transport: Transport, folder_name: str) -> None:
    with pytest.raises(UsageError):
        Host(transport, "app1", folder_name)


# --- names ----------------------------------------------------------------------------------------------------------------

BAD_NAMES = ["", ".", "..", "../x", "a/b", "-rf", "a b", "$(id)", "a\nb", ".hidden"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_release_or_run_are_a_usage_error(
    name: str, host: Host, folder: Path, tmp_path: Path
) -> None:
    manifest, _ = release_of(FILES)
    payload = payload_of(tmp_path / "payloads", FILES)
    with pytest.raises(UsageError):
        host.verify(name, manifest)
    with pytest.raises(UsageError):
        do(host, switch("1.0"), run=name)
    with pytest.raises(UsageError):
        do(host, upload(name, payload), payload=payload)
    with pytest.raises(UsageError):
        do(host, upload("1.0", payload, base=name or "-"), payload=payload)
    with pytest.raises(UsageError):
        do(host, clean=(name,))
    if name:
        with pytest.raises(UsageError):
            do(host, switch(name))
    assert not folder.exists()


# --- upload ---------------------------------------------------------------------------------------------------------------


@on_both
def test_the_files_on_the_host_equal_the_release(host: Host, folder: Path) -> None:
    manifest = installed(host)
    there = os.fsencode(folder / "releases" / "2.4.0+1")
    for path, (mode, data) in FILES.items():
        place = os.path.join(there, path)
        if mode == "120000":
            assert os.readlink(place) == data
        else:
            assert Path(os.fsdecode(place)).read_bytes() == data
            assert stat.S_IMODE(os.lstat(place).st_mode) == int(mode[3:], 8)
    found = snapshot(Path(os.fsdecode(there)))
    assert {name for name, seen in found.items() if seen[1] is not None} == set(FILES)
    assert not list(folder.rglob("injected"))
    assert host.verify("2.4.0+1", manifest) == []
    assert list((folder / "incoming").iterdir()) == []
    facts = host.inspect()
    assert (facts.releases, facts.current, facts.drift) == (("2.4.0+1",), "2.4.0+1", ())


def test_a_copy_that_is_there_and_right_is_taken_as_it_is(host: Host, folder: Path) -> None:
    manifest = installed(host)
    before = (folder / "releases/2.4.0+1").stat().st_ino
    assert outcomes(put(host, "2.4.0+1", FILES, fence=2)) == {1: "ok"}
    assert (folder / "releases/2.4.0+1").stat().st_ino == before
    assert host.verify("2.4.0+1", manifest) == []


def test_a_changed_copy_that_does_not_serve_is_replaced_and_kept(host: Host, folder: Path) -> None:
    manifest = installed(host)
    do(host, switch(""), run="run-2", fence=2)
    for fence in (3, 4):
        (folder / "releases/2.4.0+1/app.py").write_text(f"changed {fence}")
        assert outcomes(put(host, "2.4.0+1", FILES, fence=fence)) == {1: "ok"}
        assert host.verify("2.4.0+1", manifest) == []
        assert (folder / f"backups/put-{fence}/releases/2.4.0+1/app.py").read_text() == f"changed {fence}"


def test_a_changed_copy_that_serves_is_refused_and_left_alone(host: Host, folder: Path) -> None:
    installed(host)
    (folder / "releases/2.4.0+1/app.py").write_text("changed")
    told = put(host, "2.4.0+1", FILES, fence=2)
    assert outcomes(told) == {1: "failed 91"}
    assert "its files were changed there" in told.steps[1].output[0]
    assert (folder / "current/app.py").read_text() == "changed"


def test_busybox_does_all_of_it_the_same(tmp_path: Path, folder: Path) -> None:
    path = busybox_tools(tmp_path / "busybox")
    host = Host(LocalTransport(environment={"PATH": path}), "app1", str(folder))
    facts = host.inspect()
    assert facts.missing_tools == ()
    if not (tmp_path / "busybox/flock").exists():
        assert any("no flock" in sentence for sentence in facts.substitutes)
    first = installed(host)
    files = {**FILES, b"app.py": ("100755", b"new\n"), b"added/x": ("100644", b"x")}
    del files[b"bin/start"], files[b"bin/link"]
    told = put(host, "2.5.0+1", files, base=("2.4.0+1", FILES), fence=2)
    assert outcomes(told) == {1: "ok"}, told
    assert host.verify("2.5.0+1", release_of(files)[0]) == []
    assert host.verify("2.4.0+1", first) == []
    steps = (render(), switch("2.5.0+1"), command("sh", "-c", "test -e current/added/x", seconds=5))
    told = do(host, *steps, run="run-3", fence=3, files={"4/a b/-n": b"1"})
    assert outcomes(told) == {4: "ok", 2: "ok", 3: "ok"}, told
    (folder / "releases/2.5.0+1/app.py").write_text("changed")
    (folder / "shared/a b/-n").write_text("2")
    assert host.verify("2.5.0+1", release_of(files)[0]) == ["app.py was changed"]
    assert host.verify_shared() == ["shared/a b/-n was changed"]
    assert host.inspect().current == "2.5.0+1"
    assert host.inspect().drift == ("app.py was changed",)
    told = do(host, render(act="restore"), run="run-3", fence=3, direction="back", clean=("2.4.0+1",))
    assert outcomes(told) == {4: "ok"}
    assert not (folder / "shared/a b/-n").exists()
    assert not (folder / "releases/2.4.0+1").exists()
    assert host.inspect().foreign == ()
    assert len(host.journal()) == host.inspect().journal_number


# --- switch ---------------------------------------------------------------------------------------------------------------


@on_both
def test_switch_goes_there_and_back_and_may_be_done_again(host: Host, folder: Path) -> None:
    installed(host, "1.0+1")
    put(host, "2.0+1", {b"v": ("100644", b"2")}, fence=2)
    for fence, release in enumerate(("2.0+1", "2.0+1", "1.0+1", "", ""), 3):
        told = do(host, switch(release), run=f"run-{fence}", fence=fence)
        assert outcomes(told) == {2: "ok"}
        assert host.inspect().current == (release or None)
        assert os.path.lexists(folder / "current") is bool(release)


def test_current_is_never_away_while_it_is_switched(folder: Path) -> None:
    host = Host(LocalTransport(), "app1", str(folder))
    installed(host, "1.0+1")
    put(host, "2.0+1", {b"app.py": ("100644", b"2")}, fence=2)
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            seen.append((folder / "current/app.py").exists())

    watcher = threading.Thread(target=look)
    watcher.start()
    steps = [switch(release, number) for number, release in enumerate(("2.0+1", "1.0+1") * 8)]
    told = do(host, *steps, run="run-3", fence=3)
    stop.set()
    watcher.join()
    assert set(outcomes(told).values()) == {"ok"} and len(told.steps) == 16
    assert seen and all(seen)


@pytest.mark.parametrize("target", ["/srv/other", "releases/a/b", "shared", "releases/"])
def test_switch_refuses_a_link_that_is_not_ours(target: str, host: Host, folder: Path) -> None:
    do(host)
    (folder / "releases/1.0+1").mkdir()
    (folder / "current").symlink_to(target)
    told = do(host, switch("1.0+1"))
    assert outcomes(told) == {2: "failed 91"}
    assert told.steps[2].output == [f"current points to {target}"]
    assert str((folder / "current").readlink()) == target.rstrip("/") or target.endswith("/")


def test_switch_refuses_what_is_not_there_and_what_is_no_link(host: Host, folder: Path) -> None:
    do(host)
    told = do(host, switch("9.9+1"))
    assert outcomes(told) == {2: "failed 91"} and "there is no folder" in told.steps[2].output[0]
    assert not (folder / "current").is_symlink()
    (folder / "releases/1.0+1").mkdir()
    (folder / "current").mkdir()
    (folder / "current/theirs").touch()
    for fence, release in enumerate(("1.0+1", ""), 2):
        told = do(host, switch(release), run=f"run-{fence}", fence=fence)
        assert outcomes(told) == {2: "failed 91"}
        assert told.steps[2].output == ["current is not a symbolic link"]
    assert (folder / "current/theirs").exists()


# --- what is done through a host ------------------------------------------------------------------------------------------


@on_both
def test_a_guarded_transport_runs_scripts_with_their_arguments_and_their_input(host: Host) -> None:
    do(host, fence=4)
    guarded = host.guarded(4)
    script = 'printf "<%s>" "$@"; cat; exit 7'
    result = guarded.transport.run(script, ["", "a b", "$(id)", "-n"], stdin=b"in\0put")
    assert (result.exit_code, result.stdout) == (7, b"<><a b><$(id)><-n>in\0put")
    assert guarded.inspect().journal_fence == 4
    assert guarded.transport.name == host.transport.name


def test_a_guarded_transport_runs_nothing_once_a_later_run_has_begun(host: Host, folder: Path) -> None:
    do(host, fence=4)
    guarded = host.guarded(4)
    host.append_journal(entry("run-2", 5, "lock-released"))
    with pytest.raises(Refused) as caught:
        guarded.transport.run(f"touch '{folder}/harm'")
    assert overtaken(caught.value)
    assert not (folder / "harm").exists()
    assert host.guarded(5).transport.run("echo fine").stdout == b"fine\n"


def test_a_guarded_transport_waits_for_a_step_and_gives_up_in_words(
    host: Host, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(host)
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "flock").write_text("#!/bin/sh\nexit 1\n")
    (shims / "sleep").write_text("#!/bin/sh\n")
    for shim in shims.iterdir():
        shim.chmod(0o755)
    held = Host(LocalTransport(environment={"PATH": f"{shims}:{os.environ['PATH']}"}), "app1", str(folder))
    with pytest.raises(Locked, match="still works on app1"):
        held.guarded(1).transport.run(f"touch '{folder}/harm'")
    assert not (folder / "harm").exists()
