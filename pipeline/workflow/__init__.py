"""What the pipeline can do, a module a noun; the verbs of the command line call these functions.

Every function takes the :class:`~pipeline.workflow.session.Session` first and everything else as a named argument: no
prompt, no current folder, no global, so that a queue or a service can run them too. Each gathers facts, asks the rules,
acts, and records; the modules downhill (installation, ledger, runner) do the work.
"""

from pipeline.workflow.session import Dossier, Result, Session

__all__ = ["Dossier", "Result", "Session"]
