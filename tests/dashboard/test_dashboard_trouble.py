"""What the page says of trouble, and of what has just come or gone (B17, B18)."""

import re
from collections.abc import Iterator
from typing import Final

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright, as in `dev`")

from playwright.sync_api import expect
from support.browser import Tab
from support.daemon import Daemon
from support.dashboard import dashboard
from support.page import check_access, go, row

from bursar import Client, Threshold, Verdict

WELL: Final = 250  # more than are open at first
LOOK_MS: Final = 15_000


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with dashboard() as made:
        with made.client() as client:
            fill(client)
        yield made


def fill(client: Client) -> None:
    half = Threshold(permille=500, verdict=Verdict.WARN)
    for number in range(WELL):
        client.set_budget(f"org/well/agent-{number}", unit="tokens", limit=10)
    for name, spent in [("warned", 5), ("spent", 10), ("beyond", 12)]:
        client.set_budget(f"org/ill/{name}", unit="tokens", limit=10, thresholds=[half])
        client.record(f"org/ill/{name}", tokens=spent)
    client.set_budget("org/ill/cold/below", unit="tokens", limit=10)
    client.freeze("org/ill/cold", reason="too hot")


def test_states_are_those_of_the_terminal(tab: Tab, daemon: Daemon) -> None:
    page = tab.page
    for path, badge, told in [
        ("org/ill/warned", "warn", "answered WARN"),
        ("org/ill/spent", "empty", "Nothing is left"),
        ("org/ill/beyond", "over", "More is used than a limit"),
        ("org/ill/cold", "frozen", "Reason: too hot"),
        ("org/ill/cold/below", "frozen above", "frozen by org/ill/cold, above it. Reason: too hot"),
        ("org/well/agent-7", "", "0 open reservations"),
    ]:
        go(page, daemon, "accounts", account=path.replace("/", "%2F"))
        shown = row(page, path.rpartition("/")[2])
        expect(shown.locator(".badge").first).to_have_text(badge)
        expect(page.locator(".detail")).to_contain_text(told)


def test_trouble_is_told_where_rows_are_closed_and_shown_alone(
    tab: Tab, daemon: Daemon, client: Client
) -> None:
    page = tab.page
    go(page, daemon)
    below = row(page, "ill").locator(".below")
    expect(below).to_have_text("1 frozen, 1 over, 1 empty, 1 warn below")
    expect(row(page, "well").locator(".below")).to_have_text("")
    client.freeze("org/well/agent-9")
    expect(row(page, "well").locator(".below")).to_have_text("1 frozen below")
    only = page.get_by_role("button", name="Needs attention: 5")
    only.click()
    expect(only).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("treegrid")).to_have_attribute("aria-rowcount", "9")
    expect(row(page, "agent-9")).to_be_visible()
    check_access(page)
    client.unfreeze("org/well/agent-9")
    expect(row(page, "well")).to_have_count(0)
    page.get_by_role("button", name="Needs attention: 4").click()
    expect(row(page, "well")).to_be_visible()


def test_from_an_account_that_is_gone_there_is_a_way_on(tab: Tab, daemon: Daemon) -> None:
    page = tab.page
    go(page, daemon, "accounts", account="org%2Fill%2Fgone%2Fdeep")
    detail = page.locator(".detail")
    expect(detail).to_contain_text("or it has retired")
    expect(detail.get_by_role("link", name="Entries")).to_have_attribute(
        "href", "#/entries?account=org%2Fill%2Fgone%2Fdeep"
    )
    expect(detail.get_by_role("link", name="History")).to_be_visible()
    detail.get_by_role("link", name="To org/ill").click()
    expect(page.get_by_role("heading", name="org/ill")).to_be_visible()


def test_a_limit_below_what_is_spent_is_warned_of(tab: Tab, daemon: Daemon, client: Client) -> None:
    page = tab.page
    client.set_budget("low", unit="tokens", limit=1_000)
    client.record("low", tokens=300)
    go(page, daemon, "accounts", account="low")
    expect(row(page, "low").locator(".spent-of")).to_contain_text("300")
    page.get_by_role("button", name="Change the limit").click()
    sentence = page.locator("dialog .sentence")
    for limit, is_warned in [("500", False), ("300", True), ("100", True)]:
        page.get_by_label("New limit").fill(limit)
        page.get_by_role("button", name="Review").click()
        expect(sentence).to_contain_text("It counts at once.")
        assert ("calls stop" in str(sentence.text_content())) is is_warned, limit
        page.get_by_role("button", name="Back").click()


def test_new_entries_are_told_of_and_move_nothing(tab: Tab, daemon: Daemon, client: Client) -> None:
    page = tab.page
    for _ in range(150):
        client.record("org/well/agent-1", tokens=0, labels={"model": "m"})
    client.record("org/well/agent-1", tokens=1)
    go(page, daemon, "entries", account="org%2Fwell%2Fagent-1")
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("1 token")
    client.record("org/well/agent-1", tokens=2)
    newer = page.get_by_role("button", name="Show 1 new entry")
    newer.wait_for(timeout=LOOK_MS)
    expect(first).to_contain_text("1 token")
    newer.click()
    expect(first).to_contain_text("2 tokens")
    expect(newer).to_be_hidden()


def test_a_search_in_entries_lasts_and_says_what_it_searches(
    tab: Tab, daemon: Daemon, client: Client
) -> None:
    page = tab.page
    for _ in range(150):
        client.record("search/a", tokens=1)
    client.record("search/b", tokens=1)
    go(page, daemon, "entries", account="search")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(100)
    page.locator("#query").fill("search/b")
    seen = page.locator("tbody tr:visible")
    expect(seen).to_have_count(1)
    expect(page.get_by_text("1 of the 100 entries that are loaded")).to_be_visible()
    page.get_by_role("button", name="Older").click()
    expect(rows).to_have_count(151)
    expect(seen).to_have_count(1)
    expect(page.get_by_text("1 of the 151 entries that are loaded")).to_be_visible()


def test_entries_and_history_say_what_they_show(tab: Tab, daemon: Daemon) -> None:
    page = tab.page
    go(page, daemon, "entries", kind="crossing")
    expect(page.locator("tbody tr").first).to_contain_text("100 % of Tokens")
    go(page, daemon, "entries", **{"from": "2026-01-02T00:00", "until": "2026-01-01T00:00"})
    expect(page.get_by_role("alert")).to_have_text(re.compile("From has to be before Until"))
    go(page, daemon, "history", unit="tokens")
    page.get_by_text("Figures").click()
    expect(page.locator("details tr")).to_have_count(24)
