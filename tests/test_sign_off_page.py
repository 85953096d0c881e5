"""The sign-off page: what it says, that it says it in three languages, and that nobody's text gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigurationError, UsageError
from pipeline.model import Decision, Language, Outcome, Verdict
from pipeline.sign_off import page as page_module
from pipeline.sign_off.page import (
    AcceptedEdit,
    CheckShown,
    Contact,
    Difference,
    SchemaChange,
    SchemaKind,
    SignOffPage,
    TicketShown,
    Words,
    mail_link,
    moment_texts,
    own_templates,
    read_words,
    render_page,
    web_link,
)
from pipeline.sign_off.schema_changes import schema_changes
from pipeline.sign_off.screenshots import sample_page

LANGUAGES: tuple[Language, ...] = get_args(Language)
NOTHING: dict[str, Any] = {
    "from_version": None,
    "from_release": None,
    "approvers": (),
    "planned": None,
    "tickets": (),
    "migrations": (),
    "schema_changes": (),
    "accepted_edits": (),
    "checks": (),
    "url": None,
    "known_issues": (),
    "differences": (),
}
VOID = {"meta", "br"}
CHANGES = (
    *(SchemaChange(kind=kind, name="x", change="added") for kind in get_args(SchemaKind)),
    SchemaChange(kind="table", name="item", part_kind="column", part="price", change="changed"),
    SchemaChange(kind="table", name="item", part_kind="column", part="tint", change="removed"),
)


class Reading(HTMLParser):
    """A page as a strict reader sees it: every element with its attributes, every text, tags that balance."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def links(self) -> list[str]:
        return [str(attributes["href"]) for tag, attributes in self.elements if tag == "a"]


def variants(language: Language) -> list[SignOffPage]:
    """Pages that between them show every branch of the template."""
    full = sample_page(language)
    outcomes = tuple(CheckShown(title=outcome, outcome=outcome, detail="x") for outcome in get_args(Outcome))
    return [
        full,
        sample_page(language, **NOTHING),
        sample_page(
            language,
            tickets=(TicketShown(id="T-1", title="only a title"),),
            migrations=("0001.sql",),
            schema_changes=CHANGES,
            accepted_edits=full.accepted_edits * 2,
            checks=outcomes,
            approvers=(Contact(name="One"),),
            url="ftp://files.example/",
            asked_by=Contact(name="No mail"),
        ),
        sample_page(language, checks=outcomes[:2]),
        sample_page(language, approvers=(Contact(name="One"), Contact(name="Two"))),
    ]


# --- what it says ---------------------------------------------------------------------------------------------------------

