"""The dashboard in a real browser (B9 to B14): every view and change, by mouse and by keyboard."""

import re
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright, as in `dev`")

from playwright.sync_api import Dialog, expect
from support.browser import Tab
from support.daemon import Daemon
from support.dashboard import dashboard, url_of
from support.page import OUTSIDE, PHONE, check_access, go, row
from support.watched import GIB, Watched

from bursar import Client, Role, Threshold, Usage, UsageEstimate, Verdict

HOSTILE: Final = "<img src=x onerror=alert(1)>\"'&</script>"
RATES: Final = {
    "models": [
        {"name": "small", "input_nanos_per_million": 10**9, "output_nanos_per_million": 10**9}
    ]
}
VIEWS: Final = ("accounts", "reservations", "gpus", "incidents", "entries", "history")
LIGHT_AND_DARK: Final = [{"color_scheme": "light"}, {"color_scheme": "dark"}]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with dashboard(rates=RATES) as made:
        with made.client() as client:
            fill(client)
        yield made


def fill(client: Client) -> None:
    warn = Threshold(permille=500, verdict=Verdict.WARN)
    client.set_budget("acme", unit="usd_nanos", limit="250 USD", period="month")
    client.set_budget("acme/a", unit="tokens", limit=1_000_000, period="day", thresholds=[warn])
    client.set_budget("acme/a", unit="vram_bytes", limit="80 GiB")
    client.set_budget("acme/b", unit="usd_nanos", limit="5 USD", period="rolling:3600s")
    client.record("acme/a", tokens=600_000, labels={"model": HOSTILE})
    client.freeze("acme/b", reason=HOSTILE)
    client.reserve("acme/a", tokens=50_000, ttl_s=3_600, labels={"model": HOSTILE})
    usage = UsageEstimate(model="small", input_tokens=10, max_output_tokens=10)
    client.reserve("acme/c", usage=usage, ttl_s=3_600)
    client.record("acme/c", usage=Usage(model="small", input_tokens=10, output_tokens=10))


@pytest.mark.parametrize("tab", LIGHT_AND_DARK, indirect=True)
@pytest.mark.parametrize("view", VIEWS)
def test_each_view_is_accessible_in_light_and_dark(tab: Tab, daemon: Daemon, view: str) -> None:
    page = tab.page
    go(page, daemon, view)
    settle = {"accounts": ".rows .row:visible", "reservations": ".rows .row:visible"}
    settle |= {"entries": "tbody tr", "history": "svg", "gpus": ".note", "incidents": ".tools"}
    page.locator(f"main {settle[view]}").first.wait_for()
    check_access(page)
    current = page.locator("nav a[aria-current=page]")
    expect(current).to_have_text(re.compile(view, re.IGNORECASE))


@pytest.mark.parametrize("tab", [*LIGHT_AND_DARK, PHONE], indirect=True)
def test_the_account_and_its_dialogs_are_accessible(tab: Tab, daemon: Daemon) -> None:
    page = tab.page
    go(page, daemon, "accounts", account="acme%2Fa")
    page.locator(".card").nth(1).wait_for()
    check_access(page)
    page.get_by_role("button", name="Change the limit").first.click()
    page.get_by_label("New limit").wait_for()
    check_access(page)
    page.get_by_role("button", name="Cancel").click()


@pytest.mark.parametrize("tab", [PHONE], indirect=True)
@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_shows_every_view_within_its_width(tab: Tab, daemon: Daemon, view: str) -> None:
    page = tab.page
    go(page, daemon, view)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(OUTSIDE) == []
    check_access(page)
    small = page.evaluate("""() => [...document.querySelectorAll("button, select, input, nav a")]
        .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 24)
        .map((one) => one.outerHTML)""")
    assert small == []


