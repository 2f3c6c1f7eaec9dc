"""Envoy's rate limit service: what is charged, what is refused, and what is said of it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from support.bare import Failed
from support.daemon import Daemon, balance
from support.places import small_disk
from support.ratelimits import OK, OVER_LIMIT, RateLimits, codes, headers, rule
from support.receivers import until
from support.scraped import Scraped

import bursar
from bursar._grpc import channel_options

TEAM: Final = {"team": "core", "agent": "a1"}
MOST: Final = 2**32 - 1
HOUR_S: Final = 3600


class Limited:
    """A daemon, a client of it, and one of its rate limit service."""

    def __init__(self, project: Path, rules: list[dict[str, Any]], **sections: Any) -> None:
        self._project = project
        self._stack = ExitStack()
        envoy = {"rules": rules, **sections.pop("envoy", {})}
        self.daemon = self._stack.enter_context(Daemon(envoy=envoy, **sections))
        self.client = self._stack.enter_context(self.daemon.client())
        self.ask = self.asking()

    def asking(self, token: str = "") -> RateLimits:
        """A client with a token."""
        asking = RateLimits(self._project, self.daemon.target, token=token)
        return self._stack.enter_context(asking)

    def left(self, account: str) -> int:
        """What is left; nothing is held."""
        held, _, remaining = balance(self.client, account)
        assert held == 0
        return remaining

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def limited(project: Path) -> Iterator[Limited]:
    limited = Limited(
        project,
        [
            rule(["team", "agent"], "acme/{team}/{agent}"),
            rule(["used", "agent"], "acme/used/{agent}", over="record"),
            rule(["micros", "agent"], "acme/money/{agent}", unit="usd_nanos", per_hit=1_000),
            rule(["careful", "agent"], "acme/careful/{agent}", min_left=50, default_hits=0),
            rule(["free"], "free/{free}"),
            rule(["closed"], "nowhere/{closed}"),
        ],
        accounts=[{"path": "acme/**"}, {"path": "free/**"}],
    )
    yield limited
    limited.close()


def test_hits_are_charged_until_one_more_does_not_fit(limited: Limited) -> None:
    limited.client.set_budget("acme/core/a1", unit="tokens", limit=100, period="hour")
    answer = limited.ask(TEAM, hits=60)
    assert codes(answer) == (OK, [OK])
    [status] = answer.statuses
    assert (status.limit_remaining, status.current_limit.requests_per_unit) == (40, 100)
    assert status.current_limit.name == "acme/core/a1 tokens"
    assert status.current_limit.Unit.Name(status.current_limit.unit) == "HOUR"
    assert 0 < status.duration_until_reset.seconds <= HOUR_S
    answer = limited.ask(TEAM, hits=41)
    assert codes(answer) == (OVER_LIMIT, [OVER_LIMIT])
    assert answer.statuses[0].limit_remaining == 40
    assert limited.left("acme/core/a1") == 40
    assert codes(limited.ask(TEAM, hits=40))[0] == OK
    assert codes(limited.ask(TEAM))[0] == OVER_LIMIT, "no hits are one hit"
    assert limited.left("acme/core/a1") == 0


def test_a_refusal_says_whose_budget_and_until_when_to_machines_and_clients(
    limited: Limited,
) -> None:
    limited.client.set_budget("acme/core/told", unit="tokens", limit=10, period="hour")
    answer = limited.ask({"team": "core", "agent": "told"}, hits=11)
    told = headers(answer)
    assert told["x-budget-account"] == "acme/core/told"
    assert told["x-budget-unit"] == "tokens"
    assert told["x-budget-reset"].endswith("Z")
    assert (told["x-should-retry"], told["content-type"]) == ("false", "application/json")
    error = json.loads(answer.raw_body)["error"]
    assert (error["code"], error["type"]) == ("budget_exceeded", "insufficient_quota")
    assert error["bursar"]["shortfall"] == 1
    frozen = {"team": "core", "agent": "frozen"}
    assert codes(limited.ask(frozen, hits=1))[0] == OK
    limited.client.freeze("acme/core/frozen", reason="test")
    answer = limited.ask(frozen, hits=1)
    assert codes(answer)[0] == OVER_LIMIT
    assert json.loads(answer.raw_body)["error"]["code"] == "account_frozen"


def test_one_descriptor_over_its_limit_keeps_all_from_being_charged(limited: Limited) -> None:
    limited.client.set_budget("acme/core/rich", unit="tokens", limit=100)
    limited.client.set_budget("acme/core/poor", unit="tokens", limit=5)
    rich, poor = {"team": "core", "agent": "rich"}, {"team": "core", "agent": "poor"}
    answer = limited.ask(rich, poor, own=[10, 6])
    assert codes(answer) == (OVER_LIMIT, [OK, OVER_LIMIT])
    assert [status.limit_remaining for status in answer.statuses] == [100, 5]
    assert codes(limited.ask(rich, poor, hits=6)) == (OVER_LIMIT, [OK, OVER_LIMIT])
    assert codes(limited.ask(rich, {"nobody": "knows"}, hits=6)) == (OVER_LIMIT, [OK, OVER_LIMIT])
    assert (limited.left("acme/core/rich"), limited.left("acme/core/poor")) == (100, 5)
    assert codes(limited.ask(rich, poor, own=[10, 5])) == (OK, [OK, OK])
    assert (limited.left("acme/core/rich"), limited.left("acme/core/poor")) == (90, 0)


def test_descriptors_that_fit_alone_and_not_together_are_all_over_the_limit(
    limited: Limited,
) -> None:
    limited.client.set_budget("acme/duo", unit="tokens", limit=10)
    one, two = {"team": "duo", "agent": "one"}, {"team": "duo", "agent": "two"}
    answer = limited.ask(one, two, {"free": "other"}, hits=6)
    assert codes(answer) == (OVER_LIMIT, [OVER_LIMIT, OVER_LIMIT, OK])
    assert limited.left("acme/duo") == 10
    assert codes(limited.ask(one, two, hits=5)) == (OK, [OK, OK])
    assert limited.left("acme/duo") == 0


def test_zero_hits_charge_nothing_and_ask_whether_anything_is_left(limited: Limited) -> None:
    """As Envoy AI Gateway asks before a request. Envoy's own service says OK at the very limit;
    here a budget that is used up is used up."""
    limited.client.set_budget("acme/core/zero", unit="tokens", limit=3)
    zero = {"team": "core", "agent": "zero"}
    for left in (3, 2, 1):
        answer = limited.ask(zero, own=[0])
        assert (codes(answer)[0], answer.statuses[0].limit_remaining) == (OK, left)
        assert limited.left("acme/core/zero") == left
        assert codes(limited.ask(zero, hits=9, own=[1]))[0] == OK, "its own hits come first"
    assert codes(limited.ask(zero, own=[0])) == (OVER_LIMIT, [OVER_LIMIT])
    limited.client.set_budget("acme/careful/x", unit="tokens", limit=49)
    careful = {"careful": "yes", "agent": "x"}
    assert codes(limited.ask(careful))[0] == OVER_LIMIT, "less than min_left"
    limited.client.set_budget("acme/careful/x", unit="tokens", limit=50)
    assert codes(limited.ask(careful))[0] == OK
    assert limited.left("acme/careful/x") == 50


def test_what_was_used_already_is_recorded_beyond_the_limit_and_stops_the_next(
    limited: Limited,
) -> None:
    """Also when another descriptor of the call is refused, and when the account is frozen."""
    limited.client.set_budget("acme/used/u", unit="tokens", limit=100)
    limited.client.set_budget("acme/core/none", unit="tokens", limit=0)
    used, none = {"used": "yes", "agent": "u"}, {"team": "core", "agent": "none"}
    assert codes(limited.ask(used, own=[0]))[0] == OK
    assert codes(limited.ask(used, none, own=[70, 1])) == (OVER_LIMIT, [OK, OVER_LIMIT])
    assert limited.left("acme/used/u") == 30
    answer = limited.ask(used, hits=80)
    assert codes(answer) == (OVER_LIMIT, [OVER_LIMIT])
    assert json.loads(answer.raw_body)["error"]["bursar"]["shortfall"] == 50
    assert limited.left("acme/used/u") == -50
    assert codes(limited.ask(used, own=[0]))[0] == OVER_LIMIT
    limited.client.freeze("acme/used/u", reason="test")
    limited.ask(used, hits=1)
    assert limited.left("acme/used/u") == -51


def test_where_nothing_can_be_recorded_a_question_and_a_record_are_over_the_limit(
    project: Path, tmp_path: Path
) -> None:
    """No error: with Envoy's defaults that lets the request through."""
    rules = [rule(["used", "agent"], "acme/used/{agent}", over="record")]
    with small_disk(tmp_path / "disk", "64m") as disk, closing(Limited(project, rules)) as limited:
        limited.daemon.move_store(disk.path)
        limited.client.set_budget("acme/used/u", unit="tokens", limit=100)
        disk.leave(2 * 2**20)
        until(lambda: "the store is nearly full" in limited.daemon.log, "the operator is told")
        used = {"used": "yes", "agent": "u"}
        for hits in (0, 7):
            assert codes(limited.ask(used, own=[hits])) == (OVER_LIMIT, [OVER_LIMIT])
        assert limited.left("acme/used/u") == 100


