"""The house itself: one direction downhill, pure rooms pure, one place for each library, no module too long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 500
MODULES = sorted(ROOT.glob("pipeline/**/*.py"))


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and words of import-linter for the ``pipeline`` package in this folder."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_contract_of_the_layers_is_kept() -> None:
    code, words = lint(ROOT)
    assert code == 0, words
    assert "5 kept, 0 broken" in words


def test_each_contract_would_find_what_it_is_there_for(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "comptoir")
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in {
        "model": "def late():\n    from pipeline.content import canonical",  # uphill, and only when called
        "rules": "import subprocess",
        "playbook": "from urllib.request import urlopen",
        "host": "from pipeline.transports.local import LocalTransport",
        "workflow/tickets": "from pipeline.trackers.ledger import sentence",
        "workflow/session": "import psycopg",
    }.items():
        with (tmp_path / f"pipeline/{module}.py").open("a") as file:
            file.write(f"\n\n{line}\n")
    (tmp_path / "pipeline" / "unplaced.py").write_text("")
    code, words = lint(tmp_path)
    assert code == 1
    assert "0 kept, 5 broken" in words
    for finding in (
        "pipeline.model -> pipeline.content",
        "unplaced",
        "pipeline.rules -> subprocess",
        "pipeline.playbook -> urllib",
        "pipeline.host -> pipeline.transports.local",
        "pipeline.workflow.tickets -> pipeline.trackers.ledger",
        "pipeline.workflow.session -> psycopg",
    ):
        assert finding in words, words


def test_status_and_history_load_no_library_that_speaks_to_a_host() -> None:
    """Each costs a tenth of a second and more, which a look at the records need not pay."""
    heavy = ["cryptography", "fabric", "git", "jinja2", "paramiko", "psycopg"]
    code = f"import sys, pipeline.workflow.overview; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long_to_read(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= LONGEST


def test_there_are_modules_to_measure() -> None:
    assert ROOT / "pipeline" / "rules.py" in MODULES
