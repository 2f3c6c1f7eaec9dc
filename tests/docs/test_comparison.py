"""What the comparison says of figures was measured, and what it configures limits as it says."""

import json
import tomllib
from pathlib import Path

from support.daemon import Daemon
from support.pages import DOCS, ROOT, block, rows
from support.ratelimits import OK, OVER_LIMIT, RateLimits, codes

PAGE = DOCS / "comparison.md"


def shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:g}"


def test_the_figures_are_those_of_the_last_measurement() -> None:
    file = ROOT / "tests/benchmarks/results/latest.json"
    measured = json.loads(file.read_text(encoding="utf-8"))
    found = rows(PAGE, "Measured")
    assert len(found) > 8
    for series, *told in found:
        one = measured[series.strip("`")]
        expected = [shown(one["ours"]), shown(one["floor"]), one["unit"], f"{one['ratio']:.3g}"]
        assert told == expected, series


def test_limitadors_first_example_is_ten_requests_for_each_user(project: Path) -> None:
    settings = tomllib.loads(block(PAGE, "toml", "[[envoy.rules]]"))
    with (
        Daemon(in_memory=True, **settings) as daemon,
        RateLimits(project, daemon.target) as ask,
    ):
        for user in ("alice", "bob"):
            request = {"method": "GET", "user": user}
            answers = [codes(ask(request, domain="site"))[0] for _ in range(11)]
            assert answers == [OK] * 10 + [OVER_LIMIT]
        post = {"method": "POST", "user": "alice"}
        assert [codes(ask(post, domain="site"))[0] for _ in range(20)] == [OK] * 20
