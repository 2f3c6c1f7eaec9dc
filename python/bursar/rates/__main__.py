"""The command line of the rate card: `python -m bursar.rates generate --out sidecar/rates.toml`."""

import sys
from datetime import UTC, date, datetime
from pathlib import Path

import click


@click.group()
def main() -> None:
    """Makes the rate card that the sidecar reads."""


@main.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it; standard output when absent.",
)
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The day whose prices to take; today (UTC) when absent.",
)
def generate(out: Path | None, day: datetime | None) -> None:
    """Flattens the prices of the package genai-prices into integers of nano-USD."""
    try:
        from bursar.rates._toml import write_card
    except ModuleNotFoundError as error:
        if error.name != "genai_prices":
            raise
        raise click.ClickException(
            "the package genai-prices is missing: pip install genai-prices"
        ) from None
    on: date = day.date() if day is not None else datetime.now(UTC).date()
    text = write_card(on)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m bursar.rates")
