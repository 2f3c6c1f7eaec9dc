"""A tab of a real browser that notes what it complains of."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
"""What Chromium is called."""


class Tab:
    """A page, and what it complained of."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: "ConsoleMessage") -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)
