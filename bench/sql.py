"""``python -m bench.sql``: migrations, ours beside dbmate, sqitch, yoyo and one ``psql`` or ``mariadb`` fed with all of them.

Each run migrates a fresh database on a throwaway server with the same small scripts (a table, an index, a row each), and
then runs once more with nothing to do; everybody's process start counts. Through SSH with a round trip of 30 ms only ours is
measured, in round trips a script: the peers are run beside the database. What is not installed is left out, and said so:
dbmate (``DBMATE``, or on PATH; npm has it as ``@dbmate/linux-x64``), sqitch (Debian), yoyo (``YOYO``; PyPI ``yoyo-migrations``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.report import machine, spread
from bench.servers import fleet
from bench.timing import Sample, Spread, measure, ratios
from pipeline.errors import Failed, PipelineError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench of migrations: begin -->", "<!-- bench of migrations: end -->"
OURS, RAW, DBMATE, SQITCH, YOYO = "ours", "raw: one client", "dbmate", "sqitch", "yoyo"
MIGRATE, NOTHING = "migrate", "nothing to do"
SLOWEST = 200
"""The most scripts that sqitch and yoyo are given: they take ten times as long."""
AT_MOST = {DBMATE: 1.5, RAW: 2.0}
ROUND_TRIP = 0.03

Run = Callable[[], Sample]


@dataclass
class Rows:
    """row (engine, scripts, what is done) → who → the samples, one a round; ``left_out`` says who could not be run."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    far: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fresh:
    """A new empty database and its address."""

    engine: str
    host: str
    port: int
    name: str
    user: str
    password: str

    @property
    def url(self) -> str:
        """As dbmate reads it."""
        scheme, more = ("postgres", "?sslmode=disable") if self.engine == "postgresql" else ("mysql", "")
        return f"{scheme}://{self.user}:{self.password}@{self.host}:{self.port}/{self.name}{more}"


def write_scripts(folder: Path, count: int) -> None:
    """``count`` small scripts, as every one of the tools reads them; what dbmate needs is a comment for the others."""
    folder.mkdir(parents=True)
    (folder / "deploy").mkdir()
    plan = ["%syntax-version=1.0.0", "%project=bench", ""]
    for number in range(1, count + 1):
        table = f"measured_{number:05}"
        text = (
            f"-- migrate:up\nCREATE TABLE {table} (id integer PRIMARY KEY, name varchar(40) NOT NULL, at timestamp NULL);\n"
            f"CREATE INDEX {table}_name ON {table} (name);\n"
            f"INSERT INTO {table} (id, name) VALUES ({number}, 'a; b -- c');\n-- migrate:down\n"
        )
        name = f"20240101{number:06}_{table}"
        (folder / f"{name}.sql").write_text(text)
        (folder / "deploy" / f"{name}.sql").write_text(text)
        plan.append(f"{name} 2024-01-01T00:00:00Z Bench <bench@localhost> # {table}")
    (folder / "sqitch.plan").write_text("\n".join(plan) + "\n")


class Tools:
    """How each tool is started; ``missing`` says what is not installed."""

    def __init__(self) -> None:
        self.dbmate = os.environ.get("DBMATE") or shutil.which("dbmate")
        self.sqitch = shutil.which("sqitch")
        self.yoyo = os.environ.get("YOYO") or shutil.which("yoyo")

    def missing(self) -> list[str]:
        """One sentence a tool that is not here."""
        return [
            f"{name} is not installed and was left out"
            for name, found in ((DBMATE, self.dbmate), (SQITCH, self.sqitch), (YOYO, self.yoyo))
            if not found
        ]

    def runs(self, fresh: dict[str, Fresh], scripts: Path, count: int, scratch: Path) -> dict[str, Run]:
        """Each tool's run on its own database."""
        runs: dict[str, Run] = {OURS: partial(ours, fresh[OURS], scripts, scratch)}
        if self.dbmate:
            words: list[str | Path] = [
                self.dbmate,
                "--url",
                fresh[DBMATE].url,
                "--migrations-dir",
                scripts,
                "--no-dump-schema",
                "up",
            ]
            runs[DBMATE] = partial(measure, words)
        if self.sqitch and count <= SLOWEST and fresh[SQITCH].engine == "postgresql":
            runs[SQITCH] = partial(self._sqitch, fresh[SQITCH], scripts, scratch)
        if self.yoyo and count <= SLOWEST:
            scheme = "postgresql+psycopg" if fresh[YOYO].engine == "postgresql" else "mysql"
            at = fresh[YOYO]
            url = f"{scheme}://{at.user}:{at.password}@{at.host}:{at.port}/{at.name}"
            runs[YOYO] = partial(
                measure, [self.yoyo, "apply", "--batch", "--no-config-file", "--database", url, scripts], cwd=scratch
            )
        return runs

    def _sqitch(self, at: Fresh, scripts: Path, scratch: Path) -> Sample:
        assert self.sqitch is not None
        environment = {
            **{"SQITCH_CONFIG": str(scratch / "sqitch.conf"), "SQITCH_SYSTEM_CONFIG": "/dev/null"},
            **{"SQITCH_USER_CONFIG": "/dev/null", "SQITCH_FULLNAME": "Bench", "SQITCH_EMAIL": "bench@localhost"},
        }
        (scratch / "sqitch.conf").write_text(f'[core]\n\tengine = pg\n[engine "pg"]\n\tclient = {psql()}\n')
        target = f"db:pg://{at.user}:{at.password}@{at.host}:{at.port}/{at.name}"
        words: list[str | Path] = [self.sqitch, "deploy", "--no-verify", "--chdir", scripts, target]
        return measure(words, environment=environment)


