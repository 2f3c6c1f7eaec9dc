"""A `bursar top` under test: what is on its screen, and waiting until something is."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import bursar
from bursar.cli.top._app import TopApp

PATIENCE_S: Final = 20.0


class Screen:
    """The app with the keyboard of the test."""

    def __init__(self, app: TopApp, pilot: Any) -> None:
        self.app = app
        self._pilot = pilot

    def text(self) -> str:
        """What is on the screen, line by line."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    def line(self, name: str) -> str:
        """The first line with this in it, or nothing."""
        return next((one for one in self.text().splitlines() if name in one), "")

    async def press(self, *keys: str) -> None:
        """Types."""
        await self._pilot.press(*keys)
        await self._pilot.pause()

    async def type(self, text: str) -> None:
        """Types a text into what has the focus."""
        await self.press(*text.replace(" ", "\0"))

    async def resize(self, width: int, height: int) -> None:
        """Makes the terminal larger or smaller."""
        await self._pilot.resize_terminal(width, height)
        await self._pilot.pause()

    async def until(self, holds: Callable[[str], object], what: str = "") -> str:
        """Waits until something holds of the screen."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(text := self.text()):
            assert time.monotonic() < deadline, f"{what}\n{text}"
            await asyncio.sleep(0.05)
            await self._pilot.pause()
        return text

    async def has(self, *texts: str) -> str:
        """Waits until all of this is on the screen."""
        return await self.until(lambda shown: all(one in shown for one in texts), str(texts))

    async def lacks(self, text: str) -> str:
        """Waits until this is no longer on the screen."""
        return await self.until(lambda shown: text not in shown, f"still {text!r}")


@asynccontextmanager
async def top(
    target: str,
    account: str = "",
    *,
    size: tuple[int, int] = (80, 24),
    token: str | None = None,
    light: bool = False,
) -> AsyncIterator[Screen]:
    """Runs the app without a terminal until the block ends."""
    client = bursar.connect(target, attempts=2, token=token)
    app = TopApp(client, account, target=target, interval_s=0.1, light=light)
    async with app.run_test(size=size, notifications=True) as pilot:
        yield Screen(app, pilot)
    client.close()
