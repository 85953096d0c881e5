"""What must not happen, kept where a developer can read it: one line for the person, the traceback in a file."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import PipelineError

_REFERENCE = re.compile(r"(?<![\w-])(env|file):([^\s'\"\]},]+)")
_TELLING = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|PRIVATE", re.IGNORECASE)
_IN_TEXT = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "•••"),
    (re.compile(r"(://[^\s/:@]*:)[^\s@]+@"), r"\1•••@"),
    (re.compile(r"(?i)(\b(?:password|passwd|pwd|token|secret)\b\s*[=:]\s*)\S+"), r"\1•••"),
)
_SHORTEST_SECRET = 4


class OurBug(PipelineError):
    """A bug of ours (exit 70, ``EX_SOFTWARE`` of sysexits.h); ``what`` says where the report lies."""

    exit_code = 70
    word = "our bug"


def report(
    error: BaseException,
    *,
    task: str,
    options: Iterable[str],
    workspace: Path | None,
    changing: bool,
    conceal: Callable[[str], str] | None = None,
) -> OurBug:
    """The error to show for ``error``, its traceback written under ``<workspace>/var/reports`` (readable by you alone).

    The report names the options that were given but not their values, and every secret that the workspace refers to is
    taken out of it. Where the folder cannot be written, the system's folder for temporary files is used.
    """
    concealed = _without_secrets("".join(traceback.format_exception(error)), workspace)
    if conceal is not None:
        concealed = conceal(concealed)
    lines = [
        f"task: {task}",
        f"options given: {' '.join(options) or 'none'}",
        f"at: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"python: {platform.python_version()} on {platform.platform()}",
        "",
        concealed,
    ]
    place = _keep("\n".join(lines), workspace)
    where = f"the report is {place}" if place else "no report could be written"
    return OurBug(
        f"{type(error).__name__} in {_spot(error)} while running {task}; {where}",
        state=(
            "What was recorded before it stands; the next command takes up from there."
            if changing
            else "Nothing was changed."
        ),
        next_commands=["invoke status"] if changing else [],
        details={"report": str(place) if place else None},
    )


def _spot(error: BaseException) -> str:
    ours = Path(__file__).resolve().parents[1]
    spot = "unknown place"
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_absolute() and path.resolve().is_relative_to(ours):
            spot = f"{path.resolve().relative_to(ours.parent)}:{frame.lineno}"
    return spot


def _keep(text: str, workspace: Path | None) -> Path | None:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.txt"
    folders = [] if workspace is None else [workspace / "var" / "reports"]
    for folder in (*folders, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / (name if folder in folders else f"tma-report-{name}")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", errors="replace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return None


def _without_secrets(text: str, workspace: Path | None) -> str:
    secrets = {value for name, value in os.environ.items() if _TELLING.search(name)}
    if workspace is not None:
        secrets |= _referred(workspace)
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "•••")
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _referred(workspace: Path) -> set[str]:
    # Read as text on purpose: the files may be what the bug is about.
    found: set[str] = set()
    for path in sorted((workspace / "environments").rglob("*.yaml")):
        try:
            references = _REFERENCE.findall(path.read_text(errors="replace"))
        except OSError:
            continue
        for kind, target in references:
            try:
                value = (
                    os.environ.get(target, "") if kind == "env" else (workspace / target).read_text(errors="replace")
                )
            except (OSError, ValueError):
                continue
            found.add(value.strip())
            found.update(line.strip() for line in value.splitlines())
    return found