def psql() -> str:
    """The client itself: Debian's ``psql`` on PATH is a wrapper that costs more than twice its start."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/psql"))
    return str(found[-1]) if found else "psql"


def raw(at: Fresh, scripts: Path) -> Sample:
    """The limit: one client that is fed with every script, without a history or a lock."""
    text = b"".join(path.read_bytes() for path in sorted(scripts.glob("*.sql")))
    if at.engine == "postgresql":
        words = [psql(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", at.host, "-p", str(at.port), "-U", at.user, at.name]
        return measure(words, stdin=text, environment={"PGPASSWORD": at.password})
    words = ["mariadb", "--no-defaults", "-h", at.host, "-P", str(at.port), "-u", at.user, "--skip-ssl", at.name]
    return measure(words, stdin=text, environment={"MYSQL_PWD": at.password})


def ours(at: Fresh, scripts: Path, scratch: Path, ssh: dict[str, object] | None = None) -> Sample:
    """Our adapter in a process of its own."""
    settings = {"engine": at.engine, "host": at.host, "port": at.port, "name": at.name, "user": at.user}
    request = scratch / "request.json"
    request.write_text(
        json.dumps(
            {
                **{"settings": settings, "password": at.password, "folder": str(scripts)},
                **{"backups": str(scratch / "backups"), "ssh": ssh},
            }
        )
    )
    return measure([sys.executable, ROOT / "bench" / "scripts" / "sql_ours.py", request], cwd=ROOT)


@contextmanager
def engine_servers(engines: Sequence[str]) -> Iterator[dict[str, Callable[[], Fresh]]]:
    """engine → what makes a fresh database on its throwaway server. The servers are those of the tests."""
    from tests.servers.mariadb import MariaDbServer
    from tests.servers.postgres import PostgresServer

    def fresh(engine: str, server: PostgresServer | MariaDbServer) -> Fresh:
        made = server.create_database()
        return Fresh(engine, made.host, made.port, made.name, made.user, made.password)

    with ExitStack() as stack:
        found: dict[str, Callable[[], Fresh]] = {}
        for engine in engines:
            server: PostgresServer | MariaDbServer = PostgresServer() if engine == "postgresql" else MariaDbServer()
            stack.enter_context(server)
            found[engine] = partial(fresh, engine, server)
        yield found


def run(
    folder: Path, engines: Sequence[str], counts: Sequence[int], rounds: int, far: bool, say: Callable[[str], None]
) -> Rows:
    """Everything, interleaved: each round everybody once, the order turned from round to round."""
    rows, tools = Rows(), Tools()
    rows.left_out = tools.missing()
    for count in counts:
        write_scripts(folder / f"scripts{count}", count)
    with engine_servers(engines) as servers:
        for turn in range(rounds):
            for engine in engines:
                for count in counts:
                    _round(rows, tools, servers[engine], folder, engine, count, turn, say)
        if far and "postgresql" in engines:
            _far(rows, servers["postgresql"], folder, min(counts), rounds, say)
    return rows


def _round(
    rows: Rows, tools: Tools, make: Callable[[], Fresh], folder: Path, engine: str, count: int, turn: int,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    scripts = folder / f"scripts{count}"
    scratch = Path(tempfile.mkdtemp(dir=folder))
    fresh = {name: make() for name in (OURS, DBMATE, SQITCH, YOYO, RAW)}
    runs: dict[str, Run] = {**tools.runs(fresh, scripts, count, scratch), RAW: partial(raw, fresh[RAW], scripts)}
    order = list(runs)
    for what in (MIGRATE, NOTHING):
        for who in [*order[turn % len(order) :], *order[: turn % len(order)]]:
            if what == NOTHING and who == RAW:
                continue
            sample = runs[who]()
            if who == OURS and sample.output.strip() != (str(count) if what == MIGRATE else "0"):
                raise Failed(f"ours applied {sample.output.strip()} of {count} scripts")
            rows.samples[f"{engine}, {count} scripts, {what}"][who].append(sample)
            say(f"  {engine:10} {count:5} {what:13} {who:16} {sample.wall:7.3f} s wall {sample.cpu:7.3f} s CPU")


def _far(
    rows: Rows, make: Callable[[], Fresh], folder: Path, count: int, rounds: int, say: Callable[[str], None]
) -> None:
    """Round trips a script through SSH: what the scripts take beyond a run with nothing to do, by the line's round trip."""
    with fleet(folder / "servers", 1, round_trip=ROUND_TRIP) as servers:
        host = {"name": "far", "address": "127.0.0.1", "port": servers.far.port, "user": servers.user, "folder": "/tmp"}  # noqa: S108
        ssh: dict[str, object] = {
            **{"host": host, "ssh_config": str(servers.ssh_config), "known_hosts": str(servers.known_hosts)}
        }
        for _ in range(rounds):
            scratch = Path(tempfile.mkdtemp(dir=folder))
            at = make()
            scripts = folder / f"scripts{count}"
            whole, nothing = (ours(at, scripts, scratch, ssh) for _ in range(2))
            rows.far.append((whole.wall - nothing.wall) / count / ROUND_TRIP)
            say(f"  through SSH: {whole.wall:.3f} s, with nothing to do {nothing.wall:.3f} s")


