"""The servers that stand in for the customers': one throwaway OpenSSH server, and the applications that were deployed.

A host of the demo is a host whose ``folder`` is relative: it lies in this workspace. All of them are reached through one
sshd on loopback that runs as the current user, each under its own ``address`` in ``var/demo/ssh_config``. Where no sshd is
installed, ``var/demo/local`` is made instead: while it exists, commands for these hosts run here without SSH
(``local_while`` in workspace.yaml).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.sshd import ThrowawaySshd, sshd_program
from pipeline.errors import Failed, Reason, UsageError
from pipeline.model import Environment, Host
from pipeline.settings import Workspace, load_workspace
from pipeline.workflow import Result

FOLDER = "var/demo"
CONFIGURATION = "shared/comptoir.json"


class Servers(Result):
    """What runs now.

    ``transport`` says how the hosts are reached, in words; ``applications`` whose they are, with their addresses.
    """

    transport: str
    applications: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a person."""
        return [self.what, f"  hosts: {self.transport}", *(f"  application: {place}" for place in self.applications)]


@dataclass(frozen=True)
class DemoHost:
    """One host of the demo, with its port of the application where its values name one."""

    customer: str
    environment: str
    host: Host
    folder: Path
    port: int | None
    source: str


def start(folder: Path) -> Servers:
    """Starts the SSH server and every application that is deployed; what runs already stays.

    Raises Failed where an application does not start, UsageError where its port is taken by something else.
    """
    workspace = load_workspace(folder)
    hosts = list(demo_hosts(workspace))
    for demo_host in hosts:
        demo_host.folder.mkdir(parents=True, exist_ok=True)
    changed = not ThrowawaySshd(workspace.folder / FOLDER / "sshd").running()
    transport = _start_hosts(workspace.folder, hosts)
    serving: list[str] = []
    for demo_host in hosts:
        if (demo_host.folder / "current").exists() and demo_host.port:
            changed = _start_application(demo_host) or changed
            name = f"{demo_host.customer} {demo_host.environment}"
            serving.append(f"{name}, {demo_host.host.name}: http://127.0.0.1:{demo_host.port}/")
    return Servers(
        changed=changed,
        what="the demo's applications run" if serving else "the demo's hosts are there; no application is deployed yet",
        transport=transport,
        applications=tuple(serving),
        next_commands=("invoke status", "invoke demo.stop") if serving else ("invoke demo.run",),
    )


def stop(folder: Path) -> Result:
    """Ends every server of this workspace's demo by its process id."""
    demo = folder.resolve() / FOLDER
    ended = 0
    sshd = ThrowawaySshd(demo / "sshd")
    if sshd.running():
        sshd.stop()
        ended += 1
    # By what they were started with, so that one whose pid file was deleted is ended too.
    for pid in _processes(f"{demo}/"):
        _end(pid)
        ended += 1
    what = f"{ended} of the demo's servers were ended" if ended else "none of the demo's servers was running"
    return Result(changed=ended > 0, what=what, next_commands=("invoke demo.start",))


def demo_hosts(workspace: Workspace) -> Iterator[DemoHost]:
    """Every host of every customer whose folder lies in this workspace."""
    for customer in workspace.customers:
        for key, environment in workspace.customer(customer).environments.items():
            for host in environment.hosts:
                if not host.folder.startswith("/"):
                    yield DemoHost(
                        customer=customer,
                        environment=key,
                        host=host,
                        folder=workspace.folder / host.folder,
                        port=_port(environment, host),
                        source=f"environments/{customer}/{key}.yaml",
                    )


