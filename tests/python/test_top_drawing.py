"""What `bursar top` shows of accounts: amounts, bars, states, columns, order; no terminal."""

from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from bursar import Account, AccountChanges, Balance, Threshold, Verdict
from bursar.cli.top import _draw as draw
from bursar.cli.top._tree import EXPANDED_MAX, AccountTree, Pace, Row, Sort, state
from bursar.units import UNITS

NOW: Final = datetime(2026, 5, 1, 12, tzinfo=UTC)
AMOUNTS: Final = st.integers(0, 2**62)


def balance(
    spent: int, held: int = 0, limit: int = 100, unit: str = "tokens", account: str = "a"
) -> Balance:
    return Balance(account, unit, "total", limit, held, spent, limit - spent - held)


def account(
    path: str, *balances: Balance, verdict: Verdict = Verdict.OK, opened: int = 0
) -> Account:
    return Account(path, False, False, "", verdict, balances, opened, None)


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("tokens", 99_999, "99,999"),
        ("tokens", 123_456, "123k"),
        ("tokens", 1_239_999, "1.23M"),
        ("tokens", 99_999_999, "99.9M"),
        ("tokens", -5, "-5"),
        ("tokens", 2**63 - 1, "9,223,372T"),
        ("usd_nanos", 12_345_000_000, "$12.34"),
        ("usd_nanos", 123_456_789, "$0.1234"),
        ("usd_nanos", 1, "<$0.0001"),
        ("usd_nanos", 0, "$0.00"),
        ("usd_nanos", -2_500_000_000, "-$2.50"),
        ("usd_nanos", 123_456 * 10**9, "$123k"),
        ("vram_bytes", 19 * 2**29, "9.5 GiB"),
        ("gpu_ms", 125_000, "2 min 5 s"),
    ],
)
def test_an_amount_is_short_and_never_rounded_up(unit: str, value: int, shown: str) -> None:
    assert draw.amount(unit, value) == shown


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        ("tokens", "2.50M", 2_500_000),
        ("tokens", " 1k ", 1_000),
        ("calls", "1.2345k", None),
        ("tokens", "0.0001k", None),
        ("tokens", "10_000_000G", None),
        ("tokens", "M", None),
        ("tokens", "", None),
        ("usd_nanos", "2M", None),
        ("tokens", "2_000", 2_000),
        ("gpu_ms", "2 h", 7_200_000),
    ],
)
def test_a_count_is_read_as_it_is_shown(unit: str, text: str, value: int | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match=r"write|finer|beyond"):
            draw.read_amount(unit, text)
    else:
        assert draw.read_amount(unit, text) == value


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("gpu_ms", 7_200_000, "2 h (7,200,000)"),
        ("vram_bytes", 2**33, "8 GiB (8,589,934,592)"),
        ("tokens", 1_000, "1,000"),
        ("usd_nanos", 1, "$0.000000001"),
    ],
)
def test_a_limit_is_read_at_a_glance_and_exact(unit: str, value: int, shown: str) -> None:
    assert draw.exact(unit, value) == shown


@pytest.mark.parametrize(
    ("unit", "per_s", "shown"),
    [
        ("tokens", None, ""),
        ("tokens", 0.0, "idle"),
        ("tokens", 1_234.5, "1,234/s"),
        ("tokens", 2.0, "120/min"),
        ("tokens", 0.01, "36/h"),
        ("usd_nanos", 20_000_000.0, "$0.0200/s"),
        ("usd_nanos", 1e-9, "idle"),
        ("concurrency", 3.0, ""),
    ],
)
def test_a_rate_has_the_time_that_makes_it_readable(
    unit: str, per_s: float | None, shown: str
) -> None:
    assert draw.rate(unit, per_s) == shown


@pytest.mark.parametrize(
    ("pace", "shown"),
    [
        (None, ""),
        (Pace(None, None), ""),
        (Pace(5.0, None), "lasts"),
        (Pace(None, 0.0), "empty"),
        (Pace(5.0, 119.0), "119s"),
        (Pace(5.0, 7_199.0), "119m"),
        (Pace(5.0, 86_400.0), "24h"),
        (Pace(5.0, 86_400.0 * 200), ">99d"),
    ],
)
def test_a_forecast_has_at_most_five_cells(pace: Pace | None, shown: str) -> None:
    assert draw.ends(pace) == shown
    assert len(shown) <= 5


