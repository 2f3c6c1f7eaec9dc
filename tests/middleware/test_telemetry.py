"""What a generation tells OpenTelemetry: exact spans, events and counts, and never a text."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from support.traced import Traced, documented, is_child, said

import bursar
from bursar import Advice, BudgetExceeded, Threshold, Usage, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, AsyncGeneration, Generation, Policy, _telemetry
from bursar.testing import Sidecar

TEXT = "nobody may read this"
DURATION = "gen_ai.client.inference.duration"
USED = "gen_ai.client.inference.usage"
PER_CALL = "gen_ai.client.inference.operation"
HISTOGRAMS = (DURATION, f"{PER_CALL}.input_tokens", f"{PER_CALL}.output_tokens")
COUNTERS = tuple(
    f"{USED}.{kind}_tokens" for kind in ("input", "output", "cache_read.input", "cache_write.input")
)


def made(client: bursar.Client, account: str, **more: Any) -> Generation:
    return Generation(client, account, provider="openai", **more)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_is_one_span_within_the_callers(
    traced: Traced, ledger: bursar.Client, sidecar: Sidecar, *, is_async: bool
) -> None:
    async def run_async() -> None:
        async with sidecar.client_async() as client:
            await client.set_budget("acme/whole", unit="usd_nanos", limit=1_000_000)
            async with AsyncGeneration(client, "acme/whole", provider="openai") as generation:
                await generation.on_prompt(100, model="big", max_new_tokens=30)
                await generation.on_step(7)
                assert trace.get_current_span() is caller, "nothing of the caller's is changed"
                used = Usage(input_tokens=99, cached_input_tokens=40, output_tokens=8)
                await generation.on_end("stop", usage=used)

    def run() -> None:
        ledger.set_budget("acme/whole", unit="usd_nanos", limit=1_000_000)
        with made(ledger, "acme/whole") as generation:
            generation.on_prompt(100, model="big", max_new_tokens=30)
            generation.on_step(7)
            assert trace.get_current_span() is caller, "nothing of the caller's is changed"
            used = Usage(input_tokens=99, cached_input_tokens=40, output_tokens=8)
            generation.on_end("stop", usage=used)

    with traced.app.start_as_current_span("agent") as caller:
        asyncio.run(run_async()) if is_async else run()
    span = traced.only()
    assert is_child(span, caller)
    assert (span.name, span.kind, span.status.status_code) == (
        "chat big",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    found = said(span)
    assert found.pop("bursar.reservation.id")
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "big",
        "gen_ai.request.max_tokens": 30,
        "gen_ai.response.model": "big",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 99,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.output_tokens": 8,
        "bursar.account": "acme/whole",
        "bursar.reservation.local": False,
        "bursar.tokens.reserved": 130,
        "bursar.tokens.debited": 7,
        "bursar.spent.calls": 1,
        "bursar.spent.tokens": 107,
        "bursar.spent.usd_nanos": 99 * 10 + 8 * 20,
        "bursar.verdict": "OK",
        "bursar.stopped": False,
    }
    assert list(span.events) == []


def counted(traced: Traced) -> list[int]:
    """What each counter of tokens says, in the order of `COUNTERS`."""
    return [sum(one.value for one in traced.points(name)) for name in COUNTERS]


def test_the_histograms_have_the_conventions_buckets_and_exact_values(
    traced: Traced, ledger: bursar.Client
) -> None:
    ledger.set_budget("acme/exact", unit="tokens", limit=10_000)
    for prompt, new in ((3, 1), (64, 5), (65, 70)):
        with made(ledger, "acme/exact") as generation:
            generation.on_prompt(prompt, max_new_tokens=100)
            generation.on_step(new)
    [prompts], [outputs] = (traced.points(name) for name in HISTOGRAMS[1:])
    assert [(one.count, one.sum) for one in (prompts, outputs)] == [(3, 132), (3, 76)]
    few, many = (1, 4, 16, 64, 256, 1024, 4096), (16384, 65536, 262144, 1048576)
    assert tuple(prompts.explicit_bounds) == (*few, *many, 4194304, 16777216, 67108864)
    assert tuple(prompts.bucket_counts)[:5] == (0, 1, 0, 1, 1)
    assert tuple(outputs.bucket_counts)[:5] == (1, 0, 1, 0, 1)
    [took] = traced.points(DURATION)
    seconds = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48)
    assert tuple(took.explicit_bounds) == (*seconds, 40.96, 81.92)
    longest = max((one.end_time or 0) - (one.start_time or 0) for one in traced.ours())
    assert took.count == 3
    assert 0 < took.min <= took.max <= longest / 1e9
    names = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
    assert dict(took.attributes) == dict(prompts.attributes) == names


def test_the_counters_say_what_was_used_and_of_that_what_a_cache_had(
    traced: Traced, ledger: bursar.Client
) -> None:
    ledger.set_budget("acme/counted", unit="usd_nanos", limit=10_000_000)
    used = Usage(input_tokens=90, cached_input_tokens=40, cache_write_tokens=30, output_tokens=8)
    for usage in (used, None):
        with made(ledger, "acme/counted") as generation:
            generation.on_prompt(100, model="big", max_new_tokens=30)
            generation.on_step(7)
            generation.on_end("stop", usage=usage)
    assert counted(traced) == [90 + 100, 8 + 7, 40, 30]
    first, second = (said(span) for span in traced.ours())
    assert first["gen_ai.usage.cache_write.input_tokens"] == 30
    assert "gen_ai.usage.cache_write.input_tokens" not in second
    assert dict(traced.points(COUNTERS[0])[0].attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "big",
        "gen_ai.response.model": "big",
        "gen_ai.token.modality": "unknown",
    }


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("azure", "azure.ai.openai"),
        ("bedrock", "aws.bedrock"),
        ("google", "gcp.gemini"),
        ("google-cloud", "gcp.vertex_ai"),
        ("google_vertexai", "gcp.vertex_ai"),
        ("mistral", "mistral_ai"),
        ("moonshotai", "moonshot_ai"),
        ("xai", "x_ai"),
        ("anthropic", "anthropic"),
        ("", "_OTHER"),
    ],
)
def test_a_provider_has_the_conventions_name(told: str, name: str) -> None:
    assert _telemetry.provider_name(told) == name


@pytest.mark.parametrize("stream", [False, True])
def test_only_a_streamed_call_says_that_it_is_one(
    traced: Traced, ledger: bursar.Client, *, stream: bool
) -> None:
    with made(ledger, "acme/streamed", stream=stream) as generation:
        generation.on_prompt(1, max_new_tokens=1)
    assert said(traced.only()).get("gen_ai.request.stream") == (True if stream else None)


def test_an_account_is_in_the_metrics_only_for_those_who_choose_it(
    traced: Traced, ledger: bursar.Client
) -> None:
    for account, by_account in (("acme/one", True), ("acme/other", False)):
        policy = Policy(metrics_by_account=by_account)
        with made(ledger, account, policy=policy) as generation:
            generation.on_prompt(1, max_new_tokens=1)
            generation.on_step()
    points = [one for name in (*HISTOGRAMS, *COUNTERS) for one in traced.points(name)]
    assert [one.attributes.get("bursar.account") for one in points].count("acme/one") == 7
    assert "acme/other" not in str([dict(one.attributes) for one in points])


def test_each_limit_that_is_passed_is_an_event_and_a_cut_is_no_error(
    traced: Traced, ledger: bursar.Client
) -> None:
    warn = Threshold(900, Verdict.WARN, Advice(temperature=0.5))
    ledger.set_budget("acme/cut", unit="tokens", limit=1000, thresholds=[warn])
    with made(ledger, "acme/cut", policy=Policy(first_grant=1)) as generation:
        generation.on_prompt(10, max_new_tokens=5000)
        told = [generation.on_step() for _ in range(991)]
        assert generation.on_end("length") == BUDGET_EXHAUSTED
    at = told.index(Verdict.WARN)
    span = traced.only()
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("bursar.warn", {"bursar.tokens.debited": at + 1, "bursar.advice.temperature": 0.5}),
        ("bursar.stop", {"bursar.tokens.debited": 990, "bursar.advice.temperature": 0.5}),
    ]
    found = said(span)
    assert span.status.status_code is StatusCode.UNSET
    assert found["gen_ai.response.finish_reasons"] == (BUDGET_EXHAUSTED,)
    assert (found["bursar.stopped"], found["bursar.verdict"]) == (True, "STOP")
    assert (found["bursar.spent.tokens"], found["gen_ai.usage.output_tokens"]) == (1000, 990)
    assert "error.type" not in found
    assert [one.attributes.get("error.type") for one in traced.points(DURATION)] == [None]


def test_a_lower_limit_that_the_engine_was_told_is_a_stop_as_well(
    traced: Traced, ledger: bursar.Client
) -> None:
    ledger.set_budget("acme/low", unit="tokens", limit=50)
    with made(ledger, "acme/low") as generation:
        assert generation.on_prompt(10, max_new_tokens=500) == 40
        used = Usage(input_tokens=10, output_tokens=40)
        assert generation.on_end("length", usage=used) == BUDGET_EXHAUSTED
    assert [event.name for event in traced.only().events][-1] == "bursar.stop"
    assert said(traced.only())["bursar.stopped"] is True


def test_a_cheaper_model_is_told_of(traced: Traced, ledger: bursar.Client) -> None:
    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small", max_new_tokens=20))
    ledger.set_budget("acme/soft", unit="usd_nanos", limit=10_000, thresholds=[soft])
    ledger.record("acme/soft", amounts={"usd_nanos": 6_000})
    with made(ledger, "acme/soft") as generation:
        generation.on_prompt(100, model="big", max_new_tokens=50)
        generation.on_end("stop")
    span = traced.only()
    first, second = span.events
    assert (first.name, dict(first.attributes or {})) == (
        "bursar.fallback",
        {"bursar.model.asked": "big", "bursar.model.taken": "small"},
    )
    assert second.name == "bursar.degrade"
    found = said(span)
    models = [found["gen_ai.request.model"], found["gen_ai.response.model"]]
    assert (span.name, models) == ("chat big", ["big", "small"])
    assert found["bursar.advice.max_new_tokens"] == 20
    [took] = traced.points(DURATION)
    assert took.attributes["gen_ai.response.model"] == "small"


def test_a_refusal_is_an_error_for_nothing_was_generated(
    traced: Traced, ledger: bursar.Client
) -> None:
    ledger.set_budget("acme/none", unit="tokens", limit=10)
    with pytest.raises(BudgetExceeded) as refused, made(ledger, "acme/none") as generation:
        generation.on_prompt(10, max_new_tokens=5)
    span = traced.only()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert said(span)["error.type"] == refused.value.reason == "BUDGET_EXHAUSTED"
    assert not {one for one in said(span) if one.startswith(("gen_ai.usage", "gen_ai.response"))}
    for name in HISTOGRAMS:
        [took] = traced.points(name)
        assert (took.count, took.attributes["error.type"]) == (1, "BUDGET_EXHAUSTED")
    assert counted(traced) == [0, 0, 0, 0]


def test_an_engine_that_dies_is_an_error_and_its_words_are_not_told(
    traced: Traced, ledger: bursar.Client
) -> None:
    def die() -> None:
        with made(ledger, "acme/dies") as generation:
            generation.on_prompt(10, max_new_tokens=50)
            generation.on_step(5)
            with generation.current():
                raise LookupError(TEXT)

    with pytest.raises(LookupError):
        die()
    span = traced.only()
    assert span.status.status_code is StatusCode.ERROR
    assert said(span)["error.type"] == "LookupError"
    assert said(span)["gen_ai.response.finish_reasons"] == ("error",)
    assert said(span)["gen_ai.usage.output_tokens"] == 5
    assert [event.name for event in span.events] == []
    assert TEXT not in traced.everything()
    assert "acme/dies" in traced.everything()


def test_what_never_began_has_no_usage(traced: Traced, ledger: bursar.Client) -> None:
    with made(ledger, "acme/back") as generation:
        generation.on_prompt(10, max_new_tokens=50)
        generation.abandon(TimeoutError(TEXT))
    assert said(traced.only())["error.type"] == "TimeoutError"
    assert "gen_ai.usage.input_tokens" not in said(traced.only())
    assert counted(traced) == [0, 0, 0, 0]


def test_who_cancels_has_made_no_error(traced: Traced, sidecar: Sidecar) -> None:
    async def main() -> None:
        async with sidecar.client_async() as client:
            async with asyncio.timeout(10):
                begun = asyncio.Event()
                task = asyncio.create_task(endless(client, begun))
                await begun.wait()
                task.cancel()
                await asyncio.wait([task])

    async def endless(client: bursar.AsyncClient, begun: asyncio.Event) -> None:
        async with AsyncGeneration(client, "acme/cancelled") as generation:
            await generation.on_prompt(10, max_new_tokens=50)
            begun.set()
            await asyncio.Event().wait()

    asyncio.run(main())
    span = traced.only()
    assert span.status.status_code is StatusCode.UNSET
    assert said(span)["gen_ai.response.finish_reasons"] == ("error",)
    assert said(span)["gen_ai.provider.name"] == "_OTHER"


def test_an_engine_that_is_told_to_end_has_not_finished(
    traced: Traced, ledger: bursar.Client
) -> None:
    with made(ledger, "acme/ended") as generation:
        generation.on_prompt(10, max_new_tokens=50)
        assert generation.on_end("cancelled") == "cancelled"
    assert said(traced.only())["gen_ai.response.finish_reasons"] == ("error",)
    assert "error.type" not in said(traced.only())


def test_what_is_called_meanwhile_is_within_it_and_so_is_a_generation(
    traced: Traced, ledger: bursar.Client
) -> None:
    with made(ledger, "acme/outer") as outer:
        outer.on_prompt(1, max_new_tokens=5)
        with outer.current():
            with traced.app.start_as_current_span("POST"):
                pass
            with made(ledger, "acme/inner") as inner:
                inner.on_prompt(1, max_new_tokens=5)
        with traced.app.start_as_current_span("after"):
            pass
    post, within, after, around = traced.spans
    assert [is_child(one, around) for one in (post, within, after)] == [True, True, False]
    assert sum(one.count for one in traced.points(DURATION)) == 2, "both are calls of their own"


def test_a_call_that_a_framework_has_told_of_is_not_counted_again(
    traced: Traced, ledger: bursar.Client
) -> None:
    asked = {"gen_ai.operation.name": "chat"}
    with (
        traced.app.start_as_current_span("chat big", attributes=asked) as around,
        made(ledger, "acme/twice") as generation,
    ):
        generation.on_prompt(1, model="big", max_new_tokens=5)
    span = traced.only()
    assert (span.name, span.kind) == ("bursar.generation", SpanKind.INTERNAL)
    assert is_child(span, around)
    assert {name.partition(".")[0] for name in said(span)} == {"bursar"}
    assert [one for name in (*HISTOGRAMS, *COUNTERS) for one in traced.points(name)] == []


def test_steps_write_nothing(
    traced: Traced, ledger: bursar.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(ledger, "acme/steps") as generation:
        generation.on_prompt(1, max_new_tokens=1000)
        with monkeypatch.context() as patch:
            patch.setattr(generation, "_observed", None)  # whatever is asked of it fails
            for _ in range(1000):
                assert generation.on_step() is Verdict.OK
    assert said(traced.only())["bursar.tokens.debited"] == 1000


def test_the_manual_lists_what_there_is() -> None:
    source = "".join(
        (Path(_telemetry.__file__).parent / name).read_text(encoding="utf-8")
        for name in ("_telemetry.py", "_course.py")
    )
    written = set(re.findall(r'"((?:gen_ai|bursar|error)\.[a-z_.]+)(?:\{[a-z]+\})?"', source))
    others = {"bursar.generation", "bursar.middleware"}  # a span, a logger
    made = {"bursar.warn", "bursar.degrade", "bursar.stop"}
    assert documented() == (written | made) - others


GENERATE = """
import pathlib, sys, tempfile
{before}
import bursar
assert not [one for one in sys.modules if one.startswith("opentelemetry.")]
from bursar.middleware import Generation
{after}
with tempfile.TemporaryDirectory() as folder:
    config = pathlib.Path(folder, "bursar.toml")
    config.write_text('[[accounts]]\\npath = "**"\\n', encoding="utf-8")
    with bursar.open(pathlib.Path(folder, "ledger"), config=config) as client:
        with Generation(client, "acme/alone") as generation, generation.current():
            generation.on_prompt(10, max_new_tokens=5)
            generation.on_step(3)
        print(client.get_account("acme/alone").verdict.name, generation.reason)
"""


def python(before: str = "", after: str = "") -> str:
    code = GENERATE.format(before=before, after=after)
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_without_the_package_nothing_is_told() -> None:
    without = "sys.modules['opentelemetry'] = None"
    loaded = "assert not [one for one in sys.modules if one.startswith('opentelemetry.')]"
    assert python(without, loaded) == "OK stop\n"


def test_with_a_package_that_is_too_old_nothing_is_told() -> None:
    old = """
from types import SimpleNamespace as Module
class Meter:
    def create_histogram(self, name, unit="", description=""):
        raise AssertionError("it is given buckets")
metrics = Module(get_meter=lambda *_: Meter())
sys.modules["opentelemetry"] = Module(metrics=metrics, trace=Module(get_tracer=lambda *_: None))
"""
    assert python(old) == "OK stop\n"


def test_without_a_provider_nothing_is_told() -> None:
    assert python(after="assert 'opentelemetry.sdk' not in sys.modules") == "OK stop\n"


def test_a_provider_that_is_set_later_is_told() -> None:
    after = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
"""
    told = python(after=after)
    assert '"bursar.account": "acme/alone"' in told
    assert '"gen_ai.usage.output_tokens": 3' in told
