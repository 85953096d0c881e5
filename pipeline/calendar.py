"""When an environment may be changed: weekly windows and dated freezes. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from pipeline.model import Freeze, Window

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def in_window(window: Window, now: datetime, time_zone: str) -> bool:
    """Whether the instant lies in the window, on the wall clock of ``time_zone``.

    Half-open: ``start`` counts, ``until`` does not. ``until`` not after ``start`` runs past midnight, and belongs to the
    day on which it started.
    """
    local = now.astimezone(ZoneInfo(time_zone))
    clock = local.time().replace(tzinfo=None)
    today, yesterday = _DAYS[local.weekday()], _DAYS[(local - timedelta(days=1)).weekday()]
    if window.start < window.until:
        return today in window.days and window.start <= clock < window.until
    return (today in window.days and clock >= window.start) or (yesterday in window.days and clock < window.until)


def in_freeze(freeze: Freeze, now: datetime) -> bool:
    """Whether the instant lies in the freeze; half-open."""
    return freeze.start <= now < freeze.until
