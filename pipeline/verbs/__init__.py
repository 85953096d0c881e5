"""Every verb an engineer can type, a module a noun; each calls one function of :mod:`pipeline.workflow`.

A new verb is one function with a docstring in one of these modules; a new noun is a module, named in ``MODULES``. The
workflow is imported inside the functions, so that a list or a help is there at once.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.command_line.program import run
from pipeline.command_line.verb import Verb
from pipeline.verbs import (
    backups,
    demo,
    deployment,
    development,
    drift,
    line,
    migrations,
    overview,
    product,
    release,
    sign_off,
    ticket,
    upkeep,
)

MODULES: tuple[ModuleType, ...] = (
    *(product, line, release, deployment, sign_off, overview, drift, migrations, backups, ticket, upkeep, demo),
)
if development.in_checkout():
    MODULES = (*MODULES, development)

VERBS: tuple[Verb, ...] = tuple(
    value for module in MODULES for value in vars(module).values() if isinstance(value, Verb)
)

if TYPE_CHECKING:
    from invoke.collection import Collection

    namespace: Collection
    """The collection that ``tasks.py`` hands to Invoke; made when first asked for, since ``tma`` does without Invoke."""


def __getattr__(name: str) -> Any:
    if name != "namespace":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.command_line.invoked import collect

    globals()["namespace"] = made = collect(VERBS)
    return made


def main(argv: list[str] | None = None) -> None:
    """The console script ``tma``."""
    run(VERBS, argv)


__all__ = ["MODULES", "VERBS", "main", "namespace"]
