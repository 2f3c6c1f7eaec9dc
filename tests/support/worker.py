"""An agent in a process of its own that spends at random, and journals every answer.

The tests kill the daemon under it, or the agent itself, and hold its journal against the ledger.
A worker makes each call with a key and does not go on before it is answered: when the daemon is
gone it stops, and begins its next run by repeating that call.
"""

import json
import random
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from bursar.v1 import ledger_pb2 as lg
from support.bare import Bare, Failed, amounts

TTL_S: Final = 3600
LIVE_MAX: Final = 12


@dataclass
class Hold:
    """One reservation as its agent knows it."""

    id: str
    granted: int
    used: int = 0
    debits: list[tuple[float, int]] = field(default_factory=list)  # when answered, used
    spent: int | None = None  # set by its end
    state: str = "PENDING"


@dataclass
class Book:
    """What an agent was told, in the order of its journal."""

    holds: dict[str, Hold] = field(default_factory=dict)  # by key
    recorded: dict[str, int] = field(default_factory=dict)  # by key
    unanswered: dict[str, Any] | None = None

    def note(self, line: dict[str, Any]) -> None:
        """Takes in one line: a call that is made, or its answer."""
        if line["what"] == "call":
            self.unanswered = line
            return
        asked, self.unanswered = self.unanswered, None
        assert asked is not None
        op, key = asked["op"], asked["key"]
        if op == "reserve":
            if "id" in line:  # it may have been refused
                known = self.holds.setdefault(key, Hold(line["id"], line["granted"]))
                assert (known.id, known.granted) == (line["id"], line["granted"])
        elif op == "record":
            self.recorded[key] = asked["tokens"]
        elif op == "debit":
            self.holds[key].used = asked["tokens"]
            self.holds[key].debits.append((line["at"], asked["tokens"]))
        elif op == "extend":
            self.holds[key].granted = line["granted"]
        else:
            hold = self.holds[key]
            hold.state, hold.spent = line["state"], line["spent"]

    def spent(self) -> int:
        """All that was spent: by what has ended, by debits, by records."""
        holds = (h.used if h.spent is None else h.spent for h in self.holds.values())
        return sum(holds) + sum(self.recorded.values())

    def held(self) -> int:
        """All that is held and not spent."""
        return sum(h.granted - h.used for h in self.holds.values() if h.spent is None)

    def live(self) -> dict[str, Hold]:
        """What has not ended."""
        return {key: hold for key, hold in self.holds.items() if hold.spent is None}


def read(path: Path) -> Book:
    """A journal as a book; a last line that was torn by a kill is a call that was not made."""
    book = Book()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            book.note(json.loads(line))
    return book


