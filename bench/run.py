"""The rounds: every case once a round, ours and the peers one after the other, the order turned from round to round."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import tree
from bench.ours import ROOT, Ours, tma
from bench.peers import Fabric, Floor, Peer, Rsync
from bench.servers import Fleet, fleet
from bench.timing import Sample, measure
from pipeline.errors import UsageError

CASES = ("patch", "full", "far", "hosts", "status", "many-customers")
QUICK = ("patch", "status")
DEPLOYMENT, COMMAND, RSYNC, FABRIC, HOST_FLOOR, LINE_FLOOR = (
    "ours: deployment",
    "ours: tma deploy",
    Rsync.name,
    Fabric.name,
    "floor: on the host",
    "floor: connection",
)
MANY_CUSTOMERS = 10_000
FABRIC_HOSTS_ROUNDS = 1
"""A plain Fabric script sends everything to everybody: 50 hosts take it most of a minute, so it does that only once."""


@dataclass
class Choice:
    """What is to be measured: ``hosts`` is how many the case ``hosts`` has, ``round_trip`` is in seconds."""

    rounds: int = 5
    hosts: int = 50
    cases: Sequence[str] = CASES
    round_trip: float = 0.05
    fabric: bool = True


@dataclass
class Measured:
    """case → who → the samples, one a round (None in a round that was left out)."""

    choice: Choice
    samples: dict[str, dict[str, list[Sample | None]]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, case: str, who: str, turn: int, sample: Sample) -> None:
        """Notes a sample of this round; rounds count from 0."""
        row = self.samples[case].setdefault(who, [])
        row += [None] * (turn + 1 - len(row))
        row[turn] = sample

    def of(self, case: str, who: str) -> list[Sample | None]:
        """The samples, by round."""
        return self.samples.get(case, {}).get(who, [])


def check_tools() -> None:
    """UsageError with the package to install when a tool that is compared is not here."""
    for program, package in (("rsync", "rsync"), ("ssh", "openssh-client")):
        if shutil.which(program) is None:
            raise UsageError(
                f"{program} is not installed, and the bench compares with it",
                next_commands=[f"apt-get install {package}"],
            )


def run(choice: Choice, folder: Path, say: Callable[[str], None]) -> Measured:
    """Everything of the choice in this empty folder; ends all that it starts. The first round is a real one: there is no
    warming up that is not counted."""
    check_tools()
    measured = Measured(choice)
    if set(choice.cases) & {"patch", "full", "far", "hosts", "status"}:
        say(f"starting {_servers(choice)} OpenSSH server(s) and writing the release")
        with fleet(folder / "servers", _servers(choice), round_trip=choice.round_trip) as servers:
            _Rounds(choice, folder, servers, measured, say).run()
    if "many-customers" in choice.cases:
        _many_customers(choice, folder / "many", measured, say)
    return measured


def break_down(folder: Path, hosts: int) -> None:
    """Prints where the time of a patch to this many hosts goes: once by processes and execs, once by functions."""
    with fleet(folder / "servers", hosts) as servers:
        source = folder / "source"
        tree.write_base(source)
        ours = Ours(folder / "ours", servers, source)
        ours.take_version(0)
        ours.add_customer("all", servers.ports)
        ours.deploy("all")
        for number, more in ((1, ()), (2, ("--profile",))):
            tree.apply(source, tree.patch(number))
            ours.take_version(number)
            ours.make_release("all")
            words = [sys.executable, "-m", "bench.breakdown", str(ours.folder), "all", ours.release, *more]
            subprocess.run(words, cwd=ROOT, check=True)


def _servers(choice: Choice) -> int:
    return choice.hosts if "hosts" in choice.cases else 1


class _Rounds:
    def __init__(
        self, choice: Choice, folder: Path, servers: Fleet, measured: Measured, say: Callable[[str], None]
    ) -> None:
        self.choice, self.measured, self.say, self.servers = choice, measured, say, servers
        source = folder / "source"
        tree.write_base(source)
        self.source = source
        self.ours = Ours(folder / "ours", servers, source)
        self.rsync = Rsync(folder / "rsync", servers, source)
        self.fabric = Fabric(folder / "fabric", servers, source) if choice.fabric else None
        self.floor = Floor(folder / "floor", servers, source)
        self.ports: dict[str, Sequence[int]] = {"patch": servers.ports[:1]}
        if "far" in choice.cases:
            self.ports["far"] = (servers.far.port,)
        if "hosts" in choice.cases:
            self.ports["hosts"] = servers.ports

    @property
    def peers(self) -> list[Peer]:
        return [self.rsync, *([self.fabric] if self.fabric else [])]

    def run(self) -> None:
        self.ours.take_version(0)
        for case, ports in self.ports.items():
            self.say(f"the base release goes to {len(ports)} host(s) for {case}")
            for customer in (case, *([f"{case}-typed"] if len(ports) == 1 else [])):
                self.ours.add_customer(customer, ports)
                self.ours.deploy(customer)
            for peer in self.peers:
                # The script sends everything, so it needs no release there.
                if peer is not self.fabric:
                    peer.prepare(case, ports, 0)
        for turn in range(self.choice.rounds):
            self.say(f"round {turn + 1} of {self.choice.rounds}")
            self._round(turn)

    def _round(self, turn: int) -> None:
        step = tree.patch(turn + 1)
        tree.apply(self.source, step)
        self.ours.take_version(step.number)
        for case, ports in self.ports.items():
            for customer in (case, *([f"{case}-typed"] if len(ports) == 1 else [])):
                self.ours.make_release(customer)
        if "full" in self.choice.cases:
            for customer in (f"full{turn}", f"full{turn}-typed"):
                self.ours.add_customer(customer, self.servers.ports[:1])
        for case in self.choice.cases:
            runs = self._runs(case, turn, step)
            for who, once in [*runs[turn % max(1, len(runs)) :], *runs[: turn % max(1, len(runs))]]:
                # What others wrote is brought to the disk first, so that nobody pays for it.
                subprocess.run(["sync", "-f", self.source], check=True)
                sample = once()
                self.measured.add(case, who, turn, sample)
                self.say(
                    f"  {case:6} {who:20} {sample.wall:7.3f} s wall {sample.cpu:7.3f} s CPU {sample.memory >> 20:4} MiB"
                )

    def _runs(self, case: str, turn: int, step: tree.Patch) -> list[tuple[str, Callable[[], Sample]]]:
        number, ours = step.number, self.ours
        if case == "status":
            return [("ours: tma status", lambda: ours.status("patch"))]
        if case not in (*self.ports, "full"):
            return []
        full = case == "full"
        group = f"full{turn}" if full else case
        ports = self.servers.ports[:1] if full else self.ports[case]
        runs: list[tuple[str, Callable[[], Sample]]] = [(DEPLOYMENT, lambda: self._deployment(group, case, turn))]
        if len(ports) == 1:
            runs.append((COMMAND, lambda: ours.command(f"{group}-typed")))
        for peer in self.peers:
            if peer is self.fabric and case == "hosts":
                if turn < FABRIC_HOSTS_ROUNDS:
                    runs.append((peer.name, lambda: self._fabric_on_hosts(number)))
                continue
            runs.append((peer.name, partial(peer.deploy, group, ports, number, verified=full)))
        if case == "patch":
            runs.append((HOST_FLOOR, lambda: self.floor.patch(step)))
        if case in {"patch", "far"}:
            runs.append((LINE_FLOOR, lambda: self.floor.connection(ports[0])))
        return runs

    def _fabric_on_hosts(self, number: int) -> Sample:
        assert self.fabric is not None
        sample = self.fabric.deploy("hosts", self.ports["hosts"], number)
        self.fabric.forget("hosts", self.ports["hosts"])
        return sample

    def _deployment(self, customer: str, case: str, turn: int) -> Sample:
        timed = self.ours.deploy(customer)
        if case == "hosts":
            # There is no second environment of 50 hosts for the typed command: this process is one but for Invoke's part.
            self.measured.add(case, COMMAND, turn, timed.whole)
        return timed.inner


def _many_customers(choice: Choice, folder: Path, measured: Measured, say: Callable[[str], None]) -> None:
    """``status`` of a workspace with 10,000 customers; left out while there is no generator for it."""
    if importlib.util.find_spec("bench.many_customers") is None:
        say("many-customers is left out: there is no bench/many_customers.py")
        return
    say(f"making a repository with {MANY_CUSTOMERS} customers")
    words = ["-m", "bench.many_customers", "--customers", str(MANY_CUSTOMERS), str(folder)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for turn in range(choice.rounds):
        measured.add("many-customers", "ours: tma status", turn, measure([tma(), "status"], cwd=folder))
