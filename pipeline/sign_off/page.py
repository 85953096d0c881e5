"""The sign-off page: what the customer's approver is asked to decide on, as one self-contained HTML file.

:class:`SignOffPage` is pure data, :func:`render_page` turns it into HTML. Same data, same language, same templates: same
bytes, so that what was shown can be kept by hash; no clock and no network is asked.

Everything that comes from people (tickets, names, file names, settings) is escaped; only ``http`` and ``https`` addresses
and plain mail addresses become links; the page runs no script and loads nothing (Content-Security-Policy, W3C CSP level 3,
with the one stylesheet allowed by its hash).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

from pipeline.errors import ConfigurationError, Reason, UsageError
from pipeline.model import Instant, Language, Noun, Outcome, Sha256

if TYPE_CHECKING:
    from jinja2 import Environment as Templates
    from markupsafe import Markup
    from yaml import MappingNode

TEMPLATE = "sign-off.html.j2"
STYLESHEET = "sign-off.css"

DECISIONS = ("approved", "approved-with-reservations", "rejected")
VERDICTS = ("works", "works-with-remark", "does-not-work", "not-tested")

_LOCALES: Mapping[str, str] = {"fr": "fr", "de": "de", "en": "en_GB"}

# Some mail programs cut a mailto: address at about 2,000 characters; a draft cut in its middle would look like a decision.
_LONGEST_MAILTO = 1900

# Controls that HTML forbids, lone surrogates, and the overrides that make text read other than it is (Unicode TR 36).
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
_MAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


# --- what the page says --------------------------------------------------------------------------------------------------


def _text(value: str) -> str:
    return _UNSHOWABLE.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _line(value: str) -> str:
    return " ".join(_text(value).split())


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"no such time zone: {value!r}; write an IANA name, for instance Europe/Paris") from error
    return value


Text = Annotated[str, AfterValidator(_text)]
"""Free text of several lines; characters that cannot be shown, or that reorder what is read, become U+FFFD."""

Line = Annotated[str, AfterValidator(_line)]
"""Like :data:`Text`, on one line."""


class Contact(Noun):
    """A person named on the page."""

    name: Line
    mail: Line | None = None


class TicketShown(Noun):
    """One ticket of the release: what the approver is asked to try."""

    id: Line
    title: Line
    changed: Text | None = None
    how_to_test: Text | None = None


SchemaKind = Literal[
    "table", "view", "function", "type", "sequence", "column", "index", "constraint", "trigger", "other"
]
"""What a schema is made of, as far as the page has words for it."""


class AcceptedEdit(Noun):
    """A script that was edited after it was applied, and why an engineer found this harmless (``migrate.accept``)."""

    script: Line
    reason: Text
    by: Line | None = None
    at: Instant | None = None


class CheckShown(Noun):
    """An automatic check after the deployment on test, with its outcome."""

    title: Line
    outcome: Outcome
    detail: Text | None = None


class Difference(Noun):
    """What differs on purpose between test and production; None: not set there. Never a secret, only its reference."""

    what: Line
    test: Text | None
    production: Text | None


class SchemaChange(Noun):
    """One thing of the database that is new, gone or another: an object, or with ``part`` a part of it (a column)."""

    kind: SchemaKind
    name: Line
    part_kind: SchemaKind | None = None
    part: Line | None = None
    change: Literal["added", "removed", "changed"]


class SignOffPage(Noun):
    """Everything that the page says about one release as deployed on test.

    ``from_version`` and ``from_release`` are what production runs now (None: nothing yet). ``migrations`` are the ids of
    the scripts that production will run with this release, in order, ``schema_changes`` what they changed on test.
    ``content`` is the content hash that the decision is bound to; ``deployment`` the number of the deployment on test.
    Instants are UTC, shown in ``time_zone`` (IANA name). ``asked_by`` is the engineer to whom the approvers answer.
    """

    customer: Line
    product: Line
    time_zone: Annotated[str, AfterValidator(_zone)]
    from_version: Line | None
    from_release: Line | None
    to_version: Line
    to_release: Line
    asked_by: Contact
    approvers: tuple[Contact, ...] = ()
    due: Instant
    planned: Instant | None = None
    tickets: tuple[TicketShown, ...] = ()
    migrations: tuple[Line, ...] = ()
    schema_changes: tuple[SchemaChange, ...] = ()
    accepted_edits: tuple[AcceptedEdit, ...] = ()
    checks: tuple[CheckShown, ...] = ()
    url: Line | None = None
    known_issues: tuple[Text, ...] = ()
    differences: tuple[Difference, ...] = ()
    content: Sha256
    deployment: Line
    deployed_at: Instant


# --- links ---------------------------------------------------------------------------------------------------------------


def web_link(address: str | None) -> str | None:
    """The address when it is safe to link, else None: ``http`` or ``https``, with a host, without a user name in it."""
    if not address or re.search(r"[\s\\\ufffd]", address):
        return None
    try:
        parts = urlsplit(address)
        safe = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return None
    return address if safe else None


def mail_link(address: str | None, subject: str = "", body: str = "") -> str | None:
    """A ``mailto:`` link (RFC 6068) with subject and body filled in, or None when it is no plain mail address.

    The body is left out when the link would be longer than mail programs take whole.
    """
    if not address or not _MAIL.fullmatch(address):
        return None
    link = f"mailto:{quote(address, safe='@')}?subject={quote(_line(subject), safe='')}"
    longer = f"{link}&body={quote(body.replace(chr(10), chr(13) + chr(10)), safe='')}"
    return longer if body and len(longer) <= _LONGEST_MAILTO else link


# --- words ---------------------------------------------------------------------------------------------------------------


class Words:
    """The words of one language: ``words("due.heading", date=…)`` is escaped HTML with the places filled in.

    A workspace's own ``templates/words/<language>.yaml`` replaces the words it names, and only these. A key that is not
    there raises ``KeyError`` (a bug of the template), a place that no value fills too.
    """

    def __init__(self, language: Language, folders: tuple[Path, ...]) -> None:
        self.language = language
        self._texts: dict[str, str] = {}
        for folder in reversed(folders):
            file = folder / "words" / f"{language}.yaml"
            if not file.is_file():
                continue
            about = file.stat()
            found = _read_words(file, about.st_mtime_ns, about.st_size)
            unknown = [place for key, (_, place) in found.items() if self._texts and key not in self._texts]
            if unknown:
                raise ConfigurationError(
                    "These words are not used by any page.",
                    reasons=[Reason("no such word", place) for place in unknown],
                    next_commands=["compare it with the words/ folder that comes with the pipeline"],
                )
            self._texts.update({key: text for key, (text, _) in found.items()})

    def __call__(self, key: str, **values: object) -> Markup:
        """The words under ``key`` as HTML; values are escaped unless they are markup already."""
        from markupsafe import Markup, escape

        return Markup(  # noqa: S704 - both the words and the values were escaped just before
            _PLACEHOLDER.sub(lambda place: str(escape(values[place[1]])), str(escape(self.text(key))))
        )

    def plain(self, key: str, **values: object) -> str:
        """The words under ``key`` as plain text, for a mail."""
        return _PLACEHOLDER.sub(lambda place: str(values[place[1]]), self.text(key))

    def count(self, key: str, number: int) -> Markup:
        """The words for this number of things, by the plural rules of the language (CLDR): ``key.one``, ``key.other``."""
        from babel import Locale

        form = Locale.parse(_LOCALES[self.language]).plural_form(number)
        return self(f"{key}.{form if form in ('one', 'other') else 'other'}", count=number)

    def text(self, key: str) -> str:
        """The words under ``key`` as they stand in the file."""
        return self._texts[key]


def read_words(file: Path) -> dict[str, tuple[str, str]]:
    """The words of one file: dotted key → (text, ``file:line:column``). Every scalar is text, whatever it looks like."""
    import yaml

    try:
        root = yaml.compose(file.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        problem = getattr(error, "problem", None) or "it is not UTF-8"
        raise ConfigurationError("A file of words cannot be read.", reasons=[Reason(problem, place)]) from error
    found: dict[str, tuple[str, str]] = {}
    if isinstance(root, yaml.MappingNode):
        for key, text, place in _flatten(root, str(file), ""):
            if text is None or key in found:
                fault = "this must be a text" if text is None else "this key stands here twice"
                raise ConfigurationError("A file of words cannot be used.", reasons=[Reason(f"{key}: {fault}", place)])
            found[key] = (text, place)
    return found


@lru_cache(maxsize=16)
def _read_words(file: Path, _changed: int, _size: int) -> Mapping[str, tuple[str, str]]:
    return read_words(file)


def _flatten(node: MappingNode, file: str, prefix: str) -> Iterator[tuple[str, str | None, str]]:
    from yaml import MappingNode, ScalarNode

    for key_node, value in node.value:
        key = prefix + str(key_node.value)
        place = f"{file}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        if isinstance(value, MappingNode):
            yield from _flatten(value, file, f"{key}.")
        else:
            yield key, value.value.strip() if isinstance(value, ScalarNode) else None, place


# --- dates ---------------------------------------------------------------------------------------------------------------


def moment_texts(at: datetime, time_zone: str, words: Words) -> tuple[str, str]:
    """An instant as people say it (weekday, date, time), and its zone (name, distance from UTC), in the language."""
    from babel.dates import format_date, format_datetime, get_timezone_name

    zone = ZoneInfo(time_zone)
    local = at.astimezone(zone)
    locale = _LOCALES[words.language]
    minutes = _minutes_from_utc(at, zone)
    hours, rest = divmod(abs(minutes), 60)
    distance = f"UTC{'-' if minutes < 0 else '+'}{hours}{f':{rest:02}' if rest else ''}"
    # Not by tzinfo.dst(), which Babel asks: Dublin and Casablanca count their winter time as the exception there.
    year_around = (_minutes_from_utc(at + timedelta(weeks=week), zone) for week in range(-26, 27))
    variant: Literal["daylight", "standard"] = "daylight" if minutes > min(year_around) else "standard"
    date = format_date(local.date(), "full", locale=locale)
    if words.language == "fr" and local.day == 1:
        date = date.replace(" 1 ", " 1er ", 1)  # CLDR has no form for the first of the month, which French says as 1er
    said = words.plain(
        "moment",
        date=date,
        time=format_datetime(local, "HH:mm", locale=locale),
    )
    name = get_timezone_name(zone, zone_variant=variant, locale=locale)
    return said, f"{name}, {distance}"


def _minutes_from_utc(at: datetime, zone: ZoneInfo) -> int:
    offset = at.astimezone(zone).utcoffset()
    return int(offset.total_seconds() // 60) if offset else 0


# --- rendering -----------------------------------------------------------------------------------------------------------


def own_templates() -> Path:
    """The folder of the templates that come with the pipeline: inside an installed wheel, or the checkout's."""
    package = Path(__file__).resolve().parent.parent
    # The wheel's own first: beside an installed package, site-packages/templates could be somebody else's.
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / TEMPLATE).is_file():
            return folder
    raise ConfigurationError(
        "The templates that come with the pipeline are missing.",
        reasons=[Reason(f"there is no {TEMPLATE}", str(package / "templates"))],
        next_commands=["pip install --force-reinstall tma-pipeline"],
    )