PROMISED = {
    "fr": [
        "mercredi 2 décembre 2026 à 18:00",
        "heure normale d’Europe centrale, UTC+1",
        "Procès-verbal de recette sans réserve",
        "Procès-verbal de recette avec réserves",
        "Refus de recette",
        "mardi 8 décembre 2026 à 21:00",
    ],
    "de": [
        "Mittwoch, 2. Dezember 2026 um 18:00 Uhr",
        "Mitteleuropäische Normalzeit, UTC+1",
        "Abnahme ohne Vorbehalt",
        "Abnahme unter Vorbehalt",
        "Abnahme verweigert",
        "Dienstag, 8. Dezember 2026 um 21:00 Uhr",
    ],
    "en": [
        "Wednesday, 2 December 2026 at 17:00",
        "Greenwich Mean Time, UTC+0",
        "Acceptance without reservations",
        "Acceptance with reservations",
        "Acceptance refused",
        "Tuesday, 8 December 2026 at 20:00",
    ],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_that_the_approver_needs_is_on_the_page(language: Language) -> None:
    page = sample_page(language)
    reading = Reading(render_page(page, language))
    expected = [page.customer, page.product, "2.3.1", "2.3.1+4", "2.4.0", "2.4.0+1", page.content, "0412"]
    expected += [page.asked_by.name, str(page.asked_by.mail), *(approver.name for approver in page.approvers)]
    for ticket in page.tickets:
        expected += [ticket.id, ticket.title, str(ticket.changed), str(ticket.how_to_test)]
    expected += [*page.migrations, page.accepted_edits[0].script, page.accepted_edits[0].reason, *page.known_issues]
    expected += [check.title for check in page.checks]
    expected += [str(value) for row in page.differences for value in (row.what, row.test, row.production) if value]
    expected += PROMISED[language]
    missing = [text for text in expected if " ".join(text.split()) not in reading.text]
    assert missing == []
    assert page.url in reading.links()
    assert reading.elements[0] == ("html", {"lang": language})
    assert sum(tag == "h1" for tag, _ in reading.elements) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_with_nothing_filled_in_says_so(language: Language) -> None:
    words = Words(language, (own_templates(),))
    text = Reading(render_page(sample_page(language, **NOTHING), language)).text
    for key in ("production.not_agreed", "versions.first", "tickets.none", "issues.none", "checks.none"):
        assert " ".join(words.text(key).split()) in text
    for key in ("migrations.none", "differences.none", "decide.who_unnamed", "production.nothing"):
        assert " ".join(words.text(key).split()) in text


@pytest.mark.parametrize("outcome", ["failed", "unknown"])
def test_a_check_that_did_not_pass_is_said_at_the_top(outcome: Outcome) -> None:
    text = Reading(render_page(sample_page("en", checks=(CheckShown(title="Answers", outcome=outcome),)), "en")).text
    assert text.index("1 automatic check on the test environment did not pass") < text.index("What we ask of you")
    assert "did not pass" not in Reading(render_page(sample_page("en"), "en")).text


def test_the_same_data_gives_the_same_bytes() -> None:
    assert render_page(sample_page("de"), "de") == render_page(sample_page("de"), "de")


def test_headings_never_skip_a_level() -> None:
    levels = [
        int(tag[1]) for tag, _ in Reading(render_page(sample_page("en"), "en")).elements if re.fullmatch(r"h\d", tag)
    ]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_formal_words_cover_the_model() -> None:
    assert get_args(Decision) == page_module.DECISIONS
    assert get_args(Verdict) == page_module.VERDICTS


# --- words ----------------------------------------------------------------------------------------------------------------


def test_no_translation_is_missing_and_none_is_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Words.text
    used: dict[str, set[str]] = {language: set() for language in LANGUAGES}

    def remember(self: Words, key: str) -> str:
        used[self.language].add(key)
        return original(self, key)

    monkeypatch.setattr(Words, "text", remember)
    for language in LANGUAGES:
        for page in variants(language):
            render_page(page, language)
    files = {language: set(read_words(own_templates() / "words" / f"{language}.yaml")) for language in LANGUAGES}
    assert {language: sorted(files[language] ^ used[language]) for language in LANGUAGES} == {
        language: [] for language in LANGUAGES
    }
    assert len({frozenset(keys) for keys in files.values()}) == 1


def test_every_translation_has_the_same_places_and_is_one() -> None:
    texts = {
        language: {key: text for key, (text, _) in read_words(own_templates() / "words" / f"{language}.yaml").items()}
        for language in LANGUAGES
    }
    for key, english in texts["en"].items():
        for language in ("fr", "de"):
            translated = texts[language][key]
            assert translated, (language, key)
            assert set(re.findall(r"\{.*?\}", translated)) == set(re.findall(r"\{.*?\}", english)), (language, key)
    same = {key for key in texts["en"] if len({texts[language][key] for language in LANGUAGES}) < len(LANGUAGES)}
    # Words that two of the languages really share; anything else here is a translation that was forgotten.
    shared = {"differences.production", "differences.test", "exactly.release", "moment", "versions.release"}
    shared |= {f"schema.kind.{kind}" for kind in ("table", "type", "index")}
    assert same <= shared | {"paper.date", "paper.name", "paper.signature"}


def test_what_changes_in_the_database_is_said_thing_by_thing() -> None:
    before = {
        "tables": {
            "item": {"kind": "table", "columns": {"name": {"type": "text"}, "tint": {"type": "text"}}},
            "old": {},
        }
    }
    after = {
        "tables": {"item": {"kind": "table", "columns": {"name": {"type": "int"}, "price": {"type": "int"}}}},
        "views": {"names": {"definition": "select 1"}},
        "extensions": {"citext": {"version": "1"}},
    }
    found = [(one.kind, one.name, one.part_kind, one.part, one.change) for one in schema_changes(before, after)]
    assert found == [
        ("table", "item", "column", "name", "changed"),
        ("table", "item", "column", "price", "added"),
        ("table", "item", "column", "tint", "removed"),
        ("table", "old", None, None, "removed"),
        ("other", "citext", None, None, "added"),
        ("view", "names", None, None, "added"),
    ]
    assert schema_changes(after, after) == ()
    table = {"tables": {"item": {"kind": "table", "columns": {}}}}
    other = {"tables": {"item": {"kind": "virtual table", "columns": {}}}}
    assert [(one.name, one.part, one.change) for one in schema_changes(table, other)] == [("item", None, "changed")]


def test_french_punctuation_never_starts_a_line() -> None:
    faults = [
        (key, text)
        for key, (text, _) in read_words(own_templates() / "words" / "fr.yaml").items()
        if not key.startswith("mail.") and re.search(r" [:;?!»]|« ", text)
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("at", "zone", "language", "said", "named"),
    [
        ("2026-07-01T16:00Z", "Europe/Paris", "fr", "mercredi 1er juillet 2026 à 18:00", "heure d’été d’Europe centrale, UTC+2"),
        ("2026-10-25T00:30Z", "Europe/Berlin", "de", "Sonntag, 25. Oktober 2026 um 02:30 Uhr",
         "Mitteleuropäische Sommerzeit, UTC+2"),
        ("2026-10-25T01:30Z", "Europe/Berlin", "de", "Sonntag, 25. Oktober 2026 um 02:30 Uhr",
         "Mitteleuropäische Normalzeit, UTC+1"),
        ("2026-12-01T12:00Z", "Europe/Dublin", "en", "Tuesday, 1 December 2026 at 12:00", "Greenwich Mean Time, UTC+0"),
        ("2026-07-01T12:00Z", "Europe/Dublin", "en", "Wednesday, 1 July 2026 at 13:00", "Irish Standard Time, UTC+1"),
        ("2026-12-31T23:30Z", "Asia/Kolkata", "en", "Friday, 1 January 2027 at 05:00", "India Time, UTC+5:30"),
        ("2026-07-11T12:00Z", "America/Toronto", "fr", "samedi 11 juillet 2026 à 08:00",
         "heure d’été de l’Est nord-américain, UTC-4"),
    ],
)  # fmt: skip
def test_instants_are_said_in_the_customers_zone(at: str, zone: str, language: Language, said: str, named: str) -> None:
    words = Words(language, (own_templates(),))
    shown = [" ".join(text.split()) for text in moment_texts(datetime.fromisoformat(at), zone, words)]
    assert shown[0] == said
    assert shown[1].casefold() == named.casefold()


def test_a_time_zone_that_does_not_exist_is_refused() -> None:
    for zone in ("Europe/Pariss", "../etc/passwd", "", "Europe"):
        with pytest.raises(ValidationError):
            sample_page("fr", time_zone=zone)


def test_a_language_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no page in the language 'it'"):
        render_page(sample_page("fr"), "it")  # type: ignore[arg-type]


# --- hostile texts ----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></textarea><script src=//evil.example></script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "` onfocus=alert(1) autofocus x=`",
    "javascript:alert(1)",
    "&lt;script&gt; &amp;#60; &#x3c;script&#x3e;",
    "{{ page.__class__.__mro__ }} {% include '/etc/passwd' %} {content}",
    "<!-- --> ]]> <![CDATA[ <?php",
    "שלום עולם <b>مرحبا</b>",
    "safe\u202egnp.exe \u2066isolated \u200freordered",
    "nul\x00bell\x07escape\x1b[31m",
    "half a pair \ud800",
    "line one\r\nline two\rline three\u2028line four",
    "W" * 4000,
    "",
]  # fmt: skip


