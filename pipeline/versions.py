"""The order of a product's versions; the playbook names which. Pure.

``semver``: precedence of Semantic Versioning 2.0.0, section 11, with a missing minor or patch number counting as 0.
``pep440``: PEP 440, as Python distributions use it.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.errors import UsageError

_SEMVER = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?", re.ASCII)


def order(kind: str, version: str) -> Any:
    """Something that sorts as the version does among versions of the same kind; UsageError when it is none."""
    if kind == "pep440":
        from packaging.version import InvalidVersion, Version

        try:
            return Version(version)
        except InvalidVersion:
            raise UsageError(f"{version!r} is not a version of PEP 440") from None
    match = _SEMVER.fullmatch(version)
    if match is None or "" in (match.group(5) or "0").split("."):
        raise UsageError(f"{version!r} is not a version of Semantic Versioning, for instance 2.4.0 or 2.5.0-rc.1")
    numbers = tuple(int(part or 0) for part in match.groups()[:4])
    pre = match.group(5)
    if pre is None:
        return (numbers, 1, ())
    # Numeric identifiers have lower precedence than others, and are compared as numbers.
    identifiers = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split("."))
    return (numbers, 0, identifiers)


def split_release(release: str) -> tuple[str, int]:
    """A release's product version and build: ``2.4.0+1`` is version 2.4.0, build 1 (split at the last ``+``)."""
    version, separator, build = release.rpartition("+")
    if not separator or not version or not (build.isascii() and build.isdigit()):
        raise UsageError(f"{release!r} is not a release's name, for instance 2.4.0+1")
    return version, int(build)
