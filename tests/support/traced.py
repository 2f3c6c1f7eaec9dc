"""OpenTelemetry's own SDK, exporting to memory: what was told of generations."""

import re
from pathlib import Path
from typing import Any, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

MANUAL: Final = Path(__file__).parents[2] / "sidecar" / "TELEMETRY.md"


def documented() -> set[str]:
    """The names in the manual; one that ends with a dot stands for all that begin so."""
    text = MANUAL.read_text(encoding="utf-8")
    names = re.findall(r"`((?:gen_ai|bursar|error)\.[a-z_.]+)…?`", text)
    return {name for name in names if name not in {"bursar.generation", "bursar.open"}}


class Traced:
    """Providers of its own."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.app = self.tracers.get_tracer("app")

    def close(self) -> None:
        """Ends what the SDK has started."""
        self.tracers.shutdown()
        self.meters.shutdown()

    @property
    def spans(self) -> list[ReadableSpan]:
        """All that have ended, in that order."""
        return list(self._exporter.get_finished_spans())

    def ours(self) -> list[ReadableSpan]:
        """Those of Bursar; each name in them is in the manual."""
        found = [one for one in self.spans if scope(one) == "bursar"]
        known = documented()
        for span in found:
            names = {*(span.attributes or {}), *(event.name for event in span.events)}
            names |= {name for event in span.events for name in event.attributes or {}}
            general = {name.rpartition(".")[0] + "." for name in names} & known
            assert {one for one in names if one.rpartition(".")[0] + "." not in general} <= known
        return found

    def only(self) -> ReadableSpan:
        """The only one of Bursar."""
        [span] = self.ours()
        return span

    def points(self, name: str) -> list[Any]:
        """The data points of a metric of Bursar."""
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        scopes = [one for resource in data.resource_metrics for one in resource.scope_metrics]
        return [
            point
            for one in scopes
            if one.scope.name == "bursar"
            for metric in one.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def everything(self) -> str:
        """All that was exported, as text."""
        data = self._reader.get_metrics_data()
        return "".join(one.to_json() for one in self.spans) + (data.to_json() if data else "")


def scope(span: ReadableSpan) -> str:
    """Who has made it."""
    return "" if span.instrumentation_scope is None else span.instrumentation_scope.name


def said(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})


def is_child(span: ReadableSpan, of: Any) -> bool:
    """Whether it is directly within another one."""
    return span.parent is not None and span.parent.span_id == of.get_span_context().span_id
