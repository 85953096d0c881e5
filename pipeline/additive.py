"""Whether a migration only adds, so that the old code can run on the schema after it. Pure.

A proof, not a guess: what is not recognised word for word is not proven, and neither is what one database would read
differently from another (a nested comment, a backslash in a string, a dollar quote). Told apart from
:mod:`pipeline.databases.postgresql.statements`, which only finds lines for messages, since here a wrong answer would let an
application run on data that it does not understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.model import Engine

# A comment that begins with /*! or /*M! runs on MySQL and MariaDB, and -- without a blank behind it is no comment there.
_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\n\f]+ | --[^\n]*+ | /\*(?!M?!)(?:(?!/\*|\*/).)*+\*/)
    | (?P<string>'(?:[^'\\]++|'')*+')
    | (?P<ticked>`[^`\\]++`)
    | (?P<quoted>"(?:[^"\\]++|"")++")
    | (?P<word>[^\W\d]\w*+)
    | (?P<number>\d++(?:\.\d*+)?(?:[eE][+-]?\d++)?(?!\w) | \.\d++(?!\w))
    | (?P<sign>::|\[\d*+\]|[<>=!]=|<>|\|\||[-+*%<>=.,;()] | /(?!\*))
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TYPES = _words(
    """
    bigint bigserial bit blob bool boolean bytea char character cidr clob date datetime decimal double
    float float4 float8 inet int int2 int4 int8 integer interval json jsonb macaddr money nchar numeric
    nvarchar precision real serial smallint smallserial text time timestamp timestamptz timetz tinyint
    uuid varchar varying without xml zone
    """
)
"""Of types, what cannot refuse a NULL; a domain could."""

_CONSTANTS = _words(
    """
    current_date current_time current_timestamp false localtime localtimestamp null true
    """
)
_FUNCTIONS = _words(
    """
    abs avg cast ceil char_length coalesce concat count date datetime extract floor gen_random_uuid
    generate_series greatest group_concat hex ifnull iif json_array json_object julianday least left
    length lower ltrim max min mod now nullif position printf randomblob replace right round row_number
    rtrim strftime string_agg substr substring sum to_char to_date trim upper
    """
)
"""Functions that change nothing, with both engines' names; any other might (``setval``, or one of the product's own)."""

_BEFORE_A_PARENTHESIS = _words(
    """
    all and any as between by case check default distinct else except exists filter foreign from having
    in intersect is join key like limit not offset on or order over partition primary select some then
    union unique using values when where with
    """
)


_MYSQL = frozenset({"mariadb", "mysql"})
_MYSQL_TYPES = _TYPES - _words("bigserial serial smallserial xml") | _words(
    "binary fixed int1 int3 int8 longblob longtext mediumblob mediumint mediumtext middleint tinyblob tinytext varbinary year"
)
_MYSQL_FUNCTIONS = _FUNCTIONS | _words("current_timestamp uuid")
_NO_COLUMNS = _words(
    "check column constraint foreign fulltext index key partition period primary spatial system unique"
)
"""What stands after ADD for something else than a column."""


_BRACKETS = frozenset(
    {("begin",), ("commit",), ("start", "transaction")}
    | {(word, more) for word in ("begin", "commit") for more in ("transaction", "work")}
)
"""The transaction that a script carries for the tool that it was written for."""


class Token(NamedTuple):
    """One token of a script. ``text`` is in lower case, except in quotes."""

    kind: str
    text: str


class _NotProven(Exception):
    """Something that this module does not know, or that could be read in two ways."""


def is_additive(sql: str, engine: Engine | None = None) -> bool:
    """Whether every statement of ``sql`` is proven to add only: what was there before stays, and means what it meant.

    With ``engine``, as that one reads it: MariaDB and MySQL have words of their own (back quotes, ``UNSIGNED``,
    ``ADD INDEX``). Without, only what every engine reads alike is proven.

    Proven are ``CREATE`` of a table, sequence, schema, type or view (never ``OR REPLACE``, ``AS SELECT`` of a table or a
    partition of one), an index of plain columns that forbids nothing, ``ALTER TABLE … ADD COLUMN`` that is nullable or
    has a plain ``DEFAULT``, ``COMMENT ON``, ``INSERT`` into a table that the same script has created, and a ``BEGIN`` and
    ``COMMIT`` around them.
    """
    mysql = engine in _MYSQL
    made = _Made(set(), set(), set(), mysql)
    try:
        return all(_adds(_Reader(statement), made) for statement in _statements(sql, mysql=mysql))
    except _NotProven:
        return False


class _Made(NamedTuple):
    """What the script has created so far: tables, those into which an INSERT is proven, types.

    ``mysql``: it is read as MariaDB and MySQL do.
    """

    tables: set[tuple[str, ...]]
    filled: set[tuple[str, ...]]
    types: set[tuple[str, ...]]
    mysql: bool = False


def _statements(sql: str, *, mysql: bool) -> Iterator[list[Token]]:
    text = sql.replace("\r\n", "\n")
    statement: list[Token] = []
    depth = position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _NotProven
        position, kind = match.end(), match.lastgroup
        if kind == "space":
            if match[0].startswith("--") and "\r" in match[0]:
                raise _NotProven  # PostgreSQL ends the comment there, SQLite does not
            if mysql and match[0].startswith("--") and match[0][2:3] not in {"", " ", "\t"}:
                raise _NotProven
            continue
        if kind in {"ticked", "quoted"}:
            if mysql != (kind == "ticked"):
                raise _NotProven  # a name in one engine, a string or nothing in another
            kind = "quoted"
        token = Token(kind, match[0].lower() if kind == "word" else match[0])
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth < 0 or (token.text == ";" and depth):
            raise _NotProven
        if token.text == ";":
            yield statement
            statement = []
        else:
            statement.append(token)
    if depth:
        raise _NotProven
    yield statement


class _Reader:
    """The tokens of one statement, read from the front."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)

    def word(self, *words: str) -> bool:
        """Takes these words when they come next."""
        if [(token.kind, token.text) for token in self.tokens[: len(words)]] != [("word", word) for word in words]:
            return False
        del self.tokens[: len(words)]
        return True

    def sign(self, sign: str) -> bool:
        """Takes this sign when it comes next."""
        if self.tokens[:1] != [Token("sign", sign)]:
            return False
        del self.tokens[0]
        return True

    def name(self) -> tuple[str, ...]:
        """Takes a name with its qualifiers."""
        parts: list[str] = []
        while True:
            if not self.tokens or self.tokens[0].kind not in {"word", "quoted"}:
                raise _NotProven
            token = self.tokens.pop(0)
            plain = token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text
            parts.append(plain)
            if not self.sign("."):
                return tuple(parts)

    def parentheses(self) -> list[Token]:
        """Takes what stands between parentheses, without them."""
        if not self.sign("("):
            raise _NotProven
        depth = 1
        inside: list[Token] = []
        while True:
            token = self.tokens.pop(0)
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if not depth:
                return inside
            inside.append(token)

    def words_next(self) -> set[str]:
        """The next token when it is a word."""
        return {token.text for token in self.tokens[:1] if token.kind == "word"}

    def words(self) -> set[str]:
        """Every word that is left."""
        return {token.text for token in self.tokens if token.kind == "word"}