def hostile_page(text: str) -> SignOffPage:
    return SignOffPage(
        customer=text,
        product=text,
        time_zone="Europe/Paris",
        from_version=text,
        from_release=text,
        to_version=text,
        to_release=text,
        asked_by=Contact(name=text, mail=text),
        approvers=(Contact(name=text, mail=text),),
        due=datetime(2026, 12, 2, tzinfo=UTC),
        tickets=(TicketShown(id=text, title=text, changed=text, how_to_test=text),),
        migrations=(text,),
        schema_changes=(SchemaChange(kind="table", name=text, part_kind="column", part=text, change="added"),),
        accepted_edits=(AcceptedEdit(script=text, reason=text, by=text),),
        checks=(CheckShown(title=text, outcome="ok", detail=text),),
        url=text,
        known_issues=(text,),
        differences=(Difference(what=text, test=text, production=text),),
        content="0" * 64,
        deployment=text,
        deployed_at=datetime(2026, 11, 22, tzinfo=UTC),
    )


def skeleton(html: str) -> list[tuple[str, dict[str, str | None]]]:
    return [(tag, {k: v for k, v in attributes.items() if k != "href"}) for tag, attributes in Reading(html).elements]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_hostile_text_stays_text_in_every_field(text: str, language: Language) -> None:
    html = render_page(hostile_page(text), language)
    html.encode("utf-8")
    # The same elements and attributes as for a harmless text: nothing was added, nothing was closed early.
    if text:
        assert skeleton(html) == skeleton(render_page(hostile_page("harmless"), language))
    reading = Reading(html)
    assert not [tag for tag, _ in reading.elements if tag in ("script", "img", "iframe", "form", "object", "b")]
    assert not [name for _, attributes in reading.elements for name in attributes if name.startswith("on")]
    assert all(link.startswith("#") for link in reading.links())
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u200f]", html)
    if text == HOSTILE[0]:
        assert reading.text.count(text) > 10


