"""The command line: help, exit codes, and how things are shown."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import bursar
from bursar import exceptions as ex
from bursar.cli import _output, cli
from bursar.cli._shared import EXIT_CODES_HELP, Moment, exit_code
from bursar.daemon.config import ConfigError, Problem

BALANCE = bursar.Balance("acme", "usd_nanos", "day", 10**10, 0, 12_345_678, 10**10 - 12_345_678)
ACCOUNT = bursar.Account(
    path="acme",
    frozen=True,
    stopped=True,
    freeze_reason="spent\x1b[31m too much",
    verdict=bursar.Verdict.STOP,
    balances=(BALANCE,),
    open_reservation_count=1_234,
    create_time=datetime(2026, 5, 1, tzinfo=UTC),
    budgets=(
        bursar.Budget(
            "acme",
            "usd_nanos",
            bursar.Period.parse("day"),
            10**10,
            (bursar.Threshold(805, bursar.Verdict.WARN),),
        ),
    ),
)
TIME = datetime(2026, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC)
ENTRIES = [
    bursar.Entry(n, TIME, "acme", "r1", "usd_nanos", bursar.EntryKind.SPEND, n * 10**9, TIME, "m")
    for n in range(1, 4)
]


class FakeClient:
    """Answers what the tests ask for, or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, kwargs))
            if self.error is not None:
                raise self.error
            return {
                "list_accounts": iter([ACCOUNT]),
                "list_entries": iter(ENTRIES),
                "set_budget": BALANCE,
            }.get(name, ACCOUNT)

        return call


@contextmanager
def entered(client: FakeClient) -> Iterator[FakeClient]:
    yield client


def run(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, error: BaseException | None = None
) -> tuple[Result, FakeClient]:
    client = FakeClient(error)
    monkeypatch.setattr("bursar.connect", lambda *_, **__: entered(client))
    return CliRunner().invoke(cli, arguments), client


COMMANDS = [
    [],
    ["serve"],
    ["proxy"],
    ["run"],
    ["account"],
    ["account", "set"],
    ["account", "show"],
    ["account", "list"],
    ["account", "freeze"],
    ["account", "unfreeze"],
    ["account", "retire"],
    ["log"],
    ["watch"],
    ["top"],
    ["notify"],
    ["account", "reservations"],
    ["notify", "list"],
    ["notify", "test"],
    ["calibrate"],
    ["gpu"],
    ["kill"],
    ["incidents"],
    ["token"],
    ["token", "create"],
    ["token", "list"],
    ["token", "revoke"],
    ["whoami"],
    ["health"],
    ["check"],
    ["doctor"],
    ["backup"],
    ["restore"],
    ["demo"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


def test_the_exit_codes_are_documented_in_the_help() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for line in EXIT_CODES_HELP.strip("\b\n").splitlines():
        assert line.strip() in output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ex.BursarError("x"), 1),
        (ex.UnpricedModel("x"), 1),
        (ex.ProcessProtected("x"), 1),
        (ConfigError([Problem("a", "b")]), 2),
        (ex.InvalidRequest("x"), 2),
        (ex.BudgetExceeded("x", account="a", unit="tokens", shortfall=1), 3),
        (ex.AccountFrozen("x"), 3),
        (ex.SidecarUnavailable("x"), 4),
        (ex.SidecarTimeout("x"), 4),
        (ex.StoreUnavailable("x"), 4),
        (ex.WatchdogUnavailable("x"), 4),
        (ex.AccountNotFound("x"), 5),
        (ex.ReservationNotFound("x"), 5),
        (ex.ProcessNotFound("x"), 5),
    ],
)
def test_an_error_ends_with_its_exit_code_and_a_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, error: ex.BursarError, code: int
) -> None:
    assert exit_code(error) == code
    result, _ = run(monkeypatch, "account", "show", "acme", error=error)
    assert result.exit_code == code
    assert result.stderr == f"bursar: {error}\n"
    assert result.stdout == ""


def test_wrong_usage_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "account", "show")[0].exit_code == 2
    assert run(monkeypatch, "nonsense")[0].exit_code == 2
    assert run(monkeypatch, "log", "--kind", "nonsense")[0].exit_code == 2
    wrong = run(monkeypatch, "log", "--since", "nonsense")[0]
    assert wrong.exit_code == 2
    assert "is not a time like 2026-05-01T12:00 or an age like 2h" in wrong.stderr


