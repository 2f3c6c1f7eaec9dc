"""The dashboard with 10,000 accounts and 1,000 leases (B15): sizes and frame times.

Sizes are asserted. Times depend on the machine and are printed: run with `-s`. Beside the time from
frame to frame, which others on the machine lengthen, stands what the page itself took of a core.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright, as in `dev`")

from playwright.sync_api import CDPSession, Page, expect
from support.browser import Tab
from support.daemon import Daemon
from support.dashboard import Asker, dashboard, url_of

from bursar import Client, Lease

TEAMS: Final = 99
AGENTS: Final = 100
LEASES: Final = 1_000
WIRE_BYTES_MAX: Final = 200_000
MESSAGE_BYTES_MAX: Final = 100_000
ELEMENTS_MAX: Final = 1_500
# Starts before the first script of the page: when it painted, and how long each frame took.
RECORD: Final = """
window.frames_ = [];
let last = performance.now();
requestAnimationFrame(function frame(now) {
    window.frames_.push(now - last);
    last = now;
    requestAnimationFrame(frame);
});
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    limits = {"max_accounts": 20_000, "max_leases": 2_000}
    with dashboard(in_memory=True, limits=limits) as made:
        with made.client() as client:
            fill(client)
        yield made


def fill(client: Client) -> None:
    client.set_budget("org", unit="tokens", limit=10**12, period="day")
    for team in range(TEAMS):
        client.set_budget(f"org/team-{team}", unit="tokens", limit=10**9, period="day")
        for agent in range(AGENTS):
            path = f"org/team-{team}/agent-{agent}"
            client.set_budget(path, unit="tokens", limit=10**6 + agent, period="day")


@pytest.fixture(scope="module")
def leases(daemon: Daemon) -> Iterator[list[Lease]]:
    """A thousand leases, each of which goes on counting."""
    stop = threading.Event()
    with ExitStack() as stack:
        client = stack.enter_context(daemon.client())
        made: list[Lease] = []
        for number in range(LEASES):
            path = f"org/team-{number % 50}/agent-{number % 97}"
            held = client.reserve(path, tokens=10_000, ttl_s=3_600)
            made.append(stack.enter_context(held.lease()))

        def count() -> None:
            while not stop.wait(0.05):
                for lease in made[::3]:
                    lease.debit(1)

        thread = threading.Thread(target=count)
        thread.start()
        yield made
        stop.set()
        thread.join()


def test_the_picture_is_small_and_comes_in_small_messages(
    daemon: Daemon, leases: list[Lease]
) -> None:
    asker = Asker(url_of(daemon))
    with asker.watching() as watcher:
        watcher.until(lambda seen: seen.ready)
        accounts, open_now = watcher.keys("account"), watcher.keys("reservation")
        assert len(accounts) == 1 + TEAMS + TEAMS * AGENTS
        assert len(open_now) == len(leases)
        assert {watcher.rows["reservation", key]["by"] for key in open_now} == {"lease"}
        assert watcher.message_bytes_max < MESSAGE_BYTES_MAX


class Frames:
    """How long frames take, and what the page's own thread takes of a core for them."""

    def __init__(self, page: Page, session: CDPSession) -> None:
        self._page, self._session = page, session
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._before_s = 0.0

    def forget(self) -> None:
        """Begins to count."""
        self._page.evaluate("window.frames_.splice(0)")
        self._before_s = self._busy_s()

    def tell(self, what: str) -> None:
        """Prints what there was since the last time."""
        taken = sorted(self._page.evaluate("window.frames_.splice(0).slice(1)"))
        before_s, self._before_s = self._before_s, self._busy_s()
        assert taken, "frames are drawn"
        at = {share: taken[int(share * (len(taken) - 1))] for share in (0.5, 0.95, 1)}
        told = ", ".join(f"p{share * 100:g} {ms:.1f} ms" for share, ms in at.items())
        own_ms = (self._before_s - before_s) * 1000 / len(taken)
        print(f"{what}: {len(taken)} frames: {told}; {own_ms:.1f} ms of a core each")

    def _busy_s(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        found = next(one["value"] for one in metrics if one["name"] == "TaskDuration")
        return float(found)


def test_frames_while_it_scrolls_and_changes(tab: Tab, daemon: Daemon, leases: list[Lease]) -> None:
    page = tab.page
    sent: dict[str, int] = {}
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.dataReceived", lambda event: _add(sent, event))
    frames = Frames(page, session)
    page.add_init_script(RECORD)
    page.goto(url_of(daemon))
    expect(page.locator(".tools .muted")).to_have_text("10,000 accounts")
    frames.tell("the first picture")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint after {paint:.0f} ms; {sum(sent.values()):,} bytes came over the wire")
    assert sum(sent.values()) < WIRE_BYTES_MAX
    page.get_by_role("treegrid").focus()
    page.locator("#query").fill("agent")
    expect(page.get_by_role("treegrid")).to_have_attribute("aria-rowcount", "10001")
    frames.tell("a search that opens everything")
    page.get_by_role("button", name="Needs attention").click()
    frames.tell("what needs attention among all")
    page.get_by_role("button", name="Needs attention").click()
    for view in ("accounts", "reservations"):
        grid = page.locator(".grid")
        page.goto(f"{url_of(daemon)}/#/{view}")
        page.get_by_role("table" if view == "reservations" else "treegrid").wait_for()
        page.locator("#query").fill("org/" if view == "reservations" else "agent")
        page.wait_for_timeout(200)
        frames.forget()
        scrolled = grid.evaluate(
            """(grid) => new Promise((done) => {
                let count = 0;
                (function step() {
                    grid.scrollTop += 137;
                    count += 1;
                    if (count < 240) requestAnimationFrame(step);
                    else done(grid.scrollTop);
                })();
            })"""
        )
        assert scrolled > 5_000
        frames.tell(f"{view}: scrolling while {len(leases):,} leases count")
        assert page.locator("*").count() < ELEMENTS_MAX, "only what is in sight exists"
        used = page.locator(".rows .row:not([hidden]) .spent-of").all_text_contents()
        page.wait_for_timeout(1_500)
        frames.tell(f"{view}: at rest while leases count")
        if view == "reservations":
            now = page.locator(".rows .row:not([hidden]) .spent-of").all_text_contents()
            assert now != used, "it goes on"


def _add(sent: dict[str, int], event: dict[str, Any]) -> None:
    name = str(event["requestId"])
    sent[name] = sent.get(name, 0) + int(event["encodedDataLength"])
