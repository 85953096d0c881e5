"""The list of tasks, grouped by what an engineer does, and the help of one task: pure text."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Sequence

from pipeline.command_line.verb import Verb
from pipeline.errors import EXIT_CODES

GROUPS = (
    "Prepare a release",
    "Bring it to test",
    "Have it signed off",
    "Go to production",
    "See what is what",
    "Migrations",
    "Backups",
    "Tickets",
    "Upkeep",
    "Try it out",
    "Work on the pipeline itself",
)
"""The groups in the order in which an engineer comes to them; every verb is in one."""

_WIDTH = 118


def task_list(verbs: Iterable[Verb], program: str, *, core_options: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The tasks, one line each, under their groups."""
    known = list(verbs)
    width = max((len(verb.path) for verb in known), default=0)
    lines = [f"Usage: {program} TASK key=value …      {program} TASK --help      ({program} alone: this list)"]
    for group in GROUPS:
        inside = [verb for verb in known if verb.group == group]
        if inside:
            lines += ["", group, *(f"  {verb.path:<{width}}  {verb.summary}" for verb in inside)]
    if core_options:
        lines += ["", "Before the task", *_columns(core_options)]
    lines += ["", "Exit codes", *_columns([(str(code), meaning) for code, meaning in EXIT_CODES.items()])]
    return lines


def task_help(verb: Verb, program: str) -> list[str]:
    """How to type one task, what it does, and each of its options."""
    needed = [f"{option.typed}{option.value}" for option in verb.options.values() if option.required]
    optional = [
        f"[{option.typed if option.flag else option.typed + option.value}]"
        for option in verb.options.values()
        if not option.required
    ]
    usage = textwrap.wrap(
        " ".join([*needed, *optional]), _WIDTH - len(verb.path) - len(program) - 8, break_on_hyphens=False
    )
    start = f"Usage: {program} {verb.path} "
    lines = [start + (usage[0] if usage else "")]
    lines += [" " * len(start) + line for line in usage[1:]]
    lines += ["", *(inspect.getdoc(verb.body) or "").splitlines(), "", "Options"]
    rows = [
        (option.typed if option.flag else f"{option.typed}{option.value}", _described(option.help, option.several))
        for option in verb.options.values()
    ]
    lines += _columns(rows)
    first = verb.words.first
    if first is not None:
        lines += ["", f"key=VALUE may also be written --key VALUE; a bare word is {verb.options[first].typed}"]
    return lines


def _described(text: str, several: bool) -> str:
    return f"{text} (may be given again)" if several else text


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    lines: list[str] = []
    for left, right in rows:
        pieces = textwrap.wrap(right, max(40, _WIDTH - width - 4), break_on_hyphens=False) or [""]
        lines.append(f"  {left:<{width}}  {pieces[0]}".rstrip())
        lines += [" " * (width + 4) + piece for piece in pieces[1:]]
    return lines
