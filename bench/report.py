"""The table: medians with spread, ours as a ratio of the peers', and what is to be reached."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.run import COMMAND, DEPLOYMENT, FABRIC, HOST_FLOOR, LINE_FLOOR, RSYNC, Measured
from bench.timing import Sample, Spread, ratios

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
STATUS = "ours: tma status"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Goal:
    """One thing that is to be reached. With ``peer`` a ratio of wall times, else ``unit`` says what is limited."""

    case: str
    what: str
    who: str
    at_most: float
    peer: str | None = None
    unit: str = "s"


GOALS = (
    Goal("patch", "deployment", DEPLOYMENT, 0.5, RSYNC),
    Goal("patch", "whole command", COMMAND, 0.8, RSYNC),
    Goal("full", "deployment", DEPLOYMENT, 0.8, RSYNC),
    Goal("full", "whole command", COMMAND, 1.1, RSYNC),
    Goal("far", "deployment", DEPLOYMENT, 0.4, RSYNC),
    Goal("far", "whole command", COMMAND, 0.6, RSYNC),
    Goal("hosts", "deployment", DEPLOYMENT, 0.2, RSYNC),
    Goal("hosts", "CPU of the controller", DEPLOYMENT, 1.0, unit="s CPU"),
    Goal("hosts", "memory of the controller", COMMAND, 80.0, unit="MB"),
    Goal("status", "whole command", STATUS, 0.3),
    Goal("many-customers", "whole command", STATUS, 1.0),
)


def titles(measured: Measured) -> dict[str, str]:
    """The cases in words."""
    choice = measured.choice
    return {
        "patch": "patch, 1 host",
        "hosts": f"patch, {choice.hosts} hosts",
        "full": "full, 1 host, verified",
        "far": f"patch, 1 host, {choice.round_trip * 1000:.0f} ms round trip",
        "status": "`status` of one customer",
        "many-customers": "`status` of 10,000 customers",
    }


def goals_table(measured: Measured) -> list[str]:
    """One line a goal: the ratio or the figure, its spread, and whether it is reached."""
    names = titles(measured)
    lines = ["| | what | measured | to reach | |", "|---|---|---|---|---|"]
    for goal in GOALS:
        ours = measured.of(goal.case, goal.who)
        if goal.peer is not None:
            found = ratios(_walls(ours), _walls(measured.of(goal.case, goal.peer)))
            unit = f" × {goal.peer}"
        else:
            found = Spread.of([_value(sample, goal.unit) for sample in ours if sample is not None])
            unit = f" {goal.unit}"
        if found is None:
            continue
        verdict = "reached" if found.median <= goal.at_most else "**not reached**"
        lines.append(f"| {names[goal.case]} | {goal.what} | {spread(found)}{unit} | ≤ {goal.at_most:g} | {verdict} |")
    return lines


def times_table(measured: Measured) -> list[str]:
    """One line a case: everybody's wall time, and the controller's CPU in parentheses."""
    names = titles(measured)
    columns = (DEPLOYMENT, COMMAND, STATUS, RSYNC, FABRIC, HOST_FLOOR, LINE_FLOOR)
    shown = [who for who in columns if any(who in row for row in measured.samples.values())]
    lines = [f"| wall s (controller CPU s) | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for case, name in names.items():
        row = [_times(measured.of(case, who)) for who in shown]
        if any(row):
            lines.append(f"| {name} | {' | '.join(cell or '–' for cell in row)} |")
    return lines


def spread(found: Spread) -> str:
    """``0.41 (0.39–0.47)``."""
    if found.count == 1:
        return _figure(found.median)
    return f"{_figure(found.median)} ({_figure(found.low)}–{_figure(found.high)})"


def _figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _times(samples: Sequence[Sample | None]) -> str:
    wall = Spread.of([sample.wall for sample in samples if sample is not None])
    cpu = Spread.of([sample.cpu for sample in samples if sample is not None])
    return f"{spread(wall)}; CPU {_figure(cpu.median)}" if wall and cpu else ""


def _walls(samples: Sequence[Sample | None]) -> list[float | None]:
    return [sample.wall if sample is not None else None for sample in samples]


def _value(sample: Sample, unit: str) -> float:
    return {"s": sample.wall, "s CPU": sample.cpu, "MB": sample.memory / MEGABYTE}[unit]


def machine() -> list[str]:
    """When and on what it was measured."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({cpu}), Linux {platform.release()}, "
        f"Python {platform.python_version()}, {_first_line('ssh', '-V')}, {_first_line('rsync', '--version')}, "
        f"{_first_line('git', '--version')}."
    ]


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return f"no {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return " ".join((done.stdout or done.stderr).splitlines()[0].split())


def text(measured: Measured) -> str:
    """Everything, as Markdown."""
    about = f"{measured.choice.rounds} round(s); median (fastest–slowest); a ratio is taken round by round."
    return "\n".join([*machine(), about, "", *goals_table(measured), "", *times_table(measured), ""])


def write(measured: Measured, page: Path = PAGE) -> None:
    """Puts the tables in their place of the page; ValueError when it has no such place."""
    before = page.read_text()
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", before, re.DOTALL)
    if found is None:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{before[: found.start()]}{BEGIN}\n{text(measured)}{END}{before[found.end() :]}")
