"""A job: what one host does by itself, as one stream that it spools whole and then runs detached from the connection.

The stream is a tar: ``job.sh`` (the library in ``host_scripts/`` and a line a step), the configuration that is rendered,
the payload, and last of all ``complete``. Words of a step are quoted in one place, :func:`_words`; nothing else of
configuration, file names or Git becomes part of a script. What the host tells comes back as lines (:class:`Told`).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError
from pipeline.host_journal import JournalEntry
from pipeline.payload import END, Payload, TreeEntry, members

SCRIPTS = Path(__file__).parent / "host_scripts"

RECEIVING = 900.0
"""Seconds beyond its steps' own limits that a job may take: for the upload's copying and comparing."""

DIFFERENT, REFUSED, OVERTAKEN, INCOMPLETE, BUSY = 92, 91, 94, 95, 96
"""Exit codes of a job or a step: not what the list says, refused, a later run took over, not spooled whole, locked."""

RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,199}")
"""A release's or a run's name as a folder."""

_VARIABLE = re.compile(r"TMA_[A-Z][A-Z0-9_]*")
"""What a step may set: nothing that the host's own scripts go by."""

Direction = Literal["step", "back"]
"""Whether a step is of the plan, or of the way back from it."""


@dataclass(frozen=True)
class JobStep:
    """One step: the plan's number, ``act`` (a function ``act_…`` of ``steps.sh``) and its words, and its inputs' SHA-256.

    ``seconds`` is what the host allows it. ``of`` tells whose step it is: the *host*'s, or the *controller*'s, which is
    only written down: that it is about to be done, or with ``outcome`` what became of it (in ``direction``).
    ``environment`` is what a program of the product's is given.
    """

    number: int
    inputs: str
    act: str = ""
    words: tuple[str, ...] = ()
    seconds: float = 0
    of: Literal["host", "controller"] = "host"
    outcome: Literal["ok", "failed"] | None = None
    direction: Direction = "step"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Steps for one host. ``entry`` is what all its journal entries have in common; ``finish`` ends the host's part.

    ``files`` are what ``render`` steps write into ``shared/``, each below the number of its step; ``clean`` names releases
    that are taken away at the end.
    """

    entry: JournalEntry
    steps: tuple[JobStep, ...]
    direction: Direction = "step"
    finish: Literal["ok", "failed"] | None = None
    payload: Payload | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    clean: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """Seconds after which the host ends it."""
        return RECEIVING + sum(step.seconds for step in self.steps)

    def check(self) -> None:
        """Nothing; raises UsageError for what must not become a path or a variable on a host. Values are not shown."""
        names = [self.entry.run, *self.clean]
        variables = [name for step in self.steps for name in step.environment]
        for step in self.steps:
            if step.act == "upload":
                names += [step.words[0], *(word for word in step.words[2:] if word not in ("", "="))]
            elif step.act == "switch":
                names += filter(None, step.words)
            elif step.act in ("command", "probe") and step.words[1] not in (".", "current"):
                names.append(step.words[1].removeprefix("releases/"))
        bad = [name for name in names if not RELEASE.fullmatch(name)]
        bad += [name for name in variables if not _VARIABLE.fullmatch(name)]
        bad += [path for path in self.files if not _below_shared(path)]
        if bad:
            raise UsageError(f"{bad[0]!r} cannot be the name of a release, a run, a variable or a file on a host.")

    def stream(self) -> Iterator[bytes]:
        """The tar, in pieces; may be asked for again."""
        payload = self.payload
        head = [TreeEntry(b"job.sh", 0o600, self._script()), TreeEntry(b"entries", 0o40700, b"")]
        head += [TreeEntry(b"files/" + path.encode(), 0o600, data) for path, data in sorted(self.files.items())]
        if payload is not None:
            head.append(TreeEntry(b"remove", 0o600, payload.remove))
            head.append(TreeEntry(b"rmdir", 0o600, payload.rmdir))
            if payload.whole:
                head.append(TreeEntry(b"expected", 0o600, payload.expected))
        yield b"".join(members(head))
        if payload is not None:
            yield from payload.pieces()
        yield b"".join(members([TreeEntry(b"complete", 0o600, b"")])) + END

    def _script(self) -> bytes:
        common = self.entry.common()
        lines: list[str] = [
            library("locks", "survey", "steps"),
            "spool=$1",
            f"run={_words(self.entry.run)} fence={self.entry.fence:d} record={_words(self.entry.record or '')}",
            f"direction={self.direction} limit={math.ceil(self.limit):d}",
            f"entry_head={_words(common[0])}",
            f"entry_tail={_words(common[1])}",
        ]
        lines.append("begin")
        for step in self.steps:
            if step.of == "controller":
                place = f"{step.direction} {step.number:d} {step.inputs}"
                lines.append(f"conclude {place} {step.outcome}" if step.outcome else f"intend {place}")
            else:
                lines += [f"{name}={_words(value)}; export {name}" for name, value in step.environment.items()]
                lines.append(f"step {step.number:d} {step.inputs} {_words(step.act, *step.words)}")
        if self.finish is not None:
            lines.append(f"finish {self.finish}")
        if self.clean:
            lines.append(f"clean {_words(*self.clean)}")
        lines += ["end", "say end", ""]
        return "\n".join(lines).encode("utf-8", "surrogateescape")


@dataclass
class StepTold:
    """What the host said of one step. ``again``: it had been done before; ``output``: its last lines, of a failure."""

    outcome: Literal["started", "ok", "failed"]
    code: int = 0
    again: bool = False
    output: list[str] = field(default_factory=list)


_LINE = re.compile(r"tma (step|out|refused|overtaken|busy|waiting|end|beat)(?: (.*))?", re.DOTALL)


_STEP = re.compile(r"[0-9]{1,5} (started|ok|ok again|failed [0-9]{1,3})")


class Told:
    """Collects what a host says while it runs a job; ``on_step`` is told of each step as it begins.

    ``on_waiting``: the job waits for another one that still runs there.
    """

    def __init__(
        self,
        on_step: Callable[[int], None] = lambda number: None,
        on_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.heard = False
        self.steps: dict[int, StepTold] = {}
        self.ended = False
        self.refusals: list[str] = []
        self.overtaken: int | None = None
        self.busy = False
        self._output: list[str] = []
        self._on_step, self._on_waiting = on_step, on_waiting

    def line(self, text: str) -> None:
        """Takes one line; what is not ours (a login shell's greeting) is passed over."""
        found = _LINE.fullmatch(text)
        if found is None:
            return
        self.heard = True
        word, rest = found[1], found[2] or ""
        match word:
            case "step":
                self._step(rest.split())
            case "out":
                self._output.append(rest)
            case "refused":
                self.refusals.append(rest)
            case "overtaken":
                self.overtaken = int(rest) if rest.isdecimal() else 0
            case "waiting":
                self._on_waiting()
            case "busy":
                self.busy = True
            case "end":
                self.ended = True

    def _step(self, words: Sequence[str]) -> None:
        if not _STEP.fullmatch(" ".join(words)):
            return
        number, outcome = int(words[0]), words[1]
        if outcome == "started":
            self.steps[number] = StepTold("started")
            self._on_step(number)
        elif outcome == "ok":
            self.steps[number] = StepTold("ok", again=words[2:] == ["again"])
        elif outcome == "failed":
            self.steps[number] = StepTold("failed", code=int(words[2]), output=self._output)
            self._output = []

    @property
    def silent(self) -> bool:
        """Whether it stopped without a word of why: neither at its end, nor with a step that failed, nor turned away."""
        turned_away = self.overtaken is not None or self.busy or self.refusals
        return not self.ended and self.failed() is None and not turned_away

    def failed(self) -> tuple[int, StepTold] | None:
        """The step that failed, if one did."""
        return next(((number, told) for number, told in self.steps.items() if told.outcome == "failed"), None)


@cache
def script_text(name: str) -> str:
    """One file of ``host_scripts/`` without its comments, which would be sent with every job."""
    text = (SCRIPTS / f"{name}.sh").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


@cache
def library(*parts: str) -> str:
    """``common.sh`` and the named parts of ``host_scripts/`` after it, as one script."""
    return "\n".join(script_text(part) for part in ("common", *parts))


def _below_shared(path: str) -> bool:
    """Whether a file of a ``render`` step, ``NUMBER/PATH``, has a name that ``steps.sh`` keeps apart from its own."""
    parts = path.split("/")[1:]
    return bool(parts) and not {"", ".", ".."} & set(parts) and "\n" not in path and not path.endswith(".tma-new")


def _words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)
