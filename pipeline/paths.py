r"""File names as text: any bytes that a file's name may hold, in a form that can be printed, stored and turned back.

Visible UTF-8 stays as it is. What cannot be seen (control characters, line separators, spaces other than the plain one,
marks that change the direction of writing), a backslash, and each byte that is not UTF-8 becomes ``\xNN``, two
hexadecimal digits in lower case a byte; so a backslash is ``\x5c``. Pure; it imports nothing of ours.
"""

from __future__ import annotations

import re

# Ranges of our own, not str.isprintable(): that follows the Unicode version of the Python at hand, and a stored name
# must be the same text for all.
_UNSEEN = re.compile(
    "[\\\\\0-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def path_text(raw: bytes) -> str:
    """The name ``raw`` as text, escaped; different names give different texts."""
    return _UNSEEN.sub(_escape, raw.decode("utf-8", "surrogateescape"))


def path_bytes(text: str) -> bytes:
    """The name that :func:`path_text` turned into ``text``; raises ``ValueError`` for a text that it never gives."""
    # Nearly all names, and there are thousands in a release: two looks in C.
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text.encode()
    if not _UNSEEN.search(text):
        return text.encode()
    raw = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode("utf-8", "surrogatepass"))
    if path_text(raw) != text:
        raise ValueError(f"{text!r} is not the escaped form of a file name")
    return raw


def is_plain(text: str) -> bool:
    """Whether ``text`` is a name as it is: nothing in it is an escape, or would need one."""
    return not _UNSEEN.search(text)


def _escape(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8", "surrogateescape"))