def test_a_hit_may_be_worth_many_and_limits_are_told_in_hits(limited: Limited) -> None:
    limited.client.set_budget("acme/money/m", unit="usd_nanos", limit="0.01 USD")
    money = {"micros": "yes", "agent": "m"}
    answer = limited.ask(money, hits=9_999)
    assert codes(answer)[0] == OK
    status = answer.statuses[0]
    assert (status.current_limit.requests_per_unit, status.limit_remaining) == (10_000, 1)
    assert limited.left("acme/money/m") == 1_000
    assert codes(limited.ask(money, own=[2**60]))[0] == OVER_LIMIT, "more than can be counted"


def test_an_account_without_a_budget_is_counted_and_not_limited(limited: Limited) -> None:
    answer = limited.ask({"free": "bird"}, hits=MOST)
    assert codes(answer) == (OK, [OK])
    assert answer.statuses[0].limit_remaining == MOST
    assert not answer.statuses[0].HasField("current_limit")
    [entry] = limited.client.list_entries("free/bird")
    assert (entry.account, entry.amount) == ("free/bird", MOST)


@pytest.mark.parametrize(
    ("descriptor", "why"),
    [
        ({"team": "core"}, "no rule of [envoy] fits"),
        ({"agent": "a", "team": "core"}, "no rule of [envoy] fits"),
        ({"team": "core", "agent": "../rival"}, "is no name of an account"),
        ({"team": "core/a1", "agent": "x"}, "is no name of an account"),
        ({"team": "core", "agent": ""}, "is no name of an account"),
        ({"team": "core", "agent": "a b\n"}, "is no path of an account"),
        ({"closed": "x"}, "no account"),
    ],
)
def test_what_a_client_made_up_is_over_the_limit_and_no_error(
    limited: Limited, descriptor: dict[str, str], why: str
) -> None:
    """By Envoy's default an error lets the request through."""
    answer = limited.ask(descriptor, hits=1)
    assert codes(answer) == (OVER_LIMIT, [OVER_LIMIT])
    error = json.loads(answer.raw_body)["error"]
    assert why in error["message"]
    assert error["code"] == "forbidden"


