"""Writes what a release understands, to be kept: its types, its settings, and a conversation.

`PYTHONPATH=python:tests python tests/packaging/keep_wire.py`, once for each release, as
sidecar/RELEASING.md says; until there is one, whenever it pleases. `wire/bursar-v1.binpb` is what
later interfaces add to and never take from, `wire/settings.json` the same of the configuration, and
`wire/conversation.json` is asked again of every later daemon (test_wire.py).
"""

import json
from pathlib import Path
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from support.bare import amounts, budget
from support.daemon import Daemon
from support.released import Kept, settings, today

from bursar.v1 import access_pb2 as ax
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pr

FOLDER: Final = Path(__file__).parent / "wire"
MODEL: Final = {
    "name": "tiny",
    "input_nanos_per_million": 1_000_000,
    "output_nanos_per_million": 2_000_000,
}
CONFIG: Final[dict[str, Any]] = {"accounts": [{"path": "**"}], "rates": {"models": [MODEL]}}


class Conversation:
    """Asks, and writes down what was asked and answered."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.said: list[dict[str, Any]] = []

    def __call__(self, method: str, request: Message) -> str:
        """Returns the id that was given out, if any."""
        content = request.SerializeToString(deterministic=True)
        answer = self._kept.ask(method, content)
        self.said.append({"method": method, "request": content.hex(), "answer": answer})
        given: dict[str, str] = answer.get("reservation") or answer.get("token") or {}
        return given.get("id", "")


def limits(ask: Conversation) -> None:
    """Budgets with thresholds and of a period, and who is asking."""
    advice = lg.Advice(max_new_tokens=64, temperature=0.5, fallback_model="tiny", notice="The end.")
    wanted = budget("acme", 1000)
    wanted.budget.thresholds.add(permille=500, verdict="VERDICT_WARN", advice=advice)
    ask("AccountService/SetBudget", wanted)
    daily = budget("acme/a", 10**9, unit="usd_nanos")
    daily.budget.period.CopyFrom(ac.Period(kind="KIND_MONTH", time_zone="Europe/Berlin"))
    ask("AccountService/SetBudget", daily)
    ask("AccessService/WhoAmI", ax.WhoAmIRequest())


def spending(ask: Conversation) -> None:
    """One reservation from the first question to the end, and what is refused on the way."""
    ask("LedgerService/Check", lg.CheckRequest(account="acme/a/1", amounts=amounts(tokens=5)))
    wanted = lg.ReserveRequest(
        account="acme/a/1",
        idempotency_key="first",
        amounts=amounts(tokens=400, usd_nanos=10**6),
        ttl=Duration(seconds=60),
        labels={"action": "write"},
    )
    first = ask("LedgerService/Reserve", wanted)
    ask("LedgerService/Reserve", wanted)
    wanted.amounts[0].value += 1
    ask("LedgerService/Reserve", wanted)
    ask("LedgerService/Debit", lg.DebitRequest(reservation=first, used=amounts(tokens=100)))
    ask("LedgerService/Debit", lg.DebitRequest(reservation=first, used=amounts(tokens=500)))
    more = amounts(tokens=600)
    ask("LedgerService/Extend", lg.ExtendRequest(reservation=first, granted=more))
    inside = amounts(tokens=50)
    nested = ask(
        "LedgerService/Reserve",
        lg.ReserveRequest(account="acme/a/1", amounts=inside, parent_reservation=first),
    )
    debits = [lg.MeterDebit(reservation=nested, used=amounts(tokens=20))]
    ask("LedgerService/Meter", lg.MeterRequest(debits=debits))
    ask("LedgerService/Release", lg.ReleaseRequest(reservation=nested))
    ask("LedgerService/GetReservation", lg.GetReservationRequest(reservation=first))
    end = lg.CommitRequest(reservation=first, actual=amounts(tokens=550), success=True)
    ask("LedgerService/Commit", end)
    end.actual[0].value += 1
    ask("LedgerService/Commit", end)


def models(ask: Conversation) -> None:
    """What is priced by its usage, what has no price, and what does not fit."""
    usage = lg.UsageEstimate(model="tiny", input_tokens=7, max_output_tokens=90)
    priced = lg.ReserveRequest(account="acme/a/2", usage=usage)
    second = ask("LedgerService/Reserve", priced)
    used = lg.Usage(model="tiny", input_tokens=7, output_tokens=30)
    ask("LedgerService/Debit", lg.DebitRequest(reservation=second, usage=used))
    ask("LedgerService/Commit", lg.CommitRequest(reservation=second, usage=used))
    priced.usage.model = "unheard-of"
    ask("LedgerService/Reserve", priced)
    wanted = lg.ReserveRequest(account="acme/a/2", amounts=amounts(tokens=900))
    ask("LedgerService/Reserve", wanted)
    wanted.min_acceptable.extend(amounts(tokens=1))
    third = ask("LedgerService/Reserve", wanted)
    ask("LedgerService/Commit", lg.CommitRequest(reservation=third, actual=amounts(tokens=950)))
    spent = amounts(tokens=3)
    ask("LedgerService/Record", lg.RecordRequest(account="acme/a/1", amounts=spent))
    text = lg.CountTokensRequest(model="cl100k_base", text="Hello, world")
    ask("LedgerService/CountTokens", text)
    ask("LedgerService/GetReservation", lg.GetReservationRequest(reservation="none"))


def accounts(ask: Conversation) -> None:
    """Reading, freezing and retiring."""
    ask("AccountService/GetAccount", ac.GetAccountRequest(account="acme/a"))
    ask("AccountService/ListAccounts", ac.ListAccountsRequest(account="acme"))
    ask("AccountService/WatchAccounts", ac.WatchAccountsRequest(account="acme"))
    ask("AccountService/Freeze", ac.FreezeRequest(account="acme/a", reason="runaway"))
    ask("LedgerService/Check", lg.CheckRequest(account="acme/a/1", amounts=amounts(tokens=1)))
    ask("AccountService/Unfreeze", ac.UnfreezeRequest(account="acme/a"))
    kinds: list[ac.Entry.Kind] = [ac.Entry.KIND_HOLD, ac.Entry.KIND_SPEND, ac.Entry.KIND_SUCCESS]
    asked = ac.ListEntriesRequest(account="acme/a/1", unit="tokens", kinds=kinds)
    ask("AccountService/ListEntries", asked)
    ask("AccountService/RetireAccount", ac.RetireAccountRequest(account="acme/a/2"))
    ask("AccountService/RetireAccount", ac.RetireAccountRequest(account="acme"))
    ask("LedgerService/Check", lg.CheckRequest(account="no account", amounts=amounts(tokens=1)))


def operating(ask: Conversation) -> None:
    """Tokens and processes."""
    hour = Duration(seconds=3600)
    made = ax.CreateTokenRequest(name="ci", role="ROLE_AGENT", account="acme", ttl=hour)
    token = ask("AccessService/CreateToken", made)
    ask("AccessService/ListTokens", ax.ListTokensRequest(account="acme"))
    ask("AccessService/RevokeToken", ax.RevokeTokenRequest(id=token))
    ask("AccessService/RevokeToken", ax.RevokeTokenRequest(id="none"))
    mine = pr.RegisterProcessRequest(account="acme/a", pid=1, limits=amounts(vram_bytes=1))
    ask("ProcessService/RegisterProcess", mine)
    ask("ProcessService/ListProcesses", pr.ListProcessesRequest(account="acme"))
    ask("ProcessService/ListIncidents", pr.ListIncidentsRequest(account="acme"))
    ask("ProcessService/KillProcess", pr.KillProcessRequest(job="none", reason="test"))


def main() -> None:
    """Keeps today's interface."""
    files = today()
    with Daemon(**CONFIG) as daemon:
        kept = Kept(files, daemon.target)
        ask = Conversation(kept)
        for part in (limits, spending, models, accounts, operating):
            part(ask)
        kept.close()
    (FOLDER / "bursar-v1.binpb").write_bytes(files.SerializeToString(deterministic=True))
    kept_settings = json.dumps(settings(), indent=1) + "\n"
    (FOLDER / "settings.json").write_text(kept_settings, encoding="utf-8")
    said = {"config": CONFIG, "said": ask.said}
    (FOLDER / "conversation.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
