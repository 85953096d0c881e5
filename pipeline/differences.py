"""What differs on purpose between test and production: hosts, names, sizes, references to secrets. Pure.

A sign-off is given on test for production; what is not the same there is listed on the plan and on the page, and its
digest is bound to the sign-off beside the content hash. Windows and freezes are not part of it: they say when, not what.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.content import settings_digest
from pipeline.model import Customer, Environment, Noun

_NOT_COMPARED = {"key", "windows", "freezes"}


class Difference(Noun):
    """One place of the environments' files with both values, as text; ``—`` where there is none."""

    what: str
    test: str
    production: str


def differences(test: Environment, production: Environment) -> tuple[Difference, ...]:
    """Every difference, sorted by its place. References to secrets are shown, never what they lead to."""
    left, right = dict(_flat(_settings(test))), dict(_flat(_settings(production)))
    found: list[Difference] = []
    for what in sorted(left.keys() | right.keys()):
        written = [json.dumps(side[what], ensure_ascii=False) if what in side else "—" for side in (left, right)]
        if written[0] != written[1]:
            shown = [str(side[what]) if what in side else "—" for side in (left, right)]
            # The text '8' and the number 8 look alike and are not.
            here, there = written if shown[0] == shown[1] else shown
            found.append(Difference(what=what, test=here, production=there))
    return tuple(found)


def settings_hash(customer: Customer, test: Environment | None, production: Environment | None) -> str:
    """SHA-256 over the RFC 8785 form of both environments' settings, and of what templates may name of the customer."""
    return settings_digest(
        {
            "customer": {"key": customer.key, "language": customer.language, "time_zone": customer.time_zone},
            "test": _settings(test) if test else None,
            "production": _settings(production) if production else None,
        }
    )


def _settings(environment: Environment) -> dict[str, Any]:
    # Unset fields are left out, so that a new field of ours voids no sign-off.
    return environment.model_dump(mode="json", exclude=_NOT_COMPARED, exclude_unset=True)


def _flat(value: Any, place: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [pair for key in value for pair in _flat(value[key], f"{place}.{key}" if place else key)]
    if isinstance(value, list) and value:
        return [pair for number, item in enumerate(value, 1) for pair in _flat(item, f"{place}[{number}]")]
    return [(place, value)]