@pytest.mark.parametrize("tab", [PHONE], indirect=True)
def test_a_phone_shows_a_forecast_beside_a_long_amount(
    tab: Tab, daemon: Daemon, client: Client
) -> None:
    page = tab.page
    client.set_budget("burn", unit="tokens", limit=200_000, period="rolling:3600s")
    go(page, daemon)
    for _ in range(8):
        client.record("burn", tokens=15_000)
        page.wait_for_timeout(500)
    expect(row(page, "burn").locator(".end")).to_contain_text("empty in")
    assert page.evaluate(OUTSIDE) == []
    lines = row(page, "burn").evaluate(
        "(row) => [...row.children].filter((one) => one.checkVisibility())"
        ".map((one) => Math.round(one.getBoundingClientRect().top / 20))"
    )
    assert len(set(lines)) <= 3, "a line for the name, and one for bar and amount"


@pytest.mark.parametrize("width", [721, 900, 1080, 1280])
def test_a_forecast_is_one_number_that_its_column_has_room_for(
    tab: Tab, daemon: Daemon, width: int
) -> None:
    page = tab.page
    page.set_viewport_size({"width": width, "height": 800})
    go(page, daemon)
    row(page, "acme").wait_for()
    said = page.evaluate("""async () => {
        const { forecast } = await import("/assets/budget.js");
        const cells = [...document.querySelectorAll(".row .end")];
        const cell = cells.find((one) => one.checkVisibility());
        return [619, 119_999, 150_000, 7_199_000, 172_799_000, 1e9].map((inMs) => {
            cell.textContent = forecast({ inMs, rate: 1 });
            return [cell.textContent, cell.scrollWidth <= cell.clientWidth];
        });
    }""")
    lengths = ("1 s", "119 s", "2 min", "119 min", "47 h", "11 d")
    assert said == [[f"empty in {length}", True] for length in lengths]


