"""A release whose check fails, on two hosts: the old one answers again on both, and how soon is printed."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.demo.sshd import free_port
from tests.live.over_ssh import ready_path
from tests.live.proof import report
from tests.live.proof.driver import Controllers
from tests.live.proof.stage import BROKEN, OLD, Stage
from tests.servers.sshd import ThrowawaySshd
from tests.workspaces import PLAYBOOK

pytestmark = [pytest.mark.live, pytest.mark.slow]

SERVE = """import http.server, pathlib, sys

text = pathlib.Path("app.txt").read_bytes().splitlines()[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if b"broken" in text else 200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


class Server(http.server.HTTPServer):
    allow_reuse_address = True


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

RESTART = """set -eu
cp app.txt "$1/served"
if [ -f "$1/pid" ]; then
    kill "$(cat "$1/pid")" 2>/dev/null || :
    while kill -0 "$(cat "$1/pid")" 2>/dev/null; do sleep 0.05; done
fi
nohup python3 serve.py "$PORT" >/dev/null 2>&1 &
echo $! >"$1/pid"
"""


class Answers:
    """Asks each host's application all the while; when each answer was first heard, and last."""

    def __init__(self, ports: list[int]) -> None:
        self.heard: dict[int, list[tuple[float, str]]] = {port: [] for port in ports}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port,), daemon=True) for port in ports]

    def __enter__(self) -> Answers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, port: int) -> None:
        while not self._over.is_set():
            answer = ask(port)
            if not self.heard[port] or self.heard[port][-1][1] != answer:
                self.heard[port].append((time.monotonic(), answer))
            time.sleep(0.02)


def ask(port: int) -> str:
    """What the application says; ``-`` when it does not answer well."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return str(answer.read().decode())
    return "-"


@pytest.fixture
def ports() -> list[int]:
    return [free_port(), free_port()]


@pytest.fixture
def two(ports: list[int], tmp_path: Path) -> Iterator[Stage]:
    servers = [
        ThrowawaySshd(tmp_path / f"server{port}", environment=ready_path() | {"SHLVL": "2", "PORT": str(port)})
        for port in ports
    ]
    started: list[ThrowawaySshd] = []
    folder = tmp_path / "stage"
    try:
        for server in servers:
            started.append(server.start())
        folder.mkdir()
        yield Serving(folder, servers, playbook=ROLLING).ready()
    finally:
        for server in started:
            server.stop()
        for file in folder.glob("hosts/*/shared/pid"):
            with suppress(ValueError, ProcessLookupError):
                end(int(file.read_text()))


ROLLING = PLAYBOOK + "rolling:\n  at_a_time: 2\n"


class Serving(Stage):
    """Each release is a small web server."""

    def _version(self, version: str, files: dict[str, str]) -> None:
        super()._version(version, {"serve.py": SERVE, "bin/restart": RESTART} | files)


def end(pid: int) -> None:
    """Ends one of our web servers, and nothing else that was given its number."""
    with suppress(OSError):
        if b"serve.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)


def test_the_old_release_answers_again_on_both_hosts(two: Stage, ports: list[int], controllers: Controllers) -> None:
    playbook = two.folder / "playbooks/depot.yaml"
    assert playbook.read_text() == ROLLING
    wait_for(ports, "depot 1.0.0")
    with Answers(ports) as answers:
        done = controllers.do(two.folder, "deploy", customer="acme", release=BROKEN)
        wait_for(ports, "depot 1.0.0")
    assert done.error == "Failed", done.words
    assert f"{OLD} serves again" in done.words
    assert two.truth().complaints(OLD) == []
    times = []
    for port in ports:
        said = [answer for _, answer in answers.heard[port]]
        assert said[0] == said[-1] == "depot 1.0.0"
        assert "-" in said, "the broken release never ran"
        back = answers.heard[port][-1][0]
        failed = next(at for at, answer in answers.heard[port] if answer == "-")
        times.append(round(back - failed, 2))
    report("broken release on two hosts", points=2, wrong=0, seconds_until_the_old_one_answered=max(times))


def wait_for(ports: list[int], answer: str) -> None:
    """Until every application says so."""
    for _ in range(600):
        if all(ask(port) == answer for port in ports):
            return
        time.sleep(0.05)
    raise AssertionError([ask(port) for port in ports])
