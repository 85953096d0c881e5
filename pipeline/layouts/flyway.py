"""Flyway's layout, with the prefixes and the suffix that it has by default, in the folder and below.

``V1_2__name.sql`` by the numbers of the version; ``R__name.sql`` is repeatable, by description; ``U…`` undoes, and is not
run; of the baselines (``B1_2__name.sql``) the highest is the full schema of a new database, and covers every version up to
its own. Beside a script, ``<its name>.conf`` says ``executeInTransaction=false``; without it Flyway finds out by itself
which scripts cannot run in a transaction, and so does this. Placeholders are not replaced, and callbacks not run: both are
refused.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipeline.layouts.tree import Tree
from pipeline.model import Script
from pipeline.script_text import script_text

_NAME = re.compile(r"(?P<kind>[VUB])(?P<version>\d+(?:[._]\d+)*)(?:__.*)?\.sql|R__(?P<again>.+)\.sql")
_CALLBACK = re.compile(r"(?:before|after|create)[A-Z]\w*(?:__.*)?\.sql")
_PLACEHOLDER = re.compile(r"\$\{[^}\n]{0,200}\}")
_SETTING = re.compile(r"\s*(?P<key>[^\s=:]+)\s*[=:]?\s*(?P<value>.*?)\s*")

Version = tuple[int, ...]


def scripts(tree: Tree) -> list[Script]:
    """The scripts, each with its path below the folder as its id."""
    names = [name for name in tree.files if tree.named(name)]
    versioned: list[tuple[Version, str]] = []
    baselines: list[tuple[Version, str]] = []
    again: list[tuple[str, str]] = []
    for name in sorted(names):
        base = PurePosixPath(name).name
        match = _NAME.fullmatch(base)
        if match is None:
            what = "is a callback of Flyway's, which is not run here" if _CALLBACK.fullmatch(base) else _UNKNOWN
            tree.blame(name, f"{what}; the playbook's pattern leaves out what is no migration")
        elif match["again"]:
            again.append((match["again"].replace("_", " "), name))
        elif match["kind"] != "U":
            (versioned if match["kind"] == "V" else baselines).append((_version(match["version"]), name))
    tree.once_each("version", versioned)
    tree.once_each("version", baselines)
    tree.once_each("description", again)
    for name in sorted(tree.files):
        if name.endswith(".sql.conf") and name.removesuffix(".conf") not in tree.files:
            tree.blame(name, "belongs to no script: there is none of this name")
    found: list[Script] = []
    highest = max(baselines, default=None)
    for version, name in sorted(versioned):
        if highest is not None and version > highest[0]:
            found += _script(tree, highest[1], "initial")
            highest = None
        found += _script(tree, name, "versioned")
    if highest is not None:
        found += _script(tree, highest[1], "initial")
    for _, name in sorted(again):
        found += _script(tree, name, "repeatable")
    return found


_UNKNOWN = "is no name of a Flyway migration, such as V1_2__name.sql or R__name.sql"


def _version(text: str) -> Version:
    """The numbers of a version; 1 and 1.0 are the same one."""
    numbers = [int(part) for part in re.split(r"[._]", text)]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _script(tree: Tree, name: str, kind: str) -> list[Script]:
    file = tree.files[name]
    if not tree.taken(file):
        return []
    transactional, replaces = _settings(tree, f"{name}.conf")
    data = tree.data(file)
    if replaces and b"${" in data:
        text = script_text(data)
        placeholder = _PLACEHOLDER.search(text)
        if placeholder is not None:
            line = text.count("\n", 0, placeholder.start()) + 1
            column = placeholder.start() - text.rfind("\n", 0, placeholder.start())
            said = "is a placeholder of Flyway's, which is not replaced here; placeholderReplacement=false means it as it is"
            tree.blame(name, f"{placeholder[0]} {said}", line, column)
            return []
    if kind == "repeatable":
        return tree.script(file, name, kind="repeatable", transactional=transactional, detects=True)
    if kind == "initial":
        return tree.script(file, name, kind="initial", transactional=transactional, detects=True)
    return tree.script(file, name, transactional=transactional, detects=True)


def _settings(tree: Tree, name: str) -> tuple[bool | None, bool]:
    """What the script's own settings file says: whether in a transaction, and whether placeholders are replaced."""
    transactional: bool | None = None
    replaces = True
    file = tree.files.get(name)
    if file is None or not tree.taken(file):
        return transactional, replaces
    for number, line in enumerate(script_text(tree.data(file)).split("\n"), 1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        match = _SETTING.fullmatch(line)
        key, value = (match["key"], match["value"]) if match else (line.strip(), "")
        column = len(line) - len(line.lstrip()) + 1
        if key == "encoding" and value.upper().replace("-", "") == "UTF8":
            continue
        if key not in {"executeInTransaction", "placeholderReplacement"}:
            tree.blame(name, f"{key}={value} is not known here, executeInTransaction=false is", number, column)
        elif value not in {"true", "false"}:
            tree.blame(name, f"{key} is true or false, not {value!r}", number, column)
        elif key == "executeInTransaction":
            transactional = value == "true"
        else:
            replaces = value == "true"
    return transactional, replaces
