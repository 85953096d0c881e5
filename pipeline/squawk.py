"""squawk, the linter for PostgreSQL: runs the program where it is installed, and gives its findings as ours.

It reads files only and asks no network. Which of its rules our protocol has settled already is said below, with why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import Failed, Reason
from pipeline.lint import NOT_ASKED, Finding, unneeded
from pipeline.model import Script
from pipeline.script_header import read_header
from pipeline.script_text import running_text

SETTLED: Mapping[str, str] = {
    # The runner sets lock_timeout before every script; one for the client has a rule of ours.
    "require-timeout-settings": "the runner sets it",
    "require-lock-timeout": "the runner sets it",
    # A long statement of a migration is often right, and would be cut off in the middle.
    "require-statement-timeout": "a migration may take its time",
    # People's scripts carry one BEGIN and COMMIT for their own tool; the runner takes that pair out and refuses others.
    "transaction-nesting": "the runner opens and ends the transaction",
    "ban-uncommitted-transaction": "the runner opens and ends the transaction",
    # IF NOT EXISTS everywhere is for scripts that run again after half of them; the history knows what has run.
    "prefer-robust-stmts": "the history and its statement counter know what has run",
    # Rules of ours say these for every engine: two findings would need two acceptances.
    "ban-drop-table": "drop-table",
    "ban-drop-column": "drop-of-read-column",
    "ban-concurrent-index-creation-in-transaction": "needs-no-transaction",
}
"""squawk's rules that are not asked, each with what settles it."""

MISSING = "squawk is not installed: its rules for PostgreSQL were not asked (pip install squawk-cli)"

_SECONDS = 120


def program() -> str | None:
    """Where squawk is: beside this Python, or on PATH; None where it is not installed."""
    beside = Path(sys.executable).parent / "squawk"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("squawk")


def findings(scripts: Sequence[Script], texts: Mapping[str, bytes]) -> list[Finding]:
    """What squawk finds in these PostgreSQL scripts, by script and line.

    ``texts`` are the files' bytes by script id. Rules are called ``squawk:NAME``. Scripts for the client are left out, which
    squawk cannot read. Where squawk is not installed, one finding of the rule :data:`pipeline.lint.NOT_ASKED` says so, at
    the first script. Failed when the program does not answer.
    """
    squawk = program()
    asked = [script for script in scripts if not script.client]
    if squawk is None:
        return [Finding(NOT_ASKED, script.id, 1, MISSING) for script in asked[:1]]
    found: dict[str, list[Finding]] = {script.id: [] for script in asked}
    for inside in (True, False):
        some = [script for script in asked if script.transactional is inside]
        for finding in _ask(squawk, some, texts, in_transaction=inside) if some else ():
            found[finding.script].append(finding)
    for script in asked:
        names = [name for name in script.accepted if name.startswith("squawk:")]
        if names:
            found[script.id] += unneeded(script, read_header(texts[script.id], script.id)[0], found[script.id], names)
    return [one for script in asked for one in sorted(found[script.id], key=lambda finding: finding.line)]


def _ask(
    squawk: str, scripts: Sequence[Script], texts: Mapping[str, bytes], *, in_transaction: bool
) -> Iterator[Finding]:
    """One run over all of them, since a start costs more than a script."""
    with tempfile.TemporaryDirectory(prefix="tma-squawk-") as name:
        folder = Path(name)
        by_file: dict[str, Script] = {}
        for number, script in enumerate(scripts):
            by_file[f"{number}.sql"] = script
            text = running_text(script, texts[script.id])
            (folder / f"{number}.sql").write_bytes(text.encode("utf-8", "replace"))
        line = [squawk, "--reporter", "json", "--exclude", ",".join(SETTLED)]
        line += ["--assume-in-transaction"] if in_transaction else []
        try:
            # In that folder, since squawk takes the settings of the one in which it starts; and by a pattern, since a path
            # for each of thousands would be too long for one command line.
            done = subprocess.run(
                [*line, "*.sql"],
                cwd=folder,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise Failed("squawk does not answer.", reasons=[f"no answer after {_SECONDS} s"]) from None
        except OSError as error:
            raise Failed("squawk cannot be started.", reasons=[Reason(str(error), squawk)]) from None
    try:
        rows: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1] or [f"it ended with {done.returncode}"]
        raise Failed("squawk gave no answer that can be read.", reasons=[Reason(words[0], squawk)]) from None
    for row in rows:
        script = by_file[Path(row["file"]).name]
        rule = f"squawk:{row['rule_name']}"
        said = " ".join(str(row["message"]).split()).rstrip(".")
        # Its lines count from 0.
        if row.get("help"):
            said += f": {' '.join(str(row['help']).split()).rstrip('.')}"
        yield Finding(rule, script.id, int(row["line"]) + 1, said, script.accepted.get(rule))
