"""`bursar proxy`: an endpoint for model calls with a budget behind it, without configuration."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from bursar.cli._output import say
from bursar.cli._shared import in_base_unit
from bursar.daemon.config import Config
from bursar.units import UNITS

if TYPE_CHECKING:
    from bursar._core import Server

_FALLBACK_PERCENT: Final = 80
_KNOWN: Final = {  # host: its interface, and where people keep its key
    "api.openai.com": ("openai", "OPENAI_API_KEY"),
    "api.anthropic.com": ("anthropic", "ANTHROPIC_API_KEY"),
}


class Limit(click.ParamType[dict[str, Any]]):
    """A budget in a word: usd=5/day, tokens=2_000_000, calls=100/hour."""

    name = "limit"

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> dict[str, Any]:
        """Takes the word apart; the configuration checks amount and period."""
        if isinstance(value, dict):
            return value
        unit, equals, rest = str(value).partition("=")
        amount, _, period = rest.partition("/")
        if not equals or not amount:
            self.fail(f"{value!r} is no limit: write one such as usd=5/day", param, ctx)
        unit, amount = in_base_unit(unit, amount)
        if unit not in UNITS:
            self.fail(f"there is no unit {unit!r}: write usd, or one of {', '.join(UNITS)}")
        limit = int(amount.replace("_", "")) if amount.replace("_", "").isdigit() else amount
        return {"unit": unit, "limit": limit, "period": period or "total"}


@click.command(short_help="Run a proxy for model calls, with a budget.")
@click.option(
    "--upstream", "urls", multiple=True, required=True, metavar="URL", help="The provider."
)
@click.option(
    "--limit",
    "limits",
    type=Limit(),
    multiple=True,
    help="A hard limit: usd=5/day, tokens=2_000_000.  Without one, calls are only metered.",
)
@click.option(
    "--listen", default="127.0.0.1:7412", show_default=True, help="Where; port 0 takes a free one."
)
@click.option(
    "--model-fallback", metavar="MODEL", help="Go on with this model from 80 % of a limit."
)
@click.option("--account", default="local", show_default=True, help="The account that pays.")
@click.option("--store", type=click.Path(path_type=Path), help="Keep the ledger in this file.")
@click.option("--key-env", metavar="NAME", help="The variable that holds the provider's key.")
@click.option(
    "--engine",
    type=click.Choice(["other", "llama.cpp", "vllm"]),
    default="other",
    help="The engine behind the URL, if it is one that counts each token.",
)
@click.option("--rates", type=click.Path(path_type=Path), help="Prices; else the list prices.")
@click.option("--allow-unpriced", is_flag=True, help="Models without a price cost nothing.")
def proxy(
    urls: tuple[str, ...],
    *,
    limits: tuple[dict[str, Any], ...],
    listen: str,
    model_fallback: str | None,
    account: str,
    store: Path | None,
    key_env: str | None,
    engine: str,
    rates: Path | None,
    allow_unpriced: bool,
) -> None:
    """Run an OpenAI- and Anthropic-compatible endpoint that holds its callers to a budget.

    Callers change their base URL and nothing else. Without --store everything is forgotten at the
    end.
    """
    from bursar.daemon.serve import run

    if model_fallback:
        advice = {"fallback_model": model_fallback}
        threshold = {"percent": _FALLBACK_PERCENT, "verdict": "degrade", "advice": advice}
        limits = tuple({**limit, "thresholds": [threshold]} for limit in limits)
    prices_matter = any(limit["unit"] == "usd_nanos" for limit in limits)
    with _socket() as socket:
        config = Config.from_dict(
            {
                "server": {"socket": str(socket)},
                "store": {"path": str(store.absolute()) if store else ""},
                "watchdog": {"mode": "off"},
                "rates": {
                    **({"file": str(rates.absolute())} if rates else {"list_prices": True}),
                    "allow_unpriced": allow_unpriced or not prices_matter,
                },
                "accounts": [
                    {"path": account, "budgets": list(limits)},
                    {"path": f"{account}/**"},
                ],
                "proxy": {
                    "listen": listen,
                    "default_account": account,
                    "upstreams": [one for url in urls for one in _upstreams(url, key_env, engine)],
                },
            }
        )
        run(config, say=say, ready=_tell)


def _upstreams(url: str, key_env: str | None, engine: str) -> Iterator[dict[str, Any]]:
    """The provider once for each interface that it has."""
    host = urlsplit(url).hostname or url
    api, known_key = _KNOWN.get(host, (None, None))
    if key_env is None and known_key is not None and os.environ.get(known_key):
        key_env = known_key
    for one in (api,) if api else ("openai", "anthropic"):
        upstream = {"name": host, "url": url, "api": one, "engine": engine}
        yield {**upstream, "key_env": key_env} if key_env else upstream


@contextmanager
def _socket() -> Iterator[Path]:
    """A socket for the other commands of bursar, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="bursar-") as folder:
        yield Path(folder) / "bursar.sock"


def _tell(server: "Server") -> None:
    """Prints what an agent's shell needs."""
    url = f"http://{server.proxy_address}"
    click.echo(f"export OPENAI_BASE_URL={url}/v1")
    click.echo(f"export ANTHROPIC_BASE_URL={url}")
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        if not os.environ.get(name):
            click.echo(f"export {name}=unused  # clients insist on one; the proxy has its own")
    click.echo(f"export BURSAR_TARGET={server.addresses[0]}")
