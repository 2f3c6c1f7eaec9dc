"""`bursar proxy`, and `[proxy]` in a configuration file."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from support.upstreams import RawUpstream, respond, usage

import bursar
from bursar.daemon.config import Config, ConfigError

MESSAGES: Any = [{"role": "user", "content": "hello"}]


@contextmanager
def proxy(*arguments: str) -> Iterator[dict[str, str]]:
    """Runs `bursar proxy`; yields what it tells a shell to export."""
    command = [sys.executable, "-m", "bursar", "proxy", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = {}
        for line in process.stdout:
            word, assignment = shlex.split(line.decode(), comments=True)
            assert word == "export"
            name, _, value = assignment.partition("=")
            told[name] = value
            if name == "BURSAR_TARGET":
                break
        try:
            yield told
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            assert process.stderr is not None
            process.stderr.read()


def test_it_needs_no_configuration_and_tells_what_to_export() -> None:
    choices = [{"message": {"content": "c"}, "finish_reason": "stop", "index": 0}]
    body = {"choices": choices, "usage": usage(9, 3)}
    with (
        RawUpstream(lambda connection, _h, _b: respond(connection, body)) as upstream,
        proxy("--upstream", upstream.url, "--limit", "tokens=100/day") as told,
        openai.OpenAI(base_url=told["OPENAI_BASE_URL"], api_key="x", max_retries=0) as client,
        bursar.connect(told["BURSAR_TARGET"]) as ledger,
    ):
        call: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 20}
        assert client.chat.completions.create(**call).choices[0].message.content == "c"
        [balance] = ledger.get_account("local").balances
        assert (balance.spent, balance.limit, str(balance.period)) == (12, 100, "day")
        for _ in range(7):
            client.chat.completions.create(**call)
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(**call)
        assert raised.value.status_code == 402


def test_dollars_are_counted_at_list_prices_and_a_model_without_one_is_refused() -> None:
    choices = [{"message": {"content": ""}, "finish_reason": "stop", "index": 0}]
    body = {"choices": choices, "usage": usage(1_000_000, 0)}
    with (
        RawUpstream(lambda connection, _h, _b: respond(connection, body)) as upstream,
        proxy("--upstream", upstream.url, "--limit", "usd=5/day") as told,
        openai.OpenAI(base_url=told["OPENAI_BASE_URL"], api_key="x", max_retries=0) as client,
        bursar.connect(told["BURSAR_TARGET"]) as ledger,
    ):
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=20)
        [balance] = ledger.get_account("local").balances
        assert balance.spent == 2_500_000_000
        with pytest.raises(openai.BadRequestError, match="no price for model"):
            client.chat.completions.create(model="unheard-of", messages=MESSAGES)


def test_a_limit_that_is_none_is_told() -> None:
    for limit in ("usd", "dollars=5", "usd=five", "usd=5/fortnight"):
        command = [sys.executable, "-m", "bursar", "proxy", "--upstream", "http://127.0.0.1:1"]
        ran = subprocess.run(
            [*command, "--limit", limit], capture_output=True, timeout=30, check=False
        )
        assert ran.returncode == 2, (limit, ran.stderr)


@pytest.mark.parametrize(
    ("proxy_section", "told"),
    [
        ({"listen": "0.0.0.0:1", "upstreams": [{"name": "a", "url": "http://a"}]}, "other hosts"),
        ({"listen": "127.0.0.1:1"}, "upstreams"),
        ({"upstreams": [{"name": "a", "url": "ftp://a"}]}, "http or https"),
        ({"upstreams": [{"name": "a", "url": "https://key@a"}]}, "key_env"),
        (
            {"upstreams": [{"name": "a", "url": "http://a", "key_env": "A", "key_file": "b"}]},
            "both|exclude",
        ),
        ({"tokens": [{"sha256": "abc", "account": "a"}]}, "SHA-256"),
    ],
)
def test_a_wrong_section_is_told_in_words(proxy_section: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Config.from_dict({"proxy": proxy_section})
    assert re.search(told, str(raised.value))


def test_a_key_that_is_not_there_is_told_without_a_start() -> None:
    assert "BURSAR_NO_SUCH_KEY" not in os.environ
    upstream = {"name": "a", "url": "http://a", "key_env": "BURSAR_NO_SUCH_KEY"}
    config = Config.from_dict({"proxy": {"listen": "127.0.0.1:0", "upstreams": [upstream]}})
    with pytest.raises(ConfigError, match="BURSAR_NO_SUCH_KEY is not set"):
        config.to_core_json()