def test_an_absent_sidecar_ends_with_4(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bursar", "account", "list", "--target", f"{tmp_path}/none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 4
    assert done.stderr.startswith("bursar: no sidecar answers at unix:")


def test_a_wrong_configuration_ends_with_2_and_a_line_for_each_problem(tmp_path: Path) -> None:
    file = tmp_path / "bursar.toml"
    file.write_text("[server]\nsoket = 1\nmax_connections = 0", encoding="utf-8")
    for arguments in (["check", str(file)], ["serve", "--config", str(file)]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 2
        assert "bursar: server.soket: there is no such key; did you mean socket?" in result.stderr


def test_check_shows_what_a_configuration_means(tmp_path: Path) -> None:
    file = tmp_path / "bursar.toml"
    file.write_text(
        '[[accounts]]\npath = "acme/*"\n[[accounts.budgets]]\nunit = "usd_nanos"\n'
        'limit = "25 USD"\nthresholds = [{percent = 90, verdict = "warn"}]',
        encoding="utf-8",
    )
    output = CliRunner().invoke(cli, ["check", str(file)]).stdout
    assert output.splitlines()[-1].split() == [
        "acme/*", "usd_nanos", "total", "$25.00", "warn", "at", "90%",
    ]  # fmt: skip
    core = json.loads(CliRunner().invoke(cli, ["check", str(file), "--json"]).stdout)
    assert core["accounts"][0]["budgets"][0]["limit"] == 25_000_000_000


def test_set_reads_amounts_and_orders_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--unit", "usd_nanos", "--limit", "10 USD", "--period", "day"]
    thresholds = ["--degrade-at", "80", "--warn-at", "90.5"]
    result, client = run(monkeypatch, "account", "set", "acme", *options, *thresholds)
    assert result.exit_code == 0
    assert client.calls == [
        (
            "set_budget",
            {
                "unit": "usd_nanos",
                "limit": "10 USD",
                "period": "day",
                "thresholds": [
                    bursar.Threshold(800, bursar.Verdict.DEGRADE),
                    bursar.Threshold(905, bursar.Verdict.WARN),
                ],
            },
        )
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "abc"], ["--limit", "'abc'", "2_000_000"]),
        (["--limit=-5"], ["--limit", "'-5'"]),
        (["--limit", "5 EUR"], ["--limit", "'5 EUR'"]),
        (["--limit", "5", "--period", "fortnight"], ["--period", "'fortnight'", "day@Europe"]),
        (["--limit", "abc", "--unit", "parsecs"], ["--unit", "'parsecs'", "usd_nanos"]),
    ],
)
def test_a_wrong_option_of_set_is_named_with_what_was_given(
    monkeypatch: pytest.MonkeyPatch, options: list[str], says: list[str]
) -> None:
    unit = [] if "--unit" in options else ["--unit", "tokens"]
    result, client = run(monkeypatch, "account", "set", "acme", *options, *unit)
    assert result.exit_code == 2
    assert [text for text in says if text not in result.stderr.replace("\n", " ")] == []
    assert client.calls == []


