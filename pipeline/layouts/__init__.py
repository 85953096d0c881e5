"""The layouts in which products keep their migrations, read as the tools of these names do, a file a layout. Pure.

A new layout is one file here, with one function from a :class:`pipeline.layouts.tree.Tree` to scripts in their order, and
its name in :data:`pipeline.model.Layout`. A file that matches the playbook's pattern and is nothing that the layout knows
is refused: a migration with a letter wrong in its name would otherwise never run, and nobody would hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pipeline.errors import Reason, Refused
from pipeline.layouts import dbmate, flyway, ordered, sqitch, up_down
from pipeline.layouts.tree import Tree
from pipeline.model import Engine, Layout, Manifest, Migrations, Script, TreeFile

LAYOUTS: Mapping[Layout, Callable[[Tree], list[Script]]] = {
    "ordered": ordered.scripts,
    "flyway": flyway.scripts,
    "dbmate": dbmate.scripts,
    "up-down": up_down.scripts,
    "sqitch": sqitch.scripts,
}
"""Of each layout, the function that gives its scripts in the order in which they run."""

_OTHER: Mapping[Engine, Engine] = {"mariadb": "mysql", "mysql": "mariadb"}


def scripts_of(
    settings: Migrations, engine: Engine, manifest: Manifest, read: Callable[[str], bytes | None]
) -> list[Script]:
    """The release's migrations in the order in which they run; ``read`` gives a blob's bytes by its object id.

    Repeatable ones are last. The full schema of a new database stands after the versioned ones that it covers.
    Refused, with every reason and its place, where they cannot be taken as the layout has them; Failed when a blob is
    missing.
    """
    prefix = _prefix(settings.folder, engine, manifest)
    initial = _initial(settings, engine)
    files = {file.path[len(prefix) :]: file for file in manifest.files if file.path.startswith(prefix)}
    schema = next((file for file in manifest.files if file.path == initial), None)
    tree = Tree(settings, engine, prefix, {name: file for name, file in files.items() if file is not schema}, read)
    scripts = LAYOUTS[settings.layout](tree)
    for file in manifest.files if prefix else ():
        if file.path.lower().startswith(prefix.lower()) and not file.path.startswith(prefix) and _is_sql(file.path):
            said = f"would never run: it lies in {file.path[: len(prefix)]}, and the playbook's folder is {prefix}"
            tree.wrong.append(Reason(said, file.path))
    if schema is not None:
        full = tree.script(schema, schema.path.removeprefix(prefix), kind="initial")
        if full and any(script.kind == "initial" for script in scripts):
            tree.wrong.append(Reason("is a second full schema: the layout has one of its own", schema.path))
        last = max((at for at, script in enumerate(scripts, 1) if script.kind == "versioned"), default=0)
        scripts[last:last] = full
    elif initial is not None:
        tree.wrong.append(Reason("initial: names a file that the release does not hold", initial))
    _once(scripts, tree.wrong)
    if tree.wrong:
        raise Refused(
            f"the migrations of this release cannot be taken as they are (layout {settings.layout}).",
            reasons=tree.wrong,
        )
    return scripts


def files_of(settings: Migrations, engine: Engine, manifest: Manifest) -> list[TreeFile]:
    """The files whose bytes :func:`scripts_of` may ask for. Refused where the engine has no folder."""
    prefix, initial = _prefix(settings.folder, engine, manifest), _initial(settings, engine)
    return [file for file in manifest.files if file.path.startswith(prefix) or file.path == initial]


def _prefix(folder: str, engine: Engine, manifest: Manifest) -> str:
    """The folder with a ``/``, empty for the whole release; of MariaDB and MySQL, the other's where only that is there."""
    prefixes = [_slashed(folder.replace("{engine}", name)) for name in (engine, _OTHER.get(engine, engine))]
    if "{engine}" not in folder:
        return prefixes[0]
    for prefix in prefixes:
        if any(file.path.startswith(prefix) for file in manifest.files):
            return prefix
    missing = dict.fromkeys(prefixes)
    raise Refused(
        f"this release has no migrations for {engine}.",
        reasons=[Reason("the release has no file below this folder", prefix) for prefix in missing],
    )


def _is_sql(path: str) -> bool:
    return path.lower().endswith(".sql")


def _slashed(folder: str) -> str:
    return "" if folder.strip("/") in {"", "."} else folder.strip("/") + "/"


def _initial(settings: Migrations, engine: Engine) -> str | None:
    return None if settings.initial is None else settings.initial.replace("{engine}", engine)


def _once(scripts: Iterable[Script], wrong: list[Reason]) -> None:
    seen: set[str] = set()
    for script in scripts:
        if script.id in seen:
            wrong.append(Reason(f"two migrations would be called {script.id}", script.id))
        seen.add(script.id)
