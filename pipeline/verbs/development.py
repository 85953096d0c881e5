"""Verbs for work on the pipeline itself; they are there in a checkout of it only, not where the package is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option
from pipeline.errors import Failed, UsageError

MIGRATIONS = "migrations"
"""The case of the bench that measures migrations beside other tools."""

GROUP = "Work on the pipeline itself"
ROOT = Path(__file__).resolve().parents[2]

Only = Annotated[str | None, Option("tests whose names match, as pytest -k reads it", value="EXPRESSION")]

LINTERS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)


PROVEN = ("points", "of", "wrong")


def _a_count(text: str) -> int:
    """A number from 1 on; ValueError otherwise."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"is a number from 1 on, not {text!r}")
    return int(text)


def in_checkout() -> bool:
    """Whether this package is a checkout of the project, with its tests."""
    return (ROOT / "pyproject.toml").is_file() and (ROOT / "tests").is_dir()


@verb(GROUP, "test", changes=False)
def test(command: Command, only: Only = None) -> Answer:
    """Runs everything that CI runs: linters and all tests, those with real servers too."""
    if only is None:
        for linter in LINTERS:
            _run(*linter)
    prepared = subprocess.run(
        [sys.executable, "tests/prepare.py"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
    )
    if prepared.returncode != 0:
        raise UsageError("not everything that the tests need is installed", reasons=["what is missing stands above"])
    _pytest(only)
    return _done("the tests pass")


@verb(GROUP, "quick", changes=False)
def quick(command: Command, only: Only = None) -> Answer:
    """Runs the tests that need no server and little time; two to three minutes."""
    _pytest(only, "-m", "not live and not slow", dist="worksteal")
    return _done("the quick tests pass")


@verb(GROUP, "lint", changes=False)
def lint(command: Command) -> Answer:
    """Checks style, types and the layers: ruff, mypy --strict, import-linter."""
    for linter in LINTERS:
        _run(*linter)
    return _done("nothing to complain about")


@verb(GROUP, "bench", changes=False)
def bench(
    command: Command,
    rounds: Annotated[int, Option("how often each is measured; 5 by default", value="N", convert=_a_count)] = 5,
    only: Annotated[str | None, Option("cases with commas between; all by default", value="CASE,…")] = None,
    quick: Annotated[bool, Option("one round of one host, and no Fabric script")] = False,
    write: Annotated[bool, Option("the tables go into docs/performance.md too")] = False,
) -> Answer:
    """Measures deployments beside rsync and a plain Fabric script, and migrations beside other tools, on its own servers.

    Twenty minutes, 8 GB of disk. The migrations alone: only=migrations.
    """
    cases = [case for case in (only or "").split(",") if case]
    deployments = [case for case in cases if case != MIGRATIONS]
    if deployments or not cases:
        words = ["bench", f"--rounds={rounds}", *([f"--only={','.join(deployments)}"] if deployments else [])]
        _measure(*words, *(flag for flag, given in (("--quick", quick), ("--write", write)) if given))
    if MIGRATIONS in cases or not (cases or quick):
        _measure("bench.sql", f"--rounds={rounds}", *(["--write"] if write else []))
    return _done("measured")


def _measure(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=False).returncode
    if done == 2:
        raise UsageError("nothing was measured", reasons=["what is missing or wrong stands above"])
    if done != 0:
        raise Failed(f"the bench ended with {done}", state="Its words are above.")


@verb(GROUP, "proof", changes=False)
def proof(
    command: Command,
    only: Only = None,
    times: Annotated[
        int | None, Option("so many times the sample of the tests, instead of all points", value="N", convert=_a_count)
    ] = None,
    seed: Annotated[str | None, Option("chooses another sample", value="TEXT")] = None,
) -> Answer:
    """Kills, cuts and fills at every point of a deployment over real SSH, and counts what was wrong; takes hours."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        environment = {"TMA_PROOF": str(times or "full"), "TMA_PROOF_REPORT": str(report)}
        environment |= {"TMA_PROOF_SEED": seed} if seed else {}
        try:
            _pytest(only, "-m", "live", "tests/live/proof", dist="load", environment=environment)
        finally:
            _print_proof(report)
    return _done("nothing was wrong")


def _print_proof(report: Path) -> None:
    """The figures of each kind of fault, added up over its tests."""
    sums: dict[str, dict[str, float]] = {}
    for line in report.read_text().splitlines() if report.exists() else ():
        figures = json.loads(line)
        known = sums.setdefault(figures.pop("what"), {})
        for name, value in figures.items():
            known[name] = value if name == "of" or name.startswith("seconds") else known.get(name, 0) + value
    for what, known in sums.items():
        others = ", ".join(f"{name.replace('_', ' ')} {known[name]:g}" for name in known if name not in PROVEN)
        of = f" of {known['of']:g}" if "of" in known else ""
        print(f"{what}: {known['points']:g}{of} tried, {known['wrong']:g} wrong" + (f" ({others})" if others else ""))
    total = {name: sum(known.get(name, 0) for known in sums.values()) for name in ("points", "wrong")}
    print(f"in all {total['points']:g} tried, {total['wrong']:g} wrong", flush=True)


@verb(GROUP, "relock", changes=False)
def relock(command: Command) -> Answer:
    """Writes the lock files anew from pyproject.toml, with hashes; needs uv (https://docs.astral.sh/uv/)."""
    common = ("--universal", "--python-version", "3.11", "--generate-hashes", "--upgrade", "-q")
    named = ("--custom-compile-command", "make lock")
    for words in (
        ("pyproject.toml", "--extra", "test", "-o", "requirements-test.lock"),
        # Constrained, so that all three files agree in one environment.
        ("pyproject.toml", "-c", "requirements-test.lock", "-o", "requirements.lock"),
        ("requirements-build.in", "-c", "requirements-test.lock", "-o", "requirements-build.lock"),
    ):
        _run("uv", "pip", "compile", *words, *common, *named)
    return _done("requirements*.lock are written; look at git diff before you commit them")


def _pytest(
    only: str | None, *words: str, dist: str = "loadfile", environment: Mapping[str, str] | None = None
) -> None:
    # A file with servers stays with one worker, since they are started once a file.
    _run("pytest", "-n", "auto", "--dist", dist, *words, *(("-k", only) if only else ()), environment=environment)


def _run(program: str, *words: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs a program of this Python's environment, else one on PATH; Failed unless it ends with 0."""
    shown = " ".join([program, *words])
    print(f"$ {shown}", flush=True)
    beside = Path(sys.executable).with_name(program)
    command = [str(beside) if beside.exists() else program, *words]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, stdout=sys.stderr, check=False, env=os.environ | dict(environment or {})
        ).returncode
    except FileNotFoundError:
        raise UsageError(f"{program} is not installed", next_commands=["make test"]) from None
    if ended != 0:
        raise Failed(f"{shown} ended with {ended}", state="Its findings are above.")


def _done(what: str) -> Answer:
    from pipeline.workflow import Result

    return Result(changed=False, what=what)


__all__: Sequence[str] = ("GROUP", "bench", "in_checkout", "lint", "proof", "quick", "relock", "test")
