"""The splitter against the real programs: MariaDB's client (what the server received), SQLite's ``sqlite3_complete``."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.databases import lexer
from pipeline.databases.lexer import Unclear, mysql_statements, sqlite_statements
from pipeline.databases.postgresql.scripts import prepared
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed
from tests.contracts.engines import script
from tests.servers.mariadb import MariaDbServer, program

WHOLE = [
    "SELECT 1",
    "INSERT INTO a VALUES (1, 'x;y')",
    "UPDATE a SET n = 5--3",
    "CREATE TABLE b (n int)",
    "SELECT '\\\\'",
]
MYSQL = [
    *WHOLE,
    *(";", ";", ";", "\n", "\n", " ", "\t", "//", "$$", "delim", "é", "x", "1", ",", "(", ")", "a$b", "/"),
    *("'", '"', "`", "''", '""', "``", "\\'", "\\\\", "\\N", "'a\\'b;'", '"a;\\""', "`;`", "'`'", "'\n'", "'--'"),
    *("-- x;\n", "--x\n", "# ; '\n", "/* ; ' */", "/**/", "/* a /* b */", "/*!40101 SET @a = 1 */", "/*M! x */"),
    *("\nDELIMITER //\n", "\nDELIMITER $$\n", "\ndelimiter ;;\n", "\nDELIMITER ;\n", "\n  Delimiter delim \n"),
    *("CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW BEGIN SET @x = 1; END", "END", "@x", "@@y", "'u'@'h'"),
]
SQLITE = [
    *("'", '"', "`", "[", "]", "--", "\n", "/*", "*/", ";", ";", ";", " ", "x", "end", "END", "weekend", "begin", "$"),
    *("create trigger t after insert on a begin ", "create temp trigger ", "explain ", "explain query plan ", "a;b"),
    *("create ", "temp ", "trigger ", "select case when 1 then 2 end", "--;\n", "/*;*/", "';'", "end;", ";end;"),
    *("; end /* x */ ;", "(", "é", "1.5", "temporary "),
]


def bare(text: str) -> str:
    """A statement without comments and spaces, as a line that begins with two dashes is to the client."""
    found = []
    text = re.sub(r"\A(\s*--[^\n]*)+", "", text)
    for match in re.finditer(
        r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)|(\#[^\n]*|--(?=[ \t\n\v\f\r]|\Z)[^\n]*|/\*(?!!|M!).*?\*/)|(\s+)|(.)""",
        text,
        re.DOTALL,
    ):
        found.append(match[0] if match[1] or match[4] else " ")
    return re.sub(r"\s+", "", "".join(found))


class Received:
    """What a MariaDB server is sent by its own client for a script."""

    def __init__(self, server: MariaDbServer) -> None:
        address = server.superuser()
        self.connection = address.connect()
        self.cursor = self.connection.cursor()
        for statement in ("SET GLOBAL log_output = 'TABLE'", "SET GLOBAL general_log = ON"):
            self.cursor.execute(statement)
        self.command = [
            *(
                program("mariadb"),
                "--no-defaults",
                "--protocol=tcp",
                f"--host={address.host}",
                f"--port={address.port}",
            ),
            *("--user=boss", "--force", "--batch", "--sandbox", "--default-character-set=utf8mb4"),
        ]
        self.environment = {**os.environ, "MYSQL_PWD": address.password}

    def of(self, script: str) -> tuple[list[str], str]:
        """The statements, and what the client said on standard error."""
        self.cursor.execute("TRUNCATE mysql.general_log")
        ran = subprocess.run(
            self.command, input=script.encode(), env=self.environment, capture_output=True, check=False, timeout=60
        )
        self.cursor.execute(
            "SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log WHERE command_type IN ('Query', 'Init DB')"
            " AND thread_id <> CONNECTION_ID() ORDER BY event_time"
        )
        rows = [str(row[0]) for row in self.cursor.fetchall()]
        # The client's own questions at its start.
        return [row for row in rows if row not in {"select @@version_comment limit 1", "SELECT DATABASE()"}], (
            ran.stderr.decode(errors="replace")
        )


@pytest.fixture(scope="module")
def received() -> Iterator[Received]:
    with MariaDbServer() as server:
        found = Received(server)
        yield found
        found.connection.close()


@pytest.mark.live
@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(st.sampled_from(MYSQL), min_size=1, max_size=14))
def test_statements_are_those_that_mariadbs_client_sends(received: Received, pieces: list[str]) -> None:
    script = "".join(pieces)
    try:
        ours = list(mysql_statements(script))
    except Unclear:
        return  # refused before anything is sent
    theirs, _ = received.of(script)
    # The server logs a statement without the semicolons at its end.
    assert [bare(part.text) for part in ours] == [text for text in (bare(row).rstrip(";") for row in theirs) if text]
    for part in ours:
        assert script.split("\n")[part.line - 1].strip()
        assert script[part.start :].startswith(part.text)
        assert part.text.split("\n")[0] in script.split("\n")[part.line - 1]


def sqlite_itself(text: str) -> list[str]:
    """The statements as ``sqlite3_complete`` sees them, asked at every semicolon."""
    found, start = [], 0
    for end in [number + 1 for number, character in enumerate(text) if character == ";"]:
        if sqlite3.complete_statement(text[start:end]):
            found.append(text[start:end])
            start = end
    return [*found, text[start:]]


def bare_sqlite(text: str) -> str:
    return re.sub(r"\A(\s|--[^\n]*(\n|\Z)|/\*.*?(\*/|\Z))*", "", text, flags=re.DOTALL)


