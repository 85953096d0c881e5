"""What the runner can do on a host: the operations that actions are made of. Pure data.

A step kind of :mod:`pipeline.steps` is made of these; a new operation is one class here and one function in
:mod:`pipeline.runner`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.model import Noun


class Backup(Noun):
    """Back up the environment's database, or the host's ``shared/``, on the host, and prove that it can be read back.

    ``proof`` takes the place of what the environment's file says of its database's backups.
    """

    operation: Literal["backup"] = "backup"
    database: bool = True
    shared: bool = False
    proof: Literal["archive", "restore"] | None = None


class Restore(Noun):
    """Put back what a backup of this run holds: on the way back, and only while the application is stopped."""

    operation: Literal["restore"] = "restore"
    step: int = Field(0, description="the plan's number of the action that made the backup")
    database: bool = True
    shared: bool = False


class Upload(Noun):
    """Put the release beside the old one and verify every file there."""

    operation: Literal["upload"] = "upload"


class Render(Noun):
    """Render templates of the release into ``shared/``: template's path → file below ``shared/``."""

    operation: Literal["render"] = "render"
    templates: dict[str, str]


class Migrate(Noun):
    """Apply these migrations, in order."""

    operation: Literal["migrate"] = "migrate"
    scripts: tuple[str, ...]


class Switch(Noun):
    """Make ``current`` point to the release, atomically."""

    operation: Literal["switch"] = "switch"


class Command(Noun):
    """Run a program on the host; ``serving`` ones stop or start the application, ``traffic`` ones tell the load balancer.

    ``folder``: in ``current`` as it then is, or in the folder of the plan's own release, switched to or not.
    """

    operation: Literal["command"] = "command"
    argv: tuple[str, ...]
    undo: tuple[str, ...] = ()
    serving: Literal["stop", "start", "restart"] | None = None
    traffic: Literal["drain", "undrain"] | None = None
    folder: Literal["current", "release"] = "current"
    seconds: int = 120


class Http(Noun):
    """Ask the application, as seen from the host, until it answers as expected or ``within`` seconds are over."""

    operation: Literal["http"] = "http"
    url: str
    status: int = 200
    contains: str | None = None
    within: int = 30


class Probe(Noun):
    """Run a program on the host until it ends with 0 or ``within`` seconds are over."""

    operation: Literal["probe"] = "probe"
    argv: tuple[str, ...]
    within: int = 30


Operation = Annotated[
    Backup | Restore | Upload | Render | Migrate | Switch | Command | Http | Probe, Field(discriminator="operation")
]