class Agent:
    """Makes the calls of one account and keeps its journal."""

    def __init__(self, call: Any, account: str, seed: int, journal: Path) -> None:
        self._call = call
        self._account = account
        self._dice = random.Random(seed)
        self.book = read(journal)
        self._count = len(self.book.holds) + len(self.book.recorded) + seed % 1_000 * 1_000_000
        self._journal = journal.open("a", encoding="utf-8")

    def close(self) -> None:
        """Closes the journal."""
        self._journal.close()

    def step(self) -> None:
        """Makes one call, or the one again that was not answered."""
        asked = self.book.unanswered or self._choose()
        if self.book.unanswered is None:
            self._write(asked)
        self._write({"what": "answer", **self._make(asked), "at": time.monotonic()})

    def settle(self) -> None:
        """Repeats what was not answered, and the last debit of what is live: those may be lost."""
        if self.book.unanswered:
            self.step()
        for key, hold in self.book.live().items():
            if hold.used:
                self._make({"op": "debit", "key": key, "tokens": hold.used})

    def repeat(self, count: int) -> None:
        """Repeats answered calls: they answer alike."""
        keys = list(self.book.holds)
        for key in self._dice.sample(keys, min(count, len(keys))):
            hold = self.book.holds[key]
            # The first answer tells the first grant; only the id is sure to be the same.
            again = self._make({"op": "reserve", "key": key, "tokens": first_wish(key)})
            assert again["id"] == hold.id, (key, again, hold)
            if hold.state == "COMMITTED":
                ended = self._make({"op": "commit", "key": key, "tokens": hold.spent})
                assert ended["spent"] == hold.spent
        for key in self._dice.sample(list(self.book.recorded), min(count, len(self.book.recorded))):
            self._make({"op": "record", "key": key, "tokens": self.book.recorded[key]})

    def _write(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        self.book.note(line)

    def _choose(self) -> dict[str, Any]:
        live = self.book.live()
        op = self._dice.choice(("reserve", "reserve", "debit", "debit", "extend", "end", "record"))
        if op == "reserve" and len(live) >= LIVE_MAX:
            op = "end"
        if op in ("debit", "extend", "end") and not live:
            op = "reserve"
        if op in ("reserve", "record"):
            self._count += 1
            key = f"{self._count}"
            tokens = first_wish(key)
        else:
            # The first stays for long: it lives through many restarts.
            key = self._dice.choice(list(live)[1:] or list(live)) if op == "end" else (
                self._dice.choice(list(live))
            )  # fmt: skip
            hold = live[key]
            tokens = self._dice.randint(hold.used, hold.granted)
            if op == "extend":
                tokens = hold.granted + self._dice.randint(1, 50)
            elif op == "end":
                op = self._dice.choice(("commit", "commit", "release"))
                tokens = self._dice.randint(0, hold.granted * 5 // 4)
        return {"what": "call", "op": op, "key": key, "tokens": tokens}

    def _make(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911 -- one per call
        op, key, wish = asked["op"], asked["key"], amounts(tokens=asked["tokens"])
        if op == "reserve":
            answer = self._call(
                "LedgerService/Reserve",
                lg.ReserveRequest(account=self._account, idempotency_key=key, amounts=wish),
            )
            if not answer.HasField("reservation"):
                return {}
            return {"id": answer.reservation.id, "granted": asked["tokens"]}
        if op == "record":
            self._call(
                "LedgerService/Record",
                lg.RecordRequest(account=self._account, idempotency_key=key, amounts=wish),
            )
            return {}
        one = self.book.holds[key].id
        if op == "debit":
            self._call("LedgerService/Debit", lg.DebitRequest(reservation=one, used=wish))
            return {}
        if op == "extend":
            extend = lg.ExtendRequest(reservation=one, granted=wish)
            try:
                answer = self._call("LedgerService/Extend", extend)
            except Failed as failed:
                # A reservation that lives through many restarts has been topped up too often.
                if failed.reason != "SLICE_LIMIT_REACHED":
                    raise
                return {"granted": self.book.holds[key].granted}
            return {"granted": total(answer.reservation.granted)}
        if op == "commit":
            answer = self._call(
                "LedgerService/Commit", lg.CommitRequest(reservation=one, actual=wish)
            )
            return {"state": "COMMITTED", "spent": total(answer.spent)}
        answer = self._call("LedgerService/Release", lg.ReleaseRequest(reservation=one))
        return {"state": "RELEASED", "spent": total(answer.spent)}


def first_wish(key: str) -> int:
    """What is asked for under a key: the same whenever it is asked."""
    return 1 + int(key) * 7919 % 60


def total(list_: Any) -> int:
    """The tokens in a list of amounts; none are none."""
    return sum(one.value for one in list_ if one.unit == "tokens")


def work(pipe: Connection, where: tuple[str, float], account: str, seed: int, journal: str) -> None:
    """The process: runs on "run" until nobody answers, settles on "settle", ends on "end".

    `where` is what it calls, and the deadline of each call in seconds.
    """
    target, timeout_s = where
    bare = Bare(target, timeout_s=timeout_s)
    agent = Agent(bare, account, seed, Path(journal))
    while True:
        order = pipe.recv()
        try:
            if order == "run":
                while not pipe.poll():
                    agent.step()
            elif order == "settle":
                agent.settle()
                agent.repeat(10)
            elif order == "end":
                return
        except Failed as failed:
            if failed.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise
            # The next daemon has another socket under the same name: do not wait to dial it.
            bare.channel.close()
            bare = Bare(target, timeout_s=timeout_s)
            agent._call = bare
            pipe.send(f"gone: {failed.reason or 'no answer'}")
        else:
            pipe.send("done")
