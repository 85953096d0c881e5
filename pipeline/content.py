"""The content hash: what a customer signs off, as one SHA-256. Pure: no Git, no files, no clock.

The exact bytes, with a test vector that anybody can recompute, are in ``docs/content-hash.md``. They never change: a new
section (packages, say) gets a name of its own, and a new rule a new ``tma-content-N``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from operator import itemgetter
from typing import Any

import rfc8785

from pipeline.errors import Reason, Refused
from pipeline.model import Manifest, TreeFile
from pipeline.paths import path_bytes, path_text

VERSION = b"tma-content-1"
"""The name of this way of computing, hashed first."""

_BOM = b"\xef\xbb\xbf"
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":"))
_SAFE = 2**53 - 1
_MOST_LINKS = 64


def canonical(value: Any) -> bytes:
    """The bytes of a JSON value in the canonical form of RFC 8785 (JCS).

    Tuples are arrays; dates and times, which YAML reads but JSON lacks, are their ISO 8601 texts. Raises
    :class:`Refused` for what has no such form: an integer past 2^53, NaN, a key that is not text.
    """
    try:
        odd: list[Any] = []
        plain = _json(value, odd)
        # Of what nearly every value is made of, Python's own encoder gives the same bytes in a quarter of the time. Keys are
        # sorted by UTF-16 code units, which for characters below these is the order of Python.
        text = "" if odd else _ENCODER.encode(plain)
        return text.encode() if text and max(text) < "\ud800" else rfc8785.dumps(plain)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise Refused(
            "a value has no canonical JSON form (RFC 8785)", reasons=[Reason(str(error) or type(error).__name__)]
        ) from None


def _json(value: Any, odd: list[Any]) -> Any:
    """``value`` without what JSON lacks; ``odd`` takes what only RFC 8785's own rules write right, or refuse."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if isinstance(value, Mapping):
        odd += [key for key in value if type(key) is not str]
        return {key: _json(item, odd) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item, odd) for item in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if kind is not int or not -_SAFE <= value <= _SAFE:
        odd.append(value)
    return value


def unfit(path: str, mode: str, target: bytes | None = None) -> str | None:
    """Why a release cannot hold this file, or None when it can; ``target`` is where a symbolic link points.

    ``path`` is in the form of :func:`pipeline.paths.path_text`. Any bytes may be in a name; a link must stay inside the
    tree, here as it is written, and as other links lead in :func:`leaving`.
    """
    raw = path_bytes(path)
    parts = raw.split(b"/")
    if mode == "160000":
        return "is a submodule: its files are not in the tree"
    if mode not in ("100644", "100755", "120000"):
        return f"has the mode {mode}, which a release cannot hold"
    if b"\0" in raw:
        return "has a NUL in its name"
    if any(part in (b"", b".", b"..") for part in parts):
        return "has a name that is absolute or leaves the tree"
    if any(part.lower() == b".git" for part in parts):
        return "lies in a folder of Git's own"
    if any(len(part) > 255 for part in parts) or len(raw) > 3000:
        return "has a name that is too long"
    if mode == "120000" and target is not None:
        shown = path_text(target)
        if not target or target.startswith(b"/") or b"\0" in target:
            return f"links to '{shown}', which is not a relative path"
        if len(target) > 3000:
            return "links to a name that is too long"
        # Counted step by step, since a/../../b leaves the tree on its way even where its end would be inside again.
        depth = len(parts) - 1
        for part in target.split(b"/"):
            depth += -1 if part == b".." else 0 if part in (b"", b".") else 1
            if depth < 0:
                return f"links to '{shown}', outside the tree"
    return None


def leaving(links: Mapping[str, bytes]) -> dict[str, str]:
    """Which symbolic links of a tree lead out of it by way of others, each with why; ``links`` is path to target.

    Where ``up`` links to ``..`` of a deep folder, ``up/..`` looks as if it went down and up again, and does not.
    """
    raw = {path_bytes(path): target for path, target in links.items()}
    return {
        path: f"links to '{path_text(target)}', outside the tree by way of another link"
        for path, target in links.items()
        if _leaves(path_bytes(path), raw)
    }


def _leaves(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    place, ahead, followed = path.split(b"/")[:-1], [path.rpartition(b"/")[2]], 0
    while ahead:
        part = ahead.pop()
        if part == b"..":
            if not place:
                return True
            place.pop()
        elif part not in (b"", b"."):
            place.append(part)
            target = links.get(b"/".join(place))
            if target is not None:
                followed += 1
                # No system follows as many: what lies behind is out of reach for it, and links in a circle end here.
                if followed > _MOST_LINKS:
                    return False
                place.pop()
                ahead.extend(reversed(target.split(b"/")))
    return False


def files_digest(files: Iterable[TreeFile]) -> str:
    """SHA-256, in hexadecimal, over the files in the order of their paths' bytes: mode, SHA-256 and path of each.

    A file's own SHA-256 is that of its raw blob (of a symbolic link: of its target), never of ``git archive``, which
    rewrites bytes where ``.gitattributes`` says export-subst. Raises :class:`Refused` for a path given twice.
    """
    digest = hashlib.sha256()
    before: bytes | None = None
    for path, file in sorted([(path_bytes(file.path), file) for file in files], key=itemgetter(0)):
        if path == before or b"\0" in path:
            raise Refused(f"the path '{file.path}' is given twice, or holds a NUL")
        before = path
        digest.update(b"%s\0%s\0%s\0" % (file.mode.encode(), file.sha256.encode(), path))
    return digest.hexdigest()


def playbook_digest(playbook_yaml: Any) -> str:
    """SHA-256 of the RFC 8785 form of the playbook's YAML as written: no default filled in, so that a field of ours
    that is new voids nothing. Comments, quoting style and the order of keys do not count.
    """
    return settings_digest(playbook_yaml)


def settings_digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of the RFC 8785 form of any JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sections_digest(sections: Mapping[str, str]) -> str:
    """The content hash over the sections' hexadecimal digests, in the order of the sections' names."""
    digest = hashlib.sha256(VERSION + b"\0")
    for name in sorted(sections):
        digest.update(f"{name}\0{sections[name]}\0".encode())
    return digest.hexdigest()


def content_hash(manifest: Manifest, playbook_raw: Any) -> str:
    """The content hash of a release: its files and the playbook that deploys it."""
    return sections_digest({"files": files_digest(manifest.files), "playbook": playbook_digest(playbook_raw)})


def script_checksum(data: bytes) -> str:
    """SHA-256 of a migration by the algorithm ``sha256-bom-eol``: one leading UTF-8 BOM dropped, CRLF and CR made LF.

    So a checkout on another system, or an editor that adds a BOM, is not an edit.
    """
    return hashlib.sha256(data.removeprefix(_BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")).hexdigest()
