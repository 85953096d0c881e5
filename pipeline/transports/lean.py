"""Imports of Paramiko and Fabric without what they bring along and nothing here uses: a third of the time that they take.

Each shortcut stands aside where the real thing is there already, and makes way for it as soon as more is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_SHORT_WAYS = {
    "invoke": {
        "Context": "invoke.context",
        "Result": "invoke.runners",
        "Runner": "invoke.runners",
        "pty_size": "invoke.terminals",
    },
    "fabric": {"Config": "fabric.config", "Connection": "fabric.connection"},
}
"""Names of a package that are taken from the module that defines them, without the rest of the package."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Inside, Paramiko and Fabric may be imported.

    Invoke names a class of ``unittest.mock`` for tests, with which come asyncio and ssl; it has a YAML reader of its own,
    for which it takes PyYAML where it is not there; its programs, parsers and loaders are for its command line. Paramiko
    reads its own version from the metadata of installed packages, by way of ``email``.
    """
    import yaml

    mock = ModuleType("unittest.mock")
    mock.Mock = object  # type: ignore[attr-defined]
    borrowed = {"unittest.mock": mock, "importlib.metadata": _Metadata("importlib.metadata")}
    borrowed = {name: module for name, module in borrowed.items() if name not in sys.modules}
    sys.modules |= borrowed
    sys.modules.setdefault("invoke.vendor.yaml", yaml)
    for name in _SHORT_WAYS:
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            package = module_from_spec(spec)
            package.__class__ = _Package
            sys.modules[name] = package
    try:
        yield
    finally:
        for name, module in borrowed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _Package(ModuleType):
    """A package whose own ``__init__`` is run when something is asked for that has no short way."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not name.startswith("__version"):
            raise AttributeError(name)
        where = _SHORT_WAYS[self.__name__].get(name)
        if where is not None:
            return getattr(importlib.import_module(where), name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _Metadata(ModuleType):
    """``importlib.metadata``, of which mostly a version is wanted, and that is in the name of a folder."""

    @staticmethod
    def version(name: str) -> str:
        """The version of an installed package."""
        for folder in sys.path:
            found = list(Path(folder).glob(f"{name}-*.dist-info"))
            if len(found) == 1:
                return found[0].name.removesuffix(".dist-info").removeprefix(f"{name}-")
        return str(_real_metadata().version(name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real_metadata(), name)


def _real_metadata() -> Any:
    sys.modules.pop("importlib.metadata", None)
    return importlib.import_module("importlib.metadata")