def render_page(page: SignOffPage, language: Language, *, overrides: Path | None = None) -> str:
    """The page as one HTML document without scripts and without anything to load, in ``language``.

    ``overrides`` is a workspace's own ``templates`` folder: a template or stylesheet of the same name there is used in
    place of ours, and its words in place of the same words of ours. Raises :class:`ConfigurationError` for a template
    or words that cannot be used, with file and line.
    """
    import jinja2

    if language not in get_args(Language):
        known = ", ".join(get_args(Language))
        raise UsageError(f"There is no page in the language {language!r}.", reasons=[f"the languages are {known}"])
    own = own_templates()
    folders = (overrides, own) if overrides and overrides.is_dir() and overrides.resolve() != own else (own,)
    words = Words(language, folders)
    templates = _templates(folders, tuple((folder / TEMPLATE).is_file() for folder in folders))
    try:
        style = _stylesheet(templates)
        return templates.get_template(TEMPLATE).render(
            page=page, language=language, words=words, style=style, **_names(page, words)
        )
    except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
        raise ConfigurationError(
            "The template of the sign-off page cannot be used.",
            reasons=[Reason(f"{type(error).__name__}: {error}", _place(error, folders))],
            next_commands=["compare it with the template that comes with the pipeline"],
        ) from error


@lru_cache(maxsize=8)  # compiling costs ten times what rendering does; Jinja2 notices a changed file, not a new one
def _templates(folders: tuple[Path, ...], _there: tuple[bool, ...]) -> Templates:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _stylesheet(templates: Templates) -> dict[str, Any]:
    """The stylesheet as it stands in the page, with the CSP source that allows exactly it."""
    import jinja2
    from markupsafe import Markup

    loader = templates.loader or jinja2.FileSystemLoader(())
    text = loader.get_source(templates, STYLESHEET)[0]  # as it stands: "{#" means something else in CSS
    if "</" in text:
        raise TypeError(f"{STYLESHEET} holds '</', which would end it inside the page")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "source": f"'sha256-{digest}'"}  # noqa: S704 - our stylesheet, checked above


