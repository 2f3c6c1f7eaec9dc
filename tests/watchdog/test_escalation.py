"""The escalation, enumerated: every state with all that may be true, against a plain table."""

import itertools
from collections.abc import Iterator
from typing import Final

import pytest

from bursar.watchdog.escalation import (
    Action,
    Guard,
    Look,
    Patience,
    Phase,
    Standing,
    open_standing,
    step,
)

PATIENCE: Final = Patience(term_grace_ms=10, unkillable_ms=60, verify_ms=30)
SINCE: Final = 1000
WAITS: Final = {Phase.TERM: 10, Phase.KILL: 60, Phase.VERIFY: 30}
ACTIVE: Final = (Phase.BREACH, Phase.TERM, Phase.KILL, Phase.VERIFY)
STUCK: Final = (Phase.UNVERIFIED, Phase.RECLAIM_FAILED, Phase.UNKILLABLE)
FINAL: Final = (Phase.RECLAIMED, Phase.CANCELLED, Phase.OBSERVED)


def looks() -> Iterator[Look]:
    """Everything that may be true; of counts: none, some and all."""
    for over, forbidden in itertools.product((False, True), ("", "a rule")):
        for alive, unsignalled in ((0, 0), (2, 0), (2, 1), (2, 2)):
            for listed in (None, 0, 1):
                yield Look(over, alive, unsignalled, listed, forbidden)


def expected(phase: Phase, look: Look, waited: bool) -> tuple[Phase, tuple[Action, ...]]:  # noqa: C901, FBT001, PLR0911, PLR0912 -- a table, in words
    """What a person would say, from the states of the design."""
    living, over, may = look.alive > 0, look.over, not look.forbidden
    match phase:
        case Phase.BREACH | Phase.TERM | Phase.KILL if not living:
            return Phase.VERIFY, ()
        case Phase.BREACH | Phase.TERM if not over:
            return Phase.CANCELLED, ()
        case Phase.BREACH:
            return (Phase.TERM, (Action.SIGTERM,)) if may else (Phase.OBSERVED, ())
        case Phase.TERM if not waited:
            return Phase.TERM, ()
        case Phase.TERM:
            return (Phase.KILL, (Action.SIGKILL,)) if may else (Phase.OBSERVED, ())
        case Phase.KILL if not may:
            return Phase.OBSERVED, ()
        case Phase.KILL if waited:
            return Phase.UNKILLABLE, ()
        case Phase.KILL:
            return Phase.KILL, (Action.SIGKILL,) if look.unsignalled else ()
        case Phase.VERIFY if living and over and may:
            return Phase.KILL, (Action.SIGKILL,)
        case Phase.VERIFY if look.listed == 0:
            return Phase.RECLAIMED, ()
        case Phase.VERIFY if look.listed is None:
            return Phase.UNVERIFIED, ()
        case Phase.VERIFY:
            return (Phase.RECLAIM_FAILED, ()) if waited else (Phase.VERIFY, ())
        case _ if phase in STUCK and look.listed == 0 and look.alive == look.unsignalled:
            return Phase.RECLAIMED, ()
    return phase, ()


@pytest.mark.parametrize("phase", Phase)
def test_every_state_with_everything_that_may_be_true(phase: Phase) -> None:
    wait = WAITS.get(phase, 10)
    for look, passed in itertools.product(looks(), (0, wait - 1, wait, wait + 1, 10**9)):
        before = Standing(phase, SINCE, "why")
        after, actions = step(before, look, SINCE + passed, PATIENCE)
        assert (after.phase, actions) == expected(phase, look, passed >= wait), f"{look} {passed}"
        if after.phase is phase:
            assert after == before, "nothing has happened, so nothing is told"
        else:
            assert after.since_ms == SINCE + passed
            assert after.detail


