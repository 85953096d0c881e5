"""The families of errors, drawn first; each has its exit code.

Every error says what happened, each reason with its source, the state things are in, and the next command. The
command line prints :meth:`PipelineError.render` on standard error, or :meth:`PipelineError.as_json` with ``--json``.
Anything that is not a :class:`PipelineError` is a bug of ours and leaves with 70 (``EX_SOFTWARE`` of sysexits.h).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

SCHEMA_VERSION = 1
"""Version of every JSON object that the command line prints, errors included."""

NOTHING_CHANGED = "Nothing was changed."

EXIT_CODES: Mapping[int, str] = {
    0: "done, or there was nothing to do",
    1: "failed: it was tried and did not work",
    2: "usage or configuration: the command or a file is wrong, nothing was tried",
    3: "unknown: no such customer, environment, release, version or ticket",
    4: "refused by a rule",
    5: "locked: another run holds it",
    6: "partly done, or the outcome is unknown",
    7: "unreachable, or not let in",
    70: "a bug of ours; the report is named",
    130: "interrupted",
}
"""Every exit code of the command line, with what it means: the families below, and 0."""


def next_lines(commands: Iterable[str], *, in_order: bool) -> list[str]:
    """The lines that tell what to type next: alternatives, or with ``in_order`` steps of which each follows the last."""
    more = "then:" if in_order else "  or:"
    return [f"{more if position else 'Next:'} {command}" for position, command in enumerate(commands)]


OVERTAKEN = "overtaken"
"""The ``rule`` of a reason by which a run learns that another took its place; see :func:`overtaken`."""


@dataclass(frozen=True)
class Reason:
    """One reason, with the place it comes from.

    ``text`` is a sentence without a final stop; ``source`` is ``file:line`` or ``file:line:column``, a host, a ref or
    a record's id; ``rule`` is the name of the rule in :mod:`pipeline.rules` that refused, where one did.
    """

    text: str
    source: str | None = None
    rule: str | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source else self.text


class PipelineError(Exception):
    """An error that a user can understand; raise one of the families below, never this class itself.

    ``what`` is one sentence; ``reasons`` all of the reasons, not only the first; ``state`` what is true now;
    ``next_commands`` what to type next: one of them, or with ``in_order`` one after the other. ``details`` is for
    ``--json`` only: JSON values, never a secret.
    """

    exit_code: ClassVar[int] = 70
    word: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        reasons: Iterable[Reason | str] = (),
        state: str = NOTHING_CHANGED,
        next_commands: Iterable[str] = (),
        in_order: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.reasons = tuple(Reason(reason) if isinstance(reason, str) else reason for reason in reasons)
        self.state = state
        self.next_commands = tuple(next_commands)
        self.in_order = in_order
        self.details = dict(details or {})

    def render(self) -> str:
        """The error as text, several lines, without a final newline."""
        lines = [f"{self.word}: {self.what}"]
        lines += [f"  - {reason}" for reason in self.reasons]
        if self.state:
            lines.append(self.state)
        return "\n".join([*lines, *next_lines(self.next_commands, in_order=self.in_order)])

    def as_json(self) -> dict[str, Any]:
        """The error as one JSON object with its ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": False,
            "error": {
                "kind": type(self).__name__,
                "exit_code": self.exit_code,
                "what": self.what,
                "reasons": [
                    {"text": reason.text, "source": reason.source, "rule": reason.rule} for reason in self.reasons
                ],
                "state": self.state,
                "next": list(self.next_commands),
                "next_in_order": self.in_order,
                "details": self.details,
            },
        }

    def __str__(self) -> str:
        return self.render()


class Failed(PipelineError):
    """It was tried and did not work (exit 1): a step, a check, a conflict, a script."""

    exit_code = 1
    word = "failed"


class UsageError(PipelineError):
    """The command or the configuration is wrong (exit 2); nothing was tried."""

    exit_code = 2
    word = "usage"


class ConfigurationError(UsageError):
    """A file of the workspace is wrong (exit 2); each reason's source is ``file:line:column``."""

    word = "configuration"


class NotKnown(PipelineError):
    """No such customer, release, product version, ticket or environment (exit 3)."""

    exit_code = 3
    word = "unknown"


class Refused(PipelineError):
    """A rule says no (exit 4); every rule that does is among the reasons."""

    exit_code = 4
    word = "refused"


class Locked(PipelineError):
    """Another run holds the environment (exit 5)."""

    exit_code = 5
    word = "locked"


class PartlyDone(PipelineError):
    """Some of it is done and some is not, or the outcome is not known (exit 6); ``state`` says which."""

    exit_code = 6
    word = "partly done"


class Unreachable(PipelineError):
    """A host, database or remote could not be reached, or did not let us in (exit 7)."""

    exit_code = 7
    word = "unreachable"


class Interrupted(PipelineError):
    """A person or a signal stopped the run (exit 130)."""

    exit_code = 130
    word = "interrupted"


def overtaken(error: BaseException) -> bool:
    """Whether this tells a run that another took its place (a lease taken away, a higher fence).

    Such a run must not change anything any more, and so must not go its way back either.
    """
    return isinstance(error, Refused) and any(reason.rule == OVERTAKEN for reason in error.reasons)