def test_a_limit_of_the_callers_own_and_negative_hits_are_refused(limited: Limited) -> None:
    limited.client.set_budget("acme/core/own", unit="tokens", limit=10)
    for field in ("limit", "is_negative_hits"):
        request = limited.ask.request(domain="edge", hits_addend=1)
        descriptor = request.descriptors.add()
        descriptor.entries.add(key="team", value="core")
        descriptor.entries.add(key="agent", value="own")
        if field == "limit":
            descriptor.limit.requests_per_unit = 1_000_000
        else:
            descriptor.is_negative_hits = True
        assert codes(limited.ask.send(request))[0] == OVER_LIMIT
    assert limited.left("acme/core/own") == 10


def test_a_call_that_makes_no_sense_fails_by_name(limited: Limited) -> None:
    for request, field in [
        (limited.ask.request(domain="edge"), "descriptors"),
        (limited.ask.request(domain=""), "domain"),
        (limited.ask.request(domain="x" * 257), "domain"),
    ]:
        with pytest.raises(Failed) as caught:
            limited.ask.send(request)
        assert (caught.value.code, caught.value.metadata["field"]) == ("INVALID_ARGUMENT", field)
    many = limited.ask.request(domain="edge")
    for _ in range(101):
        many.descriptors.add().entries.add(key="free", value="x")
    with pytest.raises(Failed, match="descriptors"):
        limited.ask.send(many)