def _names(page: SignOffPage, words: Words) -> dict[str, Any]:
    """What the template may call: dates, links, and the drafts of the answers."""
    from markupsafe import Markup, escape

    def moment(at: datetime) -> Markup:
        machine = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        said, zone = (escape(text) for text in moment_texts(at, page.time_zone, words))
        return Markup(  # noqa: S704 - digits, and texts escaped above
            f'<time datetime="{machine}">{said}</time> <span class="zone">({zone})</span>'
        )

    def answer_link(decision: str) -> str | None:
        subject = words.plain(
            f"mail.subject.{decision}", customer=page.customer, product=page.product, release=page.to_release
        )
        lines = [f"{ticket.id}: " for ticket in page.tickets]
        body = words.plain(
            f"mail.body.{decision}",
            product=page.product,
            release=page.to_release,
            deployment=page.deployment,
            content=page.content,
            tickets="\n".join(lines) or "-",
        )
        return mail_link(page.asked_by.mail, subject, body)

    return {
        "moment": moment,
        "web_link": web_link,
        "mail_link": mail_link,
        "answer_link": answer_link,
        "decisions": DECISIONS,
        "verdicts": VERDICTS,
    }


def _place(error: BaseException, folders: tuple[Path, ...]) -> str:
    """``file:line`` of the template in which the error arose, as far as it is known."""
    line = getattr(error, "lineno", None)
    if line is not None:
        return f"{getattr(error, 'filename', None) or getattr(error, 'name', TEMPLATE)}:{line}"
    place, trace = str(folders[0] / TEMPLATE), error.__traceback__
    while trace is not None:
        if any(trace.tb_frame.f_code.co_filename.startswith(str(folder)) for folder in folders):
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
