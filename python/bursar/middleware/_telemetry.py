"""OpenTelemetry of a generation: a span and metrics, by the names of the GenAI conventions 0.1.0.

Written to where a generation begins, where its verdict gets worse, and where it ends; steps do not
come here. No text is recorded: no prompt, no output, no message of an error. Without the package
`opentelemetry-api`, or with one that is too old, there is nothing to write to, and without
providers of the application's the package itself does nothing. The names are listed in
`sidecar/TELEMETRY.md`.
"""

import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bursar._core import version
from bursar.exceptions import BursarError
from bursar.models import Advice, Usage, Verdict

try:
    from opentelemetry import metrics, trace
except ImportError:
    _IS_INSTALLED = False  # the extra `otel`
else:
    _IS_INSTALLED = True

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["OTHER", "Instruments", "Observed", "instruments", "provider_name"]

OTHER: Final = "_OTHER"
"""A provider, or a kind of error, that nobody has named."""

_PROVIDERS: Final = {
    "amazon_bedrock": "aws.bedrock",
    "anthropic-mantle": "aws.bedrock",
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "bedrock-mantle": "aws.bedrock",
    "google": "gcp.gemini",
    "google-cloud": "gcp.vertex_ai",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "ibm": "ibm.watsonx.ai",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "moonshotai": "moonshot_ai",
    "openai-chatgpt": "openai",
    "openai-codex": "openai",
    "openai-mantle": "aws.bedrock",
    "xai": "x_ai",
}
"""What LangChain and Pydantic AI call them; the other names are the conventions' own."""

_SCOPE: Final = "bursar"
_INFERENCE: Final = frozenset({"chat", "generate_content", "text_completion"})
_ADVICE: Final = ("max_new_tokens", "temperature", "repetition_penalty", "fallback_model")
_TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
_SECOND_BUCKETS: Final = tuple(2**power / 100 for power in range(14))

Attributes = dict[str, Any]

_COUNTERS: Final = {
    "input_tokens": (
        "gen_ai.client.inference.usage.input_tokens",
        "The number of input (prompt) tokens used, including cached tokens.",
    ),
    "output_tokens": (
        "gen_ai.client.inference.usage.output_tokens",
        "The number of output (completion) tokens used, including reasoning tokens.",
    ),
    "cached_input_tokens": (
        "gen_ai.client.inference.usage.cache_read.input_tokens",
        "The number of input tokens served from a provider-managed cache.",
    ),
    "cache_write_tokens": (
        "gen_ai.client.inference.usage.cache_write.input_tokens",
        "The number of input tokens written to a provider-managed cache.",
    ),
}
_HISTOGRAMS: Final = {
    "input_tokens": (
        "gen_ai.client.inference.operation.input_tokens",
        "The number of input (prompt) tokens used per inference operation.",
    ),
    "output_tokens": (
        "gen_ai.client.inference.operation.output_tokens",
        "The number of output (completion) tokens used per inference operation.",
    ),
}


class Instruments(NamedTuple):
    """What is written to; the tokens' by the names of the fields of `Usage`."""

    tracer: "trace.Tracer"
    duration: "metrics.Histogram"
    used: "dict[str, metrics.Counter]"
    per_call: "dict[str, metrics.Histogram]"


def instruments(tracers: Any = None, meters: Any = None) -> Instruments:  # noqa: ANN401 -- providers
    """Those of the given providers; None: the application's, also if it sets them later."""
    meter = metrics.get_meter(_SCOPE, version, meters)
    return Instruments(
        trace.get_tracer(_SCOPE, version, tracers),
        meter.create_histogram(
            "gen_ai.client.inference.duration",
            "s",
            "GenAI client inference operation duration.",
            explicit_bucket_boundaries_advisory=_SECOND_BUCKETS,
        ),
        {
            field: meter.create_counter(name, "{token}", brief)
            for field, (name, brief) in _COUNTERS.items()
        },
        {
            field: meter.create_histogram(
                name, "{token}", brief, explicit_bucket_boundaries_advisory=_TOKEN_BUCKETS
            )
            for field, (name, brief) in _HISTOGRAMS.items()
        },
    )


def _ours() -> Instruments | None:
    if not _IS_INSTALLED:
        return None
    try:
        return instruments()
    except TypeError:  # before 1.30 histograms do not take their buckets
        return None


_OURS: Final = _ours()


def provider_name(told: str) -> str:
    """The conventions' name of a provider that a framework names; empty: nobody has."""
    return _PROVIDERS.get(told, told) or OTHER


