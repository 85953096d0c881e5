"""How few programs a host's scripts start, and what takes the place of the others: the time, the hashes, one flush for two."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.host import Host
from pipeline.job import Job, JobStep, library
from pipeline.payload import listing
from pipeline.transports.local import LocalTransport
from tests.jobs import (
    FILES,
    Files,
    busybox_tools,
    command,
    do,
    entry,
    installed,
    outcomes,
    payload_of,
    put,
    release_of,
    switch,
    upload,
)
from tests.nouns import sha

INSPECT, JOB = 14, 62
"""Most programs for a look, and for a job of upload, switch, command and check."""

PLAIN: Files = {path: file for path, file in FILES.items() if not set(path) & set(b"\n\t\r\\")}
MANY: Files = {
    **PLAIN,
    **{b"many/it's %03d %%s" % number: ("100644", b"%d" % number) for number in range(150)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acme app"


class Noting:
    """This machine's programs, each of which writes down how it is called before it does what it does."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        tools = folder / "tools"
        tools.mkdir(parents=True)
        for place in os.environ["PATH"].split(":"):
            for program in Path(place).iterdir() if Path(place).is_dir() else ():
                if os.access(program, os.X_OK) and program.is_file() and not (tools / program.name).exists():
                    text = f'#!/bin/sh\necho "{program.name} $*" >>"{self._log}"\nexec "{program}" "$@"\n'
                    (tools / program.name).write_text(text)
                    (tools / program.name).chmod(0o755)
        self.path = str(tools)
        self.forget()

    def forget(self) -> None:
        """From now on."""
        self._log.write_text("")

    def calls(self) -> list[str]:
        """Each program's name and its words; a line break in a word makes a line of its own."""
        return self._log.read_text(errors="replace").splitlines()

    def count(self) -> Counter[str]:
        """How often each was called."""
        first = (line.partition(" ")[0] for line in self.calls())
        return Counter(name for name in first if name and (Path(self.path) / name).exists())


@pytest.fixture
def noting(tmp_path: Path) -> Noting:
    return Noting(tmp_path / "noting")


def test_a_look_and_a_job_start_few_programs(noting: Noting, folder: Path, tmp_path: Path) -> None:
    clean = Host(LocalTransport(), "app1", str(folder))
    installed(clean, "1.0+1", PLAIN)
    host = Host(LocalTransport(environment={"PATH": noting.path}), "app1", str(folder))
    noting.forget()
    facts = host.inspect()
    assert (facts.drift, facts.current) == ((), "1.0+1")
    assert noting.count().total() <= INSPECT, noting.count()
    new = {**PLAIN, b"app.py": ("100644", b"new\n"), b"added": ("100644", b"x")}
    payload = payload_of(tmp_path / "payloads", new, PLAIN)
    steps = (
        upload("2.0+1", payload, "1.0+1"),
        switch("2.0+1"),
        command("true"),
        JobStep(4, sha("check"), "probe", ("5", "current", "true"), 9),
    )
    noting.forget()
    told = host.carry(Job(entry("run-2", 2), steps, payload=payload, finish="ok"))
    assert outcomes(told) == dict.fromkeys((1, 2, 3, 4), "ok")
    assert noting.count().total() <= JOB, noting.count()
    assert clean.inspect().journal_damage is None and clean.inspect().drift == ()


def test_what_is_renamed_is_durable_before_the_entry_that_says_so(noting: Noting, folder: Path, tmp_path: Path) -> None:
    host = Host(LocalTransport(environment={"PATH": noting.path}), "app1", str(folder))
    do(host)
    payload = payload_of(tmp_path / "payloads", PLAIN)
    noting.forget()
    do(host, upload("1.0+1", payload), switch("1.0+1"), run="run-2", fence=2, payload=payload, finish="ok")
    calls = [line for line in noting.calls() if line.startswith(("sync ", "mv "))]
    whole = next(n for n, line in enumerate(calls) if line.startswith("sync -f"))
    assert [line.replace(str(folder), ".").partition(" ./incoming")[0] for line in calls[whole:]] == [
        "sync -f",
        "mv -fT",
        "mv -T",
        "sync 000004-step-finished.json 000005-step-started.json ../../../releases ../../../lists",
        "mv -f 000004-step-finished.json 000005-step-started.json ./journal",
        "sync ./journal",
        "mv -fT .tma-current current",
        "sync 000006-step-finished.json 000007-deployment-finished.json ../../..",
        "mv -f 000006-step-finished.json 000007-deployment-finished.json ./journal",
        "sync ./journal",
    ]