def test_a_soft_limit_is_told_in_a_header(project: Path) -> None:
    at_half = [{"percent": 50, "verdict": "degrade"}]
    budgets = [{"unit": "tokens", "limit": 10, "thresholds": at_half}]
    limited = Limited(
        project, [rule(["agent"], "{agent}")], accounts=[{"path": "*", "budgets": budgets}]
    )
    try:
        assert "x-bursar-verdict" not in headers(limited.ask({"agent": "a"}, hits=4))
        assert headers(limited.ask({"agent": "a"}, hits=1))["x-bursar-verdict"] == "degrade"
        assert codes(limited.ask({"agent": "a"}, hits=1))[0] == OK
    finally:
        limited.close()


def test_without_rules_there_is_no_such_service_and_unmatched_ones_may_be_allowed(
    project: Path,
) -> None:
    with Daemon() as daemon, RateLimits(project, daemon.target) as ask:
        with pytest.raises(Failed) as caught:
            ask({"agent": "a"})
        assert caught.value.code == "UNIMPLEMENTED"
    limited = Limited(project, [rule(["agent"], "{agent}")], envoy={"unmatched": "allow"})
    try:
        assert codes(limited.ask({"other": "a"}, hits=5)) == (OK, [OK])
        assert codes(limited.ask({"agent": "a b"}, hits=5))[0] == OVER_LIMIT, "a rule fits"
    finally:
        limited.close()


def test_who_may_ask_is_who_may_spend(project: Path) -> None:
    """An observer only asks, an agent spends on its own accounts. Another's account follows from
    what a client says, so it is over the limit and no error."""
    limited = Limited(
        project,
        [rule(["team", "agent"], "acme/{team}/{agent}")],
        access={"mode": "enforce"},
    )
    try:
        tokens = {
            role: limited.client.tokens.create("t", role=role, account="acme/core", ttl_s=60).secret
            for role in (bursar.Role.AGENT, bursar.Role.OBSERVER)
        }
        rival = {"team": "rival", "agent": "a1"}
        agent, observer = (limited.asking(tokens[role]) for role in tokens)
        assert codes(agent(TEAM, hits=1))[0] == OK
        answer = agent(TEAM, rival, hits=1)
        assert codes(answer) == (OVER_LIMIT, [OK, OVER_LIMIT])
        assert "has no say over acme/rival/a1" in answer.raw_body.decode()
        assert list(limited.client.list_accounts("acme/rival")) == []
        assert codes(observer(TEAM, own=[0]))[0] == OK
        for asking, code in [
            (observer, "PERMISSION_DENIED"),
            (limited.asking("bursar_nonsense"), "UNAUTHENTICATED"),
        ]:
            with pytest.raises(Failed) as caught:
                asking(TEAM, hits=1)
            assert caught.value.code == code
    finally:
        limited.close()


