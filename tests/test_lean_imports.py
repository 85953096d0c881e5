"""What Paramiko and Fabric are imported without, and that it is there as soon as somebody asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

LEAN = """
import json, sys
from pipeline.transports.lean import lean_imports
with lean_imports():
    import pipeline.transports.ssh
"""


def told(script: str) -> object:
    """What a Python of its own prints as JSON at the end of the script."""
    done = subprocess.run([sys.executable, "-c", LEAN + script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_what_nothing_here_uses_is_not_imported() -> None:
    unused = ["asyncio", "unittest.mock", "email", "importlib.metadata", "invoke.program", "fabric.executor"]
    assert told(f"print(json.dumps([name for name in {unused} if name in sys.modules]))") == []


def test_packages_make_way_for_all_that_they_have() -> None:
    names = told("""
import fabric, invoke, unittest.mock, importlib.metadata
from invoke import Program
from fabric import ThreadingGroup
import invoke.main
print(json.dumps([
    Program.__module__, ThreadingGroup.__module__, invoke.__version__, fabric.__version__, invoke.Context.__module__,
    unittest.mock.Mock.__name__, importlib.metadata.version("fabric"), hasattr(invoke, "nothing"),
    issubclass(pipeline.transports.ssh.Connection, fabric.Connection),
]))
""")
    assert names == [
        "invoke.program",
        "fabric.group",
        version("invoke"),
        version("fabric"),
        "invoke.context",
        "Mock",
        version("fabric"),
        False,
        True,
    ]


def test_paramiko_says_its_own_version() -> None:
    assert told("import paramiko; print(json.dumps(paramiko.__version__))") == version("paramiko")


def test_what_was_imported_before_stays() -> None:
    before = "import invoke, fabric, unittest.mock, importlib.metadata; kept = invoke, fabric, unittest.mock\n"
    script = before + LEAN + "print(json.dumps([type(one).__name__ for one in kept] + [hasattr(invoke, 'Program')]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["module", "module", "module", True]
