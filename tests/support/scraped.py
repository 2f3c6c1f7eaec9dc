"""A daemon that serves metrics, and what its pages say."""

import http.client
import json
import re
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from prometheus_client import parser as older
from prometheus_client.openmetrics import parser as open_metrics

from support.daemon import Daemon

OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Page:
    """An answer of the endpoint."""

    status: int
    headers: dict[str, str]
    text: str

    def samples(self) -> Samples:
        """Every sample, as Prometheus's own parser of that format reads it; each is there once."""
        kinds = {OPEN_METRICS: open_metrics, TEXT: older}
        parse = cast("Any", kinds[self.headers["content-type"]]).text_string_to_metric_families
        found: Samples = {}
        for family in parse(self.text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in found, key
                found[key] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float | None:
        """One sample."""
        return self.samples().get((name, frozenset(labels.items())))


class Scraped(Daemon):
    """A daemon with metrics.

    Args:
        metrics: More of `[metrics]`.
        sections: As a daemon's.
    """

    def __init__(self, *, metrics: dict[str, Any] | None = None, **sections: Any) -> None:
        sections.setdefault("watchdog", {"mode": "off"})
        super().__init__(metrics={"listen": "127.0.0.1:0"} | (metrics or {}), **sections)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return str(re.findall(r"metrics on (https?://[^\s\"]+)", self.log)[-1])

    @property
    def address(self) -> tuple[str, int]:
        """The host and port of the endpoint."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def scrape(
        self,
        accept: str = OPEN_METRICS,
        *,
        token: str = "",
        method: str = "GET",
        path: str = "/metrics",
    ) -> Page:
        """Asks once, on a connection of its own."""
        headers = {"accept": accept} | ({"authorization": f"Bearer {token}"} if token else {})
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Page(answer.status, told, text)
        finally:
            connection.close()

    def events(self) -> list[dict[str, Any]]:
        """The lines of a log in JSON."""
        return [json.loads(line) for line in self.log.splitlines()]
