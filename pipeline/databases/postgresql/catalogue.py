"""What a PostgreSQL schema is made of (9.6 to 17), asked with one statement; the shape is that of :mod:`.catalogues`.

Left out: what comes with the server or with an extension, our own tables, owners, grants, the present value of a sequence,
and the order of columns, which depends on the order in which they were added.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.databases import OWN_TABLES, Catalogue

_OWN = ", ".join(f"'{name}'" for name in sorted(OWN_TABLES))

# The search path decides which names are written with their schema; set first (the rest depends on it), then asked for all.
# to_jsonb(row) ->> 'column' is NULL where a server is too old to have the column; what only newer ones can call is in a
# text that query_to_xml runs, and never is on an older one.
CATALOGUE_QUERY = rf"""
SELECT pg_catalog.json_build_array(part.kind, part.object, part.property, part.part, part.value)::pg_catalog.text
FROM (SELECT pg_catalog.set_config('search_path', 'pg_catalog', true) AS path OFFSET 0) first, LATERAL (
WITH member AS (SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e'),
space AS (
  SELECT oid, nspname FROM pg_catalog.pg_namespace
  WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND first.path = 'pg_catalog'),
rel AS (
  SELECT c.oid, c.relkind, s.nspname || '.' || c.relname AS name, c.relpersistence, pg_catalog.to_jsonb(c) AS c
  FROM pg_catalog.pg_class c JOIN space s ON s.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND c.relname NOT IN ({_OWN})
  AND NOT EXISTS (SELECT FROM member m WHERE m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND m.objid = c.oid)),
part AS (
  SELECT oid, name, CASE WHEN relkind IN ('v', 'm') THEN 'views' ELSE 'tables' END AS kind FROM rel)
SELECT 'schemas' AS kind, nspname::pg_catalog.text AS object, NULL::pg_catalog.text AS property,
  NULL::pg_catalog.text AS part, NULL::pg_catalog.json AS value FROM space
UNION ALL
SELECT CASE WHEN relkind IN ('v', 'm') THEN 'views' ELSE 'tables' END, name, facts.key, NULL, facts.value
FROM rel, LATERAL pg_catalog.json_each(pg_catalog.json_build_object(
  'kind', CASE relkind WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view'
    WHEN 'm' THEN 'materialized view' ELSE 'table' END,
  'definition', CASE WHEN relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(oid) END,
  'unlogged', CASE WHEN relpersistence = 'u' THEN true END,
  'options', c ->> 'reloptions',
  'row security', CASE WHEN c ->> 'relforcerowsecurity' = 'true' THEN 'forced'
    WHEN c ->> 'relrowsecurity' = 'true' THEN 'enabled' END,
  'partition', CASE WHEN c ->> 'relpartbound' IS NOT NULL THEN pg_catalog.substring(pg_catalog.query_to_xml(pg_catalog.format(
    'SELECT pg_catalog.pg_get_expr(relpartbound, oid) AS b FROM pg_catalog.pg_class WHERE oid = %s', oid), false, false, ''
    )::pg_catalog.text, '<b>(.*)</b>') END,
  'partitioned', CASE WHEN relkind = 'p' THEN pg_catalog.substring(pg_catalog.query_to_xml(pg_catalog.format(
    'SELECT pg_catalog.pg_get_partkeydef(%s) AS b', oid), false, false, '')::pg_catalog.text, '<b>(.*)</b>') END,
  'inherits', (SELECT pg_catalog.string_agg(i.inhparent::pg_catalog.regclass::pg_catalog.text, ', ' ORDER BY i.inhseqno)
    FROM pg_catalog.pg_inherits i WHERE i.inhrelid = rel.oid))) facts
UNION ALL
SELECT part.kind, part.name, 'columns', a.attname::pg_catalog.text, pg_catalog.json_build_object(
  'type', pg_catalog.format_type(a.atttypid, a.atttypmod), 'nullable', NOT a.attnotnull,
  'default', CASE WHEN a.generated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END,
  'generated', CASE WHEN a.generated <> '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END,
  'identity', CASE a.identity WHEN 'a' THEN 'always' WHEN 'd' THEN 'by default' END,
  'collation', CASE WHEN a.attcollation <> t.typcollation THEN l.collname END)
FROM part JOIN (
  SELECT *, COALESCE(pg_catalog.to_jsonb(x) ->> 'attgenerated', '') AS generated,
    COALESCE(pg_catalog.to_jsonb(x) ->> 'attidentity', '') AS identity FROM pg_catalog.pg_attribute x) a
  ON a.attrelid = part.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
UNION ALL
SELECT part.kind, part.name, 'constraints', k.conname::pg_catalog.text,
  pg_catalog.to_json(pg_catalog.pg_get_constraintdef(k.oid))
FROM part JOIN pg_catalog.pg_constraint k ON k.conrelid = part.oid WHERE k.contype NOT IN ('t', 'n')
UNION ALL
SELECT part.kind, part.name, 'indexes', i.relname::pg_catalog.text, pg_catalog.json_build_object(
  'definition', pg_catalog.pg_get_indexdef(i.oid), 'valid', x.indisvalid)
FROM part JOIN pg_catalog.pg_index x ON x.indrelid = part.oid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
WHERE NOT EXISTS (
  SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.oid AND k.conrelid = part.oid AND k.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT part.kind, part.name, 'triggers', g.tgname::pg_catalog.text, pg_catalog.json_build_object(
  'definition', pg_catalog.pg_get_triggerdef(g.oid), 'enabled', CASE g.tgenabled WHEN 'O' THEN 'yes' WHEN 'D' THEN 'no'
    WHEN 'A' THEN 'always' ELSE 'replica' END)
FROM part JOIN pg_catalog.pg_trigger g ON g.tgrelid = part.oid WHERE NOT g.tgisinternal
UNION ALL
SELECT part.kind, part.name, 'rules', w.rulename::pg_catalog.text, pg_catalog.to_json(pg_catalog.pg_get_ruledef(w.oid))
FROM part JOIN pg_catalog.pg_rewrite w ON w.ev_class = part.oid WHERE w.rulename <> '_RETURN'
UNION ALL
SELECT part.kind, part.name, 'policies', p.polname::pg_catalog.text, pg_catalog.json_build_object(
  'command', CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
    ELSE 'ALL' END,
  'restrictive', CASE WHEN pg_catalog.to_jsonb(p) ->> 'polpermissive' = 'false' THEN true END,
  'roles', (SELECT pg_catalog.string_agg(CASE WHEN r = 0 THEN 'public' ELSE pg_catalog.pg_get_userbyid(r)::pg_catalog.text END,
    ', ' ORDER BY 1) FROM pg_catalog.unnest(p.polroles) r),
  'using', pg_catalog.pg_get_expr(p.polqual, p.polrelid), 'check', pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
FROM part JOIN pg_catalog.pg_policy p ON p.polrelid = part.oid
UNION ALL
SELECT 'sequences', s.sequence_schema || '.' || s.sequence_name, facts.key, NULL, facts.value
FROM information_schema.sequences s
JOIN space ON space.nspname = s.sequence_schema
JOIN pg_catalog.pg_class c ON c.relnamespace = space.oid AND c.relname = s.sequence_name AND c.relkind = 'S',
LATERAL pg_catalog.json_each(pg_catalog.json_build_object(
  'type', s.data_type, 'start', s.start_value, 'minimum', s.minimum_value, 'maximum', s.maximum_value,
  'increment', s.increment, 'cycles', s.cycle_option)) facts
WHERE NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
  AND (d.deptype IN ('e', 'i') OR d.refobjid IN (
    SELECT own.oid FROM pg_catalog.pg_class own WHERE own.relname IN ({_OWN}) AND own.relkind = 'r')))
UNION ALL
SELECT 'functions', s.nspname || '.' || f.proname || '(' || pg_catalog.pg_get_function_identity_arguments(f.oid) || ')',
  facts.key, NULL, facts.value
FROM (
  SELECT p.*, COALESCE(pg_catalog.to_jsonb(p) ->> 'prokind',
    CASE WHEN pg_catalog.to_jsonb(p) ->> 'proisagg' = 'true' THEN 'a' ELSE 'f' END) AS sort FROM pg_catalog.pg_proc p) f
JOIN space s ON s.oid = f.pronamespace,
LATERAL pg_catalog.json_each(pg_catalog.json_build_object(
  'kind', CASE f.sort WHEN 'a' THEN 'aggregate' WHEN 'p' THEN 'procedure' WHEN 'w' THEN 'window function' ELSE 'function' END,
  'returns', pg_catalog.pg_get_function_result(f.oid),
  'definition', CASE WHEN f.sort <> 'a' THEN pg_catalog.pg_get_functiondef(f.oid)
    ELSE (SELECT (pg_catalog.to_jsonb(g) - 'aggfnoid')::pg_catalog.text FROM (
      SELECT *, aggtranstype::pg_catalog.regtype::pg_catalog.text AS aggtranstype,
        aggmtranstype::pg_catalog.regtype::pg_catalog.text AS aggmtranstype, NULL AS aggsortop
      FROM pg_catalog.pg_aggregate) g WHERE g.aggfnoid = f.oid) END)) facts
WHERE NOT EXISTS (SELECT FROM member m WHERE m.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND m.objid = f.oid)
UNION ALL
SELECT 'types', s.nspname || '.' || t.typname, facts.key, facts.part, facts.value
FROM pg_catalog.pg_type t JOIN space s ON s.oid = t.typnamespace LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid,
LATERAL (
  SELECT 'kind' AS key, NULL::pg_catalog.text AS part, pg_catalog.to_json(CASE t.typtype WHEN 'e' THEN 'enum'::pg_catalog.text
    WHEN 'd' THEN 'domain' WHEN 'r' THEN 'range' WHEN 'c' THEN 'composite' ELSE 'base' END) AS value
  UNION ALL SELECT 'values', NULL, pg_catalog.to_json(
    pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder))
    FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid HAVING pg_catalog.count(*) > 0
  UNION ALL SELECT 'type', NULL, pg_catalog.to_json(pg_catalog.format_type(t.typbasetype, t.typtypmod)) WHERE t.typtype = 'd'
  UNION ALL SELECT 'nullable', NULL, pg_catalog.to_json(NOT t.typnotnull) WHERE t.typtype = 'd'
  UNION ALL SELECT 'default', NULL, pg_catalog.to_json(t.typdefault) WHERE t.typtype = 'd'
  UNION ALL SELECT 'constraints', k.conname::pg_catalog.text, pg_catalog.to_json(pg_catalog.pg_get_constraintdef(k.oid))
    FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype <> 'n'
  UNION ALL SELECT 'type', NULL, pg_catalog.to_json(pg_catalog.format_type(r.rngsubtype, NULL))
    FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
  UNION ALL SELECT 'columns', a.attname::pg_catalog.text, pg_catalog.json_build_object(
      'type', pg_catalog.format_type(a.atttypid, a.atttypmod), 'position', a.attnum)
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
) facts
WHERE t.typtype IN ('e', 'd', 'r', 'c', 'b') AND (t.typrelid = 0 OR c.relkind = 'c')
AND NOT EXISTS (SELECT FROM pg_catalog.pg_type element WHERE element.typarray = t.oid)
AND NOT EXISTS (SELECT FROM member m WHERE m.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND m.objid = t.oid)
UNION ALL
SELECT 'extensions', e.extname::pg_catalog.text, facts.key, NULL, facts.value
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace,
LATERAL pg_catalog.json_each(pg_catalog.json_build_object('version', e.extversion, 'schema', n.nspname)) facts
) part
"""  # noqa: S608 (names of ours only)
"""One statement, whose rows are one text each: a JSON array of kind, object, property, part or null, value."""

_EXPRESSIONS = {"definition", "default", "generated", "using", "check"}
_CAST = re.compile(
    r'::(?:pg_catalog\.)?(?:"[^"]+"|[\w.]+)(?: varying| precision| with(?:out)? time zone)*(?:\(\d+(?:,\d+)?\))?(?:\[\])*'
)


def catalogue(query: Callable[[str], list[tuple[Any, ...]]]) -> Catalogue:
    """The schema now. ``query`` gives the rows of one statement, run in a transaction (a read-only one will do)."""
    return catalogue_of(json.loads(row[0]) for row in query(CATALOGUE_QUERY))


def catalogue_of(rows: Iterable[Sequence[Any]]) -> Catalogue:
    """The catalogue out of the rows of :data:`CATALOGUE_QUERY`, each read from JSON.

    What a function does is given as SHA-256, since it may be long and is nobody's to read.
    """
    found: Catalogue = {
        kind: {} for kind in ("extensions", "functions", "schemas", "sequences", "tables", "types", "views")
    }
    for kind, name, key, part, value in rows:
        thing = found[kind].setdefault(name, {})
        if kind == "functions" and key == "definition":
            value = "sha256 " + hashlib.sha256(str(value).encode()).hexdigest()
        if isinstance(value, dict):
            value = {name: each for name, each in sorted(value.items()) if each is not None}
        if key is None or value is None:
            continue
        if part is None:
            thing[key] = value
        else:
            thing.setdefault(key, {})[part] = value
    sorted_kinds: Catalogue = json.loads(json.dumps(found, sort_keys=True))
    return sorted_kinds


def loosened(schema: Catalogue) -> Catalogue:
    """The catalogue without the casts and brackets in expressions.

    The server writes these anew each time that it reads its own text: ``x IN ('a')`` on a varchar is written in one way when
    it was typed, and in another after a restore.
    """
    return {kind: {name: _loosened(thing) for name, thing in things.items()} for kind, things in schema.items()}


def _loosened(value: Mapping[str, Any], *, all_of_it: bool = False) -> dict[str, Any]:
    loose: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            loose[key] = _loosened(each, all_of_it=key in {"constraints", "rules"})
        elif isinstance(each, str) and (all_of_it or key in _EXPRESSIONS):
            loose[key] = re.sub(r"[()\s]+", "", _CAST.sub("", each))
        else:
            loose[key] = each
    return loose
