"""A script for each direction, of which only the one that goes up is run: diesel's folders and golang-migrate's pairs.

diesel: ``2024-01-01-000000_name/up.sql``, in the order of the versions (the name's part before ``_``, without hyphens), and
``metadata.toml`` beside it with ``run_in_transaction = false``. golang-migrate: ``0001_name.up.sql``, in the order of the
numbers; it has no way to say anything of transactions, so the header does.
"""

from __future__ import annotations

import re
import tomllib

from pipeline.layouts.tree import RENAME, Tree
from pipeline.model import Script
from pipeline.script_text import script_text

_PAIR = re.compile(r"(?P<number>\d+)_(?P<title>.*)\.(?P<direction>up|down)\.sql")
_DIRECTION = re.compile(r"[^/.][^/]*/(?:up|down)\.sql")
_NEARLY = re.compile(rf"(?i)\s*(?:(?:up|down)\.sql|{_PAIR.pattern})\s*")
_FOLDER = re.compile(r"(?P<version>[^/_]+)_[^/]*")
_TOML_PLACE = re.compile(r"\s*\(at line (?P<line>\d+), column (?P<column>\d+)\)|\s*\(at end of document\)")


def scripts(tree: Tree) -> list[Script]:
    """The scripts, each with its path below the folder as its id. Both forms in one folder are refused."""
    folders = sorted({name.split("/")[0] for name in tree.files if _DIRECTION.fullmatch(name)})
    pairs = sorted(name for name in tree.files if "/" not in name and tree.named(name))
    if folders and any(_PAIR.fullmatch(name) for name in pairs):
        tree.blame(f"{folders[0]}/up.sql", f"folders, and pairs such as {pairs[0]}, give no order together")
    for name in sorted(tree.files):
        if "/" in name and not _DIRECTION.fullmatch(name) and _NEARLY.fullmatch(name.rpartition("/")[2]):
            tree.blame(name, f"would never run: it is nearly a migration, in letters or in its folder; {RENAME}")
    return _folders(tree, folders) + _pairs(tree, pairs)


def _folders(tree: Tree, folders: list[str]) -> list[Script]:
    versions: list[tuple[str, str]] = []
    for folder in folders:
        match = _FOLDER.fullmatch(folder)
        if match is None:
            tree.blame(folder, "is no folder of a migration, such as 2024-01-01-000000_name")
        elif f"{folder}/up.sql" not in tree.files:
            tree.blame(f"{folder}/down.sql", "goes down, and there is no up.sql beside it")
        else:
            versions.append((match["version"].replace("-", ""), folder))
    tree.once_each("version", versions)
    found: list[Script] = []
    for _, folder in sorted(versions):
        up = f"{folder}/up.sql"
        found += tree.script(tree.files[up], up, transactional=_in_transaction(tree, folder))
    return found


def _pairs(tree: Tree, names: list[str]) -> list[Script]:
    ups: list[tuple[int, str]] = []
    downs: list[tuple[int, str]] = []
    for name in names:
        match = _PAIR.fullmatch(name)
        if match is None:
            tree.blame(name, "is no name of a migration, such as 0001_name.up.sql")
        else:
            (ups if match["direction"] == "up" else downs).append((int(match["number"]), name))
    tree.once_each("number", ups)
    tree.once_each("number", downs)
    for number, name in downs:
        if number not in dict(ups):
            tree.blame(name, "goes down, and nothing goes up with this number")
    found: list[Script] = []
    for _, name in sorted(ups):
        found += tree.script(tree.files[name], name)
    return found


def _in_transaction(tree: Tree, folder: str) -> bool | None:
    name = f"{folder}/metadata.toml"
    file = tree.files.get(name)
    if file is None or not tree.taken(file):
        return None
    text = script_text(tree.data(file))
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        whole = text.rstrip("\n").split("\n")
        line, column = len(whole), len(whole[-1]) + 1  # where it ends, unless it says another place
        if place is not None and place["line"]:
            line, column = int(place["line"]), int(place["column"])
        tree.blame(name, f"is no TOML: {_TOML_PLACE.sub('', str(error))}", line, column)
        return None
    for key in said:
        if key != "run_in_transaction" or not isinstance(said[key], bool):
            begin = re.search(rf"(?m)^[ \t]*\[*[ \t]*[\"']?{re.escape(key)}", text)
            line = text.count("\n", 0, begin.start()) + 1 if begin else 1
            tree.blame(name, "says run_in_transaction = true or false, and nothing else", line)
            return None
    return said.get("run_in_transaction")
