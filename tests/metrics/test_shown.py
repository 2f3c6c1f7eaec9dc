"""The dashboard and the alerts: what they name is on the page of a live daemon."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from support import ratelimits
from support.processes import LISTING, incident
from support.promtool import promtool
from support.receivers import until, webhook
from support.scraped import Scraped

from bursar import _process_convert
from bursar.watchdog import figures

NAME: Final = re.compile(r"\b(?:bursar_\w+|up)\b(?!\")")
LABEL: Final = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
FROM_PROMETHEUS: Final = {"up"}


def dashboard(project: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((project / "sidecar/grafana/bursar.json").read_bytes())
    return loaded


def rules(project: Path) -> list[dict[str, Any]]:
    loaded = yaml.safe_load((project / "sidecar/prometheus/alerts.yaml").read_bytes())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def expressions(project: Path) -> list[str]:
    """All that is asked of Prometheus."""
    shown = dashboard(project)
    asked = [one["expr"] for panel in shown["panels"] for one in panel.get("targets", [])]
    variables = shown["templating"]["list"]
    asked += [one["query"]["query"] for one in variables if one["type"] == "query"]
    return asked + [rule["expr"] for rule in rules(project)]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The labels of each sample of a daemon with a watchdog, and of GPUs that need not be here."""
    folder = tmp_path_factory.mktemp("receivers")
    upstream = {"name": "up", "url": "http://127.0.0.1:1", "models": ["m"]}
    with Scraped(
        watchdog={"mode": "observe"},
        envoy={"rules": [ratelimits.rule(["team"], "acme/{team}")]},
        proxy={"listen": "127.0.0.1:0", "default_account": "acme", "upstreams": [upstream]},
        notify={"webhooks": [webhook(folder, "http://127.0.0.1:1/hook")]},
    ) as daemon:
        with daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=10)
            client.record("acme", tokens=3)
        until(lambda: "bursar_receiver_gone{" in daemon.scrape().text, "it is taken in")
        page = daemon.scrape()
    found: dict[str, list[dict[str, str]]] = {}
    for name, shown in page.samples():
        found.setdefault(name, []).append(dict(shown))
    metered = {"acme": dict.fromkeys(figures._METERS, 1)}
    told = replace(_process_convert.listing(LISTING), metered=metered)
    assert told.watchdog.sample_time is not None
    text = figures.exposition(
        told, [_process_convert.incident(incident())], now=told.watchdog.sample_time
    )
    families = set(re.findall(r"# TYPE (\S+)", page.text))
    for family, kind in re.findall(r"# TYPE (\S+) (\S+)", text):
        assert family in families  # on the daemon's page, if without samples
        name = f"{family}_total" if kind == "counter" else family
        for line in re.findall(rf"^{name}(?:{{(.*)}})? ", text, re.MULTILINE):
            labels = {key: value for key, _, value in LABEL.findall(line)}
            found.setdefault(name, []).append(labels)
    return found


def test_every_metric_that_is_named_exists(
    project: Path, known: dict[str, list[dict[str, str]]]
) -> None:
    asked = expressions(project)
    assert len(asked) > 50
    for expression in asked:
        names = {one for one in NAME.findall(expression) if not one.endswith("_")}
        assert names, expression
        assert names - FROM_PROMETHEUS <= known.keys(), expression


def test_every_label_that_is_named_exists_and_what_it_is_to_be_is_possible(
    project: Path, known: dict[str, list[dict[str, str]]]
) -> None:
    for expression in expressions(project):
        for name, selector in re.findall(r"\b(bursar_\w+)\{([^}]*)\}", expression):
            for key, operator, value in LABEL.findall(selector):
                if key == "instance" or value.startswith("$"):
                    continue
                values = {labels[key] for labels in known[name] if key in labels}
                assert values, f"{name} has no {key}: {expression}"
                if (name, key) == ("bursar_calls_total", "code") or operator.startswith("!"):
                    continue  # the codes that nobody has seen yet, and what is left out
                wanted = value.split("|") if "(" not in value else [value]
                for one in wanted:
                    assert any(re.fullmatch(one, have) for have in values), f"{key}={one}"


def test_the_names_in_by_are_labels(project: Path, known: dict[str, list[dict[str, str]]]) -> None:
    labels = {key for every in known.values() for one in every for key in one}
    for expression in expressions(project):
        for names in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {one.strip() for one in names.split(",")} <= labels | {"instance"}, expression


def test_the_panels_of_the_dashboard_are_whole(project: Path) -> None:
    panels = dashboard(project)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"


def test_the_series_of_several_sidecars_can_be_told_apart(project: Path) -> None:
    for panel in dashboard(project)["panels"]:
        for one in panel.get("targets", []):
            is_one = re.match(r"(sum|max|min|time|histogram_quantile)\b", one["expr"])
            assert is_one or "{{instance}}" in one["legendFormat"], panel["title"]


def test_every_alert_says_what_to_do(project: Path) -> None:
    for rule in rules(project):
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}


def test_promtool_takes_the_alerts_and_plays_them(project: Path) -> None:
    folder = project / "sidecar/prometheus"
    checked = promtool("check", "rules", str(folder / "alerts.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    played = promtool("test", "rules", str(folder / "alerts_test.yaml"))
    assert played.returncode == 0, played.stdout + played.stderr


def test_every_alert_fires_in_its_test(project: Path) -> None:
    played = (project / "sidecar/prometheus/alerts_test.yaml").read_text(encoding="utf-8")
    for rule in rules(project):
        assert f'alertname="{rule["alert"]}"' in played


def test_promtool_takes_what_the_dashboard_asks(project: Path, tmp_path: Path) -> None:
    """As recording rules, with the variables of Grafana filled in."""
    asked = [
        one["expr"] for panel in dashboard(project)["panels"] for one in panel.get("targets", [])
    ]
    filled = [one.replace("$__rate_interval", "5m") for one in asked]
    groups = {
        "groups": [
            {
                "name": "asked",
                "rules": [{"record": f"r:{n}", "expr": one} for n, one in enumerate(filled)],
            }
        ]
    }
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump(groups), encoding="utf-8")
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
