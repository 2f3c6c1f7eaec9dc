"""A real Chromium, where there is one, and pages that may not complain."""

import shutil
from collections.abc import Iterator
from typing import Final

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright, as in `dev`")

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, sync_playwright
from playwright.sync_api import Error as PlaywrightError

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
DESKTOP: Final = {"width": 1280, "height": 800}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here: install Debian's `chromium`")
    with sync_playwright() as playwright:
        started = _start(playwright, found)
        yield started
        started.close()


def _start(playwright: Playwright, path: str) -> Browser:
    try:
        # Containers have no user namespaces for its sandbox; the page is our own.
        return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    except PlaywrightError as error:
        pytest.skip(f"Chromium does not start here: {error.message.splitlines()[0]}")


class Tab:
    """A page of a browser that notes what it complains of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)


@pytest.fixture
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab; a parameter has the options of its context. It may have complained of nothing."""
    options = {"viewport": DESKTOP, **getattr(request, "param", {})}
    with browser.new_context(**options) as context:
        context.set_default_timeout(20_000)
        made = Tab(context.new_page())
        yield made
        assert made.complaints == []
