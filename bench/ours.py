"""Our deployment with everything that a real one has: product in Git, line, releases, ledger, lease, fence, journal.

No database, no template: what is compared is carrying a release onto hosts. Run as a program it is one deployment, timed
from the open session to the recorded result: ``python -m bench.ours WORKSPACE CUSTOMER RELEASE``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import tree
from bench.servers import Fleet
from bench.timing import Sample, measure
from pipeline.errors import Failed

if TYPE_CHECKING:
    from pipeline.workflow import Session

ROOT = Path(__file__).resolve().parents[1]
TICKET = "BENCH-1"

PLAYBOOK = """name: Measured
versions: semver
source: {git: product.git, tag: "v{version}"}
%s
steps:
  - upload
  - switch
  - restart:
      command: [sh, bin/restart, "../../shared"]
  - check:
      command: [grep, -q, "{{ version }}", "../../shared/served"]
      within: 5
"""


@dataclass(frozen=True)
class Timed:
    """One deployment: ``inner`` from the open session to the recorded result, ``whole`` the process around it."""

    inner: Sample
    whole: Sample


class Ours:
    """A workspace in ``folder`` whose hosts are the fleet's; ``source`` is the work tree of the product."""

    def __init__(self, folder: Path, fleet: Fleet, source: Path) -> None:
        from pipeline.signing import make_key

        self.folder = folder
        self.fleet = fleet
        self.source = source
        self.number = 0
        (folder / "keys").mkdir(parents=True)
        make_key(folder / "keys" / "me")
        self._write("playbooks/measured.yaml", PLAYBOOK % _rolling())
        self._write(
            "environments/workspace.yaml",
            f"installations: [{{path: installations.git}}]\nsigning_key: file:keys/me\nwork: var\n"
            f"ssh_config: {fleet.ssh_config}\n",
        )
        self._write(
            "environments/people.yaml",
            "people:\n"
            '  - {key: me, name: Me, roles: [engineer], keys: [{public: "file:keys/me.pub"}]}\n'
            "  - {key: anna, name: Anna, roles: [approver]}\n",
        )
        self._git("init", "-q", "--bare", "-b", "main", str(self._product), bare=False)

    @property
    def _product(self) -> Path:
        return self.folder / "product.git"

    def _write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def _git(self, *words: str, bare: bool = True) -> None:
        who = ("-c", "user.name=Vendor", "-c", "user.email=vendor@example.org", "-c", "commit.gpgsign=false")
        where = ("--git-dir", str(self._product), "--work-tree", str(self.source)) if bare else ()
        subprocess.run(["git", *who, "-c", "core.bare=false", *where, *words], check=True, cwd=self.folder)

    def take_version(self, number: int) -> None:
        """What lies in the source is this version of the product from now on; it is imported."""
        from pipeline.workflow import products

        self.number = number
        self._git("add", "-A")
        self._git("commit", "-q", "-m", f"version {tree.version(number)}")
        self._git("tag", f"v{tree.version(number)}")
        products.import_product(self._session(), product="measured", version=tree.version(number))

    def add_customer(self, customer: str, ports: Sequence[int]) -> None:
        """A customer whose line begins with the present version, with a test host behind each port, and its release."""
        from pipeline.workflow import lines, tickets

        self._write(
            f"environments/{customer}/customer.yaml",
            f"{{name: {customer}, language: en, time_zone: Europe/London, product: measured, approvers: [anna], "
            "ticket_prefix: BENCH}\n",
        )
        listed = "".join(
            f"  - {{name: app{n:02}, address: 127.0.0.1, port: {port}, folder: {self.host(customer, n)}}}\n"
            for n, port in enumerate(ports, 1)
        )
        self._write(f"environments/{customer}/test.yaml", f"hosts:\n{listed}")
        lines.start_line(self._session(), customer=customer, version=tree.version(self.number))
        tickets.open_ticket(self._session(), customer=customer, title="Measure", changed="files", test="look")
        self.make_release(customer)

    def make_release(self, customer: str) -> None:
        """The release of the present version for this customer."""
        from pipeline.workflow import releases

        releases.make_release(self._session(), customer=customer, version=tree.version(self.number), tickets=(TICKET,))

    def host(self, customer: str, number: int = 1) -> Path:
        """The folder of a customer's host."""
        return self.folder / "hosts" / f"{customer}{number:02}"

    @property
    def release(self) -> str:
        """The name of the present version's release."""
        return f"{tree.version(self.number)}+1"

    def deploy(self, customer: str) -> Timed:
        """Deploys the present release in a process of its own; Failed when the host does not hold it afterwards."""
        whole = measure([sys.executable, "-m", "bench.ours", self.folder, customer, self.release], cwd=ROOT)
        self._check(customer)
        told = json.loads(whole.output.splitlines()[-1])
        return Timed(Sample(told["wall"], told["cpu"], whole.memory), whole)

    def command(self, customer: str) -> Sample:
        """Deploys it with ``tma deploy``, as it is typed."""
        done = self._tma("deploy", f"customer={customer}", f"release={self.release}")
        self._check(customer)
        return done

    def status(self, customer: str) -> Sample:
        """``tma status`` of one customer."""
        return self._tma("status", f"customer={customer}")

    def _tma(self, *words: str) -> Sample:
        return measure([tma(), *words], cwd=self.folder)

    def _check(self, customer: str) -> None:
        for number in range(1, len(list((self.folder / "hosts").glob(f"{customer}[0-9][0-9]"))) + 1):
            served = self.host(customer, number) / "shared" / "served"
            if not served.is_file() or not served.read_text().startswith(f"{tree.version(self.number)} "):
                raise Failed(f"{served} is not {tree.version(self.number)}", state="The bench stopped.")

    def _session(self) -> Session:
        from pipeline.workflow import Session

        return Session.open(self.folder)


def tma() -> Path:
    """The console script of this Python's environment."""
    return Path(sys.executable).with_name("tma")


def _rolling() -> str:
    """All hosts at once, as the peers do it."""
    from pipeline.playbook import Playbook

    return "rolling: {at_a_time: 50}" if "rolling" in Playbook.model_fields else ""


def _cpu() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _one(folder: str, customer: str, release: str) -> None:
    from pipeline.workflow import Session, deployments

    session = Session.open(Path(folder))
    cpu, started = _cpu(), time.perf_counter()
    done = deployments.deploy(session, customer=customer, release=release)
    wall = time.perf_counter() - started
    if not done.changed:
        sys.exit(f"{release} was there already")
    print(json.dumps({"wall": wall, "cpu": _cpu() - cpu}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _one(*sys.argv[1:4])
