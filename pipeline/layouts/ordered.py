"""Ordered files: every file whose name matches is a script, in the order of its path by Unicode code point.

``10_x.sql`` comes before ``9_x.sql``: products write leading zeros.
"""

from __future__ import annotations

from pipeline.layouts.tree import Tree
from pipeline.model import Script


def scripts(tree: Tree) -> list[Script]:
    """The scripts, each with its path below the folder as its id."""
    found: list[Script] = []
    for name, file in sorted(tree.files.items()):
        if tree.named(name):
            found += tree.script(file, name)
    return found