def test_what_was_answered_is_there_after_kill_9_and_a_repeat_is_charged_again(
    project: Path,
) -> None:
    limited = Limited(project, [rule(["agent"], "{agent}"), rule(["two", "agent"], "two/{agent}")])
    try:
        limited.client.set_budget("a", unit="tokens", limit=100)
        limited.client.set_budget("two/a", unit="tokens", limit=100)
        for _ in range(2):
            assert codes(limited.ask({"agent": "a"}, {"two": "", "agent": "a"}, hits=7))[0] == OK
        limited.daemon.kill9()
        limited.daemon.start()
        assert (limited.left("a"), limited.left("two/a")) == (86, 86)
    finally:
        limited.close()


def test_many_callers_at_once_are_admitted_to_the_exact_hit(limited: Limited) -> None:
    """2,000 calls of 1 hit on two descriptors, the second of which has 100 left."""
    limited.client.set_budget("acme/many", unit="tokens", limit=5_000)
    limited.client.set_budget("acme/many/few", unit="tokens", limit=100)
    both = {"team": "many", "agent": "plenty"}, {"team": "many", "agent": "few"}

    def ask(_: int) -> int:
        return codes(limited.ask(*both, hits=1))[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(2_000)))
    assert (answers.count(OK), answers.count(OVER_LIMIT)) == (100, 1_900)
    assert limited.left("acme/many/few") == 0
    assert limited.left("acme/many") == 4_800


def test_the_service_is_in_reflection_where_it_is_served(limited: Limited) -> None:
    def services(target: str) -> set[str]:
        with grpc.insecure_channel(target, options=channel_options(target)) as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    service = "envoy.service.ratelimit.v3.RateLimitService"
    with Daemon() as daemon:
        assert services(limited.daemon.target) - services(daemon.target) == {service}


def test_the_sdk_sees_what_envoy_has_charged(limited: Limited) -> None:
    client: bursar.Client = limited.client
    client.set_budget("acme/mixed", unit="tokens", limit=100)
    assert codes(limited.ask({"team": "mixed", "agent": "x"}, hits=60))[0] == OK
    with pytest.raises(bursar.BudgetExceeded):
        client.reserve("acme/mixed/y", tokens=41)
    with client.reserve("acme/mixed/y", tokens=40) as hold:
        assert codes(limited.ask({"team": "mixed", "agent": "x"}, hits=1))[0] == OVER_LIMIT
        hold.commit(tokens=30)
    assert codes(limited.ask({"team": "mixed", "agent": "x"}, hits=10))[0] == OK


def test_descriptors_are_counted_by_rule_and_those_that_none_fits_are_told(project: Path) -> None:
    rules = [rule(["team"], "acme/{team}"), rule(["used"], "acme/{used}", over="record")]
    with (
        Scraped(envoy={"rules": rules}) as daemon,
        daemon.client() as client,
        RateLimits(project, daemon.target) as ask,
    ):
        client.set_budget("acme", unit="tokens", limit=3)
        for hits in (2, 2, 1):
            ask({"team": "a"}, hits=hits)
        ask({"used": "a"}, {"nobody": "knows"}, hits=1)
        page = daemon.scrape()

        def count(rule: str, code: str) -> float | None:
            return page.value("bursar_envoy_descriptors_total", rule=rule, code=code)

        assert [count("0", code) for code in ("OK", "OVER_LIMIT")] == [2, 1]
        assert [count("1", code) for code in ("OK", "OVER_LIMIT")] == [None, 1]
        assert [count("none", code) for code in ("OK", "OVER_LIMIT")] == [0, 1]
        method = {"method": "RateLimitService/ShouldRateLimit"}
        assert page.value("bursar_calls_total", **method, code="OK") == 4
        assert page.value("bursar_call_seconds_count", **method) == 4
        until(lambda: "1 descriptors were refused: no rule of [envoy] fits" in daemon.log, "a line")
