"""`bursar top` against a real sidecar: what it shows, what it asks, and what it survives."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("textual")

from support.daemon import Daemon
from support.screen import top

import bursar
from bursar import Entry, EntryKind, Role, Threshold, Verdict
from bursar.cli.top._entries import ENTRIES_MAX
from bursar.processes import Incident, IncidentCause, IncidentState, IncidentStep

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]
ACCESS = {"mode": "enforce"}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(access=ACCESS) as made, made.client() as client:
        warn = [Threshold(500, Verdict.WARN)]
        client.set_budget("acme", unit="usd_nanos", limit="10 USD", period="day")
        client.set_budget("acme/a", unit="tokens", limit=1_000, thresholds=warn)
        client.set_budget("acme/b", unit="tokens", limit=1_000)
        client.set_budget("acme/b/deep", unit="tokens", limit=100)
        client.set_budget("other", unit="calls", limit=10)
        yield made


async def test_the_tree_has_bars_states_and_thresholds_and_follows_what_is_spent(
    daemon: Daemon,
) -> None:
    with daemon.client() as client:
        hold = client.reserve("acme/a", tokens=250, ttl_s=600)
        client.record("acme/a", tokens=250)
        async with top(daemon.target) as screen:
            await screen.has("acme", "deep", "other", "operator")
            line = (await screen.until(lambda _: "│" in screen.line(" a "))) and screen.line(" a ")
            assert "OK" in line
            assert "███▒▒▒│·····" in line
            assert "50%" in line
            assert "250/1,000" in line
            hold.commit(tokens=500)
            await screen.until(lambda _: "WARN" in screen.line(" a "))
            assert "█████████···" not in screen.line(" a ")
            client.record("acme/b/deep", tokens=100)
            await screen.until(lambda _: "EMPTY" in screen.line("deep"))
            client.record("acme/b/deep", tokens=1)
            await screen.until(lambda _: "OVER" in screen.line("deep"))
            client.set_budget("acme/new", unit="tokens", limit=1)
            await screen.has("new")
            client.retire_account("acme/new")
            await screen.lacks("new")


async def test_keys_move_expand_collapse_sort_and_choose_the_unit(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.record("acme/b", tokens=900)
        async with top(daemon.target) as screen:
            await screen.has("deep")
            await screen.press("left")
            await screen.lacks("deep")
            assert "▸ acme" in screen.line("acme")
            await screen.press("right", "down", "down")
            assert screen.line("b  ").startswith(">") or "▾ b" in screen.line("▾ b")
            assert "acme/b" in screen.text()
            await screen.press("minus")
            await screen.lacks("  a  ")
            await screen.press("plus", "end")
            await screen.has("deep", "other")
            await screen.press("s")
            await screen.has("by state")
            await screen.press("s")  # by what is used: b before a
            shown = await screen.has("by used")
            assert shown.index("▾ b") < shown.index(" a ")
            await screen.press("s")
            await screen.has("by ends")
            await screen.press("u")
            await screen.has("· calls")
            assert "10" in screen.line("other")
            assert "%" not in screen.line(" a ")


async def test_a_filter_keeps_what_contains_it_with_all_above(daemon: Daemon) -> None:
    async with top(daemon.target) as screen:
        await screen.has("other")
        await screen.press("slash", *"DEEP")
        shown = await screen.lacks("other")
        assert "▾ acme" in shown
        assert "▾ b" in shown
        assert screen.app.view.selected == "acme/b/deep"
        await screen.press("enter", "down")
        await screen.press("escape")
        await screen.has("other")


async def test_trouble_is_seen_on_a_collapsed_row_and_found_by_one_key(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.record("acme/b/deep", tokens=100)
        async with top(daemon.target) as screen:
            await screen.until(lambda _: "EMPTY" in screen.line("deep"))
            assert "OK" in screen.line("▾ acme")
            await screen.press("left")
            await screen.until(lambda _: "EMPTY↓" in screen.line("▸ acme"))
            await screen.press("a")
            shown = await screen.has("attention only", "deep")
            assert "other" not in shown
            assert screen.app.view.selected == "acme/b/deep"
            await screen.press("a")
            await screen.has("▸ acme", "other")


async def test_a_freeze_is_asked_for_first_and_ends_by_the_same_key(daemon: Daemon) -> None:
    with daemon.client() as client:
        async with top(daemon.target) as screen:
            await screen.has("operator", "deep")
            await screen.press("f")
            await screen.has("Freeze acme?", "acme and 3 below it")
            await screen.press("escape")
            await screen.lacks("Freeze acme?")
            assert not client.get_account("acme").frozen
            await screen.press("f", *"why", "enter")
            assert not client.get_account("acme").frozen
            await screen.press("enter")
            await screen.until(lambda _: "FROZEN" in screen.line("▾ acme"))
            assert client.get_account("acme").freeze_reason == "why"
            assert "frozen↑" in screen.line("deep")
            await screen.has("frozen: why")
            await screen.press("f")
            await screen.has("End the freeze of acme?")
            await screen.press("enter")  # the cautious answer has the focus
            assert client.get_account("acme").frozen
            await screen.press("f", "left", "shift+tab", "enter")
            await screen.until(lambda _: "OK" in screen.line("▾ acme"))
            assert not client.get_account("acme").frozen


async def test_a_limit_is_changed_after_a_question_and_keeps_its_thresholds(
    daemon: Daemon,
) -> None:
    with daemon.client() as client:
        client.set_budget("acme/a", unit="calls", limit=5)
        client.record("acme/a", amounts={"calls": 4})
        async with top(daemon.target) as screen:
            await screen.has("operator", "4/5")
            await screen.press("down", "b")
            await screen.has("Limit of acme/a", "> calls total: 5", "tokens total: 1,000")
            await screen.press("up", *"many", "enter")
            await screen.has("is no amount")
            await screen.press(*["backspace"] * 4, *"2k", "enter")
            await screen.has("from 1,000 to 2,000", "Thresholds stay.")
            await screen.press("enter")
            await screen.lacks("Thresholds stay.")
            assert [one.limit for one in client.get_account("acme/a").budgets] == [1_000, 5]
            await screen.press("b", "up", *"2000", "enter")
            await screen.has("from 1,000 to 2,000")
            await screen.press("shift+tab", "enter")
            await screen.has("the limit is 2,000")
            tokens, calls = client.get_account("acme/a").budgets
            assert (calls.limit, tokens.limit) == (5, 2_000)
            assert [one.permille for one in tokens.thresholds] == [500]


@pytest.mark.parametrize("role", [Role.OBSERVER, Role.AGENT])
async def test_who_is_no_operator_is_asked_nothing_and_changes_nothing(
    daemon: Daemon, role: Role
) -> None:
    with daemon.client() as client:
        secret = client.tokens.create("eve", role=role, account="acme", ttl_s=600).secret
        async with top(daemon.target, token=secret) as screen:
            await screen.has(role.value, "deep")
            assert "other" not in screen.text()
            for key in ("f", "b"):
                await screen.press(key)
                await screen.has("only operators may do that")
                assert len(screen.app.screen_stack) == 1
        assert not client.get_account("acme").frozen


async def test_what_the_sidecar_refuses_is_told_and_the_app_goes_on(daemon: Daemon) -> None:
    with daemon.client() as client:
        made = client.tokens.create("op", role=Role.OPERATOR, account="acme", ttl_s=600)
        async with top(daemon.target, token=made.secret) as screen:
            await screen.has("operator", "deep")
            client.tokens.revoke(made.token.id)
            await screen.press("f", "tab", "enter")
            await screen.has("not done")
            await screen.has("AWAY")
        assert not client.get_account("acme").frozen


async def test_entries_incidents_gpus_and_help_are_a_key_away(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.reserve("acme/a", tokens=7, labels={"model": "tiny[b]"}).commit(tokens=7)
        client.record("other", amounts={"calls": 1})
        async with top(daemon.target, size=(140, 30)) as screen:
            await screen.has("deep")
            await screen.press("down", "2")
            shown = await screen.has("of acme/a", "spend", "hold", "limit", "tiny[b]")
            assert "other" not in shown
            await screen.press("slash", *"hold", "enter")
            await screen.lacks("spend ")
            await screen.press("escape")
            await screen.has("spend")
            client.record("acme/a", tokens=123)
            await screen.has("123")
            await screen.press("3")
            await screen.has("nothing was stopped")
            await screen.press("4")
            await screen.has("no GPUs", "no jobs")
            await screen.press("question_mark")
            await screen.has("a threshold", "freeze or unfreeze")
            await screen.press("escape", "1")
            await screen.has("deep")


async def test_entries_are_filtered_by_the_sidecar_and_paged(daemon: Daemon) -> None:
    with daemon.client() as client:
        kept = client.reserve("acme/a", tokens=1)
        for number in range(ENTRIES_MAX + 1):
            client.record("acme/a", amounts={"calls": 1_000 + number})
        kept.release()
        async with top(daemon.target, size=(120, 40)) as screen:
            await screen.has("deep")
            await screen.press("down", "2")
            await screen.has("of acme/a", "spend")
            await screen.press("o")
            await screen.has("up to", "limit")
            await screen.press("n")
            await screen.lacks("up to")
            await screen.press("e")
            await screen.has("Entries of acme/a", "every kind", "every unit")
            await screen.press("enter", *["down"] * 2, "enter")  # hold, return
            await screen.press(*["tab"] * 3, *"soon", "enter")
            await screen.has("'soon' is not a time")
            await screen.press(*["backspace"] * 4, *"1h", "enter")
            await screen.has("return · since")
            await screen.lacks("spend")
            await screen.has(kept.id)
            await screen.press("enter")  # all about that one
            await screen.has("sequence", kept.id)
            await screen.press("escape")
            await screen.press("escape")
            await screen.has("spend")


async def test_the_pages_before_are_a_key_away_where_nothing_is_found(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime.now(UTC) - timedelta(days=10)
    old = Entry(1, moment, "acme", "", "tokens", EntryKind.SPEND, 4_321, moment, "")

    def listed(*_: object, start_time: datetime, **__: object) -> Iterator[Entry]:
        return iter([old] if start_time <= moment else [])

    monkeypatch.setattr(bursar.Client, "list_entries", listed)
    async with top(daemon.target, size=(120, 40)) as screen:
        await screen.has("deep")
        await screen.press("2", "o", "o")  # what is not yet there has no page before
        await screen.has("no such entries", "o: older")
        await screen.until(lambda _: screen.app._page)
        await screen.press("o", "o")
        await screen.has("up to", "4,321")


async def test_what_was_spent_is_summed_by_hour_and_by_day_and_goes_on(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.record("acme/a", tokens=400)
        async with top(daemon.target, size=(120, 40)) as screen:
            await screen.has("deep")
            await screen.press("down", "5")
            await screen.has("acme/a  tokens by hour", "400 in 24 hours")
            client.record("acme/a", tokens=34)
            await screen.has("434 in 24 hours")
            await screen.press("w")
            await screen.has("tokens by day", "434 in 30 days")
            await screen.press("u")
            await screen.has("calls by day", "0 in 30 days")


async def test_what_is_open_is_listed_and_a_line_tells_all_of_it(daemon: Daemon) -> None:
    with daemon.client() as client, client.reserve("acme/a", tokens=70) as hold:
        hold.debit(tokens=4)
        async with top(daemon.target, size=(120, 40)) as screen:
            await screen.has("deep")
            await screen.press("6")
            await screen.has("70 tokens", "4 tokens", "calls", hold.id)
            await screen.press("enter")
            await screen.has("expires in")
            await screen.press("escape")
            hold.release()
            await screen.has("no reservation is open")


async def test_a_line_of_the_incidents_tells_its_steps(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = datetime(2026, 5, 1, tzinfo=UTC)
    steps = tuple(IncidentStep(one, made, "") for one in (IncidentState.BREACH, IncidentState.TERM))
    incident = Incident(
        id="i",
        state=IncidentState.RECLAIMED,
        account="acme/a",
        job="j",
        job_name="train",
        cause=IncidentCause.OPERATOR,
        limit_account="",
        unit="",
        limit=0,
        used=0,
        reason="it has done nothing since yesterday evening",
        steps=steps,
        victims=(),
        vram_bytes=0,
        vram_returned_bytes=0,
        vram_quarantined_bytes=0,
        create_time=made,
        end_time=made,
    )
    monkeypatch.setattr(bursar.Client, "list_incidents", lambda *_, **__: iter([incident]))
    async with top(daemon.target) as screen:
        await screen.has("deep")
        await screen.press("3")
        await screen.has("reclaimed", "asked for")  # although the line does not end on the screen
        await screen.press("enter")
        await screen.has("+0 ms  breach", "+0 ms  term", "outcome: reclaimed")


async def test_a_sidecar_that_is_killed_is_said_to_be_away_until_it_is_back(
    daemon: Daemon,
) -> None:
    async with top(daemon.target) as screen:
        await screen.has("deep")
        daemon.kill9()
        shown = await screen.has("AWAY for", "figures are old")
        assert "deep" in shown
        await screen.press("f")  # a change cannot be made, and does not hang
        await screen.press("escape", "down")
        await asyncio.to_thread(daemon.start)
        await screen.lacks("AWAY")
        with daemon.client() as client:
            client.record("acme/b", tokens=500)
            await screen.until(lambda _: "50%" in screen.line("▾ b"))


async def test_a_ledger_that_came_back_empty_leaves_nothing_on_the_screen() -> None:
    with Daemon(in_memory=True) as daemon:
        with daemon.client() as client:
            client.set_budget("gone", unit="tokens", limit=1)
        async with top(daemon.target) as screen:
            await screen.has("gone")
            await asyncio.to_thread(daemon.restart)
            await screen.lacks("gone")


@pytest.mark.parametrize("size", [(20, 6), (80, 24), (120, 30), (220, 60)])
async def test_every_size_shows_names_and_states_and_can_be_changed(
    daemon: Daemon, size: tuple[int, int]
) -> None:
    async with top(daemon.target, size=size) as screen:
        await screen.has("acme", "OK")
        widest = max(len(line) for line in screen.text().splitlines())
        assert widest <= size[0]
        await screen.resize(100, 30)
        await screen.has("acme", "deep", "tokens")
        await screen.resize(*size)
        await screen.has("acme", "OK")


@pytest.mark.parametrize("size", [(80, 12), (40, 12)])
async def test_a_low_terminal_is_the_trees_until_the_details_are_asked_for(
    daemon: Daemon, size: tuple[int, int]
) -> None:
    async with top(daemon.target, size=size) as screen:
        shown = await screen.has("deep", "other")
        assert "open reservations" not in shown
        await screen.press("d")
        await screen.has("0 open reservations", "▾ acme")


async def test_no_message_covers_the_buttons_of_a_question(daemon: Daemon) -> None:
    async with top(daemon.target) as screen:
        await screen.has("operator", "deep")
        await screen.press("f")
        await screen.has("Freeze acme?")
        for number in range(5):
            screen.app.notify(f"message {number}", timeout=60)
        await asyncio.sleep(0.5)
        shown = await screen.has("Cancel")
        assert "message" not in shown
        await screen.press("escape")
        await screen.has("message 4")


@pytest.mark.parametrize("light", [False, True])
async def test_without_colour_every_sign_is_still_there(
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    light: bool,  # noqa: FBT001 -- from parametrize
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with daemon.client() as client:
        client.freeze("other")
        client.record("acme/a", tokens=600)
        async with top(daemon.target, light=light) as screen:
            await screen.has("FROZEN", "WARN", "│", "█", "·", ">")
            assert screen.app.no_color


async def test_a_name_cannot_move_the_cursor_or_be_taken_for_markup(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.freeze("acme/a", reason="\x1b[31m[red]stop[/red]\x07")
        async with top(daemon.target) as screen:
            await screen.has("deep")
            await screen.press("down")
            shown = await screen.has("[red]stop[/red]")
            assert "\x1b" not in shown
            assert "\x07" not in shown


async def test_ten_thousand_accounts_stay_fluid() -> None:
    """They all exist; a hundred change all the time. A draw costs what is in sight, not what is."""
    with (
        Daemon(in_memory=True, limits={"max_accounts": 20_000, "max_children": 20_000}) as daemon,
        daemon.client() as client,
    ):
        for number in range(10_000):
            client.set_budget(
                f"org/team-{number % 100:02}/agent-{number:05}", unit="tokens", limit=10**6
            )
        async with top(daemon.target, size=(120, 40)) as screen:
            await screen.has("10,101 accounts")
            await screen.press("plus", "end")
            await screen.has("agent-09999")
            screen.app.draws_ms.clear()
            began_s, worked_s = time.monotonic(), time.process_time()
            while time.monotonic() - began_s < 4:
                for number in range(100):
                    path = f"org/team-{number:02}/agent-{number:05}"
                    await asyncio.to_thread(client.record, path, tokens=1)
                await screen.press("up")
            share = (time.process_time() - worked_s) / (time.monotonic() - began_s)
            draws = sorted(screen.app.draws_ms)
            median, worst = draws[len(draws) // 2], draws[-1]
            print(f"draws {len(draws)}, median {median:.1f} ms, worst {worst:.1f} ms, {share:.0%}")
            assert median < 100
            began_s = time.perf_counter()
            await screen.press("slash", *"agent-04321")
            await screen.has("▾ team-21", "agent-04321")
            print(f"filtered in {time.perf_counter() - began_s:.2f} s")


async def test_it_ends_its_threads_and_leaves_the_client_closed(daemon: Daemon) -> None:
    async with top(daemon.target) as screen:
        await screen.has("deep")
        client = screen.app._client
    with pytest.raises(bursar.BursarError):
        client.who_am_i()
