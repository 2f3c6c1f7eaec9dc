"""What people use Limitador for, by budgets: its limits, and what they are here.

| Limitador | here |
|---|---|
| `namespace` | `domain` |
| `conditions`: `req.method == "GET"` | an entry with its value: `"method=GET"` |
| `variables`: `user_id` | a name in the path: `{user}` |
| `max_value` per `seconds` | a budget of `calls`, per `rolling:…s` |
| several limits that count one request | budgets along the path: all of them count |
| `hits_addend` | the same |
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Daemon
from support.ratelimits import OK, OVER_LIMIT, RateLimits, codes, headers, rule


def calls(limit: int, seconds: int) -> list[dict[str, Any]]:
    return [{"unit": "calls", "period": f"rolling:{seconds}s", "limit": limit}]


@contextmanager
def limits(
    project: Path,
    rules: list[dict[str, Any]],
    accounts: list[dict[str, Any]],
    *,
    unmatched: str = "allow",
    **settings: Any,
) -> Iterator[RateLimits]:
    envoy = {"rules": [{"unit": "calls", **one} for one in rules], "unmatched": unmatched}
    daemon = Daemon(in_memory=True, envoy=envoy, accounts=accounts, **settings)
    with daemon, RateLimits(project, daemon.target) as ask:
        yield ask


def test_ten_get_requests_a_minute_for_each_user(project: Path) -> None:
    """One limit with a condition and a variable; what its condition does not fit is not limited."""
    rules = [rule(["method=GET", "user"], "site/get/{user}")]
    accounts = [{"path": "site/get/*", "budgets": calls(10, 60)}]
    with limits(project, rules, accounts) as ask:
        for user in ("alice", "bob"):
            request = {"method": "GET", "user": user}
            assert [codes(ask(request))[0] for _ in range(11)] == [OK] * 10 + [OVER_LIMIT]
        post = {"method": "POST", "user": "alice"}
        assert [codes(ask(post))[0] for _ in range(20)] == [OK] * 20


@pytest.mark.parametrize(("unmatched", "answer"), [("allow", OK), ("refuse", OVER_LIMIT)])
@pytest.mark.parametrize(
    "descriptors",
    [
        [{"method": "GET", "user": "alice", "path": "/"}],
        [{"user": "alice", "method": "GET"}],
        [{"method": "GET"}, {"user": "alice"}],
    ],
    ids=["another entry", "another order", "two descriptors"],
)
def test_a_rule_fits_its_entries_in_order_and_no_more(
    project: Path, descriptors: list[dict[str, str]], unmatched: str, answer: int
) -> None:
    """A limit of Limitador's counts all of these; here they pass unlimited, or are refused."""
    rules = [rule(["method=GET", "user"], "site/get/{user}")]
    accounts = [{"path": "site/get/*", "budgets": calls(1, 60)}]
    with limits(project, rules, accounts, unmatched=unmatched) as ask:
        assert [codes(ask(*descriptors))[0] for _ in range(3)] == [answer] * 3


def test_the_first_rule_that_fits_counts_and_no_other(project: Path) -> None:
    """Two limits of Limitador's would both count: the second would refuse the second request."""
    rules = [rule(["user"], "site/{user}"), rule(["user=alice"], "few/{user}")]
    accounts = [
        {"path": "site/*", "budgets": calls(3, 60)},
        {"path": "few/*", "budgets": calls(1, 60)},
    ]
    with limits(project, rules, accounts) as ask:
        assert [codes(ask({"user": "alice"}))[0] for _ in range(4)] == [OK] * 3 + [OVER_LIMIT]


def test_users_beyond_the_most_accounts_below_one_are_refused(project: Path) -> None:
    accounts = [{"path": "site/*", "budgets": calls(1, 60)}]
    few = {"max_children": 3}
    with limits(project, [rule(["user"], "site/{user}")], accounts, limits=few) as ask:
        assert [codes(ask({"user": f"u{n}"}))[0] for n in range(4)] == [OK] * 3 + [OVER_LIMIT]


def test_all_limits_that_a_request_fits_count(project: Path) -> None:
    """Budgets along the path: whichever is used up first refuses, and nothing is counted."""
    rules = [rule(["method", "user"], "site/{method}/{user}")]
    accounts = [
        {"path": "site/GET", "budgets": calls(5, 60)},
        {"path": "site/POST", "budgets": calls(2, 60)},
        {"path": "site/*/*", "budgets": calls(3, 60)},
    ]
    with limits(project, rules, accounts) as ask:

        def sent(method: str, user: str, count: int) -> list[int]:
            return [codes(ask({"method": method, "user": user}))[0] for _ in range(count)]

        assert sent("GET", "alice", 4) == [OK, OK, OK, OVER_LIMIT]
        assert sent("GET", "bob", 3) == [OK, OK, OVER_LIMIT]
        assert sent("POST", "alice", 3) == [OK, OK, OVER_LIMIT]
        refused = ask({"method": "GET", "user": "carol"})
        assert headers(refused)["x-budget-account"] == "site/GET"


def test_the_namespace_keeps_the_same_descriptors_apart(project: Path) -> None:
    rules = [
        {**rule(["user"], "one/{user}"), "domain": "one"},
        {**rule(["user"], "two/{user}"), "domain": "two"},
    ]
    accounts = [{"path": "*/*", "budgets": calls(1, 60)}]
    with limits(project, rules, accounts) as ask:
        for domain in ("one", "two"):
            answers = [codes(ask({"user": "u"}, domain=domain))[0] for _ in range(2)]
            assert answers == [OK, OVER_LIMIT], domain


def test_a_request_may_count_more_than_once(project: Path) -> None:
    with limits(
        project, [rule(["user"], "{user}")], [{"path": "*", "budgets": calls(10, 60)}]
    ) as ask:
        assert codes(ask({"user": "u"}, hits=7))[0] == OK
        assert codes(ask({"user": "u"}, hits=4))[0] == OVER_LIMIT
        assert codes(ask({"user": "u"}, hits=3))[0] == OK


def test_a_minutes_limit_has_room_again_and_says_so(project: Path) -> None:
    """A limit of a second, for the sake of the test: the window slides, it does not jump."""
    with limits(
        project, [rule(["user"], "{user}")], [{"path": "*", "budgets": calls(2, 1)}]
    ) as ask:
        assert [codes(ask({"user": "u"}))[0] for _ in range(2)] == [OK, OK]
        refused = ask({"user": "u"})
        assert codes(refused)[0] == OVER_LIMIT
        told = headers(refused)
        assert (told["retry-after"], told["x-should-retry"]) == ("1", "true")
        assert json.loads(refused.raw_body)["error"]["type"] == "rate_limit_error"
        time.sleep(1.2)
        assert codes(ask({"user": "u"}))[0] == OK
