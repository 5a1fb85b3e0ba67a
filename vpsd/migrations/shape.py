"""What a schema consists of, in lines that are the same on SQLite and on PostgreSQL.

`servers: column tags text, not null, default []`, `servers: unique (uuid)`, `ledger: refuses update`. Names of
constraints are left out, for SQLite forgets them. `shapes.txt` says for every revision which lines its migration adds
(+) and takes away (-); `make migrations` writes it, and a test writes it anew on both databases and compares.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

SHAPES = Path(__file__).with_name("shapes.txt")

Shape = frozenset[str]

_NOT_OURS = "t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND t.name <> 'alembic_version'"
_SQLITE_COLUMNS = f"""
SELECT t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk > 0, c.pk > 0 AND t.sql LIKE '%AUTOINCREMENT%'
FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table' AND {_NOT_OURS}"""
_SQLITE_REFERENCES = f"""
SELECT t.name, f."from", f."table", f."to"
FROM sqlite_master t, pragma_foreign_key_list(t.name) f WHERE t.type = 'table' AND {_NOT_OURS}"""
_SQLITE_INDEXES = f"""
SELECT t.name, i.name, i."unique", i.origin = 'u', c.name, (SELECT sql FROM sqlite_master s WHERE s.name = i.name)
FROM sqlite_master t, pragma_index_list(t.name) i, pragma_index_info(i.name) c
WHERE t.type = 'table' AND i.origin <> 'pk' AND {_NOT_OURS} ORDER BY t.name, i.name, c.seqno"""
_SQLITE_TRIGGERS = "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'"

_TABLES = """pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace AND s.nspname = current_schema()
AND t.relkind IN ('r', 'p') AND t.relname <> 'alembic_version'"""
_POSTGRESQL_COLUMNS = f"""
SELECT t.relname, c.attname, format_type(c.atttypid, c.atttypmod), c.attnotnull, pg_get_expr(d.adbin, d.adrelid),
    EXISTS (SELECT 1 FROM pg_index p WHERE p.indrelid = t.oid AND p.indisprimary AND c.attnum = ANY (p.indkey)),
    c.attidentity <> ''
FROM {_TABLES} JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum > 0 AND NOT c.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = c.attnum"""
_POSTGRESQL_REFERENCES = f"""
SELECT t.relname, a.attname, r.relname, b.attname
FROM {_TABLES} JOIN pg_constraint k ON k.conrelid = t.oid AND k.contype = 'f' JOIN pg_class r ON r.oid = k.confrelid
CROSS JOIN unnest(k.conkey, k.confkey) AS n(here, there)
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = n.here
JOIN pg_attribute b ON b.attrelid = r.oid AND b.attnum = n.there"""
_POSTGRESQL_INDEXES = f"""
SELECT t.relname, n.relname, i.indisunique, EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = n.oid),
    ARRAY(SELECT pg_get_indexdef(n.oid, c, true) FROM generate_series(1, i.indnkeyatts) c),
    pg_get_expr(i.indpred, t.oid)
FROM {_TABLES} JOIN pg_index i ON i.indrelid = t.oid AND NOT i.indisprimary JOIN pg_class n ON n.oid = i.indexrelid"""
_POSTGRESQL_TRIGGERS = f"""
SELECT t.relname, g.tgname, g.tgtype, CASE WHEN g.tgenabled = 'O' THEN replace(p.proname, t.relname, '') END
FROM {_TABLES} JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal JOIN pg_proc p ON p.oid = g.tgfoid"""
# By function and bits of pg_trigger.tgtype: for each row 1, before 2, delete 8, update 16, truncate 32.
_POSTGRESQL_REFUSALS = {
    ("_refuse", 2 + 8 + 16 + 32): ("refuses update", "refuses delete"),
    ("_refuse", 2 + 16 + 32): ("refuses update",),
    ("_refuse_kept", 1 + 2 + 8): ("refuses delete of what is kept",),
}
_KEPT = "WHEN OLD.at_ms >= (SELECT coalesce(max(kept_from_ms), 0) FROM event_retention) "

_KINDS = {"character varying": "varchar", "double precision": "float", "bytea": "binary", "blob": "binary"}


def describe(connection: Connection) -> Shape:
    """What there is in the database of a connection, but for alembic's own table."""
    return frozenset(_sqlite(connection) if connection.dialect.name == "sqlite" else _postgresql(connection))


def released() -> dict[str, Shape]:
    """What there is at each revision, first to last."""
    shapes: dict[str, Shape] = {}
    revision, now = "", Shape()
    for line in SHAPES.read_text(encoding="utf-8").splitlines():
        sign, _, rest = line.partition(" ")
        if sign == "+":
            now |= {rest}
        elif sign == "-":
            now -= {rest}
        else:
            revision = line
        shapes[revision] = now
    return shapes


