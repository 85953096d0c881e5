"""Where the time of one of our deployments goes: every process in order, every exec on a host, imports, hot functions.

``python -m bench.breakdown WORKSPACE CUSTOMER RELEASE [--profile]``: carries the deployment out in this process and
prints what it saw. With ``--profile`` the hottest functions instead (cProfile slows Python down, so not both at once).
``python -m bench --breakdown`` makes the workspace and the servers for both (``--hosts`` says how many).
"""

from __future__ import annotations

import cProfile
import pstats
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN = 45


@dataclass
class Call:
    """One process or one exec: seconds since the beginning, seconds it took, CPU of children, who wanted it."""

    at: float
    took: float
    cpu: float
    what: str
    wanted_by: str


class Recorder:
    """Notes every process that this one starts, and every command that a transport runs."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.started = time.perf_counter()

    def install(self) -> None:
        """From now on everything is noted, in this process."""
        recorder = self

        class Noted(subprocess.Popen):  # type: ignore[type-arg]
            def __init__(self, arguments: Any, *rest: Any, **named: Any) -> None:
                self._noted: Call | None = Call(recorder._now(), 0.0, _children_cpu(), _words(arguments), _caller())
                super().__init__(arguments, *rest, **named)

            def wait(self, timeout: float | None = None) -> int:
                code = super().wait(timeout)
                if self._noted is not None:
                    self._noted.took = recorder._now() - self._noted.at
                    self._noted.cpu = _children_cpu() - self._noted.cpu
                    recorder.calls.append(self._noted)
                    self._noted = None
                return int(code)

        subprocess.Popen = Noted  # type: ignore[misc,assignment]

    def install_transport(self) -> None:
        """The same for what the SSH transport does; imports it."""
        from pipeline.transports import ssh

        for name in ("run", "stream", "_open"):
            if hasattr(ssh.SshTransport, name):
                setattr(ssh.SshTransport, name, self._noting(name, getattr(ssh.SshTransport, name)))

    def _noting(self, name: str, function: Any) -> Any:
        def noted(transport: Any, *words: Any, **named: Any) -> Any:
            at = self._now()
            try:
                return function(transport, *words, **named)
            finally:
                took = self._now() - at
                if name != "_open" or took > 0.001:
                    what = "connect" if name == "_open" else f"exec {_script(words)}"
                    self.calls.append(Call(at, took, 0.0, f"ssh {transport.name.split()[0]}: {what}", _caller()))

        return noted

    def _now(self) -> float:
        return time.perf_counter() - self.started


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _words(arguments: Any) -> str:
    words = [str(word) for word in arguments]
    if words[0] == "git":
        # What comes before the verb is settings.
        kept = iter(words[1:])
        words = [
            "git",
            *(word for word in kept if not (word == "-c" and next(kept)) and not word.startswith("--git-dir")),
        ]
    return " ".join(word if len(word) < 60 else word[:57] + "…" for word in words)[:150]


def _script(words: tuple[Any, ...]) -> str:
    """The first comment of a script, or its first line: what the script is."""
    lines = [line for line in str(words[0]).splitlines() if line.strip() and not line.startswith("#!")]
    return (lines[0] if lines else "")[:70]


def _caller() -> str:
    """The three nearest functions of ours, the nearest first."""
    frame = sys._getframe(2)
    found: list[str] = []
    while frame is not None and len(found) < 4:
        file = frame.f_code.co_filename
        if "/pipeline/" in file and "/git_objects.py" not in file:
            found.append(f"{Path(file).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)


def main(words: list[str]) -> None:
    """One deployment of a workspace's customer."""
    folder, customer, release = words[:3]
    began = time.perf_counter()
    from pipeline.workflow import Session, deployments

    print(f"import of the workflow: {time.perf_counter() - began:.3f} s")
    began = time.perf_counter()
    session = Session.open(Path(folder))
    print(f"Session.open (settings): {time.perf_counter() - began:.3f} s")
    if "--profile" in words:
        profile, threads = cProfile.Profile(time.thread_time), _profile_threads()
        profile.runcall(deployments.deploy, session, customer=customer, release=release)
        for what, profiles in (("the main thread", [profile]), (f"{len(threads)} other threads", threads)):
            print(f"===== CPU seconds of {what}")
            for order in ("tottime", "cumtime") if profiles else ():
                found = pstats.Stats(profiles[0])
                for one in profiles[1:]:
                    found.add(one)
                found.strip_dirs().sort_stats(order).print_stats(SHOWN)
        return
    began = time.perf_counter()
    recorder = Recorder()
    recorder.install_transport()
    print(f"import of the SSH transport: {time.perf_counter() - began:.3f} s")
    recorder.install()
    recorder.started = time.perf_counter()
    session.progress = lambda text: print(f"{recorder._now():8.3f}  - {text}", file=sys.stderr)
    before = resource.getrusage(resource.RUSAGE_SELF), _children_cpu()
    deployments.deploy(session, customer=customer, release=release)
    wall = recorder._now()
    own = resource.getrusage(resource.RUSAGE_SELF)
    spent = own.ru_utime + own.ru_stime - before[0].ru_utime - before[0].ru_stime
    print(f"deployment: {wall:.3f} s wall, {spent:.3f} s CPU of its own, {_children_cpu() - before[1]:.3f} s of git")
    for kind in ("git ", "ssh "):
        some = [call for call in recorder.calls if call.what.startswith(kind)]
        print(f"{len(some)} × {kind.strip()}: {sum(call.took for call in some):.3f} s")
    for call in sorted(recorder.calls, key=lambda call: call.at):
        print(
            f"{call.at:8.3f} {call.took * 1000:7.1f} ms (cpu {call.cpu * 1000:5.1f})  {call.what:90}  {call.wanted_by}"
        )


def _profile_threads() -> list[cProfile.Profile]:
    """From now on every thread is profiled; the list grows as they end."""
    profiles: list[cProfile.Profile] = []
    plain = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        profile = cProfile.Profile(time.thread_time)
        try:
            profile.runcall(plain, thread)
        finally:
            profiles.append(profile)

    threading.Thread.run = run  # type: ignore[method-assign,assignment]
    return profiles


if __name__ == "__main__":
    main(sys.argv[1:])
