"""The verbs for stock Invoke: `invoke` lists them. Copy this file into a workspace of your own to use them there."""

import os
import sys
from pathlib import Path

from invoke import Exit

# Invoke turns the writing of .pyc files off, so that every call would compile everything again.
sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))

try:
    from pipeline.command_line.invoked import adopt
    from pipeline.verbs import namespace
except ModuleNotFoundError as error:
    raise Exit(f"{error.name} is not installed here: `make demo` sets everything up in .venv", code=2) from None

adopt(namespace, Path(__file__).resolve().parent)
