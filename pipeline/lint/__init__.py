"""What is risky in a release's scripts, before the first of them runs: rules of ours for every engine. Pure.

A new rule is one function in :mod:`pipeline.lint.rules` and one line of its table. Each can be accepted in the script's
header with a reason; an acceptance of what does not happen is said too, since it would hide the next time that it does.
:mod:`pipeline.squawk` adds what it finds, for PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.lint.rules import RULES, Found, Looked
from pipeline.model import Engine, Script
from pipeline.script_header import Header, phase_of, read_header
from pipeline.script_text import running_text
from pipeline.sql_words import statements
from pipeline.suggest import nearest

NOT_ASKED = "squawk-not-asked"
"""The rule of a finding that says that a linter of others is not installed."""

INFORMATION = frozenset({"unknown", NOT_ASKED})
"""Rules of which a finding is no warning, only to be known."""

UNNEEDED = "unneeded-acceptance"
"""The rule of a finding about an acceptance, which cannot itself be accepted."""


@dataclass(frozen=True)
class Finding:
    """What a rule found in a script: ``line`` from 1 in its file, ``said`` a sentence without a final stop.

    ``accepted`` is the reason for which the script's author judged it harmless, None where nobody did.
    """

    rule: str
    script: str
    line: int
    said: str
    accepted: str | None = None


def findings(
    scripts: Sequence[Script],
    texts: Mapping[str, bytes],
    engine: Engine,
    *,
    still_read: Callable[[str], Sequence[str]],
) -> list[Finding]:
    """What the rules find in these scripts, in their order and by line.

    ``texts`` are the files' bytes by script id; ``still_read`` gives the places in the installed release's code where a
    column or table of this name is read. A script's ``phase`` counts as it is given here: where the playbook's steps decide
    it, pass the script with the phase of its step.
    """
    found: list[Finding] = []
    for script in scripts:
        data = texts[script.id]
        text = running_text(script, data)
        header, _ = read_header(data, script.id)
        declared = (header.phase or phase_of(script.id)) is not None
        looked = Looked(script, text, tuple(statements(text, engine)), engine, still_read, declared)
        here = [_finding(script, name, one, text) for name, rule in RULES.items() for one in rule(looked)]
        if script.accepted:
            here += unneeded(script, header, here, [name for name in script.accepted if not name.startswith("squawk:")])
        found += sorted(here, key=lambda one: one.line)
    return found


def unneeded(script: Script, header: Header, found: Iterable[Finding], names: Iterable[str]) -> list[Finding]:
    """Of these accepted rules, those that found nothing in the script: a finding each, where its header accepts them."""
    fired = {finding.rule for finding in found}
    idle: list[Finding] = []
    for name in names:
        if name in fired:
            continue
        said = f"accepts {name}, which finds nothing here"
        if name not in RULES and not name.startswith("squawk:"):
            close = nearest(name, RULES)
            said = f"accepts {name}, and there is no such rule" + (f"; did you mean {close}?" if close else "")
        idle.append(Finding(UNNEEDED, script.id, header.lines.get(name, 1), said))
    return idle


def _finding(script: Script, rule: str, found: Found, text: str) -> Finding:
    line = text.count("\n", 0, found.offset) + 1
    return Finding(rule, script.id, line, found.said, script.accepted.get(rule))
