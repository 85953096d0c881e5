"""A small workspace in a folder: one product in Git with three versions, one customer, local transport, SQLite.

The application is a file that ``bin/restart`` copies to ``shared/served``; the check reads it. So a broken release is one
whose ``app.txt`` says ``broken``.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.signing import make_key
from pipeline.workflow import Session

PLAYBOOK = """
name: Depot
versions: semver
source:
  git: product
migrations:
  folder: migrations
known_issues: KNOWN_ISSUES.md
steps:
  - backup
  - upload
  - configure:
      templates:
        config/app.conf.j2: app.conf
  - migrate:
      except: "*post_*"
  - switch
  - restart:
      command: [sh, bin/restart, "../../shared"]
  - check:
      name: it serves this release
      command: [grep, -q, "{{ version }}", "../../shared/served"]
      within: 1
  - migrate:
      only: "*post_*"
"""

RESTART = """set -eu
cp app.txt "$1/served.new"
if grep -q broken app.txt; then echo nothing > "$1/served.new"; fi
mv "$1/served.new" "$1/served"
"""


class Clock:
    """A clock that moves on by a second each time it is read."""

    def __init__(self, start: datetime = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Sample:
    """The workspace and what its tests do to it."""

    def __init__(self, folder: Path, hosts: int = 1) -> None:
        self.folder = folder
        self.clock = Clock()
        self.lines: list[str] = []
        (folder / "environments" / "acme").mkdir(parents=True)
        (folder / "playbooks").mkdir()
        make_key(folder / "keys" / "eve" if (folder / "keys").mkdir() is None else folder)
        self.write("playbooks/depot.yaml", PLAYBOOK)
        self.write(
            "environments/workspace.yaml",
            "installations:\n  - path: installations.git\nsigning_key: file:keys/eve\nwork: var\n",
        )
        self.write(
            "environments/people.yaml",
            """
people:
  - key: eve
    name: Eve Engineer
    mail: eve@example.org
    roles: [engineer]
    keys:
      - public: file:keys/eve.pub
  - key: claire
    name: Claire Client
    mail: claire@acme.example
    roles: [approver]
    customers: [acme]
""",
        )
        self.write(
            "environments/acme/customer.yaml",
            "name: Acme SA\nlanguage: fr\ntime_zone: Europe/Paris\nproduct: depot\napprovers: [claire]\nticket_prefix: ACME\n",
        )
        for key in ("test", "production"):
            listed = "".join(
                f"  - name: app{n}\n    address: localhost\n    folder: hosts/{key}{n}\n" for n in range(1, hosts + 1)
            )
            self.write(
                f"environments/acme/{key}.yaml",
                f"transport: local\nurl: http://{key}.acme.example/\nhosts:\n{listed}"
                f"values:\n  title: Acme {key}\ndatabase:\n  engine: sqlite\n  path: shared/app.sqlite\n"
                "secrets:\n  password: file:keys/password\n",
            )
        self.write("keys/password", "hunter2-canary-secret\n")
        self.product = folder / "product"
        self.git(self.product, "init", "-q", "-b", "main")
        self.version("1.0.0", {"migrations/001_base.sql": "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT);\n"})
        self.version(
            "1.1.0", {"migrations/002_price.sql": "ALTER TABLE item ADD COLUMN price INTEGER;\n", "new.txt": "new\n"}
        )

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def git(self, folder: Path, *arguments: str) -> str:
        folder.mkdir(exist_ok=True)
        identity = ["-c", "user.name=Dev", "-c", "user.email=dev@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def version(self, version: str, files: dict[str, str]) -> None:
        """A version of the product: the common files, and these."""
        common = {
            "app.txt": f"depot {version}\nline two\nline three\nline four\nline five\n",
            "bin/restart": RESTART,
            "config/app.conf.j2": "title={{ values.title }}\npassword={{ secrets.password }}\nrelease={{ release }}\n",
            "KNOWN_ISSUES.md": "# Known\n\n- the clock is slow\n",
        }
        for path, text in {**common, **files}.items():
            (self.product / path).parent.mkdir(parents=True, exist_ok=True)
            (self.product / path).write_text(text)
        self.git(self.product, "add", "-A")
        self.git(self.product, "commit", "-q", "-m", f"version {version}")
        self.git(self.product, "tag", f"v{version}")

    def session(self, **options: Any) -> Session:
        options.setdefault("clock", self.clock)
        return Session.open(self.folder, progress=self.lines.append, **options)

    def host(self, environment: str, number: int = 1) -> Path:
        return self.folder / "hosts" / f"{environment}{number}"

    def served(self, environment: str, number: int = 1) -> str:
        return (self.host(environment, number) / "shared" / "served").read_text().splitlines()[0]
