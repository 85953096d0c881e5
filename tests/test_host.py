"""A host's folder, on this machine and over real SSH: what is refused, what is exact, what may be done again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Failed, PipelineError, Refused, UsageError
from pipeline.host import Host, HostFacts
from pipeline.host_journal import JournalEntry
from pipeline.model import Host as HostSettings
from pipeline.model import Manifest, TreeFile
from pipeline.transports import LineCut, Result, Transport
from pipeline.transports.local import LocalTransport
from pipeline.transports.ssh import SshTransport

FILES = {
    "app.py": ("100644", b"print('app')\n"),
    "bin/start": ("100755", b"#!/bin/sh\nexit 0\n"),
    "bin/link": ("120000", b"../app.py"),
    "empty": ("100644", b""),
    "größe/deep/" + "n" * 120 + "/x.txt": ("100644", b"long name\n"),
    "with space $(touch injected) `id` ; 'q' \"d\" *.sql": ("100644", b"hard name\n"),
    "-n": ("100644", b"dash\n"),
    "data.bin": ("100644", bytes(range(256)) * 2000),
}

Read = Callable[[Sequence[str]], Iterable[tuple[str, bytes]]]


def release_of(files: dict[str, tuple[str, bytes]]) -> tuple[Manifest, Read]:
    """The manifest of these files, and the reading of their blobs."""
    blobs = {hashlib.sha1(data).hexdigest(): data for _, data in files.values()}
    manifest = Manifest(
        tree="0" * 40,
        files=tuple(
            TreeFile(
                path=path,
                mode=mode,
                blob=hashlib.sha1(data).hexdigest(),
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
            )
            for path, (mode, data) in sorted(files.items(), key=lambda item: item[0].encode())
        ),
    )
    return manifest, lambda names: [(name, blobs[name]) for name in names]


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


def entry(run: str = "run-1", fence: int = 1, what: str = "deployment-started", **more: object) -> JournalEntry:
    at = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
    return JournalEntry.model_validate(
        {"run": run, "fence": fence, "customer": "acme", "environment": "test", "at": at, "what": what, **more}
    )


def installed(host: Host, release: str = "2.4.0+1", files: dict[str, tuple[str, bytes]] = FILES) -> Manifest:
    manifest, read = release_of(files)
    host.prepare()
    host.append_journal(entry())
    assert host.upload(release, manifest, read, run="run-1") is True
    return manifest


def snapshot(folder: Path) -> dict[str, object]:
    """Everything below a folder, for comparing before and after."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        content = str((path).readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found


# --- inspect and prepare ---------------------------------------------------------------------------------------------------


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


@on_both
def test_prepare_makes_the_folders_and_may_be_done_again(host: Host, folder: Path) -> None:
    host.prepare()
    host.prepare()
    assert sorted(path.name for path in folder.iterdir()) == ["backups", "incoming", "journal", "releases", "shared"]
    assert stat.S_IMODE((folder / "backups").stat().st_mode) == 0o700
    facts = host.inspect()
    assert facts.exists and not facts.ours and facts.foreign == ()


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
def test_a_target_that_is_not_ours_is_refused_listed_and_left_alone(
    make: Callable[[Path], None], named: str, host: Host, folder: Path
) -> None:
    make(folder)
    before = snapshot(folder.parent)
    with pytest.raises(Refused) as caught:
        host.prepare()
    assert named in caught.value.render()
    assert snapshot(folder.parent) == before


@on_both
def test_all_that_is_foreign_is_listed(host: Host, folder: Path) -> None:
    _real_current(folder)
    (folder / "one").touch()
    (folder / "two").touch()
    with pytest.raises(Refused) as caught:
        host.prepare()
    assert len(caught.value.reasons) == 3