def test_what_is_taken_out_leaves_a_mark() -> None:
    ticket = TicketShown(id="T-1\n2", title="safe\u202egnp.exe", changed="one\r\ntwo\x07")
    assert (ticket.id, ticket.title, ticket.changed) == ("T-1 2", "safe\ufffdgnp.exe", "one\ntwo\ufffd")


@pytest.mark.parametrize(
    ("address", "linked"),
    [
        ("https://test.acme.example/a?b=1&c=%22#d", True),
        ("HTTP://test.acme.example", True),
        ("http://[::1]:8080/", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)//https://", False),
        ("java\tscript:alert(1)", False),
        ("data:text/html,<script>", False),
        ("ftp://files.example/", False),
        ("//evil.example/", False),
        ("https:evil.example", False),
        ("https:///nohost", False),
        ("https://test.acme.example@evil.example/", False),
        ("https://a.example\\@evil.example/", False),
        ("https://a.example/ b", False),
        ("https://[broken/", False),
        ("", False),
        (None, False),
    ],
)
def test_only_plain_web_addresses_become_links(address: str | None, linked: bool) -> None:
    assert web_link(address) == (address if linked else None)
    links = Reading(render_page(sample_page("en", url=address), "en")).links()
    assert [link for link in links if not link.startswith(("#", "mailto:"))] == ([address] if linked else [])


def test_only_plain_mail_addresses_become_links() -> None:
    assert mail_link("a.b+c@d.example", "x") == "mailto:a.b%2Bc@d.example?subject=x"
    for address in ("a@b?cc=evil@e.example", "a@b,c@d", "a b@c", "a@b\nBcc: e@f", '"><x>@y', "@", "", None):
        assert mail_link(address) is None
    # A line break in a subject would begin a header of its own.
    assert "%0" not in str(mail_link("a@b.example", "one\r\nBcc: evil@e.example"))


