"""What every function of the workflow that may change something gives back."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pipeline.model import Noun


class Result(Noun):
    """Whether anything changed, one line, and what to type next."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    changed: bool
    what: str
    next_commands: tuple[str, ...] = Field((), exclude=True)
    in_order: bool = Field(False, exclude=True, description="the next commands are steps, not alternatives")

    def lines(self) -> list[str]:
        """The result as text for a person, without the next commands."""
        return [self.what]
