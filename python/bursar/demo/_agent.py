"""What every agent of the demonstration does with the SDK: count, reserve, debit, commit.

The model is played by a summary of the document; the tokens are real. Before each token the agent
tells the sidecar what it will have used, so a token that the budget does not cover is never made.
"""

import codecs
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bursar import (
    Advice,
    BudgetExceeded,
    Client,
    Refusal,
    Reservation,
    Usage,
    UsageEstimate,
    Verdict,
)
from bursar._core import split_tokens

TOKENS_PER_S: Final = 180  # slow enough to be watched
_SHOWN_EVERY: Final = 4  # tokens per line to the parent


def say(kind: str, **values: object) -> None:
    """Tells the parent what happened, as one line of JSON."""
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


@dataclass(slots=True)
class CallReport:
    """What the agent counted for one call, on its own; `degraded_at` is an output token."""

    reservation: str
    model: str
    input_tokens: int
    granted_output_tokens: int
    output_tokens: int = 0
    verdict: Verdict = Verdict.OK
    degraded_at: int | None = None


@dataclass(slots=True)
class Report:
    """What the agent did."""

    account: str
    outcome: str = ""
    calls: list[CallReport] = field(default_factory=list)
    refusal: str = ""
    output: str = ""

    def write(self, file: Path) -> None:
        """Writes it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


class Agent:
    """An agent that pays for its tokens."""

    def __init__(self, client: Client, account: str) -> None:
        self._client = client
        self.report = Report(account)

    def ask(
        self, model: str, prompt: str, answer: Iterable[str], *, max_output_tokens: int
    ) -> tuple[Verdict, Advice | None]:
        """Makes one call and streams its answer; returns the verdict that ended it.

        Args:
            model: The model to pay for.
            prompt: What it reads.
            answer: What it would write, in pieces, perhaps without end.
            max_output_tokens: How much of it is wanted; less is taken where less is left.

        Raises:
            BudgetExceeded: Not even the prompt and one token fit.
        """
        counted = self._client.count_tokens(model, text=prompt)
        estimate = UsageEstimate(
            model=model,
            input_tokens=counted.token_count,
            max_output_tokens=max_output_tokens,
            min_output_tokens=1,
        )
        with self._client.reserve(self.report.account, usage=estimate) as hold:
            call = CallReport(
                reservation=hold.id,
                model=model,
                input_tokens=counted.token_count,
                granted_output_tokens=hold.max_output_tokens,
                verdict=hold.verdict,
            )
            self.report.calls.append(call)
            say(
                "call",
                model=model,
                input_tokens=call.input_tokens,
                granted=call.granted_output_tokens,
                wanted=max_output_tokens,
            )
            tokens = itertools.islice(tokens_of(counted.encoding, answer), max_output_tokens)
            stream = Stream(hold, call, tokens)
            self.report.output += stream.run() + "\n"
            hold.commit(usage=_usage(call))
        return call.verdict, stream.advice


class Stream:
    """The answer of one call on its way, token by token."""

    def __init__(self, hold: Reservation, call: CallReport, tokens: Iterator[bytes]) -> None:
        self._hold = hold
        self._call = call
        self._tokens = tokens
        self.advice: Advice | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = self._unsaid = ""

    def run(self) -> str:
        """Streams until the answer ends, the advice says so, or the sidecar says STOP."""
        end: int | None = None  # the token after which the advice wants it to end
        started = time.monotonic()
        for token in self._tokens:
            if end is not None and self._call.output_tokens >= end:
                self._append("\n[shortened: the soft limit is passed]")
                break
            wanted = self._call.output_tokens + 1
            result = self._hold.debit(usage=_usage(self._call, output_tokens=wanted))
            if result.verdict is Verdict.STOP:
                self._call.verdict = Verdict.STOP
                say("verdict", verdict=Verdict.STOP.name, output_tokens=self._call.output_tokens)
                self._append(f"\n{notice(self._call.output_tokens, result.refusal)}")
                break
            self._call.output_tokens = wanted
            self._append(self._decoder.decode(token))
            if result.verdict is not self._call.verdict:
                self._call.verdict, self.advice = result.verdict, result.advice
                say("verdict", verdict=result.verdict.name, output_tokens=wanted)
                if result.verdict is Verdict.DEGRADE:
                    self._call.degraded_at = wanted
                if result.advice is not None and result.advice.max_new_tokens is not None:
                    end = wanted + result.advice.max_new_tokens
            time.sleep(max(0.0, started + wanted / TOKENS_PER_S - time.monotonic()))
        self._flush()
        say("end", verdict=self._call.verdict.name, output_tokens=self._call.output_tokens)
        return self._text

    def _append(self, text: str) -> None:
        self._text += text
        self._unsaid += text
        if self._call.output_tokens % _SHOWN_EVERY == 0:
            self._flush()

    def _flush(self) -> None:
        if self._unsaid:
            say("text", text=self._unsaid, output_tokens=self._call.output_tokens)
            self._unsaid = ""


def notice(output_tokens: int, refusal: Refusal | None) -> str:
    """What is written under an answer that a budget cut off."""
    why = refusal.reason if refusal is not None else "STOP"
    return f"[terminated by Bursar after {output_tokens} tokens: {why}]"


def tokens_of(encoding: str, pieces: Iterable[str]) -> Iterator[bytes]:
    """The tokens of a text that comes in pieces, each piece encoded for itself."""
    for piece in pieces:
        yield from split_tokens(encoding, piece)


def _usage(call: CallReport, *, output_tokens: int | None = None) -> Usage:
    """What the call has used so far, cumulative."""
    used = call.output_tokens if output_tokens is None else output_tokens
    return Usage(model=call.model, input_tokens=call.input_tokens, output_tokens=used)


def note_refusal(report: Report, refused: BudgetExceeded) -> None:
    """Keeps the refusal of the next call in the report."""
    report.refusal = refused.message
    say("refused", account=refused.account, unit=refused.unit, hint=refused.hint)