@example(4, 1, 6, 3, [])
@given(AMOUNTS, AMOUNTS, AMOUNTS, st.integers(3, 60), st.lists(st.integers(1, 1_000), max_size=4))
def test_a_bar_is_as_wide_as_it_is_told_and_hides_nothing(
    spent: int, held: int, limit: int, width: int, permilles: list[int]
) -> None:
    one = balance(spent, held, limit)
    thresholds = [Threshold(permille, Verdict.WARN) for permille in permilles]
    pieces = draw.bar(one, thresholds, width)
    assert cell_len("".join(text for text, _ in pieces)) == width
    parts = [part.removesuffix("-mark") for text, part in pieces for _ in text]
    assert parts == sorted(parts, key=["spent", "held", "free"].index)
    assert ("spent" in parts) == (spent > 0)
    assert (held == 0) or "held" in parts or spent >= limit
    assert ("free" in parts) == (spent + held < limit or spent + held == 0)


def test_a_mark_is_where_its_threshold_is() -> None:
    text = "".join(one for one, _ in draw.bar(balance(0), [Threshold(500, Verdict.WARN)], 10))
    assert text == "·····│····"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (account("a", balance(10)), "OK"),
        (account("a", balance(10), verdict=Verdict.WARN), "WARN"),
        (account("a", balance(10), verdict=Verdict.STOP), "STOP"),
        (account("a", balance(100)), "EMPTY"),
        (account("a", balance(50, 50)), "EMPTY"),
        (account("a", balance(101), verdict=Verdict.STOP), "OVER"),
        (Account("a", True, True, "", Verdict.STOP, (balance(101),), 0, None), "FROZEN"),
        (Account("a", False, True, "", Verdict.STOP, (), 0, None), "frozen↑"),
    ],
)
def test_the_worst_of_an_account_is_one_word(found: Account, word: str) -> None:
    assert state(found) == word


@given(
    st.integers(1, 300),
    st.integers(0, 15),
    st.text(min_size=1, max_size=40),
    st.tuples(st.sampled_from(sorted(UNITS)), AMOUNTS, AMOUNTS),
)
def test_every_line_is_as_wide_as_the_screen_and_has_no_control_characters(
    width: int, depth: int, name: str, budget: tuple[str, int, int]
) -> None:
    shown, (unit, spent, limit) = draw.columns(width), budget
    one = balance(spent, 3, limit, unit)
    row = Row("a", name, depth, parent=True, expanded=False)
    line = draw.line(row, account("a", one), one, pace=Pace(5.5, 70.0), thresholds=(), shown=shown)
    text = "".join(piece for piece, _ in line)
    assert text.isprintable()
    assert (cell_len(text), cell_len(draw.heading(shown))) == (width, width)


def test_what_is_of_a_limit_is_held_where_what_is_held_comes_back() -> None:
    one = balance(0, held=4, limit=4, unit="concurrency")
    row = Row("a", "a", 0, parent=False, expanded=False)
    shown = draw.columns(80)
    line = draw.line(row, account("a", one), one, pace=None, thresholds=(), shown=shown)
    assert "100%             4/4 concurrency" in "".join(text for text, _ in line)


def tree_of(*accounts: Account) -> AccountTree:
    tree = AccountTree()
    tree.apply(AccountChanges(accounts), anew=True, now_s=0.0)
    return tree


def paths(tree: AccountTree) -> list[str]:
    return [row.path for row in tree.rows(10.0, NOW)]


def test_rows_are_in_the_order_of_the_tree_not_of_the_text() -> None:
    tree = tree_of(*(account(one) for one in ("a", "a-b", "a/x", "a/x/y", "b")))
    assert paths(tree) == ["a", "a/x", "a/x/y", "a-b", "b"]
    tree.expand("a", to=False)
    assert paths(tree) == ["a", "a-b", "b"]
    tree.expand_all(to=True)
    assert len(paths(tree)) == 5


def test_an_account_whose_parent_is_not_shown_is_a_root_with_its_whole_path() -> None:
    [first, second] = tree_of(account("acme/x"), account("acme/x/y")).rows()
    assert (first.name, first.depth, second.name, second.depth) == ("acme/x", 0, "y", 1)