def _adds(reader: _Reader, made: _Made) -> bool:
    if not reader.tokens:
        return True
    if reader.word("create"):
        return _creates(reader, made)
    if reader.word("alter", "table"):
        return _adds_columns(reader, made)
    if reader.word("comment", "on"):
        return reader.tokens[-2:-1] == [Token("word", "is")]
    if reader.word("insert", "into"):
        return _inserts(reader, made)
    return tuple(token.text for token in reader.tokens if token.kind == "word") in _BRACKETS and len(reader.tokens) <= 2


def _creates(reader: _Reader, made: _Made) -> bool:
    for word in ("global", "local"):
        reader.word(word)
    for word in ("temp", "temporary", "unlogged"):
        reader.word(word)
    if reader.word("table"):
        return _creates_table(reader, made)
    if reader.word("unique", "index"):
        return _creates_index(reader, made, unique=True)
    if reader.word("index"):
        return _creates_index(reader, made, unique=False)
    if reader.word("sequence"):
        return True
    if reader.word("schema"):
        reader.word("if", "not", "exists")
        if not reader.word("authorization"):
            reader.name()
            reader.word("authorization")
        return len(reader.tokens) <= 1
    if reader.word("type"):
        name = reader.name()
        if not reader.word("as"):
            return False
        made.types.add(name)
        reader.word("enum")
        reader.parentheses()
        return not reader.tokens
    return reader.word("view") or reader.word("recursive", "view")