def test_check_says_what_no_accounts_mean(tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.write_text("", encoding="utf-8")
    result = CliRunner().invoke(cli, ["check", str(file)])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("accounts: none configured")
    assert result.stderr == ""


def test_show_is_plain_and_aligned_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, _ = run(monkeypatch, "account", "show", "acme")
    lines = result.stdout.splitlines()
    assert lines[0] == "acme: STOP, frozen (spent\N{REPLACEMENT CHARACTER}[31m too much)"
    assert lines[1] == "pending reservations: 1,234"
    header, row = lines[3:]
    assert header.split() == [*(name.upper() for name in _output.BALANCE_COLUMNS), "THRESHOLDS"]
    assert row.split()[:6] == [
        "usd_nanos",
        "day",
        "$10.00",
        "$0.012345678",
        "$0.00",
        "$9.987654322",
    ]
    assert row.endswith("warn at 80.5%")
    assert header.index("LIMIT") + len("LIMIT") == row.index("$10.00") + len("$10.00")


def test_show_says_so_where_an_account_has_no_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ACCOUNT", replace(ACCOUNT, balances=(), budgets=()))
    result, _ = run(monkeypatch, "account", "show", "acme")
    assert result.stdout.splitlines()[-1] == "budgets: none of its own"
    assert result.stderr == ""


def test_json_has_integers_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = json.loads(run(monkeypatch, "account", "show", "acme", "--json")[0].stdout)
    assert shown["verdict"] == "STOP"
    assert shown["balances"][0]["spent"] == 12_345_678
    assert shown["budgets"][0]["period"] == "day"
    [listed] = json.loads(run(monkeypatch, "account", "list", "--json")[0].stdout)
    assert "budgets" not in listed
    frozen = run(monkeypatch, "account", "freeze", "acme", "--reason", "why", "--json")
    assert json.loads(frozen[0].stdout)["frozen"] is True
    assert frozen[1].calls == [("freeze", {"reason": "why"})]


def test_log_shows_the_newest_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(monkeypatch, "log", "acme", "--limit", "2")[0].stdout.splitlines()
    assert lines[0].split()[:3] == ["SEQUENCE", "TIME", "ACCOUNT"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "3"]
    assert "$2.00" in lines[1]
    assert "2026-05-01 12:00:00.500" in lines[1]


def test_log_writes_csv_and_json_with_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    table = run(monkeypatch, "log", "--format", "csv", "--limit", "0")[0].stdout.splitlines()
    assert table[0] == "sequence,time,account,reservation,unit,kind,amount,admit_time,model,detail"
    stamp = "2026-05-01T12:00:00.500000+00:00"
    assert table[1] == f"1,{stamp},acme,r1,usd_nanos,spend,1000000000,{stamp},m,"
    rows = json.loads(run(monkeypatch, "log", "--json")[0].stdout)
    assert [row["amount"] for row in rows] == [10**9, 2 * 10**9, 3 * 10**9]
    monkeypatch.setattr(FakeClient, "list_entries", lambda *_, **__: iter(()), raising=False)
    assert json.loads(run(monkeypatch, "log", "--json")[0].stdout) == []


def test_log_passes_its_filters_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = run(
        monkeypatch, "log", "--kind", "spend", "--kind", "hold", "--since", "2026-05-01T00:00:00Z"
    )
    [(_, filters)] = client.calls
    assert list(filters["kinds"]) == ["spend", "hold"]
    assert filters["start_time"] == datetime(2026, 5, 1, tzinfo=UTC)


def test_an_age_is_a_moment_in_the_past() -> None:
    moment = Moment().convert("2h", None, None)
    age = (datetime.now(UTC) - moment).total_seconds()
    assert 7200 <= age < 7260


@pytest.mark.parametrize(
    ("unit", "amount", "shown"),
    [
        ("tokens", 999, "999 tokens"),
        ("tokens", 1_500, "1,500 tokens"),
        ("calls", 1_000_000, "1,000,000 calls"),
        ("concurrency", 4, "4 concurrency"),
        ("gpu_ms", 125_000, "2 min 5 s"),
        ("usd_nanos", 2_500_000_000, "$2.50"),
    ],
)
def test_what_a_reservation_holds_is_shown_with_its_unit(
    monkeypatch: pytest.MonkeyPatch, unit: str, amount: int, shown: str
) -> None:
    pending, amounts = bursar.ReservationState.PENDING, {unit: amount}
    held = bursar.ReservationInfo("r", pending, "a", amounts, {}, {}, 0, TIME, TIME, 1_000, "", "")
    found = bursar.OpenReservation(held, bursar.Debiting.CALLS)
    monkeypatch.setattr(FakeClient, "list_reservations", lambda *_: [found], raising=False)
    line = run(monkeypatch, "account", "reservations")[0].stdout.splitlines()[-1]
    assert line.startswith(f"a        {shown}  ")


def test_tables_are_drawn_by_rich_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _output.echo_table(("verdict", "path"), [["STOP", "[red]acme[/red]"]])
    assert "[red]acme[/red]" in capsys.readouterr().out


def test_an_empty_table_says_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    _output.echo_table(("path",), [])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing\n")


def test_all_commands_are_known_to_the_tests() -> None:
    def names(group: click.Command, path: list[str]) -> Iterator[list[str]]:
        yield path
        if isinstance(group, click.Group):
            for name, command in group.commands.items():
                yield from names(command, [*path, name])

    assert sorted(names(cli, [])) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("rates", "is_said"),
    [("", True), ("list_prices = true", False), ("allow_unpriced = true", True)],
)
def test_money_without_prices_is_said(tmp_path: Path, rates: str, is_said: bool) -> None:  # noqa: FBT001
    file = tmp_path / "bursar.toml"
    budget = '[[accounts.budgets]]\nunit = "usd_nanos"\nlimit = "5.00 USD"\n'
    file.write_text(f'[rates]\n{rates}\n[[accounts]]\npath = "a"\n{budget}', encoding="utf-8")
    said = CliRunner().invoke(cli, ["check", str(file)]).stdout
    assert ("no model has a price" in said) is is_said, said
