"""What a PostgreSQL database holds in schema ``public``, as sorted lines that two databases can be compared by.

Owners and object ids are left out: they belong to the server, not to the schema. So is the order of a table's columns,
which ALTER TABLE cannot choose; that of a composite type's attributes is kept, since it is part of the type.
"""

from __future__ import annotations

from tests.servers.postgres import DatabaseAddress

QUESTIONS = {
    "relation": """
        SELECT relkind, relname, relpersistence, relrowsecurity, reloptions FROM pg_class
        WHERE relnamespace = 'public'::regnamespace""",
    "column": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
               pg_get_expr(d.adbin, d.adrelid), CASE WHEN a.attcollation <> 0 THEN a.attcollation::regcollation::text END
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')""",
    "composite type": """
        SELECT c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'c' GROUP BY c.relname""",
    "type": """
        SELECT typname, typtype, format_type(typbasetype, typtypmod), typnotnull, typdefault FROM pg_type
        WHERE typnamespace = 'public'::regnamespace""",
    "enum": """
        SELECT t.typname, string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
        FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid
        WHERE t.typnamespace = 'public'::regnamespace GROUP BY t.typname""",
    "constraint": """
        SELECT conrelid::regclass, conname, contype, condeferrable, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "index": """
        SELECT i.indexrelid::regclass, pg_get_indexdef(i.indexrelid), i.indisvalid FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace""",
    "function": """
        SELECT proname, pg_get_function_identity_arguments(oid), pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')""",
    "aggregate": """
        SELECT proname, pg_get_function_identity_arguments(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prokind NOT IN ('f', 'p')""",
    "trigger": """
        SELECT tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal""",
    "view": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "rule": "SELECT tablename, rulename, definition FROM pg_rules WHERE schemaname = 'public'",
    "policy": "SELECT * FROM pg_policies WHERE schemaname = 'public'",
    "sequence": """
        SELECT s.relname, q.seqtypid::regtype, q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcycle,
               d.refobjid::regclass, a.attname
        FROM pg_sequence q JOIN pg_class s ON s.oid = q.seqrelid
        LEFT JOIN pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i') AND d.classid = 'pg_class'::regclass
        LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE s.relnamespace = 'public'::regnamespace""",
    "extension": "SELECT extname FROM pg_extension",
    "comment": """
        SELECT c.relname, d.objsubid > 0, d.description FROM pg_description d
        JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass
        WHERE c.relnamespace = 'public'::regnamespace""",
}


def catalogue(address: DatabaseAddress) -> set[str]:
    """One line for every thing in the schema."""
    with address.connect() as connection:
        return {
            f"{kind}: " + " | ".join("" if value is None else str(value) for value in row)
            for kind, question in QUESTIONS.items()
            for row in connection.execute(question.encode()).fetchall()
        }


def differences(left: set[str], right: set[str]) -> list[str]:
    """``- `` what only the left has, ``+ `` what only the right has."""
    return sorted([f"- {line}" for line in left - right] + [f"+ {line}" for line in right - left])
