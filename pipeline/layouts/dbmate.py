"""dbmate's layout: ``20240101120000_name.sql`` in one folder, with a ``-- migrate:up`` part and a ``-- migrate:down`` part.

Only the part after ``migrate:up`` runs. ``transaction:false`` behind it: the script runs outside a transaction. Folders
below this one are not looked into, as dbmate does not.
"""

from __future__ import annotations

import re

from pipeline.layouts.tree import Tree
from pipeline.model import Script
from pipeline.script_text import script_text

_NAME = re.compile(r"(?P<version>\d+).*\.sql")
_PART = re.compile(r"(?m)^--[ \t]*migrate:(?P<part>\w*)(?P<options>[^\n]*)$")
_NEARLY = re.compile(
    r"(?im)^[^\S\n]*(?:--+|\#|/\*)[^\S\n]*migrate(?:[^\S\n]*:[^\S\n]*(?:up|down)\b|[^\S\n]+(?:up|down)[^\S\n]*(?:\*/)?$)[^\n]*"
)
_NO_STATEMENT = re.compile(r"\s*(?:--[^\n]*)?")


def scripts(tree: Tree) -> list[Script]:
    """The scripts, each with its file's name as its id, in the order of the names."""
    found: list[Script] = []
    versions: list[tuple[str, str]] = []
    for name, file in sorted(tree.files.items()):
        if "/" in name or not tree.named(name):
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            tree.blame(name, "is no name of a dbmate migration, such as 20240101120000_name.sql")
        elif tree.taken(file):
            versions.append((match["version"], name))
            parts = _parts(tree, name, script_text(tree.data(file)))
            if parts is not None:
                first, last, transactional = parts
                found += tree.script(file, name, lines=(first, last), transactional=transactional)
    tree.once_each("version", versions)
    return found


def _parts(tree: Tree, name: str, text: str) -> tuple[int, int, bool | None] | None:
    """First and last line of the part that goes up, and whether it runs in a transaction where it says so."""
    places: dict[str, int] = {}
    transactional: bool | None = None
    blamed = len(tree.wrong)
    for mark in _PART.finditer(text):
        line, part = text.count("\n", 0, mark.start()) + 1, mark["part"]
        if part not in {"up", "down"}:
            tree.blame(name, f"a part is migrate:up or migrate:down, not migrate:{part}", line)
        elif part in places:
            tree.blame(name, f"migrate:{part} is there twice, first on line {places[part]}", line)
        else:
            places[part] = line
            for option in re.finditer(r"\S+", mark["options"]):
                if option[0] not in {"transaction:false", "transaction:true"}:
                    column = mark.start("options") - mark.start() + option.start() + 1
                    tree.blame(name, f"{option[0]!r} is no option of dbmate, transaction:false is", line, column)
                elif part == "up":
                    transactional = option[0] == "transaction:true"
    exactly = {mark.start() for mark in _PART.finditer(text)}
    for near in _NEARLY.finditer(text):
        if near.start() not in exactly:
            line = text.count("\n", 0, near.start()) + 1
            tree.blame(
                name, f"dbmate does not read {near[0].strip()!r} as the mark of a part, only -- migrate:up", line
            )
    lines = text.split("\n")
    if "up" not in places:
        tree.blame(name, "has no part -- migrate:up", 1)
    else:
        if places.get("down", len(lines)) < places["up"]:
            tree.blame(name, "migrate:down comes before migrate:up", places["down"])
        for number, above in enumerate(lines[: min(places.values()) - 1], 1):
            if not _NO_STATEMENT.fullmatch(above):
                tree.blame(name, "a statement comes before -- migrate:up, and would never run", number)
                break
    if len(tree.wrong) > blamed:
        return None
    return places["up"], places.get("down", len(lines) + 1) - 1, transactional