class Observed:
    """One generation as it is told of.

    Args:
        account: The account that spends.
        provider: Who generates, by the conventions' names.
        operation: What the call is, by the conventions' names.
        stream: Whether the answer comes as a stream.
        by_account: Whether the metrics have the account as an attribute.
    """

    def __init__(
        self, account: str, provider: str, operation: str, *, stream: bool, by_account: bool
    ) -> None:
        self._account = {"bursar.account": account}
        self._stream = {"gen_ai.request.stream": True} if stream else {}
        self._named = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider}
        self._by_account = by_account
        self._span: Span | None = None
        self._began = 0.0
        self._worst = Verdict.OK
        self._is_told = self._is_over = False

    def begin(self, model: str | None, most: int) -> None:
        """Starts the span, as a child of the caller's current one."""
        if _OURS is None:
            return
        self._is_told = _tells_of_a_call(trace.get_current_span())
        if self._is_told:
            self._span = _OURS.tracer.start_span("bursar.generation", attributes=self._account)
            return
        if model is not None:
            self._named["gen_ai.request.model"] = model
        name = f"{self._named['gen_ai.operation.name']} {model or ''}".rstrip()
        asked: Attributes = {**self._named, **self._account, **self._stream}
        asked["gen_ai.request.max_tokens"] = most
        self._span = _OURS.tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=asked)
        self._began = time.perf_counter()

    def current(self) -> AbstractContextManager[Any]:
        """Makes the span the current one, for what is called meanwhile."""
        if self._span is None:
            return contextlib.nullcontext()
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def fell_back(self, model: str | None, cheaper: str) -> None:
        """Tells of the model's change at a soft limit."""
        if self._span is not None:
            models = {"bursar.model.asked": model or "", "bursar.model.taken": cheaper}
            self._span.add_event("bursar.fallback", models)

    def turned(self, verdict: Verdict, advice: Advice | None, debited: int) -> None:
        """Tells of a verdict that is worse than all before."""
        if self._span is None or verdict <= self._worst:
            return
        self._worst = verdict
        advised = _advised(advice)
        self._span.set_attributes(advised)
        told = advised | {"bursar.tokens.debited": debited}
        self._span.add_event(f"bursar.{verdict.name.lower()}", told)

    def end(
        self,
        facts: Mapping[str, Any],
        *,
        reason: str | None = None,
        model: str | None = None,
        usage: Usage | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Ends the span and counts; once.

        Args:
            facts: More attributes of the span.
            reason: Why the generation ended; None: it never began.
            model: Which model has generated.
            usage: What it has used; None: nothing was generated.
            error: What failed. One that only ends a task or a generator is no failure.
        """
        if self._span is None or self._is_over or _OURS is None:
            return
        self._is_over = True
        failed = _error_type(reason, error)
        if failed:
            self._named["error.type"] = failed
        if self._span.is_recording():
            told = {**facts, "bursar.verdict": self._worst.name}
            if failed:
                told["error.type"] = failed
                self._span.set_status(trace.StatusCode.ERROR)
            if not self._is_told and usage is not None:
                told |= _response(reason, model, usage)
            self._span.set_attributes(told)
        if not self._is_told:
            self._count(_OURS, model, usage)
        self._span.end()

    def _count(self, ours: Instruments, model: str | None, usage: Usage | None) -> None:
        within = trace.set_span_in_context(self._span) if self._span is not None else None
        named: Attributes = dict(self._named)
        if usage is not None and model is not None:
            named["gen_ai.response.model"] = model
        if self._by_account:
            named |= self._account
        ours.duration.record(time.perf_counter() - self._began, named, within)
        used = usage or Usage()  # a call without an answer counts 0
        for field, histogram in ours.per_call.items():
            histogram.record(getattr(used, field), named, within)
        named.pop("error.type", None)
        named["gen_ai.token.modality"] = "unknown"
        for field, counter in ours.used.items():
            counter.add(getattr(used, field), named, within)


def _response(reason: str | None, model: str | None, usage: Usage) -> Attributes:
    """What the conventions say of an answer; `error` is the reason of one that was cut off."""
    finished = "error" if reason in {None, "cancelled"} else reason
    told: Attributes = {
        "gen_ai.response.finish_reasons": [finished],
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if model is not None:
        told["gen_ai.response.model"] = model
    if usage.cached_input_tokens:
        told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input_tokens
    if usage.cache_write_tokens:
        told["gen_ai.usage.cache_write.input_tokens"] = usage.cache_write_tokens
    return told


def _advised(advice: Advice | None) -> Attributes:
    said = {name: getattr(advice, name, None) for name in _ADVICE}
    return {f"bursar.advice.{name}": value for name, value in said.items() if value is not None}


def _error_type(reason: str | None, error: BaseException | None) -> str:
    """The conventions' `error.type`; empty: it is no failure."""
    if isinstance(error, BursarError) and error.reason:
        return error.reason
    if isinstance(error, Exception):
        kind = type(error)
        return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return OTHER if error is None and reason == "error" else ""


def _tells_of_a_call(span: "Span") -> bool:
    """Whether this span of somebody else's already tells of the model call within it."""
    scope = getattr(span, "instrumentation_scope", None)  # of an SDK's spans
    named = getattr(span, "attributes", None) or {}
    return getattr(scope, "name", "") != _SCOPE and named.get("gen_ai.operation.name") in _INFERENCE