@pytest.mark.parametrize("width", [721, 900, 1000, 1100, 1101, 1280])
def test_every_column_is_in_sight_while_an_account_is_beside(
    tab: Tab, daemon: Daemon, width: int
) -> None:
    page = tab.page
    page.set_viewport_size({"width": width, "height": 800})
    go(page, daemon, "accounts", account="acme%2Fa")
    page.locator(".card").nth(1).wait_for()
    assert page.evaluate(OUTSIDE) == []
    expect(page.get_by_role("columnheader", name="Forecast")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Used")).to_be_visible()


def test_what_is_spent_is_seen_within_two_seconds(tab: Tab, daemon: Daemon, client: Client) -> None:
    page = tab.page
    client.set_budget("live", unit="tokens", limit=1_000)
    go(page, daemon)
    shown = row(page, "live").locator(".spent-of span").first
    expect(shown).to_have_text("0 of 1,000")
    client.record("live", tokens=321)
    started = time.monotonic()
    expect(shown).to_have_text("321 of 1,000", timeout=2_000)
    print(f"seen after {time.monotonic() - started:.2f} s")
    bar = row(page, "live").get_by_role("img")
    expect(bar).to_have_attribute("aria-label", re.compile("321 spent and 0 held of 1,000"))


def test_a_limit_is_changed_after_a_question(tab: Tab, daemon: Daemon, client: Client) -> None:
    page = tab.page
    client.set_budget("limit", unit="usd_nanos", limit="40 USD", period="day")
    go(page, daemon, "accounts", account="limit")
    page.get_by_role("button", name="Change the limit").click()
    field = page.get_by_label("New limit in USD, per day")
    expect(field).to_have_value("40")
    for wrong, told in [
        ("", "Write an amount"),
        ("40.00", "already"),
        ("5 GiB", "with USD"),
        *((comma, "Write a point for decimals") for comma in ("1,5", "1,50", "0,500", "1,2345")),
    ]:
        field.fill(wrong)
        page.get_by_role("button", name="Review").click()
        expect(page.get_by_role("alert")).to_contain_text(told)
    field.fill("1,060.50")
    page.get_by_role("button", name="Review").click()
    expect(page.locator("dialog .sentence")).to_contain_text("to $1,060.50 per day?")
    page.get_by_role("button", name="Back").click()
    field.fill("60.50")
    page.get_by_role("button", name="Review").click()
    sentence = page.locator("dialog .sentence")
    expect(sentence).to_contain_text("Raise the limit of limit from $40.00 to $60.50 per day?")
    assert client.get_account("limit").balances[0].limit == 40 * 10**9, "not before it is said"
    page.locator("dialog").get_by_role("button", name="Change the limit").click()
    expect(page.locator("dialog")).to_have_count(0)
    assert client.get_account("limit").balances[0].limit == 60_500_000_000
    expect(page.locator(".figures dd").first).to_have_text("$60.50")
    expect(page.locator("#said")).to_contain_text("$60.50")


def test_somebody_else_is_not_overruled(tab: Tab, daemon: Daemon, client: Client) -> None:
    page = tab.page
    client.set_budget("race", unit="tokens", limit=10)
    go(page, daemon, "accounts", account="race")
    page.get_by_role("button", name="Change the limit").click()
    page.get_by_label("New limit").fill("30")
    page.get_by_role("button", name="Review").click()
    client.set_budget("race", unit="tokens", limit=20)
    page.locator("dialog").get_by_role("button", name="Change the limit").click()
    expect(page.get_by_role("alert")).to_contain_text("the limit is 20 by now")
    assert client.get_account("race").balances[0].limit == 20
    tab.complaints.clear()  # the browser notes the 409


def test_by_keyboard_alone(tab: Tab, daemon: Daemon, client: Client) -> None:
    page = tab.page
    client.set_budget("keys/one/deep", unit="tokens", limit=10)
    go(page, daemon)
    row(page, "keys").wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("KEYS/")
    expect(row(page, "acme")).to_have_count(0)
    page.locator("#query").fill("")
    page.get_by_role("treegrid").focus()
    page.keyboard.press("End")
    for _ in range(60):
        name = page.get_by_role("treegrid").get_attribute("aria-activedescendant")
        active = page.locator(f"#{name}")
        if active.locator(".text").text_content() == "keys":
            break
        page.keyboard.press("ArrowUp")
    expect(active).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowLeft")
    expect(active).to_have_attribute("aria-expanded", "false")
    expect(row(page, "one")).to_have_count(0)
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="keys/one/deep")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Freeze…")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    expect(page.locator("dialog .sentence")).to_contain_text("Freeze keys/one/deep")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Unfreeze…")).to_be_visible()
    expect(page.locator("dialog")).to_have_count(0)  # what it did may be seen before it is closed
    assert client.get_account("keys/one/deep").freeze_reason == "by hand"
    page.get_by_role("button", name="Unfreeze…").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Freeze…")).to_be_visible()
    expect(page.locator("dialog")).to_have_count(0)
    assert not client.get_account("keys/one/deep").frozen
    page.get_by_role("button", name="Close").focus()
    page.keyboard.press("Escape")
    expect(page.get_by_role("treegrid")).to_be_focused()


def test_the_keyboards_place_stays_with_its_account(
    tab: Tab, daemon: Daemon, client: Client
) -> None:
    page = tab.page
    client.set_budget("place/m", unit="tokens", limit=10)
    go(page, daemon)
    row(page, "m").click()
    grid = page.get_by_role("treegrid")
    before = grid.get_attribute("aria-activedescendant")
    client.set_budget("place/l", unit="tokens", limit=10)
    row(page, "l").wait_for()
    active = page.locator(f"#{grid.get_attribute('aria-activedescendant')}")
    expect(active.locator(".text")).to_have_text("m")
    assert active.get_attribute("id") != before
    page.locator("#query").fill("acme")
    expect(grid).not_to_have_attribute("aria-activedescendant", re.compile("row"))