def _creates_table(reader: _Reader, made: _Made) -> bool:
    perhaps = reader.word("if", "not", "exists")
    name = reader.name()
    body = reader.parentheses()
    if reader.words() & {"as", "inherits", "select", "values", "execute"}:
        return False
    if made.mysql and reader.words() & {"union", "connection", "directory", "ignore", "replace"}:
        return False  # a table of that kind is another one's rows
    if not perhaps:
        made.tables.add(name)
        if _calls_nothing(body, made):
            made.filled.add(name)
    return True


def _creates_index(reader: _Reader, made: _Made, *, unique: bool) -> bool:
    reader.word("concurrently")
    reader.word("if", "not", "exists")
    if not reader.word("on"):
        reader.name()
        if not reader.word("on"):
            return False
    reader.word("only")
    table = reader.name()
    if table in made.tables:
        return True
    if reader.word("using"):
        reader.name()
    # A unique or partial index, or one of an expression, can refuse a row that the old code writes.
    return _plain_columns(reader, made) and not unique and "where" not in reader.words()


def _plain_columns(reader: _Reader, made: _Made) -> bool:
    """Takes the columns of an index; whether they are nothing but columns (of MySQL and MariaDB, their beginnings too)."""
    inside = reader.parentheses()
    signs = {",", "(", ")"} if made.mysql else {","}
    for position, token in enumerate(inside):
        before = inside[position - 1] if position else Token("sign", ",")
        if token.kind == "number":
            if not made.mysql or before.text != "(":
                return False
        elif token.kind not in {"word", "quoted"} and token.text not in signs:
            return False
        elif before.text == "(":
            return False  # an expression, or a call
    return True


def _adds_columns(reader: _Reader, made: _Made) -> bool:
    reader.word("if", "exists")
    reader.word("only")
    reader.name()
    while True:
        if not reader.word("add"):
            return False
        if made.mysql and (reader.word("index") or reader.word("key")):
            if not _adds_index(reader, made):
                return False
        else:
            if not reader.word("column") and reader.words_next() & _NO_COLUMNS:
                return False
            reader.word("if", "not", "exists")
            reader.name()
            _column(reader, made)
        if not reader.tokens:
            return True
        if not reader.sign(","):
            return False


def _adds_index(reader: _Reader, made: _Made) -> bool:
    reader.word("if", "not", "exists")
    if reader.tokens[:1] != [Token("sign", "(")]:
        reader.name()
    if reader.word("using"):
        reader.name()
    return _plain_columns(reader, made)


def _column(reader: _Reader, made: _Made) -> None:
    """Takes a column's type and constraints; not proven unless the old code can write rows without knowing of it."""
    _type(reader, made)
    needed = refers = False
    default: bool | None = None
    while reader.tokens and reader.tokens[0] != Token("sign", ","):
        if reader.word("not", "null"):
            needed = True
        elif reader.word("null"):
            pass
        elif reader.word("default"):
            default = _default(reader, made)
        elif reader.word("collate") or reader.word("constraint"):
            reader.name()
        elif reader.word("references"):
            refers = True
            reader.name()
            if reader.tokens[:1] == [Token("sign", "(")]:
                reader.parentheses()
        elif made.mysql and _mysql_words(reader):
            pass
        elif reader.word("on", "delete") or reader.word("on", "update"):
            if not any(
                reader.word(*words) for words in (("cascade",), ("restrict",), ("no", "action"), ("set", "null"))
            ):
                raise _NotProven
        else:
            raise _NotProven
    if (needed and not default) or (refers and default):
        raise _NotProven