def test_many_accounts_begin_closed() -> None:
    many = [account(f"a/{number}") for number in range(EXPANDED_MAX)]
    tree = tree_of(account("a"), *many, account("a/0/x"))
    assert "a/0" in paths(tree)
    assert "a/0/x" not in paths(tree)


def test_a_filter_opens_what_it_finds_and_closes_it_again() -> None:
    tree = tree_of(*(account(one) for one in ("a", "a/x", "a/x/Deep", "b")))
    tree.expand_all(to=False)
    tree.narrow("deep")
    assert paths(tree) == ["a", "a/x", "a/x/Deep"]
    tree.narrow("")
    assert paths(tree) == ["a", "b"]


def trouble() -> AccountTree:
    return tree_of(
        *(account(one) for one in ("a", "a/x", "b", "b/y")),
        account("a/warned", balance(80), verdict=Verdict.WARN),
        account("b/y/empty", balance(100)),
    )


def test_a_collapsed_row_says_the_worst_of_what_it_hides() -> None:
    tree = trouble()
    assert [tree.worst(one) for one in ("a", "a/x", "b/y", "b")] == ["WARN", "OK", "EMPTY", "EMPTY"]
    [row] = [one for one in tree.rows() if one.path == "b"]
    line = draw.line(
        row,
        account("b"),
        None,
        pace=None,
        thresholds=(),
        shown=draw.columns(80),
        worst=tree.worst("b"),
    )
    assert ("EMPTY↓  ", "stop") in line
    tree.apply(AccountChanges((account("b/y/empty"),), ("a/warned",)), anew=False, now_s=1.0)
    assert (tree.worst("a"), tree.worst("b")) == ("OK", "OK")


@pytest.mark.parametrize("sort", [Sort.STATE, Sort.USED])
def test_the_order_is_by_the_worst_below(sort: Sort) -> None:
    tree = trouble()
    tree.sort = sort
    assert paths(tree) == ["b", "b/y", "b/y/empty", "a", "a/warned", "a/x"]


def test_trouble_alone_is_shown_with_all_above_it_until_it_is_over() -> None:
    tree = trouble()
    tree.expand_all(to=False)
    tree.flip_attention_only()
    assert paths(tree) == ["a", "a/warned", "b", "b/y", "b/y/empty"]
    tree.narrow("warned")
    assert paths(tree) == ["a", "a/warned"]
    tree.narrow("")
    tree.apply(AccountChanges((account("a/warned"),)), anew=False, now_s=20.0)
    assert [row.path for row in tree.rows(30.0)] == ["b", "b/y", "b/y/empty"]
    tree.flip_attention_only()
    assert paths(tree) == ["a", "b"]


def test_the_order_is_by_name_used_end_or_reservations() -> None:
    tree = tree_of(
        account("idle", balance(90, account="idle")),
        account("fast", balance(0, account="fast", limit=10**6)),
        account("open", opened=7),
    )
    now = balance(1_000, account="fast", limit=10**6)
    tree.apply(AccountChanges((account("fast", now),)), anew=False, now_s=10.0)
    orders = {}
    for _ in Sort:
        orders[tree.sort] = paths(tree)
        tree.next_sort()
    assert orders == {
        Sort.NAME: ["fast", "idle", "open"],
        Sort.STATE: ["fast", "idle", "open"],
        Sort.USED: ["idle", "fast", "open"],
        Sort.ENDS: ["fast", "idle", "open"],
        Sort.OPEN: ["open", "fast", "idle"],
    }


def test_the_tightest_budget_stands_for_an_account_unless_a_unit_is_chosen() -> None:
    calls = balance(1, unit="calls")
    both = account("a", calls, balance(50))
    tree = tree_of(both)
    shown = tree.shown(both)
    assert shown is not None
    assert shown.unit == "tokens"
    tree.next_unit()
    assert (tree.unit, tree.shown(both)) == ("calls", calls)
    tree.next_unit()
    tree.next_unit()
    assert tree.unit == ""


def test_changes_add_and_drop_and_a_new_beginning_forgets() -> None:
    tree = tree_of(account("a"), account("a/x"))
    tree.apply(AccountChanges((account("b"),), retired=("a/x",)), anew=False, now_s=1.0)
    assert paths(tree) == ["a", "b"]
    tree.apply(AccountChanges((account("c"),)), anew=True, now_s=2.0)
    assert paths(tree) == ["c"]
    assert tree.count_below("a") == 0
