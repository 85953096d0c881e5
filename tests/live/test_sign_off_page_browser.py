"""The sign-off page in a real Chromium: on a phone, in three languages, with hostile texts, in the dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from pipeline.model import Language
from pipeline.sign_off.page import CheckShown, Contact, Difference, SignOffPage, TicketShown, render_page
from pipeline.sign_off.screenshots import WIDTHS, chromium, sample_page, screenshots

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.live

LANGUAGES: tuple[Language, ...] = get_args(Language)
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


class Opened:
    """A page opened from its file, with everything that Chromium complained about or tried to load."""

    def __init__(self, browser: Browser, folder: Path, page: SignOffPage, language: Language, **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        file = folder / "page.html"
        file.write_text(render_page(page, language), "utf-8")
        self.window: Page = browser.new_page(**context)
        self.window.on("console", lambda message: self.complaints.append(message.text))
        self.window.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.window.on("request", lambda request: self.requests.append(request.url))
        self.window.goto(file.as_uri())

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than the window; no element may stick out either."""
        return int(
            self.window.evaluate(
                """() => Math.max(document.documentElement.scrollWidth - innerWidth, ...[...document.querySelectorAll(
                'main *:not(.hidden, thead, thead *)')].map(e => Math.ceil(e.getBoundingClientRect().right - innerWidth)))"""
            )
        )


def long_words(language: Language) -> SignOffPage:
    word = "Donaudampfschifffahrtsgesellschaftskapitän" * 8
    return sample_page(
        language,
        customer=word,
        product=word,
        to_release=word,
        deployment=word,
        asked_by=Contact(name=word, mail=f"{'a' * 60}@{'b' * 120}.example"),
        tickets=(TicketShown(id=word, title=SCRIPT + word, changed=word, how_to_test=SCRIPT + "\n" + word),),
        migrations=(word,),
        checks=(CheckShown(title=word, outcome="unknown", detail=word),),
        url=f"https://test.example/{'x' * 300}",
        known_issues=(word, "العربية " * 60),
        differences=(Difference(what=word, test=word, production=word),),
    )


@pytest.mark.parametrize("width", [320, *WIDTHS])
@pytest.mark.parametrize("language", LANGUAGES)
def test_readable_without_sideways_scrolling(browser: Browser, tmp_path: Path, language: Language, width: int) -> None:
    for page in (sample_page(language), long_words(language)):
        opened = Opened(browser, tmp_path, page, language, viewport={"width": width, "height": 740})
        assert opened.overflow() <= 0
        assert opened.complaints == []
        assert len(opened.requests) == 1
        assert opened.window.title() != "taken"
        assert opened.window.evaluate("document.documentElement.lang") == language
        assert opened.window.evaluate("document.querySelectorAll('script, img').length") == 0
        small = opened.window.evaluate(
            """() => [...document.querySelectorAll('main *')].filter(e => e.innerText && e.offsetParent
            && parseFloat(getComputedStyle(e).fontSize) < 15).map(e => e.className || e.tagName)"""
        )
        assert small == []
        # WCAG 2.2, 2.5.8 asks 24 CSS pixels of a target; a thumb wants more of a button.
        heights = opened.window.evaluate("[...document.querySelectorAll('.button')].map(e => e.offsetHeight)")
        assert len(heights) == 4
        assert min(heights) >= 44
        opened.window.close()


def test_the_stylesheet_applies_and_a_changed_one_does_not(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, sample_page("en"), "en")
    assert opened.window.evaluate("getComputedStyle(document.querySelector('.due')).borderLeftStyle") == "solid"
    html = (tmp_path / "page.html").read_text("utf-8")
    (tmp_path / "page.html").write_text(html.replace("<style>", "<style>body { color: red }"), "utf-8")
    opened.window.reload()
    assert opened.window.evaluate("getComputedStyle(document.querySelector('.due')).borderLeftStyle") == "none"
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.window.close()


def test_dark_mode_paper_and_keyboard(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, sample_page("de"), "de", color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert opened.window.evaluate(colour) == "rgb(20, 23, 28)"
    opened.window.keyboard.press("Tab")
    assert opened.window.evaluate("document.activeElement.className") == "skip"
    assert opened.window.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    opened.window.keyboard.press("Enter")
    assert opened.window.url.endswith("#answer")
    assert not opened.window.locator(".sign").is_visible()
    opened.window.emulate_media(media="print")
    assert opened.window.evaluate(colour) == "rgb(255, 255, 255)"
    assert opened.window.locator(".sign").is_visible()
    assert not opened.window.locator(".button").first.is_visible()
    assert opened.complaints == []
    opened.window.close()


def test_screen_readers_are_told_the_structure(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, sample_page("fr"), "fr", viewport={"width": 360, "height": 740})
    window = opened.window
    assert window.get_by_role("main").count() == 1
    assert window.get_by_role("heading", level=1).count() == 1
    assert window.get_by_role("region").count() == window.locator("section").count() == 10
    assert window.get_by_role("article").count() == 2
    # Laid out as blocks on a phone, the table must still be one.
    assert window.get_by_role("rowheader").count() == 3
    assert window.get_by_role("columnheader").count() == 3
    assert window.get_by_role("cell").count() == 6
    window.close()


def test_pictures_are_written_for_every_language_and_width(browser: Browser, tmp_path: Path) -> None:
    written = screenshots(tmp_path / "images", browser)
    assert sorted(picture.name for picture in written) == sorted(
        f"sign-off-{language}-{width}.png" for language in LANGUAGES for width in WIDTHS
    )
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in written)
