"""The dashboard's page: how to get there, what is on it, and whether all can use it."""

import re
from typing import Final

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Locator, Page, expect

from support.daemon import Daemon
from support.dashboard import url_of

PHONE: Final = {
    "viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True,
    "device_scale_factor": 2,
}  # fmt: skip
RULES: Final = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
}
# What of the view is right of the screen or cut off, save a table that scrolls by itself.
OUTSIDE: Final = """() => [...document.querySelectorAll("nav a[aria-current], main *")]
    .filter((one) => one.checkVisibility() && !one.closest(".scroll-x, .hidden"))
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 1
        || (one.matches(".pane, .grid, .end") && one.scrollWidth > one.clientWidth + 1))
    .map((one) => one.outerHTML.slice(0, 200))"""


def go(page: Page, daemon: Daemon, view: str = "", **params: str) -> None:
    """Opens a view."""
    query = "&".join(f"{name}={value}" for name, value in params.items())
    page.goto(f"{url_of(daemon)}/#/{view}{'?' if query else ''}{query}")
    expect(page.locator("#status")).to_have_text("Live")


def row(page: Page, name: str) -> Locator:
    """The row of an account, by the last part of its path."""
    rows = page.locator(".rows .row:not([hidden])")
    return rows.filter(has=page.locator(".text", has_text=exactly(name)))


def exactly(text: str) -> re.Pattern[str]:
    """All of a text."""
    return re.compile(f"^{re.escape(text)}$")


def check_access(page: Page) -> None:
    """No violation of WCAG AA, and no practice that axe knows to be worse than another."""
    found = Axe().run(page, options=RULES).response["violations"]
    told = [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found]
    assert told == []