# --- the time -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["dash", "busybox", "bash"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    return {"dash": [program], "busybox": [program, "sh"], "bash": [program, "--posix"]}[request.param]


def ran(shell: list[str], script: str, *arguments: str | Path) -> list[str]:
    """What it prints after the library has."""
    words = [*shell, "-c", script, "sh", "/nowhere", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.partition("tma-pipeline:begin\n")[2].splitlines()


def instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


BEGINNINGS = [
    datetime(2027, 12, 31, 23, 59, 58, 999_000, UTC),
    datetime(2028, 2, 28, 23, 59, 8, 990_000, UTC),
    datetime(2028, 2, 29, 23, 59, 59, 0, UTC),
    datetime(2100, 2, 28, 23, 58, 59, 500_000, UTC),
    datetime(2026, 11, 22, 9, 8, 7, 10_000, UTC),
    datetime(2026, 11, 22, 10, 0, 0, 0, UTC),
]


def test_the_time_is_never_ahead_of_date_and_a_second_behind_at_most(shell: list[str]) -> None:
    chance = random.Random("instants")
    lines, truths = [], []
    for beginning in BEGINNINGS:
        lines.append("asked=")
        gone = 0
        for _ in range(120):
            gone += chance.choice([1, 1, 8, 9, 40, 99, 100, 101, 777, 3000])
            truth = beginning + timedelta(milliseconds=10 * gone)
            truths.append(truth.replace(microsecond=0))
            lines.append(f"now={123456708 + gone} clock={truth:%Y-%m-%dT%H:%M:%SZ}; read_moment; echo $moment")
    fakes = 'read_ticks() { ticks=$now; }\ndate() { echo "$clock"; echo asked >&3; }\nexec 3>"$1"\n'
    log = Path(os.devnull)
    said = [instant(text) for text in ran(shell, "\n".join([library("steps"), fakes, *lines]), log)]
    behind = Counter((truth - one).total_seconds() for truth, one in zip(truths, said, strict=True))
    assert set(behind) == {0.0, 1.0}


def test_date_is_asked_once_a_minute(shell: list[str], tmp_path: Path) -> None:
    fakes = 'read_ticks() { ticks=$now; }\ndate() { echo "$clock"; echo asked >&3; }\nexec 3>"$1"\n'
    lines = [f"now={100 * n + 5} clock=2028-02-29T23:{58 + n // 60}:{n % 60:02}Z; read_moment" for n in range(120)]
    ran(shell, "\n".join([library("steps"), fakes, *lines]), tmp_path / "log")
    assert (tmp_path / "log").read_text().count("asked") == 2


@pytest.mark.parametrize("uptime", [None, "", "nonsense here\n", "1.5e3 2\n", "12345.67 1.00\n", "77 1.00\n"])
def test_where_the_ticks_cannot_be_read_or_stand_still_date_is_asked(
    uptime: str | None, shell: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "uptime"
    if uptime is not None:
        file.write_text(uptime)
    steps = library("steps")
    assert "/proc/uptime" in steps
    fakes = 'date() { case $* in +%s) echo 1500 ;; *) echo "$clock" ;; esac; }\n'
    lines = [f"clock=2028-02-29T23:59:0{n}Z; read_moment; echo $moment" for n in range(3)]
    script = "\n".join([steps.replace("/proc/uptime", f'"{file}"'), fakes, *lines])
    assert ran(shell, script) == [f"2028-02-29T23:59:0{n}Z" for n in range(3)]


def test_ticks_are_hundredths_of_a_second(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("12345.08 99.99\n")
    script = library("steps").replace("/proc/uptime", f'"{tmp_path}/uptime"') + "\nread_ticks; echo $ticks"
    assert ran(shell, script) == ["1234508"]
    first, second = ran(shell, library("steps") + "\nread_ticks; echo $ticks; sleep 1; read_ticks; echo $ticks")
    assert int(second) >= int(first) + 100


# --- the hashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("openssl", ["there", "absent", "wrong", "failing", "other words"])
def test_many_files_have_the_same_hashes_whoever_counts_them(openssl: str, folder: Path, tmp_path: Path) -> None:
    if openssl == "there" and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            if program.name != "openssl" and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    does = {
        "there": f'exec {shutil.which("openssl")} "$@"',
        "wrong": 'for last do :; done; echo "0000 *$last"',
        "failing": "exit 1",
        "other words": 'echo "SHA2-256(/dev/null)= e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"',
    }
    if openssl in does:
        (tools / "openssl").write_text(f'#!/bin/sh\necho "$#" >>"{log}"\n{does[openssl]}\n')
        (tools / "openssl").chmod(0o755)
    host = Host(LocalTransport(environment={"PATH": str(tools)}), "app1", str(folder))
    assert outcomes(put(host, "1.0+1", MANY)) == {1: "ok"}
    manifest, _ = release_of(MANY)
    assert host.verify("1.0+1", manifest) == []
    lines = (folder / "lists/1.0+1").read_bytes().splitlines()
    assert b"".join(line.partition(b"\t")[0] + b"\n" for line in lines) == listing(manifest)
    if openssl in does:
        asked = [int(line) for line in log.read_text().splitlines()]
        assert (max(asked) > 100) is (openssl == "there") and min(asked) == 4
    (folder / "releases/1.0+1/many/it's 007 %s").write_text("8")
    assert host.verify("1.0+1", manifest) == ["many/it's 007 %s was changed"]


# --- the quick comparison -------------------------------------------------------------------------------------------------

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LIST = [
    f"100644 {EMPTY}  ./a\t81a4 0 5 11",
    f"100644 {EMPTY}  ./d/b c\t81a4 0 5 12",
    f"100644 {EMPTY}  x:610a\t-",
    f"120000 {EMPTY}  ./l\ta1ff 1 5 13",
]
FOUND = [
    "41ed 4096 9 1 .",
    "81a4 0 5 11 ./a",
    f"odd 100644 {EMPTY}  x:610a\t-",
    "41ed 4096 9 2 ./d",
    "81a4 0 5 12 ./d/b c",
    "a1ff 1 5 13 ./l",
]
DIFFERENT: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], FOUND),
    "less": (LIST, FOUND[:-1]),
    "more": (LIST, [*FOUND, "81a4 0 5 14 ./e"]),
    "twice": (LIST, [*FOUND, FOUND[1]]),
    "one twice and one not": (LIST, [*FOUND[:-1], FOUND[1]]),
    "stat": (LIST, [line.replace("81a4 0 5 12", "81a4 0 6 12") for line in FOUND]),
    "odd": (LIST, [line.replace("odd 100644", "odd 100755") for line in FOUND]),
    "pipe": (LIST, [*FOUND, "11a4 0 5 14 ./p"]),
    "complaint": (LIST, [*FOUND, "find: './x': Permission denied"]),
    "empty folder": (LIST, [*FOUND, "41ed 4096 9 3 ./void"]),
    "empty folder before": (LIST, [*FOUND[:3], "41ed 4096 9 3 ./c", *FOUND[3:]]),
    "empty folder with a tail": (
        [*LIST, f"100644 {EMPTY}  ./x ./void/y\t81a4 0 5 15"],
        [*FOUND, "41ed 4096 9 3 ./void", "81a4 0 5 15 ./x ./void/y"],
    ),
    "empty folder with a like": (
        [*LIST, f"100644 {EMPTY}  ./voider\t81a4 0 5 15"],
        [*FOUND, "41ed 4096 9 3 ./void", "81a4 0 5 15 ./voider"],
    ),
    "torn list": ([*LIST[:-1], LIST[-1][:40]], FOUND),
    "list twice": ([*LIST, LIST[0]], FOUND),
}