@settings(max_examples=3000, deadline=None)
@given(pieces=st.lists(st.sampled_from(SQLITE), min_size=1, max_size=16))
def test_statements_are_those_that_sqlite_completes(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        ours = list(sqlite_statements(text))
    except Unclear:
        return
    theirs = [piece for piece in map(bare_sqlite, sqlite_itself(text)) if piece not in {"", ";"}]
    assert len(ours) == len(theirs)
    for part, piece in zip(ours, theirs, strict=True):
        assert piece.startswith(part.text)
        assert bare_sqlite(piece[len(part.text) :]) in {"", ";"}
        assert part.text.split("\n")[0] in text.split("\n")[part.line - 1]


@pytest.mark.parametrize("text", [".shell touch x\n", "SELECT 1;\n.read other.sql\n", "SELECT 1;\n.import a b"])
def test_commands_of_sqlites_client_are_refused(text: str) -> None:
    with pytest.raises(Unclear, match=r"\.\w+ is a command of the client's own"):
        list(sqlite_statements(text))


@pytest.mark.parametrize("quoting", [{"backslashes": False}, {"ansi_quotes": True}])
def test_backslash_escapes_only_where_the_session_says_so(quoting: dict[str, bool]) -> None:
    text = 'SELECT "a\\"; SELECT 2'
    assert [part.text for part in mysql_statements(text, **quoting)] == ['SELECT "a\\"', "SELECT 2"]
    with pytest.raises(Unclear, match="never closed"):
        list(mysql_statements(text))


def test_line_and_words_and_place_of_each_statement() -> None:
    text = "-- a\n\nDELIMITER //\nCREATE /* x */ PROCEDURE p() BEGIN SELECT 1; END//\nDELIMITER ;\nUSE app\nSELECT @x,\n'u'@'h';"
    parts = list(mysql_statements(text))
    assert [(part.number, part.line, part.words[0]) for part in parts] == [
        (1, 4, "CREATE"),
        (2, 6, "USE"),
        (3, 7, "SELECT"),
    ]
    assert (parts[0].several, parts[0].words[1]) == (True, "PROCEDURE")
    assert (parts[1].text, parts[2].variables) == ("USE app", True)
    assert not next(mysql_statements("GRANT ALL ON a TO 'u'@'h'")).variables
    assert next(mysql_statements("/*!40000 ALTER TABLE a DISABLE KEYS */")).words[:2] == ("ALTER", "TABLE")


def test_statement_of_megabytes_is_one_token_or_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: after its first words a statement is passed over in one step."""
    text = "INSERT INTO a VALUES\n" + ",\n".join(["('one; -- two', 1 - 2, \"/* x */\", `c`)"] * 50_000) + ";\nSELECT 1"
    asked = 0
    tokens = lexer._tokens

    def counting(*words: Any) -> Any:
        match = tokens(*words)

        def one(text: str, position: int) -> Any:
            nonlocal asked
            asked += 1
            return match(text, position)

        return one

    monkeypatch.setattr(lexer, "_tokens", counting)
    assert [part.line for part in mysql_statements(text)] == [1, 50_002]
    assert asked < 100


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\n/* the rest * /\nSELECT 2;", 2),
        ("SELECT 1\n/* the rest * /\n;", 2),
        ("\n\nSELECT 'x;\n", 3),
        ('SELECT 1;\n"x', 2),
        ("SELECT `x", 1),
        ("/*/", 1),
    ],
)
def test_what_is_never_closed_is_refused_with_its_line(text: str, line: int) -> None:
    for split in (mysql_statements, sqlite_statements):
        with pytest.raises(Unclear, match="never closed") as raised:
            list(split(text))
        assert raised.value.line == line


def test_a_line_of_blanks_is_passed_over_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not timed: the pattern of a line's first word is possessive, so it cannot try the rest of a long line again."""
    for text in ("INSERT INTO a VALUES ('" + " " * 300_000 + "');\n", "USE a" + " " * 300_000 + "x;\n"):
        assert [part.line for part in mysql_statements(text)] == [1]
    assert [part.text for part in mysql_statements("USE a \t\r\nSELECT 1;use b\n  uSe\tc;\nUSE\nd;")] == [
        "USE a",
        "SELECT 1",
        "use b\n  uSe\tc",
        "USE\nd",
    ]


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\n/* the /* rest */ * /\nSELECT 2;", 2),
        ("SELECT 1\n/* the rest * /\n;", 2),
        ("\n\nSELECT 'x'';\n", 3),
        ("SELECT 1;\nSELECT E'x\\'", 2),
        ('SELECT 1;\n"x', 2),
        ("SELECT 1;\n\nSELECT $a$x;$b$", 3),
        ("SELECT 1;\n'", 2),
    ],
)
def test_what_postgresql_would_never_see_closed_is_refused_with_its_line(
    text: str, line: int, transactional: bool
) -> None:
    errors = ScriptErrors("database app", "acme", "test")
    made, data = script("a.sql", text)
    with pytest.raises(Failed) as failed:
        prepared(made.model_copy(update={"transactional": transactional}), data, errors)
    assert "never closed" in failed.value.reasons[0].text
    assert failed.value.reasons[0].source == f"a.sql:{line}"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'x''" + "'",
        "SELECT E'x\\\\'",
        'SELECT "x"',
        "SELECT ''",
        "SELECT 1 /* /* x */ */",
        "SELECT $$x$$",
        "INSERT INTO a VALUES (1, 2, 'x', e'', 'y')",
    ],
)
def test_what_postgresql_sees_closed_at_the_end_is_taken(text: str) -> None:
    made, data = script("a.sql", text)
    assert prepared(made, data, ScriptErrors("database app", "acme", "test")).count == 1