def check_ports(hosts: list[DemoHost], *, again: str = "demo.run") -> None:
    """Refuses when something already listens on a port that an application of the demo needs; names each.

    ``again`` is the verb to repeat once the port is free.
    """
    reasons = [
        Reason(f"port {demo_host.port} is taken by another program", demo_host.source)
        for demo_host in hosts
        if demo_host.port and _taken(demo_host.port)
    ]
    if reasons:
        raise UsageError(
            "the demo's applications cannot listen on their ports",
            reasons=reasons,
            state="Nothing was started.",
            next_commands=[
                f"end what listens there (the demo of another checkout: invoke demo.stop, there), then invoke {again}",
                f"write other ports into these files (values: port, and url), then invoke {again}",
            ],
        )


def _start_hosts(folder: Path, hosts: list[DemoHost]) -> str:
    demo = folder / FOLDER
    local = demo / "local"
    reason = _start_sshd(folder, hosts)
    if reason is None:
        local.unlink(missing_ok=True)
        return f"real SSH on 127.0.0.1:{ThrowawaySshd(demo / 'sshd').port}, as {demo / 'ssh_config'} says"
    local.write_text(f"{reason}\n", encoding="utf-8")
    return f"the local transport, without SSH: {reason}"


def _start_sshd(folder: Path, hosts: list[DemoHost]) -> str | None:
    """None when the server runs and lets us in; else the reason why there is none."""
    if sshd_program() is None:
        return "no OpenSSH server is installed (apt-get install openssh-server)"
    demo = folder / FOLDER
    # As on a plain host: no start-up files of this person's shell, the system's programs before their own.
    home = demo / "home"
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin", os.environ.get("PATH", os.defpath)])
    sshd = ThrowawaySshd(demo / "sshd", environment={"HOME": str(home), "PATH": path})
    try:
        sshd.start()
    except Failed as error:
        return "; ".join([error.what, *map(str, error.reasons)])
    known_hosts = demo / "known_hosts"
    known_hosts.write_text(sshd.known_hosts_file.read_text())
    configuration = demo / "ssh_config"
    addresses = dict.fromkeys(demo_host.host.address for demo_host in hosts)
    configuration.write_text(
        "# Made by invoke demo.start, anew each time.\n"
        + "\n".join(sshd.ssh_config_text(address, known_hosts=known_hosts) for address in addresses)
    )
    first = next(iter(addresses), None)
    if first is None or shutil.which("ssh") is None:
        return None
    asked = subprocess.run(
        ["ssh", "-F", str(configuration), "-o", "BatchMode=yes", first, "true"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if asked.returncode == 0:
        return None
    # For instance an account without a shell, or a locked one.
    sshd.stop()
    said = asked.stderr.decode(errors="replace").strip().splitlines()
    return f"the OpenSSH server does not let {sshd.user} in: {said[-1] if said else 'no reason given'}"


def _start_application(demo_host: DemoHost) -> bool:
    """False when it runs already."""
    if next(_processes(str(demo_host.folder.resolve() / CONFIGURATION)), None) is not None:
        return False
    check_ports([demo_host], again="demo.start")
    started = subprocess.run(
        [demo_host.folder / "current" / "bin" / "restart"], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if started.returncode != 0:
        said = started.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise Failed(
            f"the application of {demo_host.customer}, {demo_host.environment}, did not start",
            reasons=[Reason(line, demo_host.host.folder) for line in said],
            state="The other servers of the demo may run.",
            next_commands=["invoke demo.stop", "invoke demo.run"],
            in_order=True,
        )
    return True


def _port(environment: Environment, host: Host) -> int | None:
    port = {**environment.values, **host.values}.get("port")
    return port if isinstance(port, int) else None


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        # As the application does, so that connections of an earlier run that are still winding down do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _processes(words: str) -> Iterator[int]:
    """Process ids, ours apart, whose last argument begins with ``words``: an application's, or a server's, own file."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if arguments[-1].startswith(words.encode()) and arguments[-1].endswith((b"comptoir.json", b"sshd_config")):
                yield int(entry.name)


def _end(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            for _ in range(100):
                os.kill(pid, 0)
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return
                time.sleep(0.05)
        except (ProcessLookupError, FileNotFoundError):
            return
