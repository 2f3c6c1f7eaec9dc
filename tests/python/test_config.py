"""The configuration: what is valid becomes the core's JSON, what is not is explained."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.daemon._receivers import CommandConfig, NotifySection, WebhookConfig
from bursar.daemon.config import Config, ConfigError, load_config
from bursar.notify.events import NAMES
from bursar.testing import to_toml


def core_of(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Config.from_dict(tomllib.loads(text)).to_core_json())
    return loaded


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tomllib.loads(text))
    return [str(problem) for problem in caught.value.problems]


def budget(body: str) -> str:
    return f'[[accounts]]\npath = "acme"\n[[accounts.budgets]]\n{body}'


def envoy_rule(entries: str, account: str, more: str = "") -> str:
    return f'[[envoy.rules]]\nentries = {entries}\naccount = "{account}"\n{more}'


ADVICE = ("max_new_tokens", "temperature", "repetition_penalty", "fallback_model", "notice")


def test_an_empty_file_is_valid_and_has_the_documented_defaults() -> None:
    assert core_of("") == {
        "store": {
            "path": "/var/lib/bursar/ledger.db",
            "durability": "process",
            "entry_retention_s": 30 * 86_400,
            "sync_interval_ms": 10,
            "min_free_bytes": 256 * 2**20,
        },
        "listen": {
            "unix": "/run/bursar/bursar.sock",
            "unix_mode": 0o660,
            "tcp": None,
            "tls": None,
            "max_message_bytes": 4 * 2**20 + 64 * 2**10,
            "max_connections": 10_000,
            "max_concurrent_calls_per_connection": 1_000,
            "runtime_threads": 1,
            "drain_timeout_ms": 10_000,
        },
        "access": {"mode": "open", "local": [], "certificate": []},
        "limits": {
            "max_accounts": 100_000,
            "max_reservations": 2_000_000,
            "max_children": 10_000,
            "max_leases": 10_000,
        },
        "reservations": {
            "default_ttl_ms": 60_000,
            "max_ttl_ms": 86_400_000,
            "key_retention_ms": 300_000,
        },
        "account_idle_ms": 3_600_000,
        "allow_unpriced": False,
        "rates": [],
        "runaway": {
            "action": "warn",
            "interval_ms": 300_000,
            "most": {
                "velocity": 10,
                "depth": 16,
                "repeats": 50,
                "children": 100,
                "open_reservations": 1_000,
                "no_progress": 100,
            },
            "advice": dict.fromkeys(ADVICE),
        },
        "accounts": [],
    }


def test_metrics_reach_the_core_where_they_are_served() -> None:
    assert "metrics" not in core_of("[metrics]\nmax_accounts = 5")
    expected = {"listen": "127.0.0.1:7413", "tls": False, "max_accounts": 1_000}
    assert core_of('[metrics]\nlisten = "localhost:7413"')["metrics"] == expected


def test_a_budget_becomes_integers_in_base_units() -> None:
    text = budget(
        'unit = "usd_nanos"\nperiod = "rolling:3600s"\nlimit = "25.00 USD"\n'
        'thresholds = [{percent = 12.5, verdict = "warn"}, '
        '{percent = 90, verdict = "degrade", advice = {max_new_tokens = 64, temperature = 0}}]'
    )
    nothing = {"temperature": None, "repetition_penalty": None, "fallback_model": None}
    nothing["notice"] = None
    assert core_of(text)["accounts"] == [
        {
            "path": "acme",
            "budgets": [
                {
                    "unit": "usd_nanos",
                    "period": {"kind": "rolling", "time_zone": "UTC", "length_ms": 3_600_000},
                    "limit": 25_000_000_000,
                    "thresholds": [
                        {
                            "permille": 125,
                            "verdict": "warn",
                            "advice": {"max_new_tokens": None, **nothing},
                        },
                        {
                            "permille": 900,
                            "verdict": "degrade",
                            "advice": {**nothing, "max_new_tokens": 64, "temperature": 0.0},
                        },
                    ],
                }
            ],
        }
    ]


def test_an_account_says_only_what_differs_from_the_runaways_anywhere() -> None:
    core = core_of(
        "[runaway]\ndepth = 5\nrepeats = 0\n"
        '[[accounts]]\npath = "a"\nrunaway = {action = "stop", interval = "1m", repeats = 9}\n'
        '[[accounts]]\npath = "b"'
    )
    own, plain = core["accounts"]
    assert "runaway" not in plain
    most = {**core["runaway"]["most"], "repeats": 9}
    assert (core["runaway"]["most"]["depth"], core["runaway"]["most"]["repeats"]) == (5, 0)
    assert own["runaway"] == {
        "action": "stop",
        "interval_ms": 60_000,
        "most": most,
        "advice": core["runaway"]["advice"],
    }


def test_a_memory_store_has_no_path() -> None:
    store = core_of('[store]\npath = ""')["store"]
    assert (store["path"], store["durability"]) == (None, "memory")


def test_an_engine_has_no_listeners() -> None:
    assert "listen" not in json.loads(Config().to_core_json(listen=False))


BUDGET = "accounts[0].budgets[0]"
COMPLAINTS = [
    (
        budget('unit = "usd_nanos"\nlimit = "ten USD"'),
        (
            f"{BUDGET}.limit: got 'ten USD'; the hard limit of the budget; "
            'write an integer of usd_nanos or an amount such as "25.00 USD"'
        ),
    ),
    (budget('unit = "tokens"\nlimit = "2M"'), "write an integer such as 2_000_000"),
    (budget('unit = "tokens"\nlimit = 2.0'), f"{BUDGET}.limit: got 2.0;"),
    (budget('unit = "tokens"\nlimit = -1'), f"{BUDGET}.limit: got -1;"),
    (budget('unit = "tokens"\nlimit = true'), f"{BUDGET}.limit: got true;"),
    (budget('unit = "tokens"'), f"{BUDGET}.limit: missing; the hard limit of the budget"),
    (budget('unit = "usd"\nlimit = 1'), f"{BUDGET}.unit: got 'usd'; what the budget counts; there"),
    (budget("unit = 3\nlimit = 1"), f"{BUDGET}.unit: got 3; what the budget counts; write one of"),
    (
        budget('unit = "tokens"\nlimit = 1\nperiod = "fortnight"'),
        (
            f"{BUDGET}.period: got 'fortnight'; how long a window lasts and when it starts anew; "
            'write "total", "hour"'
        ),
    ),
    (
        budget('unit = "vram_bytes"\nlimit = "8 GiB"\nperiod = "day"'),
        'comes back when a reservation ends, so its budget has no windows; write "total"',
    ),
    (
        budget('unit = "tokens"\nlimit = 1\nthresholds = [{percent = 90, verdict = "stop"}]'),
        (
            f"{BUDGET}.thresholds[0].verdict: got 'stop'; what callers are told from then on; "
            'write "warn" or "degrade"'
        ),
    ),
    (
        budget('unit = "tokens"\nlimit = 1\nthresholds = [{percent = 101, verdict = "warn"}]'),
        f"{BUDGET}.thresholds[0].percent: got 101; the share of the limit",
    ),
    (
        budget('unit = "tokens"\nlimit = 1\nthresholds = [{percent = 33.33, verdict = "warn"}]'),
        "with at most one decimal",
    ),
    (
        budget(
            'unit = "tokens"\nlimit = 1\nthresholds = [{percent = 90, verdict = "warn"}, '
            '{percent = 80, verdict = "warn"}]'
        ),
        "they are not in ascending order of percent",
    ),
    (
        budget(
            'unit = "tokens"\nlimit = 1\nthresholds = [{percent = 9, verdict = "warn", '
            "advice = {max_new_token = 64}}]"
        ),
        (
            f"{BUDGET}.thresholds[0].advice.max_new_token: there is no such key; "
            "did you mean max_new_tokens?"
        ),
    ),
    (
        budget('unit = "tokens"\nlimit = 1\n[[accounts.budgets]]\nunit = "tokens"\nlimit = 2'),
        "accounts[0]: two budgets count tokens per total; keep one",
    ),
    ('[[accounts]]\npath = "a/**/b"', "accounts[0].path: got 'a/**/b'; a path of names"),
    ('[[accounts]]\npath = "a//b"', "'' is not a name"),
    ('[[accounts]]\npath = "/a"', "'' is not a name"),
    ('[[accounts]]\npath = "a/-b"', "'-b' is not a name"),
    (f'[[accounts]]\npath = "{"a" * 65}"', "is not a name: 1 to 64 letters"),
    (f'[[accounts]]\npath = "{"/".join("a" * 17)}"', "it has 17 names; at most 16"),
    ('[[accounts]]\npath = "a"\n[[accounts]]\npath = "a"', "a is there more than once"),
    ("[[accounts]]\n[[accounts.budgets]]\n", "accounts[0].path: missing; a path of names"),
    ("[server]\nsoket = 1", "server.soket: there is no such key; did you mean socket?"),
    ("colour = 1", "colour: there is no such key; here may stand server, store, limits"),
    ("server = 1", "server: got 1; where to listen; write a table"),
    ('[server]\nsocket = ""', "neither socket nor tcp is set"),
    (f'[server]\nsocket = "/{"a" * 107}"', "the path has 108 bytes"),
    ("[server]\nsocket_mode = 660", 'write four octal digits in quotes, such as "0660"'),
    ('[server]\nsocket_mode = "0999"', "that is not an octal mode up to 0777"),
    ('[server]\ntcp = "0.0.0.0:7411"', "which takes TLS ([server.tls]), or all that is sent could"),
    ('[server]\ntcp = "[::]:7411"', '([access] mode = "enforce")'),
    ('[server]\ntcp = "10.0.0.1:7411"', "can be reached from other hosts"),
    ('[access]\nmode = "enforce"\n[server]\ntcp = "10.0.0.1:1"', "takes TLS"),
    ("[proxy]\ntls = true", "there is no [server.tls] to take it from"),
    ("[metrics]\ntls = true", "there is no [server.tls] to take it from"),
    ('[metrics]\nlisten = "0.0.0.0:7413"', "which takes TLS ([server.tls], metrics.tls)"),
    ("[metrics]\nmax_accounts = 10_001", "write an integer from 0 to 10_000"),
    ('[log]\nformat = "xml"', 'write "text" or "json"'),
    ('[server.tls]\ncertificate = "a"\nkey = "b"', "no listener uses it"),
    ('[[access.certificate]]\ndns = "a"\nrole = "agent"', "set client_ca in [server.tls]"),
    ('[[access.certificate]]\nrole = "agent"', "write one of uri, dns and common_name"),
    ('[[access.local]]\ncgroup = "/"\nrole = "agent"', "that is no control group"),
    ('[[access.local]]\ncgroup = "/a/../b"\nrole = "agent"', "that is no control group"),
    ('[[access.local]]\nrole = "agent"', "so everybody would be meant"),
    ('[server]\ntcp = "127.0.0.1"', "that is not an address and a port"),
    ('[server]\ntcp = "127.0.0.1:65536"', "that is not an address and a port"),
    ('[server]\ntcp = "bursar.example.com:1"', "that is not an address and a port"),
    ("[server]\nmax_connections = 0", "server.max_connections: got 0; how many connections are"),
    ('[server]\nmax_connections = "many"', "write an integer from 1 to 1_000_000"),
    ("[server]\ndrain_timeout = 10", 'write a duration such as "500ms"'),
    ('[server]\ndrain_timeout = "1h"', 'write from "0s" to "10m"'),
    ('[store]\ndurability = "extreme"', 'write "process" (kill -9), "power" (a power cut too)'),
    ('[reservations]\ndefault_ttl = "2h"\nmax_ttl = "1h"', "default_ttl is longer than max_ttl"),
    ('[rates]\nallow_unpriced = "yes"', "write true or false"),
    ('[envoy]\nunmatched = "maybe"', 'write "refuse" or "allow"'),
    ("[[envoy.rules]]\nentries = []", "write keys, with values or without"),
    (envoy_rule('["a", "a"]', "{a}"), "{a} in account is not the key of exactly one entry"),
    (envoy_rule('["a*"]', "{a*}"), "{a*} in account is not the key of exactly one entry"),
    (envoy_rule('["a"]', "x/{b}"), "{b} in account is not the key of exactly one entry"),
    (envoy_rule('["a"]', "x/{a"), "is not a name: 1 to 64 letters"),
    (envoy_rule('["a"]', "{a}", 'unit = "vram_bytes"'), "write a unit that is spent"),
    (envoy_rule('["a"]', "{a}", 'over = "shrug"'), 'write "refuse", or "record" where it'),
    (envoy_rule('["a"]', "{a}", "per_hit = 0"), "write an integer from 1 to 1_000_000_000"),
    ('[rates]\nfile = "no-such-file.toml"', "cannot be read: No such file or directory"),
    (
        '[[rates.models]]\nname = "m"\ninput_nanos_per_million = 0.5',
        (
            "rates.models[0].input_nanos_per_million: got 0.5; the price of a million input "
            "tokens; write an integer of billionths of a US dollar"
        ),
    ),
    (
        (
            '[[rates.models]]\nname = "m"\n'
            "tiers = [{above_input_tokens = 2}, {above_input_tokens = 1}]"
        ),
        "they are not in ascending order of above_input_tokens",
    ),
]


@pytest.mark.parametrize(("text", "expected"), COMPLAINTS)
def test_what_is_wrong_is_named_with_its_key_and_what_is_right(text: str, expected: str) -> None:
    problems = problems_of(text)
    assert any(expected in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_all_problems_are_told_at_once() -> None:
    assert len(problems_of('[server]\ntcp = "x"\nmax_connections = 0\n[store]\npath = 1')) == 3


def test_a_time_zone_is_looked_up() -> None:
    text = 'unit = "tokens"\nlimit = 1\nperiod = "day@{}"'
    zone = core_of(budget(text.format("Europe/Berlin")))["accounts"][0]["budgets"][0]["period"]
    assert zone == {"kind": "day", "time_zone": "Europe/Berlin", "length_ms": 0}
    [problem] = problems_of(budget(text.format("Europe/Atlantis")))
    assert "there is no time zone Europe/Atlantis" in problem


@pytest.mark.parametrize(
    ("given_tcp", "normal"),
    [
        ("127.0.0.1:7411", "127.0.0.1:7411"),
        ("localhost:7411", "127.0.0.1:7411"),
        ("127.8.0.1:0", "127.8.0.1:0"),
        ("[::1]:7411", "[::1]:7411"),
    ],
)
def test_loopback_addresses_are_taken(given_tcp: str, normal: str) -> None:
    assert core_of(f'[server]\ntcp = "{given_tcp}"')["listen"]["tcp"] == normal


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text('[[models]]\nname = "m"\n', encoding="utf-8")
    file = tmp_path / "bursar.toml"
    file.write_text(
        '[server]\nsocket = "s"\n[store]\npath = "l"\n[rates]\nfile = "rates.toml"',
        encoding="utf-8",
    )
    config = load_config(file)
    assert (config.server.socket, config.store.path) == (str(tmp_path / "s"), str(tmp_path / "l"))
    assert [model.name for model in config.rates.models] == ["m"]


def test_own_prices_come_before_the_files_and_take_its_names(tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text(
        '[[models]]\nname = "a"\n[[models]]\nname = "b"\naliases = ["c", "d"]\n', encoding="utf-8"
    )
    own = {"name": "a", "aliases": ["c"], "input_nanos_per_million": 7}
    config = Config.from_dict({"rates": {"file": "rates.toml", "models": [own]}}, folder=tmp_path)
    rates = json.loads(config.to_core_json())["rates"]
    names = [(model["model"], model["aliases"]) for model in rates]
    assert names == [("a", ["c"]), ("b", ["d"])]


def test_absent_cache_prices_are_those_of_input() -> None:
    text = (
        '[[rates.models]]\nname = "m"\ninput_nanos_per_million = 7\n'
        "tiers = [{above_input_tokens = 9, input_nanos_per_million = 8, "
        "cached_input_nanos_per_million = 0}]"
    )
    [rate] = core_of(text)["rates"]
    assert rate == {
        "model": "m",
        "aliases": [],
        "tokenizer": None,
        "input_nanos_per_million": 7,
        "cached_input_nanos_per_million": 7,
        "cache_write_nanos_per_million": 7,
        "output_nanos_per_million": 0,
        "call_nanos": 0,
        "gpu_second_nanos": 0,
        "tiers": [
            {
                "above_input_tokens": 9,
                "input_nanos_per_million": 8,
                "cached_input_nanos_per_million": 0,
                "cache_write_nanos_per_million": 8,
                "output_nanos_per_million": 0,
            }
        ],
    }


def test_a_model_has_each_name_once() -> None:
    text = '[[rates.models]]\nname = "a"\n[[rates.models]]\nname = "b"\naliases = ["a"]'
    [problem] = problems_of(text)
    assert problem.startswith("rates.models: got [")
    assert "'a' names a model more than once" in problem


def test_the_rate_card_that_is_shipped_is_valid(project: Path) -> None:
    config = Config.from_dict({"rates": {"file": "rates.toml"}}, folder=project / "sidecar")
    assert len(config.rates.models) > 100


def test_a_problem_in_the_rates_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text('[[models]]\nnam = "m"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rates\.toml: models\[0\]\.nam: there is no such key"):
        Config.from_dict({"rates": {"file": "rates.toml"}}, folder=tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"a = ", "is not TOML"), (b"\xff", "is not TOML")]
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "bursar.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        load_config(file)


def test_overrides_replace_socket_and_store(tmp_path: Path) -> None:
    config = Config.embedded().with_overrides(socket=tmp_path / "s", store=tmp_path / "l")
    core = json.loads(config.to_core_json())
    assert core["listen"]["unix"] == str(tmp_path / "s")
    assert core["store"] | {"path": str(tmp_path / "l"), "durability": "process"} == core["store"]
    with pytest.raises(ConfigError, match="the path has"):
        config.with_overrides(socket="/" + "a" * 200)


def test_the_example_is_valid(project: Path) -> None:
    config = load_config(project / "sidecar/config.example.toml")
    assert [account.path for account in config.accounts][:2] == ["acme", "acme/*"]


def test_every_key_of_the_configuration_is_in_the_example(project: Path) -> None:
    text = (project / "sidecar/config.example.toml").read_text(encoding="utf-8")
    names = ("server", "store", "limits", "reservations", "rates", "runaway", "watchdog", "envoy")
    for name in names:
        section = type(getattr(Config(), name))
        for key in section.model_fields:
            if key not in {"models", "containers", "rules"}:  # tables of their own
                assert f"{key} = " in text, f"{name}.{key}"
    told = text.partition("[notify]\n")[2].partition("\n\n")[0]
    for row in (NotifySection, WebhookConfig, CommandConfig):
        for key in row.model_fields:
            assert f"{key} = " in told or f"[[notify.{key}]]" in told, f"notify: {key}"
    assert all(f"{name}," in told or name.partition(".")[2] in told for name in NAMES)


def test_what_the_example_shows_of_the_watchdog_is_its_default(project: Path) -> None:
    text = (project / "sidecar/config.example.toml").read_text(encoding="utf-8")
    section = text.partition("[watchdog]\n")[2].partition("\n\n")[0]
    shown = re.findall(r"^# (\w+ = .+)$", section, re.MULTILINE)
    config = Config.from_dict({"watchdog": tomllib.loads("\n".join(shown))})
    assert len(shown) > 10
    assert config.watchdog == Config().watchdog


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "budgets", "unit", "limit", "period", "thresholds", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_accounts_are_taken_or_explained(value: object) -> None:
    try:
        Config.from_dict({"accounts": value})
    except ConfigError as error:
        assert all(str(problem).startswith("accounts") for problem in error.problems)


def test_a_mapping_is_written_as_toml_that_reads_back() -> None:
    config = {"a": {"b c": ["x\n\u20ac\U0001f600", 1, True, {"d": 0.5}]}, "e": "f", "g": None}
    assert tomllib.loads(to_toml(config)) == {key: config[key] for key in ("a", "e")}


def test_callers_by_the_socket_are_named_by_user_and_group() -> None:
    rows = [{"user": "root", "group": 7, "role": "observer", "account": "acme/a"}]
    config = Config.from_dict({"access": {"mode": "enforce", "local": rows}})
    core = json.loads(config.to_core_json())["access"]
    assert core == {
        "mode": "enforce",
        "local": [{"uid": 0, "gid": 7, "cgroup": None, "role": "observer", "account": "acme/a"}],
        "certificate": [],
    }


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"role": "agent"}, "neither user, group nor cgroup is set"),
        ({"role": "god", "user": 1}, 'write "agent", "observer" or "operator"'),
        ({"role": "agent", "user": "no-such-user"}, "this host has no user 'no-such-user'"),
        ({"role": "agent", "group": -1}, "-1 is no id of a group"),
        ({"role": "agent", "user": 1, "account": "acme//x"}, "acme"),
    ],
)
def test_a_caller_that_is_nobody_is_a_problem(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Config.from_dict({"access": {"local": [row]}})
    assert says in str(raised.value)