def test_who_signs_out_where_nobody_need_sign_in_sees_the_page_again(
    tab: Tab, daemon: Daemon
) -> None:
    page = tab.page
    page.goto(url_of(daemon))
    page.evaluate("localStorage.setItem('bursar.key', 'of another sidecar')")
    go(page, daemon)
    page.reload()
    page.get_by_role("button", name="Sign out").click()
    row(page, "acme").wait_for()
    expect(page.locator("#status")).to_have_text("Live")


def test_texts_of_others_are_texts(tab: Tab, daemon: Daemon) -> None:
    page = tab.page
    said: list[str] = []

    def hear(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", hear)
    for view in VIEWS:
        go(page, daemon, view)
        page.wait_for_timeout(200)
    go(page, daemon, "reservations")
    expect(page.locator(".model", has_text=HOSTILE).first).to_be_visible()
    go(page, daemon, "entries", kind="spend")
    expect(page.locator("td", has_text=HOSTILE).first).to_be_visible()
    go(page, daemon, "history", unit="tokens", by="model")
    expect(page.locator("th", has_text=HOSTILE)).to_be_visible()
    go(page, daemon, "accounts", account="acme%2Fb")
    expect(page.locator(".detail")).to_contain_text(HOSTILE)
    go(page, daemon, "accounts", account="%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    expect(page.locator(".detail h2")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("img").count() == 1, "the page's own icon"
    assert said == []


def test_sign_in_and_out_and_what_an_observer_sees(tab: Tab) -> None:
    page = tab.page
    with dashboard(access={"mode": "enforce"}) as guarded, guarded.client() as operator:
        operator.set_budget("acme/a", unit="tokens", limit=10)
        secrets = {
            role: operator.tokens.create("t", role=role, ttl_s=3_600)
            for role in (Role.OBSERVER, Role.OPERATOR)
        }
        page.goto(url_of(guarded))
        check_access(page)
        page.get_by_label("Token", exact=True).fill("bursar_not_one")
        assert tab.complaints == [], "who asks for the first time does nothing wrong"
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("no such token")
        tab.complaints.clear()  # the browser notes that one was refused
        page.get_by_label("Token", exact=True).fill(secrets[Role.OBSERVER].secret)
        page.keyboard.press("Enter")
        row(page, "a").click()
        expect(page.locator(".figures dd").first).to_have_text("10")
        expect(page.locator("#who")).to_have_text("t, observer")
        assert page.get_by_role("button", name=re.compile("Freeze|Change")).count() == 0
        assert page.context.cookies()[0].get("httpOnly") is True
        assert page.evaluate("document.cookie") == ""
        page.reload()
        expect(page.locator("#status")).to_have_text("Live")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token", exact=True).fill(secrets[Role.OPERATOR].secret)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Freeze…")).to_be_visible()
        operator.tokens.revoke(secrets[Role.OPERATOR].token.id)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("the token has ended")


def test_gpus_processes_and_incidents_are_shown(tab: Tab) -> None:
    page = tab.page
    listen: dict[str, Any] = {"listen": "127.0.0.1:0"}
    with Watched(dashboard=listen, accounts=[{"path": "**"}]) as watched:
        watched.register("lab/x", vram_bytes=8 * GIB)
        go(page, watched.daemon, "gpus")
        expect(page.locator(".devices .card")).to_contain_text("8.0 GiB of 80.0 GiB")
        expect(page.locator("tbody tr")).to_contain_text("lab/x")
        check_access(page)
        watched.limit_vram("lab/over", 2 * GIB)
        watched.register("lab/over", vram_bytes=6 * GIB)
        [incident] = watched.ended("lab/over")
        go(page, watched.daemon, "incidents")
        card = page.locator("details", has_text="over its budget 6.0 GiB of 2.0 GiB")
        card.locator("summary").click()
        expect(card.locator("li").first).to_contain_text("breach")
        expect(card).to_contain_text("6.0 GiB of 6.0 GiB came back")
        assert incident.account == "lab/over"
        check_access(page)
        page.set_viewport_size({"width": 375, "height": 812})
        assert page.evaluate(OUTSIDE) == []
