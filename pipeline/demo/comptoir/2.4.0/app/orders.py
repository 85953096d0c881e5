"""The order book: what is allowed, how amounts are written, what is shown."""

from __future__ import annotations

import sqlite3

SMALLEST_ORDER = 1
"""Packages; an order of fewer is refused."""


def amount(cents: int) -> str:
    """An amount as the pages write it."""
    return f"{cents / 100:.2f} EUR"


NEEDED_COLUMNS = {"number", "customer", "article", "quantity", "cents", "delivery_day"}
"""Columns of the table orders that this version reads or writes."""

SHOWN = ("number", "customer", "article", "quantity", "total", "delivery_day")
"""Columns of the page, in order."""

ASKED_FOR = ("customer", "article", "quantity")
"""Fields of the form."""

PRICES = {"": 4200}
"""Cents for a package, by article; "" is any other."""


def problems(form: dict[str, str]) -> list[str]:
    """Every reason to refuse an order, as names in words.json."""
    found = []
    if not form.get("customer") or not form.get("article"):
        found.append("incomplete")
    if not form.get("quantity", "").isdigit() or int(form["quantity"]) < SMALLEST_ORDER:
        found.append("too_few")
    return found


def add(database: sqlite3.Connection, form: dict[str, str]) -> None:
    """Writes an order that has no problems."""
    cents = int(form["quantity"]) * PRICES.get(form["article"], PRICES[""])
    database.execute(
        "INSERT INTO orders (customer, article, quantity, cents, delivery_day)"
        " VALUES (?, ?, ?, ?, date('now', '+3 days'))",
        (form["customer"], form["article"], int(form["quantity"]), cents),
    )


def listed(database: sqlite3.Connection) -> list[dict[str, object]]:
    """The orders, newest first."""
    rows = database.execute("SELECT * FROM orders ORDER BY number DESC LIMIT 50")
    return [{**row, "total": amount(row["cents"]), "delivery_day": row["delivery_day"] or "–"} for row in rows]
