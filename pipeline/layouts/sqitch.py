"""sqitch's layout: ``sqitch.plan`` in the folder says which changes there are and in which order; each is a file in ``deploy/``.

The script's id is the change's name, so that the change keeps it when it is reworked: the same name again after a tag is
``name#2``, then ``name#3``. sqitch moves the earlier text to ``deploy/name@tag.sql``. A script in ``verify/`` must run after
its change. Changes on which another depends come before it, as sqitch demands; those of another project are not asked for.
A script that cannot run in a transaction, which in sqitch leaves out ``BEGIN``, is known by its statements.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline.layouts.tree import Tree
from pipeline.model import Script, TreeFile

PLAN = "sqitch.plan"

_PUNCTUATION = "-!\"#$%&'()*+,./:;<=>?@[\\]^`{|}~"
_NAME = re.compile(r"[^\s:@#\\\[\]]+")
_SYMBOLIC = re.compile(r"[~/=%^]\d+$")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_PLANNER = re.compile(r"[^<\s][^<]*\s+<[^>]+>\s*")
_NEEDED = re.compile(r"(?P<not>!?)(?:(?P<project>[^\s:@#\\!]+):)?(?P<change>[^\s:@#\\!]+)?(?:@(?P<tag>[^\s:@#\\]+))?")
_BLANK = re.compile(r"\s*")


@dataclass
class _Change:
    """One change of the plan: where it stands, and the tags after it, up to the next change."""

    name: str
    line: int
    column: int
    number: int
    tags: list[str] = field(default_factory=list)
    reworked: bool = False


@dataclass
class _Plan:
    """The plan as read so far. ``tags`` of the project; ``section`` are the changes since the last tag, with their lines."""

    tree: Tree
    project: str | None = None
    changes: list[_Change] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    section: dict[str, int] = field(default_factory=dict)

    def blame(self, line: int, position: int, text: str) -> None:
        """Notes what is wrong at a line, from 1, and a position in it, from 0."""
        self.tree.blame(PLAN, text, line, position + 1)

    def latest(self, name: str) -> _Change | None:
        """The last change of this name."""
        return next((change for change in reversed(self.changes) if change.name == name), None)


def scripts(tree: Tree) -> list[Script]:
    """The scripts in the order of the plan. The playbook's pattern does not matter: the plan names the files."""
    file = tree.files.get(PLAN)
    if file is None:
        tree.blame(PLAN, "is missing: the playbook's folder is the one in which it lies")
        return []
    if not tree.taken(file):
        return []
    data = tree.data(file).removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        tree.blame(PLAN, "is not UTF-8", data.count(b"\n", 0, error.start) + 1)
        return []
    plan = _Plan(tree)
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if "\r" in line:
            plan.blame(number, line.index("\r"), "a carriage return within the line: a line ends with LF or CRLF")
        _line(plan, number, line.split("#", 1)[0].rstrip())
    if plan.project is None:
        plan.blame(1, 0, "says no %project=")
    found: list[Script] = []
    for position, change in enumerate(plan.changes):
        id = change.name if change.number == 1 else f"{change.name}#{change.number}"
        suffix = _suffix(plan, position)
        deploy = None if suffix is None else tree.files.get(f"deploy/{change.name}{suffix}.sql")
        if deploy is None:
            which = f"deploy/{change.name}{'@TAG, with a tag after it,' if change.reworked else '.sql'}"
            plan.blame(change.line, change.column, f"change {change.name} has no file {which}")
            continue
        verify: TreeFile | None = tree.files.get(f"verify/{change.name}{suffix}.sql")
        found += tree.script(deploy, id, verify=verify, detects=True)
    return found


def _suffix(plan: _Plan, position: int) -> str | None:
    """What follows the change's name in the names of its files: of a reworked one, a tag before it was; None without."""
    change = plan.changes[position]
    if not change.reworked:
        return ""
    tags: list[str] = []
    for later in plan.changes[position:]:
        if later is not change and later.name == change.name:
            break
        tags = [*later.tags, *tags]
    return next((f"@{tag}" for tag in tags if f"deploy/{change.name}@{tag}.sql" in plan.tree.files), None)


