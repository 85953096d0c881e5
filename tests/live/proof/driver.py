"""Controllers as processes of their own: started fast, by forking one that has imported everything; killed at will.

``python -m tests.live.proof.driver`` reads a request a line and answers with JSON; :class:`Controllers` speaks with it.
A boundary is each moment before and after a git command, a script or a job on a host, a rename, a link, a removal, and
each line that a host or the pipeline itself says.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a controller ended. ``code`` is minus the signal that killed it; ``error`` the family, None when it worked.

    ``words`` is all that a person would read; ``data`` the result as JSON.
    """

    code: int
    error: str | None = None
    exit_code: int = 0
    words: str = ""
    data: Mapping[str, Any] | None = None

    @property
    def killed(self) -> bool:
        return self.code < 0

    @property
    def ok(self) -> bool:
        return self.code == 0 and self.error is None


class Controllers:
    """``with Controllers(scratch) as controllers``: ``do`` runs one to its end, ``begin`` gives it to be waited for."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._number = 0
        self._lock = threading.Lock()
        self._told: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}

    def __enter__(self) -> Controllers:
        self._scratch.mkdir(parents=True, exist_ok=True)
        with (self._scratch / "driver.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.live.proof.driver"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def do(self, folder: Path, verb: str, **words: Any) -> Outcome:
        """Runs a verb of ``deployments`` (or ``drift``) to its end; see :meth:`begin`."""
        return self.begin(folder, verb, **words).wait()

    def begin(
        self,
        folder: Path,
        verb: str,
        *,
        die_at: int | None = None,
        boundaries: Path | None = None,
        patience: float | None = None,
        machine: str | None = None,
        **words: Any,
    ) -> Run:
        """Starts a verb in the workspace ``folder``. ``die_at``: the number of the boundary at which it kills itself.

        ``boundaries``: a file that gets each boundary's name. ``patience``: how long a lost host is asked, in seconds.
        ``machine``: the name of the machine that it believes to be on.
        """
        with self._lock:
            self._number += 1
            number = self._number
            self._told[number] = queue.SimpleQueue()
            result = self._scratch / f"result-{number}.json"
            request = {"number": number, "folder": str(folder), "verb": verb, "words": words, "result": str(result)}
            request |= {"die_at": die_at, "boundaries": str(boundaries) if boundaries else None, "patience": patience}
            request |= {"machine": machine}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return Run(self._told[number], result)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            self._told[told["number"]].put(told)
        for waiting in list(self._told.values()):
            waiting.put({"ended": -1})


class Run:
    """One controller."""

    def __init__(self, told: queue.SimpleQueue[dict[str, Any]], result: Path) -> None:
        self._told, self._result = told, result
        self.pid: int = told.get(timeout=60)["pid"]

    def kill(self) -> None:
        """Ends it by SIGKILL, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 240) -> Outcome:
        """How it ended."""
        code = self._told.get(timeout=timeout)["ended"]
        if code != 0:
            return Outcome(code)
        values = json.loads(self._result.read_text())
        self._result.unlink()
        return Outcome(**values)


# --- the other side -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Reads requests until standard input ends."""
    from pipeline.transports import ssh  # noqa: F401  (imported once, before the forks)
    from pipeline.workflow import deployments, drift  # noqa: F401

    said, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    children: dict[int, int] = {}
    rest, open_ = b"", True
    while open_ or children:
        for ready in select.select([said, *([0] if open_ else [])], [], [])[0]:
            if ready == said:
                os.read(said, 4096)
                continue
            piece = os.read(0, 65536)
            open_ = bool(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                request = json.loads(line)
                child = os.fork()
                if child == 0:
                    _child(request)
                children[child] = request["number"]
                _tell(number=request["number"], pid=child)
        while children:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            _tell(number=children.pop(ended), ended=os.waitstatus_to_exitcode(status))


def _tell(**values: Any) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")


def _child(request: dict[str, Any]) -> None:
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        values = _work(request)
        part = Path(request["result"] + ".part")
        part.write_text(json.dumps(values))
        os.rename(part, request["result"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(request: dict[str, Any]) -> dict[str, Any]:
    from pipeline.errors import PipelineError
    from pipeline.host import Host
    from pipeline.workflow import deployments, drift
    from pipeline.workflow.session import Session

    lines: list[str] = []
    if request["patience"] is not None:
        defaults = Host.carry.__kwdefaults__
        assert defaults is not None
        defaults["patience"] = request["patience"]
    if request["machine"] is not None:
        socket.gethostname = lambda: str(request["machine"])
    passed = _boundaries(request)

    def progress(line: str) -> None:
        lines.append(line)
        passed(f"progress {line}")

    def clock() -> datetime:
        return datetime.now(UTC)

    session = Session.open(Path(request["folder"]), progress=progress, clock=clock)
    verb: Callable[..., Any] = drift.drift if request["verb"] == "drift" else getattr(deployments, request["verb"])
    try:
        result = verb(session, **{name: tuple(v) if isinstance(v, list) else v for name, v in request["words"].items()})
    except PipelineError as error:
        words = "\n".join([*lines, error.render()])
        return {
            "code": 0,
            "error": type(error).__name__,
            "exit_code": error.exit_code,
            "words": words,
            "data": error.as_json(),
        }
    except Exception as error:
        traceback.print_exc()
        return {"code": 0, "error": f"!{type(error).__name__}", "exit_code": 70, "words": f"{lines}\n{error!r}"}
    data = json.loads(result.model_dump_json())
    return {"code": 0, "words": "\n".join([*lines, *result.lines()]), "data": data}


def _boundaries(request: dict[str, Any]) -> Callable[[str], None]:
    """Counts boundaries, and dies at the one that is asked for."""
    die_at, names = request["die_at"], request["boundaries"]
    if die_at is None and names is None:
        return lambda name: None
    count, lock = 0, threading.Lock()
    log = os.open(names, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if names else None

    def passed(name: str) -> None:
        nonlocal count
        with lock:
            count += 1
            if log is not None:
                os.write(log, f"{' '.join(name.split())[:150]}\n".encode())
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

    _wrap(passed)
    return passed


def _wrap(passed: Callable[[str], None]) -> None:
    from pipeline.transports.ssh import SshTransport

    def around(owner: Any, name: str, label: Callable[..., str]) -> None:
        whole = getattr(owner, name)

        def act(*words: Any, **more: Any) -> Any:
            said = label(*words, **more)
            passed(f"before {said}")
            try:
                return whole(*words, **more)
            finally:
                passed(f"after {said}")

        setattr(owner, name, act)

    around(subprocess.Popen, "__init__", lambda self, args, *_, **__: f"starting {list(args)[:3]}")
    around(subprocess.Popen, "communicate", lambda self, *_, **__: f"hearing {list(self.args)[:3]}")
    for name in ("replace", "rename", "unlink", "link", "symlink", "rmdir"):
        around(os, name, lambda *words, name=name, **__: f"{name} {[Path(str(word)).name for word in words[:2]]}")
    around(SshTransport, "run", lambda self, script, *_, **__: f"run {script.strip()[:40]!r}")
    stream = SshTransport.stream

    def streaming(self: SshTransport, *words: Any, on_line: Callable[[str], None], **more: Any) -> Any:
        def line(text: str) -> None:
            if text != "tma beat":
                passed(f"heard {text}")
            on_line(text)

        passed("before a job")
        try:
            return stream(self, *words, on_line=line, **more)
        finally:
            passed("after a job")

    SshTransport.stream = streaming  # type: ignore[method-assign]


__all__ = ["Controllers", "Outcome", "Run"]

if __name__ == "__main__":
    main()
