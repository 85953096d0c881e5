"""Comptoir's web server: the order book at ``/``, the state of things as JSON at ``/health``.

``server.py --detach CONFIGURATION`` takes its port, then goes on in the background and writes ``comptoir.pid`` beside its
configuration; it ends with 1 and one line on standard error where the port is taken. Python's standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import os
import sqlite3
import sys
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import orders

HERE = Path(__file__).resolve().parent
RELEASE = HERE.parent
WORDS = json.loads((HERE / "words.json").read_text(encoding="utf-8"))
STYLE = """body{font:1rem/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd}
form{margin:1.5rem 0}input{font:inherit;width:9rem}footer{color:#666;font-size:.85rem}.no{color:#a00}"""


class Comptoir(ThreadingHTTPServer):
    """The server with its configuration; the database is opened anew for each request."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, configuration: Path) -> None:
        self.settings = json.loads(configuration.read_text(encoding="utf-8"))
        self.database_path = configuration.parent / self.settings["database"]
        self.words = WORDS[self.settings["language"]]
        super().__init__((self.settings["address"], self.settings["port"]), Page)

    def database(self) -> sqlite3.Connection:
        """The order book; an absent one is an error, never made."""
        database = sqlite3.connect(f"file:{self.database_path}?mode=rw", uri=True, timeout=5)
        database.row_factory = sqlite3.Row
        return database

    def token(self) -> str:
        """What a form must send back, so that no other site can place an order."""
        return hmac.new(self.settings["form_key"].encode(), b"order", hashlib.sha256).hexdigest()


class Page(BaseHTTPRequestHandler):
    """One request."""

    server: Comptoir

    def do_GET(self) -> None:
        """The order book, or the state of things."""
        if self.path == "/health":
            status, answer = health(self.server)
            self.answer(status, "application/json", json.dumps(answer, ensure_ascii=False) + "\n")
        elif self.path == "/":
            self.order_book(HTTPStatus.OK, "")
        else:
            self.answer(HTTPStatus.NOT_FOUND, "text/plain", "404\n")

    def do_POST(self) -> None:
        """A new order from the form; refused with the reasons of this installation's own rules."""
        length = min(int(self.headers.get("Content-Length") or 0), 10_000)
        form = {name: values[0].strip() for name, values in parse_qs(self.rfile.read(length).decode()).items()}
        if not hmac.compare_digest(form.pop("token", ""), self.server.token()):
            self.answer(HTTPStatus.FORBIDDEN, "text/plain", "403\n")
            return
        refused = orders.problems(form)
        if refused:
            self.order_book(HTTPStatus.UNPROCESSABLE_ENTITY, ", ".join(self.server.words[word] for word in refused))
            return
        with closing(self.server.database()) as database, database:
            orders.add(database, form)
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.end_headers()

    def order_book(self, status: HTTPStatus, complaint: str) -> None:
        """The main page."""
        words, settings = self.server.words, self.server.settings
        with closing(self.server.database()) as database:
            listed = orders.listed(database)
        head = "".join(f"<th>{html.escape(words[column])}" for column in orders.SHOWN)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(order[column]))}" for column in orders.SHOWN) for order in listed
        )
        fields = " ".join(
            f'<label>{html.escape(words[name])} <input name="{name}"></label>' for name in orders.ASKED_FOR
        )
        self.answer(
            status,
            "text/html",
            f'<!doctype html><html lang="{settings["language"]}"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{html.escape(settings["title"])}</title>'
            f"<style>{STYLE}</style><h1>{html.escape(settings['title'])}</h1><h2>{html.escape(words['orders'])}</h2>"
            f'<p class="no">{html.escape(complaint)}</p><table><tr>{head}</tr>{rows}</table>'
            f'<form method="post" action="/orders"><input type="hidden" name="token" value="{self.server.token()}">'
            f"{fields} <button>{html.escape(words['place'])}</button></form>"
            f"<footer>Comptoir {html.escape(RELEASE.name)} · {html.escape(settings['host'])}</footer>\n",
        )

    def answer(self, status: int, kind: str, text: str) -> None:
        """Sends one whole answer."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def health(server: Comptoir) -> tuple[int, dict[str, object]]:
    """Which release this is, and whether its database has what it needs: 200, or 503 with the reason."""
    answer: dict[str, object] = {"application": "comptoir", "release": RELEASE.name, "host": server.settings["host"]}
    try:
        with closing(server.database()) as database:
            columns = {row["name"] for row in database.execute("PRAGMA table_info(orders)")}
            missing = sorted(orders.NEEDED_COLUMNS - columns)
            if missing:
                answer["database"] = {"state": "too old", "missing_columns": missing}
                return 503, {"status": "broken", **answer}
            count = database.execute("SELECT count(*) FROM orders").fetchone()[0]
    except sqlite3.Error as error:
        answer["database"] = {"state": "not reachable", "reason": str(error)}
        return 503, {"status": "broken", **answer}
    answer["database"] = {"state": "ok", "orders": count}
    return 200, {"status": "ok", **answer}


def detach(log: Path) -> None:
    """Goes on in a session of its own, holding on to nothing of whoever started it."""
    sys.stdout.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(descriptor, target)


def main(arguments: list[str]) -> int:
    """Serves until it is ended by a signal."""
    detached = arguments[:1] == ["--detach"]
    configuration = Path(arguments[-1]).resolve()
    try:
        server = Comptoir(configuration)
    except OSError as error:
        settings = json.loads(configuration.read_text(encoding="utf-8"))
        print(f"comptoir: port {settings['port']} of {settings['address']}: {error.strerror}", file=sys.stderr)
        return 1
    if detached:
        detach(configuration.with_name("comptoir.log"))
    configuration.with_name("comptoir.pid").write_text(f"{os.getpid()}\n", encoding="ascii")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
