"""The lists of `bursar top`: the cursor and the scrolling stay while what is listed changes."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

pytest.importorskip("textual")

from support.daemon import Daemon
from support.screen import Screen, top

import bursar
from bursar import Debiting, OpenReservation, ReservationInfo, ReservationState
from bursar.cli.top._dialogs import Story
from bursar.cli.top._panels import Line, Table

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(in_memory=True) as made, made.client() as client:
        client.set_budget("acme", unit="tokens", limit=1)
        yield made


def reservation(number: int) -> OpenReservation:
    made, pending = datetime.now(UTC) - timedelta(seconds=number), ReservationState.PENDING
    held = ReservationInfo(
        f"id-{number}", pending, "acme", {"tokens": 1}, {}, {}, 0, made, made, 1_000, "", ""
    )
    return OpenReservation(held, Debiting.CALLS)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[OpenReservation]:
    """What is open; a test changes it."""
    found = [reservation(number) for number in range(100, 200)]
    monkeypatch.setattr(bursar.Client, "list_reservations", lambda *_: tuple(found))
    return found


@pytest_asyncio.fixture
async def screen(daemon: Daemon, listed: list[OpenReservation]) -> AsyncIterator[Screen]:
    async with top(daemon.target, size=(120, 30)) as made:
        await made.has("acme")
        await made.press("6")
        await made.has(listed[0].reservation.id)
        yield made


def table_of(screen: Screen) -> Table:
    return screen.app._lists["reservations"]


def under_the_cursor(table: Table) -> str:
    return str(table.get_row_at(table.cursor_row)[-1])


async def test_what_passes_each_second_moves_neither_the_cursor_nor_what_is_in_sight(
    screen: Screen,
) -> None:
    table = table_of(screen)
    await screen.press(*["down"] * 40, *["up"] * 10)
    top_line = table.scroll_y
    assert 0 < top_line < table.cursor_row == 30
    before = screen.line("id-130")
    await screen.until(lambda _: screen.line("id-130") != before)
    assert (table.cursor_row, table.scroll_y) == (30, top_line)
    table.scroll_to(y=60, animate=False)  # as the wheel does: the cursor is out of sight
    before = (await screen.has("id-170")) and screen.line("id-170")
    await screen.until(lambda _: screen.line("id-170") != before)
    assert (table.cursor_row, table.scroll_y) == (30, 60)


async def test_a_column_is_as_wide_as_what_it_shows_now(
    screen: Screen, listed: list[OpenReservation]
) -> None:
    column = next(one for key, one in table_of(screen).columns.items() if key == "model")
    for model in ("a-long-name-of-a-model", "short"):
        listed[1:3] = [
            replace(one, reservation=replace(one.reservation, model=name))
            for one, name in zip(listed[1:3], (model, "m"), strict=True)
        ]
        await screen.has(model)
        assert column.content_width == len(model)


async def test_the_cursor_and_what_is_in_sight_stay_with_their_lines(
    screen: Screen, listed: list[OpenReservation]
) -> None:
    table = table_of(screen)
    await screen.press(*["down"] * 40, *["up"] * 10)
    from_top = table.cursor_row - table.scroll_y
    listed[:0] = [reservation(99), reservation(98)]
    await screen.until(lambda _: table.row_count == 102)
    assert under_the_cursor(table) == "id-130"
    assert table.cursor_row - table.scroll_y == from_top
    table.scroll_to(y=60, animate=False)
    del listed[:2]
    await screen.until(lambda _: table.row_count == 100)
    await screen.has("id-160")
    assert (under_the_cursor(table), table.scroll_y) == ("id-130", 58)
    listed.remove(listed[30])  # its own: the cursor is where it was
    await screen.until(lambda _: table.row_count == 99)
    assert under_the_cursor(table) == "id-131"
    await screen.press("end")
    del listed[5:]
    await screen.until(lambda _: table.row_count == 5)
    assert under_the_cursor(table) == "id-104"
    await screen.has("id-100", "id-104")


async def test_who_is_at_the_top_stays_there_and_sees_what_is_new(
    screen: Screen, listed: list[OpenReservation]
) -> None:
    table = table_of(screen)
    listed.insert(0, reservation(99))
    await screen.has("id-99")
    assert (under_the_cursor(table), table.scroll_y) == ("id-99", 0)
    listed.clear()
    await screen.has("no reservation is open")
    listed.append(reservation(7))
    await screen.has("id-7")
    assert under_the_cursor(table) == "id-7"


async def test_lines_of_one_key_are_all_shown(screen: Screen) -> None:
    table = screen.app._lists["incidents"]
    cells = [[text, *[""] * 6] for text in ("a", "b")]
    table.show([Line("key", one, []) for one in cells], "")
    assert [str(table.get_row_at(row)[0]) for row in range(2)] == ["a", "b"]


async def test_a_line_is_told_of_whatever_is_shown_when_its_turn_comes(screen: Screen) -> None:
    """Another view, other lines before it, or none any more: the message is behind those keys."""
    table = screen.app._lists["incidents"]
    lines = [Line(key, [key, *[""] * 6], [f"story of {key}"]) for key in ("one", "two")]
    for then in (lines, lines[::-1], [*lines[:1], *lines]):
        table.show(lines, "")
        table.move_cursor(row=1)
        table.action_select_cursor()
        table.show(then, "")
        await screen.has("story of two")
        await screen.press("escape")
    for then in (lines[:1], []):
        table.show(lines, "")
        table.move_cursor(row=1)
        table.action_select_cursor()
        table.show(then, "")
        await screen.press()
        assert not isinstance(screen.app.screen, Story)