def test_the_drafted_answers_carry_what_binds_the_decision() -> None:
    page = sample_page("en")
    drafts = [urlsplit(link) for link in Reading(render_page(page, "en")).links() if "&body=" in link]
    assert [draft.path for draft in drafts] == [page.asked_by.mail] * 3
    for draft, word in zip(drafts, ("without reservations", "with reservations", "refused"), strict=True):
        fields = parse_qs(draft.query)
        assert word in fields["subject"][0]
        for bound in (page.content, page.to_release, page.deployment, *(ticket.id for ticket in page.tickets)):
            assert bound in fields["body"][0]
    many = sample_page("en", tickets=tuple(TicketShown(id=f"LONG-{n}", title="t") for n in range(300)))
    assert max(map(len, Reading(render_page(many, "en")).links())) < 1900


# --- policy and look --------------------------------------------------------------------------------------------------------


def test_the_policy_allows_this_stylesheet_and_nothing_else() -> None:
    html = render_page(sample_page("en"), "en")
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policies = [a["content"] for tag, a in Reading(html).elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(style) == 1
    assert policies == [f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"]
    assert "style=" not in html
    assert "@import" not in style[0]
    assert "url(" not in style[0]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_enough_in_light_and_dark() -> None:
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1 for text."""
    css = (own_templates() / "sign-off.css").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(schemes) == 3
    for colours in schemes:
        pairs = [(ink, paper) for ink in ("ink", "quiet", "link", "ok", "bad", "open") for paper in ("paper", "panel")]
        for front, back in [*pairs, ("on-bar", "bar"), ("on-bar", "button")]:
            light, dark = sorted((_luminance(colours[front]), _luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back, colours)


# --- a workspace's own templates ----------------------------------------------------------------------------------------------


def test_a_workspace_can_override_template_style_and_words(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "en.yaml").write_text('bar: "Our acceptance <desk>"\nversions:\n  release: 1.10\n', "utf-8")
    (tmp_path / "sign-off.css").write_text("body{#x{color:#111111}}", "utf-8")
    html = render_page(sample_page("en"), "en", overrides=tmp_path)
    assert "Our acceptance &lt;desk&gt;" in html
    assert "<style>body{#x{color:#111111}}</style>" in html
    assert "1.10 <strong>" in html
    assert "What we ask of you" in html
    (tmp_path / "sign-off.html.j2").write_text("<p>{{ page.customer }} {{ words('bar') }}</p>", "utf-8")
    assert render_page(sample_page("en", customer="A&B"), "en", overrides=tmp_path).startswith("<p>A&amp;B Our")
    assert render_page(sample_page("en"), "en", overrides=tmp_path / "none") == render_page(sample_page("en"), "en")


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("sign-off.html.j2", "<p>\n{{ page.nothing }}</p>", "sign-off.html.j2:2"),
        ("sign-off.html.j2", "<p>\n{% if %}", "sign-off.html.j2:2"),
        ("sign-off.html.j2", "\n\n{{ words('no.such.word') }}", "sign-off.html.j2:3"),
        ("sign-off.css", "a</style><script>", "sign-off"),
        ("words/en.yaml", "bar: x\nbarr: y\n", "words/en.yaml:2:1"),
        ("words/en.yaml", "bar: x\nbar: y\n", "words/en.yaml:2:1"),
        ("words/en.yaml", "bar: [x]\n", "words/en.yaml:1:1"),
        ("words/en.yaml", "bar: 'x\n", "words/en.yaml:2:1"),
        ("words/en.yaml", "bar: '{nothing}'\n", "sign-off.html.j2"),
    ],
)
def test_a_template_that_cannot_be_used_names_its_place(tmp_path: Path, name: str, text: str, place: str) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        render_page(sample_page("en"), "en", overrides=tmp_path)
    assert place in str(caught.value.reasons[0].source)


def test_missing_templates_are_said_and_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "pipeline"
    (installed / "sign_off").mkdir(parents=True)
    monkeypatch.setattr(page_module, "__file__", str(installed / "sign_off" / "page.py"))
    with pytest.raises(ConfigurationError, match="missing"):
        own_templates()
    (installed / "templates").mkdir()
    (installed / "templates" / "sign-off.html.j2").touch()
    (installed.parent / "templates").mkdir()
    (installed.parent / "templates" / "sign-off.html.j2").touch()
    assert own_templates() == installed / "templates"
