"""What is proven to add only, and what is not: one row each, so that a protection taken out shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.additive import is_additive

NEW = "CREATE TABLE new (id int PRIMARY KEY, name text);"

ADDITIVE = [
    "",
    "-- nothing yet\n;;/* nor here */",
    NEW,
    "create table if not exists shop.new (id bigserial primary key, old int references old (id) on delete cascade)",
    "CREATE UNLOGGED TABLE new (a varchar(20) CHECK (a <> ';'), b numeric(10, 2)[] NOT NULL) WITH (fillfactor = 70);",
    "CREATE TEMP TABLE new (a int) ON COMMIT DROP",
    "CREATE TABLE new (a int) STRICT, WITHOUT ROWID",
    "CREATE TABLE new (a int) PARTITION BY RANGE (a)",
    "CREATE INDEX old_name ON old (name, other DESC);",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS old_name ON ONLY shop.old USING btree (name)",
    NEW + "CREATE UNIQUE INDEX new_name ON new (lower(name)) WHERE id > 3;",
    "CREATE SEQUENCE numbers START 1000",
    "CREATE SCHEMA IF NOT EXISTS audit AUTHORIZATION shop",
    "CREATE TYPE colour AS ENUM ('red', 'it''s blue'); ALTER TABLE old ADD COLUMN colour colour DEFAULT 'red';",
    "CREATE VIEW seen AS SELECT id, count(*) FROM old GROUP BY id",
    "ALTER TABLE old ADD COLUMN colour text",
    'alter table if exists only shop."Old" add column if not exists "a ""b" varchar(20) NULL, ADD d date DEFAULT \'1\';',
    "ALTER TABLE old ADD COLUMN n integer NOT NULL DEFAULT -1",
    "ALTER TABLE old ADD COLUMN at timestamp with time zone NOT NULL DEFAULT now()",
    "ALTER TABLE old ADD COLUMN tags text[] NOT NULL DEFAULT '{}'::text[]",
    "ALTER TABLE old ADD COLUMN at timestamp DEFAULT (CURRENT_TIMESTAMP), ADD COLUMN d double precision",
    "ALTER TABLE old ADD COLUMN new_id int REFERENCES new (id) ON DELETE SET NULL",
    "COMMENT ON COLUMN old.name IS 'DROP TABLE old; -- no'",
    "COMMENT ON TABLE old IS NULL",
    NEW + "INSERT INTO new (id, name) VALUES (1, 'DELETE FROM old'), (2, upper('b'));",
    NEW + "INSERT INTO new SELECT id, coalesce(name, '-') FROM old WHERE id IN (1, 2) ON CONFLICT DO NOTHING;",
    '-- ünïcode\r\nCREATE TABLE "Größe" (a int);\r\nINSERT INTO "Größe" VALUES (1);',
]

ADDITIVE += [
    "BEGIN;\n" + NEW + "\nCOMMIT;",
    "START TRANSACTION; CREATE TABLE new (a int); COMMIT WORK",
]

UNPROVEN = [
    "DROP TABLE old",
    NEW + "\nDROP TABLE old;",
    "UPDATE old SET name = 'x'",
    "DELETE FROM old",
    "TRUNCATE old",
    "SELECT setval('s', 1)",
    "DO $$ BEGIN DROP TABLE old; END $$",
    "CREATE OR REPLACE VIEW seen AS SELECT 1",
    "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TRIGGER t AFTER INSERT ON old BEGIN DELETE FROM old; END",
    "CREATE RULE r AS ON INSERT TO old DO INSTEAD NOTHING",
    "CREATE MATERIALIZED VIEW seen AS SELECT f()",
    "CREATE TABLE new AS SELECT f()",
    "CREATE TABLE new (a) AS SELECT f()",
    "CREATE TABLE new PARTITION OF old FOR VALUES IN (1)",
    "CREATE TABLE new () INHERITS (old)",
    "CREATE VIRTUAL TABLE new USING fts5(x)",
    "CREATE SCHEMA s CREATE TABLE x (a int) GRANT ALL ON old TO public",
    "CREATE TYPE t (INPUT = f, OUTPUT = g)",
    "CREATE DOMAIN d AS text NOT NULL",
    "CREATE UNIQUE INDEX old_name ON old (name)",
    "CREATE INDEX old_name ON old (lower(name))",
    "CREATE INDEX old_name ON old (name) WHERE 1 / id > 0",
    "CREATE TABLE IF NOT EXISTS old (id int); CREATE UNIQUE INDEX u ON old (id)",
    "ALTER TABLE old DROP COLUMN name",
    "ALTER TABLE old ADD COLUMN a int, DROP COLUMN name",
    "ALTER TABLE old RENAME TO older",
    "ALTER TABLE old ALTER COLUMN name SET NOT NULL",
    "ALTER TABLE old ADD COLUMN a int NOT NULL",
    "ALTER TABLE old ADD COLUMN a int NOT NULL DEFAULT NULL",
    "ALTER TABLE old ADD COLUMN a int DEFAULT 1 UNIQUE",
    "ALTER TABLE old ADD COLUMN a int PRIMARY KEY",
    "ALTER TABLE old ADD COLUMN a int CHECK (name IS NOT NULL)",
    "ALTER TABLE old ADD COLUMN a int GENERATED ALWAYS AS (1 / id) STORED",
    "ALTER TABLE old ADD COLUMN a int NOT NULL DEFAULT 1 REFERENCES new",
    "ALTER TABLE old ADD COLUMN a int REFERENCES new ON DELETE SET DEFAULT",
    "ALTER TABLE old ADD COLUMN a int DEFAULT f()",
    "ALTER TABLE old ADD COLUMN a int DEFAULT abs(setval('s', 1))",
    "ALTER TABLE old ADD COLUMN a strict_domain",
    "ALTER TABLE old ADD CONSTRAINT c CHECK (id > 0)",
    "ALTER TABLE old ADD CONSTRAINT text UNIQUE (name)",
    "ALTER TABLE old ADD PRIMARY KEY (id)",
    "ALTER TABLE old ADD",
    "ALTER TABLE old",
    "ALTER VIEW seen RENAME TO x",
    "COMMENT ON TABLE old",
    "INSERT INTO old VALUES (1)",
    "INSERT INTO new VALUES (1);" + NEW,
    "CREATE TABLE IF NOT EXISTS old (id int); INSERT INTO old VALUES (1)",
    "CREATE TABLE shop.new (id int); INSERT INTO new VALUES (1)",
    'CREATE TABLE "New" (id int); INSERT INTO new VALUES (1)',
    NEW + "INSERT INTO new SELECT setval('s', 1)",
    NEW + 'INSERT INTO new SELECT "f"(1)',
    NEW + "INSERT INTO new SELECT shop.lower(1)",
    NEW + "INSERT INTO new VALUES (1) ON CONFLICT (id) DO UPDATE SET name = ''",
    NEW + "INSERT INTO new WITH d AS (DELETE FROM old RETURNING id) SELECT id FROM d",
    NEW + "WITH d AS (DELETE FROM old RETURNING id) INSERT INTO new SELECT id FROM d",
    "CREATE TABLE new (a int DEFAULT setval('s', 1)); INSERT INTO new DEFAULT VALUES",
    # What is read in two ways.
    "/* /* */ DROP TABLE old; -- */",
    "CREATE TABLE new (a text /* /* */ DEFAULT ' */ ); DROP TABLE old; --' )",
    "/* never ended",
    "CREATE TABLE new (a text DEFAULT 'never ended)",
    r"CREATE TABLE new (a text DEFAULT 'a\', b text DEFAULT '); DROP TABLE old; --')",
    "CREATE TABLE new (a text DEFAULT $x$); DROP TABLE old; --$x$)",
    "CREATE TABLE new (a int, [it's] int); DROP TABLE old; --']",
    "CREATE TABLE new (a int); -- comment\rDROP TABLE old;",
    "CREATE TABLE `new` (a int)",
    "CREATE TABLE new (a int",
    "CREATE TABLE new (a int));",
    "CREATE TABLE new (a int; DROP TABLE old;)",
    "\\! rm -rf /",
    # MySQL and MariaDB run what such a comment holds.
    "/*! DROP TABLE old */",
    "/*!50003 DROP TABLE old */;",
    "/*M! DROP TABLE old */",
    "/*M!100100 DROP TABLE old */",
    "ALTER TABLE old ADD UNIQUE text (name)",
    "ALTER TABLE old ADD INDEX text (name)",
    "BEGIN; CREATE TABLE new (a int); ROLLBACK",
    "COMMIT PREPARED 'x'",
    "COMMIT AND CHAIN",
]

MARIADB = [
    """CREATE TABLE `new` (`id` int(10) unsigned NOT NULL AUTO_INCREMENT, `name` varchar(20) COLLATE utf8mb4_bin DEFAULT NULL
    COMMENT 'it''s', PRIMARY KEY (`id`), KEY `by_name` (`name`)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='x';
    INSERT INTO `new` (`name`) VALUES ('a');""",
    "ALTER TABLE `old` ADD COLUMN `a` mediumint unsigned zerofill NOT NULL DEFAULT 0 COMMENT 'a', ADD INDEX `i` (`a`)",
    "ALTER TABLE old ADD a datetime(6) NOT NULL DEFAULT current_timestamp(6) ON UPDATE current_timestamp(6)",
    "ALTER TABLE old ADD a varchar(10) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, ADD KEY (a), ADD b longtext",
    "ALTER TABLE old ADD IF NOT EXISTS a enum('x', 'y') DEFAULT 'x'",
    "CREATE INDEX i ON old (name(10), b DESC)",
    "CREATE INDEX IF NOT EXISTS `i` ON `shop`.`old` (`name`)",
    "-- a comment\n--\n--\tand one\nCREATE TABLE new (a int)",
]

NOT_ON_MARIADB = [
    "DROP TABLE `old`",
    "ALTER TABLE `old` ADD COLUMN `a` int NOT NULL",
    "ALTER TABLE old ADD a int AFTER b",
    "ALTER TABLE old ADD a int FIRST",
    "ALTER TABLE old ADD a int AUTO_INCREMENT",
    "ALTER TABLE old ADD a serial",
    "ALTER TABLE old ADD UNIQUE KEY u (name)",
    "ALTER TABLE old ADD UNIQUE text (name)",
    "ALTER TABLE old ADD FULLTEXT text (name)",
    "ALTER TABLE old ADD PRIMARY KEY (id)",
    "ALTER TABLE old ADD INDEX i (name), DROP INDEX j",
    "ALTER TABLE old ADD INDEX i ((lower(name)))",
    "ALTER TABLE old MODIFY a bigint",
    "ALTER TABLE old CHANGE a b int",
    "CREATE INDEX i ON old (lower(name))",
    "CREATE INDEX i ON old (lower(lower))",
    "CREATE UNIQUE INDEX i ON old (name)",
    "CREATE TABLE new (a int) ENGINE=MERGE UNION=(old) INSERT_METHOD=LAST",
    "CREATE TABLE new (a int) ENGINE=FEDERATED CONNECTION='mysql://elsewhere/old'",
    "CREATE TABLE new (a int) SELECT 1",
    "CREATE OR REPLACE TABLE old (a int)",
    'CREATE TABLE new (a text DEFAULT "x"); DROP TABLE old; -- ")',
    "SELECT 1 --1\n; DROP TABLE old",
    "CREATE TABLE new (a int) --DROP\n",
    "# a comment\nCREATE TABLE new (a int)",
    "/*! DROP TABLE old */",
    "/*M! DROP TABLE old */",
    "LOCK TABLES old WRITE",
    "DELIMITER //\nCREATE TABLE new (a int)//",
]


@pytest.mark.parametrize("sql", ADDITIVE)
def test_it_only_adds(sql: str) -> None:
    assert is_additive(sql)


@pytest.mark.parametrize("sql", UNPROVEN)
def test_it_is_not_proven(sql: str) -> None:
    assert not is_additive(sql)
    assert not is_additive(f"CREATE TABLE fresh (a int);\n{sql}")


@pytest.mark.parametrize("sql", MARIADB)
def test_it_only_adds_as_mariadb_reads_it(sql: str) -> None:
    assert is_additive(sql, "mariadb")
    assert is_additive(sql, "mysql")


@pytest.mark.parametrize("sql", NOT_ON_MARIADB)
def test_it_is_not_proven_as_mariadb_reads_it(sql: str) -> None:
    assert not is_additive(sql, "mariadb")
    assert not is_additive(f"CREATE TABLE fresh (a int);\n{sql}", "mysql")


def test_what_is_a_name_here_and_a_string_there_needs_the_engine() -> None:
    assert not is_additive("CREATE TABLE `new` (a int)")
    assert not is_additive("CREATE TABLE `new` (a int)", "postgresql")
    assert is_additive('CREATE TABLE "new" (a int)', "postgresql")
    assert not is_additive('CREATE TABLE "new" (a int)', "mariadb")


@given(st.text(alphabet="CREATE TABLE old(;)'\"$\\/*-\r\n1,.", max_size=60))
def test_any_text_has_an_answer(text: str) -> None:
    assert is_additive(text) in {True, False}
    assert is_additive(text, "mariadb") in {True, False}


@given(st.lists(st.sampled_from(" ".join(ADDITIVE + UNPROVEN + MARIADB + NOT_ON_MARIADB).split()), max_size=25))
def test_any_words_have_an_answer(words: list[str]) -> None:
    assert is_additive(" ".join(words)) in {True, False}
    assert is_additive(" ".join(words), "mariadb") in {True, False}
