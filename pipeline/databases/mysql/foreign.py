"""What in a statement reaches beyond the database in which it runs: other databases, the server, the host's files. Pure.

For what runs in the scratch database on the customer's own server. Too careful on purpose: what is not known to stay inside
is said to leave, and is then not run there.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# Comments go, what stands in executable ones stays; texts go, names in quotes become names.
_PIECES = re.compile(
    r"""(?P<string>'(?:[^'\\]++|\\.|'')*+'|"(?:[^"\\]++|\\.|"")*+"(?!\s*\.))
    | "(?P<double>(?:[^"]++|"")*+)"(?=\s*\.)
    | `(?P<quoted>(?:[^`]++|``)*+)`
    | (?P<comment>/\*(?!!|M!)(?:[^*]++|\*(?!/))*+\*/|\#[^\n]*+|--(?=\s|\Z)[^\n]*+)
    | (?P<executable>/\*M?!\d*|\*/)""",
    re.VERBOSE | re.DOTALL,
)
_QUALIFIED = re.compile(r"(?<![\w$\x02@.])([\w$\x02]+)\s*\.(?=\s*[\w$\x02*\x01])")
_VARIABLE_SCOPE = frozenset({"session", "local", "global"})
_ROWS = frozenset({"new", "old", "information_schema"})

_BEYOND = re.compile(
    r"""(?<!\x02)(?:\b(?:CREATE|DROP|ALTER|RENAME)\s+(?:OR\s+REPLACE\s+)?
          (?P<made>DATABASE|SCHEMA|USER|ROLE|SERVER|TABLESPACE|LOGFILE|UNDO|INSTANCE)\b
      | \b(?P<word>GRANT|REVOKE|SHUTDOWN|UNINSTALL|BINLOG|XA|SONAME|PERSIST|PERSIST_ONLY|FLUSH|KILL|PURGE)\b(?!\s*=)
      | \bINTO\s+(?P<file>OUTFILE|DUMPFILE)\b
      | \b(?P<load>LOAD\s+(?:DATA|XML|INDEX))\b
      | \b(?P<use>USE)\s+(?!INDEX\b|KEY\b)
      | \bSET\b[^;]*?(?P<global>\bGLOBAL\b|@@GLOBAL\b)
      | (?:\A|;)\s*SET\s+(?P<password>PASSWORD|ROLE|DEFAULT\s+ROLE)\b
      | \b(?P<server>(?:CHANGE|START|STOP|RESET|INSTALL|BACKUP)\s+
          (?:MASTER|REPLICATION|SLAVE|REPLICA|ALL|QUERY|PLUGIN|COMPONENT|STAGE|LOCK|UNLOCK|GROUP_REPLICATION|PERSIST))\b
      | \bENGINE\s*=?\s*(?P<engine>FEDERATED|FEDERATEDX|CONNECT|SPIDER|S3|MRG_MYISAM|MERGE)\b
      | \b(?P<directory>(?:DATA|INDEX)\s+DIRECTORY)\b)""",
    re.VERBOSE | re.IGNORECASE,
)
_EVENT = re.compile(r"\b(?:CREATE|ALTER)\s+(?:OR\s+REPLACE\s+)?(?:DEFINER\s*=[^;]{0,300}?\s)?EVENT\b", re.IGNORECASE)
_DYNAMIC = re.compile(r"(?<!\x02)\b(PREPARE|EXECUTE)\b(?!\s*=)", re.IGNORECASE)
_NEXT = re.compile(r"\b(?:NEXTVAL|LASTVAL|SETVAL|NEXT\s+VALUE\s+FOR|PREVIOUS\s+VALUE\s+FOR)\s*\(?\s*$", re.IGNORECASE)
_PART = re.compile(r"[\w$]+")


def _plainer(match: re.Match[str]) -> str:
    if match["string"] is not None:
        return " \x01 "
    if match.lastgroup in {"comment", "executable"}:
        return " "
    found = match["quoted"] if match["quoted"] is not None else match["double"]
    # A quoted name must not read as a word of the language; what is odd in it is not told apart.
    return f"\x02{re.sub(r'[^0-9A-Za-z_$]', _odd, found)}"


def _odd(match: re.Match[str]) -> str:
    return f"${ord(match[0]):x}$"


def plainer(text: str) -> str:
    """The text without comments and strings; a quoted name has a mark before it (``\\x02``)."""
    return _PIECES.sub(_plainer, text)


def beyond(
    text: str, databases: Collection[str], *, events: bool = True, dynamic: bool = True, sequences: bool = False
) -> str | None:
    """How the text reaches beyond the database that it runs in, as words behind "it"; None when it does not.

    ``databases``: those of the server that the user sees, this one's source among them; without ``events``, ``dynamic``
    statements (``PREPARE``) those are let through, and with ``sequences`` a sequence's own database in a default.
    """
    plain = plainer(text)
    if found := _BEYOND.search(plain):
        words = " ".join((found[found.lastgroup or 0] or found[0]).split()).upper()
        return f"uses {words}, which is not the database's own"
    if dynamic and (found := _DYNAMIC.search(plain)):
        return f"uses {found[1].upper()}, whose statement cannot be looked at"
    if events and _EVENT.search(plain):
        return "makes an event, which would run"
    known = {each.casefold() for each in databases}
    odd = {re.sub(r"[^0-9A-Za-z_$]", _odd, each) for each in known}
    alone: set[str] | None = None
    for match in _QUALIFIED.finditer(plain):
        named = match[1].lstrip("\x02")
        key = named.casefold()
        before = plain[max(0, match.start() - 40) : match.start()]
        if sequences and _NEXT.search(before):
            continue
        if key in _ROWS:
            continue
        if key in known or key in odd:
            return f"names the database {named}"
        if key in _VARIABLE_SCOPE or named[:1].isdigit():
            continue
        if alone is None:
            # A table, an alias or a variable stands somewhere without a dot behind it.
            alone = {
                each[0].casefold()
                for each in _PART.finditer(plain)
                if not plain[each.end() : each.end() + 20].lstrip().startswith(".")
            }
        if key not in alone:
            return f"names {named}, which may be another database"
    return None


__all__ = ("beyond", "plainer")
