"""What callers may hand to the SDK: nothing but Bursar's own exceptions comes out."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.daemon import Daemon, picture

import bursar


@pytest.fixture(scope="module")
def client() -> Iterator[bursar.Client]:
    with Daemon() as daemon, daemon.client() as one:
        one.set_budget("acme", unit="tokens", limit=10)
        one.reserve("acme/a", tokens=1).release()
        yield one


WRONG: dict[str, Callable[[bursar.Client], Any]] = {
    "too large for int64": lambda c: c.reserve("acme/a", tokens=2**63),
    "negative": lambda c: c.reserve("acme/a", tokens=-1),
    "a float": lambda c: c.commit("x", tokens=1.0),  # type: ignore[arg-type]
    "a bool": lambda c: c.reserve("acme/a", tokens=True),
    "a text": lambda c: c.reserve("acme/a", tokens="5"),  # type: ignore[arg-type]
    "no amount": lambda c: c.reserve("acme/a"),
    "a surrogate in a path": lambda c: c.reserve("acme/\ud800", tokens=1),
    "a surrogate in a label": lambda c: c.reserve("acme/a", tokens=1, labels={"a": "\ud800"}),
    "a surrogate in a reason": lambda c: c.freeze("acme", reason="\udfff"),
    "a surrogate in a text": lambda c: c.count_tokens("o200k_base", text="\ud800"),
    "a key of 10 MB": lambda c: c.reserve("acme/a", tokens=1, idempotency_key="k" * 10_000_000),
    "a ttl below zero": lambda c: c.reserve("acme/a", tokens=1, ttl_s=-1),
    "a ttl of nothing": lambda c: c.reserve("acme/a", tokens=1, ttl_s=0),
    "a ttl that is no number": lambda c: c.reserve("acme/a", tokens=1, ttl_s=float("nan")),
    "a ttl without end": lambda c: c.reserve("acme/a", tokens=1, ttl_s=float("inf")),
    "a ttl of ages": lambda c: c.reserve("acme/a", tokens=1, ttl_s=1e30),
    "a ttl above max_ttl": lambda c: c.reserve("acme/a", tokens=1, ttl_s=1e9),
    "a limit too large": lambda c: c.set_budget("acme", unit="tokens", limit=2**63),
    "an unknown period": lambda c: c.set_budget("acme", unit="tokens", limit=2, period="moon"),
    "an unknown unit": lambda c: c.set_budget("acme", unit="parsecs", limit=2),
    "a page size below zero": lambda c: list(c.list_accounts(page_size=-1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_raises_invalid_request_and_changes_nothing(
    client: bursar.Client, what: str
) -> None:
    before = picture(client)
    with pytest.raises(bursar.InvalidRequest) as caught:
        WRONG[what](client)
    assert 10 < len(str(caught.value)) < 300
    assert picture(client) == before
