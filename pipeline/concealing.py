"""Takes secrets out of texts, also in the forms in which programs and libraries print them.

It is the last net, not the protection: a secret that was cut in two, encrypted or spelt backwards is not found.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus

HIDDEN = "•••"
"""What stands where a secret stood."""

SHORTEST = 4
"""Characters from which a secret is taken out wherever it stands; a shorter one, only as a word of its own."""

LINE = 8
"""Characters from which one line of a secret of several lines is a secret too: a key is often printed by the line."""


class Concealer:
    """The secrets of one session. Immutable texts in, texts out; the secrets can only be added to."""

    def __init__(self) -> None:
        self._forms: list[str] = []
        self._words: list[re.Pattern[str]] = []
        self._known: set[str] = set()

    def add(self, secret: str) -> None:
        """Takes one more secret; an empty one, or one that is blank, hides nothing."""
        if secret in self._known:
            return
        self._known.add(secret)
        lines = [line.strip() for line in secret.splitlines()]
        found = set()
        for part in {secret, secret.strip(), *(line for line in lines if len(line) >= LINE)}:
            if len(part.strip()) >= SHORTEST:
                found |= _forms(part)
            elif part.strip():
                words = sorted({part.strip(), part.strip().lower(), part.strip().upper()})
                self._words.append(re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words)))
        self._forms = sorted(found.union(self._forms), key=lambda form: (-len(form), form))

    def conceal(self, text: str) -> str:
        """``text`` with every secret in every known form replaced, longest first; overlapping ones leave no rest."""
        spans: list[tuple[int, int]] = []
        for form in self._forms:
            start = text.find(form)
            while start >= 0:
                spans.append((start, start + len(form)))
                start = text.find(form, start + 1)
        spans += [match.span() for pattern in self._words for match in pattern.finditer(text)]
        if not spans:
            return text
        spans.sort()
        pieces, end = [], 0
        for start, stop in spans:
            if start >= end:
                pieces += [text[end:start], HIDDEN]
            end = max(end, stop)
        return "".join([*pieces, text[end:]])


def _forms(secret: str) -> set[str]:
    """The secret as URLs, base64 (RFC 4648, with and without padding), JSON, HTML and Python's repr spell it."""
    data = secret.encode("utf-8", "surrogateescape")
    plain = {secret}
    for escaped in (quote(data, safe=""), quote(data), quote_plus(data)):
        plain |= {escaped, re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), escaped)}
    plain |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    plain |= {repr(secret)[1:-1], repr(data)[2:-1], html.escape(secret), secret.replace("'", "''")}
    cased = {form for word in plain for form in (word, word.upper(), word.lower())}
    for encode in (b64encode, urlsafe_b64encode):
        padded = encode(data).decode("ascii")
        cased |= {padded, padded.rstrip("=")}
        # Behind other bytes, as in "Basic " + base64("user:secret"), only the digits wholly of the secret are the same.
        for before in range(3):
            digits = encode(bytes(before) + data).decode("ascii")
            inner = digits[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
            cased |= {inner} if len(inner) >= SHORTEST else set()
    return cased