def test_a_stray_file_beside_our_own_is_refused_too_but_not_the_application_s_data(
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
    host = Host(LocalTransport(environment={"PATH": str(few)}), "app1", str(folder))
    assert set(host.inspect().missing_tools) >= {"tar", "sha256sum", "comm", "flock"}
    with pytest.raises(Refused, match="the program tar is missing"):
        host.prepare()


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


# --- upload and verify -----------------------------------------------------------------------------------------------------


@on_both
def test_the_files_on_the_host_equal_the_release(host: Host, folder: Path) -> None:
    manifest = installed(host)
    there = folder / "releases" / "2.4.0+1"
    for path, (mode, data) in FILES.items():
        if mode == "120000":
            assert str((there / path).readlink()) == data.decode()
        else:
            assert (there / path).read_bytes() == data
            assert stat.S_IMODE((there / path).stat().st_mode) == int(mode[3:], 8)
    assert sum(1 for path in there.rglob("*") if not path.is_dir()) == len(FILES)
    assert not list(folder.rglob("injected"))
    assert host.verify("2.4.0+1", manifest) == []
    assert list((folder / "incoming").iterdir()) == []
    assert host.inspect().releases == ("2.4.0+1",)


def test_what_is_there_already_is_not_sent_again(host: Host) -> None:
    manifest = installed(host)

    def never(names: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        raise AssertionError(names)

    assert host.upload("2.4.0+1", manifest, never, run="run-2") is False


def _drift(there: Path) -> dict[str, Callable[[], object]]:
    return {
        "app.py was changed": lambda: (there / "app.py").write_text("print('apq')\n"),
        "empty is missing": (there / "empty").unlink,
        "new.py does not belong to the release": (there / "new.py").touch,
        ".hidden does not belong to the release": (there / ".hidden").touch,
        "void does not belong to the release": (there / "void").mkdir,
        "app.py has another mode than 0644": lambda: (there / "app.py").chmod(0o755),
        "bin/start has another mode than 0755": lambda: (there / "bin/start").chmod(0o775),
        "bin/link is another kind of file or points elsewhere": lambda: (
            (there / "bin/link").unlink(),
            (there / "bin/link").symlink_to("/etc/passwd"),
        ),
        "app.py is another kind of file or points elsewhere": lambda: (
            (there / "app.py").rename(there.parent.parent / "shared/kept"),
            (there / "app.py").symlink_to("../../shared/kept"),
        ),
        "empty is another kind of file or points elsewhere": lambda: (
            (there / "empty").unlink(),
            os.mkfifo(there / "empty"),
        ),
    }


@pytest.mark.parametrize("sentence", list(_drift(Path())))
def test_each_kind_of_drift_is_found_by_content(sentence: str, host: Host, folder: Path) -> None:
    manifest = installed(host)
    there = folder / "releases" / "2.4.0+1"
    times = (there / "app.py").stat().st_mtime_ns
    _drift(there)[sentence]()
    if (there / "app.py").exists():
        os.utime(there / "app.py", ns=(times, times))
    assert host.verify("2.4.0+1", manifest) == [sentence]


def test_a_line_break_in_a_name_cannot_stand_in_for_a_missing_file(host: Host, folder: Path) -> None:
    manifest = installed(host)
    there = folder / "releases" / "2.4.0+1"
    (there / "app.py").unlink()
    sha256 = next(file.sha256 for file in manifest.files if file.path == "app.py")
    (there / f"x\n100644 {sha256}  .").mkdir()
    os.mkfifo(there / f"x\n100644 {sha256}  ." / "app.py")
    assert host.verify("2.4.0+1", manifest) != []


def test_a_release_that_is_not_there(host: Host) -> None:
    manifest, _ = release_of(FILES)
    host.prepare()
    assert host.verify("2.4.0+1", manifest) == ["the release is not there"]


def test_a_changed_copy_that_does_not_serve_is_replaced_and_kept(host: Host, folder: Path) -> None:
    manifest = installed(host)
    (folder / "releases/2.4.0+1/app.py").write_text("changed")
    assert host.upload("2.4.0+1", manifest, release_of(FILES)[1], run="run-2") is True
    assert host.verify("2.4.0+1", manifest) == []
    assert (folder / "backups/run-2/releases/2.4.0+1/app.py").read_text() == "changed"


def test_a_changed_copy_that_serves_is_refused_with_what_changed(host: Host, folder: Path) -> None:
    manifest = installed(host)
    host.switch("2.4.0+1")
    (folder / "releases/2.4.0+1/app.py").write_text("changed")
    with pytest.raises(Refused, match=r"app\.py was changed"):
        host.upload("2.4.0+1", manifest, release_of(FILES)[1], run="run-2")
    assert (folder / "current/app.py").read_text() == "changed"


class Spoiling:
    """A transport that changes what is sent to the upload script."""

    def __init__(self, transport: Transport, spoil: Callable[[bytes], bytes]) -> None:
        self.transport, self.spoil, self.name = transport, spoil, "spoilt"

    def run(
        self, script: str, arguments: Sequence[str] = (), *, stdin: bytes | Iterable[bytes] = b"", **more: Any
    ) -> Result:
        data = stdin if isinstance(stdin, bytes) else b"".join(stdin)
        return self.transport.run(script, arguments, stdin=self.spoil(data) if b"tree/" in data else data, **more)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.replace(b"print('app')", b"print('apq')"),
        lambda data: data[: len(data) // 1024 * 512],
        lambda data: data[:512],
    ],
)
def test_an_upload_that_does_not_arrive_whole_never_gets_the_release_s_name(
    spoil: Callable[[bytes], bytes], transport: Transport, host: Host, folder: Path
) -> None:
    host.prepare()
    manifest, read = release_of(FILES)
    spoilt = Host(Spoiling(transport, spoil), "app1", str(folder))  # type: ignore[arg-type]
    with pytest.raises(Failed):
        spoilt.upload("2.4.0+1", manifest, read, run="run-1")
    assert list((folder / "releases").iterdir()) == []
    assert host.upload("2.4.0+1", manifest, read, run="run-1") is True


def test_blobs_that_do_not_match_the_manifest_are_not_sent(host: Host, folder: Path) -> None:
    host.prepare()
    manifest, read = release_of(FILES)
    with pytest.raises(Failed, match="does not hold what"):
        host.upload("2.4.0+1", manifest, lambda names: [(name, data + b"!") for name, data in read(names)], run="run-1")
    assert list((folder / "releases").iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-rf", "a b", "$(id)", "a\nb", ".hidden"])
def test_names_that_are_no_release_or_run_are_a_usage_error(name: str, host: Host) -> None:
    manifest, read = release_of(FILES)
    host.prepare()
    with pytest.raises(UsageError):
        host.upload(name, manifest, read, run="run-1")
    with pytest.raises(UsageError):
        host.upload("1.0", manifest, read, run=name)
    with pytest.raises(UsageError):
        host.switch(name)
    with pytest.raises(UsageError):
        host.restore_shared(name)


def test_busybox_unpacks_and_compares_the_same(tmp_path: Path, folder: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    tools = tmp_path / "busybox"
    tools.mkdir()
    for name in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        (tools / name).symlink_to(busybox)
    for name in ("flock", "comm"):  # Debian's busybox is built without them
        if not (tools / name).exists():
            (tools / name).symlink_to(shutil.which(name) or "")
    host = Host(LocalTransport(environment={"PATH": str(tools)}), "app1", str(folder))
    assert host.inspect().missing_tools == ()
    manifest = installed(host)
    assert host.switch("2.4.0+1") is None
    host.write_shared({"a": b"1"}, "run-1")
    (folder / "releases/2.4.0+1/app.py").write_text("changed")
    assert host.verify("2.4.0+1", manifest) == ["app.py was changed"]
    assert host.inspect().current == "2.4.0+1"


# --- shared ----------------------------------------------------------------------------------------------------------------


@on_both
def test_shared_files_are_private_and_undone_to_the_byte(host: Host, folder: Path) -> None:
    host.prepare()
    (folder / "shared/app.ini").write_bytes(b"old\xff")
    (folder / "shared/app.ini").chmod(0o640)
    (folder / "shared/data").mkdir()
    (folder / "shared/data/app.sqlite").write_text("data")
    before = snapshot(folder / "shared")
    names = {"app.ini": b"new", "conf.d/x y $(id).conf": b"password=\x00\xff", "conf.d/-n": b""}
    host.write_shared(names, "run-1")
    for name, data in names.items():
        assert (folder / "shared" / name).read_bytes() == data
        assert stat.S_IMODE((folder / "shared" / name).stat().st_mode) == 0o600
    # Done again, after a crash or with other content: what was there first is still what is kept.
    host.write_shared(names | {"app.ini": b"newer"}, "run-1")
    host.restore_shared("run-1")
    host.restore_shared("run-1")
    (folder / "shared/conf.d").rmdir()
    assert snapshot(folder / "shared") == before


def test_the_next_run_has_its_own_undo(host: Host, folder: Path) -> None:
    host.prepare()
    host.write_shared({"a": b"1"}, "run-1")
    host.write_shared({"a": b"2"}, "run-2")
    host.restore_shared("run-2")
    assert (folder / "shared/a").read_bytes() == b"1"
    host.restore_shared("run-1")
    assert not (folder / "shared/a").exists()


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../b", "", "a//b", "a\nb", "x.tma-new", "./a"])
def test_names_that_leave_shared_are_a_usage_error(path: str, host: Host) -> None:
    with pytest.raises(UsageError):
        host.write_shared({path: b""}, "run-1")


def test_a_link_in_the_way_is_refused_before_anything_is_written(host: Host, folder: Path, tmp_path: Path) -> None:
    host.prepare()
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "shared/out").symlink_to(outside)
    (folder / "shared/file").symlink_to(outside / "file")
    (folder / "shared/dir").mkdir()
    before = snapshot(folder / "shared")
    for path in ("out/x", "file", "dir"):
        with pytest.raises(Refused, match="shared/"):
            host.write_shared({"a": b"first", path: b"x"}, "run-1")
    assert snapshot(folder / "shared") == before
    assert list(outside.iterdir()) == []


# --- switch ----------------------------------------------------------------------------------------------------------------


@on_both
def test_switch_goes_there_and_back_and_may_be_done_again(host: Host, folder: Path) -> None:
    installed(host, "1.0+1")
    manifest, read = release_of({"v": ("100644", b"2")})
    host.upload("2.0+1", manifest, read, run="run-2")
    assert host.switch("1.0+1") is None
    assert host.switch("2.0+1") == "1.0+1"
    assert host.switch("2.0+1") == "2.0+1"
    assert str((folder / "current").readlink()) == "releases/2.0+1"
    assert host.inspect().current == "2.0+1"
    assert host.unswitch("1.0+1") == "2.0+1"
    assert str((folder / "current").readlink()) == "releases/1.0+1"
    assert host.unswitch(None) == "1.0+1"
    assert host.unswitch(None) is None
    assert not (folder / "current").is_symlink()


def test_current_is_never_away_while_it_is_switched(folder: Path) -> None:
    host = Host(LocalTransport(), "app1", str(folder))
    installed(host, "1.0+1")
    manifest, read = release_of({"app.py": ("100644", b"2")})
    host.upload("2.0+1", manifest, read, run="run-2")
    host.switch("1.0+1")
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            seen.append((folder / "current/app.py").exists())

    watcher = threading.Thread(target=look)
    watcher.start()
    for release in ("2.0+1", "1.0+1") * 8:
        host.switch(release)
    stop.set()
    watcher.join()
    assert seen and all(seen)


def test_switch_refuses_what_is_not_there_and_what_is_not_ours(host: Host, folder: Path) -> None:
    host.prepare()
    with pytest.raises(Refused, match="there is no folder"):
        host.switch("9.9+1")
    assert not (folder / "current").is_symlink()
    (folder / "releases/1.0+1").mkdir()
    (folder / "current").mkdir()
    (folder / "current/theirs").touch()
    with pytest.raises(Refused, match="not a symbolic link"):
        host.switch("1.0+1")
    with pytest.raises(Refused, match="not a symbolic link"):
        host.unswitch(None)
    assert (folder / "current/theirs").exists()


# --- command ---------------------------------------------------------------------------------------------------------------


@on_both
def test_a_command_gets_words_a_folder_and_an_environment(host: Host, folder: Path) -> None:
    installed(host)
    host.switch("2.4.0+1")
    environment = {
        "SECRET": "  line 1\n\\n $(id) 'q'\n\n",
        "EMPTY": "",
        "folder": "mine",
        "name": "mine too",
        "UMLAUT": "ü",
    }
    words = ["python3", "-c", "import os,sys,json; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"]
    result = host.command([*words, "$(id)", "", "a b", "*"], environment=environment)
    assert result.ok, result.stderr
    argv, seen, cwd = json.loads(result.stdout)
    assert argv == ["$(id)", "", "a b", "*"]
    assert {name: seen[name] for name in environment} == environment
    assert cwd == str(folder.resolve() / "releases/2.4.0+1")
    assert not any(name.startswith("tma_") for name in seen)
    assert seen.get("LC_ALL") != "C"


@on_both
def test_a_secret_of_a_command_is_not_in_the_process_list(host: Host) -> None:
    host.prepare()
    script = 'tr "\\0" " " </proc/$$/cmdline; tr "\\0" " " </proc/$PPID/cmdline; echo; echo "$SECRET" | rev'
    result = host.command(["sh", "-c", script], cwd=".", environment={"SECRET": "canary"})
    assert b"yranac" in result.stdout
    assert b"canary" not in result.stdout


@on_both
def test_a_command_s_exit_code_and_time_limit(host: Host) -> None:
    host.prepare()
    assert host.command(["sh", "-c", "cat; exit 9"], cwd="shared").exit_code == 9
    assert host.command(["no-such-program"], cwd=".").exit_code == 127
    assert host.command(["sleep", "60"], cwd=".", timeout=1).timed_out


@pytest.mark.parametrize("cwd", ["", "/etc", "..", "current/../..", "a//b"])
def test_a_command_stays_in_the_host_s_folder(cwd: str, host: Host) -> None:
    with pytest.raises(UsageError):
        host.command(["true"], cwd=cwd)


@pytest.mark.parametrize("name", ["", "A B", "A=B", "tma_x", "1A", "A\nB"])
def test_a_name_that_is_no_variable_is_refused_without_its_value(name: str, host: Host) -> None:
    with pytest.raises(UsageError) as caught:
        host.command(["true"], cwd=".", environment={name: "canary"})
    assert "canary" not in caught.value.render()


# --- journal ---------------------------------------------------------------------------------------------------------------


@on_both
def test_the_journal_is_a_chain_of_immutable_files(host: Host, folder: Path) -> None:
    host.prepare()
    first = host.append_journal(entry(release="2.4.0+1", content="a" * 64))
    second = host.append_journal(entry(what="deployment-finished", outcome="ok", record="r", record_sha256="b" * 64))
    names = ["000001-deployment-started.json", "000002-deployment-finished.json"]
    assert sorted(path.name for path in (folder / "journal").iterdir()) == names
    data = (folder / "journal" / names[0]).read_bytes()
    assert first.previous is None and first.data() == data
    assert second.previous == hashlib.sha256(data).hexdigest()
    assert host.journal() == [first, second]
    facts = host.inspect()
    assert facts.ours
    assert (facts.journal_number, facts.journal_sha256) == (2, hashlib.sha256(second.data()).hexdigest())


def test_an_entry_is_not_doubled_when_it_is_done_again(host: Host) -> None:
    host.prepare()
    first = host.append_journal(entry())
    assert host.append_journal(entry()) == first
    host.append_journal(entry(outcome="ok"))
    host.append_journal(entry(run="run-2"))
    assert host.append_journal(entry()) == first
    assert [known.number for known in host.journal()] == [1, 2, 3]


def test_a_run_that_was_overtaken_may_not_write(host: Host) -> None:
    host.prepare()
    host.append_journal(entry(fence=7))
    with pytest.raises(Refused, match="fence 7"):
        host.append_journal(entry(run="run-0", fence=6))
    assert len(host.journal()) == 1


@pytest.mark.parametrize("harm", ["change", "remove", "reorder", "insert", "reformat"])
def test_any_change_of_the_journal_is_found(harm: str, host: Host, folder: Path) -> None:
    host.prepare()
    for number in range(3):
        host.append_journal(entry(run=f"run-{number}"))
    names = sorted((folder / "journal").iterdir())
    if harm == "change":
        names[1].chmod(0o644)
        names[1].write_bytes(names[1].read_bytes().replace(b"acme", b"acne"))
    elif harm == "remove":
        names[0].unlink()
    elif harm == "reorder":
        data = [path.read_bytes() for path in names]
        for path, other in zip(names, (1, 0, 2), strict=True):
            path.unlink()
            path.write_bytes(data[other])
    elif harm == "insert":
        (folder / "journal" / "000004-deployment-started.json").write_bytes(entry().data())
    else:
        data_of_last = names[2].read_bytes()
        names[2].unlink()
        names[2].write_bytes(data_of_last + b"\n")
    with pytest.raises(Failed, match="not as it was written"):
        host.journal()


def test_a_newer_journal_is_not_written_to(host: Host, folder: Path) -> None:
    host.prepare()
    first = host.append_journal(entry())
    newer = first.data().replace(b'"schema_version":1', b'"schema_version":2,"unheard_of":1')
    (folder / "journal" / "000002-deployment-started.json").write_bytes(newer)
    before = snapshot(folder)
    with pytest.raises(Refused, match="schema 2 is needed"):
        host.append_journal(entry(run="run-2"))
    assert snapshot(folder) == before


def test_writers_at_once_lose_and_double_nothing(folder: Path) -> None:
    Host(LocalTransport(), "app1", str(folder)).prepare()
    errors: list[PipelineError] = []

    def write(number: int) -> None:
        host = Host(LocalTransport(), "app1", str(folder))
        for turn in range(3):
            while True:
                try:
                    host.append_journal(entry(run=f"run-{number}-{turn}"))
                    break
                except Failed as error:
                    if "keeps writing" not in str(error):
                        errors.append(error)
                        return

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Host(LocalTransport(), "app1", str(folder)).journal()
    assert not errors
    assert len({known.run for known in entries}) == len(entries) == 12


# --- crashes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("script", ["upload", "switch", "write_shared", "append_journal"])
def test_ended_before_any_program_of_a_script_it_can_be_done_again(script: str, tmp_path: Path, folder: Path) -> None:
    """Each program that the script starts is, in turn, the one at which the whole process group is killed."""
    clean = Host(LocalTransport(), "app1", str(folder))
    installed(clean, "1.0+1")
    clean.switch("1.0+1")
    clean.write_shared({"a": b"1"}, "run-1")
    shims = tmp_path / "shims"
    shims.mkdir()
    for tool in ("mv", "ln", "rm", "mkdir", "tar", "comm", "cp", "chmod"):
        (shims / tool).write_text(
            f'#!/bin/sh\nn=$(($(/bin/cat "$COUNT") - 1)); echo $n >"$COUNT"\n'
            f'[ $n -ne 0 ] || kill -9 0\nexec {shutil.which(tool)} "$@"\n'
        )
        (shims / tool).chmod(0o755)
    count = tmp_path / "count"
    environment = {"PATH": f"{shims}:{os.environ['PATH']}", "COUNT": str(count)}
    killed = Host(LocalTransport(environment=environment), "app1", str(folder))
    manifest, read = release_of({"v": ("100644", b"2")})

    def act(host: Host, turn: int) -> None:
        if script == "upload":
            host.upload(f"2.{turn}", manifest, read, run=f"up-{turn}")
        elif script == "switch":
            (folder / f"releases/3.{turn}").mkdir(exist_ok=True)
            host.switch(f"3.{turn}")
        elif script == "write_shared":
            host.write_shared({"a": b"2", f"new-{turn}": b"2"}, f"shared-{turn}")
        else:
            host.append_journal(entry(run=f"journal-{turn}"))

    for turn in range(1, 60):
        count.write_text(f"{turn}\n")
        try:
            act(killed, turn)
        except (Failed, LineCut):
            pass
        else:
            break
        assert (folder / "current").exists()
        act(clean, turn)
        if script == "upload":
            assert clean.verify(f"2.{turn}", manifest) == []
        elif script == "switch":
            assert clean.inspect().current == f"3.{turn}"
        elif script == "write_shared":
            assert (folder / "shared/a").read_bytes() == b"2"
            clean.restore_shared(f"shared-{turn}")
            assert (folder / "shared/a").read_bytes() == b"1"
            assert not (folder / f"shared/new-{turn}").exists()
        else:
            assert clean.journal()[-1].run == f"journal-{turn}"
    assert turn > 2
    assert clean.inspect().foreign == ()
