"""The closing report: do the ledger, its store and the agents' own counts agree?

The agents counted tokens; what those cost is worked out here a second time from the configuration's
prices. Nothing in this module asks the ledger what it should find.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from bursar.models import Account, Entry, EntryKind, Verdict
from bursar.units import format_amount

_MILLION: Final = 1_000_000
EXPECTED: Final = {"reader": "finished", "analyst": "shortened", "looper": "stopped"}
_ANALYST: Final = "acme/research/analyst"
_SUPPORT: Final = "acme/support"
UNITS: Final = {"tokens": "tokens", "usd_nanos": "USD", "calls": "calls"}
Sums = dict[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was seen after the agents ended.

    Attributes:
        config: The configuration's tables.
        reports: What each agent wrote, by its name.
        accounts: The accounts, by path.
        entries: The entries that the sidecar lists.
        stored: The sums of the spends in SQLite, by account and unit.
    """

    config: Mapping[str, Any]
    reports: Mapping[str, Mapping[str, Any]]
    accounts: Mapping[str, Account]
    entries: tuple[Entry, ...]
    stored: Sums


@dataclass(slots=True)
class Proof:
    """The comparison, line by line, and the statements that follow from it."""

    table: Table
    statements: list[tuple[bool, str]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every statement is true."""
        return all(true for true, _ in self.statements)


def prove(evidence: Evidence) -> Proof:
    """Compares what was counted three times."""
    counted = counted_by_agents(evidence)
    listed = sums((one.account, one.unit, one.amount) for one in spends(evidence.entries))
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("spent by", "unit"):
        table.add_column(name, no_wrap=True)
    for name in ("agents", "entries", "SQLite", "budget"):
        table.add_column(name, justify="right", no_wrap=True)
    proof = Proof(table)
    agree = True
    for path, unit in sorted({(path, unit) for path in evidence.accounts for unit in UNITS}):
        budget = [one.spent for one in evidence.accounts[path].balances if one.unit == unit]
        amounts = [below(one, path, unit) for one in (counted, listed, evidence.stored)]
        agree &= len({*amounts, *budget}) == 1
        name = "  " * path.count("/") + path.rpartition("/")[2]
        shown = [format_amount(unit, amount) for amount in amounts + budget]
        table.add_row(name, UNITS[unit], *shown, *([] if budget else ["none set"]))
    proof.statements.append((agree, "agents, entries, SQLite and budgets agree to the last unit"))
    proof.statements += [*_outcomes(evidence), *_nothing_held(evidence)]
    proof.statements += [*_soft_limit(evidence), *_exact_stop(evidence)]
    return proof


def counted_by_agents(evidence: Evidence) -> Sums:
    """What the agents counted, by account and unit."""
    prices = {one["name"]: one for one in evidence.config["rates"]["models"]}
    rows: list[tuple[str, str, int]] = []
    for report in evidence.reports.values():
        for call in report["calls"]:
            tokens = call["input_tokens"] + call["output_tokens"]
            cost = cost_nanos(prices[call["model"]], call["input_tokens"], call["output_tokens"])
            path = str(report["account"])
            rows += [(path, "tokens", tokens), (path, "usd_nanos", cost), (path, "calls", 1)]
    return sums(rows)


def cost_nanos(price: Mapping[str, Any], input_tokens: int, output_tokens: int) -> int:
    """The price of a call in nano-USD, rounded up once."""
    millionths = (
        input_tokens * price["input_nanos_per_million"]
        + output_tokens * price["output_nanos_per_million"]
    )
    return int(-(-millionths // _MILLION))


def spends(entries: Iterable[Entry]) -> Iterable[Entry]:
    """The entries that say what was spent for good."""
    return (one for one in entries if one.kind is EntryKind.SPEND)


def sums(rows: Iterable[tuple[str, str, int]]) -> Sums:
    """Adds up amounts by account and unit."""
    total: Sums = {}
    for account, unit, amount in rows:
        total[account, unit] = total.get((account, unit), 0) + amount
    return total


def below(amounts: Sums, path: str, unit: str) -> int:
    """The sum over an account and everything below it."""
    return sum(
        amount
        for (account, one), amount in amounts.items()
        if one == unit and (account == path or account.startswith(path + "/"))
    )


def stored_spends(store: Path) -> Sums:
    """Adds up the spends in SQLite, opened read-only and without the sidecar."""
    select = "SELECT account, unit, sum(amount) FROM entries WHERE kind = 'spend' GROUP BY 1, 2"
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        return sums(connection.execute(select))


def _outcomes(evidence: Evidence) -> Iterable[tuple[bool, str]]:
    for name, expected in EXPECTED.items():
        outcome = evidence.reports.get(name, {}).get("outcome", "no report")
        yield outcome == expected, f"{name}: {outcome}"


def _nothing_held(evidence: Evidence) -> Iterable[tuple[bool, str]]:
    held = [one for account in evidence.accounts.values() for one in account.balances if one.held]
    yield not held, "nothing is held any more"


def _soft_limit(evidence: Evidence) -> Iterable[tuple[bool, str]]:
    """The analyst heard DEGRADE at the very token that crossed 90 %; the ledger noted it once."""
    balance = evidence.accounts[_ANALYST].balances[0]
    mark = -(-balance.limit * 900 // 1000)
    crossings = [
        one
        for one in evidence.entries
        if one.kind is EntryKind.CROSSING and one.account == _ANALYST
    ]
    calls = evidence.reports.get("analyst", {}).get("calls", [])
    if not calls or calls[0]["degraded_at"] is None:
        yield False, "analyst: never heard DEGRADE"
        return
    first = calls[0]
    prices = {one["name"]: one for one in evidence.config["rates"]["models"]}
    before, then = (
        cost_nanos(prices[first["model"]], first["input_tokens"], first["degraded_at"] + step)
        for step in (-1, 0)
    )
    text = f"analyst: DEGRADE at output token {first['degraded_at']}, the first beyond 90 %"
    yield before < mark <= then and len(crossings) == 1, text + ", noted once"
    models = [call["model"] for call in calls]
    yield len(set(models)) > 1, f"analyst: then from {models[0]} to {models[-1]}"


def _exact_stop(evidence: Evidence) -> Iterable[tuple[bool, str]]:
    """The looper's last token is the last that its department's budget covers."""
    balance = evidence.accounts[_SUPPORT].balances[0]
    report = evidence.reports.get("looper", {"calls": [], "refusal": ""})
    stopped = [call for call in report["calls"] if call["verdict"] == Verdict.STOP]
    exact = [call for call in stopped if call["output_tokens"] == call["granted_output_tokens"]]
    text = f"looper: STOP with {balance.spent:,} of {balance.limit:,} tokens spent in {_SUPPORT}"
    yield len(exact) == 1 and balance.spent == balance.limit, text
    yield bool(report["refusal"]), "looper: the next call was refused"
