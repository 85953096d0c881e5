"""What the pipeline can do, a module a noun; the verbs of the command line call these functions.

Every function takes the :class:`~pipeline.workflow.session.Session` first and everything else as a named argument: no
prompt, no current folder, no global, so that a queue or a service can run them too. Each gathers facts, asks the rules,
acts, and records; the modules downhill (installation, ledger, runner) do the work.
"""

from typing import TYPE_CHECKING, Any

from pipeline.workflow.session import Dossier, Session

if TYPE_CHECKING:
    from pipeline.workflow.result import Result


def __getattr__(name: str) -> Any:
    if name != "Result":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.workflow.result import Result

    return Result


__all__ = ["Dossier", "Result", "Session"]
