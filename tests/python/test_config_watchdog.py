"""`[watchdog]`: what is valid becomes settings, what is not is explained."""

import tomllib

import pytest

from bursar.daemon.config import Config, ConfigError
from bursar.watchdog.settings import Settings


def settings_of(body: str) -> Settings:
    return Config.from_dict(tomllib.loads(f"[watchdog]\n{body}")).watchdog.to_settings()


def problems_of(body: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tomllib.loads(f"[watchdog]\n{body}"))
    return [str(problem) for problem in caught.value.problems]


def test_without_a_word_it_observes_with_the_defaults() -> None:
    assert settings_of("") == Settings()
    assert not Settings().enforce


def test_every_key_becomes_its_setting() -> None:
    found = settings_of(
        'mode = "enforce"\nperiod = "250ms"\ngpu_time = "busy"\nterm_grace = "1s"\n'
        'vram_patience = "0s"\nverify_timeout = "2s"\nunkillable_after = "3s"\nsettle = "4s"\n'
        'protect = ["my-.*"]\nother_users = true\nsignal_containers = true\n'
        "max_incidents_per_account = 5\nmax_incidents = 6\n"
        'containers = [{ pattern = "kubepods", account = "k8s/{pod}/{container}" }]'
    )
    [rule] = found.containers
    assert (rule.pattern.pattern, rule.account) == ("kubepods", "k8s/{pod}/{container}")
    assert found == Settings(
        enforce=True,
        period_ms=250,
        term_grace_ms=1000,
        vram_patience_ms=0,
        verify_ms=2000,
        unkillable_ms=3000,
        settle_ms=4000,
        gpu_time="busy",
        protect=("my-.*",),
        other_users=True,
        signal_containers=True,
        containers=found.containers,
        incidents_per_account=5,
        incidents_per_host=6,
    )


COMPLAINTS = [
    ('mode = "kill"', "watchdog.mode: got 'kill'; who is stopped", 'write "observe", "enforce"'),
    ("mode = true", "watchdog.mode: got true", 'write "observe"'),
    ('period = "50ms"', "watchdog.period: got 50; how often", 'write from "100ms" to "10s"'),
    ('period = "11s"', "watchdog.period: got 11000", 'write from "100ms" to "10s"'),
    ('period = "often"', "watchdog.period: got 'often'", 'write a duration such as "500ms"'),
    ('gpu_time = "all"', "watchdog.gpu_time: got 'all'", 'write "allocated" or "busy"'),
    ('term_grace = "301s"', "watchdog.term_grace: got 301000", 'write from "0s" to "300s"'),
    ('term_grace = "-1s"', "watchdog.term_grace: got '-1s'", "write a duration"),
    ('vram_patience = "2m"', "watchdog.vram_patience: got 120000", 'write from "0s" to "60s"'),
    ('verify_timeout = "0s"', "watchdog.verify_timeout: got 0;", 'write from "1s" to "10m"'),
    ('unkillable_after = "1h"', "watchdog.unkillable_after: got", 'write from "1s" to "10m"'),
    ('settle = "11m"', "watchdog.settle: got 660000", 'write from "0s" to "10m"'),
    ('protect = "x"', "watchdog.protect: got 'x'", 'write regular expressions, such as ["my-'),
    ('protect = ["("]', "watchdog.protect", "it is not a regular expression"),
    ('other_users = "yes"', "watchdog.other_users: got 'yes'", "write true or false"),
    ("signal_containers = 1", "watchdog.signal_containers: got 1", "write true or false"),
    ("max_incidents = 0", "watchdog.max_incidents: got 0", "write an integer from 1 to 1_000"),
    ("max_incidents_per_account = 1001", "got 1001", "write an integer from 1 to 1_000"),
    (
        'containers = [{ account = "a" }]',
        "watchdog.containers[0].pattern: missing",
        'write one such as "kubepods"',
    ),
    (
        'containers = [{ pattern = "[", account = "a" }]',
        "watchdog.containers[0].pattern: got '['",
        "it is not a regular expression",
    ),
    (
        'containers = [{ pattern = "", account = "a" }]',
        "watchdog.containers[0].pattern: got ''",
        'write one such as "kubepods"',
    ),
    (
        'containers = [{ pattern = "k", account = "a/{node}" }]',
        "watchdog.containers[0].account: got 'a/{node}'",
        "{node} stands for nothing; write {pod} or {container}",
    ),
    (
        'containers = [{ pattern = "k", account = "a/{pod" }]',
        "watchdog.containers[0].account",
        "stands for nothing",
    ),
    ('kill = "all"', "watchdog.kill", ""),
]


@pytest.mark.parametrize(("body", "where", "right"), COMPLAINTS)
def test_what_is_wrong_is_explained(body: str, where: str, right: str) -> None:
    [problem] = problems_of(body)
    assert where in problem
    assert right in problem


def test_no_more_patterns_than_may_be() -> None:
    assert "watchdog.protect" in problems_of(f"protect = {['x'] * 101}")[0]
    rules = ", ".join(['{ pattern = "k", account = "a" }'] * 101)
    assert "watchdog.containers" in problems_of(f"containers = [{rules}]")[0]


@pytest.mark.parametrize(
    "account", ["a//b", "/a", "a/", "a b", "é", "a/" * 16 + "a", "{pod}{pod}", "-{pod}"]
)
def test_a_container_pays_from_an_account_that_can_be(account: str) -> None:
    body = f'containers = [{{ pattern = "k", account = "{account}" }}]'
    [problem] = problems_of(body)
    assert "watchdog.containers[0].account" in problem
