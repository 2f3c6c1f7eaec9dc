"""One agent as a process: `python -m bursar.demo.agent reader --report reader.json`.

The sidecar is the one that the environment variable BURSAR_TARGET names.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from bursar import BudgetExceeded, Verdict, connect
from bursar.demo._agent import Agent, note_refusal
from bursar.demo._texts import chapter, load, summary

STRONG: Final = "gpt-4o"
CHEAP: Final = "gpt-4o-mini"
_TASK: Final = "Summarise the following text in its own sentences.\n\n"


def reader(agent: Agent) -> None:
    """Summarises the Constitution and is done."""
    text = load("us-constitution")
    verdict, _ = agent.ask(CHEAP, _TASK + text, [summary(text, sentences=7)], max_output_tokens=600)
    agent.report.outcome = "finished" if verdict is Verdict.OK else verdict.name.lower()


def analyst(agent: Agent) -> None:
    """Summarises Newton; past its soft limit it is brief, and goes on with a cheaper model."""
    text = load("newton-opticks-book-three")
    long = summary(text, sentences=24)
    verdict, advice = agent.ask(STRONG, _TASK + text, [long], max_output_tokens=800)
    fallback = advice.fallback_model if advice is not None else None
    agent.report.outcome = "finished" if verdict is Verdict.OK else verdict.name.lower()
    if verdict is Verdict.DEGRADE and fallback is not None:
        short = agent.report.output
        agent.ask(
            fallback,
            "Choose the one sentence that says the most.\n\n" + short,
            [summary(short, sentences=1)],
            max_output_tokens=100,
        )
        agent.report.outcome = "shortened"


def looper(agent: Agent) -> None:
    """Asks the same about the same chapter for ever, as agents do that have lost the thread."""
    text = chapter(load("austen-persuasion-1-6"), 1)
    answer = summary(text, sentences=6)
    while True:
        again = itertools.repeat(answer + "\n")
        try:
            verdict, _ = agent.ask(STRONG, _TASK + text, again, max_output_tokens=500)
        except BudgetExceeded as refused:
            note_refusal(agent.report, refused)
            return
        if verdict is Verdict.STOP:
            agent.report.outcome = "stopped"


ROLES: Final[dict[str, tuple[str, Callable[[Agent], None]]]] = {
    "reader": ("acme/research/reader", reader),
    "analyst": ("acme/research/analyst", analyst),
    "looper": ("acme/support/looper", looper),
}


@click.command()
@click.argument("role", type=click.Choice(list(ROLES)))
@click.option(
    "--report",
    "report_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where to write what the agent counted.",
)
def main(role: str, report_file: Path) -> None:
    """Runs one agent to its end."""
    account, work = ROLES[role]
    with connect() as client:
        agent = Agent(client, account)
        work(agent)
    agent.report.write(report_file)


if __name__ == "__main__":
    main()