def _mysql_words(reader: _Reader) -> bool:
    """Takes what MariaDB and MySQL say of a column and what refuses nothing; whether anything was there."""
    if reader.word("on", "update", "current_timestamp"):
        if reader.tokens[:1] == [Token("sign", "(")]:
            reader.parentheses()
        return True
    if reader.word("comment"):
        if not reader.tokens or reader.tokens.pop(0).kind != "string":
            raise _NotProven
        return True
    if reader.word("character", "set") or reader.word("charset"):
        reader.name()
        return True
    return any(reader.word(word) for word in ("unsigned", "signed", "zerofill", "invisible"))


def _type(reader: _Reader, made: _Made) -> None:
    if not reader.tokens:
        raise _NotProven
    types = _MYSQL_TYPES if made.mysql else _TYPES
    if made.mysql and (reader.word("enum") or reader.word("set")):
        reader.parentheses()
    elif reader.tokens[0].text in types and reader.tokens[0].kind == "word":
        while True:
            if reader.word("with", "time"):
                continue
            if made.mysql and [token.text for token in reader.tokens[:2]] == ["character", "set"]:
                break
            if not reader.tokens or reader.tokens[0].kind != "word" or reader.tokens[0].text not in types:
                break
            del reader.tokens[0]
            if reader.tokens[:1] == [Token("sign", "(")]:
                reader.parentheses()
    elif reader.name() not in made.types:
        raise _NotProven
    while reader.tokens and re.fullmatch(r"\[\d*\]", reader.tokens[0].text):
        del reader.tokens[0]


def _default(reader: _Reader, made: _Made) -> bool:
    """Takes the expression of a DEFAULT; whether it is something else than NULL."""
    enclosed = reader.sign("(")
    signed = reader.sign("-") or reader.sign("+")
    if not reader.tokens or (signed and reader.tokens[0].kind != "number"):
        raise _NotProven
    token = reader.tokens.pop(0)
    functions = _MYSQL_FUNCTIONS if made.mysql else _FUNCTIONS
    if token.kind == "word" and token.text in functions and reader.sign("("):
        if made.mysql and reader.tokens[:1] and reader.tokens[0].kind == "number":
            del reader.tokens[0]  # current_timestamp(6)
        if not reader.sign(")"):
            raise _NotProven
    elif token.kind not in {"string", "number"} and not (token.kind == "word" and token.text in _CONSTANTS):
        raise _NotProven
    if reader.sign("::"):
        _type(reader, made)
    if enclosed and not reader.sign(")"):
        raise _NotProven
    return token != Token("word", "null")


def _inserts(reader: _Reader, made: _Made) -> bool:
    if reader.name() not in made.filled:
        return False
    if reader.tokens[:1] == [Token("sign", "(")]:
        reader.parentheses()
    changing = {"with", "insert", "update", "delete", "merge", "truncate", "into"}
    return not reader.words() & changing and _calls_nothing(reader.tokens, made)


def _calls_nothing(tokens: Sequence[Token], made: _Made) -> bool:
    """Whether no function is called but those that are known to change nothing."""
    for index, token in enumerate(tokens):
        if token != Token("sign", "(") or not index:
            continue
        name = tokens[index - 1]
        start = index - 1
        while start >= 2 and tokens[start - 1] == Token("sign", "."):
            start -= 2
        if start and tokens[start - 1] == Token("word", "references"):
            continue
        if made.mysql and start and tokens[start - 1] in {Token("word", "key"), Token("word", "index")}:
            continue
        words = _FUNCTIONS | _TYPES | _BEFORE_A_PARENTHESIS | (_MYSQL_TYPES if made.mysql else set())
        known = name.kind == "word" and name.text in words
        if name.kind == "quoted" or (name.kind == "word" and (start != index - 1 or not known)):
            return False
    return True
