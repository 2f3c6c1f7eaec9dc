"""A real Chromium, where there is one, and pages that may not complain."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest
from support.browser import PROGRAMS, Tab
from support.daemon import Daemon

from bursar import Client

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DESKTOP: Final = {"width": 1280, "height": 800}


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """An operator of the module's daemon."""
    with daemon.client() as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium without a window, for one module: as long as it is there an event loop runs in this
    thread, beside which other tests could not have their own.
    """
    path = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium here: install Debian's `chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers have no user namespaces for its sandbox; the page is our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: "Browser", request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab; a parameter has the options of its context. It may have complained of nothing."""
    options: dict[str, Any] = {"viewport": DESKTOP, **getattr(request, "param", {})}
    with browser.new_context(**options) as context:
        context.set_default_timeout(20_000)
        made = Tab(context.new_page())
        yield made
        assert made.complaints == []