def text(rows: Rows, rounds: int) -> str:
    """The tables, as Markdown."""
    everybody = (OURS, RAW, DBMATE, SQITCH, YOYO)
    lines = [*machine(), f"{rounds} round(s); median (fastest–slowest); a ratio is taken round by round.", ""]
    lines += ["| | measured | to reach | |", "|---|---|---|---|"]
    for row, samples in rows.samples.items():
        for peer, most in AT_MOST.items():
            found = ratios(_walls(samples[OURS]), _walls(samples[peer])) if samples.get(peer) else None
            # With nothing to do only starting the program is left; its round trips are counted by a test.
            if found and row.endswith(MIGRATE):
                verdict = "reached" if found.median <= most else "**not reached**"
                lines.append(f"| {row} | {spread(found)} × {peer} | ≤ {most:g} | {verdict} |")
    far = Spread.of(rows.far)
    if far:
        lines.append(
            f"| through SSH, {ROUND_TRIP * 1000:.0f} ms | {spread(far)} round trips a script | little over 1 | |"
        )
    lines += ["", f"| wall s | {' | '.join(everybody)} |", "|---" * (len(everybody) + 1) + "|"]
    for row, samples in rows.samples.items():
        cells = [Spread.of([sample.wall for sample in samples.get(who, [])]) for who in everybody]
        lines.append(f"| {row} | {' | '.join(spread(cell) if cell else '–' for cell in cells)} |")
    lines += ["", *(f"{sentence}." for sentence in rows.left_out)]
    return "\n".join(lines).rstrip() + "\n"


def _walls(samples: Sequence[Sample]) -> list[float | None]:
    return [sample.wall for sample in samples]


def write(table: str, page: Path = PAGE) -> None:
    """Puts the tables in their place of the page; ValueError when it has no such place."""
    before = page.read_text()
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", before, re.DOTALL)
    if found is None:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{before[: found.start()]}{BEGIN}\n{table}{END}{before[found.end() :]}")


def main(words: list[str] | None = None) -> int:
    """Measures and prints; the exit code is 0 however it turns out, 2 for wrong words."""
    parser = argparse.ArgumentParser(prog="python -m bench.sql", description="Migrations, measured beside other tools.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scripts", default="200,1000", metavar="N,…")
    parser.add_argument("--engines", default="postgresql,mariadb", metavar="ENGINE,…")
    parser.add_argument("--no-ssh", action="store_true", help="without the run through SSH")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md too")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work; it must not exist")
    given = parser.parse_args(words)
    folder = given.folder.absolute() if given.folder else Path(tempfile.mkdtemp(prefix="tma-bench-"))
    try:
        folder.mkdir(parents=True, exist_ok=not given.folder)
        counts = tuple(int(word) for word in given.scripts.split(","))
        say = partial(print, file=sys.stderr, flush=True)
        rows = run(folder, given.engines.split(","), counts, max(1, given.rounds), not given.no_ssh, say)
    except PipelineError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = text(rows, given.rounds)
    print(table)
    if given.write:
        write(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