def test_a_repeat_asks_for_nothing_new() -> None:
    for phase, look, passed in itertools.product(Phase, looks(), (0, 10, 30, 60)):
        now_ms = SINCE + passed
        first, actions = step(Standing(phase, SINCE), look, now_ms, PATIENCE)
        if Action.SIGKILL in actions:  # it is sent to all
            look = Look(look.over, look.alive, 0, look.listed, look.forbidden)  # noqa: PLW2901
        if first.phase in (*ACTIVE, *STUCK) and first.phase is phase:
            assert step(first, look, now_ms, PATIENCE) == (first, ()), f"{phase} {look}"


def test_nobody_is_signalled_while_that_is_forbidden() -> None:
    for phase, look, passed in itertools.product(Phase, looks(), (0, 10, 30, 60, 10**9)):
        if look.forbidden:
            _, actions = step(Standing(phase, SINCE), look, SINCE + passed, PATIENCE)
            assert not actions, f"{phase} {look}"


@pytest.mark.parametrize("phase", ACTIVE)
def test_every_incident_is_over_in_time_whatever_stays_true(phase: Phase) -> None:
    for look in looks():
        standing, now_ms = Standing(phase, SINCE), SINCE
        signals = 0
        while not standing.phase.is_over:
            assert now_ms <= SINCE + 10 + 60 + 30 + 5, f"{phase} {look}"
            standing, actions = step(standing, look, now_ms, PATIENCE)
            signals += bool(actions) and standing.phase is not Phase.KILL
            now_ms += 1
        assert signals <= 1, "SIGTERM is sent once"


def test_what_is_over_is_never_taken_up_again() -> None:
    for phase in (*STUCK, *FINAL):
        for look in looks():
            after, actions = step(Standing(phase, SINCE), look, SINCE + 10**9, PATIENCE)
            assert after.phase in {phase, Phase.RECLAIMED}
            assert not actions
            assert phase.is_over
            assert phase.is_final == (phase in FINAL)
            assert phase.is_stuck == (phase in STUCK)


def test_the_states_have_the_numbers_of_the_interface() -> None:
    from bursar.v1 import process_pb2 as pb

    for phase in Phase:
        assert pb.Incident.State.Name(phase.value) == f"STATE_{phase.name}"


def test_a_new_incident_has_signalled_nobody() -> None:
    assert open_standing(5, "why") == Standing(Phase.BREACH, 5, "why")


def test_memory_has_to_be_over_for_three_samples_and_for_a_time() -> None:
    for patience_ms, apart_ms in itertools.product((1, 1000, 3000), (1, 500, 1000, 2000)):
        guard, first = Guard(), 7
        for number in range(1, 12):
            now_ms = first + (number - 1) * apart_ms
            guard = guard.measure(over=True, now_ms=now_ms)
            long_enough = (number - 1) * apart_ms >= patience_ms
            assert guard.is_breach(now_ms, patience_ms) == (number >= 3 and long_enough)


def test_one_sample_under_the_limit_begins_anew() -> None:
    guard = Guard()
    for now_ms in (0, 1000, 2000):
        guard = guard.measure(over=True, now_ms=now_ms)
    guard = guard.measure(over=False, now_ms=2500).measure(over=True, now_ms=9000)
    assert (guard.over_count, guard.over_since_ms) == (1, 9000)
    assert not guard.is_breach(90_000, 3000)


def test_without_patience_the_first_sample_counts() -> None:
    assert not Guard().is_breach(10**9, 0)
    assert Guard().measure(over=True, now_ms=5).is_breach(5, 0)


def test_each_share_is_told_of_once_until_it_is_passed_anew() -> None:
    guard, told = Guard(), []
    for permille in (0, 799, 800, 850, 899, 900, 850, 900, 950, 2000, 800, 799, 950, 951):
        guard, share = guard.warn(permille)
        told.append(share)
    assert told == [0, 0, 800, 0, 0, 900, 0, 0, 950, 0, 0, 0, 950, 0]
