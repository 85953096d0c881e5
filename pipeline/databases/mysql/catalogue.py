"""What a MariaDB or MySQL schema is made of, from ``information_schema``, in the shape of :mod:`pipeline.databases.catalogues`.

Left out: what an AUTO_INCREMENT has reached, who defined a view or a routine, the database's own name inside a view's text. So
two environments with other names and users, and a scratch copy, compare equal when their schemas are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.databases import OWN_TABLES, Catalogue
from pipeline.databases.mysql.history import RESTORE_TABLE
from pipeline.databases.mysql.session import name, sql, text

SCRATCH_MARK = "tma_scratch"
"""A table that marks a scratch database whose contents are ours."""

Ask = Callable[[str], list[tuple[Any, ...]]]

_COLUMNS = (
    "SELECT table_name, column_name, column_type, is_nullable, column_default, extra, collation_name,"
    " generation_expression, column_comment FROM information_schema.columns WHERE table_schema = {schema}"
)
_TABLES = (
    "SELECT table_name, table_type, engine, table_collation, table_comment FROM information_schema.tables"
    " WHERE table_schema = {schema}"
)
_INDEXES = (
    "SELECT table_name, index_name, non_unique, index_type, column_name, sub_part, {expression}"
    " FROM information_schema.statistics WHERE table_schema = {schema} ORDER BY table_name, index_name, seq_in_index"
)
_KEYS = (
    "SELECT k.table_name, k.constraint_name, k.column_name, k.referenced_table_schema, k.referenced_table_name,"
    " k.referenced_column_name, r.update_rule, r.delete_rule FROM information_schema.key_column_usage k"
    " JOIN information_schema.referential_constraints r ON r.constraint_schema = k.constraint_schema"
    " AND r.constraint_name = k.constraint_name AND r.table_name = k.table_name WHERE k.table_schema = {schema}"
    " ORDER BY k.table_name, k.constraint_name, k.ordinal_position"
)
_CHECKS_MARIADB = (
    "SELECT table_name, constraint_name, check_clause FROM information_schema.check_constraints"
    " WHERE constraint_schema = {schema}"
)
_CHECKS_MYSQL = (
    "SELECT t.table_name, c.constraint_name, c.check_clause FROM information_schema.check_constraints c"
    " JOIN information_schema.table_constraints t ON t.constraint_schema = c.constraint_schema"
    " AND t.constraint_name = c.constraint_name AND t.constraint_type = 'CHECK' WHERE c.constraint_schema = {schema}"
)
_VIEWS = (
    "SELECT table_name, view_definition, check_option, security_type FROM information_schema.views"
    " WHERE table_schema = {schema}"
)
_TRIGGERS = (
    "SELECT event_object_table, trigger_name, action_timing, event_manipulation, action_order, action_statement"
    " FROM information_schema.triggers WHERE trigger_schema = {schema}"
)
_ROUTINES = (
    "SELECT routine_type, routine_name, dtd_identifier, is_deterministic, sql_data_access, security_type, sql_mode,"
    " routine_definition FROM information_schema.routines WHERE routine_schema = {schema}"
)
_PARAMETERS = (
    "SELECT routine_type, specific_name, parameter_mode, parameter_name, dtd_identifier FROM information_schema.parameters"
    " WHERE specific_schema = {schema} AND ordinal_position > 0 ORDER BY routine_type, specific_name, ordinal_position"
)
_EVENTS = (
    "SELECT event_name, event_type, execute_at, interval_value, interval_field, status, on_completion, event_definition"
    " FROM information_schema.events WHERE event_schema = {schema}"
)


def catalogue(ask: Ask, database: str) -> Catalogue:
    """The catalogue of the schema ``database``; ``ask`` gives the rows of one statement."""

    def rows(template: str, **more: object) -> list[tuple[Any, ...]]:
        schema = sql("CONVERT({name} USING utf8mb4)", name=text(database))
        return ask(sql(template, schema=schema, **more))

    mariadb = "mariadb" in str(ask("SELECT VERSION()")[0][0]).lower()
    found: Catalogue = {kind: {} for kind in ("tables", "views", "sequences", "procedures", "functions", "events")}
    tables = found["tables"]
    for table, kind, engine, collation, comment in rows(_TABLES):
        if table in OWN_TABLES or table in {SCRATCH_MARK, RESTORE_TABLE}:
            continue
        if kind == "SEQUENCE":
            found["sequences"][table] = {"definition": _sequence(ask, database, table)}
        elif "VIEW" not in kind:
            tables[table] = {"engine": engine, "collation": collation, "comment": comment or None}
            tables[table] |= {part: {} for part in ("columns", "indexes", "constraints", "triggers")}
    for table, column, kind, nullable, default, extra, collation, generated, comment in rows(_COLUMNS):
        if table in tables:
            properties = {"default": default, "extra": extra, "generated": generated, "comment": comment}
            tables[table]["columns"][column] = {
                "type": kind,
                "nullable": nullable == "YES",
                "collation": collation,
                **{key: _plain(value, database) or None for key, value in properties.items()},
            }
    _indexes(tables, rows(_INDEXES, expression="NULL" if mariadb else "expression"))
    _foreign_keys(tables, rows(_KEYS), database)
    for table, key, clause in rows(_CHECKS_MARIADB if mariadb else _CHECKS_MYSQL):
        if table in tables:
            tables[table]["constraints"][key] = f"CHECK ({_plain(clause, database)})"
    for table, trigger, timing, event, order, body in rows(_TRIGGERS):
        if table in tables:
            tables[table]["triggers"][trigger] = f"{timing} {event} {order}: {_plain(body, database)}"
    for view, definition, check, security in rows(_VIEWS):
        found["views"][view] = {"definition": _plain(definition, database), "check": check, "security": security}
    _routines(found, rows(_ROUTINES), rows(_PARAMETERS))
    for event, kind, at, value, field, status, completion, body in rows(_EVENTS):
        when = f"at {at}" if kind == "ONE TIME" else f"every {value} {field}"
        found["events"][event] = {"when": when, "status": status, "completion": completion, "definition": _plain(body)}
    return found


def _plain(value: object, database: str = "") -> str:
    found = "" if value is None else value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return found.replace(name(database) + ".", "") if database else found


def _sequence(ask: Ask, database: str, sequence: str) -> str:
    definition = str(ask(f"SHOW CREATE SEQUENCE {name(database)}.{name(sequence)}")[0][1])
    return _plain(definition, database)


def _indexes(tables: dict[str, Any], rows: list[tuple[Any, ...]]) -> None:
    parts: dict[tuple[str, str], list[str]] = {}
    heads: dict[tuple[str, str], str] = {}
    for table, index, non_unique, kind, column, length, expression in rows:
        key = (table, index)
        heads[key] = "" if non_unique or kind in {"FULLTEXT", "SPATIAL"} else "UNIQUE "
        heads[key] += "" if kind == "BTREE" else f"{kind} "
        part = _plain(column) or f"({_plain(expression)})"
        parts.setdefault(key, []).append(part + (f"({length})" if length else ""))
    for (table, index), columns in parts.items():
        if table in tables:
            tables[table]["indexes"][index] = f"{heads[table, index]}({', '.join(columns)})"


def _foreign_keys(tables: dict[str, Any], rows: list[tuple[Any, ...]], database: str) -> None:
    ours: dict[tuple[str, str], list[str]] = {}
    theirs: dict[tuple[str, str], list[str]] = {}
    rest: dict[tuple[str, str], tuple[str, str]] = {}
    for table, key, column, schema, other, referenced, update, delete in rows:
        ours.setdefault((table, key), []).append(column)
        theirs.setdefault((table, key), []).append(referenced)
        where = other if schema == database else f"{schema}.{other}"
        rest[table, key] = (where, f"ON UPDATE {update} ON DELETE {delete}")
    for (table, key), (where, rules) in rest.items():
        if table in tables:
            columns, referenced = ", ".join(ours[table, key]), ", ".join(theirs[table, key])
            tables[table]["constraints"][key] = f"FOREIGN KEY ({columns}) REFERENCES {where} ({referenced}) {rules}"


def _routines(found: Catalogue, rows: list[tuple[Any, ...]], parameters: list[tuple[Any, ...]]) -> None:
    words: dict[tuple[str, str], list[str]] = {}
    for kind, routine, mode, parameter, given in parameters:
        words.setdefault((kind, routine), []).append(f"{mode or ''} {parameter} {_plain(given)}".strip())
    for kind, routine, gives, deterministic, access, security, mode, body in rows:
        group = found.setdefault(f"{str(kind).lower()}s", {})
        group[routine] = {
            "parameters": ", ".join(words.get((kind, routine), [])),
            "returns": _plain(gives) or None,
            "deterministic": deterministic == "YES",
            "access": access,
            "security": security,
            "sql_mode": _plain(mode),
            "definition": _plain(body),
        }