@pytest.mark.parametrize("kind", ["same", "inside", *DIFFERENT])
def test_what_is_as_its_list_says_needs_no_survey(kind: str, shell: list[str], tmp_path: Path) -> None:
    listed, found = DIFFERENT.get(kind, (LIST, FOUND))
    if kind == "inside":
        found = [*FOUND, "41ed 4096 9 3 ./odds", "inside ./odds"]
    (tmp_path / "list").write_text("".join(f"{line}\n" for line in listed))
    (tmp_path / "found").write_text("".join(f"{line}\n" for line in found))
    look = f'look() {{ cat "{tmp_path}/found"; }}\nif unchanged x "$1"; then echo "$digest"; else echo no; fi'
    said = ran(shell, library("survey") + "\n" + look, tmp_path / "list")
    digest = sha("".join(line.partition("\t")[0] + "\n" for line in listed))
    assert said == ["no" if kind in DIFFERENT else digest]


def test_a_look_that_ends_badly_takes_a_survey(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "list").touch()
    (tmp_path / "there").mkdir()
    asked = 'if unchanged "$1" "$2"; then echo "$digest"; else echo no; fi'
    assert ran(shell, library("survey") + "\n" + asked, tmp_path / "there", tmp_path / "list") == [EMPTY]
    for broken in ("find() { return 1; }", 'find() { command find "$@"; return 1; }'):
        script = library("survey") + "\n" + broken + "\n" + asked
        assert ran(shell, script, tmp_path / "there", tmp_path / "list") == ["no"]
    assert ran(shell, library("survey") + "\n" + asked, tmp_path / "absent", tmp_path / "list") == ["no"]


