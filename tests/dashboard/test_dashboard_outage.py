"""The page while the sidecar or the network is away, and after (B9, B16): in a real browser."""

from collections.abc import Callable
from typing import Final

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright, as in `dev`")

from playwright.sync_api import Page, expect
from support.browser import Tab
from support.daemon import Daemon
from support.dashboard import dashboard, url_of
from support.page import check_access, go, row

from bursar import Role

SILENT_MS: Final = 20_000


def restart(daemon: Daemon, page: Page, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Ends it, waits until the page knows, and starts it again on the same port."""
    port = url_of(daemon).rpartition(":")[2]
    config = daemon.config_path.read_text(encoding="utf-8")
    daemon.terminate()
    expect(page.locator("#status")).to_contain_text("Lost since")
    meanwhile()
    fixed = config.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    daemon.config_path.write_text(fixed, encoding="utf-8")
    daemon.start()


def test_it_comes_back_after_a_restart(tab: Tab) -> None:
    page = tab.page
    with dashboard() as daemon, daemon.client() as client:
        client.set_budget("before", unit="tokens", limit=10)
        go(page, daemon)
        row(page, "before").wait_for()
        restart(daemon, page)
        with daemon.client() as again:
            again.set_budget("after", unit="tokens", limit=10)
        row(page, "after").wait_for()
        expect(page.locator("#status")).to_have_text("Live")
        expect(row(page, "before")).to_have_count(1)
    tab.complaints.clear()  # of the connection that was refused meanwhile


def test_who_reads_elsewhere_stays_there_when_it_comes_back(tab: Tab) -> None:
    page = tab.page
    with dashboard() as daemon, daemon.client() as client:
        for number in range(60):
            client.set_budget(f"a{number:02}", unit="tokens", limit=10)
        go(page, daemon, "accounts", account="a01")
        page.locator(".card").first.wait_for()
        page.get_by_role("treegrid").focus()
        page.keyboard.press("End")
        row(page, "a59").wait_for()
        restart(daemon, page)
        expect(page.locator("#status")).to_have_text("Live")
        page.wait_for_timeout(500)
        expect(row(page, "a59")).to_be_visible()
    tab.complaints.clear()  # of the connection that was refused meanwhile


def test_after_a_restart_who_had_signed_in_is_told_why_to_do_so_again(tab: Tab) -> None:
    page = tab.page
    with dashboard(access={"mode": "enforce"}) as daemon, daemon.client() as operator:
        secret = operator.tokens.create("t", role=Role.OBSERVER, ttl_s=3_600).secret
        page.goto(url_of(daemon))
        page.get_by_label("Token", exact=True).fill(secret)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("Live")
        restart(daemon, page)
        expect(page.get_by_role("alert")).to_contain_text("the sidecar has started anew")
        page.get_by_label("Token", exact=True).fill(secret)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("Live")
    tab.complaints.clear()  # of the connection that was refused, and of the session


def test_a_sidecar_that_hangs_is_lost_and_what_it_told_is_grey(tab: Tab) -> None:
    page = tab.page
    with dashboard() as daemon, daemon.client() as client:
        client.set_budget("a", unit="tokens", limit=10)
        go(page, daemon)
        amount = row(page, "a").locator(".spent-of span").first
        colour = amount.evaluate("(one) => getComputedStyle(one).color")
        with daemon.stopped():
            expect(page.locator("#status")).to_contain_text("Lost since", timeout=SILENT_MS)
            assert amount.evaluate("(one) => getComputedStyle(one).color") != colour
            check_access(page)
        expect(page.locator("#status")).to_have_text("Live")
        assert amount.evaluate("(one) => getComputedStyle(one).color") == colour


def test_older_entries_can_be_asked_for_again(tab: Tab) -> None:
    page = tab.page
    with dashboard() as daemon, daemon.client() as client:
        client.set_budget("a", unit="tokens", limit=1_000)
        for _ in range(150):
            client.record("a", tokens=1)
        go(page, daemon, "entries")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(100)
        page.context.set_offline(True)
        older = page.get_by_role("button", name="Older")
        older.click()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        page.context.set_offline(False)
        older.click()
        expect(rows).not_to_have_count(100)
    tab.complaints.clear()  # of the network


@pytest.mark.parametrize(("view", "shown"), [("entries", "tbody tr"), ("history", "svg")])
def test_what_was_asked_for_meanwhile_comes_after_a_restart(
    tab: Tab, view: str, shown: str
) -> None:
    page = tab.page
    with dashboard() as daemon, daemon.client() as client:
        client.set_budget("a", unit="tokens", limit=1_000)
        client.record("a", tokens=1)
        go(page, daemon)

        def ask() -> None:
            page.goto(f"{url_of(daemon)}/#/{view}?unit=tokens")
            expect(page.get_by_role("alert")).to_contain_text("does not answer")

        restart(daemon, page, meanwhile=ask)
        page.locator(f"main {shown}").first.wait_for()
        expect(page.locator("main .wrong")).to_have_text("")
    tab.complaints.clear()  # of the connection that was refused meanwhile
