"""What is found below a folder, under every shell: each kind of drift, and names that tools print differently."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.host import Host, sentences
from pipeline.job import library
from pipeline.payload import listing, listing_digest, shown_name
from pipeline.transports.local import LocalTransport
from tests.jobs import FILES, Files, busybox_tools, do, installed, put, release_of, switch

RELEASE = "2.4.0+1"


class Shell:
    """``survey.sh`` under one shell, with the programs of one PATH."""

    def __init__(self, words: list[str], path: str) -> None:
        self._words, self._path = words, path

    def run(self, last_line: str, *arguments: str | Path) -> bytes:
        """What the library prints with this line after it; ``"$1"`` … are the arguments, after the host's folder."""
        environment = {"PATH": self._path, "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
        script = library("survey") + "\n" + last_line
        words = [*self._words, script, "sh", "/nowhere", *map(str, arguments)]
        done = subprocess.run(words, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        return done.stdout.partition(b"tma-pipeline:begin\n")[2]


@pytest.fixture(scope="module", params=["dash", "busybox", "sh", "bash"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    if request.param == "busybox":
        path = busybox_tools(tmp_path_factory.mktemp("busybox"))
        return Shell([f"{path}/sh", "-c"], path)
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    return Shell([program, "-c"], os.environ["PATH"])


def lay(folder: Path, files: Files) -> None:
    """Makes these files."""
    for path, (mode, data) in files.items():
        place = Path(os.fsdecode(os.path.join(os.fsencode(folder), path)))
        place.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            os.symlink(data, os.fsencode(place))
        else:
            place.write_bytes(data)
            place.chmod(int(mode[3:], 8))


LINKS: Files = {
    b"to end": ("120000", b"target\n\n"),
    b"blank ": ("120000", b" a b "),
    b"latin": ("120000", b"\xe9\xff"),
    b"dash": ("120000", b"-n"),
    b"star\tred": ("120000", b"*\\n%s"),
    b"dangling": ("120000", b"no/such/file"),
}


def test_it_comes_to_the_lines_that_the_controller_expects(shell: Shell, tmp_path: Path) -> None:
    files = {**FILES, **LINKS}
    lay(tmp_path / "there", files)
    manifest, _ = release_of(files)
    found = shell.run(
        'survey "$1" "$2"; cut -f 1 "$2"; survey_digest "$2"; echo "$digest"', tmp_path / "there", tmp_path / "out"
    )
    assert (
        found.decode("utf-8", "surrogateescape")
        == listing(manifest).decode("utf-8", "surrogateescape") + listing_digest(manifest) + "\n"
    )


def test_what_is_known_is_taken_over_and_what_is_not_is_read(shell: Shell, tmp_path: Path) -> None:
    lay(tmp_path / "there", {**FILES, **LINKS})
    (tmp_path / "there/void").mkdir()
    shell.run('survey "$1" "$2"', tmp_path / "there", tmp_path / "first")
    (tmp_path / "base").write_bytes((tmp_path / "first").read_bytes().replace(b"100644 ", b"100644 F"))
    shell.run('survey "$1" "$2" "$3"', tmp_path / "there", tmp_path / "second", tmp_path / "base")
    # What could not stand in a line is read each time; of the rest the base is believed.
    first, second = ((tmp_path / name).read_bytes() for name in ("first", "second"))
    plain = [line for line in first.split(b"\n") if b"  ./" in line]
    assert sorted(line.replace(b"100644 ", b"100644 F") for line in plain) == [
        line for line in sorted(second.split(b"\n")) if b"  ./" in line
    ]
    before = (tmp_path / "there/app.py").stat()
    (tmp_path / "there/app.py").write_text("print('apq')\n")
    os.utime(tmp_path / "there/app.py", (before.st_atime + 5, before.st_mtime + 5))
    shell.run('survey "$1" "$2" "$3"', tmp_path / "there", tmp_path / "third", tmp_path / "first")
    differ = shell.run('cut -f 1 "$1" >"$3"; differences "$3" "$2"', *(tmp_path / n for n in ("first", "third", "cut")))
    assert sentences(differ) == ["app.py was changed"]


def test_every_kind_of_what_is_no_file_of_a_release(shell: Shell, tmp_path: Path) -> None:
    there = tmp_path / "there"
    lay(there, {b"a": ("100644", b"")})
    (there / "void/inner").mkdir(parents=True)
    (there / "odd\nvoid").mkdir()
    (there / "full\n/x").mkdir(parents=True)
    (there / "full\n/x/f").touch(0o644)
    for pipe in ("pipe", "odd\tpipe"):
        os.mkfifo(there / pipe)
    (there / "suid").touch()
    (there / "suid").chmod(0o4755)
    (there / "odd\rmode").touch()
    (there / "odd\rmode").chmod(0o600)
    shell.run('survey "$1" "$2"', there, tmp_path / "out")
    lines = [line.split(b"\t")[0] for line in (tmp_path / "out").read_bytes().splitlines()]
    empty = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sorted(lines) == sorted(
        [
            b"100644 " + empty + b"  ./a",
            b"folder -  ./void/inner",
            b"folder -  x:" + b"odd\nvoid".hex().encode(),
            b"100644 " + empty + b"  x:" + b"full\n/x/f".hex().encode(),
            b"other -  ./pipe",
            b"other -  x:" + b"odd\tpipe".hex().encode(),
            b"mode " + empty + b"  ./suid",
            b"mode " + empty + b"  x:" + b"odd\rmode".hex().encode(),
        ]
    )


def test_a_name_is_shown_as_the_controller_shows_it() -> None:
    manifest, _ = release_of(FILES)
    for file in manifest.files:
        shown = shown_name(file.path)
        assert "\n" not in shown and "\t" not in shown and "\r" not in shown and "\\" not in shown
    assert len({shown_name(file.path) for file in manifest.files}) == len(FILES)
    assert sentences(b"> 100644 0  x:" + b"a\nb".hex().encode()) == ["a\\x0ab does not belong to the release"]
    assert sentences(b"> 100644 0  ./x:6162") == ["x:6162 does not belong to the release"]


def test_an_empty_release_and_an_empty_folder_are_told_apart(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "expected").touch()
    (tmp_path / "found").write_text("100644 0  ./x\t-\n")
    assert shell.run('differences "$1" "$2"', tmp_path / "expected", tmp_path / "found") == b"> 100644 0  ./x\n"
    assert shell.run('differences "$2" "$1"', tmp_path / "expected", tmp_path / "expected") == b""
    (tmp_path / "empty").mkdir()
    assert shell.run('survey "$1" "$2"; cat "$2"', tmp_path / "empty", tmp_path / "out") == b""


# --- the kinds of drift ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acme app"


@pytest.fixture
def host(folder: Path) -> Host:
    return Host(LocalTransport(), "app1", str(folder))


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make(path)


def _instead_of_folder(path: Path, moved: Path) -> None:
    path.rename(moved)
    path.symlink_to("../moved")


def _kept_elsewhere(there: Path) -> None:
    (there / "app.py").rename(there.parent.parent / "shared/kept")
    (there / "app.py").symlink_to("../../shared/kept")


DRIFT: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda there: (there / "app.py").write_text("print('longer')\n"), "app.py was changed"),
    "replaced by an equal one": (
        lambda there: (shutil.copy(there / "app.py", there / "copy"), (there / "copy").rename(there / "app.py")),
        "",
    ),
    "touched": (lambda there: os.utime(there / "app.py", (1, 1)), ""),
    "odd name, content": (lambda there: (there / "tab\there").write_text("tob\n"), "tab\\x09here was changed"),
    "odd name, mode": (
        lambda there: (there / "tab\there").chmod(0o644),
        "tab\\x09here has another mode than 0755",
    ),
    "odd name, missing": (lambda there: (there / "end\n").unlink(), "end\\x0a is missing"),
    "missing": (lambda there: (there / "empty").unlink(), "empty is missing"),
    "extra file": (lambda there: (there / "new.py").touch(), "new.py does not belong to the release"),
    "extra hidden file": (lambda there: (there / ".hidden").touch(), ".hidden does not belong to the release"),
    "extra odd file": (lambda there: (there / "a\nb").touch(), "a\\x0ab does not belong to the release"),
    "extra empty folder": (lambda there: (there / "void").mkdir(), "void does not belong to the release"),
    "mode": (lambda there: (there / "app.py").chmod(0o755), "app.py has another mode than 0644"),
    "mode that Git has not": (lambda there: (there / "bin/start").chmod(0o775), "bin/start has another mode than 0755"),
    "setuid": (lambda there: (there / "bin/start").chmod(0o4755), "bin/start has another mode than 0755"),
    "sticky": (lambda there: (there / "app.py").chmod(0o1644), "app.py has another mode than 0644"),
    "link retargeted": (
        lambda there: _instead(there / "bin/link", lambda path: os.symlink("/etc/passwd", path)),
        "bin/link is another kind of file or points elsewhere",
    ),
    "link to file": (
        lambda there: _instead(there / "bin/link", lambda path: path.write_text("../app.py")),
        "bin/link is another kind of file or points elsewhere",
    ),
    "file to link": (_kept_elsewhere, "app.py is another kind of file or points elsewhere"),
    "file to folder": (
        lambda there: _instead(there / "empty", Path.mkdir),
        "empty is another kind of file or points elsewhere",
    ),
    "file to pipe": (
        lambda there: _instead(there / "empty", os.mkfifo),
        "empty is another kind of file or points elsewhere",
    ),
    "folder to link": (
        lambda there: _instead_of_folder(there / "bin", there.parent / "moved"),
        "bin does not belong to the release",
    ),
}


@pytest.mark.parametrize("kind", list(DRIFT))
def test_each_kind_of_drift_is_found_quickly_and_by_content(kind: str, host: Host, folder: Path) -> None:
    manifest = installed(host)
    assert host.verify(RELEASE, manifest) == []
    assert host.inspect().drift == ()
    harm, sentence = DRIFT[kind]
    harm(folder / "releases" / RELEASE)
    found = host.verify(RELEASE, manifest)
    facts = host.inspect()
    assert [*(facts.drift or ())] == found
    assert (facts.list_sha256 == listing_digest(manifest)) is (sentence == "")
    if kind == "folder to link":
        assert sentence in found and "bin/start is missing" in found
    else:
        assert found == ([sentence] if sentence else [])


def test_what_is_made_to_look_the_same_is_seen_only_by_content(host: Host, folder: Path) -> None:
    manifest = installed(host)
    file = folder / "releases" / RELEASE / "app.py"
    before = file.stat()
    file.write_text("print('apq')\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert host.inspect().drift == ()
    assert host.verify(RELEASE, manifest) == ["app.py was changed"]


def test_another_inode_is_enough_to_be_read_again(host: Host, folder: Path) -> None:
    manifest = installed(host)
    file = folder / "releases" / RELEASE / "app.py"
    before = file.stat()
    (file.parent / "other").write_text("print('apq')\n")
    os.utime(file.parent / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    (file.parent / "other").chmod(0o644)
    (file.parent / "other").rename(file)
    assert host.inspect().drift == ("app.py was changed",)
    assert host.inspect().list_sha256 != listing_digest(manifest)


def test_without_a_list_nothing_is_said_of_drift(host: Host, folder: Path) -> None:
    manifest = installed(host)
    (folder / "lists" / RELEASE).unlink()
    facts = host.inspect()
    assert (facts.drift, facts.list_sha256) == (None, None)
    assert host.verify(RELEASE, manifest) == []
    assert {n: one.outcome for n, one in put(host, RELEASE, FILES, fence=2).steps.items()} == {1: "ok"}
    assert host.inspect().drift == ()


def test_only_what_serves_is_looked_at_quickly(host: Host, folder: Path) -> None:
    installed(host)
    do(host, switch(""), run="run-2", fence=2)
    assert host.inspect().drift is None


def test_a_line_break_in_a_name_cannot_stand_in_for_a_missing_file(host: Host, folder: Path) -> None:
    manifest = installed(host)
    there = folder / "releases" / RELEASE
    (there / "app.py").unlink()
    sha256 = next(file.sha256 for file in manifest.files if file.path == "app.py")
    (there / f"x\n100644 {sha256}  .").mkdir()
    os.mkfifo(there / f"x\n100644 {sha256}  ." / "app.py")
    for found in (host.verify(RELEASE, manifest), host.inspect().drift):
        assert found is not None and "app.py is missing" in found and len(found) == 2