def ours(found: Shape) -> Shape:
    """What is found of tables that vpsd has, or has had: other programs may have theirs beside them."""
    known = {table for each in released().values() for table in tables(each)}
    return frozenset(line for line in found if line.partition(":")[0] in known)


def hurts(known: Shape, found: Shape) -> Shape:
    """What code that knows only `known` would fail at: what is gone, and what its writes would be refused for.

    New tables, indexes and triggers do it no harm, nor do columns that may be left out.
    """
    gone = {line for line in known - found if ": index " not in line}
    present = tables(known)
    new = {line for line in found - known if line.partition(":")[0] in present}
    refused = {line for line in new if ": unique" in line or ": refuses" in line}
    refused |= {line for line in new if ", not null" in line and ", default " not in line}
    return frozenset(gone | refused)


def differences(wanted: Shape, found: Shape) -> str:
    """In words for a person, the first few; nothing when there are none."""
    return "; ".join(
        f"{word}: {', '.join(some)}"
        for word, some in (("it lacks", _few(wanted - found, found)), ("it has besides", _few(found - wanted, wanted)))
        if some
    )


def tables(lines: Iterable[str]) -> set[str]:
    """The names of the tables that lines are about."""
    return {line.partition(":")[0] for line in lines}


def _few(lines: Shape, others: Shape) -> list[str]:
    alone = tables(lines) - tables(others)
    rest = [line for line in sorted(lines) if line.partition(":")[0] not in alone]
    found = [*(f"table {name}" for name in sorted(alone)), *rest]
    return found if len(found) <= 5 else [*found[:5], f"and {len(found) - 5} more"]


def _sqlite(connection: Connection) -> Iterator[str]:
    def ask(sql: str) -> list[Any]:
        return list(connection.exec_driver_sql(sql))

    yield from _columns(ask(_SQLITE_COLUMNS), ask(_SQLITE_REFERENCES))
    indexes: dict[tuple[Any, ...], list[str]] = {}
    for table, name, unique, constraint, column, sql in ask(_SQLITE_INDEXES):
        where = re.split(r"\bWHERE\b", sql or "", maxsplit=1, flags=re.IGNORECASE)[1:]
        indexes.setdefault((table, name, unique, constraint, *where), []).append(column or "an expression")
    for (table, name, unique, constraint, *where), columns in indexes.items():
        yield _index(table, name, unique, constraint, columns, *where)
    for table, name, sql in ask(_SQLITE_TRIGGERS):
        verb = name.removeprefix(f"{table}_refuse_")
        head = f"BEFORE {verb.upper()} ON {table} "
        body = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        if sql.endswith(head + body):
            yield f"{table}: refuses {verb}"
        else:
            yield (
                f"{table}: refuses {verb} of what is kept"
                if sql.endswith(head + _KEPT + body)
                else (f"{table}: trigger {name}")
            )


def _postgresql(connection: Connection) -> Iterator[str]:
    def ask(sql: str) -> list[Any]:
        return list(connection.exec_driver_sql(sql))

    yield from _columns(ask(_POSTGRESQL_COLUMNS), ask(_POSTGRESQL_REFERENCES))
    for table, name, unique, constraint, columns, where in ask(_POSTGRESQL_INDEXES):
        yield _index(table, name, unique, constraint, columns, where)
    for table, name, when, function in ask(_POSTGRESQL_TRIGGERS):
        refusals = _POSTGRESQL_REFUSALS.get((function, when), (f"trigger {name}",))
        yield from (f"{table}: {refusal}" for refusal in refusals)


def _columns(columns: list[Any], references: list[Any]) -> Iterator[str]:
    refers = {(table, column): f"{other}.{theirs}" for table, column, other, theirs in references}
    for table, name, kind, not_null, default, key, identity in columns:
        says = ["identity" if identity else _kind(kind)]
        says += ["not null"] if not_null else []
        says += ["key"] if key else []
        says += [] if default is None else [f"default {_default(default)}"]
        says += [f"refers to {refers[table, name]}"] if (table, name) in refers else []
        yield f"{table}: column {name} {', '.join(says)}"


def _kind(kind: str) -> str:
    word, bracket, size = kind.lower().partition("(")
    return _KINDS.get(word, word) + bracket + size


def _default(default: str) -> str:
    plain = re.sub(r"::[a-z ]+(\(\d+\))?$", "", default).strip("'")  # PostgreSQL: '[]'::text
    return {"false": "0", "true": "1"}.get(plain, plain)


def _index(
    table: str, name: str, unique: bool, constraint: bool, columns: Iterable[str], where: str | None = None
) -> str:
    named = "unique" if constraint else f"unique index {name}" if unique else f"index {name}"
    # Brackets and casts are PostgreSQL's own; without them both say the same.
    condition = "" if where is None else " where " + " ".join(re.sub(r"[()]|::text\b", "", where).lower().split())
    return f"{table}: {named} ({', '.join(column.strip(chr(34)) for column in columns)}){condition}"