def _line(plan: _Plan, number: int, line: str) -> None:
    position = len(line) - len(line.lstrip())
    first = line[position : position + 1]
    if not first:
        return
    if first == "%":
        _pragma(plan, number, position, line[position + 1 :])
        return
    if first in "+-@":
        position += 1
        position += 0 if first == "@" else len(line[position:]) - len(line[position:].lstrip())
    if first == "-":
        plan.blame(number, position - 1, "a change that is taken back in the plan is not known here")
        return
    match = _NAME.match(line, position)
    if match is None or not _sound(match[0]):
        plan.blame(number, position, "here stands a name, without punctuation at its ends, blanks, @, :, # and \\")
        return
    needed = re.compile(r"\s*\[(?P<needed>[^\]]*)\]").match(line, match.end())
    end = needed.end() if needed else match.end()
    end = _blank(line, end)
    time = _TIME.match(line, end)
    if time is None:
        plan.blame(number, end, "here stands the time, such as 2024-01-31T12:00:00Z")
    elif not _PLANNER.fullmatch(line, _blank(line, time.end())):
        plan.blame(number, _blank(line, time.end()), "here stands who planned it, such as Ada <ada@example.org>")
    elif first == "@":
        _tag(plan, number, position, match[0], needed is not None)
    else:
        _change(plan, number, position, match[0])
        if needed is not None:
            _dependencies(plan, number, needed.start("needed"), needed["needed"])


def _blank(line: str, position: int) -> int:
    match = _BLANK.match(line, position)
    return match.end() if match else position


def _sound(name: str) -> bool:
    return name[0] not in _PUNCTUATION and name[-1] not in _PUNCTUATION and not _SYMBOLIC.search(name)


def _pragma(plan: _Plan, number: int, position: int, text: str) -> None:
    key, _, value = (part.strip() for part in text.partition("="))
    if plan.changes:
        plan.blame(number, position, "a pragma comes before the first change")
    elif key == "syntax-version" and not value.startswith("1."):
        plan.blame(number, position, f"the plan's syntax {value!r} is not known here, 1.0.0 is")
    elif key == "project":
        if not value or not _sound(value):
            plan.blame(number, position, f"{value!r} is no name of a project")
        plan.project = value


def _tag(plan: _Plan, number: int, position: int, name: str, depends: bool) -> None:
    if not plan.changes:
        plan.blame(number, position, f"tag @{name} comes before any change")
    elif name in plan.tags:
        plan.blame(number, position, f"tag @{name} is on line {plan.tags[name]} already")
    elif depends or "/" in name:
        plan.blame(number, position, f"tag @{name} has a / or dependencies, which tags have not")
    else:
        plan.changes[-1].tags.append(name)
        plan.tags[name] = number
        plan.section.clear()


def _change(plan: _Plan, number: int, position: int, name: str) -> None:
    if name in plan.section:
        plan.blame(
            number,
            position,
            f"change {name} is on line {plan.section[name]} already; a tag between lets it be reworked",
        )
        return
    plan.section[name] = number
    before = plan.latest(name)
    if before is not None:
        before.reworked = True
    plan.changes.append(_Change(name, number, position, before.number + 1 if before else 1))


def _dependencies(plan: _Plan, number: int, start: int, text: str) -> None:
    """Looks at what the plan's last change asks for."""
    earlier = {change.name for change in plan.changes[:-1]}
    for found in re.finditer(r"\S+", text):
        match, position = _NEEDED.fullmatch(found[0]), start + found.start()
        if match is None or not (match["change"] or match["tag"]):
            plan.blame(number, position, f"{found[0]!r} is no dependency")
            continue
        if match["project"] not in {None, plan.project} or re.fullmatch(r"[0-9a-f]{40}", match["change"] or ""):
            continue
        change, tag = match["change"], match["tag"]
        known = (change is None or change in earlier) and (tag is None or tag in plan.tags or tag in {"HEAD", "ROOT"})
        if match["not"] and known:
            plan.blame(number, position, f"conflicts with {found[0][1:]}, which comes before it")
        elif not match["not"] and not known:
            plan.blame(number, position, f"needs {found[0]}, which does not come before it")