def test_without_stat_of_file_systems_df_tells_what_is_free(tmp_path: Path, folder: Path) -> None:
    tools = tmp_path / "tools"
    busybox_tools(tools)
    real = Host(LocalTransport(environment={"PATH": str(tools)}), "app1", str(folder)).inspect()
    (tools / "stat").unlink()
    (tools / "stat").write_text(f'#!/bin/sh\n[ "$1" != -f ] || exit 1\nexec {shutil.which("busybox")} stat "$@"\n')
    (tools / "stat").chmod(0o755)
    told = Host(LocalTransport(environment={"PATH": str(tools)}), "app1", str(folder)).inspect()
    for one, other in ((real.free_bytes, told.free_bytes), (real.free_inodes, told.free_inodes)):
        assert one is not None and other is not None and one > 0 and 0.5 < one / other < 2


@pytest.mark.parametrize(
    ("line", "free"),
    [
        ("5 4096 9 7 8", (20480, 7)),
        ("0 4096 0 0 0", (None, None)),
        ("5 4096 9 0 0", (20480, None)),
        ("? 4096 9 7 8", (None, 7)),
        ("", (None, None)),
    ],
)
def test_what_is_not_counted_is_not_known(
    line: str, free: tuple[int | None, int | None], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "stat").write_text(f"#!/bin/sh\necho '{line}'\n")
    (tmp_path / "stat").chmod(0o755)
    facts = Host(
        LocalTransport(environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"}), "app1", str(folder)
    ).inspect()
    assert (facts.free_bytes, facts.free_inodes) == free


def test_a_check_that_never_holds_ends_even_where_the_ticks_stand_still(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("12345.67 1.00\n")
    script = library("steps").replace("/proc/uptime", f'"{tmp_path}/uptime"')
    script += '\nset +e\nfolder=$1 spool=$1\n(act_probe 1 . sh -c "echo x >>tries; exit 6") 2>&1; echo "$?"'
    assert ran(shell, script, tmp_path) == ["6"]
    assert (tmp_path / "tries").read_text() == "x\n" * 5


def test_folders_that_nobody_named_are_open_to_all_who_may_read_the_release(folder: Path) -> None:
    host = Host(LocalTransport(), "app1", str(folder))
    assert outcomes(put(host, "1.0+1", {b"a/b/c": ("100644", b"1")})) == {1: "ok"}
    there = folder / "releases/1.0+1"
    assert {(there / name).stat().st_mode & 0o777 for name in ("", "a", "a/b")} == {0o755}
    assert (folder / "incoming").stat().st_mode & 0o777 == 0o700
    assert outcomes(do(host, command("sh", "-c", "stat -c %a ../incoming/* >modes", folder="shared"), fence=2)) == {
        3: "ok"
    }
    assert (folder / "shared/modes").read_text() == "700\n"
