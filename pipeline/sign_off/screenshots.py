"""Pictures of the sign-off page for the documents: a sample page, drawn by a real Chromium.

Needs the ``test`` extra (Playwright) and Debian's ``chromium``; no browser is downloaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.errors import UsageError
from pipeline.model import Language
from pipeline.sign_off.page import (
    AcceptedEdit,
    CheckShown,
    Contact,
    Difference,
    SignOffPage,
    TicketShown,
    render_page,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (360, 1280)
"""CSS pixels: a small phone, a desktop."""

_SAMPLES: dict[Language, dict[str, Any]] = {
    "fr": {
        "customer": "Imprimerie Vauban",
        "product": "Commandes",
        "time_zone": "Europe/Paris",
        "asked_by": Contact(name="Camille Roussel", mail="camille.roussel@infogerance.example"),
        "approvers": (Contact(name="Hélène Marchand"), Contact(name="Youssef Benali")),
        "tickets": (
            TicketShown(
                id="VAUBAN-118",
                title="Livrer une commande en plusieurs fois",
                changed="Une commande peut être livrée en plusieurs envois. Le reste à livrer est affiché.",
                how_to_test="1. Ouvrez la commande 20417.\n2. Livrez 3 articles sur 10.\n"
                "3. La commande doit rester ouverte, avec «\u00a0reste 7\u00a0».",
            ),
            TicketShown(
                id="VAUBAN-121",
                title="Le total était faux avec deux remises",
                changed="Les deux remises sont appliquées l’une après l’autre, comme au contrat.",
                how_to_test="Créez un devis de 100\u00a0€ avec 10\u00a0% puis 5\u00a0%\u00a0: le total doit être 85,50\u00a0€.",
            ),
        ),
        "known_issues": ("L’impression du bon de livraison reste lente au-delà de 200 lignes (VAUBAN-97).",),
        "checks": (
            CheckShown(title="L’application répond", outcome="ok"),
            CheckShown(title="La version affichée est 2.4.0", outcome="ok"),
        ),
        "differences": (
            Difference(what="Serveurs", test="app-test.vauban.example", production="app1, app2.vauban.example"),
            Difference(what="Processus", test="1", production="4"),
            Difference(what="Envoi de courriels", test=None, production="oui"),
        ),
        "reason": "Seul un commentaire a été corrigé dans le script ; les instructions sont identiques.",
    },
    "de": {
        "customer": "Stadtwerke Lindental",
        "product": "Aufträge",
        "time_zone": "Europe/Berlin",
        "asked_by": Contact(name="Jana Brückner", mail="jana.brueckner@betreuung.example"),
        "approvers": (Contact(name="Matthias Vogt"),),
        "tickets": (
            TicketShown(
                id="LINDENTAL-118",
                title="Aufträge in Teilen liefern",
                changed="Ein Auftrag kann in mehreren Sendungen geliefert werden. Die Restmenge wird angezeigt.",
                how_to_test="1. Öffnen Sie den Auftrag 20417.\n2. Liefern Sie 3 von 10 Artikeln.\n"
                "3. Der Auftrag muss offen bleiben, mit „Rest 7“.",
            ),
            TicketShown(
                id="LINDENTAL-121",
                title="Gesamtbetrag mit zwei Rabatten war falsch",
                changed="Beide Rabatte werden nacheinander angewendet, wie im Vertrag vereinbart.",
                how_to_test="Legen Sie ein Angebot über 100\u00a0€ mit 10\u00a0% und 5\u00a0% an: Es muss 85,50\u00a0€ ergeben.",
            ),
        ),
        "known_issues": ("Der Druck des Lieferscheins ist ab 200 Zeilen weiterhin langsam (LINDENTAL-97).",),
        "checks": (
            CheckShown(title="Die Anwendung antwortet", outcome="ok"),
            CheckShown(title="Die angezeigte Version ist 2.4.0", outcome="ok"),
        ),
        "differences": (
            Difference(what="Server", test="app-test.lindental.example", production="app1, app2.lindental.example"),
            Difference(what="Prozesse", test="1", production="4"),
            Difference(what="E-Mail-Versand", test=None, production="ja"),
        ),
        "reason": "Im Skript wurde nur ein Kommentar berichtigt; die Anweisungen sind unverändert.",
    },
    "en": {
        "customer": "Harbour Logistics",
        "product": "Orders",
        "time_zone": "Europe/London",
        "asked_by": Contact(name="Niamh Doyle", mail="niamh.doyle@maintenance.example"),
        "approvers": (Contact(name="Owen Carter"), Contact(name="Priya Nair")),
        "tickets": (
            TicketShown(
                id="HARBOUR-118",
                title="Deliver an order in several parts",
                changed="An order can be delivered in several shipments. What remains is shown.",
                how_to_test="1. Open order 20417.\n2. Deliver 3 of 10 items.\n"
                "3. The order must stay open, with “7 remaining”.",
            ),
            TicketShown(
                id="HARBOUR-121",
                title="The total was wrong with two discounts",
                changed="Both discounts are applied one after the other, as the contract says.",
                how_to_test="Make a quote of €100 with 10\u00a0% and then 5\u00a0%: the total must be €85.50.",
            ),
        ),
        "known_issues": ("Printing a delivery note is still slow beyond 200 lines (HARBOUR-97).",),
        "checks": (
            CheckShown(title="The application answers", outcome="ok"),
            CheckShown(title="The version shown is 2.4.0", outcome="ok"),
        ),
        "differences": (
            Difference(what="Servers", test="app-test.harbour.example", production="app1, app2.harbour.example"),
            Difference(what="Processes", test="1", production="4"),
            Difference(what="Sends mail", test=None, production="yes"),
        ),
        "reason": "Only a comment was corrected in the script; its statements are the same.",
    },
}


def sample_page(language: Language, **changes: Any) -> SignOffPage:
    """A page of an invented customer in this language, with every part filled in; ``changes`` replace fields of it."""
    sample = dict(_SAMPLES[language])
    reason = sample.pop("reason")
    filled: dict[str, Any] = {
        "from_version": "2.3.1",
        "from_release": "2.3.1+4",
        "to_version": "2.4.0",
        "to_release": "2.4.0+1",
        "due": datetime(2026, 12, 2, 17, 0, tzinfo=UTC),
        "planned": datetime(2026, 12, 8, 20, 0, tzinfo=UTC),
        "migrations": ("0012_add_shipments.sql", "0013_post_fill_remaining.sql"),
        "accepted_edits": (
            AcceptedEdit(
                script="0009_discounts.sql",
                reason=reason,
                by=sample["asked_by"].name,
                at=datetime(2026, 11, 20, 9, 12, tzinfo=UTC),
            ),
        ),
        "url": "https://test.orders.example/",
        "content": "7c9e2f41d08b5a63e17f0c94ab3d52861e4f7790c2ad6b18350fe9d4876c21ab",
        "deployment": "0412",
        "deployed_at": datetime(2026, 11, 22, 14, 5, tzinfo=UTC),
    }
    return SignOffPage(**{**sample, **filled, **changes})


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running headless Chromium of this machine, ended on leaving; :class:`UsageError` when there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UsageError("Playwright is not installed.", next_commands=["pip install 'tma-pipeline[test]'"]) from error
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise UsageError("There is no Chromium on this machine.", next_commands=["apt-get install chromium"])
    arguments = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-lcd-text"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses its sandbox as root; only pages of ours are opened
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def screenshots(folder: Path, browser: Browser | None = None) -> list[Path]:
    """Writes ``sign-off-<language>-<width>.png`` of the sample page for every language and width; gives their paths.

    ``browser`` is one that runs already; else one is started for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with nullcontext(browser) if browser else chromium() as running, tempfile.TemporaryDirectory() as scratch:
        for language in get_args(Language):
            file = Path(scratch, f"{language}.html")
            file.write_text(render_page(sample_page(language), language), "utf-8")
            for width in WIDTHS:
                window = running.new_page(viewport={"width": width, "height": 800})
                window.goto(file.as_uri())
                picture = folder / f"sign-off-{language}-{width}.png"
                window.screenshot(path=picture, full_page=True)
                window.close()
                written.append(picture)
    return written
