"""The bench's parts: the tree is the one that is promised, the tables say what was measured, the line is longer."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report, sql, timing, tree
from bench.run import COMMAND, DEPLOYMENT, RSYNC, Choice, Measured
from bench.timing import Sample, Spread
from pipeline.errors import Failed

ROOT = Path(__file__).parent.parent


def listed(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(k.encode() + b"\0" + files[k] + b"\0" for k in sorted(files))).hexdigest()


def test_the_tree_is_the_promised_one_on_every_machine(tmp_path: Path) -> None:
    tree.write_base(tmp_path / "one")
    files = listed(tmp_path / "one")
    assert (len(files), sum(map(len, files.values()))) == (3010, 58_000_000)
    assert digest(files) == "34fe90176396884cf11355726704d2df9a64ded8211e372a17f1cbb2052a18c6"
    for number in (1, 2):
        before = files
        step = tree.patch(number)
        tree.apply(tmp_path / "one", step)
        files = listed(tmp_path / "one")
        changed = {path for path in before.keys() & files.keys() if before[path] != files[path]}
        assert (len(changed), len(files.keys() - before.keys()), len(before.keys() - files.keys())) == (12, 3, 2)
        assert step.size == 254_000 == sum(len(files[path]) for path in changed | (files.keys() - before.keys()))
        assert files["VERSION"].startswith(b"1.0.%d " % number)
    assert digest(files) == "b11d245fa2a1d6ef311f878f35977d103328aca76854b0477e357c38c4acf586"


def test_a_patch_leaves_a_hard_linked_copy_alone(tmp_path: Path) -> None:
    step = tree.patch(1)
    for name in [*step.changed, *step.deleted]:
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes(b"as it was")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=os.link)
    tree.apply(tmp_path / "one", step)
    assert set(listed(tmp_path / "two").values()) == {b"as it was"}


def test_a_ratio_is_taken_round_by_round() -> None:
    assert timing.ratios([1.0, 4.0, None], [2.0, 4.0, 1.0]) == Spread(0.75, 0.5, 1.0, 2)
    assert timing.ratios([], [1.0]) is None


def measured() -> Measured:
    found = Measured(Choice(rounds=2, cases=("patch",)))
    for turn, (ours, command, rsync) in enumerate([(0.4, 0.9, 1.0), (0.6, 0.9, 1.0)]):
        found.add("patch", DEPLOYMENT, turn, Sample(ours, 0.2, 50_000_000))
        found.add("patch", COMMAND, turn, Sample(command, 0.3, 50_000_000))
        found.add("patch", RSYNC, turn, Sample(rsync, 0.1, 9_000_000))
    return found


def test_the_tables_say_what_is_reached_and_leave_out_what_was_not_measured() -> None:
    lines = report.goals_table(measured())
    assert lines[2:] == [
        "| patch, 1 host | deployment | 0.50 (0.40–0.60) × rsync | ≤ 0.5 | reached |",
        "| patch, 1 host | whole command | 0.90 (0.90–0.90) × rsync | ≤ 0.8 | **not reached** |",
    ]
    assert report.times_table(measured())[-1] == (
        "| patch, 1 host | 0.50 (0.40–0.60); CPU 0.20 | 0.90 (0.90–0.90); CPU 0.30 | 1.00 (1.00–1.00); CPU 0.10 |"
    )


def test_the_result_goes_into_its_place_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    shutil.copy(report.PAGE, page)
    report.write(measured(), page)
    report.write(measured(), page)
    text = page.read_text()
    assert text.count("| patch, 1 host | deployment |") == 1
    assert text.startswith(report.PAGE.read_text().partition(report.BEGIN)[0])
    page.write_text("no place")
    with pytest.raises(ValueError, match="bench: begin"):
        report.write(measured(), page)


def test_the_stopwatch_counts_children_and_gives_the_last_words_of_a_failure() -> None:
    burn = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'for _ in range(3000000): pass'])"
    assert timing.measure([sys.executable, "-c", burn]).cpu > timing.measure([sys.executable, "-c", ""]).cpu
    held = timing.measure([sys.executable, "-c", "import time; held = b'x' * 100_000_000; time.sleep(.5)"]).memory
    assert 100_000_000 < held < 200_000_000
    with pytest.raises(Failed, match="no such thing"):
        timing.measure([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


def test_without_rsync_the_bench_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "ssh").symlink_to("/bin/true")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "apt-get install rsync" in done.stderr


@pytest.mark.live
def test_every_byte_arrives_over_the_longer_line() -> None:
    import socket
    import threading

    from bench.delay import delayed

    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            with server.accept()[0] as there:
                while data := there.recv(65536):
                    there.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        sent = bytes(range(256)) * 4000
        with delayed(server.getsockname()[1], 0.02) as line, socket.create_connection(("127.0.0.1", line.port)) as near:
            threading.Thread(target=lambda: (near.sendall(sent), near.shutdown(socket.SHUT_WR)), daemon=True).start()
            got = b"".join(iter(lambda: near.recv(65536), b""))
    assert got == sent


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed, with which the bench compares")
def test_the_bench_runs_and_prints_its_tables(tmp_path: Path) -> None:
    """One round on one host; what it measures is nobody's business here."""
    words = [sys.executable, "-m", "bench", "--quick", "--folder", str(tmp_path / "work")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "| patch, 1 host | deployment |" in done.stdout
    assert "floor: on the host" in done.stdout
    assert not (tmp_path / "work").exists()


def test_the_table_of_migrations_compares_round_by_round_and_says_who_was_left_out(tmp_path: Path) -> None:
    rows = sql.Rows(left_out=["yoyo is not installed and was left out"], far=[1.25])
    for who, walls in {sql.OURS: (2.0, 3.0), sql.DBMATE: (1.0, 3.0), sql.RAW: (0.5, 1.0)}.items():
        rows.samples["sqlite, 3 scripts, migrate"][who] = [Sample(wall, 0.1, 1) for wall in walls]
    rows.samples["sqlite, 3 scripts, nothing to do"][sql.OURS] = [Sample(1.0, 0.1, 1)]
    table = sql.text(rows, 2)
    assert "| sqlite, 3 scripts, migrate | 1.50 (1.00–2.00) × dbmate | ≤ 1.5 | reached |" in table
    assert "| sqlite, 3 scripts, migrate | 3.50 (3.00–4.00) × raw: one client | ≤ 2 | **not reached** |" in table
    assert "nothing to do | 1.00 | – | – | – | – |" in table
    assert "1.25 round trips a script" in table and "yoyo is not installed and was left out." in table
    page = tmp_path / "page.md"
    page.write_text(f"before\n{sql.BEGIN}\nold\n{sql.END}\nafter\n")
    sql.write(table, page)
    assert page.read_text() == f"before\n{sql.BEGIN}\n{table}{sql.END}\nafter\n"


def test_every_tool_reads_the_same_scripts(tmp_path: Path) -> None:
    sql.write_scripts(tmp_path / "scripts", 3)
    names = sorted(path.name for path in (tmp_path / "scripts").glob("*.sql"))
    assert len(names) == 3 and names == sorted(path.name for path in (tmp_path / "scripts" / "deploy").iterdir())
    planned = (tmp_path / "scripts" / "sqitch.plan").read_text().splitlines()[3:]
    assert [line.split()[0] + ".sql" for line in planned] == names
